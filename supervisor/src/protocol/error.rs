//! Errors, for programs by code and kind, for people by their words.

use serde::{Deserialize, Serialize};

/// The longest part of an error, in bytes.
const ERROR_BYTES_MAX: usize = 1024;

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
