//! The link to the spawner process: requests go out in order, notices come back and are routed by process id.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use provost_sandbox::compile::PreparedSandbox;
use provost_sandbox::keeper::ForkedSpawner;
use provost_sandbox::keeper::wire::{HeldState, Kept, Notice, Request};
use provost_sandbox::kernel::KernelSupport;
use provost_sandbox::spawn::{KEEPER_IDLE, LaunchError, Spawner, SpawnerSource};
use ractor::ActorRef;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::process::ProcessMsg;

/// How long a new spawner has to answer.
const HELLO_MAX: Duration = Duration::from_secs(10);

/// The supervisor could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The spawner could not be launched.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The spawner did not answer as a spawner.
    #[error("the spawner does not answer: {0}; is its executable a provost of this version?")]
    Spawner(String),
    /// An actor could not be started.
    #[error("cannot start the supervision tree: {0}")]
    Actor(String),
}

/// A request that waits for room in the socket, with what keeps its descriptors open.
struct Pending {
    request: Request,
    sandbox: Option<Arc<PreparedSandbox>>,
    stdin: Option<OwnedFd>,
}

/// Where the notices about one process go.
enum Route {
    /// It was asked for and its actor is being made: they wait.
    Announced(Vec<ProcessMsg>),
    Actor(ActorRef<ProcessMsg>),
}

impl Route {
    fn tell(&mut self, message: ProcessMsg) {
        match self {
            Self::Announced(waiting) => waiting.push(message),
            // An actor that is gone has sealed, or its supervisor has.
            Self::Actor(actor) => drop(actor.send_message(message)),
        }
    }
}

/// Where notices go.
#[derive(Default)]
struct Routes {
    routes: HashMap<Uuid, Route>,
    /// Why none will come any more.
    gone: Option<String>,
}

/// The link. Dropping the last one ends the spawner and everything it holds.
pub(crate) struct SpawnerLink {
    spawner: AsyncFd<Spawner>,
    is_keeper: bool,
    routes: Mutex<Routes>,
    queue: Mutex<VecDeque<Pending>>,
    queued: Notify,
}

impl std::fmt::Debug for SpawnerLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SpawnerLink").finish_non_exhaustive()
    }
}

/// The tasks that serve a link; they end with this.
#[derive(Debug)]
pub(crate) struct LinkTasks(Vec<JoinHandle<()>>);

impl Drop for LinkTasks {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// What a keeper held when we came.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    /// It was there before us: what it does not know it was never asked for.
    pub(crate) was_there: bool,
    pub(crate) trees: HashMap<Uuid, (HeldState, Vec<OwnedFd>)>,
    pub(crate) named: HashMap<String, OwnedFd>,
}

/// A spawner that was launched and is getting ready meanwhile, or a keeper. Dropping it ends the spawner.
#[derive(Debug)]
pub struct LaunchedSpawner {
    spawner: Spawner,
    was_there: bool,
}

impl LaunchedSpawner {
    /// Connects to the keeper of this socket, or launches one.
    ///
    /// # Errors
    /// It cannot be found, reached or started.
    pub fn keeper(socket: &Path, source: &SpawnerSource) -> Result<Self, StartError> {
        let (spawner, was_there) = Spawner::connect_or_launch(socket, source, KEEPER_IDLE)?;
        spawner
            .send(&Request::Hello { thorough: false }, &[])
            .map_err(|error| StartError::Spawner(error.to_string()))?;
        Ok(Self { spawner, was_there })
    }

    /// Launches a spawner and asks it what can be had here; the answer is not awaited.
    ///
    /// # Errors
    /// It cannot be found or started.
    pub fn launch(source: &SpawnerSource, thorough: bool) -> Result<Self, StartError> {
        Self::greeted(Spawner::launch(source)?, thorough)
    }

    /// The same of one that was forked.
    ///
    /// # Errors
    /// It has ended.
    pub fn forked(forked: ForkedSpawner, thorough: bool) -> Result<Self, StartError> {
        Self::greeted(Spawner::forked(forked), thorough)
    }

    fn greeted(spawner: Spawner, thorough: bool) -> Result<Self, StartError> {
        spawner
            .send(&Request::Hello { thorough }, &[])
            .map_err(|error| StartError::Spawner(error.to_string()))?;
        Ok(Self {
            spawner,
            was_there: false,
        })
    }
}

