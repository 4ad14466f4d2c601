//! Structured results: what a program reports is in its record, by its own word and not by its output, exactly once, and
//! whatever becomes of the daemon.

use std::path::Path;

use provost_tests::{
    LineClient, Live, Service, World, both_users, needs, provost, require, until_it_is_there,
};
use serde_json::{Value, json};

/// What the protocol says that a line of a client may have.
const FRAME_BYTES: usize = 8 << 20;

/// `provost report`, as programs find it.
fn reports() -> String {
    provost().display().to_string()
}

/// The result and its error in the record of a script that was asked for one.
fn result(world: &World, script: &str) -> (Value, Value) {
    let done = world.shell(script).with(["--report"]).finish();
    let record = done.record();
    assert_eq!(record["outcome"], "exited", "\n{done}");
    assert_eq!(record["denied"], false, "\n{done}");
    (record["result"].clone(), record["result_error"].clone())
}

fn what_a_program_writes_there_is_its_result_and_what_it_prints_is_not(world: &World) {
    let script =
        "echo '{\"result\":\"printed\"}'; echo '{\"b\":[1,2.5],\"a\":\"\u{e4}\"}' >&$PROVOST_REPORT_FD";
    let reported = (json!({ "a": "\u{e4}", "b": [1, 2.5] }), Value::Null);
    assert_eq!(result(world, script), reported);
    let verb = format!("{} report - <<E\n  {{\"a\": 1}}\n\nE\n", reports());
    assert_eq!(result(world, &verb), (json!({ "a": 1 }), Value::Null));
    // From far below, without a terminal or a parent.
    let script = format!("setsid sh -c '(exec {} report -7)'", reports());
    assert_eq!(result(world, &script), (json!(-7), Value::Null));
    for nothing in ["echo null >&3", "echo 7", "exec 3>&-", "echo >&3"] {
        assert_eq!(result(world, nothing), (Value::Null, Value::Null), "{nothing}");
    }
}

fn what_is_no_result_says_why_and_hostile_ones_cost_no_more(world: &World) {
    for (script, why) in [
        ("echo 1 >&3; echo 2 >&3", "it reported more than one value"),
        (
            "printf '\"\\377\"' >&3",
            "what it reported is not UTF-8 at byte 1",
        ),
        (
            "head -c 100000000 /dev/zero | tr '\\0' 1 >&3 2>/dev/null; true",
            "it reported more than 64 KiB",
        ),
        (
            "head -c 70000 /dev/urandom >&3 2>/dev/null; true",
            "it reported more than 64 KiB",
        ),
        (
            "printf '%5000s' | tr ' ' '[' >&3; printf '%5000s' | tr ' ' ']' >&3",
            "what it reported is not JSON: recursion limit exceeded",
        ),
        (
            "printf '%70s1%70s' | sed 's/ *1/[&/' | tr ' ' '[' >&3",
            "what it reported is not JSON",
        ),
    ] {
        let (value, error) = result(world, script);
        assert_eq!(value, Value::Null, "{script}");
        let error = error.as_str().expect("an error");
        assert!(error.starts_with(why), "{script}: {error}");
    }
    let done = world.run(["/none/such"]).with(["--report"]).finish();
    assert_eq!(done.record()["result_error"], Value::Null, "\n{done}");
}

/// Takes more than it is given: none of it works, whatever it does is bounded, and the record has one value or none.
const GREEDY: &str = r#"
import fcntl, mmap, os, sys
for greedy in (
    lambda: os.posix_fallocate(3, 0, 10 << 30),
    lambda: os.ftruncate(3, 10 << 30),
    lambda: os.ftruncate(3, 0),
    lambda: os.pwrite(3, b"x", 10 << 30),
):
    try:
        greedy()
    except OSError:
        continue
    sys.exit(1)
bytes = mmap.mmap(3, 4096)
bytes[:4] = b"[1] "
if sys.argv[2] == "late":
    # The file cannot be sealed now: what is there at the end is looked at, once.
    os.pwrite(3, b"\0" * 4, 0)
    assert os.system(sys.argv[1] + " report 7") == 0
    bytes[:4] = b"[2] "
else:
    assert os.system(sys.argv[1] + " report 7 2>/dev/null") != 0
if os.fork():
    os._exit(0)
os.close(3)
bytes[4:5] = b" "
"#;

fn who_takes_more_than_it_is_given_gets_nothing(world: &World) {
    require!(needs::command("python3"), "python3");
    let script = world.file("work/greedy.py", GREEDY);
    for (when, result) in [("early", json!([1])), ("late", json!([2]))] {
        let words = ["python3", &script, &reports(), when];
        let done = world.run(words).with(["--report", "--tree", "wait"]).finish();
        assert_eq!(done.code, Some(0), "\n{done}");
        assert_eq!(done.record()["result"], result, "\n{done}");
    }
}

