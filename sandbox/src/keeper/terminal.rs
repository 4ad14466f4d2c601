//! The pseudo-terminal of a command: opened by its init, made the controlling one by the command itself.
//!
//! It belongs to the `devpts` that the command sees, so that its name there is right and leads to it. The slave is got
//! from the master, not by name: nothing can come in between.
//!
//! Contract: as in `sys`: each function is a few system calls on memory of the caller's, without allocation.

#![allow(unsafe_code)]

use std::os::fd::RawFd;

use super::Step;
use super::image::TerminalImage;
use super::mounts::Failure;
use super::sys::{self, Errno};

/// Opens a terminal of the size that is wanted: the master, which never waits, and the slave. Neither becomes the init's
/// own terminal.
pub(super) fn open(wanted: &TerminalImage) -> Result<(RawFd, RawFd), Failure> {
    let path = if wanted.private {
        c"/dev/pts/ptmx"
    } else {
        c"/dev/ptmx"
    };
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    let master = sys::open(path, flags | libc::O_NONBLOCK, 0).map_err(|e| (Step::Terminal, e, 0))?;
    let unlocked: libc::c_int = 0;
    let size = libc::winsize {
        ws_row: wanted.size.rows,
        ws_col: wanted.size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the number lives through the call, which reads it.
    // WHY: libc's unlockpt allocates nothing today, and promises nothing.
    unsafe { ioctl(master, libc::TIOCSPTLCK, &raw const unlocked as u64) }
        .map_err(|e| (Step::Terminal, e, 1))?;
    // SAFETY: the struct is the kernel's and lives through the call, which reads it.
    // WHY: there is no safe call for it in what may be used here.
    unsafe { ioctl(master, libc::TIOCSWINSZ, &raw const size as u64) }
        .map_err(|e| (Step::Terminal, e, 2))?;
    let flags = (flags | libc::O_CLOEXEC) as u64;
    // SAFETY: flags, no pointer. WHY: by name it would be looked up where the command's tree may lie.
    let slave =
        unsafe { ioctl(master, libc::TIOCGPTPEER, flags) }.map_err(|e| (Step::Terminal, e, 3))?;
    // 0, 1 and 2 are free here, and are what the command puts it at.
    let above = sys::above_stdio(slave as RawFd).map_err(|e| (Step::Terminal, e, 3))?;
    Ok((master, above))
}

/// Makes a terminal the controlling one of this process, which leads a session that has none.
pub(super) fn control(slave: RawFd) -> Result<(), Errno> {
    // SAFETY: no pointer; 0 is not to take it away from another session. WHY: there is no safe call for it.
    unsafe { ioctl(slave, libc::TIOCSCTTY, 0) }.map(drop)
}

/// # Safety
/// What the request takes as argument: a number, or a pointer to what it reads.
unsafe fn ioctl(fd: RawFd, request: libc::Ioctl, argument: u64) -> Result<usize, Errno> {
    // SAFETY: promised by the caller.
    match unsafe { libc::syscall(libc::SYS_ioctl, fd, request, argument) } {
        result if result < 0 => Err(sys::last_errno()),
        result => Ok(result as usize),
    }
}
