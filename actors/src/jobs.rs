//! Jobs: process specs that wait for their turn, and what became of them. The pure part: no I/O, no clock.
//!
//! ```text
//! queued ──► starting ──► running ──► ended          retry: starting, running ──► queued
//!    │           │                      ▲            cancelled, skipped, too late: queued ──► ended
//!    └───────────┴──────────────────────┘
//! ```
//!
//! A job is not a process: each attempt to run it has a process of its own. An ended job stays as it ended; to run it again
//! makes another job.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::record::Outcome;

pub mod schedule;

/// The id of a job: a UUIDv7, never reused. Ids sort by the order in which jobs were submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(Uuid);

impl JobId {
    /// A new one.
    #[expect(clippy::new_without_default, reason = "each is another")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for JobId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

/// How far a job has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It waits for its turn.
    Queued,
    /// It has its turn: its process has an id, and may or may not be there yet.
    Starting,
    /// Its process runs.
    Running,
    /// It is over. Nothing of it changes any more.
    Ended,
}

impl JobState {
    /// As it is written everywhere.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Ended => "ended",
        }
    }
}

/// How an attempt of a job ended, or the job without any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobOutcome {
    /// The command exited by itself, with 0 or not.
    Exited,
    /// A signal ended it.
    Signaled,
    /// It was stopped at its time limit, or its deadline came, perhaps before it could start.
    TimedOut,
    /// It was stopped because it was silent for too long.
    IdleTimeout,
    /// Somebody cancelled it, or its process was stopped.
    Cancelled,
    /// Another process took its place.
    Replaced,
    /// It was stopped at its first denial.
    Denied,
    /// Its process could not be started.
    SpawnFailed,
    /// It used more memory than it may.
    OutOfMemory,
    /// What became of its process cannot be known.
    Lost,
    /// It never had its turn: a job that it was to come after did not end as it should.
    Skipped,
    /// The daemon died between the intent to start its process and the start: nothing of it ran.
    Interrupted,
}

impl From<Outcome> for JobOutcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Exited => Self::Exited,
            Outcome::Signaled => Self::Signaled,
            Outcome::TimedOut => Self::TimedOut,
            Outcome::IdleTimeout => Self::IdleTimeout,
            Outcome::Cancelled => Self::Cancelled,
            Outcome::Replaced => Self::Replaced,
            Outcome::Denied => Self::Denied,
            Outcome::SpawnFailed => Self::SpawnFailed,
            Outcome::OutOfMemory => Self::OutOfMemory,
            Outcome::Lost => Self::Lost,
        }
    }
}

/// What must become of another job first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AfterRule {
    /// It succeeded: its command exited with 0.
    #[default]
    Success,
    /// It ended, however.
    End,
    /// It ended and did not succeed. One that was skipped did not fail.
    Failure,
}

impl AfterRule {
    /// Whether a job that ended so is what was waited for.
    pub fn is_met(self, outcome: JobOutcome, succeeded: bool) -> bool {
        match self {
            Self::Success => succeeded,
            Self::End => true,
            Self::Failure => !succeeded && outcome != JobOutcome::Skipped,
        }
    }
}

/// Which ends of an attempt are followed by another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryOn {
    /// The command exited with something else than 0.
    Failed,
    /// A signal ended it.
    Signaled,
    /// A time limit of the process's ended it.
    TimedOut,
    /// It was silent for too long.
    IdleTimeout,
    /// It was stopped at its first denial.
    Denied,
    /// It could not be started.
    SpawnFailed,
    /// It used more memory than it may.
    OutOfMemory,
    /// What became of it cannot be known: it may have done everything.
    Lost,
    /// The daemon died before it was started.
    Interrupted,
}

/// Nothing of an interrupted attempt ran, so it takes nothing from what else may be tried; but who starts, and ends the daemon by
/// that, must not do so for ever.
pub const INTERRUPTIONS_MAX: u32 = 10;

