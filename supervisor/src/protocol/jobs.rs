//! Jobs: what waits for its turn in the daemon.

use std::collections::BTreeMap;
use std::sync::Arc;

use provost_actors::event::ProcessId;
pub use provost_actors::jobs::{AfterRule, JobId, JobOutcome, JobState, RetryOn, RetryRule};
use provost_actors::record::TerminalRecord;
use provost_actors::reported::ReportedValue;
use provost_actors::session::SessionId;
use serde::{Deserialize, Serialize};

use super::ProcessStart;

/// Jobs of one `job/submit`.
pub const JOBS_PER_SUBMIT_MAX: usize = 10_000;
/// Jobs that another request names, or an answer lists: so many fit into one line.
pub const JOBS_PER_ANSWER_MAX: usize = 1000;
/// Jobs of a user that have not ended.
pub const JOBS_MAX: usize = 100_000;
/// The group of jobs that name none.
pub const DEFAULT_GROUP: &str = "default";

/// `job/submit`: many jobs at once, all of them or none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobSubmit {
    /// What to run, as `process/start` has it, without `request_id`, `stdin`, `follow` and `window`. Its `name` is the job's,
    /// need not be unique, and is not the process's.
    pub spec: ProcessStart,
    /// In which group; `default`.
    pub group: Option<String>,
    /// Those with a higher number first; 0.
    pub priority: i32,
    /// Only after these jobs.
    pub after: Vec<JobAfter>,
    /// Not before so much time has passed.
    pub delay_ms: u64,
    /// Everything has to be over when so much time has passed: what has not started by then does not, what runs is stopped.
    pub deadline_ms: Option<u64>,
    /// Whether and when they are tried again.
    pub retry: Option<RetryRule>,
    /// Who is told of each one's end.
    pub notify: Vec<JobNotifyTarget>,
    /// The jobs: `[{}]` for one that is as `spec` says.
    pub jobs: Vec<JobItem>,
}

/// One job of a `job/submit`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobItem {
    /// A word of the client's: a second submit with the same one submits nothing and gives the same job.
    pub request_id: Option<String>,
    /// Instead of the spec's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// Instead of the spec's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Besides the spec's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A job that another one comes after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobAfter {
    /// Which.
    pub job: String,
    /// What must become of it; `success`.
    #[serde(default)]
    pub on: AfterRule,
}

/// Who is told of the end of a job. It is told at least once, with the same `dedup` each time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum JobNotifyTarget {
    /// A command, run as the daemon's user; it reads the message on its standard input and exits with 0 when it has taken it.
    Command {
        /// It and its arguments.
        argv: Vec<String>,
        /// Where it runs. Absolute.
        cwd: String,
        /// What it may touch, as `process/start` has it; `workspace-write`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        policy: Option<String>,
    },
    /// A Unix stream socket at this absolute path: it reads one line, and has taken it when it closes the connection or
    /// writes anything.
    Socket(String),
    /// A file at this absolute path, to which a line is appended.
    File(String),
}

/// The answer to `job/submit`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobsSubmitted {
    /// In the order of the request.
    pub jobs: Vec<JobSubmitted>,
}

/// A job that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSubmitted {
    /// Its id.
    pub job: JobId,
    /// It was submitted before, by a request with the same `request_id`.
    pub repeated: bool,
}

/// `job/list`. Without `jobs`: the oldest first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobList {
    /// Those of this session and its parts. Without it: those of the sessions that this connection has attached, if any.
    pub session: Option<String>,
    /// Those of every session and of none.
    pub all: bool,
    /// Those of this group.
    pub group: Option<String>,
    /// Those in one of these states; in any, if empty.
    pub states: Vec<JobState>,
    /// Those with these labels.
    pub labels: BTreeMap<String, String>,
    /// Behind this job: where the page before ended.
    pub after: Option<JobId>,
    /// So many at most; 1000.
    pub limit: Option<usize>,
}

