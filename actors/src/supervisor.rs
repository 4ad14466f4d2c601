//! SupervisorActor: owns the processes of one session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use jiff::Timestamp;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;

use provost_sandbox::observe::notify::Grants;

use crate::event::{ProcessId, StreamName};
use crate::log::{Log, LogLimits};
use crate::process::{ProcessActor, ProcessArgs, ProcessCommand, ProcessMsg};
use crate::record::TerminalRecord;
use crate::slots::{Slot, SlotEffect, Slots};
use crate::spawner::lock;
use crate::spool::{Spool, StdinProgress};
use crate::stdin::StdinPort;

pub(crate) struct SupervisorActor;

pub(crate) enum SupervisorMsg {
    /// Start a process; answered when its actor lives (and has asked the spawner).
    Spawn {
        args: Box<ProcessArgs>,
        /// Of the slot that it takes; none if it lived before we did.
        claim: Option<Claim>,
        reply: oneshot::Sender<Result<ActorRef<ProcessMsg>, String>>,
    },
    /// Get a slot ready for a process that is to start; answered when it is free, and never if nothing starts any more.
    Claim {
        slot: Slot,
        reply: oneshot::Sender<Claim>,
    },
    /// Nothing was started with a claim.
    Released { slot: String, ticket: u64 },
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
    slots: Slots<ActorId, oneshot::Sender<Claim>>,
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
            SupervisorMsg::Spawn { args, claim, reply } => {
                let _ = reply.send(state.spawn(&myself, *args, claim).await);
            }
            SupervisorMsg::Claim { slot, reply } => state.claim(&myself, slot, reply),
            SupervisorMsg::Released { slot, ticket } => {
                let effect = state.slots.released(&slot, ticket);
                state.perform(&myself, effect);
            }
            SupervisorMsg::StopAll { reason, kill, reply } => state.stop_all(&reason, kill, reply),
        }
        Ok(())
    }

    /// Restart decision: none, a process is run once. One that failed has sealed its record in its `Drop`.
    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<SupervisorMsg>,
        event: SupervisionEvent,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(who, ..) => state.gone(&myself, who.get_id()),
            SupervisionEvent::ActorFailed(who, error) => {
                tracing::error!(%error, "a process actor failed");
                state.gone(&myself, who.get_id());
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
        claim: Option<Claim>,
    ) -> Result<ActorRef<ProcessMsg>, String> {
        if self.stopping {
            return Err("the supervisor is shutting down".to_owned());
        }
        let slot = args.spec.slot.as_ref().map(|slot| slot.name.clone());
        let (actor, _) = ProcessActor::spawn_linked(None, ProcessActor, args, myself.get_cell())
            .await
            .map_err(|error| error.to_string())?;
        self.processes.insert(actor.get_id(), actor.clone());
        if let Some(slot) = slot {
            let ticket = claim.as_ref().map(|claim| claim.ticket);
            let effect = self.slots.taken(&slot, ticket, actor.get_id());
            self.perform(myself, effect);
        }
        Ok(actor)
    }

    fn claim(&mut self, myself: &ActorRef<SupervisorMsg>, slot: Slot, reply: oneshot::Sender<Claim>) {
        if !self.stopping {
            let effect = self.slots.claim(slot, reply);
            self.perform(myself, effect);
        }
    }

    fn perform(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        effect: Option<SlotEffect<ActorId, oneshot::Sender<Claim>>>,
    ) {
        match effect {
            None => {}
            Some(SlotEffect::Give { name, ticket, to }) => {
                // One who does not wait any more drops it, which releases it.
                let _ = to.send(Claim {
                    supervisor: myself.clone(),
                    slot: name,
                    ticket,
                });
            }
            Some(SlotEffect::Replace { process, grace }) => {
                if let Some(process) = self.processes.get(&process) {
                    let command = ProcessCommand::Replace { grace };
                    let _ = process.send_message(ProcessMsg::Command(command));
                }
            }
        }
    }

    fn stop_all(&mut self, reason: &str, kill: bool, reply: Option<oneshot::Sender<()>>) {
        self.stopping = true;
        self.slots.close();
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

    fn gone(&mut self, myself: &ActorRef<SupervisorMsg>, who: ActorId) {
        self.processes.remove(&who);
        let effect = self.slots.gone(who);
        self.perform(myself, effect);
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

/// A slot that is kept free for a process that is to start. Dropped, it is free for the next one, unless the process has it.
pub(crate) struct Claim {
    supervisor: ActorRef<SupervisorMsg>,
    slot: String,
    ticket: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let slot = std::mem::take(&mut self.slot);
        let ticket = self.ticket;
        let _ = self
            .supervisor
            .send_message(SupervisorMsg::Released { slot, ticket });
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
    held: Mutex<Held>,
    /// Where its events are, too, if they are on disk.
    spool: Option<Arc<Spool>>,
}

/// What is in memory of a process.
#[derive(Debug)]
enum Held {
    /// Everything.
    All {
        actor: ActorRef<ProcessMsg>,
        log: Arc<Log>,
        /// Has its journal open.
        stdin: Arc<StdinPort>,
    },
    /// It has ended: its record. Its events are read from the spool when somebody asks.
    Record {
        record: Arc<TerminalRecord>,
        /// As somebody has it.
        log: Weak<Log>,
        retained: u64,
    },
}

impl ProcessLink {
    pub(crate) fn live(
        id: ProcessId,
        queued_at: Timestamp,
        actor: ActorRef<ProcessMsg>,
        log: Arc<Log>,
        stdin: Arc<StdinPort>,
        spool: Option<Arc<Spool>>,
    ) -> Self {
        Self(Arc::new(Linked {
            id,
            queued_at,
            held: Mutex::new(Held::All { actor, log, stdin }),
            spool,
        }))
    }

    /// A process that has this record; its events are in the spool.
    pub fn ended(id: ProcessId, record: Arc<TerminalRecord>, spool: Arc<Spool>) -> Self {
        let retained = record.output.values().map(|output| output.retained).sum();
        Self(Arc::new(Linked {
            id,
            queued_at: record.queued_at.unwrap_or(record.ended_at),
            held: Mutex::new(Held::Record {
                record,
                log: Weak::new(),
                retained,
            }),
            spool: Some(spool),
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

    /// Whether more than its record is held in memory.
    pub fn holds_events(&self) -> bool {
        matches!(&*lock(&self.0.held), Held::All { .. })
    }

    /// Keeps nothing but the record in memory, if it has one and its events are on disk. Whoever reads them reads on.
    /// Blocks.
    pub fn let_go(&self) {
        let Some(spool) = &self.0.spool else { return };
        if spool.owes(self.0.id) {
            return;
        }
        let mut held = lock(&self.0.held);
        if let Held::All { log, .. } = &*held
            && let Some(record) = log.record()
        {
            let streams = StreamName::ALL.into_iter();
            // The last file of a stream outlives what retention drops.
            let was_dropped = |stream: &StreamName| {
                let output = record.output.get(stream);
                output.is_some_and(|output| output.bytes > 0) && log.retained(*stream) == 0
            };
            let dropped: Vec<_> = streams.clone().filter(was_dropped).collect();
            if !dropped.is_empty() {
                spool.remove_output(self.0.id, &dropped);
            }
            *held = Held::Record {
                record,
                retained: streams.map(|stream| log.retained(stream)).sum(),
                log: Arc::downgrade(log),
            };
        }
    }

    /// Its log, if that is in memory.
    pub fn log_in_memory(&self) -> Option<Arc<Log>> {
        match &*lock(&self.0.held) {
            Held::All { log, .. } => Some(Arc::clone(log)),
            Held::Record { log, .. } => log.upgrade(),
        }
    }

    /// Its log. That of an ended process may be read from the disk for that.
    pub async fn log(&self) -> Arc<Log> {
        if let Some(log) = self.log_in_memory() {
            return log;
        }
        let link = self.clone();
        match tokio::task::spawn_blocking(move || link.read_log()).await {
            Ok(log) => log,
            // The runtime shuts down.
            Err(_) => Arc::new(Log::new(self.0.id, LogLimits::default())),
        }
    }

    /// The same; blocks if it is read from the disk.
    pub fn log_now(&self) -> Arc<Log> {
        self.log_in_memory().unwrap_or_else(|| self.read_log())
    }

    fn stdin(&self) -> Arc<StdinPort> {
        match &*lock(&self.0.held) {
            Held::All { stdin, .. } => Arc::clone(stdin),
            Held::Record { .. } => Arc::new(StdinPort::ended()),
        }
    }

    fn read_log(&self) -> Arc<Log> {
        let (id, spool) = (self.0.id, self.0.spool.as_ref());
        let read = spool.map(|spool| spool.load(id));
        let mut held = lock(&self.0.held);
        let (record, known) = match &mut *held {
            Held::All { log, .. } => return Arc::clone(log),
            Held::Record { record, log, .. } => (record, log),
        };
        if let Some(log) = known.upgrade() {
            return log;
        }
        let log = match read {
            Some(Ok(loaded)) if loaded.record.is_some() => loaded.log,
            read => {
                // What is left of it is its record.
                let error = read.and_then(Result::err).map(|error| error.to_string());
                tracing::error!(process = %id, ?error, "the events of a process cannot be read");
                let log = Log::new(id, LogLimits::default());
                log.seal_as_was(record.ended_at, Arc::clone(record));
                Arc::new(log)
            }
        };
        *known = Arc::downgrade(&log);
        log
    }

    /// Its record, if it is sealed.
    pub fn record(&self) -> Option<Arc<TerminalRecord>> {
        match &*lock(&self.0.held) {
            Held::All { log, .. } => log.record(),
            Held::Record { record, .. } => Some(Arc::clone(record)),
        }
    }

    /// Waits for its record.
    pub async fn sealed(&self) -> Arc<TerminalRecord> {
        let log = match &*lock(&self.0.held) {
            Held::All { log, .. } => Arc::clone(log),
            Held::Record { record, .. } => return Arc::clone(record),
        };
        log.sealed().await
    }

    /// Bytes of its output that are kept, in memory or on disk.
    pub fn retained(&self) -> u64 {
        match &*lock(&self.0.held) {
            Held::All { log, .. } => {
                let streams = StreamName::ALL.into_iter();
                streams.map(|stream| log.retained(stream)).sum()
            }
            Held::Record { retained, .. } => *retained,
        }
    }

    /// Removes the output of a process of which only the record is in memory; how many bytes that was. Blocks.
    pub fn drop_output(&self) -> u64 {
        let dropped = match &mut *lock(&self.0.held) {
            Held::All { .. } => return 0,
            Held::Record { retained, .. } => std::mem::take(retained),
        };
        if let Some(spool) = &self.0.spool {
            spool.remove_output(self.0.id, &StreamName::ALL);
        }
        dropped
    }

    /// About how many bytes of memory its log takes.
    pub fn memory(&self) -> u64 {
        self.log_in_memory().map_or(0, |log| log.memory())
    }

    /// Tells it something. False when it has already ended: its record says what won.
    pub fn tell(&self, command: ProcessCommand) -> bool {
        match &*lock(&self.0.held) {
            Held::All { actor, log, .. } => {
                log.record().is_none() && actor.send_message(ProcessMsg::Command(command)).is_ok()
            }
            Held::Record { .. } => false,
        }
    }

    /// Writes to its standard input; waits while it does not read.
    ///
    /// # Errors
    /// `BrokenPipe` when it has no stdin pipe, or closed it, or ended; `StorageFull` where it cannot be written down, with a state
    /// directory. Some of it may have been written ([`stdin_written`](Self::stdin_written)).
    pub async fn write_stdin(&self, bytes: &[u8]) -> std::io::Result<()> {
        self.stdin().write(bytes).await
    }

    /// How many bytes were written to its standard input, where there is a state directory. Waits for writes under way.
    pub async fn stdin_written(&self) -> u64 {
        self.stdin().written().await
    }

    /// How far an earlier daemon wrote to its standard input.
    pub fn stdin_before(&self) -> StdinProgress {
        self.stdin().before()
    }

    /// Ends its standard input.
    pub fn close_stdin(&self) {
        self.stdin().end();
    }

    /// The same without keeping its log: it leads there while the process lives or another holds that. Only of a process
    /// that no spool keeps.
    pub fn downgrade(&self) -> Option<WeakProcessLink> {
        let Held::All { actor, log, stdin } = &*lock(&self.0.held) else {
            return None;
        };
        Some(WeakProcessLink {
            id: self.0.id,
            queued_at: self.0.queued_at,
            actor: actor.clone(),
            log: Arc::downgrade(log),
            stdin: Arc::downgrade(stdin),
        })
    }

    /// Changes the size of its terminal; waits until that is there.
    ///
    /// # Errors
    /// `Unsupported` when it has no terminal, `BrokenPipe` when it has ended.
    pub async fn resize(&self, size: crate::spec::TerminalSize) -> std::io::Result<()> {
        self.stdin().resize(size).await
    }

    /// The size of its terminal; waits until that is there.
    ///
    /// # Errors
    /// As for [`Self::resize`].
    pub async fn terminal_size(&self) -> std::io::Result<crate::spec::TerminalSize> {
        self.stdin().size().await
    }
}

/// A [`ProcessLink`] that keeps nothing of an ended process.
#[derive(Debug)]
pub struct WeakProcessLink {
    id: ProcessId,
    queued_at: Timestamp,
    actor: ActorRef<ProcessMsg>,
    log: Weak<Log>,
    stdin: Weak<StdinPort>,
}

impl WeakProcessLink {
    /// The link, if the process lives or somebody has one.
    pub fn upgrade(&self) -> Option<ProcessLink> {
        let (log, stdin) = (self.log.upgrade()?, self.stdin.upgrade()?);
        let (id, queued_at, actor) = (self.id, self.queued_at, self.actor.clone());
        Some(ProcessLink::live(id, queued_at, actor, log, stdin, None))
    }
}
