//! Fan-out: one command for each of many items, and what becomes of each.

#![allow(clippy::disallowed_methods, reason = "clients are run beside the test")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use provost_tests::{DEADLINE, Finished, Live, Service, World, both_users};
use serde_json::Value;

/// `provost map WORDS`, with maps kept in the world.
fn map(service: &Service, world: &World, words: &[&str]) -> Live {
    let mut command = service.command(&[&["map"], words].concat());
    command.env("PROVOST_STATE_DIR", world.path("home/state"));
    Live::from_command(command, None)
}

fn mapped(service: &Service, world: &World, words: &[&str]) -> Finished {
    map(service, world, words).finish()
}

/// The rows of a file of JSON lines.
fn rows(world: &World, name: &str) -> Vec<Value> {
    let text = world.content(name);
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a row"))
        .collect()
}

/// The id of the map that a client waits for.
fn id(world: &World) -> String {
    let maps = std::fs::read_dir(world.path("home/state/maps")).expect("maps");
    let mut ids: Vec<String> = maps
        .map(|entry| entry.expect("a map").file_name().into_string().expect("an id"))
        .collect();
    ids.sort();
    ids.pop().expect("a map")
}

/// Waits until there are so many files in a directory of the world.
fn until_there_are(world: &World, directory: &str, count: usize) {
    // A thousand sandboxes take their time on a machine that does other things, too.
    let deadline = Instant::now() + 2 * DEADLINE;
    let (_never, pause) = std::sync::mpsc::channel::<()>();
    while std::fs::read_dir(world.path(directory))
        .expect("a directory")
        .count()
        < count
    {
        assert!(Instant::now() < deadline, "never so many in {directory}");
        // Nobody tells; between two looks others shall have the processor.
        let _ = pause.recv_timeout(Duration::from_millis(20));
    }
}

fn a_table_of_a_hundred_rows_gives_a_row_for_each_in_order_and_says_what_became_of_it(world: &World) {
    let service = Service::start(world);
    let mut table = "name,kind\r\n".to_owned();
    for number in 1..=100 {
        let kind = match number {
            1..=10 => "fails",
            50..=54 => "denied",
            98..=100 => "hangs",
            _ => "well",
        };
        table.push_str(&format!("cat_{number},{kind}\r\n"));
    }
    world.file("work/cats.csv", &table);
    let script = r#"
        echo "$1 says miaow"
        case $2 in
            fails) exit 3;;
            denied) (: > "$3") || exit 4;;
            hangs) exec sleep 1000;;
        esac"#;
    let outside = world.text("outside/x");
    let words = [
        "--csv",
        "cats.csv",
        "--out",
        "out.csv",
        "-j",
        "64",
        "--timeout",
        "20s",
        "--",
        "sh",
        "-c",
        script,
        "sh",
        "{name}",
        "{kind}",
        &outside,
    ];
    let done = mapped(&service, world, &words);
    assert_eq!(done.code, Some(18), "\n{done}");
    assert_eq!(done.text(), "", "what goes to a file is not printed\n{done}");
    for said in ["82 succeeded", "10 failed", "5 denied", "3 timed out"] {
        assert!(done.stderr.contains(said), "{said}\n{done}");
    }
    let text = world.content("work/out.csv");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 101, "{text}");
    assert!(
        lines[0].starts_with("name,kind,outcome,reason,exit_code,signal,denied,"),
        "{text}"
    );
    for (number, line) in (1..).zip(&lines[1..]) {
        let fields: Vec<&str> = line.split(',').collect();
        let name = format!("cat_{number}");
        assert_eq!(fields[0], name, "{line}");
        let (outcome, code, denied) = match fields[1] {
            "fails" => ("exited", "3", "false"),
            "denied" => ("exited", "4", "true"),
            "hangs" => ("timed_out", fields[4], "false"),
            _ => ("exited", "0", "false"),
        };
        assert_eq!(
            (fields[2], fields[4], fields[6]),
            (outcome, code, denied),
            "{line}"
        );
        assert!(line.contains(&format!("{name} says miaow")), "{line}");
    }
}

