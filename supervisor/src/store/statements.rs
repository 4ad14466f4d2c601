//! What is written, as SQL. Each write may be repeated and then changes nothing.

use std::path::Path;

use jiff::Timestamp;
use provost_actors::event::ProcessId;
use provost_actors::record::TerminalRecord;
use provost_actors::session::SessionId;
use rusqlite::{Connection, Statement, params};

use super::jobs::statements::JobStatements;
use super::jobs::{JobWrite, JobWritten};
use super::rows::{Acceptance, DenialRow, ProcessRow, ProcessState, SessionRow, SessionState};
use super::{SCHEMA_VERSION, StoreError, text};

/// One thing to write.
#[derive(Debug)]
pub(super) enum Write {
    Accept(Box<ProcessRow>),
    Live(ProcessId),
    Sealed(Box<Sealed>),
    SessionOpened(Box<SessionRow>),
    SessionChanged(SessionId, SessionState, Timestamp),
    Forget(Vec<ProcessId>),
    ForgetSessions(Timestamp),
    Job(JobWrite),
    /// Nothing, but as everything is written: whether anything can be.
    Trial,
}

/// A record as it is written.
#[derive(Debug)]
pub(super) struct Sealed {
    record: TerminalRecord,
    json: String,
    denials: Vec<(DenialRow, String)>,
    kept_bytes: u64,
}

impl Sealed {
    pub(super) fn new(record: TerminalRecord, denials: Vec<DenialRow>) -> Self {
        let json = text::json(&record);
        let denials: Vec<_> = denials
            .into_iter()
            .map(|row| {
                let target = text::json(&row.denial.target);
                (row, target)
            })
            .collect();
        let retained: u64 = record.output.values().map(|output| output.retained).sum();
        let denied =
            |(row, target): &(DenialRow, String)| (target.len() + row.denial.rule.len() + 128) as u64;
        let kept_bytes = retained + json.len() as u64 + denials.iter().map(denied).sum::<u64>();
        Self {
            record,
            json,
            denials,
            kept_bytes,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone)]
pub(super) enum Written {
    Done,
    Accepted(Acceptance),
    Job(JobWritten),
}

/// The statements, prepared once.
pub(super) struct Statements<'c> {
    path: &'c Path,
    begin: Statement<'c>,
    commit: Statement<'c>,
    accept: Statement<'c>,
    known: Statement<'c>,
    asked: Statement<'c>,
    live: Statement<'c>,
    seal: Statement<'c>,
    record: Statement<'c>,
    sealed: Statement<'c>,
    denial: Statement<'c>,
    session: Statement<'c>,
    session_changed: Statement<'c>,
    forget: Statement<'c>,
    forget_sessions: Statement<'c>,
    jobs: JobStatements<'c>,
    trial: Statement<'c>,
}

