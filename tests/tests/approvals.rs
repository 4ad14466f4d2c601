//! What a daemon's processes ask: seen and answered by whoever may, once, and by nobody else.

use std::time::{Duration, Instant};

use provost::client::{Client, ClientError, Pushed};
use provost::protocol::{ApprovalsWaiting, ErrorKind};
use provost::{Event, EventBody};
use provost_tests::asking::{block_on, call, connect, refused};
use provost_tests::host::TcpServer;
use provost_tests::{Served, World, both_users, needs, open_socket, program, require};
use serde_json::{Value, json};

async fn open(client: &Client, params: Value) -> String {
    let opened = call(client, "session/open", params).await;
    opened["session"].as_str().expect("an id").to_owned()
}

fn asking_policy(world: &World) -> String {
    world.file(
        "home/ask.toml",
        "version = 1\nextends = \"workspace-write\"\n[net]\nmode = \"ask\"\n",
    )
}

/// Starts a command that connects to a port of this machine's, and asks first; its id.
async fn start(client: &Client, world: &World, port: &str, more: Value) -> String {
    let mut params = json!({
        "argv": [program("escape"), "tcp-connect", "127.0.0.1", port], "cwd": world.work(),
        "policy": asking_policy(world), "ask_timeout_ms": 3_600_000,
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        params[key] = value.clone();
    }
    let started = call(client, "process/start", params).await;
    started["process"].as_str().expect("an id").to_owned()
}

/// Waits until a process asks; the number.
async fn asks(client: &Client, process: &str) -> u64 {
    let params = json!({ "process": process });
    let mut events = client
        .follow("process/follow", &params)
        .await
        .expect("it is there");
    while let Some(event) = events.next().await {
        if let EventBody::ApprovalRequested { approval, .. } = event.body {
            return approval;
        }
    }
    panic!("it never asks");
}

async fn record(client: &Client, process: &str) -> Value {
    call(client, "process/wait", json!({ "process": process })).await["record"].clone()
}

/// Who decided, by the events of a process that has ended.
async fn decided_by(client: &Client, process: &str) -> Vec<String> {
    let read = call(client, "process/read", json!({ "process": process })).await;
    let events = read["events"].as_array().expect("events");
    let decided = events.iter().filter(|event| event["type"] == "approval_decided");
    decided
        .map(|event| event["by"].as_str().expect("a word").to_owned())
        .collect()
}

async fn waiting(client: &Client, params: Value) -> ApprovalsWaiting {
    client.call("approval/list", &params).await.expect("a list")
}

fn what_waits_is_listed_and_decided_over_another_connection(world: &World) {
    let (served, server) = (Served::start(world), TcpServer::start());
    block_on(async {
        let (holder, other) = (connect(&served).await, connect(&served).await);
        let session = open(&holder, json!({ "name": "held" })).await;
        let held = start(&holder, world, &server.port_text(), json!({ "session": session })).await;
        let free = start(&holder, world, &server.port_text(), json!({ "name": "free" })).await;
        assert_eq!((asks(&other, &held).await, asks(&other, &free).await), (1, 1));

        let all = waiting(&other, json!({})).await;
        assert_eq!((all.approvals.len(), all.more), (2, 0));
        let of_session = waiting(&other, json!({ "session": "held" })).await;
        let [request] = of_session.approvals.as_slice() else {
            panic!("one waits in the session: {of_session:?}");
        };
        assert_eq!(request.process.to_string(), held);
        assert_eq!(request.session.map(|id| id.to_string()), Some(session));
        assert_eq!(request.attempt.target.port, Some(server.port()));
        let rule = request.attempt.allow.as_ref().expect("a rule would allow it");
        assert_eq!(
            (rule.key.as_str(), rule.value.as_str()),
            ("net.allow", format!("127.0.0.1:{}", server.port()).as_str())
        );
        assert!(request.requested_at < request.deadline, "{request:?}");
        let of_process = waiting(&other, json!({ "process": "free" })).await;
        assert_eq!(of_process.approvals.len(), 1);
        assert_eq!(of_process.approvals[0].name.as_deref(), Some("free"));

        // What another connection holds is decided by it, or by who says that it knows.
        let decide = json!({ "process": held, "approval": 1, "allow": true, "by": "other" });
        let error = refused(&other, "approval/decide", decide.clone()).await;
        assert_eq!(error.data.kind, ErrorKind::NotHolder, "{error}");
        assert_eq!(server.connections(), 0);
        let mut stolen = decide.clone();
        stolen["steal"] = json!(true);
        assert_eq!(call(&other, "approval/decide", stolen).await["told"], true);
        assert_eq!(
            record(&other, &held).await["approvals"]["grants"][0]["by"],
            "other"
        );
        let listed = call(&holder, "session/list", json!({})).await;
        assert_eq!(
            listed[0]["attached_here"], true,
            "the lease went with the answer: {listed}"
        );

        let deny = json!({ "process": free, "approval": 1, "allow": false, "by": "other" });
        call(&other, "approval/decide", deny.clone()).await;
        assert_eq!(record(&other, &free).await["approvals"]["refused"], 1);
        assert_eq!(server.connections(), 1);
        assert!(waiting(&other, json!({})).await.approvals.is_empty());

        // Afterwards, and for a number that never was, there are errors with a kind.
        let late = refused(&other, "approval/decide", deny).await;
        assert_eq!(late.data.kind, ErrorKind::Conflict, "{late}");
        assert!(late.message.contains("denied already, by `other`"), "{late}");
        let never = json!({ "process": free, "approval": 7, "allow": true });
        let error = refused(&other, "approval/decide", never).await;
        assert_eq!(error.data.kind, ErrorKind::NotFound, "{error}");
        let scoped = json!({ "process": free, "approval": 1, "allow": false, "scope": "process" });
        let error = refused(&other, "approval/decide", scoped).await;
        assert_eq!(error.data.kind, ErrorKind::InvalidParams, "{error}");
    });
}

fn i9_of_two_who_decide_one_wins_and_the_other_is_told_what_won(world: &World) {
    const ROUNDS: usize = 20;
    let served = Served::start(world);
    block_on(async {
        let (one, other) = (connect(&served).await, connect(&served).await);
        for _ in 0..ROUNDS {
            let process = start(&one, world, "9", json!({})).await;
            asks(&one, &process).await;
            let decide = async |client: &Client, allow: bool, by: &str| {
                let params = json!({ "process": process, "approval": 1, "allow": allow, "by": by });
                client.call::<Value>("approval/decide", &params).await
            };
            let (yes, no) = tokio::join!(decide(&one, true, "yes"), decide(&other, false, "no"));
            let (won, lost) = match (yes, no) {
                (Ok(_), Err(ClientError::Refused(error))) => ("yes", error),
                (Err(ClientError::Refused(error)), Ok(_)) => ("no", error),
                both => panic!("not one of them won: {both:?}"),
            };
            assert_eq!(lost.data.kind, ErrorKind::Conflict, "{lost}");
            assert!(
                lost.message.ends_with(&format!("by `{won}`")),
                "{won} won: {lost}"
            );
            let record = record(&one, &process).await;
            assert_eq!(record["approvals"]["requested"], 1);
            assert_eq!(
                record["approvals"]["allowed"],
                u64::from(won == "yes"),
                "{record}"
            );
            assert_eq!(decided_by(&one, &process).await, [won]);
        }
    });
}

fn a_deadline_that_passes_is_a_denial_in_the_record(world: &World) {
    let (served, server) = (Served::start(world), TcpServer::start());
    block_on(async {
        let client = connect(&served).await;
        let soon = json!({ "ask_timeout_ms": 200 });
        let process = start(&client, world, &server.port_text(), soon).await;
        let record = record(&client, &process).await;
        assert_eq!(
            (&record["denied"], &record["approvals"]["refused"]),
            (&json!(true), &json!(1))
        );
        assert_eq!(decided_by(&client, &process).await, ["deadline"]);
        assert_eq!(server.connections(), 0);
        let late = json!({ "process": process, "approval": 1, "allow": true });
        let late = refused(&client, "approval/decide", late).await;
        assert_eq!(late.data.kind, ErrorKind::Conflict, "{late}");
        assert!(late.message.contains("`deadline`"), "{late}");
    });
}

/// Three sessions, one in the other, held by one connection each; the processes of the innermost ask.
fn i9_the_holder_of_the_whole_sees_and_decides_what_is_asked_two_levels_down(world: &World) {
    let (served, server) = (Served::start(world), TcpServer::start());
    block_on(async {
        let (top, middle, bottom) = (
            connect(&served).await,
            connect(&served).await,
            connect(&served).await,
        );
        let outer = open(&top, json!({ "name": "outer" })).await;
        let mut forwarded = top
            .follow("session/follow", &json!({ "session": outer }))
            .await
            .expect("it is there");
        let part = open(&middle, json!({ "parent": outer })).await;
        let inner = open(&bottom, json!({ "parent": part })).await;
        for expected in [&part, &inner] {
            match forwarded.next_pushed().await {
                Some(Pushed::Session(event)) => {
                    assert_eq!(
                        (event.session.to_string(), event.event.as_str()),
                        (expected.clone(), "opened")
                    );
                }
                other => panic!("not told of a part that was opened: {other:?}"),
            }
        }
        let process = start(&bottom, world, &server.port_text(), json!({ "session": inner })).await;
        let approval = loop {
            let (session, event) = forwarded.next_tagged().await.expect("events of the parts");
            assert_eq!(session.map(|id| id.to_string()).as_ref(), Some(&inner));
            assert_eq!(event.process.to_string(), process);
            if let EventBody::ApprovalRequested { approval, .. } = event.body {
                break approval;
            }
        };
        let listed = waiting(&top, json!({ "session": "outer" })).await;
        assert_eq!(listed.approvals.len(), 1);
        // That its own holder goes leaves it to those who hold the whole.
        call(&bottom, "session/detach", json!({ "session": inner })).await;
        assert_eq!(
            waiting(&top, json!({})).await.approvals.len(),
            1,
            "nobody could answer any more"
        );
        let decide = json!({ "process": process, "approval": approval, "allow": true, "by": "top" });
        call(&top, "approval/decide", decide).await;
        assert_eq!(
            record(&top, &process).await["approvals"]["grants"][0]["by"],
            "top"
        );
        assert_eq!(server.connections(), 1);

        // Closing the whole closes what is in it, and the follower is told all of it first.
        let last = start(&top, world, "9", json!({ "session": inner })).await;
        asks(&top, &last).await;
        call(&top, "session/close", json!({ "session": outer })).await;
        let (mut closed, mut ended) = (Vec::new(), Vec::new());
        while let Some(pushed) = forwarded.next_pushed().await {
            match pushed {
                Pushed::Session(event) => closed.push((event.session.to_string(), event.event)),
                Pushed::Event(_, event) if matches!(event.body, EventBody::Terminal { .. }) => {
                    ended.push(event.process.to_string());
                }
                _ => {}
            }
        }
        closed.retain(|(_, event)| event == "closed");
        closed.sort();
        let mut parts = [part, inner].map(|id| (id, "closed".to_owned()));
        parts.sort();
        assert_eq!(closed, parts);
        assert_eq!(ended, [process, last.clone()]);
        // Whichever comes first: that it is to stop, or that it has.
        let by = decided_by(&top, &last).await;
        assert!(by == ["stopped"] || by == ["ended"], "{by:?}");
        assert_eq!(call(&top, "session/list", json!({})).await, json!([]));
    });
}

fn what_waits_is_denied_at_once_when_nobody_is_left_to_answer_and_when_it_stops(world: &World) {
    let served = Served::start(world);
    block_on(async {
        let (top, watching) = (connect(&served).await, connect(&served).await);
        let outer = open(&top, json!({ "name": "outer" })).await;
        // Nobody has the part itself: who has the whole answers for it.
        let part = open(&watching, json!({ "parent": outer })).await;
        call(&watching, "session/detach", json!({ "session": part })).await;
        let process = start(&top, world, "9", json!({ "session": part })).await;
        asks(&watching, &process).await;
        call(&top, "session/detach", json!({ "session": outer })).await;
        assert_eq!(record(&watching, &process).await["approvals"]["refused"], 1);
        assert_eq!(decided_by(&watching, &process).await, ["detached"]);

        call(&top, "session/attach", json!({ "sessions": [outer] })).await;
        let gone = start(&top, world, "9", json!({ "session": part })).await;
        asks(&watching, &gone).await;
        drop(top);
        record(&watching, &gone).await;
        assert_eq!(decided_by(&watching, &gone).await, ["detached"]);

        let stopped = start(&watching, world, "9", json!({})).await;
        asks(&watching, &stopped).await;
        call(&watching, "process/stop", json!({ "process": stopped })).await;
        let record = record(&watching, &stopped).await;
        assert_eq!(record["outcome"], "cancelled", "{record}");
        // Whichever comes first: that it is to stop, or that it has.
        let by = decided_by(&watching, &stopped).await;
        assert!(by == ["stopped"] || by == ["ended"], "{by:?}");
    });
}

fn i3_events_of_parts_are_forwarded_whole_and_in_order(world: &World) {
    const PROCESSES: usize = 30;
    const LINES: u64 = 200;
    let served = Served::start(world);
    block_on(async {
        let client = connect(&served).await;
        let outer = open(&client, json!({})).await;
        let mut forwarded = client
            .follow("session/follow", &json!({ "session": outer }))
            .await
            .expect("it is there");
        // Sessions that are gone before anybody could look for them are told of like the others.
        let script = format!("i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); done");
        let mut started = Vec::new();
        for _ in 0..PROCESSES {
            let part = open(&client, json!({ "parent": outer })).await;
            let inner = open(&client, json!({ "parent": part })).await;
            let params = json!({
                "argv": ["sh", "-c", script], "cwd": world.work(), "session": inner, "policy": "unconfined",
            });
            let process = call(&client, "process/start", params).await["process"].clone();
            let process = process.as_str().expect("an id").to_owned();
            record(&client, &process).await;
            call(&client, "session/close", json!({ "session": part })).await;
            started.push((process, inner));
        }
        call(&client, "session/close", json!({ "session": outer })).await;
        let mut told: std::collections::BTreeMap<String, Vec<Event>> = Default::default();
        while let Some(pushed) = forwarded.next_pushed().await {
            match pushed {
                Pushed::Event(session, event) => {
                    let process = event.process.to_string();
                    let inner = started
                        .iter()
                        .find(|(id, _)| *id == process)
                        .map(|(_, inner)| inner);
                    assert_eq!(session.map(|id| id.to_string()).as_ref(), inner);
                    told.entry(process).or_default().push(event);
                }
                Pushed::Session(_) | Pushed::Job(_) => {}
                Pushed::Gap(gap) => panic!("it keeps up: {gap:?}"),
            }
        }
        assert_eq!(told.len(), PROCESSES);
        for (process, events) in told {
            assert!(events.is_sorted_by(|one, next| one.seq < next.seq), "{process}");
            let last = &events.last().expect("events").body;
            let EventBody::Terminal { record } = last else {
                panic!("{process} has no record");
            };
            let bytes: usize = events
                .iter()
                .map(|event| match &event.body {
                    EventBody::Output { data, .. } => data.len(),
                    _ => 0,
                })
                .sum();
            assert_eq!(
                bytes as u64,
                record.output[&provost::StreamName::Stdout].bytes,
                "{process}"
            );
        }
    });
}

/// Runs a few floods in a part; how long that takes.
async fn floods(client: &Client, world: &World, session: &str) -> Duration {
    let begun = Instant::now();
    for _ in 0..4 {
        let params = json!({
            "argv": ["head", "-c", "20000000", "/dev/zero"], "cwd": world.work(), "session": session,
            "policy": "unconfined",
        });
        let process = call(client, "process/start", params).await["process"].clone();
        let record = record(client, process.as_str().expect("an id")).await;
        assert_eq!(record["output"]["stdout"]["bytes"], 20_000_000, "{record}");
    }
    begun.elapsed()
}

fn i3_a_follower_of_the_whole_that_stands_still_slows_nothing_and_keeps_nothing(world: &World) {
    const ROUNDS: usize = 4;
    const SHORT: usize = 100;
    let served = Served::start(world);
    block_on(async {
        let client = connect(&served).await;
        let outer = open(&client, json!({ "name": "outer" })).await;
        let part = open(&client, json!({ "parent": outer })).await;
        let unwatched = floods(&client, world, &part).await;
        // Reads nothing: one event may be sent, and is never acknowledged.
        let mut standing = provost_tests::LineClient::connect(served.socket());
        let follow = json!({ "session": outer, "window": 1 });
        let subscription =
            standing.call("session/follow", follow).expect("it is there")["subscription"].clone();
        let watched = floods(&client, world, &part).await;
        assert!(
            watched < 3 * unwatched + Duration::from_secs(1),
            "{unwatched:?} before, {watched:?} with the follower"
        );
        // What was forgotten is not kept for it: it is told where its events were cut off.
        let mut after_each = Vec::new();
        for _ in 0..ROUNDS {
            for _ in 0..SHORT {
                let params = json!({
                    "argv": ["head", "-c", "500000", "/dev/zero"], "cwd": world.work(), "session": part,
                    "policy": "unconfined",
                });
                let process = call(&client, "process/start", params).await["process"].clone();
                record(&client, process.as_str().expect("an id")).await;
                call(&client, "process/prune", json!({ "older_than_ms": 0 })).await;
            }
            let mut cut = 0;
            while cut < SHORT {
                let line = standing.notified().expect("the connection lasts");
                if line["method"] == "follow/gap" {
                    assert_eq!(line["params"]["subscription"], subscription, "{line}");
                    let processes = line["params"]["processes"].as_array().expect("which");
                    assert!(
                        processes
                            .iter()
                            .all(|process| process["session"] == part.as_str())
                    );
                    // Those of the floods before are forgotten with the first ones.
                    cut += processes.len();
                }
            }
            after_each.push(served.memory());
        }
        let (first, last) = (after_each[0], after_each[ROUNDS - 1]);
        let written = (ROUNDS - 1) as u64 * SHORT as u64 * 256_000;
        assert!(
            last.saturating_sub(first) < written / 3,
            "of {written} bytes that were kept for a while: {after_each:?}"
        );
    });
}

fn i12_another_user_sees_and_decides_nothing(world: &World) {
    require!(nix::unistd::geteuid().is_root(), "root, to become another user");
    require!(needs::command("setpriv"), "setpriv");
    let served = Served::start(world);
    let (process, session) = block_on(async {
        let client = connect(&served).await;
        let session = open(&client, json!({ "name": "mine" })).await;
        let process = start(&client, world, "9", json!({})).await;
        asks(&client, &process).await;
        (process, session)
    });
    open_socket(served.socket());
    let uid = (world.uid() + 64_321).to_string();
    let provost = provost_tests::provost();
    let stranger = |words: &[&str]| {
        let mut command = std::process::Command::new("setpriv");
        command
            .args(["--reuid", &uid, "--regid", &uid, "--clear-groups"])
            .arg(&provost)
            .args(words)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("PROVOST_SOCKET", served.socket())
            .current_dir("/");
        command.output().expect("setpriv")
    };
    let request = format!("{process}/1");
    for words in [
        &["approvals"][..],
        &["approvals", "--json", "--session", "mine"],
        &["approvals", &process],
        &["approve", &request],
        &["approve", "--steal", &request],
        &["deny", "--steal", &request],
    ] {
        let done = stranger(words);
        let said =
            String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        // Where root's daemon serves them, they have a daemon of their own, which knows of nothing.
        let empty = words[0] == "approvals" && said.lines().count() <= 1 && world.uid() == 0;
        assert!(done.status.code() == Some(125) || empty, "{words:?}: {said}");
        assert!(!said.contains(&session), "{words:?}: {said}");
        assert!(!said.contains("127.0.0.1"), "{words:?}: {said}");
    }
    block_on(async {
        let client = connect(&served).await;
        let left = waiting(&client, json!({})).await;
        assert_eq!(left.approvals.len(), 1, "somebody else decided");
        let decide = json!({ "process": process, "approval": 1, "allow": false, "by": "owner" });
        call(&client, "approval/decide", decide).await;
        assert_eq!(decided_by(&client, &process).await, ["owner"]);
    });
}

both_users!(
    what_waits_is_listed_and_decided_over_another_connection,
    i9_of_two_who_decide_one_wins_and_the_other_is_told_what_won,
    a_deadline_that_passes_is_a_denial_in_the_record,
    i9_the_holder_of_the_whole_sees_and_decides_what_is_asked_two_levels_down,
    what_waits_is_denied_at_once_when_nobody_is_left_to_answer_and_when_it_stops,
    i3_events_of_parts_are_forwarded_whole_and_in_order,
    i3_a_follower_of_the_whole_that_stands_still_slows_nothing_and_keeps_nothing,
    i12_another_user_sees_and_decides_nothing,
);
