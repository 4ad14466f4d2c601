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

#[test]
fn readers_see_what_was_numbered_and_nothing_else() {
    let mut writer = Writer::small(100, 100);
    let mut cursor = writer.log.follow(0, false);
    writer.log.append_bytes(OUT, Bytes::from_static(b"ab"));
    check(&mut cursor, &[]);
    writer.number(OUT, 0, 2);
    writer.other();
    check(&mut cursor, &[(1, "o0+2"), (2, "x")]);
    writer.seal();
    assert!(!cursor.is_finished());
    check(&mut cursor, &[(3, "end")]);
    assert!(cursor.is_finished());
    check(&mut writer.log.follow(1, false), &[(2, "x"), (3, "end")]);
}

#[test]
fn i3_head_and_tail_are_kept_and_one_gap_tells_of_the_rest() {
    let mut writer = Writer::small(20, 20);
    for _ in 0..10 {
        writer.write(OUT, 10);
    }
    let mut cursor = writer.log.follow(0, false);
    let expected = [
        (1, "o0+10"),
        (2, "o10+10"),
        (8, "o20-80"),
        (9, "o80+10"),
        (10, "o90+10"),
    ];
    check(&mut cursor, &expected);
    assert_eq!((writer.log.retained(OUT), writer.log.dropped(OUT)), (40, 60));
    assert_eq!((writer.log.retained(ERR), writer.log.dropped(ERR)), (0, 0));
    let summary = writer.seal().output[&OUT];
    assert_eq!((summary.bytes, summary.retained, summary.dropped), (100, 40, 60));
}

#[test]
fn i3_a_reader_that_falls_behind_is_told_of_what_it_has_not_read() {
    let mut writer = Writer::small(10, 20);
    let mut cursor = writer.log.follow(0, false);
    for _ in 0..3 {
        writer.write(OUT, 10);
    }
    check(&mut cursor, &[(1, "o0+10"), (2, "o10+10"), (3, "o20+10")]);
    for _ in 0..4 {
        writer.write(OUT, 10);
    }
    writer.other();
    let expected = [(5, "o30-50"), (6, "o50+10"), (7, "o60+10"), (8, "x")];
    check(&mut cursor, &expected);
}

#[test]
fn i3_each_stream_has_its_gap_in_the_place_of_its_last_dropped_event() {
    let mut writer = Writer::small(0, 10);
    writer.write(OUT, 10);
    writer.write(ERR, 10);
    writer.write(OUT, 10);
    writer.other();
    writer.write(ERR, 10);
    writer.write(OUT, 10);
    let expected = [(2, "e0-10"), (3, "o0-20"), (4, "x"), (5, "e10+10"), (6, "o20+10")];
    check(&mut writer.log.follow(0, false), &expected);
}

#[test]
fn i3_what_the_ledger_knows_to_be_missing_is_a_gap_too_and_so_are_bytes_that_never_came() {
    let mut writer = Writer::small(100, 100);
    writer.write(OUT, 5);
    writer.log.append_bytes(OUT, pattern(OUT, 5, 5));
    writer.event(DraftBody::Gap {
        stream: OUT,
        from: 5,
        to: 10,
    });
    writer.write(OUT, 5);
    writer.number(ERR, 0, 7);
    writer.number(OUT, 15, u64::MAX);
    let expected = [
        (1, "o0+5"),
        (2, "o5-10"),
        (3, "o10+5"),
        (4, "e0-7"),
        (5, "o15-18446744073709551615"),
    ];
    check(&mut writer.log.follow(0, false), &expected);
    assert_eq!(writer.log.retained(OUT), 10);
}

#[test]
fn i1_nothing_follows_the_seal() {
    let mut writer = Writer::small(100, 100);
    writer.write(OUT, 5);
    writer.log.append_bytes(OUT, Bytes::from(vec![0; 10_000]));
    let record = writer.seal();
    writer.seq += 1;
    writer.write_ignored();
    assert!(Arc::ptr_eq(&writer.seal(), &record), "the first record stands");
    assert_eq!(writer.log.record(), Some(record));
    let mut cursor = writer.log.follow(0, false);
    check(&mut cursor, &[(1, "o0+5"), (2, "end")]);
    let (bytes, ..) = writer.log.lock().streams[OUT.index()].held();
    assert_eq!(bytes, 5, "what was never numbered is forgotten");
}

impl Writer {
    fn write_ignored(&mut self) {
        let offset = self.log.append_bytes(OUT, Bytes::from_static(b"late"));
        self.number(OUT, offset, 4);
    }
}

