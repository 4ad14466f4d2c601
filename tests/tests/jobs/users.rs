//! Jobs of another user's, through root's daemon.

use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use provost_tests::{DEADLINE, LineClient, Served, User, World, open_socket};
use serde_json::{Value, json};

use super::clients::{command, said};
use super::{follow, submit, until, wait};

fn instance(client: &mut LineClient) -> Pid {
    let status = client.call("daemon/status", json!({})).unwrap();
    Pid::from_raw(status["pid"].as_i64().unwrap().try_into().unwrap())
}

/// Waits until a file has this content.
fn becomes(world: &World, name: &str, content: &str) {
    let deadline = Instant::now() + DEADLINE;
    let read = || std::fs::read_to_string(world.path(name)).unwrap_or_default();
    while read() != content {
        assert!(Instant::now() < deadline, "{name}: {:?}", read());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn i8_i12_a_user_s_jobs_through_roots_daemon_are_theirs_and_survive_whoever_dies() {
    let (Some(roots), Some(theirs)) = (World::try_new(User::Root), World::try_new(User::Ordinary))
    else {
        return;
    };
    let mut daemon = Served::start(&roots);
    let mut client = LineClient::connect_for(daemon.socket(), theirs.uid());
    follow(&mut client, Value::Null);
    client
        .call("job/group", json!({ "group": "one", "limit": 1 }))
        .unwrap();
    let one = json!({ "group": "one" });
    let wait_for =
        |file: &str, code: i32| format!("while ! test -e {file}; do sleep 0.02; done; exit {code}");
    let runs = submit(
        &mut client,
        &theirs,
        &["sh", "-c", &wait_for("go", 5)],
        one.clone(),
    );
    let queued = submit(
        &mut client,
        &theirs,
        &["sh", "-c", "id -u > as; id -g >> as"],
        one.clone(),
    );
    let cancelled = submit(&mut client, &theirs, &["touch", "never"], one);
    until(&mut client, &runs, "running");
    let told = client.call("job/cancel", json!({ "jobs": [cancelled] })).unwrap();
    assert_eq!(told["jobs"][0]["cancelled"], true);

    // Nobody else has them.
    let mut root = LineClient::connect(daemon.socket());
    let all = root.call("job/list", json!({ "all": true })).unwrap();
    assert_eq!(all["jobs"], json!([]));
    for method in ["job/inspect", "job/notify"] {
        let mut asked = json!({ "job": runs });
        if method == "job/notify" {
            asked["target"] = json!({ "file": "/nowhere" });
        }
        let refused = root.call(method, asked).unwrap_err();
        assert_eq!(refused["data"]["kind"], "not_found", "{refused}");
    }

    open_socket(daemon.socket());
    let mut waiter = command(&theirs, &daemon, &["wait", "-q", &runs]).spawn().unwrap();
    while client.call("daemon/status", json!({})).unwrap()["clients"] != 2 {}
    let before = instance(&mut client);
    kill(before, Signal::SIGKILL).unwrap();
    drop(client);
    assert!(waiter.try_wait().unwrap().is_none(), "it gave up");
    theirs.file("work/go", "");
    assert_eq!(waiter.wait().unwrap().code(), Some(5));
    // The one behind it has its turn, as whose it is.
    becomes(&theirs, "work/as", &format!("{0}\n{0}\n", theirs.uid()));
    assert_eq!(said(&theirs, &daemon, 0, &["wait", "-q", &queued]), "");
    assert_eq!(said(&theirs, &daemon, 130, &["wait", "-q", &cancelled]), "");

    // One that only waits has an instance for it, though nobody asks.
    let mut client = LineClient::connect_for(daemon.socket(), theirs.uid());
    assert_ne!(instance(&mut client), before);
    for (file, dies) in [("instance", false), ("broker", true)] {
        let script = format!("echo ran > {file}");
        let delay = json!({ "delay_ms": 1500 });
        let job = submit(&mut client, &theirs, &["sh", "-c", &script], delay);
        if dies {
            drop(client);
            daemon.crash();
            daemon = Served::start(&roots);
        } else {
            kill(instance(&mut client), Signal::SIGKILL).unwrap();
            drop(client);
        }
        becomes(&theirs, &format!("work/{file}"), "ran\n");
        client = LineClient::connect_for(daemon.socket(), theirs.uid());
        assert_eq!(wait(&mut client, &job)["attempt"], 1);
    }
    assert!(!theirs.path("work/never").exists());
    drop(daemon);
}
