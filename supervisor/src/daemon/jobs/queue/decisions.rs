//! What becomes of a job: its turn, its end, another attempt. Nothing here has an effect until it is written down.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use provost_actors::event::ProcessId;
use provost_actors::jobs::schedule::{Plan, Skipped};
use provost_actors::jobs::{AfterRule, JobId, JobOutcome, JobState};
use provost_actors::record::{Outcome, TerminalRecord};
use provost_actors::session::SessionId;
use provost_actors::{NEVER_STARTED, ProcessCommand, ProcessLink};
use tokio::sync::oneshot;

use super::{AGAIN, Ends, Job, State};
use crate::daemon::Daemon;
use crate::protocol::{ErrorKind, RpcError};
use crate::store::{Change, EndRow, JobRow, Transition};

impl State {
    pub(super) fn started(
        &mut self,
        id: JobId,
        process: ProcessId,
        started: Result<ProcessLink, RpcError>,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        match started {
            Ok(link) => {
                if let Some((reason, kill)) = job.row.cancel.clone() {
                    link.tell(ending(reason, kill));
                }
                job.link = Some(link);
                self.no_room_until = None;
                self.run(id, process);
            }
            // It had no chance: not for want of what it is.
            Err(error) if matches!(error.data.kind, ErrorKind::Limit | ErrorKind::ShuttingDown) => {
                if let Some((reason, _)) = job.row.cancel.clone() {
                    let end = EndRow::without(JobOutcome::Cancelled, reason);
                    return self.attempt_ended(id, process, end);
                }
                job.row.state = JobState::Queued;
                job.row.attempt -= 1;
                job.row.process = None;
                self.no_room_until = Some(Instant::now() + AGAIN);
                self.schedule.requeue(id, Some(soon(&self.daemon, AGAIN)));
                self.decide(id, Change::PutBack(process));
            }
            // Its session was closed meanwhile, as whoever closed it is about to say here, too.
            Err(_)
                if job
                    .row
                    .session
                    .is_some_and(|id| self.daemon.state().leases.get(id).is_none()) =>
            {
                let reason = "its session was closed";
                job.row.cancel = Some((reason.to_owned(), false));
                self.attempt_ended(id, process, EndRow::without(JobOutcome::Cancelled, reason));
            }
            Err(error) => {
                let end = EndRow {
                    exit_code: Some(125),
                    ..EndRow::without(JobOutcome::SpawnFailed, error.message)
                };
                self.attempt_ended(id, process, end);
            }
        }
    }

    pub(super) fn run(&mut self, id: JobId, process: ProcessId) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.row.state = JobState::Running;
            self.decide(id, Change::Run(process));
        }
    }

    /// An attempt is over: the job ends, or is tried again.
    pub(super) fn attempt_ended(&mut self, id: JobId, process: ProcessId, mut end: EndRow) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let row = &mut job.row;
        let is_this = row.process == Some(process);
        if !is_this || !matches!(row.state, JobState::Starting | JobState::Running) {
            return;
        }
        let again = match &row.cancel {
            Some((reason, _)) => {
                if end.outcome == JobOutcome::Interrupted {
                    // Nothing of it ran, as was wanted.
                    end = EndRow::without(JobOutcome::Cancelled, reason.clone());
                }
                None
            }
            None => row.retry.after(row.attempt, end.outcome, end.succeeded),
        };
        let again = again.map(|wait| soon(&self.daemon, wait));
        let in_time = |time: &Timestamp| row.deadline.is_none_or(|deadline| *time < deadline);
        let Some(not_before) = again.filter(in_time) else {
            return self.end(id, Some(process), end);
        };
        let reason = again_because(row.attempt, row.retry.times, &end);
        row.state = JobState::Queued;
        row.not_before = Some(not_before);
        job.link = None;
        self.schedule.requeue(id, Some(not_before));
        self.decide(
            id,
            Change::Requeue {
                process,
                end,
                not_before,
                reason,
            },
        );
    }

    /// A job is over, and so are those that can never have their turn now.
    pub(super) fn end(&mut self, id: JobId, process: Option<ProcessId>, end: EndRow) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.row.state = JobState::Ended;
        job.row.end = Some(end.clone());
        let skipped = self.schedule.ended(id, end.outcome, end.succeeded);
        self.decide(id, Change::End { process, end });
        self.skip(skipped);
    }

    /// Not by recursion: a chain may be long.
    pub(super) fn skip(&mut self, mut skipped: Vec<Skipped>) {
        while let Some(Skipped {
            job: id,
            because,
            rule,
        }) = skipped.pop()
        {
            let Some(job) = self.jobs.get_mut(&id) else {
                continue;
            };
            if job.row.state != JobState::Queued {
                continue;
            }
            let wanted = match rule {
                AfterRule::Success => "did not succeed",
                AfterRule::Failure => "did not fail",
                AfterRule::End => "is not known any more",
            };
            let end = EndRow::without(JobOutcome::Skipped, format!("job {because} {wanted}"));
            job.row.state = JobState::Ended;
            job.row.end = Some(end.clone());
            skipped.extend(self.schedule.ended(id, JobOutcome::Skipped, false));
            self.decide(id, Change::End { process: None, end });
        }
    }

    pub(super) fn cancel(&mut self, id: JobId, reason: &str, kill: bool) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        match job.row.state {
            JobState::Ended => {}
            JobState::Queued => self.end(id, None, EndRow::without(JobOutcome::Cancelled, reason)),
            JobState::Starting | JobState::Running => {
                let known = job.row.cancel.as_ref();
                if known.is_some_and(|(_, killed)| *killed || !kill) {
                    return;
                }
                let reason = known.map_or(reason, |(reason, _)| reason).to_owned();
                job.row.cancel = Some((reason.clone(), kill));
                self.decide(id, Change::Cancel { reason, kill });
            }
        }
    }

    pub(super) fn cancel_sessions(&mut self, sessions: &[SessionId], reason: &str) {
        let theirs = |job: &Job| job.row.session.is_some_and(|session| sessions.contains(&session));
        let jobs = self.jobs.iter().filter(|(_, job)| theirs(job));
        let jobs: Vec<JobId> = jobs.map(|(id, _)| *id).collect();
        for job in jobs {
            self.cancel(job, reason, false);
        }
    }

    /// Told when a job has ended: at once, if it is not here.
    pub(super) fn ends(&mut self, id: JobId) -> Ends {
        let (told, ends) = oneshot::channel();
        if let Some(job) = self.jobs.get_mut(&id) {
            job.waiting.push(told);
        }
        ends
    }

    pub(super) fn take_turn(&mut self, id: JobId) {
        if let Some(job) = self.jobs.get_mut(&id) {
            let process = ProcessId::new();
            job.row.state = JobState::Starting;
            job.row.attempt += 1;
            job.row.process = Some(process);
            self.decide(id, Change::Start(process));
        }
    }

    fn decide(&mut self, job: JobId, change: Change) {
        let time = Timestamp::now();
        self.decided.push(Transition { job, time, change });
    }
}

