//! Raw system calls about the memory of this process.
//!
//! Contract, as in [`super`]: each is one system call (or a loop of them) on memory that the caller owns; no allocation, no lock,
//! no environment, no formatting, no unwinding. Errors are numbers, which the callers judge.

#![allow(unsafe_code)]

use super::syscall;

/// Where the heap of `brk` ends.
pub(crate) fn heap_end() -> usize {
    // SAFETY: asks for an impossible end, which changes nothing and answers with the real one.
    unsafe { syscall!(libc::SYS_brk, 0usize) }.unwrap_or(0)
}

/// Gives private memory back to the kernel; what is read there afterwards is zero. Where nothing is mapped nothing is done.
///
/// # Safety
/// Nobody relies on what is there.
pub(crate) unsafe fn forget_memory(from: usize, bytes: usize) {
    // SAFETY: promised by the caller.
    // WHY: there is no safe way to do without memory that something may point to.
    let _ = unsafe { syscall!(libc::SYS_madvise, from, bytes, libc::MADV_DONTNEED) };
}