/// Whether and when a job is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryRule {
    /// How often it is tried again, at most; after an interruption [`INTERRUPTIONS_MAX`] times more than that.
    pub times: u32,
    /// After which ends. What is asked to stop is never tried again.
    pub on: Vec<RetryOn>,
    /// How long it waits before it is tried again for the first time; twice as long each time.
    pub backoff_ms: u64,
    /// How long it waits at most.
    pub backoff_max_ms: u64,
}

impl Default for RetryRule {
    fn default() -> Self {
        Self {
            times: 0,
            on: vec![
                RetryOn::Failed,
                RetryOn::Signaled,
                RetryOn::TimedOut,
                RetryOn::IdleTimeout,
                RetryOn::OutOfMemory,
            ],
            backoff_ms: 1000,
            backoff_max_ms: 60_000,
        }
    }
}

impl RetryRule {
    /// How long to wait until the next attempt, if there is to be one, after the attempt of this number (1, 2 …) ended so.
    pub fn after(&self, attempt: u32, outcome: JobOutcome, succeeded: bool) -> Option<Duration> {
        let end = match outcome {
            JobOutcome::Exited if succeeded => return None,
            JobOutcome::Exited => RetryOn::Failed,
            JobOutcome::Signaled => RetryOn::Signaled,
            JobOutcome::TimedOut => RetryOn::TimedOut,
            JobOutcome::IdleTimeout => RetryOn::IdleTimeout,
            JobOutcome::Denied => RetryOn::Denied,
            JobOutcome::SpawnFailed => RetryOn::SpawnFailed,
            JobOutcome::OutOfMemory => RetryOn::OutOfMemory,
            JobOutcome::Lost => RetryOn::Lost,
            JobOutcome::Interrupted => RetryOn::Interrupted,
            JobOutcome::Cancelled | JobOutcome::Replaced | JobOutcome::Skipped => return None,
        };
        let times = match end {
            RetryOn::Interrupted => self.times.saturating_add(INTERRUPTIONS_MAX),
            _ => self.times,
        };
        if attempt > times || !self.on.contains(&end) {
            return None;
        }
        let doublings = attempt.saturating_sub(1).min(63);
        let wait = self.backoff_ms.saturating_mul(1 << doublings);
        Some(Duration::from_millis(wait.min(self.backoff_max_ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_bounded_and_waits_double_up_to_the_most() {
        let rule = RetryRule {
            times: 4,
            backoff_ms: 100,
            backoff_max_ms: 350,
            ..RetryRule::default()
        };
        let waits: Vec<_> = (1..=6)
            .map(|attempt| rule.after(attempt, JobOutcome::Exited, false))
            .collect();
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(waits, [ms(100), ms(200), ms(350), ms(350), None, None]);
        assert_eq!(rule.after(1, JobOutcome::Exited, true), None);
        assert_eq!(rule.after(1, JobOutcome::Cancelled, false), None);
        // What may have run is not run again unless that was said.
        assert_eq!(rule.after(1, JobOutcome::Lost, false), None);
        assert_eq!(rule.after(1, JobOutcome::Interrupted, false), None);
    }

    #[test]
    fn who_was_interrupted_again_and_again_is_tried_again_and_not_for_ever() {
        let rule = RetryRule {
            times: 1,
            on: vec![RetryOn::Failed, RetryOn::Interrupted],
            ..RetryRule::default()
        };
        let last = 1 + INTERRUPTIONS_MAX;
        for (attempt, outcome, is_again) in [
            (1, JobOutcome::Interrupted, true),
            (2, JobOutcome::Interrupted, true),
            (2, JobOutcome::Exited, false),
            (last, JobOutcome::Interrupted, true),
            (last + 1, JobOutcome::Interrupted, false),
        ] {
            let again = rule.after(attempt, outcome, false);
            assert_eq!(again.is_some(), is_again, "{attempt} {outcome:?}");
        }
    }

    #[test]
    fn waits_of_any_length_do_not_overflow() {
        let rule = RetryRule {
            times: u32::MAX,
            backoff_ms: u64::MAX,
            backoff_max_ms: u64::MAX,
            ..RetryRule::default()
        };
        assert_eq!(
            rule.after(u32::MAX, JobOutcome::Exited, false),
            Some(Duration::from_millis(u64::MAX))
        );
    }
}
