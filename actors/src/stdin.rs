//! What is written to a command: the writing end of a pipe that is its standard input, or the master of its terminal.

use std::io;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use nix::sys::termios::{self, LocalFlags, SpecialCharacterIndices};
use provost_sandbox::keeper::wire::Kept;
use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::event::ProcessId;
use crate::spawner::{SpawnerLink, lock};
use crate::spec::{ProcessSpec, StdinSpec, TerminalSize};
use crate::spool::{Entry, ProcessSpool, StdinProgress};

/// What is written at once where it is written down.
const PIECE_BYTES: usize = 64 << 10;

/// The command's stdin, shared between its actor (which opens and closes it) and its handles (which write).
#[derive(Debug)]
pub(crate) struct StdinPort {
    state: watch::Sender<Stage>,
    /// Held while something is written.
    writer: tokio::sync::Mutex<Written>,
    /// How far an earlier daemon came.
    before: StdinProgress,
    /// Where it is written down how far that came.
    spool: Option<Arc<ProcessSpool>>,
    /// Who has copies of it, that must be closed as well.
    keeper: Option<(Arc<SpawnerLink>, ProcessId)>,
    pipe: Mutex<Option<Arc<pipe::Sender>>>,
    terminal: bool,
}

/// What was written.
#[derive(Debug, Default)]
struct Written {
    /// The last byte.
    last: Option<u8>,
    /// How many.
    bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Stage {
    Waiting,
    Open,
    /// Writes under way may finish, no others begin.
    Ending,
    Closed,
}

impl StdinPort {
    /// Not open yet; never, if the process has neither a stdin pipe nor a terminal.
    pub(crate) fn new(
        spec: &ProcessSpec,
        spool: Option<Arc<ProcessSpool>>,
        progress: StdinProgress,
    ) -> Self {
        let terminal = spec.terminal.is_some();
        let stage = match spec.stdin {
            StdinSpec::Pipe => Stage::Waiting,
            _ if terminal => Stage::Waiting,
            _ => Stage::Closed,
        };
        Self {
            state: watch::Sender::new(stage),
            writer: tokio::sync::Mutex::new(Written {
                last: None,
                // What was about to be written when we died may have been.
                bytes: progress.intended.max(progress.written),
            }),
            before: progress,
            spool,
            keeper: None,
            pipe: Mutex::new(None),
            terminal,
        }
    }

    pub(crate) fn before(&self) -> StdinProgress {
        self.before
    }

    /// It is kept by a keeper, too.
    pub(crate) fn kept_by(mut self, link: Arc<SpawnerLink>, process: ProcessId) -> Self {
        self.keeper = Some((link, process));
        self
    }

    /// That of a process that has ended.
    pub(crate) fn ended() -> Self {
        Self {
            state: watch::Sender::new(Stage::Closed),
            writer: tokio::sync::Mutex::default(),
            before: StdinProgress::default(),
            spool: None,
            keeper: None,
            pipe: Mutex::new(None),
            terminal: false,
        }
    }

    pub(crate) fn open(&self, pipe: pipe::Sender) {
        self.take(pipe);
        if *self.state.borrow() > Stage::Open {
            *lock(&self.pipe) = None;
        }
    }

    /// The master of the command's terminal: it is written to until [`Self::end`], and kept until [`Self::close`].
    pub(crate) fn open_terminal(self: &Arc<Self>, master: pipe::Sender) {
        self.take(master);
        if *self.state.borrow() == Stage::Closed {
            *lock(&self.pipe) = None;
        }
        tokio::spawn(self.clone().type_the_end());
    }

    fn take(&self, pipe: pipe::Sender) {
        *lock(&self.pipe) = Some(Arc::new(pipe));
        // Whoever waits looks at the pipe, too.
        self.state.send_modify(|stage| {
            if *stage == Stage::Waiting {
                *stage = Stage::Open;
            }
        });
    }

    /// End of file for the command, once writes under way are done.
    pub(crate) fn end(&self) {
        self.state.send_if_modified(|stage| {
            let changes = matches!(stage, Stage::Waiting | Stage::Open);
            if changes {
                *stage = Stage::Ending;
            }
            changes
        });
        if !self.terminal {
            *lock(&self.pipe) = None;
            if let Some((link, process)) = &self.keeper {
                link.release(*process.as_uuid(), Kept::Stdin);
            }
        }
    }

    /// The command has ended; so does every write.
    pub(crate) fn close(&self) {
        self.state.send_replace(Stage::Closed);
        *lock(&self.pipe) = None;
    }

