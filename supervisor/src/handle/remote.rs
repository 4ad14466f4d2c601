//! The supervisor that a daemon is, and its processes, over the daemon's protocol.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::sys::signal::Signal;
use provost_actors::ShutdownReport;
use provost_actors::approval::Verdict;
use provost_actors::session::{OnDisconnect, SessionId};
use provost_sandbox::keeper::wire::SignalScope;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinHandle;

use crate::client::{Client, ClientError, Followed, Lasting, Pushed};
use crate::error::Reason;
use crate::protocol::{
    ApprovalDecide, ErrorKind, ProcessFollow, ProcessInfo, ProcessList, ProcessRef, ProcessResize,
    ProcessSignal, ProcessStop, ProcessWait, ProcessWrite, SessionClose, SessionInfo, SessionOpen,
    SessionsMoved, Started, Told, Waited, Written,
};
use crate::{Error, Event, EventBody, ProcessId, ProcessSpec, TerminalRecord, TerminalSize};

/// A daemon, or one session of it.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    link: Arc<Link>,
    session: Option<SessionId>,
}

/// The connection, and the daemon's room for requests through it, of which each kind has half: those that are answered soon
/// wait for their turn; writes, which wait for processes, do not wait for other processes.
#[derive(Debug)]
struct Link {
    daemon: Lasting,
    prompt: Arc<Semaphore>,
    writes: Semaphore,
    runtime: Handle,
}

impl Link {
    /// Asks when it is its turn. Whoever stops waiting for the answer does not take the request back, which keeps its place at
    /// the daemon until it is answered: so it keeps its turn as well.
    async fn in_turn<T: Send + 'static>(
        &self,
        asked: impl Future<Output = Result<T, ClientError>> + Send + 'static,
    ) -> Result<T, ClientError> {
        let turn = self.prompt.clone().acquire_owned().await;
        let asked = self.runtime.spawn(async move {
            let answer = asked.await;
            drop(turn);
            answer
        });
        asked.await.unwrap_or(Err(ClientError::Lost))
    }

    async fn call<T: DeserializeOwned + Send + 'static>(
        &self,
        method: &'static str,
        params: impl Serialize + Send + Sync + 'static,
    ) -> Result<T, ClientError> {
        let daemon = self.daemon.clone();
        self.in_turn(async move { daemon.call(method, &params).await })
            .await
    }

    /// What may not be done twice.
    async fn call_once<T: DeserializeOwned + Send + 'static>(
        &self,
        method: &'static str,
        params: impl Serialize + Send + Sync + 'static,
    ) -> Result<T, ClientError> {
        let daemon = self.daemon.clone();
        self.in_turn(async move { daemon.call_once(method, &params).await })
            .await
    }

    async fn follow(&self, asked: ProcessFollow) -> Result<Followed, ClientError> {
        let daemon = self.daemon.clone();
        self.in_turn(async move { daemon.follow(&asked).await }).await
    }
}

impl Remote {
    pub(super) fn new(daemon: Lasting) -> Self {
        let half = (daemon.client().server().limits.requests_in_flight / 2).max(1);
        let link = Link {
            daemon,
            prompt: Arc::new(Semaphore::new(half)),
            writes: Semaphore::new(half),
            runtime: Handle::current(),
        };
        Self {
            link: Arc::new(link),
            session: None,
        }
    }

    pub(super) fn client(&self) -> Client {
        self.link.daemon.client()
    }

    pub(super) fn session_id(&self) -> Option<SessionId> {
        self.session
    }

    fn session_text(&self) -> Option<String> {
        self.session.map(|id| id.to_string())
    }

    pub(super) async fn spawn(&self, spec: ProcessSpec) -> Result<Arc<RemoteProcess>, Error> {
        let mut start = super::request(spec)?;
        start.session = self.session_text();
        // Said again, it starts nothing.
        start.request_id = Some(ProcessId::new().to_string());
        let (client, own) = (self.client(), env!("CARGO_PKG_VERSION"));
        let server = &client.server().version;
        if server != own {
            // Read by another version, a policy might mean something else.
            let why = format!("the daemon is of version {server}, and this library of {own}");
            let what = crate::protocol::starting(&start.argv);
            return Err(Error::Protocol(Reason::new(what, why, "use the same version")));
        }
        let daemon = self.link.daemon.clone();
        let started = self.link.in_turn(async move {
            Ok(if start.follow {
                let (started, followed) = daemon.start_following(&start).await?;
                (started, Some(followed))
            } else {
                let started: Started = daemon.call("process/start", &start).await?;
                (started, None)
            })
        });
        let (started, followed) = started.await.map_err(|error| match Error::from(error) {
            // Nothing but its session can be missing.
            Error::NotFound(reason) => Error::Closed(reason),
            error => error,
        })?;
        Ok(RemoteProcess::new(
            self.link.clone(),
            started.process,
            followed,
            Some(0),
        ))
    }

