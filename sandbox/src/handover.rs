//! Passing a descriptor to another process of ours, over a socket that keeps packets apart.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use crate::keeper::packet;

/// The longest packet.
pub const PACKET_BYTES_MAX: usize = 64 * 1024;

/// Sends bytes, and a descriptor.
///
/// # Errors
/// The other side is gone (`EPIPE`), or there is no room (`EAGAIN` on a socket that does not block).
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let fds: Vec<i32> = descriptor.iter().map(|fd| fd.as_raw_fd()).collect();
    packet::send(socket.as_raw_fd(), bytes, &fds, 0).map_err(io::Error::from_raw_os_error)
}

/// Sends bytes without waiting for room.
///
/// # Errors
/// As of [`send`]; `EAGAIN` also on a socket that blocks.
pub fn try_send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    packet::send(socket.as_raw_fd(), bytes, &[], libc::MSG_DONTWAIT)
        .map_err(io::Error::from_raw_os_error)
}

/// Waits for the next packet. `None` when the other side is gone. A descriptor for which there is no room is left out.
///
/// # Errors
/// The socket cannot be read.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
    let mut buffer = vec![MaybeUninit::uninit(); PACKET_BYTES_MAX];
    let packet =
        packet::receive(socket.as_raw_fd(), &mut buffer, 0).map_err(io::Error::from_raw_os_error)?;
    if packet.bytes.is_empty() {
        return Ok(None);
    }
    if packet.is_cut {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet is too long"));
    }
    let descriptor = packet.fds.into_iter().flatten().next();
    Ok(Some((packet.bytes.to_vec(), descriptor)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    #[test]
    fn bytes_and_a_descriptor_arrive_together_and_the_end_is_seen() {
        let (one, other) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        let file = tempfile::tempfile().unwrap();
        send(one.as_fd(), b"take", Some(file.as_fd())).unwrap();
        send(one.as_fd(), b"more", None).unwrap();
        let (bytes, descriptor) = receive(other.as_fd()).unwrap().unwrap();
        assert_eq!((bytes.as_slice(), descriptor.is_some()), (&b"take"[..], true));
        let (bytes, descriptor) = receive(other.as_fd()).unwrap().unwrap();
        assert_eq!((bytes.as_slice(), descriptor.is_some()), (&b"more"[..], false));
        drop(one);
        assert!(receive(other.as_fd()).unwrap().is_none());
    }
}
