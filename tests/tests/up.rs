//! `provost up`: a group of real processes, embedded and in a daemon.

use nix::sys::signal::Signal;
use provost_tests::{Finished, Service, User, World, both_users, require};
use serde_json::Value;

/// The events of the group itself, without those of its processes.
fn group_events(done: &Finished) -> Vec<Value> {
    done.events()
        .into_iter()
        .filter(|event| event["group"].is_string())
        .collect()
}

/// What happened, in order: `starting web 2`.
fn story(done: &Finished) -> Vec<String> {
    let told = group_events(done);
    let word = |event: &Value| {
        let kind = event["type"].as_str()?.strip_prefix("member_")?;
        Some(format!(
            "{kind} {} {}",
            event["member"].as_str()?,
            event["incarnation"]
        ))
    };
    told.iter().filter_map(word).collect()
}

fn records(done: &Finished) -> Vec<Value> {
    let ends = done
        .events()
        .into_iter()
        .filter(|event| event["type"] == "terminal");
    ends.map(|event| event["record"].clone()).collect()
}

fn output_passes_with_names_and_a_group_that_is_done_is_over(world: &World) {
    let file = "
        [[process]]
        name = 'one'
        command = ['sh', '-c', 'printf \"a\\nb\"; echo c >&2']
        restart = 'temporary'
        [[process]]
        name = 'other'
        command = ['sh', '-c', 'echo $MODE; pwd']
        restart = 'transient'
        env = { MODE = 'test' }
    ";
    let done = world.up(file, &[]).finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    let mut lines: Vec<String> = done.text().lines().map(str::to_owned).collect();
    lines.sort();
    let here = format!("other | {}", world.work().display());
    assert_eq!(
        lines,
        ["one   | a", "one   | b", here.as_str(), "other | test"],
        "\n{done}"
    );
    assert!(done.stderr.contains("one   | c\n"), "\n{done}");
    assert!(
        !done.stderr.contains('\x1b'),
        "colours where nobody sees them\n{done}"
    );
}

fn intensity_3_in_5_s_gives_up_at_the_fourth_crash_and_says_why(world: &World) {
    let file = "
        name = 'crashing'
        intensity = 3
        period = '5s'
        backoff = { first = '10ms' }
        [[process]]
        name = 'steady'
        command = ['sleep', '1000']
        [[process]]
        name = 'bad'
        command = ['sh', '-c', 'exit 7']
    ";
    let done = world.up(file, &["--json"]).finish();
    assert_eq!(done.code, Some(1), "\n{done}");
    let story = story(&done);
    let starts = story
        .iter()
        .filter(|word| word.starts_with("starting bad"))
        .count();
    assert_eq!(starts, 4, "{story:?}");
    assert_eq!(
        story.last().map(String::as_str),
        Some("ended steady 1"),
        "{story:?}"
    );
    let end = group_events(&done).pop().expect("an end");
    assert_eq!(end["cause"], "too_often", "{end}");
    let reason = end["reason"].as_str().expect("a reason");
    assert!(
        reason.contains("`bad`")
            && reason.contains("exit code 7")
            && reason.contains("3 restarts in 5s"),
        "{reason}"
    );
    assert_eq!(end["failed"], serde_json::json!(["bad"]), "{end}");
    assert!(done.stderr.contains(reason), "\n{done}");

    let records = records(&done);
    assert_eq!(records.len(), 5, "each incarnation has its own record");
    let mut previous = Value::Null;
    let bad = records
        .iter()
        .filter(|record| record["labels"]["member"] == "bad");
    for (number, record) in bad.enumerate() {
        let labels = &record["labels"];
        assert_eq!(labels["incarnation"], (number + 1).to_string(), "{labels}");
        assert_eq!(labels["previous"], previous, "{labels}");
        assert_eq!(labels["group"], "crashing", "{labels}");
        previous = record["process"].clone();
    }
}

