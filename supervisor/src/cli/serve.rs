//! `provost serve`: the daemon in the foreground, and what it has to do with whoever started it.

mod running;

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use provost_sandbox::keeper::{protect_daemon, settle_in_leaf};
use tokio::net::UnixListener;

use self::running::Running;
use super::CliResult;
use super::args::ServeArgs;
use super::replace::{self, Program};
use crate::Supervisor;
use crate::daemon::config::{Flags, MetricsAddress, ServeConfig, Surroundings};
use crate::daemon::listen::{self, ListenError, Listening};
use crate::daemon::lock::InstanceLock;
use crate::daemon::logging;
use crate::daemon::metrics;
use crate::daemon::notify::Notifier;
use crate::daemon::signals;
use crate::daemon::state::StateDir;
use crate::daemon::{
    Broker, Daemon, InstancePlace, NOT_NEEDED, Place, Recovered, Settings, Unstopped, UserDirectories,
    become_instance, introduction, is_needed,
};
use crate::store;

/// How long a daemon that has just left may take until nothing is left of it.
const LAST_LOCK: Duration = Duration::from_secs(5);
/// Between two looks whether it has: an address that is in use tells nobody when it is free.
const LOOK: Duration = Duration::from_millis(5);

pub(super) fn run(args: ServeArgs) -> CliResult {
    if let Some(uid) = args.instance_of {
        return instance_of(uid, args);
    }
    // What is removed from the environment can be removed only before there are threads, and must be before anything is
    // started.
    let program = Program::this().map_err(|error| format!("cannot find this program: {error}"))?;
    let mut notifier = Notifier::take().map_err(|error| error.to_string())?;
    let passed = listen::passed().map_err(|error| error.to_string())?;
    let surroundings = Surroundings::here();
    let flags = flags(&args);
    let config = match args.instance {
        // Its broker tells it the rest; what its user has configured is for that user's own daemon.
        true => ServeConfig::without_file(&flags, &surroundings),
        false => ServeConfig::resolve(&flags, &surroundings),
    };
    let mut config = config.map_err(|error| error.to_string())?;
    if args.check {
        return super::client::print_line(&replace::check(&config)?);
    }
    let mut audit = None;
    if args.instance {
        let told = introduction(std::io::stdin().as_fd());
        let Some(told) = told.map_err(|error| error.to_string())? else {
            return Ok(0);
        };
        config.settings = told.configuration.settings;
        config.disk_full = told.configuration.disk_full;
        audit = told.audit;
    }
    let level = logging::set_up(&config.log, config.log_format)?;
    settle_in_leaf();
    // Whoever serves one client on stdin and stdout ends with it, unless it is told where to keep things.
    let alone = args.stdio || args.instance;
    let durable = config.durable && (!alone || args.state_dir.is_some());
    let state = match (durable, &config.state_dir) {
        (false, _) => None,
        (true, None) => {
            return Err(
                "there is no place for a state directory: set HOME, name one with --state-dir, or \
                        keep everything in memory with --no-state"
                    .to_owned(),
            );
        }
        (true, Some(path)) => {
            if args.replace {
                notifier = replace::ask_to_leave(&config, notifier)?;
            }
            // An instance of an earlier broker leaves as soon as it sees that it has lost it.
            let patience = match args.replace || args.instance {
                true => replace::LEAVE_MAX,
                false => Duration::ZERO,
            };
            let ended_max = config.settings.ended_max;
            let state = StateDir::open(path, config.disk_full, ended_max, patience);
            Some(state.map_err(|error| error.to_string())?)
        }
    };
    // Before there are threads: the spawner is a fork of this program.
    let (supervisor, state) = match state {
        Some(StateDir {
            keeping,
            database,
            lock,
        }) => (Supervisor::builder().keeping(keeping), Some((database, lock))),
        None => (Supervisor::builder(), None),
    };
    let supervisor = supervisor.launch().map_err(|error| error.to_string())?;
    allow_descriptors();
    if !args.stdio {
        protect_daemon();
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = super::runtime(processors)?;
    let result = runtime.block_on(async {
        if args.instance {
            let control = std::io::stdin().as_fd().try_clone_to_owned();
            let control = control.map_err(|error| format!("cannot listen to the broker: {error}"))?;
            let supervisor = supervisor.start().await.map_err(|error| error.to_string())?;
            let (daemon, unstopped) = begin(&supervisor, config.settings, state, audit).await?;
            daemon.serve_instance(control, &level).await;
            unstopped.stopped();
            return Ok(0);
        }
        if args.stdio {
            config.settings.hidden = own_paths(&config, durable, None);
            let supervisor = supervisor.start().await.map_err(|error| error.to_string())?;
            let (daemon, unstopped) = begin(&supervisor, config.settings, state, None).await?;
            daemon
                .serve_streams(tokio::io::stdin(), tokio::io::stdout())
                .await;
            daemon.stop_now().await;
            unstopped.stopped();
            return Ok(0);
        }
        // From here on a signal is an order, also one that comes while this starts.
        let orders = signals::watch().map_err(|error| format!("cannot listen for signals: {error}"))?;
        let supervisor = supervisor.start().await.map_err(|error| error.to_string())?;
        // Nothing is taken up before all is there that may be missing: who gives up here leaves everything with the keeper.
        let listening = listening(&supervisor, passed, &config, args.replace)?;
        // The file, if it is ours, goes when everything has stopped.
        let (socket, made) = listening.split();
        let kept = socket
            .try_clone()
            .map_err(|error| format!("cannot listen: {error}"))?;
        let socket =
            UnixListener::from_std(socket).map_err(|error| format!("cannot listen: {error}"))?;
        let metrics = match &config.metrics {
            Some(address) => Some(bind_metrics(address, args.replace).await?),
            None => None,
        };
        config.settings.hidden = own_paths(&config, durable, Some(&socket));
        let is_root = nix::unistd::geteuid().is_root();
        let users = match (&state, &config.state_dir) {
            (Some(_), Some(path)) if is_root => {
                Some(UserDirectories::open(path).map_err(|error| error.to_string())?)
            }
            _ => None,
        };
        let (daemon, unstopped) = begin(&supervisor, config.settings.clone(), state, None).await?;
        if let (Some(tree), true) = (supervisor.tree(), durable) {
            tree.let_go(listen::HELD_MADE);
            tree.let_go(listen::HELD_PASSED);
        }
        if let (true, Some(state_dir)) = (durable, &config.state_dir) {
            daemon.may_leave(Place {
                state_dir: state_dir.clone(),
                notify_socket: notifier
                    .socket()
                    .and_then(|socket| socket.to_str().map(str::to_owned)),
                watchdog: notifier.watchdog(),
            });
        }
        let broker = is_root.then(|| {
            let executable = program.path().to_owned();
            let (log, disk_full) = (config.log.clone(), config.disk_full);
            Broker::new(daemon.clone(), executable, log, users, disk_full)
        });
        match (metrics, &broker) {
            (Some(metrics), Some(broker)) => metrics.serve(broker.clone()),
            (Some(metrics), None) => metrics.serve(daemon.clone()),
            (None, _) => {}
        }
        let place = match &made {
            Some(made) => format!("listening on {}", made.path().display()),
            None => "listening on the socket that was passed".to_owned(),
        };
        let running = Running {
            daemon,
            broker,
            level,
            flags,
            surroundings,
            config,
            place,
            program,
            kept: Some((kept, made.is_some())),
        };
        running.serve(socket, orders, &notifier).await;
        unstopped.stopped();
        Ok(0)
    });
    // Everything has stopped, or somebody does not want to wait: not for a thread that reads stdin or waits for an instance either.
    runtime.shutdown_background();
    result
}

/// Becomes an instance of this user's, or says whether one is needed.
fn instance_of(uid: u32, args: ServeArgs) -> CliResult {
    let why = match (args.instance_needed, &args.state_dir) {
        (true, Some(state_dir)) => match is_needed(uid, state_dir) {
            Ok(needed) => return Ok(if needed { 0 } else { NOT_NEEDED }),
            Err(error) => error,
        },
        _ => become_instance(
            uid,
            &InstancePlace {
                group: args.instance_group,
                group_again: args.instance_group_again,
                state_dir: args.state_dir,
            },
        ),
    };
    Err(format!("cannot become uid {uid}: {why}"))
}

/// What no confined process gets: where everything is kept, what is listened on, and the configuration.
fn own_paths(config: &ServeConfig, durable: bool, socket: Option<&UnixListener>) -> Vec<OsString> {
    let listening = socket.and_then(|socket| socket.local_addr().ok());
    let listening = listening.as_ref().and_then(|address| address.as_pathname());
    let socket_lock = listening.map(|path| {
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        PathBuf::from(lock)
    });
    let metrics = match &config.metrics {
        Some(MetricsAddress::Unix(path)) => Some(path.clone()),
        _ => None,
    };
    let state_dir = config.state_dir.clone().filter(|_| durable);
    let listening = listening.map(PathBuf::from);
    let own = [state_dir, listening, socket_lock, config.file.clone(), metrics];
    own.into_iter().flatten().map(PathBuf::into_os_string).collect()
}

fn flags(args: &ServeArgs) -> Flags {
    Flags {
        config: args.config.clone(),
        socket: args.socket.clone(),
        group: args.group.clone(),
        state_dir: args.state_dir.clone(),
        no_state: args.no_state,
        log: args.log.clone(),
        log_format: args.log_format,
    }
}

/// As many descriptors as this process may have: some for each connection and each process. After the spawner was launched,
/// so that commands get what their daemon was given.
fn allow_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of descriptors");
    }
}

