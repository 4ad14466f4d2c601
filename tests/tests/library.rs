//! The library where things go wrong below it: a spawner that dies, or does not answer.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use provost::{EventBody, Outcome, Policy, ProcessHandle, ProcessSpec, StdinSpec, StreamName};
use provost_tests::{World, embedded};

fn spec(world: &World, script: &str) -> ProcessSpec {
    let words = ["sh", "-c", script];
    let mut spec = ProcessSpec::new(words, world.work(), Policy::unconfined());
    spec.env = vec![("PATH".into(), "/usr/bin:/bin".into())];
    spec
}

/// Waits until it has written something; its pid.
async fn up(process: &ProcessHandle) -> i32 {
    let mut events = process.events();
    let mut command = None;
    while let Some(event) = events.next().await.expect("events") {
        match event.body {
            EventBody::Started { pid, .. } => command = Some(pid),
            EventBody::Output { .. } => break,
            EventBody::Terminal { record } => panic!("it ended: {record:?}"),
            _ => {}
        }
    }
    command.expect("it has started")
}

fn parent(pid: i32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.and_then(|text| text.trim().parse().ok()).expect("a parent")
}

/// The spawner of a running command: the parent of its init.
fn spawner(command: i32) -> Pid {
    Pid::from_raw(parent(parent(command)))
}

#[tokio::test]
async fn i1_a_process_asked_for_after_the_spawner_died_has_a_record() {
    let Some(world) = World::try_own() else { return };
    let supervisor = embedded().await;
    let first = supervisor
        .spawn(spec(&world, "echo up; exec sleep 1000"))
        .await
        .expect("accepted");
    kill(spawner(up(&first).await), Signal::SIGKILL).expect("the spawner lives");
    let record = first.record().await.expect("a record");
    assert!(
        record.outcome == Outcome::Lost || record.signal.as_deref() == Some("SIGKILL"),
        "{record:?}"
    );
    for _ in 0..3 {
        let late = supervisor.spawn(spec(&world, "exit 0")).await.expect("accepted");
        let record = late.record().await.expect("a record");
        assert_eq!(record.outcome, Outcome::SpawnFailed, "{record:?}");
        assert_eq!(record.exit_code, Some(125), "{record:?}");
    }
    let report = supervisor.shutdown(Duration::from_secs(30)).await;
    assert!(report.expect("shut down").graceful);
}

#[tokio::test]
async fn i1_a_spawner_that_does_not_answer_keeps_no_record_back() {
    let Some(world) = World::try_own() else { return };
    let supervisor = embedded().await;
    let mut witness = world.witness();
    let script = format!(
        "exec 3>'{}'; echo alive >&3; echo up; exec sleep 1000",
        witness.path()
    );
    let running = supervisor.spawn(spec(&world, &script)).await.expect("accepted");
    let spawner = spawner(up(&running).await);
    assert!(witness.was_alive());
    kill(spawner, Signal::SIGSTOP).expect("the spawner lives");
    let asked = supervisor.spawn(spec(&world, "exit 0")).await.expect("accepted");
    for process in [&running, &asked] {
        assert!(process.kill("no use").await.expect("told"));
    }
    // Ten seconds later:
    let record = running.record().await.expect("a record");
    assert_eq!(record.outcome, Outcome::Cancelled, "{record:?}");
    assert_eq!(
        record.tree.unkillable.len(),
        1,
        "what may live on is named: {record:?}"
    );
    assert_eq!(
        asked.record().await.expect("a record").outcome,
        Outcome::Cancelled
    );
    kill(spawner, Signal::SIGCONT).expect("the spawner lives");
    drop((running, asked, supervisor));
    witness.wait_until_gone();
}

#[tokio::test]
async fn a_supervisor_that_is_dropped_takes_everything_along() {
    let Some(world) = World::try_own() else { return };
    let mut witness = world.witness();
    let supervisor = embedded().await;
    let script = format!(
        "exec 3>'{}'; echo alive >&3; setsid sleep 1000 & echo up; exec sleep 1000",
        witness.path()
    );
    let process = supervisor.spawn(spec(&world, &script)).await.expect("accepted");
    up(&process).await;
    assert!(witness.was_alive());
    drop(supervisor);
    assert!(!witness.is_gone(), "a handle keeps it");
    drop(process);
    tokio::task::spawn_blocking(move || witness.wait_until_gone())
        .await
        .expect("it is gone");
}

#[tokio::test]
async fn closing_stdin_lets_a_write_under_way_finish() {
    const BYTES: usize = 1 << 20;
    let Some(world) = World::try_own() else { return };
    let supervisor = embedded().await;
    let script = "mkfifo gate; head -c 1 >/dev/null; echo up; read x <gate; cat | wc -c";
    let mut spec = spec(&world, script);
    spec.stdin = StdinSpec::Pipe;
    let process = supervisor.spawn(spec).await.expect("accepted");
    let writer = process.clone();
    let write = tokio::spawn(async move { writer.write_stdin(&vec![b'x'; BYTES]).await });
    up(&process).await;
    process.close_stdin().await.expect("closed");
    assert!(
        process.write_stdin(b"more").await.is_err(),
        "no further write begins"
    );
    let gate = world.path("work/gate");
    tokio::task::spawn_blocking(move || fs::write(gate, "go\n"))
        .await
        .expect("no panic")
        .expect("the gate opens");
    write.await.expect("no panic").expect("all of it was taken");
    let record = process.record().await.expect("a record");
    assert_eq!(record.exit_code, Some(0), "{record:?}");
    let expected = format!("up\n{}\n", BYTES - 1).len() as u64;
    assert_eq!(record.output[&StreamName::Stdout].bytes, expected, "{record:?}");
}
