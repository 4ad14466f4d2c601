//! Where nothing can be written down for a while, nothing is acknowledged, and nothing that was is lost.

use std::time::{Duration, Instant};

use provost_tests::{DEADLINE, LineClient, Served, SmallDisk, World, both_users, require};
use rusqlite::Connection;
use serde_json::{Value, json};

use super::{all_ran_once, follow, ids, spec, submit, until_running, wait};

both_users! {
    i8_i11_a_locked_database_delays_jobs_and_loses_none,
    i8_i11_on_a_full_disk_jobs_wait_for_room_and_none_is_lost,
}

/// How long the daemon waits for a lock on its database, and what nobody waits for besides.
const LOCK_MAX: Duration = Duration::from_secs(15);

/// Waits until the daemon says that something is wrong, or that nothing is.
fn degraded(client: &mut LineClient, wanted: bool) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let status = client.call("daemon/status", json!({})).unwrap();
        if (status["degraded"] != json!([])) == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{status}");
    }
}

/// A job that ends when this file is there.
fn until_file(world: &World, client: &mut LineClient, file: &str, code: i32, more: Value) -> String {
    let script = format!("while ! test -e {file}; do sleep 0.02; done; echo {file} >> ran; exit {code}");
    submit(client, world, &["sh", "-c", &script], more)
}

fn state(client: &mut LineClient, job: &str) -> Value {
    let found = client.call("job/inspect", json!({ "job": job })).unwrap();
    found["state"].clone()
}

fn i8_i11_a_locked_database_delays_jobs_and_loses_none(world: &World) {
    let mut daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    follow(&mut client, Value::Null);
    client
        .call("job/group", json!({ "group": "held", "paused": true }))
        .unwrap();
    let runs = until_file(world, &mut client, "first", 5, json!({}));
    let behind = json!({ "after": [{ "job": runs, "on": "failure" }] });
    let behind = submit(&mut client, world, &["sh", "-c", "echo behind >> ran"], behind);
    let held = submit(
        &mut client,
        world,
        &["touch", "never"],
        json!({ "group": "held" }),
    );
    let crashed = until_file(world, &mut client, "second", 6, json!({}));
    until_running(&mut client, &[&runs, &crashed]);
    let database = Connection::open(world.path("state/provost.db")).unwrap();
    let lock = |locked: bool| {
        let sql = if locked { "BEGIN EXCLUSIVE" } else { "ROLLBACK" };
        database.execute_batch(sql).unwrap();
    };

    lock(true);
    let asked = json!({ "spec": spec(world, &["sh", "-c", "echo late >> ran"]), "jobs": [{ "request_id": "late" }] });
    let begun = Instant::now();
    let refused = client.call("job/submit", asked.clone()).unwrap_err();
    assert!(begun.elapsed() < LOCK_MAX, "{:?}", begun.elapsed());
    let why = refused["message"].as_str().unwrap();
    assert!(why.contains("another program holds it"), "{refused}");
    world.file("work/first", "");
    let process = client.call("job/inspect", json!({ "job": runs })).unwrap();
    let record = client.wait(process["process"].as_str().unwrap());
    assert_eq!(record["exit_code"], 5);
    // Nobody is told what is not written down.
    let waited = json!({ "jobs": [runs], "timeout_ms": 300 });
    let waited = client.call("job/wait", waited).unwrap();
    assert_eq!(waited["jobs"][0]["state"], "running", "{waited}");
    let cancel = client.ask("job/cancel", json!({ "jobs": [held], "reason": "not needed" }));
    assert_eq!(state(&mut client, &held), "queued");
    degraded(&mut client, true);
    lock(false);

    let told = client.answer(cancel).unwrap();
    assert_eq!(told["jobs"][0]["cancelled"], true, "{told}");
    let ended = wait(&mut client, &runs);
    assert_eq!(ended["end"]["exit_code"], 5);
    assert_eq!(wait(&mut client, &behind)["end"]["succeeded"], true);
    // What was refused was not done.
    let late = client.call("job/submit", asked).unwrap()["jobs"][0].clone();
    assert_eq!(late["repeated"], false);
    wait(&mut client, late["job"].as_str().unwrap());
    degraded(&mut client, false);

    // The same, and the daemon dies meanwhile.
    lock(true);
    world.file("work/second", "");
    let found = client.call("job/inspect", json!({ "job": crashed })).unwrap();
    client.wait(found["process"].as_str().unwrap());
    daemon.crash();
    lock(false);
    database.close().unwrap();
    daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let ended = wait(&mut client, &crashed);
    assert_eq!(
        (&ended["end"]["exit_code"], &ended["attempt"]),
        (&json!(6), &json!(1))
    );
    let ran = world.content("work/ran");
    assert_eq!(ran, "first\nbehind\nlate\nsecond\n");
    assert!(!world.path("work/never").exists());
    drop(daemon);
}

