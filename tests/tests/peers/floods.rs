//! How much they ask and how little they read: others are served meanwhile.

use std::time::{Duration, Instant};

use provost_tests::{DEADLINE, LineClient, Served, World, both_users};
use serde_json::{Value, json};

use super::{BOUNDED, MIB, becomes, descriptors, is_served, kind, refused};

fn a_client_that_never_reads_harms_itself_alone(world: &World) {
    let daemon = Served::start(world);
    let mut deaf = LineClient::connect(daemon.socket());
    let flood = deaf.start("exec yes");
    let before = daemon.memory();
    deaf.call("process/follow", json!({ "process": flood }))
        .expect("it follows");
    let request = json!({
        "jsonrpc": "2.0", "id": 1, "method": "process/read", "params": { "process": flood },
    });
    let requests = format!("{request}\n").repeat(1000);
    let mut rounds = 0;
    while rounds < 1000 && deaf.try_say(requests.as_bytes(), Some(Duration::from_millis(500))) {
        rounds += 1;
    }
    assert!(
        rounds < 1000,
        "a million requests were taken of a client that reads nothing"
    );
    let mut other = LineClient::connect(daemon.socket());
    let mut after_seq = 0;
    for _ in 0..100 {
        let begun = Instant::now();
        let read =
            json!({ "process": flood, "after_seq": after_seq, "wait_ms": 1000, "max_bytes": 4096 });
        let read = other.call("process/read", read).expect("it is read");
        let next = read["next_seq"].as_u64().expect("a number");
        assert!(next > after_seq, "the flood stands still: {read}");
        after_seq = next;
        assert!(begun.elapsed() < BOUNDED, "{:?}", begun.elapsed());
    }
    let grown = daemon.memory().saturating_sub(before);
    assert!(grown < 64 * MIB, "{} MiB more", grown / MIB);
    other
        .call("process/kill", json!({ "process": flood }))
        .expect("it is ended");
    assert_eq!(other.wait(&flood)["outcome"], "cancelled");
    drop(deaf);
    becomes(&daemon, "the end of the connection", || {
        let status = other.call("daemon/status", json!({})).expect("it is served");
        status["clients"] == 2
    });
}

fn a_flood_of_requests_is_told_its_limit_and_others_are_served(world: &World) {
    let daemon = Served::start(world);
    let mut flooding = LineClient::connect(daemon.socket());
    let process = flooding.start("exec sleep 1000");
    let before = daemon.memory();
    let wait = json!({
        "jsonrpc": "2.0", "id": "w", "method": "process/wait", "params": { "process": process },
    });
    let waits = format!("{wait}\n").repeat(5000);
    assert!(flooding.try_say(waits.as_bytes(), Some(DEADLINE)));
    for _ in 0..5000 - 64 {
        assert_eq!(refused(&mut flooding), "limit");
    }
    let mut other = LineClient::connect(daemon.socket());
    for _ in 0..100 {
        let begun = Instant::now();
        other.call("daemon/status", json!({})).expect("it is served");
        assert!(begun.elapsed() < BOUNDED);
    }
    other
        .call("process/kill", json!({ "process": process }))
        .expect("it is ended");
    for _ in 0..64 {
        let answer = flooding.hear().expect("an answer");
        assert_eq!(answer["result"]["record"]["outcome"], "cancelled", "{answer}");
    }
    let grown = daemon.memory().saturating_sub(before);
    assert!(grown < 32 * MIB, "{} MiB more", grown / MIB);
}

fn a_flood_of_connections_is_told_its_limit_and_leaves_room_when_it_goes(world: &World) {
    let daemon = Served::start(world);
    let mut first = LineClient::connect(daemon.socket());
    let before = descriptors(&daemon);
    let mut many: Vec<LineClient> = (0..300).map(|_| LineClient::silent(daemon.socket())).collect();
    let (mut served, mut sent_away) = (0, 0);
    for client in &mut many {
        let hello = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocol":1}}"#;
        let _ = client.try_say(format!("{hello}\n").as_bytes(), Some(DEADLINE));
        let answer = client.hear().expect("an answer");
        match answer.get("error") {
            None => served += 1,
            Some(error) if kind(error) == "limit" => sent_away += 1,
            Some(error) => panic!("{error}"),
        }
    }
    assert_eq!((served, sent_away), (255, 45));
    let begun = Instant::now();
    first
        .call("daemon/status", json!({}))
        .expect("who was there is served");
    assert!(begun.elapsed() < BOUNDED);
    drop(many);
    while descriptors(&daemon) > before {
        assert!(begun.elapsed() < DEADLINE, "connections stay open");
        first.call("daemon/status", json!({})).expect("it is served");
    }
    is_served(&daemon);
}

