//! The writing end of a command's standard input.

use std::io;
use std::sync::Mutex;

use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::spawner::lock;

/// The command's stdin, shared between its actor (which opens and closes it) and its handles (which write).
#[derive(Debug)]
pub(crate) struct StdinPort {
    state: watch::Sender<Stage>,
    writer: tokio::sync::Mutex<()>,
    pipe: Mutex<Option<std::sync::Arc<pipe::Sender>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Open,
    /// Writes under way may finish, no others begin.
    Ending,
    Closed,
}

impl StdinPort {
    /// Not open yet; never, if the process has no stdin pipe.
    pub(crate) fn new(piped: bool) -> Self {
        let stage = if piped { Stage::Waiting } else { Stage::Closed };
        Self {
            state: watch::Sender::new(stage),
            writer: tokio::sync::Mutex::new(()),
            pipe: Mutex::new(None),
        }
    }

    pub(crate) fn open(&self, pipe: pipe::Sender) {
        *lock(&self.pipe) = Some(std::sync::Arc::new(pipe));
        self.state.send_if_modified(|stage| {
            let waiting = *stage == Stage::Waiting;
            if waiting {
                *stage = Stage::Open;
            }
            waiting
        });
        if *self.state.borrow() != Stage::Open {
            *lock(&self.pipe) = None;
        }
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
        *lock(&self.pipe) = None;
    }

    /// The command has ended; so does every write.
    pub(crate) fn close(&self) {
        self.state.send_replace(Stage::Closed);
        *lock(&self.pipe) = None;
    }

    /// Writes all of it; waits while the command does not read.
    pub(crate) async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        let closed = || io::Error::new(io::ErrorKind::BrokenPipe, "the command's stdin is closed");
        if matches!(*self.state.borrow(), Stage::Ending | Stage::Closed) {
            return Err(closed());
        }
        let _turn = self.writer.lock().await;
        let mut state = self.state.subscribe();
        let stage = *state
            .wait_for(|stage| *stage != Stage::Waiting)
            .await
            .map_err(|_| closed())?;
        if stage != Stage::Open {
            return Err(closed());
        }
        let pipe = lock(&self.pipe).clone().ok_or_else(closed)?;
        while !bytes.is_empty() {
            tokio::select! {
                ready = pipe.writable() => ready?,
                _ = state.wait_for(|stage| *stage == Stage::Closed) => return Err(closed()),
            }
            match pipe.try_write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
