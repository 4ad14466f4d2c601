//! Slots: a place of a session where one process is at a time.

use std::time::Duration;

use nix::sys::signal::Signal;
use provost::{
    EventBody, Outcome, ProcessHandle, ProcessSpec, Slot, StopRule, Supervisor, TerminalRecord,
};
use provost_tests::{DEADLINE, Served, Service, World, both_users, embedded, script};
use serde_json::Value;
use tokio::time::timeout;

/// A script in the slot, which gives what it replaces this time.
fn placed(world: &World, words: &str, grace: Duration) -> ProcessSpec {
    let mut spec = script(world, words);
    spec.slot = Some(Slot {
        name: "one".to_owned(),
        grace: Some(grace),
    });
    spec
}

async fn says(process: &ProcessHandle, text: &str) {
    let mut events = process.events();
    let mut output = Vec::new();
    while let Some(event) = timeout(DEADLINE, events.next())
        .await
        .expect("in time")
        .expect("events")
    {
        if let EventBody::Output { data, .. } = event.body {
            output.extend_from_slice(&data);
            if String::from_utf8_lossy(&output).contains(text) {
                return;
            }
        }
    }
    panic!("`{text}` never came");
}

async fn record(process: &ProcessHandle) -> std::sync::Arc<TerminalRecord> {
    timeout(DEADLINE, process.record())
        .await
        .expect("in time")
        .expect("a record")
}

/// Nothing of the one lived any more when the other started.
fn one_after_the_other(one: &TerminalRecord, other: &TerminalRecord) {
    let ended = one.ended_at;
    assert!(
        other.started_at.is_none_or(|started| started >= ended),
        "{ended} {:?}",
        other.started_at
    );
    assert!(
        other.queued_at.expect("accepted") >= ended,
        "accepted before there was room"
    );
}

