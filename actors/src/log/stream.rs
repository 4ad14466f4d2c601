//! One stream of a log: its output events, and which of them are kept.

use std::collections::VecDeque;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::LogLimits;
use super::bytes_store::ByteStore;
use crate::spool::{Opened, Place, Segment, Segments};

/// What one unread event adds to a reader's lag besides its bytes: about what the log needs to remember it.
/// Without it a window of some megabytes would admit as many events of one byte each.
const EVENT_COST: u64 = 64;

/// One stream of a log.
#[derive(Debug, Default)]
pub(super) struct StreamLog {
    bytes: Store,
    /// The end of what events name.
    numbered: u64,
    /// How many pieces were appended that no event names yet, about.
    pending: u64,
    head: Vec<Output>,
    head_bytes: u64,
    /// The head is complete: what comes goes to the tail.
    head_closed: bool,
    /// What was dropped after the head.
    gap: Option<Gap>,
    tail: VecDeque<Output>,
    tail_bytes: u64,
}

/// Where the bytes are.
#[derive(Debug)]
pub(super) enum Store {
    Memory(ByteStore),
    Files(Segments),
}

impl Default for Store {
    fn default() -> Self {
        Self::Memory(ByteStore::default())
    }
}

impl Store {
    fn keep_head(&mut self, end: u64) {
        match self {
            Self::Memory(bytes) => bytes.keep_head(end),
            Self::Files(segments) => segments.keep_head(end),
        }
    }

    fn shorten_head(&mut self, end: u64) {
        match self {
            Self::Memory(bytes) => bytes.shorten_head(end),
            Self::Files(segments) => segments.shorten_head(end),
        }
    }

    fn drop_below(&mut self, start: u64) {
        match self {
            Self::Memory(bytes) => bytes.drop_below(start),
            Self::Files(segments) => segments.drop_below(start),
        }
    }
}

/// The bytes of one event.
#[derive(Debug)]
pub(super) enum Body {
    Here(Bytes),
    /// To be read when nobody waits for the log.
    InFile(Place),
    /// They were never there.
    None,
}

/// An output event, or a gap that the ledger itself stated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    from = "(u64, Timestamp, u64, u64, bool)",
    into = "(u64, Timestamp, u64, u64, bool)"
)]
pub(super) struct Output {
    pub(super) seq: u64,
    pub(super) time: Timestamp,
    pub(super) offset: u64,
    pub(super) length: u64,
    /// There are no bytes to it.
    hole: bool,
}

impl From<(u64, Timestamp, u64, u64, bool)> for Output {
    fn from((seq, time, offset, length, hole): (u64, Timestamp, u64, u64, bool)) -> Self {
        Self {
            seq,
            time,
            offset,
            length,
            hole,
        }
    }
}

impl From<Output> for (u64, Timestamp, u64, u64, bool) {
    fn from(output: Output) -> Self {
        let Output {
            seq,
            time,
            offset,
            length,
            hole,
        } = output;
        (seq, time, offset, length, hole)
    }
}

impl Output {
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    fn bytes(&self) -> u64 {
        if self.hole { 0 } else { self.length }
    }
}

/// Everything that retention dropped: one contiguous range, for it lies between the head and the tail.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Gap {
    /// The number of the last event that was dropped.
    pub(super) seq: u64,
    /// Its time.
    pub(super) time: Timestamp,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// What a reader finds next in a stream.
#[derive(Debug, Clone, Copy)]
pub(super) enum Next {
    Output(Output),
    Gap(Gap),
}

impl Next {
    pub(super) fn seq(&self) -> u64 {
        match self {
            Self::Output(output) => output.seq,
            Self::Gap(gap) => gap.seq,
        }
    }
}

/// A stream as it is written down; its bytes are in files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct KeptStream {
    numbered: u64,
    head: Vec<Output>,
    head_closed: bool,
    gap: Option<Gap>,
    tail: VecDeque<Output>,
    /// Where its files begin.
    pub(super) files: Vec<u64>,
}

impl StreamLog {
    /// What it knows.
    pub(super) fn kept(&self) -> KeptStream {
        KeptStream {
            numbered: self.numbered,
            head: self.head.clone(),
            head_closed: self.head_closed,
            gap: self.gap,
            tail: self.tail.clone(),
            files: self.segments().map(Segments::starts).unwrap_or_default(),
        }
    }

