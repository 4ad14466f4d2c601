//! The daemon: sessions that change hands, readers that come and go, and what is left when a client dies.

use std::collections::HashSet;

use provost::client::{Client, ClientError};
use provost::protocol::ErrorKind;
use provost::{Event, EventBody};
use provost_tests::asking::{block_on, call, connect, follow, refused};
use provost_tests::{Served, World, both_users, program};
use serde_json::{Value, json};

/// Starts a shell script; its id.
async fn start(client: &Client, world: &World, script: &str, more: Value) -> String {
    let mut params = json!({ "argv": ["sh", "-c", script], "cwd": world.work() });
    for (key, value) in more.as_object().into_iter().flatten() {
        params[key] = value.clone();
    }
    let started = call(client, "process/start", params).await;
    started["process"].as_str().expect("an id").to_owned()
}

/// The bytes of an event, where it has any.
fn bytes(event: &Event) -> &[u8] {
    match &event.body {
        EventBody::Output { data, .. } => data,
        _ => b"",
    }
}

/// Numbers from 1 on, one a line, each a millisecond or so after the one before.
const COUNTER: &str = "n=0; while [ $n -lt 3000 ]; do n=$((n+1)); echo $n; sleep 0.001; done";

/// Checks that these are the numbers from 1 on, each once, and says how many.
fn numbers(output: &[u8]) -> usize {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let whole = index + 1 < lines.len() || text.ends_with('\n');
        assert!(
            !whole || *line == (index + 1).to_string(),
            "line {index} is `{line}`"
        );
    }
    lines.len()
}

fn i7_a_client_that_dies_is_followed_by_another_without_a_byte_or_a_number_missing(world: &World) {
    let served = Served::start(world);
    block_on(async {
        let first = connect(&served).await;
        let process = start(&first, world, COUNTER, json!({ "max_output": 262_144 })).await;
        let mut followed = follow(&first, &process, 0).await;
        let (mut output, mut seqs) = (Vec::new(), Vec::new());
        while output.len() < 2000 {
            let event = followed.next().await.expect("it runs on");
            output.extend_from_slice(bytes(&event));
            seqs.push(event.seq);
        }
        // Without a word, as by kill -9.
        drop(followed);
        drop(first);
        let second = connect(&served).await;
        let mut followed = follow(&second, &process, *seqs.last().expect("some")).await;
        while let Some(event) = followed.next().await {
            output.extend_from_slice(bytes(&event));
            seqs.push(event.seq);
            let ended = matches!(event.body, EventBody::Terminal { .. });
            // It need not count to its end for this.
            if !ended && output.len() > 9000 {
                call(&second, "process/kill", json!({ "process": process })).await;
            }
        }
        assert!(numbers(&output) > 1500);
        let whole: Vec<u64> = (1..=seqs.len() as u64).collect();
        assert_eq!(seqs, whole, "seq without a hole");
    });
}

fn i9_fifty_hand_overs_of_twenty_one_sessions_lose_nothing(world: &World) {
    let served = Served::start(world);
    block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        let (socket, work) = (served.socket().to_owned(), world.work());
        for number in 0..21 {
            let (socket, work) = (socket.clone(), work.clone());
            tasks.spawn(async move {
                let mut client = Client::connect(&socket).await.expect("a daemon");
                let name = format!("s{number}");
                let session = call(&client, "session/open", json!({ "name": name })).await;
                let session = session["session"].as_str().expect("an id").to_owned();
                let argv = json!(["sh", "-c", "n=0; while read x; do n=$((n+1)); echo $n; done"]);
                let params = json!({ "argv": argv, "cwd": work, "session": session, "stdin": true });
                let process = call(&client, "process/start", params).await;
                let process = process["process"].as_str().expect("an id").to_owned();
                let (mut output, mut after) = (Vec::new(), 0);
                for round in 0..50 {
                    let params = json!({ "process": process, "data": "Cg==", "offset": round });
                    call(&client, "process/write", params).await;
                    let moved = call(&client, "session/detach", json!({ "session": session })).await;
                    assert_eq!(moved["moved"], json!([session]));
                    assert_eq!(moved["processes"], json!([process]));
                    let other = Client::connect(&socket).await.expect("a daemon");
                    let moved = call(&other, "session/attach", json!({ "sessions": [session] })).await;
                    assert_eq!(moved["moved"], json!([session]), "{moved}");
                    client = other;
                    let params = json!({ "process": process, "after_seq": after, "wait_ms": 10 });
                    let read = call(&client, "process/read", params).await;
                    after = read["next_seq"].as_u64().expect("a number");
                    take(&read, &mut output);
                }
                let params = json!({ "process": process, "close": true });
                call(&client, "process/write", params).await;
                call(&client, "process/wait", json!({ "process": process })).await;
                let read = call(
                    &client,
                    "process/read",
                    json!({ "process": process, "after_seq": after }),
                )
                .await;
                take(&read, &mut output);
                assert_eq!(read["ended"], true);
                assert_eq!(numbers(&output), 50);
                let events = call(&client, "process/read", json!({ "process": process })).await;
                let moves = |kind: &str| {
                    let events = events["events"].as_array().expect("events");
                    events.iter().filter(|event| event["type"] == kind).count()
                };
                assert_eq!((moves("detached"), moves("attached")), (50, 50));
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("no task panics");
        }
    });
}

