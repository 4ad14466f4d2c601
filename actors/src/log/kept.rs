//! What a log knows, as data: for whoever writes it down, and makes the log anew from that.

use std::sync::Mutex;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::stream::{KeptStream, StreamLog};
use super::{Log, LogLimits, Other, State};
use crate::event::{EventBody, ProcessId, StreamName};
use crate::spool::Segments;

/// A log without its bytes, which are in files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct KeptLog {
    last_seq: u64,
    pub(super) streams: [KeptStream; StreamName::ALL.len()],
    others: Vec<(u64, Timestamp, EventBody)>,
}

impl KeptLog {
    /// Where the files of a stream begin that it had.
    pub(crate) fn files(&self, stream: StreamName) -> &[u64] {
        &self.streams[stream.index()].files
    }
}

impl Log {
    /// What it knows now. Its record is not part of it: a log that has one changes no more.
    pub(crate) fn kept(&self) -> KeptLog {
        let state = self.lock();
        let others = state.others.iter();
        KeptLog {
            last_seq: state.last_seq,
            streams: state.streams.each_ref().map(StreamLog::kept),
            others: others
                .map(|other| (other.seq, other.time, EventBody::clone(&other.body)))
                .collect(),
        }
    }

    /// The log again, with what there is of its files now. What is in none of them is a gap.
    pub(crate) fn restored(
        process: ProcessId,
        limits: LogLimits,
        segments: [Segments; 3],
        kept: KeptLog,
    ) -> Self {
        let mut streams = kept.streams.into_iter();
        let streams = segments.map(|segments| match streams.next() {
            Some(kept) => StreamLog::restored(segments, kept),
            None => StreamLog::in_files(segments),
        });
        let others = kept.others.into_iter().map(|(seq, time, body)| Other {
            seq,
            time,
            body: Box::new(body),
        });
        let mut state = State {
            streams,
            others: others.collect(),
            last_seq: kept.last_seq,
            ..State::default()
        };
        // What was spared for a paced reader: that one is gone.
        state.retain(limits, None);
        Self {
            process,
            limits,
            state: Mutex::new(state),
        }
    }
}
