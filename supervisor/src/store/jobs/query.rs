//! What is asked about jobs.

use std::collections::{BTreeMap, HashMap};

use provost_actors::jobs::{JobId, JobState};
use provost_actors::session::SessionId;
use rusqlite::types::Value;
use rusqlite::{OptionalExtension, Row, params, params_from_iter};

use super::{AttemptRow, EndRow, EventRow, GroupRow, JobRow, NoticeRow};
use crate::store::{Reader, Request, StoreError, text};

/// The columns of a job, in the order of [`job`].
const JOB: &str = "j.id, j.request_id, j.asked, j.session, j.name, j.labels, j.argv, j.job_group, j.priority, j.after_jobs, \
     j.retry, j.submitted_at, j.not_before, j.deadline, j.retry_of, j.state, j.attempt, j.process, j.cancel, j.kill, \
     j.spec, j.outcome, j.reason, j.exit_code, j.signal, j.succeeded, j.denied, j.started_at, j.ended_at, j.duration_ms, \
     j.result, j.result_error";
const COLUMNS: usize = 32;
/// About how many bytes of results are read at a time: many jobs may have more of them than there is memory.
pub const RESULT_BYTES_PER_READ: u64 = 4 << 20;

/// Which jobs are wanted.
#[derive(Debug, Clone, Default)]
pub struct JobQuery {
    /// Of these sessions; of any and none, if absent.
    pub sessions: Option<Vec<SessionId>>,
    /// Of this group.
    pub group: Option<String>,
    /// In one of these states; in any, if empty.
    pub states: Vec<JobState>,
    /// With these labels.
    pub labels: BTreeMap<String, String>,
    /// Behind this job.
    pub after: Option<JobId>,
    /// So many at most.
    pub limit: usize,
}

impl JobQuery {
    /// Conditions on `jobs j`, and what they are about.
    fn conditions(&self) -> (String, Vec<Value>) {
        let mut sql = String::from("1");
        let mut values: Vec<Value> = Vec::new();
        if let Some(sessions) = &self.sessions {
            sql += " AND j.session IN (SELECT value FROM json_each(?))";
            values.push(text::json(sessions).into());
        }
        if let Some(group) = &self.group {
            sql += " AND j.job_group = ?";
            values.push(group.clone().into());
        }
        if !self.states.is_empty() {
            sql += " AND j.state IN (SELECT value FROM json_each(?))";
            values.push(text::json(&self.states).into());
        }
        for (key, value) in &self.labels {
            sql += " AND EXISTS (SELECT 1 FROM json_each(j.labels) l WHERE l.key = ? AND l.value = ?)";
            values.extend([Value::from(key.clone()), value.clone().into()]);
        }
        if let Some(after) = self.after {
            sql += " AND j.id > ?";
            values.push(after.to_string().into());
        }
        (sql, values)
    }
}

impl Reader {
    /// A job.
    ///
    /// # Errors
    /// The database cannot be read, or the row.
    pub fn job(&self, id: JobId) -> Result<Option<JobRow>, StoreError> {
        let sql = format!("SELECT {JOB} FROM jobs j WHERE j.id = ?1");
        let mut room = u64::MAX;
        let found = self
            .connection
            .query_row(&sql, [id.to_string()], |row| job(row, &mut room))
            .optional();
        found.map_err(|error| self.say(error))
    }

    /// These jobs, those that are there. Without results from [`RESULT_BYTES_PER_READ`] on, as their ends say.
    ///
    /// # Errors
    /// The database cannot be read, or a row.
    pub fn jobs_of(&self, ids: &[JobId]) -> Result<HashMap<JobId, JobRow>, StoreError> {
        let sql = format!("SELECT {JOB} FROM json_each(?1) w JOIN jobs j ON j.id = w.value");
        let mut room = RESULT_BYTES_PER_READ;
        let found = self.all(&sql, vec![text::json(&ids).into()], |row| job(row, &mut room))?;
        Ok(found.into_iter().map(|job| (job.id, job)).collect())
    }

    /// Jobs, oldest first; and whether there are more. Without results from [`RESULT_BYTES_PER_READ`] on, as their ends say.
    ///
    /// # Errors
    /// The database cannot be read, or a row.
    pub fn jobs(&self, query: &JobQuery) -> Result<(Vec<JobRow>, bool), StoreError> {
        let (conditions, mut values) = query.conditions();
        let sql = format!("SELECT {JOB} FROM jobs j WHERE {conditions} ORDER BY j.id LIMIT ?");
        values.push(Value::from(i64::try_from(query.limit + 1).unwrap_or(i64::MAX)));
        let mut room = RESULT_BYTES_PER_READ;
        let mut found = self.all(&sql, values, |row| job(row, &mut room))?;
        let more = found.len() > query.limit;
        found.truncate(query.limit);
        Ok((found, more))
    }

