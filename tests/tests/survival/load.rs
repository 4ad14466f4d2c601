//! Fifty processes at a time, and a daemon that is killed again and again.

use provost_tests::random::Random;
use provost_tests::{Load, Served, World, both_users};

/// How often the daemon is killed under load; `SURVIVAL_KILLS` says otherwise.
fn kills() -> u64 {
    let asked = std::env::var("SURVIVAL_KILLS").ok();
    asked.map_or(10, |kills| kills.parse().expect("a number of kills"))
}

fn i8_no_byte_exit_denial_or_event_is_lost_or_doubled_by_kills_of_the_daemon(world: &World) {
    let seed = u64::from(std::process::id());
    let mut random = Random::new(seed);
    let mut load = Load::new(world, Random::new(seed + 1), 50);
    let mut served = Served::start(world);
    load.connect(&served);
    for _ in 0..kills() {
        load.go_on(random.below(300));
        served.crash();
        load.lost();
        served = Served::start(world);
        load.connect(&served);
    }
    load.finish();
    println!("seed {seed}: {} kills, {}", kills(), load.count);
}

both_users!(i8_no_byte_exit_denial_or_event_is_lost_or_doubled_by_kills_of_the_daemon);
