//! A state directory in which nothing can be made for a while: what is lost meanwhile is counted, and nothing else is lost.

#![allow(
    clippy::disallowed_methods,
    reason = "tools of the test's own, not supervised commands"
)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use provost_tests::{DEADLINE, LineClient, Served, World, both_users, needs, require};
use rusqlite::Connection;
use serde_json::{Value, json};

/// How long the daemon waits for a lock on its database.
const LOCK_MAX: Duration = Duration::from_secs(10);
/// What nobody waits for, on a machine that does other things.
const SOON: Duration = Duration::from_secs(5);

/// A directory in which its owner can make nothing, until it is dropped. Files that are open in it can be written.
struct Closed {
    path: PathBuf,
    of_root: bool,
}

impl Closed {
    fn begin(world: &World, name: &str) -> Self {
        let closed = Self {
            path: world.path(name),
            of_root: world.is_root(),
        };
        closed.set(true);
        closed
    }

    fn set(&self, closed: bool) {
        if self.of_root {
            // Modes are nothing to root.
            assert!(chattr(if closed { "+i" } else { "-i" }, &self.path));
        } else {
            let mode = if closed { 0o500 } else { 0o700 };
            fs::set_permissions(&self.path, Permissions::from_mode(mode)).expect("the test's own");
        }
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.set(false);
    }
}

fn chattr(flag: &str, path: &PathBuf) -> bool {
    let done = Command::new("chattr").arg(flag).arg(path).status();
    done.is_ok_and(|status| status.success())
}

/// Whether a directory can be closed for this user.
fn can_close(world: &World) -> bool {
    let trial = world.path("outside");
    !world.is_root() || needs::command("chattr") && chattr("+i", &trial) && chattr("-i", &trial)
}

/// What the daemon says does not work; waits until it says something, or nothing any more.
fn degraded(client: &mut LineClient, wanted: bool) -> String {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let status = client.call("daemon/status", json!({})).expect("a status");
        let said = &status["degraded"];
        if said.as_array().expect("a list").is_empty() != wanted {
            return said.to_string();
        }
        assert!(Instant::now() < deadline, "degraded: {said}");
    }
}

/// Reads events until there is one of this type, after the number `after`.
fn event(client: &mut LineClient, process: &str, kind: &str, mut after: u64) -> Value {
    loop {
        let read = json!({ "process": process, "after_seq": after, "wait_ms": 60_000 });
        let read = client.call("process/read", read).expect("it is known");
        let events = read["events"].as_array().expect("events").clone();
        let last = events.last().expect("something happens");
        after = last["seq"].as_u64().expect("a number");
        if let Some(found) = events.iter().find(|event| event["type"] == kind) {
            return found.clone();
        }
        assert_ne!(last["type"], "terminal", "no {kind}: {read}");
    }
}

fn i3_output_that_cannot_be_kept_is_counted_in_a_gap_and_what_comes_later_is_kept(world: &World) {
    require!(can_close(world), "chattr, and a file system that knows it");
    // One for each go: a reader that came early would find the end of the one before.
    let fifos = ["work/first", "work/second"].map(|name| world.path(name));
    for fifo in &fifos {
        mkfifo(fifo, Mode::S_IRWXU).expect("a FIFO");
        world.give_away(fifo, 0o600);
    }
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    for (stream, lost, kept) in [("stdout", "ab\n", "kept\n"), ("pty", "ab\r\n", "kept\r\n")] {
        let script = format!(
            "read line < {}; echo ab; read line < {}; echo kept",
            fifos[0].display(),
            fifos[1].display()
        );
        let mut start = json!({ "argv": ["sh", "-c", script], "cwd": "/", "policy": "unconfined" });
        if stream == "pty" {
            start["terminal"] = json!({ "rows": 24, "cols": 80 });
        }
        let started = client.call("process/start", start.clone()).expect("it starts");
        let id = started["process"].as_str().expect("an id");

        let closed = Closed::begin(world, "state/spool");
        fs::write(&fifos[0], "go\n").expect("it reads");
        let gap = event(&mut client, id, "gap", 0);
        assert_eq!(
            (&gap["stream"], &gap["from"], &gap["to"]),
            (&json!(stream), &json!(0), &json!(lost.len()))
        );
        let said = degraded(&mut client, true);
        assert!(said.contains("cannot be written"), "{said}");
        let refused = client
            .call("process/start", start)
            .expect_err("it cannot be written down");
        assert_eq!(refused["data"]["kind"], "limit", "{refused}");
        drop(closed);
        degraded(&mut client, false);

        fs::write(&fifos[1], "go\n").expect("it reads");
        let record = client.wait(id);
        let output = &record["output"][stream];
        let number = |name: &str| output[name].as_u64().expect("a number");
        assert_eq!(number("bytes"), (lost.len() + kept.len()) as u64, "{record}");
        assert_eq!(number("dropped"), lost.len() as u64, "{record}");
        assert_eq!(output["closed"], "eof", "{record}");
        assert_eq!(record["outcome"], "exited", "{record}");
        let output = event(&mut client, id, "output", 0);
        let data = output["data"].as_str().expect("base64");
        let data = base64_simd::STANDARD.decode_to_vec(data).expect("base64");
        assert_eq!(String::from_utf8_lossy(&data), kept);
        assert_eq!(output["offset"], lost.len(), "{output}");
    }
}

