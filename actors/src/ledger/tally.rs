//! Denials: counted exactly, told up to a bound.
//!
//! A program can be refused a hundred thousand times a second, and may do so to bury the one refusal that
//! matters. So the counts are exact whatever comes, the first thousand are told one by one, and after that
//! whatever is *new* is still told; only repetitions are merely counted.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use provost_sandbox::denial::{AllowingRule, Denial, DenialClass, DenialTarget};
use serde::{Deserialize, Serialize};

use crate::record::DenialSummary;

/// How many denials are told whether they are new or not.
pub(super) const EVENTS_ANYWAY: u64 = 1000;

/// How many distinct denials of each class are remembered, hence told: what is refused cheaply a thousand times must
/// not crowd out the one refusal of another kind.
pub(super) const DISTINCT_MAX: usize = 4096;

/// How many distinct denials of each class the record names.
pub(super) const FIRST_MAX: usize = 64;

/// How many names of probes and of unobserved classes the record has.
const NAMES_MAX: usize = 256;

/// The longest text of a denial, in bytes: a path's greatest length.
const TEXT_MAX: usize = 4096;

/// Everything that is known of a process's denials.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct DenialTally {
    total: u64,
    by_class: BTreeMap<DenialClass, u64>,
    first: Vec<Denial>,
    /// Hashes of what was seen, not the things themselves, whose length the program chooses. The key of the
    /// hash is random: nobody can aim at a collision, which could at worst leave an event out.
    seen: BTreeMap<DenialClass, BTreeSet<u64>>,
    key: [u64; 2],
    /// How many came with details.
    detailed: u64,
    probes: BTreeMap<String, u64>,
    drained: Option<Drained>,
    /// Classes of which it turned out at the end that nobody observed them.
    late: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Drained {
    complete: bool,
    unobserved: Vec<String>,
}

impl DenialTally {
    /// Nothing denied yet. Where no denials are expected there is nothing to drain.
    pub(super) fn new(expected: bool) -> Self {
        Self {
            total: 0,
            by_class: BTreeMap::new(),
            first: Vec::new(),
            seen: BTreeMap::new(),
            key: [0_u8, 1].map(|half| RandomState::new().hash_one(half)),
            detailed: 0,
            probes: BTreeMap::new(),
            drained: (!expected).then(|| Drained {
                complete: true,
                unobserved: Vec::new(),
            }),
            late: Vec::new(),
        }
    }

    /// Counts a denial; gives it back if it is to be told.
    pub(super) fn note(&mut self, mut denial: Denial) -> Option<Denial> {
        self.count(denial.class, 1);
        self.detailed = self.detailed.saturating_add(1);
        let new = self.is_new(&denial);
        if !new && self.detailed > EVENTS_ANYWAY {
            return None;
        }
        // Before its texts are cut.
        denial.allow = AllowingRule::of(&denial).map(Box::new);
        clip_texts(&mut denial);
        let named = |first: &[Denial]| first.iter().filter(|named| named.class == denial.class).count();
        if new && named(&self.first) < FIRST_MAX {
            self.first.push(denial.clone());
        }
        Some(denial)
    }

    fn is_new(&mut self, denial: &Denial) -> bool {
        let target = &denial.target;
        let mut hasher = keyed(self.key);
        let parts = (
            denial.class,
            &denial.operation,
            &target.host,
            target.address,
            target.port,
            &target.protocol,
            &target.path,
            &target.syscall,
        );
        parts.hash(&mut hasher);
        let hash = hasher.finish();
        let seen = self.seen.entry(denial.class).or_default();
        seen.len() < DISTINCT_MAX && seen.insert(hash)
    }

    /// Counts denials of which nothing else is known.
    pub(super) fn count(&mut self, class: DenialClass, extra: u64) {
        if extra > 0 {
            self.total = self.total.saturating_add(extra);
            let of_class = self.by_class.entry(class).or_default();
            *of_class = of_class.saturating_add(extra);
        }
    }

    /// Counts a feature probe.
    pub(super) fn probed(&mut self, name: String) {
        let name = if self.probes.len() < NAMES_MAX || self.probes.contains_key(&name) {
            name
        } else {
            "other".to_owned()
        };
        let count = self.probes.entry(name).or_default();
        *count = count.saturating_add(1);
    }

    /// The channel is at its end.
    pub(super) fn drained(&mut self, complete: bool, mut unobserved: Vec<String>) {
        unobserved.truncate(NAMES_MAX);
        self.drained.get_or_insert(Drained { complete, unobserved });
    }

    /// A class that nobody could observe after all.
    pub(super) fn unobserved(&mut self, class: String) {
        if self.late.len() < NAMES_MAX {
            self.late.push(class);
        }
    }

    pub(super) fn any(&self) -> bool {
        self.total > 0
    }

    pub(super) fn is_drained(&self) -> bool {
        self.drained.is_some()
    }

