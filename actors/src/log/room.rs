//! Waiting for the paced reader.

use std::pin::Pin;
use std::task::{Context, Poll};

use super::{Log, WaiterGuard};
use crate::event::StreamName;

/// The future of [`Log::room`]. Dropping it is harmless.
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct Room<'a> {
    waiter: WaiterGuard<'a>,
    stream: StreamName,
    window_bytes: u64,
    waiting: bool,
}

impl<'a> Room<'a> {
    pub(super) fn new(log: &'a Log, stream: StreamName, window_bytes: u64) -> Self {
        Self {
            waiter: WaiterGuard::new(log),
            stream,
            window_bytes,
            waiting: false,
        }
    }
}

impl Future for Room<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        // Whoever waited goes on at half the window: it then reads a good deal at once, where it would
        // otherwise be woken for each event that is read.
        let lag_max = if this.waiting {
            this.window_bytes / 2
        } else {
            this.window_bytes
        };
        let mut state = this.waiter.log.lock();
        if state.lag(this.stream) <= lag_max {
            return Poll::Ready(());
        }
        if !this.waiting {
            this.waiting = true;
            state.held_writers += 1;
        }
        let condition = (this.stream, this.window_bytes / 2);
        state.writers.register(this.waiter.id, condition, cx.waker());
        Poll::Pending
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if self.waiting {
            self.waiter.log.lock().held_writers -= 1;
        }
    }
}