/// Waits until so many records are in the database, and reads what is known of their processes.
fn filed(database: &Connection, wanted: usize) -> Vec<(String, Option<String>)> {
    let deadline = Instant::now() + DEADLINE;
    let mut look = database
        .prepare("SELECT p.id, p.request_id FROM processes p JOIN records r ON r.process = p.id ORDER BY p.id")
        .expect("a database");
    loop {
        let rows = look.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
        let rows: Vec<_> = rows.and_then(Iterator::collect).expect("rows");
        if rows.len() >= wanted {
            return rows;
        }
        assert!(Instant::now() < deadline, "{rows:?}");
    }
}

fn i1_records_that_a_locked_database_did_not_take_are_in_it_when_it_does(world: &World) {
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let start = |client: &mut LineClient, word: &str| {
        let params = json!({
            "argv": ["sh", "-c", "read line; exit 3"], "cwd": "/", "policy": "unconfined", "stdin": true,
            "request_id": word,
        });
        let started = client.call("process/start", params).expect("it starts");
        started["process"].as_str().expect("an id").to_owned()
    };
    let end = |client: &mut LineClient, id: &str| {
        let go = json!({ "process": id, "data": base64_simd::STANDARD.encode_to_string(b"go\n") });
        client.call("process/write", go).expect("it reads");
        client.wait(id)
    };
    let first = start(&mut client, "first");
    let database = Connection::open(world.path("state/provost.db")).expect("a database");
    database.execute_batch("BEGIN EXCLUSIVE").expect("a lock");
    let first_record = end(&mut client, &first);
    // The first who is refused waits as long as a lock is worth waiting for; nobody does after that.
    let asked = Instant::now();
    let second = start(&mut client, "second");
    assert!(asked.elapsed() < LOCK_MAX + SOON, "{:?}", asked.elapsed());
    let asked = Instant::now();
    let third = start(&mut client, "third");
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    let said = degraded(&mut client, true);
    assert!(said.contains("another program holds it"), "{said}");
    let second_record = end(&mut client, &second);
    assert_eq!(filed(&database, 0), [], "nothing can be written");

    database.execute_batch("ROLLBACK").expect("our own lock");
    let known = |id: &str, word: &str| (id.to_owned(), Some(word.to_owned()));
    assert_eq!(
        filed(&database, 2),
        [known(&first, "first"), known(&second, "second")]
    );
    degraded(&mut client, false);
    end(&mut client, &third);
    assert_eq!(filed(&database, 3)[2], known(&third, "third"));
    served.crash();

    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    assert_eq!(client.wait(&first), first_record);
    assert_eq!(client.wait(&second), second_record);
    assert_eq!(start(&mut client, "third"), third, "it is known by its word");
}

/// Sets how many descriptors a process of this user's may have, as that user may.
fn allow_descriptors(world: &World, pid: u32, soft: u64) {
    limit(world, pid, &format!("--nofile={soft}:"));
}

/// Sets how large files may become that a process writes to: with 0 it can write to none.
fn allow_files(world: &World, pid: u32, soft: &str) {
    limit(world, pid, &format!("--fsize={soft}:"));
}

fn limit(world: &World, pid: u32, limit: &str) {
    let mut command = Command::new("prlimit");
    command.args(["--pid", &pid.to_string(), limit]);
    if world.changes_uid() {
        command.uid(world.uid()).gid(world.uid());
    }
    assert!(command.status().expect("prlimit runs").success());
}

