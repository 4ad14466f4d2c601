//! A host program that does everything a library must not depend on: it ignores SIGCHLD, reaps with wait(-1), has
//! touched 200 MB and holds 5,000 descriptors. One test, because it changes the whole process.

use std::collections::VecDeque;
use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use provost::{Outcome, Policy, PresetContext, ProcessSpec, Supervisor};
use provost_tests::{User, World, embedded};

const PROCESSES: usize = 200;
const AT_A_TIME: usize = 16;
const DESCRIPTORS: usize = 5_000;
const MEMORY_BYTES: usize = 200 << 20;

fn spec(world: &World, number: usize) -> ProcessSpec {
    let context = PresetContext {
        cwd: world.work(),
        home: Some(world.path("home")),
        uid: nix::unistd::geteuid().as_raw(),
        runtime_dir: None,
    };
    let policy = Policy::preset("workspace-write", &context).expect("the preset");
    let script = format!("echo {number}; exit {}", number % 256);
    let mut spec = ProcessSpec::new(["sh", "-c", &script], world.work(), policy);
    spec.env = vec![("PATH".into(), "/usr/bin:/bin".into())];
    spec
}

/// Runs them all and checks each record; how long one took.
async fn round(supervisor: &Supervisor, world: &World) -> Duration {
    let begun = Instant::now();
    let mut running = VecDeque::new();
    for number in 0..PROCESSES {
        if running.len() == AT_A_TIME {
            check(running.pop_front()).await;
        }
        let process = supervisor.spawn(spec(world, number)).await.expect("accepted");
        running.push_back((number, process));
    }
    while let Some(next) = running.pop_front() {
        check(Some(next)).await;
    }
    begun.elapsed() / PROCESSES as u32
}

async fn check(next: Option<(usize, provost::ProcessHandle)>) {
    let (number, process) = next.expect("one that runs");
    let record = process.record().await.expect("a record");
    assert_eq!(record.outcome, Outcome::Exited, "{record:?}");
    assert_eq!(record.exit_code, Some((number % 256) as i32), "{record:?}");
    let written = record.output[&provost::StreamName::Stdout].bytes;
    assert_eq!(written, format!("{number}\n").len() as u64, "{record:?}");
}

/// What the host holds until the end of the test.
struct Burden {
    _memory: Vec<u8>,
    _descriptors: Vec<File>,
}

fn become_a_burden() -> Burden {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    let needed = (DESCRIPTORS + 1000) as u64;
    if soft < needed {
        setrlimit(Resource::RLIMIT_NOFILE, needed.min(hard), hard).expect("a higher limit");
    }
    let null = File::open("/dev/null").expect("/dev/null");
    let burden = Burden {
        _memory: vec![1; MEMORY_BYTES],
        _descriptors: (0..DESCRIPTORS)
            .map(|_| null.try_clone().expect("a descriptor"))
            .collect(),
    };
    // SAFETY: ignoring a signal runs no handler.
    // WHY: nix marks every change of a disposition as unsafe.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }.expect("SIGCHLD is ignored");
    // A child that stays, so that wait(-1) waits instead of failing at once. Nobody else waits for it.
    let mut cat = Command::new("cat");
    #[allow(clippy::zombie_processes)]
    let mut child = cat
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("cat");
    let input = child.stdin.take();
    std::thread::spawn(move || {
        let _input = input;
        while nix::sys::wait::wait().is_ok() {}
    });
    burden
}

#[test]
fn a_host_of_the_worst_kind_gets_every_exit_right_and_as_fast() {
    let user = if nix::unistd::geteuid().is_root() {
        User::Root
    } else {
        User::Ordinary
    };
    let Some(world) = World::try_new(user) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let best_of = |supervisor: &Supervisor| {
        let rounds = (0..3).map(|_| runtime.block_on(round(supervisor, &world)));
        rounds.min().expect("a round")
    };
    let light = runtime.block_on(embedded());
    let small = best_of(&light);
    drop(light);
    let _burden = become_a_burden();
    let heavy = runtime.block_on(embedded());
    let large = best_of(&heavy);
    let ratio = large.as_secs_f64() / small.as_secs_f64();
    println!("per process: a small host {small:?}, this one {large:?}, ratio {ratio:.2}");
    // The ratio is 1 on a quiet machine; forking from such a host would make it far larger.
    assert!(ratio < 3.0, "a heavy host slows spawning down: {ratio:.2}");
}