impl<'c> Statements<'c> {
    pub(super) fn prepare(connection: &'c Connection, path: &'c Path) -> Result<Self, StoreError> {
        let prepare = |sql: &str| {
            let prepared = connection.prepare(sql);
            prepared.map_err(|error| StoreError::of(path, "prepare to write", error))
        };
        Ok(Self {
            path,
            begin: prepare("BEGIN IMMEDIATE")?,
            commit: prepare("COMMIT")?,
            accept: prepare(
                "INSERT INTO processes (id, session, name, labels, argv, cwd, policy, confined, request_id, asked,
                                        queued_at, boot_id, state)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13) ON CONFLICT DO NOTHING",
            )?,
            known: prepare("SELECT 1 FROM processes WHERE id = ?1")?,
            asked: prepare("SELECT id, asked FROM processes WHERE request_id = ?1")?,
            live: prepare("UPDATE processes SET state = 'live' WHERE id = ?1 AND state = 'accepted'")?,
            seal: prepare("UPDATE processes SET state = 'sealed' WHERE id = ?1")?,
            record: prepare(
                "INSERT INTO records (process, outcome, reason, exit_code, signal, succeeded, denied, started_at,
                                      ended_at, duration_ms, output_bytes, output_dropped, denials_total,
                                      denials_complete, kept_bytes, record)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
                 ON CONFLICT DO NOTHING",
            )?,
            sealed: prepare("SELECT record FROM records WHERE process = ?1")?,
            denial: prepare(
                "INSERT INTO denials (process, seq, time, class, operation, target, rule, errno, certainty, decision,
                                      comm, pid)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12) ON CONFLICT DO NOTHING",
            )?,
            session: prepare(
                "INSERT INTO sessions (id, name, parent, on_disconnect, ttl_ms, state, opened_at, changed_at, closed_at,
                                       kept_bytes_max)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT DO NOTHING",
            )?,
            // What is told late must not undo what was told later.
            session_changed: prepare(
                "UPDATE sessions SET state = ?2, changed_at = ?3, closed_at = iif(?2 = 'closed', ?3, NULL)
                 WHERE id = ?1 AND state <> 'closed' AND (changed_at <= ?3 OR ?2 = 'closed')",
            )?,
            forget: prepare("DELETE FROM processes WHERE id = ?1")?,
            forget_sessions: prepare(
                "DELETE FROM sessions WHERE state = 'closed' AND closed_at < ?1
                 AND NOT EXISTS (SELECT 1 FROM processes WHERE processes.session = sessions.id)",
            )?,
            jobs: JobStatements::prepare(connection)
                .map_err(|error| StoreError::of(path, "prepare to write", error))?,
            // The same as before; its page is written all the same.
            trial: prepare(&format!("PRAGMA user_version = {SCHEMA_VERSION}"))?,
        })
    }

    pub(super) fn begin(&mut self) -> Result<(), StoreError> {
        done(self.begin.execute([])).map_err(|error| StoreError::of(self.path, "begin to write", error))
    }

    pub(super) fn commit(&mut self) -> Result<(), StoreError> {
        done(self.commit.execute([])).map_err(|error| StoreError::of(self.path, "commit", error))
    }

    /// Performs one write within the transaction.
    pub(super) fn perform(&mut self, write: &Write) -> Result<Written, StoreError> {
        let path = self.path;
        let say = |what| move |error| StoreError::of(path, what, error);
        let written = match write {
            Write::Accept(process) => {
                return self
                    .accept(process)
                    .map(Written::Accepted)
                    .map_err(say("accept a process"));
            }
            Write::Job(job) => {
                let written = self.jobs.perform(job);
                return written.map(Written::Job).map_err(say("write about jobs"));
            }
            Write::Sealed(sealed) => return self.seal(sealed).map(|()| Written::Done),
            Write::Live(process) => {
                done(self.live.execute([process.to_string()])).map_err(say("note a start"))
            }
            Write::SessionOpened(session) => self.session(session).map_err(say("open a session")),
            Write::SessionChanged(id, state, at) => {
                let changed = params![id.to_string(), state.as_str(), text::time(at)];
                done(self.session_changed.execute(changed)).map_err(say("change a session"))
            }
            Write::Forget(processes) => processes
                .iter()
                .try_for_each(|process| done(self.forget.execute([process.to_string()])))
                .map_err(say("forget a process")),
            Write::ForgetSessions(before) => {
                done(self.forget_sessions.execute([text::time(before)])).map_err(say("forget sessions"))
            }
            Write::Trial => done(self.trial.execute([])).map_err(say("write")),
        };
        written.map(|()| Written::Done)
    }

    fn accept(&mut self, process: &ProcessRow) -> rusqlite::Result<Acceptance> {
        if insert(&mut self.accept, process)? {
            return Ok(Acceptance::Accepted);
        }
        if self.known.exists([process.id.to_string()])? {
            return Ok(Acceptance::Accepted);
        }
        let (id, asked) = process
            .request
            .as_ref()
            .map_or(("", ""), |request| (request.id.as_str(), request.asked.as_str()));
        self.asked.query_row([id], |row| {
            let other = text::process(row, 0)?;
            Ok(match row.get_ref(1)?.as_str()? == asked {
                true => Acceptance::Repeated(other),
                false => Acceptance::Conflict(other),
            })
        })
    }

    fn seal(&mut self, sealed: &Sealed) -> Result<(), StoreError> {
        let path = self.path;
        let say = |error| StoreError::of(path, "seal a record", error);
        let record = &sealed.record;
        let id = record.process.to_string();
        if self.seal.execute([&id]).map_err(say)? == 0 {
            // What was accepted is lost; the record tells most of it.
            insert(&mut self.accept, &of_record(record)).map_err(say)?;
        }
        let output = |of: fn(&provost_actors::record::OutputSummary) -> u64| {
            text::integer(record.output.values().map(of).sum())
        };
        let row = params![
            id,
            text::word(&record.outcome),
            record.reason,
            record.exit_code,
            record.signal,
            record.succeeded,
            record.denied,
            record.started_at.as_ref().map(text::time),
            text::time(&record.ended_at),
            text::integer(record.duration_ms),
            output(|output| output.bytes),
            output(|output| output.dropped),
            text::integer(record.denials.total),
            record.denials.complete,
            text::integer(sealed.kept_bytes),
            sealed.json,
        ];
        if self.record.execute(row).map_err(say)? == 0 {
            let first: String = self.sealed.query_row([&id], |row| row.get(0)).map_err(say)?;
            let same =
                || serde_json::from_str(&first).is_ok_and(|first: TerminalRecord| first == *record);
            if first != sealed.json && !same() {
                return Err(StoreError::RecordDiffers(record.process));
            }
        }
        for (row, target) in &sealed.denials {
            let denial = &row.denial;
            let row = params![
                id,
                text::integer(row.seq),
                text::time(&row.time),
                text::word(&denial.class),
                denial.operation,
                target,
                denial.rule,
                denial.errno,
                text::word(&denial.certainty),
                text::word(&denial.decision),
                denial.comm,
                denial.pid,
            ];
            self.denial.execute(row).map_err(say)?;
        }
        Ok(())
    }

    fn session(&mut self, session: &SessionRow) -> rusqlite::Result<()> {
        let changed_at = text::time(&session.changed_at);
        let closed_at = (session.state == SessionState::Closed).then_some(&changed_at);
        done(self.session.execute(params![
            session.id.to_string(),
            session.name,
            session.parent.map(|parent| parent.to_string()),
            text::word(&session.on_disconnect),
            session.ttl.map(|ttl| i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX)),
            session.state.as_str(),
            text::time(&session.opened_at),
            changed_at,
            closed_at,
            session.kept_bytes_max.map(text::integer),
        ]))
    }
}