fn take(read: &Value, output: &mut Vec<u8>) {
    for event in read["events"].as_array().expect("events") {
        let event: Event = serde_json::from_value(event.clone()).expect("an event");
        output.extend_from_slice(bytes(&event));
    }
}

fn i2_after_the_record_nothing_more_is_asked_and_it_stays_the_same(world: &World) {
    let served = Served::start(world);
    block_on(async {
        let client = connect(&served).await;
        let process = start(&client, world, "echo out; echo err >&2; exit 3", json!({})).await;
        let mut followed = follow(&client, &process, 0).await;
        let mut record = None;
        let mut count = 0;
        while let Some(event) = followed.next().await {
            count += 1;
            assert_eq!(event.seq, count);
            if let EventBody::Terminal { record: sealed } = event.body {
                record = Some(sealed);
                break;
            }
        }
        let record = record.expect("a terminal event");
        assert_eq!((record.exit_code, record.last_seq), (Some(3), count));
        assert_eq!(record.output.values().map(|stream| stream.bytes).sum::<u64>(), 8);
        // Whoever asks later is told the very same, in every way there is.
        let sealed = serde_json::to_value(&record).expect("JSON");
        let other = connect(&served).await;
        for _ in 0..2 {
            let waited = call(&other, "process/wait", json!({ "process": process })).await;
            assert_eq!(waited["record"], sealed);
            let read = call(
                &other,
                "process/read",
                json!({ "process": process, "after_seq": count - 1 }),
            )
            .await;
            assert_eq!(read["events"][0]["record"], sealed);
            assert_eq!(read["ended"], true);
            let inspected = call(&other, "process/inspect", json!({ "process": process })).await;
            assert_eq!(inspected["record"], sealed);
        }
    });
}

/// Processes whose command line has this word in it.
fn living(word: &str) -> usize {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    processes
        .filter(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line)
                .split('\0')
                .any(|argument| argument == word)
        })
        .count()
}

fn i6_a_session_ends_or_goes_on_without_its_client_as_it_was_opened(world: &World) {
    let served = Served::start(world);
    block_on(async {
        let watcher = connect(&served).await;
        let client = connect(&served).await;
        let mut processes = Vec::new();
        // A number that nobody else sleeps for.
        let seconds = |rule: &str| format!("{}.{}", 1000 + rule.len(), served.pid());
        for rule in ["stop", "detach"] {
            let opened = call(
                &client,
                "session/open",
                json!({ "name": rule, "on_disconnect": rule }),
            )
            .await;
            let script = format!("setsid sleep {0} & sleep {0}", seconds(rule));
            let more = json!({ "session": opened["session"] });
            processes.push(start(&client, world, &script, more).await);
        }
        for rule in ["stop", "detach"] {
            while living(&seconds(rule)) < 2 {
                tokio::task::yield_now().await;
            }
        }
        drop(client);
        let waited = call(&watcher, "process/wait", json!({ "process": processes[0] })).await;
        assert_eq!(waited["record"]["outcome"], "cancelled", "{waited}");
        assert_eq!(
            living(&seconds("stop")),
            0,
            "nothing of it is left when its record is there"
        );
        assert_eq!(living(&seconds("detach")), 2);
        let sessions = call(&watcher, "session/list", json!({})).await;
        assert_eq!(sessions.as_array().map(Vec::len), Some(1), "{sessions}");
        assert_eq!(sessions[0]["attached"], false);
        let cleaned = call(&watcher, "session/clean", json!({})).await;
        assert_eq!(cleaned["processes"], json!([processes[1]]));
        assert_eq!(
            living(&seconds("detach")),
            0,
            "what was cleaned is over when that is answered"
        );
    });
}