#[test]
fn large_pieces_are_passed_through_without_copying() {
    let mut writer = Writer::small(1 << 20, 1 << 20);
    let piece = pattern(OUT, 0, 64 << 10);
    writer.log.append_bytes(OUT, piece.clone());
    writer.number(OUT, 0, 10);
    writer.number(OUT, 10, (64 << 10) - 10);
    let mut cursor = writer.log.follow(0, false);
    for offset in [0, 10] {
        let Some(EventBody::Output { data, .. }) = cursor.try_next().map(|event| event.body) else {
            panic!("output expected");
        };
        assert_eq!(data.as_ptr(), piece[offset..].as_ptr());
    }
}

#[test]
fn one_event_may_join_pieces() {
    let mut writer = Writer::small(1 << 20, 1 << 20);
    let mut from = 0;
    for length in [3, 5000, 7, 9000, 4] {
        writer.log.append_bytes(OUT, pattern(OUT, from, length));
        from += length as u64;
    }
    writer.number(OUT, 0, from);
    let mut checked = Checked::default();
    checked.read_all(&mut writer.log.follow(0, false));
    assert_eq!(checked.output[OUT.index()], from);
}

#[test]
fn memory_is_bounded_for_the_smallest_writes() {
    let limits = LogLimits {
        head_bytes: 1 << 20,
        tail_bytes: 1 << 20,
        events_max: 1000,
    };
    let mut writer = Writer::new(limits);
    let mut live = writer.log.follow(0, false);
    let mut checked = Checked::default();
    for round in 0..100_000 {
        writer.write(OUT, 1);
        if round % 3 == 0 {
            checked.read_all(&mut live);
        }
    }
    let (bytes, chunks, events) = writer.log.lock().streams[OUT.index()].held();
    assert_eq!(events, 1000);
    assert!(bytes <= 1000 + (8 << 10), "{bytes}");
    assert!(chunks <= 1001, "{chunks}");
    assert_eq!(checked.read_all(&mut live).gaps, [0; 3], "a reader that keeps up");
}

#[test]
fn small_pieces_that_nobody_looks_at_share_their_chunks() {
    let writer = Writer::small(0, 0);
    for offset in 0..100_000 {
        writer.log.append_bytes(OUT, pattern(OUT, offset, 1));
    }
    let (bytes, chunks, _) = writer.log.lock().streams[OUT.index()].held();
    assert_eq!(bytes, 100_000);
    assert!(chunks <= 100_000 / (8 << 10) + 1, "{chunks}");
}

#[test]
fn a_flood_that_nobody_reads_holds_no_more_than_the_limits() {
    let mut writer = Writer::small(1 << 20, 2 << 20);
    for _ in 0..1000 {
        writer.write(OUT, 64 << 10);
        let (bytes, ..) = writer.log.lock().streams[OUT.index()].held();
        assert!(bytes <= 3 << 20, "{bytes}");
    }
    assert_eq!(writer.log.retained(OUT), 3 << 20);
    assert_eq!(writer.log.dropped(OUT), (1000 * (64 << 10)) - (3 << 20));
}

#[test]
fn i3_the_paced_reader_loses_nothing_and_the_record_says_what_remains_after_it() {
    let mut writer = Writer::small(10, 10);
    let mut paced = writer.log.follow(0, true);
    assert!(paced.is_paced());
    assert!(!writer.log.follow(0, true).is_paced(), "one at most");
    for _ in 0..5 {
        writer.write(OUT, 10);
    }
    assert_eq!((writer.log.retained(OUT), writer.log.dropped(OUT)), (20, 30));
    let summary = writer.seal().output[&OUT];
    assert_eq!((summary.retained, summary.dropped), (20, 30));
    let mut checked = Checked::default();
    checked.read_all(&mut paced);
    assert_eq!(checked.output[OUT.index()], 50);
    assert!(checked.terminal);
    // Behind it, retention holds.
    let expected = [(1, "o0+10"), (4, "o10-40"), (5, "o40+10"), (6, "end")];
    check(&mut writer.log.follow(0, false), &expected);
    assert_eq!((writer.log.retained(OUT), writer.log.dropped(OUT)), (20, 30));
}

#[test]
fn i3_a_reader_for_whom_the_pace_is_kept_misses_nothing_though_it_comes_late() {
    let mut writer = Writer::small(10, 10);
    writer.log.reserve_pace();
    for _ in 0..5 {
        writer.write(OUT, 10);
    }
    assert!(!writer.log.follow(0, false).is_paced(), "it did not ask");
    let mut late = writer.log.follow(0, true);
    assert!(late.is_paced());
    assert!(!writer.log.follow(0, true).is_paced(), "one at most");
    writer.seal();
    let mut checked = Checked::default();
    checked.read_all(&mut late);
    assert_eq!(checked.output[OUT.index()], 50);
    drop(late);
    assert_eq!(writer.log.retained(OUT), 20);
}

