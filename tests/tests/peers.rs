//! Clients of the daemon that are hostile, broken, slow or gone: they harm themselves alone.

#![allow(
    clippy::disallowed_methods,
    reason = "clients are ordinary programs of other users, started beside the daemon"
)]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use provost_tests::{DEADLINE, LineClient, Served, World, both_users, needs, require};
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

fn lines_that_are_no_request_are_answered_and_an_id_that_can_be_read_is_repeated(world: &World) {
    let daemon = Served::start(world);
    for (line, expected, id) in [
        ("", "parse", Value::Null),
        ("{", "parse", Value::Null),
        ("nonsense", "parse", Value::Null),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"daemon/status"} x"#,
            "parse",
            Value::Null,
        ),
        (
            r#"[{"jsonrpc":"2.0","id":1,"method":"daemon/status"}]"#,
            "invalid_request",
            Value::Null,
        ),
        (r#"["2.0",1,"daemon/status",{}]"#, "invalid_request", Value::Null),
        ("7", "invalid_request", Value::Null),
        (
            r#"{"id":1,"method":"daemon/status"}"#,
            "invalid_request",
            json!(1),
        ),
        (
            r#"{"jsonrpc":"1.0","id":"a","method":"daemon/status"}"#,
            "invalid_request",
            json!("a"),
        ),
        (
            r#"{"jsonrpc":2.0,"id":2,"method":"daemon/status"}"#,
            "invalid_request",
            json!(2),
        ),
        (r#"{"jsonrpc":"2.0","id":3}"#, "invalid_request", json!(3)),
        (
            r#"{"jsonrpc":"2.0","id":4,"method":{}}"#,
            "invalid_request",
            json!(4),
        ),
        (
            r#"{"jsonrpc":"2.0","id":null,"method":"daemon/status"}"#,
            "invalid_request",
            Value::Null,
        ),
        (
            r#"{"jsonrpc":"2.0","id":{},"method":"daemon/status"}"#,
            "invalid_request",
            Value::Null,
        ),
        (
            r#"{"jsonrpc":"2.0","id":true,"method":"daemon/status"}"#,
            "invalid_request",
            Value::Null,
        ),
        (
            r#"{"jsonrpc":"2.0","id":5,"id":6,"method":"daemon/status"}"#,
            "invalid_request",
            Value::Null,
        ),
    ] {
        let mut client = LineClient::connect(daemon.socket());
        client.say(line);
        let answer = client.hear().expect("an answer");
        assert_eq!(kind(&answer["error"]), expected, "{line}: {answer}");
        assert_eq!(answer["id"], id, "{line}");
        assert!(
            client.call("daemon/status", json!({})).is_ok(),
            "it is sent away for {line}"
        );
    }
    // One that says nothing else is sent away.
    let mut client = LineClient::connect(daemon.socket());
    let _ = client.try_say("nonsense\n".repeat(1000).as_bytes(), Some(DEADLINE));
    let mut answers = 0;
    while client.hear().is_some() {
        answers += 1;
    }
    assert_eq!(answers, 16);
    is_served(&daemon);
}

