//! Followers: cursors that push what they read to a client, at the client's pace.

use std::collections::HashSet;
use std::sync::Arc;

use provost_actors::event::ProcessId;
use provost_actors::session::SessionId;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Daemon;
use super::connection::notification;
use super::outbox::Outbox;
use super::processes::Supervised;
use crate::protocol::EventNotification;

/// Pushes a process's events until the terminal one, or until the client is gone or has enough.
pub(super) async fn process(
    process: Arc<Supervised>,
    after_seq: u64,
    paced: bool,
    subscription: u64,
    outbox: Outbox,
    enough: CancellationToken,
) {
    let cursor = process.link.log().follow(after_seq, paced);
    push(&process, cursor, subscription, &outbox, &enough).await;
}

async fn push(
    process: &Supervised,
    mut cursor: provost_actors::log::Cursor,
    subscription: u64,
    outbox: &Outbox,
    enough: &CancellationToken,
) {
    loop {
        let event = tokio::select! {
            event = cursor.next() => event,
            () = enough.cancelled() => return,
            () = outbox.closed() => return,
        };
        let Some(event) = event else { return };
        let body = EventNotification {
            subscription,
            session: process.session,
            event,
        };
        let message = notification("process/event", &body);
        let sent = tokio::select! {
            sent = outbox.send(&message) => sent,
            () = enough.cancelled() => return,
        };
        if !sent {
            return;
        }
    }
}

/// Pushes the events of every process of a session and its parts, those included that are started later.
pub(super) async fn session(
    daemon: Daemon,
    id: SessionId,
    subscription: u64,
    outbox: Outbox,
    enough: CancellationToken,
) {
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
            let (outbox, enough) = (outbox.clone(), enough.clone());
            pushing.spawn(async move { push(&process, cursor, subscription, &outbox, &enough).await });
        }
        tokio::select! {
            moved = changed.changed() => if moved.is_err() { break },
            () = enough.cancelled() => break,
            () = outbox.closed() => break,
        }
        while pushing.try_join_next().is_some() {}
    }
    // What was followed is told to its end, also where the session was closed.
    while pushing.join_next().await.is_some() {}
}
