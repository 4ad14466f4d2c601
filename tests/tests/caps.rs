//! Bounds of the daemon's that hold exactly, and times that it keeps itself.

use std::time::Instant;

use nix::sys::signal::Signal;
use provost_tests::{DEADLINE, LineClient, Served, Service, World, both_users};
use serde_json::{Value, json};

/// The daemon's limit, as its protocol's page says.
const SESSIONS_MAX: usize = 4096;

fn sessions_are_limited_exactly_however_many_are_opened_at_once(world: &World) {
    const CLIENTS: usize = 8;
    const EACH: usize = 56;
    let served = Served::start(world);
    let mut clients: Vec<LineClient> = (0..CLIENTS)
        .map(|_| LineClient::connect(served.socket()))
        .collect();
    let mut opened = 0;
    // All but a few of them, then more at once than there is room for.
    let most = SESSIONS_MAX - CLIENTS * EACH / 2;
    while opened < most {
        let count = (most - opened).min(EACH);
        let asked: Vec<u64> = (0..count)
            .map(|_| clients[0].ask("session/open", json!({})))
            .collect();
        for id in asked {
            clients[0].answer(id).expect("there is room");
        }
        opened += count;
    }
    let mut asked = Vec::new();
    for _ in 0..EACH {
        for (index, client) in clients.iter_mut().enumerate() {
            asked.push((index, client.ask("session/open", json!({}))));
        }
    }
    let mut refused = 0;
    for (index, id) in asked {
        match clients[index].answer(id) {
            Ok(_) => opened += 1,
            Err(error) => {
                assert_eq!(error["data"]["kind"], "limit", "{error}");
                refused += 1;
            }
        }
    }
    assert_eq!((opened, refused), (SESSIONS_MAX, CLIENTS * EACH / 2));
    let status = clients[0].call("daemon/status", json!({})).expect("a status");
    assert_eq!(status["sessions"], SESSIONS_MAX);
}

/// The grace belongs to the daemon: whoever gave it need not live to see it run out.
fn i8_a_stop_is_carried_through_when_the_client_that_asked_for_it_dies(world: &World) {
    let service = Service::start(world);
    let script = "trap 'echo asked to' TERM; echo ready; while :; do sleep 0.1; done";
    let start = ["start", "--grace", "1h", "--", "sh", "-c", script];
    let id = service.say(&start);
    let mut logs = service.live(&["logs", "-f", &id]);
    logs.wait_for("ready");
    let stop = service.live(&["stop", "--grace", "2s", &id]);
    logs.wait_for("asked to");
    stop.signal(Signal::SIGKILL);
    drop(stop);
    let done = service.ask(&["wait", &id]);
    assert_eq!(done.code, Some(130), "\n{done}");
    let events = service.say(&["events", &id]);
    assert!(events.contains("\"cause\":\"grace expired\""), "{events}");

    // A second one may be in more of a hurry than the first, and none gives it longer than its own rule.
    let id = service.say(&start);
    let mut logs = service.live(&["logs", "-f", &id]);
    logs.wait_for("ready");
    service.say(&["stop", "--no-wait", &id]);
    logs.wait_for("asked to");
    service.say(&["stop", "--no-wait", "--grace", "2h", &id]);
    assert_eq!(service.say(&["ps", "-q"]), id);
    service.say(&["stop", "--grace", "100ms", &id]);
    assert_eq!(service.say(&["ps", "-q"]), "");
}

/// A daemon with this in its configuration.
fn configured(world: &World, toml: &str) -> Served {
    world.file("work/provost.toml", toml);
    let file = world.path("work/provost.toml");
    Served::start_with(world, &["--config", file.to_str().expect("UTF-8")])
}

/// Starts a script in a session; its id.
fn start_in(client: &mut LineClient, session: &str, script: &str) -> String {
    let params = json!({
        "argv": ["sh", "-c", script], "cwd": "/", "policy": "unconfined", "session": session,
    });
    let started = client.call("process/start", params).expect("it starts");
    started["process"].as_str().expect("an id").to_owned()
}

fn open(client: &mut LineClient, params: Value) -> String {
    let opened = client.call("session/open", params).expect("it opens");
    opened["session"].as_str().expect("an id").to_owned()
}

/// What is kept of a process, in all, and what was dropped, in one gap at most that closes what is missing: `None` if it was
/// forgotten.
fn kept(client: &mut LineClient, process: &str) -> Option<(u64, u64)> {
    let (mut after, mut end, mut read, mut gap) = (0, 0, 0, 0);
    loop {
        let params = json!({ "process": process, "after_seq": after });
        let events = match client.call("process/read", params) {
            Ok(events) => events,
            Err(error) => {
                assert_eq!(error["data"]["kind"], "forgotten", "{error}");
                return None;
            }
        };
        let there = events["events"].as_array().expect("a list");
        for event in there {
            match event["type"].as_str().expect("a type") {
                "output" => {
                    assert_eq!(event["offset"], end, "{process}: a silent gap");
                    let data = event["data"].as_str().expect("base64");
                    let length = base64_simd::STANDARD.decode_to_vec(data).expect("base64").len() as u64;
                    (end, read) = (end + length, read + length);
                }
                "gap" => {
                    assert_eq!(event["from"], end, "{process}: {event}");
                    let bytes = event["bytes"].as_u64().expect("a number");
                    (end, gap) = (end + bytes, gap + bytes);
                }
                _ => {}
            }
        }
        after = events["next_seq"].as_u64().expect("a number");
        if there.is_empty() {
            return Some((read, gap));
        }
    }
}

