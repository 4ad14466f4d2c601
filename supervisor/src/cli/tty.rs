//! `--tty`: the command's terminal, tied to the user's.
//!
//! The user's terminal is made raw, so that every key goes to the command's terminal, whose line discipline makes of it what
//! it is there: Ctrl-C interrupts what runs in the foreground in there, and is no signal to us. It is put back when the
//! command has ended, when we are stopped, and by [`Raw`]'s `Drop` in every other ending but one: nobody can catch KILL.

use std::fs::File;
use std::io::{ErrorKind, IsTerminal, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{getpgrp, tcgetpgrp};
use provost_actors::spec::StdinSpec;
use rustix::termios::{
    OptionalActions, OutputModes, QueueSelector, Termios, tcflush, tcgetattr, tcgetwinsize, tcsetattr,
};
use tokio::sync::{Notify, mpsc};

use super::args::StdinArg;
use super::target::Target;
use crate::TerminalSize;

/// Bytes that are read of what is typed, or piped, at once.
const PIECE_BYTES: usize = 4096;

/// What the command's terminal is tied to.
#[derive(Debug)]
pub(super) struct Attached {
    /// What is typed there; without one its input ends at once.
    input: Option<File>,
    /// The user's terminal, if that is where the input comes from.
    terminal: Option<UserTerminal>,
    resized: Notify,
    /// Ctrl-P Ctrl-Q leaves the command alone with its terminal.
    leaving: bool,
    left: Notify,
    /// The command's input is not ours: keys are not passed on, and those that leave do, Ctrl-C among them.
    read_only: AtomicBool,
    /// The next size makes the command draw its screen again.
    redraw: AtomicBool,
}

#[derive(Debug)]
struct UserTerminal {
    fd: OwnedFd,
    before: Termios,
    /// It is raw: to be put back.
    raw: AtomicBool,
    /// Lines of our own are to look as lines do.
    keeps_output: AtomicBool,
}

/// Puts the user's terminal back when it is dropped.
#[derive(Debug)]
pub(super) struct Raw(Arc<Attached>);

impl Drop for Raw {
    fn drop(&mut self) {
        self.0.restore();
    }
}

impl Attached {
    /// Finds the user's terminal, or else what was resolved to be given as standard input.
    pub(super) fn new(asked: StdinArg, given: StdinSpec) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("standard input: {error}");
        let stdin = std::io::stdin();
        let (input, terminal) = if asked != StdinArg::Null && stdin.is_terminal() {
            let fd = stdin.as_fd().try_clone_to_owned().map_err(failed)?;
            let before = tcgetattr(&fd).map_err(|errno| failed(errno.into()))?;
            let input = fd.try_clone().map_err(failed)?;
            let terminal = UserTerminal {
                fd,
                before,
                raw: AtomicBool::new(false),
                keeps_output: AtomicBool::new(false),
            };
            (Some(input), Some(terminal))
        } else {
            match given {
                StdinSpec::Given(fd) => (Some(fd), None),
                StdinSpec::Null | StdinSpec::Pipe => (None, None),
            }
        };
        Ok(Self {
            input: input.map(File::from),
            terminal,
            resized: Notify::new(),
            leaving: false,
            left: Notify::new(),
            read_only: AtomicBool::new(false),
            redraw: AtomicBool::new(false),
        })
    }

    /// Can be left, at a terminal, by Ctrl-P Ctrl-Q, and comes to a command that has drawn its screen before.
    pub(super) fn that_can_be_left(mut self) -> Self {
        self.leaving = self.terminal.is_some();
        self.redraw = AtomicBool::new(true);
        self
    }

    /// The command's input is not ours, or not any more.
    pub(super) fn set_read_only(&self) {
        self.read_only.store(true, Ordering::Relaxed);
    }

    /// Another client has taken the command's input over.
    pub(super) fn input_lost(&self, by: &str, leaves: &str) {
        self.set_read_only();
        self.note(&format!(
            "the input was taken over by {by}: the process is only shown here; {leaves}"
        ));
    }

    /// Says something, also while the terminal is raw.
    pub(super) fn note(&self, text: &str) {
        let raw = |terminal: &UserTerminal| terminal.raw.load(Ordering::Relaxed);
        match self.terminal.as_ref().is_some_and(raw) {
            true => super::output::note_raw(text),
            false => super::output::note(text),
        }
    }

    /// Done when that was typed.
    pub(super) async fn left(&self) {
        self.left.notified().await;
    }

    /// Whether there is anything to pass on.
    pub(super) fn has_input(&self) -> bool {
        self.input.is_some()
    }

    /// Whether the input is typed at a terminal.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// The size of the user's terminal, or what one has by default.
    pub(super) fn size(&self) -> TerminalSize {
        let terminal = self.terminal.as_ref();
        let size = terminal.and_then(|terminal| tcgetwinsize(&terminal.fd).ok());
        match size {
            // One that does not know its size says so.
            Some(size) if size.ws_row > 0 && size.ws_col > 0 => TerminalSize {
                rows: size.ws_row,
                cols: size.ws_col,
            },
            _ => TerminalSize::default(),
        }
    }

    /// Makes the user's terminal raw, for as long as the guard lives. With `keeps_output` line feeds go on to begin lines.
    pub(super) fn make_raw(self: &Arc<Self>, keeps_output: bool) -> Raw {
        if let Some(terminal) = &self.terminal {
            terminal.keeps_output.store(keeps_output, Ordering::Relaxed);
            terminal.set_raw();
        }
        Raw(self.clone())
    }

    /// Puts the user's terminal back as it was found.
    pub(super) fn restore(&self) {
        if let Some(terminal) = &self.terminal {
            terminal.restore();
        }
    }

    /// We were stopped, and whoever stopped us may have changed the terminal.
    pub(super) fn continued(&self) {
        if let Some(terminal) = &self.terminal {
            terminal.set_raw();
        }
        self.redraw.store(true, Ordering::Relaxed);
        self.resized();
    }

    /// The user's terminal has another size.
    pub(super) fn resized(&self) {
        self.resized.notify_one();
    }

    /// Passes on what is typed, and sizes, for as long as it runs.
    pub(super) async fn tie(self: Arc<Self>, process: Target) {
        let typing = async {
            let Some(mut pieces) = self.input.as_ref().and_then(read_pieces) else {
                return process.close_stdin().await;
            };
            let mut keys = LeavingKeys::default();
            while let Some(piece) = pieces.recv().await {
                if !self.read_only.load(Ordering::Relaxed) {
                    let (passed, leave) = match self.leaving {
                        true => keys.take(&piece),
                        false => (piece.clone(), false),
                    };
                    if process.write_stdin(&passed).await {
                        if leave {
                            return self.left.notify_one();
                        }
                        continue;
                    }
                    self.set_read_only();
                }
                // What nobody wants to read is not read, but for the keys that leave.
                if self.terminal.is_none() {
                    return;
                }
                if piece.contains(&CTRL_C) || keys.take(&piece).1 {
                    return self.left.notify_one();
                }
            }
            if self.read_only.load(Ordering::Relaxed) {
                return;
            }
            if keys.held {
                process.write_stdin(&[CTRL_P]).await;
            }
            process.close_stdin().await;
        };
        let resizing = async {
            // At first because it may have changed since the command was asked for. The size goes with the input.
            while self.terminal.is_some() && !self.read_only.load(Ordering::Relaxed) {
                let redraw = self.redraw.swap(false, Ordering::Relaxed);
                if !process.resize(self.size(), redraw).await {
                    return;
                }
                self.resized.notified().await;
            }
        };
        tokio::join!(typing, resizing);
    }
}