fn parameters_that_make_no_sense_are_refused_one_by_one(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    for params in [
        "[]".to_owned(),
        r#"["x"]"#.to_owned(),
        "7".to_owned(),
        r#"{"process":7}"#.to_owned(),
        r#"{"process":"x","process":"y"}"#.to_owned(),
        r#"{"process":"x","other":1}"#.to_owned(),
        deep.clone(),
        format!(r#"{{"process":{deep}}}"#),
        format!(r#"{{"{}":1}}"#, "x".repeat(1 << 20)),
    ] {
        client.say(&format!(
            r#"{{"jsonrpc":"2.0","id":"i","method":"process/wait","params":{params}}}"#
        ));
        let text = client.hear_text();
        assert!(text.len() < 8192, "an error of {} bytes", text.len());
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        let short = params.get(..80).unwrap_or(&params);
        assert_eq!(kind(&answer["error"]), "invalid_params", "{short}: {answer}");
        assert_eq!(answer["id"], "i");
    }
    let long = client
        .call("x".repeat(1 << 20).as_str(), json!({}))
        .expect_err("no method");
    assert_eq!(kind(&long), "method_not_found");
    assert!(long.to_string().len() < 8192);
    // As large as numbers get.
    let most = u64::MAX;
    let start = json!({
        "argv": ["sh", "-c", "echo x"], "cwd": "/", "policy": "unconfined", "timeout_ms": most, "idle_timeout_ms": most,
        "grace_ms": most, "drain_ms": most, "ask_timeout_ms": most, "max_output": most,
    });
    let started = client.call("process/start", start).expect("it starts");
    let process = started["process"].as_str().expect("an id").to_owned();
    assert_eq!(client.wait(&process)["exit_code"], 0);
    let read = json!({ "process": process, "max_bytes": most, "wait_ms": most });
    assert_eq!(
        client.call("process/read", read).expect("it is read")["ended"],
        true
    );
    let open = json!({ "ttl_ms": most });
    let session = client.call("session/open", open).expect("it opens")["session"].clone();
    client
        .call("session/detach", json!({ "session": session }))
        .expect("it is let go");
    assert!(
        client
            .call("process/prune", json!({ "older_than_ms": most }))
            .is_ok()
    );
    is_served(&daemon);
}

fn ids_are_repeated_as_they_were_written(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let long = format!(r#""{}""#, "x".repeat(254));
    for id in [
        "0",
        "-1",
        "1.50",
        "18446744073709551617",
        "1e400",
        r#""""#,
        r#""\u0000\ud83d\ude00é""#,
        &long,
    ] {
        client.say(&format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"daemon/status"}}"#
        ));
        let answer = client.hear_text();
        assert!(answer.contains(&format!(r#""id":{id},"#)), "{id}: {answer}");
    }
    let longer = format!(r#""{}""#, "x".repeat(255));
    client.say(&format!(
        r#"{{"jsonrpc":"2.0","id":{longer},"method":"daemon/status"}}"#
    ));
    assert_eq!(refused(&mut client), "invalid_request");
}

fn whoever_does_not_introduce_itself_is_sent_away(world: &World) {
    let daemon = Served::start(world);
    for (first, expected) in [
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"daemon/status"}"#,
            "invalid_request",
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocol":0}}"#,
            "invalid_params",
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocol":2}}"#,
            "invalid_params",
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize"}"#,
            "invalid_params",
        ),
    ] {
        let mut client = LineClient::silent(daemon.socket());
        client.say(first);
        assert_eq!(refused(&mut client), expected, "{first}");
        assert!(client.hear().is_none(), "{first}: it goes on");
    }
    let mut twice = LineClient::connect(daemon.socket());
    let again = twice.call("initialize", json!({ "protocol": 1 }));
    assert_eq!(kind(&again.expect_err("once is enough")), "invalid_request");
    // A line without an end, one that says nothing, and one that has closed its half.
    let mut slow = LineClient::silent(daemon.socket());
    assert!(slow.try_say(br#"{"jsonrpc""#, None));
    let mut silent = LineClient::silent(daemon.socket());
    let mut half = LineClient::silent(daemon.socket());
    half.stream()
        .shutdown(std::net::Shutdown::Write)
        .expect("a socket");
    assert!(half.hear().is_none());
    assert!(slow.hear().is_none());
    assert!(silent.hear().is_none());
}

fn a_half_closed_connection_is_answered_before_it_ends(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let id = client.ask("daemon/status", json!({}));
    client
        .stream()
        .shutdown(std::net::Shutdown::Write)
        .expect("a socket");
    assert!(client.answer(id).is_ok());
    assert!(client.hear().is_none());
}

fn lines_that_are_too_long_or_no_text_end_the_connection(world: &World) {
    let daemon = Served::start(world);
    let before = daemon.memory();
    let mut clients: Vec<LineClient> = (0..4).map(|_| LineClient::connect(daemon.socket())).collect();
    for client in &mut clients {
        // It may be sent away before it has said it all.
        let _ = client.try_say(&vec![b'x'; 9 << 20], Some(DEADLINE));
        assert_eq!(refused(client), "frame_too_large");
        assert!(client.hear().is_none());
    }
    drop(clients);
    let mut client = LineClient::connect(daemon.socket());
    assert!(client.try_say(b"{\"jsonrpc\":\"\xff\"}\n", Some(DEADLINE)));
    assert_eq!(refused(&mut client), "parse");
    assert!(client.hear().is_none());
    // As long as a line may be, of what takes many times as much as values.
    let mut client = LineClient::connect(daemon.socket());
    let zeros = "0,".repeat(4_000_000) + "0";
    client.say(&format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"process/list","params":{{"labels":[{zeros}]}}}}"#
    ));
    assert_eq!(refused(&mut client), "invalid_params");
    let grown = daemon.memory().saturating_sub(before);
    assert!(grown < 96 * MIB, "{} MiB more", grown / MIB);
    is_served(&daemon);
}

fn a_client_that_never_reads_harms_itself_alone(world: &World) {
    let daemon = Served::start(world);
    let mut deaf = LineClient::connect(daemon.socket());
    let flood = deaf.start("exec yes");
    let before = daemon.memory();
    deaf.call("process/follow", json!({ "process": flood }))
        .expect("it follows");
    let request = json!({
        "jsonrpc": "2.0", "id": 1, "method": "process/read", "params": { "process": flood },
    });
    let requests = format!("{request}\n").repeat(1000);
    let mut rounds = 0;
    while rounds < 1000 && deaf.try_say(requests.as_bytes(), Some(Duration::from_millis(500))) {
        rounds += 1;
    }
    assert!(
        rounds < 1000,
        "a million requests were taken of a client that reads nothing"
    );
    let mut other = LineClient::connect(daemon.socket());
    let mut after_seq = 0;
    for _ in 0..100 {
        let begun = Instant::now();
        let read =
            json!({ "process": flood, "after_seq": after_seq, "wait_ms": 1000, "max_bytes": 4096 });
        let read = other.call("process/read", read).expect("it is read");
        let next = read["next_seq"].as_u64().expect("a number");
        assert!(next > after_seq, "the flood stands still: {read}");
        after_seq = next;
        assert!(begun.elapsed() < BOUNDED, "{:?}", begun.elapsed());
    }
    let grown = daemon.memory().saturating_sub(before);
    assert!(grown < 64 * MIB, "{} MiB more", grown / MIB);
    other
        .call("process/kill", json!({ "process": flood }))
        .expect("it is ended");
    assert_eq!(other.wait(&flood)["outcome"], "cancelled");
    drop(deaf);
    becomes(&daemon, "the end of the connection", || {
        let status = other.call("daemon/status", json!({})).expect("it is served");
        status["clients"] == 2
    });
}

fn a_flood_of_requests_is_told_its_limit_and_others_are_served(world: &World) {
    let daemon = Served::start(world);
    let mut flooding = LineClient::connect(daemon.socket());
    let process = flooding.start("exec sleep 1000");
    let before = daemon.memory();
    let wait = json!({
        "jsonrpc": "2.0", "id": "w", "method": "process/wait", "params": { "process": process },
    });
    let waits = format!("{wait}\n").repeat(5000);
    assert!(flooding.try_say(waits.as_bytes(), Some(DEADLINE)));
    for _ in 0..5000 - 64 {
        assert_eq!(refused(&mut flooding), "limit");
    }
    let mut other = LineClient::connect(daemon.socket());
    for _ in 0..100 {
        let begun = Instant::now();
        other.call("daemon/status", json!({})).expect("it is served");
        assert!(begun.elapsed() < BOUNDED);
    }
    other
        .call("process/kill", json!({ "process": process }))
        .expect("it is ended");
    for _ in 0..64 {
        let answer = flooding.hear().expect("an answer");
        assert_eq!(answer["result"]["record"]["outcome"], "cancelled", "{answer}");
    }
    let grown = daemon.memory().saturating_sub(before);
    assert!(grown < 32 * MIB, "{} MiB more", grown / MIB);
}

fn a_flood_of_connections_is_told_its_limit_and_leaves_room_when_it_goes(world: &World) {
    let daemon = Served::start(world);
    let mut first = LineClient::connect(daemon.socket());
    let before = descriptors(&daemon);
    let mut many: Vec<LineClient> = (0..300).map(|_| LineClient::silent(daemon.socket())).collect();
    let (mut served, mut sent_away) = (0, 0);
    for client in &mut many {
        let hello = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocol":1}}"#;
        let _ = client.try_say(format!("{hello}\n").as_bytes(), Some(DEADLINE));
        let answer = client.hear().expect("an answer");
        match answer.get("error") {
            None => served += 1,
            Some(error) if kind(error) == "limit" => sent_away += 1,
            Some(error) => panic!("{error}"),
        }
    }
    assert_eq!((served, sent_away), (255, 45));
    let begun = Instant::now();
    first
        .call("daemon/status", json!({}))
        .expect("who was there is served");
    assert!(begun.elapsed() < BOUNDED);
    drop(many);
    while descriptors(&daemon) > before {
        assert!(begun.elapsed() < DEADLINE, "connections stay open");
        first.call("daemon/status", json!({})).expect("it is served");
    }
    is_served(&daemon);
}

fn clients_that_are_gone_in_the_middle_leave_nothing(world: &World) {
    let daemon = Served::start(world);
    let mut keeper = LineClient::connect(daemon.socket());
    let process = keeper.start("echo up; exec sleep 1000");
    let mut seen = 0;
    while seen < 2 {
        let read = json!({ "process": process, "after_seq": seen, "wait_ms": 10_000 });
        let read = keeper.call("process/read", read).expect("it is read");
        seen = read["next_seq"].as_u64().expect("a number");
    }
    let before = (descriptors(&daemon), daemon.memory());
    for _ in 0..30 {
        let mut client = LineClient::connect(daemon.socket());
        client.ask("session/open", json!({ "on_disconnect": "stop" }));
        for _ in 0..20 {
            client.ask("process/wait", json!({ "process": process }));
            client.ask(
                "process/read",
                json!({ "process": process, "after_seq": 100, "wait_ms": 3_600_000 }),
            );
            client.ask("process/follow", json!({ "process": process }));
        }
        assert!(client.try_say(br#"{"jsonrpc":"2.0","id":"half"#, Some(DEADLINE)));
    }
    becomes(&daemon, "the end of what they held", || {
        descriptors(&daemon) <= before.0 + 1
    });
    let mut status = || keeper.call("daemon/status", json!({})).expect("it is served");
    becomes(&daemon, "the end of their sessions", || status()["sessions"] == 0);
    let grown = daemon.memory().saturating_sub(before.1);
    assert!(grown < 32 * MIB, "{} MiB more", grown / MIB);
}

fn a_process_that_does_not_read_holds_up_writes_to_itself_alone(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let (deaf, cat) = (client.start("exec sleep 1000"), client.start("exec cat"));
    let before = daemon.memory();
    let megabyte = "QUFB".repeat(1 << 18);
    let mut waiting = Vec::new();
    for _ in 0..30 {
        waiting.push(client.ask("process/write", json!({ "process": deaf, "data": megabyte })));
    }
    let begun = Instant::now();
    let written = client.call(
        "process/write",
        json!({ "process": cat, "data": "aGVsbG8K", "close": true }),
    );
    assert_eq!(written.expect("it is written")["offset"], 6);
    assert_eq!(client.wait(&cat)["exit_code"], 0);
    assert!(begun.elapsed() < BOUNDED);
    // Who comes again and again with more is told.
    for _ in 0..20 {
        let mut other = LineClient::connect(daemon.socket());
        for _ in 0..8 {
            other.ask("process/write", json!({ "process": deaf, "data": megabyte }));
        }
        let last = other.call("process/write", json!({ "process": deaf, "data": megabyte }));
        assert_eq!(kind(&last.expect_err("there is no room")), "limit");
    }
    let grown = daemon.memory().saturating_sub(before);
    assert!(grown < 128 * MIB, "{} MiB more", grown / MIB);
    client
        .call("process/kill", json!({ "process": deaf }))
        .expect("it is ended");
    assert_eq!(client.wait(&deaf)["outcome"], "cancelled");
    assert!(!daemon.said().contains("panicked"), "{}", daemon.said());
}

fn i9_of_starts_with_one_name_at_the_same_time_one_wins(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let start = json!({ "argv": ["sleep", "1000"], "cwd": "/", "policy": "unconfined", "name": "one" });
    let asked: Vec<u64> = (0..16)
        .map(|_| client.ask("process/start", start.clone()))
        .collect();
    let mut answers: Vec<Value> = asked.iter().map(|_| client.hear().expect("an answer")).collect();
    answers.retain(|answer| answer.get("error").is_none_or(|error| kind(error) != "conflict"));
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert!(answers[0]["result"]["process"].is_string(), "{answers:?}");
}

/// Connects, introduces itself, and prints what it is told; first does what its first argument says.
const STRANGER: &str = r#"
import ctypes, json, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
if 'filter' in sys.argv[1]:
    class Program(ctypes.Structure):
        _fields_ = [('length', ctypes.c_ushort), ('filter', ctypes.c_void_p)]
    allow = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0x7fff0000))
    program = Program(1, ctypes.addressof(allow))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
if 'hide' in sys.argv[1]:
    assert libc.prctl(4, 0, 0, 0, 0) == 0
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[2])
try: s.sendall(b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocol":1}}\n')
except BrokenPipeError: pass
lines = s.makefile()
print(lines.readline(), end='')
try: rest = lines.readline()
except ConnectionResetError: rest = ''
print(rest, end='')
"#;

/// What such a client is told, as this user, below these words.
fn stranger(daemon: &Served, uid: u32, below: &[&str], how: &str) -> Vec<Value> {
    let uid = uid.to_string();
    let words = ["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups"];
    let words: Vec<&str> = match nix::unistd::geteuid().is_root() {
        true => words.iter().chain(below).copied().collect(),
        false => std::iter::once("env").chain(below.iter().copied()).collect(),
    };
    let output = Command::new(words[0])
        .args(&words[1..])
        .args(["/usr/bin/python3", "-c", STRANGER, how])
        .arg(daemon.socket())
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        !text.is_empty(),
        "{how} {below:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

fn open_to_all(daemon: &Served) {
    use std::os::unix::fs::PermissionsExt;
    let all = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(daemon.socket(), all).expect("chmod of the test's own socket");
}

fn i12_another_user_is_refused_and_learns_nothing(world: &World) {
    require!(
        nix::unistd::geteuid().is_root(),
        "the superuser, to be another user"
    );
    require!(needs::command("python3"), "python3");
    let daemon = Served::start(world);
    open_to_all(&daemon);
    let mut own = LineClient::connect(daemon.socket());
    own.start("exec sleep 1000");
    let other = world.uid() + 64_322;
    if world.is_root() {
        // Root's daemon serves every user, each with its own processes.
        let told = stranger(&daemon, other, &["timeout", "2"], "plainly");
        assert_eq!(told[0]["result"]["uid"], other, "{told:?}");
        return;
    }
    for _ in 0..20 {
        let told = stranger(&daemon, other, &[], "plainly");
        assert_eq!(told.len(), 1, "it is told more: {told:?}");
        assert_eq!(kind(&told[0]["error"]), "forbidden");
        let text = told[0].to_string();
        assert!(!text.contains(&world.uid().to_string()), "{text}");
    }
    let status = own.call("daemon/status", json!({})).expect("the owner is served");
    assert_eq!(status["clients"], 1, "{status}");
}

fn a_client_that_is_confined_itself_is_refused(world: &World) {
    require!(needs::command("python3"), "python3");
    let daemon = Served::start(world);
    open_to_all(&daemon);
    let uid = world.uid();
    let told = stranger(&daemon, uid, &["timeout", "2"], "plainly");
    assert_eq!(told[0]["result"]["uid"], uid, "{told:?}");
    let mut ways = vec![(&[] as &[&str], "filter")];
    if needs::succeeds(world, "unshare", &["-Ur", "true"]) {
        ways.push((&["unshare", "-Ur"], "plainly"));
        ways.push((&["unshare", "-Ur"], "hide"));
        ways.push((&["unshare", "-Um"], "plainly"));
    }
    if needs::succeeds(world, "bwrap", &["--dev-bind", "/", "/", "true"]) {
        ways.push((&["bwrap", "--dev-bind", "/", "/"], "plainly"));
        ways.push((&["bwrap", "--dev-bind", "/", "/", "--unshare-pid"], "hide"));
    }
    for (below, how) in ways {
        let told = stranger(&daemon, uid, below, how);
        assert_eq!(told.len(), 1, "{below:?} {how}: {told:?}");
        assert_eq!(kind(&told[0]["error"]), "forbidden", "{below:?} {how}: {told:?}");
    }
}

/// Connects under a filter, asks what it is told to ask, and prints the answers.
const CONFINED: &str = r#"
import ctypes, json, socket, struct, sys
libc = ctypes.CDLL(None)
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('filter', ctypes.c_void_p)]
allow = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0x7fff0000))
program = Program(1, ctypes.addressof(allow))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); lines = s.makefile()
def ask(method, **params):
    s.sendall((json.dumps({'jsonrpc': '2.0', 'id': 1, 'method': method, 'params': params}) + '\n').encode())
    return json.loads(lines.readline())
