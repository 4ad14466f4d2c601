//! StreamActor: one output pipe, or a terminal's master, read into the log.
//!
//! It appends bytes to the log first and then states the fact, so that a fact never names bytes which are not
//! there. Two things bound it: permits, of which each fact that waits in the process's mailbox holds one, and
//! the log's paced reader, if there is one.

mod filing;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::net::unix::pipe;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::filing::Filing;
use crate::event::StreamName;
use crate::ledger::Fact;
use crate::log::Log;
use crate::process::ProcessMsg;
use crate::record::Closed;
use crate::spool::Spool;

/// Facts of one stream that may wait in the mailbox.
const IN_FLIGHT_MAX: usize = 32;
/// Reads start small, so that a process that says little costs little, and grow while they are filled.
const READ_BYTES_MIN: usize = 4 * 1024;
/// Half of what glibc takes from the kernel for each allocation: memory that is mapped anew is faulted in page by page.
const READ_BYTES_MAX: usize = 64 * 1024;
/// How far the log's paced reader may lag before this stream waits for it.
const WINDOW_BYTES: u64 = 4 * 1024 * 1024;

/// The most that a pipe holds (`/proc/sys/fs/pipe-max-size`, unless the machine's owner changed it).
const LAST_BYTES_MAX: u64 = 1024 * 1024;

pub(crate) struct StreamActor;

pub(crate) enum StreamMsg {
    /// Give up: say what was read, and that the stream is abandoned.
    Abandon,
}

pub(crate) struct StreamArgs {
    pub(crate) stream: StreamName,
    pub(crate) pipe: OwnedFd,
    pub(crate) log: Arc<Log>,
    pub(crate) process: ActorRef<ProcessMsg>,
    /// Where its bytes go, if not into memory.
    pub(crate) spool: Option<Arc<Spool>>,
    /// For a terminal whose bytes go into files: a pipe in between, its reading end first.
    pub(crate) relay: Option<(OwnedFd, OwnedFd)>,
}

pub(crate) struct StreamState {
    abandon: CancellationToken,
    pump: JoinHandle<()>,
}

impl Drop for StreamState {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

impl Actor for StreamActor {
    type Msg = StreamMsg;
    type State = StreamState;
    type Arguments = StreamArgs;

    async fn pre_start(
        &self,
        _myself: ActorRef<StreamMsg>,
        args: StreamArgs,
    ) -> Result<StreamState, ActorProcessingErr> {
        let abandon = CancellationToken::new();
        let pump = tokio::spawn(pump(args, abandon.clone()));
        Ok(StreamState { abandon, pump })
    }

    async fn handle(
        &self,
        _myself: ActorRef<StreamMsg>,
        message: StreamMsg,
        state: &mut StreamState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            StreamMsg::Abandon => state.abandon.cancel(),
        }
        Ok(())
    }
}

async fn pump(args: StreamArgs, abandon: CancellationToken) {
    let (stream, process) = (args.stream, args.process.clone());
    let closed = match args.into_pump() {
        Ok(Pump::Memory(reading)) => {
            tokio::select! {
                closed = read_to_end(&reading) => closed,
                () = abandon.cancelled() => read_the_rest(&reading),
            }
        }
        Ok(Pump::Files(filing)) => filing.run(abandon).await,
        Err(error) => {
            tracing::warn!(%stream, %error, "cannot watch an output pipe");
            Closed::Abandoned
        }
    };
    let last = Fact::StreamClosed { stream, closed };
    let _ = process.send_message(ProcessMsg::Fact(last, None));
}

enum Pump {
    Memory(Reading),
    Files(Filing),
}

/// A stream that is read into memory.
struct Reading {
    stream: StreamName,
    pipe: pipe::Receiver,
    log: Arc<Log>,
    process: ActorRef<ProcessMsg>,
}

impl StreamArgs {
    fn into_pump(self) -> std::io::Result<Pump> {
        let Self {
            stream,
            pipe,
            log,
            process,
            spool,
            relay,
        } = self;
        Ok(match (log.writer(stream, relay), spool) {
            (Some(writer), Some(spool)) => Pump::Files(Filing {
                stream,
                log,
                process,
                spool,
                source: Arc::new(pipe),
                writer,
            }),
            _ => Pump::Memory(Reading {
                stream,
                pipe: pipe::Receiver::from_owned_fd_unchecked(pipe)?,
                log,
                process,
            }),
        })
    }
}

/// What the pipe still holds when the stream is given up: a slow reader of ours may be why it was not read. Whoever
/// still writes gets no more than a pipe's room.
fn read_the_rest(args: &Reading) -> Closed {
    let mut buffer = vec![0; args.log.limits().piece_bytes_max().min(READ_BYTES_MAX)];
    let mut left = LAST_BYTES_MAX;
    loop {
        // Not by way of the runtime: it has not noticed bytes that came since it looked.
        let read = match nix::unistd::read(&args.pipe, &mut buffer) {
            Ok(0) => return Closed::Eof,
            Ok(read) => read,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(errno) if is_hang_up(args.stream, Some(errno as i32)) => return Closed::Eof,
            Err(_) => return Closed::Abandoned,
        };
        let fact = args.append(Bytes::copy_from_slice(&buffer[..read]));
        let heard = args.process.send_message(ProcessMsg::Fact(fact, None));
        left = left.saturating_sub(read as u64);
        if heard.is_err() || left == 0 {
            return Closed::Abandoned;
        }
    }
}

