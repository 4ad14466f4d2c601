//! Leaving: the daemon ends, and another one goes on where it has stopped. Processes, sessions and the keeper stay.
//!
//! It is the death that a daemon survives at any instant, with some manners: answers under way are finished, clients are told,
//! and the socket goes on taking connections, for whoever comes next.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use provost_sandbox::keeper::wire;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{Client, notification};
use super::{Daemon, listen};
use crate::protocol::{DaemonLeave, DaemonLeaves, ErrorKind, RpcError};
use crate::store::SCHEMA_VERSION;

/// How long answers under way may take.
const ANSWERS: Duration = Duration::from_millis(300);
/// How long clients may take to read what was said last.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How far the daemon is with leaving.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    /// What a successor finds. Absent where none can come: this daemon has no socket of its own.
    place: OnceLock<Place>,
    asked: watch::Sender<Option<DaemonLeave>>,
    /// No request is taken any more.
    pub(super) begun: CancellationToken,
}

/// What a successor finds.
#[derive(Debug)]
pub struct Place {
    /// The state directory.
    pub state_dir: std::path::PathBuf,
    /// What the service manager of this daemon is told through.
    pub notify_socket: Option<String>,
    /// How often it wants to hear of it.
    pub watchdog: Option<Duration>,
}

/// Held from before anything is taken up until everything has stopped.
///
/// Dropped before that, because of an error or a panic, it ends the process there and then, and what it holds is not dropped: the
/// daemon, where its processes survive it. Its actors would take their being dropped for the end of what they supervise, and
/// kill it and seal it as lost. So everything goes on, for the next daemon.
#[derive(Debug)]
#[must_use = "to drop it ends the process"]
pub struct Unstopped<T = Daemon>(Option<T>);

/// The exit code of a daemon that ends that way.
const FAILED: i32 = 125;

impl<T> Unstopped<T> {
    /// Everything was stopped on purpose: the process may end as it likes.
    pub fn stopped(mut self) {
        self.0 = None;
    }
}

impl<T> Drop for Unstopped<T> {
    fn drop(&mut self) {
        if self.0.is_some() {
            tracing::error!("the daemon fails; what it supervises goes on, for the next one");
            std::process::exit(FAILED);
        }
    }
}

impl Daemon {
    /// To be called before anything is taken up or started.
    pub fn unstopped(&self) -> Unstopped {
        Unstopped(self.is_durable().then(|| self.clone()))
    }

    /// From now on it can be asked to leave.
    pub fn may_leave(&self, place: Place) {
        let _ = self.0.leaving.place.set(place);
    }