impl EndRow {
    /// An end without a process.
    pub(in crate::daemon::jobs) fn without(outcome: JobOutcome, reason: impl Into<String>) -> Self {
        Self {
            outcome,
            reason: Some(reason.into()),
            exit_code: None,
            signal: None,
            succeeded: false,
            denied: false,
            result: None,
            result_left_out: false,
            result_error: None,
            started_at: None,
            ended_at: Timestamp::now(),
            duration_ms: 0,
        }
    }
}

/// What a record says of an attempt.
pub(super) fn end_of(record: &TerminalRecord) -> EndRow {
    let never = record.started_at.is_none()
        && record.outcome == Outcome::SpawnFailed
        && record.reason.as_deref() == Some(NEVER_STARTED);
    EndRow {
        outcome: match never {
            true => JobOutcome::Interrupted,
            false => record.outcome.into(),
        },
        reason: record.reason.clone(),
        exit_code: record.exit_code,
        signal: record.signal.clone(),
        succeeded: record.succeeded,
        denied: record.denied,
        result: record.result.clone(),
        result_left_out: false,
        result_error: record.result_error.clone(),
        started_at: record.started_at,
        ended_at: record.ended_at,
        duration_ms: record.duration_ms,
    }
}

pub(super) fn plan(row: &JobRow) -> Plan {
    Plan {
        group: row.group.clone(),
        priority: row.priority,
        // What it comes after is behind it once it had its turn.
        after: match row.attempt {
            0 => row.after.clone(),
            _ => Vec::new(),
        },
        not_before: row.not_before,
        deadline: row.deadline,
    }
}

fn again_because(attempt: u32, times: u32, end: &EndRow) -> String {
    let how = serde_json::to_value(end.outcome).unwrap_or_default();
    let how = how.as_str().unwrap_or_default();
    let code = end.exit_code.map_or(String::new(), |code| format!(" {code}"));
    let why = end
        .reason
        .as_ref()
        .map_or(String::new(), |why| format!(" ({why})"));
    // Interruptions are not counted there.
    let of = match attempt <= times {
        true => format!(" of {}", times.saturating_add(1)),
        false => String::new(),
    };
    format!("attempt {attempt}{of} ended: {how}{code}{why}")
}

pub(super) fn ending(reason: String, kill: bool) -> ProcessCommand {
    match kill {
        true => ProcessCommand::Kill { reason },
        false => ProcessCommand::Stop { reason, grace: None },
    }
}

fn soon(daemon: &Daemon, wait: Duration) -> Timestamp {
    daemon.steady_now().checked_add(wait).unwrap_or(Timestamp::MAX)
}
