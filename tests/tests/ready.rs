//! Readiness of processes of `provost up`, by their own word.

use std::path::Path;

use provost_tests::host::UnixMailbox;
use provost_tests::{LineClient, Service, World, both_users, needs, require, until_it_is_there};
use serde_json::{Value, json};

const READY: &str = "
    [[process]]
    name = 'first'
    command = ['sh', '-c', 'echo not yet; sleep 0.3; : > said; printf \"at last\\n\" >&$PROVOST_READY_FD; exec 4>&-; sleep 1']
    restart = 'temporary'
    ready = 'fd'
    [[process]]
    name = 'second'
    command = ['sh', '-c', 'test -e said && test -z \"$PROVOST_READY_FD\" && echo after']
    restart = 'temporary'
";

fn who_is_behind_waits_for_the_line_feed_of_who_is_before(world: &World) {
    let done = world.up(READY, &[]).finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    assert!(done.text().contains("second | after\n"), "\n{done}");
    std::fs::remove_file(world.path("work/said")).expect("it said so");

    let service = Service::start(world);
    let done = world.up(READY, &["--socket", &service.socket()]).finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    assert!(done.text().contains("second | after\n"), "\n{done}");
}

fn who_says_so_and_ends_at_once_was_ready(world: &World) {
    let file = "
        [[process]]
        name = 'first'
        command = ['sh', '-c', 'echo >&4']
        restart = 'temporary'
        ready = 'fd'
        [[process]]
        name = 'second'
        command = ['echo', 'after']
        restart = 'temporary'
    ";
    let service = Service::start(world);
    for _ in 0..10 {
        for words in [&[][..], &["--socket", &service.socket()]] {
            let done = world.up(file, words).finish();
            assert_eq!(done.code, Some(0), "\n{done}");
            assert!(done.text().contains("second | after\n"), "\n{done}");
        }
    }
}

fn who_never_says_that_it_is_ready_never_is(world: &World) {
    // Closing the descriptor, or writing anything else, says nothing.
    let file = "
        intensity = 0
        [[process]]
        name = 'first'
        command = ['sh', '-c', 'printf x >&4; head -c 100000 /dev/zero >&4 2>/dev/null; exec 4>&-; exec sleep 1000']
        ready = { fd = true, within = '1s' }
        [[process]]
        name = 'second'
        command = ['touch', 'ran']
    ";
    let done = world.up(file, &[]).finish();
    assert_eq!(done.code, Some(1), "\n{done}");
    assert!(done.stderr.contains("not ready in time"), "\n{done}");
    assert!(!world.path("work/ran").exists());
    for (ready, said) in [
        ("'socket'", "want \"fd\", \"notify\", or a table"),
        ("{ fd = true, tcp = '127.0.0.1:1' }", "want one of"),
        ("{ fd = 'yes' }", ":5:16: process[0].ready.fd"),
        ("{ within = '1x' }", "process[0].ready.within"),
    ] {
        let file = format!("\n[[process]]\nname = 'a'\ncommand = ['true']\nready = {ready}\n");
        let done = world.up(&file, &["--check"]).finish();
        assert_eq!(done.code, Some(125), "\n{done}");
        assert!(done.stderr.contains(said), "{said}\n{done}");
    }
}

fn i8_that_it_is_ready_is_heard_by_the_next_daemon(world: &World) {
    let mut service = Service::start(world);
    let mut client = LineClient::connect(Path::new(&service.socket()));
    let script = "until [ -e go ]; do sleep 0.02; done; echo >&4; until [ -e end ]; do sleep 0.02; done";
    let asked = json!({ "argv": ["sh", "-c", script], "cwd": world.work(), "policy": "workspace-write", "ready": "fd" });
    let started = client.call("process/start", asked).expect("it starts");
    let id = started["process"].as_str().expect("an id").to_owned();
    service.restart_after(|| drop(world.file("work/go", "")));
    let mut events = service.live(&["events", "-f", &id]);
    events.wait_for("\"type\":\"ready\"");
    // It is said once.
    service.restart();
    world.file("work/end", "");
    assert_eq!(service.record(&id)["succeeded"], true);
    let all = service.ask(&["events", &id]);
    let ready = all
        .events()
        .iter()
        .filter(|event| event["type"] == "ready")
        .count();
    assert_eq!(ready, 1, "\n{all}");
}

