//! Processes: started, listed, told to end, waited for, forgotten.

use std::collections::BTreeMap;
use std::sync::Arc;

use provost_actors::event::ProcessId;
use provost_actors::record::TerminalRecord;
use provost_actors::session::SessionId;
use provost_sandbox::extras::ReadyBy;
use provost_sandbox::keeper::wire::SignalScope;
use provost_sandbox::policy::Policy;
use serde::{Deserialize, Serialize};

use super::{AskCommand, Following};

/// What a process may ask for to be kept of each stream, in bytes; a daemon may be set to allow more.
pub const OUTPUT_BYTES: std::ops::RangeInclusive<u64> = 4096..=8 << 20;

/// `process/start`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessStart {
    /// A word of the client's: a second start with the same one starts nothing and gives the same answer.
    pub request_id: Option<String>,
    /// In which session; none if absent.
    pub session: Option<String>,
    /// For people; unique among live processes.
    pub name: Option<String>,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Absolute.
    pub cwd: String,
    /// The whole environment; a clean one of the user's, if absent.
    pub env: Option<BTreeMap<String, String>>,
    /// A preset, a policy's name, or the absolute path of a policy file.
    pub policy: Option<String>,
    /// A policy as the Rust library has it: only from clients of the same version.
    pub prepared_policy: Option<Arc<Policy>>,
    /// Standard input is a pipe that `process/write` writes to; else there is none.
    pub stdin: bool,
    /// A terminal of this size instead of pipes.
    pub terminal: Option<TerminalSize>,
    /// End it after this time.
    pub timeout_ms: Option<u64>,
    /// End it when it has written nothing for this time.
    pub idle_timeout_ms: Option<u64>,
    /// The signal that asks it to end; `SIGTERM`.
    pub stop_signal: Option<String>,
    /// How long it has to follow that; 5000.
    pub grace_ms: Option<u64>,
    /// `kill` or `wait`.
    pub tree: Option<String>,
    /// How long what it leaves behind may hold its output; 500.
    pub drain_ms: Option<u64>,
    /// `report` or `stop`.
    pub on_denial: Option<String>,
    /// How long a call waits for an answer; 60000.
    pub ask_timeout_ms: Option<u64>,
    /// Who answers; whoever decides, if absent.
    pub ask_command: Option<AskCommand>,
    /// Watch opens for reading, too.
    pub observe_reads: bool,
    /// Bytes of each stream that are kept.
    pub max_output: Option<u64>,
    /// The place in its session that it takes: what is there is replaced, and it starts when nothing of that lives any more.
    pub slot: Option<String>,
    /// How long what is replaced has to end, where its own rule gives it longer.
    pub slot_grace_ms: Option<u64>,
    /// Ask it for a result: one JSON value, through the descriptor whose number is in `PROVOST_REPORT_FD`.
    pub report: bool,
    /// How it says that it is ready.
    pub ready: ReadyBy,
    /// Free words, repeated in the record.
    pub labels: BTreeMap<String, String>,
    /// Follow it from its beginning at this client's pace, as by `process/follow`: nothing is missed in between.
    pub follow: bool,
    /// As in `process/follow`.
    pub window: Option<u64>,
}

/// A terminal's size, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

impl From<crate::TerminalSize> for TerminalSize {
    fn from(size: crate::TerminalSize) -> Self {
        Self {
            rows: size.rows,
            cols: size.cols,
        }
    }
}

/// The answer to `process/start`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Started {
    /// Its id.
    pub process: ProcessId,
    /// It was started before, by a request with the same `request_id`.
    pub repeated: bool,
    /// Where it is followed.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub following: Option<Following>,
}

/// A process, by id, an unambiguous beginning of it, or name.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessRef {
    /// Which.
    pub process: String,
}

/// What a request to a process came to.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Told {
    /// False if it had ended already: its record says what won.
    pub told: bool,
}

/// `process/signal`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessSignal {
    /// Which.
    pub process: String,
    /// `SIGUSR1`, `USR1` or `10`.
    pub signal: String,
    /// `leader` (the default), `group` or `tree`.
    #[serde(default)]
    pub scope: Option<SignalScope>,
}

/// `process/stop`, `process/kill`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessStop {
    /// Which.
    pub process: String,
    /// Why, for the record.
    pub reason: Option<String>,
    /// Of `stop`: kill what has not ended after this time, where its own grace is longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
}

/// `process/wait`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessWait {
    /// Which.
    pub process: String,
    /// At most so long; for ever, if absent.
    pub timeout_ms: Option<u64>,
}

/// The answer to `process/wait`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Waited {
    /// Absent if the time ran out first.
    pub record: Option<Arc<TerminalRecord>>,
}

/// `process/list`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessList {
    /// Only of this session and its parts.
    pub session: Option<String>,
    /// Only live ones, or only ended ones.
    pub live: Option<bool>,
    /// Only those with these labels.
    pub labels: BTreeMap<String, String>,
}

/// A process as lists show it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its id.
    pub process: ProcessId,
    /// Its name.
    pub name: Option<String>,
    /// Its session.
    pub session: Option<SessionId>,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Where it runs.
    pub cwd: String,
    /// Its policy's name.
    pub policy: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// When it was started, RFC 3339.
    pub started_at: String,
    /// It lives.
    pub live: bool,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Its exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Whether anything was denied.
    pub denied: bool,
}

impl ProcessInfo {
    /// The same of a process that ended with this record, or lives.
    #[must_use]
    pub(crate) fn ended(self, record: Option<&TerminalRecord>) -> Self {
        Self {
            live: record.is_none(),
            outcome: record.and_then(|record| {
                let outcome = serde_json::to_value(record.outcome).ok()?;
                Some(outcome.as_str()?.to_owned())
            }),
            exit_code: record.and_then(|record| record.exit_code),
            denied: record.is_some_and(|record| record.denied),
            ..self
        }
    }
}

/// `process/prune`: forget ended processes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessPrune {
    /// Those of this session alone.
    pub session: Option<String>,
    /// Those alone that ended so long ago.
    pub older_than_ms: u64,
}
