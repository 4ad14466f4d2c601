//! What unit tests of child actors share.

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::ledger::Fact;
use crate::process::ProcessMsg;

/// In the place of a process actor: passes on the facts that it is told.
struct Listening;

impl Actor for Listening {
    type Msg = ProcessMsg;
    type State = UnboundedSender<Fact>;
    type Arguments = UnboundedSender<Fact>;

    async fn pre_start(
        &self,
        _myself: ActorRef<ProcessMsg>,
        facts: UnboundedSender<Fact>,
    ) -> Result<UnboundedSender<Fact>, ActorProcessingErr> {
        Ok(facts)
    }

    async fn handle(
        &self,
        _myself: ActorRef<ProcessMsg>,
        message: ProcessMsg,
        facts: &mut UnboundedSender<Fact>,
    ) -> Result<(), ActorProcessingErr> {
        if let ProcessMsg::Fact(fact, _permit) = message {
            let _ = facts.send(fact);
        }
        Ok(())
    }
}

/// An actor to tell facts, and where they come out.
pub(crate) async fn listening() -> (ActorRef<ProcessMsg>, UnboundedReceiver<Fact>) {
    let (sender, facts) = unbounded_channel();
    let (actor, _) = Actor::spawn(None, Listening, sender).await.expect("an actor");
    (actor, facts)
}
