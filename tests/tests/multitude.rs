//! Thousands of processes that live at the same time: what each costs, and what happens where there is no room for more.

use std::collections::HashMap;
use std::fs;
use std::process::Command;

use provost_tests::{LineClient, Served, World, both_users};
use serde_json::{Value, json};

/// How many live at the same time.
const MULTITUDE: usize = 2500;
/// Those that must be there before the difference is taken: what is allocated once is.
const FIRST: usize = 100;
/// Starts that wait for their answers.
const IN_FLIGHT: usize = 32;
/// What daemon, keeper and init may take for an idle process, whatever it is confined by, without optimisation: there futures
/// are larger than in a release build, whose numbers are in docs/performance.md.
const BYTES_EACH_MAX_KIB: u64 = 160;

/// Starts so many processes that do nothing. Their ids; what was refused.
fn start(
    client: &mut LineClient,
    world: &World,
    count: usize,
    policy: &str,
) -> (Vec<String>, Vec<Value>) {
    let (mut ids, mut refused) = (Vec::new(), Vec::new());
    let mut left = count;
    while left > 0 {
        let asked: Vec<u64> = (0..left.min(IN_FLIGHT))
            .map(|_| {
                let params =
                    json!({ "argv": ["sleep", "100000"], "cwd": world.work(), "policy": policy });
                client.ask("process/start", params)
            })
            .collect();
        left -= asked.len();
        for id in asked {
            match client.answer(id) {
                Ok(started) => ids.push(started["process"].as_str().expect("an id").to_owned()),
                Err(error) => refused.push(error),
            }
        }
    }
    (ids, refused)
}

/// Waits until they run or have a record; the records.
fn settle(client: &mut LineClient, processes: &[String]) -> Vec<Value> {
    let mut records = Vec::new();
    for process in processes {
        let read = json!({ "process": process, "wait_ms": 60_000 });
        let read = client.call("process/read", read).expect("it is known");
        let first = &read["events"][0];
        match first["type"].as_str() {
            Some("started") => {}
            Some("terminal") => records.push(first["record"].clone()),
            other => panic!("{other:?}: {read}"),
        }
    }
    records
}

/// What a daemon, its keeper and the inits hold, in KiB: shared pages are counted once.
fn memory_kib(daemon: u32) -> u64 {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let name = entry.file_name();
        let (Some(pid), Some((_, rest))) = (
            name.to_str().and_then(|name| name.parse().ok()),
            stat.rsplit_once(") "),
        ) else {
            continue;
        };
        let parent = rest.split(' ').nth(1).and_then(|word| word.parse().ok());
        children.entry(parent.unwrap_or(0)).or_default().push(pid);
    }
    let mut all = 0;
    let mut left = vec![daemon];
    while let Some(pid) = left.pop() {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if comm.starts_with("provost") {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
            let kib = pss.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            all += kib.expect("the test may look at them");
            left.extend(children.get(&pid).into_iter().flatten());
        }
    }
    all
}

fn two_thousand_five_hundred_live_at_once_each_in_little_memory(world: &World) {
    for policy in ["unconfined", "workspace-write"] {
        let served = Served::start(world);
        let mut client = LineClient::connect(served.socket());
        let (first, refused) = start(&mut client, world, FIRST, policy);
        assert!(refused.is_empty(), "{refused:?}");
        assert!(settle(&mut client, &first).is_empty());
        let before = memory_kib(served.pid());
        let (more, refused) = start(&mut client, world, MULTITUDE - FIRST, policy);
        assert!(refused.is_empty(), "{refused:?}");
        assert!(settle(&mut client, &more).is_empty());
        let status = client.call("daemon/status", json!({})).expect("it is served");
        assert_eq!(status["live"], MULTITUDE, "{status}");
        let each = (memory_kib(served.pid()) - before) * 1024 / (MULTITUDE - FIRST) as u64;
        println!("{policy}, {MULTITUDE} live: {:.1} KiB each", each as f64 / 1024.0);
        assert!(each <= BYTES_EACH_MAX_KIB * 1024, "{each} bytes each, {policy}");
        // It serves as if there were none.
        let (last, _) = start(&mut client, world, 1, policy);
        client
            .call("process/kill", json!({ "process": last[0] }))
            .expect("it lives");
        assert_eq!(client.wait(&last[0])["outcome"], "cancelled");
    }
}

/// Sets how many descriptors a process may have.
#[allow(
    clippy::disallowed_methods,
    reason = "a tool of the test's, not a supervised command"
)]
fn allow_descriptors(pid: u32, soft: u64) {
    let limit = format!("--nofile={soft}:");
    let done = Command::new("prlimit")
        .args(["--pid", &pid.to_string(), &limit])
        .status();
    assert!(done.expect("prlimit runs").success());
}

fn i11_past_each_limit_a_start_is_told_which_and_everything_goes_on_afterwards(world: &World) {
    let config = world.file("provost.toml", "max_processes = 60\n");
    let served = Served::start_with(world, &["--config", &config]);
    let mut client = LineClient::connect(served.socket());
    let (living, refused) = start(&mut client, world, 70, "unconfined");
    assert_eq!((living.len(), refused.len()), (60, 10));
    for error in &refused {
        assert_eq!(error["data"]["kind"], "limit", "{error}");
        let why = error["data"]["why"].as_str().unwrap_or_default();
        assert!(why.contains("60 processes live already"), "{error}");
    }
    let kill = |client: &mut LineClient, processes: &[String]| {
        for process in processes {
            client
                .call("process/kill", json!({ "process": process }))
                .expect("it is known");
            client.wait(process);
        }
    };
    kill(&mut client, &living);

    if world.changes_uid() {
        // Nobody but its user may change its limits; the other half runs as the tests' own user.
        return;
    }
    // Room for some, and not for all.
    let descriptors = fs::read_dir(format!("/proc/{}/fd", served.pid()))
        .expect("it lives")
        .count();
    allow_descriptors(served.pid(), descriptors as u64 + 40);
    let (mut accepted, mut refused, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..50 {
        // One after the other: at the same time each might take some of what none of them then has enough of.
        let (one, not) = start(&mut client, world, 1, "workspace-write");
        failed.extend(settle(&mut client, &one));
        accepted.extend(one);
        refused.extend(not);
    }
    assert!(
        refused.len() + failed.len() > 20,
        "there was room for {}",
        accepted.len() - failed.len()
    );
    assert!(failed.len() < accepted.len(), "there was room for none");
    let words = refused.iter().map(|error| &error["data"]["why"]);
    for why in words.chain(failed.iter().map(|record| &record["reason"])) {
        let why = why.as_str().unwrap_or_default();
        assert!(
            why.contains("RLIMIT_NOFILE") || why.contains("open files"),
            "{why}"
        );
    }
    kill(&mut client, &accepted);
    allow_descriptors(served.pid(), 20_000.min(hard_limit(served.pid())));
    let (accepted, refused) = start(&mut client, world, 50, "workspace-write");
    assert!(refused.is_empty(), "{refused:?}");
    assert!(settle(&mut client, &accepted).is_empty());
    kill(&mut client, &accepted);
}

fn hard_limit(pid: u32) -> u64 {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("it lives");
    let line = limits.lines().find(|line| line.starts_with("Max open files"));
    let words = line.into_iter().flat_map(str::split_whitespace).rev().nth(1);
    words.and_then(|word| word.parse().ok()).expect("a number")
}

both_users!(
    two_thousand_five_hundred_live_at_once_each_in_little_memory,
    i11_past_each_limit_a_start_is_told_which_and_everything_goes_on_afterwards,
);
