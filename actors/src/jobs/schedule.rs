//! Which jobs may start now: a state machine of facts, which starts nothing and reads no clock.
//!
//! A job waits for three things, in this order: the jobs that it comes after, its time, and a place in its group. Of those that
//! wait only for a place the one with the highest priority is first, and of the same priority the one submitted first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;

use super::{AfterRule, JobId, JobOutcome};

/// What a job waits for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Its group.
    pub group: String,
    /// Higher ones first.
    pub priority: i32,
    /// The jobs that it comes after.
    pub after: Vec<(JobId, AfterRule)>,
    /// Not before then.
    pub not_before: Option<Timestamp>,
    /// If it has not started by then, it does not.
    pub deadline: Option<Timestamp>,
}

/// A job that can never have its turn, since another one did not end as it should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skipped {
    /// Which can not.
    pub job: JobId,
    /// Which other one.
    pub because: JobId,
    /// What should have become of that.
    pub rule: AfterRule,
}

/// How many of a group there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// How many of it may have their turn at the same time.
    pub limit: usize,
    /// Nothing of it may start.
    pub paused: bool,
    /// How many wait.
    pub queued: usize,
    /// How many have their turn.
    pub running: usize,
}

/// Jobs that have not ended.
#[derive(Debug)]
pub struct Schedule {
    jobs: HashMap<JobId, Entry>,
    groups: BTreeMap<String, Group>,
    delayed: BTreeSet<(Timestamp, JobId)>,
    deadlines: BTreeSet<(Timestamp, JobId)>,
    /// Who comes after a job.
    dependents: HashMap<JobId, Vec<(JobId, AfterRule)>>,
    limit: usize,
}

#[derive(Debug)]
struct Entry {
    plan: Plan,
    /// How many jobs it still comes after.
    blockers: usize,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Blocked,
    Delayed,
    Ready,
    /// It has its turn.
    Taken,
}

#[derive(Debug, Default)]
struct Group {
    /// None: as many as is usual.
    limit: Option<usize>,
    paused: bool,
    ready: BTreeSet<(Reverse<i32>, JobId)>,
    queued: usize,
    taken: usize,
}

impl Schedule {
    /// Without jobs. Groups have this limit unless it is changed.
    pub fn new(limit: usize) -> Self {
        Self {
            jobs: HashMap::new(),
            groups: BTreeMap::new(),
            delayed: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            dependents: HashMap::new(),
            limit: limit.max(1),
        }
    }

    /// How many jobs have not ended.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks that")]
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Whether a job is there that has not ended.
    pub fn has(&self, job: JobId) -> bool {
        self.jobs.contains_key(&job)
    }

    /// The group of a job that has not ended.
    pub fn group_of(&self, job: JobId) -> Option<&str> {
        self.jobs.get(&job).map(|entry| entry.plan.group.as_str())
    }

    /// Adds a job. Of those that it comes after, whatever is not here has ended, as `ended` says (how, and whether it
    /// succeeded). One that can never have its turn is added all the same, and returned: it is to be ended.
    pub fn add(
        &mut self,
        job: JobId,
        plan: Plan,
        ended: impl Fn(JobId) -> Option<(JobOutcome, bool)>,
    ) -> Option<Skipped> {
        let mut skipped = None;
        let mut blockers = 0;
        for (before, rule) in &plan.after {
            if self.jobs.contains_key(before) {
                blockers += 1;
                self.dependents.entry(*before).or_default().push((job, *rule));
            } else if !ended(*before).is_some_and(|(outcome, succeeded)| rule.is_met(outcome, succeeded))
            {
                let (because, rule) = (*before, *rule);
                skipped.get_or_insert(Skipped { job, because, rule });
            }
        }
        if let Some(deadline) = plan.deadline {
            self.deadlines.insert((deadline, job));
        }
        let entry = Entry {
            plan,
            // One that is to be ended is never ready until then.
            blockers: blockers + usize::from(skipped.is_some()),
            place: Place::Blocked,
        };
        self.group_mut(&entry.plan.group.clone()).queued += 1;
        self.jobs.insert(job, entry);
        self.settle(job);
        skipped
    }

    /// Adds a job that has its turn already.
    pub fn add_taken(&mut self, job: JobId, plan: Plan) {
        self.group_mut(&plan.group.clone()).taken += 1;
        let entry = Entry {
            plan,
            blockers: 0,
            place: Place::Taken,
        };
        self.jobs.insert(job, entry);
    }

    /// Gives jobs their turns, so many at most.
    pub fn take(&mut self, now: Timestamp, room: usize) -> Vec<JobId> {
        while let Some((time, job)) = self.delayed.first().copied()
            && time <= now
        {
            self.delayed.pop_first();
            self.make_ready(job);
        }
        let mut taken = Vec::new();
        while taken.len() < room {
            let usual = self.limit;
            let open = self
                .groups
                .values_mut()
                .filter(|group| !group.paused && group.taken < group.limit.unwrap_or(usual));
            let Some(group) = open
                .filter(|group| !group.ready.is_empty())
                .min_by_key(|group| group.ready.first().copied())
            else {
                break;
            };
            let Some((_, job)) = group.ready.pop_first() else {
                break;
            };
            group.queued -= 1;
            group.taken += 1;
            if let Some(entry) = self.jobs.get_mut(&job) {
                entry.place = Place::Taken;
                if let Some(deadline) = entry.plan.deadline {
                    self.deadlines.remove(&(deadline, job));
                }
            }
            taken.push(job);
        }
        taken
    }

