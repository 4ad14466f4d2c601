//! Clients and daemons that go away, or were never there.

use std::time::Duration;

use nix::sys::signal::Signal;
use provost::client::{Lasting, RECONNECT};
use provost_tests::asking::block_on;
use provost_tests::{Served, Service, User, World, both_users};
use serde_json::{Value, json};

fn the_death_of_a_client_leaves_the_process_alone_and_its_interrupt_does_not(world: &World) {
    let service = Service::start(world);
    let command = ["sh", "-c", "echo ready; exec sleep 1000"];
    for signal in [Signal::SIGKILL, Signal::SIGHUP] {
        let mut client = service.run(command).start();
        client.wait_for("ready");
        client.signal(signal);
        let done = client.finish();
        assert_eq!(done.signal, Some(signal as i32), "\n{done}");
        let id = service.say(&["ps", "-q"]);
        assert_eq!(id.lines().count(), 1, "the process went with its client");
        assert_eq!(service.say(&["logs", &id]), "ready");
        service.say(&["kill", &id]);
    }
    let mut client = service.run(command).start();
    client.wait_for("ready");
    client.signal(Signal::SIGINT);
    let done = client.finish();
    assert_eq!(done.code, Some(130), "\n{done}");
    assert_eq!(done.outcome(), "cancelled", "\n{done}");
    assert_eq!(service.say(&["ps", "-q"]), "");

    let id = service.say(&["start", "--", "sleep", "1000"]);
    let waiting = service.live(&["wait", &id]);
    // Not INT: whoever started the tests may have them ignore it, which is inherited.
    waiting.signal(Signal::SIGTERM);
    assert_eq!(waiting.finish().signal, Some(Signal::SIGTERM as i32));
    assert_eq!(service.say(&["ps", "-q"]), id);
}

fn without_a_daemon_every_verb_says_how_to_start_one(world: &World) {
    let mut service = Service::start(world);
    let id = service.say(&["start", "--", "true"]);
    service.die();
    for words in [
        &["start", "--", "true"][..],
        &["run", "--daemon", "--", "true"],
        &["ps"],
        &["inspect", &id],
        &["logs", &id],
        &["events", &id],
        &["wait", &id],
        &["stop", &id],
        &["kill", &id],
        &["signal", &id, "TERM"],
        &["send", &id, "x"],
        &["approvals"],
        &["approve", &id],
        &["deny", "x/1"],
        &["prune"],
        &["status"],
        &["session", "open"],
        &["session", "list"],
        &["session", "clean"],
    ] {
        let done = service.ask(words);
        assert_eq!(done.code, Some(125), "\n{done}");
        assert!(done.stderr.contains("provost serve"), "no hint\n{done}");
        assert_eq!(done.text(), "", "\n{done}");
    }
}

fn i10_a_connection_that_is_lost_is_never_success(world: &World) {
    let mut service = Service::start(world);
    let id = service.say(&["start", "--", "sh", "-c", "echo ready; exec sleep 1000"]);
    let mut logs = service.live(&["logs", "-f", "--reconnect", "0", &id]);
    logs.wait_for("ready\n");
    let mut events = service.live(&["events", "-f", "--reconnect", "0", &id]);
    events.wait_for("output");
    let mut run = service
        .run(["sh", "-c", "echo ready; exec sleep 1000"])
        .with(["--reconnect", "0"])
        .start();
    run.wait_for("ready\n");
    let mut holder = service.live(&["session", "open", "--hold"]);
    holder.wait_for("\n");
    let waiting = service.live(&["wait", "--reconnect", "100ms", &id]);
    service.clients(5);
    service.die();
    for client in [logs, events, run, holder, waiting] {
        let done = client.finish();
        assert_eq!(done.code, Some(125), "\n{done}");
        assert!(done.stderr.contains("lost"), "\n{done}");
    }
}

/// A loop that does one thing after the other does not go on with the one while it waits for the other.
#[test]
fn i9_a_request_that_nobody_goes_on_with_keeps_no_other_one_from_the_next_connection() {
    let Some(world) = World::try_new(User::Root) else {
        return;
    };
    let served = Served::start(&world);
    block_on(async {
        let lasting = Lasting::connect(served.socket(), RECONNECT, None).await;
        let lasting = lasting.expect("a daemon that serves");
        served.crash();
        let nothing = json!({});
        let mut first = Box::pin(lasting.call::<Value>("daemon/status", &nothing));
        let early = tokio::time::timeout(Duration::from_millis(100), &mut first).await;
        assert!(early.is_err(), "there was nobody to answer: {early:?}");
        let served = Served::start(&world);
        let second = lasting.call::<Value>("daemon/status", &nothing).await;
        let pids = [second.expect("an answer"), first.await.expect("one too")]
            .map(|status| status["pid"].clone());
        assert_eq!(pids, [served.pid(), served.pid()]);
    });
}

both_users!(
    the_death_of_a_client_leaves_the_process_alone_and_its_interrupt_does_not,
    without_a_daemon_every_verb_says_how_to_start_one,
    i10_a_connection_that_is_lost_is_never_success,
);
