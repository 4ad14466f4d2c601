//! What a log says of approvals: which requests wait, and what was decided.

use std::collections::BTreeMap;
use std::sync::Arc;

use provost_sandbox::denial::Decision;

use super::{Log, Other, State};
use crate::event::{Event, EventBody};

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// Allowed or refused.
    pub decision: Decision,
    /// Who decided, as the event says it.
    pub by: String,
}

impl Log {
    /// The `approval_requested` events whose requests wait for an answer, oldest first: at most as many as a process may have
    /// waiting.
    pub fn approvals_waiting(&self) -> Vec<Event> {
        let state = self.lock();
        let mut waiting: BTreeMap<u64, &Other> = BTreeMap::new();
        for other in &state.others {
            match &*other.body {
                EventBody::ApprovalRequested { approval, .. } => drop(waiting.insert(*approval, other)),
                EventBody::ApprovalDecided { approval, .. } => drop(waiting.remove(approval)),
                _ => {}
            }
        }
        let event = |other: &Other| Event {
            process: self.process,
            seq: other.seq,
            time: other.time,
            body: EventBody::clone(&other.body),
        };
        waiting.into_values().map(event).collect()
    }

    /// What was decided about a request that does not wait any more; waits until the log says it. `None` if there was no
    /// such request.
    pub async fn decision(self: &Arc<Self>, approval: u64) -> Option<Decided> {
        let mut cursor = self.follow(self.last_seq(), false).without_output();
        loop {
            match fate(&self.lock(), approval) {
                Fate::Decided(decided) => return Some(decided),
                Fate::Unknown => return None,
                Fate::Waits => {}
            }
            cursor.next().await?;
        }
    }
}

enum Fate {
    Unknown,
    Waits,
    Decided(Decided),
}

fn fate(state: &State, number: u64) -> Fate {
    let mut fate = Fate::Unknown;
    for other in &state.others {
        match &*other.body {
            EventBody::ApprovalRequested { approval, .. } if *approval == number => fate = Fate::Waits,
            EventBody::ApprovalDecided {
                approval,
                decision,
                by,
                ..
            } if *approval == number => {
                let (decision, by) = (*decision, by.clone());
                return Fate::Decided(Decided { decision, by });
            }
            _ => {}
        }
    }
    fate
}
