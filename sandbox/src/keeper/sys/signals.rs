//! Raw system calls about signals.
//!
//! Contract, as in [`super`]: each is one system call (or a loop of them) on memory that the caller owns; no allocation, no lock,
//! no environment, no formatting, no unwinding. Errors are numbers, which the callers judge.

#![allow(unsafe_code)]

use std::os::fd::RawFd;

use super::{Errno, syscall};

/// Every signal back to its default action.
pub(crate) fn reset_signals() {
    // `struct sigaction` of the kernel: handler (SIG_DFL is 0), flags, restorer, mask. All zero.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: the struct is all zero and large enough; KILL and STOP answer EINVAL, which is right.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null::<u64>(),
                8usize,
            )
        };
    }
}

pub(crate) fn set_signal_mask(mask: u64) {
    // SAFETY: the kernel's signal set is one 64-bit number.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            std::ptr::null::<u64>(),
            8usize,
        )
    };
}

pub(crate) fn signalfd(mask: u64) -> Result<RawFd, Errno> {
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the kernel's signal set is one 64-bit number.
    unsafe { syscall!(libc::SYS_signalfd4, -1, &raw const mask, 8usize, flags) }.map(|fd| fd as RawFd)
}

pub(crate) fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: numbers only.
    unsafe { syscall!(libc::SYS_kill, pid, signal) }.map(drop)
}
