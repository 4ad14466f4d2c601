//! SupervisorActor: owns the processes of one session.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;

use provost_sandbox::observe::notify::Grants;

use crate::process::{ProcessActor, ProcessArgs, ProcessCommand, ProcessMsg};

pub(crate) struct SupervisorActor;

pub(crate) enum SupervisorMsg {
    /// Start a process; answered when its actor lives (and has asked the spawner).
    Spawn {
        args: Box<ProcessArgs>,
        reply: oneshot::Sender<Result<ActorRef<ProcessMsg>, String>>,
    },
    /// Stop every process by its rule, or kill at once. Answered when none is left.
    StopAll {
        reason: String,
        kill: bool,
        reply: Option<oneshot::Sender<()>>,
    },
}

#[derive(Default)]
pub(crate) struct SupervisorState {
    processes: HashMap<ActorId, ActorRef<ProcessMsg>>,
    /// Set once it is stopping: nothing starts any more.
    stopping: bool,
    empty: Vec<oneshot::Sender<()>>,
}

impl Actor for SupervisorActor {
    type Msg = SupervisorMsg;
    type State = SupervisorState;
    type Arguments = ();

    async fn pre_start(
        &self,
        _myself: ActorRef<SupervisorMsg>,
        (): (),
    ) -> Result<SupervisorState, ActorProcessingErr> {
        Ok(SupervisorState::default())
    }

    async fn handle(
        &self,
        myself: ActorRef<SupervisorMsg>,
        message: SupervisorMsg,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMsg::Spawn { args, reply } => {
                let _ = reply.send(state.spawn(&myself, *args).await);
            }
            SupervisorMsg::StopAll { reason, kill, reply } => state.stop_all(&reason, kill, reply),
        }
        Ok(())
    }

    /// Restart decision: none, a process is run once. One that failed has sealed its record in its `Drop`.
    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<SupervisorMsg>,
        event: SupervisionEvent,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(who, ..) => state.gone(who.get_id()),
            SupervisionEvent::ActorFailed(who, error) => {
                tracing::error!(%error, "a process actor failed");
                state.gone(who.get_id());
            }
            _ => {}
        }
        Ok(())
    }
}

impl SupervisorState {
    async fn spawn(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        args: ProcessArgs,
    ) -> Result<ActorRef<ProcessMsg>, String> {
        if self.stopping {
            return Err("the supervisor is shutting down".to_owned());
        }
        let (actor, _) = ProcessActor::spawn_linked(None, ProcessActor, args, myself.get_cell())
            .await
            .map_err(|error| error.to_string())?;
        self.processes.insert(actor.get_id(), actor.clone());
        Ok(actor)
    }

    fn stop_all(&mut self, reason: &str, kill: bool, reply: Option<oneshot::Sender<()>>) {
        self.stopping = true;
        for process in self.processes.values() {
            let reason = reason.to_owned();
            let command = if kill {
                ProcessCommand::Kill { reason }
            } else {
                ProcessCommand::Stop { reason, grace: None }
            };
            let _ = process.send_message(ProcessMsg::Command(command));
        }
        self.empty.extend(reply);
        self.tell_if_empty();
    }

    fn gone(&mut self, who: ActorId) {
        self.processes.remove(&who);
        self.tell_if_empty();
    }

    fn tell_if_empty(&mut self) {
        if self.processes.is_empty() {
            for reply in self.empty.drain(..) {
                let _ = reply.send(());
            }
        }
    }
}

/// What a caller holds of a session: the supervisor of its processes.
#[derive(Debug, Clone)]
pub struct SessionLink {
    pub(crate) id: Option<String>,
    pub(crate) supervisor: ActorRef<SupervisorMsg>,
    /// What was allowed to every process of it.
    pub(crate) grants: Grants,
}

