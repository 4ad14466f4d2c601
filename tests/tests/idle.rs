//! What a daemon costs that has nothing to do.

use std::fs;
use std::time::{Duration, Instant};

use provost_tests::{DEADLINE, LineClient, Served, User, World};

/// For how long it is watched.
const WATCHED: Duration = Duration::from_secs(5);

/// How often threads of a process went to sleep so far.
fn slept(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .expect("it lives")
        .flatten();
    let counts = tasks.filter_map(|task| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("voluntary"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    counts.sum()
}

/// It looks once a second, in two threads or more, while there is something to look after.
/// Not as root: root's daemon may read the audit records of the whole machine, and those of others wake it.
#[test]
fn a_daemon_that_has_nothing_to_do_wakes_nobody() {
    let Some(world) = World::try_new(User::Ordinary) else {
        return;
    };
    let world = &world;
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let id = client.start("echo out");
    client.wait(&id);
    // What ended is written down and let go of; threads that nobody needs any more end. Then it is quiet, though the client stays.
    let deadline = Instant::now() + DEADLINE;
    loop {
        let before = slept(served.pid());
        // The time is what is measured.
        #[allow(clippy::disallowed_methods, reason = "nothing is waited for")]
        std::thread::sleep(WATCHED);
        let woken = slept(served.pid()).saturating_sub(before);
        if woken <= 2 {
            break;
        }
        assert!(Instant::now() < deadline, "{woken} times in {WATCHED:?}");
    }
    // And it hears whoever comes.
    let next = client.start("exit 3");
    assert_eq!(client.wait(&next)["exit_code"], 3);
}