fn it_ends_with_its_last_item_whatever_else_ends_or_goes_on(world: &World) {
    let service = Service::start(world);
    // Another map, and another group, that go on and in which something ends.
    let mut other = map(
        &service,
        world,
        &[
            "-k",
            "--",
            "sh",
            "-c",
            "echo $1; [ $1 = a ] || exec sleep 1000",
            "sh",
            ":::",
            "a",
            "b",
        ],
    );
    other.wait_for("a\n");
    world.make_directory(&world.path("work/gates"));
    let begun = Instant::now();
    let mut waiting = map(
        &service,
        world,
        &[
            "-j",
            "2",
            "--",
            "sh",
            "-c",
            "echo at $1; : > gates/$1; until [ -e gates/open ]; do sleep 0.05; done",
            "sh",
            "{}",
            ":::",
            "1",
            "2",
        ],
    );
    until_there_are(world, "work/gates", 2);
    let third = mapped(&service, world, &["--", "true", ":::", "x"]);
    assert_eq!(third.code, Some(0), "\n{third}");
    world.file("work/gates/open", "");
    let opened = begun.elapsed();
    waiting.wait_for("at ");
    let done = waiting.finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    let waited = done.elapsed.saturating_sub(opened);
    assert!(
        waited.as_secs() < 10,
        "it ended {waited:?} after its last item\n{done}"
    );
    let text = done.text();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["at 1", "at 2"]);

    other.signal(Signal::SIGTERM);
    let left = other.finish();
    assert_eq!(left.code, Some(143), "\n{left}");
    assert!(left.stderr.contains("the items go on"), "\n{left}");
}

fn outputs_are_printed_whole_and_in_order_where_that_is_wanted(world: &World) {
    let service = Service::start(world);
    let script = "[ $1 = 1 ] && sleep 0.5; echo begin $1; echo end $1; echo err $1 >&2";
    let done = mapped(
        &service,
        world,
        &[
            "-k", "-j", "8", "--", "sh", "-c", script, "sh", "{}", ":::", "1", "2", "3", "4",
        ],
    );
    assert_eq!(done.code, Some(0), "\n{done}");
    let wanted: String = (1..=4)
        .map(|number| format!("begin {number}\nend {number}\n"))
        .collect();
    assert_eq!(done.text(), wanted, "\n{done}");
    assert!(done.stderr.contains("err 3\n"), "\n{done}");
}

fn items_come_from_arguments_lines_and_json_and_never_reach_a_shell(world: &World) {
    let service = Service::start(world);
    world.file("work/lines", "a b\n\n$(touch pwned)\n; touch pwned\n");
    let done = mapped(
        &service,
        world,
        &["-k", "--lines", "lines", "--", "printf", "<%s>", "{n}", "-{}-"],
    );
    assert_eq!(
        done.text(),
        "<1><-a b-><2><-$(touch pwned)-><3><-; touch pwned->",
        "\n{done}"
    );
    assert!(!world.path("work/pwned").exists());

    world.file(
        "work/t.jsonl",
        "{\"id\":7,\"name\":\"x y\"}\n{\"id\":8,\"name\":\"{id}\"}\n",
    );
    let done = mapped(
        &service,
        world,
        &[
            "-k",
            "--jsonl",
            "t.jsonl",
            "--out",
            "o.jsonl",
            "--",
            "printf",
            "%s",
            "{id}:{name}",
        ],
    );
    assert_eq!(done.code, Some(125), "-k is about printing\n{done}");
    let done = mapped(
        &service,
        world,
        &[
            "--jsonl",
            "t.jsonl",
            "--out",
            "o.jsonl",
            "--",
            "printf",
            "%s",
            "{id}:{name}",
        ],
    );
    assert_eq!(done.code, Some(0), "\n{done}");
    let rows = rows(world, "work/o.jsonl");
    assert_eq!(rows[0]["input"], serde_json::json!({ "id": 7, "name": "x y" }));
    assert_eq!(
        (&rows[0]["output"], &rows[1]["output"]),
        (&"7:x y".into(), &"8:{id}".into())
    );
    // Without a daemon's help: what is wrong is told before anything starts.
    for (words, said) in [
        (&["--", "touch", "{nam}", ":::", "x"][..], "there is no {nam}"),
        (&["--csv", "missing.csv", "--", "touch", "{}"], "missing.csv"),
        (
            &["--jsonl", "lines", "--", "touch", "{}"],
            "lines, line 1: it is no JSON",
        ),
        (
            &["--", "sh", "-c", "touch {}", ":::", "x"],
            "would read as commands",
        ),
        (&["--out", "rows.txt", "--", "touch", ":::", "x"], ".jsonl"),
        (&["--halt", "never", "--", "touch", ":::", "x"], "now,fail=N"),
        (&[":::", "x"], "say the command"),
    ] {
        let done = mapped(&service, world, words);
        assert_eq!(done.code, Some(125), "\n{done}");
        assert!(done.stderr.contains(said), "{said}\n{done}");
    }
    assert!(!world.path("work/x").exists());
    let done = mapped(
        &service,
        world,
        &["--out", "none.csv", "--lines", "/dev/null", "--", "touch"],
    );
    assert_eq!(
        (done.code, world.content("work/none.csv").lines().count()),
        (Some(0), 1),
        "\n{done}"
    );
}

