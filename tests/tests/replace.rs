//! One daemon after another: replaced on purpose, by a signal, or killed, while clients wait and follow.

#![allow(
    clippy::disallowed_methods,
    reason = "daemons and clients are started beside the test"
)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use provost::{EventBody, ProcessId, Supervisor};
use provost_tests::asking::block_on;
use provost_tests::{
    DEADLINE, LineClient, Live, World, both_users, end_keeper, needs, provost, require,
};
use serde_json::{Value, json};

both_users! {
    i8_followers_see_every_byte_once_while_the_daemon_is_replaced,
    i8_ten_replacements_in_a_row_lose_no_wait,
    i8_a_daemon_that_is_killed_and_started_again_loses_no_follower,
    usr2_keeps_the_pid_and_what_runs,
    a_service_manager_follows_from_one_daemon_to_the_next,
    who_cannot_take_over_leaves_the_old_one_serving,
    what_was_written_arrives_once_over_a_replacement,
    a_session_is_held_again_by_its_client,
    a_session_that_was_taken_is_not_taken_back,
    a_client_that_does_not_wait_says_what_happened,
}

/// Daemons on one state directory and one socket, one after another.
struct Place<'w> {
    world: &'w World,
    /// Started by us and not known to have ended.
    daemons: Vec<Child>,
    listening: Option<Receiver<u32>>,
    /// Whom the first one tells how it does.
    manager: Option<PathBuf>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        end_keeper(&self.world.path("state"));
    }
}

impl<'w> Place<'w> {
    fn new(world: &'w World) -> Self {
        Self::managed(world, None)
    }

    fn managed(world: &'w World, manager: Option<PathBuf>) -> Self {
        let mut place = Self {
            world,
            daemons: Vec::new(),
            listening: None,
            manager,
        };
        place.start(&[]);
        place
    }

    fn socket(&self) -> PathBuf {
        self.world.path("work/provost.sock")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(provost());
        command
            .args(words)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.world.path("home"))
            .env("PROVOST_SOCKET", self.socket())
            .env("PROVOST_STATE_DIR", self.world.path("state"))
            .current_dir(self.world.work())
            .stdin(Stdio::null());
        if self.world.changes_uid() {
            command.uid(self.world.uid()).gid(self.world.uid());
        }
        command
    }

    /// Starts a daemon, and waits until it listens.
    fn start(&mut self, flags: &[&str]) -> u32 {
        let mut command = self.command(&[&["serve"], flags].concat());
        if let Some(manager) = self.manager.take() {
            command.env("NOTIFY_SOCKET", manager);
        }
        let mut child = command.stderr(Stdio::piped()).spawn().expect("provost serve");
        let (say, listening) = channel();
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let pid = child.id();
        std::thread::spawn(move || {
            let mut said = String::new();
            for line in stderr.lines().map_while(Result::ok) {
                said = said + &line + "\n";
                if line.contains("listening on") {
                    let _ = say.send(pid);
                }
            }
            eprintln!("{said}");
        });
        let listens = listening.recv_timeout(DEADLINE);
        self.daemons.push(child);
        assert_eq!(listens, Ok(pid), "the daemon does not listen");
        self.listening = Some(listening);
        pid
    }

    /// Replaces the daemon; the one before has ended by itself, and well.
    fn replace(&mut self) -> u32 {
        let before = self.daemons.pop().expect("one runs");
        let pid = self.start(&["--replace"]);
        let ended = { before }.wait().expect("our own child");
        assert!(ended.success(), "it ended with {ended}");
        pid
    }

    fn live(&self, words: &[&str]) -> Live {
        let mut command = self.command(words);
        command.process_group(0);
        Live::from_command(command, None)
    }

    fn say(&self, words: &[&str]) -> String {
        let done = self.live(words).finish();
        assert_eq!(done.code, Some(0), "\n{done}");
        done.text().trim_end().to_owned()
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.say(&["status", "--json"])).expect("JSON")
    }

    /// Waits until so many clients are connected.
    fn clients(&self, count: u64) {
        let deadline = Instant::now() + DEADLINE;
        while self.status()["clients"] != count + 1 {
            assert!(Instant::now() < deadline, "never so many clients");
        }
    }

    /// Starts a script, all of whose output is kept.
    fn script(&self, script: &str) -> String {
        self.say(&["start", "--max-output", "8M", "--", "sh", "-c", script])
    }
}

