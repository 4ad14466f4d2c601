//! Asking before refusing: what is allowed happens, what is not is a denial, and nobody waits for somebody else's answer.

use std::os::unix::process::CommandExt;
use std::time::Duration;

use provost::{ApprovalScope, EventBody, Policy, PresetContext, ProcessHandle, ProcessSpec, Verdict};
use provost_tests::host::{TcpServer, UnixServer};
use provost_tests::{
    Finished, Live, World, both_users, embedded, filesystem, needs, network, program, provost, require,
};
use serde_json::Value;

/// The types of the events that concern approvals and denials, in their order.
fn told(done: &Finished) -> Vec<String> {
    done.events()
        .iter()
        .filter_map(|event| {
            let kind = event["type"].as_str()?;
            ["approval_requested", "approval_decided", "denial", "terminal"]
                .contains(&kind)
                .then(|| kind.to_owned())
        })
        .collect()
}

fn decided_by(done: &Finished) -> Vec<Value> {
    let events = done.events();
    let decided = events.iter().filter(|event| event["type"] == "approval_decided");
    decided.map(|event| event["by"].clone()).collect()
}

fn an_allowed_connect_succeeds_after_the_decision(world: &World) {
    let server = TcpServer::start();
    // Only this very attempt is allowed, and what was asked is kept for the test.
    let decider = world.file(
        "work/decide",
        &format!(
            "cat > asked.json; grep -q '\"port\":{}' asked.json && echo allow once",
            server.port()
        ),
    );
    let ask = format!("sh {decider}");
    let done = world
        .escape(&["tcp-connect", "127.0.0.1", &server.port_text()])
        .with(["--net", "ask", "--ask-command", &ask])
        .json()
        .finish();
    assert_eq!(server.connections(), 1, "\n{done}");
    assert_eq!(
        told(&done),
        ["approval_requested", "approval_decided", "terminal"],
        "\n{done}"
    );
    let record = done.record();
    assert_eq!(record["denied"], false, "\n{done}");
    assert_eq!(record["approvals"]["requested"], 1, "\n{done}");
    let grant = &record["approvals"]["grants"][0];
    assert_eq!(
        (&grant["scope"], &grant["by"]),
        (&"once".into(), &"ask-command".into()),
        "\n{done}"
    );
    assert_eq!(grant["target"]["port"], server.port(), "\n{done}");
    let asked: Value = serde_json::from_str(&world.content("work/asked.json")).expect("JSON");
    assert_eq!(asked["attempt"]["target"]["address"], "127.0.0.1", "{asked}");
}

fn a_decider_that_hangs_is_a_denial_at_the_deadline(world: &World) {
    let server = TcpServer::start();
    let done = world
        .escape(&["tcp-connect", "127.0.0.1", &server.port_text()])
        .with([
            "--net",
            "ask",
            "--ask-command",
            "sleep 1000",
            "--ask-timeout",
            "500ms",
        ])
        .json()
        .finish();
    assert_eq!(server.connections(), 0, "\n{done}");
    assert_eq!(
        told(&done),
        ["approval_requested", "approval_decided", "denial", "terminal"],
        "\n{done}"
    );
    done.denial(&network("connect").port(server.port()));
    assert_eq!(done.record()["approvals"]["refused"], 1, "\n{done}");
}

fn a_decider_that_crashes_or_talks_nonsense_is_a_denial(world: &World) {
    let server = TcpServer::start();
    for decider in [
        "sh -c 'kill -9 $$'",
        "sh -c 'echo allow; exit 1'",
        "echo sure",
        "/nonexistent",
        "true",
    ] {
        let done = world
            .escape(&["tcp-connect", "127.0.0.1", &server.port_text()])
            .with(["--net", "ask", "--ask-command", decider])
            .json()
            .finish();
        assert_eq!(server.connections(), 0, "{decider}\n{done}");
        done.denial(&network("connect").port(server.port()));
        assert_eq!(decided_by(&done), ["ask-command"], "{decider}\n{done}");
    }
}

fn a_permission_for_the_process_is_asked_for_once(world: &World) {
    let server = TcpServer::start();
    let (helper, port) = (program("escape"), server.port_text());
    let connect = format!("{helper} tcp-connect 127.0.0.1 {port}");
    let done = world
        .shell(&format!("{connect}; {connect}; {connect}"))
        .with(["--net", "ask", "--ask-command", "echo allow process"])
        .json()
        .finish();
    assert_eq!(server.connections(), 3, "\n{done}");
    assert_eq!(done.record()["approvals"]["requested"], 1, "\n{done}");
}

