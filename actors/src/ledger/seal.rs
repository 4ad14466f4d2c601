//! The record's content, from what the ledger knows.

use crate::record::{Outcome, RECORD_SCHEMA, TerminalRecord, TreeSummary};
use crate::reported::Reported;

use super::{Exit, Ledger};

impl Ledger {
    /// The record, as of now; the number of its event was given already.
    pub(super) fn record(&self) -> TerminalRecord {
        let (outcome, reason) = self.verdict();
        let exit = self.exit.as_ref();
        let (exit_code, signal) = exit.map_or((None, None), |(_, exit)| exit.parts());
        let exit_code = match &self.spawn_failure {
            Some(failure) if outcome == Outcome::SpawnFailed => Some(failure.exit_code),
            _ => exit_code,
        };
        let ended_at = exit.map_or(self.now, |(at, _)| *at);
        let started_at = self.started.as_ref().map(|start| start.at);
        let duration = started_at.map_or(0, |at| ended_at.duration_since(at).as_millis());
        let denials = self.denials.summary(!self.never_ran());
        let tree = self.tree.as_ref();
        let reported = self.reported();
        TerminalRecord {
            schema: RECORD_SCHEMA,
            process: self.spec.process,
            session: self.spec.session.clone(),
            labels: self.spec.labels.clone(),
            argv: self.spec.argv.clone(),
            outcome,
            reason,
            exit_code,
            signal,
            succeeded: outcome == Outcome::Exited && exit_code == Some(0),
            denied: denials.total > 0,
            queued_at: self.spec.queued_at,
            started_at,
            ended_at,
            duration_ms: u64::try_from(duration).unwrap_or(0),
            result: reported.result,
            result_error: reported.error,
            output: self.streams.summary(),
            denials,
            approvals: self.approvals.clone(),
            usage: tree.and_then(|tree| tree.usage),
            tree: tree.map_or_else(TreeSummary::default, |tree| TreeSummary {
                killed: tree.killed,
                unkillable: tree.unkillable.clone(),
            }),
            sandbox: self.started.as_ref().map(|start| start.report.clone()),
            last_seq: self.seq,
        }
    }

    /// What it reported, as far as it was asked for that.
    fn reported(&self) -> Reported {
        match &self.reported {
            Some(reported) => reported.clone(),
            None if !self.spec.report || self.never_ran() => Reported::default(),
            None => Reported::unknown("what it reported, if anything, was lost"),
        }
    }

    /// The outcome, and everything that must be said to it.
    fn verdict(&self) -> (Outcome, Option<String>) {
        let mut reasons = Vec::new();
        let own = match (&self.spawn_failure, &self.exit) {
            (Some(failure), _) => {
                reasons.push(failure.reason.clone());
                Outcome::SpawnFailed
            }
            (None, Some((_, Exit::Code(_)))) => Outcome::Exited,
            // Tasks were killed for memory, and it was killed: nobody else kills without saying so.
            (None, Some((_, Exit::Signal(signal)))) if self.out_of_memory && signal == "SIGKILL" => {
                reasons.push("killed by the kernel at its memory limit".to_owned());
                Outcome::OutOfMemory
            }
            (None, Some((_, Exit::Signal(_)))) => Outcome::Signaled,
            (None, None) => {
                reasons.extend(self.lost.clone());
                Outcome::Lost
            }
        };
        if let (Some(_), Some(reason), None) = (&self.exit, &self.tree_lost, &self.tree) {
            reasons.push(format!(
                "whether its descendants are gone could not be learned: {reason}"
            ));
        }
        // A stop request that is here came before the exit, so it wins.
        let outcome = match &self.stop {
            Some(cause) => {
                reasons.insert(0, cause.reason());
                cause.outcome()
            }
            None => own,
        };
        (outcome, (!reasons.is_empty()).then(|| reasons.join("; ")))
    }
}