async fn what_is_there_ends_by_its_rule_and_is_killed_after_the_grace(
    supervisor: &Supervisor,
    world: &World,
) {
    let long = Duration::from_secs(3600);
    let stubborn = "trap 'echo asked' TERM; echo up; while :; do sleep 0.05; done";
    let gentle = "trap 'sleep 0.2; echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done";
    let mut spec = placed(world, gentle, long);
    spec.stop = StopRule {
        signal: Signal::SIGTERM,
        grace: long,
    };
    let one = supervisor.spawn(spec).await.expect("a start");
    says(&one, "up").await;
    let mut spec = placed(world, stubborn, long);
    spec.stop = StopRule {
        signal: Signal::SIGTERM,
        grace: long,
    };
    let two = supervisor.spawn(spec).await.expect("a start");
    let first = record(&one).await;
    assert_eq!(
        (first.outcome, first.exit_code),
        (Outcome::Replaced, Some(3)),
        "it had its time"
    );
    says(&one, "bye").await;
    says(&two, "up").await;
    let three = placed(world, "exit 0", Duration::from_millis(100));
    let three = timeout(DEADLINE, supervisor.spawn(three))
        .await
        .expect("by force")
        .expect("a start");
    let (second, third) = (record(&two).await, record(&three).await);
    assert_eq!(second.outcome, Outcome::Replaced);
    assert_eq!(second.signal.as_deref(), Some("SIGKILL"));
    assert!(third.succeeded);
    one_after_the_other(&first, &second);
    one_after_the_other(&second, &third);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_replaced_gracefully_and_then_by_force() {
    let Some(world) = World::try_own() else { return };
    what_is_there_ends_by_its_rule_and_is_killed_after_the_grace(&embedded().await, &world).await;
    let served = Served::start(&world);
    let remote = Supervisor::connect(served.socket()).await.expect("a daemon");
    what_is_there_ends_by_its_rule_and_is_killed_after_the_grace(&remote, &world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_of_sessions_are_apart_and_a_refused_start_replaces_nothing() {
    let Some(world) = World::try_own() else { return };
    let supervisor = embedded().await;
    let session = supervisor.open_session().await.expect("a session");
    let sleeper = || placed(&world, "echo up; exec sleep 1000", Duration::ZERO);
    let outer = supervisor.spawn(sleeper()).await.expect("a start");
    let inner = session.spawn(sleeper()).await.expect("a start");
    says(&inner, "up").await;
    let mut refused = sleeper();
    refused.cwd = "/no/such/directory".into();
    supervisor.spawn(refused).await.expect_err("no such directory");
    let mut refused = sleeper();
    refused.slot = Some(Slot {
        name: "\n".to_owned(),
        grace: None,
    });
    supervisor.spawn(refused).await.expect_err("no such slot");
    says(&outer, "up").await;
    inner.kill("enough").await.expect("told");
    assert_eq!(record(&inner).await.outcome, Outcome::Cancelled);
    outer.kill("enough").await.expect("told");
    assert_eq!(
        record(&outer).await.outcome,
        Outcome::Cancelled,
        "it was not replaced"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_slot_is_told_when_its_session_ends() {
    let Some(world) = World::try_own() else { return };
    let supervisor = embedded().await;
    let session = supervisor.open_session().await.expect("a session");
    let long = Duration::from_secs(3600);
    let stubborn = "trap '' TERM; echo up; while :; do sleep 0.05; done";
    let mut spec = placed(&world, stubborn, long);
    spec.stop.grace = long;
    let one = session.spawn(spec).await.expect("a start");
    says(&one, "up").await;
    let waiting = {
        let (session, spec) = (session.clone(), placed(&world, "exit 0", long));
        tokio::spawn(async move { session.spawn(spec).await })
    };
    // Asked to make room, it stays.
    let mut events = one.events();
    loop {
        let event = timeout(DEADLINE, events.next()).await.expect("in time");
        if let EventBody::SignalSent { .. } = event.expect("events").expect("it lives").body {
            break;
        }
    }
    session
        .shutdown(Duration::from_millis(100))
        .await
        .expect("a shutdown");
    let refused = timeout(DEADLINE, waiting)
        .await
        .expect("in time")
        .expect("no panic");
    assert!(matches!(refused, Err(provost::Error::Closed(_))), "{refused:?}");
    assert_eq!(record(&one).await.outcome, Outcome::Replaced);
}

/// Starts in one slot, of processes that end by themselves about when they are replaced; several at a time.
#[tokio::test(flavor = "multi_thread")]
async fn i9_replace_and_exit_have_one_winner_and_every_start_its_record() {
    let Some(world) = World::try_own() else { return };
    let races = std::env::var("PROVOST_RACES").map_or(150, |races| races.parse().expect("a number"));
    let supervisor = embedded().await;
    let mut handles = Vec::new();
    for race in 0..races {
        // 0 to 9 ms: before, while and after the next one comes.
        let ends = format!("sleep 0.00{}", race % 10);
        let spec = || placed(&world, &ends, Duration::from_millis(race as u64 % 3));
        let starts = (0..1 + race % 3).map(|_| supervisor.spawn(spec()));
        handles.extend(futures_util::future::join_all(starts).await);
    }
    let mut records = Vec::new();
    for handle in handles {
        records.push(record(&handle.expect("each starts")).await);
    }
    records.sort_by_key(|record| record.queued_at);
    let mut outcomes = [0u32; 2];
    for record in &records {
        match record.outcome {
            Outcome::Exited => {
                assert!(record.succeeded, "{record:?}");
                outcomes[0] += 1;
            }
            Outcome::Replaced => outcomes[1] += 1,
            other => panic!("{other:?}: {record:?}"),
        }
    }
    for pair in records.windows(2) {
        one_after_the_other(&pair[0], &pair[1]);
    }
    assert!(
        outcomes.iter().all(|count| *count > 0),
        "no race at all: {outcomes:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn i8_a_process_keeps_its_slot_over_the_daemons_death() {
    let Some(world) = World::try_own() else { return };
    let served = Served::start(&world);
    let supervisor = Supervisor::connect(served.socket()).await.expect("a daemon");
    let sleeper = || placed(&world, "echo up; exec sleep 1000", Duration::from_secs(2));
    let one = supervisor.spawn(sleeper()).await.expect("a start");
    says(&one, "up").await;
    served.crash();
    let served = Served::start(&world);
    let supervisor = Supervisor::connect(served.socket()).await.expect("a daemon");
    let two = supervisor.spawn(sleeper()).await.expect("a start");
    let one = supervisor.process(one.id()).await.expect("it is known");
    assert_eq!(record(&one).await.outcome, Outcome::Replaced);
    says(&two, "up").await;
}

fn the_command_line_takes_a_slot(world: &World) {
    let service = Service::start(world);
    let one = service.say(&["start", "--slot", "dev", "--", "sleep", "1000"]);
    let two = service.say(&[
        "start",
        "--slot",
        "dev",
        "--slot-grace",
        "2s",
        "--",
        "sleep",
        "1000",
    ]);
    let done = service.ask(&["wait", "--json", &one]);
    let record: Value = serde_json::from_str(&done.text()).expect("a record");
    assert_eq!(record["outcome"], "replaced", "\n{done}");
    assert_eq!(service.say(&["ps", "-q"]), two);
    let refused = service.ask(&["start", "--slot-grace", "2s", "--", "true"]);
    assert_eq!(refused.code, Some(125), "\n{refused}");
}

fn a_run_takes_a_slot_where_a_daemon_has_it(world: &World) {
    let service = Service::start(world);
    let run = ["run", "-q", "--daemon", "--slot", "dev", "--"];
    let mut first = service.live(&[&run[..], &["sh", "-c", "echo up; exec sleep 1000"]].concat());
    first.wait_for("up\n");
    let second = service.say(&[
        "run",
        "--detach",
        "--slot",
        "dev",
        "--slot-grace",
        "2s",
        "--",
        "sleep",
        "1000",
    ]);
    // It was told to stop, and it is the one that was replaced.
    let done = first.finish();
    assert_eq!(done.code, Some(143), "\n{done}");
    assert_eq!(service.say(&["ps", "-q"]), second);
    let third = service.ask(&[&run[..], &["true"]].concat());
    assert_eq!(third.code, Some(0), "\n{third}");
    let waited = service.ask(&["wait", "--json", &second]);
    let record: Value = serde_json::from_str(&waited.text()).expect("a record");
    assert_eq!(record["outcome"], "replaced", "\n{waited}");

    let here = service.ask(&["run", "--slot", "dev", "--", "true"]);
    assert_eq!(here.code, Some(125), "\n{here}");
    assert!(here.stderr.contains("add --daemon"), "\n{here}");
    for words in [["--with-me", "--slot", "dev"], ["--daemon", "--slot-grace", "2s"]] {
        let refused = service.ask(&[&["run"], &words[..], &["--", "true"]].concat());
        assert_eq!(refused.code, Some(125), "\n{refused}");
        assert!(refused.stderr.contains("Usage: "), "\n{refused}");
    }
}

both_users!(
    the_command_line_takes_a_slot,
    a_run_takes_a_slot_where_a_daemon_has_it
);
