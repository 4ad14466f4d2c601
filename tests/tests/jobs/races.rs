//! I9: of two that end a job one wins, and the other is told.

use provost_tests::{LineClient, Served, World, both_users};
use serde_json::{Value, json};

use super::{rounds, spec};

both_users! {
    i9_cancel_against_start_has_one_winner,
    i9_cancel_against_exit_has_one_winner,
    i9_time_out_against_exit_has_one_winner,
}

/// Submits jobs and cancels them so much later; what each `job/cancel` and each job says afterwards agree.
fn race(world: &World, argv: &[&str], pause_us: fn(usize) -> u64, count: usize) -> (usize, usize) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let group = json!({ "group": "race", "limit": 4 });
    client.call("job/group", group).unwrap();
    let (mut cancelled, mut ran) = (0, 0);
    for round in 0..count {
        let asked = json!({ "spec": spec(world, argv), "group": "race", "jobs": [{}] });
        let submitted = client.call("job/submit", asked).unwrap();
        let job = submitted["jobs"][0]["job"].as_str().unwrap().to_owned();
        // Another place in the life of the job each time: this is what is tried out, not waited for.
        let until = std::time::Instant::now() + std::time::Duration::from_micros(pause_us(round));
        while std::time::Instant::now() < until {
            std::hint::spin_loop();
        }
        let kill = round % 2 == 0;
        let told = client
            .call("job/cancel", json!({ "jobs": [job], "kill": kill }))
            .unwrap();
        let told = &told["jobs"][0];
        let found = client.call("job/inspect", json!({ "job": job })).unwrap();
        assert_eq!((&found["state"], &found["end"]), (&json!("ended"), &told["end"]));
        assert_eq!(told["cancelled"] == true, told["end"]["outcome"] == "cancelled");
        match told["cancelled"] == true {
            true => cancelled += 1,
            false => {
                ran += 1;
                assert_eq!(told["end"]["outcome"], "exited", "{found}");
            }
        }
        // Nothing of it runs any more, and what ran says the same.
        let attempts = found["attempts"].as_array().unwrap();
        assert!(attempts.len() <= 1, "{found}");
        let ps = client.call("process/list", json!({ "live": true })).unwrap();
        assert_eq!(ps, json!([]), "it runs behind the answer");
        if let Some(record) = found.get("record").filter(|record| !record.is_null()) {
            assert_eq!(record["outcome"], told["end"]["outcome"]);
        } else {
            assert_eq!(told["cancelled"], true, "{found}");
        }
    }
    (cancelled, ran)
}

fn i9_cancel_against_start_has_one_winner(world: &World) {
    let count = rounds(120);
    let (cancelled, ran) = race(
        world,
        &["sleep", "100"],
        |round| (round as u64 * 97) % 6000,
        count,
    );
    assert_eq!((cancelled, ran), (count, 0));
}

fn i9_cancel_against_exit_has_one_winner(world: &World) {
    let count = rounds(120);
    let (cancelled, ran) = race(world, &["true"], |round| (round as u64 * 997) % 30_000, count);
    assert_eq!(cancelled + ran, count);
    assert!(cancelled > 0, "no cancel was early enough to win");
}

fn i9_time_out_against_exit_has_one_winner(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let count = rounds(120);
    client
        .call("job/group", json!({ "group": "race", "limit": 4 }))
        .unwrap();
    let mut outcomes: std::collections::BTreeMap<String, usize> = std::collections::BTreeMap::new();
    let mut done = 0;
    while done < count {
        let some: Vec<Value> = (0..40.min(count - done)).map(|_| json!({})).collect();
        done += some.len();
        let mut asked = spec(world, &["sleep", "0.03"]);
        asked["timeout_ms"] = json!(25 + done % 20);
        let asked = json!({ "spec": asked, "group": "race", "jobs": some });
        let submitted = client.call("job/submit", asked).unwrap();
        let ids: Vec<&Value> = submitted["jobs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|job| &job["job"])
            .collect();
        let waited = client.call("job/wait", json!({ "jobs": ids })).unwrap();
        for job in waited["jobs"].as_array().unwrap() {
            let record = client.wait(job["process"].as_str().unwrap());
            let end = &job["end"];
            assert_eq!(end["outcome"], record["outcome"]);
            assert_eq!(end["exit_code"], record["exit_code"]);
            *outcomes
                .entry(end["outcome"].as_str().unwrap().to_owned())
                .or_default() += 1;
        }
    }
    let known = |name: &str| outcomes.get(name).copied().unwrap_or_default();
    assert_eq!(known("exited") + known("timed_out"), count, "{outcomes:?}");
}
