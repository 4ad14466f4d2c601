//! Events: what one process did, in the order in which the ledger numbered it.
//!
//! This is the published vocabulary. In JSON each event is one object on one line:
//!
//! ```text
//! {"process":"0190…","seq":2,"time":"2026-01-02T03:04:05.000006Z","type":"output","stream":"stdout",…}
//! ```
//!
//! `seq` counts 1, 2, 3 … within a process; the event of type `terminal` is the last one and carries the
//! whole [`TerminalRecord`]. What a program prints arrives only inside `data`, in base64, so nothing that it
//! prints can be mistaken for an event (I10).

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use provost_sandbox::denial::{Decision, Denial};
use provost_sandbox::report::SandboxReport;
use serde::{Deserialize, Serialize};

use crate::approval::ApprovalScope;
use crate::record::{Closed, TerminalRecord};

mod id;
pub(crate) mod text;

#[cfg(test)]
mod tests;

pub use id::{ParseProcessIdError, ProcessId};

/// One event of one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Whose event it is.
    pub process: ProcessId,
    /// Its place in the order of the process's events, from 1.
    pub seq: u64,
    /// When the fact reached the ledger; never earlier than that of the event before it.
    #[serde(with = "text::micros")]
    pub time: Timestamp,
    /// What happened. In JSON its fields stand beside the others, under the tag `type`.
    #[serde(flatten)]
    pub body: EventBody,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventBody {
    /// The command runs.
    Started {
        /// The program and its arguments. Bytes that are not UTF-8 are shown as U+FFFD.
        argv: Vec<String>,
        /// The working directory, shown likewise.
        cwd: String,
        /// The command's pid in the supervisor's PID namespace. For people only: pids are recycled, the
        /// process id is not.
        pid: i32,
        /// What really holds the process.
        sandbox: Arc<SandboxReport>,
    },
    /// The process wrote something.
    Output {
        /// Where.
        stream: StreamName,
        /// The place of the first byte in that stream.
        offset: u64,
        /// The bytes, exactly.
        #[serde(with = "text::base64")]
        data: Bytes,
    },
    /// Bytes that this reader does not get, because retention dropped them.
    Gap {
        /// Of which stream.
        stream: StreamName,
        /// The place of the first missing byte.
        from: u64,
        /// The place of the first byte after the missing ones.
        to: u64,
        /// `to - from`.
        bytes: u64,
    },
    /// The sandbox refused something.
    Denial(Box<Denial>),
    /// A call that no rule speaks about waits for an answer.
    ApprovalRequested {
        /// The number of the request within the process, from 1.
        approval: u64,
        /// The denial that it will be if nobody allows it.
        attempt: Box<Denial>,
        /// When it is refused for want of an answer.
        #[serde(with = "text::micros")]
        deadline: Timestamp,
    },
    /// A request was answered. If the answer is `deny`, the denial follows.
    ApprovalDecided {
        /// The number of the request.
        approval: u64,
        /// The answer.
        decision: Decision,
        /// How far a permission reaches; absent for `deny`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        scope: Option<ApprovalScope>,
        /// Who decided: `deadline`, `stopped`, `ended`, or the word of whoever answered.
        by: String,
    },
    /// Its session is held by nobody any more; it runs on and is recorded all the same.
    Detached {
        /// The session.
        session: String,
    },
    /// Somebody holds its session again.
    Attached {
        /// The session.
        session: String,
    },
    /// The command said that it is ready. At most once.
    Ready {},
    /// A signal was sent.
    SignalSent {
        /// Its name: `SIGTERM`.
        signal: String,
        /// To whom: `tree`, `command`.
        scope: String,
        /// Why: `timed_out`, `cancelled`, `client`, …
        cause: String,
    },
    /// No more bytes will come from a stream.
    StreamClosed {
        /// Which.
        stream: StreamName,
        /// How many bytes there were.
        bytes: u64,
        /// Whether this is its true end.
        closed: Closed,
    },
    /// The command ended. Its descendants may live on for a moment: only `terminal` says that all is over.
    Exited {
        /// Its exit code, where it exited.
        exit_code: Option<i32>,
        /// The signal's name, where a signal ended it.
        signal: Option<String>,
    },
    /// The last event.
    Terminal {
        /// The record.
        record: Arc<TerminalRecord>,
    },
}

/// The name of an output stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamName {
    /// Standard output, a pipe.
    Stdout,
    /// Standard error, a pipe.
    Stderr,
    /// A terminal, which carries both.
    Pty,
}

impl StreamName {
    /// Every stream there can be.
    pub const ALL: [Self; 3] = [Self::Stdout, Self::Stderr, Self::Pty];

    /// The name as it stands in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Pty => "pty",
        }
    }

    /// A dense index, for arrays by stream.
    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An event as the ledger states it: output is named by its range, for the bytes are in the log already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventDraft {
    /// Its number.
    pub seq: u64,
    /// Its time.
    pub time: Timestamp,
    /// What happened.
    pub body: DraftBody,
}

/// The body of an [`EventDraft`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DraftBody {
    /// Bytes which the log holds.
    Output {
        /// Of which stream.
        stream: StreamName,
        /// The place of the first one.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// Bytes which were never stated, though later ones of the same stream were.
    Gap {
        /// Of which stream.
        stream: StreamName,
        /// The place of the first one.
        from: u64,
        /// The place of the first byte after them.
        to: u64,
    },
    /// Anything else, complete.
    Whole(Box<EventBody>),
}
