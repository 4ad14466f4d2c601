//! What the queue is told and asked.

use std::sync::Arc;

use provost_actors::ProcessLink;
use provost_actors::event::ProcessId;
use provost_actors::jobs::JobId;
use provost_actors::jobs::schedule::Counts;
use provost_actors::record::TerminalRecord;
use provost_actors::session::SessionId;
use tokio::sync::oneshot;

use crate::protocol::{ProcessStart, RpcError};
use crate::store::{JobRow, StoreError, Submitted};

#[derive(Debug)]
pub(in crate::daemon::jobs) enum QueueMsg {
    /// Jobs are to be queued. Answered when that is written down.
    Submit {
        spec: Arc<ProcessStart>,
        rows: Vec<JobRow>,
        /// In JSON.
        notices: Vec<String>,
        reply: oneshot::Sender<Result<Submitted, SubmitError>>,
    },
    /// The process of an attempt was accepted, or not.
    Started {
        job: JobId,
        process: ProcessId,
        started: Result<ProcessLink, RpcError>,
    },
    /// It has its record.
    ProcessEnded {
        job: JobId,
        process: ProcessId,
        record: Arc<TerminalRecord>,
    },
    /// Jobs are to be ended. Whoever asks is told when each has.
    Cancel {
        jobs: Vec<JobId>,
        reason: String,
        kill: bool,
        reply: oneshot::Sender<Vec<Ends>>,
    },
    /// Those of sessions that are no more.
    CancelSessions {
        sessions: Vec<SessionId>,
        reason: String,
    },
    /// When have these ended?
    Await {
        jobs: Vec<JobId>,
        reply: oneshot::Sender<Vec<Ends>>,
    },
    /// Change a group, if anything is to be changed.
    Group {
        name: String,
        limit: Option<usize>,
        paused: Option<bool>,
        temporary: bool,
        reply: oneshot::Sender<Result<Counts, StoreError>>,
    },
    /// Take one away; false if it has jobs.
    RemoveGroup {
        name: String,
        reply: oneshot::Sender<Result<bool, StoreError>>,
    },
    Groups {
        reply: oneshot::Sender<Vec<(String, Counts)>>,
    },
    /// Nothing starts any more. When has everything that was about to?
    Settle { reply: oneshot::Sender<Ends> },
    /// Write down what was decided, and see what may start.
    Flush,
}

/// Done, in one way or the other, when a job has ended.
pub(in crate::daemon::jobs) type Ends = oneshot::Receiver<()>;

/// Jobs were not queued.
#[derive(Debug)]
pub(in crate::daemon::jobs) enum SubmitError {
    /// The one at this place has the word of another one.
    Conflict(usize),
    /// There are too many.
    Full,
    Store(StoreError),
}
