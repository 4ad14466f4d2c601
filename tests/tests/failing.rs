//! A daemon that cannot serve touches nothing of what an earlier one has left.

use std::net::TcpListener;

use provost_tests::{LineClient, Served, User, World, both_users};
use serde_json::json;

both_users! {
    i8_a_daemon_that_cannot_serve_leaves_everything_to_the_next_one,
}

/// Counts, waits for a line, and counts on.
const SCRIPT: &str = "seq 1 3000; read line; echo $line; seq 3001 6000; exit 7";

fn wanted() -> String {
    let numbers = |from: u32, to: u32| (from..=to).map(|n| format!("{n}\n")).collect::<String>();
    format!("{}word\n{}", numbers(1, 3000), numbers(3001, 6000))
}

fn start(client: &mut LineClient, world: &World) -> String {
    let params = json!({ "argv": ["sh", "-c", SCRIPT], "cwd": world.work(), "stdin": true });
    let started = client.call("process/start", params).expect("it starts");
    started["process"].as_str().expect("an id").to_owned()
}

/// Lets it go on, and sees that it was the same all the time.
fn end(client: &mut LineClient, process: &str) {
    let line = json!({ "process": process, "data": "d29yZAo=" });
    client.call("process/write", line).expect("it reads");
    let record = client.wait(process);
    assert_eq!(
        (&record["outcome"], &record["exit_code"]),
        (&json!("exited"), &json!(7)),
        "{record}"
    );
    let (bytes, _) = client.read_all(process);
    assert_eq!(String::from_utf8_lossy(&bytes), wanted());
}

/// What makes a daemon fail, with these words.
fn faults(world: &World) -> (TcpListener, Vec<(String, &'static str)>) {
    let others = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = others.local_addr().expect("an address");
    let config = |name: &str, metrics: &str| world.file(name, &format!("metrics = \"{metrics}\"\n"));
    let file = world.file("work/file", "somebody's");
    let nowhere = world.text("work/none/metrics.sock");
    let faults = vec![
        (
            config("work/taken.toml", &taken.to_string()),
            "cannot serve metrics",
        ),
        (config("work/file.toml", &file), "cannot serve metrics"),
        (config("work/nowhere.toml", &nowhere), "cannot serve metrics"),
    ];
    (others, faults)
}

fn i8_a_daemon_that_cannot_serve_leaves_everything_to_the_next_one(world: &World) {
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let process = start(&mut client, world);
    served.crash();
    let (_others, faults) = faults(world);
    for (config, words) in &faults {
        let said = Served::start_to_fail(world, &["--config", config]);
        assert!(said.contains(words), "{said}");
    }
    let served = Served::start(world);
    // Also where it was to replace one, which has left by then.
    let said = Served::start_to_fail(world, &["--replace", "--config", &faults[0].0]);
    assert!(said.contains(faults[0].1), "{said}");
    served.crash();
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    end(&mut client, &process);
}

#[test]
fn i8_a_broker_that_cannot_serve_leaves_what_users_have_to_the_next_one() {
    let (Some(roots), Some(theirs)) = (World::try_new(User::Root), World::try_new(User::Ordinary))
    else {
        return;
    };
    let served = Served::start(&roots);
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    let mut own = LineClient::connect(served.socket());
    let process = start(&mut client, &theirs);
    let roots_process = start(&mut own, &roots);
    served.crash();
    let (_others, faults) = faults(&roots);
    for (config, words) in &faults {
        let said = Served::start_to_fail(&roots, &["--config", config]);
        assert!(said.contains(words), "{said}");
    }
    let served = Served::start(&roots);
    end(
        &mut LineClient::connect_for(served.socket(), theirs.uid()),
        &process,
    );
    end(&mut LineClient::connect(served.socket()), &roots_process);
}