/// Waits until what is kept of these is no more than this.
fn settles(client: &mut LineClient, processes: &[String], most: u64) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let retained = |client: &mut LineClient, process: &String| {
            let info = client.call("process/inspect", json!({ "process": process }));
            info.map_or(0, |info| info["retained_bytes"].as_u64().expect("a number"))
        };
        let all: u64 = processes.iter().map(|process| retained(client, process)).sum();
        if all <= most {
            return;
        }
        assert!(Instant::now() < deadline, "{all} bytes are kept");
    }
}

const FLOOD: &str = "head -c 200000 /dev/zero";

fn i3_a_session_keeps_no_more_than_it_may_and_says_what_it_dropped(world: &World) {
    const MOST: u64 = 300_000;
    let served = configured(world, &format!("max_session_bytes = '{MOST}'\n"));
    let mut client = LineClient::connect(served.socket());
    let much = client.call("session/open", json!({ "max_session_bytes": MOST + 1 }));
    let much = much.expect_err("more than the daemon's");
    assert_eq!(much["data"]["kind"], "invalid_params", "{much}");
    let whole = open(&mut client, json!({ "name": "whole" }));
    let part = open(
        &mut client,
        json!({ "parent": "whole", "max_session_bytes": 50_000 }),
    );
    let other = open(&mut client, json!({ "name": "other" }));
    let beside = start_in(&mut client, &other, FLOOD);
    client.wait(&beside);
    let mut processes = Vec::new();
    // One after the other, so that it is known whose output is older; half of them live on.
    for script in [FLOOD.to_owned(), format!("{FLOOD}; exec sleep 1000")]
        .iter()
        .cycle()
        .take(6)
    {
        let process = start_in(&mut client, &whole, script);
        let mut after = json!(0);
        let mut read = 0;
        while read < 200_000 {
            let params = json!({ "process": process, "after_seq": after, "wait_ms": 10_000 });
            let events = client.call("process/read", params).expect("events");
            for event in events["events"].as_array().expect("a list") {
                read = event["offset"].as_u64().map_or(read, |_| {
                    read + event["data"].as_str().expect("data").len() as u64 * 3 / 4
                });
                read += event["bytes"]
                    .as_u64()
                    .filter(|_| event["type"] == "gap")
                    .unwrap_or(0);
            }
            after = events["next_seq"].clone();
        }
        processes.push(process);
    }
    let in_part = start_in(&mut client, &part, FLOOD);
    settles(&mut client, std::slice::from_ref(&in_part), 50_000);
    processes.push(in_part.clone());
    settles(&mut client, &processes, MOST);
    let all: Vec<(u64, u64)> = processes
        .iter()
        .map(|process| kept(&mut client, process).expect("nobody is forgotten"))
        .collect();
    for (process, (read, gap)) in processes.iter().zip(&all) {
        assert_eq!(read + gap, 200_000, "{process}: {all:?}");
    }
    // The oldest go first, and no more than that.
    let sum: u64 = all.iter().map(|(read, _)| read).sum();
    assert!(sum > MOST - 100_000, "{all:?}");
    assert_eq!(all[0].0, 0, "{all:?}");
    assert!(all[..6].is_sorted_by_key(|(read, _)| *read), "{all:?}");
    let live = client
        .call("process/inspect", json!({ "process": processes[1] }))
        .expect("known");
    assert_eq!(live["live"], true, "{live}");
    assert_eq!(kept(&mut client, &beside), Some((200_000, 0)));
}

fn i3_a_session_that_floods_takes_nothing_from_one_below_its_fair_share(world: &World) {
    const MOST: u64 = 1 << 20;
    let served = configured(world, "max_memory_bytes = '1M'\nmax_output_bytes = '256K'\n");
    let mut client = LineClient::connect(served.socket());
    let quiet = open(&mut client, json!({ "name": "quiet" }));
    let loud = open(&mut client, json!({ "name": "loud" }));
    let ended = start_in(&mut client, &quiet, FLOOD);
    client.wait(&ended);
    let lives = start_in(&mut client, &quiet, &format!("{FLOOD}; exec sleep 1000"));
    settles_at(&mut client, &lives, 200_000);
    let mut processes: Vec<String> = Vec::new();
    for round in 0..20 {
        let then = if round % 2 == 0 { "" } else { "; exec sleep 1000" };
        processes.push(start_in(&mut client, &loud, &format!("{FLOOD}{then}")));
    }
    for process in processes.iter().step_by(2) {
        client.wait(process);
    }
    settles(&mut client, &processes, MOST - 400_000);
    for process in [&ended, &lives] {
        assert_eq!(
            kept(&mut client, process),
            Some((200_000, 0)),
            "it lost something"
        );
    }
    // Those that ended are forgotten, those that live have gaps.
    for (index, process) in processes.iter().enumerate() {
        match kept(&mut client, process) {
            Some((read, gap)) => assert!(read + gap <= 200_000, "{process}"),
            None => assert_eq!(index % 2, 0, "one that lives was forgotten"),
        }
    }
}

/// Waits until a process has written so much, all of which is kept.
fn settles_at(client: &mut LineClient, process: &str, bytes: u64) {
    let deadline = Instant::now() + DEADLINE;
    while kept(client, process) != Some((bytes, 0)) {
        assert!(Instant::now() < deadline, "it never came");
    }
}

both_users!(
    i3_a_session_keeps_no_more_than_it_may_and_says_what_it_dropped,
    i3_a_session_that_floods_takes_nothing_from_one_below_its_fair_share,
    sessions_are_limited_exactly_however_many_are_opened_at_once,
    i8_a_stop_is_carried_through_when_the_client_that_asked_for_it_dies,
);
