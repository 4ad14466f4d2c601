//! EventStream: a cursor in a process's log, as a stream.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use provost_actors::log::Cursor;

use crate::Event;

/// A process's events in order. Ends after the terminal event.
#[derive(Debug)]
pub struct EventStream {
    cursor: Cursor,
}

impl EventStream {
    pub(crate) fn new(cursor: Cursor) -> Self {
        Self { cursor }
    }

    /// The next event; `None` after the terminal one. Cancelling loses nothing.
    pub async fn next(&mut self) -> Option<Event> {
        self.cursor.next().await
    }

    /// The next event if it is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        self.cursor.try_next()
    }

    /// The process waits for this reader.
    pub fn is_paced(&self) -> bool {
        self.cursor.is_paced()
    }

    /// Lets the process run on without waiting for this reader.
    pub fn release_pace(&mut self) {
        self.cursor.unpace();
    }
}

impl Stream for EventStream {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        Pin::new(&mut self.cursor).poll_next(cx)
    }
}
