//! What is Provost's own is out of reach of every sandboxed command: state directory, sockets, configuration, keeper, daemon.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use provost_tests::{LineClient, Served, User, World, both_users, needs, program, require};
use serde_json::{Value, json};

/// Tries everything that could touch what lies at these places, and prints what came of it.
const ATTEMPTS: &str = r#"
import errno, json, os, socket, sys
state, address = sys.argv[1:3]
told = {}
def attempt(name, what):
    try: what(); told[name] = 'ok'
    except OSError as error: told[name] = errno.errorcode[error.errno]
def write(path):
    with open(path, 'ab') as file: file.write(b'x')
def connect(path, kind):
    with socket.socket(socket.AF_UNIX, kind) as s: s.connect(path)
attempt('work', lambda: write('mine'))
for name in ('provost.db', 'provost.db-wal', 'lock', 'exits', 'spool/ballast'):
    attempt('read ' + name, lambda: open(state + '/' + name).read())
    attempt('write ' + name, lambda: write(state + '/' + name))
    attempt('remove ' + name, lambda: os.unlink(state + '/' + name))
    attempt('link ' + name, lambda: os.link(state + '/' + name, 'linked-' + name.replace('/', '-')))
attempt('make', lambda: os.mkdir(state + '/new'))
attempt('keeper', lambda: connect(state + '/keeper.sock', socket.SOCK_SEQPACKET))
attempt('keeper by link', lambda: (os.symlink(state, 'way'), connect('way/keeper.sock', socket.SOCK_SEQPACKET)))
attempt('read by link', lambda: open('way/provost.db').read())
attempt('daemon', lambda: connect(address, socket.SOCK_STREAM))
attempt('state over', lambda: os.rename('dir', state) if os.path.isdir('dir') or not os.mkdir('dir') else None)
attempt('state away', lambda: os.rename(state, 'away'))
attempt('keeper over', lambda: os.rename('mine', state + '/keeper.sock'))
attempt('socket over', lambda: os.rename('mine', address))
attempt('socket away', lambda: os.rename(address, 'away'))
attempt('socket removed', lambda: os.unlink(address))
attempt('directory away', lambda: os.rename(os.path.dirname(address), 'away'))
attempt('socket locked', lambda: open(address + '.lock').read())
try: told['listed'] = sorted(set(os.listdir(state)))
except OSError as error: told['listed'] = []
print(json.dumps(told))
"#;

fn run(client: &mut LineClient, argv: &[&str], cwd: &Path, more: &Value) -> (Value, String) {
    let mut params = json!({ "argv": argv, "cwd": cwd });
    let more = more.as_object().expect("an object").clone();
    params.as_object_mut().expect("an object").extend(more);
    let started = client.call("process/start", params).expect("it starts");
    let process = started["process"].as_str().expect("an id");
    let record = client.wait(process);
    let read = client.call("process/read", json!({ "process": process }));
    let mut bytes = Vec::new();
    for event in read.expect("it is known")["events"].as_array().expect("events") {
        if let Some(data) = event["data"].as_str() {
            bytes.extend(base64_simd::STANDARD.decode_to_vec(data).expect("base64"));
        }
    }
    (record, String::from_utf8_lossy(&bytes).into_owned())
}

fn attempts(client: &mut LineClient, cwd: &Path, state: &Path, socket: &Path, more: &Value) -> Value {
    let (state, socket) = (state.display().to_string(), socket.display().to_string());
    let argv = ["python3", "-c", ATTEMPTS, state.as_str(), socket.as_str()];
    let (record, text) = run(client, &argv, cwd, more);
    serde_json::from_str(text.lines().next_back().unwrap_or_default())
        .unwrap_or_else(|_| panic!("{text}\n{record}"))
}

fn assert_nothing_got_through(told: &Value) {
    let told = told.as_object().expect("what came of each");
    let own = ["work", "listed"];
    let through: Vec<_> = told
        .iter()
        .filter(|(name, outcome)| !own.contains(&name.as_str()) && *outcome == "ok")
        .collect();
    assert!(through.is_empty(), "{through:?}");
    assert!(told.len() > 25, "{told:?}");
}

