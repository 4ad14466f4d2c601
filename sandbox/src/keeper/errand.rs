//! What a daemon asks its keeper to look at for it, and the answer, on a socket of their own.
//!
//! Where Yama lets only an ancestor into a process (`kernel.yama.ptrace_scope` = 1), a daemon that was started again is
//! none of what its keeper started; the keeper is. A daemon needs the answer in the thread that decides about a call, so
//! it cannot come on the connection on which processes are started, which another one reads.
//!
//! One question at a time: an [`Asked`] per packet, and for each one [`Answer`] that repeats its number. Both ends are of one
//! release, because [`Request::Errands`](super::wire::Request::Errands) came over a connection that compares versions.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::packet;

/// How much is read at once, in bytes.
pub const READ_BYTES_MAX: usize = 4096;
/// As much, and what is said around it.
const PACKET_BYTES_MAX: usize = READ_BYTES_MAX + 64;

/// Something to look at, in the thread with this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Errand {
    /// Its memory, by `process_vm_readv(2)`.
    Read {
        /// Whose.
        tid: i32,
        /// From where on.
        address: u64,
        /// How many bytes, at most [`READ_BYTES_MAX`].
        length: u32,
    },
    /// One of its descriptors, by `pidfd_getfd(2)`.
    Descriptor {
        /// Whose.
        tid: i32,
        /// Which.
        fd: i32,
    },
}

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Any; no two of the same.
    pub number: u64,
    /// What is to be looked at.
    pub errand: Errand,
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The question's.
    pub number: u64,
    /// The bytes that could be read from the beginning of the range; none beside a descriptor, which comes along. Or what the
    /// kernel said; `EINVAL` for a length that is too large.
    pub found: Result<Vec<u8>, i32>,
}

/// Sends one packet, with a descriptor perhaps; never waits.
///
/// # Errors
/// `WouldBlock` where there is no room, because the other end does not read.
pub fn send<M: Serialize>(socket: BorrowedFd<'_>, message: &M, fds: &[RawFd]) -> io::Result<()> {
    let packet = postcard::to_extend(message, Vec::new()).map_err(io::Error::other)?;
    packet::send(socket.as_raw_fd(), &packet, fds, libc::MSG_DONTWAIT)
        .map_err(io::Error::from_raw_os_error)
}

/// Receives one packet, and the descriptor that came with it; nothing when the other end is closed. Waits as long as the
/// socket does.
///
/// # Errors
/// `WouldBlock` where there was none in time, `InvalidData` for what is no such message.
pub fn receive<M: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(M, Option<OwnedFd>)>> {
    receive_with(socket, 0)
}

pub(super) fn receive_now<M: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> io::Result<Option<(M, Option<OwnedFd>)>> {
    receive_with(socket, libc::MSG_DONTWAIT)
}

fn receive_with<M: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    flags: i32,
) -> io::Result<Option<(M, Option<OwnedFd>)>> {
    let mut buffer = [const { MaybeUninit::uninit() }; PACKET_BYTES_MAX];
    let received =
        packet::receive(socket.as_raw_fd(), &mut buffer, flags).map_err(io::Error::from_raw_os_error)?;
    if received.bytes.is_empty() {
        return Ok(None);
    }
    if received.is_cut {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let message = postcard::from_bytes(received.bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Some((message, received.fds.into_iter().flatten().next())))
}
