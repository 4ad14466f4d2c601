//! What is known of each output stream.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::event::StreamName;
use crate::record::{Closed, OutputSummary};

/// The streams of one process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Streams {
    all: Vec<Stream>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stream {
    name: StreamName,
    /// Everything below this offset was stated.
    bytes: u64,
    /// How much of that was stated as a gap.
    holes: u64,
    /// The drain deadline passed while it was open: whatever follows, it counts as abandoned.
    given_up: bool,
    closed: Option<Closed>,
}

/// The part of an output fact that was not known before.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct News {
    /// Bytes below `offset` of which no fact told.
    pub(super) hole: Option<(u64, u64)>,
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Streams {
    pub(super) fn new(names: &[StreamName]) -> Self {
        let mut names = names.to_vec();
        names.sort_unstable();
        names.dedup();
        let all = names
            .into_iter()
            .map(|name| Stream {
                name,
                bytes: 0,
                holes: 0,
                given_up: false,
                closed: None,
            })
            .collect();
        Self { all }
    }

    fn get(&mut self, name: StreamName) -> Option<&mut Stream> {
        self.all.iter_mut().find(|stream| stream.name == name)
    }

    /// Counts output, so that each byte of a stream is stated exactly once: what was stated before is
    /// left out, what was passed over becomes a hole.
    pub(super) fn output(&mut self, name: StreamName, offset: u64, length: u64) -> Option<News> {
        let stream = self.get(name)?;
        // No stream is longer than can be counted: such a fact is none.
        let end = offset.checked_add(length)?;
        if end <= stream.bytes || length == 0 {
            return None;
        }
        let hole = (offset > stream.bytes).then_some((stream.bytes, offset));
        stream.holes += hole.map_or(0, |(from, to)| to - from);
        let offset = offset.max(stream.bytes);
        stream.bytes = end;
        Some(News {
            hole,
            offset,
            length: end - offset,
        })
    }

    /// Closes a stream; says how many bytes it had and how it counts, unless it was closed before.
    pub(super) fn close(&mut self, name: StreamName, closed: Closed) -> Option<(u64, Closed)> {
        let stream = self.get(name).filter(|stream| stream.closed.is_none())?;
        let closed = if stream.given_up {
            Closed::Abandoned
        } else {
            closed
        };
        stream.closed = Some(closed);
        Some((stream.bytes, closed))
    }

    pub(super) fn stated(&self, name: StreamName) -> u64 {
        let stream = self.all.iter().find(|stream| stream.name == name);
        stream.map_or(0, |stream| stream.bytes)
    }

    /// True also for a stream that the process does not have.
    pub(super) fn is_closed(&self, name: StreamName) -> bool {
        let stream = self.all.iter().find(|stream| stream.name == name);
        stream.is_none_or(|stream| stream.closed.is_some())
    }

    /// From now on every open stream counts as abandoned.
    pub(super) fn give_up(&mut self) {
        for stream in &mut self.all {
            stream.given_up |= stream.closed.is_none();
        }
    }

    pub(super) fn first_open(&self) -> Option<StreamName> {
        self.all
            .iter()
            .find(|stream| stream.closed.is_none())
            .map(|stream| stream.name)
    }

    pub(super) fn any_open(&self) -> bool {
        self.first_open().is_some()
    }

    /// The record's account. A stream that is still open was never opened: its process did not start.
    pub(super) fn summary(&self) -> BTreeMap<StreamName, OutputSummary> {
        self.all
            .iter()
            .map(|stream| {
                let summary = OutputSummary {
                    bytes: stream.bytes,
                    retained: stream.bytes - stream.holes,
                    dropped: stream.holes,
                    closed: stream.closed.unwrap_or(Closed::Eof),
                };
                (stream.name, summary)
            })
            .collect()
    }
}
