//! What a process is refused, asks and waits for survives the daemon's death.

use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use provost_tests::host::TcpServer;
use provost_tests::{LineClient, Served, World, asked_until, both_users, needs, program, require};
use serde_json::{Value, json};

/// What comes last may take longer than any daemon lives here.
const CRASHES_MAX: usize = 12;

/// Some moment within this time.
fn some_moment(most: Duration) {
    let (_never, hears) = mpsc::channel::<()>();
    let fraction = RandomState::new().hash_one(()) as f64 / u64::MAX as f64;
    let _ = hears.recv_timeout(most.mul_f64(fraction));
}

fn start(client: &mut LineClient, world: &World, more: Value, argv: &[&str]) -> String {
    let mut params = json!({ "argv": argv, "cwd": world.work(), "policy": "workspace-write" });
    let params_map = params.as_object_mut().expect("an object");
    params_map.extend(more.as_object().expect("an object").clone());
    let started = client.call("process/start", params).expect("it starts");
    started["process"].as_str().expect("an id").to_owned()
}

fn output(client: &mut LineClient, process: &str) -> String {
    let (mut after, mut bytes) = (0, Vec::new());
    loop {
        let params = json!({ "process": process, "after_seq": after });
        let read = client.call("process/read", params).expect("it can be read");
        for event in read["events"].as_array().expect("events") {
            assert_ne!(event["type"], "gap", "{event}");
            if event["type"] == "output" {
                let text = event["data"].as_str().expect("base64");
                bytes.extend(base64_simd::STANDARD.decode_to_vec(text).expect("base64"));
            }
        }
        if read["ended"] == true {
            return String::from_utf8(bytes).expect("text");
        }
        after = read["next_seq"].as_u64().expect("a number");
    }
}

/// Whether it has ended by some moment soon.
fn has_ended(client: &mut LineClient, process: &str) -> bool {
    some_moment(Duration::from_millis(60));
    let described = client.call("process/inspect", json!({ "process": process }));
    !described.expect("it is known")["record"].is_null()
}

/// Kills the daemon at one moment after another until the process has ended; a client of the last one, and how often.
fn crash_until_it_ended(
    world: &World,
    mut daemon: Served,
    process: &str,
) -> (Served, LineClient, usize) {
    let mut client = LineClient::connect(daemon.socket());
    let mut crashes = 0;
    while crashes < CRASHES_MAX && !has_ended(&mut client, process) {
        daemon.crash();
        crashes += 1;
        daemon = Served::start(world);
        client = LineClient::connect(daemon.socket());
    }
    (daemon, client, crashes)
}

fn i8_no_refusal_is_lost_or_told_twice(world: &World, kind: &str, runs: usize) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let script = "for run in $(seq $2); do \"$0\" $1 200; done";
    let argv = ["sh", "-c", script, &program("denials"), kind, &runs.to_string()];
    let process = start(&mut client, world, json!({}), &argv);
    let (_daemon, mut client, crashes) = crash_until_it_ended(world, daemon, &process);
    let record = client.wait(&process);
    let said = output(&mut client, &process);
    assert!(crashes > 0, "it was never interrupted: {record}");
    assert_eq!(said, "refused: 200\n".repeat(runs), "{record}");
    // Audit records that the daemon had read when it died are told as a number, or the record says that they are missing.
    let all = record["denials"]["total"] == runs * 200;
    let by_audit = kind == "write" && !world.changes_uid();
    let missing = by_audit && record["denials"]["complete"] == false;
    assert!(all || missing, "{crashes} {record}");
    println!("{crashes} crashes; {}", record["denials"]["unobserved"]);
}

fn i8_refused_connects_are_counted_exactly_over_crashes(world: &World) {
    i8_no_refusal_is_lost_or_told_twice(world, "connect", 20);
}

fn i8_refused_writes_are_counted_exactly_over_crashes(world: &World) {
    i8_no_refusal_is_lost_or_told_twice(world, "write", if world.changes_uid() { 20 } else { 60 });
}

