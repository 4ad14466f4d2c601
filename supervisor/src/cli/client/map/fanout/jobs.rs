//! A map's jobs: what the daemon has of them, those that it is to have, and those that are given up.

use std::collections::HashMap;

use super::{Ended, Run};
use crate::cli::client::said;
use crate::client::{ClientError, Followed, Lasting};
use crate::map::{HaltWhen, Row};
use crate::protocol::{
    JOBS_PER_ANSWER_MAX, JobCancel, JobEnd, JobFollow, JobGroup, JobGroupInfo, JobInfo, JobItem,
    JobList, JobOutcome, JobState, JobSubmit, JobsCancelled, JobsListed, JobsSubmitted,
};

/// The labels that say of which map a job is, and for which item.
const MAP_LABEL: &str = "provost.map";
const ITEM_LABEL: &str = "provost.item";
/// Why jobs are cancelled when there were too many failures. It says so in their ends, by which `--resume` knows them.
const GIVEN_UP: &str = "the map was given up after too many failures";
/// What the daemon has of a map before some of it has ended.
const AHEAD: usize = 20_000;
/// Items of one request, and bytes of their arguments.
const BATCH: usize = 1000;
const BATCH_BYTES: usize = 1 << 20;

impl Run<'_> {
    /// Follows, and finds out what the daemon has of the map.
    pub(super) async fn begin(&mut self) -> Result<Followed, String> {
        let client = &self.map.client;
        let group = JobGroup {
            group: Some(self.map.plan.group()),
            limit: Some(self.map.plan.at_a_time),
            paused: (!self.halted).then_some(false),
            temporary: true,
            ..JobGroup::default()
        };
        let _: JobGroupInfo = client.call("job/group", &group).await.map_err(said)?;
        let asked = JobFollow {
            all: true,
            group: Some(self.map.plan.group()),
            ..JobFollow::default()
        };
        // From now on, and then what there is: nothing ends in between unseen.
        let (_, events) = client.follow_jobs(&asked).await.map_err(said)?;
        let mut had: HashMap<usize, (usize, JobInfo)> = HashMap::new();
        for job in listed(client, &self.map.plan.group(), Vec::new())
            .await
            .map_err(said)?
        {
            let Some(item) = self.item_of(&job) else {
                continue;
            };
            let count = had.get(&item).map_or(0, |(count, _)| *count);
            // The oldest first: the last one counts.
            had.insert(item, (count + 1, job));
        }
        self.again.clear();
        for item in 1..=self.all() {
            if self.journal.has_ended(item)
                || self.seen.contains(&item)
                || self.given_up.contains_key(&item)
            {
                continue;
            }
            match had.remove(&item) {
                Some((count, job)) if !self.halted && is_given_up(job.end.as_ref()) => {
                    self.again.push_back((item, count));
                }
                Some((_, job)) => {
                    self.jobs.insert(job.job, item);
                    self.known.insert(item);
                    if let Some(end) = job.end {
                        let (job, process, attempt) = (job.job, job.process, job.attempt);
                        self.ended(
                            item,
                            Ended {
                                job,
                                process,
                                attempt,
                                end,
                            },
                        );
                    }
                }
                None if item <= self.journal.submitted() => self.lost(item),
                None => {}
            }
        }
        Ok(events)
    }

    /// Which item a job is for, if it is of this map.
    fn item_of(&self, job: &JobInfo) -> Option<usize> {
        let labels = &job.labels;
        let item = labels.get(ITEM_LABEL)?.parse().ok()?;
        (labels.get(MAP_LABEL) == Some(&self.map.plan.id) && (1..=self.all()).contains(&item))
            .then_some(item)
    }

    /// The daemon had it, and has it no more.
    fn lost(&mut self, item: usize) {
        self.seen.insert(item);
        self.known.insert(item);
        let reason = "the daemon has forgotten it: it ended and kept nothing (--no-state), or its jobs were forgotten";
        self.ends.push_back(Row {
            item,
            outcome: "lost".to_owned(),
            reason: Some(reason.to_owned()),
            ..Row::default()
        });
    }

    /// Submits what was not submitted, as far as the daemon is to have it.
    pub(super) async fn submit(&mut self) -> Result<(), String> {
        while !self.halted && (self.next <= self.all() || !self.again.is_empty()) {
            if self.known.len() - self.seen.len() >= AHEAD {
                break;
            }
            let (mut numbers, mut jobs, mut bytes) = (Vec::new(), Vec::new(), 0);
            while jobs.len() < BATCH && bytes < BATCH_BYTES {
                let (item, count) = match self.again.pop_front() {
                    Some(again) => again,
                    None if self.next <= self.all() => {
                        self.next += 1;
                        (self.next - 1, 0)
                    }
                    None => break,
                };
                let waits = self.again.iter().any(|(again, _)| *again == item);
                if waits || self.known.contains(&item) || self.journal.has_ended(item) {
                    continue;
                }
                let job = self.job(item, count)?;
                bytes += job.argv.iter().flatten().map(String::len).sum::<usize>();
                numbers.push(item);
                jobs.push(job);
            }
            if !jobs.is_empty() {
                let asked = JobSubmit {
                    spec: self.map.plan.spec.clone(),
                    group: Some(self.map.plan.group()),
                    retry: Some(self.map.plan.retry.clone()),
                    jobs,
                    ..JobSubmit::default()
                };
                let submitted = self.map.client.call("job/submit", &asked).await;
                let submitted: JobsSubmitted = submitted.map_err(said)?;
                for (item, submitted) in numbers.iter().zip(&submitted.jobs) {
                    self.jobs.insert(submitted.job, *item);
                    self.known.insert(*item);
                }
            }
            let submitted = self.journal.set_submitted(self.next - 1);
            submitted.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// The job of an item that has had so many. Asked for twice, it is submitted once.
    fn job(&self, item: usize, count: usize) -> Result<JobItem, String> {
        let (map, id) = (&self.map, &self.map.plan.id);
        let argv = map
            .template
            .expand(item, &map.items.list[item - 1], &map.items.columns);
        let labels = [(MAP_LABEL, id.clone()), (ITEM_LABEL, item.to_string())];
        Ok(JobItem {
            request_id: Some(match count {
                0 => format!("{id}/{item}"),
                count => format!("{id}/{item}/{count}"),
            }),
            argv: Some(argv.map_err(|error| error.to_string())?),
            labels: labels.map(|(label, value)| (label.to_owned(), value)).into(),
            ..JobItem::default()
        })
    }

    /// Nothing more starts.
    pub(super) fn give_up(&mut self, when: HaltWhen) {
        self.halted = true;
        for item in 1..=self.all() {
            if !self.known.contains(&item) && !self.journal.has_ended(item) {
                let row = Row {
                    item,
                    outcome: "cancelled".to_owned(),
                    reason: Some(GIVEN_UP.to_owned()),
                    ..Row::default()
                };
                self.given_up.insert(item, row);
            }
        }
        let (client, group) = (self.map.client.clone(), self.map.plan.group());
        self.halting = Some(Box::pin(halt(client, group, when)));
    }
}

/// A job that ended because its map was given up: it has not ended by itself.
pub(super) fn is_given_up(end: Option<&JobEnd>) -> bool {
    let says_so = |end: &JobEnd| {
        end.reason
            .as_deref()
            .is_some_and(|reason| reason.contains(GIVEN_UP))
    };
    end.is_some_and(|end| end.outcome == JobOutcome::Cancelled && says_so(end))
}

/// All jobs of a group in one of these states, the oldest first.
async fn listed(
    client: &Lasting,
    group: &str,
    states: Vec<JobState>,
) -> Result<Vec<JobInfo>, ClientError> {
    let mut asked = JobList {
        all: true,
        group: Some(group.to_owned()),
        states,
        ..JobList::default()
    };
    let mut jobs = Vec::new();
    loop {
        let page: JobsListed = client.call("job/list", &asked).await?;
        jobs.extend(page.jobs);
        asked.after = jobs.last().map(|job| job.job);
        if !page.more {
            return Ok(jobs);
        }
    }
}

/// Cancels what has not started, or all that has not ended.
async fn halt(client: Lasting, group: String, when: HaltWhen) -> Result<(), ClientError> {
    let pause = JobGroup {
        group: Some(group.clone()),
        paused: Some(true),
        ..JobGroup::default()
    };
    // From here on nothing starts, so that what waits now is all that waits.
    let _: JobGroupInfo = client.call("job/group", &pause).await?;
    let mut asked = JobCancel {
        reason: Some(GIVEN_UP.to_owned()),
        ..JobCancel::default()
    };
    if when == HaltWhen::Now {
        asked.group = Some(group);
        let _: JobsCancelled = client.call("job/cancel", &asked).await?;
        return Ok(());
    }
    let waiting = listed(&client, &group, vec![JobState::Queued]).await?;
    for jobs in waiting.chunks(JOBS_PER_ANSWER_MAX) {
        asked.jobs = jobs.iter().map(|job| job.job.to_string()).collect();
        let _: JobsCancelled = client.call("job/cancel", &asked).await?;
    }
    Ok(())
}
