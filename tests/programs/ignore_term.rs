//! Ignores polite signals: `ignore_term FIFO`. Writes `alive` to the FIFO, prints `ready`, then lives on.

use std::io::Write;

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::pause;

fn main() -> std::io::Result<()> {
    let Some(fifo) = std::env::args().nth(1) else {
        eprintln!("usage: ignore_term FIFO");
        std::process::exit(64)
    };
    for polite in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        // SAFETY: ignoring a signal runs no handler.
        // WHY: nix marks every change of a disposition as unsafe.
        unsafe { signal(polite, SigHandler::SigIgn) }?;
    }
    let mut witness = std::fs::OpenOptions::new().write(true).open(fifo)?;
    witness.write_all(b"alive\n")?;
    println!("ready");
    loop {
        pause();
    }
}
