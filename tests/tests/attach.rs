//! Several clients at one process of a daemon's: who writes, what is shown first, and what is left when a client dies.

use nix::sys::signal::Signal;
use provost_tests::{
    AtTerminal, Finished, LineClient, Served, Service, World, both_users, needs, require,
};
use serde_json::{Value, json};

/// Says each line that it reads.
const ECHO: &str = "stty -echo; echo ready; while read -r line; do echo \"got $line\"; done; exit 5";

/// Waits until a process has written this.
fn written(service: &Service<'_>, id: &str, text: &str) {
    service.live(&["logs", "-f", id]).wait_for(text);
}

fn leave(mut client: AtTerminal) -> Finished {
    client.type_in("\x10\x11");
    let left = client.finish();
    assert_eq!(left.code, Some(0), "\n{left}");
    left
}

fn i9_one_has_the_input_and_others_see_what_it_sees(world: &World) {
    let service = Service::start(world);
    let id = service.say(&["start", "--tty", "--", "sh", "-c", ECHO]);
    let mut writer = service.at_terminal(&["attach", &id], 24, 80);
    writer.wait_for("ready");
    writer.type_in("one\r");
    writer.wait_for("got one");

    let mut reader = service.at_terminal(&["attach", &id], 30, 90);
    let by = format!("attached elsewhere, by pid {}", writer.pid());
    reader.wait_for(&by);
    reader.wait_for("got one");
    reader.type_in("not heard\r");
    let mut asked_for = service.at_terminal(&["attach", "--read-only", &id], 24, 80);
    asked_for.wait_for("got one");
    writer.type_in("two\r");
    for client in [&mut writer, &mut reader, &mut asked_for] {
        client.wait_for("got two");
    }
    reader.type_in("\x03");
    let left = reader.finish();
    assert_eq!(left.code, Some(0), "\n{left}");
    assert!(!left.text().contains("got not heard"), "\n{left}");

    let refused = service.ask(&["send", &id, "sent"]);
    assert_eq!(refused.code, Some(125), "\n{refused}");
    assert!(
        refused.stderr.contains(&by) && refused.stderr.contains("--force"),
        "\n{refused}"
    );
    service.say(&["send", "--force", &id, "forced"]);
    writer.wait_for("got forced");

    let mut thief = service.at_terminal(&["attach", "--steal", &id], 24, 80);
    thief.wait_for("got forced");
    writer.wait_for(&format!("taken over by pid {}", thief.pid()));
    writer.type_in("lost\r");
    thief.type_in("three\r");
    writer.wait_for("got three");
    let left = leave(writer);
    assert!(!left.text().contains("got lost"), "\n{left}");
    leave(thief);
    // Given back.
    service.say(&["send", &id, "free"]);
    asked_for.wait_for("got free");
    let mut next = service.at_terminal(&["attach", &id], 24, 80);
    next.wait_for("got free");
    next.type_in("\x04");
    let ended = next.finish();
    assert_eq!(ended.code, Some(5), "\n{ended}");
    let ended = asked_for.finish();
    assert_eq!(ended.code, Some(5), "\n{ended}");
}

fn i8_the_end_of_a_writer_by_any_signal_gives_its_input_back_and_harms_nothing(world: &World) {
    let service = Service::start(world);
    let id = service.say(&["start", "--tty", "--", "sh", "-c", ECHO]);
    for (round, signal) in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGKILL]
        .into_iter()
        .enumerate()
    {
        let mut client = service.at_terminal(&["attach", &id], 24, 80);
        let typed = format!("round {round}");
        client.wait_for("ready");
        client.type_in(&format!("{typed}\r"));
        client.wait_for(&format!("got {typed}"));
        client.signal(signal);
        // That the terminal was put back is asserted there, for all but KILL.
        let done = client.finish();
        let killed = done.signal == Some(9);
        assert!(killed || done.code == Some(128 + signal as i32), "\n{done}");
        service.clients(0);
    }
    let mut after = service.at_terminal(&["attach", &id], 24, 80);
    after.wait_for("got round 2");
    after.type_in("well\r");
    after.wait_for("got well");
    leave(after);
}