impl SessionLink {
    /// Stops every process of it by its stop rule, or kills them at once; done when nothing of it lives. Nothing starts in
    /// it any more.
    pub async fn stop_all(&self, reason: impl Into<String>, kill: bool) {
        let (reply, empty) = oneshot::channel();
        let reason = reason.into();
        let message = SupervisorMsg::StopAll {
            reason,
            kill,
            reply: Some(reply),
        };
        if self.supervisor.send_message(message).is_ok() {
            let _ = empty.await;
        }
    }

    /// Ends its supervisor, once nothing of it lives.
    pub fn close(&self) {
        self.supervisor.stop(None);
    }
}

/// What a caller holds of a process that was accepted.
#[derive(Debug, Clone)]
pub struct ProcessLink {
    pub(crate) id: crate::event::ProcessId,
    /// Absent where it ended before we came.
    actor: Option<ActorRef<ProcessMsg>>,
    pub(crate) log: Arc<crate::log::Log>,
    pub(crate) stdin: Arc<crate::stdin::StdinPort>,
}

impl ProcessLink {
    pub(crate) fn live(
        id: crate::event::ProcessId,
        actor: ActorRef<ProcessMsg>,
        log: Arc<crate::log::Log>,
        stdin: Arc<crate::stdin::StdinPort>,
    ) -> Self {
        let actor = Some(actor);
        Self {
            id,
            actor,
            log,
            stdin,
        }
    }

    pub(crate) fn ended(id: crate::event::ProcessId, log: Arc<crate::log::Log>) -> Self {
        Self {
            id,
            actor: None,
            log,
            stdin: Arc::new(crate::stdin::StdinPort::ended()),
        }
    }

    /// The process's id.
    pub fn id(&self) -> crate::event::ProcessId {
        self.id
    }

    /// Its log.
    pub fn log(&self) -> &Arc<crate::log::Log> {
        &self.log
    }

    /// Tells it something. False when it has already ended: its record says what won.
    pub fn tell(&self, command: ProcessCommand) -> bool {
        let told =
            |actor: &ActorRef<ProcessMsg>| actor.send_message(ProcessMsg::Command(command)).is_ok();
        self.log.record().is_none() && self.actor.as_ref().is_some_and(told)
    }

    /// Writes to its standard input; waits while it does not read.
    ///
    /// # Errors
    /// `BrokenPipe` when it has no stdin pipe, or closed it, or ended.
    pub async fn write_stdin(&self, bytes: &[u8]) -> std::io::Result<()> {
        self.stdin.write(bytes).await
    }

    /// Ends its standard input.
    pub fn close_stdin(&self) {
        self.stdin.end();
    }

    /// The same without keeping its log: it leads there while the process lives or another holds that.
    pub fn downgrade(&self) -> WeakProcessLink {
        WeakProcessLink {
            id: self.id,
            actor: self.actor.clone(),
            log: Arc::downgrade(&self.log),
            stdin: Arc::downgrade(&self.stdin),
        }
    }

    /// Changes the size of its terminal; waits until that is there.
    ///
    /// # Errors
    /// `Unsupported` when it has no terminal, `BrokenPipe` when it has ended.
    pub async fn resize(&self, size: crate::spec::TerminalSize) -> std::io::Result<()> {
        self.stdin.resize(size).await
    }

    /// The size of its terminal; waits until that is there.
    ///
    /// # Errors
    /// As for [`Self::resize`].
    pub async fn terminal_size(&self) -> std::io::Result<crate::spec::TerminalSize> {
        self.stdin.size().await
    }
}

/// A [`ProcessLink`] that keeps nothing of an ended process.
#[derive(Debug)]
pub struct WeakProcessLink {
    id: crate::event::ProcessId,
    actor: ActorRef<ProcessMsg>,
    log: Weak<crate::log::Log>,
    stdin: Weak<crate::stdin::StdinPort>,
}

impl WeakProcessLink {
    /// The link, if the process lives or somebody has one.
    pub fn upgrade(&self) -> Option<ProcessLink> {
        Some(ProcessLink {
            id: self.id,
            actor: self.actor.clone(),
            log: self.log.upgrade()?,
            stdin: self.stdin.upgrade()?,
        })
    }
}
