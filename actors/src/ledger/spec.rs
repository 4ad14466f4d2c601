//! What a ledger must know of its process from the start.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::event::{ProcessId, StreamName};

/// What a ledger must know of its process from the start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LedgerSpec {
    /// The process.
    pub process: ProcessId,
    /// Its session, where there is one.
    pub session: Option<String>,
    /// The program and its arguments, for people: bytes that are not UTF-8 replaced.
    pub argv: Vec<String>,
    /// The working directory, likewise.
    pub cwd: String,
    /// What the caller attached.
    pub labels: BTreeMap<String, String>,
    /// The streams that must be closed before the record is sealed. Output of others is ignored.
    pub streams: Vec<StreamName>,
    /// What happens to descendants that outlive the command.
    pub tree: TreeRule,
    /// What happens at a denial.
    pub on_denial: OnDenial,
    /// There is a denial channel, which must be drained before the record is sealed.
    pub expects_denials: bool,
    /// It was asked for a result.
    #[serde(default)]
    pub report: bool,
    /// When the process was accepted.
    pub queued_at: Option<Timestamp>,
}

/// What happens to descendants that outlive the command.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TreeRule {
    /// They are killed: at once if nothing holds the output any more, else at the drain deadline.
    #[default]
    Kill,
    /// The record waits for them.
    Wait,
}

/// What happens at a denial.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDenial {
    /// It is recorded, and the process runs on.
    #[default]
    Report,
    /// The first one ends the process.
    Stop,
}