ask('initialize', protocol=1)
other = sys.argv[2]
answers = [ask('process/wait', process=other), ask('process/write', process=other, data=''), ask('process/kill', process=other),
    ask('process/list'), ask('session/open'), ask('session/attach', steal=True), ask('daemon/status'),
    ask('daemon/leave', pid=1, keeper_protocol=1, schema=1, state_dir='/'),
    ask('approval/decide', process=other, approval=1, allow=True), ask('approval/list'), ask('approval/follow'),
    ask('process/start', argv=['true'], cwd='/', ask_command={'argv': ['true'], 'cwd': '/'})]
started = ask('process/start', argv=['sh', '-c', 'echo x > made'], cwd=sys.argv[3], policy='unconfined')
record = ask('process/wait', process=started['result']['process'])['result']['record']
print(json.dumps([[answer['error']['data']['kind'] for answer in answers], record['sandbox']['policy'], record['exit_code']]))
"#;

fn a_confined_client_gets_the_policy_that_is_set_and_what_such_clients_started(world: &World) {
    require!(needs::command("python3"), "python3");
    let config = world.file("home/provost.toml", "confined_peers = \"read-only\"\n");
    let daemon = Served::start_with(world, &["--config", &config]);
    open_to_all(&daemon);
    let mut own = LineClient::connect(daemon.socket());
    let process = own.start("exec sleep 1000");
    let uid = world.uid().to_string();
    let mut command = match nix::unistd::geteuid().is_root() {
        true => Command::new("setpriv"),
        false => Command::new("env"),
    };
    if nix::unistd::geteuid().is_root() {
        command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups"]);
    }
    let output = command
        .args(["/usr/bin/python3", "-c", CONFINED])
        .arg(daemon.socket())
        .args([&process, &world.text("work")])
        .output()
        .expect("it runs");
    let wrong = String::from_utf8_lossy(&output.stderr);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{wrong}"));
    let (missing, no) = ("not_found", "forbidden");
    assert_eq!(
        told[0],
        json!([missing, missing, missing, no, no, no, no, no, no, no, no, no]),
        "{told}"
    );
    assert_eq!(told[1], "read-only");
    assert_ne!(told[2], 0);
    assert!(!world.path("work/made").exists());
    let still = own.call("process/wait", json!({ "process": process, "timeout_ms": 0 }));
    assert_eq!(still.expect("it is known")["record"], Value::Null);
}

