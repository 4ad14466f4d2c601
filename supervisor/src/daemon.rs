//! The daemon: one user's sessions and processes, for many clients over a Unix socket.
//!
//! ```text
//! connection ──► requests ──► Daemon { leases, processes } ──► actors
//!     ▲                                    │
//!     └── outbox ◄── followers ◄── cursors in the processes' logs
//! ```
//!
//! Recording never depends on a client: followers read the logs with cursors, and what a client does not take waits in its
//! own outbox, which is bounded, and then in the log, which is, too.

mod approvals;
mod broker;
pub mod config;
mod connection;
mod follow;
mod forget;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod house;
mod input;
mod instance;
mod jobs;
mod leave;
mod line;
pub mod listen;
mod live;
pub mod lock;
pub mod logging;
pub mod metrics;
pub mod notify;
mod outbox;
mod peer;
mod processes;
mod recover;
mod requests;
mod retention;
mod sessions;
pub mod signals;
mod start;
pub mod state;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use provost_actors::event::ProcessId;
use provost_actors::session::{Holder, Leases, SessionId};
use provost_actors::{SessionLink, Tree};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::broker::{Broker, UserDirectories, UsersError};
use self::follow::watch::Watcher;
use self::forget::Forgotten;
use self::house::{HOUSEKEEPING, House, Rounds};
pub use self::instance::{
    Configuration, InstancePlace, Introduction, NOT_NEEDED, become_instance, introduction, is_needed,
};
use self::jobs::Jobs;
use self::leave::Leaving;
pub use self::leave::{Place, Unstopped};
use self::live::Live;
use self::metrics::Metrics;
use self::outbox::Outbox;
pub use self::peer::{ConfinedPeers, Peer};
use self::processes::Supervised;
pub use self::recover::{FindError, Left, Recovered};
use self::start::Starts;
use crate::decider::DECIDERS_MAX;
use crate::protocol::{ErrorKind, FRAME_BYTES_MAX, RpcError, ServerLimits, Status};
use crate::store::{SessionState, Store};
use crate::{Policy, PolicyError, Supervisor};

/// Between two attempts to accept a connection when that fails: the listener stays readable, and nothing tells when there are
/// descriptors again.
const ACCEPT_AGAIN: Duration = Duration::from_millis(20);
/// How long records may take into the database once the daemon stops.
const RECORDS: Duration = Duration::from_secs(5);
/// How long the graceful end of a connection may take once the daemon stops.
const GOODBYE: Duration = Duration::from_secs(1);

/// How a daemon is to behave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Connections of a user.
    pub clients_max: usize,
    /// Requests of a connection in work at the same time.
    pub requests_max: usize,
    /// The longest line, in bytes.
    pub frame_bytes_max: usize,
    /// Live processes.
    pub processes_max: usize,
    /// Bytes of each stream that are kept, unless a start says less.
    pub output_bytes: u64,
    /// Bytes of output that are kept in all, shared fairly by the sessions.
    pub memory_bytes: u64,
    /// Bytes of output that a session keeps with its parts; those that are kept in all, if absent.
    pub session_bytes: Option<u64>,
    /// Processes that have ended and are remembered.
    pub ended_max: usize,
    /// Processes that ended so long ago are forgotten by the database.
    pub records_age: Duration,
    /// Bytes of records, denials and output of ended processes that the database and the disk keep.
    pub records_bytes: u64,
    /// How long everything may take to stop when the daemon does.
    pub stop_timeout: Duration,
    /// How long a session that stops with its client waits for that to come back when the daemon has died.
    pub reattach: Duration,
    /// What clients get that are confined themselves.
    pub confined_peers: ConfinedPeers,
    /// Paths of the daemon's own, which no confined process gets: see [`Policy::hide`](crate::Policy::hide).
    pub hidden: Vec<OsString>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            clients_max: 256,
            requests_max: 64,
            frame_bytes_max: FRAME_BYTES_MAX,
            processes_max: 4000,
            output_bytes: 256 << 10,
            memory_bytes: 128 << 20,
            session_bytes: None,
            ended_max: 10_000,
            records_age: Duration::from_secs(30 * 24 * 3600),
            records_bytes: 1 << 30,
            stop_timeout: Duration::from_secs(30),
            reattach: Duration::from_secs(30),
            confined_peers: ConfinedPeers::Refuse,
            hidden: Vec::new(),
        }
    }
}

impl Settings {
    /// Bytes of output that a session keeps at most.
    fn session_bytes(&self) -> u64 {
        self.session_bytes.unwrap_or(self.memory_bytes)
    }
}

/// A user as whom processes run.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) name: String,
    pub(crate) home: PathBuf,
    pub(crate) shell: PathBuf,
}