fn an_allowed_file_is_made_and_written_and_its_neighbour_is_not(world: &World) {
    let (made, written) = (world.text("outside/made"), world.file("outside/written", "old"));
    let other = world.text("outside/other");
    let script = format!(
        "umask 027; echo new > {made}; echo more >> {written}; echo x > {other}; echo again >> {made}"
    );
    let decider = world.file("decide", &format!("grep -q {other} || echo allow once"));
    let done = world
        .shell(&script)
        .with(["--ask", "files", "--ask-command", &format!("sh {decider}")])
        .finish();
    assert_eq!(world.content("outside/made"), "new\nagain\n", "\n{done}");
    assert_eq!(world.content("outside/written"), "oldmore\n", "\n{done}");
    assert!(!world.path("outside/other").exists(), "\n{done}");
    done.denial(&filesystem().path(&other).certainty("observed"));
    assert_eq!(done.denials_total(), 1, "\n{done}");
    let summary = &done.record()["approvals"];
    assert_eq!(
        (&summary["requested"], &summary["allowed"]),
        (&4.into(), &3.into()),
        "\n{done}"
    );
    let mode = std::fs::metadata(world.path("outside/made")).expect("it is there");
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777,
        0o640
    );
}

fn what_a_rule_denies_is_not_asked_about(world: &World) {
    let secret = world.file("outside/secret", "kept");
    let done = world
        .shell(&format!("echo x > {secret}; cat {secret}"))
        .with(["--ask", "files", "--ask-command", "echo allow", "--deny", &secret])
        .finish();
    assert_eq!(world.content("outside/secret"), "kept");
    assert_eq!(done.text(), "", "\n{done}");
    assert_eq!(done.record()["approvals"]["requested"], 0, "\n{done}");
    assert_eq!(done.record()["denied"], true, "\n{done}");
}

fn plain_permissions_hold_for_what_is_allowed(world: &World) {
    // Nobody but root may write it, and root's programs have no capabilities.
    let file = world.file("outside/closed", "kept");
    let mut mode = std::fs::metadata(&file).expect("it is there").permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o444);
    std::fs::set_permissions(&file, mode).expect("its mode");
    let done = world
        .shell(&format!("echo x > {file}"))
        .with(["--ask", "files", "--ask-command", "echo allow"])
        .finish();
    assert_eq!(world.content("outside/closed"), "kept", "\n{done}");
}

fn another_programs_socket_is_asked_about(world: &World) {
    let server = UnixServer::start(world, "outside/socket");
    let path = world.text("outside/socket");
    let ask = |answer: &str| {
        world
            .escape(&["unix-stream", &path])
            .with(["--net", "ask", "--ask-command", answer])
            .finish()
    };
    let done = ask("echo deny");
    assert_eq!(server.connections(), 0, "\n{done}");
    done.denial(&network("connect").path(&path));
    let done = ask("echo allow");
    assert_eq!(server.connections(), 1, "\n{done}");
}

fn a_process_that_is_stopped_waits_for_no_answer(world: &World) {
    let server = TcpServer::start();
    let done = world
        .escape(&["tcp-connect", "127.0.0.1", &server.port_text()])
        .with([
            "--net",
            "ask",
            "--ask-command",
            "sleep 1000",
            "--timeout",
            "500ms",
        ])
        .json()
        .finish();
    assert_eq!(done.outcome(), "timed_out", "\n{done}");
    assert_eq!(server.connections(), 0, "\n{done}");
    let by = decided_by(&done);
    assert!(by == ["stopped"] || by == ["ended"], "{by:?}\n{done}");
    assert_eq!(told(&done).last().map(String::as_str), Some("terminal"));
}

fn nobody_to_ask_is_an_error_before_anything_runs(world: &World) {
    for (options, word) in [
        (&["--ask", "net"][..], "no terminal"),
        (&["--ask-command", "echo allow"], "--ask net"),
        (
            &["--net", "open", "--ask", "net", "--ask-command", "true"],
            "network open",
        ),
        (&["--ask", "net", "--ask-command", "'"], "--ask-command"),
        (&["-p", "unconfined", "--ask", "net"], "unconfined"),
    ] {
        let done = world.shell("echo ran").with(options.iter().copied()).finish();
        assert_eq!(done.code, Some(125), "\n{done}");
        assert_eq!(done.text(), "", "\n{done}");
        assert!(done.stderr.contains(word), "{options:?}\n{done}");
    }
}

fn at_a_terminal_the_user_is_asked(world: &World) {
    require!(needs::command("python3"), "python3");
    let server = TcpServer::start();
    // A terminal of its own, at which `y` is typed when the question is there.
    let script = "import os, pty, sys\n\
        pid, tty = pty.fork()\n\
        if pid == 0: os.execv(sys.argv[1], sys.argv[1:])\n\
        seen = b''\n\
        while b'[n]' not in seen: seen += os.read(tty, 1000)\n\
        os.write(tty, b'y\\n')\n\
        try:\n\
        \x20   while True:\n\
        \x20       piece = os.read(tty, 1000)\n\
        \x20       if not piece: break\n\
        \x20       seen += piece\n\
        except OSError: pass\n\
        sys.stdout.buffer.write(seen)\n\
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n";
    let mut command = std::process::Command::new("python3");
    command
        .args(["-c", script])
        .arg(provost())
        .args(["run", "--net", "ask", "--"]);
    command.args([
        &program("escape"),
        "tcp-connect",
        "127.0.0.1",
        &server.port_text(),
    ]);
    command.current_dir(world.work());
    if world.changes_uid() {
        command.uid(world.uid()).gid(world.uid());
    }
    let done = Live::from_command(command, None).finish();
    let text = done.text();
    assert_eq!(server.connections(), 1, "{text}");
    assert!(
        text.contains(&format!("connect 127.0.0.1:{}/tcp", server.port())),
        "{text}"
    );
}