    pub(super) async fn process(&self, id: ProcessId) -> Result<Arc<RemoteProcess>, Error> {
        #[derive(Deserialize)]
        struct Inspected {
            record: Option<Arc<TerminalRecord>>,
        }
        let process = id.to_string();
        let inspected: Inspected = self.link.call("process/inspect", ProcessRef { process }).await?;
        let process = RemoteProcess::new(self.link.clone(), id, None, None);
        if let Some(record) = inspected.record {
            let _ = process.record.set(record);
        }
        Ok(process)
    }

    pub(super) async fn list(&self) -> Result<Vec<ProcessInfo>, Error> {
        let asked = ProcessList {
            session: self.session_text(),
            ..ProcessList::default()
        };
        match self.link.call("process/list", asked).await.map_err(Error::from) {
            // A session that was shut down has nothing in it.
            Err(Error::NotFound(_)) => Ok(Vec::new()),
            listed => listed,
        }
    }

    pub(super) async fn open(&self, on_disconnect: OnDisconnect) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Opened {
            session: SessionId,
        }
        let asked = SessionOpen {
            parent: self.session_text(),
            on_disconnect,
            ..SessionOpen::default()
        };
        let opened = self.link.call_once::<Opened>("session/open", asked).await;
        match opened.map_err(Error::from) {
            Ok(opened) => {
                self.link.daemon.holds(opened.session);
                Ok(Self {
                    link: self.link.clone(),
                    session: Some(opened.session),
                })
            }
            // Nothing but its parent can be missing.
            Err(Error::NotFound(reason)) => Err(Error::Closed(reason)),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn shutdown(&self, deadline: Duration) -> Result<ShutdownReport, Error> {
        let Some(session) = self.session else {
            return Err(Error::embedded_only(
                "shut the daemon down",
                "others' processes live in it",
                "open a session, and shut that down",
            ));
        };
        let parts = self.parts(session).await?;
        let asked = SessionClose {
            session: Some(session.to_string()),
            kill: false,
        };
        // Answered when everything has ended: no place among prompt requests is taken for that.
        self.link.daemon.gives_up(session);
        let closing = self.link.daemon.call::<SessionsMoved>("session/close", &asked);
        tokio::pin!(closing);
        let (graceful, closed) = match tokio::time::timeout(deadline, &mut closing).await {
            Ok(closed) => (true, closed),
            Err(_) => {
                self.kill_live(&parts).await?;
                (false, closing.await)
            }
        };
        match closed.map_err(Error::from) {
            Ok(_) | Err(Error::NotFound(_)) => Ok(ShutdownReport { graceful }),
            Err(error) => Err(error),
        }
    }

    /// A session and everything that is part of it.
    async fn parts(&self, session: SessionId) -> Result<Vec<SessionId>, Error> {
        let all: Vec<SessionInfo> = self.link.call("session/list", serde_json::json!({})).await?;
        let mut parts = vec![session];
        let mut next = 0;
        while let Some(whole) = parts.get(next).copied() {
            let inner = all.iter().filter(|info| info.parent == Some(whole));
            parts.extend(inner.map(|info| info.session));
            next += 1;
        }
        Ok(parts)
    }

    /// Kills what lives in these sessions, which are closed already.
    async fn kill_live(&self, sessions: &[SessionId]) -> Result<(), Error> {
        let live = ProcessList {
            live: Some(true),
            ..ProcessList::default()
        };
        let live: Vec<ProcessInfo> = self.link.call("process/list", live).await?;
        let within = |info: &&ProcessInfo| info.session.is_some_and(|id| sessions.contains(&id));
        for info in live.iter().filter(within) {
            let process = RemoteProcess::new(self.link.clone(), info.process, None, None);
            process
                .end("process/kill", "its session was closed".to_owned())
                .await?;
        }
        Ok(())
    }
}

/// A process of the daemon's.
#[derive(Debug)]
pub(super) struct RemoteProcess {
    link: Arc<Link>,
    id: ProcessId,
    record: OnceCell<Arc<TerminalRecord>>,
    /// Held while something is written, so that the pieces of two writes do not mix. The place of the next byte, as far as it
    /// is known.
    writing: tokio::sync::Mutex<Option<u64>>,
    /// No further write begins.
    closing: AtomicBool,
    /// What follows it since its start, until somebody takes it.
    paced: Mutex<Option<Followed>>,
}

impl RemoteProcess {
    fn new(link: Arc<Link>, id: ProcessId, paced: Option<Followed>, place: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            link,
            id,
            record: OnceCell::new(),
            writing: tokio::sync::Mutex::new(place),
            closing: AtomicBool::new(false),
            paced: Mutex::new(paced),
        })
    }

    pub(super) fn id(&self) -> ProcessId {
        self.id
    }

    fn text(&self) -> String {
        self.id.to_string()
    }

    pub(super) fn follow(self: &Arc<Self>, after_seq: u64, paced: bool) -> RemoteEvents {
        let since_start = match paced {
            true => self.paced.lock().unwrap_or_else(PoisonError::into_inner).take(),
            false => None,
        };
        let source = match since_start {
            Some(followed) => Source::Following(followed),
            // Asked for at once, so that the pace is taken now and not with the first read.
            None => self.ask(after_seq, paced),
        };
        RemoteEvents {
            process: self.clone(),
            source,
            seen: after_seq,
            wants_pace: paced,
            complete: after_seq > 0,
            paced: false,
        }
    }

    fn ask(&self, after_seq: u64, paced: bool) -> Source {
        let (link, process) = (self.link.clone(), self.text());
        Source::Asked(self.link.runtime.spawn(async move {
            let asked = ProcessFollow {
                process,
                after_seq,
                paced,
                window: None,
            };
            Ok(link.follow(asked).await?)
        }))
    }

    pub(super) async fn record(&self) -> Result<Arc<TerminalRecord>, Error> {
        let record = self.record.get_or_try_init(async || {
            // Behind every event nothing comes but the end. So a wait takes no place among the requests in work, and is over in
            // the daemon as well when nobody waits here any more.
            let end = || ProcessFollow {
                process: self.text(),
                after_seq: u64::MAX,
                ..ProcessFollow::default()
            };
            loop {
                let mut followed = self.link.follow(end()).await?;
                while followed.next().await.is_some() {}
                if !followed.is_lost() {
                    break;
                }
            }
            let asked = ProcessWait {
                process: self.text(),
                timeout_ms: Some(0),
            };
            let waited: Waited = self.link.call("process/wait", asked).await?;
            let record = waited.record.ok_or_else(|| self.lost())?;
            Ok::<_, Error>(record)
        });
        record.await.cloned()
    }

    fn lost(&self) -> Error {
        Error::lost(format!("learn what became of {}", self.id))
    }

    pub(super) async fn end(&self, method: &'static str, reason: String) -> Result<bool, Error> {
        let asked = ProcessStop {
            process: self.text(),
            reason: Some(reason),
            grace_ms: None,
        };
        Ok(self.link.call::<Told>(method, asked).await?.told)
    }

    pub(super) async fn signal(&self, signal: Signal, scope: SignalScope) -> Result<bool, Error> {
        let asked = ProcessSignal {
            process: self.text(),
            signal: signal.to_string(),
            scope: Some(scope),
        };
        Ok(self.link.call_once::<Told>("process/signal", asked).await?.told)
    }

    pub(super) async fn decide(
        &self,
        approval: u64,
        verdict: Verdict,
        by: String,
    ) -> Result<bool, Error> {
        let asked = ApprovalDecide {
            process: self.text(),
            approval,
            allow: matches!(verdict, Verdict::Allow(_)),
            scope: match verdict {
                Verdict::Allow(scope) => Some(scope),
                Verdict::Deny => None,
            },
            by: Some(by),
            steal: false,
        };
        match self.link.call::<Told>("approval/decide", asked).await {
            Ok(told) => Ok(told.told),
            // Decided already, or never asked, or so long ago that the process is forgotten: it does not wait.
            Err(ClientError::Refused(error))
                if matches!(
                    error.data.kind,
                    ErrorKind::Conflict | ErrorKind::NotFound | ErrorKind::Forgotten
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn write_stdin(&self, bytes: &[u8]) -> Result<(), Error> {
        if self.closing.load(Ordering::Acquire) {
            return Err(self.closed());
        }
        let mut place = self.writing.lock().await;
        if self.closing.load(Ordering::Acquire) {
            return Err(self.closed());
        }
        let Ok(_place) = self.link.writes.try_acquire() else {
            let why = "too many writes through this connection wait for their processes to read";
            let hint = "wait for some of them, or use another connection";
            return Err(Error::Limit(Reason::new(
                format!("write to {}", self.id),
                why,
                hint,
            )));
        };
        let id = self.text();
        Ok(self.link.daemon.write(&id, &mut place, bytes, false).await?)
    }

    fn closed(&self) -> Error {
        let what = format!("write to {}", self.id);
        Error::Ended(Reason::new(what, "the command's stdin is closed", ""))
    }

    pub(super) async fn close_stdin(self: &Arc<Self>) -> Result<(), Error> {
        self.closing.store(true, Ordering::Release);
        if let Ok(_turn) = self.writing.try_lock() {
            return self.close().await;
        }
        let process = self.clone();
        self.link.runtime.spawn(async move {
            let _turn = process.writing.lock().await;
            // Why it cannot be closed, the write under way has learned.
            let _ = process.close().await;
        });
        Ok(())
    }

    async fn close(&self) -> Result<(), Error> {
        let asked = ProcessWrite {
            process: self.text(),
            close: true,
            ..ProcessWrite::default()
        };
        self.link.daemon.call::<Written>("process/write", &asked).await?;
        Ok(())
    }

    pub(super) async fn resize(&self, size: TerminalSize) -> Result<(), Error> {
        let asked = ProcessResize {
            process: self.text(),
            rows: size.rows,
            cols: size.cols,
            redraw: false,
        };
        self.link
            .call::<serde_json::Value>("process/resize", asked)
            .await?;
        Ok(())
    }
}

/// The events of a daemon's process as they come.
#[derive(Debug)]
pub(crate) struct RemoteEvents {
    process: Arc<RemoteProcess>,
    source: Source,
    /// The last event that was told, behind which it goes on after a connection was lost.
    seen: u64,
    wants_pace: bool,
    /// The terminal event was told, or may lie before the place where this began: their end is no loss.
    complete: bool,
    paced: bool,
}

#[derive(Debug)]
enum Source {
    Asked(JoinHandle<Result<Followed, Error>>),
    Following(Followed),
    Over,
}

impl RemoteEvents {
    pub(crate) fn is_paced(&self) -> bool {
        self.paced
    }

    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Event, Error>>> {
        loop {
            match &mut self.source {
                Source::Asked(asked) => {
                    let answer = ready!(std::pin::Pin::new(asked).poll(cx));
                    match answer.unwrap_or_else(|_| Err(self.process.lost())) {
                        Ok(followed) => self.source = Source::Following(followed),
                        Err(error) => {
                            self.source = Source::Over;
                            return Poll::Ready(Some(Err(error)));
                        }
                    }
                }
                Source::Following(followed) => {
                    self.paced = followed.is_paced();
                    let event = match ready!(followed.poll_next(cx)) {
                        Some(Pushed::Event(_, event)) => Some(event),
                        // Said of what follows many, which this does not.
                        Some(_) => continue,
                        None => None,
                    };
                    if let Some(event) = event {
                        // Whatever comes, the terminal event comes last.
                        self.complete = false;
                        self.seen = event.seq;
                        if let EventBody::Terminal { record } = &event.body {
                            let _ = self.process.record.set(record.clone());
                            self.source = Source::Over;
                        }
                        return Poll::Ready(Some(Ok(event)));
                    }
                    let lost = followed.is_lost();
                    self.source = Source::Over;
                    if lost && self.process.link.daemon.lasts() {
                        self.source = self.process.ask(self.seen, self.wants_pace);
                    } else if lost || !self.complete {
                        return Poll::Ready(Some(Err(self.process.lost())));
                    }
                }
                Source::Over => return Poll::Ready(None),
            }
        }
    }
}
