//! Who they are: other users, and programs that are confined.

use std::process::{Command, Stdio};

use provost_tests::{LineClient, Served, World, both_users, needs, require};
use serde_json::{Value, json};

use super::kind;

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
    i12_another_user_is_refused_and_learns_nothing,
    a_client_that_is_confined_itself_is_refused,
    a_confined_client_gets_the_policy_that_is_set_and_what_such_clients_started,
    a_supervised_command_that_may_use_the_socket_is_refused,
);
