//! Why the database did not do what was asked: what, on which file, why, and what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use provost_actors::event::ProcessId;
use rusqlite::ErrorCode;

/// Why the database did not do what was asked. Nothing of what was asked has been done.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The directory or a file in it cannot be made, read or written.
    #[error("cannot {what} {}: {error}; check its owner, its mode and the file system", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        error: Arc<io::Error>,
    },
    /// What lies there is no file of this user's alone: somebody else could have put anything into it.
    #[error("{} is not a regular file of this user's that nobody else can write; move it away", .0.display())]
    Foreign(PathBuf),
    /// It can be read, but not written.
    #[error("cannot {what} in the database {}: it is read-only; make it and its directory writable", .path.display())]
    ReadOnly {
        /// What was tried.
        what: &'static str,
        /// The database.
        path: PathBuf,
    },
    /// A newer program made it. It was not touched.
    #[error(
        "the database {} has schema {found}, and this program knows up to {known}; use the newer provost, or another state directory",
        .path.display()
    )]
    NewerSchema {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest that this program knows.
        known: u32,
    },
    /// An older program made it, and it is open for reading only.
    #[error(
        "the database {} has schema {found} of an older provost; start `provost serve` once, which brings it up to date",
        .path.display()
    )]
    OlderSchema {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Another program holds it and did not let go in time.
    #[error(
        "cannot {what} in the database {}: another program holds it; end its transaction (`fuser` names it) and try again",
        .path.display()
    )]
    Locked {
        /// What was tried.
        what: &'static str,
        /// The database.
        path: PathBuf,
    },
    /// The disk, or the user's share of it, is full.
    #[error("cannot {what} in the database {}: the disk is full; make room, and it goes on by itself", .path.display())]
    Full {
        /// What was tried.
        what: &'static str,
        /// The database.
        path: PathBuf,
    },
    /// It is no database, or its pages contradict each other.
    #[error(
        "the database {} is damaged ({why}); the next start of the daemon moves it aside and begins a new one",
        .path.display()
    )]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        why: String,
    },
    /// Anything else that SQLite says.
    #[error("cannot {what} in the database {}: {error}", .path.display())]
    Sqlite {
        /// What was tried.
        what: &'static str,
        /// The database.
        path: PathBuf,
        /// Why not.
        #[source]
        error: Arc<rusqlite::Error>,
    },
    /// A process has another record already: the first one holds.
    #[error("process {0} has another record already, and keeps it; a record is sealed once")]
    RecordDiffers(ProcessId),
    /// The thread that writes has ended.
    #[error("the database {} is closed; start the daemon again", .0.display())]
    Closed(PathBuf),
}

impl StoreError {
    pub(super) fn io(what: &'static str, path: &Path, error: io::Error) -> Self {
        Self::Io {
            what,
            path: path.to_owned(),
            error: Arc::new(error),
        }
    }

    /// What SQLite's error means here.
    pub(super) fn of(path: &Path, what: &'static str, error: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full { what, path },
            // A quota that is used up is no ENOSPC to SQLite.
            Some(ErrorCode::SystemIoFailure) if is_failed_write(&error) => Self::Full { what, path },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Locked { what, path },
            Some(ErrorCode::ReadOnly) => Self::ReadOnly { what, path },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged {
                path,
                why: error.to_string(),
            },
            _ => Self::Sqlite {
                what,
                path,
                error: Arc::new(error),
            },
        }
    }

    /// Whether it is not the fault of what was to be written: the same may succeed later.
    pub fn may_pass(&self) -> bool {
        self.is_full() || self.is_of_the_place()
    }

    /// Whether nothing at all can be written now, for another reason than room.
    pub(super) fn is_of_the_place(&self) -> bool {
        match self {
            Self::Locked { .. } | Self::ReadOnly { .. } | Self::Io { .. } => true,
            Self::Sqlite { error, .. } => matches!(
                error.sqlite_error_code(),
                Some(
                    ErrorCode::SystemIoFailure
                        | ErrorCode::CannotOpen
                        | ErrorCode::PermissionDenied
                        | ErrorCode::FileLockingProtocolFailed
                        | ErrorCode::OutOfMemory
                )
            ),
            _ => false,
        }
    }

    /// Whether room on the disk would help.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}

fn is_failed_write(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi;
    let code = error.sqlite_error().map(|error| error.extended_code);
    matches!(
        code,
        Some(ffi::SQLITE_IOERR_WRITE | ffi::SQLITE_IOERR_SHMSIZE | ffi::SQLITE_IOERR_TRUNCATE)
    )
}
