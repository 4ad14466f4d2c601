//! Calls that may block: performed on threads of their own, of which each process has a bounded number.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use provost_sandbox::observe::notify::{Canceller, HeldOpen, Response};

use super::SharedListener;
use crate::spawner::lock;

/// Calls that may be performed on threads at the same time, per process.
const BLOCKING_MAX: usize = 64;
/// Opens on behalf of the program, which gets the descriptor or the error.
pub(super) fn give(listener: &SharedListener, id: u64, open: HeldOpen) {
    let close_on_exec = open.close_on_exec();
    let given = match open.run() {
        Ok(file) => listener.give(id, file.as_fd(), close_on_exec),
        Err(errno) => Err(errno),
    };
    if let Err(errno) = given {
        let _ = listener.respond(id, Response::Errno(errno as i32));
    }
}

pub(super) fn on_a_thread(name: &str, work: impl FnOnce() + Send + 'static) -> Option<()> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(work).ok().map(drop)
}

/// Calls that are performed on threads. Dropping it ends the connects: they are shut down on a duplicate of their socket.
#[derive(Default)]
pub(super) struct Blocking(Arc<Mutex<HashMap<u64, Option<Canceller>>>>);

/// The place of one call.
pub(super) struct Slot {
    id: u64,
    all: Arc<Mutex<HashMap<u64, Option<Canceller>>>>,
}

impl Blocking {
    /// An open has nothing to cancel: a regular file answers, or its file system hangs.
    pub(super) fn take(&self, id: u64, canceller: Option<Canceller>) -> Option<Slot> {
        let mut all = lock(&self.0);
        if all.len() >= BLOCKING_MAX {
            return None;
        }
        all.insert(id, canceller);
        Some(Slot {
            id,
            all: self.0.clone(),
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.all).remove(&self.id);
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        for canceller in lock(&self.0).drain().filter_map(|(_, canceller)| canceller) {
            canceller.cancel();
        }
    }
}
