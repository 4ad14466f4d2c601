//! Who is killed when memory runs out: the keeper last, its daemon shortly before, and commands as if nobody supervised them.

use std::fs;

use nix::sys::signal::Signal;
use provost_tests::{LineClient, Served, World, both_users, keeper, needs, require};
use serde_json::{Value, json};

fn score(pid: u64) -> i64 {
    let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("it lives");
    text.trim().parse().expect("a number")
}

fn keeper_of(client: &mut LineClient) -> u64 {
    let status = client.call("daemon/status", json!({})).expect("a status");
    status["keeper"].as_u64().expect("a pid")
}

/// Whether this user may have itself spared: with `CAP_SYS_RESOURCE`, which root has on most machines.
fn may_be_spared(world: &World) -> bool {
    needs::succeeds(world, "choom", &["-n", "-5", "--", "true"])
}

/// Starts a command that stays; its pid.
fn command(client: &mut LineClient) -> u64 {
    let id = client.start("exec sleep 1000");
    let read = json!({ "process": id, "wait_ms": 60_000 });
    let begun: Value = client.call("process/read", read).expect("it is known");
    begun["events"][0]["pid"].as_u64().expect("a pid")
}

fn the_keeper_dies_last_and_no_command_is_spared_for_its_daemon(world: &World) {
    require!(needs::command("choom"), "choom");
    let is_protected = |daemon: u64, keeper: u64, otherwise: i64| {
        let expected = match may_be_spared(world) {
            true => [-900, -999],
            false => [otherwise; 2],
        };
        assert_eq!([score(daemon), score(keeper)], expected);
    };
    let served = Served::start_by(world, &["choom", "-n", "123", "--"], &[]);
    let daemon = u64::from(served.pid());
    let mut client = LineClient::connect(served.socket());
    let first = command(&mut client);
    assert_eq!(score(first), 123);
    let keeper = keeper_of(&mut client);
    is_protected(daemon, keeper, 123);

    // A keeper that the protected daemon starts.
    keeper::kill_keeper(first);
    let next = loop {
        match keeper_of(&mut client) {
            dead if dead == keeper => {
                command_or_none(&mut client);
            }
            next => break next,
        }
    };
    is_protected(daemon, next, 123);
    assert_eq!(score(command(&mut client)), 123);

    // The same process as another program.
    served.signal(Signal::SIGUSR2);
    while client.hear().is_some() {}
    let mut client = LineClient::connect(served.socket());
    is_protected(daemon, keeper_of(&mut client), 123);
    assert_eq!(score(command(&mut client)), 123);
}

/// The first start after a keeper's death may be the one that finds out.
fn command_or_none(client: &mut LineClient) {
    let params = json!({ "argv": ["true"], "cwd": "/", "policy": "unconfined" });
    if let Ok(started) = client.call("process/start", params) {
        client.wait(started["process"].as_str().expect("an id"));
    }
}

fn a_daemon_that_was_started_with_less_than_nothing_passes_none_of_it_on(world: &World) {
    if !may_be_spared(world) {
        return println!("skipped: nobody could start it so");
    }
    require!(needs::command("setpriv"), "setpriv");
    let served = Served::start_by(world, &["choom", "-n", "-950", "--"], &[]);
    let mut client = LineClient::connect(served.socket());
    assert_eq!(score(command(&mut client)), 0);
    let keeper = keeper_of(&mut client);
    assert_eq!([score(served.pid().into()), score(keeper)], [-950, -999]);
    // Nor may it take that again, once it has given up its privileges.
    let script = "cat /proc/self/oom_score_adj; exec setpriv --reuid 64321 --clear-groups --inh-caps=-all \
                  sh -c 'echo -1 > /proc/self/oom_score_adj'";
    let params = json!({ "argv": ["sh", "-c", script], "cwd": "/", "policy": "unconfined" });
    let started = client.call("process/start", params).expect("it starts");
    let id = started["process"].as_str().expect("an id");
    let record = client.wait(id);
    assert_ne!(record["exit_code"], 0, "{record}");
    assert_eq!(client.read_all(id).0, b"0\n", "{record}");
}

both_users! {
    the_keeper_dies_last_and_no_command_is_spared_for_its_daemon,
    a_daemon_that_was_started_with_less_than_nothing_passes_none_of_it_on,
}
