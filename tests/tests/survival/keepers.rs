//! Keepers that die: with them everything that they hold, but not what is known of it.

use provost_tests::{LineClient, Served, World, both_users, keeper};
use serde_json::{Value, json};

/// Processes that wait, with a witness of whether any of them lives.
fn waiting(client: &mut LineClient, path: &str) -> Vec<(String, Vec<Value>)> {
    let script = format!("exec 9>{path}; echo alive >&9; echo up; sleep 1000 & sleep 1000");
    let processes: Vec<String> = (0..5).map(|_| client.start(&script)).collect();
    let with_events = |process: String| {
        let events = client.read_until(&process, 3);
        (process, events)
    };
    processes.into_iter().map(with_events).collect()
}

fn i1_when_the_keeper_dies_each_process_has_its_record_and_none_lives_and_the_next_start_finds_a_new_one(
    world: &World,
) {
    let witness = world.witness();
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let ended = client.start("exit 7");
    assert_eq!(client.wait(&ended)["exit_code"], 7);
    let processes = waiting(&mut client, &witness.path());
    keeper::kill_keeper(processes[0].1[0]["pid"].as_u64().expect("a pid"));
    for (process, events) in &processes {
        let record = client.wait(process);
        // The kernel tells how it ended, if it still can.
        let known = record["outcome"] == "signaled" && record["signal"] == "SIGKILL";
        assert!(known || record["outcome"] == "lost", "{record}");
        let (out, again) = client.read_all(process);
        assert_eq!(out, b"up\n");
        assert_eq!(again[..events.len()], events[..]);
        assert_eq!(
            again.iter().filter(|event| event["type"] == "terminal").count(),
            1
        );
    }
    witness.wait_until_gone();
    let next = client.start("echo next; exit 3");
    assert_eq!(client.wait(&next)["exit_code"], 3, "{}", served.said());
    let record = client.call("process/inspect", json!({ "process": ended }));
    assert_eq!(record.expect("it is known")["record"]["exit_code"], 7);
    // And the daemon's death is survived with the new one as well.
    let lives = client.start("read x; exit 4");
    served.crash();
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let params = json!({ "process": lives, "data": "Cg==", "offset": 0 });
    client.call("process/write", params).expect("it reads");
    assert_eq!(client.wait(&lives)["exit_code"], 4);
}

fn i1_when_both_die_exits_that_were_known_stay_known_and_all_else_is_lost_and_says_why(world: &World) {
    let witness = world.witness();
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let processes = waiting(&mut client, &witness.path());
    // They end while no daemon is there to hear of it.
    let unheard: Vec<String> = (0..5)
        .map(|code| client.start(&format!("sleep 1; echo last; exit 2{code}")))
        .collect();
    for process in &unheard {
        client
            .call("process/read", json!({ "process": process, "wait_ms": 60_000 }))
            .expect("it starts");
    }
    served.crash();
    keeper::wait_until_ended(world, 5);
    keeper::kill_keeper(processes[0].1[0]["pid"].as_u64().expect("a pid"));
    witness.wait_until_gone();
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    for (code, process) in unheard.iter().enumerate() {
        let record = client.wait(process);
        assert_eq!(record["exit_code"], 20 + code, "{record}");
    }
    for (process, events) in &processes {
        let record = client.wait(process);
        assert_eq!(record["outcome"], "lost", "{record}");
        let reason = record["reason"].as_str().expect("a reason");
        assert!(reason.contains("its keeper died"), "{record}");
        let (out, again) = client.read_all(process);
        assert_eq!(out, b"up\n");
        assert_eq!(again[..events.len()], events[..]);
    }
}

both_users!(
    i1_when_the_keeper_dies_each_process_has_its_record_and_none_lives_and_the_next_start_finds_a_new_one,
    i1_when_both_die_exits_that_were_known_stay_known_and_all_else_is_lost_and_says_why,
);
