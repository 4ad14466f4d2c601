//! What is kept in all, of each session and of everything: bounded, and shared fairly.
//!
//! Each stream has a bound of its own, which its log holds at every moment. The sums are looked at once a second:
//!
//! 1. a session, with its parts, that keeps more than it may loses output, the oldest first, of whichever process; readers get
//!    gaps;
//! 2. where all sessions together keep too much, those lose that have more than their fair share, and no others: first their
//!    ended processes are forgotten, in the order of their ends, then output of the live ones goes as above.
//!
//! The fair share is a level: whoever keeps less is left alone, and what they do not use is shared by the others. A session
//! with its parts is one party; so are all processes together that are in no session, or in one that was closed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use provost_actors::event::ProcessId;
use provost_actors::session::SessionId;

use super::processes::Supervised;
use super::{Daemon, Settings, State};

/// The processes of a party.
type Members = Vec<Arc<Supervised>>;

impl Daemon {
    /// Brings what is kept within its bounds; who is forgotten for that, and is to be removed. Blocks.
    pub(super) fn keep_within_bounds(&self) -> Members {
        let settings = self.settings();
        let (capped, parties) = {
            let state = self.state();
            (state.capped(&settings), state.parties())
        };
        for (members, most) in &capped {
            trim(members, kept(members).saturating_sub(*most));
        }
        let ended: HashSet<ProcessId> = self.note_ended();
        let counts: Vec<u64> = parties
            .iter()
            .map(|members| {
                members
                    .iter()
                    .filter(|process| ended.contains(&process.id()))
                    .count() as u64
            })
            .collect();
        let weights: Vec<u64> = parties
            .iter()
            .map(|members| members.iter().map(weight).sum())
            .collect();
        let count_level = fair_level(&counts, settings.ended_max as u64);
        let level = fair_level(&weights, settings.memory_bytes);
        let mut forgotten = Vec::new();
        for ((members, count), all) in parties.into_iter().zip(counts).zip(weights) {
            let (mut count, mut all) = (count.saturating_sub(count_level), all.saturating_sub(level));
            if count > 0 || all > 0 {
                let members = self.forget_first(members, &mut count, &mut all, &mut forgotten);
                trim(&members, all);
            }
        }
        forgotten
    }

    /// Notes who has ended since this was done last, and says who has ended in all.
    fn note_ended(&self) -> HashSet<ProcessId> {
        let mut state = self.state();
        let state = &mut *state;
        let mut noted: HashSet<ProcessId> = state.ended.iter().copied().collect();
        for (id, process) in &state.processes {
            if !process.is_live() && noted.insert(*id) {
                state.ended.push_back(*id);
            }
        }
        state.ended.retain(|id| state.processes.contains_key(id));
        noted
    }

    /// Forgets those of a party that ended first, until it has so many fewer and keeps so much less; who is left.
    fn forget_first(
        &self,
        mut members: Members,
        count: &mut u64,
        bytes: &mut u64,
        forgotten: &mut Members,
    ) -> Members {
        let of_party: HashSet<ProcessId> = members.iter().map(|process| process.id()).collect();
        let mut state = self.state();
        let state = &mut *state;
        let mut gone = HashSet::new();
        for id in &state.ended {
            if *count == 0 && *bytes == 0 {
                break;
            }
            if of_party.contains(id)
                && let Some(process) = state.processes.remove(id)
            {
                *count = count.saturating_sub(1);
                *bytes = bytes.saturating_sub(weight(&process));
                process.forgotten.cancel();
                state.forgotten.note(*id, process.confined);
                gone.insert(*id);
                forgotten.push(process);
            }
        }
        state.ended.retain(|id| !gone.contains(id));
        members.retain(|process| !gone.contains(&process.id()));
        members
    }
}

