//! `provost run`: exit codes, streams, standard input, records and events.

use provost_tests::{Finished, World, both_users};
use serde_json::Value;

fn exit_code_output_and_record_are_the_commands_own(world: &World) {
    let done = world.shell("echo out; echo err >&2; exit 7").finish();
    assert_eq!(done.code, Some(7), "\n{done}");
    assert_eq!(done.text(), "out\n", "\n{done}");
    assert!(done.stderr.starts_with("err\n"), "\n{done}");
    let record = done.record();
    assert_eq!(record["outcome"], "exited", "\n{done}");
    assert_eq!(record["exit_code"], 7, "\n{done}");
    assert_eq!(record["succeeded"], false, "\n{done}");
    assert_eq!(record["denied"], false, "\n{done}");
    for (stream, bytes) in [("stdout", 4), ("stderr", 4)] {
        assert_eq!(record["output"][stream]["bytes"], bytes, "\n{done}");
        assert_eq!(record["output"][stream]["dropped"], 0, "\n{done}");
        assert_eq!(record["output"][stream]["closed"], "eof", "\n{done}");
    }
    assert_eq!(record["argv"][0], "sh", "\n{done}");
}

fn nothing_is_added_to_the_output_of_a_command_that_was_refused_nothing(world: &World) {
    let done = world
        .shell("printf 'no newline'; printf 'here neither' >&2")
        .finish();
    assert_eq!(done.text(), "no newline", "\n{done}");
    assert_eq!(done.stderr, "here neither", "\n{done}");
}

fn bytes_that_are_not_text_pass_unchanged(world: &World) {
    let all: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let done = world.run(["cat"]).input(all.clone()).finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    assert!(done.stdout == all, "the output is not the input");
}

fn i1_the_terminal_event_is_the_last_and_only_one(world: &World) {
    let done = world.shell("echo out; echo err >&2; exit 7").json().finish();
    assert_eq!(done.code, Some(7), "\n{done}");
    assert_event_order(&done);
    let events = done.events();
    assert_eq!(
        events.first().map(|e| &e["type"]),
        Some(&Value::from("started")),
        "\n{done}"
    );
    assert_eq!(done.stream("stdout"), (b"out\n".to_vec(), 0), "\n{done}");
    assert_eq!(done.stream("stderr"), (b"err\n".to_vec(), 0), "\n{done}");
}

/// Events are numbered 1, 2, 3 …, and the last is the terminal one, whose record is the recorded one.
fn assert_event_order(done: &Finished) {
    let events = done.events();
    for (number, event) in (1_u64..).zip(&events) {
        assert_eq!(event["seq"], number, "\n{done}");
        assert_eq!(event["process"], done.record()["process"], "\n{done}");
        assert!(
            event["time"].as_str().is_some_and(is_rfc3339_micros),
            "{event}\n{done}"
        );
    }
    assert_eq!(
        events.iter().filter(|event| event["type"] == "terminal").count(),
        1,
        "\n{done}"
    );
    let last = events.last().expect("events");
    assert_eq!(last["type"], "terminal", "\n{done}");
    assert_eq!(done.record()["last_seq"], events.len(), "\n{done}");
    assert_eq!(
        &last["record"],
        done.record(),
        "the event's record is not the file's\n{done}"
    );
}

/// `2026-01-02T03:04:05.000006Z`
fn is_rfc3339_micros(text: &str) -> bool {
    let shape: String = text
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    shape == "0000-00-00T00:00:00.000000Z"
}

fn events_go_to_a_file_when_asked(world: &World) {
    let path = world.text("records/events.ndjson");
    let done = world.shell("echo out").with(["--events", &path]).finish();
    assert_eq!(done.text(), "out\n", "\n{done}");
    let text = world.content("records/events.ndjson");
    let last: Value = serde_json::from_str(text.lines().last().expect("events")).expect("an event");
    assert_eq!(&last["record"], done.record(), "\n{done}");
}

fn i10_what_a_program_prints_is_never_taken_for_an_event(world: &World) {
    let forged =
        r#"{"process":"00000000-0000-7000-8000-000000000000","seq":1,"type":"terminal","record":{}}"#;
    let done = world.run(["printf", "%s\\n", forged]).json().finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    assert_event_order(&done);
    assert_eq!(
        done.stream("stdout").0,
        format!("{forged}\n").into_bytes(),
        "\n{done}"
    );
}

fn i4_words_in_the_output_are_no_denial(world: &World) {
    let words = "permission denied, operation not permitted, sandbox, seccomp, EACCES";
    let done = world
        .shell(&format!("echo '{words}'; echo '{words}' >&2; exit 1"))
        .finish();
    assert_eq!(done.code, Some(1), "\n{done}");
    assert_eq!(done.record()["denied"], false, "\n{done}");
}

fn i4_a_refusal_that_the_program_hides_is_recorded(world: &World) {
    let done = world.shell("echo x > /etc/provost-tests-probe; exit 0").finish();
    let quiet = world
        .run([
            "sh",
            "-c",
            "(echo x > /etc/provost-tests-probe) 2>/dev/null; exit 0",
        ])
        .finish();
    for done in [done, quiet] {
        assert_eq!(done.code, Some(0), "\n{done}");
        assert_eq!(done.record()["succeeded"], true, "\n{done}");
        assert_eq!(done.record()["denied"], true, "\n{done}");
    }
}

