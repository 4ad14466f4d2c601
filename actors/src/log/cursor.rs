//! A reader's place in a log.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;

use super::stream::{Body, Next, StreamLog};
use super::waiters::WaiterId;
use super::{Log, State, wake};
use crate::event::{Event, EventBody, StreamName};
use crate::spool::{self, Opened};

/// A reader's place in a log. Reading moves it on; it is also a [`Stream`] of events.
///
/// Numbers strictly increase, the terminal event comes last, and every byte of every stream is either in an
/// `output` event or in a `gap` (I3). Cursors do not disturb each other. Dropping one is harmless at any
/// time, and so is dropping the future of [`Cursor::next`].
#[derive(Debug)]
pub struct Cursor {
    log: Arc<Log>,
    id: WaiterId,
    /// The number of the last event that was read.
    seq: u64,
    /// For each stream, the end of what was read or told as a gap.
    read_to: [u64; StreamName::ALL.len()],
    /// The files that it reads from, where output is in files.
    opened: [Opened; StreamName::ALL.len()],
    paced: bool,
    finished: bool,
    /// Output and gaps are passed over.
    without_output: bool,
}

/// Where the next event is.
enum Place {
    Stream(StreamName, Next),
    Other(usize),
}

impl Cursor {
    pub(super) fn new(log: Arc<Log>, id: WaiterId, seq: u64, paced: bool) -> Self {
        Self {
            log,
            id,
            seq,
            read_to: [0; StreamName::ALL.len()],
            opened: Default::default(),
            paced,
            finished: false,
            without_output: false,
        }
    }

    /// The same place, from which output and gaps are passed over.
    #[must_use]
    pub fn without_output(mut self) -> Self {
        self.without_output = true;
        self
    }

    /// Waits until there is an event to read, and leaves it there. False when there will be none any more.
    pub async fn ready(&mut self) -> bool {
        std::future::poll_fn(|cx| {
            if self.finished {
                return Poll::Ready(false);
            }
            let log = Arc::clone(&self.log);
            let mut state = log.lock();
            if self.place(&state).is_some() {
                return Poll::Ready(true);
            }
            self.finished = state.record.is_some();
            if self.finished {
                return Poll::Ready(false);
            }
            state.readers.register(self.id, (), cx.waker());
            Poll::Pending
        })
        .await
    }

    /// The next event; waits for it. `None` after the terminal event.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| self.poll_event(cx)).await
    }

    /// The next event if there is one now. [`Cursor::is_finished`] tells whether there will be more.
    pub fn try_next(&mut self) -> Option<Event> {
        let log = Arc::clone(&self.log);
        let mut state = log.lock();
        let event = self.read_on(&mut state);
        let woken = self.paced_on(&mut state);
        drop(state);
        wake(woken);
        event.map(Found::read)
    }

    /// The number of the last event that was read: what [`Log::follow`] takes to go on from here.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// This cursor has the pace: it loses nothing, and what it does not read holds the program.
    pub fn is_paced(&self) -> bool {
        self.paced
    }

    /// Gives the pace up; the cursor reads on like any other.
    pub fn unpace(&mut self) {
        if std::mem::take(&mut self.paced) {
            self.log.release(self.id, None);
        }
    }

    /// The terminal event was read.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.finished {
            return Poll::Ready(None);
        }
        let log = Arc::clone(&self.log);
        let mut state = log.lock();
        let event = self.read_on(&mut state);
        if event.is_none() && !self.finished {
            state.readers.register(self.id, (), cx.waker());
            return Poll::Pending;
        }
        let woken = self.paced_on(&mut state);
        drop(state);
        wake(woken);
        Poll::Ready(event.map(Found::read))
    }

    /// Reads one event, if there is one, and sees whether it is the last.
    fn read_on(&mut self, state: &mut State) -> Option<Found> {
        let event = self.read(state);
        // Whoever follows from behind the terminal event has nothing to wait for either.
        self.finished |= event.is_none() && state.record.is_some();
        event
    }

    /// Lets the log know how far the paced cursor has read; says whom to wake.
    fn paced_on(&self, state: &mut State) -> Vec<std::task::Waker> {
        if self.paced {
            state.release(self.log.limits, self.id, Some(self.seq))
        } else {
            Vec::new()
        }
    }

    /// Where the event with the lowest number behind this place is.
    fn place(&self, state: &State) -> Option<(u64, Place)> {
        let streams = StreamName::ALL.into_iter().filter(|_| !self.without_output);
        let in_streams = streams.filter_map(|name| {
            let next = state.streams[name.index()].next_after(self.seq)?;
            Some((next.seq(), Place::Stream(name, next)))
        });
        let other = match state.others.last() {
            Some(last) if last.seq > self.seq => {
                let index = state.others.partition_point(|other| other.seq <= self.seq);
                Some((state.others[index].seq, Place::Other(index)))
            }
            _ => None,
        };
        in_streams.chain(other).min_by_key(|(seq, _)| *seq)
    }

    /// Takes that event.
    fn read(&mut self, state: &mut State) -> Option<Found> {
        let (seq, place) = self.place(state)?;
        let (time, body, in_file) = match place {
            Place::Other(index) => {
                let other = &state.others[index];
                (other.time, EventBody::clone(&other.body), None)
            }
            Place::Stream(name, next) => {
                let read_to = &mut self.read_to[name.index()];
                let opened = &mut self.opened[name.index()];
                read_stream(&mut state.streams[name.index()], name, next, read_to, opened)
            }
        };
        self.seq = seq;
        self.finished = matches!(body, EventBody::Terminal { .. });
        let process = self.log.process;
        let event = Event {
            process,
            seq,
            time,
            body,
        };
        Some(Found { event, in_file })
    }
}

/// An event whose bytes may have to be read yet, when nobody waits for the log.
struct Found {
    event: Event,
    in_file: Option<spool::Place>,
}

impl Found {
    fn read(mut self) -> Event {
        let Some(place) = self.in_file else {
            return self.event;
        };
        if let EventBody::Output { stream, offset, data } = &mut self.event.body {
            match place.read() {
                Ok(bytes) => *data = bytes,
                Err(error) => {
                    tracing::error!(process = %self.event.process, %error, "cannot read output from the spool");
                    let (from, bytes) = (*offset, place.length());
                    self.event.body = EventBody::Gap {
                        stream: *stream,
                        from,
                        to: from + bytes,
                        bytes,
                    };
                }
            }
        }
        self.event
    }
}

fn read_stream(
    log: &mut StreamLog,
    stream: StreamName,
    next: Next,
    read_to: &mut u64,
    opened: &mut Opened,
) -> (jiff::Timestamp, EventBody, Option<spool::Place>) {
    let gap = |from: u64, to: u64| EventBody::Gap {
        stream,
        from,
        to,
        bytes: to.saturating_sub(from),
    };
    match next {
        Next::Gap(dropped) => {
            let from = dropped.from.max(*read_to);
            *read_to = dropped.to;
            (dropped.time, gap(from, dropped.to), None)
        }
        Next::Output(output) => {
            *read_to = output.end();
            let offset = output.offset;
            let with = |data| EventBody::Output { stream, offset, data };
            let (body, in_file) = match log.bytes_of(&output, opened) {
                Body::Here(data) => (with(data), None),
                Body::InFile(place) => (with(Bytes::new()), Some(place)),
                Body::None => (gap(offset, output.end()), None),
            };
            (output.time, body, in_file)
        }
    }
}

impl Stream for Cursor {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.poll_event(cx)
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.unpace();
        self.log.lock().readers.remove(self.id);
    }
}
