//! RootActor, and the tree as its owner holds it.
//!
//! The root holds what is there once: the link to the spawner, the audit feed, the compiled sandboxes. When it
//! goes, everything goes.

mod adopt;
mod hold;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use provost_sandbox::compile::{CompileError, PreparedSandbox};
use provost_sandbox::keeper::exits::ExitRecord;
use provost_sandbox::keeper::wire::Request;
use provost_sandbox::kernel::{KernelSupport, Probe};
use provost_sandbox::observe::audit::{AuditSource, AuditUnavailable};
use provost_sandbox::observe::notify::Grants;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{OnceCell, oneshot};
use uuid::Uuid;

use crate::audit::{AuditFeed, AuditMsg};
use crate::event::ProcessId;
use crate::head_start::{Expected, HeadStart, Prepared, compile_context};
use crate::keeping::Keeping;
use crate::log::Log;
use crate::process::{ProcessArgs, spawn_request};
use crate::proxy::ProxyPort;
use crate::slots::SLOT_BYTES_MAX;
use crate::spawner::{Inventory, LaunchedSpawner, LinkTasks, SpawnerLink, StartError, lock};
use crate::spec::{ProcessSpec, Slot, StdinSpec};
use crate::spool::{Accepted, StdinProgress, StoredSpec, monotonic};
use crate::stdin::StdinPort;
use crate::supervisor::{Claim, ProcessLink, SessionLink, SupervisorActor, SupervisorMsg};

/// Compiled sandboxes that are kept for the next process with the same policy.
const PREPARED_MAX: usize = 16;

/// The keeper's name for the socket of audit records.
const AUDIT: &str = "audit";

struct RootActor;

enum RootMsg {
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

struct RootState {
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

/// The supervision tree of one embedder. Dropping it kills everything that still runs.
#[derive(Debug)]
pub struct Tree {
    root: ActorRef<RootMsg>,
    /// Where processes belong that belong to no session.
    own: SessionLink,
    /// To the spawner, or the keeper; a new one where that died.
    link: Mutex<Arc<SpawnerLink>>,
    /// Held while a new keeper is launched.
    launching: tokio::sync::Mutex<()>,
    /// What lets processes survive us, if anything does.
    keeping: Option<Keeping>,
    /// What the keeper held when we came, and what earlier ones wrote down.
    inventory: Mutex<Inventory>,
    exits: HashMap<Uuid, ExitRecord>,
    kernel: OnceCell<(KernelSupport, Option<ActorRef<AuditMsg>>)>,
    found: KernelSupport,
    prepared: Mutex<Vec<Prepared>>,
    head_start: Mutex<Option<HeadStart>>,
    /// The spawner has been asked for its share in audit.
    audit_shared: AtomicBool,
    /// Where somebody reads audit records for us.
    audit_broker: Mutex<Option<OwnedFd>>,
    /// Cleared by a shutdown. Whoever starts something holds this until the supervisor's mailbox has it, so that a
    /// shutdown finds it there.
    accepts: Mutex<bool>,
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.root.kill();
    }
}

/// What a shutdown found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShutdownReport {
    /// Everything ended by its own stop rule before the deadline.
    pub graceful: bool,
}

impl Tree {
    /// Starts the actors around a spawner. What the expected process needs is got ready meanwhile.
    ///
    /// # Errors
    /// The spawner does not answer.
    pub async fn start(
        spawner: LaunchedSpawner,
        expected: Option<Expected>,
        keeping: Option<Keeping>,
    ) -> Result<Self, StartError> {
        let head_start = expected.and_then(HeadStart::take);
        let (link, tasks, found, inventory) = SpawnerLink::greet(spawner).await?;
        let mut exits = HashMap::new();
        if let Some(keeping) = &keeping {
            let opened = keeping.exits();
            let (file, found) = opened.map_err(|error| {
                StartError::Spawner(format!("cannot open the file of exits: {error}"))
            })?;
            exits = found;
            link.post(Request::ExitsFile, None, Some(file));
        }
        let (root, _) = RootActor::spawn(None, RootActor, tasks)
            .await
            .map_err(|error| StartError::Actor(error.to_string()))?;
        let supervisor = open_supervisor(&root).await?;
        Ok(Self {
            root,
            own: SessionLink {
                id: None,
                supervisor,
                grants: Grants::default(),
            },
            link: Mutex::new(link),
            launching: tokio::sync::Mutex::default(),
            keeping,
            inventory: Mutex::new(inventory),
            exits,
            kernel: OnceCell::new(),
            found,
            prepared: Mutex::default(),
            head_start: Mutex::new(head_start),
            audit_shared: AtomicBool::new(false),
            audit_broker: Mutex::default(),
            accepts: Mutex::new(true),
        })
    }