/// Numbers, until somebody makes the file.
fn counting(stop: &str) -> String {
    format!(
        "i=0; until [ -e {stop} ]; do i=$((i+1)); echo line $i; [ $((i % 50)) = 0 ] && sleep 0.01; done; echo end $i"
    )
}

/// Every line of [`counting`] is there, once; how many.
fn check_lines(text: &str) -> usize {
    let mut lines = text.lines().collect::<Vec<_>>();
    let end = lines.pop().expect("it has said something");
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(*line, format!("line {}", index + 1), "a hole or a double");
    }
    assert_eq!(end, format!("end {}", lines.len()));
    lines.len()
}

const PYTHON: &str = r#"
import base64, sys
from provost import Provost
provost, out = Provost.connect(sys.argv[1]), b''
process = provost.process(sys.argv[2])
for event in process.events():
    if event['type'] == 'output':
        assert event['offset'] == len(out), event
        out += base64.b64decode(event['data'])
assert process.wait()['exit_code'] == 0
sys.stdout.buffer.write(out)
"#;

fn python(place: &Place<'_>, id: &str) -> Live {
    let client = include_str!("../../examples/python/provost.py");
    place.world.file("home/provost.py", client);
    place.world.file("home/follow.py", PYTHON);
    let mut command = Command::new("/usr/bin/python3");
    command
        .arg(place.world.path("home/follow.py"))
        .arg(place.socket())
        .arg(id)
        .env_clear()
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .process_group(0);
    if place.world.changes_uid() {
        command.uid(place.world.uid()).gid(place.world.uid());
    }
    Live::from_command(command, None)
}

/// A handle of the library's that reads everything.
fn handle(place: &Place<'_>, id: &str) -> std::thread::JoinHandle<(String, bool)> {
    let (socket, id) = (place.socket(), id.parse::<ProcessId>().expect("an id"));
    let (ready, is_ready) = channel();
    let reading = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let supervisor = Supervisor::connect(&socket).await.expect("a daemon");
            let process = supervisor.process(id).await.expect("it is known");
            let waiting = tokio::spawn({
                let process = process.clone();
                async move { process.record().await }
            });
            let (mut text, mut last) = (Vec::new(), 0);
            let mut events = process.events();
            while let Some(event) = events.next().await.expect("it goes on") {
                assert!(event.seq > last, "{event:?} behind {last}");
                last = event.seq;
                if let EventBody::Output { offset, data, .. } = event.body {
                    assert_eq!(offset, text.len() as u64, "a hole or a double");
                    text.extend_from_slice(&data);
                    let _ = ready.send(());
                }
            }
            let record = waiting.await.expect("no panic").expect("a record");
            (String::from_utf8(text).expect("text"), record.succeeded)
        })
    });
    is_ready.recv_timeout(DEADLINE).expect("it reads");
    reading
}

/// Everybody follows a process while this happens; nobody misses or repeats anything.
fn followed(world: &World, happens: impl FnOnce(&mut Place<'_>)) {
    require!(needs::command("python3"), "python3");
    let mut place = Place::new(world);
    let stop = world.path("work/stop");
    let id = place.script(&counting("stop"));
    let mut logs = place.live(&["logs", "-f", &id]);
    logs.wait_for("line 1\n");
    let mut events = place.live(&["events", "-f", &id]);
    events.wait_for("output");
    let python = python(&place, &id);
    let handle = handle(&place, &id);
    let waiting = place.live(&["wait", &id]);
    place.clients(5);
    happens(&mut place);
    std::fs::write(&stop, "").expect("a file of the test's own");
    let logs = logs.finish();
    assert_eq!(logs.code, Some(0), "\n{logs}");
    let count = check_lines(&logs.text());
    let (text, succeeded) = handle.join().expect("no panic");
    assert!(succeeded);
    assert_eq!(check_lines(&text), count);
    let events = events.finish();
    assert_eq!(events.code, Some(0), "\n{events}");
    let seqs: Vec<u64> = events
        .events()
        .iter()
        .filter_map(|event| event["seq"].as_u64())
        .collect();
    assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]), "{seqs:?}");
    let (out, lost) = events.stream("stdout");
    assert_eq!((check_lines(&String::from_utf8_lossy(&out)), lost), (count, 0));
    let done = waiting.finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    let python = python.finish();
    assert_eq!(python.code, Some(0), "\n{python}");
    assert_eq!(check_lines(&python.text()), count);
    assert_eq!(place.status()["live"], 0);
}

fn i8_followers_see_every_byte_once_while_the_daemon_is_replaced(world: &World) {
    followed(world, |place| {
        place.replace();
    });
}