/// 120 results of 60,000 bytes: more than one answer may have.
fn many_long_results_make_no_answer_longer_than_it_may_be(world: &World) {
    let mut service = Service::start(world);
    let items: Vec<String> = (1..=120).map(|item| item.to_string()).collect();
    let script = r#"printf '"%60000s"' "$1" >&3"#;
    let mut words = vec!["map", "-q", "-p", "unconfined", "--out", "o.jsonl"];
    words.extend(["--", "sh", "-c", script, "sh", "{}", ":::"]);
    words.extend(items.iter().map(String::as_str));
    let mut command = service.command(&words);
    command.env("PROVOST_STATE_DIR", world.path("home/state"));
    let done = Live::from_command(command, None).finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    let is_whole = |result: &Value, item: &str| {
        let text = result.as_str().unwrap_or_default();
        text.len() == 60_000 && text.trim_start() == item
    };
    // One by one they are told in full,
    let rows = world.content("work/o.jsonl");
    for (row, item) in rows.lines().zip(&items) {
        let row: Value = serde_json::from_str(row).expect("a row");
        assert!(is_whole(&row["result"], item), "{item}");
    }
    assert_eq!(rows.lines().count(), items.len());
    service.restart();
    let mut client = LineClient::connect(Path::new(&service.socket()));
    // and in pages,
    let (mut jobs, mut after, mut pages) = (Vec::new(), Value::Null, 0);
    loop {
        let page = client.call("job/list", json!({ "all": true, "after": after }));
        let page = page.expect("a page");
        assert!(page.to_string().len() < FRAME_BYTES);
        jobs.extend(page["jobs"].as_array().expect("jobs").clone());
        after = jobs.last().expect("a job")["job"].clone();
        pages += 1;
        if page["more"] == false {
            break;
        }
    }
    assert!(pages > 1);
    let item = |job: &Value| job["argv"][4].as_str().unwrap_or_default().to_owned();
    assert_eq!(jobs.iter().map(item).collect::<Vec<_>>(), items);
    assert!(jobs.iter().all(|job| is_whole(&job["end"]["result"], &item(job))));
    // but an answer about all of them says which it leaves out.
    let ids: Vec<&Value> = jobs.iter().map(|job| &job["job"]).collect();
    for method in ["job/wait", "job/cancel"] {
        let answer = client.call(method, json!({ "jobs": ids })).expect("an answer");
        assert!(answer.to_string().len() < FRAME_BYTES, "{method}");
        let told = answer["jobs"].as_array().expect("jobs");
        assert_eq!(told.len(), jobs.len());
        let (out, there): (Vec<_>, Vec<_>) = told
            .iter()
            .zip(&jobs)
            .partition(|(job, _)| job["end"]["result_left_out"] == true);
        assert!(!out.is_empty() && !there.is_empty(), "{method}");
        for (job, listed) in there {
            assert!(is_whole(&job["end"]["result"], &item(listed)));
        }
        let (left_out, listed) = out[0];
        assert_eq!(left_out["end"]["result"], Value::Null);
        let found = client
            .call("job/inspect", json!({ "job": left_out["job"] }))
            .expect("it");
        assert!(is_whole(&found["end"]["result"], &item(listed)));
        assert_eq!(found["record"]["result"], found["end"]["result"]);
    }
}

fn who_reports_twice_is_told_and_the_first_stands(world: &World) {
    let report = reports();
    let script = format!(
        "{report} report 1 && ! {report} report 2 && ! echo 3 >&3 && {{ {report} report 4; test $? = 125; }}"
    );
    let done = world.shell(&script).with(["--report"]).finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    assert!(done.stderr.contains("the first one stands"), "\n{done}");
    assert_eq!(done.record()["result"], 1, "\n{done}");

    // What is no result is not reported, and takes nobody's place.
    let script = format!(
        "! {report} report '{{' && ! {report} report '' && ! head -c 65537 /dev/zero | tr '\\0' 1 | {report} report - && {report} report true"
    );
    let done = world.shell(&script).with(["--report"]).finish();
    assert_eq!(
        (done.code, &done.record()["result"]),
        (Some(0), &json!(true)),
        "\n{done}"
    );

    // Of many at the same time one is the first.
    let script = format!(
        "for n in 1 2 3 4 5 6 7 8 9 10 11 12; do ({report} report $n 2>/dev/null && echo $n) & done; wait"
    );
    for _ in 0..3 {
        let done = world.shell(&script).with(["--report"]).finish();
        let winner: Value = serde_json::from_str(&done.text()).expect("one number");
        assert_eq!(done.record()["result"], winner, "\n{done}");
    }
}

