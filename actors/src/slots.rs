//! Slots: places of a session of which each has one process at a time.
//!
//! ```text
//! claim ─► free: given ─► the process takes it ─► gone: given to whoever waits
//!      └─► held: what holds it is replaced, and the claim waits
//! ```
//!
//! Whoever wants to start in a slot claims it first. It is given to one at a time, in the order of the claims, and only when
//! nothing of the process before lives any more: so there are never two, and each gets its own record. The supervisor of the
//! session has one of these and its mailbox is the only way to it, so every change is compare-and-set (I9); what wins between a
//! replacement and the end of what is replaced, that process's ledger decides.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest name of a slot, in bytes.
pub(crate) const SLOT_BYTES_MAX: usize = 128;

/// The place in its session that a process takes; what is there makes room for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Its name, of at most 128 bytes.
    pub name: String,
    /// How long what is replaced has to end, after the signal of its stop rule, where that rule gives it longer; then it is
    /// killed. Without, as its rule says.
    pub grace: Option<Duration>,
}

/// The slots of one session. `P` is what tells processes apart, `R` the way to whoever claims.
#[derive(Debug)]
pub struct Slots<P, R> {
    places: HashMap<String, Place<P, R>>,
    held_by: HashMap<P, String>,
    tickets: u64,
}

