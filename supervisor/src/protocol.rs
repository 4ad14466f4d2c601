//! What clients and the daemon say to each other: JSON-RPC 2.0, one message per line. `docs/protocol.md` is its reference.

use std::collections::BTreeMap;

use provost_actors::event::{Event, ProcessId};
use provost_actors::record::TerminalRecord;
use provost_actors::session::SessionId;
use provost_sandbox::keeper::wire::SignalScope;
use provost_sandbox::policy::Policy;
use serde::{Deserialize, Serialize};
use serde_json::Value;

mod approval;
mod jobs;
mod session;

pub use approval::{
    ApprovalDecide, ApprovalFollow, ApprovalList, ApprovalsWaiting, AskCommand, WaitingApproval,
};
pub use jobs::*;
pub use session::{
    SessionAttach, SessionClose, SessionEvent, SessionFollow, SessionInfo, SessionOpen, SessionRef,
    SessionsMoved, SkippedSession,
};

/// The version of the protocol that this build speaks.
pub const PROTOCOL_VERSION: u32 = 1;
/// The longest line that either side reads, in bytes.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// What a process may ask for to be kept of each stream, in bytes; a daemon may be set to allow more.
pub const OUTPUT_BYTES: std::ops::RangeInclusive<u64> = 4096..=8 << 20;

/// The longest part of an error, in bytes.
const ERROR_BYTES_MAX: usize = 1024;

/// A request, or a notification if it has no id.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// `2.0`.
    pub jsonrpc: String,
    /// A number or a string of the client's, repeated in the reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Value>,
    /// `process/start` …
    pub method: String,
    /// What the method takes.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub params: Value,
}

/// What the daemon answers: either a result or an error.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reply {
    /// `2.0`.
    pub jsonrpc: String,
    /// The request's id; null where none could be read.
    pub id: Value,
    /// What the method gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<RpcError>,
}

/// An error, for programs by its code and kind, for people by its words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// See [`ErrorKind::code`].
    pub code: i64,
    /// In one line.
    pub message: String,
    /// The same in parts.
    pub data: ErrorData,
}

/// The parts of an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorData {
    /// What kind of error.
    pub kind: ErrorKind,
    /// What was to be done, on which object.
    pub what: String,
    /// Why it was not.
    pub why: String,
    /// What to do about it; empty where nothing can be done.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
}

/// Kinds of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The line is no JSON.
    Parse,
    /// The JSON is no request, or comes before `initialize`.
    InvalidRequest,
    /// There is no such method.
    MethodNotFound,
    /// The method does not take these parameters.
    InvalidParams,
    /// A fault of the daemon's.
    Internal,
    /// There is no such process or session.
    NotFound,
    /// More than one fits.
    Ambiguous,
    /// The spec or its policy cannot be used.
    Refused,
    /// The session is attached elsewhere.
    NotHolder,
    /// A limit of the daemon's.
    Limit,
    /// The process has ended; its record says how.
    Ended,
    /// It contradicts something that was said before.
    Conflict,
    /// The daemon is stopping.
    ShuttingDown,
    /// The peer may not.
    Forbidden,
    /// A line is too long.
    FrameTooLarge,
    /// Another client has attached the input of the process.
    InputHeld,
    /// This machine cannot hold the policy.
    Unsupported,
    /// It may or may not have been done when the daemon ended.
    Uncertain,
    /// There was such a process, and it was forgotten since this daemon started.
    Forgotten,
}

impl ErrorKind {
    /// Its number: JSON-RPC's own where that has one.
    pub const fn code(self) -> i64 {
        match self {
            Self::Parse => -32700,
            Self::InvalidRequest => -32600,
            Self::MethodNotFound => -32601,
            Self::InvalidParams => -32602,
            Self::Internal => -32603,
            Self::NotFound => -32001,
            Self::Ambiguous => -32002,
            Self::Refused => -32003,
            Self::NotHolder => -32004,
            Self::Limit => -32005,
            Self::Ended => -32006,
            Self::Conflict => -32007,
            Self::ShuttingDown => -32008,
            Self::Forbidden => -32009,
            Self::FrameTooLarge => -32010,
            Self::InputHeld => -32011,
            Self::Unsupported => -32012,
            Self::Uncertain => -32013,
            Self::Forgotten => -32014,
        }
    }
}

