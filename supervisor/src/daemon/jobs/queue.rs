//! JobQueue: the actor that decides about jobs.
//!
//! A message makes decisions, which wait together until they are written down; only then they have effects. What comes while
//! something is written waits in the mailbox, and is written down together the next time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use provost_actors::event::ProcessId;
use provost_actors::jobs::schedule::{Counts, Plan, Schedule, Skipped};
use provost_actors::jobs::{JobId, JobOutcome, JobState};
use provost_actors::record::{Outcome, TerminalRecord};
use provost_actors::session::SessionId;
use provost_actors::{NEVER_STARTED, ProcessCommand, ProcessLink};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;

use super::start::{Attempt, attempt, watch_process};
use crate::daemon::Daemon;
use crate::protocol::{ErrorKind, JOBS_MAX, ProcessStart, RpcError};
use crate::store::{Change, EndRow, GroupRow, JobRow, Store, StoreError, Submitted, Transition};

/// How long it takes until what could not be done is tried again.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) struct JobQueue;

#[derive(Debug)]
pub(super) enum QueueMsg {
    /// Jobs are to be queued. Answered when that is written down.
    Submit {
        spec: Arc<ProcessStart>,
        rows: Vec<JobRow>,
        /// In JSON.
        notices: Vec<String>,
        reply: oneshot::Sender<Result<Submitted, SubmitError>>,
    },
    /// The process of an attempt was accepted, or not.
    Started {
        job: JobId,
        process: ProcessId,
        started: Result<ProcessLink, RpcError>,
    },
    /// It has its record.
    ProcessEnded {
        job: JobId,
        process: ProcessId,
        record: Arc<TerminalRecord>,
    },
    /// Jobs are to be ended. Whoever asks is told when each has.
    Cancel {
        jobs: Vec<JobId>,
        reason: String,
        kill: bool,
        reply: oneshot::Sender<Vec<Ends>>,
    },
    /// Those of sessions that are no more.
    CancelSessions {
        sessions: Vec<SessionId>,
        reason: String,
    },
    /// When have these ended?
    Await {
        jobs: Vec<JobId>,
        reply: oneshot::Sender<Vec<Ends>>,
    },
    /// Change a group, if anything is to be changed.
    Group {
        name: String,
        limit: Option<usize>,
        paused: Option<bool>,
        temporary: bool,
        reply: oneshot::Sender<Result<Counts, StoreError>>,
    },
    /// Take one away; false if it has jobs.
    RemoveGroup {
        name: String,
        reply: oneshot::Sender<Result<bool, StoreError>>,
    },
    Groups {
        reply: oneshot::Sender<Vec<(String, Counts)>>,
    },
    /// Write down what was decided, and see what may start.
    Flush,
}

/// Done, in one way or the other, when a job has ended.
pub(super) type Ends = oneshot::Receiver<()>;

/// Jobs were not queued.
#[derive(Debug)]
pub(super) enum SubmitError {
    /// The one at this place has the word of another one.
    Conflict(usize),
    /// There are too many.
    Full,
    Store(StoreError),
}

/// What an earlier daemon left.
pub(super) struct Recovery {
    pub(super) daemon: Daemon,
    pub(super) store: Store,
    pub(super) last: watch::Sender<u64>,
    pub(super) notices: Arc<Notify>,
    pub(super) rows: Vec<JobRow>,
    pub(super) groups: Vec<GroupRow>,
    pub(super) specs: HashMap<i64, Arc<ProcessStart>>,
    /// Ended ones that others come after.
    pub(super) ended: HashMap<JobId, JobRow>,
    /// Of those that are not queued.
    pub(super) found: HashMap<JobId, Found>,
}

/// What there is of an attempt that was under way.
pub(super) enum Found {
    Process(ProcessLink),
    Record(Arc<TerminalRecord>),
    Nothing,
}

pub(super) struct State {
    daemon: Daemon,
    store: Store,
    last: watch::Sender<u64>,
    notices: Arc<Notify>,
    schedule: Schedule,
    /// Those that have not ended, as far as that is written down.
    jobs: HashMap<JobId, Job>,
    groups: BTreeMap<String, GroupRow>,
    /// Decisions that are not written down.
    decided: Vec<Transition>,
    /// A `Flush` is in the mailbox.
    flushing: bool,
    timer: Option<JoinHandle<()>>,
}