    /// What this machine offers. Opens the audit feed, if it can be had, which stays open.
    pub async fn kernel(&self) -> &KernelSupport {
        &self.resolved().await.0
    }

    async fn resolved(&self) -> &(KernelSupport, Option<ActorRef<AuditMsg>>) {
        self.kernel
            .get_or_init(|| async {
                let mut kernel = self.found.clone();
                let head_start = lock(&self.head_start).take();
                let broker = lock(&self.audit_broker).take();
                let earlier = lock(&self.inventory).named.remove(AUDIT);
                let (audit, head_start) = match (head_start, earlier) {
                    (Some(ready), _) => ready.split(),
                    (None, Some(socket)) if broker.is_none() => (AuditSource::go_on(socket), None),
                    (None, _) => (open_audit(broker).await, None),
                };
                self.keep_audit(audit.as_ref().ok());
                let feed = match audit {
                    Ok(reader) => self.start_feed(reader).await,
                    Err(unavailable) => {
                        kernel.audit = Probe::No(unavailable.to_string());
                        None
                    }
                };
                if feed.is_some() {
                    kernel.audit = Probe::Yes;
                }
                if let Some(sandbox) = head_start.and_then(|guessed| guessed.sandbox_for(&kernel)) {
                    lock(&self.prepared).push(sandbox);
                }
                (kernel, feed)
            })
            .await
    }

    /// Has the keeper keep the socket, with what comes while nobody reads.
    fn keep_audit(&self, audit: Option<&AuditSource>) {
        let socket = audit.and_then(AuditSource::socket);
        if let (Some(_), Some(socket)) = (&self.keeping, socket)
            && let Ok(copy) = socket.try_clone_to_owned()
        {
            let name = AUDIT.to_owned();
            lock(&self.link).post(Request::Hold { name }, None, Some(copy));
        }
    }

    /// Where audit records of this user's processes are to be had: a socket of an
    /// [`AuditBroker`](provost_sandbox::observe::audit::AuditBroker). To be said before anything is started.
    pub fn use_audit_broker(&self, socket: OwnedFd) {
        *lock(&self.audit_broker) = Some(socket);
    }

    /// Has the spawner hold a share in audit being on: it puts audit back after us, also if we are killed.
    pub fn share_audit(&self) {
        if !self.audit_shared.swap(true, Ordering::Relaxed) {
            lock(&self.link).post(Request::ShareAudit, None, None);
        }
    }

    async fn start_feed(&self, reader: AuditSource) -> Option<ActorRef<AuditMsg>> {
        let (reply, started) = oneshot::channel();
        let reader = Box::new(reader);
        self.root
            .send_message(RootMsg::StartFeed { reader, reply })
            .ok()?;
        started.await.ok().flatten()
    }

    /// Starts a process. It is accepted when this returns; whatever happens then, it gets its record.
    ///
    /// # Errors
    /// The spec or its policy cannot be used, or this machine cannot hold it; nothing was started.
    pub async fn spawn(&self, spec: ProcessSpec) -> Result<ProcessLink, SpawnRefused> {
        self.spawn_in(&self.own, spec).await
    }

    /// What lets processes survive this one, if anything does.
    pub fn keeping(&self) -> Option<&Keeping> {
        self.keeping.as_ref()
    }

    /// The supervisor of processes that belong to no session.
    pub fn own_session(&self) -> &SessionLink {
        &self.own
    }

    /// Opens a session: a supervisor of its own, under which processes can be started.
    ///
    /// # Errors
    /// The tree is gone.
    pub async fn open_session(&self, id: String) -> Result<SessionLink, StartError> {
        let supervisor = open_supervisor(&self.root).await?;
        Ok(SessionLink {
            id: Some(id),
            supervisor,
            grants: Grants::default(),
        })
    }