/// What a full-screen program did to the user's terminal is undone when the client leaves it alone.
fn modes_of_a_full_screen_program_do_not_outlast_the_client(world: &World) {
    let service = Service::start(world);
    let script = "printf '\\033[?1049h\\033[?25l\\033[?1006h\\033[1;31mfull'; exec sleep 1000";
    let id = service.say(&["start", "--tty", "--", "sh", "-c", script]);
    let undone = "\x1b[?1006l\x1b[?1049l\x1b[?25h\x1b[m";
    for leaves in [None, Some(Signal::SIGTERM), Some(Signal::SIGHUP)] {
        let mut client = service.at_terminal(&["attach", &id], 24, 80);
        client.wait_for("full");
        let done = match leaves {
            Some(signal) => {
                client.signal(signal);
                client.finish()
            }
            None => leave(client),
        };
        let (_, behind) = done.text().split_once("full").map_or_else(
            || panic!("\n{done}"),
            |(before, behind)| (before.to_owned(), behind.to_owned()),
        );
        assert!(behind.contains(undone), "{behind:?}\n{done}");
    }
    service.say(&["kill", &id]);
}

fn a_program_draws_again_for_who_attaches_also_where_the_size_stays(world: &World) {
    require!(needs::command("python3"), "python3");
    let service = Service::start(world);
    let script = "import os, signal\n\
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])\n\
        print('begun', flush=True)\n\
        while True:\n\
        \x20   signal.sigwait([signal.SIGWINCH])\n\
        \x20   size = os.get_terminal_size()\n\
        \x20   print('drawn', size.lines, size.columns, flush=True)\n";
    let id = service.say(&["start", "--tty", "--", "python3", "-c", script]);
    written(&service, &id, "begun");
    let mut first = service.at_terminal(&["attach", &id], 30, 100);
    first.wait_for("begun");
    first.wait_for("drawn 30 100");
    leave(first);
    let mut second = service.at_terminal(&["attach", &id], 30, 100);
    second.wait_for("drawn 30 100");
    second.wait_for("drawn 29 100");
    second.wait_for("drawn 30 100");
    // Whoever only looks changes no size.
    let mut reader = service.at_terminal(&["attach", "--read-only", &id], 10, 10);
    reader.wait_for("drawn 30 100");
    reader.resize(11, 11);
    second.resize(40, 120);
    reader.wait_for("drawn 40 120");
    let left = leave(reader);
    assert!(!left.text().contains("drawn 1"), "\n{left}");
    leave(second);
    service.say(&["kill", &id]);
}

fn an_attached_terminal_begins_with_the_end_of_what_it_missed(world: &World) {
    let service = Service::start(world);
    let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); \
        printf '\\033[38;5;%dm%06d \\303\\251\\342\\202\\254\\033[m\\r\\n' $((i % 200)) $i; done; echo done; exec sleep 1000";
    let id = service.say(&["start", "--tty", "--", "sh", "-c", script]);
    written(&service, &id, "done");
    let shown = |words: &[&str], most: usize| {
        let mut client = service.at_terminal(&[words, &[&id]].concat(), 24, 80);
        client.wait_for("done");
        let left = leave(client);
        let text = String::from_utf8(left.stdout.clone()).expect("no character is cut");
        let (_, tail) = text.split_once("\x1b[H\x1b[J").expect("an empty screen first");
        let (tail, _) = tail.split_once("done").expect("it was there");
        assert!(tail.len() <= most, "{} bytes", tail.len());
        // What it begins with is the rest of a line's text, or a whole sequence.
        let begin = tail.find('\x1b').expect("colours");
        let plain = tail[..begin]
            .chars()
            .all(|c| c.is_ascii_digit() || " é€\r\n".contains(c));
        assert!(plain && !tail[..begin].contains(";5;"), "{:?}", &tail[..60]);
        assert!(tail[begin..].starts_with("\x1b["), "{:?}", &tail[..60]);
        tail.to_owned()
    };
    assert!(shown(&["attach"], 32 << 10).len() > 31 << 10);
    assert!(shown(&["attach", "--tail", "1000"], 1000).contains("020000"));
    service.say(&["kill", &id]);
}