    /// Writes all of it; waits while the command does not read.
    pub(crate) async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        if matches!(*self.state.borrow(), Stage::Ending | Stage::Closed) {
            return Err(closed());
        }
        let mut written = self.writer.lock().await;
        let stage = self.stage(|stage| stage != Stage::Waiting).await?;
        if stage != Stage::Open {
            return Err(closed());
        }
        let pipe = lock(&self.pipe).clone().ok_or_else(closed)?;
        let Some(spool) = &self.spool else {
            self.write_to(&pipe, bytes).await?;
            written.last = bytes.last().copied().or(written.last);
            return Ok(());
        };
        // What is about to be written is written down before, and that it was, after: what lies between is uncertain, and
        // only that. What cannot be written down is not written: the next daemon would not know of it.
        for piece in bytes.chunks(PIECE_BYTES) {
            let intended = written.bytes + piece.len() as u64;
            let note = |written: u64, intended: u64| {
                let progress = StdinProgress { written, intended };
                spool.write(Timestamp::now(), &Entry::Stdin(progress))
            };
            if let Err(error) = note(written.bytes, intended) {
                let _ = note(written.bytes, written.bytes);
                let why = format!("it cannot be written down what is written to it: {error}");
                return Err(io::Error::new(io::ErrorKind::StorageFull, why));
            }
            self.write_to(&pipe, piece).await?;
            written.bytes = intended;
            written.last = piece.last().copied();
            // What was written was: at worst it is uncertain to the next daemon.
            let _ = note(intended, intended);
        }
        Ok(())
    }

    /// How many bytes were written, once nobody writes; those of earlier daemons included.
    pub(crate) async fn written(&self) -> u64 {
        self.writer.lock().await.bytes
    }

    async fn write_to(&self, pipe: &pipe::Sender, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            tokio::select! {
                ready = pipe.writable() => ready?,
                _ = self.stage(|stage| stage == Stage::Closed) => return Err(closed()),
            }
            match pipe.try_write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if self.terminal && error.raw_os_error() == Some(nix::libc::EIO) => {
                    return Err(closed());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Types the end of file at the terminal, once that was asked for and writes under way are done. A terminal has no
    /// other end of input, and this one only in canonical mode: a program that reads raw would get a byte that nobody
    /// typed.
    async fn type_the_end(self: Arc<Self>) {
        if !matches!(
            self.stage(|stage| stage >= Stage::Ending).await,
            Ok(Stage::Ending)
        ) {
            return;
        }
        let written = self.writer.lock().await;
        let Some(master) = lock(&self.pipe).clone() else {
            return;
        };
        let Ok(modes) = termios::tcgetattr(&*master) else {
            return;
        };
        if !modes.local_flags.contains(LocalFlags::ICANON) {
            return;
        }
        let end = modes.control_chars[SpecialCharacterIndices::VEOF as usize];
        // In a line that was begun the first one only hands that over.
        let begun = written
            .last
            .is_some_and(|last| ![b'\n', b'\r', end].contains(&last));
        let typed = [end, end];
        let _ = self.write_to(&master, &typed[usize::from(!begun)..]).await;
    }

    /// Changes the size of the terminal; the kernel tells the foreground process group.
    pub(crate) async fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let master = self.terminal().await?;
        let size = Winsize {
            ws_row: size.rows,
            ws_col: size.cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(tcsetwinsize(&*master, size)?)
    }

    /// The size of the terminal; waits until that is there.
    pub(crate) async fn size(&self) -> io::Result<TerminalSize> {
        let size = tcgetwinsize(&*self.terminal().await?)?;
        Ok(TerminalSize {
            rows: size.ws_row,
            cols: size.ws_col,
        })
    }

    async fn terminal(&self) -> io::Result<Arc<pipe::Sender>> {
        if !self.terminal {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "it has no terminal"));
        }
        // Asked to end before it was there, it comes all the same.
        let there = |stage| stage == Stage::Closed || lock(&self.pipe).is_some();
        self.stage(there).await?;
        lock(&self.pipe).clone().ok_or_else(closed)
    }

    /// Waits for such a stage.
    async fn stage(&self, mut wanted: impl FnMut(Stage) -> bool) -> io::Result<Stage> {
        let mut state = self.state.subscribe();
        let stage = state.wait_for(|stage| wanted(*stage)).await;
        Ok(*stage.map_err(|_| closed())?)
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the command's stdin is closed")
}
