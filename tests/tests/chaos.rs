//! Chaos: a load of which everything is known, and a seed that decides who dies when. See CONTRIBUTING.md.
//!
//! Runs for some seconds, or as long as `CHAOS_SECONDS` says, with the seed `CHAOS_SEED` if one is to be repeated. Chance
//! decides what is done and after how many events; what the machine makes of that is its own.

use std::time::{Duration, Instant};

use provost_tests::random::Random;
use provost_tests::{Load, Served, World, both_users};

fn number(name: &str) -> Option<u64> {
    let asked = std::env::var(name).ok();
    asked.map(|number| number.parse().expect("a number"))
}

/// Who died how often.
#[derive(Debug, Default)]
struct Deaths {
    daemon: u64,
    while_taking_up: u64,
    client: u64,
    keeper: u64,
    both: u64,
}

fn i1_i8_whoever_dies_each_process_has_one_true_record_and_no_follower_misses_anything(world: &World) {
    let seed = number("CHAOS_SEED").unwrap_or(u64::from(std::process::id()));
    let end = Instant::now() + Duration::from_secs(number("CHAOS_SECONDS").unwrap_or(10));
    println!("CHAOS_SEED={seed}");
    let mut random = Random::new(seed);
    let mut load = Load::new(world, Random::new(!seed), 20 + random.below(40) as usize);
    let mut deaths = Deaths::default();
    let mut served = Served::start(world);
    load.connect(&served);
    while Instant::now() < end {
        load.go_on(random.below(400));
        match random.below(10) {
            0 => {
                deaths.client += 1;
                load.leave();
                load.connect(&served);
            }
            1 => {
                deaths.keeper += u64::from(load.kill_keeper());
            }
            kind => {
                deaths.daemon += 1;
                served.crash();
                load.lost();
                if kind == 2 {
                    deaths.both += u64::from(load.kill_keeper());
                }
                for _ in 0..random.below(3) {
                    deaths.while_taking_up += 1;
                    Served::start_to_die(world, Duration::from_millis(random.below(200)));
                }
                served = Served::start(world);
                load.connect(&served);
            }
        }
    }
    load.finish();
    println!("{deaths:?}, {}", load.count);
}

both_users!(i1_i8_whoever_dies_each_process_has_one_true_record_and_no_follower_misses_anything);