fn attached_streams_begin_with_their_last_lines(world: &World) {
    let service = Service::start(world);
    let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo \"line $i\"; done; echo ready; read -r x; echo end";
    let id = service.say(&["start", "--stdin", "--", "sh", "-c", script]);
    let begins = |words: &[&str]| {
        let mut client = service.live(&[words, &[&id]].concat());
        client.wait_for("ready\n");
        client
    };
    let (all, some) = (
        begins(&["attach", "--since", "0"]),
        begins(&["attach", "--tail", "100"]),
    );
    let usual = begins(&["attach"]);
    service.say(&["send", &id, "go on"]);
    let (all, some, usual) = (all.finish(), some.finish(), usual.finish());
    let last = "line 19999\nline 20000\nready\nend\n";
    for done in [&all, &some, &usual] {
        assert_eq!(done.code, Some(0), "\n{done}");
        assert!(done.text().ends_with(last), "\n{done}");
    }
    assert!(all.text().starts_with("line 1\n"));
    let length = some.text().len();
    assert!(
        (80..=104).contains(&length) && some.text().starts_with("line 199"),
        "\n{some}"
    );
    let length = usual.text().len();
    assert!(
        (31 << 10..33 << 10).contains(&length) && usual.text().starts_with("line "),
        "{length}"
    );
    let late = service.ask(&["attach", "--tail", "4", &id]);
    assert_eq!((late.code, late.text().as_str()), (Some(0), "end\n"), "\n{late}");
    let nothing = service.ask(&["attach", "--tail", "0", &id]);
    assert_eq!(
        (nothing.code, nothing.text().as_str()),
        (Some(0), ""),
        "\n{nothing}"
    );
}

fn a_run_at_a_terminal_can_lose_its_input_and_be_left(world: &World) {
    let service = Service::start(world);
    let mut run = service.at_terminal(&["run", "--daemon", "--tty", "--", "sh", "-c", ECHO], 24, 80);
    run.wait_for("ready");
    let id = service.say(&["ps", "-q"]);
    let refused = service.ask(&["send", &id, "sent"]);
    assert_eq!(refused.code, Some(125), "\n{refused}");
    let mut thief = service.at_terminal(&["attach", "--steal", &id], 24, 80);
    run.wait_for(&format!("taken over by pid {}", thief.pid()));
    thief.type_in("theirs\r");
    run.wait_for("got theirs");
    run.type_in("\x03");
    let left = run.finish();
    assert_eq!(left.code, Some(130), "\n{left}");
    thief.type_in("goes on\r");
    thief.wait_for("got goes on");
    thief.type_in("\x04");
    let ended = thief.finish();
    assert_eq!(ended.code, Some(5), "\n{ended}");
}

fn kind(answer: Result<Value, Value>) -> String {
    let error = answer.expect_err("it is refused");
    assert!(
        !error["data"]["hint"].as_str().unwrap_or_default().is_empty(),
        "{error}"
    );
    error["data"]["kind"].as_str().expect("a kind").to_owned()
}

