//! The verbs that talk to a daemon.

use provost_tests::{Service, World, both_users, program};
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(json).collect()
}

fn a_process_is_started_listed_waited_for_inspected_and_forgotten(world: &World) {
    let service = Service::start(world);
    let done = service.ask(&["start", "--label", "job=7", "--", "sh", "-c", "exit 3"]);
    let id = done.text().trim_end().to_owned();
    assert_eq!(id.len(), 36, "more than the id is printed\n{done}");
    let other = service.say(&["start", "--stdin", "--name", "other", "--", "cat"]);

    let done = service.ask(&["wait", "--json", &id]);
    assert_eq!(done.code, Some(3), "\n{done}");
    let record = json(&done.text());
    assert_eq!(record["process"], id.as_str(), "\n{done}");
    assert_eq!(record["labels"]["job"], "7", "\n{done}");

    assert_eq!(service.say(&["ps", "-q"]), other);
    assert_eq!(service.say(&["ps", "-aq", "--label", "job=7"]), id);
    let table = service.say(&["ps", "-a"]);
    let rows: Vec<Vec<&str>> = table.lines().map(|row| row.split('\t').collect()).collect();
    assert_eq!(rows.len(), 3, "{table}");
    assert_eq!(rows[0][0], "PROCESS");
    assert_eq!(rows[1][..2], [id.as_str(), "-"], "{table}");
    assert_eq!(rows[1][3..5], ["exited 3", "no"], "{table}");
    assert_eq!(rows[1][6], "sh -c 'exit 3'", "{table}");
    assert_eq!(rows[2][..2], [other.as_str(), "other"], "{table}");
    assert_eq!(rows[2][3], "running", "{table}");
    assert!(!table.contains('\x1b'), "colours where nobody sees them: {table}");
    let listed = lines(&service.say(&["ps", "--json"]));
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["name"], "other");

    assert_eq!(json(&service.say(&["inspect", &id]))["record"], record);
    assert_eq!(json(&service.say(&["inspect", "other"]))["record"], Value::Null);
    let status = json(&service.say(&["status", "--json"]));
    assert_eq!((&status["live"], &status["processes"]), (&1.into(), &2.into()));
    assert_eq!(status["uid"], world.uid());
    assert!(service.say(&["status"]).contains("live\t1\n"));

    assert_eq!(service.say(&["prune", "--older-than", "1h"]), "0");
    assert_eq!(service.say(&["prune"]), "1");
    for verb in ["inspect", "logs", "events", "wait", "stop"] {
        let gone = service.ask(&[verb, &id]);
        assert_eq!(gone.code, Some(125), "\n{gone}");
        assert!(gone.stderr.contains("forgotten"), "\n{gone}");
        assert!(gone.stderr.contains("provost ps -a"), "no hint\n{gone}");
    }
    assert_eq!(service.say(&["ps", "-q"]), other);
}

fn processes_are_found_by_name_and_by_parts_of_ids(world: &World) {
    let service = Service::start(world);
    let id = service.say(&["start", "--name", "web", "--stdin", "--", "cat"]);
    for part in ["web", &id, &id[24..], &id[30..]] {
        let found = json(&service.say(&["inspect", part]));
        assert_eq!(found["process"], id.as_str(), "{part}");
    }
    let taken = service.ask(&["start", "--name", "web", "--", "true"]);
    assert_eq!(taken.code, Some(125), "\n{taken}");
    assert!(taken.stderr.contains("choose another name"), "\n{taken}");
    assert_eq!(taken.text(), "", "\n{taken}");
}

fn a_start_that_is_said_twice_starts_once(world: &World) {
    let service = Service::start(world);
    let start = |command| service.ask(&["start", "--request-id", "deploy", "--", "echo", command]);
    let first = start("a");
    assert_eq!(first.code, Some(0), "\n{first}");
    assert_eq!(start("a").text(), first.text());
    let other = start("b");
    assert_eq!(other.code, Some(125), "\n{other}");
    assert_eq!(service.say(&["ps", "-aq"]), first.text().trim_end());
}

