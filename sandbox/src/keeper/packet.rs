//! Packets with descriptors, on sockets that keep packets apart.
//!
//! Contract: as in `sys`: no allocation, no locks. nix's functions allocate, and lose the descriptors that did arrive
//! when the kernel had to leave some out.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use super::sys::{self, Errno};

/// Descriptors that a packet may bring.
pub(crate) const DESCRIPTORS_MAX: usize = 12;

/// Words of a control buffer: a header, padded, and the descriptors, padded.
const CONTROL_WORDS: usize = 4 + DESCRIPTORS_MAX.div_ceil(2);

/// Descriptors that [`send`] takes: an init sends a pidfd, a terminal's master and a listener.
const SENT_MAX: usize = 3;

/// Sends one packet with up to three descriptors; `flags` besides `MSG_NOSIGNAL`.
pub(crate) fn send(socket: RawFd, packet: &[u8], fds: &[RawFd], flags: i32) -> Result<(), Errno> {
    let flags = flags | libc::MSG_NOSIGNAL;
    // Room for a header and the descriptors, aligned as the header wants it.
    let mut control = [0u64; 2 + SENT_MAX.div_ceil(2)];
    // SAFETY: all zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    let mut slice = libc::iovec {
        iov_base: packet.as_ptr().cast_mut().cast(),
        iov_len: packet.len(),
    };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    if !fds.is_empty() && fds.len() <= SENT_MAX {
        let bytes = size_of_val(fds);
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: pure arithmetic.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(bytes as u32) } as _;
        // SAFETY: the control buffer is large enough for one header with as many descriptors, and zeroed.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(bytes as u32) as _;
            std::ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(header), bytes);
        }
    }
    loop {
        // SAFETY: everything that the message points to lives on this stack frame.
        let sent = unsafe { libc::syscall(libc::SYS_sendmsg, socket, &raw const message, flags) };
        if sent >= 0 {
            return Ok(());
        }
        match sys::last_errno() {
            libc::EINTR => {}
            errno => return Err(errno),
        }
    }
}

/// A packet that came.
pub(crate) struct Packet<'a> {
    /// What it says; nothing also when the peer has closed the socket.
    pub(crate) bytes: &'a [u8],
    /// It was longer than the buffer.
    pub(crate) is_cut: bool,
    /// What came with it, as far as this process has room for descriptors.
    pub(crate) fds: [Option<OwnedFd>; DESCRIPTORS_MAX],
}

/// Receives one packet; every descriptor is close-on-exec. Of the buffer only what came is written: the pages of a
/// spawner that it has written to since its last fork are those that it has copied.
pub(crate) fn receive(
    socket: RawFd,
    buffer: &mut [MaybeUninit<u8>],
    flags: i32,
) -> Result<Packet<'_>, Errno> {
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    let mut control = [0u64; CONTROL_WORDS];
    // SAFETY: all zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    let mut slice = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let bytes = loop {
        // SAFETY: everything that the message points to lives on this stack frame or is the caller's buffer.
        let read = unsafe { libc::syscall(libc::SYS_recvmsg, socket, &raw mut message, flags) };
        if read >= 0 {
            break read as usize;
        }
        match sys::last_errno() {
            libc::EINTR => {}
            errno => return Err(errno),
        }
    };
    let mut fds = [const { None }; DESCRIPTORS_MAX];
    // SAFETY: the kernel has filled in the control buffer and its length.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if !header.is_null() {
        // SAFETY: not null, so a whole header is in the buffer, which is aligned for it.
        let (level, kind, length) = unsafe {
            (
                (*header).cmsg_level,
                (*header).cmsg_type,
                (*header).cmsg_len as usize,
            )
        };
        if (level, kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: pure arithmetic.
            let count =
                length.saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize) / size_of::<RawFd>();
            for (index, slot) in fds.iter_mut().enumerate().take(count) {
                // SAFETY: the kernel wrote `count` descriptors behind the header, which fit the buffer. It has just
                // installed them for us, and nobody else knows them.
                *slot = unsafe {
                    let data = libc::CMSG_DATA(header).cast::<RawFd>().add(index);
                    Some(OwnedFd::from_raw_fd(data.read_unaligned()))
                };
            }
        }
    }
    // SAFETY: the kernel has written so many bytes, and it writes no more than there is room for.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), bytes) };
    Ok(Packet {
        bytes,
        is_cut: message.msg_flags & libc::MSG_TRUNC != 0,
        fds,
    })
}
