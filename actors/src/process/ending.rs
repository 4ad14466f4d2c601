//! How a process is ended: by its stop rule, or at once.

use std::time::Duration;

use nix::sys::signal::Signal;
use provost_sandbox::keeper::wire::{Request, SignalScope};
use ractor::ActorRef;

use super::{KILL_MAX, ProcessMsg, ProcessState, Timer};
use crate::denial::{Answered, DenialMsg};
use crate::ledger::{Fact, StopCause};

impl ProcessState {
    /// What was killed did not end. The record is owed all the same (I1), and says so.
    pub(super) fn not_killed(&mut self, myself: &ActorRef<ProcessMsg>) {
        if !self.ledger.is_started() {
            return self.did_not_start(myself, "the spawner process does not answer");
        }
        let fact = Fact::TreeEmpty {
            killed: 0,
            usage: None,
            unkillable: vec![format!("tree of init {}", self.init_pid)],
        };
        self.fact(myself, fact);
        if self.ledger.exit().is_none() {
            let reason = "it was killed, and its end could not be learned in time".to_owned();
            self.fact(myself, Fact::Lost { reason });
        }
    }

    pub(super) fn idle(&mut self, myself: &ActorRef<ProcessMsg>) {
        let Some(limit) = self.args.spec.idle_timeout else {
            return;
        };
        let silent = self.last_output.elapsed();
        if silent >= limit {
            self.fact(myself, Fact::StopRequested(StopCause::IdleTimedOut));
        } else {
            self.arm(myself, limit - silent, Timer::Idle);
        }
    }

    /// Somebody wants it to end. Whoever gives it less time than its own rule need not be there when that runs out, and
    /// may be a second one who is in more of a hurry than the first.
    pub(super) fn stop_requested(
        &mut self,
        myself: &ActorRef<ProcessMsg>,
        cause: StopCause,
        grace: Option<Duration>,
    ) {
        let shorter = grace.filter(|grace| *grace < self.args.spec.stop.grace);
        self.args.spec.stop.grace = shorter.unwrap_or(self.args.spec.stop.grace);
        let was_stopping = self.stopping;
        self.fact(myself, Fact::StopRequested(cause));
        if !self.ledger.is_started() {
            self.arm(myself, self.args.spec.stop.grace, Timer::StartGrace);
        } else if let (true, Some(grace)) = (was_stopping, shorter) {
            self.arm(myself, grace, Timer::Grace);
        }
    }

    /// Begins to end the tree by its stop rule.
    pub(super) fn stop(&mut self, myself: &ActorRef<ProcessMsg>, cause: &StopCause) {
        if std::mem::replace(&mut self.stopping, true) {
            return;
        }
        self.refuse_waiting();
        let rule = self.args.spec.stop;
        self.signal(rule.signal, SignalScope::Tree);
        // What is stopped cannot follow the signal.
        self.signal(Signal::SIGCONT, SignalScope::Tree);
        self.say_signal(myself, rule.signal.as_str(), SignalScope::Tree, cause.as_str());
        self.arm(myself, rule.grace, Timer::Grace);
    }

    /// Nobody is asked on behalf of a process that is to end.
    pub(super) fn refuse_waiting(&self) {
        if let Some(denials) = &self.denials {
            let _ = denials.send_message(DenialMsg::Answered(Answered::RefuseWaiting));
        }
    }

    pub(super) fn kill_tree(&mut self, myself: &ActorRef<ProcessMsg>) {
        self.kill();
        self.arm(myself, KILL_MAX, Timer::Kill);
    }

    pub(super) fn kill(&self) {
        let process = *self.args.id.as_uuid();
        self.args.link.post(Request::Kill { process }, None, None);
    }

    pub(super) fn signal(&self, signal: Signal, scope: SignalScope) {
        let request = Request::Signal {
            process: *self.args.id.as_uuid(),
            signal: signal as i32,
            scope,
        };
        self.args.link.post(request, None, None);
    }

    pub(super) fn say_signal(
        &mut self,
        myself: &ActorRef<ProcessMsg>,
        signal: &str,
        scope: SignalScope,
        cause: &str,
    ) {
        let scope = match scope {
            SignalScope::Leader => "command",
            SignalScope::Group => "group",
            SignalScope::Tree => "tree",
        };
        let fact = Fact::SignalSent {
            signal: signal.to_owned(),
            scope: scope.to_owned(),
            cause: cause.to_owned(),
        };
        self.fact(myself, fact);
    }
}
