//! The daemon itself: the greeting, its limits, its status, one daemon after another.

use serde::{Deserialize, Serialize};

/// `initialize`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Initialize {
    /// The version that the client speaks: [`PROTOCOL_VERSION`](super::PROTOCOL_VERSION).
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