impl SpawnerLink {
    /// Hears from a launched spawner what can be had here.
    pub(crate) async fn greet(
        launched: LaunchedSpawner,
    ) -> Result<(Arc<Self>, LinkTasks, KernelSupport, Inventory), StartError> {
        let LaunchedSpawner { spawner, was_there } = launched;
        let is_keeper = spawner.outlives_us();
        let broken = |error: io::Error| StartError::Spawner(error.to_string());
        let spawner =
            crate::readiness::watch(spawner, Interest::READABLE | Interest::WRITABLE).map_err(broken)?;
        let hello = tokio::time::timeout(HELLO_MAX, receive(&spawner))
            .await
            .map_err(|_| StartError::Spawner("no answer in 10 s".to_owned()))?;
        let support = match hello.map_err(broken)? {
            Some((Notice::Hello { support, .. }, _)) => *support,
            Some(_) => return Err(StartError::Spawner("it spoke out of turn".to_owned())),
            None => return Err(StartError::Spawner("it ended at once".to_owned())),
        };
        let mut inventory = Inventory {
            was_there,
            ..Inventory::default()
        };
        if is_keeper {
            tokio::time::timeout(HELLO_MAX, take_inventory(&spawner, &mut inventory))
                .await
                .map_err(|_| StartError::Spawner("the keeper does not say what it holds".to_owned()))?
                .map_err(broken)?;
        }
        // What is heard of them from now on waits for their actors.
        let held = inventory.trees.keys();
        let routes = Routes {
            routes: held
                .map(|process| (*process, Route::Announced(Vec::new())))
                .collect(),
            gone: None,
        };
        let link = Arc::new(Self {
            spawner,
            is_keeper,
            routes: Mutex::new(routes),
            queue: Mutex::default(),
            queued: Notify::new(),
        });
        let tasks = LinkTasks(vec![
            tokio::spawn(route_notices(link.clone())),
            tokio::spawn(send_queued(link.clone())),
        ]);
        Ok((link, tasks, support, inventory))
    }

    /// Where notices about a process go. Where the spawner is gone already, the process is told so.
    pub(crate) fn add_route(&self, process: Uuid, actor: ActorRef<ProcessMsg>) {
        let mut routes = lock(&self.routes);
        let gone = routes.gone.clone().map(ProcessMsg::SpawnerLost);
        let mut route = Route::Actor(actor);
        let waiting = match routes.routes.remove(&process) {
            Some(Route::Announced(waiting)) => waiting,
            _ => Vec::new(),
        };
        for message in waiting.into_iter().chain(gone) {
            route.tell(message);
        }
        routes.routes.insert(process, route);
    }

    /// A process is about to be asked for: what is heard of it is kept until its actor is there.
    pub(crate) fn announce(&self, process: Uuid) {
        lock(&self.routes)
            .routes
            .insert(process, Route::Announced(Vec::new()));
    }

    /// Nobody will be there for a process that was asked for: nothing of it may live.
    pub(crate) fn disown(&self, process: Uuid) {
        self.remove_route(process);
        self.post(Request::Kill { process }, None, None);
    }

    /// The record of a process is written down: a keeper need not know it any more.
    pub(crate) fn forget(&self, process: Uuid) {
        if self.is_keeper {
            self.post(Request::Forget { process }, None, None);
        }
    }

    /// A keeper's own copies of these descriptors are not needed any more.
    pub(crate) fn release(&self, process: Uuid, what: Kept) {
        if self.is_keeper {
            self.post(Request::Release { process, what }, None, None);
        }
    }

    /// The pid of the spawner or keeper.
    pub(crate) fn pid(&self) -> u32 {
        self.spawner.get_ref().pid()
    }

    /// Why nothing will be heard any more.
    pub(crate) fn gone(&self) -> Option<String> {
        lock(&self.routes).gone.clone()
    }

    /// Everything that was asked for has been sent.
    pub(crate) fn is_idle(&self) -> bool {
        lock(&self.queue).is_empty()
    }

    /// Forgets a process.
    pub(crate) fn remove_route(&self, process: Uuid) {
        lock(&self.routes).routes.remove(&process);
    }

