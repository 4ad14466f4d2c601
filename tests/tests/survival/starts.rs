//! Starts and ends that a crash comes between.

use std::path::PathBuf;

use provost_tests::random::Random;
use provost_tests::{LineClient, Served, World, both_users, keeper};
use serde_json::{Value, json};

fn i8_twenty_exits_are_known_whether_they_came_before_the_restart_or_after_it(world: &World) {
    let script = "sleep 5; exit 7";
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let processes: Vec<String> = (0..20).map(|_| client.start(script)).collect();
    // Once while they run …
    served.crash();
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let live = client
        .call("process/list", json!({ "live": true }))
        .expect("a list");
    assert_eq!(live.as_array().map(Vec::len), Some(20), "they run on");
    // … and once until all have ended.
    served.crash();
    keeper::wait_until_ended(world, 20);
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    for process in processes {
        let record = client.wait(&process);
        assert_eq!(
            (&record["outcome"], &record["exit_code"]),
            (&json!("exited"), &json!(7)),
            "{record}"
        );
    }
}

fn i1_a_start_whose_answer_was_lost_is_answered_with_the_same_process_and_nothing_starts_twice(
    world: &World,
) {
    let mut random = Random::new(u64::from(std::process::id()));
    let runs = world.file("work/runs", "");
    let mut served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let mut ran = 0;
    for round in 0..15 {
        let params = json!({
            "argv": ["sh", "-c", format!("echo {round} >>{runs}")], "cwd": world.work(),
            "policy": "unconfined", "request_id": format!("round {round}"),
        });
        let asked = client.ask("process/start", params.clone());
        // Anywhere between before it is read and after it is answered.
        let _ = nix::poll::poll(&mut [], random.below(4) as u8);
        served.crash();
        let lines = client.last_words();
        let first = lines.iter().find(|line| line["id"] == asked);
        let first = first.map(|line| line["result"]["process"].clone());
        served = Served::start(world);
        client = LineClient::connect(served.socket());
        let second = client.call("process/start", params.clone()).expect("it starts");
        let third = client.call("process/start", params).expect("it is known");
        assert_eq!(second["process"], third["process"]);
        assert_eq!(third["repeated"], true);
        if let Some(first) = first {
            assert_eq!(first, second["process"]);
            assert_eq!(second["repeated"], true);
        }
        let record = client.wait(second["process"].as_str().expect("an id"));
        let lines = world.content("work/runs");
        let times = lines.lines().filter(|line| *line == round.to_string()).count();
        match record["outcome"].as_str() {
            Some("exited") => assert_eq!(times, 1, "{record}"),
            Some("spawn_failed") => assert_eq!(times, 0, "{record}"),
            _ => panic!("{record}"),
        }
        ran += times;
    }
    assert!(ran > 0, "none was caught after its start");
    let listed = client.call("process/list", json!({})).expect("a list");
    assert_eq!(listed.as_array().map(Vec::len), Some(15));
}

/// The journal of a process, and what its first entry says.
fn journal(world: &World, process: &str) -> (PathBuf, Vec<u8>, Value) {
    let path = world.path(&format!("state/spool/{process}.journal"));
    let bytes = std::fs::read(&path).expect("a journal");
    let length = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes")) as usize;
    // Length, checksum, kind, time, and then what was accepted.
    let accepted = serde_json::from_slice(&bytes[17..8 + length]).expect("JSON");
    (path, bytes, accepted)
}

/// The first entry of a journal with something else accepted.
fn first_entry(bytes: &[u8], accepted: &Value) -> Vec<u8> {
    let mut body = bytes[8..17].to_vec();
    body.extend(accepted.to_string().into_bytes());
    let mut entry = (body.len() as u32).to_le_bytes().to_vec();
    entry.extend(crc32fast::hash(&body).to_le_bytes());
    entry.extend(body);
    entry
}

/// Writes a journal that belongs to the world's user.
fn write(world: &World, path: &std::path::Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("a journal");
    world.give_away(path, 0o600);
}

