//! Bounds of the daemon's that hold exactly, and times that it keeps itself.

use nix::sys::signal::Signal;
use provost_tests::{LineClient, Served, Service, World, both_users};
use serde_json::json;

/// The daemon's limit, as its protocol's page says.
const SESSIONS_MAX: usize = 4096;

fn sessions_are_limited_exactly_however_many_are_opened_at_once(world: &World) {
    const CLIENTS: usize = 8;
    const EACH: usize = 56;
    let served = Served::start(world);
    let mut clients: Vec<LineClient> = (0..CLIENTS)
        .map(|_| LineClient::connect(served.socket()))
        .collect();
    let mut opened = 0;
    // All but a few of them, then more at once than there is room for.
    let most = SESSIONS_MAX - CLIENTS * EACH / 2;
    while opened < most {
        let count = (most - opened).min(EACH);
        let asked: Vec<u64> = (0..count)
            .map(|_| clients[0].ask("session/open", json!({})))
            .collect();
        for id in asked {
            clients[0].answer(id).expect("there is room");
        }
        opened += count;
    }
    let mut asked = Vec::new();
    for _ in 0..EACH {
        for (index, client) in clients.iter_mut().enumerate() {
            asked.push((index, client.ask("session/open", json!({}))));
        }
    }
    let mut refused = 0;
    for (index, id) in asked {
        match clients[index].answer(id) {
            Ok(_) => opened += 1,
            Err(error) => {
                assert_eq!(error["data"]["kind"], "limit", "{error}");
                refused += 1;
            }
        }
    }
    assert_eq!((opened, refused), (SESSIONS_MAX, CLIENTS * EACH / 2));
    let status = clients[0].call("daemon/status", json!({})).expect("a status");
    assert_eq!(status["sessions"], SESSIONS_MAX);
}

/// The grace belongs to the daemon: whoever gave it need not live to see it run out.
fn i8_a_stop_is_carried_through_when_the_client_that_asked_for_it_dies(world: &World) {
    let service = Service::start(world);
    let script = "trap 'echo asked to' TERM; echo ready; while :; do sleep 0.1; done";
    let start = ["start", "--grace", "1h", "--", "sh", "-c", script];
    let id = service.say(&start);
    let mut logs = service.live(&["logs", "-f", &id]);
    logs.wait_for("ready");
    let stop = service.live(&["stop", "--grace", "2s", &id]);
    logs.wait_for("asked to");
    stop.signal(Signal::SIGKILL);
    drop(stop);
    let done = service.ask(&["wait", &id]);
    assert_eq!(done.code, Some(130), "\n{done}");
    let events = service.say(&["events", &id]);
    assert!(events.contains("\"cause\":\"grace expired\""), "{events}");

    // A second one may be in more of a hurry than the first, and none gives it longer than its own rule.
    let id = service.say(&start);
    let mut logs = service.live(&["logs", "-f", &id]);
    logs.wait_for("ready");
    service.say(&["stop", "--no-wait", &id]);
    logs.wait_for("asked to");
    service.say(&["stop", "--no-wait", "--grace", "2h", &id]);
    assert_eq!(service.say(&["ps", "-q"]), id);
    service.say(&["stop", "--grace", "100ms", &id]);
    assert_eq!(service.say(&["ps", "-q"]), "");
}

both_users!(
    sessions_are_limited_exactly_however_many_are_opened_at_once,
    i8_a_stop_is_carried_through_when_the_client_that_asked_for_it_dies,
);
