//! Clients of the daemon that are hostile, broken, slow or gone: they harm themselves alone.

#![allow(
    clippy::disallowed_methods,
    reason = "clients are ordinary programs of other users, started beside the daemon"
)]

mod floods;
mod lines;
mod strangers;

use std::time::{Duration, Instant};

use provost_tests::{DEADLINE, LineClient, Served};
use serde_json::{Value, json};

/// What a request may take while others misbehave: far more than it does, far less than a stall.
const BOUNDED: Duration = Duration::from_secs(5);
const MIB: u64 = 1 << 20;

fn kind(error: &Value) -> &str {
    error["data"]["kind"].as_str().unwrap_or_default()
}

/// The kind of the error that the next line is.
fn refused(client: &mut LineClient) -> String {
    let line = client.hear().expect("an answer");
    kind(&line["error"]).to_owned()
}

fn is_served(daemon: &Served) {
    let mut client = LineClient::connect(daemon.socket());
    assert!(
        client.call("daemon/status", json!({})).is_ok(),
        "{}",
        daemon.said()
    );
}

fn descriptors(daemon: &Served) -> usize {
    let list = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid()));
    list.expect("the daemon lives").count()
}

/// Asks the daemon over and over until it is so: each time it has done what was ready.
fn becomes(daemon: &Served, what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    let mut client = LineClient::connect(daemon.socket());
    while !is_so() {
        assert!(
            begun.elapsed() < DEADLINE,
            "{what} never comes: {}",
            daemon.said()
        );
        client.call("daemon/status", json!({})).expect("it is served");
    }
}