    /// The stream again, with what there is of its files now.
    pub(super) fn restored(mut segments: Segments, kept: KeptStream) -> Self {
        let (mut head, mut tail) = (kept.head, kept.tail);
        for output in head.iter_mut().chain(&mut tail) {
            // Files go without a word to the journal when too much is kept in all.
            output.hole |= !segments.holds(output.offset, output.length);
        }
        if kept.head_closed {
            segments.keep_head(head.last().map_or(0, Output::end));
        }
        Self {
            bytes: Store::Files(segments),
            numbered: kept.numbered,
            pending: 0,
            head_bytes: head.iter().map(Output::bytes).sum(),
            head,
            head_closed: kept.head_closed,
            gap: kept.gap,
            tail_bytes: tail.iter().map(Output::bytes).sum(),
            tail,
        }
    }

    /// A stream whose bytes are in files.
    pub(super) fn in_files(segments: Segments) -> Self {
        Self {
            bytes: Store::Files(segments),
            ..Self::default()
        }
    }

    /// The files, if that is where its bytes are.
    pub(super) fn segments(&self) -> Option<&Segments> {
        match &self.bytes {
            Store::Files(segments) => Some(segments),
            Store::Memory(_) => None,
        }
    }

    /// The end of what was appended.
    pub(super) fn appended(&self) -> u64 {
        match &self.bytes {
            Store::Memory(bytes) => bytes.end(),
            Store::Files(segments) => segments.end(),
        }
    }

    /// Bytes have come into one of its files.
    pub(super) fn filled(&mut self, segment: Segment) {
        self.pending += 1;
        if let Store::Files(segments) = &mut self.bytes {
            segments.filled(segment);
        }
    }

    /// The end of what events name.
    pub(super) fn numbered(&self) -> u64 {
        self.numbered
    }

    pub(super) fn append(&mut self, bytes: Bytes) -> u64 {
        self.pending += 1;
        match &mut self.bytes {
            Store::Memory(store) => store.append(bytes),
            // Bytes come into files by themselves.
            Store::Files(segments) => segments.end(),
        }
    }

    fn holds(&self, offset: u64, length: u64) -> bool {
        match &self.bytes {
            Store::Memory(bytes) => offset.saturating_add(length) <= bytes.end(),
            Store::Files(segments) => segments.holds(offset, length),
        }
    }

    /// Takes an event into the stream. Retention is a step of its own.
    pub(super) fn number(&mut self, seq: u64, time: Timestamp, offset: u64, length: u64, hole: bool) {
        // Nor are there bytes to what was never appended.
        let hole = hole || !self.holds(offset, length);
        let output = Output {
            seq,
            time,
            offset,
            length,
            hole,
        };
        self.numbered = self.numbered.max(output.end());
        self.pending = if self.numbered >= self.appended() {
            0
        } else {
            self.pending.saturating_sub(1)
        };
        self.tail_bytes += output.bytes();
        self.tail.push_back(output);
    }

    /// Brings the stream within its limits, as far as the paced reader (which has read up to `paced_seq`)
    /// has seen what would go.
    pub(super) fn retain(&mut self, limits: LogLimits, paced_seq: Option<u64>) {
        while !self.head_closed
            && let Some(front) = self.tail.front().copied()
        {
            // By its place, so that it comes to the same when it is done again and files are gone.
            let fits = front.end() <= limits.head_bytes;
            if fits && self.head.len() < limits.events_max / 2 {
                self.tail.pop_front();
                self.tail_bytes -= front.bytes();
                self.head_bytes += front.bytes();
                self.head.push(front);
            } else {
                self.head_closed = true;
                self.bytes.keep_head(front.offset);
            }
        }
        let mut dropped = None;
        while !fits_tail(limits, self.tail.len(), self.tail_bytes)
            && let Some(front) = self
                .tail
                .pop_front_if(|front| paced_seq.is_none_or(|seq| front.seq <= seq))
        {
            self.tail_bytes -= front.bytes();
            dropped = Some(front);
        }
        if let Some(last) = dropped {
            let head_end = self.head.last().map_or(0, Output::end);
            self.gap = Some(Gap {
                seq: last.seq,
                time: last.time,
                from: head_end,
                to: last.end(),
            });
            self.bytes.drop_below(last.end());
        }
    }

    /// When the event was written that would be dropped next.
    pub(super) fn evictable(&self, paced_seq: Option<u64>) -> Option<Timestamp> {
        let next = self.tail.front().or(self.head.last())?;
        paced_seq.is_none_or(|seq| next.seq <= seq).then_some(next.time)
    }

