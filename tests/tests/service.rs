//! `provost serve` as a service: what it says to systemd, its socket, its signals, its configuration.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use provost_tests::{DEADLINE, World, both_users, provost};
use serde_json::{Value, json};

both_users! {
    i12_systemd_is_told_and_only_the_user_can_connect,
    the_watchdog_is_told_that_the_daemon_is_alive,
    a_reload_changes_limits_and_a_wrong_file_changes_nothing,
    a_socket_that_was_passed_is_served_and_left_behind,
    a_socket_passed_to_somebody_else_is_not_touched,
    the_second_daemon_is_told_who_the_first_is,
    what_a_killed_daemon_left_is_replaced,
    nobody_who_reads_the_log_is_needed,
    the_second_wish_to_stop_kills_what_does_not_stop,
}

/// A service manager, as far as a daemon sees one.
struct Manager<'a> {
    world: &'a World,
    notify: UnixDatagram,
}

/// A daemon that it started.
struct Service {
    child: Child,
}

impl<'a> Manager<'a> {
    fn new(world: &'a World) -> Self {
        let path = world.path("records/notify");
        let notify = UnixDatagram::bind(&path).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        notify.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { world, notify }
    }

    fn socket(&self) -> PathBuf {
        self.world.path("work/run/provost.sock")
    }

    fn config(&self) -> PathBuf {
        self.world.path("home/provost.toml")
    }

