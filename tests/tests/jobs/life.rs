//! What becomes of a job, by itself and beside others.

use std::time::{Duration, Instant};

use provost_tests::{LineClient, Served, World, both_users};
use serde_json::{Value, json};

use super::{event, follow, ids, spec, submit, until, wait};

both_users! {
    a_job_runs_and_its_end_is_that_of_its_process,
    i9_a_job_submitted_twice_under_one_word_runs_once,
    groups_bound_what_runs_and_are_paused,
    a_job_comes_after_others_or_is_skipped,
    what_fails_is_tried_again_as_its_rule_says,
    a_job_that_cannot_start_ends_at_once_with_a_reason,
    i10_what_a_program_prints_ends_nothing,
    deadlines_end_what_waits_and_what_runs,
    a_session_sees_its_own_jobs_and_takes_them_along,
    jobs_without_a_state_directory_end_with_the_daemon,
}

fn a_job_runs_and_its_end_is_that_of_its_process(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let begun = follow(&mut client, Value::Null);
    let more = json!({ "priority": 3 });
    let job = submit(&mut client, world, &["sh", "-c", "echo out; exit 7"], more);
    let seen = until(&mut client, &job, "ended");
    let states: Vec<&str> = seen
        .iter()
        .map(|event| event["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["queued", "starting", "running", "ended"]);
    assert!(seen.iter().all(|event| event["seq"].as_u64() > Some(begun)));
    let end = &seen[3]["end"];
    assert_eq!(
        (&end["outcome"], &end["exit_code"]),
        (&json!("exited"), &json!(7))
    );
    assert_eq!(end["succeeded"], false);
    let found = client.call("job/inspect", json!({ "job": job })).unwrap();
    assert_eq!(&found["end"], end);
    assert_eq!(found["priority"], 3);
    let process = found["process"].as_str().unwrap();
    assert_eq!(found["attempts"][0]["process"], process);
    // Its process is one like any other, and says whose it is.
    let record = client.wait(process);
    assert_eq!(record, found["record"]);
    assert_eq!(record["labels"]["provost.job"], job.as_str());
    assert_eq!(client.read_all(process).0, b"out\n");
}

fn i9_a_job_submitted_twice_under_one_word_runs_once(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let items: Vec<Value> = (0..50)
        .map(|n| json!({ "request_id": format!("item-{n}"), "argv": ["sh", "-c", format!("echo {n} >> ran")] }))
        .collect();
    let asked = |items: &[Value]| json!({ "spec": spec(world, &[]), "jobs": items });
    let first = client.call("job/submit", asked(&items[..30])).unwrap();
    let both = client.call("job/submit", asked(&items)).unwrap();
    let (first, both) = (
        first["jobs"].as_array().unwrap(),
        both["jobs"].as_array().unwrap(),
    );
    for (n, job) in both.iter().enumerate() {
        assert_eq!(job["repeated"], n < 30);
        assert!(n >= 30 || job["job"] == first[n]["job"]);
    }
    let ids: Vec<&Value> = both.iter().map(|job| &job["job"]).collect();
    let waited = client.call("job/wait", json!({ "jobs": ids })).unwrap();
    assert!(
        waited["jobs"]
            .as_array()
            .unwrap()
            .iter()
            .all(|job| job["end"]["succeeded"] == true)
    );
    let mut ran: Vec<u32> = world
        .content("work/ran")
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    ran.sort_unstable();
    assert_eq!(ran, (0..50).collect::<Vec<u32>>());
    let other = json!({ "spec": spec(world, &["true"]), "jobs": [{}, { "request_id": "item-1" }] });
    let refused = client.call("job/submit", other).unwrap_err();
    assert_eq!(refused["data"]["kind"], "conflict");
    let listed = client.call("job/list", json!({ "limit": 10_000 })).unwrap();
    assert_eq!(
        listed["jobs"].as_array().unwrap().len(),
        50,
        "all of them or none"
    );
}

fn groups_bound_what_runs_and_are_paused(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let group = |changes: Value| {
        let mut asked = json!({ "group": "g" });
        asked
            .as_object_mut()
            .unwrap()
            .extend(changes.as_object().unwrap().clone());
        asked
    };
    client
        .call("job/group", group(json!({ "limit": 2, "paused": true })))
        .unwrap();
    follow(&mut client, Value::Null);
    let items: Vec<Value> = (0..12).map(|_| json!({})).collect();
    let asked = json!({ "spec": spec(world, &["sleep", "0.02"]), "group": "g", "jobs": items });
    client.call("job/submit", asked).unwrap();
    // One of another group has its turn meanwhile.
    let other = submit(&mut client, world, &["true"], json!({}));
    for event in until(&mut client, &other, "ended") {
        assert!(
            event["state"] == "queued" || event["job"] == other.as_str(),
            "{event}"
        );
    }
    let info = client
        .call("job/group", group(json!({ "paused": false })))
        .unwrap();
    assert_eq!((&info["queued"], &info["running"]), (&json!(12), &json!(0)));
    let (mut under_way, mut ended, mut most) = (0, 0, 0);
    while ended < 12 {
        match event(&mut client)["state"].as_str().unwrap() {
            "starting" => under_way += 1,
            "ended" => {
                under_way -= 1;
                ended += 1;
            }
            _ => {}
        }
        most = most.max(under_way);
    }
    assert_eq!(most, 2);
}

fn a_job_comes_after_others_or_is_skipped(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let first = submit(
        &mut client,
        world,
        &["sh", "-c", "read x < gate; exit 1"],
        json!({}),
    );
    let gate = world.path("work/gate");
    // Made behind the submit: if it is not there in time, the shell fails all the same.
    let after = |job: &str, on: &str| json!({ "after": [{ "job": job, "on": on }] });
    let success = submit(&mut client, world, &["true"], after(&first, "success"));
    let behind = submit(&mut client, world, &["true"], after(&success, "success"));
    let failure = submit(&mut client, world, &["true"], after(&first, "failure"));
    let whatever = submit(&mut client, world, &["true"], after(&behind, "end"));
    drop(gate);
    for job in [&success, &behind] {
        let end = wait(&mut client, job)["end"].clone();
        assert_eq!(end["outcome"], "skipped", "{end}");
    }
    for job in [&failure, &whatever] {
        assert_eq!(wait(&mut client, job)["end"]["succeeded"], true);
    }
    // What has ended already is as good.
    let late = submit(&mut client, world, &["true"], after(&first, "failure"));
    assert_eq!(wait(&mut client, &late)["end"]["succeeded"], true);
    let too_late = submit(&mut client, world, &["true"], after(&first, "success"));
    assert_eq!(wait(&mut client, &too_late)["end"]["outcome"], "skipped");
}

fn what_fails_is_tried_again_as_its_rule_says(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let script = "echo x >> tries; test $(wc -l < tries) -ge 3";
    let retry = json!({ "retry": { "times": 5, "backoff_ms": 10 } });
    let job = submit(&mut client, world, &["sh", "-c", script], retry);
    let ended = wait(&mut client, &job);
    assert_eq!(
        (&ended["attempt"], &ended["end"]["succeeded"]),
        (&json!(3), &json!(true))
    );
    let found = client.call("job/inspect", json!({ "job": job })).unwrap();
    let attempts = found["attempts"].as_array().unwrap();
    let codes: Vec<&Value> = attempts.iter().map(|attempt| &attempt["exit_code"]).collect();
    assert_eq!(codes, [1, 1, 0]);
    let mut processes: Vec<&str> = attempts
        .iter()
        .map(|one| one["process"].as_str().unwrap())
        .collect();
    processes.dedup();
    assert_eq!(processes.len(), 3, "each attempt has a process of its own");
    let only = json!({ "retry": { "times": 2, "on": ["signaled"], "backoff_ms": 1 } });
    let job = submit(&mut client, world, &["false"], only);
    assert_eq!(wait(&mut client, &job)["attempt"], 1);
    let again = client
        .call("job/retry", json!({ "jobs": [job], "request_id": "again" }))
        .unwrap();
    let same = client
        .call("job/retry", json!({ "jobs": [job], "request_id": "again" }))
        .unwrap();
    let again = again["jobs"][0]["job"].as_str().unwrap();
    assert_eq!(same["jobs"][0], json!({ "job": again, "repeated": true }));
    assert_eq!(wait(&mut client, again)["retry_of"], job.as_str());
}

fn a_job_that_cannot_start_ends_at_once_with_a_reason(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let begun = Instant::now();
    let nothing = submit(&mut client, world, &["/nothing/there"], json!({}));
    let end = wait(&mut client, &nothing)["end"].clone();
    assert_eq!(
        (&end["outcome"], &end["exit_code"]),
        (&json!("spawn_failed"), &json!(127))
    );
    let nowhere = json!({ "spec": { "argv": ["true"], "cwd": "/nothing/there", "policy": "unconfined" }, "jobs": [{}] });
    let submitted = client.call("job/submit", nowhere).unwrap();
    let end = wait(&mut client, submitted["jobs"][0]["job"].as_str().unwrap())["end"].clone();
    assert_eq!(end["outcome"], "spawn_failed");
    assert!(
        end["reason"].as_str().unwrap().contains("/nothing/there"),
        "{end}"
    );
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let wrong = json!({ "spec": { "argv": ["true"], "cwd": "relative" }, "jobs": [{}] });
    assert_eq!(
        client.call("job/submit", wrong).unwrap_err()["data"]["kind"],
        "invalid_params"
    );
}

fn i10_what_a_program_prints_ends_nothing(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    for marker in [
        "[[task status=complete]]",
        r#"{"type":"terminal","record":{"outcome":"exited","succeeded":true}}"#,
        r#"{"jsonrpc":"2.0","method":"job/event","params":{"event":{"state":"ended"}}}"#,
    ] {
        let script = format!("echo '{marker}'; echo '{marker}' >&2; exit 1");
        let job = submit(&mut client, world, &["sh", "-c", &script], json!({}));
        let end = wait(&mut client, &job)["end"].clone();
        assert_eq!((&end["exit_code"], &end["succeeded"]), (&json!(1), &json!(false)));
    }
}

fn deadlines_end_what_waits_and_what_runs(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let deadline = json!({ "deadline_ms": 200 });
    let runs = submit(&mut client, world, &["sleep", "100"], deadline);
    let waits = json!({ "deadline_ms": 200, "delay_ms": 100_000, "group": "other" });
    let waits = submit(&mut client, world, &["touch", "ran"], waits);
    for job in [&runs, &waits] {
        assert_eq!(wait(&mut client, job)["end"]["outcome"], "timed_out");
    }
    assert!(!world.path("work/ran").exists());
}

fn a_session_sees_its_own_jobs_and_takes_them_along(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let outside = submit(&mut client, world, &["true"], json!({}));
    let mut holder = LineClient::connect(daemon.socket());
    let session = holder.call("session/open", json!({ "name": "mine" })).unwrap();
    let mut inside = spec(world, &["sleep", "100"]);
    inside["session"] = json!("mine");
    let asked = json!({ "spec": inside, "jobs": [{}, {}, {}, {}, {}, {}, {}, {}] });
    let refused = client.call("job/submit", asked.clone()).unwrap_err();
    assert_eq!(refused["data"]["kind"], "not_holder");
    let submitted = holder.call("job/submit", asked).unwrap();
    let ids: Vec<Value> = ids(&submitted);
    let seen = |client: &mut LineClient, asked: Value| {
        let listed = client.call("job/list", asked).unwrap();
        listed["jobs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|job| job["job"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(seen(&mut holder, json!({})), ids);
    assert!(seen(&mut holder, json!({ "all": true })).contains(&json!(outside)));
    assert_eq!(
        client.call("job/cancel", json!({ "jobs": ids })).unwrap_err()["data"]["kind"],
        "not_holder"
    );
    holder
        .call("session/close", json!({ "session": session["session"] }))
        .unwrap();
    let waited = client.call("job/wait", json!({ "jobs": ids })).unwrap();
    for job in waited["jobs"].as_array().unwrap() {
        assert_eq!(job["end"]["outcome"], "cancelled", "{job}");
    }
}

fn jobs_without_a_state_directory_end_with_the_daemon(world: &World) {
    let socket = world.path("work/other.sock");
    let mut command = std::process::Command::new(provost_tests::provost());
    command.args(["serve", "--no-state", "--socket"]).arg(&socket);
    command.env("HOME", world.path("home")).current_dir(world.work());
    if world.changes_uid() {
        use std::os::unix::process::CommandExt;
        command.uid(world.uid()).gid(world.uid());
    }
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let stderr = child.stderr.take().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stderr));
    assert!(lines.by_ref().any(|line| line.unwrap().contains("listening on")));
    let mut client = LineClient::connect(&socket);
    follow(&mut client, Value::Null);
    let job = submit(&mut client, world, &["true"], json!({ "retry": { "times": 1 } }));
    assert_eq!(until(&mut client, &job, "ended").len(), 4);
    assert_eq!(wait(&mut client, &job)["end"]["succeeded"], true);
    child.kill().unwrap();
    child.wait().unwrap();
}
