//! What systemd is told (`sd_notify`): ready, reloading, stopping, a status, and that the daemon is alive.
//!
//! The variables are read once and removed, so that nothing that is started inherits them; a program that knew the socket
//! could try to speak for the daemon.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use provost_sandbox::environment;
use sd_notify::NotifyState;
use tokio::time::MissedTickBehavior;

/// The way to the service manager; one to nobody where there is none.
#[derive(Debug, Default)]
pub struct Notifier {
    /// As it was given.
    socket: Option<OsString>,
    manager: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`, and removes them. To be called before there is a second
    /// thread.
    ///
    /// # Errors
    /// There is a second thread, or the socket's address makes no sense.
    pub fn take() -> io::Result<Self> {
        let watchdog = sd_notify::watchdog_enabled();
        let [socket, _, _] = environment::take(["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"])?;
        Self::new(socket.filter(|socket| !socket.is_empty()), watchdog)
    }

    fn new(socket: Option<OsString>, watchdog: Option<Duration>) -> io::Result<Self> {
        let Some(socket) = socket else {
            return Ok(Self::default());
        };
        let address = match socket.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(&socket)?,
            _ => {
                let why = "NOTIFY_SOCKET is neither a path nor an abstract name; unset it";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
        };
        let own = UnixDatagram::unbound()?;
        // A manager that reads nothing must not hold the daemon up.
        own.set_nonblocking(true)?;
        Ok(Self {
            socket: Some(socket),
            manager: Some((own, address)),
            watchdog,
        })
    }

    /// The one of the daemon before this one, which left to this; its own, if it has one.
    ///
    /// # Errors
    /// The socket's address makes no sense.
    pub fn or_that_of(self, socket: Option<OsString>, watchdog: Option<Duration>) -> io::Result<Self> {
        match (&self.manager, socket) {
            (None, Some(socket)) => Self::new(Some(socket), watchdog),
            _ => Ok(self),
        }
    }

    /// Where the service manager listens.
    pub fn socket(&self) -> Option<&OsStr> {
        self.socket.as_deref()
    }

    /// How often it wants to hear that the daemon is alive.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Another process is the service from now on.
    pub fn main_pid(&self, pid: u32) {
        self.send(&[NotifyState::MainPid(pid)]);
    }

    /// Clients can connect: at the start, and after a reload.
    pub fn ready(&self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    /// The configuration is being read again; [`Notifier::ready`] ends that.
    pub fn reloading(&self) {
        // The manager tells by the time which of its requests this answers.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "cannot read the clock"),
        }
    }

    /// Nothing new begins.
    pub fn stopping(&self, status: &str) {
        self.send(&[NotifyState::Stopping, NotifyState::Status(&one_line(status))]);
    }

    /// A line for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.send(&[NotifyState::Status(&one_line(status))]);
    }

    /// Whether a watchdog wants to hear that the daemon is alive.
    pub fn is_watched(&self) -> bool {
        self.watchdog.is_some()
    }

    /// Tells the watchdog that the daemon is alive, twice in each of its intervals, as long as the check says so. A check
    /// that does not answer is as bad as one that says no: nothing is sent, and the manager restarts the daemon. Returns at
    /// once where there is no watchdog, else never.
    pub async fn keep_alive(&self, mut is_healthy: impl AsyncFnMut() -> bool) {
        let Some(interval) = self.watchdog else { return };
        let mut ticks = tokio::time::interval((interval / 2).max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if is_healthy().await {
                self.send(&[NotifyState::Watchdog]);
            } else {
                tracing::error!(
                    "the daemon does not answer itself; the watchdog is not told that it is alive"
                );
            }
        }
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        let Some((own, address)) = &self.manager else {
            return;
        };
        let message: String = states.iter().map(|state| format!("{state}\n")).collect();
        if let Err(error) = own.send_to_addr(message.as_bytes(), address) {
            tracing::warn!(%error, "cannot tell the service manager");
        }
    }
}

/// A line break would begin another message.
fn one_line(status: &str) -> String {
    status.replace(|c: char| c.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn manager(watchdog: Option<Duration>) -> (tempfile::TempDir, UnixDatagram, Notifier) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let notifier = Notifier::new(Some(path.into()), watchdog).unwrap();
        (directory, socket, notifier)
    }

    /// What has arrived; sending and receiving are in one process, so it is there or was not sent.
    fn received(socket: &UnixDatagram) -> Option<String> {
        let mut bytes = [0; 4096];
        match socket.recv(&mut bytes) {
            Ok(length) => Some(String::from_utf8(bytes[..length].to_vec()).unwrap()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn states_arrive_as_the_manager_reads_them() {
        let (_directory, socket, notifier) = manager(None);
        notifier.ready("serving");
        assert_eq!(received(&socket).as_deref(), Some("READY=1\nSTATUS=serving\n"));
        let before = NotifyState::monotonic_usec_now().unwrap();
        notifier.reloading();
        let after = NotifyState::monotonic_usec_now().unwrap();
        let reloading = received(&socket).unwrap();
        let usec = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        let usec = NotifyState::MonotonicUsec(usec.trim().parse().unwrap());
        let number = |state: &NotifyState<'_>| match state {
            NotifyState::MonotonicUsec(usec) => *usec,
            other => panic!("{other}"),
        };
        assert!(
            (number(&before)..=number(&after)).contains(&number(&usec)),
            "{reloading}"
        );
        notifier.stopping("a\nREADY=1");
        assert_eq!(
            received(&socket).as_deref(),
            Some("STOPPING=1\nSTATUS=a READY=1\n")
        );
        notifier.status("");
        assert_eq!(received(&socket).as_deref(), Some("STATUS=\n"));
    }

    #[test]
    fn abstract_names_are_understood_and_nonsense_is_not() {
        let name = format!("provost-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        let notifier = Notifier::new(Some(format!("@{name}").into()), None).unwrap();
        notifier.status("x");
        assert_eq!(received(&socket).as_deref(), Some("STATUS=x\n"));
        assert!(Notifier::new(Some("vsock:2:1".into()), None).is_err());
    }

    #[tokio::test]
    async fn without_a_manager_nothing_is_sent_and_nothing_fails() {
        let notifier = Notifier::new(None, Some(Duration::from_secs(1))).unwrap();
        notifier.ready("x");
        notifier.keep_alive(async || unreachable!("nobody asked")).await;
    }

    #[tokio::test]
    async fn the_watchdog_hears_of_the_daemon_only_while_it_is_healthy() {
        let (_directory, socket, notifier) = manager(Some(Duration::from_millis(2)));
        let checks = Cell::new(0);
        let (asked, mut was_asked) = tokio::sync::mpsc::unbounded_channel();
        let alive = notifier.keep_alive(async || {
            checks.set(checks.get() + 1);
            match checks.get() {
                1 => true,
                2 => false,
                // It hangs.
                _ => {
                    asked.send(()).unwrap();
                    std::future::pending().await
                }
            }
        });
        tokio::select! {
            () = alive => unreachable!("it goes on"),
            asked = was_asked.recv() => asked.unwrap(),
        }
        // One answer was yes.
        assert_eq!(received(&socket).as_deref(), Some("WATCHDOG=1\n"));
        assert_eq!(received(&socket), None);
    }
}