    /// Drops that event; how many bytes it had.
    pub(super) fn evict(&mut self) -> u64 {
        let head_end = |head: &[Output]| head.last().map_or(0, Output::end);
        if let Some(front) = self.tail.pop_front() {
            self.tail_bytes -= front.bytes();
            self.gap = Some(Gap {
                seq: front.seq,
                time: front.time,
                from: head_end(&self.head),
                to: front.end(),
            });
            // What is dropped must not become part of a head that goes on growing.
            self.close_head();
            self.bytes.drop_below(front.end());
            return front.bytes();
        }
        self.close_head();
        let Some(last) = self.head.pop() else { return 0 };
        self.head_bytes -= last.bytes();
        let from = head_end(&self.head);
        self.gap = Some(Gap {
            from,
            ..self.gap.unwrap_or(Gap {
                seq: last.seq,
                time: last.time,
                from,
                to: last.end(),
            })
        });
        self.bytes.shorten_head(from);
        last.bytes()
    }

    fn close_head(&mut self) {
        if !std::mem::replace(&mut self.head_closed, true) {
            self.bytes.keep_head(self.head.last().map_or(0, Output::end));
        }
    }

    /// How many bytes are kept when no paced reader holds any.
    ///
    /// This does not depend on when a paced reader read what: the tail is the longest run of last events
    /// that fits, and stays it.
    pub(super) fn retained(&self, limits: LogLimits) -> u64 {
        let (mut count, mut bytes) = (self.tail.len(), self.tail_bytes);
        for output in &self.tail {
            if fits_tail(limits, count, bytes) {
                break;
            }
            count -= 1;
            bytes -= output.bytes();
        }
        self.head_bytes + bytes
    }

    /// The first thing behind event `seq`.
    pub(super) fn next_after(&self, seq: u64) -> Option<Next> {
        if self.head.last().is_some_and(|last| last.seq > seq) {
            let index = self.head.partition_point(|output| output.seq <= seq);
            return self.head.get(index).copied().map(Next::Output);
        }
        if let Some(gap) = self.gap.filter(|gap| gap.seq > seq) {
            return Some(Next::Gap(gap));
        }
        // Nearly every reader is at the end, or goes on from the front.
        if self.tail.back()?.seq <= seq {
            return None;
        }
        let index = self.tail.partition_point(|output| output.seq <= seq);
        self.tail.get(index).copied().map(Next::Output)
    }

    /// The numbers and lengths of the output events that are kept, the last one first.
    pub(super) fn backwards(&self) -> impl Iterator<Item = (u64, u64)> {
        let events = self.tail.iter().rev().chain(self.head.iter().rev());
        events.map(|output| (output.seq, output.bytes()))
    }

    /// The bytes of an event.
    pub(super) fn bytes_of(&mut self, output: &Output, opened: &mut Opened) -> Body {
        if output.hole {
            return Body::None;
        }
        let (offset, length) = (output.offset, output.length);
        match &mut self.bytes {
            Store::Memory(bytes) => bytes.slice(offset, length).map_or(Body::None, Body::Here),
            Store::Files(segments) => {
                let place = segments.place(offset, length, opened);
                place.map_or(Body::None, Body::InFile)
            }
        }
    }

    /// How far a reader that has read up to `seq` is behind the end: in bytes, each event counted as some.
    pub(super) fn lag(&self, seq: u64) -> u64 {
        let in_head = self.head.partition_point(|output| output.seq <= seq);
        let in_tail = self.tail.partition_point(|output| output.seq <= seq);
        let unread = (self.head.len() - in_head) + (self.tail.len() - in_tail);
        let first = self.head.get(in_head).or_else(|| self.tail.get(in_tail));
        let read_to = first.map_or(self.numbered, |output| output.offset);
        let events = (unread as u64).saturating_add(self.pending);
        self.appended()
            .saturating_sub(read_to)
            .saturating_add(events.saturating_mul(EVENT_COST))
    }

    /// Drops what was appended and will never be named.
    pub(super) fn forget_unnumbered(&mut self) {
        if let Store::Memory(bytes) = &mut self.bytes {
            bytes.drop_above(self.numbered);
        }
    }

    /// About how many bytes of memory this takes.
    pub(super) fn memory(&self) -> u64 {
        let events = (self.head.len() + self.tail.len()) as u64 * EVENT_COST;
        match &self.bytes {
            Store::Memory(_) => events + self.head_bytes + self.tail_bytes,
            Store::Files(_) => events,
        }
    }

    /// How many bytes and chunks are held, and how many events.
    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize, usize) {
        let events = self.head.len() + self.tail.len();
        match &self.bytes {
            Store::Memory(bytes) => (bytes.held(), bytes.chunks(), events),
            Store::Files(_) => (0, 0, events),
        }
    }
}

fn fits_tail(limits: LogLimits, events: usize, bytes: u64) -> bool {
    bytes <= limits.tail_bytes && events <= limits.events_max - limits.events_max / 2
}
