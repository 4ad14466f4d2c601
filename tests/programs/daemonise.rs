//! Leaves a daemon behind: `daemonise FIFO hold|close`.
//!
//! Forks twice with a new session in between. The grandchild opens the FIFO, writes `alive` and then lives
//! until somebody ends it; with `hold` it keeps the standard streams, with `close` it gives them up. The
//! leader exits once the grandchild has written.

use std::io::{Read, Write};

use nix::unistd::{ForkResult, fork, pause, setsid};

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let [_, fifo, mode] = words.as_slice() else {
        eprintln!("usage: daemonise FIFO hold|close");
        std::process::exit(64)
    };
    let (mut ready, told) = std::io::pipe().expect("a pipe");
    if child() {
        setsid().expect("a new session");
        if child() {
            drop(ready);
            live(fifo, mode, told);
        }
        std::process::exit(0)
    }
    drop(told);
    let mut word = String::new();
    ready.read_to_string(&mut word).expect("the daemon's word");
    assert_eq!(word, "ready", "the daemon died before it was ready");
    println!("leader done");
}

/// Forks; true in the child.
fn child() -> bool {
    // SAFETY: this program has one thread.
    // WHY: the point is a process that nobody waits for, which no safe wrapper makes.
    matches!(unsafe { fork() }.expect("fork"), ForkResult::Child)
}

fn live(fifo: &str, mode: &str, mut told: std::io::PipeWriter) -> ! {
    let mut witness = std::fs::OpenOptions::new()
        .write(true)
        .open(fifo)
        .expect("the FIFO");
    witness.write_all(b"alive\n").expect("a reader");
    if mode == "close" {
        for stream in 0..3 {
            let _ = nix::unistd::close(stream);
        }
    }
    told.write_all(b"ready").expect("the leader");
    drop(told);
    loop {
        pause();
    }
}
