//! What a connection follows.

use std::task::{Context, Poll, ready};

use provost_actors::session::SessionId;
use serde_json::json;
use tokio::sync::mpsc;

use super::Client;
use crate::Event;
use crate::protocol::{Ack, FollowGap, Following, JobEvent, SessionEvent};

/// After how many events that were taken the daemon is told.
const ACK_EVERY: u64 = 64;

/// What a follower is told.
#[derive(Debug, Clone)]
pub enum Pushed {
    /// An event, with the session of its process.
    Event(Option<SessionId>, Event),
    /// Something happened to a session that is part of the one that is followed.
    Session(SessionEvent),
    /// A job changed its state.
    Job(Box<JobEvent>),
    /// What it was not told, because it did not keep up.
    Gap(FollowGap),
}

/// Events that a connection follows, in order.
#[derive(Debug)]
pub struct Followed {
    /// No more than the window, for the daemon waits.
    pub(super) events: mpsc::UnboundedReceiver<Pushed>,
    pub(super) taken: u64,
    pub(super) following: Following,
    pub(super) client: Client,
}

impl Followed {
    /// The next event. `None` when the connection has ended, or the follower; a process's events end with the terminal
    /// one, and what ends without is not over.
    pub async fn next(&mut self) -> Option<Event> {
        Some(self.next_tagged().await?.1)
    }

    /// The next event with the session of its process.
    pub async fn next_tagged(&mut self) -> Option<(Option<SessionId>, Event)> {
        loop {
            if let Pushed::Event(session, event) = self.next_pushed().await? {
                return Some((session, event));
            }
        }
    }

    /// The next event, or what else `session/follow` tells.
    pub async fn next_pushed(&mut self) -> Option<Pushed> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The same as a poll.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Pushed>> {
        let pushed = ready!(self.events.poll_recv(cx));
        let taken = matches!(pushed, Some(Pushed::Event(..) | Pushed::Job(_)));
        self.taken += u64::from(taken);
        if taken && self.taken.is_multiple_of(ACK_EVERY) {
            let ack = Ack {
                subscription: self.following.subscription,
                events: self.taken,
            };
            self.client.tell("ack", &ack);
        }
        Poll::Ready(pushed)
    }

    /// The connection has ended, and so this tells nothing of an end.
    pub(crate) fn is_lost(&self) -> bool {
        self.client.is_lost()
    }

    /// The process waits for this follower.
    pub(crate) fn is_paced(&self) -> bool {
        self.following.paced
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let subscription = self.following.subscription;
        self.client.0.shared.lock().followers.remove(&subscription);
        self.client
            .tell("unfollow", &json!({ "subscription": subscription }));
    }
}