    /// A job that had its turn waits again, until then at least. It comes after nothing any more.
    pub fn requeue(&mut self, job: JobId, not_before: Option<Timestamp>) {
        let Some(entry) = self.jobs.get_mut(&job) else {
            return;
        };
        if entry.place != Place::Taken {
            return;
        }
        entry.place = Place::Blocked;
        entry.blockers = 0;
        entry.plan.not_before = not_before;
        if let Some(deadline) = entry.plan.deadline {
            self.deadlines.insert((deadline, job));
        }
        let name = entry.plan.group.clone();
        let group = self.group_mut(&name);
        group.taken -= 1;
        group.queued += 1;
        self.settle(job);
    }

    /// A job has ended, wherever it was. Those that now can never have their turn are returned: they are to be ended.
    pub fn ended(&mut self, job: JobId, outcome: JobOutcome, succeeded: bool) -> Vec<Skipped> {
        let Some(entry) = self.jobs.remove(&job) else {
            return Vec::new();
        };
        if let Some(deadline) = entry.plan.deadline {
            self.deadlines.remove(&(deadline, job));
        }
        if let Some(time) = entry.plan.not_before {
            self.delayed.remove(&(time, job));
        }
        let group = self.group_mut(&entry.plan.group);
        group.ready.remove(&(Reverse(entry.plan.priority), job));
        match entry.place {
            Place::Taken => group.taken -= 1,
            Place::Blocked | Place::Delayed | Place::Ready => group.queued -= 1,
        }
        let mut skipped = Vec::new();
        for (dependent, rule) in self.dependents.remove(&job).unwrap_or_default() {
            let Some(waiting) = self.jobs.get_mut(&dependent) else {
                continue;
            };
            if rule.is_met(outcome, succeeded) {
                waiting.blockers -= 1;
                self.settle(dependent);
            } else {
                let because = job;
                skipped.push(Skipped {
                    job: dependent,
                    because,
                    rule,
                });
            }
        }
        skipped
    }

    /// Jobs that have not started in time: they are to be ended.
    pub fn late(&self, now: Timestamp) -> Vec<JobId> {
        let late = self.deadlines.iter().take_while(|(time, _)| *time <= now);
        late.map(|(_, job)| *job).collect()
    }

    /// When it must be looked again, if nothing happens before.
    pub fn next(&self) -> Option<Timestamp> {
        let first = |set: &BTreeSet<(Timestamp, JobId)>| set.first().map(|(time, _)| *time);
        let times = [first(&self.delayed), first(&self.deadlines)];
        times.into_iter().flatten().min()
    }

    /// Changes a group, which is there from then on.
    pub fn set_group(&mut self, name: &str, limit: Option<usize>, paused: bool) {
        let group = self.group_mut(name);
        group.limit = limit;
        group.paused = paused;
    }

    /// Takes a group away; false if it has jobs, and stays.
    pub fn remove_group(&mut self, name: &str) -> bool {
        match self.groups.get(name) {
            Some(group) if group.queued + group.taken > 0 => false,
            _ => {
                self.groups.remove(name);
                true
            }
        }
    }

    /// What a group is now.
    pub fn counts(&self, name: &str) -> Counts {
        let group = self.groups.get(name);
        Counts {
            limit: group.and_then(|group| group.limit).unwrap_or(self.limit),
            paused: group.is_some_and(|group| group.paused),
            queued: group.map_or(0, |group| group.queued),
            running: group.map_or(0, |group| group.taken),
        }
    }

    /// Groups, by name.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }

    fn group_mut(&mut self, name: &str) -> &mut Group {
        if !self.groups.contains_key(name) {
            self.groups.insert(name.to_owned(), Group::default());
        }
        self.groups.entry(name.to_owned()).or_default()
    }

    /// Puts a job that comes after nothing any more where it belongs.
    fn settle(&mut self, job: JobId) {
        let Some(entry) = self.jobs.get_mut(&job) else {
            return;
        };
        if entry.blockers > 0 {
            return;
        }
        match entry.plan.not_before {
            Some(time) => {
                entry.place = Place::Delayed;
                self.delayed.insert((time, job));
            }
            None => self.make_ready(job),
        }
    }

    fn make_ready(&mut self, job: JobId) {
        if let Some(entry) = self.jobs.get_mut(&job) {
            entry.place = Place::Ready;
            let (group, key) = (entry.plan.group.clone(), Reverse(entry.plan.priority));
            self.group_mut(&group).ready.insert((key, job));
        }
    }
}

#[cfg(test)]
mod tests;
