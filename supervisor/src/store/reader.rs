//! Reading, on a connection that cannot write: the daemon's own, and that of the command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use provost_actors::event::ProcessId;
use provost_actors::record::TerminalRecord;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};

use super::place::DATABASE_NAME;
use super::rows::{Loaded, ProcessRow, ProcessState, Request, SealedProcess, SessionRow, SessionState};
use super::{BUSY_TIMEOUT, SCHEMA_VERSION, StoreError, schema, text};

/// The columns of a process, in the order of [`process`].
const PROCESS: &str = "p.id, p.session, p.name, p.labels, p.argv, p.cwd, p.policy, p.confined, p.request_id, p.asked, \
     p.queued_at, p.boot_id, p.state";

/// A database that is open for reading. A daemon may write to it meanwhile.
#[derive(Debug)]
pub struct Reader {
    pub(super) connection: Connection,
    pub(super) path: PathBuf,
}

impl Reader {
    /// Opens the database of a state directory; none if there is none yet.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or was made by a newer or an older program.
    pub fn open(state_dir: &Path) -> Result<Option<Self>, StoreError> {
        let path = state_dir.join(DATABASE_NAME);
        match std::fs::symlink_metadata(&path) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("look at", &path, error)),
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let say = |error| StoreError::of(&path, "open", error);
        let connection = Connection::open_with_flags(&path, flags).map_err(say)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(say)?;
        match schema::version(&connection, &path)? {
            0 => Ok(None),
            SCHEMA_VERSION => Ok(Some(Self { connection, path })),
            found => Err(StoreError::OlderSchema { path, found }),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a daemon needs when it starts; of sealed processes so many.
    ///
    /// # Errors
    /// The database cannot be read, or a row in it.
    pub fn load(&self, sealed_max: usize) -> Result<Loaded, StoreError> {
        load(&self.connection, &self.path, sealed_max)
    }

    /// A process that has its record.
    ///
    /// # Errors
    /// The database cannot be read, or the row.
    pub fn sealed(&self, process: ProcessId) -> Result<Option<SealedProcess>, StoreError> {
        let sql = format!(
            "SELECT {PROCESS}, r.record FROM records r JOIN processes p ON p.id = r.process WHERE p.id = ?1"
        );
        let found = self
            .connection
            .query_row(&sql, [process.to_string()], sealed)
            .optional();
        found.map_err(|error| StoreError::of(&self.path, "read a record", error))
    }

    /// The process that came of a client's request, unless it is forgotten.
    ///
    /// # Errors
    /// The database cannot be read, or the row.
    pub fn requested(&self, request_id: &str) -> Result<Option<ProcessRow>, StoreError> {
        let sql = format!("SELECT {PROCESS} FROM processes p WHERE p.request_id = ?1");
        let found = self.connection.query_row(&sql, [request_id], process).optional();
        found.map_err(|error| StoreError::of(&self.path, "read a process", error))
    }
}

/// What a daemon needs when it starts, in one look.
pub(super) fn load(
    connection: &Connection,
    path: &Path,
    sealed_max: usize,
) -> Result<Loaded, StoreError> {
    let loaded = (|| {
        let view = connection.unchecked_transaction()?;
        let sessions = rows(
            &view,
            "SELECT id, name, parent, on_disconnect, ttl_ms, state, opened_at, changed_at, kept_bytes_max FROM sessions
             WHERE state <> 'closed' ORDER BY id",
            0,
            session,
        )?;
        let unsealed =
            format!("SELECT {PROCESS} FROM processes p WHERE p.state <> 'sealed' ORDER BY p.id");
        let unsealed = rows(&view, &unsealed, 0, process)?;
        let last = format!(
            "SELECT {PROCESS}, r.record FROM records r JOIN processes p ON p.id = r.process
             ORDER BY r.ended_at DESC LIMIT ?1"
        );
        let mut last = rows(&view, &last, sealed_max, sealed)?;
        last.reverse();
        Ok(Loaded {
            sessions,
            unsealed,
            sealed: last,
        })
    })();
    loaded.map_err(|error| StoreError::of(path, "read what there is", error))
}

fn rows<T>(
    connection: &Connection,
    sql: &str,
    limit: usize,
    read: fn(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    let mut statement = connection.prepare(sql)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let found = match statement.parameter_count() {
        0 => statement.query_map([], read)?,
        _ => statement.query_map(params![limit], read)?,
    };
    // One row that somebody changed by hand does not keep the daemon from starting.
    let readable = found.filter(|row| match row {
        Err(error @ rusqlite::Error::FromSqlConversionFailure(..)) => {
            tracing::warn!(%error, "a row of the database cannot be read and is passed over");
            false
        }
        _ => true,
    });
    readable.collect()
}

fn session(row: &Row<'_>) -> rusqlite::Result<SessionRow> {
    let ttl_ms: Option<i64> = row.get(4)?;
    let kept_bytes_max: Option<i64> = row.get(8)?;
    Ok(SessionRow {
        id: text::parsed(row, 0, |text| text.parse())?,
        name: row.get(1)?,
        parent: text::optional(row, 2, |text| text.parse())?,
        on_disconnect: text::from_word(row, 3)?,
        ttl: ttl_ms.map(|ttl| Duration::from_millis(ttl.unsigned_abs())),
        kept_bytes_max: kept_bytes_max.map(i64::unsigned_abs),
        state: match row.get_ref(5)?.as_str()? {
            "attached" => SessionState::Attached,
            "detached" => SessionState::Detached,
            _ => SessionState::Closed,
        },
        opened_at: text::parsed(row, 6, |text| text.parse())?,
        changed_at: text::parsed(row, 7, |text| text.parse())?,
    })
}

fn process(row: &Row<'_>) -> rusqlite::Result<ProcessRow> {
    let request: (Option<String>, Option<String>) = (row.get(8)?, row.get(9)?);
    Ok(ProcessRow {
        id: text::process(row, 0)?,
        session: text::optional(row, 1, |text| text.parse())?,
        name: row.get(2)?,
        labels: text::from_json(row, 3)?,
        argv: text::from_json(row, 4)?,
        cwd: row.get(5)?,
        policy: row.get(6)?,
        confined: row.get(7)?,
        request: match request {
            (Some(id), Some(asked)) => Some(Request { id, asked }),
            _ => None,
        },
        queued_at: text::optional(row, 10, |text| text.parse())?,
        boot_id: row.get(11)?,
        state: match row.get_ref(12)?.as_str()? {
            "accepted" => ProcessState::Accepted,
            "live" => ProcessState::Live,
            _ => ProcessState::Sealed,
        },
    })
}

fn sealed(row: &Row<'_>) -> rusqlite::Result<SealedProcess> {
    let record: TerminalRecord = text::from_json(row, 13)?;
    Ok(SealedProcess {
        process: process(row)?,
        record,
    })
}
