//! What it costs to begin where another daemon ended.

use std::time::{Duration, Instant};

use provost_tests::{LineClient, Served, World, both_users};
use serde_json::json;

/// Live processes that are taken up; `SURVIVAL_PROCESSES` says otherwise.
fn processes() -> u64 {
    let asked = std::env::var("SURVIVAL_PROCESSES").ok();
    asked.map_or(100, |count| count.parse().expect("a number of processes"))
}

fn i8_many_live_processes_are_taken_up_before_the_daemon_listens_and_quickly(world: &World) {
    for policy in ["unconfined", "workspace-write"] {
        let served = Served::start(world);
        let mut client = LineClient::connect(served.socket());
        let params = json!({ "argv": ["sleep", "1000"], "cwd": world.work(), "policy": policy });
        let mut left = processes();
        while left > 0 {
            let some = left.min(50);
            let asked: Vec<u64> = (0..some)
                .map(|_| client.ask("process/start", params.clone()))
                .collect();
            for id in asked {
                let started = client.answer(id).expect("it starts");
                let process = started["process"].as_str().expect("an id");
                let wait = json!({ "process": process, "wait_ms": 60_000 });
                client.call("process/read", wait).expect("it starts");
            }
            left -= some;
        }
        served.crash();
        let began = Instant::now();
        let served = Served::start(world);
        let took = began.elapsed();
        let mut client = LineClient::connect(served.socket());
        let live = client
            .call("process/list", json!({ "live": true }))
            .expect("a list");
        assert_eq!(live.as_array().map(Vec::len), Some(processes() as usize));
        println!("{} live processes, {policy}: {took:?}", processes());
        // Twenty times the budget, which is for a release build on a machine with nothing else to do.
        assert!(took < Duration::from_secs(40), "{took:?}");
        drop(served);
    }
}

both_users!(i8_many_live_processes_are_taken_up_before_the_daemon_listens_and_quickly);