fn i9_of_many_that_attach_at_once_one_has_the_input(world: &World) {
    let served = Served::start(world);
    let mut first = LineClient::connect(served.socket());
    let process = first.start("exec cat");
    let mut clients: Vec<LineClient> = (0..20).map(|_| LineClient::connect(served.socket())).collect();
    let attach = |clients: &mut [LineClient], steal: bool| -> Vec<bool> {
        let params = json!({ "process": process, "steal": steal });
        let asked: Vec<u64> = clients
            .iter_mut()
            .map(|client| client.ask("process/attach", params.clone()))
            .collect();
        let answers = clients.iter_mut().zip(asked);
        let answers = answers.map(|(client, id)| client.answer(id).expect("an answer"));
        answers
            .map(|answer| {
                assert!(answer["terminal"].is_null(), "{answer}");
                let writer = answer["writer"] == true;
                assert_eq!(writer, answer["held_by"].is_null(), "{answer}");
                writer
            })
            .collect()
    };
    let write = |client: &mut LineClient, more: Value| {
        let mut params = json!({ "process": process, "data": "eA==" });
        params
            .as_object_mut()
            .expect("one")
            .extend(more.as_object().expect("one").clone());
        client.call("process/write", params)
    };
    // Nobody has to have it.
    assert_eq!(
        write(&mut first, json!({ "offset": 0 })).expect("free")["offset"],
        1
    );
    let writers = attach(&mut clients, false);
    assert_eq!(writers.iter().filter(|writer| **writer).count(), 1, "{writers:?}");
    let mut holder = writers.iter().position(|writer| *writer).expect("one");
    for (index, client) in clients.iter_mut().enumerate() {
        let written = write(client, json!({}));
        match index == holder {
            true => drop(written.expect("it has the input")),
            false => assert_eq!(kind(written), "input_held"),
        }
    }
    // As are sizes, whether there is a terminal or not, but not reading, signals and what is forced.
    let size = json!({ "process": process, "rows": 2, "cols": 2 });
    assert_eq!(kind(first.call("process/resize", size)), "input_held");
    assert_eq!(
        write(&mut first, json!({ "force": true })).expect("forced")["offset"],
        3
    );
    first
        .call("process/read", json!({ "process": process }))
        .expect("it may be read");

    // Each thief has it until the next one comes; who lost it is told, once, by whom.
    let writers = attach(&mut clients, true);
    assert!(writers.iter().all(|writer| *writer), "{writers:?}");
    let mut lost = Vec::new();
    for (index, client) in clients.iter_mut().enumerate() {
        match write(client, json!({})) {
            Ok(_) => holder = index,
            Err(error) => {
                assert_eq!(error["data"]["kind"], "input_held");
                let told = client.notified().expect("it is told");
                assert_eq!(told["method"], "input/lost", "{told}");
                assert_eq!(told["params"]["process"], process, "{told}");
                assert_eq!(
                    told["params"]["by"],
                    format!("pid {}", std::process::id()),
                    "{told}"
                );
                lost.push(index);
            }
        }
    }
    assert_eq!(lost.len(), clients.len() - 1, "one has it");
    // Its connection ends without a word.
    clients.remove(holder);
    let deadline = std::time::Instant::now() + provost_tests::DEADLINE;
    while attach(&mut clients[..1], false) != [true] {
        assert!(std::time::Instant::now() < deadline, "it is never given back");
    }
    assert_eq!(kind(write(&mut first, json!({}))), "input_held");
    let gave = clients[0]
        .call("process/detach", json!({ "process": process }))
        .expect("given");
    assert_eq!(gave["was_writer"], true);
    let gave = clients[0]
        .call("process/detach", json!({ "process": process }))
        .expect("nothing");
    assert_eq!(gave["was_writer"], false);
    write(&mut first, json!({})).expect("free again");
}