fn i8_a_daemon_that_is_killed_and_started_again_loses_no_follower(world: &World) {
    followed(world, |place| {
        for _ in 0..3 {
            let mut daemon = place.daemons.pop().expect("one runs");
            daemon.kill().expect("our own child");
            daemon.wait().expect("our own child");
            place.start(&[]);
        }
    });
}

fn i8_ten_replacements_in_a_row_lose_no_wait(world: &World) {
    let mut place = Place::new(world);
    let count = counting("stop");
    let ids: Vec<String> = (0..4).map(|_| place.script(&count)).collect();
    let mut words = vec!["wait", "--json"];
    words.extend(ids.iter().map(String::as_str));
    let waiting = place.live(&words);
    let held = place.live(&["wait", "--timeout", "10m", &ids[0]]);
    let run = place.live(&["run", "--daemon", "--max-output", "8M", "--", "sh", "-c", &count]);
    let keeper = keeper(&place);
    for _ in 0..10 {
        place.replace();
        // There is always somebody to ask, and to start with.
        let id = place.say(&["start", "--", "sh", "-c", "echo hello"]);
        assert_eq!(place.say(&["wait", &id]), "");
        assert_eq!(place.say(&["logs", &id]), "hello");
    }
    assert_eq!(self::keeper(&place), keeper, "it is the same");
    std::fs::write(world.path("work/stop"), "").expect("a file of the test's own");
    let done = waiting.finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    let records: Vec<Value> = done
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let outcomes: HashMap<&str, &str> = records
        .iter()
        .map(|record| {
            (
                record["process"].as_str().expect("an id"),
                record["outcome"].as_str().expect("one"),
            )
        })
        .collect();
    assert!(
        ids.iter().all(|id| outcomes.get(id.as_str()) == Some(&"exited")),
        "{outcomes:?}"
    );
    let held = held.finish();
    assert_eq!(held.code, Some(0), "\n{held}");
    let run = run.finish();
    assert_eq!(run.code, Some(0), "\n{run}");
    check_lines(&run.text());
    for id in &ids {
        check_lines(&(place.say(&["logs", id]) + "\n"));
    }
}

/// Which keeper it is, by its socket: another one makes another. Who connected would take the daemon's place.
fn keeper(place: &Place<'_>) -> (u64, std::time::SystemTime) {
    use std::os::unix::fs::MetadataExt;
    let socket = place
        .world
        .path("state/keeper.sock")
        .symlink_metadata()
        .expect("a keeper");
    (socket.ino(), socket.modified().expect("a time"))
}

fn usr2_keeps_the_pid_and_what_runs(world: &World) {
    let mut place = Place::new(world);
    let id = place.script(&counting("stop"));
    let mut logs = place.live(&["logs", "-f", &id]);
    logs.wait_for("line 1\n");
    let pid = place.status()["pid"].as_u64().expect("a pid");
    let listening = place.listening.take().expect("it listens");
    let raw = Pid::from_raw(i32::try_from(pid).expect("a pid"));
    for _ in 0..3 {
        let before = place.status()["uptime_ms"].as_u64();
        kill(raw, Signal::SIGUSR2).expect("it lives");
        assert_eq!(listening.recv_timeout(DEADLINE).map(u64::from), Ok(pid));
        let status = place.status();
        assert_eq!(status["pid"], pid, "{status}");
        assert!(status["uptime_ms"].as_u64() <= before.map(|before| before + 60_000));
        assert_eq!(status["live"], 1, "{status}");
    }
    std::fs::write(world.path("work/stop"), "").expect("a file of the test's own");
    let done = logs.finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    check_lines(&done.text());
    // It stops as ever, and its keeper and socket with it.
    kill(raw, Signal::SIGTERM).expect("it lives");
    let status = place.daemons.pop().expect("one").wait().expect("our own child");
    assert!(status.success(), "{status}");
    assert!(!place.socket().exists());
}

fn a_service_manager_follows_from_one_daemon_to_the_next(world: &World) {
    use std::os::unix::fs::PermissionsExt;
    let path = world.path("work/notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).expect("our own");
    manager.set_read_timeout(Some(DEADLINE)).expect("a deadline");
    let hears = |wanted: &str| {
        let mut heard = Vec::new();
        loop {
            let mut bytes = [0; 4096];
            let length = manager
                .recv(&mut bytes)
                .unwrap_or_else(|_| panic!("not `{wanted}` but {heard:?}"));
            let said = String::from_utf8_lossy(&bytes[..length]).into_owned();
            if said.contains(wanted) {
                return;
            }
            heard.push(said);
        }
    };
    let mut place = Place::managed(world, Some(path));
    hears("READY=1\n");
    // By hand, and not as a service.
    let pid = place.replace();
    hears(&format!("MAINPID={pid}\n"));
    hears("READY=1\n");
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGUSR2).expect("it lives");
    hears("RELOADING=1\n");
    hears("READY=1\n");
    assert_eq!(place.status()["pid"], pid);
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).expect("it lives");
    hears("STOPPING=1\n");
}

