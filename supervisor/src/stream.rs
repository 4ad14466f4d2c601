//! EventStream: a process's events as a stream, from its log here or from a daemon's.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use provost_actors::log::Cursor;

use crate::handle::RemoteEvents;
use crate::{Error, Event};

/// A process's events in order, ended by the terminal event. It is also a [`Stream`].
///
/// Memory is bounded: what a slow reader has not taken stays in the process's log, and what that has to drop meanwhile
/// is a `gap` event. Of a daemon's process 256 events at most are on their way or wait here, of at most 256 KiB each.
#[derive(Debug)]
pub struct EventStream(Inside);

#[derive(Debug)]
enum Inside {
    Embedded(Cursor),
    Remote(Box<RemoteEvents>),
}

impl EventStream {
    pub(crate) fn embedded(cursor: Cursor) -> Self {
        Self(Inside::Embedded(cursor))
    }

    pub(crate) fn remote(events: RemoteEvents) -> Self {
        Self(Inside::Remote(Box::new(events)))
    }

    /// The next event; `None` after the terminal one, and only then. Cancelling loses nothing.
    ///
    /// # Errors
    /// Of a daemon's process: the connection is lost and the daemon does not come back ([`Error::Lost`]), or it refuses to tell
    /// its events. Nothing
    /// comes after an error; [`crate::ProcessHandle::events_after`] goes on behind the last event on another connection.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        std::future::poll_fn(|cx| self.poll_event(cx)).await.transpose()
    }

    /// The process waits for this reader. Of a daemon's process this is known with the first event.
    pub fn is_paced(&self) -> bool {
        match &self.0 {
            Inside::Embedded(cursor) => cursor.is_paced(),
            Inside::Remote(events) => events.is_paced(),
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Event, Error>>> {
        match &mut self.0 {
            Inside::Embedded(cursor) => Pin::new(cursor).poll_next(cx).map(|event| event.map(Ok)),
            Inside::Remote(events) => events.poll_next(cx),
        }
    }
}

impl Stream for EventStream {
    type Item = Result<Event, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_event(cx)
    }
}