    /// The record's account. `ran` is false for a process that never ran, which was denied nothing and
    /// whose channel need not have been drained.
    pub(super) fn summary(&self, ran: bool) -> DenialSummary {
        DenialSummary {
            total: self.total,
            by_class: self.by_class.clone(),
            first: self.first.clone(),
            probes: self.probes.clone(),
            complete: self.late.is_empty()
                && self.drained.as_ref().map_or(!ran, |drained| drained.complete),
            unobserved: self
                .drained
                .iter()
                .flat_map(|drained| drained.unobserved.iter())
                .chain(&self.late)
                .cloned()
                .collect(),
        }
    }
}

#[expect(
    deprecated,
    reason = "SipHash by its name: what std hashes with otherwise may change, and these hashes are written down"
)]
fn keyed([first, second]: [u64; 2]) -> impl Hasher {
    std::hash::SipHasher::new_with_keys(first, second)
}

/// Bounds every text, whoever made it.
pub(super) fn clip_texts(denial: &mut Denial) {
    clip_target(&mut denial.target);
    let always = [&mut denial.operation, &mut denial.rule, &mut denial.errno];
    for text in denial.comm.iter_mut().chain(always) {
        clip(text);
    }
    // A path that was cut is another path.
    denial.allow.take_if(|rule| rule.value.len() > TEXT_MAX);
}

pub(super) fn clip_target(target: &mut DenialTarget) {
    let optional = [
        &mut target.host,
        &mut target.protocol,
        &mut target.path,
        &mut target.syscall,
    ];
    for text in optional.into_iter().flatten() {
        clip(text);
    }
}

fn clip(text: &mut String) {
    if text.len() > TEXT_MAX {
        text.truncate(text.floor_char_boundary(TEXT_MAX));
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::denial;

    #[test]
    fn i4_a_flood_is_counted_exactly_and_what_is_new_is_still_told() {
        let mut tally = DenialTally::new(true);
        let flood = denial(DenialClass::Filesystem, "open", DenialTarget::path("/same"));
        let told = (0..100_000)
            .filter(|_| tally.note(flood.clone()).is_some())
            .count();
        assert_eq!(told as u64, EVENTS_ANYWAY);

        let hidden = denial(DenialClass::Network, "connect", DenialTarget::protocol("tcp"));
        assert_eq!(tally.note(hidden.clone()), Some(hidden.clone()));
        assert_eq!(tally.note(hidden.clone()), None);
        tally.count(DenialClass::Network, 7);
        tally.count(DenialClass::Syscall, 0);

        let summary = tally.summary(true);
        assert_eq!(summary.total, 100_009);
        let by_class = [(DenialClass::Network, 9), (DenialClass::Filesystem, 100_000)];
        assert_eq!(summary.by_class, by_class.into());
        let with_rule = |denial: Denial| Denial {
            allow: AllowingRule::of(&denial).map(Box::new),
            ..denial
        };
        assert_eq!(summary.first, [with_rule(flood), with_rule(hidden)]);
        assert!(!summary.complete, "nobody drained the channel");
    }

    #[test]
    fn i4_distinct_denials_are_told_and_listed_up_to_their_bounds() {
        let mut tally = DenialTally::new(true);
        let told = (0..100_000)
            .map(|n| {
                denial(
                    DenialClass::Filesystem,
                    "open",
                    DenialTarget::path(format!("/{n}")),
                )
            })
            .filter(|each| tally.note(each.clone()).is_some())
            .count();
        assert_eq!(told, DISTINCT_MAX);
        assert_eq!(tally.summary(true).total, 100_000);
        assert_eq!(tally.summary(true).first.len(), FIRST_MAX);
        assert_eq!(tally.summary(true).first[63].target.path.as_deref(), Some("/63"));

        let other = denial(DenialClass::Network, "connect", DenialTarget::protocol("tcp"));
        assert_eq!(tally.note(other.clone()), Some(other.clone()));
        assert_eq!(tally.summary(true).first.last(), Some(&other));
    }

    #[test]
    fn texts_probes_and_counts_have_bounds() {
        let mut tally = DenialTally::new(false);
        let told = tally.note(denial(
            DenialClass::Filesystem,
            "open",
            DenialTarget::path("ä".repeat(10_000)),
        ));
        let path = told.and_then(|told| told.target.path).unwrap();
        assert!(path.len() <= TEXT_MAX + '…'.len_utf8());
        for n in 0..1000 {
            tally.probed(format!("probe-{n}"));
        }
        tally.probed("probe-3".to_owned());
        tally.count(DenialClass::Resource, u64::MAX);
        tally.count(DenialClass::Resource, u64::MAX);
        let summary = tally.summary(true);
        assert!(summary.probes.len() <= NAMES_MAX + 1);
        assert_eq!(summary.probes.values().sum::<u64>(), 1001);
        assert_eq!(summary.probes["probe-3"], 2);
        assert_eq!(summary.total, u64::MAX);
        assert!(summary.complete);
    }
}
