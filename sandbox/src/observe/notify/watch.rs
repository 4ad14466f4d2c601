//! inotify_add_watch(2): Landlock has no right for it, and it tells who opens what in a directory whose files must not be read.
//!
//! It is performed on behalf of the target, on the very file that was judged, and never continued.

use std::os::fd::AsFd;

use nix::errno::Errno;

use super::attributes;
use super::memory;
use super::metadata::unread;
use super::{Call, Decided, Decider, Response};
use crate::compile::access::FileAccess;
use crate::denial::{DenialClass, DenialTarget};

impl Decider {
    pub(super) fn watch(&self, call: Call<'_>) -> Decided {
        let inotify = match self.descriptor(call, call.int(0)) {
            Ok(subject) => subject.file,
            Err(decided) => return *decided,
        };
        let path = match memory::read_path(call.tid(), call.arg(1)) {
            Ok(path) => path,
            Err(error) => return call.fail(unread(error)),
        };
        let mask = call.int(2).cast_unsigned();
        let Ok(view) = self.view(call) else {
            return call.deny_unreadable();
        };
        let found = view.absolute(libc::AT_FDCWD, &path).and_then(|path| {
            let _plain = attributes::WithoutCapabilities::new()?;
            view.lookup(&path, mask & libc::IN_DONT_FOLLOW == 0)
        });
        if !call.is_valid() {
            return Decided::error(Errno::ESRCH);
        }
        let found = match found {
            Ok(found) => found,
            Err(errno) => return Decided::error(errno),
        };
        let verdict = self.setup.metadata.decide(&found.path, FileAccess::Read);
        if !verdict.allowed {
            let target = DenialTarget::path(found.path.to_string_lossy());
            return call.deny(DenialClass::Filesystem, Errno::EACCES, target, verdict.rule);
        }
        let mask = mask & !libc::IN_DONT_FOLLOW;
        match attributes::watch(inotify.as_fd(), found.file.as_fd(), mask) {
            Ok(watch) => Decided::now(Response::Value(i64::from(watch))),
            Err(errno) => Decided::error(errno),
        }
    }
}
