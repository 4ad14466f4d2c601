//! Jobs in the database: every change of a state is one `UPDATE … WHERE state = …`, and the event that tells of it is written
//! with it.

pub(super) mod query;
pub(super) mod statements;

use std::collections::BTreeMap;

use jiff::Timestamp;
use provost_actors::event::ProcessId;
use provost_actors::jobs::{AfterRule, JobId, JobOutcome, JobState, RetryRule};
use provost_actors::reported::ReportedValue;
use provost_actors::session::SessionId;

pub use self::query::{JobQuery, RESULT_BYTES_PER_READ};
use super::statements::{Write, Written};
use super::{Request, Store, StoreError};

/// A job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRow {
    /// Its id.
    pub id: JobId,
    /// What the client called it.
    pub request: Option<Request>,
    /// The session it belongs to.
    pub session: Option<SessionId>,
    /// Its name.
    pub name: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Its group.
    pub group: String,
    /// Its priority.
    pub priority: i32,
    /// What it comes after.
    pub after: Vec<(JobId, AfterRule)>,
    /// Whether and when it is tried again.
    pub retry: RetryRule,
    /// When it was accepted.
    pub submitted_at: Timestamp,
    /// Not before then.
    pub not_before: Option<Timestamp>,
    /// To be over by then.
    pub deadline: Option<Timestamp>,
    /// The job that this one is another run of.
    pub retry_of: Option<JobId>,
    /// How far it has come.
    pub state: JobState,
    /// How often it had its turn.
    pub attempt: u32,
    /// The process of the last attempt.
    pub process: Option<ProcessId>,
    /// Why it was cancelled, if it was, and whether it is to be killed.
    pub cancel: Option<(String, bool)>,
    /// The row of its spec; 0 for one that is not written yet.
    pub spec: i64,
    /// What became of it, if it has ended.
    pub end: Option<EndRow>,
}

/// What became of a job, or of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndRow {
    /// How it ended.
    pub outcome: JobOutcome,
    /// Why.
    pub reason: Option<String>,
    /// The exit code.
    pub exit_code: Option<i32>,
    /// The signal.
    pub signal: Option<String>,
    /// It exited with 0.
    pub succeeded: bool,
    /// Something was denied.
    pub denied: bool,
    /// The result that it reported, as its record has it.
    pub result: Option<ReportedValue>,
    /// It has one, which was not read because there was no room for it.
    pub result_left_out: bool,
    /// Why there is none, though it reported something or nobody knows.
    pub result_error: Option<String>,
    /// When its process started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Timestamp,
    /// How long its process ran.
    pub duration_ms: u64,
}

/// A change of one job.
#[derive(Debug, Clone)]
pub struct Transition {
    /// Of which.
    pub job: JobId,
    /// When.
    pub time: Timestamp,
    /// Which.
    pub change: Change,
}

/// What can change.
#[derive(Debug, Clone)]
pub enum Change {
    /// From queued to starting: this will be its process.
    Start(ProcessId),
    /// From starting to running.
    Run(ProcessId),
    /// From starting to queued, as if it had not had its turn.
    PutBack(ProcessId),
    /// From starting or running to queued: the attempt ended so, and there is to be another.
    Requeue {
        /// The attempt's process.
        process: ProcessId,
        /// How that ended.
        end: EndRow,
        /// When there is to be another.
        not_before: Timestamp,
        /// Why, in words.
        reason: String,
    },
    /// From queued, or with its process from starting or running, to ended.
    End {
        /// The last attempt's process, if it has its turn.
        process: Option<ProcessId>,
        /// What became of it.
        end: EndRow,
    },
    /// While it is starting or runs: it is to be ended.
    Cancel {
        /// Why.
        reason: String,
        /// At once.
        kill: bool,
    },
}

/// What came of a submission.
#[derive(Debug, Clone)]
pub struct Submitted {
    /// Each job, and whether it was there before.
    pub jobs: Vec<(JobId, bool)>,
    /// The row of their spec.
    pub spec: i64,
    /// The number of the last event.
    pub seq: u64,
}

/// A group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRow {
    /// Its name.
    pub name: String,
    /// How many of its jobs have their turn at the same time; as is usual, if absent.
    pub limit: Option<usize>,
    /// Nothing of it starts.
    pub paused: bool,
    /// It goes with its last job.
    pub temporary: bool,
}

/// What is to be told to somebody.
#[derive(Debug, Clone)]
pub struct NoticeRow {
    /// Its number.
    pub id: i64,
    /// Of the end of which job.
    pub job: JobId,
    /// To whom: JSON.
    pub target: String,
    /// When it was taken.
    pub delivered_at: Option<Timestamp>,
    /// How often it was tried.
    pub tries: u32,
    /// Why it was not taken.
    pub error: Option<String>,
}

