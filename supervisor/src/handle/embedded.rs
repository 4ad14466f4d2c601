//! A supervisor of this program's own: its tree, the sessions in it, and which processes there are.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use provost_actors::approval::Verdict;
use provost_actors::session::{Holder, LeaseError, Leases, OpenSession, SessionId};
use provost_actors::{ProcessCommand, ProcessLink, SessionLink, ShutdownReport, Tree, WeakProcessLink};
use provost_sandbox::keeper::wire::SignalScope;
use provost_sandbox::kernel::KernelSupport;
use tokio::sync::oneshot;

use crate::error::Reason;
use crate::protocol::{self, ProcessInfo};
use crate::{Error, ProcessId, ProcessSpec, TerminalSize};

/// Here is one holder, who has everything.
const SELF: Holder = Holder(0);
/// Ended processes that are looked for, at least, before it is worth while.
const STALE_MIN: usize = 64;

/// The whole, or one session of it.
#[derive(Debug, Clone)]
pub(crate) struct Embedded {
    shared: Arc<Shared>,
    session: Option<SessionId>,
}

#[derive(Debug)]
struct Shared {
    tree: Arc<Tree>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sessions: Leases<SessionLink>,
    known: BTreeMap<ProcessId, Known>,
    /// Where there are more, it is looked which are over.
    known_max: usize,
    /// Set by a shutdown of the whole.
    closed: bool,
}

/// A process that lives, or that somebody has a handle of.
#[derive(Debug)]
struct Known {
    link: WeakProcessLink,
    info: ProcessInfo,
}

/// A process, and the tree that it lives in, which stays as long as somebody may ask.
#[derive(Debug, Clone)]
pub(crate) struct EmbeddedProcess {
    pub(super) link: ProcessLink,
    _tree: Arc<Tree>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Embedded {
    pub(crate) fn new(tree: Tree) -> Self {
        let (tree, state) = (Arc::new(tree), Mutex::default());
        Self {
            shared: Arc::new(Shared { tree, state }),
            session: None,
        }
    }

    #[cfg(feature = "cli")]
    pub(super) fn tree(&self) -> Arc<Tree> {
        self.shared.tree.clone()
    }

    pub(super) fn session_id(&self) -> Option<SessionId> {
        self.session
    }

    pub(super) async fn kernel(&self) -> KernelSupport {
        self.shared.tree.kernel().await.clone()
    }

    pub(super) async fn spawn(&self, spec: ProcessSpec) -> Result<EmbeddedProcess, Error> {
        let info = info(&spec, self.session);
        let what = || protocol::starting(&info.argv);
        let started = match self.session {
            None => self.shared.tree.spawn(spec).await,
            Some(id) => {
                let session = self
                    .shared
                    .state()
                    .sessions
                    .get(id)
                    .map(|lease| lease.value.clone());
                let session = session.ok_or_else(|| closed(what()))?;
                self.shared.tree.spawn_in(&session, spec).await
            }
        };
        let link = started.map_err(|error| Error::not_started(what(), error))?;
        self.shared.state().note(&link, info);
        Ok(self.handle(link))
    }

    pub(super) fn process(&self, id: ProcessId) -> Result<EmbeddedProcess, Error> {
        let link = self
            .shared
            .state()
            .known
            .get(&id)
            .and_then(|known| known.link.upgrade());
        link.map(|link| self.handle(link)).ok_or_else(|| {
            let what = format!("process `{id}`");
            Error::NotFound(Reason::new(what, "there is none of that id or name", ""))
        })
    }

    fn handle(&self, link: ProcessLink) -> EmbeddedProcess {
        EmbeddedProcess {
            link,
            _tree: self.shared.tree.clone(),
        }
    }

    pub(super) fn list(&self) -> Vec<ProcessInfo> {
        let state = self.shared.state();
        let within = self.session.map(|id| state.sessions.with_parts(id));
        let known = state.known.values().filter(|known| match &within {
            None => true,
            Some(sessions) => known.info.session.is_some_and(|id| sessions.contains(&id)),
        });
        known
            .filter_map(|known| {
                let link = known.link.upgrade()?;
                Some(known.info.clone().ended(link.record().as_deref()))
            })
            .collect()
    }

    pub(super) async fn open_session(&self) -> Result<Self, Error> {
        const WHAT: &str = "open session without a name";
        let id = SessionId::new();
        let link = self.shared.tree.open_session(id.to_string()).await?;
        let open = OpenSession {
            parent: self.session,
            ..OpenSession::default()
        };
        let opened = {
            let mut state = self.shared.state();
            match state.closed {
                true => Err(LeaseError::Absent),
                false => state.sessions.open(id, open, Some(SELF), link.clone()),
            }
        };
        match opened {
            Ok(()) => Ok(Self {
                shared: self.shared.clone(),
                session: Some(id),
            }),
            Err(error) => {
                link.close();
                Err(match error {
                    LeaseError::TooDeep => Error::Limit(Reason::new(WHAT, error.to_string(), "")),
                    _ => closed(WHAT.to_owned()),
                })
            }
        }
    }

    pub(super) async fn shutdown(&self, deadline: Duration) -> ShutdownReport {
        let sessions: Vec<SessionLink> = {
            let mut state = self.shared.state();
            let ids: Vec<SessionId> = match self.session {
                Some(id) => vec![id],
                None => {
                    state.closed = true;
                    state.sessions.iter().map(|(id, _)| id).collect()
                }
            };
            let closed = ids.into_iter().flat_map(|id| state.sessions.close(id));
            closed.map(|(_, lease)| lease.value).collect()
        };
        // In the words of a daemon.
        let reason = match self.session {
            Some(_) => "its session was closed",
            None => "the supervisor shuts down",
        };
        let stop_all = |kill| {
            let all = sessions.iter();
            join_all(all.map(move |session| session.stop_all(reason, kill)))
        };
        let in_sessions = async {
            let graceful = tokio::time::timeout(deadline, stop_all(false)).await.is_ok();
            if !graceful {
                stop_all(true).await;
            }
            ShutdownReport { graceful }
        };
        let report = match self.session {
            Some(_) => in_sessions.await,
            None => {
                let own = self.shared.tree.shutdown(deadline);
                let (own, parts) = tokio::join!(own, in_sessions);
                let graceful = own.graceful && parts.graceful;
                ShutdownReport { graceful }
            }
        };
        sessions.iter().for_each(SessionLink::close);
        report
    }
}

impl State {
    fn note(&mut self, link: &ProcessLink, info: ProcessInfo) {
        if self.known.len() >= self.known_max {
            self.known.retain(|_, known| known.link.upgrade().is_some());
            self.known_max = STALE_MIN.max(2 * self.known.len());
        }
        let info = ProcessInfo {
            process: link.id(),
            ..info
        };
        let Some(link) = link.downgrade() else { return };
        self.known.insert(info.process, Known { link, info });
    }
}

/// What a list shows of it; the id comes later.
fn info(spec: &ProcessSpec, session: Option<SessionId>) -> ProcessInfo {
    let text = |text: &OsStr| text.to_string_lossy().into_owned();
    ProcessInfo {
        process: ProcessId::new(),
        name: None,
        session,
        argv: spec.argv.iter().map(|word| text(word)).collect(),
        cwd: text(spec.cwd.as_os_str()),
        policy: spec.policy.name.clone(),
        labels: spec.labels.clone(),
        started_at: format!("{:.6}", jiff::Timestamp::now()),
        live: true,
        outcome: None,
        exit_code: None,
        denied: false,
    }
}

fn closed(what: String) -> Error {
    Error::Closed(Reason::new(what, "the session is shut down", ""))
}

impl EmbeddedProcess {
    pub(super) fn stop(&self, reason: String) -> bool {
        self.link.tell(ProcessCommand::Stop { reason, grace: None })
    }

