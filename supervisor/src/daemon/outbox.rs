//! What goes to one client: bounded, so that a client that does not read harms itself alone.

use std::sync::Arc;

use serde::Serialize;
use tokio::io::{AsyncWrite, AsyncWriteExt, BufWriter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Bytes that may wait for a client to read them.
const WAITING_BYTES_MAX: usize = 2 << 20;

/// The way to one client. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Outbox {
    lines: mpsc::UnboundedSender<Line>,
    room: Arc<Semaphore>,
}

#[derive(Debug)]
struct Line {
    bytes: Vec<u8>,
    /// Given back when it is written.
    _room: Option<OwnedSemaphorePermit>,
}

impl Outbox {
    /// The way to a client, and what writes to it: to be awaited.
    pub(super) fn new<W: AsyncWrite + Unpin>(writer: W) -> (Self, impl Future<Output = ()>) {
        let (lines, mut waiting) = mpsc::unbounded_channel::<Line>();
        let outbox = Self {
            lines,
            room: Arc::new(Semaphore::new(WAITING_BYTES_MAX)),
        };
        let room = outbox.room.clone();
        let write = async move {
            let mut writer = BufWriter::with_capacity(64 << 10, writer);
            while let Some(line) = waiting.recv().await {
                let written = async {
                    writer.write_all(&line.bytes).await?;
                    if waiting.is_empty() {
                        writer.flush().await?;
                    }
                    std::io::Result::Ok(())
                };
                if written.await.is_err() {
                    break;
                }
            }
            let _ = writer.flush().await;
            // Whoever waits for room hears that nobody reads any more.
            room.close();
        };
        (outbox, write)
    }

    /// Waits until there is room, and puts a message there. False when the client is gone.
    pub(super) async fn send(&self, message: &impl Serialize) -> bool {
        match line(message) {
            Some(bytes) => self.send_line(bytes).await,
            None => true,
        }
    }

    /// The same with a line that is written already, its end included.
    pub(super) async fn send_line(&self, bytes: Vec<u8>) -> bool {
        self.send_freeing(bytes, ()).await
    }

    /// The same with the answer to a request that held `place`, which is free when the client reads the answer.
    pub(super) async fn answer<P: Send>(&self, message: &impl Serialize, place: P) -> bool {
        match line(message) {
            Some(bytes) => self.send_freeing(bytes, place).await,
            None => true,
        }
    }

    async fn send_freeing<P: Send>(&self, bytes: Vec<u8>, place: P) -> bool {
        let need = u32::try_from(bytes.len().min(WAITING_BYTES_MAX)).unwrap_or(u32::MAX);
        let Ok(room) = self.room.clone().acquire_many_owned(need).await else {
            return false;
        };
        drop(place);
        let line = Line {
            bytes,
            _room: Some(room),
        };
        self.lines.send(line).is_ok()
    }

    /// Puts a short message there at once, whether there is room or not: for what happens rarely.
    pub(super) fn push(&self, message: &impl Serialize) {
        if let Some(bytes) = line(message) {
            let _ = self.lines.send(Line { bytes, _room: None });
        }
    }

    /// Done when the client is gone.
    pub(super) async fn closed(&self) {
        self.lines.closed().await;
    }
}

fn line(message: &impl Serialize) -> Option<Vec<u8>> {
    match serde_json::to_vec(message) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            Some(bytes)
        }
        Err(error) => {
            tracing::error!(%error, "a message cannot be written as JSON");
            None
        }
    }
}
