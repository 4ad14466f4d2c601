//! Room on the disk that is kept for the day when there is none: a file that is given up so that records can be sealed.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use nix::fcntl::posix_fallocate;
use nix::libc::{O_CLOEXEC, O_NOFOLLOW};

/// How much: some dozens of commits, or several hundred records in a few.
pub(super) const BALLAST_BYTES: i64 = 1 << 20;

/// The file.
#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
    held: bool,
}

impl Ballast {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path, held: false }
    }

    /// Where nothing is on a disk.
    pub(super) const fn unneeded() -> Self {
        Self {
            path: PathBuf::new(),
            held: true,
        }
    }

    /// Whether there is room that can be given up.
    pub(super) const fn is_held(&self) -> bool {
        self.held
    }

    /// Takes the room, if there is as much again beside it: with less, it would be given up in the next moment.
    pub(super) fn take(&mut self) -> io::Result<()> {
        let taken = (|| {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(O_NOFOLLOW | O_CLOEXEC)
                .open(&self.path)?;
            posix_fallocate(&file, 0, 2 * BALLAST_BYTES)?;
            file.set_len(BALLAST_BYTES.unsigned_abs())
        })();
        match taken {
            Ok(()) => self.held = true,
            Err(_) => self.release(),
        }
        taken
    }

    /// Gives it up.
    pub(super) fn release(&mut self) {
        self.held = false;
        let _ = fs::remove_file(&self.path);
    }
}