fn i5_a_start_is_held_by_the_same_policy_as_a_run(world: &World) {
    let service = Service::start(world);
    let outside = world.text("outside");
    let script =
        format!("pwd; echo \"$GIVEN\"; echo x > here; (echo x > {outside}/refused) 2>&1; exit 0");
    let start = |flags: &[&str]| {
        let words = [
            &["start", "--env", "GIVEN=value"],
            flags,
            &["--", "sh", "-c", &script],
        ]
        .concat();
        service.say(&words)
    };
    let id = start(&[]);
    let done = service.ask(&["wait", &id]);
    assert_eq!(done.code, Some(0), "\n{done}");
    assert!(done.stderr.contains("--write"), "no summary\n{done}");
    let output = service.say(&["logs", &id]);
    assert!(
        output.starts_with(&format!("{}\nvalue\n", world.text("work"))),
        "{output}"
    );
    let record = json(&service.say(&["wait", "--json", "-q", &id]));
    assert_eq!(record["denied"], true, "{record}");
    assert!(!world.path("outside/refused").exists());
    assert!(world.path("work/here").exists());

    let record = json(&service.say(&["wait", "--json", &start(&["--write", &outside])]));
    assert_eq!(record["denied"], false, "{record}");
    assert!(world.path("outside/refused").exists());
}

fn i3_logs_are_the_bytes_of_each_stream(world: &World) {
    let service = Service::start(world);
    let all: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    std::fs::write(world.path("work/bytes"), &all).expect("a file of the test's own");
    let id = service.say(&["start", "--", "sh", "-c", "cat bytes; echo error >&2"]);
    assert_eq!(service.ask(&["wait", &id]).code, Some(0));
    for follow in [&["logs", &id][..], &["logs", "-f", &id]] {
        let done = service.ask(follow);
        assert_eq!(done.code, Some(0), "\n{done}");
        assert!(done.stdout == all, "the output is not what was written");
        assert_eq!(done.stderr, "error\n");
    }
    let done = service.ask(&["logs", "--stream", "stderr", &id]);
    assert_eq!((done.text().as_str(), done.stderr.as_str()), ("", "error\n"));
    let done = service.ask(&["logs", "--stream", "stdout", "--tail", "1000", &id]);
    assert!(done.stdout == all[99_000..], "not the tail\n{done}");
    assert_eq!(done.stderr, "");
    let done = service.ask(&["logs", "--json", "--stream", "stdout", &id]);
    assert_eq!(done.stream("stdout"), (all.clone(), 0));

    let events = lines(&service.say(&["events", &id]));
    let numbers: Vec<u64> = events.iter().filter_map(|event| event["seq"].as_u64()).collect();
    assert_eq!(numbers, (1..=events.len() as u64).collect::<Vec<_>>());
    let last = events.last().expect("events");
    assert_eq!(last["record"]["process"], id.as_str());
    let before_last = (events.len() - 1).to_string();
    assert_eq!(
        lines(&service.say(&["events", "--since", &before_last, &id])),
        std::slice::from_ref(last)
    );
    assert_eq!(lines(&service.say(&["events", "--since", "1h", &id])), events);
    assert_eq!(
        service.say(&["events", "--since", "2999-01-01T00:00:00Z", &id]),
        ""
    );
}

fn i3_what_is_not_kept_is_told_as_a_gap(world: &World) {
    const WRITTEN: usize = 1_000_000;
    let service = Service::start(world);
    let script = format!("head -c {WRITTEN} /dev/zero");
    let id = service.say(&["start", "--max-output", "64K", "--", "sh", "-c", &script]);
    assert_eq!(service.ask(&["wait", &id]).code, Some(0));
    let done = service.ask(&["logs", &id]);
    assert_eq!(done.code, Some(0), "\n{done}");
    let dropped: usize = done
        .stderr
        .lines()
        .filter_map(|line| {
            line.split_once("gap: ")?
                .1
                .split(' ')
                .next()?
                .parse::<usize>()
                .ok()
        })
        .sum();
    assert!(dropped > 0, "nothing was dropped");
    assert_eq!(done.stdout.len() + dropped, WRITTEN, "{}", done.stderr);
}

