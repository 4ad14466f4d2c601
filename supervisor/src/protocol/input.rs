//! The input of a process: who has it, what is written to it, the size of its terminal.

use provost_actors::event::ProcessId;
use serde::{Deserialize, Serialize};

use super::TerminalSize;

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