/// What a client had on its way when it lost the input is not typed behind the back of who has it now.
fn i9_writes_that_wait_are_refused_when_the_input_is_taken_over(world: &World) {
    let served = Served::start(world);
    let mut old = LineClient::connect(served.socket());
    let fifo = world.path("work/go");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o666)).expect("a fifo");
    provost_tests::open_socket(&fifo);
    let process = old.start(&format!("read -r x < '{}'; wc -c", fifo.display()));
    let mut new = LineClient::connect(served.socket());
    let attach = json!({ "process": process, "steal": true });
    assert_eq!(
        old.call("process/attach", attach.clone()).expect("it")["writer"],
        true
    );
    let data = base64_zeros(300_000);
    let write = json!({ "process": process, "data": data });
    let under_way = old.ask("process/write", write.clone());
    let waiting = old.ask("process/write", write);
    // What comes behind them is answered: both have their turns.
    old.call("daemon/status", json!({})).expect("it is heard");
    assert_eq!(new.call("process/attach", attach).expect("it")["writer"], true);
    let behind = new.ask(
        "process/write",
        json!({ "process": process, "data": "eA==", "close": true }),
    );
    std::fs::write(&fifo, "go\n").expect("it reads now");
    // The first one may have begun before; the second has not.
    let under_way = old.answer(under_way).is_ok();
    assert_eq!(kind(old.answer(waiting)), "input_held");
    let offset = new.answer(behind).expect("it has the input")["offset"]
        .as_u64()
        .expect("a number");
    assert_eq!(offset, 1 + if under_way { 300_000 } else { 0 });
    let record = new.wait(&process);
    assert_eq!(record["outcome"], "exited", "{record}");
    let events = new
        .call("process/read", json!({ "process": process }))
        .expect("events");
    let counted = format!("{offset}\n");
    assert!(
        events["events"].as_array().expect("a list").iter().any(|event| {
            event["data"]
                .as_str()
                .is_some_and(|data| decoded(data) == counted.as_bytes())
        }),
        "{events}"
    );
}

fn base64_zeros(bytes: usize) -> String {
    assert!(bytes.is_multiple_of(3));
    "AAAA".repeat(bytes / 3)
}

fn decoded(text: &str) -> Vec<u8> {
    base64_simd::STANDARD.decode_to_vec(text).expect("base64")
}

/// Another full-screen program, with terminals of its own inside.
fn tmux_gets_sizes_keys_and_redraws(world: &World) {
    require!(needs::command("tmux"), "tmux");
    let service = Service::start(world);
    let inner = "trap 'echo interrupted inside' INT; trap 'echo now $(stty size)' WINCH; echo inside; while :; do read -r line && echo \"got $line\" $(stty size); done";
    let words = [
        "start",
        "--tty",
        "--env",
        "TERM=xterm",
        "--env",
        "SHELL=/bin/sh",
        "--",
        "tmux",
        "-S",
        "./tmux",
        "-f",
        "/dev/null",
        "new-session",
        inner,
    ];
    let id = service.say(&words);
    let mut first = service.at_terminal(&["attach", &id], 20, 70);
    first.wait_for("inside");
    first.type_in("hello\r");
    // One row is the status line's.
    first.wait_for("got hello 19 70");
    first.type_in("\x03");
    first.wait_for("interrupted inside");
    first.resize(33, 101);
    first.wait_for("now 32 101");
    first.signal(Signal::SIGKILL);
    first.finish();
    service.clients(0);
    assert_eq!(service.say(&["ps", "-q"]), id);

    let mut second = service.at_terminal(&["attach", "--tail", "0", &id], 33, 101);
    // Nothing is shown but what it draws again.
    second.wait_for("interrupted inside");
    second.type_in("again\r");
    second.wait_for("got again 32 101");
    leave(second);
    service.say(&["kill", &id]);
}

both_users!(
    i9_one_has_the_input_and_others_see_what_it_sees,
    i8_the_end_of_a_writer_by_any_signal_gives_its_input_back_and_harms_nothing,
    modes_of_a_full_screen_program_do_not_outlast_the_client,
    a_program_draws_again_for_who_attaches_also_where_the_size_stays,
    an_attached_terminal_begins_with_the_end_of_what_it_missed,
    attached_streams_begin_with_their_last_lines,
    a_run_at_a_terminal_can_lose_its_input_and_be_left,
    i9_of_many_that_attach_at_once_one_has_the_input,
    i9_writes_that_wait_are_refused_when_the_input_is_taken_over,
    tmux_gets_sizes_keys_and_redraws,
);
