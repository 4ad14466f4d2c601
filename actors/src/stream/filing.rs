//! A stream whose bytes go from the pipe into files, within the kernel.
//!
//! The moving is done on threads that may block, for a disk can be slow: as much as there is at a time, then the
//! runtime waits for more.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ractor::ActorRef;
use tokio::io::Interest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{IN_FLIGHT_MAX, LAST_BYTES_MAX, WINDOW_BYTES, is_hang_up};
use crate::event::StreamName;
use crate::ledger::{Fact, StopCause};
use crate::log::Log;
use crate::process::ProcessMsg;
use crate::record::Closed;
use crate::spool::{Moved, SegmentWriter, Spool, Unmoved, WhenFull};

/// Moves before other streams get their turn on the thread.
const MOVES_MAX: usize = 16;
/// What is dropped at once when the disk takes nothing.
const DROP_BYTES: usize = 64 << 10;

/// A stream and the files that it is moved into.
pub(super) struct Filing {
    pub(super) stream: StreamName,
    pub(super) log: Arc<Log>,
    pub(super) process: ActorRef<ProcessMsg>,
    pub(super) spool: Arc<Spool>,
    pub(super) source: Arc<OwnedFd>,
    pub(super) writer: SegmentWriter,
}

/// Why there is nothing more to move now.
enum Pause {
    /// There may be more.
    Busy,
    /// Nothing is there.
    Empty,
    /// It is over.
    Closed(Closed),
}

impl Filing {
    /// Moves everything until the end, or until it is abandoned; then what is left.
    pub(super) async fn run(mut self, abandon: CancellationToken) -> Closed {
        let Ok(source) = crate::readiness::watch(Arc::clone(&self.source), Interest::READABLE) else {
            return Closed::Abandoned;
        };
        let permits = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
        // Something may be on its way already, of which the source says nothing.
        let mut on_its_way = self.writer.has_relay();
        loop {
            let at_once = std::mem::take(&mut on_its_way);
            let more = async {
                let ready = match at_once {
                    true => None,
                    false => Some(source.readable().await.ok()?),
                };
                self.log.room(self.stream, WINDOW_BYTES).await;
                Some((ready, permits.clone().acquire_owned().await.ok()?))
            };
            let more = tokio::select! {
                more = more => more,
                () = abandon.cancelled() => None,
            };
            let (mut ready, permit) = more.map_or((None, None), |(ready, permit)| (ready, Some(permit)));
            if ready.is_some() && self.writer.is_over(&*self.source) {
                return Closed::Eof;
            }
            let (permits, abandon) = (permits.clone(), abandon.clone());
            let moved = tokio::task::spawn_blocking(move || {
                let pause = match permit {
                    Some(permit) => self.move_some(permit, &permits, &abandon),
                    None => Pause::Closed(self.move_the_rest()),
                };
                (self, pause)
            });
            let pause;
            // Else the runtime shuts down.
            let Ok(moved) = moved.await else {
                return Closed::Abandoned;
            };
            (self, pause) = moved;
            match (pause, &mut ready) {
                (Pause::Closed(closed), _) => return closed,
                (Pause::Empty, Some(ready)) => ready.clear_ready(),
                _ => {}
            }
        }
    }

    fn move_some(
        &mut self,
        permit: OwnedSemaphorePermit,
        permits: &Arc<Semaphore>,
        abandon: &CancellationToken,
    ) -> Pause {
        let mut permit = Some(permit);
        for _ in 0..MOVES_MAX {
            if abandon.is_cancelled() {
                return Pause::Busy;
            }
            // The paced reader may have fallen behind by what was just moved: then not more than one piece at a time.
            let Some(permit) = permit.take().or_else(|| permits.clone().try_acquire_owned().ok()) else {
                return Pause::Busy;
            };
            match self.move_piece() {
                Ok(Some(fact)) => {
                    let told = ProcessMsg::Fact(fact, Some(permit));
                    if self.process.send_message(told).is_err() {
                        return Pause::Closed(Closed::Abandoned);
                    }
                }
                Ok(None) => return Pause::Closed(Closed::Eof),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Pause::Empty,
                Err(error) => {
                    tracing::warn!(stream = %self.stream, %error, "cannot move output");
                    return Pause::Closed(Closed::Abandoned);
                }
            }
            if self.log.is_paced() {
                return Pause::Busy;
            }
        }
        Pause::Busy
    }

    /// What the pipe still holds when the stream is given up. Whoever still writes gets no more than a pipe's room.
    fn move_the_rest(&mut self) -> Closed {
        let begin = self.writer.end();
        while self.writer.end() - begin < LAST_BYTES_MAX {
            match self.move_piece() {
                Ok(Some(fact)) => {
                    if self.process.send_message(ProcessMsg::Fact(fact, None)).is_err() {
                        break;
                    }
                }
                Ok(None) => return Closed::Eof,
                Err(_) => break,
            }
        }
        Closed::Abandoned
    }

    /// Moves one piece; `None` at the end.
    fn move_piece(&mut self) -> io::Result<Option<Fact>> {
        let most = self.log.limits().piece_bytes_max();
        match self.writer.fill(&*self.source, most) {
            Ok(Moved::End) => Ok(None),
            Ok(Moved::Bytes { segment, from }) => {
                self.log.filled(self.stream, segment);
                Ok(Some(Fact::Output {
                    stream: self.stream,
                    offset: from,
                    length: segment.end - from,
                }))
            }
            Err(Unmoved::Disk(error)) => self.drop_piece(&error),
            Err(Unmoved::Source(error)) if is_hang_up(self.stream, error.raw_os_error()) => Ok(None),
            Err(Unmoved::Source(error)) => Err(error),
        }
    }

    /// There is no room, or it cannot be written to: the process goes on, and what it writes is counted and lost; or it is
    /// stopped.
    fn drop_piece(&mut self, error: &io::Error) -> io::Result<Option<Fact>> {
        self.spool.is_full(error);
        if self.spool.when_full() == WhenFull::Stop {
            let limit = format!("no room for its output: {error}");
            let fact = Fact::StopRequested(StopCause::OverLimit { limit });
            let _ = self.process.send_message(ProcessMsg::Fact(fact, None));
        }
        let mut dropped = [0; DROP_BYTES];
        let bytes = match self.writer.read(&*self.source, &mut dropped) {
            Ok(0) => return Ok(None),
            Ok(bytes) => bytes as u64,
            Err(errno) if is_hang_up(self.stream, Some(errno as i32)) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let offset = self.writer.end();
        self.writer.skip(bytes);
        Ok(Some(Fact::Output {
            stream: self.stream,
            offset,
            length: bytes,
        }))
    }
}
