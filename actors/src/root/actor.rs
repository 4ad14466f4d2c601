//! RootActor: below it are the supervisors and the audit feed.

use provost_sandbox::observe::audit::AuditSource;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;

use crate::audit::{AuditFeed, AuditMsg};
use crate::spawner::{LinkTasks, StartError};
use crate::supervisor::{SupervisorActor, SupervisorMsg};

pub(super) struct RootActor;

pub(super) enum RootMsg {
    /// Start the audit feed with this reader.
    StartFeed {
        reader: Box<AuditSource>,
        reply: oneshot::Sender<Option<ActorRef<AuditMsg>>>,
    },
    /// There is a link to a new keeper: the tasks that serve it.
    Linked(LinkTasks),
    /// Start a supervisor.
    OpenSupervisor {
        reply: oneshot::Sender<Result<ActorRef<SupervisorMsg>, String>>,
    },
}

pub(super) struct RootState {
    tasks: LinkTasks,
}

impl Actor for RootActor {
    type Msg = RootMsg;
    type State = RootState;
    type Arguments = LinkTasks;

    async fn pre_start(
        &self,
        _myself: ActorRef<RootMsg>,
        tasks: LinkTasks,
    ) -> Result<RootState, ActorProcessingErr> {
        Ok(RootState { tasks })
    }

    async fn handle(
        &self,
        myself: ActorRef<RootMsg>,
        message: RootMsg,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        let cell = myself.get_cell();
        match message {
            RootMsg::Linked(tasks) => state.tasks = tasks,
            RootMsg::StartFeed { reader, reply } => {
                let feed = AuditFeed::spawn_linked(None, AuditFeed, *reader, cell).await;
                let _ = reply.send(feed.ok().map(|(actor, _)| actor));
            }
            RootMsg::OpenSupervisor { reply } => {
                let opened = SupervisorActor::spawn_linked(None, SupervisorActor, (), cell).await;
                let _ = reply.send(opened.map(|(actor, _)| actor).map_err(|e| e.to_string()));
            }
        }
        Ok(())
    }

    /// Restart decision: none. Without the feed denials are reported as incomplete; a supervisor that failed took its
    /// processes along, whose records were sealed as lost.
    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<RootMsg>,
        event: SupervisionEvent,
        _state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(_, error) = event {
            tracing::error!(%error, "an actor below the root failed");
        }
        Ok(())
    }
}

pub(super) async fn open_supervisor(
    root: &ActorRef<RootMsg>,
) -> Result<ActorRef<SupervisorMsg>, StartError> {
    let (reply, opened) = oneshot::channel();
    let _ = root.send_message(RootMsg::OpenSupervisor { reply });
    opened
        .await
        .map_err(|error| StartError::Actor(error.to_string()))?
        .map_err(StartError::Actor)
}
