//! What the rows of the tables are to the daemon.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use provost_actors::event::ProcessId;
use provost_actors::record::TerminalRecord;
use provost_actors::session::{OnDisconnect, SessionId};
use provost_sandbox::denial::Denial;

/// A session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    /// Its id.
    pub id: SessionId,
    /// Its name.
    pub name: Option<String>,
    /// The session that it is part of; that one may be forgotten already.
    pub parent: Option<SessionId>,
    /// What becomes of it when its holder goes away.
    pub on_disconnect: OnDisconnect,
    /// How long it goes on with nobody holding it; for ever, if absent. To the millisecond.
    pub ttl: Option<Duration>,
    /// Bytes of output that it may keep with its parts; the daemon's own bound, if absent.
    pub kept_bytes_max: Option<u64>,
    /// Whether somebody held it.
    pub state: SessionState,
    /// When it was opened.
    pub opened_at: Timestamp,
    /// Since when it is in its state.
    pub changed_at: Timestamp,
}

/// What was known last about who holds a session. After a start of the daemon nobody holds any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// Somebody held it.
    Attached,
    /// Nobody did.
    Detached,
    /// It is over.
    Closed,
}

impl SessionState {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Detached => "detached",
            Self::Closed => "closed",
        }
    }
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessRow {
    /// Its id.
    pub id: ProcessId,
    /// The session it belongs to.
    pub session: Option<SessionId>,
    /// Its name.
    pub name: Option<String>,
    /// What the caller attached to it.
    pub labels: BTreeMap<String, String>,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The working directory. Absent where only its record is known.
    pub cwd: Option<String>,
    /// The name of its policy. Absent where only its record is known.
    pub policy: Option<String>,
    /// A client that is confined itself started it.
    pub confined: bool,
    /// What the client called its request.
    pub request: Option<Request>,
    /// When it was accepted. To the microsecond.
    pub queued_at: Option<Timestamp>,
    /// The boot of the machine in which that was (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: Option<String>,
    /// How far it has come.
    pub state: ProcessState,
}

/// What makes a start idempotent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The client's id of its request: unique in a database, until the process is forgotten.
    pub id: String,
    /// What was asked for, or a hash of it that stays the same over versions of this program (std's `DefaultHasher` does
    /// not promise that): the same for the same request only.
    pub asked: String,
}

/// How far a process has come. It never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessState {
    /// Nothing is known but that it was accepted.
    Accepted,
    /// It was started.
    Live,
    /// It has its record.
    Sealed,
}

impl ProcessState {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Live => "live",
            Self::Sealed => "sealed",
        }
    }
}

/// What became of [`Store::accept`](super::Store::accept).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceptance {
    /// The row is there: written now, or by the same call before.
    Accepted,
    /// The same was asked under that request id before, and this process came of it. Nothing was written.
    Repeated(ProcessId),
    /// Something else was asked under that request id before: this process. Nothing was written.
    Conflict(ProcessId),
}

/// A denial that was told as an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DenialRow {
    /// The number of that event.
    pub seq: u64,
    /// Its time.
    pub time: Timestamp,
    /// What was refused. The rule that would have allowed it is not kept.
    pub denial: Denial,
}

/// A process that has its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedProcess {
    /// What was accepted.
    pub process: ProcessRow,
    /// The record, identical to the one that was sealed.
    pub record: TerminalRecord,
}

/// What a daemon needs when it starts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Sessions that were not closed, oldest first.
    pub sessions: Vec<SessionRow>,
    /// Processes without a record, oldest first.
    pub unsealed: Vec<ProcessRow>,
    /// Those that ended last, in the order of their ends.
    pub sealed: Vec<SealedProcess>,
}