/// Three members, of which the second crashes as soon as the third runs, once.
fn rest_for_one_restarts_what_is_behind_in_order(world: &World) {
    let file = "
        strategy = 'rest_for_one'
        [[process]]
        name = 'first'
        command = ['sleep', '1000']
        [[process]]
        name = 'second'
        command = ['sh', '-c', 'test -e crashed && exec sleep 1000; while ! test -e go; do sleep 0.02; done; touch crashed; exit 1']
        [[process]]
        name = 'third'
        command = ['sh', '-c', 'touch go; exec sleep 1000']
    ";
    let mut group = world.up(file, &["--json"]);
    // Its second incarnation is ready: the event of its start names the process between these.
    group.wait_for("\"incarnation\":2,\"member\":\"third\",\"time\"");
    group.signal(Signal::SIGINT);
    let done = group.finish();
    assert_eq!(done.code, Some(130), "\n{done}");
    let story = story(&done);
    let quiet: Vec<&str> = story
        .iter()
        .map(String::as_str)
        .filter(|word| !word.starts_with("ready"))
        .collect();
    assert_eq!(
        quiet,
        [
            "starting first 1",
            "starting second 1",
            "starting third 1",
            "ended second 1",
            "restarting second 1",
            "stopping third 1",
            "ended third 1",
            "starting second 2",
            "starting third 2",
            "stopping third 2",
            "ended third 2",
            "stopping second 2",
            "ended second 2",
            "stopping first 1",
            "ended first 1",
        ]
    );
}

fn a_second_interrupt_kills_what_does_not_stop(world: &World) {
    let file = "
        [[process]]
        name = 'stubborn'
        command = ['sh', '-c', 'trap \"echo asked\" TERM; echo up; while :; do sleep 0.05; done']
        options = ['--grace', '1h']
    ";
    let mut group = world.up(file, &[]);
    group.wait_for("stubborn | up");
    group.signal(Signal::SIGINT);
    group.wait_for("stubborn | asked");
    group.signal(Signal::SIGINT);
    let done = group.finish();
    assert_eq!(done.code, Some(130), "\n{done}");
}

fn members_wait_until_those_before_them_accept(world: &World) {
    let server = "
import os, socket, time
s = socket.socket(socket.AF_UNIX)
s.bind('db.sock')
while not os.path.exists('seen'): time.sleep(0.02)
s.listen()
open('listening', 'w')
while True: s.accept()
";
    let python = std::path::Path::new("/usr/bin/python3").exists();
    require!(python, "python3, which serves");
    world.file("work/server.py", server);
    let file = "
        [[process]]
        name = 'db'
        command = ['python3', 'server.py']
        ready = { unix = 'db.sock' }
        [[process]]
        name = 'web'
        command = ['sh', '-c', 'test -e listening']
        restart = 'temporary'
    ";
    let mut group = world.up(file, &["--json"]);
    group.wait_for("\"member_starting\"");
    world.file("work/seen", "");
    group.wait_for("\"outcome\":\"exited\"");
    group.signal(Signal::SIGTERM);
    let done = group.finish();
    assert_eq!(done.code, Some(143), "\n{done}");
    let web = records(&done)
        .into_iter()
        .find(|record| record["labels"]["member"] == "web")
        .expect("a record");
    assert_eq!(web["exit_code"], 0, "it started too early\n{done}");
}

fn what_is_not_ready_in_time_is_stopped_and_the_group_says_so(world: &World) {
    let file = "
        intensity = 0
        [[process]]
        name = 'mute'
        command = ['sleep', '1000']
        ready = { unix = 'never.sock', within = '200ms' }
        [[process]]
        name = 'never'
        command = ['sh', '-c', 'touch started']
    ";
    let done = world.up(file, &["--json"]).finish();
    assert_eq!(done.code, Some(1), "\n{done}");
    assert!(done.stderr.contains("it was not ready in time"), "\n{done}");
    assert!(!world.path("work/started").exists());
}

