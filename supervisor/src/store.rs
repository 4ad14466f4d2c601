//! The daemon's database: what must be known after the next start, and what people ask about afterwards.
//!
//! ```text
//! callers ──► queue (bounded) ──► writer: one thread, one connection ──► provost.db (WAL)
//!    ▲                               │ group commit                        ▲
//!    └───────── answers ◄────────────┘                    Reader: read-only connections
//! ```
//!
//! # Guarantees, and what is not guaranteed
//!
//! - What was acknowledged here is there after the death of the daemon at any instant (`kill -9`). A crash of the machine or the
//!   loss of power may take what was acknowledged in the last moments, but leaves a database that opens: it is committed
//!   with `synchronous = NORMAL`.
//! - Every write may be repeated, also after a crash, and then changes nothing.
//! - A write whose caller stopped waiting (a dropped future) may be done or not.
//! - A slow disk makes callers wait, and only those; nothing here blocks a thread of the runtime. The exception is
//!   [`Store::open`], which is for the start.
//! - Where nothing can be written, because another program holds the database or the disk forbids it, callers wait at most ten
//!   seconds and are refused from then on at once; it is tried again each time, [`Store::health`] says so, and
//!   [`Store::writable`] waits for it to pass.
//! - A full disk: a ballast of 1 MiB is given up, records and ends of sessions are still written, anything new is refused with
//!   [`StoreError::Full`], and [`Store::health`] says so, until there is room again.
//!
//! The tables are described in `docs/database.md`.

mod ballast;
mod error;
mod jobs;
mod place;
mod query;
mod reader;
mod retention;
mod rows;
mod schema;
mod statements;
mod text;
mod upkeep;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use provost_actors::event::ProcessId;
use provost_actors::record::TerminalRecord;
use provost_actors::session::SessionId;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{Mutex, mpsc, oneshot, watch};

use self::ballast::Ballast;
pub use self::error::StoreError;
pub use self::jobs::{
    AttemptRow, Change, EndRow, EventRow, GroupRow, JobQuery, JobRow, NoticeRow, RESULT_BYTES_PER_READ,
    Submitted, Transition,
};
pub use self::place::DATABASE_NAME;
use self::place::Place;
pub use self::query::{RecordQuery, RecordRow};
pub use self::reader::Reader;
pub use self::retention::Retention;
pub use self::rows::{
    Acceptance, DenialRow, Loaded, ProcessRow, ProcessState, Request, SealedProcess, SessionRow,
    SessionState,
};
pub use self::schema::SCHEMA_VERSION;
use self::statements::{Sealed, Write, Written};
pub(crate) use self::text::digest;
pub use self::upkeep::{Checked, vacuum};

/// How long another program may hold the database before that is an error.
const BUSY_TIMEOUT: Duration = if cfg!(test) {
    Duration::from_millis(200)
} else {
    Duration::from_secs(10)
};
/// The same where somebody has held it for longer.
const BUSY_AGAIN_TIMEOUT: Duration = Duration::from_millis(100);
/// Writes that wait for the writer; more callers wait for a place among them.
const QUEUE_MAX: usize = 1024;

/// The database. Clones are the same.
#[derive(Debug, Clone)]
pub struct Store {
    path: PathBuf,
    /// Dropped before the queue: the connection that is closed last should be one that can empty the log.
    reader: Arc<Mutex<Reader>>,
    queue: mpsc::Sender<writer::Request>,
    health: watch::Receiver<Health>,
}

/// A database that was opened.
#[derive(Debug)]
pub struct Opened {
    /// It.
    pub store: Store,
    /// What was in it.
    pub loaded: Loaded,
    /// Where a damaged one was moved. Then `loaded` is empty: rows have to be made again from whatever else is known.
    pub moved_aside: Option<PathBuf>,
}

/// Whether the database takes what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Good,
    /// The disk is full: only records and ends of sessions are still taken. It ends by itself when there is room.
    Degraded {
        /// What failed first.
        why: String,
        /// When.
        since: Timestamp,
    },
    /// Nothing can be written at the moment: another program holds it, or the disk does not let it. It is tried again.
    Unwritable {
        /// What failed first.
        why: String,
        /// When.
        since: Timestamp,
    },
    /// It cannot be used; nothing is taken. The next [`Store::open`] moves it aside.
    Damaged {
        /// What SQLite says.
        why: String,
    },
}

