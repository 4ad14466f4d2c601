//! Descriptors that the keeper keeps from one daemon to the next, by name.

use std::os::fd::OwnedFd;

use provost_sandbox::keeper::wire::Request;

use super::Tree;
use crate::spawner::lock;

impl Tree {
    /// Has the keeper keep a descriptor for whoever connects to it next. False where there is no keeper, or it takes nothing
    /// at the moment: then nothing may be counted on.
    #[must_use]
    pub fn hold(&self, name: &str, descriptor: OwnedFd) -> bool {
        if self.keeping.is_none() {
            return false;
        }
        let name = name.to_owned();
        let link = lock(&self.link).clone();
        link.post(Request::Hold { name }, None, Some(descriptor));
        link.is_idle() && link.gone().is_none()
    }

    /// What the keeper kept under this name when this tree was started; once. The keeper goes on keeping it, until
    /// [`Tree::let_go`].
    pub fn take_held(&self, name: &str) -> Option<OwnedFd> {
        lock(&self.inventory).named.remove(name)
    }

    /// Has the keeper keep nothing under this name any more.
    pub fn let_go(&self, name: &str) {
        if self.keeping.is_some() {
            let name = name.to_owned();
            lock(&self.link).post(Request::Hold { name }, None, None);
        }
    }
}
