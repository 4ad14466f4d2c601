//! The listener, shared with threads that answer late. What it receives is on disk until it is answered, where
//! processes survive us.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::PollTimeout;
use provost_sandbox::observe::notify::{KeepsCalls, Listener, Received, Response};

use crate::spool::Calls;

/// Clones are the same listener.
#[derive(Clone)]
pub(crate) struct SharedListener(Arc<Shared>);

struct Shared {
    listener: Listener,
    calls: Option<Calls>,
}

impl SharedListener {
    pub(super) fn new(fd: OwnedFd, calls: Option<Calls>) -> io::Result<Self> {
        let listener = Listener::new(fd)?;
        Ok(Self(Arc::new(Shared { listener, calls })))
    }

    /// For deciding, which answers nothing.
    pub(super) fn raw(&self) -> &Listener {
        &self.0.listener
    }

    pub(super) fn receive_within(&self, wait: PollTimeout) -> io::Result<Received> {
        let keeps = self.0.calls.as_ref().map(|calls| calls as &dyn KeepsCalls);
        self.0.listener.receive_within(wait, keeps)
    }

    pub(super) fn respond(&self, id: u64, response: Response) -> io::Result<()> {
        let answered = self.0.listener.respond(id, response);
        self.forget(id);
        answered
    }

    pub(super) fn give(&self, id: u64, fd: BorrowedFd<'_>, close_on_exec: bool) -> Result<(), Errno> {
        self.0.listener.give(id, fd, close_on_exec)?;
        self.forget(id);
        Ok(())
    }

    /// Nobody waits for an answer.
    pub(super) fn forget(&self, id: u64) {
        if let Some(calls) = &self.0.calls {
            calls.release(id);
        }
    }

    /// Whether somebody waits for an answer.
    pub(super) fn is_valid(&self, id: u64) -> bool {
        self.0.listener.is_valid(id)
    }

    /// Somebody waits for an answer to a call that was received and that nobody knows.
    pub(super) fn is_unknown(&self, id: u64) -> bool {
        let known = self.0.calls.as_ref().is_some_and(|calls| calls.has(id));
        !known && self.is_valid(id)
    }
}

impl AsRawFd for SharedListener {
    fn as_raw_fd(&self) -> RawFd {
        self.0.listener.as_fd().as_raw_fd()
    }
}
