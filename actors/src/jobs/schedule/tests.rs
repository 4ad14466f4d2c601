use proptest::prelude::*;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn plan(group: &str, priority: i32) -> Plan {
    Plan {
        group: group.to_owned(),
        priority,
        ..Plan::default()
    }
}

fn never(_: JobId) -> Option<(JobOutcome, bool)> {
    None
}

fn jobs<const N: usize>() -> [JobId; N] {
    std::array::from_fn(|_| JobId::new())
}

#[test]
fn the_highest_priority_is_first_and_of_the_same_the_oldest() {
    let mut schedule = Schedule::new(2);
    let [low, first, second, high] = jobs();
    schedule.add(second, plan("g", 0), never);
    schedule.add(first, plan("g", 0), never);
    schedule.add(low, plan("g", -1), never);
    schedule.add(high, plan("g", 5), never);
    assert_eq!(schedule.take(at(0), 9), [high, first]);
    assert_eq!(
        schedule.take(at(0), 9),
        [],
        "the group takes two at the same time"
    );
    schedule.ended(first, JobOutcome::Exited, false);
    schedule.ended(high, JobOutcome::Exited, true);
    assert_eq!(schedule.take(at(0), 1), [second]);
    assert_eq!(schedule.take(at(0), 9), [low]);
}

#[test]
fn a_job_comes_after_others_as_its_rules_say_and_is_skipped_where_they_cannot_be_met() {
    let mut schedule = Schedule::new(9);
    let [before, on_success, on_end, on_failure, behind] = jobs();
    let after = |job, rule| Plan {
        after: vec![(job, rule)],
        ..plan("g", 0)
    };
    schedule.add(before, plan("g", 0), never);
    schedule.add(on_success, after(before, AfterRule::Success), never);
    schedule.add(on_end, after(before, AfterRule::End), never);
    schedule.add(on_failure, after(before, AfterRule::Failure), never);
    schedule.add(behind, after(on_success, AfterRule::Failure), never);
    assert_eq!(schedule.take(at(0), 9), [before]);
    let skipped = schedule.ended(before, JobOutcome::Exited, false);
    let because = |job, because, rule| [Skipped { job, because, rule }];
    assert_eq!(skipped, because(on_success, before, AfterRule::Success));
    assert_eq!(schedule.take(at(0), 9), [on_end, on_failure]);
    let skipped = schedule.ended(on_success, JobOutcome::Skipped, false);
    assert_eq!(skipped, because(behind, on_success, AfterRule::Failure));
    assert_eq!(schedule.take(at(0), 9), []);
    let late = schedule.add(JobId::new(), after(before, AfterRule::Success), |_| {
        Some((JobOutcome::Exited, false))
    });
    assert_eq!(late.map(|skipped| skipped.because), Some(before));
    assert_eq!(schedule.take(at(0), 9), [], "what is to be ended does not start");
}

#[test]
fn times_are_kept_and_told() {
    let mut schedule = Schedule::new(9);
    let [late, later, due] = jobs();
    let timed = |not_before: Option<i64>, deadline: Option<i64>| Plan {
        not_before: not_before.map(at),
        deadline: deadline.map(at),
        ..plan("g", 0)
    };
    schedule.add(due, timed(None, Some(10)), never);
    schedule.add(later, timed(Some(5), None), never);
    schedule.add(late, timed(Some(50), Some(20)), never);
    assert_eq!(schedule.next(), Some(at(5)));
    assert_eq!(schedule.take(at(4), 9), [due]);
    assert_eq!(schedule.take(at(5), 9), [later]);
    assert_eq!(
        schedule.next(),
        Some(at(20)),
        "what has its turn is not late any more"
    );
    assert!(schedule.late(at(19)).is_empty());
    assert_eq!(schedule.late(at(20)), [late]);
    schedule.ended(late, JobOutcome::TimedOut, false);
    assert_eq!(schedule.next(), None);
    schedule.requeue(due, Some(at(30)));
    assert_eq!(schedule.next(), Some(at(10)));
    assert_eq!(schedule.take(at(30), 9), [due]);
}

