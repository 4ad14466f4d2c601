//! The command line.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};

use provost_tests::{LineClient, Served, World, asked_until, both_users, provost};
use serde_json::{Value, json};

use super::{follow, until};

both_users! {
    the_verbs_of_jobs_do_what_they_say,
    contradictory_flags_are_refused,
    i8_a_waiter_goes_on_waiting_over_a_kill_of_the_daemon,
    killing_a_waiter_kills_no_job,
    killing_a_run_ends_its_command_only_where_it_was_to_end_with_it,
    changes_of_jobs_are_printed_over_a_kill_of_the_daemon,
}

pub(super) fn command(world: &World, daemon: &Served, words: &[&str]) -> Command {
    let mut command = Command::new(provost());
    command
        .args(words)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", world.path("home"))
        .env("PROVOST_SOCKET", daemon.socket())
        .current_dir(world.work())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if world.changes_uid() {
        command.uid(world.uid()).gid(world.uid());
    }
    command
}

fn say(world: &World, daemon: &Served, words: &[&str]) -> Output {
    command(world, daemon, words).output().unwrap()
}

/// Its output, if it ended with this code.
pub(super) fn said(world: &World, daemon: &Served, code: i32, words: &[&str]) -> String {
    let output = say(world, daemon, words);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{words:?}: {errors}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

const OPEN: [&str; 4] = ["job", "submit", "-p", "unconfined"];

fn submitted(world: &World, daemon: &Served, words: &[&str]) -> String {
    said(world, daemon, 0, &[&OPEN[..], words].concat())
}

fn the_verbs_of_jobs_do_what_they_say(world: &World) {
    let daemon = Served::start(world);
    let seven = submitted(world, &daemon, &["--name", "seven", "--", "sh", "-c", "exit 7"]);
    assert_eq!(seven.len(), 36, "the id alone: {seven}");
    for words in [["wait", "-q", &seven], ["job", "wait", "seven"]] {
        said(world, &daemon, 7, &words);
    }
    said(world, &daemon, 0, &["job", "pause", "held"]);
    let held = submitted(world, &daemon, &["--group", "held", "--", "touch", "never"]);
    assert_eq!(said(world, &daemon, 0, &["job", "list", "-q"]), held);
    said(
        world,
        &daemon,
        124,
        &["job", "wait", "--group", "held", "--timeout", "10ms"],
    );
    said(world, &daemon, 0, &["job", "cancel", &held]);
    said(world, &daemon, 0, &["job", "resume", "held"]);
    said(world, &daemon, 130, &["wait", "-q", &held]);
    said(world, &daemon, 1, &["job", "cancel", &seven]);
    assert!(!world.path("work/never").exists());
    let again = said(world, &daemon, 0, &["job", "retry", &seven]);
    assert_ne!(again, seven);
    said(world, &daemon, 7, &["wait", "-q", &again]);
    let wait = [&OPEN[..], &["--wait", "--", "sh", "-c", "kill -9 $$"]].concat();
    said(world, &daemon, 137, &wait);
    let all = said(world, &daemon, 0, &["job", "list", "-a", "--json"]);
    assert_eq!(all.lines().count(), 4);
    let found = said(world, &daemon, 0, &["job", "inspect", "seven"]);
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found["end"]["exit_code"], 7);
    let groups = said(world, &daemon, 0, &["job", "group", "held", "-j", "3"]);
    assert!(groups.contains("held\t3\topen\t0\t0"), "{groups}");
    said(
        world,
        &daemon,
        0,
        &["job", "notify", &seven, "--notify-file", "told"],
    );
    said(world, &daemon, 0, &["wait", "--all"]);
    said(world, &daemon, 125, &["wait", "nothere"]);
    said(world, &daemon, 0, &["status", "--json"]);
    said(world, &daemon, 7, &["status", &seven, "--wait"]);
    let detached = said(
        world,
        &daemon,
        0,
        &["run", "-p", "unconfined", "--detach", "--", "sh", "-c", "exit 9"],
    );
    said(world, &daemon, 9, &["wait", "-q", &detached]);
}