#[test]
fn dropping_the_paced_reader_releases_what_it_held() {
    let mut writer = Writer::small(0, 5000);
    let held = |log: &Log| log.lock().streams[OUT.index()].held().0;
    let paced = writer.log.follow(0, true);
    for _ in 0..5 {
        writer.write(OUT, 5000);
    }
    assert_eq!(held(&writer.log), 25_000);
    drop(paced);
    assert_eq!(held(&writer.log), 5000);
    check(
        &mut writer.log.follow(0, false),
        &[(4, "o0-20000"), (5, "o20000+5000")],
    );
    assert!(writer.log.follow(0, true).is_paced(), "the place is free again");
}

#[test]
fn there_is_room_until_the_paced_reader_lags_and_again_at_half_the_window() {
    let mut writer = Writer::small(0, 0);
    let counter = Arc::new(Counter::default());
    let waker = Waker::from(Arc::clone(&counter));
    let mut cx = Context::from_waker(&waker);
    let log = Arc::clone(&writer.log);
    let mut poll = |room: &mut Room<'_>| std::pin::Pin::new(room).poll(&mut cx).is_ready();

    writer.write(OUT, 10_000);
    assert!(
        poll(&mut log.room(OUT, 100)),
        "without a paced reader there is always room"
    );
    let mut paced = writer.log.follow(writer.seq, true);
    assert!(poll(&mut log.room(OUT, 100)), "it has read what was there");

    for _ in 0..10 {
        writer.write(OUT, 1000);
    }
    assert!(poll(&mut log.room(ERR, 100)), "each stream has its own window");
    assert!(poll(&mut log.room(OUT, 10_640)), "events count a little too");
    assert!(!poll(&mut log.room(OUT, 10_639)));
    assert!(!log.is_held());
    let mut room = log.room(OUT, 6000);
    assert!(!poll(&mut room));
    assert!(log.is_held());
    for _ in 0..7 {
        assert!(!poll(&mut room));
        paced.try_next();
    }
    assert_eq!(counter.count(), 0, "not woken before half the window");
    paced.try_next();
    assert_eq!(counter.count(), 1);
    assert!(log.is_held(), "it has not run yet");
    assert!(poll(&mut room));
    drop(room);
    assert!(!log.is_held());

    let mut room = log.room(OUT, 0);
    assert!(!poll(&mut room));
    drop(paced);
    assert_eq!(counter.count(), 2, "nobody reads, nobody waits");
    assert!(poll(&mut room));
}

#[test]
fn unnumbered_pieces_count_against_the_window_however_small() {
    let writer = Writer::small(0, 0);
    let _paced = writer.log.follow(0, true);
    for offset in 0..100 {
        writer.log.append_bytes(OUT, pattern(OUT, offset, 1));
    }
    assert_eq!(writer.log.lock().lag(OUT), 100 * 65);
}

#[test]
fn the_seal_wakes_whoever_waits_for_anything() {
    let mut writer = Writer::small(0, 0);
    let counter = Arc::new(Counter::default());
    let waker = Waker::from(Arc::clone(&counter));
    let mut cx = Context::from_waker(&waker);
    let log = Arc::clone(&writer.log);
    let _paced = writer.log.follow(0, true);
    writer.write(OUT, 10);
    let mut room = log.room(OUT, 0);
    assert!(std::pin::Pin::new(&mut room).poll(&mut cx).is_pending());
    let mut sealed = Box::pin(log.sealed());
    assert!(sealed.as_mut().poll(&mut cx).is_pending());
    let mut cursor = log.follow(1, false);
    assert!(std::pin::Pin::new(&mut cursor).poll_next(&mut cx).is_pending());

    let record = writer.seal();
    assert_eq!(counter.count(), 3);
    assert!(std::pin::Pin::new(&mut room).poll(&mut cx).is_ready());
    assert!(matches!(sealed.as_mut().poll(&mut cx), Poll::Ready(seen) if Arc::ptr_eq(&seen, &record)));
    let last = std::pin::Pin::new(&mut cursor).poll_next(&mut cx);
    assert!(matches!(last, Poll::Ready(Some(event)) if event.seq == record.last_seq));
    let end = std::pin::Pin::new(&mut cursor).poll_next(&mut cx);
    assert!(matches!(end, Poll::Ready(None)));
}

