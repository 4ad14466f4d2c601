//! What the ledger wants done.

use jiff::Timestamp;

#[cfg(doc)]
use super::Fact;
use super::StopCause;
use crate::event::EventDraft;
use crate::record::TerminalRecord;

/// What the ledger wants done. Effects are to be performed in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Effect {
    /// Append this event to the log.
    Append(EventDraft),
    /// Begin to stop the tree: the stop signal, after the grace KILL.
    StopTree {
        /// Why.
        cause: StopCause,
    },
    /// Kill the whole tree now. Comes at most once.
    KillTree,
    /// Start the drain timer; when it has run out, say [`Fact::DrainExpired`], or [`Fact::DrainHeld`] if the
    /// paced reader is what the streams wait for. Never comes while it runs.
    ArmDrain,
    /// Tell the stream actors to give up: each says its last bytes, then that its stream is closed.
    AbandonStreams,
    /// Seal the log with this record. The last effect of a process; comes exactly once.
    Seal {
        /// The time of the terminal event.
        time: Timestamp,
        /// The record. Its `retained` and `dropped` counts are those of a log that drops nothing; the log
        /// corrects them.
        record: Box<TerminalRecord>,
    },
}

impl Effect {
    /// It is for the log: an event, or the record.
    pub(crate) fn is_of_the_log(&self) -> bool {
        matches!(self, Self::Append(_) | Self::Seal { .. })
    }
}