/// An attempt.
#[derive(Debug, Clone)]
pub struct AttemptRow {
    /// Its number.
    pub attempt: u32,
    /// Its process.
    pub process: ProcessId,
    /// When it had its turn.
    pub begun_at: Timestamp,
    /// How it ended.
    pub outcome: Option<JobOutcome>,
    /// Why.
    pub reason: Option<String>,
    /// The exit code.
    pub exit_code: Option<i32>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

/// An event.
#[derive(Debug, Clone)]
pub struct EventRow {
    /// Its number.
    pub seq: u64,
    /// When.
    pub time: Timestamp,
    /// What the job was then.
    pub state: JobState,
    /// Which attempt.
    pub attempt: u32,
    /// Its process.
    pub process: Option<ProcessId>,
    /// Why it is tried again.
    pub reason: Option<String>,
    /// The job, as it is now.
    pub job: JobRow,
}

/// What is written about jobs.
#[derive(Debug)]
pub(super) enum JobWrite {
    Submit {
        spec: String,
        jobs: Vec<JobRow>,
        /// For each of them, in JSON.
        notices: Vec<String>,
    },
    Move(Vec<Transition>),
    Group(GroupRow),
    RemoveGroup(String),
    Notice {
        job: JobId,
        target: String,
    },
    NoticeTried {
        id: i64,
        taken: Option<Timestamp>,
        error: Option<String>,
    },
    Forget(Timestamp),
}

impl JobWrite {
    /// It begins something that was not there.
    pub(super) fn is_new(&self) -> bool {
        matches!(self, Self::Submit { .. } | Self::Group(_) | Self::Notice { .. })
    }
}

/// What came of it.
#[derive(Debug, Clone)]
pub(super) enum JobWritten {
    Done,
    Submitted(Submitted),
    /// The job at this place has the word of another one.
    Conflict(usize),
    Moved(Vec<bool>, u64),
    Notice(i64),
}

impl Store {
    /// Writes jobs down that are to be queued, all of them or none. `Err(place)`: another job has the word of that one.
    ///
    /// # Errors
    /// They were not written.
    pub async fn submit_jobs(
        &self,
        spec: String,
        jobs: Vec<JobRow>,
        notices: Vec<String>,
    ) -> Result<Result<Submitted, usize>, StoreError> {
        let write = JobWrite::Submit { spec, jobs, notices };
        match self.write_job(write).await? {
            JobWritten::Submitted(submitted) => Ok(Ok(submitted)),
            JobWritten::Conflict(place) => Ok(Err(place)),
            _ => Err(StoreError::Closed(self.path.clone())),
        }
    }

    /// Changes jobs: each as a compare-and-set, of which it is said whether it was done; and the number of the last event.
    ///
    /// # Errors
    /// None of it was written.
    pub async fn move_jobs(&self, moves: Vec<Transition>) -> Result<(Vec<bool>, u64), StoreError> {
        match self.write_job(JobWrite::Move(moves)).await? {
            JobWritten::Moved(done, seq) => Ok((done, seq)),
            _ => Err(StoreError::Closed(self.path.clone())),
        }
    }

    /// Makes or changes a group.
    ///
    /// # Errors
    /// It was not written.
    pub async fn set_group(&self, group: GroupRow) -> Result<(), StoreError> {
        self.write_job(JobWrite::Group(group)).await.map(drop)
    }

    /// Takes a group away.
    ///
    /// # Errors
    /// It was not written.
    pub async fn remove_group(&self, name: String) -> Result<(), StoreError> {
        self.write_job(JobWrite::RemoveGroup(name)).await.map(drop)
    }

    /// Somebody more is to be told of the end of a job; the number of that.
    ///
    /// # Errors
    /// It was not written.
    pub async fn add_notice(&self, job: JobId, target: String) -> Result<i64, StoreError> {
        match self.write_job(JobWrite::Notice { job, target }).await? {
            JobWritten::Notice(id) => Ok(id),
            _ => Err(StoreError::Closed(self.path.clone())),
        }
    }

    /// It was tried to tell somebody: taken then, or why not.
    ///
    /// # Errors
    /// It was not written.
    pub async fn notice_tried(
        &self,
        id: i64,
        taken: Option<Timestamp>,
        error: Option<String>,
    ) -> Result<(), StoreError> {
        let write = JobWrite::NoticeTried { id, taken, error };
        self.write_job(write).await.map(drop)
    }

    /// Forgets jobs that ended before, with all that is known of them.
    ///
    /// # Errors
    /// They were not forgotten.
    pub async fn forget_jobs(&self, before: Timestamp) -> Result<(), StoreError> {
        self.write_job(JobWrite::Forget(before)).await.map(drop)
    }

    async fn write_job(&self, write: JobWrite) -> Result<JobWritten, StoreError> {
        match self.write(Write::Job(write)).await? {
            Written::Job(written) => Ok(written),
            _ => Ok(JobWritten::Done),
        }
    }
}
