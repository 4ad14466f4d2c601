//! The ledger: from facts to events, and at the end to the one record.
//!
//! ```text
//! StreamActor ─┐                       ┌─► Append(event 1, 2, 3 …)      the log
//! ExitActor   ─┼─ Fact ─► Ledger ─ Effect ─► StopTree, KillTree, ArmDrain, …  the process actor
//! DenialActor ─┘                       └─► Seal(record)                 once, last
//! ```
//!
//! A pure state machine: no I/O and no clock, so that every interleaving of facts can be tested, and is.
//! Facts come from actors that know nothing of each other; any order and any repetition is survived.
//!
//! The record is sealed when four things are known (I2), and never before:
//!
//! 1. the command's end: its exit status, or that it cannot be known;
//! 2. every stream is closed: at its end, or given up at a deadline and counted as such;
//! 3. the denial channel was read to its end, or to its deadline;
//! 4. the process tree is empty.
//!
//! What ends the waiting: after the command's exit a tree under [`TreeRule::Kill`] is killed at once when
//! its streams are closed, else after the drain deadline. A stream that stays open though the tree is empty
//! (its holder is not of this tree) is given a deadline too, then abandoned. Between stop requests and the
//! exit, whichever fact comes first decides the outcome (I9).

use std::sync::Arc;

use jiff::Timestamp;
use provost_sandbox::denial::{AllowingRule, Decision};
use provost_sandbox::report::SandboxReport;
use serde::{Deserialize, Serialize};

use crate::approval::{ApprovalSummary, GrantRecord};
use crate::event::{DraftBody, EventBody, EventDraft, StreamName};
use crate::record::{Closed, Usage};
use crate::reported::Reported;

mod effect;
mod fact;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod seal;
mod spec;
mod streams;
mod tally;

#[cfg(test)]
mod explore;
#[cfg(test)]
mod tests;

pub use effect::Effect;
pub use fact::{Exit, Fact, StopCause};
pub use spec::{LedgerSpec, OnDenial, TreeRule};

use streams::Streams;
use tally::DenialTally;

/// How many `signal_sent` events are stated. Only the process's owner can cause them, but in any number.
const SIGNAL_EVENTS_MAX: u32 = 4096;
/// Events about who holds the session that are stated; whoever moves it more often moves it unseen.
const MOVE_EVENTS_MAX: u32 = 1024;

/// How many permissions the record lists.
const GRANTS_LISTED_MAX: usize = 64;

/// How many unkillable tasks are named.
const UNKILLABLE_MAX: usize = 64;