both_users!(
    output_passes_with_names_and_a_group_that_is_done_is_over,
    intensity_3_in_5_s_gives_up_at_the_fourth_crash_and_says_why,
    rest_for_one_restarts_what_is_behind_in_order,
    a_second_interrupt_kills_what_does_not_stop,
    members_wait_until_those_before_them_accept,
    what_is_not_ready_in_time_is_stopped_and_the_group_says_so,
);

#[test]
fn mistakes_in_the_file_are_told_with_their_line_and_nothing_starts() {
    let Some(world) = World::try_new(User::Ordinary) else {
        return;
    };
    for (file, line, why) in [
        ("strategy = 'one_for_none'", 1, "one_for_none"),
        ("intensty = 3", 1, "did you mean `intensity`?"),
        ("\nperiod = 'soon'", 2, "period"),
        ("[[process]]\nname = 'a b'\ncommand = ['x']", 2, "letters"),
        ("[[process]]\nname = 'a'\ncommand = []", 3, "empty"),
        (
            "[[process]]\nname = 'a'\ncommand = ['x']\noptions = ['--no-such']",
            3,
            "--no-such",
        ),
        (
            "[[process]]\nname = 'a'\ncommand = ['x']\npolicy = 'none-such'",
            3,
            "none-such",
        ),
        ("[[process]]\nname = 'a'\ncommand = ['x']\nready = { }", 4, "tcp"),
        (
            "[[process]]\nname = 'a'\ncommand = ['x']\nready = { tcp = 'db' }",
            4,
            "127.0.0.1:5432",
        ),
        (
            "[[process]]\nname = 'a'\ncommand = ['x']\noptions = ['--net', 'isolated']\nready = { tcp = '127.0.0.1:1' }",
            3,
            "isolated",
        ),
        (
            "[[process]]\nname = 'a'\ncommand = ['x']\noptions = ['--net', 'ask']",
            3,
            "--daemon",
        ),
        (
            "[[process]]\nname = 'a'\ncommand = ['touch', 'x']\n[[process]]\nname = 'a'\ncommand = ['x']",
            5,
            "before",
        ),
    ] {
        for words in [&["--check"][..], &[]] {
            let done = world.up(file, words).finish();
            assert_eq!(done.code, Some(125), "{file}\n{done}");
            let place = format!("group.toml:{line}:");
            assert!(
                done.stderr.contains(&place) && done.stderr.contains(why),
                "{file}\n{done}"
            );
        }
    }
    assert!(!world.path("work/x").exists());
    let good = "[[process]]\nname = 'a'\ncommand = ['touch', 'x']";
    let done = world.up(good, &["--check"]).finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    assert!(!world.path("work/x").exists());
}

fn a_group_in_a_daemon_does_the_same_and_goes_when_its_client_goes(world: &World) {
    let service = Service::start(world);
    let file = "
        name = 'there'
        intensity = 1
        backoff = { first = '10ms' }
        [[process]]
        name = 'steady'
        command = ['sleep', '1000']
        [[process]]
        name = 'bad'
        command = ['sh', '-c', 'echo out; exit 7']
    ";
    let socket = service.socket();
    let done = world.up(file, &["--socket", &socket]).finish();
    assert_eq!(done.code, Some(1), "\n{done}");
    assert_eq!(done.text(), "bad    | out\nbad    | out\n", "\n{done}");
    assert_eq!(service.say(&["ps", "-q"]), "");
    let ids = service.say(&["ps", "-aq", "--label", "group=there"]);
    assert_eq!(ids.lines().count(), 3, "{ids}");

    let file = "
        [[process]]
        name = 'left'
        command = ['sh', '-c', 'echo up; exec sleep 1000']
    ";
    let mut group = world.up(file, &["--socket", &socket]);
    group.wait_for("left | up");
    let id = service.say(&["ps", "-q"]);
    group.signal(Signal::SIGKILL);
    group.finish();
    let done = service.ask(&["wait", "--json", &id]);
    let record: Value = serde_json::from_str(&done.text()).expect("a record");
    assert_eq!(record["outcome"], "cancelled", "\n{done}");
}

both_users!(a_group_in_a_daemon_does_the_same_and_goes_when_its_client_goes);
