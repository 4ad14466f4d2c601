//! Readiness of descriptors, in the one place that makes an `AsyncFd`.
//!
//! tokio deprecates its safe constructors because a wrapped type may name another descriptor each time it is
//! asked, and offers unsafe ones. This crate has no unsafe code; the types that are let in here own one
//! descriptor, which they name for as long as they live, and that is all that the unsafe constructors ask for.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Types that own one descriptor and name that one as long as they live.
pub(crate) trait OwnsOneFd: AsRawFd {}

impl OwnsOneFd for OwnedFd {}
impl OwnsOneFd for std::sync::Arc<OwnedFd> {}
impl OwnsOneFd for provost_sandbox::spawn::Spawner {}
impl OwnsOneFd for crate::denial::SharedListener {}

/// Watches a descriptor.
#[allow(deprecated)]
pub(crate) fn watch<T: OwnsOneFd>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(fd, interest)
}
