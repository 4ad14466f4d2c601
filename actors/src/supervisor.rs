//! SupervisorActor: owns the processes of one session.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};

use jiff::Timestamp;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;

use provost_sandbox::observe::notify::Grants;

use crate::event::{ProcessId, StreamName};
use crate::log::{Log, LogLimits};
use crate::process::{ProcessActor, ProcessArgs, ProcessCommand, ProcessMsg};
use crate::record::TerminalRecord;
use crate::spool::{Spool, StdinProgress};
use crate::stdin::StdinPort;

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
pub struct ProcessLink(Arc<Linked>);

#[derive(Debug)]
struct Linked {
    id: ProcessId,
    queued_at: Timestamp,
    /// Absent where it ended before we came.
    actor: Option<ActorRef<ProcessMsg>>,
    /// Read from the spool when somebody asks, where it ended before we came.
    log: OnceLock<Arc<Log>>,
    ended: Option<Ended>,
    stdin: Arc<StdinPort>,
}

/// A process that ended before we came.
#[derive(Debug)]
struct Ended {
    record: Arc<TerminalRecord>,
    spool: Arc<Spool>,
}

impl ProcessLink {
    pub(crate) fn live(
        id: ProcessId,
        queued_at: Timestamp,
        actor: ActorRef<ProcessMsg>,
        log: Arc<Log>,
        stdin: Arc<StdinPort>,
    ) -> Self {
        Self(Arc::new(Linked {
            id,
            queued_at,
            actor: Some(actor),
            log: log.into(),
            ended: None,
            stdin,
        }))
    }

    /// A process that has this record; its events are in the spool.
    pub fn ended(id: ProcessId, record: Arc<TerminalRecord>, spool: Arc<Spool>) -> Self {
        Self(Arc::new(Linked {
            id,
            queued_at: record.queued_at.unwrap_or(record.ended_at),
            actor: None,
            log: OnceLock::new(),
            ended: Some(Ended { record, spool }),
            stdin: Arc::new(StdinPort::ended()),
        }))
    }

    /// The process's id.
    pub fn id(&self) -> ProcessId {
        self.0.id
    }

    /// When it was accepted.
    pub fn queued_at(&self) -> Timestamp {
        self.0.queued_at
    }

    /// Its log. That of a process that ended before this daemon began is read when it is first asked for.
    pub fn log(&self) -> &Arc<Log> {
        self.0.log.get_or_init(|| {
            let Some(ended) = &self.0.ended else {
                return Arc::new(Log::new(self.0.id, LogLimits::default()));
            };
            match ended.spool.load(self.0.id) {
                Ok(loaded) if loaded.record.is_some() => loaded.log,
                read => {
                    // What is left of it is its record.
                    let error = read.err().map(|error| error.to_string());
                    tracing::error!(process = %self.0.id, ?error, "the events of a process cannot be read");
                    let log = Log::new(self.0.id, LogLimits::default());
                    log.seal_as_was(ended.record.ended_at, TerminalRecord::clone(&ended.record));
                    Arc::new(log)
                }
            }
        })
    }

    /// Its record, if it is sealed.
    pub fn record(&self) -> Option<Arc<TerminalRecord>> {
        match &self.0.ended {
            Some(ended) => Some(Arc::clone(&ended.record)),
            None => self.log().record(),
        }
    }

    /// Bytes of its output that are kept, in memory or on disk.
    pub fn retained(&self) -> u64 {
        match &self.0.ended {
            Some(ended) => ended.record.output.values().map(|output| output.retained).sum(),
            None => StreamName::ALL
                .into_iter()
                .map(|stream| self.log().retained(stream))
                .sum(),
        }
    }

    /// About how many bytes of memory its log takes.
    pub fn memory(&self) -> u64 {
        self.0.log.get().map_or(0, |log| log.memory())
    }

    /// Tells it something. False when it has already ended: its record says what won.
    pub fn tell(&self, command: ProcessCommand) -> bool {
        let Some(actor) = &self.0.actor else {
            return false;
        };
        self.record().is_none() && actor.send_message(ProcessMsg::Command(command)).is_ok()
    }

    /// Writes to its standard input; waits while it does not read.
    ///
    /// # Errors
    /// `BrokenPipe` when it has no stdin pipe, or closed it, or ended.
    pub async fn write_stdin(&self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.stdin.write(bytes).await
    }

    /// How far an earlier daemon wrote to its standard input.
    pub fn stdin_before(&self) -> StdinProgress {
        self.0.stdin.before()
    }

    /// Ends its standard input.
    pub fn close_stdin(&self) {
        self.0.stdin.end();
    }

    /// The same without keeping its log: it leads there while the process lives or another holds that.
    pub fn downgrade(&self) -> WeakProcessLink {
        WeakProcessLink {
            id: self.0.id,
            queued_at: self.0.queued_at,
            actor: self.0.actor.clone(),
            log: Arc::downgrade(self.log()),
            stdin: Arc::downgrade(&self.0.stdin),
        }
    }

    /// Changes the size of its terminal; waits until that is there.
    ///
    /// # Errors
    /// `Unsupported` when it has no terminal, `BrokenPipe` when it has ended.
    pub async fn resize(&self, size: crate::spec::TerminalSize) -> std::io::Result<()> {
        self.0.stdin.resize(size).await
    }

    /// The size of its terminal; waits until that is there.
    ///
    /// # Errors
    /// As for [`Self::resize`].
    pub async fn terminal_size(&self) -> std::io::Result<crate::spec::TerminalSize> {
        self.0.stdin.size().await
    }
}

/// A [`ProcessLink`] that keeps nothing of an ended process.
#[derive(Debug)]
pub struct WeakProcessLink {
    id: ProcessId,
    queued_at: Timestamp,
    actor: Option<ActorRef<ProcessMsg>>,
    log: Weak<Log>,
    stdin: Weak<StdinPort>,
}

impl WeakProcessLink {
    /// The link, if the process lives or somebody has one.
    pub fn upgrade(&self) -> Option<ProcessLink> {
        let (log, stdin) = (self.log.upgrade()?, self.stdin.upgrade()?);
        Some(ProcessLink(Arc::new(Linked {
            id: self.id,
            queued_at: self.queued_at,
            actor: self.actor.clone(),
            log: log.into(),
            ended: None,
            stdin,
        })))
    }
}