fn who_cannot_take_over_leaves_the_old_one_serving(world: &World) {
    let place = Place::new(world);
    let pid = place.status()["pid"].as_u64();
    let id = place.say(&["start", "--", "sleep", "1000"]);
    let refused = |words: &[&str], why: &str| {
        let done = place.live(words).finish();
        assert_eq!(done.code, Some(125), "\n{done}");
        assert!(done.stderr.contains(why), "not `{why}`\n{done}");
        assert_eq!(place.status()["pid"].as_u64(), pid, "\n{done}");
        assert_eq!(place.say(&["ps", "-q"]), id, "\n{done}");
    };
    let config = world.file("home/wrong.toml", "max_clients = \"many\"\n");
    refused(&["serve", "--replace", "--config", &config], "max_clients");
    refused(&["serve", "--check", "--config", &config], "max_clients");
    let other = world.text("other-state");
    // Nothing there is anybody's, so there is nobody to replace; but the socket is.
    refused(&["serve", "--replace", "--state-dir", &other], "another daemon");
    // As a successor of another release would ask.
    let mut client = LineClient::connect(&place.socket());
    let state = world.text("state");
    let ask = |keeper: u32, schema: u32, state: &str| json!({ "pid": 1, "keeper_protocol": keeper, "schema": schema, "state_dir": state });
    let checked: Value = serde_json::from_str(&place.say(&["serve", "--check"])).expect("JSON");
    let (protocol, schema) = (&checked["keeper_protocol"], &checked["schema"]);
    let (protocol, schema) = (
        protocol.as_u64().expect("one") as u32,
        schema.as_u64().expect("one") as u32,
    );
    for asked in [
        ask(protocol + 1, schema, &state),
        ask(protocol, schema - 1, &state),
        ask(protocol, schema, "/tmp"),
    ] {
        let error = client.call("daemon/leave", asked).expect_err("it stays");
        assert_eq!(error["data"]["kind"], "refused", "{error}");
    }
    assert_eq!(place.status()["pid"].as_u64(), pid);

    // A database of a newer program: neither the new one nor the signal ends the old one.
    let set = |version: u32| {
        let made = Command::new("python3")
            .args(["-c", "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA user_version = ' + sys.argv[2]); c.commit()"])
            .arg(world.path("state/provost.db"))
            .arg(version.to_string())
            .status();
        assert!(made.expect("python3").success());
    };
    require!(needs::command("python3"), "python3");
    set(schema + 1);
    refused(&["serve", "--replace"], "newer");
    refused(&["serve", "--check"], "newer");
    set(schema);
    place.say(&["kill", &id]);
}

fn what_was_written_arrives_once_over_a_replacement(world: &World) {
    let mut place = Place::new(world);
    let input: String = (0..200_000).map(|number| format!("{number:07}\n")).collect();
    let file = world.file("work/input", &input);
    let mut command = place.command(&[
        "run",
        "--daemon",
        "--stdin",
        "inherit",
        "--max-output",
        "8M",
        "--",
        "cat",
    ]);
    command
        .stdin(std::fs::File::open(file).expect("the input"))
        .process_group(0);
    let mut cat = Live::from_command(command, None);
    cat.wait_for("0000100\n");
    place.replace();
    let done = cat.finish();
    assert_eq!(done.code, Some(0), "\n{}", done.stderr);
    assert!(
        done.text() == input,
        "{} bytes of {}",
        done.text().len(),
        input.len()
    );
}