    /// Starts a process in a session, as [`Tree::spawn`] does in none.
    ///
    /// # Errors
    /// As there.
    pub async fn spawn_in(
        &self,
        session: &SessionLink,
        spec: ProcessSpec,
    ) -> Result<ProcessLink, SpawnRefused> {
        self.spawn_noted(session, ProcessId::new(), spec, serde_json::Value::Null)
            .await
    }

    /// Starts a process in a session, under an id that no process had before. Where processes survive us, `note` is written down with it, for whoever
    /// [adopts](Self::adopt) it.
    ///
    /// # Errors
    /// As [`Tree::spawn`]; nor is it started if there is no room to write it down.
    pub async fn spawn_noted(
        &self,
        session: &SessionLink,
        id: ProcessId,
        mut spec: ProcessSpec,
        note: serde_json::Value,
    ) -> Result<ProcessLink, SpawnRefused> {
        validate(&spec)?;
        let link = self
            .link()
            .await
            .map_err(|error| SpawnRefused::Gone(error.to_string()))?;
        let (kernel, audit) = if spec.policy.confined {
            let (kernel, audit) = self.resolved().await;
            (kernel, audit.clone())
        } else {
            (&self.found, None)
        };
        let has_audit = audit.is_some();
        let mut sandbox = self.prepare(&spec, kernel)?;
        // Nothing makes room for what cannot start; and nothing is accepted before there is room.
        let claim = match spec.slot.clone() {
            Some(slot) => {
                let claim = claim_slot(session, slot).await?;
                // Meanwhile files may have changed.
                sandbox = self.prepare(&spec, kernel)?;
                Some(claim)
            }
            None => None,
        };
        let proxy = match sandbox.policy.net.proxy {
            true => Some(ProxyPort::open().map_err(SpawnRefused::Proxy)?),
            false => None,
        };
        for (name, value) in proxy.iter().flat_map(ProxyPort::variables) {
            spec.env.retain(|(known, _)| known != name);
            spec.env.push((name.into(), value.into()));
        }
        let queued_at = Timestamp::now();
        let spool = match &self.keeping {
            None => None,
            Some(keeping) => {
                let accepted = Accepted {
                    process: id,
                    session: session.id.clone(),
                    queued_at,
                    boot: keeping.spool.boot().to_owned(),
                    monotonic: monotonic(),
                    spec: StoredSpec::from(&spec),
                    proxy: proxy.as_ref().map(ProxyPort::place),
                    note,
                };
                let spool = keeping.spool.clone();
                let begun = tokio::task::spawn_blocking(move || spool.begin(accepted)).await;
                Some(
                    begun
                        .map_err(std::io::Error::other)
                        .flatten()
                        .map_err(SpawnRefused::Spool)?,
                )
            }
        };
        let log = Arc::new(match &spool {
            Some(spool) => Log::in_files(id, spec.retention, spool.spool().segments(id)),
            None => Log::new(id, spec.retention),
        });
        if spec.paced {
            log.reserve_pace();
        }
        let stdin = StdinPort::new(&spec, spool.clone(), StdinProgress::default());
        let stdin = Arc::new(match &spool {
            Some(_) => stdin.kept_by(link.clone(), id),
            None => stdin,
        });
        let (request, given) = spawn_request(id, &mut spec, &sandbox);
        let args = Box::new(ProcessArgs {
            id,
            spec,
            audit: audit.filter(|_| sandbox.uses_audit()),
            sandbox,
            link: link.clone(),
            log: log.clone(),
            stdin: stdin.clone(),
            session: session.id.clone(),
            queued_at,
            spool: spool.clone(),
            session_grants: session.grants.clone(),
            proxy,
            resumed: None,
        });
        let (reply, accepted) = oneshot::channel();
        let gone = || SpawnRefused::Gone("the supervisor ended".to_owned());
        {
            let accepts = lock(&self.accepts);
            if !*accepts {
                return Err(SpawnRefused::Gone("the supervisor is shutting down".to_owned()));
            }
            // The spawner begins while the actor is made.
            let (sandbox, process) = (args.sandbox.clone(), *id.as_uuid());
            link.announce(process);
            link.post(request, Some(sandbox), given);
            if session
                .supervisor
                .send_message(SupervisorMsg::Spawn { args, claim, reply })
                .is_err()
            {
                link.disown(process);
                return Err(gone());
            }
        }
        let actor = match accepted.await {
            Ok(Ok(actor)) => actor,
            refused => {
                link.disown(*id.as_uuid());
                return Err(refused.map_or_else(
                    |_| gone(),
                    |why| SpawnRefused::Gone(why.err().unwrap_or_default()),
                ));
            }
        };
        if has_audit {
            // Asked now, it does not hold the process up.
            self.share_audit();
        }
        let spool = spool.map(|spool| spool.spool());
        Ok(ProcessLink::live(id, queued_at, actor, log, stdin, spool))
    }