fn each_item_has_its_files_and_its_record_in_a_directory(world: &World) {
    let service = Service::start(world);
    let done = mapped(
        &service,
        world,
        &[
            "--results",
            "r",
            "--out",
            "o.csv",
            "--",
            "sh",
            "-c",
            "echo out $1; echo err $1 >&2; exit $1",
            "sh",
            "{}",
            ":::",
            "0",
            "5",
        ],
    );
    assert_eq!(done.code, Some(1), "\n{done}");
    assert_eq!(world.content("work/r/2/stdout"), "out 5\n");
    assert_eq!(world.content("work/r/2/stderr"), "err 5\n");
    let record: Value = serde_json::from_str(&world.content("work/r/2/record.json")).expect("a record");
    assert_eq!(
        (&record["exit_code"], &record["outcome"]),
        (&5.into(), &"exited".into())
    );
    let rows = world.content("work/o.csv");
    assert!(rows.contains(&world.text("work/r/1/stdout")), "{rows}");
}

fn a_map_is_given_up_after_failures_and_resume_goes_on_with_the_rest(world: &World) {
    let service = Service::start(world);
    world.make_directory(&world.path("work/ran"));
    let items: Vec<String> = (1..=40).map(|number| number.to_string()).collect();
    let script = r#"echo x >> ran/$1; case $1 in 3) [ -e mended ];; 1) exec sleep 1000;; esac"#;
    let tail: Vec<&str> = ["--", "sh", "-c", script, "sh", "{}", ":::"]
        .into_iter()
        .chain(items.iter().map(String::as_str))
        .collect();
    let words = [
        &["-j", "2", "--out", "o.jsonl", "--halt", "now,fail=1"],
        &tail[..],
    ]
    .concat();
    let done = mapped(&service, world, &words);
    assert_eq!(done.code, Some(1), "\n{done}");
    assert!(done.stderr.contains("given up"), "\n{done}");
    let before = rows(world, "work/o.jsonl");
    assert_eq!(before.len(), 40);
    assert_eq!(
        (&before[2]["outcome"], &before[2]["exit_code"]),
        (&"exited".into(), &1.into())
    );
    assert_eq!(before[0]["outcome"], "cancelled");
    assert_eq!(
        (&before[39]["outcome"], &before[39]["attempts"]),
        (&"cancelled".into(), &0.into())
    );
    assert!(!world.path("work/ran/40").exists());

    // What was given up runs now; what has ended does not run again.
    world.file("work/go", "");
    let words = [
        &[
            "--out",
            "o.jsonl",
            "--resume",
            "--halt",
            "soon,fail=100%",
            "-j",
            "8",
        ],
        &tail[..],
    ]
    .concat();
    let mut resumed = map(&service, world, &words);
    until_there_are(world, "work/ran", 40);
    let id = id(world);
    let held = mapped(&service, world, &["--resume", &id]);
    assert!(
        held.stderr.contains("another client waits for this map"),
        "\n{held}"
    );
    let listed = service.say(&["ps", "-q"]);
    service.say(&["stop", listed.lines().last().expect("the one that sleeps")]);
    resumed.end_input();
    let done = resumed.finish();
    assert_eq!(done.code, Some(2), "\n{done}");
    let after = rows(world, "work/o.jsonl");
    assert_eq!(after[2], before[2]);
    assert_eq!(world.content("work/ran/3"), "x\n");
    assert_eq!(world.content("work/ran/40"), "x\n");
    assert_eq!(after.iter().filter(|row| row["succeeded"] == true).count(), 38);
}

fn what_fails_is_tried_again_as_often_as_was_said(world: &World) {
    let service = Service::start(world);
    let script = r#"echo x >> tries; [ "$(wc -l < tries)" -ge 3 ]"#;
    let done = mapped(
        &service,
        world,
        &[
            "--retries",
            "2",
            "--out",
            "o.jsonl",
            "--",
            "sh",
            "-c",
            script,
            "sh",
            ":::",
            "a",
        ],
    );
    assert_eq!(done.code, Some(0), "\n{done}");
    let row = &rows(world, "work/o.jsonl")[0];
    assert_eq!(
        (&row["attempts"], &row["succeeded"]),
        (&3.into(), &true.into()),
        "{row}"
    );
    assert!(done.stderr.contains("1 tried again"), "\n{done}");
}