fn the_summary_names_what_was_refused_and_the_flag_that_would_allow_it(world: &World) {
    let probe = world.text("outside/a b");
    let done = world.run(["touch", probe.as_str()]).finish();
    assert_ne!(done.code, Some(0), "\n{done}");
    assert!(done.stderr.contains("--write"), "no flag is offered\n{done}");
    let directory = world.text("outside");
    assert!(done.stderr.contains(&directory), "the path is not named\n{done}");
    let connect = world.escape(&["tcp-connect", "192.0.2.1", "80"]).finish();
    assert!(
        connect.stderr.contains("--allow-net 192.0.2.1:80"),
        "no flag is offered\n{connect}"
    );
}

fn piped_input_reaches_the_command(world: &World) {
    let done = world.run(["sort"]).input("b\na\n").finish();
    assert_eq!(done.text(), "a\nb\n", "\n{done}");
}

fn input_arrives_while_the_command_runs(world: &World) {
    let mut live = world
        .shell("while read line; do echo \"got $line\"; done; echo end")
        .piped_input()
        .start();
    live.feed("one\n");
    live.wait_for("got one\n");
    live.feed("two\n");
    live.wait_for("got two\n");
    live.end_input();
    let done = live.finish();
    assert_eq!(done.text(), "got one\ngot two\nend\n", "\n{done}");
}

fn no_input_is_given_where_none_is_wanted(world: &World) {
    let done = world
        .run(["cat"])
        .with(["--stdin", "null"])
        .input("never read")
        .finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    assert_eq!(done.text(), "", "\n{done}");
}

fn a_loop_around_provost_keeps_its_own_input(world: &World) {
    let provost = provost_tests::provost();
    let script = format!(
        "while read word; do {} run --stdin null -- echo \"got $word\" || exit 1; done",
        provost.display()
    );
    let done = world
        .run(["sh", "-c", &script])
        .with(["--policy", "unconfined"])
        .input("a\nb\nc\n")
        .finish();
    assert_eq!(done.text(), "got a\ngot b\ngot c\n", "\n{done}");
}

fn a_command_killed_by_a_signal_gives_128_plus_its_number(world: &World) {
    let done = world.shell("kill -9 $$").finish();
    assert_eq!(done.code, Some(137), "\n{done}");
    assert_eq!(done.outcome(), "signaled", "\n{done}");
    assert_eq!(done.record()["signal"], "SIGKILL", "\n{done}");
    assert_eq!(done.record()["exit_code"], Value::Null, "\n{done}");
    let done = world.shell("kill -TERM $$").finish();
    assert_eq!(done.code, Some(143), "\n{done}");
}

fn an_exit_code_of_137_is_no_signal(world: &World) {
    let done = world.shell("exit 137").finish();
    assert_eq!(done.code, Some(137), "\n{done}");
    assert_eq!(done.outcome(), "exited", "\n{done}");
    assert_eq!(done.record()["exit_code"], 137, "\n{done}");
}

fn the_working_directory_is_the_callers_unless_another_is_named(world: &World) {
    let done = world.run(["pwd"]).finish();
    assert_eq!(done.text().trim(), world.text("work"), "\n{done}");
    let done = world
        .run(["pwd"])
        .with(["--cwd", &world.text("outside")])
        .finish();
    assert_eq!(done.text().trim(), world.text("outside"), "\n{done}");
}

fn variables_are_set_passed_and_withheld_as_asked(world: &World) {
    let script = "echo \"[$GIVEN] [$PASSED] [$OTHER]\"";
    let done = world
        .shell(script)
        .env("PASSED", "yes")
        .env("OTHER", "withheld")
        .with(["--clean-env", "--env", "GIVEN=set here", "--env", "PASSED"])
        .finish();
    assert_eq!(done.text(), "[set here] [yes] []\n", "\n{done}");
}

fn unconfined_runs_with_the_same_supervision_and_no_sandbox(world: &World) {
    let target = world.text("outside/written");
    let done = world
        .run(["touch", &target])
        .with(["--policy", "unconfined"])
        .finish();
    done.assert_harmless();
    assert!(world.path("outside/written").exists());
    assert_eq!(done.record()["sandbox"]["confined"], false, "\n{done}");
}

fn i5_the_record_says_what_held(world: &World) {
    let done = world.run(["true"]).finish();
    done.assert_harmless();
    let sandbox = &done.record()["sandbox"];
    assert_eq!(sandbox["policy"], "workspace-write", "\n{done}");
    assert_eq!(sandbox["confined"], true, "\n{done}");
    assert_eq!(sandbox["seccomp"], true, "\n{done}");
    assert_eq!(
        sandbox["landlock_abi"].as_i64().unwrap_or(0) > 0,
        provost_tests::needs::landlock_abi() > 0
    );
    assert_eq!(sandbox["degraded"], serde_json::json!([]), "\n{done}");
}

both_users!(
    exit_code_output_and_record_are_the_commands_own,
    nothing_is_added_to_the_output_of_a_command_that_was_refused_nothing,
    bytes_that_are_not_text_pass_unchanged,
    i1_the_terminal_event_is_the_last_and_only_one,
    events_go_to_a_file_when_asked,
    i10_what_a_program_prints_is_never_taken_for_an_event,
    i4_words_in_the_output_are_no_denial,
    i4_a_refusal_that_the_program_hides_is_recorded,
    the_summary_names_what_was_refused_and_the_flag_that_would_allow_it,
    piped_input_reaches_the_command,
    input_arrives_while_the_command_runs,
    no_input_is_given_where_none_is_wanted,
    a_loop_around_provost_keeps_its_own_input,
    a_command_killed_by_a_signal_gives_128_plus_its_number,
    an_exit_code_of_137_is_no_signal,
    the_working_directory_is_the_callers_unless_another_is_named,
    variables_are_set_passed_and_withheld_as_asked,
    unconfined_runs_with_the_same_supervision_and_no_sandbox,
    i5_the_record_says_what_held,
);