    fn prepare(
        &self,
        spec: &ProcessSpec,
        kernel: &KernelSupport,
    ) -> Result<Arc<PreparedSandbox>, CompileError> {
        let context = compile_context(spec);
        let mut prepared = lock(&self.prepared);
        if let Some(known) = prepared
            .iter()
            .find(|known| known.policy == spec.policy && known.context == context)
            && known.sandbox.is_current()
        {
            return Ok(known.sandbox.clone());
        }
        prepared.retain(|known| known.policy != spec.policy || known.context != context);
        let compiled = Prepared::compile(spec.policy.clone(), context, kernel)?;
        let sandbox = compiled.sandbox.clone();
        if prepared.len() >= PREPARED_MAX {
            prepared.remove(0);
        }
        prepared.push(compiled);
        Ok(sandbox)
    }

    /// Stops every process by its stop rule; kills at the deadline what is left. Nothing starts any more.
    pub async fn shutdown(&self, deadline: Duration) -> ShutdownReport {
        let graceful = tokio::time::timeout(deadline, self.stop_all(false)).await.is_ok();
        if !graceful {
            self.stop_all(true).await;
        }
        ShutdownReport { graceful }
    }

    /// The link; a keeper that died is replaced by a new one first.
    async fn link(&self) -> Result<Arc<SpawnerLink>, StartError> {
        let current = || lock(&self.link).clone();
        let (link, Some(keeping)) = (current(), &self.keeping) else {
            return Ok(current());
        };
        if link.gone().is_none() {
            return Ok(link);
        }
        let _one_at_a_time = self.launching.lock().await;
        if current().gone().is_none() {
            return Ok(current());
        }
        let launched = {
            let keeping = keeping.clone();
            tokio::task::spawn_blocking(move || keeping.keeper()).await
        };
        let launched = launched.map_err(|error| StartError::Spawner(error.to_string()))??;
        let (link, tasks, ..) = SpawnerLink::greet(launched).await?;
        match keeping.exits() {
            Ok((file, _)) => link.post(Request::ExitsFile, None, Some(file)),
            Err(error) => tracing::error!(%error, "the keeper cannot write down how processes end"),
        }
        let _ = self.root.send_message(RootMsg::Linked(tasks));
        self.audit_shared.store(false, Ordering::Relaxed);
        *lock(&self.link) = link.clone();
        tracing::warn!("a new keeper was started: the last one died");
        Ok(link)
    }

    /// The keeper's pid, where there is one, and why it does not serve any more, if it does not.
    pub fn keeper(&self) -> Option<(u32, Option<String>)> {
        self.keeping.as_ref()?;
        let link = lock(&self.link).clone();
        Some((link.pid(), link.gone()))
    }

    /// Nothing is to survive us: the keeper ends, with whatever it still holds.
    pub fn dismiss_keeper(&self) {
        if self.keeping.is_some() {
            lock(&self.link).post(Request::Stop, None, None);
        }
    }

    async fn stop_all(&self, kill: bool) {
        *lock(&self.accepts) = false;
        let (reply, empty) = oneshot::channel();
        let message = SupervisorMsg::StopAll {
            reason: "the supervisor shuts down".to_owned(),
            kill,
            reply: Some(reply),
        };
        if self.own.supervisor.send_message(message).is_ok() {
            let _ = empty.await;
        }
    }
}

/// A broker may take its time, which is nobody else's.
async fn open_audit(broker: Option<OwnedFd>) -> Result<AuditSource, AuditUnavailable> {
    if broker.is_none() {
        return AuditSource::open(None);
    }
    let opened = tokio::task::spawn_blocking(|| AuditSource::open(broker)).await;
    opened.unwrap_or_else(|error| {
        Err(AuditUnavailable {
            reason: error.to_string(),
        })
    })
}