/// The daemon dies before, while and after what its journal says of refusals is put into a checkpoint.
fn i8_refusals_of_which_a_short_journal_tells_are_counted_exactly(world: &World) {
    const FIRST: usize = 4000;
    const THEN: usize = 3000;
    let mut daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let script = "\"$0\" connect $1; read line; \"$0\" connect $2";
    let (first, then) = (FIRST.to_string(), THEN.to_string());
    let argv = ["sh", "-c", script, &program("denials"), &first, &then];
    let process = start(&mut client, world, json!({ "stdin": true }), &argv);
    events(&mut client, &process, "output", 1);
    let journal = world.path("state/spool").join(format!("{process}.journal"));
    let read = || std::fs::read(&journal).expect("a journal");
    let word = b"\"standing\"";
    asked_until("a short journal", || {
        some_moment(Duration::from_millis(100));
        read().windows(word.len()).any(|window| window == word)
    });
    for more in [false, true] {
        daemon.crash();
        daemon = Served::start(world);
        client = LineClient::connect(daemon.socket());
        if !more {
            let go =
                json!({ "process": process, "data": base64_simd::STANDARD.encode_to_string(b"go\n") });
            client.call("process/write", go).expect("it reads");
        }
    }
    let (_daemon, mut client, more) = crash_until_it_ended(world, daemon, &process);
    let crashes = 2 + more;
    let record = client.wait(&process);
    let said = output(&mut client, &process);
    assert_eq!(said, format!("refused: {FIRST}\nrefused: {THEN}\n"), "{record}");
    assert_eq!(
        record["denials"]["total"],
        FIRST + THEN,
        "{crashes} crashes, {record}"
    );
    println!("{crashes} crashes");
}

/// Waits until there are so many events of a type; they.
fn events(client: &mut LineClient, process: &str, kind: &str, number: usize) -> Vec<Value> {
    let (mut after, mut found) = (0, Vec::new());
    while found.len() < number {
        let params = json!({ "process": process, "after_seq": after, "wait_ms": 60_000 });
        let read = client.call("process/read", params).expect("it can be read");
        let events = read["events"].as_array().expect("events").iter();
        found.extend(events.filter(|event| event["type"] == kind).cloned());
        assert!(
            read["ended"] == false || found.len() >= number,
            "it ended: {found:?}"
        );
        after = read["next_seq"].as_u64().expect("a number");
    }
    found
}

/// Lines are numbered: each has to be there once.
fn i8_no_byte_of_a_terminal_is_lost(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let more = json!({ "terminal": { "rows": 30, "cols": 100 }, "max_output": 8 << 20 });
    let process = start(&mut client, world, more, &["seq", "1", "1000000"]);
    let (_daemon, mut client, crashes) = crash_until_it_ended(world, daemon, &process);
    assert!(crashes > 2, "it was never interrupted");
    let said = output(&mut client, &process);
    for (at, line) in said.split_terminator("\r\n").enumerate() {
        assert_eq!(line, (at + 1).to_string(), "after {crashes} crashes");
    }
    let lines = said.matches("\r\n").count();
    assert_eq!(lines, 1_000_000, "after {crashes} crashes");
    println!("{crashes} crashes");
}

fn policy(world: &World, text: &str) -> Value {
    let path = world.file(
        "home/policy.toml",
        &format!("version = 1\nextends = \"workspace-write\"\n{text}"),
    );
    json!({ "policy": path })
}

fn i8_connects_under_way_are_connected_after_a_crash(world: &World) {
    // Nobody accepts, and there is room for two, or a few more that come at the same moment: the others wait.
    let server = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
    nix::sys::socket::listen(&server, nix::sys::socket::Backlog::new(1).expect("small"))
        .expect("a listener");
    let port = server.local_addr().expect("its address").port();
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let rule = policy(world, &format!("[net]\nallow = [\"127.0.0.1:{port}\"]\n"));
    let argv = [&program("connecting")[..], "127.0.0.1", &port.to_string(), "32"];
    let process = start(&mut client, world, rule, &argv);
    // They are under way when what is in the kernel's table of connections says so.
    asked_until("connects that wait", || {
        some_moment(Duration::from_millis(20));
        connecting_to(port) >= 24
    });
    daemon.crash();
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    // Not joined: of those that the kernel took for connected some went again before there was room for them, and never come.
    std::thread::spawn(move || server.incoming().collect::<Vec<_>>());
    let record = client.wait(&process);
    let said = output(&mut client, &process);
    assert_eq!(said.matches("connected").count(), 32, "{said}\n{record}");
    assert_eq!(record["denials"]["total"], 0, "{record}");
}

/// How many sockets of this machine are about to be connected to this port of loopback.
fn connecting_to(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the table");
    let wanted = format!(" 0100007F:{port:04X} ");
    let rows = table.lines().filter(|row| row.contains(&wanted));
    // SYN_SENT
    rows.filter(|row| row.split_whitespace().nth(3) == Some("02"))
        .count()
}