impl Health {
    /// What is wrong, in words.
    pub fn trouble(&self) -> Option<String> {
        match self {
            Self::Good => None,
            Self::Degraded { why, since } => Some(format!(
                "the database takes records only, since {since:.0}: {why}"
            )),
            Self::Unwritable { why, since } => Some(format!(
                "the database takes nothing, since {since:.0}: {why}; records are written there as soon as it does"
            )),
            Self::Damaged { why } => Some(format!("the database takes nothing: {why}")),
        }
    }
}

impl Store {
    /// Opens the database of a state directory, making both if they are not there, and reads what a daemon needs: of the sealed
    /// processes the last `sealed_max`. A damaged one is moved aside first. Blocks.
    ///
    /// # Errors
    /// The directory or the file cannot be made, read or written, or is somebody else's; the database was made by a newer
    /// program, and is left as it is; another program holds it.
    pub fn open(state_dir: &Path, sealed_max: usize) -> Result<Opened, StoreError> {
        let place = Place::in_directory(state_dir);
        let mut ballast = Ballast::new(place.ballast());
        let mut moved_aside = None;
        if place.is_marked() {
            moved_aside = Some(place.move_aside()?);
        }
        let first = open(&place, sealed_max);
        let (connection, loaded) = match first {
            Err(StoreError::Damaged { path, why }) => {
                tracing::error!(path = %path.display(), why, "the database is damaged, a new one is begun");
                moved_aside = Some(place.move_aside()?);
                open(&place, sealed_max)?
            }
            Err(error) if error.is_full() => {
                ballast.release();
                open(&place, sealed_max)?
            }
            opened => opened?,
        };
        let (say_health, health) = watch::channel(Health::Good);
        if let Err(error) = ballast.take() {
            let why = StoreError::io("keep room for records in", &place.ballast(), error).to_string();
            tracing::error!(why, "only records are written from now on");
            let since = Timestamp::now();
            say_health.send_replace(Health::Degraded { why, since });
        }
        let Some(reader) = Reader::open(state_dir)? else {
            return Err(StoreError::Closed(place.database));
        };
        let store = Self::begin(connection, reader, place, ballast, say_health, health)?;
        Ok(Opened {
            store,
            loaded,
            moved_aside,
        })
    }

    fn begin(
        connection: Connection,
        reader: Reader,
        place: Place,
        ballast: Ballast,
        say_health: watch::Sender<Health>,
        health: watch::Receiver<Health>,
    ) -> Result<Self, StoreError> {
        let (queue, requests) = mpsc::channel(QUEUE_MAX);
        let path = place.database.clone();
        let thread = std::thread::Builder::new().name("provost-db".to_owned());
        let started =
            thread.spawn(move || writer::run(connection, &place, ballast, &say_health, requests));
        started.map_err(|error| StoreError::io("start the thread that writes", &path, error))?;
        Ok(Self {
            path,
            reader: Arc::new(Mutex::new(reader)),
            queue,
            health,
        })
    }

