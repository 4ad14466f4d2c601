//! `provost records` and `provost db`, on a database that was made through the library.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use provost::store::{DATABASE_NAME, DenialRow, ProcessRow, ProcessState, SCHEMA_VERSION, Store};
use provost::{
    Certainty, Decision, Denial, DenialClass, DenialSummary, DenialTarget, Outcome, ProcessId,
    TerminalRecord, TreeSummary,
};
use provost_tests::provost;
use serde_json::Value;
use tempfile::TempDir;

/// A database with three records: of `make` (exit 0, an hour ago), `curl` (denied) and `sleep` (timed out, now).
struct Recorded {
    directory: TempDir,
    records: Vec<TerminalRecord>,
    store: Store,
}

impl Recorded {
    async fn new() -> Self {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let store = Store::open(directory.path(), 0).unwrap().store;
        let mut records = Vec::new();
        for (command, outcome, exit_code, age_s) in [
            (vec!["make", "-j4"], Outcome::Exited, Some(0), 3600),
            (
                vec!["curl", "http://192.0.2.1/ \u{1b}[2J, \"x\"\n"],
                Outcome::Exited,
                Some(7),
                1800,
            ),
            (vec!["sleep", "100"], Outcome::TimedOut, None, 0),
        ] {
            let denied = command[0] == "curl";
            let ended_at = (jiff::Timestamp::now() - jiff::SignedDuration::from_secs(age_s))
                .round(jiff::Unit::Microsecond);
            let ended_at = ended_at.unwrap();
            let row = ProcessRow {
                id: ProcessId::new(),
                session: None,
                name: Some(command[0].to_owned()),
                labels: [("job".to_owned(), command[0].to_owned())].into(),
                argv: command.iter().map(|&word| word.to_owned()).collect(),
                cwd: Some("/".to_owned()),
                policy: Some("workspace-write".to_owned()),
                confined: false,
                request: None,
                queued_at: Some(ended_at),
                boot_id: None,
                state: ProcessState::Accepted,
            };
            let record = TerminalRecord {
                schema: 1,
                process: row.id,
                session: None,
                labels: row.labels.clone(),
                argv: row.argv.clone(),
                outcome,
                reason: None,
                exit_code,
                signal: None,
                succeeded: exit_code == Some(0),
                denied,
                queued_at: row.queued_at,
                started_at: row.queued_at,
                ended_at,
                duration_ms: 1234,
                result: None,
                result_error: None,
                output: [].into(),
                denials: DenialSummary {
                    total: u64::from(denied),
                    by_class: [].into(),
                    first: vec![],
                    probes: [].into(),
                    complete: true,
                    unobserved: vec![],
                },
                approvals: provost::ApprovalSummary::default(),
                usage: None,
                tree: TreeSummary::default(),
                sandbox: None,
                last_seq: 5,
            };
            let denial = DenialRow {
                seq: 2,
                time: ended_at,
                denial: Denial {
                    class: DenialClass::Network,
                    operation: "connect".to_owned(),
                    target: DenialTarget::inet("192.0.2.1".parse().unwrap(), 80, "tcp"),
                    pid: None,
                    comm: None,
                    rule: "net = off".to_owned(),
                    errno: "EACCES".to_owned(),
                    certainty: Certainty::Observed,
                    decision: Decision::Deny,
                    allow: None,
                },
            };
            store.accept(row).await.unwrap();
            let denials = if denied { vec![denial] } else { vec![] };
            store.sealed(record.clone(), denials).await.unwrap();
            records.push(record);
        }
        Self {
            directory,
            records,
            store,
        }
    }

    fn id(&self, index: usize) -> String {
        self.records[index].process.to_string()
    }

    fn run(&self, words: &[&str]) -> Output {
        run_in(self.directory.path(), words)
    }

    fn database(&self) -> PathBuf {
        self.directory.path().join(DATABASE_NAME)
    }
}

fn run_in(state_dir: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(provost());
    command
        .args(words)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("PROVOST_STATE_DIR", state_dir);
    command
        .env("HOME", "/nonexistent")
        .output()
        .expect("provost runs")
}

