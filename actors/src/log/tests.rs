//! What the tests of the log share: a writer, and a reader that checks what it reads.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_core::Stream as _;
use jiff::Timestamp;

use super::*;
use crate::event::Event;
use crate::record::tests::record;
use crate::record::{Closed, OutputSummary};

mod any;
mod concurrent;
mod pace;
mod reading;
mod retention;

const OUT: StreamName = StreamName::Stdout;
const ERR: StreamName = StreamName::Stderr;

/// A log and the one who writes to it.
struct Writer {
    log: Arc<Log>,
    seq: u64,
}

impl Writer {
    fn new(limits: LogLimits) -> Self {
        Self {
            log: Arc::new(Log::new(record().process, limits)),
            seq: 0,
        }
    }

    fn small(head_bytes: u64, tail_bytes: u64) -> Self {
        Self::new(LogLimits {
            head_bytes,
            tail_bytes,
            events_max: 1000,
        })
    }

    fn event(&mut self, body: DraftBody) {
        self.seq += 1;
        self.log.append_event(EventDraft {
            seq: self.seq,
            time: Timestamp::UNIX_EPOCH,
            body,
        });
    }

    fn number(&mut self, stream: StreamName, offset: u64, length: u64) {
        self.event(DraftBody::Output {
            stream,
            offset,
            length,
        });
    }

    /// Appends bytes and states them.
    fn write(&mut self, stream: StreamName, length: usize) {
        let from = self.log.lock().streams[stream.index()].appended();
        let offset = self.log.append_bytes(stream, pattern(stream, from, length));
        assert_eq!(offset, from);
        self.number(stream, offset, length as u64);
    }

    /// An event that is not output.
    fn other(&mut self) {
        self.event(DraftBody::Whole(Box::new(EventBody::Exited {
            exit_code: Some(0),
            signal: None,
        })));
    }

    fn seal(&mut self) -> Arc<TerminalRecord> {
        let mut record = record();
        record.last_seq = self.seq + 1;
        let summary = |stream: StreamName| OutputSummary {
            bytes: self.log.lock().streams[stream.index()].numbered(),
            retained: 0,
            dropped: 0,
            closed: Closed::Eof,
        };
        record.output = StreamName::ALL
            .into_iter()
            .map(|stream| (stream, summary(stream)))
            .collect();
        self.log.seal(Timestamp::UNIX_EPOCH, record)
    }
}

/// What a stream says at an offset, so that misplaced bytes show.
fn pattern(stream: StreamName, offset: u64, length: usize) -> Bytes {
    let at = |offset: u64| (offset.wrapping_mul(131) >> 3) as u8 ^ (offset as u8) ^ stream.index() as u8;
    let mut bytes = BytesMut::with_capacity(length);
    bytes.extend((offset..offset + length as u64).map(at));
    bytes.freeze()
}

/// A reader that checks I3 on everything it reads: numbers increase, every byte comes once or in a gap.
#[derive(Debug, Default)]
struct Checked {
    seq: u64,
    end: [u64; 3],
    output: [u64; 3],
    gaps: [u64; 3],
    terminal: bool,
}

impl Checked {
    fn take(&mut self, event: &Event) {
        assert!(!self.terminal, "I1: {event:?} after the terminal event");
        assert!(event.seq > self.seq, "numbers increase");
        self.seq = event.seq;
        match &event.body {
            EventBody::Output { stream, offset, data } => {
                let end = &mut self.end[stream.index()];
                assert_eq!(
                    *offset, *end,
                    "I3: something of {stream} was skipped or told twice"
                );
                assert!(*data == pattern(*stream, *offset, data.len()), "the wrong bytes");
                *end += data.len() as u64;
                self.output[stream.index()] += data.len() as u64;
            }
            EventBody::Gap {
                stream,
                from,
                to,
                bytes,
            } => {
                let end = &mut self.end[stream.index()];
                assert_eq!(*from, *end, "I3: something of {stream} was skipped or told twice");
                assert!(to > from);
                assert_eq!(*bytes, to - from);
                *end = *to;
                self.gaps[stream.index()] += bytes;
            }
            EventBody::Terminal { record } => {
                self.terminal = true;
                assert_eq!(record.last_seq, event.seq);
                for (stream, summary) in &record.output {
                    assert_eq!(self.end[stream.index()], summary.bytes);
                }
            }
            _ => {}
        }
    }

    /// Reads whatever is there.
    fn read_all(&mut self, cursor: &mut Cursor) -> &mut Self {
        while let Some(event) = cursor.try_next() {
            self.take(&event);
        }
        self
    }
}

/// What a cursor reads now, in short: `o0+5` output, `e0-5` a gap of stderr, `x` anything else.
fn read(cursor: &mut Cursor) -> Vec<(u64, String)> {
    let short = |stream: StreamName| &stream.as_str()[3..4];
    std::iter::from_fn(|| cursor.try_next())
        .map(|event| {
            let text = match event.body {
                EventBody::Output { stream, offset, data } => {
                    format!("{}{offset}+{}", short(stream), data.len())
                }
                EventBody::Gap { stream, from, to, .. } => format!("{}{from}-{to}", short(stream)),
                EventBody::Terminal { .. } => "end".to_owned(),
                _ => "x".to_owned(),
            };
            (event.seq, text)
        })
        .collect()
}

#[track_caller]
fn check(cursor: &mut Cursor, expected: &[(u64, &str)]) {
    let read = read(cursor);
    let read: Vec<_> = read.iter().map(|(seq, text)| (*seq, text.as_str())).collect();
    assert_eq!(read, expected);
}

/// Counts how often it is woken.
#[derive(Default)]
struct Counter(std::sync::atomic::AtomicUsize);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}

impl Counter {
    fn count(&self) -> usize {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}
