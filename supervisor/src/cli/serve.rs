//! `provost serve`: the daemon in the foreground, and what it has to do with whoever started it.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use provost_sandbox::keeper::settle_in_leaf;
use tokio::net::UnixListener;
use tokio::sync::mpsc::Receiver;

use super::CliResult;
use super::args::ServeArgs;
use super::replace::{self, Program};
use crate::Supervisor;
use crate::daemon::config::{Flags, ServeConfig, Surroundings};
use crate::daemon::listen::{self, ListenError, Listening};
use crate::daemon::lock::InstanceLock;
use crate::daemon::logging::{self, LogLevel};
use crate::daemon::metrics;
use crate::daemon::notify::Notifier;
use crate::daemon::signals::{self, Order};
use crate::daemon::state::StateDir;
use crate::daemon::{Broker, Daemon, Place, Recovered, Settings, become_instance};
use crate::store;

/// How long a graceful end may still take once somebody has asked a second time.
const AT_ONCE: Duration = Duration::from_millis(1);
/// How long a daemon that has just left may take until nothing is left of it.
const LAST_LOCK: Duration = Duration::from_secs(5);

pub(super) fn run(args: ServeArgs) -> CliResult {
    if let Some(uid) = args.instance_of {
        let why = become_instance(uid, args.instance_group.as_deref());
        return Err(format!("cannot become uid {uid}: {why}"));
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
    let config = config.map_err(|error| error.to_string())?;
    if args.check {
        return super::client::print_line(&replace::check(&config)?);
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
            let patience = if args.replace {
                replace::LEAVE_MAX
            } else {
                Duration::ZERO
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
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = super::runtime(processors)?;
    let result = runtime.block_on(async {
        if args.instance {
            let daemon = start(supervisor, config.settings, state).await?;
            let control = std::io::stdin()
                .as_fd()
                .try_clone_to_owned()
                .map_err(|error| error.to_string())?;
            daemon.serve_instance(control, &level).await;
            return Ok(0);
        }
        if args.stdio {
            let daemon = start(supervisor, config.settings, state).await?;
            daemon
                .serve_streams(tokio::io::stdin(), tokio::io::stdout())
                .await;
            daemon.stop_now().await;
            return Ok(0);
        }
        // From here on a signal is an order, also one that comes while this starts.
        let orders = signals::watch().map_err(|error| format!("cannot listen for signals: {error}"))?;
        let supervisor = supervisor.start().await.map_err(|error| error.to_string())?;
        // Nothing is taken up before there is a place to serve at: who gives up here leaves everything with the keeper.
        let listening = listening(&supervisor, passed, &config, args.replace)?;
        // The file, if it is ours, goes when everything has stopped.
        let (socket, made) = listening.split();
        let kept = socket
            .try_clone()
            .map_err(|error| format!("cannot listen: {error}"))?;
        let socket =
            UnixListener::from_std(socket).map_err(|error| format!("cannot listen: {error}"))?;
        let daemon = begin(&supervisor, config.settings.clone(), state).await?;
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
        let broker = match nix::unistd::geteuid().is_root() {
            true => {
                let executable = std::env::current_exe().map_err(|error| error.to_string())?;
                Some(Broker::new(daemon.clone(), executable, config.log.clone()))
            }
            false => None,
        };
        if let Some(address) = &config.metrics {
            let served = match &broker {
                Some(broker) => metrics::serve(broker.clone(), address).await,
                None => metrics::serve(daemon.clone(), address).await,
            };
            served.map_err(|error| format!("cannot serve metrics: {error}"))?;
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
        Ok(0)
    });
    // Everything has stopped, or somebody does not want to wait: not for a thread that reads stdin or waits for an instance either.
    runtime.shutdown_background();
    result
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

async fn start(supervisor: crate::Builder, settings: Settings, state: State) -> Result<Daemon, String> {
    let supervisor = supervisor.start().await.map_err(|error| error.to_string())?;
    begin(&supervisor, settings, state).await
}

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

async fn begin(supervisor: &Supervisor, settings: Settings, state: State) -> Result<Daemon, String> {
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
    let recovered = daemon.recover(loaded).await;
    if recovered != Recovered::default() {
        tracing::info!(?recovered, "taken up from an earlier daemon");
    }
    Ok(daemon)
}

/// A daemon that serves, and how it was configured.
struct Running {
    daemon: Daemon,
    /// Root's hands connections on.
    broker: Option<Broker>,
    level: LogLevel,
    flags: Flags,
    surroundings: Surroundings,
    /// As it was last read.
    config: ServeConfig,
    /// What it does, in words.
    place: String,
    /// What it is.
    program: Program,
    /// The socket, for whoever comes next, and whether it was made here. Nobody comes next when this one stops.
    kept: Option<(std::os::unix::net::UnixListener, bool)>,
}

impl Running {
    /// Serves until everything has stopped.
    async fn serve(mut self, socket: UnixListener, mut orders: Receiver<Order>, notifier: &Notifier) {
        let (daemon, broker) = (self.daemon.clone(), self.broker.clone());
        let serving = async {
            match broker {
                Some(broker) => broker.serve(socket).await,
                None => daemon.serve(socket).await,
            }
        };
        tokio::pin!(serving);
        tracing::info!(pid = std::process::id(), "{}", self.place);
        notifier.ready(&self.place);
        // It goes on while the daemon stops, which may take long. Without a watchdog it never says anything.
        let checked = self.daemon.clone();
        let alive = notifier.keep_alive(async || checked.is_healthy().await);
        tokio::pin!(alive);
        let asked = self.daemon.clone();
        loop {
            let order = tokio::select! {
                successor = asked.asked_to_leave() => {
                    tracing::info!(successor = successor.pid, "leaving to another daemon");
                    notifier.main_pid(successor.pid);
                    self.leave().await;
                    std::process::exit(0);
                }
                () = &mut serving => return,
                () = &mut alive, if notifier.is_watched() => continue,
                order = orders.recv() => order,
            };
            match order {
                Some(Order::Reload) => self.reload(notifier),
                Some(Order::Replace) if self.kept.is_some() && self.can_replace(notifier).await => {
                    self.leave().await;
                    let error = self.program.exec(notifier);
                    tracing::error!(%error, "the new program cannot be started; everything waits for the next daemon");
                    std::process::exit(1);
                }
                // Refused, or everything stops already.
                Some(Order::Replace) => {}
                Some(Order::Stop) => {
                    tracing::info!("stopping");
                    notifier.stopping("waiting for processes to stop");
                    self.kept = None;
                    self.daemon.stop();
                }
                Some(Order::StopNow) | None => {
                    tracing::warn!("stopping at once");
                    notifier.stopping("killing processes");
                    self.kept = None;
                    self.config.settings.stop_timeout = AT_ONCE;
                    self.reconfigure();
                    return self.daemon.stop_now().await;
                }
            }
        }
    }

    /// Whether the program on disk can take over. If not, everything stays as it is.
    async fn can_replace(&self, notifier: &Notifier) -> bool {
        notifier.reloading();
        let program = self.program.clone();
        let durable = self.config.durable && self.config.state_dir.is_some();
        let checked = match durable {
            true => tokio::task::spawn_blocking(move || program.check()).await,
            false => Ok(Err(
                "what runs would end with the daemon, which keeps nothing".to_owned()
            )),
        };
        match checked.map_err(|error| error.to_string()).flatten() {
            Ok(()) => {
                tracing::info!("becoming the program that is on disk");
                true
            }
            Err(why) => {
                tracing::error!(why, "the daemon stays as it is");
                notifier.ready(&format!("{}; it cannot be replaced: {why}", self.place));
                false
            }
        }
    }

    /// Leaves everything as it is, for whoever comes next. Nothing may be dropped behind this: the process has to end.
    async fn leave(&self) {
        match &self.broker {
            Some(broker) => broker.leave().await,
            None => self.daemon.leave().await,
        }
        let Some((socket, made)) = &self.kept else { return };
        match socket.as_fd().try_clone_to_owned() {
            Ok(socket) => self.daemon.leave_socket(socket, *made),
            Err(error) => tracing::warn!(%error, "the socket cannot be handed over"),
        }
    }

    fn reconfigure(&self) {
        let settings = &self.config.settings;
        match &self.broker {
            Some(broker) => broker.reconfigure(settings, &self.config.log),
            None => self.daemon.reconfigure(settings.clone()),
        }
    }

    /// Reads the configuration again. What is wrong with it changes nothing.
    fn reload(&mut self, notifier: &Notifier) {
        notifier.reloading();
        match ServeConfig::resolve(&self.flags, &self.surroundings) {
            Ok(next) => {
                for key in self.config.needs_restart(&next) {
                    tracing::warn!(key, "this change takes effect with a restart only");
                }
                if let Err(error) = self.level.set(&next.log) {
                    tracing::error!(error, "what is logged stays as it is");
                }
                // What needs a restart is as it was, and is said again next time.
                self.config.log = next.log;
                self.config.settings = next.settings;
                self.reconfigure();
                tracing::info!("the configuration was read again");
                notifier.ready(&self.place);
            }
            Err(error) => {
                tracing::error!(%error, "the configuration stays as it is");
                notifier.ready(&format!("{}; the configuration is wrong: {error}", self.place));
            }
        }
    }
}

/// Where the daemon of this user listens.
#[allow(dead_code, reason = "for the verbs that are clients")]
pub(super) fn default_socket() -> Result<PathBuf, String> {
    Surroundings::here()
        .socket()
        .ok_or_else(|| ListenError::NoPath.to_string())
}