fn input_is_sent_and_followed_in_the_output_until_the_end(world: &World) {
    let service = Service::start(world);
    let id = service.say(&["start", "--stdin", "--", "cat"]);
    let mut following = service.live(&["logs", "-f", &id]);
    let mut events = service.live(&["events", "-f", &id]);
    service.say(&["send", &id, "one"]);
    following.wait_for("one\n");
    service.say(&["send", "-n", &id, "two "]);
    following.wait_for("two ");
    let tail = service.ask(&["logs", "--tail", "3", &id]);
    assert_eq!(tail.text(), "wo ", "\n{tail}");
    let rest: Vec<u8> = (0..=255).cycle().take(200_000).collect();
    let sent = service.feed(&["send", "--eof", &id, "-"], &rest);
    assert_eq!(sent.code, Some(0), "\n{sent}");
    events.wait_for("\"terminal\"");
    for done in [following.finish(), service.ask(&["logs", &id])] {
        assert_eq!(done.code, Some(0));
        assert!(
            done.stdout == [b"one\ntwo ", &rest[..]].concat(),
            "not what was sent"
        );
    }
    assert_eq!(events.finish().code, Some(0));

    let late = service.ask(&["send", &id, "late"]);
    assert_eq!(late.code, Some(125), "\n{late}");
    let deaf = service.say(&["start", "--", "sleep", "1000"]);
    let unheard = service.ask(&["send", &deaf, "x"]);
    assert_eq!(unheard.code, Some(125), "\n{unheard}");
}

fn wait_gives_the_exit_code_that_run_gives(world: &World) {
    let service = Service::start(world);
    let start = |command: &[&str]| service.say(&[&["start", "--"], command].concat());
    let zero = start(&["true"]);
    let three = start(&["sh", "-c", "exit 3"]);
    let killed = start(&["sh", "-c", "kill -9 $$"]);
    let missing = start(&["/no/such/program"]);
    let late = service.say(&["start", "--timeout", "50ms", "--", "sleep", "1000"]);
    let lasting = start(&["sleep", "1000"]);
    for (id, code) in [
        (&zero, 0),
        (&three, 3),
        (&killed, 137),
        (&missing, 127),
        (&late, 124),
    ] {
        let done = service.ask(&["wait", id]);
        assert_eq!(done.code, Some(code), "\n{done}");
    }
    let done = service.ask(&["wait", "--json", &zero, &three, &killed]);
    assert_eq!(done.code, Some(3), "not the first that is not 0\n{done}");
    let ids: Vec<Value> = lines(&done.text())
        .into_iter()
        .map(|record| record["process"].clone())
        .collect();
    assert_eq!(ids, [zero.as_str(), &three, &killed], "\n{done}");
    let done = service.ask(&["wait", "--timeout", "50ms", &zero, &lasting]);
    assert_eq!(done.code, Some(124), "\n{done}");
    let done = service.ask(&["wait", "no-such-process", &three]);
    assert_eq!(done.code, Some(125), "\n{done}");

    let waiting = service.live(&["wait", &lasting]);
    service.say(&["stop", &lasting]);
    assert_eq!(waiting.finish().code, Some(130));
}

fn stop_kill_and_signal_reach_the_process(world: &World) {
    let service = Service::start(world);
    let witness = world.witness();
    let fifo = world.text("work/witness");
    let stubborn = program("ignore_term");
    let id = service.say(&["start", "--grace", "1h", "--", &stubborn, &fifo]);
    service.live(&["logs", "-f", &id]).wait_for("ready");
    service.say(&["stop", "--grace", "50ms", "--reason", "enough", &id]);
    drop(witness);
    let record = json(&service.say_code(130, &["wait", "--json", "-q", &id]));
    assert_eq!(record["outcome"], "cancelled", "{record}");
    assert_eq!(record["signal"], "SIGKILL", "{record}");
    assert_eq!(record["reason"], "enough", "{record}");
    let again = service.ask(&["stop", &id]);
    assert_eq!(again.code, Some(0), "\n{again}");
    assert!(again.stderr.contains("had ended already"), "\n{again}");

    let one = service.say(&["start", "--", "sleep", "1000"]);
    let two = service.say(&["start", "--", "sleep", "1000"]);
    service.say(&["kill", &one, &two]);
    assert_eq!(service.say(&["ps", "-q"]), "");

    let script = "trap 'echo got; exit 5' USR1; echo ready; sleep 1000 & wait";
    let id = service.say(&["start", "--", "sh", "-c", script]);
    service.live(&["logs", "-f", &id]).wait_for("ready");
    let unknown = service.ask(&["signal", &id, "NONSENSE"]);
    assert_eq!(unknown.code, Some(125), "\n{unknown}");
    service.say(&["signal", &id, "USR1"]);
    assert_eq!(service.ask(&["wait", &id]).code, Some(5));
    assert_eq!(service.say(&["logs", &id]), "ready\ngot");
    let over = service.ask(&["signal", "--tree", &id, "USR1"]);
    assert_eq!(over.code, Some(125), "\n{over}");
}

