//! When a map is given up, and what its exit code says.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A map is given up when so many items have failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaltRule {
    /// What becomes of what runs then.
    pub when: HaltWhen,
    /// How many failures are too many.
    pub fail: FailLimit,
}

/// What becomes of what runs when a map is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HaltWhen {
    /// It is stopped.
    Now,
    /// It goes on to its end; nothing more starts.
    Soon,
}

/// How many failures are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailLimit {
    /// So many.
    Count(usize),
    /// So many of a hundred, of all items.
    Percent(u8),
}

impl HaltRule {
    /// Whether it is time, after so many failures, of so many items in all.
    pub fn is_met(&self, failed: usize, items: usize) -> bool {
        match self.fail {
            FailLimit::Count(count) => failed >= count,
            FailLimit::Percent(percent) => {
                failed > 0 && failed as u128 * 100 >= u128::from(percent) * items as u128
            }
        }
    }
}

impl FromStr for HaltRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "say now,fail=N or soon,fail=N, with N from 1, or N% from 1% to 100%".to_owned();
        let (when, limit) = text.split_once(",fail=").ok_or_else(wrong)?;
        let when = match when {
            "now" => HaltWhen::Now,
            "soon" => HaltWhen::Soon,
            _ => return Err(wrong()),
        };
        let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse::<usize>().ok().filter(|number| *number > 0),
            false => None,
        };
        let fail = match limit.strip_suffix('%') {
            None => FailLimit::Count(number(limit).ok_or_else(wrong)?),
            Some(percent) => {
                let percent = number(percent).and_then(|number| u8::try_from(number).ok());
                let percent = percent.filter(|percent| *percent <= 100);
                FailLimit::Percent(percent.ok_or_else(wrong)?)
            }
        };
        Ok(Self { when, fail })
    }
}

impl fmt::Display for HaltRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let when = match self.when {
            HaltWhen::Now => "now",
            HaltWhen::Soon => "soon",
        };
        match self.fail {
            FailLimit::Count(count) => write!(f, "{when},fail={count}"),
            FailLimit::Percent(percent) => write!(f, "{when},fail={percent}%"),
        }
    }
}

/// The exit code of a map of which so many items have failed: so many, up to 100; 101 if there are more.
pub fn exit_code(failed: usize) -> u8 {
    u8::try_from(failed).map_or(101, |failed| failed.min(101))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_exit_code_counts_up_to_a_hundred() {
        let codes = [0, 1, 18, 100, 101, 102, 255, 256, 1 << 40].map(exit_code);
        assert_eq!(codes, [0, 1, 18, 100, 101, 101, 101, 101, 101]);
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for text in [
            "",
            "now",
            "never",
            "now,fail=",
            "now,fail=0",
            "now,fail=0%",
            "now,fail=101%",
            "now,fail=-1",
            "now,fail=+1",
            "later,fail=1",
            "now,done=1",
            "now,fail=1.5",
            "now, fail=1",
            "now,fail=99999999999999999999999",
        ] {
            assert!(text.parse::<HaltRule>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_rule_is_read_as_it_is_written(now: bool, count in 1_usize.., percent in 1_u8..=100) {
            let when = if now { HaltWhen::Now } else { HaltWhen::Soon };
            for fail in [FailLimit::Count(count), FailLimit::Percent(percent)] {
                let rule = HaltRule { when, fail };
                prop_assert_eq!(rule.to_string().parse(), Ok(rule));
            }
        }

        #[test]
        fn it_is_never_time_without_a_failure_and_stays_so_once_it_is(percent in 1_u8..=100, items in 1_usize..100_000, failed: u16) {
            let rule = HaltRule { when: HaltWhen::Now, fail: FailLimit::Percent(percent) };
            let failed = usize::from(failed);
            prop_assert!(!rule.is_met(0, items));
            prop_assert!(rule.is_met(items, items));
            let share = failed as f64 / items as f64;
            prop_assert_eq!(rule.is_met(failed, items), failed > 0 && share * 100.0 + 1e-9 >= f64::from(percent));
            prop_assert!(!rule.is_met(failed, items) || rule.is_met(failed + 1, items));
        }
    }
}