/// The answer to `job/list`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobsListed {
    /// A page of them.
    pub jobs: Vec<JobInfo>,
    /// There are more behind the last one.
    pub more: bool,
}

/// A job as lists show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobInfo {
    /// Its id.
    pub job: JobId,
    /// Its name.
    pub name: Option<String>,
    /// Its group.
    pub group: String,
    /// Its priority.
    pub priority: i32,
    /// Its session.
    pub session: Option<SessionId>,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// How far it has come.
    pub state: JobState,
    /// How often it was tried to start it.
    pub attempt: u32,
    /// The process of the last attempt.
    pub process: Option<ProcessId>,
    /// When it was submitted, RFC 3339.
    pub submitted_at: String,
    /// Not before then, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    /// To be over by then, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<String>,
    /// Somebody cancelled it, and its process is being stopped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancelling: bool,
    /// The job that this one is another run of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<JobId>,
    /// What became of it. There if and only if it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<JobEnd>,
}

/// What became of a job: final.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEnd {
    /// How it ended.
    pub outcome: JobOutcome,
    /// Why, in words, where the outcome alone does not say it.
    pub reason: Option<String>,
    /// The exit code of its command, as in the record of its process.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<String>,
    /// Its command exited with 0, and nothing else.
    pub succeeded: bool,
    /// At least one attempt of its process was denied.
    pub denied: bool,
    /// The result that its last process reported.
    #[serde(default)]
    pub result: Option<ReportedValue>,
    /// It reported one, which is not repeated where there are so many; `job/inspect` and `job/list` have it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub result_left_out: bool,
    /// Why there is none, though it reported something, or nobody knows whether it did.
    #[serde(default)]
    pub result_error: Option<String>,
    /// When its last process started, RFC 3339.
    pub started_at: Option<String>,
    /// When it ended, RFC 3339.
    pub ended_at: String,
    /// How long its last process ran.
    pub duration_ms: u64,
}

/// `job/wait`: until all of these have ended.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobWait {
    /// Which: ids, unambiguous beginnings or ends of them, or names.
    pub jobs: Vec<String>,
    /// At most so long; for ever, if absent.
    pub timeout_ms: Option<u64>,
}

/// The answer to `job/wait`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobsWaited {
    /// In the order of the request. Where the time ran out first, not all of them have an `end`.
    pub jobs: Vec<JobInfo>,
}

/// `job/follow`: every change of state as it comes, as `job/event` notifications, in one order.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobFollow {
    /// Behind this event; from now on, if absent. It holds across restarts of the daemon.
    pub after_seq: Option<u64>,
    /// As in `job/list`.
    pub session: Option<String>,
    /// As in `job/list`.
    pub all: bool,
    /// As in `job/list`.
    pub group: Option<String>,
    /// As in `process/follow`.
    pub window: Option<u64>,
}

/// The answer to `job/follow`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct JobFollowing {
    /// Names the notifications that belong to it.
    pub subscription: u64,
    /// The number of the event behind which it begins.
    pub after_seq: u64,
}

/// The notification `job/event`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobEventNotification {
    /// To whom.
    pub subscription: u64,
    /// What.
    pub event: JobEvent,
}

/// A change of state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEvent {
    /// Its number: higher than that of every change before it, of any job.
    pub seq: u64,
    /// When, RFC 3339.
    pub time: String,
    /// Of which job.
    pub job: JobId,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its group.
    pub group: String,
    /// Its session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// What it is in now.
    pub state: JobState,
    /// Which attempt.
    pub attempt: u32,
    /// The process of that attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessId>,
    /// Back in the queue: why it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What became of it, if it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<JobEnd>,
}

/// `job/cancel`: answered when all of these have ended.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobCancel {
    /// Which.
    pub jobs: Vec<String>,
    /// Instead: all of this group that have not ended.
    pub group: Option<String>,
    /// Why, for the records.
    pub reason: Option<String>,
    /// Kill what runs instead of stopping it by its stop rule.
    pub kill: bool,
}

