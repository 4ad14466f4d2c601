//! Decisions are written down together, and then carried out.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use provost_actors::jobs::{JobOutcome, JobState};
use ractor::ActorRef;

use super::decisions::ending;
use super::{AGAIN, Job, QueueMsg, State};
use crate::daemon::jobs::start::{Attempt, attempt};
use crate::store::{Change, EndRow, Transition};

/// How late it may be told that a process runs.
const RUNS_WAIT: Duration = Duration::from_millis(20);

impl State {
    pub(super) fn flush_soon(&mut self, myself: &ActorRef<QueueMsg>) {
        if !self.flushing {
            self.flushing = true;
            let _ = myself.send_message(QueueMsg::Flush);
        }
    }

    pub(super) async fn flush(&mut self, myself: &ActorRef<QueueMsg>) {
        let now = self.daemon.steady_now();
        for job in self.schedule.late(now) {
            let reason = "its deadline passed before it could start";
            self.end(job, None, EndRow::without(JobOutcome::TimedOut, reason));
        }
        let mut wake = None;
        let gives_turns =
            !self.daemon.0.stopping.is_cancelled() && !self.daemon.0.leaving.begun.is_cancelled();
        if gives_turns {
            let room = self.room();
            for id in self.schedule.take(now, room) {
                self.take_turn(id);
            }
            // What ends elsewhere is not told here.
            wake = (room == 0 && self.schedule.len() > 0).then_some(AGAIN);
        }
        if let Some(waits) = self.may_wait() {
            wake = Some(wake.map_or(waits, |wake| wake.min(waits)));
        } else if !self.decided.is_empty() {
            self.told_late = None;
            match self.store.move_jobs(self.decided.clone()).await {
                Ok((done, seq)) => {
                    for (transition, done) in std::mem::take(&mut self.decided).into_iter().zip(done) {
                        self.act(myself, transition, done);
                    }
                    self.last.send_replace(seq);
                }
                Err(error) => {
                    tracing::error!(%error, "changes of jobs cannot be written down; they wait");
                    wake = Some(AGAIN);
                }
            }
        }
        // Without turns nothing is due: what was would be due again and again.
        let next = self.schedule.next().filter(|_| gives_turns);
        let next = next.map(|next| until(next, self.daemon.steady_now()));
        let wake = match (wake, next) {
            (Some(wake), Some(next)) => Some(wake.min(next)),
            (wake, next) => wake.or(next),
        };
        if let Some(timer) = self.timer.take() {
            timer.abort();
        }
        if let Some(wake) = wake {
            let myself = myself.clone();
            self.timer = Some(tokio::spawn(async move {
                tokio::time::sleep(wake).await;
                let _ = myself.send_message(QueueMsg::Flush);
            }));
        }
        if !self.decided.is_empty() && wake.is_none() {
            self.flush_soon(myself);
        }
        let is_starting = |job: &Job| job.row.state == JobState::Starting;
        if !self.settling.is_empty() && self.decided.is_empty() && !self.jobs.values().any(is_starting) {
            // Dropping what waits tells them.
            self.settling.clear();
        }
    }

    /// How many may have their turn. None where nothing can be kept: they wait for better days, and are not spent on these.
    fn room(&self) -> usize {
        let most = match self.no_room_until {
            Some(time) if Instant::now() < time => 0,
            Some(_) => 1,
            None => usize::MAX,
        };
        let keeping = self.daemon.0.tree.keeping();
        let is_kept = || keeping.is_none_or(|keeping| keeping.spool.trouble().is_none());
        match most > 0 && is_kept() && self.store.health().trouble().is_none() {
            true => self.daemon.room().min(most),
            false => 0,
        }
    }

    /// How long all that was decided may wait to be written down with what comes next. That a process runs, which nobody waits
    /// for, and which whoever comes after a crash finds out, is no reason for a transaction of its own.
    fn may_wait(&mut self) -> Option<Duration> {
        let runs = |transition: &Transition| matches!(transition.change, Change::Run(_));
        if self.decided.is_empty() || !self.decided.iter().all(runs) {
            return None;
        }
        let since = self.told_late.get_or_insert_with(Instant::now);
        RUNS_WAIT.checked_sub(since.elapsed())
    }

    /// What was decided is written down, or the database knows better.
    fn act(&mut self, myself: &ActorRef<QueueMsg>, transition: Transition, done: bool) {
        let id = transition.job;
        if !done && !matches!(transition.change, Change::Cancel { .. }) {
            // Somebody else has changed it there.
            tracing::error!(job = %id, change = ?transition.change, "the database does not take this");
        }
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        match transition.change {
            Change::Start(process) if done => match &job.row.cancel {
                None => {
                    let attempt_of = Attempt::new(&job.row, &job.spec, process);
                    tokio::spawn(attempt(self.daemon.clone(), myself.clone(), attempt_of));
                }
                Some((reason, _)) => {
                    let end = EndRow::without(JobOutcome::Cancelled, reason.clone());
                    self.attempt_ended(id, process, end);
                    self.flush_soon(myself);
                }
            },
            Change::Start(_) => {
                let skipped = self.schedule.ended(id, JobOutcome::Lost, false);
                self.jobs.remove(&id);
                self.skip(skipped);
                self.flush_soon(myself);
            }
            Change::Cancel { reason, kill } => {
                if let Some(link) = &job.link {
                    link.tell(ending(reason, kill));
                }
            }
            Change::End { .. } => {
                // Dropping what waits tells them.
                self.jobs.remove(&id);
                self.notices.ended();
            }
            Change::Run(_) | Change::PutBack(_) | Change::Requeue { .. } => {}
        }
    }
}

fn until(time: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(time.duration_since(now)).unwrap_or_default()
}
