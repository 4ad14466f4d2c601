//! Raw system calls about namespaces: leaving them, our pid in one, the loopback of a new one.
//!
//! Contract, as in [`super`]: each is one system call (or a loop of them) on memory that the caller owns; no allocation, no lock,
//! no environment, no formatting, no unwinding. Errors are numbers, which the callers judge.

#![allow(unsafe_code)]

use std::os::fd::RawFd;

use super::{Errno, close, syscall};

pub(crate) fn unshare(flags: i32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    unsafe { syscall!(libc::SYS_unshare, flags) }.map(drop)
}

/// The inode of our own PID namespace, where `/proc` is ours to read.
pub(crate) fn pid_namespace() -> Option<u64> {
    // `struct statx`: the inode is at byte 32, as a 64-bit number; 256 bytes in all.
    let mut status = [0u64; 32];
    const STATX_INO: u32 = 0x100;
    // SAFETY: the path is NUL-terminated, the buffer as large as the kernel's struct.
    unsafe {
        syscall!(
            libc::SYS_statx,
            libc::AT_FDCWD,
            c"/proc/self/ns/pid".as_ptr(),
            0,
            STATX_INO,
            status.as_mut_ptr()
        )
    }
    .ok()?;
    Some(status[4])
}

/// Our own pid as the `/proc` behind this descriptor numbers it; `None` where it does not.
pub(crate) fn pid_in(proc: RawFd) -> Option<i32> {
    let mut link = [0u8; 16];
    // SAFETY: the name is NUL-terminated, the buffer valid for its length.
    let length = unsafe {
        syscall!(
            libc::SYS_readlinkat,
            proc,
            c"self".as_ptr(),
            link.as_mut_ptr(),
            link.len()
        )
    }
    .ok()?;
    link.get(..length)?.iter().try_fold(0i32, |number, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number.checked_mul(10)?.checked_add(i32::from(digit))
    })
}

/// Brings the loopback of this network namespace up.
pub(crate) fn loopback_up() -> Result<(), Errno> {
    // SAFETY: numbers only.
    let socket = unsafe {
        syscall!(
            libc::SYS_socket,
            libc::AF_INET,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            0
        )
    }? as RawFd;
    // SAFETY: all zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request is a valid ifreq that names `lo`.
    let result = unsafe { syscall!(libc::SYS_ioctl, socket, libc::SIOCSIFFLAGS, &raw const request) };
    close(socket);
    result.map(drop)
}
