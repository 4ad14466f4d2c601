//! The log: a process's events and output, kept with head+tail retention, read through cursors.
//!
//! ```text
//! StreamActor ── append_bytes ──►┌─────┐              ┌─► Cursor (paced: the owner's, loses nothing)
//!                                │ Log │── follow ────┼─► Cursor
//! ProcessActor ─ append_event ──►└─────┘              └─► Cursor …
//! ```
//!
//! A stream actor appends bytes first and then states their range as a fact; when the ledger has numbered
//! it, the process actor appends the event, and only then do readers see the bytes. Push is a cursor that
//! waits at the tail, read is one that does not: one source of truth.
//!
//! # Retention
//!
//! Of each stream the first events are kept (the head, up to `head_bytes`) and the last ones (the tail, up
//! to `tail_bytes`); whole events, never parts. What lies between is one contiguous range that grows at its
//! end. A cursor that comes to it gets one [`EventBody::Gap`] for what it has not read of that range, in the
//! place of the last event that was dropped. A range that partly was read by an *earlier* cursor is told
//! whole: a reader that comes back with its `seq` alone is told of at least what it lacks.
//!
//! What is not output is always kept; the ledger bounds how much there can be.
//!
//! # Pace
//!
//! At most one cursor is *paced*: retention spares what it has not read yet, and [`Log::room`] holds the
//! stream actors while it lags by more than their window, so that the pipe fills up and the program itself
//! waits. Other readers never hold anything: they lag and are told of gaps.
//!
//! # Memory
//!
//! Bounded by the limits plus the window plus what is appended and not yet numbered (which the stream actors
//! bound with their permits). Small pieces are copied together into blocks; larger ones are kept as they
//! come, without copying, so whoever appends should own about as much memory as it shows.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use bytes::Bytes;
use jiff::Timestamp;
use provost_sandbox::denial::Denial;

use crate::event::{DraftBody, EventBody, EventDraft, ProcessId, StreamName};
use crate::record::TerminalRecord;
use crate::spool::{Segment, SegmentWriter, Segments, segment_bytes};

mod approvals;
mod bytes_store;
mod cursor;
mod kept;
mod room;
mod stream;
mod waiters;

#[cfg(test)]
mod tests;

pub use approvals::Decided;
pub use cursor::Cursor;
pub(crate) use kept::KeptLog;
pub use room::Room;

use stream::StreamLog;
use waiters::{WaiterId, Waiters};

/// About what an event takes that is not output.
const OTHER_BYTES: u64 = 512;

/// What a log keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// How much of the beginning of each stream is kept.
    pub head_bytes: u64,
    /// How much of its end.
    pub tail_bytes: u64,
    /// How many output events of each stream are kept, whatever their size.
    pub events_max: usize,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            head_bytes: 2 << 20,
            tail_bytes: 6 << 20,
            events_max: 1 << 16,
        }
    }
}

impl LogLimits {
    /// Limits that keep about so many bytes of each stream, a quarter of them from its beginning.
    pub fn keeping(output_bytes: u64) -> Self {
        Self {
            head_bytes: output_bytes / 4,
            tail_bytes: output_bytes - output_bytes / 4,
            ..Self::default()
        }
    }

    /// The greatest piece of output that should be appended at once. Retention keeps whole events, so pieces
    /// that do not fit into head or tail would not be kept at all.
    pub fn piece_bytes_max(&self) -> usize {
        let eighth = self.tail_bytes.max(self.head_bytes) / 8;
        usize::try_from(eighth)
            .unwrap_or(usize::MAX)
            .clamp(512, 256 << 10)
    }
}

/// One process's log. Shared as `Arc<Log>`.
#[derive(Debug)]
pub struct Log {
    process: ProcessId,
    limits: LogLimits,
    state: Mutex<State>,
}

/// Everything under the lock, which is never held across an await or while a waker runs.
#[derive(Debug, Default)]
struct State {
    streams: [StreamLog; StreamName::ALL.len()],
    /// Events other than output, by number.
    others: Vec<Other>,
    last_seq: u64,
    record: Option<Arc<TerminalRecord>>,
    paced: Option<Paced>,
    /// The pace is kept for the first cursor that asks for it.
    reserved: bool,
    /// Cursors at the tail, and those who wait for the record.
    readers: Waiters<()>,
    /// Stream actors that wait for room, each for its stream to lag by no more than so many bytes.
    writers: Waiters<(StreamName, u64)>,
    /// How many of them there are, those included who were woken and have not run yet.
    held_writers: usize,
}

