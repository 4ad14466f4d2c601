//! Raw system calls for code that runs after a fork.
//!
//! Contract: every function here is one system call (or a loop of them) on memory that the caller owns. None
//! allocates, locks, reads the environment, formats or unwinds, so that each may be called in a forked
//! child of a process in any state, and in a child that shares its parent's memory. Errors are numbers.
//! Results are checked by the callers: a step that fails ends the child.

#![allow(unsafe_code)]

mod confine;
mod files;
mod memory;
mod mounts;
mod namespaces;
mod process;
mod signals;

pub(crate) use self::confine::*;
pub(crate) use self::files::*;
pub(crate) use self::memory::*;
pub(crate) use self::mounts::*;
pub(crate) use self::namespaces::*;
pub(crate) use self::process::*;
pub(crate) use self::signals::*;

/// An error number.
pub(crate) type Errno = i32;

pub(crate) fn last_errno() -> Errno {
    // SAFETY: __errno_location returns this thread's valid errno.
    unsafe { *libc::__errno_location() }
}

fn check(result: libc::c_long) -> Result<usize, Errno> {
    if result < 0 {
        Err(last_errno())
    } else {
        Ok(result as usize)
    }
}

/// One system call, its error as a number.
macro_rules! syscall {
    ($number:expr $(, $argument:expr)*) => {
        $crate::keeper::sys::check(libc::syscall($number $(, $argument)*))
    };
}
use syscall;
