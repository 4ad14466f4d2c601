//! What a journal says beside what its ledger has taken. Whoever reads it comes to the same, be it to go on ([`load`](super::load))
//! or to make it short ([`checkpoint`](super::checkpoint)).

use std::collections::BTreeMap;

use provost_sandbox::denial::Denial;
use provost_sandbox::observe::notify::{Grant, Response};
use serde::{Deserialize, Serialize};

use super::calls::Left;
use super::journal::{Entry, Observed, StdinProgress};
use crate::approval::ApprovalScope;
use crate::ledger::Fact;

/// What stands as of some entry.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Standing {
    /// How far standard input was written.
    pub(super) stdin: StdinProgress,
    /// What was observed and the ledger has not taken yet, by number.
    pub(super) untaken: BTreeMap<u64, Fact>,
    /// The number behind the last that was observed.
    pub(super) next: u64,
    /// Requests for an approval that were not decided.
    pub(super) asking: BTreeMap<u64, Box<Denial>>,
    /// The number of the last request for an approval.
    pub(super) asked: u64,
    /// What was allowed beyond one call.
    pub(super) grants: Vec<(ApprovalScope, Grant)>,
    /// What was about to be answered to calls.
    pub(super) answers: BTreeMap<u64, Response>,
    /// The Landlock domains that are known to be the process's, and how many denials of each were told.
    pub(super) domains: BTreeMap<u64, u64>,
}

impl Standing {
    /// Takes an entry into account. What the ledger is to take comes back.
    pub(super) fn take(&mut self, entry: Entry) -> Option<Fact> {
        let fact = match entry {
            Entry::Fact(fact) => Some(fact),
            Entry::Took(number) => self.untaken.remove(&number),
            Entry::Observed(observed) => {
                self.observe(*observed);
                None
            }
            Entry::Granted(scope, grant) => {
                self.grants.push((scope, grant));
                None
            }
            Entry::Stdin(progress) => {
                self.stdin = progress;
                None
            }
            // What is accepted, sealed, or stands in the place of all that was before it: not beside the ledger.
            Entry::Accepted(_) | Entry::Sealed(_) | Entry::Checkpoint(_) => None,
        };
        if let Some(Fact::ApprovalDecided { grant, .. }) = &fact {
            self.asking.remove(&grant.approval);
        }
        fact
    }

    fn observe(&mut self, observed: Observed) {
        self.answers.extend(observed.answered);
        self.domains.extend(observed.domains);
        for (number, fact) in (observed.number..).zip(observed.facts) {
            match &fact {
                Fact::ApprovalRequested {
                    approval, attempt, ..
                } => {
                    self.asked = self.asked.max(*approval);
                    self.asking.insert(*approval, attempt.clone());
                }
                Fact::ApprovalDecided { grant, .. } => drop(self.asking.remove(&grant.approval)),
                _ => {}
            }
            self.untaken.insert(number, fact);
            self.next = self.next.max(number + 1);
        }
    }

    /// Keeps the answers to calls that may still wait: a call is in its slot from before its answer until long after.
    pub(super) fn keep_answers(&mut self, calls: Option<&Left>) {
        let received = calls.into_iter().flatten().flatten();
        let received: std::collections::HashSet<_> = received.map(|call| call.id).collect();
        self.answers.retain(|call, _| received.contains(call));
    }
}