/// What there is, to be compared.
fn identities(paths: &[PathBuf]) -> Vec<(u64, u64)> {
    let identity = |path: &PathBuf| {
        let there = path.symlink_metadata().expect("it is there");
        (there.dev(), there.ino())
    };
    paths.iter().map(identity).collect()
}

fn escape_12_what_is_the_daemon_s_own_is_out_of_reach_also_below_the_working_directory(world: &World) {
    require!(needs::command("python3"), "python3");
    require!(needs::pid_namespaces(world), "a PID namespace for this user");
    let config = world.file("home/own.toml", "max_clients = 9\n");
    let served = Served::start_with(world, &["--config", &config]);
    let mut client = LineClient::connect(served.socket());
    let state = world.path("state");
    let own = [
        state.clone(),
        state.join("provost.db"),
        state.join("keeper.sock"),
        state.join("lock"),
        served.socket().to_owned(),
        world.work(),
    ];
    let before = identities(&own);
    // State directory and socket lie below it.
    let everything = world.path("");
    let told = attempts(&mut client, &everything, &state, served.socket(), &json!({}));
    assert_eq!(told["work"], "ok", "{told}");
    assert_eq!(told["listed"], json!([]), "it sees an empty directory");
    assert_nothing_got_through(&told);
    let (_, text) = run(&mut client, &["cat", &config], &everything, &json!({}));
    assert_eq!(text.matches("max_clients").count(), 0, "{text}");
    // The socket alone does, and what may only be read.
    let told = attempts(&mut client, &world.work(), &state, served.socket(), &json!({}));
    assert_nothing_got_through(&told);
    let read_only = json!({ "policy": "read-only" });
    let told = attempts(&mut client, &everything, &state, served.socket(), &read_only);
    assert_nothing_got_through(&told);
    assert_eq!(identities(&own), before);
    assert!(client.call("daemon/status", json!({})).is_ok());
    // Without a sandbox they are only files: that the attempts are real ones.
    let unconfined = json!({ "policy": "unconfined" });
    let keeper = "import socket,sys\ns=socket.socket(socket.AF_UNIX,socket.SOCK_STREAM); s.connect(sys.argv[1]); print('in')";
    let socket = served.socket().display().to_string();
    let (_, text) = run(
        &mut client,
        &["python3", "-c", keeper, &socket],
        &everything,
        &unconfined,
    );
    assert_eq!(text, "in\n");
}

fn escape_12_a_policy_that_gives_what_is_the_daemon_s_own_is_refused(world: &World) {
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let state = world.text("state");
    let spool = format!("{state}/spool");
    let policy = |name: &str, text: &str| world.file(&format!("home/{name}.toml"), text);
    let written = policy(
        "written",
        &format!("version = 1\nextends = \"workspace-write\"\n[files]\nwrite = [\"{spool}\"]\n"),
    );
    let read = policy(
        "read",
        &format!("version = 1\nextends = \"read-only\"\n[files]\nread = [\"{state}\"]\n"),
    );
    let connected = policy(
        "connected",
        &format!("version = 1\nextends = \"read-only\"\n[net]\nunix = [\"{state}/keeper.sock\"]\n"),
    );
    let work = world.text("work");
    for (policy, cwd) in [
        ("workspace-write", state.as_str()),
        ("workspace-write", spool.as_str()),
        (written.as_str(), work.as_str()),
        (read.as_str(), work.as_str()),
        (connected.as_str(), work.as_str()),
    ] {
        let params = json!({ "argv": ["true"], "cwd": cwd, "policy": policy });
        let refused = client.call("process/start", params).unwrap_err();
        assert_eq!(refused["data"]["kind"], "refused", "{policy} {refused}");
        assert!(refused.to_string().contains("Provost's own"), "{refused}");
        let asked = json!({ "policy": policy, "cwd": cwd });
        client.call("policy/check", asked).unwrap_err();
    }
}

fn escape_12_nobody_is_asked_about_the_keeper_s_socket(world: &World) {
    require!(needs::command("python3"), "python3");
    let policy = "version = 1\nextends = \"workspace-write\"\n[net]\nmode = \"ask\"\n";
    let policy = world.file("home/ask.toml", policy);
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET)\n\
                  try: s.connect(sys.argv[1]); print('in')\n\
                  except PermissionError: print('refused')";
    let keeper = world.text("state/keeper.sock");
    let more = json!({ "policy": policy, "ask_timeout_ms": 600_000 });
    let argv = ["python3", "-c", script, &keeper];
    let (record, text) = run(&mut client, &argv, &world.work(), &more);
    assert_eq!(text, "refused\n", "{record}");
    let denial = &record["denials"]["first"][0];
    assert_eq!(denial["target"]["path"], keeper.as_str(), "{record}");
}

