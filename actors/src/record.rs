//! The terminal record: the one durable answer about a process.
//!
//! It is sealed once, as the last event, when everything that bears on the verdict is known (I1, I2).
//! `outcome` says how it ended and `denials` what was refused on the way; neither hides the other. Every
//! field is always present in JSON; what is not known is `null`.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use provost_sandbox::denial::{Denial, DenialClass};
use provost_sandbox::report::SandboxReport;
use serde::{Deserialize, Serialize};

use crate::approval::ApprovalSummary;
use crate::event::{ProcessId, StreamName, text};
use crate::reported::ReportedValue;

#[cfg(test)]
pub(crate) mod tests;

/// The schema number that records carry now.
pub const RECORD_SCHEMA: u32 = 1;

/// What became of one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalRecord {
    /// [`RECORD_SCHEMA`].
    pub schema: u32,
    /// The process.
    pub process: ProcessId,
    /// The session it belonged to, where there was one.
    pub session: Option<String>,
    /// What the caller attached to it.
    pub labels: BTreeMap<String, String>,
    /// The program and its arguments. Bytes that are not UTF-8 are shown as U+FFFD.
    pub argv: Vec<String>,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, in words, where the outcome alone does not say it.
    pub reason: Option<String>,
    /// The command's exit code; for `spawn_failed` the code that stands for the failure (125, 126, 127).
    pub exit_code: Option<i32>,
    /// The name of the signal that ended the command.
    pub signal: Option<String>,
    /// The command ran to its own end and exited with 0.
    pub succeeded: bool,
    /// At least one attempt was denied.
    pub denied: bool,
    /// When it was accepted.
    #[serde(with = "text::micros::option")]
    pub queued_at: Option<Timestamp>,
    /// When it started, if it did.
    #[serde(with = "text::micros::option")]
    pub started_at: Option<Timestamp>,
    /// When the command ended; where that is not known or it never ran, when the record was sealed.
    #[serde(with = "text::micros")]
    pub ended_at: Timestamp,
    /// From `started_at` to `ended_at`; 0 if it never started.
    pub duration_ms: u64,
    /// The result that it reported, if it was asked for one; `null` if it reported none, or that.
    #[serde(default)]
    pub result: Option<ReportedValue>,
    /// Why there is no result, though it reported something, or nobody knows whether it did.
    #[serde(default)]
    pub result_error: Option<String>,
    /// The fate of every byte that it wrote.
    pub output: BTreeMap<StreamName, OutputSummary>,
    /// What it was refused.
    pub denials: DenialSummary,
    /// What was asked about before it was refused or allowed.
    #[serde(default)]
    pub approvals: ApprovalSummary,
    /// What it used; `null` where nobody could say.
    pub usage: Option<Usage>,
    /// The fate of its descendants.
    pub tree: TreeSummary,
    /// What really held it; `null` if it never started.
    pub sandbox: Option<Arc<SandboxReport>>,
    /// The number of the event that carries this record: the highest.
    pub last_seq: u64,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// The command exited by itself.
    Exited,
    /// A signal ended it, and not because Provost wanted it to stop.
    Signaled,
    /// It was stopped at its time limit.
    TimedOut,
    /// It was stopped because it was silent for too long.
    IdleTimeout,
    /// Somebody asked for it to be stopped.
    Cancelled,
    /// Another process took its place.
    Replaced,
    /// It was stopped at its first denial.
    Denied,
    /// It never ran.
    SpawnFailed,
    /// It used more memory than it may.
    OutOfMemory,
    /// What became of it cannot be known.
    Lost,
}

/// The fate of one stream's bytes: `bytes = retained + dropped`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputSummary {
    /// How many were read from the process.
    pub bytes: u64,
    /// How many of them can still be read from the log.
    pub retained: u64,
    /// How many cannot.
    pub dropped: u64,
    /// Whether the end of the stream was reached.
    pub closed: Closed,
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Closed {
    /// At its true end.
    Eof,
    /// Somebody still held it open when the drain deadline passed.
    Abandoned,
}

/// What a process was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenialSummary {
    /// How many attempts, exactly, however many there were.
    pub total: u64,
    /// The same by class.
    pub by_class: BTreeMap<DenialClass, u64>,
    /// The first ones that differ from each other in class, operation or target; bounded.
    pub first: Vec<Denial>,
    /// Feature probes that were answered with an error and are no denials, by name.
    pub probes: BTreeMap<String, u64>,
    /// Every class of denial could be observed, and the channel was read to its end.
    pub complete: bool,
    /// The classes that could not be observed here.
    pub unobserved: Vec<String>,
}

/// What a process used, its waited-for descendants included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in user mode.
    pub user_ms: u64,
    /// CPU time in the kernel.
    pub system_ms: u64,
    /// The largest resident set of any one of them.
    pub max_rss_bytes: u64,
}

/// The fate of a process's descendants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeSummary {
    /// How many were still alive after the command and had to be killed.
    pub killed: u64,
    /// Tasks that the kernel had not ended when the deadline passed, named for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unkillable: Vec<String>,
}