    /// Sends a request, now or as soon as there is room; requests keep their order. A process whose start could not
    /// be asked for is told; a spawner that is gone is told by the routes.
    pub(crate) fn post(
        &self,
        request: Request,
        sandbox: Option<Arc<PreparedSandbox>>,
        stdin: Option<OwnedFd>,
    ) {
        let pending = Pending {
            request,
            sandbox,
            stdin,
        };
        let mut queue = lock(&self.queue);
        if queue.is_empty() && self.try_send(&pending) {
            return;
        }
        queue.push_back(pending);
        self.queued.notify_one();
    }

    /// False when there is no room.
    fn try_send(&self, pending: &Pending) -> bool {
        let mut fds = pending
            .sandbox
            .as_ref()
            .map(|sandbox| sandbox.rulesets())
            .unwrap_or_default();
        fds.extend(pending.stdin.as_ref().map(AsFd::as_fd));
        match self.spawner.get_ref().send(&pending.request, &fds) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) => {
                tracing::warn!(%error, "cannot send to the spawner");
                if let Request::Spawn(request) = &pending.request {
                    let reason = format!("the spawner process could not be asked: {error}");
                    self.tell(request.process, ProcessMsg::NotAsked(reason));
                }
                true
            }
        }
    }

    fn tell(&self, process: Uuid, message: ProcessMsg) {
        if let Some(route) = lock(&self.routes).routes.get_mut(&process) {
            route.tell(message);
        }
    }

    /// Nothing will be heard any more: says so to every process there is and will be. A spawner that still lives
    /// cannot be understood, so it is made to end what it holds.
    fn give_up(&self, reason: &str) {
        self.spawner.get_ref().leave();
        let mut routes = lock(&self.routes);
        routes.gone = Some(reason.to_owned());
        for route in routes.routes.values_mut() {
            // Those without an actor yet are told when they get one.
            if let Route::Actor(_) = route {
                route.tell(ProcessMsg::SpawnerLost(reason.to_owned()));
            }
        }
    }
}

/// Hears everything that a keeper holds.
async fn take_inventory(spawner: &AsyncFd<Spawner>, inventory: &mut Inventory) -> io::Result<()> {
    loop {
        match receive(spawner).await? {
            Some((Notice::Held(held), fds)) => {
                inventory.trees.insert(held.process, (held.state, fds));
            }
            Some((Notice::HeldNamed { name }, mut fds)) => {
                inventory.named.extend(fds.pop().map(|fd| (name, fd)));
            }
            Some((Notice::HeldAll { .. }, _)) => return Ok(()),
            Some(_) => return Err(io::Error::other("it spoke out of turn")),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

async fn receive(spawner: &AsyncFd<Spawner>) -> io::Result<Option<(Notice, Vec<OwnedFd>)>> {
    loop {
        let mut ready = spawner.readable().await?;
        match ready.try_io(|fd| fd.get_ref().receive()) {
            Ok(result) => return result,
            Err(_would_block) => {}
        }
    }
}

/// Routes notices until the spawner is gone, and then says so to every process.
async fn route_notices(link: Arc<SpawnerLink>) {
    let reason = loop {
        match receive(&link.spawner).await {
            Ok(Some((notice, fds))) => {
                let process = match &notice {
                    // What only a keeper says is not of a process that anybody here waits for.
                    Notice::Hello { .. }
                    | Notice::Welcome { .. }
                    | Notice::HeldNamed { .. }
                    | Notice::HeldAll { .. }
                    | Notice::NotHeld { .. } => continue,
                    Notice::Held(held) => held.process,
                    Notice::Started(started) => started.process,
                    Notice::Failed { process, .. }
                    | Notice::Duplicate { process }
                    | Notice::Exited { process, .. }
                    | Notice::Ended { process, .. } => *process,
                };
                link.tell(process, ProcessMsg::Notice(notice, fds));
            }
            Ok(None) => break "the spawner process ended".to_owned(),
            Err(error) => break format!("the spawner process cannot be understood: {error}"),
        }
    };
    link.give_up(&reason);
}

async fn send_queued(link: Arc<SpawnerLink>) {
    loop {
        link.queued.notified().await;
        loop {
            let Ok(mut ready) = link.spawner.writable().await else {
                return;
            };
            let mut queue = lock(&link.queue);
            match queue.front() {
                None => break,
                Some(pending) if link.try_send(pending) => drop(queue.pop_front()),
                Some(_) => ready.clear_ready(),
            }
        }
    }
}

/// These locks guard plain data that no panic leaves half-changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