#[test]
fn a_paused_group_starts_nothing_and_holds_up_nobody_else() {
    let mut schedule = Schedule::new(9);
    let [held, other] = jobs();
    schedule.set_group("g", Some(1), true);
    schedule.add(held, plan("g", 9), never);
    schedule.add(other, plan("h", 0), never);
    assert_eq!(schedule.take(at(0), 9), [other]);
    assert!(!schedule.remove_group("g"));
    schedule.set_group("g", Some(1), false);
    assert_eq!(schedule.take(at(0), 9), [held]);
    schedule.ended(held, JobOutcome::Exited, true);
    assert!(schedule.remove_group("g"));
}

#[derive(Debug, Clone)]
enum Step {
    Add {
        group: u8,
        priority: i32,
        after: Option<(prop::sample::Index, u8)>,
        delay: Option<u8>,
        deadline: Option<u8>,
    },
    Take(usize),
    End(prop::sample::Index, bool),
    Requeue(prop::sample::Index, Option<u8>),
    Group(u8, Option<usize>, bool),
    Pass(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = any::<prop::sample::Index>;
    let step = prop_oneof![
        4 => (0u8..3, -2i32..3, proptest::option::of((index(), 0u8..3)), proptest::option::of(0u8..20), proptest::option::of(0u8..40))
            .prop_map(|(group, priority, after, delay, deadline)| Step::Add { group, priority, after, delay, deadline }),
        4 => (0usize..4).prop_map(Step::Take),
        3 => (index(), any::<bool>()).prop_map(|(job, good)| Step::End(job, good)),
        1 => (index(), proptest::option::of(0u8..20)).prop_map(|(job, delay)| Step::Requeue(job, delay)),
        1 => (0u8..3, proptest::option::of(1usize..4), any::<bool>()).prop_map(|(group, limit, paused)| Step::Group(group, limit, paused)),
        1 => (1u8..10).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..120)
}

/// The same, said plainly: every question is answered by looking at every job.
#[derive(Default)]
struct Model {
    waiting: BTreeMap<JobId, Plan>,
    taken: BTreeMap<JobId, Plan>,
    ended: BTreeMap<JobId, (JobOutcome, bool)>,
    groups: BTreeMap<String, (Option<usize>, bool)>,
}

impl Model {
    fn is_doomed(&self, plan: &Plan) -> bool {
        plan.after.iter().any(|(job, rule)| {
            self.ended
                .get(job)
                .is_some_and(|(outcome, good)| !rule.is_met(*outcome, *good))
        })
    }

    fn may_start(&self, plan: &Plan, now: Timestamp) -> bool {
        let (limit, paused) = self.groups.get(&plan.group).copied().unwrap_or_default();
        let met = |(job, rule): &(JobId, AfterRule)| {
            self.ended
                .get(job)
                .is_some_and(|(outcome, good)| rule.is_met(*outcome, *good))
        };
        let beside = self
            .taken
            .values()
            .filter(|other| other.group == plan.group)
            .count();
        !paused
            && beside < limit.unwrap_or(2)
            && plan.after.iter().all(met)
            && plan.not_before.is_none_or(|time| time <= now)
    }

    fn first(&self, now: Timestamp) -> Option<JobId> {
        let open = self.waiting.iter().filter(|(_, plan)| self.may_start(plan, now));
        open.min_by_key(|(job, plan)| (Reverse(plan.priority), **job))
            .map(|(job, _)| *job)
    }

