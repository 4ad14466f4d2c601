//! The example client in Python, and the agent's loop with it, against a real daemon.

#![allow(
    clippy::disallowed_methods,
    reason = "the clients are started beside the daemon"
)]

use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use provost_tests::host::TcpServer;
use provost_tests::{Served, World, both_users, needs, provost, require};
use serde_json::Value;

const CLIENT: &str = include_str!("../../examples/python/provost.py");
const AGENT: &str = include_str!("../../examples/python/agent.py");

/// Loses its connection whenever it can, and misses and repeats nothing.
const SCRIPT: &str = r#"
import sys, threading
from provost import Provost, ProvostError
provost = Provost.connect(sys.argv[1])
cut = lambda: provost._connection.close()

cat = provost.start(['cat'], cwd=sys.argv[2], stdin=True, name='cat', labels={'of': 'script'})
lines, seqs, got = 2000, [], b''
def feed():
    for number in range(lines):
        cat.write(b'%07d\n' % number, close=number == lines - 1)
        if number % 500 == 250: cut()
feeding = threading.Thread(target=feed); feeding.start()
import base64
for event in cat.events():
    seqs.append(event['seq'])
    if event['type'] == 'output':
        assert event['offset'] == len(got), event
        got += base64.b64decode(event['data'])
        if len(seqs) % 40 == 20: cut()
feeding.join()
assert got == b''.join(b'%07d\n' % number for number in range(lines)), got
assert seqs == sorted(set(seqs)), seqs
cut()
record = cat.wait()
assert record['outcome'] == 'exited' and record['output']['stdout']['bytes'] == len(got), record
assert cat.output() == got

# The same start said again starts nothing; another handle writes behind what was written.
asked = dict(argv=['cat'], cwd=sys.argv[2], stdin=True, request_id='once', policy='workspace-write')
one, two = provost.ask('process/start', **asked), provost.ask('process/start', **asked)
assert one['process'] == two['process'] and two['repeated'], (one, two)
handle = provost.process(one['process'])
handle.write(b'one ')
provost.process(one['process']).write(b'two', close=True)
assert handle.output() == b'one two'

sleep = provost.start(['sleep', '1000'], cwd=sys.argv[2])
assert sleep.wait(timeout=0.01) is None
events, after, ended = sleep.read(wait=10)
assert events[0]['type'] == 'started' and not ended
assert sleep.stop('enough')
assert sleep.wait()['outcome'] == 'cancelled'
assert not sleep.kill()
try: provost.process('nothing'); raise SystemExit('it is there')
except ProvostError as error: assert error.kind == 'not_found', error.kind
assert len(provost.processes(live=False)) == 3

asks = provost.start(['bash', '-c', 'echo > /dev/tcp/127.0.0.1/9'], cwd=sys.argv[2], policy=sys.argv[3])
next(event for event in asks.events() if event['type'] == 'approval_requested')
waits = provost.approvals(process=asks.id)
assert [(one['process'], one['approval']) for one in waits] == [(asks.id, 1)], waits
assert waits[0]['attempt']['allow'] == {'key': 'net.allow', 'value': '127.0.0.1:9'}, waits
assert asks.decide(1, allow=False, by='script')
assert not asks.decide(1, allow=True)
assert asks.wait()['approvals']['refused'] == 1 and provost.approvals() == []
print('done')
"#;

/// Python as the world's user, with both files beside the program.
fn python(world: &World, program: &str, arguments: &[&str]) -> Output {
    world.file("home/provost.py", CLIENT);
    world.file("home/agent.py", AGENT);
    world.file("home/script.py", SCRIPT);
    let mut command = Command::new("/usr/bin/python3");
    command
        .arg(world.path("home").join(program))
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", world.path("home"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(world.work())
        .stdin(Stdio::null());
    if world.changes_uid() {
        command.uid(world.uid()).gid(world.uid());
    }
    command.output().expect("python3")
}

fn asking_policy(world: &World) -> String {
    world.file(
        "home/asks.toml",
        "version = 1\nextends = \"workspace-write\"\n[net]\nmode = \"ask\"\n",
    )
}

fn i3_the_python_client_goes_on_where_its_connection_was_lost(world: &World) {
    require!(needs::command("python3"), "python3");
    let daemon = Served::start(world);
    let socket = daemon.socket().display().to_string();
    let policy = asking_policy(world);
    let done = python(world, "script.py", &[&socket, &world.text("work"), &policy]);
    let (said, wrong) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    assert_eq!(said, "done\n", "{wrong}\n{}", daemon.said());
}

fn the_agent_runs_commands_and_answers_what_they_ask_for(world: &World) {
    require!(needs::command("python3"), "python3");
    let (allowed, other) = (TcpServer::start(), TcpServer::start());
    let policy = asking_policy(world);
    let connect = |server: &TcpServer| format!("echo > /dev/tcp/127.0.0.1/{}", server.port());
    let (first, second) = (
        format!("bash -c '{}'", connect(&allowed)),
        format!("bash -c '{}'", connect(&other)),
    );
    let binary = provost().display().to_string();
    let port = allowed.port_text();
    let flags = ["--provost", &binary, "--policy", &policy, "--allow-port", &port];
    let commands = ["echo hello", &first, &second, "echo no > /etc/provost-probe"];
    let done = python(world, "agent.py", &[&flags[..], &commands].concat());
    let (said, wrong) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        (lines.len(), lines.first()),
        (5, Some(&"hello")),
        "{said}\n{wrong}"
    );
    let records: Vec<Value> = lines[1..]
        .iter()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(records[0]["outcome"], "exited", "{said}");
    assert_eq!(records[1]["denied"], false, "{said}\n{wrong}");
    assert_eq!(records[1]["approvals"]["grants"][0]["by"], "agent.py", "{said}");
    let decisions = wrong
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let decisions: Vec<Value> = decisions.map(|decision| decision["allowed"].clone()).collect();
    assert_eq!(decisions, [true, false], "{wrong}");
    assert_eq!(records[2]["denied"], true, "{said}");
    assert_eq!(records[2]["approvals"]["refused"], 1, "{said}");
    assert_eq!(records[3]["denied"], true, "{said}");
    assert_eq!((allowed.connections(), other.connections()), (1, 0));
    assert_eq!(done.status.code(), Some(1), "{wrong}");
}

both_users!(
    i3_the_python_client_goes_on_where_its_connection_was_lost,
    the_agent_runs_commands_and_answers_what_they_ask_for,
);
