//! Jobs: what waits in the daemon for its turn.
//!
//! ```text
//! requests ──► JobQueue (actor: decides) ──► database (compare-and-set, events) ──► starts, stops, waiters, notices
//!                  ▲                                    │
//!                  └── records of processes             └──► followers, by the numbers of events
//! ```
//!
//! The queue is the one place that decides about jobs. It acts on a decision after that was written down: nothing starts, and
//! nobody is told, what a crash could undo.

mod follow;
mod info;
mod notices;
mod queue;
mod requests;
mod start;
mod submit;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use provost_actors::ProcessLink;
use provost_actors::jobs::{JobId, JobState};
use provost_actors::record::TerminalRecord;
use provost_actors::session::SessionId;
use ractor::{Actor, ActorRef};
use tokio::sync::watch;

use self::notices::Notices;
use self::queue::{Found, JobQueue, QueueMsg, Recovery};
pub(super) use self::requests::answer;
use super::Daemon;
use crate::protocol::ProcessStart;
use crate::store::{JobRow, Store, StoreError};

/// The daemon's jobs, as everybody but the queue sees them.
#[derive(Debug)]
pub(super) struct Jobs {
    pub(super) store: Store,
    queue: ActorRef<QueueMsg>,
    /// The number of the last event that is written down.
    last: watch::Receiver<u64>,
    notices: Arc<Notices>,
}

impl Daemon {
    /// Takes up the jobs of an earlier daemon, and serves jobs from then on. To be awaited behind [`Daemon::recover`], and before
    /// clients come.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn begin_jobs(&self) -> Result<(), StoreError> {
        let store = match &self.0.kept {
            Some(kept) => kept.store.clone(),
            None => Store::in_memory()?,
        };
        let (rows, groups, specs, last, to_tell) = store
            .read(|reader| {
                let rows = reader.unended_jobs()?;
                let mut specs = HashMap::new();
                for id in rows.iter().map(|row| row.spec) {
                    let Entry::Vacant(place) = specs.entry(id) else {
                        continue;
                    };
                    let spec = reader.job_spec(id)?.unwrap_or_default();
                    let spec: ProcessStart = serde_json::from_str(&spec).unwrap_or_else(|error| {
                        // Its jobs end as not to be started.
                        tracing::error!(spec = id, %error, "what a job is to run cannot be read");
                        ProcessStart::default()
                    });
                    place.insert(Arc::new(spec));
                }
                let last = reader.last_job_event()?;
                Ok((rows, reader.groups()?, specs, last, reader.has_notices()?))
            })
            .await?;
        let here: HashSet<JobId> = rows.iter().map(|row| row.id).collect();
        let after = rows.iter().flat_map(|row| row.after.iter().map(|(job, _)| *job));
        let elsewhere: Vec<JobId> = after.filter(|job| !here.contains(job)).collect();
        let ended = store.read(move |reader| reader.jobs_of(&elsewhere)).await?;
        let mut found = HashMap::new();
        for row in &rows {
            if row.state != JobState::Queued {
                found.insert(row.id, self.find_attempt(&store, row).await?);
            }
        }
        let (say_last, last) = watch::channel(last);
        let notices = Arc::<Notices>::default();
        if to_tell {
            notices.expect();
        }
        let recovery = Recovery {
            daemon: self.clone(),
            store: store.clone(),
            last: say_last,
            notices: notices.clone(),
            rows,
            groups,
            specs,
            ended,
            found,
        };
        let (queue, _) = Actor::spawn(None, JobQueue, recovery)
            .await
            .map_err(|error| StoreError::Closed(error.to_string().into()))?;
        let jobs = Jobs {
            store,
            queue,
            last,
            notices,
        };
        let _ = self.0.jobs.set(jobs);
        tokio::spawn(notices::tell_all(self.clone()));
        Ok(())
    }

    /// What an earlier daemon left of an attempt that was under way.
    async fn find_attempt(&self, store: &Store, row: &JobRow) -> Result<Found, StoreError> {
        let Some(process) = row.process else {
            return Ok(Found::Nothing);
        };
        let known: Option<ProcessLink> = {
            let state = self.state();
            state.processes.get(&process).map(|known| known.link.clone())
        };
        if let Some(link) = known {
            return Ok(Found::Process(link));
        }
        let sealed = store.sealed_process(process).await?;
        Ok(match sealed {
            Some(sealed) => Found::Record(Arc::<TerminalRecord>::new(sealed.record)),
            None => Found::Nothing,
        })
    }

    /// Waits until no job is about to start; none has its turn while the daemon leaves. The next daemon would find such a one
    /// caught between intent and start.
    pub(super) async fn settle_jobs(&self) {
        if let Ok(settled) = self.ask_queue(|reply| QueueMsg::Settle { reply }).await {
            let _ = settled.await;
        }
    }

    /// Cancels the jobs of sessions that are no more.
    pub(super) fn cancel_jobs_of(&self, sessions: &[SessionId], reason: &str) {
        if let Some(jobs) = self.0.jobs.get() {
            let message = QueueMsg::CancelSessions {
                sessions: sessions.to_vec(),
                reason: reason.to_owned(),
            };
            let _ = jobs.queue.send_message(message);
        }
    }

    /// How many processes may be started now.
    fn room(&self) -> usize {
        let most = self.settings().processes_max;
        let mut state = self.state();
        let super::State {
            live,
            processes,
            starting,
            ..
        } = &mut *state;
        let is_live = |id: &_| {
            processes
                .get(id)
                .is_some_and(|process: &Arc<super::Supervised>| process.is_live())
        };
        if live.ids().len() + starting.len() >= most {
            live.look(is_live);
        }
        most.saturating_sub(live.ids().len() + starting.len())
    }
}
