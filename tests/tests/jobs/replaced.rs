//! Jobs over a daemon that is replaced: they are as they were, and nobody who waits notices.

use std::time::Instant;

use provost_tests::{DEADLINE, LineClient, Served, World, both_users};
use serde_json::{Value, json};

use super::clients::command;
use super::{all_ran_once, event, follow, ids, spec, submit, until_running, wait};

both_users! {
    i8_jobs_are_over_replacements_what_they_were,
    i8_no_job_is_caught_between_intent_and_start_by_a_replacement,
}

/// These jobs, as they are listed.
fn listed(client: &mut LineClient, jobs: &[&String]) -> Vec<Value> {
    let all = client.call("job/list", json!({})).unwrap();
    let all = all["jobs"].as_array().unwrap().iter();
    let of_ours = |job: &&Value| jobs.iter().any(|id| job["job"] == id.as_str());
    all.filter(of_ours).cloned().collect()
}

fn i8_jobs_are_over_replacements_what_they_were(world: &World) {
    let mut daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    follow(&mut client, Value::Null);
    let group = json!({ "group": "one", "limit": 1 });
    client.call("job/group", group).unwrap();
    let script = "while ! test -e go; do sleep 0.02; done; exit 5";
    let one = json!({ "group": "one" });
    let runs = submit(&mut client, world, &["sh", "-c", script], one.clone());
    let queued = submit(&mut client, world, &["sh", "-c", "echo queued >> ran"], one);
    let far = submit(&mut client, world, &["true"], json!({ "delay_ms": 1_000_000 }));
    let soon = submit(&mut client, world, &["true"], json!({ "delay_ms": 3000 }));
    let due = submit(
        &mut client,
        world,
        &["sleep", "1000"],
        json!({ "deadline_ms": 3000 }),
    );
    let after = json!({ "after": [{ "job": runs, "on": "failure" }] });
    let after = submit(&mut client, world, &["sh", "-c", "echo after >> ran"], after);
    until_running(&mut client, &[&runs, &due]);
    let jobs = [&runs, &queued, &far, &after];
    let before = listed(&mut client, &jobs);
    assert_eq!(before.len(), jobs.len());
    let mut waiters = [(&runs, 5), (&queued, 0), (&after, 0), (&due, 124)].map(|(job, code)| {
        let waiter = command(world, &daemon, &["wait", "-q", job]).spawn();
        (waiter.unwrap(), code)
    });
    let deadline = Instant::now() + DEADLINE;
    while client.call("daemon/status", json!({})).unwrap()["clients"] != 1 + waiters.len() {
        assert!(Instant::now() < deadline, "they do not connect");
    }
    for _ in 0..3 {
        daemon = daemon.replace(world, &[]);
        client = LineClient::connect(daemon.socket());
        assert_eq!(listed(&mut client, &jobs), before);
    }
    world.file("work/go", "");
    for (waiter, code) in &mut waiters {
        assert_eq!(waiter.wait().unwrap().code(), Some(*code));
    }
    let time = |value: &Value| value.as_str().unwrap().to_owned();
    let ended = wait(&mut client, &due);
    assert_eq!(ended["end"]["outcome"], "timed_out", "{ended}");
    // Which was said when it was submitted, and its process is told in whole milliseconds.
    let lasted = ended["end"]["duration_ms"].as_u64().unwrap();
    assert!((2000..10_000).contains(&lasted), "{ended}");
    let ended = wait(&mut client, &soon);
    assert_eq!(ended["end"]["succeeded"], true, "{ended}");
    assert!(
        time(&ended["end"]["started_at"]) >= time(&ended["not_before"]),
        "{ended}"
    );
    let mut ran: Vec<String> = world.content("work/ran").lines().map(str::to_owned).collect();
    ran.sort_unstable();
    assert_eq!(ran, ["after", "queued"]);
}

fn i8_no_job_is_caught_between_intent_and_start_by_a_replacement(world: &World) {
    let mut daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    follow(&mut client, Value::Null);
    let group = json!({ "group": "many", "limit": 8 });
    client.call("job/group", group).unwrap();
    let items: Vec<Value> = (0..300)
        .map(|n| json!({ "argv": ["sh", "-c", format!("echo {n} >> ran")] }))
        .collect();
    let asked = json!({ "spec": spec(world, &[]), "group": "many", "jobs": items });
    let submitted = client.call("job/submit", asked).unwrap();
    let ids: Vec<Value> = ids(&submitted);
    // Each time some are about to start.
    for round in 0..6 {
        let mut ended = 0;
        while ended < 12 + round {
            ended += usize::from(event(&mut client)["state"] == "ended");
        }
        drop(client);
        daemon = daemon.replace(world, &[]);
        client = LineClient::connect(daemon.socket());
        follow(&mut client, Value::Null);
    }
    let waited = client.call("job/wait", json!({ "jobs": ids })).unwrap();
    all_ran_once(&waited, &world.content("work/ran"), 300);
}