fn i8_what_was_asked_is_asked_again_and_what_was_allowed_is_not(world: &World) {
    let server = TcpServer::start();
    let other = TcpServer::start();
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let script = "read x; for port in $1 $1 $2 $1; do \"$0\" 127.0.0.1 $port 1; done";
    let (port, next) = (server.port_text(), other.port_text());
    let argv = ["sh", "-c", script, &program("connecting"), &port, &next];
    let ask = policy(world, "[net]\nmode = \"ask\"\n");
    let mut more = ask.clone();
    more["stdin"] = true.into();
    let process = start(&mut client, world, more, &argv);
    let input = json!({ "process": process, "data": base64_simd::STANDARD.encode_to_string("\n") });
    client.call("process/write", input).expect("it is taken");
    let asked = events(&mut client, &process, "approval_requested", 1);
    assert_eq!(asked[0]["approval"], 1, "{asked:?}");
    daemon.crash();

    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    // The old question is settled, the call waits for a new one.
    let asked = events(&mut client, &process, "approval_requested", 2);
    assert_eq!(asked[1]["approval"], 2, "{asked:?}");
    let decided = events(&mut client, &process, "approval_decided", 1);
    assert_eq!(
        (&decided[0]["approval"], &decided[0]["by"]),
        (&json!(1), &json!("restarted"))
    );
    let allow =
        json!({ "process": process, "approval": 2, "allow": true, "scope": "process", "by": "me" });
    assert_eq!(
        client.call("approval/decide", allow).expect("it waits")["told"],
        true
    );
    let asked = events(&mut client, &process, "approval_requested", 3);
    assert_eq!(asked[2]["attempt"]["target"]["port"], other.port(), "{asked:?}");
    daemon.crash();

    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    events(&mut client, &process, "approval_requested", 4);
    let deny = json!({ "process": process, "approval": 4, "allow": false, "by": "me" });
    assert_eq!(
        client.call("approval/decide", deny).expect("it waits")["told"],
        true
    );
    let record = client.wait(&process);
    let said = output(&mut client, &process);
    assert_eq!(said.matches("connected").count(), 3, "{said}\n{record}");
    assert_eq!(
        said.matches("failed: Permission denied").count(),
        1,
        "{said}\n{record}"
    );
    assert_eq!(server.connections(), 3, "{record}");
    assert_eq!(record["denials"]["total"], 1, "{record}");
    let unobserved = record["denials"]["unobserved"].to_string();
    assert!(!unobserved.contains("interrupted"), "{record}");
}

/// `ioctl(2)` that ends its program as soon as `SECCOMP_IOCTL_NOTIF_RECV` has brought a call.
const DIES: &str = r#"
#define _GNU_SOURCE
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>
int ioctl(int fd, unsigned long request, void *argument) {
    int failed = syscall(SYS_ioctl, fd, request, argument);
    if (!failed && request == 0xc0502100) kill(getpid(), SIGKILL);
    return failed;
}
"#;

/// Each of these daemons dies between the kernel's handing out a call, which it does once, and anything of its own.
fn i8_a_call_is_decided_though_the_daemon_died_as_soon_as_it_had_received_it(world: &World) {
    require!(needs::command("cc"), "cc");
    let dies = world.preloaded("dies", DIES);
    let fifo = world.path("work/fifo");
    mkfifo(&fifo, Mode::S_IRWXU).expect("a FIFO");
    world.give_away(&fifo, 0o600);
    let connect = format!("{} tcp-connect 192.0.2.1 80", program("escape"));
    let script = format!("echo ready; read go < fifo; {connect}; {connect}; echo over");
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let id = start(&mut client, world, json!({}), &["sh", "-c", &script]);
    client.read_until(&id, "ready\n".len());
    served.crash();
    std::fs::write(&fifo, "go\n").expect("it reads");
    for _ in 0..2 {
        Served::start_that_dies(world, &["env", &dies]);
    }
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    assert_eq!(
        output(&mut client, &id),
        "ready\nresult: EACCES\nresult: EACCES\nover\n"
    );
    let record = client.wait(&id);
    assert_eq!(
        (&record["outcome"], &record["denials"]["total"]),
        (&json!("exited"), &json!(2)),
        "{record}"
    );
    let unobserved = record["denials"]["unobserved"].to_string();
    assert!(!unobserved.contains("EINTR"), "{record}");
}

both_users!(
    i8_a_call_is_decided_though_the_daemon_died_as_soon_as_it_had_received_it,
    i8_refused_connects_are_counted_exactly_over_crashes,
    i8_refusals_of_which_a_short_journal_tells_are_counted_exactly,
    i8_refused_writes_are_counted_exactly_over_crashes,
    i8_no_byte_of_a_terminal_is_lost,
    i8_connects_under_way_are_connected_after_a_crash,
    i8_what_was_asked_is_asked_again_and_what_was_allowed_is_not,
);
