//! What it is ordered to do: by outsiders, and when a timer has run out.

use provost_sandbox::keeper::wire::SignalScope;
use ractor::ActorRef;

use super::{ProcessCommand, ProcessMsg, ProcessState, Timer};
use crate::denial::{Answered, DenialMsg};
use crate::ledger::{Fact, StopCause};

impl ProcessState {
    pub(super) fn command(&mut self, myself: &ActorRef<ProcessMsg>, command: ProcessCommand) {
        match command {
            ProcessCommand::Stop { reason, grace } => {
                self.stop_requested(myself, StopCause::Cancelled { reason }, grace);
            }
            ProcessCommand::Replace { grace } => {
                self.stop_requested(myself, StopCause::Replaced, grace);
            }
            ProcessCommand::Kill { reason } => {
                let cause = StopCause::Cancelled { reason };
                self.stopping = true; // no polite signal first
                self.fact(myself, Fact::StopRequested(cause));
                self.say_signal(myself, "SIGKILL", SignalScope::Tree, "kill");
                self.kill_tree(myself);
            }
            ProcessCommand::Detached { session } => self.fact(myself, Fact::Detached { session }),
            ProcessCommand::Unattended => {
                if let Some(denials) = &self.denials {
                    let _ = denials.send_message(DenialMsg::Answered(Answered::RefusePending));
                }
            }
            ProcessCommand::Attached { session } => self.fact(myself, Fact::Attached { session }),
            ProcessCommand::Decide {
                approval,
                verdict,
                by,
                reply,
            } => {
                if let Some(denials) = &self.denials {
                    let answered = Answered::One {
                        approval,
                        verdict,
                        by,
                        reply,
                    };
                    let _ = denials.send_message(DenialMsg::Answered(answered));
                }
            }
            ProcessCommand::Signal { signal, scope, sent } => {
                self.signal(signal, scope);
                let _ = sent.send(());
                self.say_signal(myself, signal.as_str(), scope, "requested");
            }
        }
    }

    pub(super) fn timer(&mut self, myself: &ActorRef<ProcessMsg>, timer: Timer) {
        match timer {
            Timer::Timeout => self.fact(myself, Fact::StopRequested(StopCause::TimedOut)),
            Timer::Idle => self.idle(myself),
            Timer::Disk => self.disk(myself),
            Timer::Drain => {
                // Bytes that wait for a slow reader are not what the deadline is for.
                let held = self.args.log.is_held();
                self.fact(myself, if held { Fact::DrainHeld } else { Fact::DrainExpired });
            }
            Timer::Start | Timer::StartGrace => {
                if !self.ledger.is_started() {
                    self.refuse(myself, "it did not start in time; does a file system hang?");
                }
            }
            Timer::Grace => {
                if self.ledger.exit().is_none() || !self.ledger.is_sealed() {
                    self.say_signal(myself, "SIGKILL", SignalScope::Tree, "grace expired");
                    self.kill_tree(myself);
                }
            }
            Timer::Kill => self.not_killed(myself),
        }
    }
}
