//! What is kept, what is dropped, and how that is told.

use super::*;

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