fn i8_i11_on_a_full_disk_jobs_wait_for_room_and_none_is_lost(world: &World) {
    require!(nix::unistd::geteuid().is_root(), "root, who mounts");
    let disk = SmallDisk::mount(&world.path("state"));
    world.give_away(&world.path("state"), 0o711);
    let mut daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    follow(&mut client, Value::Null);
    client
        .call("job/group", json!({ "group": "held", "paused": true }))
        .unwrap();
    client
        .call("job/group", json!({ "group": "many", "limit": 64 }))
        .unwrap();
    let runs = until_file(world, &mut client, "first", 5, json!({}));
    let cancelled = until_file(world, &mut client, "never", 0, json!({}));
    let held = submit(
        &mut client,
        world,
        &["touch", "never"],
        json!({ "group": "held" }),
    );
    until_running(&mut client, &[&runs, &cancelled]);
    let items: Vec<Value> = (0..200)
        .map(|n| json!({ "argv": ["sh", "-c", format!("echo {n} >> many")] }))
        .collect();
    let many = json!({
        "spec": spec(world, &[]), "group": "many", "jobs": items,
        "after": [{ "job": runs, "on": "failure" }],
    });
    let many = client.call("job/submit", many).unwrap();
    let many: Vec<Value> = ids(&many);

    let filler = disk.fill();
    let told = client
        .call("job/cancel", json!({ "jobs": [held, cancelled] }))
        .unwrap();
    for job in told["jobs"].as_array().unwrap() {
        assert_eq!(job["cancelled"], true, "{job}");
    }
    // What runs ends, and what comes behind it is not spent on a disk on which nothing can be started.
    world.file("work/first", "");
    assert_eq!(wait(&mut client, &runs)["end"]["exit_code"], 5);
    degraded(&mut client, true);
    let more = json!({ "spec": spec(world, &["true"]), "jobs": [{ "request_id": "more" }] });
    let refused = loop {
        // Until what was given up for records is all that is left.
        match client.call("job/submit", more.clone()) {
            Ok(submitted) => assert_ne!(submitted["jobs"][0]["repeated"], json!(null)),
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused["data"]["kind"], "limit", "{refused}");
    let begun = client
        .call("job/list", json!({ "group": "many", "limit": 1000 }))
        .unwrap();
    for job in begun["jobs"].as_array().unwrap() {
        assert_ne!(job["state"], "ended", "{job}");
    }
    daemon.crash();
    daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    for job in [&held, &cancelled] {
        assert_eq!(wait(&mut client, job)["end"]["outcome"], "cancelled");
    }
    std::fs::remove_file(filler).unwrap();
    let waited = client.call("job/wait", json!({ "jobs": many })).unwrap();
    all_ran_once(&waited, &world.content("work/many"), 200);
    degraded(&mut client, false);
    let submitted = client.call("job/submit", more).unwrap();
    wait(&mut client, submitted["jobs"][0]["job"].as_str().unwrap());
    drop(daemon);
}