/// One user's daemon. Clones are the same.
#[derive(Debug, Clone)]
pub struct Daemon(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tree: Arc<Tree>,
    settings: Mutex<Settings>,
    account: Account,
    state: Mutex<State>,
    starts: Mutex<Starts>,
    /// Turns of the commands that answer what processes ask.
    deciders: Arc<Semaphore>,
    /// Nothing new begins any more.
    stopping: CancellationToken,
    /// Connections end.
    ended: CancellationToken,
    connections: TaskTracker,
    clients: AtomicUsize,
    next: AtomicU64,
    house: House,
    began: Instant,
    began_at: Timestamp,
    metrics: Arc<Metrics>,
    /// What survives us, if anything does.
    kept: Option<Kept>,
    leaving: Leaving,
    /// Set when it begins to serve.
    jobs: OnceLock<Jobs>,
}

/// What is needed of the state directory while the daemon runs.
#[derive(Debug)]
struct Kept {
    store: Store,
    _lock: lock::InstanceLock,
    /// Records on their way into the database.
    records: TaskTracker,
    /// Who holds sessions, as the database is to know: what was last told of each.
    changed: Mutex<BTreeMap<SessionId, (SessionState, Timestamp)>>,
}

#[derive(Debug, Default)]
struct State {
    leases: Leases<SessionLink>,
    processes: BTreeMap<ProcessId, Arc<Supervised>>,
    live: Live,
    /// Processes that are being started, with their names.
    starting: HashMap<u64, Option<String>>,
    /// Ended ones, in the order of their ends as far as that was noticed.
    ended: VecDeque<ProcessId>,
    forgotten: Forgotten,
    /// Those who can hold sessions and inputs: the connections.
    holders: HashMap<Holder, Connected>,
    /// Who holds the input of which process, as far as it may (see `input.rs`).
    inputs: HashMap<ProcessId, Holder>,
    /// Who follows many processes, by subscription.
    watchers: BTreeMap<u64, Watcher>,
}

/// A connection, as others see it.
#[derive(Debug)]
struct Connected {
    /// Where it is told of what it holds.
    outbox: Outbox,
    /// Who it is, as the kernel says.
    who: String,
}

impl Daemon {
    /// A daemon around a supervisor, which must be an embedded one.
    ///
    /// # Errors
    /// It is another daemon's, or the user is not known to this machine.
    pub fn new(
        supervisor: &Supervisor,
        settings: Settings,
        kept: Option<(Store, lock::InstanceLock)>,
    ) -> std::io::Result<Self> {
        Ok(Self(Arc::new(Inner {
            tree: supervisor.tree().ok_or_else(not_embedded)?,
            settings: Mutex::new(settings),
            account: Account::own()?,
            state: Mutex::default(),
            starts: Mutex::default(),
            deciders: Arc::new(Semaphore::new(DECIDERS_MAX)),
            stopping: CancellationToken::new(),
            ended: CancellationToken::new(),
            connections: TaskTracker::new(),
            clients: AtomicUsize::new(0),
            next: AtomicU64::new(1),
            house: House::default(),
            began: Instant::now(),
            began_at: Timestamp::now(),
            metrics: Arc::default(),
            kept: kept.map(|(store, lock)| Kept {
                store,
                _lock: lock,
                records: TaskTracker::new(),
                changed: Mutex::default(),
            }),
            leaving: Leaving::default(),
            jobs: OnceLock::new(),
        })))
    }