#[derive(Debug)]
struct Other {
    seq: u64,
    time: Timestamp,
    body: Box<EventBody>,
}

/// The paced cursor, as the log sees it.
#[derive(Debug, Clone, Copy)]
struct Paced {
    id: WaiterId,
    /// The number of the last event it has read.
    seq: u64,
}

impl Log {
    /// An empty log.
    pub fn new(process: ProcessId, limits: LogLimits) -> Self {
        Self {
            process,
            limits,
            state: Mutex::default(),
        }
    }

    /// A log whose output is in files; what they hold already no event names yet.
    pub(crate) fn in_files(process: ProcessId, limits: LogLimits, segments: [Segments; 3]) -> Self {
        Self {
            process,
            limits,
            state: Mutex::new(State {
                streams: segments.map(StreamLog::in_files),
                ..State::default()
            }),
        }
    }

    /// What fills the files of a stream, if that is where its bytes go.
    pub(crate) fn writer(
        &self,
        stream: StreamName,
        relay: Option<(OwnedFd, OwnedFd)>,
    ) -> Option<SegmentWriter> {
        let state = self.lock();
        let segments = state.streams[stream.index()].segments()?;
        let bytes = segment_bytes(self.limits.tail_bytes);
        Some(SegmentWriter::new(segments, bytes, relay))
    }

    /// Bytes have come into one of a stream's files. Readers see them only when an event names them.
    pub(crate) fn filled(&self, stream: StreamName, segment: Segment) {
        self.lock().streams[stream.index()].filled(segment);
    }

    /// Whose log this is.
    pub fn process(&self) -> ProcessId {
        self.process
    }

    /// What it keeps.
    pub fn limits(&self) -> LogLimits {
        self.limits
    }

    /// Appends bytes of a stream and says the place of the first one. Readers see them only when an event
    /// names them. After the seal they go nowhere.
    pub fn append_bytes(&self, stream: StreamName, bytes: Bytes) -> u64 {
        let mut state = self.lock();
        let sealed = state.record.is_some();
        let stream = &mut state.streams[stream.index()];
        if sealed {
            return stream.appended();
        }
        stream.append(bytes)
    }

    /// Appends an event and wakes the readers. Events whose number is not higher than the last one's, and
    /// all after the seal, are ignored.
    pub fn append_event(&self, draft: EventDraft) {
        let mut state = self.lock();
        if state.record.is_some() || draft.seq <= state.last_seq {
            return;
        }
        let EventDraft { seq, time, body } = draft;
        state.last_seq = seq;
        let paced_seq = state.paced.map(|paced| paced.seq);
        match body {
            DraftBody::Output {
                stream,
                offset,
                length,
            } => state.streams[stream.index()].number(seq, time, offset, length, false),
            DraftBody::Gap { stream, from, to } => {
                let length = to.saturating_sub(from);
                state.streams[stream.index()].number(seq, time, from, length, true);
            }
            DraftBody::Whole(body) => state.others.push(Other { seq, time, body }),
        }
        state.retain(self.limits, paced_seq);
        let woken = state.readers.take_all();
        drop(state);
        wake(woken);
    }

    /// Appends the terminal event: the record, with the truth about what is retained. Gives back that record
    /// (or the one which was sealed before).
    ///
    /// Its numbers are those that hold when a paced reader has read everything; until then the log holds
    /// more.
    pub fn seal(&self, time: Timestamp, record: TerminalRecord) -> Arc<TerminalRecord> {
        self.seal_after(time, record, |_| {})
    }

    /// The same; the record is shown to `before` before anybody else sees it.
    pub(crate) fn seal_after(
        &self,
        time: Timestamp,
        mut record: TerminalRecord,
        before: impl FnOnce(&Arc<TerminalRecord>),
    ) -> Arc<TerminalRecord> {
        let mut state = self.lock();
        if let Some(sealed) = &state.record {
            return Arc::clone(sealed);
        }
        for (name, summary) in &mut record.output {
            let stream = &state.streams[name.index()];
            summary.retained = stream.retained(self.limits).min(summary.bytes);
            summary.dropped = summary.bytes - summary.retained;
        }
        let seq = record.last_seq.max(state.last_seq + 1);
        record.last_seq = seq;
        state.last_seq = seq;
        let record = Arc::new(record);
        before(&record);
        self.seal_with(state, time, record)
    }