/// A job, as it was decided.
struct Job {
    row: JobRow,
    spec: Arc<ProcessStart>,
    link: Option<ProcessLink>,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Actor for JobQueue {
    type Msg = QueueMsg;
    type State = State;
    type Arguments = Recovery;

    async fn pre_start(
        &self,
        myself: ActorRef<QueueMsg>,
        recovery: Recovery,
    ) -> Result<State, ActorProcessingErr> {
        Ok(State::recover(&myself, recovery))
    }

    async fn handle(
        &self,
        myself: ActorRef<QueueMsg>,
        message: QueueMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            QueueMsg::Submit {
                spec,
                rows,
                notices,
                reply,
            } => {
                let _ = reply.send(state.submit(spec, rows, notices).await);
            }
            QueueMsg::Started {
                job,
                process,
                started,
            } => state.started(job, process, started),
            QueueMsg::ProcessEnded { job, process, record } => {
                state.attempt_ended(job, process, end_of(&record));
            }
            QueueMsg::Cancel {
                jobs,
                reason,
                kill,
                reply,
            } => {
                let ends = jobs.iter().map(|job| {
                    state.cancel(*job, &reason, kill);
                    state.ends(*job)
                });
                let _ = reply.send(ends.collect());
            }
            QueueMsg::CancelSessions { sessions, reason } => state.cancel_sessions(&sessions, &reason),
            QueueMsg::Await { jobs, reply } => {
                let _ = reply.send(jobs.iter().map(|job| state.ends(*job)).collect());
            }
            QueueMsg::Group {
                name,
                limit,
                paused,
                temporary,
                reply,
            } => {
                let _ = reply.send(state.group(name, limit, paused, temporary).await);
            }
            QueueMsg::RemoveGroup { name, reply } => {
                let _ = reply.send(state.remove_group(name).await);
            }
            QueueMsg::Groups { reply } => {
                let groups = state.schedule.groups();
                let groups = groups.map(|name| (name.to_owned(), state.schedule.counts(name)));
                let _ = reply.send(groups.collect());
            }
            QueueMsg::Flush => {
                state.flushing = false;
                return {
                    state.flush(&myself).await;
                    Ok(())
                };
            }
        }
        state.flush_soon(&myself);
        Ok(())
    }
}

