//! I8 for jobs: the daemon may die at any instant.

use provost_tests::{LineClient, Served, World, asked_until, both_users};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};

use super::{follow, spec, submit, wait};

both_users! {
    i8_two_hundred_jobs_over_kills_of_the_daemon_end_once_each,
    i8_a_cancel_that_was_written_down_holds_over_a_kill,
}

fn i8_two_hundred_jobs_over_kills_of_the_daemon_end_once_each(world: &World) {
    let mut daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let begun = follow(&mut client, Value::Null);
    client
        .call("job/group", json!({ "group": "many", "limit": 8 }))
        .unwrap();
    let items: Vec<Value> = (0..200)
        .map(|n| {
            let script = format!("echo {n} >> ran; sleep 0.0{}; exit {}", n % 7, n % 3);
            json!({ "request_id": format!("many-{n}"), "argv": ["sh", "-c", script] })
        })
        .collect();
    let asked = json!({ "spec": spec(world, &[]), "group": "many", "jobs": items });
    let submitted = client.call("job/submit", asked.clone()).unwrap();
    let ids: Vec<String> = submitted["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job["job"].as_str().unwrap().to_owned())
        .collect();
    // Each time some have ended, some run, some are about to, most wait.
    for round in 0..6 {
        let mut ended = 0;
        while ended < 12 + round {
            ended += usize::from(super::event(&mut client)["state"] == "ended");
        }
        drop(client);
        daemon.crash();
        daemon = Served::start(world);
        client = LineClient::connect(daemon.socket());
        follow(&mut client, Value::Null);
    }
    let again = client.call("job/submit", asked).unwrap();
    for (job, id) in again["jobs"].as_array().unwrap().iter().zip(&ids) {
        assert_eq!(job, &json!({ "job": id, "repeated": true }));
    }
    let waited = client.call("job/wait", json!({ "jobs": ids })).unwrap();
    let waited = waited["jobs"].as_array().unwrap();
    let ran: Vec<usize> = world
        .content("work/ran")
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    let mut times: BTreeMap<usize, usize> = BTreeMap::new();
    ran.iter().for_each(|n| *times.entry(*n).or_default() += 1);
    for (n, job) in waited.iter().enumerate() {
        let ran = times.get(&n).copied().unwrap_or_default();
        match job["end"]["outcome"].as_str().unwrap() {
            "exited" => assert_eq!(
                (ran, job["end"]["exit_code"].as_u64()),
                (1, Some(n as u64 % 3)),
                "{job}"
            ),
            // Listed as what it is: nothing of it ran.
            "interrupted" => assert_eq!(ran, 0, "{job}"),
            other => panic!("{other}: {job}"),
        }
    }
    // Every change is told once, over all those daemons, and the end is the last.
    let mut reader = LineClient::connect(daemon.socket());
    follow(&mut reader, json!(begun));
    let mut ends: HashSet<String> = HashSet::new();
    let mut last = begun;
    while ends.len() < ids.len() {
        let event = super::event(&mut reader);
        let job = event["job"].as_str().unwrap().to_owned();
        assert!(event["seq"].as_u64() > Some(last), "{event}");
        last = event["seq"].as_u64().unwrap();
        assert!(!ends.contains(&job), "something behind its end: {event}");
        if event["state"] == "ended" {
            ends.insert(job);
        }
    }
}

fn i8_a_cancel_that_was_written_down_holds_over_a_kill(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    follow(&mut client, Value::Null);
    // It does not follow a request to end, and so the daemon can be killed meanwhile.
    let script = "trap '' TERM; while :; do sleep 0.1; done";
    let mut asked = spec(world, &["sh", "-c", script]);
    asked["grace_ms"] = json!(2000);
    let submitted = client.call(
        "job/submit",
        json!({ "spec": asked, "jobs": [{}], "retry": { "times": 3 } }),
    );
    let job = submitted.unwrap()["jobs"][0]["job"].as_str().unwrap().to_owned();
    super::until(&mut client, &job, "running");
    let queued = submit(
        &mut client,
        world,
        &["touch", "never"],
        json!({ "delay_ms": 1_000_000 }),
    );
    client.call("job/cancel", json!({ "jobs": [queued] })).unwrap();
    client.ask("job/cancel", json!({ "jobs": [job], "reason": "not needed" }));
    let cancelling = |client: &mut LineClient| {
        let found = client.call("job/list", json!({ "states": ["running"] })).unwrap();
        found["jobs"][0]["cancelling"] == true
    };
    asked_until("its cancelling", || cancelling(&mut client));
    daemon.crash();
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let ended = wait(&mut client, &job);
    assert_eq!(ended["end"]["outcome"], "cancelled", "{ended}");
    assert_eq!(ended["attempt"], 1);
    assert_eq!(wait(&mut client, &queued)["end"]["outcome"], "cancelled");
}