/// How many items a map has that is interrupted: `PROVOST_TEST_ITEMS`, or few enough for every run of the tests.
fn many() -> usize {
    let wanted = std::env::var("PROVOST_TEST_ITEMS").map(|text| text.parse().expect("a number"));
    wanted.unwrap_or(250)
}

/// What a map of many items does, each of which says in a file that it ran.
fn map_of_many(world: &World) -> Vec<String> {
    world.make_directory(&world.path("work/ran"));
    let items: String = (1..=many()).map(|number| format!("{number}\n")).collect();
    world.file("work/items", &items);
    let words = [
        "-j",
        "8",
        "--lines",
        "items",
        "--out",
        "o.jsonl",
        "--",
        "sh",
        "-c",
        "echo x >> ran/$1; echo ran $1",
        "sh",
        "{}",
    ];
    words.map(str::to_owned).to_vec()
}

/// That each item ran once and has one row that says so.
fn check_many(world: &World, done: &Finished) {
    assert_eq!(done.code, Some(0), "\n{done}");
    let rows = rows(world, "work/o.jsonl");
    assert_eq!(rows.len(), many());
    let mut jobs = BTreeSet::new();
    let mut again = 0;
    for (number, row) in (1..).zip(&rows) {
        assert_eq!(row["item"], number, "{row}");
        assert_eq!(row["output"], format!("ran {number}"), "{row}");
        assert_eq!(world.content(&format!("work/ran/{number}")), "x\n", "{row}");
        again += usize::from(row["attempts"] != 1);
        assert!(
            jobs.insert(row["job"].as_str().expect("a job").to_owned()),
            "{row}"
        );
    }
    // Those were caught between the intent and the start, and the summary says how many.
    assert!(again <= 8, "{again} were tried again");
    assert_eq!(
        again > 0,
        done.stderr.contains(&format!("{again} tried again")),
        "\n{done}"
    );
}

fn i8_whoever_waits_for_a_map_goes_on_waiting_when_its_daemon_is_killed(world: &World) {
    let mut service = Service::start(world);
    let words = map_of_many(world);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let waiting = map(&service, world, &words);
    until_there_are(world, "work/ran", many() / 5);
    service.restart();
    until_there_are(world, "work/ran", many() / 2);
    service.restart();
    check_many(world, &waiting.finish());
}

fn i8_a_map_goes_on_without_its_client_and_daemon_and_resume_runs_nothing_again(world: &World) {
    let mut service = Service::start(world);
    let words = map_of_many(world);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let client = map(&service, world, &words);
    until_there_are(world, "work/ran", many() / 5);
    client.signal(Signal::SIGKILL);
    client.finish();
    assert!(
        !world.path("work/o.jsonl").exists(),
        "it is there when all is over, and not before"
    );
    until_there_are(world, "work/ran", many() * 3 / 10);
    service.restart();
    let client = map(&service, world, &[&["--resume"], &words[..]].concat());
    until_there_are(world, "work/ran", many() * 3 / 5);
    client.signal(Signal::SIGKILL);
    client.finish();
    let id = id(world);
    check_many(world, &mapped(&service, world, &["--resume", &id]));
    // And once more, when nothing is left to do.
    std::fs::remove_file(world.path("work/o.jsonl")).expect("the rows");
    check_many(world, &mapped(&service, world, &["--resume", &id]));
}

fn without_a_daemon_it_says_how_to_start_one_and_keeps_no_map(world: &World) {
    let mut service = Service::start(world);
    service.die();
    let done = mapped(&service, world, &["--", "true", ":::", "x"]);
    assert_eq!(done.code, Some(125), "\n{done}");
    assert!(done.stderr.contains("provost serve"), "\n{done}");
    let maps: PathBuf = world.path("home/state/maps");
    assert_eq!(std::fs::read_dir(maps).expect("maps").count(), 0);
}

both_users!(
    i8_whoever_waits_for_a_map_goes_on_waiting_when_its_daemon_is_killed,
    a_table_of_a_hundred_rows_gives_a_row_for_each_in_order_and_says_what_became_of_it,
    it_ends_with_its_last_item_whatever_else_ends_or_goes_on,
    outputs_are_printed_whole_and_in_order_where_that_is_wanted,
    items_come_from_arguments_lines_and_json_and_never_reach_a_shell,
    each_item_has_its_files_and_its_record_in_a_directory,
    a_map_is_given_up_after_failures_and_resume_goes_on_with_the_rest,
    what_fails_is_tried_again_as_often_as_was_said,
    i8_a_map_goes_on_without_its_client_and_daemon_and_resume_runs_nothing_again,
    without_a_daemon_it_says_how_to_start_one_and_keeps_no_map,
);
