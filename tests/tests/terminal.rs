//! Commands at a terminal: `provost run --tty`, and the same by the library.

use std::time::Duration;

use nix::sys::signal::Signal;
use provost::client::Client;
use provost::{
    Closed, Error, EventBody, ProcessHandle, ProcessSpec, StdinSpec, StreamName, Supervisor,
    TerminalSize,
};
use provost_tests::{
    DEADLINE, Served, World, both_users, check_pattern, embedded, needs, program, require, syscall,
};
use serde_json::{Value, json};

fn a_command_has_a_terminal_of_its_own(world: &World) {
    let script = "tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo all three; echo tty > /dev/tty; \
        test $$ = $(ps -o sid= -p $$) && test $$ = $(ps -o tpgid= -p $$) && echo leads; ps -o tty= -p $$; ls /proc/self/fd";
    let done = world.shell(script).with(["--tty"]).json().finish();
    done.assert_harmless();
    let (bytes, dropped) = done.stream("pty");
    assert_eq!(dropped, 0);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let lines: Vec<&str> = text.split("\r\n").collect();
    let name = lines[0];
    assert!(name.starts_with("/dev/pts/"), "{text}");
    assert_eq!(
        lines[1..],
        [
            "24 80",
            "all three",
            "tty",
            "leads",
            name.trim_start_matches("/dev/"),
            // Of which 3 is ls's own.
            "0  1  2  3",
            ""
        ],
        "{text}"
    );
    let output = &done.record()["output"];
    assert_eq!(
        output.as_object().map(|streams| streams.len()),
        Some(1),
        "\n{done}"
    );
    assert_eq!(output["pty"]["closed"], "eof", "\n{done}");
    assert_eq!(output["pty"]["bytes"], bytes.len(), "\n{done}");
}

fn without_a_sandbox_there_is_a_terminal_too(world: &World) {
    let done = world
        .shell("test -t 0 && tty && echo yes > /dev/tty")
        .with(["--tty", "-p", "unconfined"])
        .finish();
    done.assert_harmless();
    assert!(
        done.text().starts_with("/dev/pts/") && done.text().ends_with("yes\r\n"),
        "\n{done}"
    );
}

fn the_size_of_the_users_terminal_and_its_changes_arrive(world: &World) {
    require!(needs::command("python3"), "python3");
    let script = "import os, signal\n\
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])\n\
        print('size', *os.get_terminal_size(), flush=True)\n\
        while True:\n\
        \x20   signal.sigwait([signal.SIGWINCH])\n\
        \x20   size = os.get_terminal_size()\n\
        \x20   print('size', *size, flush=True)\n\
        \x20   if size.lines == 1: break\n";
    let mut live = world
        .run(["python3", "-c", script])
        .with(["--tty"])
        .at_terminal(31, 101);
    live.wait_for("size 101 31");
    live.resize(40, 120);
    live.wait_for("size 120 40");
    live.resize(1, 2);
    live.wait_for("size 2 1");
    live.finish().assert_harmless();
}

fn ctrl_c_interrupts_the_foreground_group_and_nothing_else(world: &World) {
    require!(needs::command("python3"), "python3");
    // A child in a group of its own, in the background, tells which signal it got first.
    let script = "import os, signal\n\
        both = [signal.SIGINT, signal.SIGTERM]\n\
        signal.pthread_sigmask(signal.SIG_BLOCK, both)\n\
        child = os.fork()\n\
        if child == 0:\n\
        \x20   os._exit(int(signal.sigwait(both)))\n\
        os.setpgid(child, child)\n\
        print('ready', flush=True)\n\
        print('in front', int(signal.sigwait(both)))\n\
        os.kill(child, signal.SIGTERM)\n\
        print('behind', os.waitstatus_to_exitcode(os.wait()[1]))\n";
    let mut live = world
        .run(["python3", "-c", script])
        .with(["--tty"])
        .at_terminal(24, 80);
    live.wait_for("ready");
    live.type_in("\x03");
    live.wait_for("in front 2");
    live.wait_for("behind 15");
    let done = live.finish();
    done.assert_harmless();
    assert_eq!(done.outcome(), "exited", "\n{done}");
}

