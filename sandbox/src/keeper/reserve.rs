//! Descriptors that the spawner keeps back.
//!
//! The kernel drops descriptors for which the receiver has no room. So that a request can always be received, and
//! refused in words where there is no room for what it asks, some numbers are kept free for receiving.

use std::fs::File;
use std::io;

use super::sys;

/// Rulesets, standard input and the message itself; also a pidfd and a listener.
const KEPT: usize = 8;

/// Numbers that are free while something is received.
#[derive(Default)]
pub(super) struct Reserve(Vec<File>);

impl Reserve {
    /// Frees them.
    pub(super) fn release(&mut self) {
        self.0.clear();
    }

    /// Takes them again.
    ///
    /// # Errors
    /// No more descriptors can be had.
    pub(super) fn refill(&mut self, any: &File) -> io::Result<()> {
        while self.0.len() < KEPT {
            self.0.push(any.try_clone()?);
        }
        Ok(())
    }
}

/// Allows this process as many descriptors as it may have; says how many its host allows itself, where that is
/// less.
pub(super) fn raise_limit() -> Option<u64> {
    sys::set_soft_rlimit(libc::RLIMIT_NOFILE, u64::MAX).ok()
}
