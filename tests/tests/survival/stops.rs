//! What ends a process goes on when the daemon that began it has died.

use std::process::Command;

use provost_tests::{LineClient, Served, World, both_users};
use serde_json::json;

fn i8_a_process_whose_time_ran_out_without_a_daemon_is_stopped_by_the_next(world: &World) {
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let params = json!({
        "argv": ["sh", "-c", "echo up; exec sleep 1000"], "cwd": "/", "policy": "unconfined", "timeout_ms": 1500,
    });
    let started = client.call("process/start", params).expect("it starts");
    let process = started["process"].as_str().expect("an id").to_owned();
    client.read_until(&process, 3);
    served.crash();
    // The clock that counts is the machine's.
    assert!(Command::new("sleep").arg("2").status().expect("sleep").success());
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let record = client.wait(&process);
    assert_eq!(record["outcome"], "timed_out", "{record}");
    assert_eq!(record["signal"], "SIGTERM", "{record}");
}

fn i8_a_stop_under_way_is_finished_by_the_next_daemon(world: &World) {
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let params = json!({
        "argv": ["sh", "-c", "trap 'echo asked' TERM; echo up; while :; do sleep 1000 & wait; done"],
        "cwd": "/", "policy": "unconfined", "grace_ms": 3000,
    });
    let started = client.call("process/start", params).expect("it starts");
    let process = started["process"].as_str().expect("an id").to_owned();
    client.read_until(&process, 3);
    let stop = json!({ "process": process, "reason": "enough" });
    client.call("process/stop", stop).expect("it lives");
    client.read_until(&process, 9);
    served.crash();
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let record = client.wait(&process);
    assert_eq!(record["outcome"], "cancelled", "{record}");
    assert_eq!(
        (&record["reason"], &record["signal"]),
        (&json!("enough"), &json!("SIGKILL"))
    );
}

both_users!(
    i8_a_process_whose_time_ran_out_without_a_daemon_is_stopped_by_the_next,
    i8_a_stop_under_way_is_finished_by_the_next_daemon,
);