impl State {
    fn recover(myself: &ActorRef<QueueMsg>, recovery: Recovery) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let mut state = Self {
            daemon: recovery.daemon,
            store: recovery.store,
            last: recovery.last,
            notices: recovery.notices,
            schedule: Schedule::new(processors),
            jobs: HashMap::new(),
            groups: BTreeMap::new(),
            decided: Vec::new(),
            flushing: false,
            timer: None,
        };
        for group in recovery.groups {
            state.schedule.set_group(&group.name, group.limit, group.paused);
            state.groups.insert(group.name.clone(), group);
        }
        let mut found = recovery.found;
        let mut skipped: Vec<Skipped> = Vec::new();
        // Whoever has its turn comes first: others may come after it, and be submitted before.
        let (waiting, under_way): (Vec<JobRow>, Vec<JobRow>) = recovery
            .rows
            .into_iter()
            .partition(|row| row.state == JobState::Queued);
        for row in under_way.into_iter().chain(waiting) {
            let id = row.id;
            let spec = recovery.specs.get(&row.spec).cloned().unwrap_or_default();
            let (plan, was, process) = (plan(&row), row.state, row.process);
            let cancel = row.cancel.clone();
            let job = Job {
                row,
                spec,
                link: None,
                waiting: Vec::new(),
            };
            state.jobs.insert(id, job);
            let Some(process) = process.filter(|_| was != JobState::Queued) else {
                let ended = |job| {
                    let end = recovery.ended.get(&job)?.end.as_ref()?;
                    Some((end.outcome, end.succeeded))
                };
                skipped.extend(state.schedule.add(id, plan, ended));
                continue;
            };
            state.schedule.add_taken(id, plan);
            match found.remove(&id).unwrap_or(Found::Nothing) {
                Found::Process(link) => {
                    if was == JobState::Starting && link.record().is_none() {
                        state.run(id, process);
                    }
                    if let Some((reason, kill)) = cancel {
                        link.tell(ending(reason, kill));
                    }
                    if let Some(job) = state.jobs.get_mut(&id) {
                        job.link = Some(link.clone());
                    }
                    tokio::spawn(watch_process(myself.clone(), id, process, link));
                }
                Found::Record(record) => state.attempt_ended(id, process, end_of(&record)),
                Found::Nothing if was == JobState::Starting => {
                    let reason = "the daemon died before its process was started; nothing of it ran";
                    let end = EndRow::without(JobOutcome::Interrupted, reason);
                    state.attempt_ended(id, process, end);
                }
                Found::Nothing => {
                    let reason = "nothing is known of its process any more";
                    state.attempt_ended(id, process, EndRow::without(JobOutcome::Lost, reason));
                }
            }
        }
        state.skip(skipped);
        state.flush_soon(myself);
        state
    }

    async fn submit(
        &mut self,
        spec: Arc<ProcessStart>,
        rows: Vec<JobRow>,
        notices: Vec<String>,
    ) -> Result<Submitted, SubmitError> {
        if self.jobs.len() + rows.len() > JOBS_MAX {
            return Err(SubmitError::Full);
        }
        let json = serde_json::to_string(&*spec).unwrap_or_default();
        let written = self.store.submit_jobs(json, rows.clone(), notices).await;
        let submitted = match written {
            Ok(Ok(submitted)) => submitted,
            Ok(Err(place)) => return Err(SubmitError::Conflict(place)),
            Err(error) => return Err(SubmitError::Store(error)),
        };
        // Of those that it is to come after and are not here; what is here is known better here.
        let after: HashSet<JobId> = rows
            .iter()
            .flat_map(|row| row.after.iter().map(|(job, _)| *job))
            .collect();
        let elsewhere: Vec<JobId> = after
            .into_iter()
            .filter(|job| !self.jobs.contains_key(job))
            .collect();
        let ended = match elsewhere.is_empty() {
            true => HashMap::new(),
            false => {
                let read = self.store.read(move |reader| reader.jobs_of(&elsewhere));
                read.await.map_err(SubmitError::Store)?
            }
        };
        let mut skipped = Vec::new();
        for (mut row, (id, repeated)) in rows.into_iter().zip(&submitted.jobs) {
            if *repeated {
                continue;
            }
            row.spec = submitted.spec;
            let plan = plan(&row);
            let known = |job: JobId| {
                let here = self.jobs.get(&job).map(|job| &job.row);
                let end = here.or_else(|| ended.get(&job))?.end.as_ref()?;
                Some((end.outcome, end.succeeded))
            };
            skipped.extend(self.schedule.add(*id, plan, known));
            let spec = spec.clone();
            let job = Job {
                row,
                spec,
                link: None,
                waiting: Vec::new(),
            };
            self.jobs.insert(*id, job);
        }
        self.last.send_replace(submitted.seq);
        self.skip(skipped);
        Ok(submitted)
    }

    fn started(&mut self, id: JobId, process: ProcessId, started: Result<ProcessLink, RpcError>) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        match started {
            Ok(link) => {
                if let Some((reason, kill)) = job.row.cancel.clone() {
                    link.tell(ending(reason, kill));
                }
                job.link = Some(link);
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
                self.schedule.requeue(id, Some(soon(AGAIN)));
                self.decide(id, Change::PutBack(process));
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

    fn run(&mut self, id: JobId, process: ProcessId) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.row.state = JobState::Running;
            self.decide(id, Change::Run(process));
        }
    }

    /// An attempt is over: the job ends, or is tried again.
    fn attempt_ended(&mut self, id: JobId, process: ProcessId, mut end: EndRow) {
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
        let again = again.map(soon);
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
    fn end(&mut self, id: JobId, process: Option<ProcessId>, end: EndRow) {
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
    fn skip(&mut self, mut skipped: Vec<Skipped>) {
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
                provost_actors::jobs::AfterRule::Success => "did not succeed",
                provost_actors::jobs::AfterRule::Failure => "did not fail",
                provost_actors::jobs::AfterRule::End => "is not known any more",
            };
            let end = EndRow::without(JobOutcome::Skipped, format!("job {because} {wanted}"));
            job.row.state = JobState::Ended;
            job.row.end = Some(end.clone());
            skipped.extend(self.schedule.ended(id, JobOutcome::Skipped, false));
            self.decide(id, Change::End { process: None, end });
        }
    }

    fn cancel(&mut self, id: JobId, reason: &str, kill: bool) {
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

    fn cancel_sessions(&mut self, sessions: &[SessionId], reason: &str) {
        let theirs = |job: &Job| job.row.session.is_some_and(|session| sessions.contains(&session));
        let jobs = self.jobs.iter().filter(|(_, job)| theirs(job));
        let jobs: Vec<JobId> = jobs.map(|(id, _)| *id).collect();
        for job in jobs {
            self.cancel(job, reason, false);
        }
    }

    /// Told when a job has ended: at once, if it is not here.
    fn ends(&mut self, id: JobId) -> Ends {
        let (told, ends) = oneshot::channel();
        if let Some(job) = self.jobs.get_mut(&id) {
            job.waiting.push(told);
        }
        ends
    }

    async fn group(
        &mut self,
        name: String,
        limit: Option<usize>,
        paused: Option<bool>,
        temporary: bool,
    ) -> Result<Counts, StoreError> {
        let known = self.groups.get(&name);
        let row = GroupRow {
            name: name.clone(),
            limit: limit.or_else(|| known.and_then(|known| known.limit)),
            paused: paused.unwrap_or_else(|| known.is_some_and(|known| known.paused)),
            temporary: known.map_or(temporary, |known| known.temporary),
        };
        if known != Some(&row) {
            self.store.set_group(row.clone()).await?;
            self.schedule.set_group(&name, row.limit, row.paused);
            self.groups.insert(name.clone(), row);
        }
        Ok(self.schedule.counts(&name))
    }

    async fn remove_group(&mut self, name: String) -> Result<bool, StoreError> {
        let counts = self.schedule.counts(&name);
        if counts.queued + counts.running > 0 {
            return Ok(false);
        }
        self.store.remove_group(name.clone()).await?;
        self.groups.remove(&name);
        Ok(self.schedule.remove_group(&name))
    }

    fn decide(&mut self, job: JobId, change: Change) {
        let time = Timestamp::now();
        self.decided.push(Transition { job, time, change });
    }

    fn flush_soon(&mut self, myself: &ActorRef<QueueMsg>) {
        if !self.flushing {
            self.flushing = true;
            let _ = myself.send_message(QueueMsg::Flush);
        }
    }

    async fn flush(&mut self, myself: &ActorRef<QueueMsg>) {
        let now = Timestamp::now();
        for job in self.schedule.late(now) {
            let reason = "its deadline passed before it could start";
            self.end(job, None, EndRow::without(JobOutcome::TimedOut, reason));
        }
        let mut wake = None;
        if !self.daemon.0.stopping.is_cancelled() && !self.daemon.0.leaving.begun.is_cancelled() {
            let room = self.daemon.room();
            for id in self.schedule.take(now, room) {
                self.take_turn(id);
            }
            // What ends elsewhere is not told here.
            wake = (room == 0 && self.schedule.len() > 0).then_some(AGAIN);
        }
        if !self.decided.is_empty() {
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
        let next = self.schedule.next().map(|next| until(next, Timestamp::now()));
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
    }

    fn take_turn(&mut self, id: JobId) {
        if let Some(job) = self.jobs.get_mut(&id) {
            let process = ProcessId::new();
            job.row.state = JobState::Starting;
            job.row.attempt += 1;
            job.row.process = Some(process);
            self.decide(id, Change::Start(process));
        }
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
                self.notices.notify_one();
            }
            Change::Run(_) | Change::PutBack(_) | Change::Requeue { .. } => {}
        }
    }
}

impl EndRow {
    /// An end without a process.
    pub(super) fn without(outcome: JobOutcome, reason: impl Into<String>) -> Self {
        Self {
            outcome,
            reason: Some(reason.into()),
            exit_code: None,
            signal: None,
            succeeded: false,
            denied: false,
            started_at: None,
            ended_at: Timestamp::now(),
            duration_ms: 0,
        }
    }
}

/// What a record says of an attempt.
fn end_of(record: &TerminalRecord) -> EndRow {
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
        started_at: record.started_at,
        ended_at: record.ended_at,
        duration_ms: record.duration_ms,
    }
}

fn plan(row: &JobRow) -> Plan {
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
    format!(
        "attempt {attempt} of {} ended: {how}{code}{why}",
        times.saturating_add(1)
    )
}

fn ending(reason: String, kill: bool) -> ProcessCommand {
    match kill {
        true => ProcessCommand::Kill { reason },
        false => ProcessCommand::Stop { reason, grace: None },
    }
}

fn soon(wait: Duration) -> Timestamp {
    Timestamp::now().checked_add(wait).unwrap_or(Timestamp::MAX)
}

fn until(time: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(time.duration_since(now)).unwrap_or_default()
}
