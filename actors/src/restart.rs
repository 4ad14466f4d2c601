//! Restarting: when what has ended is started again, in which order, and when that is given up.
//!
//! ```text
//! facts (started, ready, ended, stop, time) ──► Group ──► actions (start, stop, kill, finish)
//! ```
//!
//! The words and their meaning are those of OTP's supervisors: [`Restart`], [`Strategy`], [`Intensity`]. [`Backoff`], readiness
//! and the end of a group that has nothing left to do are added. A [`Group`] decides and does nothing: it does no I/O, reads no
//! clock and asks for no chance, so that every interleaving can be tested. Time is how long it has been since the group was
//! made, and comes with each fact.
//!
//! # Guarantees
//!
//! - Two incarnations of a member never live at the same time: the next one starts after the last one [`Fact::Ended`].
//! - A member starts for the first time, or in a pass of `rest_for_one` and `one_for_all`, when each before it is ready or is
//!   over. Restarted by `one_for_one` it waits for nobody.
//! - Members are stopped in the reverse of that order, each when the one behind it has ended.
//! - There is one [`Action::Finish`]; it is the last action, and nothing lives then.
//!
//! # Where it differs from OTP
//!
//! - What cannot be started or does not get ready the first time is restarted by its rule, like what crashes later. Only if its
//!   rule says that it is not, the group ends ([`Finish::NeverReady`]).
//! - A restart that fails is no case of its own: it is one more end.
//! - A group whose members are all over is finished, with nothing more to supervise.

mod backoff;
mod group;
mod intensity;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use backoff::Backoff;
pub use group::Group;
pub use intensity::Intensity;
use serde::{Deserialize, Serialize};

/// When a member is started again after it ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// Always.
    #[default]
    Permanent,
    /// When it ended abnormally.
    Transient,
    /// Never; nor when a sibling's end has stopped it.
    Temporary,
}

/// Who is restarted with a member that is restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Nobody.
    #[default]
    OneForOne,
    /// Those that stand behind it.
    RestForOne,
    /// Everybody.
    OneForAll,
}

/// How one member is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemberRule {
    /// When it is started again.
    pub restart: Restart,
    /// It says itself when it is ready, and has this long for it from its start on. Without, it is ready when it has started.
    pub ready_within: Option<Duration>,
}

/// How a group is treated.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupRule {
    /// Who is restarted together.
    pub strategy: Strategy,
    /// How often.
    pub intensity: Intensity,
    /// How soon.
    pub backoff: Backoff,
    /// The members, in the order in which they start.
    pub members: Vec<MemberRule>,
}

/// Something that has happened. What is said of an incarnation that is not the member's present one is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact {
    /// The command of this incarnation runs.
    Started {
        /// Which member.
        member: usize,
        /// Which incarnation of it.
        incarnation: u64,
    },
    /// It does what it is there for.
    Ready {
        /// Which member.
        member: usize,
        /// Which incarnation of it.
        incarnation: u64,
    },
    /// Nothing of it lives (any more).
    Ended {
        /// Which member.
        member: usize,
        /// Which incarnation of it.
        incarnation: u64,
        /// How.
        ending: Ending,
    },
    /// The whole group is to end.
    Stop,
    /// The whole group is to end at once.
    Kill,
    /// Time has passed: see [`Group::wake_at`].
    Tick,
}

/// How a member ended, as far as its [`Restart`] is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By itself and well, or because somebody wanted it to: OTP's `normal` and `shutdown`.
    Normal,
    /// In any other way, a failure to start included.
    Abnormal,
}

/// Something that is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start it.
    Start {
        /// Which member.
        member: usize,
        /// Which incarnation of it, from 1.
        incarnation: u64,
    },
    /// Stop it by its own rule.
    Stop {
        /// Which member.
        member: usize,
        /// Which incarnation of it.
        incarnation: u64,
        /// Why.
        why: Why,
    },
    /// Kill it.
    Kill {
        /// Which member.
        member: usize,
        /// Which incarnation of it.
        incarnation: u64,
    },
    /// It is ready; nothing is to be done.
    Ready {
        /// Which member.
        member: usize,
        /// Which incarnation of it.
        incarnation: u64,
    },
    /// It will be started again; nothing is to be done yet.
    Again {
        /// Which member.
        member: usize,
        /// Which incarnation of it has ended.
        incarnation: u64,
        /// When it is started again, at the earliest.
        delay: Duration,
        /// How many restarts there were in the period, this one included.
        restarts: u32,
    },
    /// The group has ended.
    Finish(Finish),
}

/// Why a member is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The strategy restarts it together with this member.
    RestartedWith(usize),
    /// It was not ready in time.
    NotReady,
    /// The group ends.
    GroupEnds,
}

/// How a group ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// Every member has ended, and none is to be started again.
    Complete,
    /// It was told to.
    Stopped,
    /// This member's end asked for more restarts than the [`Intensity`] has.
    TooOften {
        /// Which member.
        member: usize,
    },
    /// This member ended before it was ready, and is not to be started again.
    NeverReady {
        /// Which member.
        member: usize,
    },
}