fn i9_a_session_that_is_taken_over_is_lost_to_its_holder_who_is_told(world: &World) {
    let served = Served::start(world);
    block_on(async {
        let (one, other) = (connect(&served).await, connect(&served).await);
        let mut told = one.session_events();
        let opened = call(&one, "session/open", json!({ "name": "mine" })).await;
        let session = opened["session"].clone();
        let process = start(&one, world, "cat", json!({ "session": session, "stdin": true })).await;
        let moved = call(
            &other,
            "session/attach",
            json!({ "sessions": ["mine", "absent"] }),
        )
        .await;
        assert_eq!(moved["moved"], json!([]));
        assert_eq!(moved["skipped"].as_array().map(Vec::len), Some(2), "{moved}");
        let write = json!({ "process": process, "data": "YQ==" });
        let error = refused(&other, "process/write", write.clone()).await;
        assert_eq!(error.data.kind, ErrorKind::NotHolder);
        let moved = call(
            &other,
            "session/attach",
            json!({ "sessions": ["mine"], "steal": true }),
        )
        .await;
        assert_eq!(moved["moved"], json!([session]));
        let lost = told.recv().await.expect("a word about it");
        assert_eq!(
            (lost.event.as_str(), json!(lost.session)),
            ("lost", session.clone())
        );
        assert_eq!(
            refused(&one, "process/write", write.clone()).await.data.kind,
            ErrorKind::NotHolder
        );
        assert_eq!(
            refused(&one, "process/kill", json!({ "process": process }))
                .await
                .code,
            -32004
        );
        assert_eq!(
            refused(&one, "session/detach", json!({ "session": session }))
                .await
                .data
                .kind,
            ErrorKind::NotHolder
        );
        // Reading is everybody's of the same user.
        assert_eq!(
            call(&one, "process/read", json!({ "process": process })).await["ended"],
            false
        );
        call(
            &other,
            "process/write",
            json!({ "process": process, "data": "YQ==", "close": true }),
        )
        .await;
        let waited = call(&one, "process/wait", json!({ "process": process })).await;
        assert_eq!(waited["record"]["output"]["stdout"]["bytes"], 1, "{waited}");
        let absent = call(&other, "session/detach", json!({ "session": "absent" })).await;
        assert_eq!(absent["moved"], json!([]));
    });
}

fn parts_of_a_session_are_told_to_its_followers_and_close_with_it(world: &World) {
    let served = Served::start(world);
    block_on(async {
        let (parent, agent) = (connect(&served).await, connect(&served).await);
        let whole = call(&parent, "session/open", json!({ "name": "whole" })).await["session"].clone();
        let part =
            call(&agent, "session/open", json!({ "name": "part", "parent": whole })).await["session"]
                .clone();
        let mut told = parent
            .follow("session/follow", &json!({ "session": whole }))
            .await
            .expect("a session");
        let script = "echo from the part; exec sleep 1000";
        let process = start(&agent, world, script, json!({ "session": part })).await;
        loop {
            let (session, event) = told.next_tagged().await.expect("the part's events");
            assert_eq!(json!(session), part);
            assert_eq!(event.process.to_string(), process);
            if bytes(&event) == b"from the part\n" {
                break;
            }
        }
        // Who has the whole may end what is in its parts.
        let closed = call(&parent, "session/close", json!({ "session": "whole" })).await;
        assert_eq!(closed["moved"], json!([part, whole]));
        assert_eq!(closed["processes"], json!([process]));
        let waited = call(&agent, "process/wait", json!({ "process": process })).await;
        assert_eq!(waited["record"]["outcome"], "cancelled");
        assert_eq!(waited["record"]["session"], part);
        let mut last = None;
        while let Some(event) = told.next().await {
            last = Some(event);
        }
        assert!(matches!(last.expect("events").body, EventBody::Terminal { .. }));
    });
}