    /// Ids of jobs that are meant by a part of an id (`part`) or a name; the best first, two at most.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn job_named(&self, word: &str, part: bool) -> Result<Vec<JobId>, StoreError> {
        let id = |row: &Row<'_>| text::parsed(row, 0, str::parse::<JobId>);
        let named = "SELECT id FROM jobs WHERE name = ? ORDER BY state = 'ended', id DESC LIMIT 1";
        let found = self.all(named, vec![word.to_owned().into()], id)?;
        if !found.is_empty() || !part {
            return Ok(found);
        }
        let like = "SELECT id FROM jobs WHERE substr(id, 1, length(?1)) = ?1 OR substr(id, -length(?1)) = ?1 LIMIT 2";
        self.all(like, vec![word.to_owned().into()], id)
    }

    /// Every job that has not ended, oldest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn unended_jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        let sql = format!("SELECT {JOB} FROM jobs j WHERE j.state <> 'ended' ORDER BY j.id");
        self.all(&sql, Vec::new(), |row| job(row, &mut 0))
    }

    /// Whether a job has not ended, or somebody is still to be told of an end.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn has_waiting(&self) -> Result<bool, StoreError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM jobs WHERE state <> 'ended')
                       OR EXISTS (SELECT 1 FROM job_notices WHERE delivered_at IS NULL)";
        let waiting = self.connection.query_row(sql, [], |row| row.get(0));
        waiting.map_err(|error| self.say(error))
    }

    /// Whether somebody is still to be told of an end, also of one that is yet to come.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn has_notices(&self) -> Result<bool, StoreError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM job_notices WHERE delivered_at IS NULL)";
        let waiting = self.connection.query_row(sql, [], |row| row.get(0));
        waiting.map_err(|error| self.say(error))
    }

    /// Every group.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn groups(&self) -> Result<Vec<GroupRow>, StoreError> {
        let sql = "SELECT name, parallel, paused, temporary FROM job_groups ORDER BY name";
        self.all(sql, Vec::new(), |row| {
            let limit: Option<i64> = row.get(1)?;
            Ok(GroupRow {
                name: row.get(0)?,
                limit: limit.and_then(|limit| usize::try_from(limit).ok()),
                paused: row.get(2)?,
                temporary: row.get(3)?,
            })
        })
    }

    /// A spec, as JSON.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn job_spec(&self, id: i64) -> Result<Option<String>, StoreError> {
        let sql = "SELECT spec FROM job_specs WHERE id = ?1";
        let found = self
            .connection
            .query_row(sql, params![id], |row| row.get(0))
            .optional();
        found.map_err(|error| self.say(error))
    }

    /// Every attempt of a job.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn attempts(&self, id: JobId) -> Result<Vec<AttemptRow>, StoreError> {
        let sql =
            "SELECT attempt, process, begun_at, outcome, reason, exit_code, ended_at FROM job_attempts
                   WHERE job = ?1 ORDER BY attempt";
        self.all(sql, vec![id.to_string().into()], |row| {
            let outcome: Option<String> = row.get(3)?;
            Ok(AttemptRow {
                attempt: row.get(0)?,
                process: text::process(row, 1)?,
                begun_at: text::parsed(row, 2, str::parse)?,
                outcome: outcome.map(|_| text::from_word(row, 3)).transpose()?,
                reason: row.get(4)?,
                exit_code: row.get(5)?,
                ended_at: text::optional(row, 6, str::parse)?,
            })
        })
    }

    /// Who is told of the end of a job.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn notices(&self, id: JobId) -> Result<Vec<NoticeRow>, StoreError> {
        let sql = "SELECT id, job, target, delivered_at, tries, error FROM job_notices WHERE job = ?1 ORDER BY id";
        self.all(sql, vec![id.to_string().into()], notice)
    }

    /// What is to be told and was not taken yet, of jobs that have ended.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn open_notices(&self) -> Result<Vec<NoticeRow>, StoreError> {
        let sql = "SELECT n.id, n.job, n.target, n.delivered_at, n.tries, n.error
                   FROM job_notices n JOIN jobs j ON j.id = n.job
                   WHERE n.delivered_at IS NULL AND j.state = 'ended' ORDER BY n.id";
        self.all(sql, Vec::new(), notice)
    }

    /// Events behind this one, in order, up to the limit or about [`RESULT_BYTES_PER_READ`] of results; the number up to which
    /// these are all that are wanted; and whether there may be more behind it.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn job_events(
        &self,
        after: u64,
        query: &JobQuery,
    ) -> Result<(Vec<EventRow>, u64, bool), StoreError> {
        let view = self
            .connection
            .unchecked_transaction()
            .map_err(|error| self.say(error))?;
        let last = self.last_job_event()?;
        let (conditions, values) = query.conditions();
        let sql = format!(
            "SELECT {JOB}, e.seq, e.time, e.state, e.attempt, e.process, e.reason
             FROM job_events e JOIN jobs j ON j.id = e.job WHERE e.seq > ? AND {conditions} ORDER BY e.seq LIMIT ?"
        );
        let mut all = vec![Value::from(text::integer(after))];
        all.extend(values);
        all.push(Value::from(i64::try_from(query.limit).unwrap_or(i64::MAX)));
        let mut room = RESULT_BYTES_PER_READ;
        let found: rusqlite::Result<Vec<EventRow>> = (|| {
            let mut statement = self.connection.prepare(&sql)?;
            let mut rows = statement.query(params_from_iter(all))?;
            let mut found = Vec::new();
            while room > 0
                && let Some(row) = rows.next()?
            {
                found.push(event(row, &mut room)?);
            }
            Ok(found)
        })();
        let found = found.map_err(|error| self.say(error))?;
        drop(view);
        Ok(match found.last().map(|event| event.seq) {
            Some(seq) if room == 0 || found.len() >= query.limit => (found, seq, true),
            _ => (found, last.max(after), false),
        })
    }

    /// The number of the last event.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn last_job_event(&self) -> Result<u64, StoreError> {
        let sql = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'job_events'";
        let last: Result<i64, _> = self.connection.query_row(sql, [], |row| row.get(0));
        Ok(last.map_err(|error| self.say(error))?.unsigned_abs())
    }

    fn all<T>(
        &self,
        sql: &str,
        values: Vec<Value>,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let found: rusqlite::Result<Vec<T>> = (|| {
            let mut statement = self.connection.prepare(sql)?;
            let rows = statement.query_map(params_from_iter(values), read)?;
            rows.collect()
        })();
        found.map_err(|error| self.say(error))
    }

    fn say(&self, error: rusqlite::Error) -> StoreError {
        StoreError::of(&self.path, "read jobs", error)
    }
}