    /// Somebody wants to take over. When this is answered the daemon begins to leave.
    pub(super) fn ask_to_leave(&self, asked: DaemonLeave) -> Result<DaemonLeaves, RpcError> {
        let what = "leave to another daemon";
        let refused = |why: String, hint: &str| RpcError::new(ErrorKind::Refused, what, why).hint(hint);
        let (Some(place), true) = (self.0.leaving.place.get(), self.is_durable()) else {
            let why = "what this daemon supervises would end with it";
            return Err(refused(
                why.to_owned(),
                "stop it, which ends its processes by their stop rules",
            ));
        };
        if asked.keeper_protocol != wire::VERSION {
            let (theirs, ours) = (asked.keeper_protocol, wire::VERSION);
            let why =
                format!("the keeper of what runs speaks version {ours}, and the other daemon {theirs}");
            return Err(refused(
                why,
                "stop this one instead, when nothing runs that must go on",
            ));
        }
        if asked.schema < SCHEMA_VERSION {
            let why = format!(
                "the database has version {SCHEMA_VERSION}, and the other daemon reads {}",
                asked.schema
            );
            return Err(refused(why, "take over with a program that is not older"));
        }
        let same = |one: &Path, other: &Path| matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other);
        if !same(Path::new(&asked.state_dir), &place.state_dir) {
            let why = format!(
                "everything is kept in {}, not in {}",
                place.state_dir.display(),
                asked.state_dir
            );
            return Err(refused(why, "name the same --state-dir"));
        }
        if self.0.stopping.is_cancelled() {
            return Err(RpcError::new(
                ErrorKind::ShuttingDown,
                what,
                "the daemon is stopping",
            ));
        }
        let first = self.0.leaving.asked.send_if_modified(|asker| {
            let first = asker.is_none();
            asker.get_or_insert(asked);
            first
        });
        if !first {
            let why = "it is leaving to another one already";
            return Err(RpcError::new(ErrorKind::Conflict, what, why).hint("try again in a moment"));
        }
        Ok(DaemonLeaves {
            pid: std::process::id(),
            notify_socket: place.notify_socket.clone(),
            watchdog_usec: place
                .watchdog
                .map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
        })
    }

    /// Waits until somebody wants to take over.
    pub async fn asked_to_leave(&self) -> DaemonLeave {
        let mut asked = self.0.leaving.asked.subscribe();
        match asked.wait_for(Option::is_some).await.map(|asker| asker.clone()) {
            Ok(Some(asker)) => asker,
            // The sender is ours.
            _ => std::future::pending().await,
        }
    }

    /// What it has outlives it.
    pub(super) fn is_durable(&self) -> bool {
        self.0.tree.keeping().is_some()
    }

    /// Takes no more requests, finishes what it can, and tells every client. What is left to do is to end, at once and without
    /// tidying up: what the actors hold must not be dropped, for that would end it.
    pub async fn leave(&self) {
        self.0.leaving.begun.cancel();
        self.0.connections.close();
        let leaving = async { tokio::join!(self.0.connections.wait(), self.settle_jobs()) };
        let _ = tokio::time::timeout(ANSWERS + LAST_WORDS, leaving).await;
        // Records that are not in the database yet are in the spool.
    }

    /// Has the socket kept for whoever comes next, so that nobody is refused meanwhile.
    pub fn leave_socket(&self, socket: OwnedFd, made: bool) {
        let name = if made {
            listen::HELD_MADE
        } else {
            listen::HELD_PASSED
        };
        if !self.0.tree.hold(name, socket) {
            tracing::warn!("the socket cannot be handed over: for a moment clients are refused");
        }
    }
}

/// The end of a connection because the daemon leaves. What it holds stays held, as far as the database knows.
pub(super) async fn say_goodbye(client: &Client, answers: &TaskTracker) {
    client
        .outbox
        .push(&notification("daemon/leaving", &json!({ "reconnect": true })));
    answers.close();
    let _ = tokio::time::timeout(ANSWERS, answers.wait()).await;
}

/// Requests that wait for something to happen, and are asked again of whoever comes next.
pub(super) fn waits(method: &str) -> bool {
    matches!(
        method,
        "process/wait" | "process/read" | "session/close" | "session/clean" | "job/wait" | "job/cancel"
    )
}

/// How long the writer of a connection may take then.
pub(super) const fn last_words() -> Duration {
    LAST_WORDS
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Says that it was dropped.
    struct Actors;

    impl Drop for Actors {
        fn drop(&mut self) {
            println!("\nthe actors are dropped");
        }
    }

    /// How this test, run again in a process of its own, ends.
    const WAY: &str = "PROVOST_TEST_WAY";

    fn begin(way: &str) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let result: Result<(), String> = runtime.block_on(async {
            let unstopped = Unstopped(Some(Actors));
            match way {
                "stop" => unstopped.stopped(),
                "error" => Err("something fails")?,
                _ => panic!("something is wrong"),
            }
            Ok(())
        });
        drop(runtime);
        println!("\nthe runtime is dropped: {result:?}");
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "this test itself, for it ends its process"
    )]
    fn i8_a_daemon_that_fails_ends_before_anything_that_it_has_is_dropped() {
        if let Ok(way) = std::env::var(WAY) {
            return begin(&way);
        }
        let name =
            "daemon::leave::tests::i8_a_daemon_that_fails_ends_before_anything_that_it_has_is_dropped";
        for (way, code, drops) in [
            ("stop", 0, true),
            ("error", FAILED, false),
            ("panic", FAILED, false),
        ] {
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--nocapture"])
                .env(WAY, way)
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert_eq!(output.status.code(), Some(code), "{way}: {said}");
            assert_eq!(said.contains("the actors are dropped"), drops, "{way}: {said}");
            assert_eq!(said.contains("the runtime is dropped"), drops, "{way}: {said}");
        }
    }
}