/// Whether the row is new.
fn insert(statement: &mut Statement<'_>, process: &ProcessRow) -> rusqlite::Result<bool> {
    let inserted = statement.execute(params![
        process.id.to_string(),
        process.session.map(|session| session.to_string()),
        process.name,
        text::json(&process.labels),
        text::json(&process.argv),
        process.cwd,
        process.policy,
        process.confined,
        process.request.as_ref().map(|request| &request.id),
        process.request.as_ref().map(|request| &request.asked),
        process.queued_at.as_ref().map(text::time),
        process.boot_id,
        process.state.as_str(),
    ])?;
    Ok(inserted == 1)
}

fn of_record(record: &TerminalRecord) -> ProcessRow {
    ProcessRow {
        id: record.process,
        session: record.session.as_deref().and_then(|session| session.parse().ok()),
        name: None,
        labels: record.labels.clone(),
        argv: record.argv.clone(),
        cwd: None,
        policy: record.sandbox.as_ref().map(|sandbox| sandbox.policy.clone()),
        confined: false,
        request: None,
        queued_at: record.queued_at,
        boot_id: None,
        state: ProcessState::Sealed,
    }
}

fn done(changed: rusqlite::Result<usize>) -> rusqlite::Result<()> {
    changed.map(|_| ())
}
