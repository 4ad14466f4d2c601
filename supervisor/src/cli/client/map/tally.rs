//! How far a map has come: the bar on a terminal, and the summary at its end.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Instant;

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::output;
use crate::map::Row;

/// Items named one by one in the summary.
const NAMED_MAX: usize = 10;

/// What became of the items so far.
#[derive(Debug)]
pub(super) struct Tally {
    items: usize,
    ended: usize,
    succeeded: usize,
    /// Of those.
    succeeded_denied: usize,
    /// In words, how many.
    failed: BTreeMap<&'static str, usize>,
    tried_again: usize,
    /// What is wanted to be known of some: whether they ran is not certain, or they did not.
    doubtful: Vec<String>,
    bar: ProgressBar,
    begun: Instant,
}

impl Tally {
    /// Of so many items. The bar is drawn on stderr if that is a terminal.
    pub(super) fn new(items: usize, quiet: bool) -> Self {
        let bar = match !quiet && std::io::stderr().is_terminal() {
            true => ProgressBar::with_draw_target(Some(items as u64), ProgressDrawTarget::stderr()),
            false => ProgressBar::hidden(),
        };
        let style = "{bar:30} {human_pos}/{human_len} {per_sec:>10} eta {eta} {msg}";
        bar.set_style(
            ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        Self {
            items,
            ended: 0,
            succeeded: 0,
            succeeded_denied: 0,
            failed: BTreeMap::new(),
            tried_again: 0,
            doubtful: Vec::new(),
            bar,
            begun: Instant::now(),
        }
    }

    /// What was known before is no part of the rate.
    pub(super) fn begin(&mut self) {
        self.begun = Instant::now();
        self.bar.set_position(self.ended as u64);
        self.bar.reset_eta();
        self.bar.tick();
    }

    /// An item has ended.
    pub(super) fn add(&mut self, row: &Row) {
        self.ended += 1;
        self.tried_again += usize::from(row.attempts > 1);
        if row.succeeded {
            self.succeeded += 1;
            self.succeeded_denied += usize::from(row.denied);
        } else {
            *self.failed.entry(word(row)).or_default() += 1;
        }
        if matches!(row.outcome.as_str(), "lost" | "interrupted") {
            let reason = row.reason.as_deref().unwrap_or_default();
            self.doubtful
                .push(format!("item {}: {}: {reason}", row.item, row.outcome));
        }
        self.bar.set_position(self.ended as u64);
        if self.failed() > 0 {
            self.bar.set_message(format!("{} failed", self.failed()));
        }
    }

    /// How many have ended.
    pub(super) fn ended(&self) -> usize {
        self.ended
    }

    /// How many have ended and did not succeed.
    pub(super) fn failed(&self) -> usize {
        self.failed.values().sum()
    }

    /// For what else is written to the terminal that the bar is on.
    pub(super) fn beside(&self) -> Beside {
        Beside(self.bar.clone())
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// Says what became of them. Some of them may not have run.
    pub(super) fn summarise(&self, unrun: usize) {
        let mut parts = Vec::new();
        if self.succeeded > 0 || self.ended == 0 {
            parts.push(format!("{} succeeded", self.succeeded));
        }
        if self.succeeded_denied > 0 {
            let last = parts
                .last_mut()
                .map(|part| part.push_str(&format!(" ({} with denials)", self.succeeded_denied)));
            debug_assert!(last.is_some(), "some have succeeded");
        }
        parts.extend(self.failed.iter().map(|(word, count)| format!("{count} {word}")));
        if unrun > 0 {
            parts.push(format!("{unrun} given up"));
        }
        if self.tried_again > 0 {
            parts.push(format!("{} tried again", self.tried_again));
        }
        let plural = if self.items == 1 { "item" } else { "items" };
        let took = HumanDuration(self.begun.elapsed());
        output::note(&format!(
            "{} {plural}: {}, in {took}",
            self.items,
            parts.join(", ")
        ));
        for line in self.doubtful.iter().take(NAMED_MAX) {
            output::note(&format!("  {line}"));
        }
        if self.doubtful.len() > NAMED_MAX {
            let more = self.doubtful.len() - NAMED_MAX;
            output::note(&format!("  and {more} more"));
        }
    }
}

/// A place beside the bar.
pub(super) struct Beside(ProgressBar);

impl Beside {
    /// Takes the bar away meanwhile.
    pub(super) fn act<T>(&self, act: impl FnOnce() -> T) -> T {
        self.0.suspend(act)
    }
}

/// How an item that did not succeed is counted.
fn word(row: &Row) -> &'static str {
    match row.outcome.as_str() {
        "timed_out" | "idle_timeout" => "timed out",
        "denied" => "denied",
        "cancelled" | "replaced" => "cancelled",
        "spawn_failed" => "not started",
        "lost" => "lost",
        "interrupted" => "interrupted",
        "skipped" => "skipped",
        "out_of_memory" => "out of memory",
        _ if row.denied => "denied",
        _ => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_counted_under_one_word() {
        let mut tally = Tally::new(5, true);
        for (outcome, succeeded, denied) in [
            ("exited", true, false),
            ("exited", true, true),
            ("exited", false, false),
            ("exited", false, true),
            ("timed_out", false, true),
        ] {
            tally.add(&Row {
                outcome: outcome.to_owned(),
                succeeded,
                denied,
                ..Row::default()
            });
        }
        assert_eq!((tally.ended(), tally.failed(), tally.succeeded), (5, 3, 2));
        assert_eq!(
            tally.failed.into_iter().collect::<Vec<_>>(),
            [("denied", 1), ("failed", 1), ("timed out", 1)]
        );
    }
}