impl State {
    /// The processes of each session and its parts, innermost first, and how much they may keep.
    fn capped(&self, settings: &Settings) -> Vec<(Members, u64)> {
        let mut of: BTreeMap<SessionId, Members> = BTreeMap::new();
        for process in self.processes.values() {
            for id in process.session.iter().flat_map(|id| self.leases.ancestors(*id)) {
                of.entry(id).or_default().push(process.clone());
            }
        }
        // Parts are younger than what they are part of.
        of.into_iter()
            .rev()
            .filter_map(|(id, members)| {
                let own = self.leases.get(id)?.open.kept_bytes_max;
                let most = settings.session_bytes();
                Some((members, own.map_or(most, |own| own.min(most))))
            })
            .collect()
    }

    /// Who shares what may be kept.
    fn parties(&self) -> Vec<Members> {
        let mut of: BTreeMap<Option<SessionId>, Members> = BTreeMap::new();
        for process in self.processes.values() {
            let outermost = process.session.and_then(|id| self.leases.ancestors(id).pop());
            of.entry(outermost).or_default().push(process.clone());
        }
        of.into_values().collect()
    }
}

fn kept(members: &Members) -> u64 {
    members.iter().map(|process| process.retained()).sum()
}

fn weight(process: &Arc<Supervised>) -> u64 {
    let record = process.link.record();
    let result = record.as_ref().and_then(|record| record.result.as_ref());
    let result = result.map_or(0, |result| result.as_json().len() as u64);
    process.retained() + process.described_bytes + result
}

/// Drops so much of the output of these, the oldest first. One that has ended and is on disk only loses all of it at once.
fn trim(members: &Members, mut excess: u64) {
    if excess == 0 {
        return;
    }
    let logs: Vec<_> = members
        .iter()
        .map(|process| process.link.log_in_memory())
        .collect();
    let oldest = |index: usize| match &logs[index] {
        Some(log) => log.evictable().map(|time| Reverse((time, index))),
        None => {
            let link = &members[index].link;
            (link.retained() > 0).then(|| Reverse((link.queued_at(), index)))
        }
    };
    let mut order: BinaryHeap<Reverse<(Timestamp, usize)>> =
        (0..members.len()).filter_map(oldest).collect();
    while excess > 0
        && let Some(Reverse((_, index))) = order.pop()
    {
        let until = order.peek().map_or(Timestamp::MAX, |Reverse((time, _))| *time);
        let dropped = match &logs[index] {
            Some(log) => log.evict(excess, until),
            None => members[index].link.drop_output(),
        };
        excess = excess.saturating_sub(dropped);
        order.extend(oldest(index));
    }
}

/// The level that nobody need exceed for all to fit: the highest at which what everybody has, but no more than that, is no more
/// than `total` together.
fn fair_level(parties: &[u64], total: u64) -> u64 {
    let mut parties = parties.to_vec();
    parties.sort_unstable();
    let mut left = total;
    for (index, has) in parties.iter().enumerate() {
        let share = left / (parties.len() - index) as u64;
        if *has > share {
            return share;
        }
        left -= has;
    }
    u64::MAX
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shares_that_are_not_used_are_the_others() {
        assert_eq!(fair_level(&[], 10), u64::MAX);
        assert_eq!(fair_level(&[3, 4], 10), u64::MAX);
        assert_eq!(fair_level(&[100, 1], 10), 9);
        assert_eq!(fair_level(&[100, 1, 100], 11), 5);
        assert_eq!(fair_level(&[7, 7, 7], 9), 3);
    }

    proptest! {
        #[test]
        fn nobody_below_the_fair_share_loses_anything(
            parties in proptest::collection::vec(0u64..1000, 1..20),
            total in 0u64..5000,
        ) {
            let level = fair_level(&parties, total);
            let after: u64 = parties.iter().map(|has| has.min(&level)).sum();
            prop_assert!(after <= total);
            prop_assert!(level >= total / parties.len() as u64);
            // Nothing is taken that need not be.
            let fits = parties.iter().sum::<u64>() <= total;
            prop_assert!(fits == (level == u64::MAX));
            prop_assert!(fits || after + parties.len() as u64 > total);
        }
    }
}
