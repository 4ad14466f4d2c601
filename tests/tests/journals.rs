//! A journal that the next daemon cannot read: nothing of its process goes away without a word.

#![allow(clippy::disallowed_methods, reason = "the binary is run as a user runs it")]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use provost_tests::{DEADLINE, LineClient, Served, User, Witness, World, both_users, provost};
use serde_json::{Value, json};

/// Starts a command that lives until it has read a line, with a label; its id.
fn start(client: &mut LineClient, world: &World, witness: &Witness) -> String {
    let script = format!(
        "exec 9>{}; echo up >&9; echo before; read line; echo $line; exit 7",
        witness.path()
    );
    let params = json!({
        "argv": ["sh", "-c", script], "cwd": world.work(), "stdin": true, "labels": { "what": "kept" },
    });
    let started = client.call("process/start", params).expect("it starts");
    let id = started["process"].as_str().expect("an id").to_owned();
    client.read_until(&id, "before\n".len());
    id
}

/// It still reads its line, and nothing of its output is missing.
fn assert_goes_on(client: &mut LineClient, id: &str) {
    let line = json!({ "process": id, "data": "d29yZAo=" });
    client.call("process/write", line).expect("it reads");
    let record = client.wait(id);
    assert_eq!(
        (&record["outcome"], &record["exit_code"]),
        (&json!("exited"), &json!(7))
    );
    let (bytes, events) = client.read_all(id);
    assert_eq!(String::from_utf8_lossy(&bytes), "before\nword\n", "{events:?}");
}

fn journal(world: &World, id: &str) -> PathBuf {
    world.path("state/spool").join(format!("{id}.journal"))
}

/// The names in the spool that have to do with a process.
fn in_spool(world: &World, id: &str) -> Vec<String> {
    let entries = fs::read_dir(world.path("state/spool"))
        .expect("a spool")
        .flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains(id)).collect()
}

/// The record of a process in the database.
fn in_database(world: &World, id: &str) -> Value {
    let begun = Instant::now();
    loop {
        let output = Command::new(provost())
            .args(["records", "--json", "--state-dir"])
            .arg(world.path("state"))
            .output()
            .expect("provost runs");
        let records: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
        if let Some(record) = records.into_iter().find(|record| record["process"] == id) {
            return record;
        }
        assert!(begun.elapsed() < DEADLINE, "it never has a record of {id}");
    }
}

/// Waits until the database knows it, which is a moment after its journal.
fn until_in_database(world: &World, id: &str) {
    let begun = Instant::now();
    loop {
        let output = Command::new(provost())
            .args(["db", "export", "--state-dir"])
            .arg(world.path("state"))
            .output()
            .expect("provost runs");
        if String::from_utf8_lossy(&output.stdout).contains(id) {
            return;
        }
        assert!(begun.elapsed() < DEADLINE, "it never has {id}");
    }
}

fn i2_a_process_whose_journal_is_damaged_is_killed_and_has_a_record_that_says_why(world: &World) {
    let damages: [fn(&File); 3] = [
        |file| file.write_all_at(b"nonsense", 12).expect("the test's own file"),
        |file| file.write_all_at(&[0xff; 64], 0).expect("the test's own file"),
        |file| file.set_len(20).expect("the test's own file"),
    ];
    let mut served = Served::start(world);
    for (nth, damage) in damages.into_iter().enumerate() {
        let mut client = LineClient::connect(served.socket());
        let witness = world.witness_of(&format!("damaged-{nth}"));
        let other = world.witness_of(&format!("whole-{nth}"));
        let id = start(&mut client, world, &witness);
        let neighbour = start(&mut client, world, &other);
        let inspected = client
            .call("process/inspect", json!({ "process": id }))
            .expect("it lives");
        until_in_database(world, &id);
        served.crash();
        let file = File::options().write(true).open(journal(world, &id));
        damage(&file.expect("its journal"));

        served = Served::start(world);
        let mut client = LineClient::connect(served.socket());
        let record = client.wait(&id);
        assert_eq!(record["outcome"], "lost", "{record}");
        let reason = record["reason"].as_str().expect("a reason");
        assert!(reason.contains("its journal is damaged"), "{reason}");
        assert_eq!(record["argv"], inspected["argv"]);
        assert_eq!(record["labels"], json!({ "what": "kept" }));
        assert_eq!(record["denials"]["complete"], false);
        assert!(witness.is_gone(), "it was killed before it had a record");
        assert!(!other.is_gone());
        assert_eq!(in_database(world, &id), record);
        let aside = in_spool(world, &id);
        assert!(aside.contains(&format!("damaged-{id}.journal")), "{aside:?}");
        assert!(aside.iter().all(|name| name.starts_with("damaged-")), "{aside:?}");

        // That is the one record it has, and what was put aside is nobody's.
        served.crash();
        served = Served::start(world);
        let mut client = LineClient::connect(served.socket());
        assert_eq!(client.wait(&id), record);
        assert_eq!(in_spool(world, &id), aside);
        assert_goes_on(&mut client, &neighbour);
        witness.wait_until_gone();
        other.wait_until_gone();
    }
}

