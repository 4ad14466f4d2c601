//! An attempt to run a job: a process like any other, whose id was chosen and written down before.

use std::sync::Arc;

use jiff::Timestamp;
use provost_actors::ProcessLink;
use provost_actors::event::ProcessId;
use provost_actors::jobs::JobId;
use ractor::ActorRef;

use super::queue::QueueMsg;
use crate::daemon::Daemon;
use crate::daemon::start::Prescribed;
use crate::protocol::ProcessStart;
use crate::store::JobRow;

/// What is to be run.
pub(super) struct Attempt {
    job: JobId,
    process: ProcessId,
    start: ProcessStart,
    deadline: Option<Timestamp>,
}

impl Attempt {
    pub(super) fn new(row: &JobRow, spec: &Arc<ProcessStart>, process: ProcessId) -> Self {
        let mut labels = row.labels.clone();
        labels.insert("provost.job".to_owned(), row.id.to_string());
        labels.insert("provost.attempt".to_owned(), row.attempt.to_string());
        let start = ProcessStart {
            argv: row.argv.clone(),
            session: row.session.map(|session| session.to_string()),
            labels,
            // Names of jobs need not be unique.
            name: None,
            ..ProcessStart::clone(spec)
        };
        Self {
            job: row.id,
            process,
            start,
            deadline: row.deadline,
        }
    }
}

/// Starts the process, and says what becomes of it.
pub(super) async fn attempt(daemon: Daemon, queue: ActorRef<QueueMsg>, attempt: Attempt) {
    let Attempt {
        job,
        process,
        start,
        deadline,
    } = attempt;
    let prescribed = Prescribed {
        id: process,
        deadline,
    };
    let started = daemon.start_job(start, prescribed).await;
    let link = started.as_ref().ok().cloned();
    let _ = queue.send_message(QueueMsg::Started {
        job,
        process,
        started,
    });
    if let Some(link) = link {
        watch_process(queue, job, process, link).await;
    }
}

/// Says when a process has its record, and what that is.
pub(super) async fn watch_process(
    queue: ActorRef<QueueMsg>,
    job: JobId,
    process: ProcessId,
    link: ProcessLink,
) {
    let record = link.sealed().await;
    let _ = queue.send_message(QueueMsg::ProcessEnded { job, process, record });
}