fn an_interactive_shell_has_job_control(world: &World) {
    require!(needs::command("python3"), "python3");
    let script = "import signal\n\
        both = [signal.SIGCONT, signal.SIGINT]\n\
        signal.pthread_sigmask(signal.SIG_BLOCK, both)\n\
        print('runs', 2 + 3, flush=True)\n\
        print('resumed by', int(signal.sigwait(both)), flush=True)\n\
        print('interrupted by', int(signal.sigwait(both)), flush=True)\n";
    world.file("work/job.py", script);
    let mut live = world.run(["sh", "-i"]).with(["--tty"]).at_terminal(24, 80);
    live.type_in("python3 job.py\r");
    live.wait_for("runs 5");
    live.type_in("\x1a");
    live.wait_for("Stopped");
    live.type_in("jobs; echo list $((1 + 1))\r");
    live.wait_for("Stopped");
    live.wait_for("list 2");
    live.type_in("fg\r");
    live.wait_for("resumed by 18");
    live.type_in("\x03");
    live.wait_for("interrupted by 2");
    live.type_in("exit 7\r");
    let done = live.finish();
    assert_eq!(done.code, Some(7), "\n{done}");
    assert_eq!(done.record()["denied"], false, "\n{done}");
}

fn the_end_of_the_input_is_typed(world: &World) {
    for (input, shown) in [("", ""), ("one\n", "one\n"), ("one\ntwo", "one\ntwo")] {
        let done = world
            .shell("stty -echo; cat")
            .with(["--tty"])
            .input(input)
            .finish();
        done.assert_harmless();
        assert!(
            done.text().replace('\r', "").ends_with(shown),
            "{input:?}\n{done}"
        );
    }
    let done = world.shell("read line; echo $?").with(["--tty"]).finish();
    assert_eq!(
        done.text(),
        "1\r\n",
        "nothing on stdin is the end at once\n{done}"
    );
}

fn full_screen_programs_draw_and_quit(world: &World) {
    require!(needs::command("less"), "less");
    let lines: String = (1..=200).map(|line| format!("line {line} of many\n")).collect();
    let file = world.file("work/text", &lines);
    let options = ["--tty", "--env", "LESSHISTFILE=-"];
    let mut live = world.run(["less", &file]).with(options).at_terminal(10, 60);
    live.wait_for("line 9 of many");
    live.type_in("G");
    live.wait_for("line 200 of many");
    live.type_in("q");
    live.finish().assert_harmless();

    require!(needs::command("python3"), "python3");
    let script = "import curses\n\
        def main(screen):\n\
        \x20   lines, columns = screen.getmaxyx()\n\
        \x20   while True:\n\
        \x20       screen.addstr(lines - 2, 3, f'{lines} lines, {columns} columns')\n\
        \x20       screen.refresh()\n\
        \x20       if screen.getch() == ord('q'): break\n\
        curses.wrapper(main)\n";
    let mut live = world
        .run(["python3", "-c", script])
        .with(["--tty"])
        .at_terminal(12, 61);
    live.wait_for("12 lines, 61 columns");
    live.type_in("q");
    live.finish().assert_harmless();
}

fn terminals_within_the_terminal_work(world: &World) {
    require!(needs::command("tmux"), "tmux");
    let mut live = world
        .run(["tmux", "-f", "/dev/null", "new-session", "sh"])
        .with(["--tty"])
        .env("SHELL", "/bin/sh")
        .at_terminal(24, 80);
    live.type_in("stty size; echo within $((20 + 3))\r");
    live.wait_for("23 80");
    live.wait_for("within 23");
    live.type_in("exit\r");
    live.wait_for("[exited]");
    let done = live.finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    // Its helper for utmp tells the machine's log that it may not write there.
    let refused = done.denials();
    assert!(
        refused.iter().all(|denial| denial["comm"] == "utempter"),
        "\n{done}"
    );
}

