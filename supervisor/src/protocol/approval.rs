//! Approvals: what a process is asked about before it is refused.

use provost_actors::approval::ApprovalScope;
use provost_actors::event::ProcessId;
use provost_actors::session::SessionId;
use provost_sandbox::denial::Denial;
use serde::{Deserialize, Serialize};

/// Who answers what a process asks, in `process/start`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskCommand {
    /// The command, run once for each request: without a sandbox, as the daemon's user.
    pub argv: Vec<String>,
    /// Where it runs. Absolute.
    pub cwd: String,
}

/// `approval/list`: what waits for an answer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApprovalList {
    /// Only what this process asks.
    pub process: Option<String>,
    /// Only what processes of this session and its parts ask.
    pub session: Option<String>,
}

/// The answer to `approval/list`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ApprovalsWaiting {
    /// The oldest first.
    pub approvals: Vec<WaitingApproval>,
    /// How many wait besides.
    pub more: u64,
}

/// A request that waits for an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WaitingApproval {
    /// The process that asks.
    pub process: ProcessId,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// The number of the request within the process.
    pub approval: u64,
    /// Since when it waits, RFC 3339.
    pub requested_at: String,
    /// When it is refused for want of an answer, RFC 3339.
    pub deadline: String,
    /// The denial that it will be if nobody allows it; its `allow` is the smallest rule that would.
    pub attempt: Box<Denial>,
}

/// `approval/follow`: requests and decisions as they come.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApprovalFollow {
    /// Only of processes of this session and its parts.
    pub session: Option<String>,
    /// As in `process/follow`.
    pub window: Option<u64>,
}

/// `approval/decide`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovalDecide {
    /// Which process asks.
    pub process: String,
    /// The number of the request.
    pub approval: u64,
    /// Allow or deny.
    pub allow: bool,
    /// How far it reaches; `once`.
    #[serde(default)]
    pub scope: Option<ApprovalScope>,
    /// Who decides, for the record.
    #[serde(default)]
    pub by: Option<String>,
    /// Also where its session is attached elsewhere, which it stays.
    #[serde(default)]
    pub steal: bool,
}