    /// Runs `script` with the daemon's command line as its arguments, as the user of this world.
    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", script])
            .arg(provost())
            .arg("serve")
            .arg("--socket")
            .arg(self.socket())
            // Root's own is one for all tests.
            .arg("--state-dir")
            .arg(self.world.path("state"))
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.world.path("home"))
            .env("NOTIFY_SOCKET", self.world.path("records/notify"))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if self.world.changes_uid() {
            command.uid(self.world.uid()).gid(self.world.uid());
        }
        command
    }

    fn start(&self) -> Service {
        self.start_command(self.command(r#"exec "$0" "$@""#))
    }

    fn start_command(&self, mut command: Command) -> Service {
        Service {
            child: command.spawn().unwrap(),
        }
    }

    /// The next message.
    fn message(&self) -> String {
        let mut bytes = [0; 4096];
        let length = self.notify.recv(&mut bytes).expect("a message from the daemon");
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    fn wait_until_ready(&self) -> String {
        let message = self.message();
        assert!(message.starts_with("READY=1\nSTATUS=listening on "), "{message}");
        message
    }
}

impl Service {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Its end, and what it wrote to stderr.
    fn end(mut self) -> (ExitStatus, String) {
        let mut log = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut log).unwrap();
        }
        (self.child.wait().unwrap(), log)
    }

    fn stop(self) {
        self.signal(Signal::SIGTERM);
        let (status, log) = self.end();
        assert_eq!(status.code(), Some(0), "{log}");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client, as plain as can be.
struct Client(BufReader<UnixStream>);

impl Client {
    fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Self(BufReader::new(stream))
    }

    /// Asks, and waits for the answer.
    fn call(&mut self, method: &str, params: Value) -> Value {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let stream = self.0.get_mut();
        stream.write_all(format!("{request}\n").as_bytes()).unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap();
        assert!(answer["result"].is_object(), "{method}: {answer}");
        answer["result"].clone()
    }
}

/// The daemon's answer to the first request on a connection.
fn introduce(socket: &Path) -> Value {
    Client::connect(socket).call("initialize", json!({ "protocol": 1 }))
}

fn i12_systemd_is_told_and_only_the_user_can_connect(world: &World) {
    let manager = Manager::new(world);
    // The most that a umask can let through.
    let service = manager.start_command(manager.command(r#"umask 0; exec "$0" "$@""#));
    let ready = manager.wait_until_ready();
    let socket = manager.socket();
    assert_eq!(
        ready,
        format!("READY=1\nSTATUS=listening on {}\n", socket.display())
    );
    let there = socket.symlink_metadata().unwrap();
    assert_eq!((there.mode() & 0o7777, there.uid()), (0o600, world.uid()));
    let directory = socket.parent().unwrap().symlink_metadata().unwrap();
    let expected = if world.is_root() { 0o755 } else { 0o700 };
    assert_eq!(directory.mode() & 0o7777, expected);
    assert_eq!(introduce(&socket)["uid"], world.uid());

    service.signal(Signal::SIGTERM);
    assert_eq!(
        manager.message(),
        "STOPPING=1\nSTATUS=waiting for processes to stop\n"
    );
    let (status, log) = service.end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!socket.exists());
}

fn the_watchdog_is_told_that_the_daemon_is_alive(world: &World) {
    let manager = Manager::new(world);
    let mut command = manager.command(r#"WATCHDOG_PID=$$ exec "$0" "$@""#);
    command.env("WATCHDOG_USEC", "20000");
    let service = manager.start_command(command);
    manager.wait_until_ready();
    for _ in 0..3 {
        assert_eq!(manager.message(), "WATCHDOG=1\n");
    }
    service.stop();
}

fn a_reload_changes_limits_and_a_wrong_file_changes_nothing(world: &World) {
    let manager = Manager::new(world);
    let write = |text: &str| {
        fs::write(manager.config(), text).unwrap();
        world.give_away(&manager.config(), 0o644);
    };
    let reload = |service: &Service| {
        service.signal(Signal::SIGHUP);
        let reloading = manager.message();
        assert!(
            reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
            "{reloading}"
        );
        manager.wait_until_ready()
    };
    write("max_processes = 11");
    let mut command = manager.command(r#"exec "$0" "$@""#);
    command.arg("--config").arg(manager.config());
    let service = manager.start_command(command);
    manager.wait_until_ready();
    let processes = || introduce(&manager.socket())["limits"]["processes"].clone();
    assert_eq!(processes(), 11);
    write("max_processes = 12");
    reload(&service);
    assert_eq!(processes(), 12);
    write("max_processes = 0");
    let status = reload(&service);
    let wrong = "provost.toml:1:17: max_processes: 0 is out of range";
    assert!(status.contains(wrong), "{status}");
    assert_eq!(processes(), 12);
    service.stop();
}

fn a_socket_that_was_passed_is_served_and_left_behind(world: &World) {
    let manager = Manager::new(world);
    let path = world.path("records/passed.sock");
    let passed = UnixListener::bind(&path).unwrap();
    // Who comes before the daemon waits.
    let early = UnixStream::connect(&path).unwrap();
    let script = r#"exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@""#;
    let mut command = manager.command(script);
    command.stdin(OwnedFd::from(passed));
    let service = manager.start_command(command);
    assert_eq!(
        manager.wait_until_ready(),
        "READY=1\nSTATUS=listening on the socket that was passed\n"
    );
    assert_eq!(introduce(&path)["uid"], world.uid());
    drop(early);
    // It made none of its own.
    assert!(!manager.socket().exists());
    service.stop();
    assert!(path.exists());
}

fn a_socket_passed_to_somebody_else_is_not_touched(world: &World) {
    let manager = Manager::new(world);
    let path = world.path("records/passed.sock");
    let script = r#"exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=1 exec "$0" "$@""#;
    let mut command = manager.command(script);
    command.stdin(OwnedFd::from(UnixListener::bind(&path).unwrap()));
    let service = manager.start_command(command);
    manager.wait_until_ready();
    introduce(&manager.socket());
    service.stop();

    // What is passed must be a listening socket.
    let script = r#"exec 3</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@""#;
    let (status, log) = manager.start_command(manager.command(script)).end();
    assert_eq!(status.code(), Some(125), "{log}");
    assert!(log.contains("want one listening Unix stream socket"), "{log}");
}

fn the_second_daemon_is_told_who_the_first_is(world: &World) {
    let manager = Manager::new(world);
    let first = manager.start();
    manager.wait_until_ready();
    let (status, log) = manager.start().end();
    assert_eq!(status.code(), Some(125), "{log}");
    let holder = format!("(process {})", first.child.id());
    assert!(log.contains(&holder), "{log}");
    // It changed nothing.
    introduce(&manager.socket());
    first.stop();
}

fn what_a_killed_daemon_left_is_replaced(world: &World) {
    let manager = Manager::new(world);
    let killed = manager.start();
    manager.wait_until_ready();
    killed.signal(Signal::SIGKILL);
    killed.end();
    assert!(manager.socket().exists());
    let service = manager.start();
    manager.wait_until_ready();
    introduce(&manager.socket());
    service.stop();
}

fn nobody_who_reads_the_log_is_needed(world: &World) {
    let manager = Manager::new(world);
    let mut service = manager.start();
    manager.wait_until_ready();
    // As when a terminal is closed. What is logged from now on cannot be written.
    drop(service.child.stderr.take());
    service.signal(Signal::SIGHUP);
    assert!(manager.message().starts_with("RELOADING=1\n"));
    manager.wait_until_ready();
    introduce(&manager.socket());
    service.stop();
}

fn the_second_wish_to_stop_kills_what_does_not_stop(world: &World) {
    let manager = Manager::new(world);
    let service = manager.start();
    manager.wait_until_ready();
    let mut client = Client::connect(&manager.socket());
    client.call("initialize", json!({ "protocol": 1 }));
    let witness = world.witness();
    // It ignores what asks it to stop, and would have an hour for it.
    let up = world.path("work/up");
    nix::unistd::mkfifo(&up, nix::sys::stat::Mode::empty()).unwrap();
    world.give_away(&up, 0o600);
    let script = format!(
        "trap '' TERM; exec 9>{}; echo up >up; while :; do sleep 1000; done",
        witness.path()
    );
    let cwd = world.path("work");
    let params = json!({ "argv": ["sh", "-c", script], "cwd": cwd, "grace_ms": 3_600_000 });
    client.call("process/start", params);
    assert_eq!(fs::read_to_string(up).unwrap(), "up\n");
    service.signal(Signal::SIGTERM);
    assert!(manager.message().starts_with("STOPPING=1\nSTATUS=waiting"));
    let begun = std::time::Instant::now();
    // Nobody new is let wait meanwhile.
    while UnixStream::connect(manager.socket()).is_ok() {
        assert!(begun.elapsed() < DEADLINE, "it still listens");
        std::thread::yield_now();
    }
    service.signal(Signal::SIGINT);
    assert!(manager.message().starts_with("STOPPING=1\nSTATUS=killing"));
    let (status, log) = service.end();
    assert_eq!(status.code(), Some(0), "{log}");
    // Far less than the 30 s that everything has otherwise.
    assert!(begun.elapsed() < std::time::Duration::from_secs(15), "{log}");
    witness.wait_until_gone();
}

#[test]
fn metrics_are_served_where_the_configuration_says() {
    let Some(world) = World::try_new(provost_tests::User::Ordinary) else {
        return;
    };
    provost_tests::require!(provost_tests::needs::command("curl"), "curl");
    let socket = world.text("work/metrics.sock");
    let config = world.file("work/provost.toml", &format!("metrics = \"{socket}\"\n"));
    let served = provost_tests::Served::start_with(&world, &["--config", &config]);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let client = provost::client::Client::connect(served.socket())
            .await
            .expect("a daemon");
        let script = "echo hello; exec 3<>/dev/tcp/192.0.2.1/9";
        let params = serde_json::json!({ "argv": ["bash", "-c", script], "cwd": world.work() });
        let started: serde_json::Value = client.call("process/start", &params).await.expect("it starts");
        let _: serde_json::Value = client
            .call("process/wait", &started_ref(&started))
            .await
            .expect("it ends");
        let _ = client
            .call::<serde_json::Value>("process/start", &serde_json::json!({ "argv": [], "cwd": "/" }))
            .await;
    });
    // What ended is counted a moment later.
    let text = std::iter::repeat_with(|| {
        let output = std::process::Command::new("curl")
            .args(["-sS", "--unix-socket", &socket, "http://localhost/metrics"])
            .output()
            .expect("curl runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    })
    .take(100)
    .find(|text| text.contains("provost_processes_ended_total{kind=\"exited\"} 1"))
    .expect("the process is counted");
    for line in [
        "provost_processes_started_total 1",
        "provost_denials_total{kind=\"network\"} 1",
        "provost_processes_live 0",
        "provost_process_duration_seconds_count 1",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}

fn started_ref(started: &serde_json::Value) -> serde_json::Value {
    serde_json::json!({ "process": started["process"] })
}