/// The keeper that a daemon has started.
fn keeper(daemon: u32) -> Pid {
    let children = std::fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children"));
    let threads = std::fs::read_dir(format!("/proc/{daemon}/task")).expect("it lives");
    let all = threads.flatten().filter_map(|thread| {
        let path = thread.path().join("children");
        std::fs::read_to_string(path).ok()
    });
    let all: Vec<String> = all.chain(children.ok()).collect();
    let is_keeper = |pid: &&str| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name.trim() == "provost-keeper")
    };
    let found = all
        .iter()
        .flat_map(|text| text.split_ascii_whitespace())
        .find(is_keeper)
        .expect("it has a keeper");
    Pid::from_raw(found.parse().expect("a pid"))
}

fn escape_46_47_keeper_and_daemon_are_neither_signalled_nor_traced(world: &World) {
    require!(needs::pid_namespaces(world), "a PID namespace for this user");
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    reach_nobody(
        &mut client,
        world,
        &[keeper(served.pid()), Pid::from_raw(served.pid().cast_signed())],
    );
    assert!(client.call("daemon/status", json!({})).is_ok());
}

fn reach_nobody(client: &mut LineClient, world: &World, pids: &[Pid]) {
    let escape = program("escape");
    for pid in pids {
        let number = pid.to_string();
        for attempt in [
            "kill",
            "tgkill",
            "sigqueue",
            "pidfd-signal",
            "ptrace",
            "vm-read",
            "vm-write",
            "pidfd-getfd",
            "prlimit",
        ] {
            let argv = [escape.as_str(), attempt, &number];
            let (record, text) = run(client, &argv, &world.work(), &json!({}));
            assert_eq!(text, "result: ESRCH\n", "{attempt}: {record}");
        }
        for file in ["mem", "environ", "fd/0", "root/etc/passwd"] {
            let path = format!("/proc/{number}/{file}");
            let (_, text) = run(client, &[&escape, "read", &path], &world.work(), &json!({}));
            assert!(!text.contains("result: ok"), "{path}: {text}");
        }
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).expect("it lives");
        assert!(name.starts_with("provost"), "{name}");
    }
}

#[test]
fn escape_12_46_47_what_is_an_instance_s_own_is_out_of_reach_of_its_user_s_commands() {
    let (Some(roots), Some(theirs)) = (World::try_new(User::Root), World::try_new(User::Ordinary))
    else {
        return;
    };
    require!(needs::command("python3"), "python3");
    let served = Served::start(&roots);
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    let state = roots.path(&format!("state/users/{}", theirs.uid()));
    let own = [
        state.join("provost.db"),
        state.join("keeper.sock"),
        state.join("lock"),
    ];
    let before = identities(&own);
    let told = attempts(&mut client, &theirs.work(), &state, served.socket(), &json!({}));
    assert_eq!(told["work"], "ok", "{told}");
    assert_nothing_got_through(&told);
    assert_eq!(identities(&own), before);
    let status = client.call("daemon/status", json!({})).expect("it is served");
    let instance = u32::try_from(status["pid"].as_u64().expect("a pid")).expect("a pid");
    let pids = [keeper(instance), Pid::from_raw(instance.cast_signed())];
    reach_nobody(&mut client, &theirs, &pids);
    let params = json!({ "argv": ["true"], "cwd": state });
    let refused = client.call("process/start", params).unwrap_err();
    assert!(refused.to_string().contains("Provost's own"), "{refused}");
}

both_users!(
    escape_12_what_is_the_daemon_s_own_is_out_of_reach_also_below_the_working_directory,
    escape_12_a_policy_that_gives_what_is_the_daemon_s_own_is_refused,
    escape_12_nobody_is_asked_about_the_keeper_s_socket,
    escape_46_47_keeper_and_daemon_are_neither_signalled_nor_traced,
);