const CTRL_C: u8 = 0x03;
const CTRL_P: u8 = 0x10;
const CTRL_Q: u8 = 0x11;

/// Looks for Ctrl-P Ctrl-Q among what is typed. A Ctrl-P waits for the key behind it.
#[derive(Debug, Default)]
struct LeavingKeys {
    held: bool,
}

impl LeavingKeys {
    /// What is to be passed on, and whether it ends with the two keys.
    fn take(&mut self, piece: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(piece.len() + 1);
        for &byte in piece {
            if std::mem::take(&mut self.held) {
                if byte == CTRL_Q {
                    return (passed, true);
                }
                passed.push(CTRL_P);
            }
            if byte == CTRL_P {
                self.held = true;
            } else {
                passed.push(byte);
            }
        }
        (passed, false)
    }
}

impl UserTerminal {
    /// In the background this stops us, as it stops anybody who wants the terminal there.
    fn set_raw(&self) {
        let mut modes = self.before.clone();
        modes.make_raw();
        if self.keeps_output.load(Ordering::Relaxed) {
            modes.output_modes = self.before.output_modes | OutputModes::OPOST;
        }
        self.raw.store(true, Ordering::Relaxed);
        if let Err(error) = tcsetattr(&self.fd, OptionalActions::Now, &modes) {
            tracing::debug!(%error, "the terminal stays as it is");
        }
    }

    fn restore(&self) {
        if !self.raw.swap(false, Ordering::Relaxed) {
            return;
        }
        // In the background it is another's: whoever is in front has set it up for himself.
        if tcgetpgrp(&self.fd).is_ok_and(|front| front != getpgrp()) {
            return;
        }
        // What the command made the terminal answer is not to be typed at the user's shell.
        let _ = tcflush(&self.fd, QueueSelector::IFlush);
        if let Err(error) = tcsetattr(&self.fd, OptionalActions::Now, &self.before) {
            tracing::debug!(%error, "the terminal could not be put back");
        }
    }
}

/// Reads on a thread of its own, which sits in a read until there is something or this program ends: to make a terminal
/// non-blocking would do so for everybody who has it open. One piece ahead, so that who does not read is not read for.
fn read_pieces(input: &File) -> Option<mpsc::Receiver<Vec<u8>>> {
    let mut input = input.try_clone().ok()?;
    let (sender, pieces) = mpsc::channel(1);
    let read = move || {
        let mut buffer = [0; PIECE_BYTES];
        loop {
            match input.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    if sender.blocking_send(buffer[..length].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Somebody else has made it so.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let mut readable = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
                    let _ = poll(&mut readable, PollTimeout::NONE);
                }
                Err(_) => return,
            }
        }
    };
    let thread = std::thread::Builder::new().name("provost-typing".to_owned());
    thread.spawn(read).ok()?;
    Some(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_keys_leave_and_one_of_them_is_a_key_like_others() {
        let mut keys = LeavingKeys::default();
        assert_eq!(keys.take(b"ab\x11"), (b"ab\x11".to_vec(), false));
        assert_eq!(keys.take(b"c\x10"), (b"c".to_vec(), false));
        assert_eq!(keys.take(b"\x10d"), (b"\x10\x10d".to_vec(), false));
        assert_eq!(keys.take(b"e\x10\x11f"), (b"e".to_vec(), true));
        assert_eq!(keys.take(b"\x10"), (b"".to_vec(), false));
        assert_eq!(keys.take(b"\x11"), (b"".to_vec(), true));
    }
}