fn i3_with_no_descriptor_left_output_is_kept_or_counted_and_what_lives_has_its_record(world: &World) {
    require!(needs::command("prlimit"), "prlimit");
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    // One has the file for its output already, the other needs one.
    let begun = client.start("echo one; read line; echo two; exit 3");
    client.read_until(&begun, 4);
    let silent = client.start("read line; echo two; exit 4");
    event(&mut client, &silent, "started", 0);
    let status = fs::read_to_string(format!("/proc/{}/limits", served.pid())).expect("it lives");
    let line = status.lines().find(|line| line.starts_with("Max open files"));
    let before = line.and_then(|line| line.split_whitespace().nth(3)?.parse().ok());
    let before: u64 = before.expect("a number");

    // Fewer than it has: not one more.
    allow_descriptors(world, served.pid(), 3);
    let params = json!({ "argv": ["true"], "cwd": "/", "policy": "unconfined" });
    let refused = client
        .call("process/start", params.clone())
        .expect_err("no descriptor");
    assert_eq!(refused["data"]["kind"], "limit", "{refused}");
    assert!(
        refused["data"]["why"].to_string().contains("open files"),
        "{refused}"
    );
    let go = base64_simd::STANDARD.encode_to_string(b"go\n");
    for id in [&begun, &silent] {
        let write = json!({ "process": id, "data": go });
        client.call("process/write", write).expect("it reads");
    }
    let records = [&begun, &silent].map(|id| client.wait(id));
    for (record, (code, bytes, dropped)) in records.iter().zip([(3, 8, 0), (4, 4, 4)]) {
        assert_eq!(record["exit_code"], code, "{record}");
        let output = &record["output"]["stdout"];
        assert_eq!(
            (&output["bytes"], &output["dropped"]),
            (&json!(bytes), &json!(dropped)),
            "{record}"
        );
        assert_eq!(output["closed"], "eof", "{record}");
    }
    degraded(&mut client, true);

    allow_descriptors(world, served.pid(), before);
    degraded(&mut client, false);
    let started = client.call("process/start", params).expect("it starts");
    let after = client.wait(started["process"].as_str().expect("an id"));
    assert_eq!(after["outcome"], "exited", "{after}");
    assert_eq!(client.read_all(&begun).0, b"one\ntwo\n");
    served.crash();
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    assert_eq!([&begun, &silent].map(|id| client.wait(id)), records);
    assert_eq!(client.read_all(&begun).0, b"one\ntwo\n");
}

/// A process that reads a FIFO, says something and ends with 3; the FIFO.
fn waiting(world: &World, client: &mut LineClient, name: &str) -> (String, PathBuf) {
    let fifo = world.path("work").join(name);
    mkfifo(&fifo, Mode::S_IRWXU).expect("a FIFO");
    world.give_away(&fifo, 0o600);
    let script = format!("read line < {}; echo out; exit 3", fifo.display());
    let id = client.start(&script);
    event(client, &id, "started", 0);
    (id, fifo)
}

/// Which files there are of a process's journal.
fn journals(world: &World, id: &str) -> Vec<&'static str> {
    let there = |kind: &&str| world.path("state/spool").join(format!("{id}.{kind}")).exists();
    ["journal", "sealed"].into_iter().filter(there).collect()
}

fn i1_what_ends_while_nothing_at_all_can_be_written_is_on_disk_as_it_was_told_when_that_has_passed(
    world: &World,
) {
    require!(needs::command("prlimit"), "prlimit");
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let (id, fifo) = waiting(world, &mut client, "fifo");
    let reads = client.start("read line; echo $line");
    event(&mut client, &reads, "started", 0);

    allow_files(world, served.pid(), "0");
    fs::write(&fifo, "go\n").expect("it reads");
    let record = client.wait(&id);
    assert_eq!(
        (&record["outcome"], &record["exit_code"]),
        (&json!("exited"), &json!(3)),
        "{record}"
    );
    assert_eq!(record["output"]["stdout"]["dropped"], 4, "{record}");
    let said = degraded(&mut client, true);
    assert!(said.contains("something waits in memory"), "{said}");
    assert_eq!(
        journals(world, &id),
        ["journal"],
        "nothing says that it has ended"
    );
    // What cannot be written down would be forgotten after it was acknowledged.
    let go = base64_simd::STANDARD.encode_to_string(b"hello\n");
    let write = json!({ "process": reads, "data": go, "offset": 0 });
    let refused = client.call("process/write", write.clone()).expect_err("no room");
    assert_eq!(refused["data"]["kind"], "refused", "{refused}");
    assert!(
        refused["data"]["hint"].to_string().contains("offset 0"),
        "{refused}"
    );

    allow_files(world, served.pid(), "unlimited");
    degraded(&mut client, false);
    assert_eq!(journals(world, &id), ["sealed"]);
    let database = Connection::open(world.path("state/provost.db")).expect("a database");
    assert_eq!(filed(&database, 1)[0].0, id);
    client.call("process/write", write).expect("there is room");
    assert_eq!(client.wait(&reads)["output"]["stdout"]["bytes"], 6);
    let told = event(&mut client, &id, "terminal", 0);
    served.crash();

    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    assert_eq!(client.wait(&id), record);
    assert_eq!(event(&mut client, &id, "terminal", 0), told);
    assert_eq!(client.read_all(&reads).0, b"hello\n");
}