fn i1_a_start_that_was_written_down_and_not_asked_for_is_a_record_that_says_nothing_ran(world: &World) {
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let lives = client.start("read x");
    served.crash();
    let (path, bytes, mut accepted) = journal(world, &lives);
    // The same with another id: written down, and then the daemon died.
    let caught = "01a1fd99-97a4-775f-bf57-bee9a5e8998a";
    accepted["process"] = json!(caught);
    let caught_path = path.with_file_name(format!("{caught}.journal"));
    write(world, &caught_path, &first_entry(&bytes, &accepted));
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let record = client.wait(caught);
    assert_eq!(record["outcome"], "spawn_failed", "{record}");
    let reason = record["reason"].as_str().expect("a reason");
    assert!(reason.ends_with("nothing ran"), "{record}");
    let inspected = client.call("process/inspect", json!({ "process": lives }));
    assert_eq!(
        inspected.expect("it is known")["record"],
        Value::Null,
        "the other lives"
    );
}

fn i1_after_a_restart_of_the_machine_what_ran_is_lost_and_says_why(world: &World) {
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let process = client.start("echo said; read x");
    let events = client.read_until(&process, 5);
    let pid = events[0]["pid"].as_u64().expect("a pid");
    served.crash();
    keeper::kill_keeper(pid);
    let (path, bytes, mut accepted) = journal(world, &process);
    accepted["boot"] = json!("00000000-0000-4000-8000-000000000000");
    let rest = 8 + u32::from_le_bytes(bytes[..4].try_into().expect("four bytes")) as usize;
    let mut changed = first_entry(&bytes, &accepted);
    changed.extend(&bytes[rest..]);
    write(world, &path, &changed);
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let record = client.wait(&process);
    assert_eq!(record["outcome"], "lost", "{record}");
    assert_eq!(record["reason"], "the machine was restarted", "{record}");
    let (out, again) = client.read_all(&process);
    assert_eq!(out, b"said\n");
    assert_eq!(again[..events.len()], events, "what was told stays");
}

fn i8_a_daemon_that_is_killed_while_it_takes_everything_up_is_followed_by_one_that_does(world: &World) {
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let processes: Vec<String> = (0..30)
        .map(|number| client.start(&format!("echo {number}; read x; exit {number}")))
        .collect();
    served.crash();
    for after_ms in [1, 5, 20, 50, 100, 150] {
        Served::start_to_die(world, std::time::Duration::from_millis(after_ms));
    }
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    for (number, process) in processes.iter().enumerate() {
        let params = json!({ "process": process, "data": "Cg==", "offset": 0, "close": true });
        client.call("process/write", params).expect("it reads");
        let record = client.wait(process);
        assert_eq!(record["exit_code"], number, "{record}");
        let (out, events) = client.read_all(process);
        assert_eq!(out, format!("{number}\n").as_bytes());
        let started = events.iter().filter(|event| event["type"] == "started");
        assert_eq!(started.count(), 1);
    }
}

fn i6_nothing_of_a_command_lives_once_its_record_says_so_whoever_died(world: &World) {
    let witness = world.witness();
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let script = format!(
        "exec 9>{}; echo alive >&9; echo up; sleep 1000 & sleep 1000",
        witness.path()
    );
    let process = client.start(&script);
    client.read_until(&process, 3);
    served.crash();
    // Somebody in between, so that it is not the same daemon that did everything.
    Served::start_to_die(world, std::time::Duration::from_millis(300));
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let params = json!({ "process": process, "reason": "enough" });
    client.call("process/kill", params).expect("it is known");
    let record = client.wait(&process);
    assert_eq!(record["outcome"], "cancelled", "{record}");
    assert!(witness.is_gone());
}

both_users!(
    i8_twenty_exits_are_known_whether_they_came_before_the_restart_or_after_it,
    i1_a_start_whose_answer_was_lost_is_answered_with_the_same_process_and_nothing_starts_twice,
    i1_a_start_that_was_written_down_and_not_asked_for_is_a_record_that_says_nothing_ran,
    i1_after_a_restart_of_the_machine_what_ran_is_lost_and_says_why,
    i8_a_daemon_that_is_killed_while_it_takes_everything_up_is_followed_by_one_that_does,
    i6_nothing_of_a_command_lives_once_its_record_says_so_whoever_died,
);