fn notice(row: &Row<'_>) -> rusqlite::Result<NoticeRow> {
    Ok(NoticeRow {
        id: row.get(0)?,
        job: text::parsed(row, 1, str::parse)?,
        target: row.get(2)?,
        delivered_at: text::optional(row, 3, str::parse)?,
        tries: row.get(4)?,
        error: row.get(5)?,
    })
}

fn event(row: &Row<'_>, room: &mut u64) -> rusqlite::Result<EventRow> {
    let seq: i64 = row.get(COLUMNS)?;
    let state = text::from_word(row, COLUMNS + 2)?;
    // Of a job that has ended every event is read with its end, and told of with the last one.
    let room = if state == JobState::Ended { room } else { &mut 0 };
    Ok(EventRow {
        seq: seq.unsigned_abs(),
        time: text::parsed(row, COLUMNS + 1, str::parse)?,
        state,
        attempt: row.get(COLUMNS + 3)?,
        process: text::optional(row, COLUMNS + 4, str::parse)?,
        reason: row.get(COLUMNS + 5)?,
        job: job(row, room)?,
    })
}

/// A job, with its result if there is any room for it, which then is less.
fn job(row: &Row<'_>, room: &mut u64) -> rusqlite::Result<JobRow> {
    let request: (Option<String>, Option<String>) = (row.get(1)?, row.get(2)?);
    let cancel: Option<String> = row.get(18)?;
    let kill: bool = row.get(19)?;
    let state: JobState = text::from_word(row, 15)?;
    let end = match state {
        JobState::Ended => Some(end(row, room)?),
        _ => None,
    };
    Ok(JobRow {
        id: text::parsed(row, 0, str::parse)?,
        request: match request {
            (Some(id), Some(asked)) => Some(Request { id, asked }),
            _ => None,
        },
        session: text::optional(row, 3, str::parse)?,
        name: row.get(4)?,
        labels: text::from_json(row, 5)?,
        argv: text::from_json(row, 6)?,
        group: row.get(7)?,
        priority: row.get(8)?,
        after: text::from_json(row, 9)?,
        retry: text::from_json(row, 10)?,
        submitted_at: text::parsed(row, 11, str::parse)?,
        not_before: text::optional(row, 12, str::parse)?,
        deadline: text::optional(row, 13, str::parse)?,
        retry_of: text::optional(row, 14, str::parse)?,
        state,
        attempt: row.get(16)?,
        process: text::optional(row, 17, str::parse)?,
        cancel: cancel.map(|reason| (reason, kill)),
        spec: row.get(20)?,
        end,
    })
}

fn end(row: &Row<'_>, room: &mut u64) -> rusqlite::Result<EndRow> {
    let duration_ms: i64 = row.get(29)?;
    let result_bytes = row.get_ref(30)?.as_str_or_null()?.map(str::len);
    let taken = result_bytes.filter(|_| *room > 0);
    *room = room.saturating_sub(taken.unwrap_or(0) as u64);
    Ok(EndRow {
        outcome: text::from_word(row, 21)?,
        reason: row.get(22)?,
        exit_code: row.get(23)?,
        signal: row.get(24)?,
        succeeded: row.get(25)?,
        denied: row.get(26)?,
        result: taken.map(|_| text::from_json(row, 30)).transpose()?,
        result_left_out: taken != result_bytes,
        result_error: row.get(31)?,
        started_at: text::optional(row, 27, str::parse)?,
        ended_at: text::parsed(row, 28, str::parse)?,
        duration_ms: duration_ms.unsigned_abs(),
    })
}