fn what_waits_for_an_answer_is_refused_when_nobody_holds_the_session(world: &World) {
    let served = Served::start(world);
    block_on(async {
        let client = connect(&served).await;
        let policy = world.file(
            "home/ask.toml",
            "version = 1\nextends = \"workspace-write\"\n[net]\nmode = \"ask\"\n",
        );
        let session = call(&client, "session/open", json!({ "name": "s" })).await["session"].clone();
        let argv = json!([program("escape"), "tcp-connect", "127.0.0.1", "9"]);
        let params = json!({
            "argv": argv, "cwd": world.work(), "session": session, "policy": policy, "ask_timeout_ms": 3_600_000,
        });
        let process = call(&client, "process/start", params).await["process"].clone();
        let mut followed = client
            .follow("process/follow", &json!({ "process": process }))
            .await
            .expect("a process");
        loop {
            let event = followed.next().await.expect("events");
            if matches!(event.body, EventBody::ApprovalRequested { .. }) {
                break;
            }
        }
        call(&client, "session/detach", json!({ "session": session })).await;
        let waited = call(&client, "process/wait", json!({ "process": process })).await;
        assert_eq!(waited["record"]["approvals"]["refused"], 1, "{waited}");
        assert_eq!(waited["record"]["denied"], true);
        let read = call(&client, "process/read", json!({ "process": process })).await;
        let decided: Vec<&Value> = read["events"]
            .as_array()
            .expect("events")
            .iter()
            .filter(|event| event["type"] == "approval_decided")
            .collect();
        assert_eq!(decided.len(), 1);
        assert_eq!(decided[0]["by"], "detached", "{read}");
    });
}

fn a_start_and_a_write_can_be_said_again(world: &World) {
    let served = Served::start(world);
    block_on(async {
        let (one, other) = (connect(&served).await, connect(&served).await);
        let params = json!({
            "argv": ["cat"], "cwd": world.work(), "stdin": true, "request_id": "once", "name": "only",
        });
        let asked = |client: &Client| {
            let (client, params) = (client.clone(), params.clone());
            async move { call(&client, "process/start", params).await }
        };
        let (first, second) = tokio::join!(asked(&one), asked(&other));
        assert_eq!(first["process"], second["process"]);
        let repeated: HashSet<bool> = [&first, &second]
            .map(|started| started["repeated"] == true)
            .into();
        assert_eq!(repeated.len(), 2, "one started it: {first} {second}");
        let mut different = params.clone();
        different["argv"] = json!(["true"]);
        assert_eq!(
            refused(&one, "process/start", different).await.data.kind,
            ErrorKind::Conflict
        );
        let write =
            |data: &str, offset: u64| json!({ "process": "only", "data": data, "offset": offset });
        assert_eq!(call(&one, "process/write", write("YWJj", 0)).await["offset"], 3);
        assert_eq!(
            call(&other, "process/write", write("YWJjZGVm", 0)).await["offset"],
            6
        );
        assert_eq!(
            refused(&one, "process/write", write("eA==", 7)).await.data.kind,
            ErrorKind::Conflict
        );
        call(&one, "process/write", json!({ "process": "only", "close": true })).await;
        let read = json!({ "process": "only" });
        call(&one, "process/wait", read.clone()).await;
        let mut output = Vec::new();
        take(&call(&one, "process/read", read).await, &mut output);
        assert_eq!(output, b"abcdef");
    });
}

fn i12_processes_run_as_whoever_asked(world: &World) {
    let served = Served::start(world);
    block_on(async {
        let client = connect(&served).await;
        assert_eq!(client.server().uid, world.uid());
        let process = start(&client, world, "id -u; id -g; umask; touch made", json!({})).await;
        let read = json!({ "process": process });
        call(&client, "process/wait", read.clone()).await;
        let mut output = Vec::new();
        take(&call(&client, "process/read", read).await, &mut output);
        let uid = world.uid();
        let text = String::from_utf8_lossy(&output).into_owned();
        assert!(text.starts_with(&format!("{uid}\n{uid}\n")), "{text}");
    });
}

