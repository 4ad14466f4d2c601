//! Jobs that come after others: chains, and paths that part and meet again.

use std::collections::{BTreeMap, BTreeSet};

use provost_tests::{LineClient, Served, World, both_users};
use serde_json::{Value, json};

use super::{follow, submit, until, wait};

both_users! {
    i8_chains_and_diamonds_are_decided_as_they_should_be_over_kills_of_the_daemon,
}

/// Each job and what it comes after. All but the first write their names down and succeed.
const AFTER: [(&str, &[(&str, &str)]); 11] = [
    ("top", &[]),
    // A chain.
    ("one", &[("top", "success")]),
    ("two", &[("one", "success")]),
    ("three", &[("two", "end")]),
    ("four", &[("three", "failure")]),
    ("five", &[("four", "failure")]),
    // A diamond, and what else can be said where its sides meet.
    ("left", &[("top", "success")]),
    ("right", &[("top", "failure")]),
    ("both", &[("left", "success"), ("right", "success")]),
    ("left and then right", &[("left", "success"), ("right", "end")]),
    ("either", &[("left", "end"), ("right", "end"), ("top", "end")]),
];

/// Those that are skipped where the first one exits with this code: because of which, which did not what.
fn skipped(code: i32) -> BTreeMap<&'static str, (&'static str, &'static str)> {
    let always = [
        ("four", ("three", "did not fail")),
        // What was skipped has not failed.
        ("five", ("four", "did not fail")),
    ];
    let others = match code {
        0 => vec![
            ("right", ("top", "did not fail")),
            ("both", ("right", "did not succeed")),
        ],
        _ => vec![
            ("one", ("top", "did not succeed")),
            ("two", ("one", "did not succeed")),
            ("left", ("top", "did not succeed")),
            ("both", ("left", "did not succeed")),
            ("left and then right", ("left", "did not succeed")),
        ],
    };
    always.into_iter().chain(others).collect()
}

fn i8_chains_and_diamonds_are_decided_as_they_should_be_over_kills_of_the_daemon(world: &World) {
    for code in [0, 1] {
        let mut daemon = Served::start(world);
        let mut client = LineClient::connect(daemon.socket());
        follow(&mut client, Value::Null);
        let mut ids: BTreeMap<&str, String> = BTreeMap::new();
        for (name, after) in AFTER {
            let script = match name {
                "top" => format!("while ! test -e go-{code}; do sleep 0.02; done; exit {code}"),
                other => format!("echo '{other}' >> ran-{code}"),
            };
            let after: Vec<Value> = after
                .iter()
                .map(|(job, on)| json!({ "job": ids[job], "on": on }))
                .collect();
            let more = json!({ "after": after, "group": "flow" });
            let id = submit(&mut client, world, &["sh", "-c", &script], more);
            ids.insert(name, id);
        }
        until(&mut client, &ids["top"], "running");
        // Once while everything waits, and once when it is decided who may go on, and nobody has.
        daemon.crash();
        daemon = Served::start(world);
        let mut client = LineClient::connect(daemon.socket());
        let pause = |client: &mut LineClient, paused: bool| {
            let asked = json!({ "group": "flow", "paused": paused });
            client.call("job/group", asked).unwrap();
        };
        pause(&mut client, true);
        world.file(&format!("work/go-{code}"), "");
        assert_eq!(wait(&mut client, &ids["top"])["end"]["exit_code"], code);
        daemon.crash();
        daemon = Served::start(world);
        let mut client = LineClient::connect(daemon.socket());
        pause(&mut client, false);

        let ended: BTreeMap<&str, Value> = ids
            .iter()
            .map(|(name, id)| (*name, wait(&mut client, id)))
            .collect();
        let skipped = skipped(code);
        for (name, after) in AFTER.iter().skip(1) {
            let end = &ended[name]["end"];
            match skipped.get(name) {
                Some((because, what)) => {
                    assert_eq!(end["outcome"], "skipped", "{name}: {end}");
                    let why = format!("job {} {what}", ids[because]);
                    assert_eq!(end["reason"], why.as_str(), "{name}");
                    assert_eq!(ended[name]["attempt"], 0, "{name}: it had a turn");
                }
                None => {
                    assert_eq!(end["succeeded"], true, "{name}: {end}");
                    for (before, _) in *after {
                        // Times of one clock, written alike: they compare as text.
                        let before = ended[before]["end"]["ended_at"].as_str().unwrap();
                        let begun = end["started_at"].as_str().unwrap();
                        assert!(begun >= before, "{name}: {begun}, {before}");
                    }
                }
            }
        }
        let ran = world.content(&format!("work/ran-{code}"));
        let names: BTreeSet<&str> = ran.lines().collect();
        assert_eq!(names.len(), ran.lines().count(), "twice: {ran}");
        let wanted = AFTER.iter().skip(1).map(|(name, _)| *name);
        let wanted: BTreeSet<&str> = wanted.filter(|name| !skipped.contains_key(name)).collect();
        assert_eq!(names, wanted);
    }
}
