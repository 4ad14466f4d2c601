//! What a keeper knows of a process, as it says it to whoever connects.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Step;
use super::wire::{LimitHits, Started, Usage};

/// Which descriptors of a process a keeper keeps copies of. As long as it does, their other ends see nothing of a
/// supervisor that closes its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// The writing end of stdin: the command sees the end of its input when nobody has it open.
    Stdin,
    /// The reading ends of stdout and stderr, or the terminal's master and its relay.
    Output,
    /// The seccomp listener: refused calls wait for it as long as anybody has it open.
    Listener,
    /// Where it is heard that the command is ready.
    Ready,
}

/// All that a keeper knows of a process. What happens later is told as [`Notice::Started`](super::wire::Notice::Started)
/// (or `Failed`), `Exited` and `Ended`, each unless it is in here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Which process.
    pub process: Uuid,
    /// How far it has come.
    pub state: HeldState,
}

/// How far a process has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldState {
    /// Its sandbox is being made.
    Starting,
    /// It was not started.
    Failed {
        /// Where it failed.
        step: Step,
        /// Why.
        errno: i32,
        /// An index that tells which of several (mount step, ruleset).
        detail: u32,
    },
    /// The command was started.
    Started(HeldTree),
}

/// A command that was started. Descriptors beside it, in order: the command's pidfd; if `output`, the terminal's master
/// or stdout and stderr; both ends of its relay if `started.relay`; then stdin's writing end if `started.stdin_pipe`, then the listener if `started.listener`,
/// then what `started.extras` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldTree {
    /// Who runs. `relay`, `stdin_pipe`, `listener` and `extras` say which of those are still kept, not what it had at its start.
    pub started: Started,
    /// Its output is still kept.
    pub output: bool,
    /// The raw wait status of the command, once it has ended. With `end` and without this nobody could say it.
    pub exited: Option<i32>,
    /// How its tree ended, once nothing of it lives.
    pub end: Option<TreeEnd>,
}

/// How a tree ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeEnd {
    /// How many of it had to be killed.
    pub killed: u64,
    /// What the whole tree used; absent where its init was killed, who alone could count.
    pub usage: Option<Usage>,
    /// How often its groups held it back.
    pub hits: LimitHits,
}
