//! JobQueue: the actor that decides about jobs.
//!
//! A message makes decisions, which wait together until they are written down; only then they have effects. What comes while
//! something is written waits in the mailbox, and is written down together the next time.

mod decisions;
mod flush;
mod intake;
mod message;
mod recovery;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use provost_actors::ProcessLink;
use provost_actors::jobs::JobId;
use provost_actors::jobs::schedule::Schedule;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use self::decisions::end_of;
pub(super) use self::message::{Ends, QueueMsg, SubmitError};
pub(super) use self::recovery::{Found, Recovery};
use crate::daemon::Daemon;
use crate::daemon::jobs::notices::Notices;
use crate::protocol::ProcessStart;
use crate::store::{GroupRow, JobRow, Store, Transition};

/// How long it takes until what could not be done is tried again: a start that was refused, a change that could not be written
/// down, a turn for which there was no room among processes that are no jobs. Nothing tells this actor when one of them would pass.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) struct JobQueue;

pub(super) struct State {
    daemon: Daemon,
    store: Store,
    last: watch::Sender<u64>,
    notices: Arc<Notices>,
    schedule: Schedule,
    /// Those that have not ended, as far as that is written down.
    jobs: HashMap<JobId, Job>,
    groups: BTreeMap<String, GroupRow>,
    /// Decisions that are not written down.
    decided: Vec<Transition>,
    /// A `Flush` is in the mailbox.
    flushing: bool,
    timer: Option<JoinHandle<()>>,
    /// Since when something waits to be written down with what comes next.
    told_late: Option<Instant>,
    /// There was no room for a start: until then there is none, and from then on for one at a time, until one succeeds.
    no_room_until: Option<Instant>,
    /// Who waits until nothing is about to start.
    settling: Vec<oneshot::Sender<()>>,
}

/// A job, as it was decided.
struct Job {
    row: JobRow,
    spec: Arc<ProcessStart>,
    link: Option<ProcessLink>,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Actor for JobQueue {
    type Msg = QueueMsg;
    type State = State;
    type Arguments = Recovery;

    async fn pre_start(
        &self,
        myself: ActorRef<QueueMsg>,
        recovery: Recovery,
    ) -> Result<State, ActorProcessingErr> {
        Ok(State::recover(&myself, recovery))
    }

    async fn handle(
        &self,
        myself: ActorRef<QueueMsg>,
        message: QueueMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            QueueMsg::Submit {
                spec,
                rows,
                notices,
                reply,
            } => {
                let _ = reply.send(state.submit(spec, rows, notices).await);
            }
            QueueMsg::Started {
                job,
                process,
                started,
            } => state.started(job, process, started),
            QueueMsg::ProcessEnded { job, process, record } => {
                state.attempt_ended(job, process, end_of(&record));
            }
            QueueMsg::Cancel {
                jobs,
                reason,
                kill,
                reply,
            } => {
                let ends = jobs.iter().map(|job| {
                    state.cancel(*job, &reason, kill);
                    state.ends(*job)
                });
                let _ = reply.send(ends.collect());
            }
            QueueMsg::CancelSessions { sessions, reason } => state.cancel_sessions(&sessions, &reason),
            QueueMsg::Await { jobs, reply } => {
                let _ = reply.send(jobs.iter().map(|job| state.ends(*job)).collect());
            }
            QueueMsg::Group {
                name,
                limit,
                paused,
                temporary,
                reply,
            } => {
                let _ = reply.send(state.group(name, limit, paused, temporary).await);
            }
            QueueMsg::RemoveGroup { name, reply } => {
                let _ = reply.send(state.remove_group(name).await);
            }
            QueueMsg::Groups { reply } => {
                let groups = state.schedule.groups();
                let groups = groups.map(|name| (name.to_owned(), state.schedule.counts(name)));
                let _ = reply.send(groups.collect());
            }
            QueueMsg::Settle { reply } => {
                let (told, settled) = oneshot::channel();
                state.settling.push(told);
                let _ = reply.send(settled);
            }
            QueueMsg::Flush => {
                state.flushing = false;
                return {
                    state.flush(&myself).await;
                    Ok(())
                };
            }
        }
        state.flush_soon(&myself);
        Ok(())
    }
}
