//! Followers: cursors that push what they read to a client, at the client's pace.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use provost_actors::event::ProcessId;
use provost_actors::log::Cursor;
use provost_actors::session::SessionId;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Daemon;
use super::connection::notification;
use super::outbox::Outbox;
use super::processes::Supervised;
use crate::protocol::EventNotification;

/// The widest window.
const WINDOW_MAX: usize = 1 << 20;

/// Pushes a process's events until the terminal one, or until the client is gone or has enough.
pub(super) async fn process(process: Arc<Supervised>, after_seq: u64, paced: bool, way: Arc<Way>) {
    let cursor = process.link.log().follow(after_seq, paced);
    push(&process, cursor, &way).await;
}

/// The way from a follower to its client.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) subscription: u64,
    outbox: Outbox,
    enough: CancellationToken,
    /// What may still be sent before something is acknowledged; `None` without a window.
    room: Option<Semaphore>,
    taken: AtomicU64,
}

impl Way {
    pub(super) fn new(subscription: u64, outbox: Outbox, window: Option<u64>) -> Self {
        let room = window.map(|window| {
            let events = usize::try_from(window).unwrap_or(usize::MAX);
            Semaphore::new(events.clamp(1, WINDOW_MAX))
        });
        Self {
            subscription,
            outbox,
            enough: CancellationToken::new(),
            room,
            taken: AtomicU64::new(0),
        }
    }

    /// The client has taken so many events in all.
    pub(super) fn ack(&self, events: u64) {
        let before = self.taken.fetch_max(events, Ordering::Relaxed);
        if let Some(room) = &self.room {
            let more = usize::try_from(events.saturating_sub(before)).unwrap_or(usize::MAX);
            // Who acknowledges what it was never sent gets no more room than there can be.
            let limit = WINDOW_MAX.saturating_sub(room.available_permits());
            room.add_permits(more.min(limit));
        }
    }

    pub(super) fn cancel(&self) {
        self.enough.cancel();
    }

    /// Sends an event when there is room. False when there is nobody to send to.
    async fn send(&self, body: &EventNotification) -> bool {
        let message = notification("process/event", body);
        let send = async {
            if let Some(room) = &self.room {
                match room.acquire().await {
                    Ok(place) => place.forget(),
                    Err(_) => return false,
                }
            }
            self.outbox.send(&message).await
        };
        tokio::select! {
            sent = send => sent,
            () = self.over() => false,
        }
    }

    /// Done when nobody wants more.
    async fn over(&self) {
        tokio::select! {
            () = self.enough.cancelled() => {}
            () = self.outbox.closed() => {}
        }
    }
}

async fn push(process: &Supervised, mut cursor: Cursor, way: &Way) {
    loop {
        let event = tokio::select! {
            event = cursor.next() => event,
            () = way.over() => return,
        };
        let Some(event) = event else { return };
        let body = EventNotification {
            subscription: way.subscription,
            session: process.session,
            event,
        };
        if !way.send(&body).await {
            return;
        }
    }
}

/// Pushes the events of every process of a session and its parts, those included that are started later.
pub(super) async fn session(daemon: Daemon, id: SessionId, way: Arc<Way>) {
    let mut changed = daemon.0.changed.subscribe();
    let mut followed: HashSet<ProcessId> = HashSet::new();
    let mut pushing = JoinSet::new();
    loop {
        let found: Vec<Arc<Supervised>> = {
            let state = daemon.state();
            if state.leases.get(id).is_none() {
                break;
            }
            let parts = state.leases.with_parts(id);
            let processes = state.processes.values();
            processes
                .filter(|process| process.session.is_some_and(|id| parts.contains(&id)))
                .filter(|process| !followed.contains(&process.id()))
                .cloned()
                .collect()
        };
        for process in found {
            followed.insert(process.id());
            let cursor = process.link.log().follow(0, false);
            let way = way.clone();
            pushing.spawn(async move { push(&process, cursor, &way).await });
        }
        tokio::select! {
            moved = changed.changed() => if moved.is_err() { break },
            () = way.over() => break,
        }
        while pushing.try_join_next().is_some() {}
    }
    // What was followed is told to its end, also where the session was closed.
    while pushing.join_next().await.is_some() {}
}
