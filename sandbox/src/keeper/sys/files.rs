//! Raw system calls about descriptors and files.
//!
//! Contract, as in [`super`]: each is one system call (or a loop of them) on memory that the caller owns; no allocation, no lock,
//! no environment, no formatting, no unwinding. Errors are numbers, which the callers judge.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::RawFd;

use super::{Errno, syscall};

pub(crate) fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    if first > last {
        return Ok(());
    }
    // SAFETY: closes descriptors of this process by number; the caller gives up what it owned there.
    unsafe { syscall!(libc::SYS_close_range, first, last, 0u32) }.map(drop)
}

/// Closes every descriptor except those in `keep`, which is sorted.
pub(crate) fn close_all_but(keep: &[RawFd]) -> Result<(), Errno> {
    let mut next = 0u32;
    for fd in keep {
        let fd = *fd as u32;
        if fd > next {
            close_range(next, fd - 1)?;
        }
        next = fd + 1;
    }
    close_range(next, u32::MAX)
}

pub(crate) fn close(fd: RawFd) {
    // SAFETY: the caller owns the number.
    unsafe { libc::syscall(libc::SYS_close, fd) };
}

pub(crate) fn open(path: &CStr, flags: i32, mode: u32) -> Result<RawFd, Errno> {
    // SAFETY: `path` is NUL-terminated and lives through the call.
    unsafe {
        syscall!(
            libc::SYS_openat,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags | libc::O_CLOEXEC,
            mode
        )
    }
    .map(|fd| fd as RawFd)
}

pub(crate) fn read(fd: RawFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        // SAFETY: the buffer is valid for its length.
        match unsafe { syscall!(libc::SYS_read, fd, buffer.as_mut_ptr(), buffer.len()) } {
            Err(libc::EINTR) => {}
            other => return other,
        }
    }
}

pub(crate) fn write(fd: RawFd, content: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the buffer is valid for its length.
    unsafe { syscall!(libc::SYS_write, fd, content.as_ptr(), content.len()) }
}

/// Writes all of a small buffer to a file that takes it whole.
pub(crate) fn write_file(path: &CStr, content: &[u8]) -> Result<(), Errno> {
    let fd = open(path, libc::O_WRONLY, 0)?;
    // SAFETY: the buffer is valid for its length.
    let result = unsafe { syscall!(libc::SYS_write, fd, content.as_ptr(), content.len()) };
    close(fd);
    result.map(drop)
}

/// Waits for a packet, whatever it says. An error when the peer is gone.
pub(crate) fn wait_for_order(socket: RawFd) -> Result<(), Errno> {
    let mut order = [0u8; 16];
    match read(socket, &mut order)? {
        0 => Err(libc::EPIPE),
        _ => Ok(()),
    }
}

pub(crate) fn mkdir(path: &CStr, mode: u32) -> Result<(), Errno> {
    // SAFETY: `path` is NUL-terminated and lives through the call.
    unsafe { syscall!(libc::SYS_mkdirat, libc::AT_FDCWD, path.as_ptr(), mode) }.map(drop)
}

pub(crate) fn chdir(path: &CStr) -> Result<(), Errno> {
    // SAFETY: `path` is NUL-terminated and lives through the call.
    unsafe { syscall!(libc::SYS_chdir, path.as_ptr()) }.map(drop)
}

pub(crate) fn dup2(from: RawFd, to: RawFd) -> Result<(), Errno> {
    // SAFETY: numbers only; `to` is one of 0 to 4, which the caller gives up.
    unsafe { syscall!(libc::SYS_dup3, from, to, 0) }.map(drop)
}

/// Another number for a descriptor that will go to 0, 1 or 2, in place of the one it has.
pub(crate) fn above_stdio(fd: RawFd) -> Result<RawFd, Errno> {
    // SAFETY: numbers only.
    let moved = unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, 3) };
    close(fd);
    moved.map(|fd| fd as RawFd)
}

/// Says which of two descriptors is readable or hung up; waits until one is, if asked to.
pub(crate) fn poll2(a: RawFd, b: RawFd, wait: bool) -> (bool, bool) {
    let entry = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut entries = [entry(a), entry(b)];
    let mut at_once = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let timeout = if wait {
        std::ptr::null_mut()
    } else {
        &raw mut at_once
    };
    // SAFETY: the array is valid, and the timeout null or ours; no mask.
    unsafe {
        libc::syscall(
            libc::SYS_ppoll,
            entries.as_mut_ptr(),
            2usize,
            timeout,
            std::ptr::null::<u8>(),
            8usize,
        )
    };
    (entries[0].revents != 0, entries[1].revents != 0)
}
