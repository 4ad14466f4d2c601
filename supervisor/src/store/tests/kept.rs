//! What was written is there afterwards, once, whatever is repeated.

use super::*;

#[tokio::test]
async fn what_was_written_comes_back_identical_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(&directory).store;
    let (live, ended, session) = (process(Some(("r1", "a"))), process(None), session());
    store.session_opened(session.clone()).await.unwrap();
    assert_eq!(store.accept(live.clone()).await.unwrap(), Acceptance::Accepted);
    store.accept(ended.clone()).await.unwrap();
    store.live(live.id).await.unwrap();
    let record = record(&ended, 2);
    store.sealed(record.clone(), denials()).await.unwrap();
    store.close().await;
    let Opened {
        store,
        loaded,
        moved_aside,
    } = opened(&directory);
    assert_eq!(moved_aside, None);
    let state = |process: &ProcessRow, state| ProcessRow {
        state,
        ..process.clone()
    };
    let sealed = SealedProcess {
        process: state(&ended, ProcessState::Sealed),
        record,
    };
    let expected = Loaded {
        sessions: vec![session],
        unsealed: vec![state(&live, ProcessState::Live)],
        sealed: vec![sealed.clone()],
    };
    assert_eq!(loaded, expected);
    assert_eq!(store.sealed_process(ended.id).await.unwrap(), Some(sealed));
    assert_eq!(store.sealed_process(live.id).await.unwrap(), None);
}

#[tokio::test]
async fn a_repeated_request_is_told_its_process_and_another_one_of_that_id_is_a_conflict() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(&directory).store;
    let first = process(Some(("r1", "a")));
    assert_eq!(store.accept(first.clone()).await.unwrap(), Acceptance::Accepted);
    // The same call once more, after a crash for example.
    assert_eq!(store.accept(first.clone()).await.unwrap(), Acceptance::Accepted);
    let same = store.accept(process(Some(("r1", "a")))).await.unwrap();
    assert_eq!(same, Acceptance::Repeated(first.id));
    let other = store.accept(process(Some(("r1", "b")))).await.unwrap();
    assert_eq!(other, Acceptance::Conflict(first.id));
    let found = store.read(|reader| reader.requested("r1")).await.unwrap();
    assert_eq!(found, Some(first.clone()));
    store.forget(vec![first.id]).await.unwrap();
    let anew = store.accept(process(Some(("r1", "b")))).await.unwrap();
    assert_eq!(anew, Acceptance::Accepted, "what is forgotten is in nobody's way");
}

#[tokio::test]
async fn i1_a_record_is_sealed_once_and_the_first_one_holds() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(&directory).store;
    let row = process(None);
    // Without a row of its own: as when the database is made anew.
    let first = record(&row, 2);
    store.sealed(first.clone(), denials()).await.unwrap();
    store.sealed(first.clone(), denials()).await.unwrap();
    let other = record(&row, 3);
    let refused = store.sealed(other, vec![]).await;
    assert!(matches!(refused, Err(StoreError::RecordDiffers(id)) if id == row.id));
    // What comes late takes nothing back.
    store.live(row.id).await.unwrap();
    store.accept(row.clone()).await.unwrap();
    let there = store.sealed_process(row.id).await.unwrap().unwrap();
    assert_eq!((there.record, there.process.state), (first, ProcessState::Sealed));
    let count = |sql: &'static str| {
        store.read(move |reader| {
            Ok(reader
                .connection
                .query_row(sql, [], |row| row.get::<_, i64>(0))
                .unwrap())
        })
    };
    assert_eq!(count("SELECT count(*) FROM records").await.unwrap(), 1);
    assert_eq!(count("SELECT count(*) FROM denials").await.unwrap(), 2);
    store.forget(vec![row.id]).await.unwrap();
    assert_eq!(count("SELECT count(*) FROM records").await.unwrap(), 0);
    assert_eq!(count("SELECT count(*) FROM denials").await.unwrap(), 0);
}

#[tokio::test]
async fn i1_one_write_that_is_refused_spoils_none_that_is_committed_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(&directory).store;
    let bad = process(None);
    store.sealed(record(&bad, 1), vec![]).await.unwrap();
    let good: Vec<ProcessRow> = (0..20).map(|_| process(None)).collect();
    let mut writes: Vec<_> = good
        .iter()
        .map(|row| store.sealed(record(row, 2), vec![]))
        .collect();
    writes.insert(10, store.sealed(record(&bad, 3), vec![]));
    let results = futures_util::future::join_all(writes).await;
    let failed: Vec<usize> = (0..results.len()).filter(|at| results[*at].is_err()).collect();
    assert_eq!(failed, [10]);
    store.close().await;
    assert_eq!(opened(&directory).loaded.sealed.len(), 21);
}

#[tokio::test]
async fn a_session_that_was_closed_stays_so_and_later_news_hold() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(&directory).store;
    let (held, closed) = (session(), session());
    store.session_opened(held.clone()).await.unwrap();
    store.session_opened(closed.clone()).await.unwrap();
    store
        .session_changed(held.id, SessionState::Detached, at(5))
        .await
        .unwrap();
    store
        .session_changed(held.id, SessionState::Attached, at(4))
        .await
        .unwrap();
    store
        .session_changed(closed.id, SessionState::Closed, at(6))
        .await
        .unwrap();
    store
        .session_changed(closed.id, SessionState::Attached, at(7))
        .await
        .unwrap();
    store.session_opened(closed).await.unwrap();
    store.close().await;
    let expected = SessionRow {
        state: SessionState::Detached,
        changed_at: at(5),
        ..held
    };
    assert_eq!(opened(&directory).loaded.sessions, [expected]);
}