/// The answer to `job/cancel`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobsCancelled {
    /// In the order of the request; of a group the first 1000.
    pub jobs: Vec<JobCancelled>,
    /// How many were ended besides.
    pub more: u64,
}

/// What a `job/cancel` came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobCancelled {
    /// Which job.
    pub job: JobId,
    /// It ended because it was cancelled, by this request or another. If not, `end` says what won.
    pub cancelled: bool,
    /// What became of it.
    pub end: JobEnd,
}

/// `job/retry`: submits ended jobs again, as other jobs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobRetry {
    /// Which.
    pub jobs: Vec<String>,
    /// A word of the client's, as in `job/submit`: for each job it is this, `/` and the job's id.
    pub request_id: Option<String>,
}

/// A job, by id, an unambiguous beginning or end of it, or name.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRef {
    /// Which.
    pub job: String,
}

/// The answer to `job/inspect`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobInspected {
    /// As in lists.
    #[serde(flatten)]
    pub job: JobInfo,
    /// What it runs.
    pub spec: Box<ProcessStart>,
    /// What it comes after.
    pub after: Vec<JobAfter>,
    /// Whether and when it is tried again.
    pub retry: RetryRule,
    /// Every attempt, the first one first.
    pub attempts: Vec<JobAttempt>,
    /// Who is told of its end.
    pub notices: Vec<JobNotice>,
    /// The record of its last process, if it has one and is not forgotten.
    pub record: Option<Arc<TerminalRecord>>,
}

/// An attempt to run a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobAttempt {
    /// Its number, from 1.
    pub attempt: u32,
    /// Its process; if it is not known to the daemon, it was never started or is forgotten.
    pub process: ProcessId,
    /// When it had its turn, RFC 3339.
    pub begun_at: String,
    /// How it ended, if it has.
    pub outcome: Option<JobOutcome>,
    /// Why.
    pub reason: Option<String>,
    /// The exit code of its command.
    pub exit_code: Option<i32>,
    /// When it ended, RFC 3339.
    pub ended_at: Option<String>,
}

/// Somebody who is told of a job's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobNotice {
    /// The same in every message of this notice.
    pub dedup: String,
    /// Who.
    pub target: JobNotifyTarget,
    /// When it was taken, RFC 3339.
    pub delivered_at: Option<String>,
    /// How often it was tried.
    pub tries: u32,
    /// Why it was not taken the last time.
    pub error: Option<String>,
}

/// `job/notify`: somebody more who is told of a job's end; at once, if it has ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobNotify {
    /// Which.
    pub job: String,
    /// Who.
    pub target: JobNotifyTarget,
}

/// What a notified command, socket or file is given, as one line of JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobMessage {
    /// Version 1 of this message.
    pub schema: u32,
    /// The same if it comes again.
    pub dedup: String,
    /// The job, with its `end`.
    #[serde(flatten)]
    pub job: JobInfo,
    /// The record of its last process, if there is one.
    pub record: Option<Arc<TerminalRecord>>,
}

/// `job/group`: changes a group, which is made if it is not there, and says what it is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobGroup {
    /// Which; `default`.
    pub group: Option<String>,
    /// How many of its jobs run at the same time.
    pub limit: Option<usize>,
    /// Nothing of it starts; what runs goes on.
    pub paused: Option<bool>,
    /// A new one goes when all its jobs have ended and are forgotten.
    pub temporary: bool,
    /// Take it away, if all its jobs have ended.
    pub remove: bool,
}

/// The answer to `job/group`, and each of `job/groups`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobGroupInfo {
    /// Its name.
    pub group: String,
    /// How many of its jobs run at the same time.
    pub limit: usize,
    /// Nothing of it starts.
    pub paused: bool,
    /// Jobs that wait.
    pub queued: usize,
    /// Jobs that are starting or running.
    pub running: usize,
}
