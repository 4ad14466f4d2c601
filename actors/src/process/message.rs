//! What a process is told: from outside, by its child actors, by the spawner, by its timers.

use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::signal::Signal;
use provost_sandbox::keeper::wire::{Notice, SignalScope};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::Resumed;
use crate::approval::Verdict;
use crate::ledger::Fact;

/// What a process can be told.
pub(crate) enum ProcessMsg {
    /// From outside.
    Command(ProcessCommand),
    /// From a child actor, with the permit that bounds how many wait here.
    Fact(Fact, Option<OwnedSemaphorePermit>),
    /// The same of a fact that was written down under this number.
    Observed(u64, Fact, Option<OwnedSemaphorePermit>),
    /// From the spawner.
    Notice(Notice, Vec<OwnedFd>),
    /// The spawner is gone.
    SpawnerLost(String),
    /// The spawner could not be asked to start it.
    NotAsked(String),
    /// A timer of this actor's own.
    Timer(Timer),
    /// It said that it is ready, or never will.
    ReadySaid {
        said: bool,
        /// Dropped when that is written down.
        taken: oneshot::Sender<()>,
    },
    /// It was accepted by an earlier daemon: what there is of it.
    Resume(Box<Resumed>),
    /// What it has written to disks by now, and how long it took to find out.
    Written { bytes: u64, took: Duration },
}

/// What outsiders may ask of a process.
#[derive(Debug)]
pub enum ProcessCommand {
    /// End it by its stop rule.
    Stop {
        /// Who asks, or why, for the record.
        reason: String,
        /// How long it has at most, where its own rule gives it longer.
        grace: Option<Duration>,
    },
    /// Kill its tree now.
    Kill {
        /// Who asks, or why, for the record.
        reason: String,
    },
    /// Another process takes its place: end it by its stop rule.
    Replace {
        /// How long it has at most, where its own rule gives it longer.
        grace: Option<Duration>,
    },
    /// Its session was given up, and it runs on.
    Detached {
        /// The session.
        session: String,
    },
    /// Nobody is there to answer: what waits for an answer is refused.
    Unattended,
    /// Somebody holds its session again.
    Attached {
        /// The session.
        session: String,
    },
    /// Answer an approval request.
    Decide {
        /// The number of the request.
        approval: u64,
        /// The answer.
        verdict: Verdict,
        /// Who answers, for the record.
        by: String,
        /// False if it does not wait for an answer (any more).
        reply: oneshot::Sender<bool>,
    },
    /// Send a signal.
    Signal {
        /// Which.
        signal: Signal,
        /// To whom.
        scope: SignalScope,
        /// Answered when the signal is on its way: whatever this process does then, it will be sent.
        sent: oneshot::Sender<()>,
    },
}

/// A timer has run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timer {
    Timeout,
    Idle,
    /// The time for starting.
    Start,
    /// The time for starting, once somebody wants it ended.
    StartGrace,
    Grace,
    Drain,
    Kill,
    /// Look how much it has written to disks.
    Disk,
}