both_users!(
    an_allowed_connect_succeeds_after_the_decision,
    a_decider_that_hangs_is_a_denial_at_the_deadline,
    a_decider_that_crashes_or_talks_nonsense_is_a_denial,
    a_permission_for_the_process_is_asked_for_once,
    an_allowed_file_is_made_and_written_and_its_neighbour_is_not,
    what_a_rule_denies_is_not_asked_about,
    plain_permissions_hold_for_what_is_allowed,
    another_programs_socket_is_asked_about,
    a_process_that_is_stopped_waits_for_no_answer,
    nobody_to_ask_is_an_error_before_anything_runs,
    at_a_terminal_the_user_is_asked,
);

// The library.

fn asking(world: &World, script: &str) -> ProcessSpec {
    let context = PresetContext {
        cwd: world.work().canonicalize().expect("the working directory"),
        ..PresetContext::here().expect("a context")
    };
    let mut policy = Policy::preset("workspace-write", &context).expect("the preset");
    policy.ask.net = true;
    let mut spec = ProcessSpec::new(["sh", "-c", script], context.cwd, policy);
    spec.env = vec![("PATH".into(), "/usr/bin:/bin".into())];
    spec.ask_timeout = Duration::from_secs(1000);
    spec
}

async fn requests(process: &ProcessHandle, wanted: usize) {
    let mut events = process.events();
    let mut seen = 0;
    while seen < wanted {
        match events.next().await.expect("events").expect("it runs on").body {
            EventBody::ApprovalRequested { .. } => seen += 1,
            EventBody::Terminal { record } => panic!("it ended: {record:?}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_hundred_that_ask_delay_nobody_who_does_not() {
    let Some(world) = World::try_own() else { return };
    let (asked, allowed) = (TcpServer::start(), TcpServer::start());
    let supervisor = embedded().await;
    let connect = |port: &str| format!("{} tcp-connect 127.0.0.1 {port}", program("escape"));
    let script = format!(
        "for i in $(seq 100); do {} & done; read go; {} && echo through",
        connect(&asked.port_text()),
        connect(&allowed.port_text()),
    );
    let mut spec = asking(&world, &script);
    spec.stdin = provost::StdinSpec::Pipe;
    spec.policy_mut().net.allow = vec![allowed.address().to_string().parse().expect("a rule")];
    let process = supervisor.spawn(spec).await.expect("accepted");
    requests(&process, 100).await;
    // All hundred wait. The hundred and first, of the same process, needs no answer.
    process.write_stdin(b"go\n").await.expect("it reads");
    let record = process.record().await.expect("a record");
    assert_eq!(allowed.connections(), 1, "{record:?}");
    assert_eq!(asked.connections(), 0);
    assert_eq!(
        (record.approvals.requested, record.approvals.refused),
        (100, 100),
        "{record:?}"
    );
}

#[tokio::test]
async fn a_permission_for_the_session_covers_the_next_process_and_one_for_the_process_does_not() {
    let Some(world) = World::try_own() else { return };
    let server = TcpServer::start();
    let supervisor = embedded().await;
    let script = format!(
        "{} tcp-connect 127.0.0.1 {}",
        program("escape"),
        server.port_text()
    );
    let mut asked = Vec::new();
    for scope in [
        ApprovalScope::Process,
        ApprovalScope::Session,
        ApprovalScope::Once,
    ] {
        let process = supervisor.spawn(asking(&world, &script)).await.expect("accepted");
        process
            .answer_approvals("the test", move |request| async move {
                assert_eq!(request.attempt.operation, "connect");
                Verdict::Allow(scope)
            })
            .await
            .expect("answered");
        asked.push(process.record().await.expect("a record").approvals.requested);
    }
    assert_eq!(asked, [1, 1, 0]);
    assert_eq!(server.connections(), 3);
}

#[tokio::test]
async fn an_answer_counts_once_and_only_for_what_waits() {
    let Some(world) = World::try_own() else { return };
    let server = TcpServer::start();
    let supervisor = embedded().await;
    let script = format!(
        "{} tcp-connect 127.0.0.1 {}",
        program("escape"),
        server.port_text()
    );
    let process = supervisor.spawn(asking(&world, &script)).await.expect("accepted");
    requests(&process, 1).await;
    assert!(
        !process
            .decide(7, Verdict::Allow(ApprovalScope::Session), "nobody")
            .await
            .expect("told")
    );
    assert!(process.decide(1, Verdict::Deny, "the test").await.expect("told"));
    assert!(
        !process
            .decide(1, Verdict::Allow(ApprovalScope::Once), "too late")
            .await
            .expect("told")
    );
    let record = process.record().await.expect("a record");
    assert!(record.denied && record.approvals.refused == 1, "{record:?}");
    assert_eq!(server.connections(), 0);
    let late = process.decide(1, Verdict::Deny, "much too late").await;
    assert!(!late.expect("told"));
}
