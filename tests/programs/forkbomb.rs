//! A fork bomb with a fuse: `forkbomb FIFO`.
//!
//! Every process forks until the kernel refuses, or until 3,000 were tried in all (so that a machine without a
//! limit survives the test). The FIFO's writing end is open in all of them: its reader sees the end when the
//! last one is gone. The leader prints how many there were and exits; the others stay.

use std::sync::atomic::{AtomicU32, Ordering};

use nix::unistd::{ForkResult, fork, pause};

/// Forks in all, whatever the limits.
const MOST: u32 = 3_000;

fn main() {
    let Some(fifo) = std::env::args().nth(1) else {
        eprintln!("usage: forkbomb FIFO");
        std::process::exit(64)
    };
    let _witness = std::fs::OpenOptions::new()
        .write(true)
        .open(fifo)
        .expect("the FIFO");
    let [tried, made] = shared_counters();
    let mut leader = true;
    while tried.fetch_add(1, Ordering::Relaxed) < MOST {
        // SAFETY: this program has one thread.
        // WHY: a fork bomb forks.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => leader = false,
            Ok(ForkResult::Parent { .. }) => {
                made.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                if leader {
                    println!("stopped by {error:?}");
                }
                break;
            }
        }
    }
    if leader {
        println!("forks {}", made.load(Ordering::Relaxed));
        return;
    }
    loop {
        pause();
    }
}

/// Counters in memory that all forks share.
fn shared_counters() -> &'static [AtomicU32; 2] {
    // SAFETY: a new anonymous mapping, aligned to a page, zeroed, never unmapped.
    // WHY: atomics shared across fork need a shared mapping, and nix hands out raw memory only as well.
    unsafe {
        let page = libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(page, libc::MAP_FAILED, "no memory");
        &*page.cast::<[AtomicU32; 2]>()
    }
}