    /// A database in memory, for a daemon that keeps nothing: it ends with its last clone.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn in_memory() -> Result<Self, StoreError> {
        let place = Place::in_memory();
        // Under this name every connection of this program finds the same one.
        let name = format!("file:/{}?vfs=memdb", provost_actors::event::ProcessId::new());
        let say = |error| StoreError::of(&place.database, "make", error);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_URI
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let open = || {
            let connection = Connection::open_with_flags(&name, flags)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.execute_batch("PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF;")?;
            Ok(connection)
        };
        let connection = open().map_err(say)?;
        schema::migrate(&connection, &place.database)?;
        let reader = Reader {
            connection: open().map_err(say)?,
            path: place.database.clone(),
        };
        let (say_health, health) = watch::channel(Health::Good);
        Self::begin(connection, reader, place, Ballast::unneeded(), say_health, health)
    }

    /// Writes down that a process was accepted, unless its request was made before.
    ///
    /// # Errors
    /// It was not written.
    pub async fn accept(&self, process: ProcessRow) -> Result<Acceptance, StoreError> {
        match self.write(Write::Accept(Box::new(process))).await? {
            Written::Accepted(acceptance) => Ok(acceptance),
            Written::Done | Written::Job(_) => Ok(Acceptance::Accepted),
        }
    }

    /// Writes down that a process was started. One that is sealed or unknown stays so.
    ///
    /// # Errors
    /// It was not written.
    pub async fn live(&self, process: ProcessId) -> Result<(), StoreError> {
        self.write(Write::Live(process)).await.map(|_| ())
    }

    /// Writes down the record of a process, and the denials that were told of it. A process that is not in the database is
    /// put there, as far as the record tells it.
    ///
    /// # Errors
    /// It was not written; another record of the process was, before.
    pub async fn sealed(
        &self,
        record: TerminalRecord,
        denials: Vec<DenialRow>,
    ) -> Result<(), StoreError> {
        let sealed = Box::new(Sealed::new(record, denials));
        self.write(Write::Sealed(sealed)).await.map(|_| ())
    }

    /// Writes down a session. One that is there stays as it is.
    ///
    /// # Errors
    /// It was not written.
    pub async fn session_opened(&self, session: SessionRow) -> Result<(), StoreError> {
        self.write(Write::SessionOpened(Box::new(session)))
            .await
            .map(|_| ())
    }

    /// Writes down that a session was attached, detached or closed, and when. A closed one stays so; what was told of a later
    /// time holds.
    ///
    /// # Errors
    /// It was not written.
    pub async fn session_changed(
        &self,
        session: SessionId,
        state: SessionState,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(Write::SessionChanged(session, state, at))
            .await
            .map(|_| ())
    }

    /// Looks whether it can be written again, where it could not; to be called now and then. Else only the next write does.
    pub async fn recover(&self) {
        let trial = match *self.health.borrow() {
            Health::Good | Health::Damaged { .. } => return,
            // Whatever is to be written: room is looked for first.
            Health::Degraded { .. } => Write::Forget(Vec::new()),
            Health::Unwritable { .. } => Write::Trial,
        };
        let _ = self.write(trial).await;
    }

    /// Waits until everything can be written, or nothing ever again.
    pub async fn writable(&self) {
        let mut health = self.health.clone();
        let passed = |health: &Health| matches!(health, Health::Good | Health::Damaged { .. });
        // Else it is closed.
        let _ = health.wait_for(passed).await;
    }

    /// Forgets processes with everything about them; their request ids are free again.
    ///
    /// # Errors
    /// They were not forgotten, none of them.
    pub async fn forget(&self, processes: Vec<ProcessId>) -> Result<(), StoreError> {
        self.write(Write::Forget(processes)).await.map(|_| ())
    }

    /// A process that has its record, unless it is forgotten.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn sealed_process(&self, process: ProcessId) -> Result<Option<SealedProcess>, StoreError> {
        self.read(move |reader| reader.sealed(process)).await
    }

    /// Reads on the connection for that, on a thread that may block. One after the other.
    ///
    /// # Errors
    /// The reading's own.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let reader = self.reader.clone().lock_owned().await;
        let done = tokio::task::spawn_blocking(move || {
            let found = read(&reader);
            if let Err(error @ StoreError::Damaged { path, .. }) = &found {
                Place::of(path).mark(&error.to_string());
            }
            found
        });
        done.await.map_err(|_| StoreError::Closed(self.path.clone()))?
    }

    /// Whether it takes what it should.
    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until everything is written and the database is closed, once this is the last clone.
    pub async fn close(self) {
        let mut health = self.health.clone();
        drop(self);
        // The writer drops its end when it is done.
        while health.changed().await.is_ok() {}
    }

    async fn write(&self, write: Write) -> Result<Written, StoreError> {
        let closed = || StoreError::Closed(self.path.clone());
        let (answer, answered) = oneshot::channel();
        let sent = self.queue.send(writer::Request { write, answer }).await;
        sent.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }
}

/// Opens it for writing and reads what there is.
fn open(place: &Place, sealed_max: usize) -> Result<(Connection, Loaded), StoreError> {
    place.prepare()?;
    let path = &place.database;
    let say = |error| StoreError::of(path, "open", error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags).map_err(say)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(say)?;
    // SQLite opens what it may not write for reading, and says nothing.
    if connection.is_readonly("main").map_err(say)? {
        return Err(StoreError::ReadOnly {
            what: "write",
            path: path.clone(),
        });
    }
    // What a newer program made is not even tidied up.
    let untouched = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
    connection.set_db_config(untouched, true).map_err(say)?;
    schema::version(&connection, path)?;
    connection.set_db_config(untouched, false).map_err(say)?;
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL;
             PRAGMA synchronous = NORMAL;
             PRAGMA foreign_keys = ON;
             PRAGMA trusted_schema = OFF;
             PRAGMA journal_size_limit = 8388608;",
        )
        .map_err(say)?;
    schema::migrate(&connection, path)?;
    let loaded = reader::load(&connection, path, sealed_max)?;
    Ok((connection, loaded))
}

#[cfg(test)]
mod tests;
