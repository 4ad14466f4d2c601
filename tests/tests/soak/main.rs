//! Much that comes and goes, for long: what is over leaves nothing behind.
//!
//! ```text
//! lanes (threads) ── churn ──► daemon ── its keeper
//!                                └────── instance of an ordinary user ── its keeper
//!            warm-up │ settle, measure │ churn │ settle, measure again
//! ```
//!
//! Settled means: nothing runs but one process for each user, everything else is pruned and closed, and what is kept for
//! the next start (sandboxes made ahead, idle threads) is gone. Descriptors, threads and children must then be as many as
//! before, and memory have grown by no more than a stated little.
//!
//! `PROVOST_SOAK_SECONDS` says how long the churn lasts; the bounds are the same for an hour.

mod churn;
mod footprint;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use provost_tests::{DEADLINE, LineClient, Served, User, World, open_socket};
use serde_json::json;

use churn::Lane;
use footprint::Footprint;

/// How long the churn lasts, unless the environment says more.
const CHURN: Duration = Duration::from_secs(20);
/// Until what is allocated once and kept is there.
const WARM_UP: Duration = Duration::from_secs(15);
/// What a settled daemon may have grown by, whatever it did: room for the allocator's moods, and for the words of 10,000
/// starts.
const DAEMON_GROWTH_KIB: u64 = 8 * 1024;
/// The same for a keeper, which allocates little and remembers 4,096 ids.
const KEEPER_GROWTH_KIB: u64 = 512;
/// Nothing changes any more: longer than what is kept for the next start is kept.
const QUIET: Duration = Duration::from_secs(12);
/// Lanes for each user.
const LANES: usize = 3;

#[test]
fn i3_what_comes_and_goes_for_long_leaves_no_memory_descriptor_thread_or_child_behind() {
    let user = match nix::unistd::geteuid().is_root() {
        true => User::Root,
        false => User::Ordinary,
    };
    let Some(world) = World::try_new(user) else { return };
    let served = Served::start(&world);
    open_socket(served.socket());
    // Root's daemon has an instance for an ordinary user as well.
    let ordinary =
        (user == User::Root).then(|| World::try_new(User::Ordinary).expect("root can be anybody"));
    let churn = match std::env::var("PROVOST_SOAK_SECONDS") {
        Ok(seconds) => Duration::from_secs(seconds.parse().expect("PROVOST_SOAK_SECONDS is a number")),
        Err(_) => CHURN,
    };
    let mut places = vec![Place::new(&served, &world, None)];
    places.extend(
        ordinary
            .iter()
            .map(|other| Place::new(&served, other, Some(other.uid()))),
    );
    let done = Mutex::default();
    run(&places, WARM_UP, &done);
    let before = settled(&served, &mut places, |_| false);
    assert!(before.contains_key("its keeper"), "{before:#?}");
    let warm = std::mem::take(&mut *done.lock().expect("no lane failed"));
    run(&places, churn, &done);
    let after = settled(&served, &mut places, |now| same_counts(&before, now));
    let done = done.into_inner().expect("no lane failed");
    println!("warm-up: {warm:?}");
    println!("churn, {} s: {done:?}", churn.as_secs());
    for (name, was) in &before {
        println!("{name}: {was:?}\n    → {:?}", after.get(name));
    }
    assert!(
        same_counts(&before, &after),
        "{before:#?}\n→ {after:#?}\n{}",
        served.said()
    );
    for (name, was) in &before {
        let grown = after[name].memory_kib.saturating_sub(was.memory_kib);
        let most = match name.ends_with("keeper") {
            true => KEEPER_GROWTH_KIB,
            false => DAEMON_GROWTH_KIB,
        };
        assert!(
            grown <= most,
            "{name} has grown by {grown} KiB, {most} are allowed"
        );
    }
    // A run in which little happened shows nothing.
    let starts = done.get("start").copied().unwrap_or_default();
    assert!(starts > 5 * churn.as_secs(), "only {starts} starts");
}

/// One user's part of it.
struct Place<'a> {
    served: &'a Served,
    world: &'a World,
    uid: Option<u32>,
    keeper: LineClient,
    /// Runs all the time, and is the clock by which the rest is waited for.
    kept: String,
}

impl<'a> Place<'a> {
    fn new(served: &'a Served, world: &'a World, uid: Option<u32>) -> Self {
        let mut keeper = churn::connect(served.socket(), uid);
        let kept = keeper.start("exec sleep 1000000");
        Self {
            served,
            world,
            uid,
            keeper,
            kept,
        }
    }

    /// Lets a little time pass in the daemon.
    fn pause(&mut self) {
        let wait = json!({ "process": self.kept, "timeout_ms": 100 });
        let waited = self.keeper.call("process/wait", wait).expect("it lives");
        assert!(waited["record"].is_null(), "{waited}");
    }
}

/// What was done, and how often.
pub(crate) type Done = BTreeMap<&'static str, u64>;

fn run(places: &[Place<'_>], time: Duration, done: &Mutex<Done>) {
    let end = Instant::now() + time;
    std::thread::scope(|scope| {
        for place in places {
            for _ in 0..LANES {
                let lane = Lane::new(place.served, place.world, place.uid);
                scope.spawn(move || lane.run(end, done));
            }
        }
    });
}

/// Forgets all that is over, and waits until nothing changes any more, or it is as wanted.
fn settled(
    served: &Served,
    places: &mut [Place<'_>],
    is_wanted: impl Fn(&BTreeMap<String, Footprint>) -> bool,
) -> BTreeMap<String, Footprint> {
    for place in &mut *places {
        let begun = Instant::now();
        loop {
            place
                .keeper
                .call("session/clean", json!({ "kill": true }))
                .expect("it is served");
            place
                .keeper
                .call("process/prune", json!({}))
                .expect("it is served");
            let status = place
                .keeper
                .call("daemon/status", json!({}))
                .expect("it is served");
            let left = ["live", "processes", "clients"].map(|what| status[what].as_u64());
            if left == [Some(1); 3] && status["sessions"] == 0 {
                break;
            }
            assert!(
                begun.elapsed() < DEADLINE,
                "not all is over: {status}\n{}",
                served.said()
            );
            place.pause();
        }
    }
    let begun = Instant::now();
    let mut now = footprint::of(served.pid());
    let mut since = Instant::now();
    while since.elapsed() < QUIET && !is_wanted(&now) {
        assert!(begun.elapsed() < DEADLINE, "it never comes to rest: {now:#?}");
        places[0].pause();
        let next = footprint::of(served.pid());
        if !same_counts(&now, &next) {
            since = Instant::now();
        }
        now = next;
    }
    now
}

fn same_counts(one: &BTreeMap<String, Footprint>, other: &BTreeMap<String, Footprint>) -> bool {
    one.keys().eq(other.keys()) && one.iter().all(|(name, print)| print.is_like(&other[name]))
}
