//! The tree as its owner holds it, and its root.
//!
//! The root holds what is there once: the link to the spawner, the audit feed, the compiled sandboxes. When it
//! goes, everything goes.

mod actor;
mod adopt;
mod audit;
mod hold;
mod spawn;
mod validate;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use provost_sandbox::keeper::exits::ExitRecord;
use provost_sandbox::keeper::wire::Request;
use provost_sandbox::kernel::{KernelSupport, Probe};
use provost_sandbox::observe::audit::AuditSource;
use provost_sandbox::observe::notify::Grants;
use ractor::{Actor, ActorRef};
use tokio::sync::{OnceCell, oneshot};
use uuid::Uuid;

use self::actor::{RootActor, RootMsg, open_supervisor};
use self::audit::{AUDIT, open_audit};
pub use self::spawn::SpawnRefused;
use crate::audit::AuditMsg;
use crate::head_start::{Expected, HeadStart, Prepared};
use crate::keeping::Keeping;
use crate::spawner::{Inventory, LaunchedSpawner, SpawnerLink, StartError, lock};
use crate::supervisor::{SessionLink, SupervisorMsg};

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