fn the_users_terminal_is_put_back_in_every_ending(world: &World) {
    // `finish` asserts it; and that it was raw before.
    let raw = |script: &str| {
        let mut live = world.shell(script).with(["--tty"]).at_terminal(24, 80);
        live.wait_for("ready");
        assert!(!live.is_as_before());
        live
    };
    let done = raw("echo ready; read line; exit 3");
    let mut done = done;
    done.type_in("x\r");
    assert_eq!(done.finish().code, Some(3));

    for (signal, code) in [
        (Signal::SIGTERM, 143),
        (Signal::SIGHUP, 129),
        (Signal::SIGINT, 130),
        (Signal::SIGQUIT, 131),
    ] {
        let live = raw("echo ready; exec sleep 1000");
        live.signal(signal);
        let done = live.finish();
        assert_eq!(done.code, Some(code), "\n{done}");
        assert_eq!(done.outcome(), "cancelled", "\n{done}");
    }

    let live = raw("trap '' TERM INT; echo ready; while :; do sleep 1; done");
    live.signal(Signal::SIGTERM);
    live.signal(Signal::SIGINT);
    assert_eq!(live.finish().outcome(), "cancelled");

    let done = world
        .run(["no-such-command"])
        .with(["--tty"])
        .at_terminal(24, 80)
        .finish();
    assert_eq!(done.code, Some(127), "\n{done}");
    // Lines of Provost's own begin at the left again.
    assert!(done.text().contains("no such command"), "\n{done}");
    assert!(done.text().ends_with("\r\n"), "\n{done}");
}

fn stopped_the_terminal_is_put_back_and_continued_it_is_raw_again(world: &World) {
    let mut live = world
        .shell("echo ready; read line; echo got $line")
        .with(["--tty"])
        .at_terminal(24, 80);
    live.wait_for("ready");
    live.signal(Signal::SIGTSTP);
    live.wait_until_stopped();
    assert!(live.is_as_before());
    live.signal(Signal::SIGCONT);
    live.type_in("a-line\r");
    live.wait_for("got a-line");
    live.finish().assert_harmless();
}

fn i6_a_killed_provost_leaves_nothing_at_the_terminal(world: &World) {
    let mut witness = world.witness();
    let script = format!(
        "echo alive > {0}; exec 9> {0}; echo ready; exec sleep 1000",
        witness.path()
    );
    let mut live = world.shell(&script).with(["--tty"]).at_terminal(24, 80);
    live.wait_for("ready");
    assert!(witness.was_alive());
    live.signal(Signal::SIGKILL);
    witness.wait_until_gone();
    assert!(!live.finish().has_record());
}

fn i6_what_holds_the_terminal_ends_with_the_command(world: &World) {
    let mut witness = world.witness();
    // What it leaves behind ignores the hang-up that the end of a session's leader is.
    let script = format!(
        "mkfifo up; (trap '' HUP; exec 9> {0}; echo alive >&9; echo left; echo > up; exec sleep 1000) & \
         read up < up; echo ready; exit 4",
        witness.path()
    );
    let done = world.shell(&script).with(["--tty"]).finish();
    assert!(witness.was_alive() && witness.is_gone(), "\n{done}");
    assert_eq!(done.code, Some(4), "\n{done}");
    assert_eq!(done.text(), "left\r\nready\r\n", "\n{done}");
    assert_eq!(done.record()["tree"]["killed"], 1, "\n{done}");
    // As with pipes: it was still open at the drain deadline.
    let output = &done.record()["output"]["pty"];
    assert_eq!(output["closed"], "abandoned", "\n{done}");
}

fn i3_what_is_written_after_everybody_had_closed_the_terminal_is_not_lost(world: &World) {
    // While nobody has it open the master says that it is over, which is not so. The program gives us time to believe it.
    let script = "echo first; exec <&- >&- 2>&-; sleep 0.3; echo last > /dev/tty";
    let done = world.shell(script).with(["--tty"]).json().finish();
    let (bytes, dropped) = done.stream("pty");
    assert_eq!(
        (String::from_utf8_lossy(&bytes).as_ref(), dropped),
        ("first\r\nlast\r\n", 0),
        "\n{done}"
    );
    done.assert_harmless();
}

