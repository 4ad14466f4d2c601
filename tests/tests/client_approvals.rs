//! `provost approvals`, `approve` and `deny`; who is asked in a daemon.

use std::io::{BufRead, BufReader};

use provost_tests::host::TcpServer;
use provost_tests::{Service, World, both_users, open_socket, program};
use serde_json::Value;

/// What the helper exits with when it is connected.
const CONNECTED: Option<i32> = Some(3);

/// Starts a command that asks before it connects to this port, without waiting; its id.
fn start(service: &Service<'_>, port: &str, more: &[&str]) -> String {
    let helper = program("escape");
    let words = [
        &["start", "--net", "ask"][..],
        more,
        &["--", &helper, "tcp-connect", "127.0.0.1", port],
    ];
    service.say(&words.concat())
}

/// Waits until a process asks: its events are followed up to there.
fn asks(service: &Service<'_>, process: &str) {
    let mut events = service.live(&["events", "-f", process]);
    events.wait_for("approval_requested");
}

fn grants(service: &Service<'_>, process: &str) -> Value {
    service.ask(&["wait", "-q", process]);
    let shown = service.say(&["inspect", process]);
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    shown["record"]["approvals"].clone()
}

/// What a shell does with `provost events -f … | grep -m1 …; provost approvals`.
fn who_follows_ends_with_its_reader_and_not_with_the_next_event(world: &World) {
    let (service, server) = (Service::start(world), TcpServer::start());
    let port = server.port_text();
    let session = service.say(&["session", "open", "--name", "build"]);
    let process = start(&service, &port, &["--session", &session]);
    asks(&service, &process);
    let last = [
        (&["events", "-f", &process][..], "approval_requested"),
        (&["approvals", "-f"], " asks: "),
    ];
    for (words, last) in last {
        let (output, given) = std::io::pipe().expect("a pipe");
        let mut command = service.command(words);
        let mut follower = command.stdout(given).spawn().expect("a follower");
        drop(command);
        let mut lines = BufReader::new(output).lines();
        let said = lines.find(|line| line.as_ref().expect("text").contains(last));
        assert!(said.is_some(), "{words:?} says nothing");
        drop(lines);
        let ended = follower.wait().expect("our child");
        assert!(ended.success(), "{words:?}: {ended}");
        // It would have gone on until somebody decides, or nobody does in time.
        let waiting = service.say(&["approvals", "--session", "build"]);
        assert!(waiting.contains(&format!("{process}/1")), "{words:?}: {waiting}");
    }
    service.say(&["approve", &process]);
    service.say_code(3, &["wait", "-q", &process]);
}

fn what_waits_is_listed_followed_approved_and_denied(world: &World) {
    let (service, server) = (Service::start(world), TcpServer::start());
    let port = server.port_text();
    assert_eq!(service.say(&["approvals", "--json"]), "");
    let mut following = service.live(&["approvals", "-f"]);
    let web = start(&service, &port, &["--name", "web"]);
    asks(&service, &web);
    following.wait_for(&format!("{web}/1 asks: connect 127.0.0.1:{port}"));
    let listed = service.say(&["approvals"]);
    let flag = format!("--allow-net 127.0.0.1:{port}");
    assert!(
        listed.contains(&format!("{web}/1\tweb\t")) && listed.contains(&flag),
        "{listed}"
    );
    let json: Value = serde_json::from_str(&service.say(&["approvals", "--json", "web"])).expect("one");
    assert_eq!(
        (&json["process"], &json["approval"]),
        (&Value::from(web.as_str()), &Value::from(1))
    );
    assert_eq!(json["attempt"]["allow"]["key"], "net.allow", "{json}");

    service.say(&["approve", "--scope", "process", "web/1"]);
    let approvals = grants(&service, &web);
    assert_eq!(
        (&approvals["grants"][0]["by"], &approvals["grants"][0]["scope"]),
        (&"cli".into(), &"process".into())
    );
    assert_eq!(server.connections(), 1);
    following.wait_for(&format!("{web}/1 allowed: cli"));
    let late = service.ask(&["deny", "web/1"]);
    assert_eq!(late.code, Some(125), "\n{late}");
    assert!(
        late.stderr.contains("it was allowed already, by `cli`"),
        "\n{late}"
    );

    // A process that asks one thing is enough, by any part of its id.
    let other = start(&service, &port, &[]);
    asks(&service, &other);
    service.say(&["deny", "--by", "me", &other[24..]]);
    assert_eq!(grants(&service, &other)["refused"], 1);
    assert_eq!(server.connections(), 0);
    for request in [&other[..], "nothing/1", "web/x", "web/9"] {
        let done = service.ask(&["approve", request]);
        assert_eq!(done.code, Some(125), "{request}\n{done}");
    }
}

