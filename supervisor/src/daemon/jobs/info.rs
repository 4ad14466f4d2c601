//! Jobs as clients see them.

use jiff::Timestamp;

use crate::protocol::{JobAttempt, JobEnd, JobEvent, JobInfo, JobNotice, JobState};
use crate::store::{AttemptRow, EndRow, EventRow, JobRow, NoticeRow};

fn shown(time: Timestamp) -> String {
    format!("{time:.6}")
}

impl From<JobRow> for JobInfo {
    fn from(row: JobRow) -> Self {
        Self {
            job: row.id,
            name: row.name,
            group: row.group,
            priority: row.priority,
            session: row.session,
            argv: row.argv,
            labels: row.labels,
            state: row.state,
            attempt: row.attempt,
            process: row.process,
            submitted_at: shown(row.submitted_at),
            not_before: row.not_before.map(shown),
            deadline: row.deadline.map(shown),
            cancelling: row.cancel.is_some() && row.state != JobState::Ended,
            retry_of: row.retry_of,
            end: row.end.map(JobEnd::from),
        }
    }
}

impl From<EndRow> for JobEnd {
    fn from(end: EndRow) -> Self {
        Self {
            outcome: end.outcome,
            reason: end.reason,
            exit_code: end.exit_code,
            signal: end.signal,
            succeeded: end.succeeded,
            denied: end.denied,
            result: end.result,
            result_left_out: end.result_left_out,
            result_error: end.result_error,
            started_at: end.started_at.map(shown),
            ended_at: shown(end.ended_at),
            duration_ms: end.duration_ms,
        }
    }
}

impl From<EventRow> for JobEvent {
    fn from(event: EventRow) -> Self {
        let row = event.job;
        let ended = event.state == JobState::Ended;
        Self {
            seq: event.seq,
            time: shown(event.time),
            job: row.id,
            name: row.name,
            group: row.group,
            session: row.session,
            state: event.state,
            attempt: event.attempt,
            process: event.process,
            reason: event.reason,
            end: row.end.filter(|_| ended).map(JobEnd::from),
        }
    }
}

impl From<AttemptRow> for JobAttempt {
    fn from(row: AttemptRow) -> Self {
        Self {
            attempt: row.attempt,
            process: row.process,
            begun_at: shown(row.begun_at),
            outcome: row.outcome,
            reason: row.reason,
            exit_code: row.exit_code,
            ended_at: row.ended_at.map(shown),
        }
    }
}

impl TryFrom<NoticeRow> for JobNotice {
    type Error = serde_json::Error;

    fn try_from(row: NoticeRow) -> Result<Self, serde_json::Error> {
        Ok(Self {
            dedup: row.dedup(),
            target: serde_json::from_str(&row.target)?,
            delivered_at: row.delivered_at.map(shown),
            tries: row.tries,
            error: row.error,
        })
    }
}

impl NoticeRow {
    /// What all messages of a notice have in common, and no others.
    pub(super) fn dedup(&self) -> String {
        format!("{}/{}", self.job, self.id)
    }
}
