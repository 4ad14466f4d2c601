//! What is written about jobs, as SQL.

use jiff::Timestamp;
use provost_actors::jobs::JobId;
use provost_actors::reported::ReportedValue;
use rusqlite::{Connection, OptionalExtension, Statement, params};

use super::{Change, EndRow, JobRow, JobWrite, JobWritten, Submitted, Transition};
use crate::store::text;

/// The statements, prepared once.
pub(in crate::store) struct JobStatements<'c> {
    connection: &'c Connection,
    find_spec: Statement<'c>,
    add_spec: Statement<'c>,
    asked: Statement<'c>,
    add: Statement<'c>,
    start: Statement<'c>,
    run: Statement<'c>,
    put_back: Statement<'c>,
    drop_attempt: Statement<'c>,
    requeue: Statement<'c>,
    end: Statement<'c>,
    end_queued: Statement<'c>,
    cancel: Statement<'c>,
    attempt: Statement<'c>,
    attempt_ended: Statement<'c>,
    event: Statement<'c>,
    last_event: Statement<'c>,
    notice: Statement<'c>,
    notice_tried: Statement<'c>,
    group: Statement<'c>,
    remove_group: Statement<'c>,
}

impl<'c> JobStatements<'c> {
    pub(in crate::store) fn prepare(connection: &'c Connection) -> rusqlite::Result<Self> {
        let prepare = |sql: &str| connection.prepare(sql);
        Ok(Self {
            connection,
            find_spec: prepare("SELECT id FROM job_specs WHERE hash = ?1 AND spec = ?2")?,
            add_spec: prepare("INSERT INTO job_specs (hash, spec) VALUES (?1, ?2)")?,
            asked: prepare("SELECT id, asked FROM jobs WHERE request_id = ?1")?,
            add: prepare(
                "INSERT INTO jobs (id, spec, request_id, asked, session, name, labels, argv, job_group, priority,
                                   after_jobs, retry, submitted_at, not_before, deadline, retry_of, state, attempt, kill,
                                   succeeded, denied, duration_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, 'queued', 0, 0, 0, 0, 0)",
            )?,
            start: prepare(
                "UPDATE jobs SET state = 'starting', process = ?2, attempt = attempt + 1
                 WHERE id = ?1 AND state = 'queued'",
            )?,
            run: prepare(
                "UPDATE jobs SET state = 'running' WHERE id = ?1 AND state = 'starting' AND process = ?2",
            )?,
            put_back: prepare(
                "UPDATE jobs SET state = 'queued', attempt = attempt - 1, process = NULL
                 WHERE id = ?1 AND state = 'starting' AND process = ?2",
            )?,
            drop_attempt: prepare("DELETE FROM job_attempts WHERE job = ?1 AND process = ?2")?,
            requeue: prepare(
                "UPDATE jobs SET state = 'queued', not_before = ?3
                 WHERE id = ?1 AND state IN ('starting', 'running') AND process = ?2 AND cancel IS NULL",
            )?,
            end: prepare(
                "UPDATE jobs SET state = 'ended', outcome = ?3, reason = ?4, exit_code = ?5, signal = ?6, succeeded = ?7,
                                 denied = ?8, started_at = ?9, ended_at = ?10, duration_ms = ?11,
                                 result = ?12, result_error = ?13
                 WHERE id = ?1 AND state IN ('starting', 'running') AND process = ?2",
            )?,
            end_queued: prepare(
                "UPDATE jobs SET state = 'ended', outcome = ?2, reason = ?3, ended_at = ?4
                 WHERE id = ?1 AND state = 'queued'",
            )?,
            cancel: prepare(
                "UPDATE jobs SET cancel = coalesce(cancel, ?2), kill = max(kill, ?3)
                 WHERE id = ?1 AND state IN ('starting', 'running')",
            )?,
            attempt: prepare(
                "INSERT INTO job_attempts (job, attempt, process, begun_at)
                 SELECT id, attempt, process, ?2 FROM jobs WHERE id = ?1",
            )?,
            attempt_ended: prepare(
                "UPDATE job_attempts SET outcome = ?3, reason = ?4, exit_code = ?5, ended_at = ?6
                 WHERE job = ?1 AND process = ?2 AND outcome IS NULL",
            )?,
            event: prepare(
                "INSERT INTO job_events (time, job, state, attempt, process, reason)
                 SELECT ?2, id, state, attempt, iif(state = 'queued', NULL, process), ?3 FROM jobs WHERE id = ?1",
            )?,
            last_event: prepare("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'job_events'")?,
            notice: prepare("INSERT INTO job_notices (job, target, tries) VALUES (?1, ?2, 0)")?,
            notice_tried: prepare(
                "UPDATE job_notices SET tries = tries + 1, delivered_at = ?2, error = ?3
                 WHERE id = ?1 AND delivered_at IS NULL",
            )?,
            group: prepare(
                "INSERT INTO job_groups (name, parallel, paused, temporary) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (name) DO UPDATE SET parallel = ?2, paused = ?3, temporary = ?4",
            )?,
            remove_group: prepare("DELETE FROM job_groups WHERE name = ?1")?,
        })
    }

    pub(in crate::store) fn perform(&mut self, write: &JobWrite) -> rusqlite::Result<JobWritten> {
        Ok(match write {
            JobWrite::Submit { spec, jobs, notices } => return self.submit(spec, jobs, notices),
            JobWrite::Move(moves) => {
                let done: rusqlite::Result<Vec<bool>> =
                    moves.iter().map(|change| self.change(change)).collect();
                JobWritten::Moved(done?, self.last_event()?)
            }
            JobWrite::Group(group) => {
                let limit = group.limit.map(|limit| i64::try_from(limit).unwrap_or(i64::MAX));
                let row = params![group.name, limit, group.paused, group.temporary];
                self.group.execute(row)?;
                JobWritten::Done
            }
            JobWrite::RemoveGroup(name) => {
                self.remove_group.execute([name])?;
                JobWritten::Done
            }
            JobWrite::Notice { job, target } => {
                self.notice.execute(params![job.to_string(), target])?;
                JobWritten::Notice(self.connection.last_insert_rowid())
            }
            JobWrite::NoticeTried { id, taken, error } => {
                let taken = taken.as_ref().map(text::time);
                self.notice_tried.execute(params![id, taken, error])?;
                JobWritten::Done
            }
            JobWrite::Forget(before) => {
                self.forget(before)?;
                JobWritten::Done
            }
        })
    }

    fn submit(
        &mut self,
        spec: &str,
        jobs: &[JobRow],
        notices: &[String],
    ) -> rusqlite::Result<JobWritten> {
        let mut known = Vec::with_capacity(jobs.len());
        for (place, job) in jobs.iter().enumerate() {
            let Some(request) = &job.request else {
                known.push(None);
                continue;
            };
            let before = self.asked.query_row([&request.id], |row| {
                let id: JobId = text::parsed(row, 0, str::parse)?;
                Ok((id, row.get_ref(1)?.as_str()? == request.asked))
            });
            match before.optional()? {
                Some((_, false)) => return Ok(JobWritten::Conflict(place)),
                Some((id, true)) => known.push(Some(id)),
                None => known.push(None),
            }
        }
        let hash = text::digest(spec.as_bytes());
        let found = self
            .find_spec
            .query_row([&hash, spec], |row| row.get(0))
            .optional()?;
        let spec_id: i64 = match found {
            Some(id) => id,
            None if known.iter().all(Option::is_some) => 0,
            None => {
                self.add_spec.execute([&hash, spec])?;
                self.connection.last_insert_rowid()
            }
        };
        let mut accepted = Vec::with_capacity(jobs.len());
        for (job, known) in jobs.iter().zip(known) {
            if let Some(known) = known {
                accepted.push((known, true));
                continue;
            }
            self.insert(job, spec_id)?;
            let id = job.id.to_string();
            self.event
                .execute(params![id, text::time(&job.submitted_at), None::<String>])?;
            for target in notices {
                self.notice.execute(params![id, target])?;
            }
            accepted.push((job.id, false));
        }
        Ok(JobWritten::Submitted(Submitted {
            jobs: accepted,
            spec: spec_id,
            seq: self.last_event()?,
        }))
    }

    fn insert(&mut self, job: &JobRow, spec: i64) -> rusqlite::Result<()> {
        let time = |time: &Option<Timestamp>| time.as_ref().map(text::time);
        self.add.execute(params![
            job.id.to_string(),
            spec,
            job.request.as_ref().map(|request| &request.id),
            job.request.as_ref().map(|request| &request.asked),
            job.session.map(|session| session.to_string()),
            job.name,
            text::json(&job.labels),
            text::json(&job.argv),
            job.group,
            job.priority,
            text::json(&job.after),
            text::json(&job.retry),
            text::time(&job.submitted_at),
            time(&job.not_before),
            time(&job.deadline),
            job.retry_of.map(|job| job.to_string()),
        ])?;
        Ok(())
    }

    /// One compare-and-set, and its event. False if the job was not as it must be.
    fn change(&mut self, transition: &Transition) -> rusqlite::Result<bool> {
        let id = transition.job.to_string();
        let time = text::time(&transition.time);
        let mut why: Option<&str> = None;
        let changed = match &transition.change {
            Change::Start(process) => {
                let changed = self.start.execute(params![id, process.to_string()])?;
                if changed == 1 {
                    self.attempt.execute(params![id, time])?;
                }
                changed
            }
            Change::Run(process) => self.run.execute(params![id, process.to_string()])?,
            Change::PutBack(process) => {
                let row = params![id, process.to_string()];
                let changed = self.put_back.execute(row)?;
                if changed == 1 {
                    self.drop_attempt.execute(row)?;
                }
                changed
            }
            Change::Requeue {
                process,
                end,
                not_before,
                reason,
            } => {
                why = Some(reason);
                let process = process.to_string();
                let not_before = text::time(not_before);
                let changed = self.requeue.execute(params![id, process, not_before])?;
                if changed == 1 {
                    self.attempt_ended(&id, &process, end)?;
                }
                changed
            }
            Change::End {
                process: Some(process),
                end,
            } => {
                let process = process.to_string();
                let changed = self.end.execute(params![
                    id,
                    process,
                    text::word(&end.outcome),
                    end.reason,
                    end.exit_code,
                    end.signal,
                    end.succeeded,
                    end.denied,
                    end.started_at.as_ref().map(text::time),
                    text::time(&end.ended_at),
                    text::integer(end.duration_ms),
                    end.result.as_ref().map(ReportedValue::as_json),
                    end.result_error,
                ])?;
                if changed == 1 {
                    self.attempt_ended(&id, &process, end)?;
                }
                changed
            }
            Change::End { process: None, end } => self.end_queued.execute(params![
                id,
                text::word(&end.outcome),
                end.reason,
                text::time(&end.ended_at)
            ])?,
            // Nothing that is told: what comes of it is.
            Change::Cancel { reason, kill } => {
                return Ok(self.cancel.execute(params![id, reason, kill])? == 1);
            }
        };
        if changed == 1 {
            self.event.execute(params![id, time, why])?;
        }
        Ok(changed == 1)
    }

    fn attempt_ended(&mut self, job: &str, process: &str, end: &EndRow) -> rusqlite::Result<()> {
        self.attempt_ended.execute(params![
            job,
            process,
            text::word(&end.outcome),
            end.reason,
            end.exit_code,
            text::time(&end.ended_at)
        ])?;
        Ok(())
    }

    fn last_event(&mut self) -> rusqlite::Result<u64> {
        let last: i64 = self.last_event.query_row([], |row| row.get(0))?;
        Ok(last.unsigned_abs())
    }

    fn forget(&self, before: &Timestamp) -> rusqlite::Result<()> {
        self.connection.execute(
            // How those ended that another is still to come after decides about that one, perhaps under the next daemon.
            "DELETE FROM jobs WHERE state = 'ended' AND ended_at < ?1
             AND id NOT IN (SELECT after.value ->> 0 FROM jobs waiting, json_each(waiting.after_jobs) after
                            WHERE waiting.state <> 'ended')",
            [text::time(before)],
        )?;
        self.connection.execute(
            "DELETE FROM job_groups WHERE temporary = 1
             AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.job_group = job_groups.name)",
            [],
        )?;
        self.connection.execute(
            "DELETE FROM job_specs WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.spec = job_specs.id)",
            [],
        )?;
        Ok(())
    }
}