/// What there is of an earlier daemon.
type State = Option<(store::Opened, InstanceLock)>;

/// What to listen on: what was passed, what the daemon before had, or what is made here.
fn listening(
    supervisor: &Supervisor,
    passed: Option<Listening>,
    config: &ServeConfig,
    replaces: bool,
) -> Result<Listening, String> {
    let held = |name| {
        let held = supervisor.tree().and_then(|tree| tree.take_held(name));
        held.map(std::os::unix::net::UnixListener::from)
    };
    if let Some(passed) = passed {
        return Ok(passed);
    }
    if let Some(held) = held(listen::HELD_PASSED) {
        return listen::passed_before(held).map_err(|error| format!("cannot listen: {error}"));
    }
    let patience = if replaces { LAST_LOCK } else { Duration::ZERO };
    let (path, group) = (config.socket.as_deref(), config.group.as_deref());
    listen::open(path, group, held(listen::HELD_MADE), patience).map_err(|error| error.to_string())
}

/// Where metrics are served. A daemon that has just left may still have the address for a moment.
async fn bind_metrics(address: &MetricsAddress, replaces: bool) -> Result<metrics::Bound, String> {
    let deadline = Instant::now() + if replaces { LAST_LOCK } else { Duration::ZERO };
    loop {
        match metrics::bind(address).await {
            Ok(bound) => return Ok(bound),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(LOOK).await;
            }
            Err(error) => {
                return Err(format!(
                    "cannot serve metrics: {error}; free the address, or set another one (metrics)"
                ));
            }
        }
    }
}

