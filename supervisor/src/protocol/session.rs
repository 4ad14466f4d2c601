//! Sessions: what a client holds.

use provost_actors::event::ProcessId;
use provost_actors::session::{OnDisconnect, SessionId};
use serde::{Deserialize, Serialize};

use super::ErrorKind;

/// `session/open`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionOpen {
    /// For people; unique among the sessions attached to a connection.
    pub name: Option<String>,
    /// The session that it is part of.
    pub parent: Option<String>,
    /// What becomes of it when the connection ends.
    pub on_disconnect: OnDisconnect,
    /// Stopped when nobody has attached it for so long.
    pub ttl_ms: Option<u64>,
    /// Bytes of output that it keeps with its parts; what the daemon gives every session, if absent.
    pub max_session_bytes: Option<u64>,
}

/// A session, by id, an unambiguous beginning of it, or name.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionRef {
    /// Which.
    pub session: String,
}

/// `session/attach`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionAttach {
    /// Which; all that nobody has attached, if absent.
    pub sessions: Option<Vec<String>>,
    /// Also what is attached elsewhere.
    pub steal: bool,
}

/// What an attach or detach moved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionsMoved {
    /// What changed hands.
    pub moved: Vec<SessionId>,
    /// What did not.
    pub skipped: Vec<SkippedSession>,
    /// The live processes in what changed hands.
    pub processes: Vec<ProcessId>,
}

/// A session that was not attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedSession {
    /// As it was asked for, or its id.
    pub session: String,
    /// Why: `not_found`, `ambiguous` or `not_holder`. Daemons of before do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<ErrorKind>,
    /// Why, in words.
    pub why: String,
}

/// `session/close`, `session/clean`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionClose {
    /// Which; for `clean` all that nobody has attached, if absent.
    pub session: Option<String>,
    /// Kill instead of stopping by each process's stop rule.
    pub kill: bool,
}

/// A session as lists show it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionInfo {
    /// Its id.
    pub session: SessionId,
    /// Its name.
    pub name: Option<String>,
    /// What it is part of.
    pub parent: Option<SessionId>,
    /// Attached to a connection now.
    pub attached: bool,
    /// Attached to this connection.
    pub attached_here: bool,
    /// What becomes of it when its connection ends.
    pub on_disconnect: OnDisconnect,
    /// Live processes.
    pub live: usize,
    /// Processes, the ended ones included.
    pub processes: usize,
}

/// `session/follow`: events of all processes of a session and its parts.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionFollow {
    /// Which.
    pub session: String,
    /// As in `process/follow`.
    #[serde(default)]
    pub window: Option<u64>,
}

/// The notification `session/event`: to the holder, and to whoever follows a session that it is part of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionEvent {
    /// Which session.
    pub session: SessionId,
    /// `opened`. `lost`: attached elsewhere now. `closed`: it is no more.
    pub event: String,
    /// Which follower is told, where it is not the holder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscription: Option<u64>,
}