fn text(output: &Output) -> String {
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn i1_records_come_out_whole_and_as_they_were_sealed_while_the_database_is_in_use() {
    let recorded = Recorded::new().await;
    let json = text(&recorded.run(&["records", "--json"]));
    let printed: Vec<TerminalRecord> = serde_json::from_str(&json).unwrap();
    assert_eq!(printed, recorded.records, "oldest first, the last one last");
    // And after a daemon that is gone.
    recorded.store.close().await;
    assert_eq!(
        text(&run_in(recorded.directory.path(), &["records", "--json"])),
        json
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_flag_leaves_out_what_it_says() {
    let recorded = Recorded::new().await;
    let [make, curl, sleep] = [recorded.id(0), recorded.id(1), recorded.id(2)];
    for (flags, expected) in [
        (&[][..], vec![&make, &curl, &sleep]),
        (&["--since", "45m"], vec![&curl, &sleep]),
        (&["--until", "45m"], vec![&make]),
        (
            &[
                "--since",
                "2020-01-02T00:00:00Z",
                "--until",
                "2020-01-03T00:00:00Z",
            ],
            vec![],
        ),
        (&["--outcome", "timed_out"], vec![&sleep]),
        (&["--label", "job=make"], vec![&make]),
        (&["--denied"], vec![&curl]),
        (&["--failed"], vec![&curl, &sleep]),
        (&["--limit", "1"], vec![&sleep]),
        (&["--session", "none"], vec![]),
        (&["curl", &make[24..]], vec![&make, &curl]),
    ] {
        let printed = text(&recorded.run(&[&["records", "-q"], flags].concat()));
        assert_eq!(printed.lines().collect::<Vec<_>>(), expected, "{flags:?}");
    }
    let absent = recorded.run(&["records", "-q", "make", "wget"]);
    assert_eq!(absent.status.code(), Some(125));
    assert_eq!(String::from_utf8_lossy(&absent.stdout).trim_end(), make);
    assert!(String::from_utf8_lossy(&absent.stderr).contains("no record of `wget`"));
    assert_eq!(
        recorded.run(&["records", "--outcome", "well"]).status.code(),
        Some(125)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn i10_tables_and_csv_keep_what_a_program_is_called_in_its_cell() {
    let recorded = Recorded::new().await;
    let table = text(&recorded.run(&["records"]));
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(lines.len(), 4, "{table}");
    assert!(lines.iter().all(|cells| cells.len() == 7), "{table}");
    assert_eq!(
        lines[2][..4],
        [recorded.id(1).as_str(), "curl", "exited 7", "1"],
        "{table}"
    );
    assert!(!table.contains('\u{1b}'), "{table:?}");
    let csv = text(&recorded.run(&["records", "--csv"]));
    let python =
        "import csv, json, sys; print(json.dumps(list(csv.DictReader(open(sys.argv[1], newline='')))))";
    let file = recorded.directory.path().join("records.csv");
    std::fs::write(&file, csv).unwrap();
    let read = Command::new("python3")
        .args(["-c", python])
        .arg(&file)
        .output()
        .unwrap();
    let rows: Value = serde_json::from_slice(&read.stdout).unwrap();
    let command = rows[1]["command"].as_str().unwrap();
    assert_eq!(command, "curl 'http://192.0.2.1/ \u{1b}[2J, \"x\"\n'");
    assert_eq!(
        (&rows[1]["denied"], &rows[2]["exit_code"]),
        (&Value::from("true"), &Value::from(""))
    );
}

#[test]
fn without_a_database_the_answer_is_empty_with_a_hint() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    for (words, printed) in [
        (&["records", "-q"][..], ""),
        (&["records", "--json"], "[]\n"),
        (&["db", "export"], ""),
        (&["db", "check"], ""),
        (&["db", "vacuum"], ""),
    ] {
        let output = run_in(directory.path(), words);
        assert_eq!(text(&output), printed, "{words:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.contains("there is no database in") && said.contains("provost serve"),
            "{said}"
        );
    }
    assert_eq!(
        std::fs::read_dir(directory.path()).unwrap().count(),
        0,
        "nothing is made"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_there_is_and_fails_where_something_is_wrong() {
    let recorded = Recorded::new().await;
    let counts = text(&recorded.run(&["db", "check"]));
    assert_eq!(
        counts,
        format!("schema {SCHEMA_VERSION}\nsessions 0\nprocesses 3\nrecords 3\ndenials 1\n")
    );
    let database = recorded.database();
    recorded.store.close().await;
    let log = recorded.directory.path().join("provost.db-wal");
    assert!(!log.exists());
    let mut bytes = std::fs::read(&database).unwrap();
    // Everything behind the tables' descriptions.
    bytes[4096..].fill(0xff);
    std::fs::write(&database, bytes).unwrap();
    let output = run_in(recorded.directory.path(), &["db", "check"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    std::fs::write(
        &database,
        "no database, and longer than a hundred bytes ".repeat(9),
    )
    .unwrap();
    let output = run_in(recorded.directory.path(), &["db", "check"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("is damaged"));
    let output = run_in(recorded.directory.path(), &["records"]);
    assert_eq!(
        output.status.code(),
        Some(125),
        "what cannot be read is no empty answer"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_has_every_row_and_appears_whole() {
    let recorded = Recorded::new().await;
    let file = recorded.directory.path().join("all.jsonl");
    std::fs::write(&file, "an older one").unwrap();
    text(&recorded.run(&["db", "export", file.to_str().unwrap()]));
    let exported = std::fs::read_to_string(&file).unwrap();
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(exported, text(&recorded.run(&["db", "export"])));
    let rows: Vec<Value> = exported
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |table: &str| {
        rows.iter()
            .filter(|row| row["table"] == table)
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (
            of("sessions").len(),
            of("processes").len(),
            of("records").len(),
            of("denials").len()
        ),
        (0, 3, 3, 1)
    );
    let record: TerminalRecord = serde_json::from_value(of("records")[0]["record"].clone()).unwrap();
    assert!(recorded.records.contains(&record));
    assert_eq!(of("denials")[0]["target"]["address"], "192.0.2.1");
    let names: Vec<String> = std::fs::read_dir(recorded.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(
        !names.iter().any(|name| name.starts_with("all.jsonl.")),
        "{names:?}"
    );
    let refused = recorded.run(&["db", "export", "/proc/all.jsonl"]);
    assert_eq!(refused.status.code(), Some(125));
}

#[tokio::test(flavor = "multi_thread")]
async fn vacuum_gives_room_back_and_loses_nothing() {
    let recorded = Recorded::new().await;
    let store = recorded.store.clone();
    for _ in 0..40 {
        let row = ProcessRow {
            id: ProcessId::new(),
            session: None,
            name: None,
            labels: [].into(),
            argv: vec!["x".repeat(20_000)],
            cwd: None,
            policy: None,
            confined: false,
            request: None,
            queued_at: None,
            boot_id: None,
            state: ProcessState::Accepted,
        };
        let id = row.id;
        store.accept(row).await.unwrap();
        store.forget(vec![id]).await.unwrap();
    }
    drop(store);
    let said = text(&recorded.run(&["db", "vacuum"]));
    let sizes: Vec<u64> = said.split(' ').filter_map(|word| word.parse().ok()).collect();
    assert!(sizes.len() == 2 && sizes[1] > 0, "{said}");
    // The daemon goes on with what it has open.
    recorded
        .store
        .forget(vec![recorded.records[0].process])
        .await
        .unwrap();
    let left = text(&recorded.run(&["records", "-q"]));
    assert_eq!(left.lines().count(), 2, "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn i12_another_user_reads_nothing() {
    let recorded = Recorded::new().await;
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: only root can be another user");
    }
    std::fs::set_permissions(recorded.directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new(provost());
    command
        .args(["records", "--state-dir"])
        .arg(recorded.directory.path())
        .env_clear();
    let output = command.uid(65_534).gid(65_534).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(output.stdout, b"");
}