/// Takes up what an earlier daemon has left, if it has. What fails, fails before that, and nothing may fail behind it: an error
/// would leave everything to the next daemon, and its words be lost.
async fn begin(
    supervisor: &Supervisor,
    settings: Settings,
    state: State,
    audit: Option<OwnedFd>,
) -> Result<(Daemon, Unstopped), String> {
    let (kept, loaded) = match state {
        Some((database, lock)) => {
            if let Some(aside) = &database.moved_aside {
                let aside = aside.display();
                tracing::error!(%aside, "the database was damaged: a new one is made of what the spool tells");
            }
            (Some((database.store, lock)), database.loaded)
        }
        None => (None, store::Loaded::default()),
    };
    let daemon = Daemon::new(supervisor, settings, kept).map_err(|error| error.to_string())?;
    if let Some(audit) = audit {
        daemon.use_audit(audit);
    }
    let left = daemon.find_left().await.map_err(|error| error.to_string())?;
    let unstopped = daemon.unstopped();
    let recovered = daemon.recover(loaded, left).await;
    if recovered != Recovered::default() {
        tracing::info!(?recovered, "taken up from an earlier daemon");
    }
    if let Err(error) = daemon.begin_jobs().await {
        tracing::error!(%error, "there are no jobs until the next start: the database cannot be read");
    }
    Ok((daemon, unstopped))
}

/// Where the daemon of this user listens.
#[allow(dead_code, reason = "for the verbs that are clients")]
pub(super) fn default_socket() -> Result<PathBuf, String> {
    Surroundings::here()
        .socket()
        .ok_or_else(|| ListenError::NoPath.to_string())
}