#[derive(Debug)]
struct Place<P, R> {
    holder: Holder<P>,
    waiting: VecDeque<(Option<Duration>, R)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Holder<P> {
    /// Given to a claim, whose process does not live yet.
    Given(u64),
    Process(P),
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum SlotEffect<P, R> {
    /// The slot is free for this claim: start, and show the ticket.
    Give {
        /// The slot.
        name: String,
        /// What shows that it was given.
        ticket: u64,
        /// Who claims.
        to: R,
    },
    /// This process is to make room.
    Replace {
        /// Which.
        process: P,
        /// How long it has.
        grace: Option<Duration>,
    },
}

impl<P, R> Default for Slots<P, R> {
    fn default() -> Self {
        Self {
            places: HashMap::new(),
            held_by: HashMap::new(),
            tickets: 0,
        }
    }
}

impl<P: Copy + Eq + Hash, R> Slots<P, R> {
    /// Somebody wants to start in it.
    pub fn claim(&mut self, slot: Slot, to: R) -> Option<SlotEffect<P, R>> {
        let Slot { name, grace } = slot;
        let Some(place) = self.places.get_mut(&name) else {
            return Some(self.give(name, VecDeque::new(), to));
        };
        place.waiting.push_back((grace, to));
        match place.holder {
            // It makes room as soon as it is there.
            Holder::Given(_) => None,
            // Asked again, it may have less time.
            Holder::Process(process) => Some(SlotEffect::Replace { process, grace }),
        }
    }

    /// This process lives in it now. Without a ticket (it lived before we did) it has a slot that is free.
    pub fn taken(&mut self, name: &str, ticket: Option<u64>, process: P) -> Option<SlotEffect<P, R>> {
        let place = match (self.places.get_mut(name), ticket) {
            (Some(place), Some(ticket)) if place.holder == Holder::Given(ticket) => place,
            (None, None) => self.places.entry(name.to_owned()).or_insert(Place {
                holder: Holder::Process(process),
                waiting: VecDeque::new(),
            }),
            _ => return None,
        };
        place.holder = Holder::Process(process);
        self.held_by.insert(process, name.to_owned());
        let (grace, _) = place.waiting.front()?;
        Some(SlotEffect::Replace {
            process,
            grace: *grace,
        })
    }

    /// Whoever had this ticket has started nothing. After the process took the slot it says nothing any more.
    pub fn released(&mut self, name: &str, ticket: u64) -> Option<SlotEffect<P, R>> {
        let place = self.places.get(name)?;
        match place.holder == Holder::Given(ticket) {
            true => self.next(name),
            false => None,
        }
    }

    /// Nothing of this process lives any more.
    pub fn gone(&mut self, process: P) -> Option<SlotEffect<P, R>> {
        let name = self.held_by.remove(&process)?;
        self.next(&name)
    }

    /// Nobody gets a slot any more: those who wait are forgotten.
    pub fn close(&mut self) {
        for place in self.places.values_mut() {
            place.waiting.clear();
        }
    }

    fn next(&mut self, name: &str) -> Option<SlotEffect<P, R>> {
        let (name, mut place) = self.places.remove_entry(name)?;
        let (_, to) = place.waiting.pop_front()?;
        Some(self.give(name, place.waiting, to))
    }

    fn give(
        &mut self,
        name: String,
        waiting: VecDeque<(Option<Duration>, R)>,
        to: R,
    ) -> SlotEffect<P, R> {
        self.tickets += 1;
        let ticket = self.tickets;
        let holder = Holder::Given(ticket);
        self.places.insert(name.clone(), Place { holder, waiting });
        SlotEffect::Give { name, ticket, to }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    fn slot(name: &str) -> Slot {
        let (name, grace) = (name.to_owned(), Some(Duration::from_millis(100)));
        Slot { name, grace }
    }

    proptest! {
        /// Claims, starts, starts that fail and ends in any order: never two at once, each claim given once and in its order,
        /// nothing kept of a slot that nobody has.
        #[test]
        fn i9_a_slot_has_one_process_and_every_claim_its_turn(
            steps in proptest::collection::vec((0u8..4, any::<bool>()), 0..100)
        ) {
            let mut slots: Slots<u32, u32> = Slots::default();
            // By slot: claims not yet given, the ticket that is out, the process that lives.
            let mut waiting: [VecDeque<u32>; 2] = Default::default();
            let mut given: [Option<u64>; 2] = [None; 2];
            let mut lives: [Option<u32>; 2] = [None; 2];
            let mut replaced: [bool; 2] = [false; 2];
            let mut next = 0;
            for (what, second) in steps {
                let at = usize::from(second);
                let name = ["one", "two"][at];
                let effect = match (what, given[at], lives[at]) {
                    (0, ..) => {
                        next += 1;
                        waiting[at].push_back(next);
                        slots.claim(slot(name), next)
                    }
                    (1, Some(ticket), None) => {
                        next += 1;
                        lives[at] = Some(next);
                        given[at] = None;
                        replaced[at] = false;
                        let effect = slots.taken(name, Some(ticket), next);
                        prop_assert_eq!(slots.released(name, ticket), None);
                        effect
                    }
                    (2, Some(ticket), None) => {
                        given[at] = None;
                        slots.released(name, ticket)
                    }
                    (3, _, Some(process)) => {
                        lives[at] = None;
                        slots.gone(process)
                    }
                    _ => None,
                };
                match effect {
                    Some(SlotEffect::Give { name: of, ticket, to }) => {
                        prop_assert_eq!(of.as_str(), name);
                        prop_assert!(given[at].is_none() && lives[at].is_none(), "two in one slot");
                        prop_assert_eq!(waiting[at].pop_front(), Some(to));
                        given[at] = Some(ticket);
                    }
                    Some(SlotEffect::Replace { process, .. }) => {
                        prop_assert_eq!(lives[at], Some(process));
                        replaced[at] = true;
                    }
                    None => {}
                }
                // Nobody waits for something that does not go on.
                let goes_on = given[at].is_some() || (lives[at].is_some() && replaced[at]);
                prop_assert!(waiting[at].is_empty() || goes_on);
            }
            for (at, name) in ["one", "two"].into_iter().enumerate() {
                let used = given[at].is_some() || lives[at].is_some();
                prop_assert_eq!(slots.places.contains_key(name), used);
            }
        }
    }

    #[test]
    fn what_lived_before_us_has_its_slot() {
        let mut slots: Slots<u32, u32> = Slots::default();
        assert_eq!(slots.taken("web", None, 7), None);
        let grace = slot("web").grace;
        let replaced = slots.claim(slot("web"), 1);
        assert_eq!(replaced, Some(SlotEffect::Replace { process: 7, grace }));
        assert!(matches!(slots.gone(7), Some(SlotEffect::Give { to: 1, .. })));
    }

    #[test]
    fn who_waits_when_it_is_closed_gets_nothing() {
        let mut slots: Slots<u32, u32> = Slots::default();
        slots.taken("web", None, 7);
        slots.claim(slot("web"), 1);
        slots.close();
        assert_eq!(slots.gone(7), None);
    }
}