fn who_was_not_asked_has_no_place_for_a_result(world: &World) {
    let script = format!(
        "test -z \"$PROVOST_REPORT_FD\" && ! test -e /proc/self/fd/3 && ! {} report 1",
        reports()
    );
    let done = world.shell(&script).env("PROVOST_REPORT_FD", "3").finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    assert!(done.stderr.contains("nobody asked this process"), "\n{done}");
    let record = done.record();
    assert_eq!(
        (&record["result"], &record["result_error"]),
        (&Value::Null, &Value::Null)
    );
}

fn i8_a_result_outlives_the_daemon_at_any_point(world: &World) {
    let mut service = Service::start(world);
    // It reports before, without or after the daemon that started it; and ends without or after it. (What asks
    // the daemon, as opening files for writing may, waits until there is one.)
    let script = "until [ -e $1 ]; do sleep 0.02; done; echo \"\\\"$1\\\"\" >&3; : > $1.done; until [ -e $2 ]; do sleep 0.02; done";
    let start = |policy: &str, report: &str, end: &str| {
        service.say(&[
            "start", "--report", "-p", policy, "--", "sh", "-c", script, "sh", report, end,
        ])
    };
    let ids = [
        (start("unconfined", "before", "without"), "before"),
        (start("unconfined", "without", "without"), "without"),
        (start("unconfined", "without", "after"), "without"),
        (start("workspace-write", "after", "after"), "after"),
    ];
    world.file("work/before", "");
    until_it_is_there(&world.path("work/before.done"));
    service.restart_after(|| {
        world.file("work/without", "");
        until_it_is_there(&world.path("work/without.done"));
    });
    world.file("work/after", "");
    let records = ids.map(|(id, result)| {
        let record = service.record(&id);
        assert_eq!(
            (&record["result"], &record["result_error"]),
            (&json!(result), &Value::Null)
        );
        assert_eq!(record["succeeded"], true, "{record}");
        (id, record)
    });
    service.restart();
    for (id, before) in records {
        assert_eq!(service.record(&id), before);
    }
}

fn a_jobs_end_and_the_rows_of_a_map_have_the_result(world: &World) {
    let mut service = Service::start(world);
    let job = service.say(&["job", "submit", "--report", "--", "sh", "-c", "echo [1] >&3"]);
    service.say(&["job", "wait", &job]);
    let job_end = |service: &Service<'_>| {
        let found: Value = serde_json::from_str(&service.say(&["job", "inspect", &job])).expect("JSON");
        found["end"].clone()
    };
    let end = job_end(&service);
    assert_eq!(
        (&end["result"], &end["result_error"]),
        (&json!([1]), &Value::Null),
        "{end}"
    );
    service.restart();
    assert_eq!(job_end(&service), end);

    let script = "case $1 in 3) echo x >&3;; 4) exit 4;; *) echo \"{{\\\"is\\\":$1}}\" >&3;; esac";
    let map = |out: &str| {
        let words = [
            "map", "-q", "--out", out, "--", "sh", "-c", script, "sh", "{}", ":::", "1", "2", "3", "4",
        ];
        let mut command = service.command(&words);
        command.env("PROVOST_STATE_DIR", world.path("home/state"));
        let done = Live::from_command(command, None).finish();
        assert_eq!(done.code, Some(1), "\n{done}");
        world.content(&format!("work/{out}"))
    };
    let rows = map("o.jsonl");
    let rows: Vec<Value> = rows
        .lines()
        .map(|line| serde_json::from_str(line).expect("a row"))
        .collect();
    let results: Vec<&Value> = rows.iter().map(|row| &row["result"]).collect();
    assert_eq!(
        results,
        [
            &json!({ "is": 1 }),
            &json!({ "is": 2 }),
            &Value::Null,
            &Value::Null
        ]
    );
    let error = rows[2]["result_error"].as_str().expect("an error");
    assert!(error.starts_with("what it reported is not JSON"), "{error}");
    assert_eq!(
        rows[3]["result_error"],
        Value::Null,
        "who says nothing has made no mistake"
    );

    let rows = map("o.csv");
    let lines: Vec<&str> = rows.lines().collect();
    assert!(lines[0].ends_with(",output_bytes,result,result_error"), "{rows}");
    assert!(lines[1].ends_with(",\"{\"\"is\"\":1}\","), "{rows}");
    assert!(lines[4].ends_with(",,"), "{rows}");
}

both_users!(
    what_a_program_writes_there_is_its_result_and_what_it_prints_is_not,
    what_is_no_result_says_why_and_hostile_ones_cost_no_more,
    who_takes_more_than_it_is_given_gets_nothing,
    many_long_results_make_no_answer_longer_than_it_may_be,
    who_reports_twice_is_told_and_the_first_stands,
    who_was_not_asked_has_no_place_for_a_result,
    i8_a_result_outlives_the_daemon_at_any_point,
    a_jobs_end_and_the_rows_of_a_map_have_the_result,
);
