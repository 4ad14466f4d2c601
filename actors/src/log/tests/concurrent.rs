//! Writers and readers at the same time.

use super::*;

const PIECE: usize = 5000;
const PIECES: u64 = 600;

/// A test that hangs has failed.
async fn in_time<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(120), future)
        .await
        .expect("somebody was not woken")
}

async fn read_to_end(mut cursor: Cursor, mut pause: impl AsyncFnMut()) -> Checked {
    let mut checked = Checked::default();
    while let Some(event) = cursor.next().await {
        checked.take(&event);
        pause().await;
    }
    assert!(checked.terminal, "the stream ended without a terminal event");
    checked
}

/// Reads slowly: lets everybody else go first, many times.
async fn yield_often() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn i3_a_slow_reader_is_told_of_gaps_and_holds_nobody() {
    let mut writer = Writer::small(50_000, 100_000);
    let log = Arc::clone(&writer.log);
    let slow = tokio::spawn(read_to_end(log.follow(0, false), yield_often));
    let fast: Vec<_> = (0..3)
        .map(|_| tokio::spawn(read_to_end(log.follow(0, false), async || {})))
        .collect();
    // This reader reads nothing at all until the end.
    let stuck = log.follow(0, false);
    let writing = tokio::spawn(async move {
        for piece in 0..PIECES {
            writer.write(if piece % 3 == 0 { ERR } else { OUT }, PIECE);
            if piece % 16 == 0 {
                tokio::task::yield_now().await;
            }
        }
        writer.seal()
    });
    let record = in_time(log.sealed()).await;
    assert!(Arc::ptr_eq(&record, &in_time(writing).await.unwrap()));
    let total = PIECES * PIECE as u64;
    for reader in fast.into_iter().chain([slow]) {
        let checked = in_time(reader).await.unwrap();
        assert_eq!(checked.end.iter().sum::<u64>(), total);
    }
    let checked = in_time(read_to_end(stuck, async || {})).await;
    assert_eq!(checked.output[OUT.index()], 150_000, "head and tail remain");
    assert_eq!(checked.output[ERR.index()], 150_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn i3_a_paced_reader_gets_every_byte_while_others_lag() {
    // Two stream actors with a window each, and the process actor that numbers what they say.
    const WINDOW: u64 = 50_000;
    let writer = Writer::small(20_000, 20_000);
    let log = Arc::clone(&writer.log);
    let (facts, mut mailbox) = tokio::sync::mpsc::unbounded_channel();
    for stream in [OUT, ERR] {
        let (log, facts) = (Arc::clone(&log), facts.clone());
        tokio::spawn(async move {
            for piece in 0..PIECES {
                log.room(stream, WINDOW).await;
                // Small and large pieces in turn.
                let length = if piece % 2 == 0 { PIECE } else { 7 };
                let from = log.lock().streams[stream.index()].appended();
                let offset = log.append_bytes(stream, pattern(stream, from, length));
                facts.send((stream, offset, length as u64)).unwrap();
            }
        });
    }
    drop(facts);
    let mut process = writer;
    tokio::spawn(async move {
        while let Some((stream, offset, length)) = mailbox.recv().await {
            process.number(stream, offset, length);
            for stream in [OUT, ERR] {
                let (bytes, ..) = process.log.lock().streams[stream.index()].held();
                assert!(
                    (bytes as u64) < 40_000 + WINDOW + 2 * PIECE as u64,
                    "{bytes} held"
                );
            }
        }
        process.seal();
    });
    let lagging = tokio::spawn(read_to_end(log.follow(0, false), yield_often));
    let checked = in_time(read_to_end(log.follow(0, true), yield_often)).await;
    let each = PIECES / 2 * (PIECE as u64 + 7);
    assert_eq!(checked.gaps, [0; 3], "nothing was lost");
    assert_eq!(checked.output, [each, each, 0]);
    let checked = in_time(lagging).await.unwrap();
    assert_eq!(checked.end, [each, each, 0]);
}
