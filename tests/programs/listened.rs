//! Runs a command inside of a seccomp sandbox that has a listener and allows everything: `listened COMMAND ARGUMENT…`.
//!
//! The listener stays open in the command, so that the kernel refuses a second one (`EBUSY`).
#![allow(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::process::Command;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some((program, arguments)) = words.split_first() else {
        eprintln!("usage: listened COMMAND ARGUMENT...");
        std::process::exit(64)
    };
    nix::sys::prctl::set_no_new_privs().expect("no new privileges");
    let mut allow = libc::sock_filter {
        code: 0x06, // return
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_ALLOW,
    };
    let filter = libc::sock_fprog {
        len: 1,
        filter: &raw mut allow,
    };
    // SAFETY: the filter is one instruction that outlives the call.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const filter,
        )
    };
    assert!(listener >= 0, "no listener: {}", std::io::Error::last_os_error());
    // SAFETY: a number goes in and comes out; the duplicate survives the exec.
    let kept = unsafe { libc::dup(listener as i32) };
    assert!(kept >= 0, "no duplicate: {}", std::io::Error::last_os_error());
    let error = Command::new(program).args(arguments).exec();
    panic!("{program}: {error}");
}