    pub(super) fn kill(&self, reason: String) -> bool {
        self.link.tell(ProcessCommand::Kill { reason })
    }

    pub(super) async fn signal(&self, signal: Signal, scope: SignalScope) -> bool {
        let (sent, on_its_way) = oneshot::channel();
        let told = self.link.tell(ProcessCommand::Signal { signal, scope, sent });
        told && on_its_way.await.is_ok()
    }

    pub(super) async fn decide(&self, approval: u64, verdict: Verdict, by: String) -> bool {
        let (reply, decided) = oneshot::channel();
        let told = self.link.tell(ProcessCommand::Decide {
            approval,
            verdict,
            by,
            reply,
        });
        told && decided.await.unwrap_or(false)
    }

    pub(super) async fn write_stdin(&self, bytes: &[u8]) -> Result<(), Error> {
        let written = self.link.write_stdin(bytes).await;
        written.map_err(|error| {
            let reason = Reason::new(format!("write to {}", self.link.id()), error.to_string(), "");
            match error.kind() {
                io::ErrorKind::BrokenPipe => Error::Ended(reason),
                _ => Error::Protocol(reason),
            }
        })
    }

    pub(super) async fn resize(&self, size: TerminalSize) -> Result<(), Error> {
        let resized = self.link.resize(size).await;
        resized.map_err(|error| {
            let what = format!("resize {}", self.link.id());
            match error.kind() {
                io::ErrorKind::BrokenPipe => Error::Ended(Reason::new(what, "it has ended", "")),
                _ => Error::Refused(Reason::new(what, error.to_string(), "")),
            }
        })
    }
}
