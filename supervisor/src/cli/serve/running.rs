//! The daemon while it serves: what signals and successors make of it.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener as Socket;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::mpsc::Receiver;

use super::super::replace::Program;
use crate::daemon::config::{Flags, ServeConfig, Surroundings};
use crate::daemon::logging::LogLevel;
use crate::daemon::notify::Notifier;
use crate::daemon::signals::Order;
use crate::daemon::{Broker, Daemon};

/// How long a graceful end may still take once somebody has asked a second time.
const AT_ONCE: Duration = Duration::from_millis(1);

/// A daemon that serves, and how it was configured.
pub(super) struct Running {
    pub(super) daemon: Daemon,
    /// Root's hands connections on.
    pub(super) broker: Option<Broker>,
    pub(super) level: LogLevel,
    pub(super) flags: Flags,
    pub(super) surroundings: Surroundings,
    /// As it was last read.
    pub(super) config: ServeConfig,
    /// What it does, in words.
    pub(super) place: String,
    /// What it is.
    pub(super) program: Program,
    /// The socket, for whoever comes next, and whether it was made here. Nobody comes next when this one stops.
    pub(super) kept: Option<(Socket, bool)>,
}

impl Running {
    /// Serves until everything has stopped.
    pub(super) async fn serve(
        mut self,
        socket: UnixListener,
        mut orders: Receiver<Order>,
        notifier: &Notifier,
    ) {
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
                    let stopped = self.daemon.stop_now();
                    if self.broker.is_none() {
                        return stopped.await;
                    }
                    // Instances that do not stop are killed, with what they have left.
                    tokio::join!(stopped, &mut serving);
                    return;
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
                let hidden = std::mem::take(&mut self.config.settings.hidden);
                self.config.settings = next.settings;
                self.config.settings.hidden = hidden;
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
