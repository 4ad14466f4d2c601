//! A process that is taken up again: its journal was read, and its keeper says how far it has come meanwhile.

use std::os::fd::OwnedFd;
use std::time::Duration;

use jiff::Timestamp;
use provost_sandbox::keeper::wire::{HeldState, HeldTree, Kept, Notice};
use ractor::{ActorProcessingErr, ActorRef};

use super::unkept::Unkept;
use super::{ProcessMsg, ProcessState, START_MAX, Timer};
use crate::exit::ExitMsg;
use crate::ledger::{Effect, Fact, Ledger, StopCause};
use crate::record::Closed;

/// What is known of a process that an earlier daemon accepted.
#[derive(Debug)]
pub(crate) struct Resumed {
    /// From its journal.
    pub(crate) ledger: Ledger,
    /// What was observed and not taken by its ledger, and output of which its journal does not tell.
    pub(crate) untold: Vec<(Option<u64>, Fact)>,
    /// What its keeper says, and the descriptors that go with it; or why nobody keeps it.
    pub(crate) held: Result<(HeldState, Vec<OwnedFd>), Unkept>,
    /// How long ago it was accepted, where that is known for sure.
    pub(crate) accepted_before: Option<Duration>,
    /// Why it must not go on.
    pub(crate) cannot_go_on: Option<String>,
}

impl ProcessState {
    pub(super) async fn resume(
        &mut self,
        myself: &ActorRef<ProcessMsg>,
        resumed: Resumed,
    ) -> Result<(), ActorProcessingErr> {
        self.accepted_before = Some(resumed.accepted_before);
        for (number, fact) in resumed.untold {
            self.observed(myself, number, fact);
        }
        match resumed.held {
            Err(unkept) => self.resume_unkept(myself, unkept),
            Ok((HeldState::Starting, _)) => {}
            Ok((HeldState::Failed { step, errno, detail }, _)) => {
                let process = *self.args.id.as_uuid();
                let failed = Notice::Failed {
                    process,
                    step,
                    errno,
                    detail,
                };
                self.notice(myself, failed, Vec::new()).await?;
            }
            Ok((HeldState::Started(held), fds)) => self.resume_started(myself, held, fds).await?,
        }
        if let Some(reason) = resumed.cannot_go_on {
            self.fact(myself, Fact::StopRequested(StopCause::Cancelled { reason }));
            self.drained_unread(myself);
            self.kill_tree(myself);
        }
        for effect in self.ledger.resume() {
            // A polite signal may have been sent; another does no harm. The grace begins anew.
            if let Effect::StopTree { cause } = &effect {
                self.stopping = false;
                let cause = cause.clone();
                self.stop(myself, &cause);
            } else {
                self.perform(myself, effect);
            }
        }
        Ok(())
    }

    async fn resume_started(
        &mut self,
        myself: &ActorRef<ProcessMsg>,
        held: HeldTree,
        fds: Vec<OwnedFd>,
    ) -> Result<(), ActorProcessingErr> {
        let started = held.started;
        let outputs = if held.output {
            self.args.spec.streams().len()
        } else {
            0
        };
        let others =
            usize::from(started.stdin_pipe) + usize::from(started.listener) + started.extras.count();
        let relays = if started.relay { 2 } else { 0 };
        if fds.len() < 1 + outputs + relays + others {
            let reason = "there was no room for the descriptors of a process (RLIMIT_NOFILE)".to_owned();
            self.kill_tree(myself);
            self.resume_unkept(myself, Unkept::KeeperLost { reason, exit: None });
            return Ok(());
        }
        if !started.stdin_pipe && !started.terminal {
            // It never had one, or was told of its end.
            self.args.stdin.end();
        }
        self.started_with(myself, started, held.output, fds).await?;
        if !held.output {
            for &stream in self.args.spec.streams() {
                let closed = Closed::Abandoned;
                self.fact(myself, Fact::StreamClosed { stream, closed });
            }
        }
        if let Some(status) = held.exited {
            if self.ledger.exit().is_none() {
                self.limit_signal(myself, status);
            }
            self.tell_exit(ExitMsg::Exited { status })?;
        }
        if let Some(end) = held.end {
            if !self.ledger.tree_settled() {
                self.limit_hits(myself, end.hits);
            }
            let (killed, usage) = (end.killed, end.usage);
            self.tell_exit(ExitMsg::Ended { killed, usage })?;
        }
        Ok(())
    }

    /// Nobody keeps it: what is known of its end is all that ever will be.
    pub(super) fn resume_unkept(&mut self, myself: &ActorRef<ProcessMsg>, unkept: Unkept) {
        let hits = unkept.end().map(|end| end.hits);
        let unobserved = &self.args.sandbox.unobserved;
        for fact in unkept.facts(&self.ledger, self.args.spec.streams(), unobserved) {
            if let (Fact::TreeEmpty { .. }, Some(hits)) = (&fact, hits)
                && !self.ledger.tree_settled()
            {
                self.limit_hits(myself, hits);
            }
            self.fact(myself, fact);
        }
    }

    /// Nobody will read what its listener still has to say.
    fn drained_unread(&mut self, myself: &ActorRef<ProcessMsg>) {
        let unobserved = self.args.sandbox.unobserved.clone();
        let complete = false;
        self.fact(myself, Fact::DenialsDrained { complete, unobserved });
    }

    /// Its time began when it started, whoever supervised it then. Clocks of the wall are set; where the journal does not tell
    /// the other one they are believed.
    pub(super) fn arm_timeout(&mut self, myself: &ActorRef<ProcessMsg>) {
        let Some(timeout) = self.args.spec.timeout else {
            return;
        };
        let between = |from: Timestamp, to: Timestamp| {
            Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO)
        };
        let ran = match (self.ledger.started_at(), self.accepted_before) {
            (None, _) | (_, None) => Duration::ZERO,
            (Some(started), Some(Some(accepted_before))) => {
                let waited = between(self.args.queued_at, started);
                accepted_before.saturating_sub(waited.min(START_MAX))
            }
            (Some(started), Some(None)) => between(started, Timestamp::now()),
        };
        self.arm(myself, timeout.saturating_sub(ran), Timer::Timeout);
    }

    /// The keeper's copies keep the other ends from noticing that ours are closed.
    pub(super) fn release_closed(&self, fact: &Fact) {
        let (link, process) = (&self.args.link, *self.args.id.as_uuid());
        match fact {
            Fact::StreamClosed { .. }
                if self
                    .args
                    .spec
                    .streams()
                    .iter()
                    .all(|stream| self.ledger.is_closed(*stream)) =>
            {
                link.release(process, Kept::Output);
            }
            Fact::DenialsDrained { .. } => link.release(process, Kept::Listener),
            _ => {}
        }
    }
}