/// Says that it is ready as sd_notify(3) does, in one of the ways that libraries have.
const NOTIFIER: &str = r#"
import array, os, socket, subprocess, sys, time
ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
name = os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1)
time.sleep(0.2)
open("said", "w").close()
how = sys.argv[1]
if how == "connected":
    ready.connect(name)
    ready.sendall(b"STATUS=almost\n")
    ready.sendall(b"STATUS=here\nREADY=1\nMAINPID=1")
elif how == "addressed":
    ready.sendto(b"READY=1\n", name)
elif how == "with descriptors":
    held, given = os.pipe()
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [given]))
    ready.sendmsg([b"READY=1"], [rights], 0, name)
    ready.sendmsg([b"BARRIER=1"], [rights], 0, name)
    os.close(given)
    # Nobody keeps them.
    assert os.read(held, 1) == b""
elif how == "from below":
    code = "import socket; socket.socket(1, 2).sendto(b'READY=1', '\\0' + '%s')" % name[1:]
    subprocess.run(["setsid", sys.executable, "-c", code], check=True)
else:
    subprocess.run(["systemd-notify", "--ready"], check=True)
# As many programs do until they end.
for _ in range(50):
    ready.sendto(b"WATCHDOG=1", name)
    time.sleep(0.005)
ready.sendto(b"STOPPING=1", name)
"#;

fn who_is_behind_waits_for_the_notification_of_who_is_before(world: &World) {
    require!(needs::command("python3"), "python3");
    let script = world.file("work/notifier.py", NOTIFIER);
    let service = Service::start(world);
    let mut ways = vec!["connected", "addressed", "with descriptors", "from below"];
    if needs::command("systemd-notify") {
        ways.push("systemd-notify");
    }
    let mut all: Vec<(&str, &str, bool)> = ways.iter().map(|how| (*how, "off", false)).collect();
    all.push(("connected", "off", true));
    for net in ["isolated", "open"] {
        all.extend([("connected", net, false), ("addressed", net, true)]);
    }
    for (how, net, in_daemon) in all {
        let file = format!(
            "
            intensity = 0
            [[process]]
            name = 'first'
            command = ['python3', '{script}', '{how}']
            restart = 'temporary'
            ready = 'notify'
            options = ['--net', '{net}']
            [[process]]
            name = 'second'
            command = ['sh', '-c', 'test -e said && test -z \"$NOTIFY_SOCKET\" && echo after']
            restart = 'temporary'
            "
        );
        let socket = service.socket();
        let words = ["--json", "--socket", &socket];
        let done = world
            .up(&file, if in_daemon { &words } else { &words[..1] })
            .finish();
        assert_eq!(done.code, Some(0), "{how} {net}\n{done}");
        let said = done.events().into_iter().filter(|event| {
            event["type"] == "ready" || event["type"] == "member_ready" && event["member"] == "first"
        });
        assert_eq!(said.count(), 2, "{how} {net}\n{done}");
        let denied = |event: &Value| event["type"] == "denial";
        assert!(!done.events().iter().any(denied), "{how} {net}\n{done}");
        std::fs::remove_file(world.path("work/said")).expect("it said so");
    }
}

/// Tries to reach others with what it has, floods it, and says that it is ready when it is told to.
const HOSTILE: &str = r#"
import os, socket, sys, time
def ask():
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
name = os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1)
for other in (sys.argv[1], "\0provost/other", name + "/x"):
    for reach in (lambda: ask().connect(other), lambda: ask().sendto(b"READY=1", other)):
        try:
            reach()
        except PermissionError:
            continue
        sys.exit("it reached " + other)
ready = ask()
refused = 0
for _ in range(5000):
    for message in (b"", b"READY=10", b"READY=1 ", b"x" * 8192):
        try:
            ready.sendto(message, name)
        except BlockingIOError:
            refused += 1
assert refused > 0, "it was never full"
open("flooded", "w").close()
while not os.path.exists("go"):
    time.sleep(0.02)
while True:
    try:
        ready.sendto(b"READY=1", name)
        break
    except BlockingIOError:
        time.sleep(0.01)
"#;

