//! What durability costs: printed, for docs/performance.md.

use std::time::Instant;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: cargo test --release -p provost --lib -- --ignored --nocapture cost"]
async fn accept_and_sealed() {
    const EACH: usize = 1000;
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let store = opened(&directory).store;
    for in_flight in [1, 16, 64] {
        let work: Vec<Vec<(ProcessRow, TerminalRecord)>> = (0..in_flight)
            .map(|_| {
                let rows = (0..EACH).map(|_| process(None));
                rows.map(|row| (row.clone(), record(&row, 1))).collect()
            })
            .collect();
        let began = Instant::now();
        let tasks = work.into_iter().map(|work| {
            let store = store.clone();
            tokio::spawn(async move {
                for (row, record) in work {
                    store.accept(row).await.unwrap();
                    store.sealed(record, vec![]).await.unwrap();
                }
            })
        });
        futures_util::future::join_all(tasks).await;
        let each = began.elapsed() / u32::try_from(EACH * in_flight).unwrap();
        println!("accept and sealed, {in_flight} in flight: {each:.1?} each");
    }
}
