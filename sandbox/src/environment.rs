//! Taking variables out of this process's own environment.
//!
//! Contract: `std::env::remove_var` is unsound while another thread may read the environment, through libc even
//! unnoticed. So nothing is removed unless this thread is the only one, which the kernel is asked about; and a process that
//! has one thread cannot get a second one while that thread is in here. Programs call this at the beginning of `main`.

#![allow(unsafe_code)]

use std::ffi::OsString;
use std::io;

/// Removes variables from the environment of this process, which is inherited by nothing afterwards. Their values, in the
/// order of the names.
///
/// # Errors
/// There is a second thread, or `/proc` does not say; nothing was removed.
pub fn take<const N: usize>(names: [&str; N]) -> io::Result<[Option<OsString>; N]> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other(
            "the environment can be changed only before a second thread is started",
        ));
    }
    Ok(names.map(|name| {
        let value = std::env::var_os(name);
        // SAFETY: this is the only thread, as was just seen, and it starts no other before this returns.
        // WHY: there is no safe way to change one's own environment.
        unsafe { std::env::remove_var(name) };
        value
    }))
}
