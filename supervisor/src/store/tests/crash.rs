//! A process that writes is killed: what it was told is written, is there.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use super::*;

const DIRECTORY: &str = "PROVOST_TEST_STORE";

/// Writes as fast as it can, 16 at a time, and says what was acknowledged, until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the child of the test below"]
async fn child_that_writes() {
    let Some(directory) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let store = Store::open(Path::new(&directory), 0).unwrap().store;
    let say = |what: &str, id: &dyn ToString| {
        let line = format!("\n{what} {}\n", id.to_string());
        std::io::stdout().write_all(line.as_bytes()).unwrap();
    };
    let writing = (0..16).map(|_| async {
        loop {
            let row = process(None);
            store.accept(row.clone()).await.unwrap();
            say("accepted", &row.id);
            store.live(row.id).await.unwrap();
            say("live", &row.id);
            let session = session();
            store.session_opened(session.clone()).await.unwrap();
            say("opened", &session.id);
            store.sealed(record(&row, 1), denials()).await.unwrap();
            say("sealed", &row.id);
        }
    });
    futures_util::future::join_all(writing).await;
}

#[tokio::test]
async fn i8_what_was_acknowledged_survives_fifty_kills() {
    let directory = tempfile::tempdir().unwrap();
    let (mut sealed, mut sessions) = (BTreeSet::new(), BTreeSet::new());
    for kill in 0..50_usize {
        #[expect(clippy::disallowed_methods, reason = "a test of what a killed process leaves")]
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "store::tests::crash::child_that_writes",
                "--ignored",
                "--nocapture",
            ])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map(Result::unwrap);
        let wanted = |line: &String| {
            line.split_once(' ')
                .is_some_and(|(what, _)| ["accepted", "live", "opened", "sealed"].contains(&what))
        };
        // A different moment each time: in the middle of the first transaction, and far behind it.
        let count = 1 + kill * 7 % 97;
        let mut lines: Vec<String> = said.by_ref().filter(wanted).take(count).collect();
        child.kill().unwrap();
        lines.extend(said.filter(wanted));
        child.wait().unwrap();
        assert!(lines.len() >= count, "the child ended by itself: {lines:?}");
        let Opened {
            store,
            loaded,
            moved_aside,
        } = Store::open(directory.path(), usize::MAX).unwrap();
        assert_eq!(moved_aside, None);
        let unsealed: BTreeSet<String> = loaded.unsealed.iter().map(|row| row.id.to_string()).collect();
        let there: BTreeSet<String> = loaded
            .sealed
            .iter()
            .map(|row| row.process.id.to_string())
            .collect();
        let held: BTreeSet<String> = loaded.sessions.iter().map(|row| row.id.to_string()).collect();
        for line in &lines {
            match line.split_once(' ').unwrap() {
                ("sealed", id) => _ = sealed.insert(id.to_owned()),
                ("opened", id) => _ = sessions.insert(id.to_owned()),
                ("live", id) => assert!(
                    there.contains(id)
                        || loaded
                            .unsealed
                            .iter()
                            .any(|row| row.id.to_string() == id && row.state == ProcessState::Live),
                    "start {id}, kill {kill}"
                ),
                (_, id) => assert!(
                    there.contains(id) || unsealed.contains(id),
                    "process {id}, kill {kill}"
                ),
            }
        }
        assert!(sealed.is_subset(&there), "kill {kill}");
        assert!(sessions.is_subset(&held), "kill {kill}");
        if kill % 10 == 9 {
            assert_eq!(store.read(Reader::check).await.unwrap().problems, [""; 0]);
        }
        store.close().await;
    }
    assert!(sealed.len() > 50, "the children wrote");
}
