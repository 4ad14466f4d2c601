//! Followers: cursors that push what they read to a client, at the client's pace.

use std::collections::HashSet;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64_simd::STANDARD;
use provost_actors::event::{EventBody, ProcessId};
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
pub(super) async fn process(process: Arc<Supervised>, cursor: Cursor, way: Arc<Way>) {
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
        let line = line(body);
        let send = async {
            if let Some(room) = &self.room {
                match room.acquire().await {
                    Ok(place) => place.forget(),
                    Err(_) => return false,
                }
            }
            match line {
                Some(line) => self.outbox.send_line(line).await,
                None => true,
            }
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

/// Pushes what a cursor reads.
pub(super) async fn push(process: &Supervised, mut cursor: Cursor, way: &Way) {
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

/// An event as a line. Output, of which there may be gigabytes, is written by hand: the same bytes that serde writes, without
/// looking at each of them twice.
fn line(body: &EventNotification) -> Option<Vec<u8>> {
    let EventBody::Output { stream, offset, data } = &body.event.body else {
        let mut line = serde_json::to_vec(&notification("process/event", body)).ok()?;
        line.push(b'\n');
        return Some(line);
    };
    let event = &body.event;
    let mut line = Vec::with_capacity(STANDARD.encoded_length(data.len()) + 512);
    let session = match body.session {
        Some(session) => format!(r#""session":"{session}","#),
        None => String::new(),
    };
    write!(
        line,
        r#"{{"jsonrpc":"2.0","method":"process/event","params":{{"subscription":{},{session}"event":{{"process":"{}","seq":{},"time":"{:.6}","type":"output","stream":"{stream}","offset":{offset},"data":""#,
        body.subscription, event.process, event.seq, event.time,
    )
    .ok()?;
    STANDARD.encode_append(data, &mut line);
    line.extend_from_slice(b"\"}}}\n");
    Some(line)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use provost_actors::event::{Event, StreamName};

    use super::*;

    proptest! {
        #[test]
        fn output_is_written_as_serde_writes_it(
            data in proptest::collection::vec(any::<u8>(), 0..200),
            seq in 1u64..,
            offset: u64,
            seconds in 0i64..4_000_000_000,
            in_session: bool,
        ) {
            let body = EventNotification {
                subscription: seq / 2,
                session: in_session.then(SessionId::new),
                event: Event {
                    process: ProcessId::new(),
                    seq,
                    time: jiff::Timestamp::new(seconds, 123_456_000).unwrap(),
                    body: EventBody::Output { stream: StreamName::Stderr, offset, data: data.into() },
                },
            };
            let mut plain = serde_json::to_vec(&notification("process/event", &body)).unwrap();
            plain.push(b'\n');
            prop_assert_eq!(line(&body), Some(plain));
        }
    }
}
