//! Who is told of the end of a job is told, once it can be.

use std::io::Read;
use std::os::unix::net::UnixListener;

use provost_tests::{LineClient, Served, World, asked_until, both_users};
use serde_json::{Value, json};

use super::{submit, wait};

both_users! {
    the_end_is_told_to_a_command_a_socket_and_a_file_once_each,
    what_was_not_taken_is_told_again_by_the_next_daemon,
}

/// Waits until every notice of a job was taken; them.
fn taken(client: &mut LineClient, job: &str) -> Vec<Value> {
    let mut notices = Vec::new();
    asked_until("the last notice", || {
        let found = client.call("job/inspect", json!({ "job": job })).unwrap();
        notices = found["notices"].as_array().unwrap().clone();
        notices.iter().all(|notice| !notice["delivered_at"].is_null())
    });
    notices
}

fn the_end_is_told_to_a_command_a_socket_and_a_file_once_each(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let socket = world.path("work/told.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    provost_tests::open_socket(&socket);
    let heard = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    let notify = json!([
        { "file": world.path("work/told") },
        { "socket": socket },
        { "command": { "argv": ["sh", "-c", "cat >> by-command; id -u >> as"], "cwd": world.work() } },
    ]);
    let job = submit(
        &mut client,
        world,
        &["sh", "-c", "exit 3"],
        json!({ "notify": notify }),
    );
    let ended = wait(&mut client, &job);
    let notices = taken(&mut client, &job);
    let messages = [
        world.content("work/told"),
        heard.join().unwrap(),
        world.content("work/by-command"),
    ];
    for (text, notice) in messages.iter().zip(&notices) {
        assert_eq!(text.lines().count(), 1, "{text}");
        let message: Value = serde_json::from_str(text).unwrap();
        assert_eq!(message["dedup"], notice["dedup"]);
        assert_eq!((&message["job"], &message["end"]), (&json!(job), &ended["end"]));
        assert_eq!(message["record"]["exit_code"], 3);
    }
    assert_eq!(world.content("work/as").trim(), world.uid().to_string());
    // One who asks when it is over is told at once.
    let late = json!({ "job": job, "target": { "file": world.path("work/late") } });
    client.call("job/notify", late).unwrap();
    taken(&mut client, &job);
    assert_eq!(world.content("work/late").lines().count(), 1);
}

fn what_was_not_taken_is_told_again_by_the_next_daemon(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let socket = world.path("work/later.sock");
    let notify = json!({ "notify": [{ "socket": socket }] });
    let job = submit(&mut client, world, &["true"], notify);
    wait(&mut client, &job);
    let tried = |client: &mut LineClient| {
        let found = client.call("job/inspect", json!({ "job": job })).unwrap();
        found["notices"][0].clone()
    };
    asked_until("an attempt", || tried(&mut client)["tries"] != 0);
    assert!(
        tried(&mut client)["error"]
            .as_str()
            .unwrap()
            .contains("later.sock")
    );
    daemon.crash();
    let listener = UnixListener::bind(&socket).unwrap();
    provost_tests::open_socket(&socket);
    let daemon = Served::start(world);
    let (mut stream, _) = listener.accept().unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    drop(stream);
    let message: Value = serde_json::from_str(&text).unwrap();
    let mut client = LineClient::connect(daemon.socket());
    assert_eq!(message["dedup"], taken(&mut client, &job)[0]["dedup"]);
}