    /// As it was sealed once, with the numbers that it had then.
    pub(crate) fn seal_as_was(
        &self,
        time: Timestamp,
        record: Arc<TerminalRecord>,
    ) -> Arc<TerminalRecord> {
        let mut state = self.lock();
        state.last_seq = record.last_seq;
        self.seal_with(state, time, record)
    }

    fn seal_with(
        &self,
        mut state: MutexGuard<'_, State>,
        time: Timestamp,
        record: Arc<TerminalRecord>,
    ) -> Arc<TerminalRecord> {
        let seq = record.last_seq;
        let body = Box::new(EventBody::Terminal {
            record: Arc::clone(&record),
        });
        state.others.push(Other { seq, time, body });
        state.record = Some(Arc::clone(&record));
        for stream in &mut state.streams {
            stream.forget_unnumbered();
        }
        let mut woken = state.readers.take_all();
        woken.extend(state.writers.take_all());
        drop(state);
        wake(woken);
        record
    }

    /// When the oldest output was written that [`evict`](Self::evict) would drop; `None` if nothing can be dropped.
    pub fn evictable(&self) -> Option<Timestamp> {
        let state = self.lock();
        let paced_seq = state.paced.map(|paced| paced.seq);
        let streams = state.streams.iter();
        streams.filter_map(|stream| stream.evictable(paced_seq)).min()
    }

    /// Drops output that was written up to a time, the oldest first, until so many `bytes` fewer are kept; how many. Of each
    /// stream what follows the head goes first, the head from its end when nothing else is left; readers get a gap. What a
    /// paced reader has not read is spared. A record that is sealed says what was kept then.
    pub fn evict(&self, bytes: u64, until: Timestamp) -> u64 {
        let mut state = self.lock();
        let paced_seq = state.paced.map(|paced| paced.seq);
        let mut dropped = 0;
        while dropped < bytes {
            let streams = state.streams.iter_mut();
            let oldest = streams
                .filter_map(|stream| Some((stream.evictable(paced_seq)?, stream)))
                .min_by_key(|(time, _)| *time);
            match oldest {
                Some((time, stream)) if time <= until => dropped += stream.evict(),
                _ => break,
            }
        }
        dropped
    }

    /// How many bytes of a stream are kept, once a paced reader is through.
    pub fn retained(&self, stream: StreamName) -> u64 {
        self.lock().streams[stream.index()].retained(self.limits)
    }

    /// About how many bytes of memory this takes.
    pub fn memory(&self) -> u64 {
        let state = self.lock();
        let streams = state.streams.iter().map(StreamLog::memory);
        streams.sum::<u64>() + state.others.len() as u64 * OTHER_BYTES
    }

    /// Denials that were told, in order.
    pub fn denials(&self) -> Vec<(u64, Timestamp, Denial)> {
        let state = self.lock();
        let denial = |other: &Other| match &*other.body {
            EventBody::Denial(denial) => Some((other.seq, other.time, Denial::clone(denial))),
            _ => None,
        };
        state.others.iter().filter_map(denial).collect()
    }

    /// How many numbered bytes of a stream are not kept, once a paced reader is through.
    pub fn dropped(&self, stream: StreamName) -> u64 {
        let state = self.lock();
        let stream = &state.streams[stream.index()];
        stream.numbered().saturating_sub(stream.retained(self.limits))
    }

    /// The number of the last event; 0 if there is none yet.
    pub fn last_seq(&self) -> u64 {
        self.lock().last_seq
    }

    /// The number of the event behind which the last `bytes` of output are, in whole events and as far as they are kept; 0
    /// if that is all there is. The terminal event is always behind it.
    pub fn before_tail(&self, bytes: u64) -> u64 {
        let state = self.lock();
        let end = state.last_seq.saturating_sub(u64::from(state.record.is_some()));
        if bytes == 0 {
            return end;
        }
        let mut streams = state
            .streams
            .each_ref()
            .map(|stream| stream.backwards().peekable());
        let mut found = 0;
        loop {
            let last = streams
                .iter_mut()
                .filter_map(|stream| Some((stream.peek()?.0, stream)))
                .max_by_key(|(seq, _)| *seq);
            let Some((seq, length)) = last.and_then(|(_, stream)| stream.next()) else {
                return 0;
            };
            found += length;
            if found >= bytes {
                return seq - 1;
            }
        }
    }