    /// Serves clients until it is told to stop, and stops everything.
    pub async fn serve(&self, listener: UnixListener) {
        let mut rounds = Rounds::default();
        loop {
            tokio::select! {
                () = self.0.stopping.cancelled() => break,
                () = rounds.next(&self.0.house, false) => self.keep_house(),
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.accept(stream),
                    Err(error) => {
                        // No descriptors are left: whoever waits goes on waiting, and nobody is lost.
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_AGAIN).await;
                    }
                },
            }
        }
        drop(listener);
        self.stop_everything().await;
    }

    /// Takes a connection. One too many is told so.
    pub fn accept(&self, stream: UnixStream) {
        let daemon = self.clone();
        self.0
            .connections
            .spawn(async move { connection::serve(daemon, stream).await });
    }

    /// Serves one client on any pair of streams, as the daemon's own user, until it ends.
    pub async fn serve_streams(
        &self,
        reader: impl tokio::io::AsyncRead + Unpin + Send + 'static,
        writer: impl tokio::io::AsyncWrite + Unpin + Send + 'static,
    ) {
        let who = "the client on standard input".to_owned();
        connection::talk(self.clone(), reader, writer, who, false).await;
    }

    /// Begins to stop: nothing new starts, sessions stop by their processes' own rules.
    pub fn stop(&self) {
        self.0.stopping.cancel();
    }

    /// Stops everything, as at the end of [`Daemon::serve`].
    pub async fn stop_now(&self) {
        self.stop();
        self.stop_everything().await;
    }

    /// Changes how it behaves from now on.
    pub fn reconfigure(&self, settings: Settings) {
        *lock(&self.0.settings) = settings;
    }

    /// Whether the actors answer: what a watchdog wants to know.
    pub async fn is_healthy(&self) -> bool {
        let session = self.0.tree.open_session("health".to_owned());
        match tokio::time::timeout(Duration::from_secs(5), session).await {
            Ok(Ok(session)) => {
                session.stop_all("health", true).await;
                session.close();
                true
            }
            _ => false,
        }
    }

    /// What it has.
    pub fn status(&self) -> Status {
        let (keeping, degraded) = (self.0.tree.keeping(), self.degraded());
        let state = self.state();
        let retained = state.processes.values().map(|process| process.retained()).sum();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uid: self.0.account.uid,
            uptime_ms: u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            clients: self.0.clients.load(Ordering::Relaxed),
            sessions: state.leases.len(),
            live: state
                .processes
                .values()
                .filter(|process| process.is_live())
                .count(),
            processes: state.processes.len(),
            retained_bytes: retained,
            state_dir: keeping.map(|keeping| keeping.directory().display().to_string()),
            keeper: self.0.tree.keeper().map(|(pid, _)| pid),
            degraded,
        }
    }

    /// Stops every session and every process, and tells every client.
    async fn stop_everything(&self) {
        let timeout = lock(&self.0.settings).stop_timeout;
        let sessions: Vec<SessionLink> = self
            .state()
            .leases
            .iter()
            .map(|(_, lease)| lease.value.clone())
            .collect();
        let stop = async {
            let stopping = sessions
                .iter()
                .map(|session| session.stop_all("the daemon stops", false));
            futures_util::future::join_all(stopping).await;
        };
        if tokio::time::timeout(timeout, stop).await.is_err() {
            tracing::warn!("killing what did not stop in time");
            let killing = sessions
                .iter()
                .map(|session| session.stop_all("the daemon stops", true));
            futures_util::future::join_all(killing).await;
        }
        self.0.tree.shutdown(timeout).await;
        if let Some(kept) = &self.0.kept {
            kept.records.close();
            let written = tokio::time::timeout(RECORDS, kept.records.wait()).await;
            if written.is_err() {
                tracing::error!("not every record is in the database yet; the spool has them");
            }
        }
        self.0.tree.dismiss_keeper();
        // Followers are told the last events before the connections end.
        self.0.connections.close();
        tokio::select! {
            () = self.0.connections.wait() => {}
            () = tokio::time::sleep(GOODBYE) => self.0.ended.cancel(),
        }
    }

    /// The time by a clock that nobody sets once the daemon has begun: delays and deadlines are kept by it, whatever becomes of
    /// the one on the wall.
    fn steady_now(&self) -> Timestamp {
        let elapsed = self.0.began.elapsed();
        self.0.began_at.checked_add(elapsed).unwrap_or(Timestamp::MAX)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }

    /// Takes from a policy what is the daemon's own.
    fn hide_own(&self, policy: &mut Policy) -> Result<(), PolicyError> {
        let hidden: Vec<PathBuf> = lock(&self.0.settings).hidden.iter().map(PathBuf::from).collect();
        policy.hide(&hidden)
    }

    fn settings(&self) -> Settings {
        lock(&self.0.settings).clone()
    }

    fn limits(&self) -> ServerLimits {
        let settings = lock(&self.0.settings);
        ServerLimits {
            frame_bytes: settings.frame_bytes_max,
            requests_in_flight: settings.requests_max,
            clients: settings.clients_max,
            processes: settings.processes_max,
        }
    }

    /// A number that nobody had before.
    fn next(&self) -> u64 {
        self.0.next.fetch_add(1, Ordering::Relaxed)
    }
}

fn not_embedded() -> std::io::Error {
    let why = "a daemon needs a supervisor of its own, not that of another daemon";
    std::io::Error::new(std::io::ErrorKind::InvalidInput, why)
}

/// A connection, as long as it is counted.
struct Count(Daemon);

impl Daemon {
    /// Counts a connection, unless there are too many.
    fn count_client(&self) -> Result<Count, RpcError> {
        let clients_max = lock(&self.0.settings).clients_max;
        let more = |clients: usize| (clients < clients_max).then_some(clients + 1);
        let counted = self
            .0
            .clients
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        match counted {
            Ok(_) => Ok(Count(self.clone())),
            Err(_) => {
                let why = format!("{clients_max} clients are connected already");
                Err(RpcError::new(ErrorKind::Limit, "connect", why)
                    .hint("try again when some have gone"))
            }
        }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.0.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Account {
    fn own() -> std::io::Result<Self> {
        let uid = nix::unistd::geteuid();
        let user = nix::unistd::User::from_uid(uid)?;
        Ok(match user {
            Some(user) => Self {
                uid: uid.as_raw(),
                name: user.name,
                home: user.dir,
                shell: user.shell,
            },
            // A container's user need not be in its files.
            None => Self {
                uid: uid.as_raw(),
                name: uid.to_string(),
                home: PathBuf::from("/"),
                shell: PathBuf::from("/bin/sh"),
            },
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