fn what_a_program_gets_to_notify_with_reaches_nobody_else_and_floods_nobody(world: &World) {
    require!(needs::command("python3"), "python3");
    let script = world.file("work/hostile.py", HOSTILE);
    let mailbox = UnixMailbox::start(world, "work/mailbox");
    let service = Service::start(world);
    let mut client = LineClient::connect(Path::new(&service.socket()));
    let argv = [
        "python3",
        &script,
        &world.path("work/mailbox").display().to_string(),
    ]
    .map(str::to_owned);
    let asked =
        json!({ "argv": argv, "cwd": world.work(), "policy": "workspace-write", "ready": "notify" });
    let started = client.call("process/start", asked).expect("it starts");
    let id = started["process"].as_str().expect("an id").to_owned();
    until_it_is_there(&world.path("work/flooded"));
    let told = |service: &Service<'_>| {
        let all = service.ask(&["events", &id]);
        let told = all.events();
        told.iter().filter(|event| event["type"] == "ready").count()
    };
    assert_eq!(told(&service), 0);
    world.file("work/go", "");
    let record = service.record(&id);
    assert_eq!(record["succeeded"], true, "{record}");
    assert_eq!(told(&service), 1);
    assert_eq!(record["denials"]["by_class"]["network"], 6, "{record}");
    let first = record["denials"]["first"].as_array().expect("denials");
    assert!(
        first
            .iter()
            .all(|denial| denial["target"]["protocol"] == "unix-dgram")
    );
    assert_eq!(mailbox.messages(), 0);
}

fn i8_a_notification_without_a_daemon_is_heard_by_the_next_one(world: &World) {
    require!(needs::command("python3"), "python3");
    let mut service = Service::start(world);
    let mut client = LineClient::connect(Path::new(&service.socket()));
    // Connected, sends ask nobody.
    let script = "
import os, socket, time
ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
ready.connect(os.environ['NOTIFY_SOCKET'].replace('@', '\\0', 1))
print('it has it', flush=True)
while not os.path.exists('go'): time.sleep(0.02)
ready.send(b'READY=1')
print('it said so', flush=True)
while not os.path.exists('end'): time.sleep(0.02)
ready.send(b'STOPPING=1')
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).send(b'READY=1')
";
    let asked = json!({ "argv": ["python3", "-c", script], "cwd": world.work(), "policy": "workspace-write", "ready": "notify" });
    let started = client.call("process/start", asked).expect("it starts");
    let id = started["process"].as_str().expect("an id").to_owned();
    service
        .live(&["events", "-f", &id])
        .wait_for("\"type\":\"output\"");
    service.restart_after(|| drop(world.file("work/go", "")));
    let mut events = service.live(&["events", "-f", &id]);
    events.wait_for("\"type\":\"ready\"");
    service.restart();
    world.file("work/end", "");
    let record = service.record(&id);
    assert_eq!(
        (&record["succeeded"], &record["denied"]),
        (&json!(true), &json!(false)),
        "{record}"
    );
    let all = service.ask(&["events", &id]);
    let told = all.events();
    let ready = told.iter().filter(|event| event["type"] == "ready").count();
    assert_eq!(ready, 1, "\n{all}");
}

fn where_nobody_could_give_it_a_socket_a_start_is_refused(world: &World) {
    let file = "
        intensity = 0
        [[process]]
        name = 'first'
        command = ['touch', 'ran']
        policy = 'unconfined'
        ready = { notify = true, within = '10s' }
    ";
    let done = world.up(file, &[]).finish();
    assert_eq!(done.code, Some(1), "\n{done}");
    assert!(
        done.stderr
            .contains("not under the policy `unconfined`; use `fd`"),
        "\n{done}"
    );
    assert!(!world.path("work/ran").exists());
    let service = Service::start(world);
    let mut client = LineClient::connect(Path::new(&service.socket()));
    let asked = json!({ "argv": ["true"], "cwd": "/", "policy": "unconfined", "ready": "notify" });
    let refused = client.call("process/start", asked).expect_err("no");
    assert_eq!(refused["data"]["kind"], "refused", "{refused}");
}

both_users!(
    who_is_behind_waits_for_the_line_feed_of_who_is_before,
    who_says_so_and_ends_at_once_was_ready,
    who_never_says_that_it_is_ready_never_is,
    i8_that_it_is_ready_is_heard_by_the_next_daemon,
    who_is_behind_waits_for_the_notification_of_who_is_before,
    what_a_program_gets_to_notify_with_reaches_nobody_else_and_floods_nobody,
    i8_a_notification_without_a_daemon_is_heard_by_the_next_one,
    where_nobody_could_give_it_a_socket_a_start_is_refused,
);
