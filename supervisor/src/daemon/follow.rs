//! Followers: cursors that push what they read to a client, at the client's pace.

pub(super) mod watch;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64_simd::STANDARD;
use provost_actors::event::EventBody;
use provost_actors::log::Cursor;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

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
    /// Where several push, they do so one after the other.
    turn: Arc<tokio::sync::Mutex<()>>,
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
            turn: Arc::default(),
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
        self.send_one(line(body)).await
    }

    /// The same with any message.
    pub(super) async fn send_message(&self, message: &impl serde::Serialize) -> bool {
        let line = serde_json::to_vec(message).ok().map(|mut line| {
            line.push(b'\n');
            line
        });
        self.send_one(line).await
    }

    async fn send_one(&self, line: Option<Vec<u8>>) -> bool {
        let send = async {
            let place = match &self.room {
                Some(room) => match room.acquire().await {
                    Ok(place) => Some(place),
                    Err(_) => return false,
                },
                None => None,
            };
            let sent = match line {
                Some(line) => self.outbox.send_line(line).await,
                None => return true,
            };
            // Given back by an acknowledgement; before it was sent there is nothing to acknowledge.
            if let Some(place) = place {
                place.forget();
            }
            sent
        };
        tokio::select! {
            sent = send => sent,
            () = self.over() => false,
        }
    }

    /// Says something besides events, which takes no place in the window. False when there is nobody to say it to.
    async fn say(&self, method: &'static str, params: &impl serde::Serialize) -> bool {
        let message = notification(method, params);
        tokio::select! {
            sent = self.outbox.send(&message) => sent,
            () = self.over() => false,
        }
    }

    /// A turn among those who push to the same client; `None` when there is nobody to push to.
    async fn turn(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        tokio::select! {
            turn = self.turn.lock() => Some(turn),
            () = self.over() => None,
        }
    }

    /// Done when nobody wants more.
    pub(super) async fn over(&self) {
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
    use provost_actors::event::{Event, ProcessId, StreamName};
    use provost_actors::session::SessionId;

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