fn i2_without_the_database_it_has_a_record_under_its_id_all_the_same(world: &World) {
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let witness = world.witness();
    let id = start(&mut client, world, &witness);
    served.crash();
    for name in ["provost.db", "provost.db-wal", "provost.db-shm"] {
        let _ = fs::remove_file(world.path("state").join(name));
    }
    let file = File::options().write(true).open(journal(world, &id));
    file.expect("its journal")
        .set_len(0)
        .expect("the test's own file");

    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let record = client.wait(&id);
    assert_eq!(
        (&record["outcome"], &record["argv"]),
        (&json!("lost"), &json!([]))
    );
    assert!(witness.is_gone());
    assert_eq!(in_database(world, &id), record);
}

fn i2_what_was_not_accepted_to_the_end_never_was(world: &World) {
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let id = client.start("true");
    client.wait(&id);
    served.crash();
    // As a daemon leaves it that dies between the two steps.
    let half = id.replace(|letter: char| letter.is_ascii_hexdigit(), "7");
    let file = File::create_new(journal(world, &half)).expect("a name of nobody's");
    if world.changes_uid() {
        std::os::unix::fs::fchown(&file, Some(world.uid()), Some(world.uid())).expect("root's");
    }
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let listed = client.call("process/list", json!({})).expect("it is served");
    assert_eq!(
        listed.as_array().map(Vec::len),
        Some(1),
        "{listed}\n{}",
        served.said()
    );
    assert_eq!(in_spool(world, &half), [""; 0]);
}

#[test]
fn i8_a_daemon_that_cannot_read_a_journal_takes_nothing_up_and_kills_nothing() {
    // Root may read everything.
    let Some(world) = World::try_new(User::Ordinary) else {
        return;
    };
    let served = Served::start(&world);
    let mut client = LineClient::connect(served.socket());
    let (witness, other) = (world.witness_of("unread"), world.witness_of("whole"));
    let id = start(&mut client, &world, &witness);
    let neighbour = start(&mut client, &world, &other);
    served.crash();
    let readable = |mode| {
        let mode = Permissions::from_mode(mode);
        fs::set_permissions(journal(&world, &id), mode).expect("the test's own file");
    };
    readable(0);
    for _ in 0..2 {
        let said = Served::start_to_fail(&world, &[]);
        assert!(said.contains("a journal cannot be read"), "{said}");
        assert!(said.contains("what an earlier daemon left goes on"), "{said}");
        assert!(!witness.is_gone() && !other.is_gone());
    }
    // It may be for a moment only.
    let served = Served::start_helped(&world, "it is tried again", || readable(0o600));
    let mut client = LineClient::connect(served.socket());
    assert_goes_on(&mut client, &id);
    assert_goes_on(&mut client, &neighbour);
}

both_users!(
    i2_a_process_whose_journal_is_damaged_is_killed_and_has_a_record_that_says_why,
    i2_without_the_database_it_has_a_record_under_its_id_all_the_same,
    i2_what_was_not_accepted_to_the_end_never_was,
);