async fn open_supervisor(root: &ActorRef<RootMsg>) -> Result<ActorRef<SupervisorMsg>, StartError> {
    let (reply, opened) = oneshot::channel();
    let _ = root.send_message(RootMsg::OpenSupervisor { reply });
    opened
        .await
        .map_err(|error| StartError::Actor(error.to_string()))?
        .map_err(StartError::Actor)
}

/// A process was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SpawnRefused {
    /// The spec cannot be used.
    #[error("{0}")]
    Spec(String),
    /// The policy is wrong, or this machine cannot hold it.
    #[error(transparent)]
    Sandbox(#[from] CompileError),
    /// There is no room to write down that it was accepted.
    #[error("cannot write down that it was accepted: {0}")]
    Spool(#[source] std::io::Error),
    /// There is no port for the process's proxy.
    #[error("cannot listen on loopback for the proxy: {0}")]
    Proxy(#[source] std::io::Error),
    /// The supervisor takes nothing any more.
    #[error("{0}")]
    Gone(String),
}

/// Waits until a slot is free.
async fn claim_slot(session: &SessionLink, slot: Slot) -> Result<Claim, SpawnRefused> {
    let gone = || SpawnRefused::Gone("the supervisor is shutting down".to_owned());
    let (reply, given) = oneshot::channel();
    let sent = session
        .supervisor
        .send_message(SupervisorMsg::Claim { slot, reply });
    sent.map_err(|_| gone())?;
    given.await.map_err(|_| gone())
}

fn validate(spec: &ProcessSpec) -> Result<(), SpawnRefused> {
    let refuse = |why: String| Err(SpawnRefused::Spec(why));
    if spec.argv.first().is_none_or(|program| program.is_empty()) {
        return refuse("no command to run".to_owned());
    }
    if let Some(Slot { name, .. }) = &spec.slot
        && (name.is_empty() || name.len() > SLOT_BYTES_MAX || name.chars().any(char::is_control))
    {
        return refuse(format!(
            "{name:?} cannot be a slot: want 1 to {SLOT_BYTES_MAX} bytes without control characters"
        ));
    }
    let nul = |text: &std::ffi::OsStr| text.as_encoded_bytes().contains(&0);
    if let Some(bad) = spec.argv.iter().find(|argument| nul(argument)) {
        return refuse(format!("the argument {bad:?} has a NUL byte in it"));
    }
    for (key, value) in &spec.env {
        if nul(key) || nul(value) || key.is_empty() || key.as_encoded_bytes().contains(&b'=') {
            return refuse(format!("{key:?} cannot be an environment variable"));
        }
    }
    if let (true, StdinSpec::Given(given)) = (spec.policy.confined, &spec.stdin)
        && let Some(why) = leads_out(given)
    {
        return refuse(format!(
            "standard input {why}; give a pipe, a file or a stream socket"
        ));
    }
    if spec.terminal.is_some() && matches!(spec.stdin, StdinSpec::Given(_)) {
        return refuse("the terminal is its standard input: it cannot be given another".to_owned());
    }
    if !spec.cwd.is_absolute() {
        return refuse(format!("the working directory {:?} is not absolute", spec.cwd));
    }
    match std::fs::metadata(&spec.cwd) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => refuse(format!(
            "the working directory {} is not a directory",
            spec.cwd.display()
        )),
        Err(error) => refuse(format!("the working directory {}: {error}", spec.cwd.display())),
    }
}

/// Why a sandboxed command must not have this descriptor, if there is a reason.
fn leads_out(given: &OwnedFd) -> Option<&'static str> {
    use nix::libc;
    use nix::sys::socket::{SockType, getsockopt, sockopt};
    let kind = nix::sys::stat::fstat(given).map_or(0, |stat| stat.st_mode & libc::S_IFMT);
    match kind {
        libc::S_IFDIR => {
            Some("is a directory: paths that begin there pass by the mounts that hide and protect files")
        }
        libc::S_IFSOCK if getsockopt(given, sockopt::SockType) != Ok(SockType::Stream) => {
            Some("is a socket that can send to any address")
        }
        _ => None,
    }
}
