//! How soon something is started again.

use std::time::Duration;

/// Exponential backoff: each restart of a member waits `factor` times as long as the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Before the first restart.
    pub first: Duration,
    /// At most.
    pub max: Duration,
    /// How much longer each time.
    pub factor: u32,
    /// By how much of itself a delay may be shorter, at random, so that what failed together does not come back together.
    /// More than 100 counts as 100.
    pub jitter_percent: u8,
    /// A member that was ready for so long begins with `first` again.
    pub healthy_after: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(100),
            max: Duration::from_secs(30),
            factor: 2,
            jitter_percent: 10,
            healthy_after: Duration::from_secs(10),
        }
    }
}

impl Backoff {
    /// The delay before a restart, after so many `before` it. Chance comes as a number.
    pub(super) fn delay(&self, before: u32, chance: u64) -> Duration {
        let factor = self.factor.max(1).saturating_pow(before);
        let whole = self.first.saturating_mul(factor).min(self.max);
        let percent = u32::from(self.jitter_percent.min(100));
        // Thousandths, so that few percents have steps, too.
        let shorter = (chance % u64::from(percent * 10 + 1)) as u32;
        whole - (whole / 1000).saturating_mul(shorter)
    }
}

/// The next number of a sequence that looks like chance (splitmix64). It decides only on delays.
pub(super) fn chance(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let backoff = Backoff {
            jitter_percent: 0,
            max: Duration::from_secs(1),
            ..Backoff::default()
        };
        let delays: Vec<_> = (0..6).map(|n| backoff.delay(n, 7).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1000, 1000]);
    }

    proptest! {
        #[test]
        fn a_delay_is_shortened_by_the_jitter_at_most(
            first in 0u64..10_000, max in 0u64..100_000, factor in 0u32..10, percent: u8, before: u32, chance: u64
        ) {
            let backoff = Backoff {
                first: Duration::from_millis(first),
                max: Duration::from_millis(max),
                factor,
                jitter_percent: percent,
                ..Backoff::default()
            };
            let whole = Backoff { jitter_percent: 0, ..backoff }.delay(before, chance);
            let delay = backoff.delay(before, chance);
            prop_assert!(whole <= backoff.max && delay <= whole);
            let least = whole * (100 - u32::from(percent.min(100))) / 100;
            prop_assert!(delay >= least, "{delay:?} of {whole:?}");
        }
    }
}
