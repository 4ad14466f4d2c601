//! Many processes at once, and more than there is room for. One test, because it changes the limits of the whole
//! process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use provost::{EventBody, Outcome, Policy, ProcessHandle, ProcessSpec, StdinSpec};
use provost_tests::{World, embedded};

const CROWD: usize = 300;

fn spec(world: &World) -> ProcessSpec {
    let script = "echo up; exec cat >/dev/null";
    let mut spec = ProcessSpec::new(["sh", "-c", script], world.work(), Policy::unconfined());
    spec.env = vec![("PATH".into(), "/usr/bin:/bin".into())];
    spec.stdin = StdinSpec::Pipe;
    spec
}

/// Waits until it has said that it is up.
async fn up(process: &ProcessHandle) {
    let mut events = process.events();
    while let Some(event) = events.next().await.expect("events") {
        match event.body {
            EventBody::Output { .. } => return,
            EventBody::Terminal { record } => panic!("it ended: {record:?}"),
            _ => {}
        }
    }
}

async fn end(process: &ProcessHandle) {
    process.close_stdin().await.expect("closed");
    let record = process.record().await.expect("a record");
    assert_eq!(
        (record.outcome, record.exit_code),
        (Outcome::Exited, Some(0)),
        "{record:?}"
    );
}

#[test]
fn a_crowd_runs_at_once_and_who_has_no_room_is_told() {
    let Some(world) = World::try_own() else { return };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("all that is allowed");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let supervisor = embedded().await;
        let mut crowd = Vec::new();
        for _ in 0..CROWD {
            crowd.push(supervisor.spawn(spec(&world)).await.expect("accepted"));
        }
        for process in &crowd {
            up(process).await;
        }

        // No descriptor more: whoever comes now cannot be held, and has a record that says so.
        let next_free =
            std::os::fd::AsRawFd::as_raw_fd(&std::fs::File::open("/dev/null").expect("one more"));
        let room = u64::try_from(next_free).expect("a descriptor") + 1;
        setrlimit(Resource::RLIMIT_NOFILE, room, hard).expect("a lower limit");
        let mut refused = Vec::new();
        for _ in 0..3 {
            refused.push(supervisor.spawn(spec(&world)).await.expect("accepted"));
        }
        for process in &refused {
            let record = process.record().await.expect("a record");
            assert_eq!(record.outcome, Outcome::SpawnFailed, "{record:?}");
            let reason = record.reason.as_deref().unwrap_or_default();
            assert!(reason.contains("RLIMIT_NOFILE"), "{record:?}");
        }
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the limit of before");

        let late = supervisor.spawn(spec(&world)).await.expect("accepted");
        up(&late).await;
        end(&late).await;
        for process in &crowd {
            end(process).await;
        }
    });
}
