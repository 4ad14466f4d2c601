//! A `provost run` at a terminal that the test holds.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::tcgetattr;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::{DEADLINE, Finished};

/// A `provost run` at a terminal. Dropped before its end, it is killed.
#[derive(Debug)]
pub struct AtTerminal {
    child: Child,
    shown: String,
    keyboard: File,
    /// Held so that the terminal can be looked at when nobody else is there any more.
    slave: Option<OwnedFd>,
    before: String,
    pieces: Receiver<Vec<u8>>,
    screen: Vec<u8>,
    /// How much of it was waited for.
    read: usize,
    record: Option<PathBuf>,
    started: Instant,
}

impl AtTerminal {
    pub(crate) fn start(mut command: Command, record: Option<PathBuf>, rows: u16, cols: u16) -> Self {
        let pty = openpty(Some(&size(rows, cols)), None).expect("a terminal");
        let shown = format!("{command:?}");
        // A test that has several gives none of them to the others' clients.
        for fd in [&pty.master, &pty.slave] {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("a flag");
        }
        let slave = || pty.slave.try_clone().expect("a descriptor");
        // Whoever leads its session may open it by name only if it is his.
        let user = std::os::unix::fs::MetadataExt::uid(
            &std::fs::metadata(record.as_ref().map_or_else(
                || PathBuf::from("/"),
                |path| path.parent().expect("a directory").to_owned(),
            ))
            .expect("the records"),
        );
        nix::unistd::fchown(&pty.slave, Some(user.into()), None).expect("chown of the terminal");
        command.stdin(slave()).stdout(slave()).stderr(slave());
        let before = modes(&pty.slave);
        let started = Instant::now();
        let child = command.spawn().unwrap_or_else(|error| panic!("{shown}: {error}"));
        drop(command);
        let keyboard = File::from(pty.master);
        Self {
            child,
            shown,
            pieces: read_pieces(keyboard.try_clone().expect("a descriptor")),
            keyboard,
            slave: Some(pty.slave),
            before,
            screen: Vec::new(),
            read: 0,
            record,
            started,
        }
    }

    /// Types.
    pub fn type_in(&mut self, keys: &str) {
        self.keyboard
            .write_all(keys.as_bytes())
            .expect("the terminal takes it");
    }

    /// Waits until the text is on the screen, behind what was waited for before.
    pub fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let new = &self.screen[self.read..];
            let found = new
                .windows(text.len())
                .position(|window| window == text.as_bytes());
            if let Some(place) = found {
                self.read += place + text.len();
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.pieces.recv_timeout(left) {
                Ok(piece) => self.screen.extend(piece),
                Err(_) => panic!("`{text}` never came\n{}\n{}", self.shown, self.text()),
            }
        }
    }

    /// What was written on the screen so far, as far as it was taken.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.screen).into_owned()
    }

    /// Changes the size of the window.
    pub fn resize(&self, rows: u16, cols: u16) {
        let size = size(rows, cols);
        // SAFETY: the struct lives through the call, which reads it.
        // WHY: nix has no safe call for it.
        let result = unsafe {
            libc::ioctl(
                std::os::fd::AsRawFd::as_raw_fd(&self.keyboard),
                libc::TIOCSWINSZ,
                &raw const size,
            )
        };
        assert_eq!(result, 0, "TIOCSWINSZ");
    }

    /// Whether the terminal is as it was before.
    pub fn is_as_before(&self) -> bool {
        modes(self.slave.as_ref().expect("until the end")) == self.before
    }

    /// The process id of `provost`.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"))
    }

    /// Sends `provost` (not the command) a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("provost still runs");
    }

    /// Waits until `provost` was stopped.
    pub fn wait_until_stopped(&self) {
        match self.wait_with(WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            WaitStatus::Stopped(..) => {}
            other => panic!("not stopped but {other:?}\n{}", self.text()),
        }
    }

    fn wait_with(&self, flags: WaitPidFlag) -> WaitStatus {
        let (sender, receiver) = channel();
        let pid = self.pid();
        std::thread::spawn(move || {
            let _ = sender.send(waitid(Id::Pid(pid), flags));
        });
        match receiver.recv_timeout(DEADLINE) {
            Ok(Ok(status)) => status,
            other => panic!("{other:?}\n{}\n{}", self.shown, self.text()),
        }
    }

    /// Waits for the end, asserts that the terminal was put back if it could be, and reads the record. What was written
    /// on the screen is its standard output.
    pub fn finish(mut self) -> Finished {
        let ended = self.wait_with(WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        let status = self.child.wait().expect("its status");
        let killed = matches!(ended, WaitStatus::Signaled(_, Signal::SIGKILL, _));
        assert!(
            killed || self.is_as_before(),
            "the terminal was not put back\n{}\n{}",
            self.shown,
            self.text()
        );
        // Now nobody has it open, unless something was left behind.
        self.slave = None;
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.pieces.recv_timeout(left) {
                Ok(piece) => self.screen.extend(piece),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                Err(_) => panic!("something still has the terminal open\n{}", self.text()),
            }
        }
        Finished::new(
            std::mem::take(&mut self.shown),
            status,
            std::mem::take(&mut self.screen),
            Vec::new(),
            self.record.as_deref(),
            self.started.elapsed(),
        )
    }
}

impl Drop for AtTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(rows: u16, cols: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn modes(terminal: &OwnedFd) -> String {
    let modes = tcgetattr(terminal).expect("its modes");
    format!(
        "{:?}",
        (
            modes.input_flags,
            modes.output_flags,
            modes.control_flags,
            modes.local_flags,
            modes.control_chars
        )
    )
}

fn read_pieces(mut screen: File) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = screen.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}