fn contradictory_flags_are_refused(world: &World) {
    let daemon = Served::start(world);
    for words in [
        &["job", "submit", "--detach", "--wait", "--", "true"][..],
        &["run", "--detach", "--wait", "--", "true"],
        &["run", "--detach", "--with-me", "--", "true"],
        &["run", "--detach", "--tty", "--", "true"],
        &["wait", "--all", "some"],
        &["job", "wait", "--all", "--group", "g"],
        &["job", "wait"],
        &["job", "list", "-a", "--state", "queued"],
        &["job", "submit", "--on", "end", "--", "true"],
        &["events", "--jobs", "some"],
        &["events"],
        &["status", "--wait"],
        &["job", "notify", "some"],
    ] {
        let output = say(world, &daemon, words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{words:?}: {errors}");
        assert!(errors.contains("Usage: "), "{words:?}: {errors}");
    }
    assert_eq!(said(world, &daemon, 0, &["job", "list", "-a", "-q"]), "");
}

/// A waiter for a job that ends when the file `go` is there.
fn waiting(world: &World, daemon: &Served) -> (String, Child, LineClient) {
    let mut client = LineClient::connect(daemon.socket());
    follow(&mut client, Value::Null);
    let script = "while ! test -e go; do sleep 0.02; done; exit 5";
    let job = submitted(world, daemon, &["--", "sh", "-c", script]);
    until(&mut client, &job, "running");
    let waiter = command(world, daemon, &["wait", "-q", &job]).spawn().unwrap();
    // It has its connection, and from then on waits whatever becomes of that.
    asked_until("its connection", || {
        client.call("daemon/status", json!({})).unwrap()["clients"] == 2
    });
    (job, waiter, client)
}

fn i8_a_waiter_goes_on_waiting_over_a_kill_of_the_daemon(world: &World) {
    let mut daemon = Served::start(world);
    let (_, mut waiter, _) = waiting(world, &daemon);
    for _ in 0..2 {
        daemon.crash();
        daemon = Served::start(world);
        assert!(waiter.try_wait().unwrap().is_none(), "it gave up");
    }
    world.file("work/go", "");
    assert_eq!(waiter.wait().unwrap().code(), Some(5));
    drop(daemon);
}

fn killing_a_waiter_kills_no_job(world: &World) {
    let daemon = Served::start(world);
    let (job, mut waiter, _client) = waiting(world, &daemon);
    waiter.kill().unwrap();
    waiter.wait().unwrap();
    world.file("work/go", "");
    said(world, &daemon, 5, &["wait", "-q", &job]);
}

fn killing_a_run_ends_its_command_only_where_it_was_to_end_with_it(world: &World) {
    let mut daemon = Served::start(world);
    // Each time also over the death of a daemon, after which it holds what it held.
    for (how, dies, ends) in [
        ("--daemon", false, false),
        ("--with-me", false, true),
        ("--daemon", true, false),
        ("--with-me", true, true),
    ] {
        let words = [
            "run",
            how,
            "-q",
            "-p",
            "unconfined",
            "--",
            "sh",
            "-c",
            "echo up; exec sleep 1000",
        ];
        let mut run = command(world, &daemon, &words).spawn().unwrap();
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(run.stdout.take().unwrap()));
        assert_eq!(lines.next().unwrap().unwrap(), "up");
        let id = said(world, &daemon, 0, &["ps", "-q"]);
        let is_held = |daemon: &Served| {
            let all = said(world, daemon, 0, &["session", "list", "--json"]);
            all.lines()
                .any(|line| serde_json::from_str::<Value>(line).unwrap()["attached"] == true)
        };
        assert_eq!(is_held(&daemon), how == "--with-me");
        if dies {
            daemon.crash();
            daemon = Served::start(world);
            let deadline = std::time::Instant::now() + provost_tests::DEADLINE;
            while ends && !is_held(&daemon) {
                assert!(std::time::Instant::now() < deadline, "it does not come back");
            }
        }
        run.kill().unwrap();
        run.wait().unwrap();
        if ends {
            said(world, &daemon, 130, &["wait", "-q", &id]);
        } else {
            let mut client = LineClient::connect(daemon.socket());
            // The daemon has seen that it is gone.
            while client.call("daemon/status", json!({})).unwrap()["clients"] != 1 {}
            let waited = json!({ "process": id, "timeout_ms": 200 });
            let waited = client.call("process/wait", waited).unwrap();
            assert_eq!(waited["record"], Value::Null);
            said(world, &daemon, 0, &["kill", &id]);
        }
    }
}

fn changes_of_jobs_are_printed_over_a_kill_of_the_daemon(world: &World) {
    let daemon = Served::start(world);
    let mut printer = command(world, &daemon, &["events", "--jobs", "--since", "0"])
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(printer.stdout.take().unwrap()));
    let mut ended = |job: &str| {
        loop {
            let event: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            if event["state"] == "ended" {
                return assert_eq!(event["job"], json!(job));
            }
        }
    };
    let one = submitted(world, &daemon, &["--", "true"]);
    ended(&one);
    daemon.crash();
    let daemon = Served::start(world);
    let other = submitted(world, &daemon, &["--", "false"]);
    ended(&other);
    printer.kill().unwrap();
    printer.wait().unwrap();
}
