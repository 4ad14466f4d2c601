//! Following many processes at once: those of a session and its parts, or what any of them asks.
//!
//! ```text
//! start, close ──► Watcher ──► a cursor for each process ──┐ one event at a time
//!                     └──────► notices, bounded ───────────┴──► the client
//! ```
//!
//! A watcher never waits for its client: it takes note of a new process at once, and its cursor reads when it is its turn. So a
//! client that does not read keeps one event in memory, and what logs drop meanwhile is a `gap`. A process that the daemon
//! forgets is not kept for it either: `follow/gap` says where its events were cut off.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use provost_actors::event::{EventBody, ProcessId};
use provost_actors::log::{Cursor, Log};
use provost_actors::session::SessionId;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Way;
use crate::daemon::processes::Supervised;
use crate::daemon::{Daemon, lock};
use crate::protocol::{EventNotification, FollowGap, ForgottenProcess, SessionEvent};

/// Notices of one kind that wait for a client to read them. What comes on top is counted.
const NOTICES_MAX: usize = 1000;
/// How long a process that is forgotten is still read for those who follow it.
const FORGETTING: Duration = Duration::from_secs(2);

/// What a watcher looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::daemon) struct Scope {
    /// A session with its parts; everything, if absent.
    pub(in crate::daemon) session: Option<SessionId>,
    /// Requests for approval and decisions alone, from those on that wait now.
    pub(in crate::daemon) approvals: bool,
}

/// Where the daemon tells of what is new, until it is dropped.
#[derive(Debug)]
pub(in crate::daemon) struct Watcher {
    scope: Scope,
    news: mpsc::UnboundedSender<News>,
}

/// What is new. Taken at once, so these do not pile up.
#[derive(Debug)]
enum News {
    Process(Arc<Supervised>),
    Session(SessionEvent),
}

/// A watcher's end, and the processes that are there already.
pub(in crate::daemon) struct Watching {
    scope: Scope,
    news: mpsc::UnboundedReceiver<News>,
    there: Vec<Arc<Supervised>>,
}

impl Watcher {
    fn sees(&self, within: &[SessionId]) -> bool {
        self.scope.session.is_none_or(|id| within.contains(&id))
    }
}

impl Daemon {
    /// Looks at what is there and at what comes: nothing falls between.
    pub(in crate::daemon) fn watch(&self, subscription: u64, scope: Scope) -> Watching {
        let (sender, news) = mpsc::unbounded_channel();
        let watcher = Watcher { scope, news: sender };
        let mut state = self.state();
        let processes = state.processes.values();
        let seen = |process: &&Arc<Supervised>| {
            watcher.sees(&process.within) && (process.is_live() || !scope.approvals)
        };
        let there = processes.filter(seen).cloned().collect();
        // A session that was closed since it was looked up has nothing more to tell.
        if scope.session.is_none_or(|id| state.leases.get(id).is_some()) {
            state.watchers.insert(subscription, watcher);
        }
        Watching { scope, news, there }
    }

    pub(in crate::daemon) fn unwatch(&self, subscription: u64) {
        self.state().watchers.remove(&subscription);
    }

    /// Nothing more comes of these sessions.
    pub(in crate::daemon) fn unwatch_sessions(&self, closed: &[SessionId]) {
        let of_closed = |watcher: &Watcher| watcher.scope.session.is_some_and(|id| closed.contains(&id));
        self.state().watchers.retain(|_, watcher| !of_closed(watcher));
    }
}

impl super::super::State {
    /// A process was started.
    pub(in crate::daemon) fn tell_of_process(&self, process: &Arc<Supervised>) {
        for watcher in self
            .watchers
            .values()
            .filter(|watcher| watcher.sees(&process.within))
        {
            let _ = watcher.news.send(News::Process(process.clone()));
        }
    }

    /// Something happened to a session that is part of these.
    pub(in crate::daemon) fn tell_of_session(
        &self,
        session: SessionId,
        within: &[SessionId],
        event: &str,
    ) {
        let watchers = self.watchers.iter();
        for (subscription, watcher) in watchers.filter(|(_, watcher)| watcher.sees(within)) {
            // Of itself its holder is told.
            if watcher.scope.approvals || watcher.scope.session == Some(session) {
                continue;
            }
            let _ = watcher.news.send(News::Session(SessionEvent {
                session,
                event: event.to_owned(),
                subscription: Some(*subscription),
            }));
        }
    }
}

/// What is to be said besides events, bounded.
#[derive(Debug, Default)]
struct Notices {
    waiting: Mutex<Waiting>,
    some: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    sessions: Vec<SessionEvent>,
    gap: FollowGap,
}

impl Notices {
    fn session(&self, event: SessionEvent) {
        let mut waiting = lock(&self.waiting);
        match waiting.sessions.len() < NOTICES_MAX {
            true => waiting.sessions.push(event),
            false => waiting.gap.session_events += 1,
        }
        self.some.notify_one();
    }

    fn forgotten(&self, process: ForgottenProcess) {
        let gap = &mut lock(&self.waiting).gap;
        match gap.processes.len() < NOTICES_MAX {
            true => gap.processes.push(process),
            false => gap.more += 1,
        }
        self.some.notify_one();
    }

