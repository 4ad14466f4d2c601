//! A `provost run` under way.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::{DEADLINE, Finished};

/// A piece of standard output, or its end.
type Piece = Option<Vec<u8>>;

/// A `provost run` under way. Dropped before its end, it is killed.
#[derive(Debug)]
pub struct Live {
    child: Child,
    shown: String,
    stdin: Option<ChildStdin>,
    pieces: Receiver<Piece>,
    stdout: Vec<u8>,
    stdout_ended: bool,
    stderr: Option<JoinHandle<Vec<u8>>>,
    record: Option<PathBuf>,
    started: Instant,
}

impl Live {
    pub(crate) fn start(
        mut command: Command,
        shown: String,
        fed: Option<Vec<u8>>,
        record: Option<PathBuf>,
        small_pipe: bool,
    ) -> Self {
        let (output, given) = std::io::pipe().expect("a pipe");
        if small_pipe {
            nix::fcntl::fcntl(&output, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096))
                .expect("a smaller pipe");
        }
        command.stdout(OwnedFd::from(given));
        let started = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{shown}: {error}"));
        // The command holds the writing end; while it lives the reader never sees the end.
        drop(command);
        let mut stdin = child.stdin.take();
        if let Some(bytes) = fed {
            let mut pipe = stdin.take().expect("a piped input");
            // A command may leave its input unread: a broken pipe is no error here.
            std::thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        let errors = child.stderr.take().expect("a piped stderr");
        Self {
            child,
            shown,
            stdin,
            pieces: read_pieces(output, if small_pipe { 4096 } else { 65_536 }),
            stdout: Vec::new(),
            stdout_ended: false,
            stderr: Some(std::thread::spawn(move || read_all(errors))),
            record,
            started,
        }
    }

    /// Starts a command line of the test's own that ends in a `provost run`, which writes its record there.
    pub fn from_command(mut command: Command, record: Option<PathBuf>) -> Self {
        let shown = format!("{command:?}");
        command.stderr(std::process::Stdio::piped());
        Self::start(command, shown, None, record, false)
    }

    /// The process id of `provost`.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"))
    }

    /// Sends `provost` (not the command) a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("provost still runs");
    }

    /// Writes to the command's input.
    pub fn feed(&mut self, text: &str) {
        let pipe = self.stdin.as_mut().expect("a piped input");
        pipe.write_all(text.as_bytes()).expect("the input is read");
    }

    /// Ends the command's input.
    pub fn end_input(&mut self) {
        self.stdin = None;
    }

    /// Waits until standard output so far contains the text.
    pub fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !contains(&self.stdout, text.as_bytes()) {
            if !self.take_piece(deadline) {
                let said = self.said_so_far();
                panic!("`{text}` never came\n{said}");
            }
        }
    }

    /// Hands each piece of standard output over as it comes, keeping none, until its end.
    pub fn each_piece(&mut self, mut take: impl FnMut(&[u8])) {
        let deadline = Instant::now() + 3 * DEADLINE;
        while self.take_piece(deadline) {
            take(&self.stdout);
            self.stdout.clear();
        }
    }

    /// Waits until job control has stopped `provost`.
    pub fn wait_until_stopped(&mut self) {
        let (sender, receiver) = channel();
        let pid = self.pid();
        std::thread::spawn(move || {
            let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            let _ = sender.send(waitid(Id::Pid(pid), flags));
        });
        match receiver.recv_timeout(DEADLINE) {
            Ok(Ok(WaitStatus::Stopped(..))) => {}
            other => panic!("not stopped but {other:?}\n{}", self.said_so_far()),
        }
    }

    /// Waits for the end and reads the record.
    pub fn finish(mut self) -> Finished {
        self.stdin = None;
        let deadline = Instant::now() + DEADLINE;
        while self.take_piece(deadline) {}
        self.wait_for_exit();
        let elapsed = self.started.elapsed();
        assert!(
            self.stdout_ended,
            "something still holds provost's output\n{}",
            self.said_so_far()
        );
        let status = self.child.wait().expect("provost's status");
        let stderr = self
            .stderr
            .take()
            .map(|reader| reader.join().expect("the reader of stderr"));
        Finished::new(
            std::mem::take(&mut self.shown),
            status,
            std::mem::take(&mut self.stdout),
            stderr.unwrap_or_default(),
            self.record.as_deref(),
            elapsed,
        )
    }

    fn wait_for_exit(&mut self) {
        let (sender, receiver) = channel();
        let pid = self.pid();
        std::thread::spawn(move || {
            let _ = sender.send(waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT));
        });
        if receiver.recv_timeout(DEADLINE).is_err() {
            panic!("provost does not end\n{}", self.said_so_far());
        }
    }

    /// Takes one piece of output; false at the end or after the deadline.
    fn take_piece(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.pieces.recv_timeout(left) {
            Ok(Some(piece)) => {
                self.stdout.extend(piece);
                true
            }
            Ok(None) | Err(RecvTimeoutError::Disconnected) => {
                self.stdout_ended = true;
                false
            }
            Err(RecvTimeoutError::Timeout) => false,
        }
    }

    fn said_so_far(&mut self) -> String {
        let _ = self.child.kill();
        let mut said = format!("{}\n", self.shown);
        let _ = writeln!(said, "stdout: {}", String::from_utf8_lossy(&self.stdout));
        if let Some(reader) = self.stderr.take().filter(JoinHandle::is_finished) {
            let _ = writeln!(
                said,
                "stderr: {}",
                String::from_utf8_lossy(&reader.join().unwrap_or_default())
            );
        }
        said
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The largest resident set that a process had so far, in bytes; nothing once it has ended.
pub fn peak_memory(pid: Pid) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim()
        .strip_suffix(" kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kib| kib * 1024)
}

/// One piece at a time: a test that does not take them makes `provost` wait.
fn read_pieces(mut pipe: impl Read + Send + 'static, size: usize) -> Receiver<Piece> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut buffer = vec![0; size];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) | Err(_) => break drop(sender.send(None)),
                Ok(length) if sender.send(Some(buffer[..length].to_vec())).is_err() => break,
                Ok(_) => {}
            }
        }
    });
    receiver
}

fn read_all(mut pipe: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = pipe.read_to_end(&mut bytes);
    bytes
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}
