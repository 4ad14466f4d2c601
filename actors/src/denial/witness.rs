//! Says what was observed to the process actor, and first writes it down: whatever the program does next, it happened after
//! that, also for who comes after us.

use std::sync::Arc;

use provost_sandbox::observe::notify::Response;
use ractor::ActorRef;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ledger::Fact;
use crate::process::ProcessMsg;
use crate::spool::{Observed, ProcessSpool};

/// Facts that may wait in the process's mailbox.
const IN_FLIGHT_MAX: usize = 1024;

/// Clones share what is under way.
#[derive(Clone)]
pub(super) struct Witness {
    process: ActorRef<ProcessMsg>,
    permits: Arc<Semaphore>,
    spool: Option<Arc<ProcessSpool>>,
}

impl Witness {
    pub(super) fn new(process: ActorRef<ProcessMsg>, spool: Option<Arc<ProcessSpool>>) -> Self {
        Self {
            process,
            permits: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            spool,
        }
    }

    /// Tells a fact, and which call will be answered how because of it. Where the ledger is slower, that is waited for.
    pub(super) async fn tell(&self, fact: Fact, answered: Option<(u64, Response)>) {
        let permit = self.permits.clone().acquire_owned().await.ok();
        self.tell_with(fact, answered, permit);
    }

    /// The same on a thread that may block.
    pub(super) fn tell_blocking(&self, runtime: &tokio::runtime::Handle, fact: Fact) {
        let permit = runtime.block_on(self.permits.clone().acquire_owned()).ok();
        self.tell_with(fact, None, permit);
    }

    fn tell_with(
        &self,
        fact: Fact,
        answered: Option<(u64, Response)>,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let Some(spool) = &self.spool else {
            let _ = self.process.send_message(ProcessMsg::Fact(fact, permit));
            return;
        };
        let observed = Observed {
            facts: vec![fact],
            answered,
            ..Observed::default()
        };
        tell_all(&self.process, spool.observe(observed), permit);
    }
}

/// Tells what was written down, or could not be.
pub(crate) fn tell_all(
    process: &ActorRef<ProcessMsg>,
    observed: Vec<(Option<u64>, Fact)>,
    mut permit: Option<OwnedSemaphorePermit>,
) {
    for (number, fact) in observed {
        let permit = permit.take();
        let _ = process.send_message(match number {
            Some(number) => ProcessMsg::Observed(number, fact, permit),
            None => ProcessMsg::Fact(fact, permit),
        });
    }
}
