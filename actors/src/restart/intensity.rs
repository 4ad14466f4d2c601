//! How often a group is restarted before it is given up.

use std::collections::VecDeque;
use std::time::Duration;

/// At most so many restarts within any period; one more ends the group. What a strategy restarts together is one restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intensity {
    /// How many; with 0 the first end that asks for a restart ends the group.
    pub restarts: u32,
    /// In which time.
    pub period: Duration,
}

impl Default for Intensity {
    fn default() -> Self {
        Self {
            restarts: 3,
            period: Duration::from_secs(5),
        }
    }
}

/// The restarts of the last period.
#[derive(Debug, Clone, Default)]
pub(super) struct Restarts(VecDeque<Duration>);

impl Restarts {
    /// Counts one now: how many there were in the period, this one included; an error if that is one too many.
    pub(super) fn count(&mut self, now: Duration, intensity: Intensity) -> Result<u32, ()> {
        self.0.push_back(now);
        // As in OTP, a restart at the very end of the period is still in it.
        while self.0.front().is_some_and(|then| *then + intensity.period < now) {
            self.0.pop_front();
        }
        match u32::try_from(self.0.len()) {
            Ok(count) if count <= intensity.restarts => Ok(count),
            _ => Err(()),
        }
    }
}
