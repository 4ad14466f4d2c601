//! What readers see, and how they wait for it.

use super::*;

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
