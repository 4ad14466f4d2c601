//! Jobs of the real daemon: their turns, their ends, and what a crash leaves of them.

#![allow(clippy::disallowed_methods, reason = "clients are run beside the test")]

mod after;
mod clients;
mod crash;
mod interrupted;
mod kept;
mod life;
mod notices;
mod races;
mod refused;
mod replaced;
mod users;

use provost_tests::{LineClient, World};
use serde_json::{Value, json};

/// What a job runs that needs no sandbox.
fn spec(world: &World, argv: &[&str]) -> Value {
    json!({ "argv": argv, "cwd": world.work(), "policy": "unconfined" })
}

/// Submits one job; its id.
fn submit(client: &mut LineClient, world: &World, argv: &[&str], more: Value) -> String {
    let mut asked = json!({ "spec": spec(world, argv), "jobs": [{}] });
    for (key, value) in more.as_object().expect("parameters") {
        asked[key] = value.clone();
    }
    let submitted = client.call("job/submit", asked).expect("it is accepted");
    submitted["jobs"][0]["job"].as_str().expect("an id").to_owned()
}

/// The ids of what was submitted together.
fn ids(submitted: &Value) -> Vec<Value> {
    let jobs = submitted["jobs"].as_array().expect("jobs");
    jobs.iter().map(|job| job["job"].clone()).collect()
}

/// That these jobs succeeded at the first attempt, and each of so many left its number once.
fn all_ran_once(waited: &Value, numbers: &str, count: usize) {
    for job in waited["jobs"].as_array().expect("jobs") {
        assert_eq!(job["end"]["succeeded"], true, "{job}");
        assert_eq!(job["attempt"], 1, "{job}");
    }
    let mut ran: Vec<usize> = numbers
        .lines()
        .map(|line| line.parse().expect("a number"))
        .collect();
    ran.sort_unstable();
    assert_eq!(ran, (0..count).collect::<Vec<usize>>());
}

/// Waits for the end of a job; the job.
fn wait(client: &mut LineClient, job: &str) -> Value {
    let waited = client
        .call("job/wait", json!({ "jobs": [job] }))
        .expect("it is known");
    assert_eq!(waited["jobs"][0]["state"], "ended", "{waited}");
    waited["jobs"][0].clone()
}

/// Follows every job from here on.
fn follow(client: &mut LineClient, after: Value) -> u64 {
    let following = client.call("job/follow", json!({ "after_seq": after }));
    following.expect("it follows")["after_seq"]
        .as_u64()
        .expect("a number")
}

/// The next change of a job.
fn event(client: &mut LineClient) -> Value {
    loop {
        let said = client.notified().expect("more comes");
        if said["method"] == "job/event" {
            return said["params"]["event"].clone();
        }
    }
}

/// Reads events until one is in this state of this job; all of them.
fn until(client: &mut LineClient, job: &str, state: &str) -> Vec<Value> {
    let mut seen = Vec::new();
    loop {
        let event = event(client);
        let found = event["job"] == job && event["state"] == state;
        seen.push(event);
        if found {
            return seen;
        }
    }
}

/// Reads events until each of these jobs was running.
fn until_running(client: &mut LineClient, jobs: &[&String]) {
    let mut left = jobs.to_vec();
    while !left.is_empty() {
        let event = event(client);
        left.retain(|job| event["state"] != "running" || event["job"] != job.as_str());
    }
}

/// How often the long form of a test is done; in short form so often.
fn rounds(short: usize) -> usize {
    let rounds = std::env::var("PROVOST_TEST_RACES").ok();
    rounds.and_then(|rounds| rounds.parse().ok()).unwrap_or(short)
}