#[test]
fn a_future_that_is_dropped_leaves_nothing_behind_and_loses_nothing() {
    let mut writer = Writer::small(100, 100);
    let mut cx = Context::from_waker(Waker::noop());
    let log = Arc::clone(&writer.log);
    let mut cursor = log.follow(0, true);
    for _ in 0..10 {
        assert!(Box::pin(cursor.next()).as_mut().poll(&mut cx).is_pending());
        assert!(Box::pin(log.sealed()).as_mut().poll(&mut cx).is_pending());
    }
    assert_eq!(log.lock().readers.len(), 1, "the cursor itself, once");
    writer.write(OUT, 5);
    assert_eq!(log.lock().readers.len(), 0);
    let mut room = log.room(OUT, 0);
    assert!(std::pin::Pin::new(&mut room).poll(&mut cx).is_pending());
    assert_eq!(log.lock().writers.len(), 1);
    drop(room);
    assert_eq!(log.lock().writers.len(), 0);
    check(&mut cursor, &[(1, "o0+5")]);
    assert!(Box::pin(cursor.next()).as_mut().poll(&mut cx).is_pending());
    drop(cursor);
    assert_eq!(log.lock().readers.len(), 0);
}

#[test]
fn limits_keep_what_they_say() {
    let limits = LogLimits::keeping(1000);
    assert_eq!(limits.head_bytes + limits.tail_bytes, 1000);
    assert_eq!(LogLimits::keeping(0).piece_bytes_max(), 512);
    assert_eq!(LogLimits::default().piece_bytes_max(), 256 << 10);
    assert_eq!(LogLimits::keeping(u64::MAX).piece_bytes_max(), 256 << 10);
    let small = LogLimits::keeping(64 << 10);
    assert!(small.piece_bytes_max() as u64 <= small.head_bytes);
}

/// What a reader from the beginning finds of a stream: the bytes that are there, and those that are told as gaps.
fn found(log: &Arc<Log>) -> (u64, u64) {
    let mut cursor = log.follow(0, false);
    let (mut end, mut there, mut missing) = (0, 0, 0);
    while let Some(event) = cursor.try_next() {
        match event.body {
            EventBody::Output { offset, data, .. } => {
                assert_eq!(offset, end);
                assert_eq!(data, pattern(OUT, offset, data.len()));
                end += data.len() as u64;
                there += data.len() as u64;
            }
            EventBody::Gap { from, to, bytes, .. } => {
                assert_eq!((from, bytes), (end, to - from));
                (end, missing) = (to, missing + bytes);
            }
            _ => {}
        }
    }
    (there, missing)
}

#[test]
fn i3_what_is_evicted_is_told_as_a_gap_and_goes_from_the_tail_first() {
    let mut writer = Writer::small(100, 100);
    for _ in 0..20 {
        writer.write(OUT, 10);
    }
    let log = writer.log.clone();
    assert_eq!(found(&log), (200, 0));
    assert_eq!(log.evict(25, Timestamp::MAX), 30);
    assert_eq!(found(&log), (170, 30));
    assert_eq!(log.evict(1, Timestamp::MIN), 0, "none of it is so old");
    // The tail is gone, and half of the head.
    assert_eq!(log.evict(120, Timestamp::MAX), 120);
    assert_eq!(found(&log), (50, 150));
    assert_eq!(log.retained(OUT), 50);
    writer.write(OUT, 10);
    assert_eq!(found(&log), (60, 150));
    assert_eq!(log.evict(u64::MAX, Timestamp::MAX), 60);
    assert_eq!((found(&log), log.evictable()), ((0, 210), None));
    let held = log.lock().streams[OUT.index()].held();
    assert!(held.0 <= 20, "{held:?}");
    writer.write(OUT, 10);
    assert_eq!(found(&log), (10, 210));
}

#[test]
fn i3_a_head_that_is_not_full_can_be_evicted_and_a_paced_reader_is_spared() {
    let mut writer = Writer::small(100, 100);
    let log = writer.log.clone();
    let mut paced = log.follow(0, true);
    for _ in 0..5 {
        writer.write(OUT, 10);
    }
    assert_eq!((log.evictable(), log.evict(10, Timestamp::MAX)), (None, 0));
    while paced.try_next().is_some() {}
    assert_eq!(log.evict(20, Timestamp::MAX), 20);
    assert_eq!(found(&log), (30, 20));
    for _ in 0..20 {
        writer.write(OUT, 10);
    }
    assert_eq!(found(&log), (230, 20), "the paced reader has not read them");
    drop(paced);
    assert_eq!(found(&log), (130, 120));
}

#[test]
fn the_end_of_what_is_kept_is_found_without_reading_it_all() {
    let mut writer = Writer::small(100, 100);
    let log = writer.log.clone();
    for _ in 0..5 {
        writer.write(OUT, 10);
        writer.write(ERR, 10);
        writer.other();
    }
    // 15 events, the last three of which are 13, 14 and 15.
    assert_eq!(log.before_tail(0), 15);
    assert_eq!(log.before_tail(1), 13);
    assert_eq!(log.before_tail(20), 12);
    assert_eq!(log.before_tail(21), 10);
    assert_eq!(log.before_tail(100), 0);
    assert_eq!(log.before_tail(u64::MAX), 0);
    writer.seal();
    assert_eq!(log.before_tail(0), 15, "the record is behind it");
}
