//! What is said of a process that nobody keeps any more: decisions, without effects.

use provost_sandbox::keeper::exits::ExitRecord;
use provost_sandbox::keeper::wire::TreeEnd;

use crate::event::StreamName;
use crate::exit::{decode, usage_of};
use crate::ledger::{Fact, Ledger};
use crate::record::Closed;

/// The reason in the record (`spawn_failed`) of a process that an earlier daemon accepted and never asked for.
pub const NEVER_STARTED: &str = "the daemon ended before it was started; nothing ran";

/// Why no keeper knows a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unkept {
    /// The keeper was there all the time and was never asked to start it.
    NeverAsked,
    /// The keeper is gone, and everything that it held died with it. What it wrote down before, if it did.
    KeeperLost {
        reason: String,
        exit: Option<ExitRecord>,
    },
}

impl Unkept {
    /// Why a keeper does not know a process. `keeper_was_there`: it was, before the daemon came that asks.
    pub(crate) fn why(same_boot: bool, keeper_was_there: bool, exit: Option<ExitRecord>) -> Self {
        if !same_boot {
            // What is in the file of exits is of another boot's keeper, and no less true.
            let reason = "the machine was restarted".to_owned();
            return Self::KeeperLost { reason, exit };
        }
        if keeper_was_there && exit.is_none() {
            return Self::NeverAsked;
        }
        let reason = "its keeper died, and everything that it held with it".to_owned();
        Self::KeeperLost { reason, exit }
    }

    /// How its tree ended, if that was written down.
    pub(super) fn end(&self) -> Option<TreeEnd> {
        match self {
            Self::NeverAsked => None,
            Self::KeeperLost { exit, .. } => exit.and_then(|exit| exit.end),
        }
    }

    /// All that will ever be said of it: after this, it has its record.
    pub(super) fn facts(
        self,
        ledger: &Ledger,
        streams: &[StreamName],
        unobserved: &[String],
    ) -> Vec<Fact> {
        let (reason, exit) = match self {
            Self::NeverAsked if !ledger.is_started() => {
                let reason = NEVER_STARTED.to_owned();
                let exit_code = 125;
                return vec![Fact::SpawnFailed { reason, exit_code }];
            }
            Self::NeverAsked => ("its keeper does not know it any more".to_owned(), None),
            Self::KeeperLost { reason, exit } => (reason, exit),
        };
        let status = exit.and_then(|exit| exit.status);
        let mut facts: Vec<Fact> = status
            .map(|status| Fact::Exited(decode(status)))
            .into_iter()
            .collect();
        facts.extend(streams.iter().map(|stream| Fact::StreamClosed {
            stream: *stream,
            closed: Closed::Abandoned,
        }));
        facts.push(Fact::DenialsDrained {
            complete: false,
            unobserved: unobserved.to_vec(),
        });
        facts.extend(exit.and_then(|exit| exit.end).map(|end| Fact::TreeEmpty {
            killed: end.killed,
            usage: end.usage.map(usage_of),
            unkillable: Vec::new(),
        }));
        if ledger.exit().is_none() && status.is_none() {
            let reason = reason.clone();
            facts.push(Fact::Lost { reason });
        }
        facts.push(Fact::SpawnerLost { reason });
        facts
    }
}
