//! Calls that an earlier daemon had received and not answered: decided afresh.
//!
//! Calls are received one at a time, in the order of their ids, and each into the file from which it is taken up. Where the
//! state directory had no room for that, it was written down afterwards, if at all; so one may have been received of which nobody
//! knows what it wanted. Its id is behind all others; it is interrupted.

use std::collections::BTreeMap;

use nix::errno::Errno;
use nix::poll::PollTimeout;
use provost_sandbox::observe::notify::{Notification, Received, Response};

use super::listener::SharedListener;
use super::server::Server;
use crate::ledger::{Fact, StopCause};
use crate::spool::{Left, Unfinished};

/// How many ids may lie between two calls that were received: those of calls whose threads died before.
const IDS_MAX: u64 = 64;

impl Server {
    /// What was allowed stays allowed, and numbers are not used twice.
    pub(super) fn go_on(&mut self, unfinished: &mut Unfinished) {
        let grants = std::mem::take(&mut unfinished.grants);
        self.approvals.go_on(unfinished.asked, grants);
    }

    /// Decides about the calls that still wait. `left` is what was written down of them.
    pub(super) async fn take_up(
        &mut self,
        listener: &SharedListener,
        left: Left,
        answers: BTreeMap<u64, Response>,
    ) {
        let had_room = !left.is_empty();
        let mut left: Vec<Notification> = left.into_iter().flatten().collect();
        let first = match left.first() {
            Some(call) => call.id,
            // An empty slot was ready for the first call, which did not come.
            None if had_room => return,
            None => return self.take_up_nothing(listener).await,
        };
        // Ids may have wrapped around.
        left.sort_unstable_by_key(|call| call.id.wrapping_sub(first).cast_signed());
        let last = left.last().map_or(first, |call| call.id);
        self.interrupt_unknown(listener, last.wrapping_add(1)).await;
        for call in left {
            if !listener.is_valid(call.id) {
                listener.forget(call.id);
            } else if let Some(response) = answers.get(&call.id) {
                self.respond(listener, call.id, *response);
            } else {
                self.take_call(listener, &call, true).await;
            }
        }
        self.unsure = true;
    }

    /// The first call was about to be received, without room to write it down.
    async fn take_up_nothing(&mut self, listener: &SharedListener) {
        match listener.receive_within(PollTimeout::ZERO) {
            Ok(Received::Notification(call)) => {
                self.interrupt_before(listener, call.id).await;
                self.take_call(listener, &call, false).await;
            }
            Ok(Received::Empty) => {
                // Its id cannot be known, so it can never be answered.
                let reason =
                    "the daemon died while it received the first call that the command made; if the \
                              command waits for an answer, it will never come"
                        .to_owned();
                let cause = StopCause::Cancelled { reason };
                self.tell(Fact::StopRequested(cause), None).await;
            }
            Ok(Received::HungUp) | Err(_) => {}
        }
    }

    /// Interrupts a call that was received and not written down, if there is one before this one.
    pub(super) async fn interrupt_before(&mut self, listener: &SharedListener, id: u64) {
        self.unsure = false;
        self.interrupt_unknown(listener, id.wrapping_sub(IDS_MAX)).await;
    }

    async fn interrupt_unknown(&mut self, listener: &SharedListener, from: u64) {
        for id in (0..IDS_MAX).map(|at| from.wrapping_add(at)) {
            if listener.is_unknown(id) {
                self.respond(listener, id, Response::Errno(Errno::EINTR as i32));
                let class = "what one call wanted that was interrupted (EINTR) because the daemon died"
                    .to_owned();
                self.tell(Fact::Unobserved(class), None).await;
            }
        }
    }
}
