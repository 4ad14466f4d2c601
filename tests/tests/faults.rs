//! What goes wrong around a daemon: it says what, loses nothing, and goes on when it is right again.

#![allow(clippy::disallowed_methods, reason = "the binary is run as a user runs it")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use provost_tests::{LineClient, Served, User, World, both_users, provost};
use serde_json::{Value, json};

/// Starts a command that ends when it has read a line.
fn start(client: &mut LineClient) -> Result<String, Value> {
    let script = "read line; echo \"$line\"; exit 3";
    let params = json!({
        "argv": ["sh", "-c", script], "cwd": "/", "policy": "unconfined", "stdin": true,
    });
    let started = client.call("process/start", params)?;
    Ok(started["process"].as_str().expect("an id").to_owned())
}

fn end(client: &mut LineClient, id: &str) -> Value {
    let go = json!({ "process": id, "data": base64_simd::STANDARD.encode_to_string(b"go\n") });
    client.call("process/write", go).expect("it reads");
    let record = client.wait(id);
    assert_eq!(record["exit_code"], 3, "{record}");
    let (said, _) = client.read_all(id);
    assert_eq!(said, b"go\n", "{record}");
    record
}

fn i8_stale_locks_and_sockets_are_in_nobodys_way(world: &World) {
    let served = Served::start(world);
    let socket = served.socket().to_owned();
    let mut client = LineClient::connect(&socket);
    let id = start(&mut client).expect("it starts");
    let read = json!({ "process": id, "wait_ms": 60_000 });
    let begun = client.call("process/read", read).expect("it is known");
    let pid = begun["events"][0]["pid"].as_u64().expect("a pid");
    served.crash();
    // Nothing lives of it, and every file of its own lies there; its locks name a process that is not a daemon.
    provost_tests::keeper::kill_keeper(pid);
    assert!(socket.exists() && world.path("state/keeper.sock").exists());
    fs::write(world.path("state/lock"), format!("{}\n", std::process::id())).expect("a lock");

    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let record = client.wait(&id);
    assert_eq!(record["outcome"], "lost", "{record}");
    let after = start(&mut client).expect("it starts");
    end(&mut client, &after);
}

/// What a daemon says that does not start.
fn refusal(world: &World, more: &[&str], variables: &[(&str, String)]) -> String {
    let mut command = Command::new(provost());
    command
        .arg("serve")
        .args(more)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", world.path("home"))
        .envs(variables.iter().map(|(name, value)| (name, value)));
    if world.changes_uid() {
        command.uid(world.uid()).gid(world.uid());
    }
    let output = command.output().expect("provost runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{said}");
    said
}

#[test]
fn i11_a_state_directory_that_cannot_be_written_is_refused_and_a_spool_refuses_starts() {
    let Some(world) = World::try_new(User::Ordinary) else {
        return;
    };
    let world = &world;
    let mode = |name: &str, mode| {
        fs::set_permissions(world.path(name), Permissions::from_mode(mode)).expect("the test's own");
    };
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let before = start(&mut client).expect("it starts");
    mode("state/spool", 0o500);
    let refused = start(&mut client).expect_err("it cannot be written down");
    assert!(refused.to_string().contains("cannot write down"), "{refused}");
    mode("state/spool", 0o700);
    let after = start(&mut client).expect("it starts again");
    end(&mut client, &after);
    end(&mut client, &before);
    drop(served);

    mode("state", 0o500);
    fs::remove_file(world.path("state/lock")).expect("a lock");
    let (socket, state) = (world.text("work/other.sock"), world.text("state"));
    let said = refusal(world, &["--socket", &socket, "--state-dir", &state], &[]);
    assert!(said.contains(&state) && said.contains("denied"), "{said}");
    mode("state", 0o700);
}

#[test]
fn i11_without_a_runtime_directory_it_is_said_where_the_socket_was_to_be() {
    let Some(world) = World::try_new(User::Ordinary) else {
        return;
    };
    let world = &world;
    let state = world.text("state");
    let missing = world.text("outside/missing");
    fs::set_permissions(world.path("outside"), Permissions::from_mode(0o555)).expect("the test's own");
    let variables = [("XDG_RUNTIME_DIR", missing.clone())];
    let said = refusal(world, &["--state-dir", &state], &variables);
    assert!(said.contains(&missing), "{said}");
    let said = refusal(world, &["--state-dir", &state], &[]);
    assert!(said.contains("--socket"), "{said}");
}

both_users! {
    i8_stale_locks_and_sockets_are_in_nobodys_way,
}