fn a_session_is_held_again_by_its_client(world: &World) {
    let mut place = Place::new(world);
    block_on(async {
        let supervisor = Supervisor::connect(place.socket()).await.expect("a daemon");
        let session = supervisor.open_session().await.expect("a session");
        let id = session.session_id().expect("its id").to_string();
        place.replace();
        // Asks, and so connects again.
        assert!(session.list().await.expect("it is there").is_empty());
        let sessions = place.say(&["session", "list", "--json"]);
        let sessions: Vec<Value> = sessions
            .lines()
            .flat_map(|line| match serde_json::from_str(line).expect("JSON") {
                Value::Array(all) => all,
                one => vec![one],
            })
            .collect();
        let ours = sessions.iter().find(|session| session["session"] == id.as_str());
        assert_eq!(ours.expect("it is listed")["attached"], true, "{sessions:?}");
        let report = session
            .shutdown(Duration::from_secs(5))
            .await
            .expect("it is ours to end");
        assert!(report.graceful);
    });
}

fn a_session_that_was_taken_is_not_taken_back(world: &World) {
    let mut place = Place::new(world);
    block_on(async {
        let supervisor = Supervisor::connect(place.socket()).await.expect("a daemon");
        let session = supervisor.open_session().await.expect("a session");
        let id = session.session_id().expect("its id").to_string();
        let mut thief = LineClient::connect(&place.socket());
        let steal = json!({ "sessions": [id], "steal": true });
        let moved = thief.call("session/attach", steal).expect("it is taken");
        assert_eq!(moved["moved"], json!([id]));
        // Told before this is answered.
        session.list().await.expect("it is there");
        let mut daemon = place.daemons.pop().expect("one runs");
        daemon.kill().expect("our own child");
        daemon.wait().expect("our own child");
        place.start(&[]);
        session.list().await.expect("it is there");
        let found = place.say(&["session", "list", "--json"]);
        let found: Value = serde_json::from_str(&found).expect("JSON");
        assert_eq!(
            (&found["session"], &found["attached"]),
            (&json!(id), &json!(false))
        );
    });
}

fn a_client_that_does_not_wait_says_what_happened(world: &World) {
    let mut place = Place::new(world);
    let id = place.say(&["start", "--", "sleep", "1000"]);
    let never = place.live(&["wait", "--reconnect", "0", &id]);
    let soon = place.live(&["wait", "--reconnect", "200ms", &id]);
    place.clients(2);
    let mut daemon = place.daemons.pop().expect("one runs");
    daemon.kill().expect("our own child");
    daemon.wait().expect("our own child");
    for client in [never, soon] {
        let done = client.finish();
        assert_eq!(done.code, Some(125), "\n{done}");
        assert!(done.stderr.contains("lost"), "\n{done}");
        assert_eq!(done.text(), "");
    }
    place.start(&[]);
    place.say(&["kill", &id]);
}

#[test]
fn i12_nobody_else_may_ask_a_daemon_to_leave() {
    let Some(world) = World::try_new(provost_tests::User::Root) else {
        return;
    };
    let place = Place::new(&world);
    let pid = place.status()["pid"].as_u64();
    provost_tests::open_socket(&place.socket());
    let checked: Value = serde_json::from_str(&place.say(&["serve", "--check"])).expect("JSON");
    let asked = json!({
        "pid": 1, "keeper_protocol": checked["keeper_protocol"], "schema": checked["schema"],
        "state_dir": world.text("state"),
    });
    // As root for a user: that one's instance answers, which has no place of its own.
    let uid = nix::unistd::Uid::from_raw(1001);
    let user = nix::unistd::User::from_uid(uid).expect("users");
    require!(user.is_some(), "a user 1001");
    let name = user.map(|user| user.name);
    let mut client = LineClient::silent(&place.socket());
    let hello = json!({ "protocol": 1, "client": "test", "user": name });
    assert_eq!(
        client.call("initialize", hello).expect("it is served")["uid"],
        1001
    );
    let error = client.call("daemon/leave", asked.clone()).expect_err("it stays");
    assert_eq!(error["data"]["kind"], "refused", "{error}");
    // As that user.
    let script = "import json, socket, sys\ns = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); f = s.makefile('rw')\n\
        def say(n, m, p):\n  f.write(json.dumps({'jsonrpc': '2.0', 'id': n, 'method': m, 'params': p}) + '\\n'); f.flush(); return f.readline()\n\
        say(1, 'initialize', {'protocol': 1}); print(say(2, 'daemon/leave', json.loads(sys.argv[2])))";
    require!(needs::command("python3"), "python3");
    let mut command = Command::new("python3");
    command
        .args(["-c", script])
        .arg(place.socket())
        .arg(asked.to_string());
    let said = command
        .uid(1001)
        .gid(1001)
        .current_dir("/")
        .output()
        .expect("python3");
    let said =
        String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
    assert!(said.contains("\"refused\""), "{said}");
    assert_eq!(place.status()["pid"].as_u64(), pid);
}