    /// Ends a job, and what can never start then, as whoever uses the schedule has to.
    fn end(&mut self, schedule: &mut Schedule, job: JobId, outcome: JobOutcome, good: bool) {
        self.waiting.remove(&job);
        self.taken.remove(&job);
        self.ended.insert(job, (outcome, good));
        for skipped in schedule.ended(job, outcome, good) {
            if schedule.has(skipped.job) {
                assert!(self.is_doomed(&self.waiting[&skipped.job]));
                self.end(schedule, skipped.job, JobOutcome::Skipped, false);
            }
        }
    }
}

proptest! {
    /// Whatever happens, exactly that starts which may, in the right order, and nothing is lost.
    #[test]
    fn the_schedule_is_what_looking_at_every_job_says(steps in steps()) {
        let mut schedule = Schedule::new(2);
        let mut model = Model::default();
        let mut all: Vec<JobId> = Vec::new();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Add { group, priority, after, delay, deadline } => {
                    let job = JobId::new();
                    let rules = [AfterRule::Success, AfterRule::End, AfterRule::Failure];
                    let after = after.filter(|_| !all.is_empty());
                    let plan = Plan {
                        group: group.to_string(),
                        priority,
                        after: after.map(|(index, rule)| (*index.get(&all), rules[usize::from(rule)])).into_iter().collect(),
                        not_before: delay.map(|delay| at(now + i64::from(delay))),
                        deadline: deadline.map(|deadline| at(now + i64::from(deadline))),
                    };
                    let skipped = schedule.add(job, plan.clone(), |job| model.ended.get(&job).copied());
                    prop_assert_eq!(skipped.is_some(), model.is_doomed(&plan));
                    all.push(job);
                    model.waiting.insert(job, plan);
                    if skipped.is_some() {
                        model.end(&mut schedule, job, JobOutcome::Skipped, false);
                    }
                }
                Step::Take(room) => {
                    let taken = schedule.take(at(now), room);
                    prop_assert!(taken.len() <= room);
                    for job in &taken {
                        prop_assert_eq!(model.first(at(now)), Some(*job));
                        let plan = model.waiting.remove(job).unwrap();
                        model.taken.insert(*job, plan);
                    }
                    if taken.len() < room {
                        prop_assert_eq!(model.first(at(now)), None);
                    }
                }
                Step::End(index, good) if !all.is_empty() => {
                    let job = *index.get(&all);
                    if model.ended.contains_key(&job) {
                        prop_assert!(schedule.ended(job, JobOutcome::Exited, good).is_empty());
                    } else {
                        model.end(&mut schedule, job, JobOutcome::Exited, good);
                    }
                }
                Step::Requeue(index, delay) if !all.is_empty() => {
                    let job = *index.get(&all);
                    let time = delay.map(|delay| at(now + i64::from(delay)));
                    schedule.requeue(job, time);
                    if let Some(mut plan) = model.taken.remove(&job) {
                        plan.not_before = time;
                        plan.after.clear();
                        model.waiting.insert(job, plan);
                    }
                }
                Step::Group(group, limit, paused) => {
                    schedule.set_group(&group.to_string(), limit, paused);
                    model.groups.insert(group.to_string(), (limit, paused));
                }
                Step::Pass(seconds) => now += i64::from(seconds),
                Step::End(..) | Step::Requeue(..) => {}
            }
            prop_assert_eq!(schedule.len(), model.waiting.len() + model.taken.len());
            let late: BTreeSet<JobId> = schedule.late(at(now)).into_iter().collect();
            let expected: BTreeSet<JobId> = model.waiting.iter()
                .filter(|(_, plan)| plan.deadline.is_some_and(|time| time <= at(now))).map(|(job, _)| *job).collect();
            prop_assert_eq!(late, expected);
            for group in schedule.groups() {
                let counts = schedule.counts(group);
                let of = |jobs: &BTreeMap<JobId, Plan>| jobs.values().filter(|plan| plan.group == group).count();
                prop_assert_eq!((counts.queued, counts.running), (of(&model.waiting), of(&model.taken)));
            }
        }
    }
}