fn i3_ten_mebibytes_come_through_whole_and_in_order(world: &World) {
    const BYTES: usize = 10 << 20;
    let script = format!("stty raw -echo; exec {} {BYTES}", program("flood"));
    let done = world.shell(&script).with(["--tty"]).finish();
    assert_eq!(done.stdout.len(), BYTES);
    check_pattern(&done.stdout, 0);
    done.assert_harmless();
    assert_eq!(done.record()["output"]["pty"]["bytes"], BYTES);
}

fn escape_56_nothing_is_typed_at_the_own_terminal_either(world: &World) {
    require!(needs::command("python3"), "python3");
    let script = "import errno, fcntl, os\n\
        def attempt(terminal, name, request, argument):\n\
        \x20   try: fcntl.ioctl(terminal, request, argument); print(name, 'ok')\n\
        \x20   except OSError as error: print(name, errno.errorcode[error.errno])\n\
        for terminal in [0, os.open('/dev/tty', os.O_RDWR)]:\n\
        \x20   attempt(terminal, 'TIOCSTI', 0x5412, b'x')\n\
        \x20   attempt(terminal, 'TIOCLINUX', 0x541c, b'\\x03')\n";
    let done = world.run(["python3", "-c", script]).with(["--tty"]).finish();
    let expected = "TIOCSTI EPERM\r\nTIOCLINUX EPERM\r\n".repeat(2);
    assert_eq!(done.text(), expected, "\n{done}");
    done.denial(&syscall("ioctl(TIOCSTI)"));
    done.denial(&syscall("ioctl(TIOCLINUX)"));
}

fn escape_56_only_the_own_terminal_is_in_sight(world: &World) {
    require!(needs::pid_namespaces(world), "a PID namespace for this user");
    let done = world.shell("tty; ls /dev/pts").with(["--tty"]).finish();
    assert_eq!(done.text(), "/dev/pts/0\r\n0  ptmx\r\n", "\n{done}");
}

fn what_makes_no_sense_with_a_terminal_is_an_error(world: &World) {
    let done = world.shell("echo ran").with(["--tty", "--ask", "net"]).finish();
    assert_eq!(done.code, Some(125), "\n{done}");
    assert!(done.stderr.contains("--ask-command"), "\n{done}");
}

both_users!(
    a_command_has_a_terminal_of_its_own,
    without_a_sandbox_there_is_a_terminal_too,
    the_size_of_the_users_terminal_and_its_changes_arrive,
    ctrl_c_interrupts_the_foreground_group_and_nothing_else,
    an_interactive_shell_has_job_control,
    the_end_of_the_input_is_typed,
    full_screen_programs_draw_and_quit,
    terminals_within_the_terminal_work,
    the_users_terminal_is_put_back_in_every_ending,
    stopped_the_terminal_is_put_back_and_continued_it_is_raw_again,
    i6_a_killed_provost_leaves_nothing_at_the_terminal,
    i6_what_holds_the_terminal_ends_with_the_command,
    i3_what_is_written_after_everybody_had_closed_the_terminal_is_not_lost,
    i3_ten_mebibytes_come_through_whole_and_in_order,
    escape_56_nothing_is_typed_at_the_own_terminal_either,
    escape_56_only_the_own_terminal_is_in_sight,
    what_makes_no_sense_with_a_terminal_is_an_error,
    through_the_daemon_too,
);

/// A process of the library's, at a terminal.
async fn at_terminal(script: &str) -> Option<(World, Supervisor, ProcessHandle)> {
    let world = World::try_own()?;
    let supervisor = embedded().await;
    let process = supervisor.spawn(spec(&world, script)).await.expect("accepted");
    Some((world, supervisor, process))
}

fn spec(world: &World, script: &str) -> ProcessSpec {
    let mut spec = provost_tests::script(world, script);
    spec.terminal = Some(TerminalSize { rows: 5, cols: 6 });
    spec
}