fn a_session_that_is_attached_elsewhere_is_answered_by_its_holder_or_with_steal(world: &World) {
    let service = Service::start(world);
    let process = {
        service.say(&["session", "open", "--name", "dev"]);
        let process = start(&service, "9", &["--session", "dev"]);
        asks(&service, &process);
        process
    };
    let mut holder = service.live(&["session", "attach", "dev"]);
    holder.wait_for("\n");
    let refused = service.ask(&["approve", &process]);
    assert_eq!(refused.code, Some(125), "\n{refused}");
    assert!(refused.stderr.contains("attached elsewhere"), "\n{refused}");
    service.say(&["deny", "--steal", &process]);
    assert_eq!(grants(&service, &process)["refused"], 1);
    assert!(
        service.say(&["session", "list"]).contains("\tyes\t"),
        "the lease went with the answer"
    );
}

fn the_daemon_runs_a_command_that_answers_as_the_clients_user(world: &World) {
    let (service, server) = (Service::start(world), TcpServer::start());
    let decider = world.file(
        "home/decide",
        &format!(
            "id -u > {who}; pwd >> {who}; cat > {asked}; grep -q '\"port\":{}' {asked} && echo allow once",
            server.port(),
            who = world.text("home/who"),
            asked = world.text("home/asked"),
        ),
    );
    let ask = ["--ask-command", &format!("sh {decider}")];
    let allowed = start(&service, &server.port_text(), &ask);
    assert_eq!(grants(&service, &allowed)["grants"][0]["by"], "ask-command");
    assert_eq!(server.connections(), 1);
    let who = format!("{}\n{}\n", world.uid(), world.text("work"));
    assert_eq!(world.content("home/who"), who);
    let asked: Value = serde_json::from_str(&world.content("home/asked")).expect("JSON");
    assert_eq!(
        (&asked["process"], &asked["approval"]),
        (&Value::from(allowed), &Value::from(1))
    );
    for decider in ["echo sure", "sh -c 'echo allow; exit 1'", "/nonexistent"] {
        let denied = start(&service, &server.port_text(), &["--ask-command", decider]);
        assert_eq!(grants(&service, &denied)["refused"], 1, "{decider}");
    }
    // Others may be quicker, and one that hangs ends then.
    let (witness, runs) = (world.witness(), world.path("home/runs"));
    nix::unistd::mkfifo(&runs, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    open_socket(&runs);
    let script = format!(
        "exec 3> {}; echo > {}; exec sleep 3600",
        witness.path(),
        runs.display()
    );
    let hang = world.file("home/hang", &script);
    let hang = format!("sh {hang}");
    let hangs = ["--ask-timeout", "1h", "--ask-command", &hang];
    let denied = start(&service, &server.port_text(), &hangs);
    asks(&service, &denied);
    std::fs::read(&runs).expect("it has begun");
    service.say(&["deny", &denied]);
    assert_eq!(grants(&service, &denied)["refused"], 1);
    witness.wait_until_gone();
    let nothing = service.ask(&["start", "--ask-command", "echo allow", "--", "true"]);
    assert_eq!(nothing.code, Some(125), "\n{nothing}");
    assert_eq!(server.connections(), 0);
}

fn a_run_in_the_daemon_asks_its_own_command_and_at_its_own_terminal(world: &World) {
    let (service, server) = (Service::start(world), TcpServer::start());
    let (helper, port) = (program("escape"), server.port_text());
    let command = ["run", "--daemon", "--net", "ask"];
    let connect = ["--", &helper, "tcp-connect", "127.0.0.1", &port];
    let by_command = [&command[..], &["--ask-command", "echo allow"], &connect].concat();
    let done = service.ask(&by_command);
    assert_eq!((done.code, server.connections()), (CONNECTED, 1), "\n{done}");

    let mut terminal = service.at_terminal(&[&command[..], &connect].concat(), 24, 80);
    terminal.wait_for("n no [n] ");
    terminal.type_in("y\n");
    let done = terminal.finish();
    assert_eq!((done.code, server.connections()), (CONNECTED, 1), "\n{done}");

    // Somebody else answers: the question is taken back.
    let mut terminal = service.at_terminal(&[&command[..], &connect].concat(), 24, 80);
    terminal.wait_for("n no [n] ");
    let process = service.say(&["ps", "-q"]);
    service.say(&["approve", &process]);
    terminal.wait_for("was allowed (cli)");
    let done = terminal.finish();
    assert_eq!((done.code, server.connections()), (CONNECTED, 1), "\n{done}");

    // Nobody here: it says where to answer.
    let elsewhere = service.live(&[&command[..], &connect].concat());
    let process = loop {
        let process = service.say(&["ps", "-q"]);
        if !process.is_empty() {
            break process;
        }
    };
    asks(&service, &process);
    service.say(&["approve", &process]);
    let done = elsewhere.finish();
    assert_eq!((done.code, server.connections()), (CONNECTED, 1), "\n{done}");
    assert!(done.stderr.contains("provost approvals"), "\n{done}");
}

both_users!(
    who_follows_ends_with_its_reader_and_not_with_the_next_event,
    what_waits_is_listed_followed_approved_and_denied,
    a_session_that_is_attached_elsewhere_is_answered_by_its_holder_or_with_steal,
    the_daemon_runs_a_command_that_answers_as_the_clients_user,
    a_run_in_the_daemon_asks_its_own_command_and_at_its_own_terminal,
);