/// The state of one process's ledger. As data it is the same ledger: what it is told then comes to the same.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ledger {
    spec: LedgerSpec,
    /// The number of the last event.
    seq: u64,
    /// The time of the last fact; facts with an earlier one are given this.
    now: Timestamp,
    started: Option<Start>,
    spawn_failure: Option<SpawnFailure>,
    exit: Option<(Timestamp, Exit)>,
    /// Why the exit status cannot be known.
    lost: Option<String>,
    /// Why nobody can prove any more that the tree is empty.
    tree_lost: Option<String>,
    /// The stop request that came before the exit.
    stop: Option<StopCause>,
    stop_told: bool,
    /// Memory was at its limit and the kernel killed.
    out_of_memory: bool,
    streams: Streams,
    tree: Option<TreeEnd>,
    kill_told: bool,
    drain_armed: bool,
    abandon_told: bool,
    denials: DenialTally,
    approvals: ApprovalSummary,
    /// It said that it is ready.
    #[serde(default)]
    ready: bool,
    /// What it reported.
    #[serde(default)]
    reported: Option<Reported>,
    signals_stated: u32,
    moves_stated: u32,
    sealed: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Start {
    at: Timestamp,
    report: Arc<SandboxReport>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SpawnFailure {
    reason: String,
    exit_code: i32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct TreeEnd {
    killed: u64,
    usage: Option<Usage>,
    unkillable: Vec<String>,
}

impl Ledger {
    /// The ledger of a process that was accepted and of which nothing is known yet.
    pub fn new(spec: LedgerSpec) -> Self {
        let streams = Streams::new(&spec.streams);
        let denials = DenialTally::new(spec.expects_denials);
        Self {
            now: spec.queued_at.unwrap_or(Timestamp::MIN),
            spec,
            seq: 0,
            started: None,
            spawn_failure: None,
            exit: None,
            lost: None,
            tree_lost: None,
            stop: None,
            stop_told: false,
            out_of_memory: false,
            streams,
            tree: None,
            kill_told: false,
            drain_armed: false,
            abandon_told: false,
            denials,
            approvals: ApprovalSummary::default(),
            ready: false,
            reported: None,
            signals_stated: 0,
            moves_stated: 0,
            sealed: false,
        }
    }

    /// Takes one fact and says what to do about it. After the record is sealed, nothing.
    ///
    /// `now` should come from a clock that does not go back; where it does, the last time is kept.
    pub fn apply(&mut self, fact: Fact, now: Timestamp) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.sealed {
            return effects;
        }
        self.now = self.now.max(now);
        let out = &mut effects;
        match fact {
            Fact::Started { pid, report } => self.started(pid, report, out),
            Fact::SpawnFailed { reason, exit_code } => self.spawn_failed(reason, exit_code),
            Fact::Output {
                stream,
                offset,
                length,
            } => self.output(stream, offset, length, out),
            Fact::StreamClosed { stream, closed } => self.stream_closed(stream, closed, out),
            Fact::Exited(exit) => self.exited(exit, out),
            Fact::TreeEmpty {
                killed,
                usage,
                unkillable,
            } => self.tree_empty(killed, usage, unkillable),
            Fact::Denied(denial) => {
                if let Some(stated) = self.denials.note(denial) {
                    self.state(EventBody::Denial(Box::new(stated)), out);
                }
                self.stop_at_denial(out);
            }
            Fact::ApprovalRequested {
                approval,
                mut attempt,
                deadline,
            } => {
                attempt.allow = AllowingRule::of(&attempt).map(Box::new);
                tally::clip_texts(&mut attempt);
                self.approvals.requested += 1;
                let body = EventBody::ApprovalRequested {
                    approval,
                    attempt,
                    deadline,
                };
                self.state(body, out);
            }
            Fact::ApprovalDecided { grant, decision } => self.approval_decided(*grant, decision, out),
            Fact::DenialsCounted { class, extra } => {
                self.denials.count(class, extra);
                self.stop_at_denial(out);
            }
            Fact::Probed(name) => self.denials.probed(name),
            Fact::OutOfMemory => self.out_of_memory = true,
            Fact::Unobserved(class) => self.denials.unobserved(class),
            Fact::DenialsDrained { complete, unobserved } => self.denials.drained(complete, unobserved),
            Fact::StopRequested(cause) => self.stop_requested(cause, out),
            Fact::Detached { session } => self.moved(EventBody::Detached { session }, out),
            Fact::Attached { session } => self.moved(EventBody::Attached { session }, out),
            Fact::Ready => {
                if !std::mem::replace(&mut self.ready, true) {
                    self.state(EventBody::Ready {}, out);
                }
            }
            Fact::Reported(reported) => {
                self.reported.get_or_insert(reported);
            }
            Fact::SignalSent { signal, scope, cause } => self.signal_sent(signal, scope, cause, out),
            Fact::DrainExpired => self.drain_expired(false, out),
            Fact::DrainHeld => self.drain_expired(true, out),
            Fact::SpawnerLost { reason } => {
                self.tree_lost.get_or_insert_with(|| reason.clone());
                self.lost(reason, out);
            }
            Fact::Lost { reason } => self.lost(reason, out),
        }
        self.advance(out);
        effects
    }

    /// The stop request that won against the exit, if one did. Whoever asked for another one lost.
    pub fn stop_cause(&self) -> Option<&StopCause> {
        self.stop.as_ref()
    }

    /// How the command ended, once that is known.
    pub fn exit(&self) -> Option<&Exit> {
        self.exit.as_ref().map(|(_, exit)| exit)
    }

    /// The command runs or has run.
    pub fn is_started(&self) -> bool {
        self.started.is_some()
    }

    /// When the command was started.
    pub(crate) fn started_at(&self) -> Option<Timestamp> {
        self.started.as_ref().map(|start| start.at)
    }

    /// The command said that it is ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready
    }

    /// The record is sealed; nothing changes any more.
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// How many bytes of a stream were stated.
    pub(crate) fn stated(&self, stream: StreamName) -> u64 {
        self.streams.stated(stream)
    }

    /// The stream is at its end, or was given up.
    pub(crate) fn is_closed(&self, stream: StreamName) -> bool {
        self.streams.is_closed(stream)
    }

    /// The denial channel was read to its end, or given up.
    pub(crate) fn is_drained(&self) -> bool {
        self.denials.is_drained()
    }

    /// What it asked for and may not have been done, after it was made anew from its facts.
    pub(crate) fn resume(&self) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.sealed {
            return effects;
        }
        if let (true, false, Some(cause)) = (self.stop_told, self.tree_settled(), &self.stop) {
            let cause = cause.clone();
            effects.push(Effect::StopTree { cause });
        }
        if self.kill_told && !self.tree_settled() {
            effects.push(Effect::KillTree);
        }
        if self.drain_armed {
            effects.push(Effect::ArmDrain);
        }
        if self.abandon_told && self.streams.any_open() {
            effects.push(Effect::AbandonStreams);
        }
        effects
    }

    /// The number of the last event.
    pub fn last_seq(&self) -> u64 {
        self.seq
    }

    // One function per fact.

    fn started(&mut self, pid: i32, report: Arc<SandboxReport>, out: &mut Vec<Effect>) {
        if self.started.is_some() {
            return;
        }
        self.started = Some(Start {
            at: self.now,
            report: report.clone(),
        });
        let (argv, cwd) = (self.spec.argv.clone(), self.spec.cwd.clone());
        let body = EventBody::Started {
            argv,
            cwd,
            pid,
            sandbox: report,
        };
        self.state(body, out);
        // A stop that was asked for before there was anything to stop.
        if let Some(cause) = self.stop.clone() {
            self.tell_stop(cause, out);
        }
    }

    fn spawn_failed(&mut self, reason: String, exit_code: i32) {
        // What has shown signs of life did start.
        if self.started.is_none() && self.exit.is_none() {
            self.spawn_failure
                .get_or_insert(SpawnFailure { reason, exit_code });
        }
    }

    fn output(&mut self, stream: StreamName, offset: u64, length: u64, out: &mut Vec<Effect>) {
        let Some(news) = self.streams.output(stream, offset, length) else {
            return;
        };
        if let Some((from, to)) = news.hole {
            self.append(DraftBody::Gap { stream, from, to }, out);
        }
        let (offset, length) = (news.offset, news.length);
        self.append(
            DraftBody::Output {
                stream,
                offset,
                length,
            },
            out,
        );
    }

    fn stream_closed(&mut self, stream: StreamName, closed: Closed, out: &mut Vec<Effect>) {
        if let Some((bytes, closed)) = self.streams.close(stream, closed) {
            self.state(
                EventBody::StreamClosed {
                    stream,
                    bytes,
                    closed,
                },
                out,
            );
        }
    }

    fn exited(&mut self, exit: Exit, out: &mut Vec<Effect>) {
        if self.exit.is_some() {
            return;
        }
        // Also after `Lost`: that was no change of state, only missing knowledge, and here it is.
        self.exit = Some((self.now, exit.clone()));
        let (exit_code, signal) = exit.parts();
        self.state(EventBody::Exited { exit_code, signal }, out);
    }

    fn tree_empty(&mut self, killed: u64, usage: Option<Usage>, mut unkillable: Vec<String>) {
        if unkillable.len() > UNKILLABLE_MAX {
            let more = unkillable.len() - UNKILLABLE_MAX;
            unkillable.truncate(UNKILLABLE_MAX);
            unkillable.push(format!("and {more} more"));
        }
        self.tree.get_or_insert(TreeEnd {
            killed,
            usage,
            unkillable,
        });
    }

    fn approval_decided(&mut self, mut grant: GrantRecord, decision: Decision, out: &mut Vec<Effect>) {
        let scope = match decision {
            Decision::Allow => {
                self.approvals.allowed += 1;
                Some(grant.scope)
            }
            Decision::Deny => {
                self.approvals.refused += 1;
                None
            }
        };
        tally::clip_target(&mut grant.target);
        let body = EventBody::ApprovalDecided {
            approval: grant.approval,
            decision,
            scope,
            by: grant.by.clone(),
        };
        if decision == Decision::Allow && self.approvals.grants.len() < GRANTS_LISTED_MAX {
            self.approvals.grants.push(grant);
        }
        self.state(body, out);
    }

    fn stop_at_denial(&mut self, out: &mut Vec<Effect>) {
        if self.spec.on_denial == OnDenial::Stop && self.denials.any() {
            self.stop_requested(StopCause::Denied, out);
        }
    }

    fn stop_requested(&mut self, cause: StopCause, out: &mut Vec<Effect>) {
        if self.exit.is_some() || self.lost.is_some() || self.spawn_failure.is_some() {
            // Too late to change the outcome. But a record that waits for its tree to empty might wait for
            // ever, so the tree can still be stopped.
            if self.spec.tree == TreeRule::Wait {
                self.tell_stop(cause, out);
            }
            return;
        }
        if self.stop.is_none() {
            self.stop = Some(cause.clone());
            if self.started.is_some() {
                self.tell_stop(cause, out);
            }
        }
    }

    fn tell_stop(&mut self, cause: StopCause, out: &mut Vec<Effect>) {
        if !self.stop_told && !self.tree_settled() {
            self.stop_told = true;
            out.push(Effect::StopTree { cause });
        }
    }

    fn signal_sent(&mut self, signal: String, scope: String, cause: String, out: &mut Vec<Effect>) {
        if self.signals_stated < SIGNAL_EVENTS_MAX {
            self.signals_stated += 1;
            self.state(EventBody::SignalSent { signal, scope, cause }, out);
        }
    }

    fn moved(&mut self, body: EventBody, out: &mut Vec<Effect>) {
        if self.moves_stated < MOVE_EVENTS_MAX {
            self.moves_stated += 1;
            self.state(body, out);
        }
    }

    fn drain_expired(&mut self, held: bool, out: &mut Vec<Effect>) {
        if !self.drain_armed {
            return;
        }
        self.drain_armed = false;
        if !self.tree_settled() {
            // The usual case: the command left something behind that holds its pipes. Whatever comes of
            // them now comes because the tree is killed, so they count as given up.
            self.streams.give_up();
            self.tell_kill(out);
        } else if held && !self.abandon_told {
            // Nothing writes any more, and what was written waits for a reader who is to lose nothing (I3).
            // The timer starts again.
        } else if !self.abandon_told {
            // Each says its last bytes and what it found after them: perhaps the end, if only the reader was slow.
            self.abandon_told = true;
            if self.streams.any_open() {
                out.push(Effect::AbandonStreams);
            }
        } else {
            // Not even the stream actors answer. The record is owed all the same.
            while let Some(stream) = self.streams.first_open() {
                self.stream_closed(stream, Closed::Abandoned, out);
            }
        }
    }

    fn lost(&mut self, reason: String, out: &mut Vec<Effect>) {
        self.lost.get_or_insert(reason);
        if self.started.is_some() && self.tree.is_none() {
            self.tell_kill(out);
        }
    }

    fn tell_kill(&mut self, out: &mut Vec<Effect>) {
        if !self.kill_told {
            self.kill_told = true;
            out.push(Effect::KillTree);
        }
    }

    // What follows from what is known.

    fn advance(&mut self, out: &mut Vec<Effect>) {
        let open = self.streams.any_open();
        if self.tree_settled() {
            if open && !self.never_ran() {
                self.arm_drain(out);
            }
        } else if self.exit.is_some() && self.spec.tree == TreeRule::Kill && !self.kill_told {
            if open {
                self.arm_drain(out);
            } else {
                self.tell_kill(out);
            }
        }
        if self.is_complete() {
            self.seal(out);
        }
    }

    fn arm_drain(&mut self, out: &mut Vec<Effect>) {
        if !self.drain_armed {
            self.drain_armed = true;
            out.push(Effect::ArmDrain);
        }
    }

    /// The tree is empty, or nobody can say any more whether it is.
    pub(crate) fn tree_settled(&self) -> bool {
        self.tree.is_some() || self.tree_lost.is_some()
    }

    /// Nothing was started and nothing will be, so there are no streams, no tree and no denials to wait for.
    fn never_ran(&self) -> bool {
        self.spawn_failure.is_some()
            || (self.lost.is_some() && self.started.is_none() && self.exit.is_none())
    }

    /// I2.
    fn is_complete(&self) -> bool {
        self.never_ran()
            || ((self.exit.is_some() || self.lost.is_some())
                && !self.streams.any_open()
                && self.denials.is_drained()
                && self.tree_settled())
    }

    fn state(&mut self, body: EventBody, out: &mut Vec<Effect>) {
        self.append(DraftBody::Whole(Box::new(body)), out);
    }

    fn append(&mut self, body: DraftBody, out: &mut Vec<Effect>) {
        self.seq += 1;
        out.push(Effect::Append(EventDraft {
            seq: self.seq,
            time: self.now,
            body,
        }));
    }

    fn seal(&mut self, out: &mut Vec<Effect>) {
        self.sealed = true;
        self.seq += 1;
        out.push(Effect::Seal {
            time: self.now,
            record: Box::new(self.record()),
        });
    }
}
