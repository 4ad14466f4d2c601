//! How long jobs that have ended are known.

use std::time::{Duration, Instant};

use provost_tests::{DEADLINE, LineClient, Served, World, both_users};
use serde_json::json;

use super::{submit, wait};

both_users! {
    i8_a_job_is_forgotten_when_it_is_old_and_nothing_is_to_come_after_it,
}

/// After this time an ended job is forgotten at the next start.
const AGE: Duration = Duration::from_secs(1);

fn is_known(client: &mut LineClient, job: &str) -> bool {
    match client.call("job/inspect", json!({ "job": job })) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error["data"]["kind"], "not_found", "{error}");
            false
        }
    }
}

/// Starts the daemon again when what has ended until now is old, and waits until this job is forgotten.
fn age(world: &World, daemon: Served, config: &str, gone: &str) -> (Served, LineClient) {
    let old = Instant::now() + 2 * AGE;
    daemon.crash();
    // Time is what it takes.
    std::thread::sleep(old.saturating_duration_since(Instant::now()));
    let daemon = Served::start_with(world, &["--config", config]);
    let mut client = LineClient::connect(daemon.socket());
    let deadline = Instant::now() + DEADLINE;
    while is_known(&mut client, gone) {
        assert!(Instant::now() < deadline, "it is never forgotten");
    }
    (daemon, client)
}

fn i8_a_job_is_forgotten_when_it_is_old_and_nothing_is_to_come_after_it(world: &World) {
    let config = world.file("work/provost.toml", "records_max_age = '1s'\n");
    let daemon = Served::start_with(world, &["--config", &config]);
    let mut client = LineClient::connect(daemon.socket());
    let script = "while ! test -e go; do sleep 0.02; done";
    let runs = submit(&mut client, world, &["sh", "-c", script], json!({}));
    let good = submit(&mut client, world, &["true"], json!({}));
    let bad = submit(&mut client, world, &["false"], json!({}));
    let after = |jobs: &[(&String, &str)]| {
        let after = jobs.iter().map(|(job, on)| json!({ "job": job, "on": on }));
        json!({ "after": after.collect::<Vec<_>>() })
    };
    let then = after(&[(&good, "success"), (&bad, "failure"), (&runs, "success")]);
    let then = submit(&mut client, world, &["sh", "-c", "echo then >> ran"], then);
    let other = submit(&mut client, world, &["true"], json!({}));
    for job in [&good, &bad, &other] {
        wait(&mut client, job);
    }
    let (daemon, mut client) = age(world, daemon, &config, &other);
    for job in [&good, &bad, &runs, &then] {
        assert!(is_known(&mut client, job), "something is to come after it");
    }
    // Decided by the next daemon, from what is known there.
    daemon.crash();
    let daemon = Served::start_with(world, &["--config", &config]);
    let mut client = LineClient::connect(daemon.socket());
    world.file("work/go", "");
    let ended = wait(&mut client, &then);
    assert_eq!(ended["end"]["succeeded"], true, "{ended}");
    assert_eq!(world.content("work/ran"), "then\n");
    let (_daemon, mut client) = age(world, daemon, &config, &good);
    for job in [&bad, &runs, &then] {
        assert!(!is_known(&mut client, job), "nothing comes after it any more");
    }
}
