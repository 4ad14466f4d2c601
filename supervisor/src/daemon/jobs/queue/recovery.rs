//! Jobs as an earlier daemon left them, taken up.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use provost_actors::ProcessLink;
use provost_actors::event::ProcessId;
use provost_actors::jobs::schedule::{Schedule, Skipped};
use provost_actors::jobs::{JobId, JobOutcome, JobState};
use provost_actors::record::TerminalRecord;
use ractor::ActorRef;
use tokio::sync::watch;

use super::decisions::{end_of, ending, plan};
use super::{Job, QueueMsg, State};
use crate::daemon::Daemon;
use crate::daemon::jobs::notices::Notices;
use crate::daemon::jobs::start::watch_process;
use crate::protocol::ProcessStart;
use crate::store::{EndRow, GroupRow, JobRow, Store};

/// What an earlier daemon left.
pub(in crate::daemon::jobs) struct Recovery {
    pub(in crate::daemon::jobs) daemon: Daemon,
    pub(in crate::daemon::jobs) store: Store,
    pub(in crate::daemon::jobs) last: watch::Sender<u64>,
    pub(in crate::daemon::jobs) notices: Arc<Notices>,
    pub(in crate::daemon::jobs) rows: Vec<JobRow>,
    pub(in crate::daemon::jobs) groups: Vec<GroupRow>,
    pub(in crate::daemon::jobs) specs: HashMap<i64, Arc<ProcessStart>>,
    /// Ended ones that others come after.
    pub(in crate::daemon::jobs) ended: HashMap<JobId, JobRow>,
    /// Of those that are not queued.
    pub(in crate::daemon::jobs) found: HashMap<JobId, Found>,
}

/// What there is of an attempt that was under way.
pub(in crate::daemon::jobs) enum Found {
    Process(ProcessLink),
    Record(Arc<TerminalRecord>),
    Nothing,
}

impl State {
    pub(super) fn recover(myself: &ActorRef<QueueMsg>, recovery: Recovery) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let mut state = Self {
            daemon: recovery.daemon,
            store: recovery.store,
            last: recovery.last,
            notices: recovery.notices,
            schedule: Schedule::new(processors),
            jobs: HashMap::new(),
            groups: BTreeMap::new(),
            decided: Vec::new(),
            flushing: false,
            timer: None,
            told_late: None,
            no_room_until: None,
            settling: Vec::new(),
        };
        for group in recovery.groups {
            state.schedule.set_group(&group.name, group.limit, group.paused);
            state.groups.insert(group.name.clone(), group);
        }
        let mut found = recovery.found;
        let mut skipped: Vec<Skipped> = Vec::new();
        // Dealt with when everybody is there: others come after them.
        let mut over: Vec<(JobId, ProcessId, EndRow)> = Vec::new();
        // Whoever has its turn comes first: others may come after it, and be submitted before.
        let (waiting, under_way): (Vec<JobRow>, Vec<JobRow>) = recovery
            .rows
            .into_iter()
            .partition(|row| row.state == JobState::Queued);
        for row in under_way.into_iter().chain(waiting) {
            let id = row.id;
            let spec = recovery.specs.get(&row.spec).cloned().unwrap_or_default();
            let (plan, was, process) = (plan(&row), row.state, row.process);
            let cancel = row.cancel.clone();
            let job = Job {
                row,
                spec,
                link: None,
                waiting: Vec::new(),
            };
            state.jobs.insert(id, job);
            let Some(process) = process.filter(|_| was != JobState::Queued) else {
                let ended = |job| {
                    let end = recovery.ended.get(&job)?.end.as_ref()?;
                    Some((end.outcome, end.succeeded))
                };
                skipped.extend(state.schedule.add(id, plan, ended));
                continue;
            };
            state.schedule.add_taken(id, plan);
            match found.remove(&id).unwrap_or(Found::Nothing) {
                Found::Process(link) => {
                    if was == JobState::Starting && link.record().is_none() {
                        state.run(id, process);
                    }
                    if let Some((reason, kill)) = cancel {
                        link.tell(ending(reason, kill));
                    }
                    if let Some(job) = state.jobs.get_mut(&id) {
                        job.link = Some(link.clone());
                    }
                    tokio::spawn(watch_process(myself.clone(), id, process, link));
                }
                Found::Record(record) => over.push((id, process, end_of(&record))),
                Found::Nothing if was == JobState::Starting => {
                    let reason = "the daemon died before its process was started; nothing of it ran";
                    over.push((id, process, EndRow::without(JobOutcome::Interrupted, reason)));
                }
                Found::Nothing => {
                    let reason = "nothing is known of its process any more";
                    over.push((id, process, EndRow::without(JobOutcome::Lost, reason)));
                }
            }
        }
        state.skip(skipped);
        for (id, process, end) in over {
            state.attempt_ended(id, process, end);
        }
        state.flush_soon(myself);
        state
    }
}
