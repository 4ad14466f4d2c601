//! The state directory over time and under faults: what is forgotten is gone, what is not is as it was.

#![allow(clippy::disallowed_methods, reason = "the binary is run as a user runs it")]

use std::fs;
use std::process::Command;
use std::time::Instant;

use provost_tests::{DEADLINE, LineClient, Served, SmallDisk, User, World, both_users, provost};
use serde_json::{Value, json};

/// Runs a script to its end; its id, its record and its events.
fn run(client: &mut LineClient, script: &str) -> (String, Value, Value) {
    let id = client.start(script);
    let record = client.wait(&id);
    let read = json!({ "process": id });
    let events = client.call("process/read", read).expect("it is there")["events"].clone();
    (id, record, events)
}

/// What lies in the spool of these processes.
fn in_spool(world: &World, id: &str) -> Vec<String> {
    let entries = fs::read_dir(world.path("state/spool")).expect("a spool");
    let names = entries.map(|entry| {
        entry
            .expect("an entry")
            .file_name()
            .to_string_lossy()
            .into_owned()
    });
    names.filter(|name| name.starts_with(id)).collect()
}

/// The records in the database.
fn records(world: &World) -> Vec<Value> {
    let output = Command::new(provost())
        .args(["records", "--json", "--state-dir"])
        .arg(world.path("state"))
        .output()
        .expect("provost runs");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn status(client: &mut LineClient) -> Value {
    client.call("daemon/status", json!({})).expect("a status")
}

/// Waits until the status says that all is well, or that it is not.
fn degraded(client: &mut LineClient, wanted: bool) -> String {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let said = status(client)["degraded"].clone();
        if said.as_array().expect("a list").is_empty() != wanted {
            return said.to_string();
        }
        assert!(Instant::now() < deadline, "degraded: {said}");
    }
}

fn i8_an_ended_process_is_the_same_under_the_next_daemon(world: &World) {
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let (id, record, events) = run(&mut client, "echo out; echo err >&2; exit 3");
    let before = status(&mut client);
    assert!(before["keeper"].as_u64().is_some_and(|pid| pid > 1), "{before}");
    assert_eq!(before["state_dir"], json!(world.path("state")), "{before}");
    assert_eq!(before["degraded"], json!([]));
    served.crash();

    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    assert_eq!(status(&mut client)["keeper"], before["keeper"]);
    assert_eq!(client.wait(&id), record);
    let again = client
        .call("process/read", json!({ "process": id }))
        .expect("it is there");
    assert_eq!(again["events"], events);
    let listed = client.call("process/list", json!({})).expect("a list");
    assert!(listed.to_string().contains(&id), "{listed}");
    assert_eq!(records(world), [record]);
}

fn i8_what_was_pruned_is_gone_everywhere_and_stays_so(world: &World) {
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let (gone, ..) = run(&mut client, "echo gone");
    assert!(!in_spool(world, &gone).is_empty());
    assert_eq!(
        client.call("process/prune", json!({})).expect("pruned"),
        json!({ "forgotten": 1 })
    );
    for method in ["process/inspect", "process/wait", "process/read"] {
        let error = client
            .call(method, json!({ "process": gone }))
            .expect_err("forgotten");
        assert_eq!(
            (&error["code"], &error["data"]["kind"]),
            (&json!(-32014), &json!("forgotten")),
            "{error}"
        );
    }
    let never = "01890a5d-ac96-774b-bcce-b302099a8057";
    let error = client
        .call("process/wait", json!({ "process": never }))
        .expect_err("never there");
    assert_eq!(error["data"]["kind"], "not_found", "{error}");
    assert_eq!(in_spool(world, &gone), [""; 0]);
    assert_eq!(records(world), [Value::Null; 0]);
    let (left, record, _) = run(&mut client, "echo left");
    served.crash();

    // What a crash between the steps of a removal leaves.
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    assert_eq!(client.wait(&left), record);
    served.crash();
    let name = |kind: &str| world.path("state/spool").join(format!("{left}.{kind}"));
    fs::rename(name("sealed"), name("gone")).expect("a sealed journal");
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    for id in [&gone, &left] {
        let error = client
            .call("process/inspect", json!({ "process": id }))
            .expect_err("forgotten");
        assert_eq!(error["data"]["kind"], "not_found", "{error}");
        assert_eq!(in_spool(world, id), [""; 0]);
    }
    assert_eq!(records(world), [Value::Null; 0]);
}

fn i11_a_damaged_database_is_moved_aside_and_made_anew_of_the_spool(world: &World) {
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let (id, record, _) = run(&mut client, "echo out");
    served.crash();
    for name in ["provost.db-wal", "provost.db-shm"] {
        let _ = fs::remove_file(world.path("state").join(name));
    }
    let garbage = "this is no database ".repeat(1000);
    fs::write(world.path("state/provost.db"), garbage).expect("the test's own file");

    let served = Served::start(world);
    assert!(served.said().contains("damaged"), "{}", served.said());
    let mut client = LineClient::connect(served.socket());
    assert_eq!(client.wait(&id), record);
    // It is made anew in the background.
    let deadline = Instant::now() + DEADLINE;
    while records(world) != [record.clone()] {
        assert!(Instant::now() < deadline, "{:?}", records(world));
    }
    let aside = fs::read_dir(world.path("state")).expect("a directory").flatten();
    assert_eq!(
        aside
            .filter(|entry| entry.file_name().to_string_lossy().contains("corrupt"))
            .count(),
        1
    );
}

