//! Any sequence of calls, with losses of the daemon in between, against what it should come to.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, Copy)]
enum Step {
    Accept(usize),
    Live(usize),
    Seal(usize, i64),
    Forget(usize),
    Open(usize),
    Change(usize, u8, i64),
    /// Dropped without a word; the next one opens it while the old thread may still be at work.
    Lose,
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..6_usize;
    prop_oneof![
        4 => which.clone().prop_map(Step::Accept),
        2 => which.clone().prop_map(Step::Live),
        3 => (which.clone(), 0..3_i64).prop_map(|(which, at)| Step::Seal(which, at)),
        1 => which.clone().prop_map(Step::Forget),
        2 => which.clone().prop_map(Step::Open),
        2 => (which, 0..3_u8, 0..9_i64).prop_map(|(which, state, at)| Step::Change(which, state, at)),
        1 => Just(Step::Lose),
    ]
}

type Processes = BTreeMap<usize, (ProcessState, Option<i64>)>;
type Sessions = BTreeMap<usize, (SessionState, i64)>;

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn i1_i8_the_database_is_what_was_acknowledged(steps in proptest::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(check(&steps));
    }
}

async fn check(steps: &[Step]) {
    let directory = tempfile::tempdir().unwrap();
    // Two have the same request id, and want the same; a third wants something else.
    let rows: Vec<ProcessRow> = (0..6)
        .map(|which| {
            process(
                [
                    Some(("r", "a")),
                    Some(("r", "a")),
                    Some(("r", "b")),
                    None,
                    None,
                    None,
                ][which],
            )
        })
        .collect();
    let leases: Vec<SessionRow> = (0..6).map(|_| session()).collect();
    let (mut processes, mut sessions) = (Processes::new(), Sessions::new());
    // Rows that hold the request id; one that came of a record alone has none.
    let mut asked: Option<usize> = None;
    let mut store = opened(&directory).store;
    for step in steps {
        match *step {
            Step::Accept(which) => {
                let known = processes.contains_key(&which);
                let other = asked.filter(|_| which < 3 && !known);
                let expected = match other {
                    Some(other) if (other == 2) == (which == 2) => Acceptance::Repeated(rows[other].id),
                    Some(other) => Acceptance::Conflict(rows[other].id),
                    None => Acceptance::Accepted,
                };
                assert_eq!(store.accept(rows[which].clone()).await.unwrap(), expected);
                if other.is_none() && !known {
                    processes.insert(which, (ProcessState::Accepted, None));
                    asked = asked.or((which < 3).then_some(which));
                }
            }
            Step::Live(which) => {
                store.live(rows[which].id).await.unwrap();
                if let Some((state @ ProcessState::Accepted, _)) = processes.get_mut(&which) {
                    *state = ProcessState::Live;
                }
            }
            Step::Seal(which, ended) => {
                let sealed = store.sealed(record(&rows[which], ended), denials()).await;
                let first = processes.entry(which).or_insert((ProcessState::Sealed, None));
                first.0 = ProcessState::Sealed;
                let first = *first.1.get_or_insert(ended);
                assert_eq!(sealed.is_ok(), first == ended, "{sealed:?}");
            }
            Step::Forget(which) => {
                store.forget(vec![rows[which].id]).await.unwrap();
                processes.remove(&which);
                asked = asked.filter(|asked| *asked != which);
            }
            Step::Open(which) => {
                store.session_opened(leases[which].clone()).await.unwrap();
                sessions.entry(which).or_insert((SessionState::Attached, 0));
            }
            Step::Change(which, state, time) => {
                let state = [
                    SessionState::Attached,
                    SessionState::Detached,
                    SessionState::Closed,
                ][usize::from(state)];
                store
                    .session_changed(leases[which].id, state, at(time))
                    .await
                    .unwrap();
                if let Some(there) = sessions.get_mut(&which)
                    && there.0 != SessionState::Closed
                    && (time >= there.1 || state == SessionState::Closed)
                {
                    *there = (state, time);
                }
            }
            Step::Lose => store = opened(&directory).store,
        }
    }
    drop(store);
    let Opened { store, loaded, .. } = opened(&directory);
    let which = |id| rows.iter().position(|row| row.id == id).unwrap();
    let mut there = Processes::new();
    for row in &loaded.unsealed {
        there.insert(which(row.id), (row.state, None));
    }
    for row in &loaded.sealed {
        let ended = (0..3).find(|ended| at(*ended) == row.record.ended_at);
        assert_eq!(row.record, record(&rows[which(row.process.id)], ended.unwrap()));
        there.insert(which(row.process.id), (row.process.state, ended));
    }
    assert_eq!(there, processes);
    let held: Sessions = loaded
        .sessions
        .iter()
        .map(|row| {
            let at = (0..9).find(|second| at(*second) == row.changed_at).unwrap();
            (
                leases.iter().position(|lease| lease.id == row.id).unwrap(),
                (row.state, at),
            )
        })
        .collect();
    sessions.retain(|_, (state, _)| *state != SessionState::Closed);
    assert_eq!(held, sessions);
    assert_eq!(store.read(Reader::check).await.unwrap().problems, [""; 0]);
}