fn clients_that_are_gone_in_the_middle_leave_nothing(world: &World) {
    let daemon = Served::start(world);
    let mut keeper = LineClient::connect(daemon.socket());
    let process = keeper.start("echo up; exec sleep 1000");
    let mut seen = 0;
    while seen < 2 {
        let read = json!({ "process": process, "after_seq": seen, "wait_ms": 10_000 });
        let read = keeper.call("process/read", read).expect("it is read");
        seen = read["next_seq"].as_u64().expect("a number");
    }
    let before = (descriptors(&daemon), daemon.memory());
    for _ in 0..30 {
        let mut client = LineClient::connect(daemon.socket());
        client.ask("session/open", json!({ "on_disconnect": "stop" }));
        for _ in 0..20 {
            client.ask("process/wait", json!({ "process": process }));
            client.ask(
                "process/read",
                json!({ "process": process, "after_seq": 100, "wait_ms": 3_600_000 }),
            );
            client.ask("process/follow", json!({ "process": process }));
        }
        assert!(client.try_say(br#"{"jsonrpc":"2.0","id":"half"#, Some(DEADLINE)));
    }
    becomes(&daemon, "the end of what they held", || {
        descriptors(&daemon) <= before.0 + 1
    });
    let mut status = || keeper.call("daemon/status", json!({})).expect("it is served");
    becomes(&daemon, "the end of their sessions", || status()["sessions"] == 0);
    let grown = daemon.memory().saturating_sub(before.1);
    assert!(grown < 32 * MIB, "{} MiB more", grown / MIB);
}

fn a_process_that_does_not_read_holds_up_writes_to_itself_alone(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let (deaf, cat) = (client.start("exec sleep 1000"), client.start("exec cat"));
    let before = daemon.memory();
    let megabyte = "QUFB".repeat(1 << 18);
    let mut waiting = Vec::new();
    for _ in 0..30 {
        waiting.push(client.ask("process/write", json!({ "process": deaf, "data": megabyte })));
    }
    let begun = Instant::now();
    let written = client.call(
        "process/write",
        json!({ "process": cat, "data": "aGVsbG8K", "close": true }),
    );
    assert_eq!(written.expect("it is written")["offset"], 6);
    assert_eq!(client.wait(&cat)["exit_code"], 0);
    assert!(begun.elapsed() < BOUNDED);
    // Who comes again and again with more is told.
    for _ in 0..20 {
        let mut other = LineClient::connect(daemon.socket());
        for _ in 0..8 {
            other.ask("process/write", json!({ "process": deaf, "data": megabyte }));
        }
        let last = other.call("process/write", json!({ "process": deaf, "data": megabyte }));
        assert_eq!(kind(&last.expect_err("there is no room")), "limit");
    }
    let grown = daemon.memory().saturating_sub(before);
    assert!(grown < 128 * MIB, "{} MiB more", grown / MIB);
    client
        .call("process/kill", json!({ "process": deaf }))
        .expect("it is ended");
    assert_eq!(client.wait(&deaf)["outcome"], "cancelled");
    assert!(!daemon.said().contains("panicked"), "{}", daemon.said());
}

fn i9_of_starts_with_one_name_at_the_same_time_one_wins(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let start = json!({ "argv": ["sleep", "1000"], "cwd": "/", "policy": "unconfined", "name": "one" });
    let asked: Vec<u64> = (0..16)
        .map(|_| client.ask("process/start", start.clone()))
        .collect();
    let mut answers: Vec<Value> = asked.iter().map(|_| client.hear().expect("an answer")).collect();
    answers.retain(|answer| answer.get("error").is_none_or(|error| kind(error) != "conflict"));
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert!(answers[0]["result"]["process"].is_string(), "{answers:?}");
}

both_users!(
    a_client_that_never_reads_harms_itself_alone,
    a_flood_of_requests_is_told_its_limit_and_others_are_served,
    a_flood_of_connections_is_told_its_limit_and_leaves_room_when_it_goes,
    clients_that_are_gone_in_the_middle_leave_nothing,
    a_process_that_does_not_read_holds_up_writes_to_itself_alone,
    i9_of_starts_with_one_name_at_the_same_time_one_wins,
);
