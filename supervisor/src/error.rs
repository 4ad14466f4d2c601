//! What can go wrong for whoever holds a handle: the same errors for processes of our own and for those of a daemon.

use std::fmt;

use provost_actors::{SpawnRefused, StartError};
use provost_sandbox::compile::CompileError;

use crate::client::ClientError;
use crate::protocol::{ErrorKind, RpcError};

/// Why something was not done, in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// What was to be done, on which object.
    pub what: String,
    /// Why it was not.
    pub why: String,
    /// What to do about it; empty where nothing can be done.
    pub hint: String,
}

impl Reason {
    pub(crate) fn new(what: impl Into<String>, why: impl Into<String>, hint: &str) -> Self {
        Self {
            what: what.into(),
            why: why.into(),
            hint: hint.to_owned(),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)?;
        if !self.hint.is_empty() {
            write!(f, "; {}", self.hint)?;
        }
        Ok(())
    }
}

/// An error of a [`Supervisor`](crate::Supervisor), of its processes or of their events. What goes wrong in the same way
/// embedded and in a daemon is the same variant.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An embedded supervisor, or a session of it, could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// What was asked for cannot be had: a spec or a policy that is wrong, a signal that does not exist, a terminal that is
    /// not there. Nothing was done.
    #[error("{0}")]
    Refused(Reason),
    /// This machine cannot hold the policy. Nothing was started.
    #[error("{0}")]
    Unsupported(Reason),
    /// It works with an embedded supervisor only, for it cannot go through a daemon. Nothing was done.
    #[error("{0}")]
    EmbeddedOnly(Reason),
    /// The process's input is closed, or the process has ended: its record says how.
    #[error("{0}")]
    Ended(Reason),
    /// The supervisor, session or daemon is shut down: nothing starts in it any more.
    #[error("{0}")]
    Closed(Reason),
    /// There is no such process, or not any more.
    #[error("{0}")]
    NotFound(Reason),
    /// A limit: of the daemon's towards this connection or user, or of how deep sessions nest.
    #[error("{0}")]
    Limit(Reason),
    /// The process's session, or its input, is held by another client.
    #[error("{0}")]
    NotHolder(Reason),
    /// Nobody listens at the daemon's socket.
    #[error("{0}")]
    NoDaemon(Reason),
    /// The daemon does not serve this user or program, or not with this.
    #[error("{0}")]
    Forbidden(Reason),
    /// The daemon died while it was done: whether it was is not known.
    #[error("{0}")]
    Uncertain(Reason),
    /// The connection to the daemon has ended. What was asked for may have been done, and processes may go on there:
    /// connect again and look for them by their ids.
    #[error("{0}")]
    Lost(Reason),
    /// The daemon and this library do not understand each other, or one of them has a fault.
    #[error("{0}")]
    Protocol(Reason),
}

impl Error {
    pub(crate) fn embedded_only(what: impl Into<String>, why: impl Into<String>, hint: &str) -> Self {
        Self::EmbeddedOnly(Reason::new(what, why, hint))
    }

    /// Why, without what was to be done.
    #[cfg(feature = "cli")]
    pub(crate) fn why(&self) -> String {
        match self {
            Self::Refused(reason) | Self::Unsupported(reason) | Self::Closed(reason) => {
                reason.why.clone()
            }
            error => error.to_string(),
        }
    }

    /// The connection ended while this was wanted.
    pub(crate) fn lost(what: impl Into<String>) -> Self {
        let hint = "it may go on there: connect again and look for it by its id";
        Self::Lost(Reason::new(what, "the connection to the daemon is lost", hint))
    }

    /// A start that an embedded supervisor refuses, in the words of the daemon.
    pub(crate) fn not_started(what: String, error: SpawnRefused) -> Self {
        let reason = Reason::new(what, error.to_string(), "");
        match error {
            SpawnRefused::Sandbox(CompileError::Unsupported(_)) => Self::Unsupported(reason),
            SpawnRefused::Gone(_) => Self::Closed(reason),
            SpawnRefused::Spec(_)
            | SpawnRefused::Sandbox(_)
            | SpawnRefused::Proxy(_)
            | SpawnRefused::Spool(_) => Self::Refused(reason),
        }
    }

    /// An error of the daemon's.
    fn said(error: RpcError) -> Self {
        let data = error.data;
        let reason = Reason {
            what: data.what,
            why: data.why,
            hint: data.hint,
        };
        match data.kind {
            ErrorKind::Refused | ErrorKind::InvalidParams | ErrorKind::Conflict => Self::Refused(reason),
            ErrorKind::Unsupported => Self::Unsupported(reason),
            ErrorKind::Ended => Self::Ended(reason),
            ErrorKind::ShuttingDown => Self::Closed(reason),
            ErrorKind::NotFound | ErrorKind::Forgotten | ErrorKind::Ambiguous => Self::NotFound(reason),
            ErrorKind::Limit | ErrorKind::FrameTooLarge => Self::Limit(reason),
            ErrorKind::NotHolder | ErrorKind::InputHeld => Self::NotHolder(reason),
            ErrorKind::Forbidden => Self::Forbidden(reason),
            ErrorKind::Uncertain => Self::Uncertain(reason),
            ErrorKind::Parse
            | ErrorKind::InvalidRequest
            | ErrorKind::MethodNotFound
            | ErrorKind::Internal => Self::Protocol(reason),
        }
    }
}

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Connect { path, error } => Self::NoDaemon(Reason::new(
                format!("connect to {path}"),
                error.to_string(),
                "start a daemon with `provost serve`, or say where it is",
            )),
            ClientError::NotPermitted { path, error } => Self::Forbidden(Reason::new(
                format!("connect to {path}"),
                error.to_string(),
                "the socket's owner can open it to a group (`provost serve --group`), or start a daemon of your own",
            )),
            ClientError::Lost => Self::lost("ask the daemon"),
            ClientError::NotBack { path, patience, why } => Self::Lost(Reason::new(
                format!("connect to {path} again"),
                format!(
                    "within {} nobody answered: {why}",
                    humantime::format_duration(patience)
                ),
                "what the daemon kept goes on with the next `provost serve`: look for it by its id then",
            )),
            ClientError::Refused(error) => Self::said(*error),
            ClientError::Answer(why) => Self::Protocol(Reason::new("understand the daemon", why, "")),
        }
    }
}
