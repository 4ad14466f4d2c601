//! A group in a world that is made up: members start, get ready, crash and end as the test says.
//!
//! The table tests are what OTP documents of `permanent`, `transient`, `temporary`, the three strategies and `intensity`
//! (stdlib, `supervisor`); the property test lets anything happen at any time.

use proptest::prelude::{Just, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::Strategy as Any;

use super::*;

const MS: Duration = Duration::from_millis(1);

/// A group, and what lives of it.
struct World {
    group: Group,
    now: Duration,
    /// By member: the incarnation that lives, and whether it was told to stop.
    alive: Vec<Option<(u64, bool)>>,
    /// What was done, in words: `+0` started, `-0` stopped, `_0` stopped because not ready, `!0` killed, `=0` ready, `~0` again.
    said: Vec<String>,
    is_ready: Vec<bool>,
    finish: Option<Finish>,
}

impl World {
    fn new(rule: GroupRule) -> Self {
        let alive = vec![None; rule.members.len()];
        let mut world = Self {
            is_ready: vec![false; rule.members.len()],
            group: Group::new(rule, 1),
            now: Duration::ZERO,
            alive,
            said: Vec::new(),
            finish: None,
        };
        world.take(Fact::Tick);
        world
    }

    fn take(&mut self, fact: Fact) {
        let actions = self.group.take(self.now, fact);
        assert!(
            self.finish.is_none() || actions.is_empty(),
            "{actions:?} at the end"
        );
        for action in actions {
            self.said.push(match action {
                Action::Start { member, incarnation } => {
                    assert_eq!(self.alive[member], None, "two incarnations of {member}");
                    self.alive[member] = Some((incarnation, false));
                    self.is_ready[member] = false;
                    format!("+{member}")
                }
                Action::Stop {
                    member,
                    incarnation,
                    why,
                } => {
                    assert_eq!(self.alive[member], Some((incarnation, false)), "{why:?}");
                    self.alive[member] = Some((incarnation, true));
                    let sign = if why == Why::NotReady { '_' } else { '-' };
                    format!("{sign}{member}")
                }
                Action::Kill { member, incarnation } => {
                    assert_eq!(self.alive[member].map(|(alive, _)| alive), Some(incarnation));
                    self.alive[member] = Some((incarnation, true));
                    format!("!{member}")
                }
                Action::Ready { member, .. } => {
                    self.is_ready[member] = true;
                    format!("={member}")
                }
                Action::Again { member, .. } => format!("~{member}"),
                Action::Finish(finish) => {
                    assert!(self.alive.iter().all(Option::is_none), "{:?}", self.alive);
                    self.finish = Some(finish);
                    continue;
                }
            });
        }
    }

    fn said(&mut self) -> String {
        std::mem::take(&mut self.said).join(" ")
    }

    fn started(&mut self, member: usize) {
        let (incarnation, _) = self.alive[member].expect("it lives");
        self.take(Fact::Started { member, incarnation });
    }

    fn ready(&mut self, member: usize) {
        let (incarnation, _) = self.alive[member].expect("it lives");
        self.take(Fact::Ready { member, incarnation });
    }

    fn ends(&mut self, member: usize, ending: Ending) {
        let (incarnation, _) = self.alive[member].take().expect("it lives");
        self.take(Fact::Ended {
            member,
            incarnation,
            ending,
        });
    }

    fn crashes(&mut self, member: usize) {
        self.ends(member, Ending::Abnormal);
    }

    /// What was told to stop ends, until nothing more is told to.
    fn stops(&mut self) {
        while let Some(member) = self
            .alive
            .iter()
            .position(|alive| alive.is_some_and(|(_, told)| told))
        {
            self.ends(member, Ending::Normal);
        }
    }

    /// Time goes on until something is due.
    fn due(&mut self) {
        if let Some(at) = self.group.wake_at(self.now) {
            self.now = at;
            self.take(Fact::Tick);
        }
    }

    /// Everything that starts gets ready, until nothing is due.
    fn settles(&mut self) {
        loop {
            let starting = |member: &usize| self.alive[*member].is_some() && !self.is_ready[*member];
            match (0..self.alive.len()).find(starting) {
                Some(member) => self.started(member),
                None if self.group.wake_at(self.now).is_some() => self.due(),
                None => return,
            }
        }
    }
}

fn rule(strategy: Strategy, members: &[Restart]) -> GroupRule {
    GroupRule {
        strategy,
        members: members
            .iter()
            .map(|restart| MemberRule {
                restart: *restart,
                ready_within: None,
            })
            .collect(),
        ..GroupRule::default()
    }
}

use Restart::{Permanent, Temporary, Transient};
use Strategy::{OneForAll, OneForOne, RestForOne};

/// A group of which every member is ready.
fn running(strategy: Strategy, members: &[Restart]) -> World {
    let mut world = World::new(rule(strategy, members));
    world.settles();
    world.said();
    world
}

#[test]
fn members_start_in_order_each_when_the_one_before_is_ready() {
    let mut group = rule(OneForOne, &[Permanent; 3]);
    group.members[1].ready_within = Some(MS * 500);
    let mut world = World::new(group);
    assert_eq!(world.said(), "+0");
    world.started(0);
    assert_eq!(world.said(), "=0 +1");
    world.started(1);
    assert_eq!(world.said(), "", "it runs, and is not ready");
    world.ready(1);
    assert_eq!(world.said(), "=1 +2");
}

#[test]
fn a_group_stops_in_the_reverse_order_each_when_the_one_behind_it_has_ended() {
    let mut world = running(OneForOne, &[Permanent; 3]);
    world.take(Fact::Stop);
    assert_eq!(world.said(), "-2");
    world.ends(2, Ending::Normal);
    assert_eq!(world.said(), "-1");
    world.crashes(1);
    assert_eq!(world.said(), "-0", "nothing is restarted any more");
    world.ends(0, Ending::Normal);
    assert_eq!(world.finish, Some(Finish::Stopped));
}

#[test]
fn told_to_kill_a_group_kills_what_lives_at_once_from_behind() {
    let mut world = running(OneForOne, &[Permanent; 3]);
    world.take(Fact::Stop);
    world.take(Fact::Kill);
    assert_eq!(world.said(), "-2 !2 !1 !0");
    world.stops();
    assert_eq!(world.finish, Some(Finish::Stopped));
}

#[test]
fn who_is_restarted_after_which_end() {
    for (restart, ending, again) in [
        (Permanent, Ending::Normal, true),
        (Permanent, Ending::Abnormal, true),
        (Transient, Ending::Normal, false),
        (Transient, Ending::Abnormal, true),
        (Temporary, Ending::Normal, false),
        (Temporary, Ending::Abnormal, false),
    ] {
        let mut world = running(OneForOne, &[restart, Permanent]);
        world.ends(0, ending);
        world.due();
        let expected = if again { "~0 +0" } else { "" };
        assert_eq!(world.said(), expected, "{restart:?} after {ending:?}");
        assert!(world.finish.is_none() && world.alive[1] == Some((1, false)));
    }
}

#[test]
fn one_for_one_restarts_nobody_else() {
    let mut world = running(OneForOne, &[Permanent; 3]);
    world.crashes(1);
    world.due();
    world.started(1);
    assert_eq!(world.said(), "~1 +1 =1");
}

#[test]
fn rest_for_one_stops_what_is_behind_in_reverse_and_restarts_in_order() {
    let mut world = running(RestForOne, &[Permanent; 4]);
    world.crashes(1);
    assert_eq!(world.said(), "~1 -3");
    world.due();
    assert_eq!(
        world.said(),
        "",
        "nothing starts while something is on its way down"
    );
    world.stops();
    world.due();
    world.settles();
    assert_eq!(world.said(), "-2 +1 =1 +2 =2 +3 =3");
    assert_eq!(world.alive[0], Some((1, false)));
}

#[test]
fn one_for_all_stops_and_restarts_everybody() {
    let mut world = running(OneForAll, &[Permanent; 3]);
    world.crashes(1);
    world.stops();
    world.settles();
    assert_eq!(world.said(), "~1 -2 -0 +0 =0 +1 =1 +2 =2");
}

#[test]
fn a_temporary_member_that_goes_down_with_its_siblings_does_not_come_back() {
    let mut world = running(OneForAll, &[Permanent, Temporary, Permanent]);
    world.crashes(0);
    world.stops();
    world.settles();
    assert_eq!(world.said(), "~0 -2 -1 +0 =0 +2 =2");
}

#[test]
fn a_transient_member_that_was_done_comes_back_with_its_siblings() {
    let mut world = running(RestForOne, &[Permanent, Transient, Temporary]);
    world.ends(1, Ending::Normal);
    world.ends(2, Ending::Normal);
    world.crashes(0);
    world.settles();
    assert_eq!(world.said(), "~0 +0 =0 +1 =1");
}

#[test]
fn what_crashes_while_others_are_on_their_way_down_is_no_further_restart() {
    let mut group = rule(OneForAll, &[Permanent; 3]);
    group.intensity.restarts = 1;
    let mut world = World::new(group);
    world.settles();
    world.crashes(0);
    world.crashes(1);
    world.crashes(2);
    assert!(world.finish.is_none());
    world.settles();
    assert!(world.said().ends_with("~0 -2 +0 =0 +1 =1 +2 =2"));
}

#[test]
fn intensity_3_in_5_s_ends_the_group_at_the_fourth_crash() {
    let mut world = running(OneForOne, &[Permanent, Permanent]);
    for _ in 0..3 {
        world.crashes(1);
        world.due();
        world.started(1);
    }
    assert_eq!(world.said(), "~1 +1 =1 ~1 +1 =1 ~1 +1 =1");
    world.crashes(1);
    assert_eq!(world.said(), "-0");
    world.stops();
    assert_eq!(world.finish, Some(Finish::TooOften { member: 1 }));
}

#[test]
fn restarts_that_are_older_than_the_period_do_not_count() {
    let mut world = running(OneForOne, &[Permanent, Permanent]);
    for _ in 0..20 {
        world.crashes(1);
        world.due();
        world.started(1);
        world.now += MS * 2_501;
    }
    assert!(world.finish.is_none());
}

#[test]
fn with_an_intensity_of_0_the_first_crash_ends_the_group() {
    let mut group = rule(OneForOne, &[Permanent]);
    group.intensity.restarts = 0;
    let mut world = World::new(group);
    world.started(0);
    world.crashes(0);
    assert_eq!(world.finish, Some(Finish::TooOften { member: 0 }));
}

#[test]
fn delays_grow_and_begin_anew_after_a_healthy_time() {
    let mut group = rule(OneForOne, &[Permanent]);
    group.backoff.jitter_percent = 0;
    group.intensity.restarts = 100;
    let mut world = World::new(group);
    let mut delays = Vec::new();
    for healthy in [false, false, true, false] {
        world.started(0);
        world.now += if healthy { MS * 10_000 } else { MS * 9_999 };
        let before = world.now;
        world.crashes(0);
        assert_eq!(world.alive[0], None);
        world.due();
        delays.push((world.now - before).as_millis());
    }
    assert_eq!(delays, [100, 200, 100, 200]);
}

#[test]
fn what_is_not_ready_in_time_is_stopped_and_counts_as_crashed_however_it_ends() {
    let mut group = rule(OneForOne, &[Transient, Permanent]);
    group.members[0].ready_within = Some(MS * 500);
    let mut world = World::new(group);
    world.started(0);
    world.due();
    assert_eq!((world.now, world.said().as_str()), (MS * 500, "+0 _0"));
    world.ready(0);
    assert_eq!(world.said(), "", "too late");
    world.ends(0, Ending::Normal);
    world.due();
    assert_eq!(world.said(), "~0 +0");
}

#[test]
fn what_ends_for_good_before_it_is_ready_ends_the_group() {
    for (restart, ending) in [(Temporary, Ending::Abnormal), (Transient, Ending::Normal)] {
        let mut group = rule(OneForOne, &[Permanent, restart, Permanent]);
        group.members[1].ready_within = Some(MS * 500);
        let mut world = World::new(group);
        world.started(0);
        world.started(1);
        world.ends(1, ending);
        world.stops();
        assert_eq!(world.said(), "+0 =0 +1 -0");
        assert_eq!(world.finish, Some(Finish::NeverReady { member: 1 }));
    }
}

#[test]
fn a_group_is_complete_when_no_member_is_to_be_started_again() {
    let mut world = running(OneForOne, &[Transient, Temporary]);
    world.crashes(1);
    assert!(world.finish.is_none());
    world.ends(0, Ending::Normal);
    assert_eq!(world.finish, Some(Finish::Complete));
    assert_eq!(World::new(rule(OneForOne, &[])).finish, Some(Finish::Complete));
}

#[test]
fn facts_of_an_earlier_incarnation_change_nothing() {
    let mut world = running(OneForOne, &[Permanent]);
    world.crashes(0);
    world.due();
    world.said();
    for fact in [
        Fact::Started {
            member: 0,
            incarnation: 1,
        },
        Fact::Ready {
            member: 0,
            incarnation: 1,
        },
        Fact::Ended {
            member: 0,
            incarnation: 1,
            ending: Ending::Abnormal,
        },
        Fact::Ready {
            member: 7,
            incarnation: 1,
        },
    ] {
        world.take(fact);
    }
    assert_eq!(world.said(), "");
}

fn any_rule() -> impl Any<Value = GroupRule> {
    let restart = prop_oneof![Just(Permanent), Just(Transient), Just(Temporary)];
    let member = (restart, proptest::option::of(1u64..400)).prop_map(|(restart, ready)| MemberRule {
        restart,
        ready_within: ready.map(|ready| MS * ready as u32),
    });
    let strategy = prop_oneof![Just(OneForOne), Just(RestForOne), Just(OneForAll)];
    (strategy, 0u32..6, proptest::collection::vec(member, 0..5)).prop_map(
        |(strategy, restarts, members)| GroupRule {
            strategy,
            intensity: Intensity {
                restarts,
                ..Intensity::default()
            },
            members,
            ..GroupRule::default()
        },
    )
}

proptest! {
    /// [`World`] holds it against: two incarnations at once, actions behind the end, an end while something lives, one that is
    /// told twice. Here: the order, the numbers, the intensity, and that every group ends.
    #[test]
    fn i9_whatever_happens_a_group_keeps_its_order_and_ends(
        group in any_rule(),
        steps in proptest::collection::vec((0u8..8, 0usize..5, 0u32..3_000), 0..80)
    ) {
        let (strategy, intensity) = (group.strategy, group.intensity);
        let rules = group.members.clone();
        let mut world = World::new(group);
        let mut agains: Vec<Duration> = Vec::new();
        let mut starts = vec![0u64; rules.len()];
        let mut ready = vec![false; rules.len()];
        let (begin, stop) = ([(8, 0, 0)], [(6, 0, 0)]);
        for (what, member, time) in begin.into_iter().chain(steps).chain(stop) {
            let lives = world.alive.get(member).is_some_and(Option::is_some);
            match what {
                0 | 1 if lives => world.started(member),
                2 if lives => world.ready(member),
                3 if lives => world.ends(member, Ending::Normal),
                4 if lives => world.crashes(member),
                5 => {
                    world.now += MS * time;
                    world.take(Fact::Tick);
                }
                6 if time == 0 => world.take(Fact::Stop),
                7 if time == 0 => world.take(Fact::Kill),
                8 => {}
                _ => world.due(),
            }
            for word in std::mem::take(&mut world.said) {
                let (sign, member) = word.split_at(1);
                let member: usize = member.parse().unwrap();
                match sign {
                    "+" => {
                        let passed = |at: usize| ready[at] || world.alive[at].is_none();
                        let alone = strategy == OneForOne && starts[member] > 0;
                        prop_assert!(alone || (0..member).all(passed), "{member} before its turn");
                        starts[member] += 1;
                        ready[member] = false;
                        prop_assert_eq!(world.alive[member].map(|(n, _)| n), Some(starts[member]));
                        prop_assert!(starts[member] == 1 || rules[member].restart != Temporary);
                    }
                    "-" => {
                        let behind = world.alive.iter().skip(member + 1).flatten().count();
                        prop_assert!(behind == 0, "{member} before what is behind it");
                    }
                    "=" => ready[member] = true,
                    "~" => {
                        agains.push(world.now);
                        ready[member] = false;
                    }
                    _ => {}
                }
            }
            for (member, alive) in world.alive.iter().enumerate() {
                ready[member] &= alive.is_some();
            }
            let recent = agains.iter().filter(|then| **then + intensity.period >= world.now).count();
            prop_assert!(recent <= intensity.restarts as usize);
        }
        world.stops();
        prop_assert!(world.finish.is_some(), "it does not end");
    }
}