fn i8_a_daemon_that_dies_while_nothing_can_be_written_has_left_what_happened_with_the_keeper(
    world: &World,
) {
    require!(needs::command("prlimit"), "prlimit");
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let (id, fifo) = waiting(world, &mut client, "fifo");
    allow_files(world, served.pid(), "0");
    fs::write(&fifo, "go\n").expect("it reads");
    let before = client.wait(&id);
    assert_eq!(journals(world, &id), ["journal"]);
    served.crash();

    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let after = client.wait(&id);
    for field in ["outcome", "exit_code", "argv"] {
        assert_eq!(after[field], before[field], "{after}");
    }
    degraded(&mut client, false);
    let database = Connection::open(world.path("state/provost.db")).expect("a database");
    assert_eq!(filed(&database, 1).len(), 1);
}

/// As if there had been no room in the spool when it ended, but in the database.
fn i1_a_record_that_the_database_has_holds_where_the_journal_ends_before_it(world: &World) {
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let ended = ["live", "sealed"].map(|name| {
        let id = client.start("echo out; exit 3");
        (name, client.wait(&id), id)
    });
    let database = Connection::open(world.path("state/provost.db")).expect("a database");
    filed(&database, 2);
    served.crash();
    let spool = world.path("state/spool");
    for (name, _, id) in &ended {
        let sealed = spool.join(format!("{id}.sealed"));
        let whole = fs::read(&sealed).expect("a journal");
        let first = u32::from_le_bytes(whole[..4].try_into().expect("four bytes")) as usize + 8;
        fs::write(&sealed, &whole[..first]).expect("the test's own");
        if *name == "live" {
            fs::rename(&sealed, spool.join(format!("{id}.journal"))).expect("the test's own");
        }
    }
    for _ in 0..2 {
        let served = Served::start(world);
        let mut client = LineClient::connect(served.socket());
        for (name, record, id) in &ended {
            assert_eq!(client.wait(id), *record, "{name}");
            event(&mut client, id, "terminal", 0);
        }
        degraded(&mut client, false);
        served.crash();
    }
    assert_eq!(filed(&database, 2).len(), 2);
}

fn a_session_changes_in_the_database_when_that_can_be_written_again(world: &World) {
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let open = |client: &mut LineClient, name: &str| {
        let opened = client
            .call("session/open", json!({ "name": name }))
            .expect("it is opened");
        opened["session"].as_str().expect("an id").to_owned()
    };
    let (kept, closed) = (open(&mut client, "kept"), open(&mut client, "closed"));
    let database = Connection::open(world.path("state/provost.db")).expect("a database");
    let states = || {
        let state = |id: &String| {
            let sql = "SELECT state FROM sessions WHERE id = ?1";
            database
                .query_row(sql, [id], |row| row.get::<_, String>(0))
                .expect("a row")
        };
        [state(&kept), state(&closed)]
    };
    assert_eq!(states(), ["attached", "attached"]);

    database.execute_batch("BEGIN EXCLUSIVE").expect("a lock");
    let of = |id: &str| json!({ "session": id });
    client.call("session/detach", of(&kept)).expect("it is detached");
    client.call("session/close", of(&closed)).expect("it is closed");
    // Until it was refused.
    degraded(&mut client, true);
    client
        .call("session/attach", json!({ "sessions": [&kept] }))
        .expect("it is attached");
    client.call("session/detach", of(&kept)).expect("it is detached");
    assert_eq!(states(), ["attached", "attached"]);
    database.execute_batch("ROLLBACK").expect("our own lock");
    let deadline = Instant::now() + DEADLINE;
    while states() != ["detached", "closed"] {
        assert!(Instant::now() < deadline, "{:?}", states());
        // A look at the database is no wait, and there is nothing to wait on.
        std::thread::yield_now();
    }
    degraded(&mut client, false);
}

both_users! {
    a_session_changes_in_the_database_when_that_can_be_written_again,
    i1_what_ends_while_nothing_at_all_can_be_written_is_on_disk_as_it_was_told_when_that_has_passed,
    i8_a_daemon_that_dies_while_nothing_can_be_written_has_left_what_happened_with_the_keeper,
    i1_a_record_that_the_database_has_holds_where_the_journal_ends_before_it,
    i3_with_no_descriptor_left_output_is_kept_or_counted_and_what_lives_has_its_record,
    i1_records_that_a_locked_database_did_not_take_are_in_it_when_it_does,
    i3_output_that_cannot_be_kept_is_counted_in_a_gap_and_what_comes_later_is_kept,
}