fn a_supervised_command_that_may_use_the_socket_is_refused(world: &World) {
    require!(needs::command("python3"), "python3");
    let daemon = Served::start(world);
    open_to_all(&daemon);
    let socket = daemon.socket().display().to_string();
    // A name of its own choice is no better than none.
    let bound = STRANGER.replace("s.connect(", "s.bind('mine'); s.connect(");
    for script in [STRANGER, &bound] {
        let done = world
            .run(["/usr/bin/python3", "-c", script, "plainly", &socket])
            .with(["--allow-unix", &socket])
            .finish();
        let told: Value = serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{done}"));
        assert_eq!(kind(&told["error"]), "forbidden", "{told}");
    }
}

both_users!(
    a_supervised_command_that_may_use_the_socket_is_refused,
    a_confined_client_gets_the_policy_that_is_set_and_what_such_clients_started,
    lines_that_are_no_request_are_answered_and_an_id_that_can_be_read_is_repeated,
    parameters_that_make_no_sense_are_refused_one_by_one,
    ids_are_repeated_as_they_were_written,
    whoever_does_not_introduce_itself_is_sent_away,
    a_half_closed_connection_is_answered_before_it_ends,
    lines_that_are_too_long_or_no_text_end_the_connection,
    a_client_that_never_reads_harms_itself_alone,
    a_flood_of_requests_is_told_its_limit_and_others_are_served,
    a_flood_of_connections_is_told_its_limit_and_leaves_room_when_it_goes,
    clients_that_are_gone_in_the_middle_leave_nothing,
    a_process_that_does_not_read_holds_up_writes_to_itself_alone,
    i9_of_starts_with_one_name_at_the_same_time_one_wins,
    i12_another_user_is_refused_and_learns_nothing,
    a_client_that_is_confined_itself_is_refused,
);