    /// The record, if it is sealed.
    pub fn record(&self) -> Option<Arc<TerminalRecord>> {
        self.lock().record.clone()
    }

    /// Waits for the record.
    pub async fn sealed(&self) -> Arc<TerminalRecord> {
        let waiter = WaiterGuard::new(self);
        std::future::poll_fn(|cx| {
            let mut state = self.lock();
            match &state.record {
                Some(record) => Poll::Ready(Arc::clone(record)),
                None => {
                    state.readers.register(waiter.id, (), cx.waker());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// A cursor behind event `after_seq` (0: at the beginning), which reads on for ever, until the record.
    ///
    /// `pace` asks for the pace, which one cursor at most can have: [`Cursor::is_paced`] tells.
    pub fn follow(self: &Arc<Self>, after_seq: u64, pace: bool) -> Cursor {
        let id = WaiterId::new();
        let mut state = self.lock();
        let paced = pace && (std::mem::take(&mut state.reserved) || state.paced.is_none());
        if paced {
            state.paced = Some(Paced { id, seq: after_seq });
        }
        drop(state);
        Cursor::new(Arc::clone(self), id, after_seq, paced)
    }

    /// Keeps the pace for the first cursor that asks for it: until then nothing is dropped, and what does not fit waits.
    pub fn reserve_pace(&self) {
        let mut state = self.lock();
        if state.paced.is_none() {
            let id = WaiterId::new();
            state.paced = Some(Paced { id, seq: 0 });
            state.reserved = true;
        }
    }

    /// Waits while the paced cursor (if there is one) lags behind this stream's end by more than
    /// `window_bytes`; then until it lags by no more than half of that. To be awaited before reading more.
    pub fn room(&self, stream: StreamName, window_bytes: u64) -> Room<'_> {
        Room::new(self, stream, window_bytes)
    }

    /// A reader holds the pace.
    pub(crate) fn is_paced(&self) -> bool {
        self.lock().paced.is_some()
    }

    /// Somebody waits for [`room`](Self::room): bytes are there to be read from the process, and the paced
    /// reader is what they wait for. A deadline for the end of a stream must not run out meanwhile.
    pub fn is_held(&self) -> bool {
        self.lock().held_writers > 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked while holding the lock has not left it between two steps that matter more than
        // every reader's end.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The paced cursor has read up to `seq`, or (`None`) is gone.
    fn release(&self, id: WaiterId, seq: Option<u64>) {
        let mut state = self.lock();
        let woken = state.release(self.limits, id, seq);
        drop(state);
        wake(woken);
    }
}

impl State {
    fn retain(&mut self, limits: LogLimits, paced_seq: Option<u64>) {
        for stream in &mut self.streams {
            stream.retain(limits, paced_seq);
        }
    }

    /// Moves or removes the paced cursor; says whom to wake.
    fn release(&mut self, limits: LogLimits, id: WaiterId, seq: Option<u64>) -> Vec<Waker> {
        if self.paced.is_none_or(|paced| paced.id != id) {
            return Vec::new();
        }
        self.paced = seq.map(|seq| Paced { id, seq });
        self.retain(limits, seq);
        let (streams, paced) = (&self.streams, self.paced);
        self.writers.take_if(|&(stream, lag_max)| match paced {
            Some(paced) => streams[stream.index()].lag(paced.seq) <= lag_max,
            None => true,
        })
    }

    /// How far the paced cursor lags behind the end of a stream.
    fn lag(&self, stream: StreamName) -> u64 {
        match self.paced {
            Some(paced) if self.record.is_none() => self.streams[stream.index()].lag(paced.seq),
            _ => 0,
        }
    }
}

/// Takes a waiter out of the log when its future is dropped.
#[derive(Debug)]
struct WaiterGuard<'a> {
    log: &'a Log,
    id: WaiterId,
}

impl<'a> WaiterGuard<'a> {
    fn new(log: &'a Log) -> Self {
        Self {
            log,
            id: WaiterId::new(),
        }
    }
}

impl Drop for WaiterGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.log.lock();
        state.readers.remove(self.id);
        state.writers.remove(self.id);
    }
}

fn wake(wakers: Vec<Waker>) {
    for waker in wakers {
        waker.wake();
    }
}
