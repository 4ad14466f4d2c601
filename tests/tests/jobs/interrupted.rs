//! A daemon that died between the intent to start a job and its start.

use provost::ProcessId;
use provost_tests::{LineClient, Served, World, both_users};
use rusqlite::{Connection, params};
use serde_json::{Value, json};

use super::clients::said;
use super::{submit, wait};

both_users! {
    i8_what_was_caught_before_its_start_says_so_and_is_tried_again_only_by_its_rule,
}

/// Does in the database what a daemon does there first to start a job, and no more.
fn intend(database: &Connection, job: &str, cancelled: Option<&str>) -> String {
    let process = ProcessId::new().to_string();
    for sql in [
        "UPDATE jobs SET state = 'starting', process = ?2, attempt = attempt + 1 WHERE id = ?1 AND state = 'queued'",
        "INSERT INTO job_attempts (job, attempt, process, begun_at)
         SELECT id, attempt, process, strftime('%Y-%m-%dT%H:%M:%fZ') FROM jobs WHERE id = ?1 AND process = ?2",
        "INSERT INTO job_events (time, job, state, attempt, process)
         SELECT strftime('%Y-%m-%dT%H:%M:%fZ'), id, state, attempt, process FROM jobs WHERE id = ?1 AND process = ?2",
    ] {
        assert_eq!(database.execute(sql, params![job, process]).unwrap(), 1);
    }
    let cancel = "UPDATE jobs SET cancel = ?2 WHERE id = ?1";
    database.execute(cancel, params![job, cancelled]).unwrap();
    process
}

fn i8_what_was_caught_before_its_start_says_so_and_is_tried_again_only_by_its_rule(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let group = |client: &mut LineClient, paused: bool| {
        let asked = json!({ "group": "held", "paused": paused });
        client.call("job/group", asked).unwrap();
    };
    group(&mut client, true);
    let mut held = |name: &str, more: Value| {
        let mut asked = json!({ "group": "held" });
        let more = more.as_object().unwrap().clone();
        asked.as_object_mut().unwrap().extend(more);
        let script = format!("echo {name} >> ran");
        submit(&mut client, world, &["sh", "-c", &script], asked)
    };
    let plain = held("plain", json!({}));
    // What is usually tried again is not this.
    let usual = held("usual", json!({ "retry": { "times": 3, "backoff_ms": 1 } }));
    let rule = json!({ "times": 1, "on": ["interrupted"], "backoff_ms": 1 });
    let again = held("again", json!({ "retry": rule }));
    let cancelled = held("cancelled", json!({ "retry": rule }));
    let behind = held("behind", json!({ "after": [{ "job": plain, "on": "failure" }] }));
    daemon.crash();
    {
        let database = Connection::open(world.path("state/provost.db")).unwrap();
        for job in [&plain, &usual, &again] {
            intend(&database, job, None);
        }
        intend(&database, &cancelled, Some("not needed"));
    }

    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    for job in [&plain, &usual] {
        let ended = wait(&mut client, job);
        assert_eq!(ended["end"]["outcome"], "interrupted", "{ended}");
        let why = ended["end"]["reason"].as_str().unwrap();
        assert!(why.contains("nothing of it ran"), "{why}");
        assert_eq!(
            (&ended["attempt"], &ended["end"]["succeeded"]),
            (&json!(1), &json!(false))
        );
        assert_eq!(said(world, &daemon, 125, &["job", "wait", "-q", job]), "");
    }
    let ended = wait(&mut client, &cancelled);
    assert_eq!(ended["end"]["outcome"], "cancelled", "{ended}");
    assert_eq!(ended["end"]["reason"], "not needed");
    group(&mut client, false);
    for (job, attempts) in [(&again, vec!["interrupted", "exited"]), (&behind, vec!["exited"])] {
        let ended = wait(&mut client, job);
        assert_eq!(ended["end"]["succeeded"], true, "{ended}");
        let found = client.call("job/inspect", json!({ "job": job })).unwrap();
        let outcomes = found["attempts"].as_array().unwrap().iter();
        let outcomes: Vec<&Value> = outcomes.map(|one| &one["outcome"]).collect();
        assert_eq!(outcomes, attempts);
    }
    let mut ran: Vec<String> = world.content("work/ran").lines().map(str::to_owned).collect();
    ran.sort_unstable();
    assert_eq!(ran, ["again", "behind"]);
}