fn i11_a_state_directory_that_was_moved_is_said_and_nothing_new_is_accepted(world: &World) {
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let id = client.start("read line; echo out");
    let (here, there) = (world.path("state"), world.path("elsewhere"));
    for replaced in [false, true] {
        fs::rename(&here, &there).expect("the test's own directory");
        if replaced {
            fs::create_dir_all(here.join("spool")).expect("another one");
        }
        let said = degraded(&mut client, true);
        assert!(said.contains("not the directory any more"), "{said}");
        let start = json!({ "argv": ["true"], "cwd": "/", "policy": "unconfined" });
        let error = client.call("process/start", start.clone()).expect_err("refused");
        assert!(error.to_string().contains("put it back"), "{error}");
        if replaced {
            fs::remove_dir_all(&here).expect("the other one");
        }
        fs::rename(&there, &here).expect("back");
        degraded(&mut client, false);
        client.call("process/start", start).expect("it is accepted again");
    }
    // What was accepted has lost nothing.
    client
        .call("process/kill", json!({ "process": id }))
        .expect("it lives");
    assert_eq!(client.wait(&id)["outcome"], "cancelled");
}

fn i11_a_state_directory_that_cannot_be_used_is_refused_with_a_reason(world: &World) {
    let serve = || {
        let output = provost_as(world)
            .args(["serve", "--socket"])
            .arg(world.path("work/other.sock"))
            .arg("--state-dir")
            .arg(world.path("state"))
            .output()
            .expect("provost runs");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let served = Served::start(world);
    let (code, said) = serve();
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains(&format!("(process {})", served.pid())), "{said}");
    drop(served);
    // Whatever is in the way of its spool.
    fs::remove_dir_all(world.path("state/spool")).expect("a spool");
    fs::write(world.path("state/spool"), "a file").expect("the test's own file");
    let (code, said) = serve();
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("spool"), "{said}");
}

fn provost_as(world: &World) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(provost());
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", world.path("home"));
    if world.changes_uid() {
        command.uid(world.uid()).gid(world.uid());
    }
    command
}

both_users! {
    i8_an_ended_process_is_the_same_under_the_next_daemon,
    i8_what_was_pruned_is_gone_everywhere_and_stays_so,
    i11_a_damaged_database_is_moved_aside_and_made_anew_of_the_spool,
    i11_a_state_directory_that_was_moved_is_said_and_nothing_new_is_accepted,
    i11_a_state_directory_that_cannot_be_used_is_refused_with_a_reason,
}

/// The disk becomes full under a process that writes.
fn under_a_full_disk(rule: &str, outcome: &str) {
    const BYTES: u64 = 3_000_000;
    let Some(world) = World::try_new(User::Root) else {
        return;
    };
    let disk = SmallDisk::mount(&world.path("state"));
    world.file(
        "work/provost.toml",
        &format!("disk_full = '{rule}'\nmax_output_bytes = '8M'\n"),
    );
    let config = world.path("work/provost.toml");
    let served = Served::start_with(&world, &["--config", config.to_str().expect("UTF-8")]);
    let mut client = LineClient::connect(served.socket());
    let script = format!("read line; head -c {BYTES} /dev/zero; [ {rule} = drop ] || exec sleep 100");
    let start = json!({
        "argv": ["sh", "-c", script], "cwd": "/", "policy": "unconfined", "stdin": true,
    });
    let started = client
        .call("process/start", start.clone())
        .expect("there is room");
    let id = started["process"].as_str().expect("an id").to_owned();
    let filler = disk.fill();
    let go = json!({ "process": id, "data": base64_simd::STANDARD.encode_to_string(b"go\n") });
    client.call("process/write", go).expect("it reads");
    let record = client.wait(&id);
    assert_eq!(record["outcome"], outcome, "{record}");
    let output = &record["output"]["stdout"];
    let number = |name: &str| output[name].as_u64().expect("a number");
    assert_eq!(
        number("bytes"),
        number("retained") + number("dropped"),
        "{record}"
    );
    assert!(number("dropped") > 0, "{record}");
    if rule == "drop" {
        assert_eq!(number("bytes"), BYTES, "{record}");
    } else {
        assert!(
            record["reason"]
                .as_str()
                .is_some_and(|why| why.contains("no room")),
            "{record}"
        );
    }
    let said = degraded(&mut client, true);
    assert!(said.contains("make room"), "{said}");
    // What ends makes some again, for as many.
    let refused = (0..50).find_map(|_| {
        disk.fill();
        client.call("process/start", start.clone()).err()
    });
    let refused = refused.expect("no room");
    assert!(refused.to_string().contains("cannot write down"), "{refused}");
    fs::remove_file(filler).expect("the filler");
    degraded(&mut client, false);
    client.call("process/start", start).expect("there is room again");
    served.crash();

    let served = Served::start(&world);
    let mut client = LineClient::connect(served.socket());
    assert_eq!(client.wait(&id), record, "it was sealed for good");
    drop(served);
}

#[test]
fn i3_on_a_full_disk_processes_go_on_with_gaps_and_their_records_are_sealed() {
    under_a_full_disk("drop", "exited");
}

#[test]
fn i3_on_a_full_disk_processes_are_stopped_where_that_is_the_rule_and_their_records_are_sealed() {
    under_a_full_disk("stop", "denied");
}