    /// Says what waits. False when nobody listens.
    async fn say(&self, way: &Way) -> bool {
        let waiting = std::mem::take(&mut *lock(&self.waiting));
        for event in &waiting.sessions {
            if !way.say("session/event", event).await {
                return false;
            }
        }
        if waiting.gap == FollowGap::default() {
            return true;
        }
        let gap = FollowGap {
            subscription: way.subscription,
            ..waiting.gap
        };
        way.say("follow/gap", &gap).await
    }
}

/// Pushes what a watcher sees until it sees nothing more and that is told, or the client is gone or has enough.
pub(in crate::daemon) async fn push_all(
    daemon: Daemon,
    mut watching: Watching,
    way: Arc<Way>,
    behind: oneshot::Receiver<()>,
) {
    let notices = Arc::new(Notices::default());
    let mut pushing = JoinSet::new();
    let scope = watching.scope;
    // Nothing is sent before the answer that says what follows; what is new is taken note of meanwhile.
    let gate = way.turn.clone().lock_owned().await;
    let follow = |process: Arc<Supervised>, pushing: &mut JoinSet<()>| {
        let (way, notices) = (way.clone(), notices.clone());
        match process.link.log_in_memory() {
            Some(log) => {
                let followed = Followed::begin(&process, &log, scope);
                pushing.spawn(async move { followed.push(&way, &notices).await });
            }
            None => {
                pushing.spawn(async move {
                    let log = process.link.log().await;
                    let followed = Followed::begin(&process, &log, scope);
                    drop((process, log));
                    followed.push(&way, &notices).await;
                });
            }
        }
    };
    for process in std::mem::take(&mut watching.there) {
        follow(process, &mut pushing);
    }
    let told = CancellationToken::new();
    let saying = {
        let (way, notices, all_said) = (way.clone(), notices.clone(), told.clone());
        tokio::spawn(async move {
            let _ = behind.await;
            drop(gate);
            loop {
                tokio::select! {
                    () = notices.some.notified() => {}
                    () = all_said.cancelled() => return,
                }
                if !notices.say(&way).await {
                    return;
                }
            }
        })
    };
    loop {
        tokio::select! {
            news = watching.news.recv() => match news {
                Some(News::Process(process)) => follow(process, &mut pushing),
                Some(News::Session(event)) => notices.session(event),
                None => break,
            },
            // Those that are through leave nothing behind.
            Some(_) = pushing.join_next() => {}
            () = way.over() => break,
        }
    }
    daemon.unwatch(way.subscription);
    // What was followed is told to its end, also where the session was closed.
    while pushing.join_next().await.is_some() {}
    told.cancel();
    let _ = saying.await;
    notices.say(&way).await;
}

/// One process of those that are followed. Holds its log, but not what the daemon knows of it besides.
struct Followed {
    process: ProcessId,
    session: Option<SessionId>,
    cursor: Cursor,
    approvals: bool,
    forgotten: CancellationToken,
}

impl Followed {
    fn begin(process: &Supervised, log: &Arc<Log>, scope: Scope) -> Self {
        let cursor = match scope.approvals {
            false => log.follow(0, false),
            true => {
                let last = log.last_seq();
                let first = log.approvals_waiting().first().map(|request| request.seq - 1);
                log.follow(first.map_or(last, |first| first.min(last)), false)
                    .without_output()
            }
        };
        Self {
            process: process.id(),
            session: process.session,
            cursor,
            approvals: scope.approvals,
            forgotten: process.forgotten.clone(),
        }
    }

    async fn push(mut self, way: &Way, notices: &Notices) {
        let mut sent = 0;
        let forgotten = self.forgotten.clone();
        let cut = async {
            forgotten.cancelled().await;
            tokio::time::sleep(FORGETTING).await;
        };
        let cut_off = tokio::select! {
            _ = self.push_events(way, &mut sent) => false,
            () = cut => true,
        };
        // Who asks for approvals alone misses nothing: a process that is forgotten asks no more.
        if cut_off && !self.approvals {
            notices.forgotten(ForgottenProcess {
                process: self.process,
                session: self.session,
                after_seq: sent,
            });
        }
    }

    async fn push_events(&mut self, way: &Way, sent: &mut u64) {
        loop {
            let ready = tokio::select! {
                ready = self.cursor.ready() => ready,
                () = way.over() => return,
            };
            if !ready {
                return;
            }
            // One at a time: what is read is in memory until the client has room for it.
            let Some(_turn) = way.turn().await else {
                return;
            };
            let Some(event) = self.cursor.try_next() else {
                continue;
            };
            let is_approval = matches!(
                event.body,
                EventBody::ApprovalRequested { .. } | EventBody::ApprovalDecided { .. }
            );
            if self.approvals && !is_approval {
                continue;
            }
            let seq = event.seq;
            let body = EventNotification {
                subscription: way.subscription,
                session: self.session,
                event,
            };
            if !way.send(&body).await {
                return;
            }
            *sent = seq;
        }
    }
}
