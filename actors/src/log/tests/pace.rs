//! The paced reader: nothing is dropped before it has read it, and whoever writes waits for it.

use super::*;

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