fn i6_a_daemon_that_is_told_to_stop_leaves_nothing_and_tells_its_followers(world: &World) {
    let served = Served::start(world);
    let seconds = format!("1000.{}", served.pid());
    block_on(async {
        let client = connect(&served).await;
        let session = call(&client, "session/open", json!({})).await["session"].clone();
        let script = format!("setsid sleep {seconds} & sleep {seconds}");
        let mut followed = Vec::new();
        for session in [json!(null), session] {
            let process = start(&client, world, &script, json!({ "session": session })).await;
            followed.push(follow(&client, &process, 0).await);
        }
        while living(&seconds) < 4 {
            tokio::task::yield_now().await;
        }
        served.signal(nix::sys::signal::Signal::SIGTERM);
        for followed in &mut followed {
            let mut last = None;
            while let Some(event) = followed.next().await {
                last = Some(event);
            }
            let EventBody::Terminal { record } = last.expect("events").body else {
                panic!("the last event is the record");
            };
            assert_eq!(record.outcome, provost::Outcome::Cancelled);
        }
    });
    assert!(served.stop_signalled().success());
    assert_eq!(living(&seconds), 0);
}

fn a_session_nobody_takes_up_in_time_is_stopped(world: &World) {
    let served = Served::start(world);
    block_on(async {
        let (client, watcher) = (connect(&served).await, connect(&served).await);
        let opened = call(&client, "session/open", json!({ "ttl_ms": 200 })).await;
        let process = start(
            &client,
            world,
            "exec sleep 1000",
            json!({ "session": opened["session"] }),
        )
        .await;
        drop(client);
        let waited = call(&watcher, "process/wait", json!({ "process": process })).await;
        assert_eq!(
            waited["record"]["reason"], "nobody attached it in time",
            "{waited}"
        );
    });
}

fn a_process_that_does_not_read_holds_up_only_who_writes_to_it(world: &World) {
    let served = Served::start(world);
    block_on(async {
        let client = connect(&served).await;
        let deaf = start(&client, world, "exec sleep 1000", json!({ "stdin": true })).await;
        let reads = start(&client, world, "cat", json!({ "stdin": true })).await;
        let much = "QUFB".repeat(100_000);
        let stuck = {
            let (client, deaf) = (client.clone(), deaf.clone());
            tokio::spawn(async move {
                client
                    .call::<Value>("process/write", &json!({ "process": deaf, "data": much }))
                    .await
            })
        };
        for offset in 0..100 {
            let params = json!({ "process": reads, "data": "QQ==", "offset": offset });
            call(&client, "process/write", params).await;
        }
        call(&client, "process/kill", json!({ "process": deaf })).await;
        let error = stuck.await.expect("no panic").expect_err("it was never read");
        assert!(
            matches!(&error, ClientError::Refused(error) if error.data.kind == ErrorKind::Ended),
            "{error}"
        );
    });
}

both_users!(
    i7_a_client_that_dies_is_followed_by_another_without_a_byte_or_a_number_missing,
    i9_fifty_hand_overs_of_twenty_one_sessions_lose_nothing,
    i2_after_the_record_nothing_more_is_asked_and_it_stays_the_same,
    i6_a_session_ends_or_goes_on_without_its_client_as_it_was_opened,
    i9_a_session_that_is_taken_over_is_lost_to_its_holder_who_is_told,
    parts_of_a_session_are_told_to_its_followers_and_close_with_it,
    what_waits_for_an_answer_is_refused_when_nobody_holds_the_session,
    a_start_and_a_write_can_be_said_again,
    i12_processes_run_as_whoever_asked,
    i6_a_daemon_that_is_told_to_stop_leaves_nothing_and_tells_its_followers,
    a_session_nobody_takes_up_in_time_is_stopped,
    a_process_that_does_not_read_holds_up_only_who_writes_to_it,
);
