//! The state directory: what lets everything survive the daemon's death, opened by one daemon at a time.
//!
//! ```text
//! <state_dir>/lock          held by the daemon
//! <state_dir>/keeper.sock   who parents every process
//! <state_dir>/exits         how processes ended, written by the keeper
//! <state_dir>/spool/        journals and output
//! <state_dir>/provost.db    records and sessions
//! ```

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::geteuid;
use provost_actors::Keeping;
use provost_actors::spool::{SpoolError, WhenFull};
use provost_sandbox::spawn::SpawnerSource;

use super::lock::{InstanceLock, LockError};
use crate::store::{self, Reader, Store, StoreError};

/// The state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be made.
    #[error("cannot make the state directory {}: {error}; name another one with --state-dir", .path.display())]
    Make {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// What is there cannot be used.
    #[error("cannot use the state directory {}: {error}; name another one with --state-dir", .path.display())]
    Use {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// Another daemon has it.
    #[error("the state directory: {0}")]
    Lock(#[from] LockError),
    /// Its spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// Its database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A state directory, as long as this daemon has it.
#[derive(Debug)]
pub struct StateDir {
    /// Its keeper and spool.
    pub keeping: Keeping,
    /// Its database.
    pub database: store::Opened,
    /// Held until the end.
    pub lock: InstanceLock,
}

impl StateDir {
    /// Opens it, making it if it is not there; waits at most `patience` for another daemon to leave it. Blocks.
    ///
    /// # Errors
    /// It cannot be made or used, or another daemon has it.
    pub fn open(
        path: &Path,
        when_full: WhenFull,
        ended_max: usize,
        patience: Duration,
    ) -> Result<Self, StateError> {
        let made = DirBuilder::new().recursive(true).mode(0o711).create(path);
        made.map_err(|error| StateError::Make {
            path: path.to_owned(),
            error,
        })?;
        let lock = InstanceLock::take_within(&path.join("lock"), patience)?;
        Ok(Self {
            keeping: Keeping::open(path, SpawnerSource::Auto, when_full)?,
            database: Store::open(path, ended_max)?,
            lock,
        })
    }

    /// Sees whether it could be opened, while another daemon may have it. Changes nothing. Blocks.
    ///
    /// # Errors
    /// It is somebody else's, or its database is damaged or of a newer program.
    pub fn check(path: &Path) -> Result<(), StateError> {
        let used = |error| StateError::Use {
            path: path.to_owned(),
            error,
        };
        let found = match path.metadata() {
            Ok(found) => found,
            // It will be made.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(used(error)),
        };
        if !found.is_dir() || found.uid() != geteuid().as_raw() {
            return Err(used(io::Error::other("it is no directory of this user's")));
        }
        match Reader::open(path) {
            // An older one is brought up to date by whoever takes it.
            Ok(_) | Err(StoreError::OlderSchema { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
