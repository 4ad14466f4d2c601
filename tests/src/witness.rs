//! Proof of life and of death without looking at process lists.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A FIFO whose reading end the test holds. Programs in the sandbox open it for writing and write `alive`;
/// the kernel reports a hang-up when the last of them, and of what they forked, is gone.
#[derive(Debug)]
pub struct Witness {
    path: PathBuf,
    reader: File,
}

impl Witness {
    pub(crate) fn new(path: &Path) -> Self {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        let mut options = File::options();
        let reader = options
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(path)
            .expect("the FIFO");
        Self {
            path: path.to_owned(),
            reader,
        }
    }

    /// Its path, for the program's arguments.
    pub fn path(&self) -> String {
        self.path.display().to_string()
    }

    /// Whether anything wrote into it.
    pub fn was_alive(&mut self) -> bool {
        let mut word = [0; 6];
        matches!(self.reader.read(&mut word), Ok(1..))
    }

    /// Whether everything that had it open is gone by now. True only after somebody had opened it.
    pub fn is_gone(&self) -> bool {
        self.hung_up(PollTimeout::ZERO)
    }

    /// Waits for that.
    pub fn wait_until_gone(&self) {
        let deadline = PollTimeout::try_from(crate::DEADLINE).unwrap_or(PollTimeout::MAX);
        assert!(
            self.hung_up(deadline),
            "a process that should have ended still lives"
        );
    }

    fn hung_up(&self, timeout: PollTimeout) -> bool {
        // Without POLLIN: unread words must not hide the wait for the end.
        let mut fds = [PollFd::new(self.reader.as_fd(), PollFlags::empty())];
        poll(&mut fds, timeout).expect("poll");
        fds[0]
            .revents()
            .is_some_and(|events| events.contains(PollFlags::POLLHUP))
    }
}