/// What a start is called in its errors, here and there.
pub(crate) fn starting<S: AsRef<str>>(argv: &[S]) -> String {
    let words: Vec<&str> = argv.iter().map(AsRef::as_ref).collect();
    shortened(format!("start `{}`", words.join(" ")))
}

/// What a client said is repeated in an error, but not megabytes of it.
fn shortened(mut text: String) -> String {
    if text.len() > ERROR_BYTES_MAX {
        text.truncate(text.floor_char_boundary(ERROR_BYTES_MAX));
        text.push('…');
    }
    text
}

impl RpcError {
    /// An error of this kind.
    pub fn new(kind: ErrorKind, what: impl Into<String>, why: impl Into<String>) -> Self {
        let (what, why) = (shortened(what.into()), shortened(why.into()));
        Self {
            code: kind.code(),
            message: format!("{what}: {why}"),
            data: ErrorData {
                kind,
                what,
                why,
                hint: String::new(),
            },
        }
    }

    /// With what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.data.hint = hint.into();
        self
    }
}

/// `initialize`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Initialize {
    /// The version that the client speaks: [`PROTOCOL_VERSION`].
    pub protocol: u32,
    /// Its name, for logs.
    #[serde(default)]
    pub client: String,
    /// As whom: for root alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// The answer to `initialize`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Initialized {
    /// `provost`.
    pub server: String,
    /// Its version.
    pub version: String,
    /// The version of the protocol.
    pub protocol: u32,
    /// The uid as which processes run.
    pub uid: u32,
    /// What this server can do beyond version 1.
    pub capabilities: Vec<String>,
    /// Its limits.
    pub limits: ServerLimits,
}

/// The daemon's limits, towards one client or one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerLimits {
    /// The longest line, in bytes.
    pub frame_bytes: usize,
    /// Requests of a connection in work at the same time.
    pub requests_in_flight: usize,
    /// Connections of a user.
    pub clients: usize,
    /// Live processes of a user.
    pub processes: usize,
}

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
    pub prepared_policy: Option<Box<Policy>>,
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

/// `process/read`: events that are there.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessRead {
    /// Which.
    pub process: String,
    /// Behind this event; from the beginning, if 0.
    pub after_seq: u64,
    /// Instead: the last whole events that have so many bytes of output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tail: Option<u64>,
    /// About so much output; 1 MiB.
    pub max_bytes: Option<usize>,
    /// Wait so long for the first one.
    pub wait_ms: u64,
}

/// The answer to `process/read`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Events {
    /// In order.
    pub events: Vec<Event>,
    /// The number of the last one: `after_seq` of the next read.
    pub next_seq: u64,
    /// The last one was the terminal event: nothing comes any more.
    pub ended: bool,
}

/// `process/follow`: events as they come, as notifications.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessFollow {
    /// Which.
    pub process: String,
    /// Behind this event.
    pub after_seq: u64,
    /// At this reader's pace: the process waits for it, and nothing is dropped before it has read it. One at a time.
    pub paced: bool,
    /// So many events at most are sent that were not acknowledged with `ack`; without it as many as the connection takes.
    pub window: Option<u64>,
}

/// The answer to a follow.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Following {
    /// Names the notifications that belong to it.
    pub subscription: u64,
    /// It has the pace.
    pub paced: bool,
}

/// `ack`: events that were taken, so that more may come.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ack {
    /// Of which follower.
    pub subscription: u64,
    /// How many in all.
    pub events: u64,
}

