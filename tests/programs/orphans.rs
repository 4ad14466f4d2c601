//! Orphans without end: `orphans FIFO`.
//!
//! A hundred processes, each in a session of its own (so that the scheduler gives each of them a share), make children of
//! their own parent that end at once. Whoever has to reap them finds another one whenever it looks. They ignore every
//! request to end, and have a fuse of twenty seconds, so that a machine whose reaper cannot be told to stop survives
//! the test. The FIFO's writing end is open in all of them: its reader sees the end when the last one is gone.

use std::io::Write;
use std::time::{Duration, Instant};

const MAKERS: u32 = 100;
const FUSE: Duration = Duration::from_secs(20);

fn main() {
    let Some(fifo) = std::env::args().nth(1) else {
        eprintln!("usage: orphans FIFO");
        std::process::exit(64)
    };
    let mut witness = std::fs::OpenOptions::new()
        .write(true)
        .open(fifo)
        .expect("the FIFO");
    witness.write_all(b"alive").expect("the FIFO's reader");
    // SAFETY: ignoring a signal runs no code of ours.
    // WHY: nix marks every change of a disposition as unsafe.
    unsafe { nix::sys::signal::signal(nix::sys::signal::SIGTERM, nix::sys::signal::SigHandler::SigIgn) }
        .expect("SIGTERM");
    let end = Instant::now() + FUSE;
    for _ in 0..MAKERS {
        if sibling() == Some(0) {
            let _ = nix::unistd::setsid();
            make(end);
        }
    }
    println!("ready");
    make(end)
}

fn make(end: Instant) -> ! {
    while Instant::now() < end {
        if sibling() == Some(0) {
            break;
        }
    }
    // SAFETY: ends this process and nothing else.
    // WHY: what `exit` runs at the end belongs to the first process.
    unsafe { libc::_exit(0) }
}

/// Forks a child of our parent; 0 in the child.
fn sibling() -> Option<i64> {
    // SAFETY: a fork without memory shared, in a program of one thread; the null words are not looked at.
    // WHY: libraries fork only children of the caller.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::CLONE_PARENT | libc::SIGCHLD,
            0_usize,
            0_usize,
            0_usize,
            0_usize,
        )
    };
    (pid >= 0).then_some(pid)
}
