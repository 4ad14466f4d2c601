//! What clients and the daemon say to each other: JSON-RPC 2.0, one message per line. `docs/protocol.md` is its reference.

use serde::{Deserialize, Serialize};
use serde_json::Value;

mod approval;
mod daemon;
mod error;
mod follow;
mod input;
mod jobs;
mod process;
mod session;

pub use approval::{
    ApprovalDecide, ApprovalFollow, ApprovalList, ApprovalsWaiting, AskCommand, WaitingApproval,
};
pub use daemon::{DaemonLeave, DaemonLeaves, Initialize, Initialized, ServerLimits, Status};
pub(crate) use error::starting;
pub use error::{ErrorData, ErrorKind, RpcError};
pub use follow::{
    Ack, EventNotification, Events, FollowGap, Following, ForgottenProcess, ProcessFollow, ProcessRead,
    Unfollow,
};
pub use input::{InputLost, ProcessAttach, ProcessAttached, ProcessResize, ProcessWrite, Written};
pub use jobs::*;
pub use process::{
    OUTPUT_BYTES, ProcessInfo, ProcessList, ProcessPrune, ProcessRef, ProcessSignal, ProcessStart,
    ProcessStop, ProcessWait, Started, TerminalSize, Told, Waited,
};
pub use session::{
    SessionAttach, SessionClose, SessionEvent, SessionFollow, SessionInfo, SessionOpen, SessionRef,
    SessionsMoved, SkippedSession,
};

/// The version of the protocol that this build speaks.
pub const PROTOCOL_VERSION: u32 = 1;
/// The longest line that either side reads, in bytes.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

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