/// `unfollow`, and the notification `follow/ended`: nothing comes any more.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unfollow {
    /// Which.
    pub subscription: u64,
}

/// The notification `process/event`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EventNotification {
    /// To whom.
    pub subscription: u64,
    /// The session of the process, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// What.
    pub event: Event,
}

/// The notification `follow/gap`: what a follower was not told, because it did not keep up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowGap {
    /// Which follower.
    pub subscription: u64,
    /// Processes that were forgotten before their last events could be sent.
    pub processes: Vec<ForgottenProcess>,
    /// How many there are of them besides.
    pub more: u64,
    /// How many `session/event`s were left out.
    pub session_events: u64,
}

/// A process whose last events a follower was not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgottenProcess {
    /// Which.
    pub process: ProcessId,
    /// Its session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// The number of the last event that was sent; 0 if none was.
    pub after_seq: u64,
}

/// `process/attach`: take the input of a process, for this connection alone.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessAttach {
    /// Which.
    pub process: String,
    /// Take nothing, say who has it.
    pub read_only: bool,
    /// Also from whoever has it.
    pub steal: bool,
}

/// The answer to `process/attach`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessAttached {
    /// This connection has the input.
    pub writer: bool,
    /// Who has it else.
    pub held_by: Option<String>,
    /// The size of its terminal, if it has one and lives.
    pub terminal: Option<TerminalSize>,
}

/// The notification `input/lost`: the input of a process was taken over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InputLost {
    /// Which.
    pub process: ProcessId,
    /// By whom.
    pub by: String,
}

/// `process/write`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessWrite {
    /// Which.
    pub process: String,
    /// Base64.
    pub data: String,
    /// The place of the first byte in all that is written: what was taken already is left out, so that a write can be
    /// said again. A place that was not reached yet is a conflict.
    pub offset: Option<u64>,
    /// Then end the standard input.
    pub close: bool,
    /// Also if another client has attached its input.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// The answer to `process/write`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Written {
    /// How many bytes were taken in all: the place of the next.
    pub offset: u64,
}

/// `process/resize`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessResize {
    /// Which.
    pub process: String,
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
    /// Also if that is its size, so that the program draws its screen again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub redraw: bool,
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

/// What a request to a process came to.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Told {
    /// False if it had ended already: its record says what won.
    pub told: bool,
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
    pub record: Option<Box<TerminalRecord>>,
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

/// The answer to `daemon/status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Its version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// The uid as which processes run.
    pub uid: u32,
    /// How long it runs.
    pub uptime_ms: u64,
    /// Connections.
    pub clients: usize,
    /// Sessions.
    pub sessions: usize,
    /// Live processes.
    pub live: usize,
    /// Processes, the ended ones included.
    pub processes: usize,
    /// Bytes of output that are kept.
    pub retained_bytes: u64,
    /// Where everything is kept that survives the daemon.
    #[serde(default)]
    pub state_dir: Option<String>,
    /// The process id of the keeper, which parents every process that survives the daemon.
    #[serde(default)]
    pub keeper: Option<u32>,
    /// What does not work as it should, in words.
    #[serde(default)]
    pub degraded: Vec<String>,
}

/// `daemon/leave`: end, and leave everything to another daemon on the same state directory. From the same user or root.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DaemonLeave {
    /// The process id of the daemon that takes over.
    pub pid: u32,
    /// Which version of the keeper's protocol that one speaks.
    pub keeper_protocol: u16,
    /// Which version of the database it reads.
    pub schema: u32,
    /// Where it will look for everything: the same directory.
    pub state_dir: String,
}

/// The answer to `daemon/leave`: it ends now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DaemonLeaves {
    /// The process id of the daemon that leaves.
    pub pid: u32,
    /// Where a service manager listens that is to be told how its service does (`NOTIFY_SOCKET`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify_socket: Option<String>,
    /// How often it wants to hear of it, in microseconds (`WATCHDOG_USEC`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog_usec: Option<u64>,
}