fn a_run_through_the_daemon_is_like_one_without(world: &World) {
    let service = Service::start(world);
    let done = service
        .run([
            "sh",
            "-c",
            "tr a-z A-Z; echo err >&2; echo x > /etc/provost-tests-probe; exit 7",
        ])
        .input("input\n")
        .finish();
    assert_eq!(done.code, Some(7), "\n{done}");
    assert_eq!(done.text(), "INPUT\n", "\n{done}");
    assert!(
        done.stderr.starts_with("err\n") && done.stderr.contains("1 denial"),
        "\n{done}"
    );
    assert_eq!(done.record()["denied"], true, "\n{done}");
    let session = service.say(&["session", "open", "--name", "dev"]);
    let done = service
        .run(["sh", "-c", "exit 0"])
        .with(["--session", "dev", "--json"])
        .finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    assert_eq!(done.events().last().expect("events")["record"], *done.record());
    assert_eq!(done.record()["session"], session.as_str(), "\n{done}");
    let done = service.run(["true"]).with(["--session", "none"]).finish();
    assert_eq!(done.code, Some(125), "\n{done}");
    let id = service.say(&["ps", "-aq", "--session", "dev"]);
    assert_eq!(service.ask(&["wait", &id]).code, Some(0));
}

fn i3_a_run_through_the_daemon_drops_nothing_for_a_slow_reader(world: &World) {
    let service = Service::start(world);
    let flood = program("flood");
    let done = service
        .run([flood.as_str(), "4000000"])
        .with(["--max-output", "64K"])
        .small_output_pipe()
        .finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    assert_eq!(done.stdout.len(), 4_000_000, "\n{done}");
    provost_tests::check_pattern(&done.stdout, 0);
}

fn manual_pages_and_completions_cover_every_verb(world: &World) {
    let service = Service::start(world);
    let directory = world.path("work/man");
    world.make_directory(&directory);
    service.say(&["man", &directory.display().to_string()]);
    let completions = service.say(&["completions", "bash"]);
    for verb in ["start", "logs", "session-attach", "wait", "run", "serve"] {
        let page = std::fs::read_to_string(directory.join(format!("provost-{verb}.1")));
        assert!(page.is_ok_and(|page| page.contains(".SH")), "{verb} has no page");
        let word = verb.rsplit('-').next().unwrap_or_default();
        assert!(
            completions.contains(&format!(",{word})")),
            "{verb} is not completed"
        );
    }
}

both_users!(
    a_process_is_started_listed_waited_for_inspected_and_forgotten,
    processes_are_found_by_name_and_by_parts_of_ids,
    a_start_that_is_said_twice_starts_once,
    i5_a_start_is_held_by_the_same_policy_as_a_run,
    i3_logs_are_the_bytes_of_each_stream,
    i3_what_is_not_kept_is_told_as_a_gap,
    input_is_sent_and_followed_in_the_output_until_the_end,
    wait_gives_the_exit_code_that_run_gives,
    stop_kill_and_signal_reach_the_process,
    a_run_through_the_daemon_is_like_one_without,
    i3_a_run_through_the_daemon_drops_nothing_for_a_slow_reader,
    manual_pages_and_completions_cover_every_verb,
);
