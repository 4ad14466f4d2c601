//! What people ask for, and what is forgotten.

use super::*;

/// Processes that ended at these seconds, in this order.
async fn with(store: &Store, ends: &[i64]) -> Vec<ProcessRow> {
    let mut rows = Vec::new();
    for end in ends {
        let row = process(None);
        store.accept(row.clone()).await.unwrap();
        store.sealed(record(&row, *end), denials()).await.unwrap();
        rows.push(row);
    }
    rows
}

async fn found(store: &Store, query: RecordQuery) -> Vec<String> {
    let read = store.read(move |reader| {
        let mut ids = Vec::new();
        reader.records(&query, |row| {
            ids.push(row.process);
            true
        })?;
        Ok(ids)
    });
    read.await.unwrap()
}

#[tokio::test]
async fn each_condition_leaves_out_what_it_should_and_the_last_comes_last() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(&directory).store;
    let rows = with(&store, &[30, 10, 20]).await;
    let mut other = process(None);
    other.name = Some("other".to_owned());
    other.labels = [("job".to_owned(), "8".to_owned())].into();
    let lease = session();
    other.session = Some(lease.id);
    store.session_opened(lease.clone()).await.unwrap();
    store.accept(other.clone()).await.unwrap();
    let good = TerminalRecord {
        outcome: Outcome::TimedOut,
        succeeded: true,
        denied: false,
        ..record(&other, 40)
    };
    store.sealed(good, vec![]).await.unwrap();
    let id = |row: &ProcessRow| row.id.to_string();
    let all = RecordQuery::default();
    let [first, second, third, fourth] = [id(&rows[1]), id(&rows[2]), id(&rows[0]), id(&other)];
    assert_eq!(
        found(&store, all.clone()).await,
        [&*first, &second, &third, &fourth]
    );
    let only = |change: &dyn Fn(&mut RecordQuery)| {
        let mut query = all.clone();
        change(&mut query);
        found(&store, query)
    };
    assert_eq!(
        only(&|query| query.since = Some(at(30))).await,
        [&*third, &fourth]
    );
    assert_eq!(
        only(&|query| query.until = Some(at(30))).await,
        [&*first, &second]
    );
    assert_eq!(only(&|query| query.last = Some(2)).await, [&*third, &fourth]);
    assert_eq!(
        only(&|query| query.outcomes = vec![Outcome::TimedOut, Outcome::Lost]).await,
        [&*fourth]
    );
    assert_eq!(
        only(&|query| query.labels = other.labels.clone()).await,
        [&*fourth]
    );
    assert_eq!(
        only(&|query| query.labels = rows[0].labels.clone()).await.len(),
        3,
        "quotes and all"
    );
    assert_eq!(only(&|query| query.denied = true).await.len(), 3);
    assert_eq!(only(&|query| query.failed = true).await.len(), 3);
    for session in [
        "dev".to_owned(),
        lease.id.to_string(),
        lease.id.to_string()[24..].to_owned(),
    ] {
        assert_eq!(
            only(&|query| query.session = Some(session.clone())).await,
            [&*fourth],
            "{session}"
        );
    }
    for which in [fourth.clone(), fourth[24..].to_owned(), "other".to_owned()] {
        assert_eq!(
            only(&|query| query.processes = vec![which.clone()]).await,
            [&*fourth],
            "{which}"
        );
    }
    for nobody in ["", "%", "abc", "____", "' OR 1=1 --"] {
        let none: [&str; 0] = [];
        assert_eq!(
            only(&|query| query.processes = vec![nobody.to_owned()]).await,
            none,
            "{nobody}"
        );
        assert_eq!(
            only(&|query| query.session = Some(nobody.to_owned())).await,
            none,
            "{nobody}"
        );
    }
}

/// What the daemon does now and then.
async fn sweep(store: &Store, retention: Retention) -> Vec<ProcessId> {
    let victims = store.expired(retention).await.unwrap();
    store.forget(victims.clone()).await.unwrap();
    store.forget_sessions(retention.age_max).await.unwrap();
    victims
}

#[tokio::test]
async fn what_is_too_old_or_too_much_is_forgotten_oldest_first_and_the_rest_stays() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(&directory).store;
    // More than are deleted at once.
    let ends: Vec<i64> = (1..200).collect();
    let rows = with(&store, &ends).await;
    let live = process(None);
    store.accept(live.clone()).await.unwrap();
    let (gone, used) = (
        session(),
        SessionRow {
            id: rows[198].session.unwrap(),
            ..session()
        },
    );
    for lease in [&gone, &used] {
        store.session_opened(lease.clone()).await.unwrap();
        store
            .session_changed(lease.id, SessionState::Closed, at(1))
            .await
            .unwrap();
    }
    let age = Timestamp::now().duration_since(at(100));
    let by_age = Retention {
        age_max: age.unsigned_abs(),
        bytes_max: u64::MAX,
    };
    let ids = |rows: &[ProcessRow]| rows.iter().map(|row| row.id).collect::<Vec<_>>();
    // Time goes on: the one that ended then is older when it is looked at.
    assert_eq!(sweep(&store, by_age).await, ids(&rows[..100]));
    let sessions = store.read(|reader| {
        let count = "SELECT count(*) FROM sessions";
        Ok(reader
            .connection
            .query_row(count, [], |row| row.get::<_, i64>(0))
            .unwrap())
    });
    assert_eq!(sessions.await.unwrap(), 1, "one has a process left");
    let kept = store.read(|reader| {
        let sum = "SELECT sum(kept_bytes) FROM records";
        Ok(reader
            .connection
            .query_row(sum, [], |row| row.get::<_, i64>(0))
            .unwrap())
    });
    let kept = kept.await.unwrap().unsigned_abs();
    let by_bytes = Retention {
        age_max: Duration::MAX,
        bytes_max: kept - 1,
    };
    assert_eq!(sweep(&store, by_bytes).await, ids(&rows[100..101]));
    assert_eq!(sweep(&store, by_bytes).await, []);
    store.close().await;
    let loaded = Store::open(directory.path(), 1000).unwrap().loaded;
    assert_eq!(loaded.unsealed, [live]);
    assert_eq!(loaded.sealed.len(), 98);
}