/// The end of a terminal: nobody has its slave open, and what was written to it has been read. It stays so, because
/// the init has it open until nothing of the tree is left.
fn is_hang_up(stream: StreamName, errno: Option<i32>) -> bool {
    stream == StreamName::Pty && errno == Some(nix::libc::EIO)
}

impl Reading {
    /// Puts bytes into the log; the fact about them.
    fn append(&self, chunk: Bytes) -> Fact {
        let length = chunk.len() as u64;
        Fact::Output {
            stream: self.stream,
            offset: self.log.append_bytes(self.stream, chunk),
            length,
        }
    }
}

async fn read_to_end(args: &Reading) -> Closed {
    let permits = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let mut reader = ChunkReader::new(args.log.limits().piece_bytes_max());
    loop {
        // Readable first: a stream that waits for bytes holds neither permit nor buffer.
        if args.pipe.readable().await.is_err() {
            return Closed::Abandoned;
        }
        args.log.room(args.stream, WINDOW_BYTES).await;
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return Closed::Abandoned;
        };
        let chunk = match reader.read(&args.pipe) {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return Closed::Eof,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(error) if is_hang_up(args.stream, error.raw_os_error()) => return Closed::Eof,
            Err(error) => {
                tracing::warn!(stream = %args.stream, %error, "cannot read an output pipe");
                return Closed::Abandoned;
            }
        };
        let fact = args.append(chunk);
        if args
            .process
            .send_message(ProcessMsg::Fact(fact, Some(permit)))
            .is_err()
        {
            return Closed::Abandoned;
        }
    }
}

/// Reads chunks without copying large ones and without pinning large buffers for small ones.
struct ChunkReader {
    buffer: BytesMut,
    want: usize,
    most: usize,
}

impl ChunkReader {
    /// Reads at most `most` bytes at once: retention keeps whole pieces.
    fn new(most: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            want: 0,
            most: most.min(READ_BYTES_MAX),
        }
    }

    /// `None` at the end.
    fn read(&mut self, pipe: &pipe::Receiver) -> std::io::Result<Option<Bytes>> {
        self.want = self.want.max(READ_BYTES_MIN).min(self.most);
        self.buffer.clear();
        self.buffer.reserve(self.want);
        let mut limited = (&mut self.buffer).limit(self.want);
        let count = pipe.try_read_buf(&mut limited)?;
        if count == 0 {
            return Ok(None);
        }
        let chunk = if count * 2 >= self.buffer.capacity() {
            self.buffer.split().freeze()
        } else {
            Bytes::copy_from_slice(&self.buffer)
        };
        if count >= self.want {
            self.want *= 4;
        } else if count < self.want / 4 {
            self.want /= 2;
            self.buffer = BytesMut::new();
        }
        Ok(Some(chunk))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::event::ProcessId;
    use crate::log::LogLimits;
    use crate::testing::listening;

    /// A stream whose only reader stands still, with the last bytes in its pipe.
    async fn standing_still(keep_writer: bool) -> (u64, Vec<Fact>) {
        let log = Arc::new(Log::new(ProcessId::new(), LogLimits::default()));
        let pace = log.follow(0, true);
        // More than the window: the stream waits for the reader.
        let ahead = vec![0; 1 << 20];
        for _ in 0..=(WINDOW_BYTES >> 20) {
            log.append_bytes(StreamName::Stdout, Bytes::from(ahead.clone()));
        }
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let nonblocking = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(&reader, nonblocking).expect("a pipe");
        writer.write_all(b"the last bytes").expect("there is room");
        let (process, mut facts) = listening().await;
        let args = StreamArgs {
            stream: StreamName::Stdout,
            pipe: reader.into(),
            log: log.clone(),
            process,
            spool: None,
            relay: None,
        };
        let writer = keep_writer.then_some(writer);
        let (actor, _) = StreamActor::spawn(None, StreamActor, args)
            .await
            .expect("an actor");
        actor.send_message(StreamMsg::Abandon).expect("it lives");
        let mut said = Vec::new();
        while let Some(fact) = facts.recv().await {
            let last = matches!(fact, Fact::StreamClosed { .. });
            said.push(fact);
            if last {
                break;
            }
        }
        drop((pace, writer));
        (
            log.append_bytes(StreamName::Stdout, Bytes::from_static(b"x")),
            said,
        )
    }

    #[tokio::test]
    async fn i3_an_abandoned_stream_says_its_last_bytes_and_that_they_were_the_last() {
        let (end, said) = standing_still(false).await;
        let [
            Fact::Output { offset, length, .. },
            Fact::StreamClosed { closed, .. },
        ] = said.as_slice()
        else {
            panic!("{said:?}");
        };
        assert_eq!((*length, offset + length), (14, end));
        assert_eq!(*closed, Closed::Eof);
    }

    #[tokio::test]
    async fn i3_an_abandoned_stream_that_somebody_holds_is_abandoned() {
        let (_, said) = standing_still(true).await;
        let [Fact::Output { length: 14, .. }, Fact::StreamClosed { closed, .. }] = said.as_slice()
        else {
            panic!("{said:?}");
        };
        assert_eq!(*closed, Closed::Abandoned);
    }
}