fn through_the_daemon_too(world: &World) {
    let served = Served::start(world);
    let work = async {
        let client = Client::connect(served.socket()).await.expect("it listens");
        let script = "stty -echo; stty size; read line; stty size; cat";
        let params = json!({
            "argv": ["sh", "-c", script],
            "cwd": world.work(),
            "terminal": { "rows": 11, "cols": 12 },
        });
        let started: Value = client.call("process/start", &params).await.expect("started");
        let process = &started["process"];
        let follow = json!({ "process": process, "after_seq": 0 });
        let mut followed = client.follow("process/follow", &follow).await.expect("followed");
        let mut seen = Vec::new();
        while let Some(event) = followed.next().await {
            if let EventBody::Output { stream, data, .. } = event.body {
                assert_eq!(stream, StreamName::Pty);
                if seen.is_empty() {
                    let size = json!({ "process": process, "rows": 13, "cols": 14 });
                    let _: Value = client.call("process/resize", &size).await.expect("resized");
                    // `\n`, then `x\n`, then the end.
                    let typed = json!({ "process": process, "data": "CngK", "close": true });
                    let _: Value = client.call("process/write", &typed).await.expect("typed");
                }
                seen.extend(data);
            }
        }
        assert_eq!(String::from_utf8_lossy(&seen), "11 12\r\n13 14\r\nx\r\n");
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(DEADLINE, work).await.expect("in time") });
}

async fn until_it_speaks(process: &ProcessHandle) {
    let mut events = process.events();
    while let Some(event) = events.next().await.expect("events") {
        if let EventBody::Output { .. } = event.body {
            return;
        }
    }
}

/// All that it wrote.
async fn output(process: &ProcessHandle) -> String {
    let mut events = process.events();
    let mut bytes = Vec::new();
    while let Some(event) = events.next().await.expect("events") {
        if let EventBody::Output { stream, data, .. } = event.body {
            assert_eq!(stream, StreamName::Pty);
            bytes.extend(data);
        }
    }
    String::from_utf8(bytes).expect("text")
}

#[tokio::test]
async fn what_is_written_waits_for_a_program_that_does_not_read() {
    let script = "stty -echo; echo ready; sleep 0.5; wc -c";
    let Some((_world, _supervisor, process)) = at_terminal(script).await else {
        return;
    };
    until_it_speaks(&process).await;
    // Much more than the kernel keeps for it.
    let line = "x".repeat(99) + "\n";
    for _ in 0..50 {
        process
            .write_stdin(line.repeat(200).as_bytes())
            .await
            .expect("it reads");
    }
    process.close_stdin().await.expect("closed");
    let refused = process.write_stdin(b"more").await;
    assert!(matches!(refused, Err(Error::Ended(_))), "{refused:?}");
    assert_eq!(output(&process).await, "ready\r\n1000000\r\n");
}

#[tokio::test]
async fn a_terminal_is_resized_and_only_a_terminal_can_be() {
    let script = "stty -echo; echo ready; read line; stty size";
    let Some((world, supervisor, process)) = at_terminal(script).await else {
        return;
    };
    until_it_speaks(&process).await;
    process
        .resize(TerminalSize { rows: 7, cols: 8 })
        .await
        .expect("it has one");
    process.write_stdin(b"\n").await.expect("it reads");
    assert_eq!(output(&process).await, "ready\r\n7 8\r\n");
    let record = process.record().await.expect("a record");
    assert_eq!(record.output[&StreamName::Pty].closed, Closed::Eof);
    let late = process.resize(TerminalSize::default()).await;
    assert!(matches!(late, Err(Error::Ended(_))), "{late:?}");

    let mut plain = spec(&world, "read line");
    (plain.terminal, plain.stdin) = (None, StdinSpec::Pipe);
    let plain = supervisor.spawn(plain).await.expect("accepted");
    let none = plain.resize(TerminalSize::default()).await;
    assert!(matches!(none, Err(Error::Refused(_))), "{none:?}");
    plain.close_stdin().await.expect("closed");
    plain.record().await.expect("a record");

    let mut given = spec(&world, "true");
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    given.stdin = StdinSpec::Given(reader.into());
    assert!(supervisor.spawn(given).await.is_err(), "two standard inputs");
    let report = supervisor.shutdown(Duration::from_secs(5)).await;
    assert!(report.expect("shut down").graceful);
}
