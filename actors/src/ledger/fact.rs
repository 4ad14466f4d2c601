//! What the actors around a process observe.

use std::sync::Arc;

use jiff::Timestamp;
use provost_sandbox::denial::{Decision, Denial, DenialClass};
use provost_sandbox::report::SandboxReport;
use serde::{Deserialize, Serialize};

use crate::approval::GrantRecord;
use crate::event::StreamName;
use crate::record::{Closed, Outcome, Usage};
use crate::reported::Reported;

/// Something that an actor observed. Facts of one actor arrive in its order, those of several in any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Fact {
    /// The command runs.
    Started {
        /// Its pid in the supervisor's PID namespace.
        pid: i32,
        /// What really holds it.
        report: Arc<SandboxReport>,
    },
    /// It never ran and never will. Also said of a process that was stopped before it was started.
    SpawnFailed {
        /// Why.
        reason: String,
        /// 127 not found, 126 not executable, 125 for a failure of Provost's own.
        exit_code: i32,
    },
    /// These bytes of a stream are in the log.
    Output {
        /// Which stream.
        stream: StreamName,
        /// The place of the first one.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// The last fact of a stream.
    StreamClosed {
        /// Which stream.
        stream: StreamName,
        /// How.
        closed: Closed,
    },
    /// The command ended.
    Exited(Exit),
    /// Refusals of this class could not be observed, as was found out at the end. Comes before [`Fact::TreeEmpty`].
    Unobserved(String),
    /// The kernel killed tasks of the tree because memory was at its limit. Comes before [`Fact::TreeEmpty`].
    OutOfMemory,
    /// Nothing of the tree lives any more (but for what is named here).
    TreeEmpty {
        /// How many had to be killed.
        killed: u64,
        /// What the tree used, where that is known.
        usage: Option<Usage>,
        /// Tasks that the kernel did not end before the deadline.
        unkillable: Vec<String>,
    },
    /// An attempt was denied.
    Denied(Denial),
    /// A call waits for an answer.
    ApprovalRequested {
        /// The number of the request.
        approval: u64,
        /// The denial that it will be if nobody allows it.
        attempt: Box<Denial>,
        /// When it is refused for want of an answer.
        deadline: Timestamp,
    },
    /// A request was answered.
    ApprovalDecided {
        /// Which, on what, by whom; and how far it reaches.
        grant: Box<GrantRecord>,
        /// The answer.
        decision: Decision,
    },
    /// More attempts of a class were denied, of which only the number is known.
    DenialsCounted {
        /// Their class.
        class: DenialClass,
        /// How many.
        extra: u64,
    },
    /// A feature probe was answered with an error. No denial.
    Probed(String),
    /// The last fact of the denial channel.
    DenialsDrained {
        /// It was read to its end and every class can be observed here.
        complete: bool,
        /// The classes that cannot.
        unobserved: Vec<String>,
    },
    /// Somebody or something wants the process to end.
    StopRequested(StopCause),
    /// Nobody holds its session any more.
    Detached {
        /// The session.
        session: String,
    },
    /// Somebody holds its session again.
    Attached {
        /// The session.
        session: String,
    },
    /// The command said that it is ready.
    Ready,
    /// What it reported as its result. Comes before [`Fact::TreeEmpty`].
    Reported(Reported),
    /// A signal was sent.
    SignalSent {
        /// Its name: `SIGTERM`.
        signal: String,
        /// To whom: `tree`, `command`.
        scope: String,
        /// Why, as [`StopCause::as_str`] or a word of the sender's.
        cause: String,
    },
    /// The drain timer has run out.
    DrainExpired,
    /// The drain timer has run out, but a stream actor has bytes to read and waits for the paced reader
    /// ([`Log::is_held`](crate::log::Log::is_held)): to give up its stream would lose what is in the pipe.
    DrainHeld,
    /// The spawner ended: neither the exit status nor the emptiness of the tree can be learned from it.
    SpawnerLost {
        /// What is known about that.
        reason: String,
    },
    /// The exit status cannot be learned; that the tree is empty still will be.
    Lost {
        /// Why.
        reason: String,
    },
}

/// How the command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// The signal of this name ended it: `SIGKILL`.
    Signal(String),
}

impl Exit {
    /// As the pair of fields that events and records have.
    pub(super) fn parts(&self) -> (Option<i32>, Option<String>) {
        match self {
            Self::Code(code) => (Some(*code), None),
            Self::Signal(name) => (None, Some(name.clone())),
        }
    }
}

/// Why a process is to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopCause {
    /// Somebody asked.
    Cancelled {
        /// Who, or why, in words.
        reason: String,
    },
    /// It ran longer than it may.
    TimedOut,
    /// It was silent for longer than it may be.
    IdleTimedOut,
    /// It attempted what the sandbox denies, and its spec says that this ends it.
    Denied,
    /// Another process takes its place.
    Replaced,
    /// It used more memory than it may.
    OutOfMemory,
    /// It used more of something else than it may.
    OverLimit {
        /// The limit, in words.
        limit: String,
    },
}

impl StopCause {
    /// One word for it: that of the outcome.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Cancelled { .. } => "cancelled",
            Self::TimedOut => "timed_out",
            Self::IdleTimedOut => "idle_timeout",
            Self::Denied | Self::OverLimit { .. } => "denied",
            Self::Replaced => "replaced",
            Self::OutOfMemory => "out_of_memory",
        }
    }

    /// The outcome of a process that ends for this cause.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Cancelled { .. } => Outcome::Cancelled,
            Self::TimedOut => Outcome::TimedOut,
            Self::IdleTimedOut => Outcome::IdleTimeout,
            Self::Denied | Self::OverLimit { .. } => Outcome::Denied,
            Self::Replaced => Outcome::Replaced,
            Self::OutOfMemory => Outcome::OutOfMemory,
        }
    }

    /// The cause in words.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Cancelled { reason } => reason.clone(),
            Self::TimedOut => "stopped at its time limit".to_owned(),
            Self::IdleTimedOut => "stopped after writing nothing for too long".to_owned(),
            Self::Denied => "stopped at its first denial".to_owned(),
            Self::Replaced => "stopped to make room for the process that replaces it".to_owned(),
            Self::OutOfMemory => "stopped at its memory limit".to_owned(),
            Self::OverLimit { limit } => format!("stopped at a limit: {limit}"),
        }
    }
}
