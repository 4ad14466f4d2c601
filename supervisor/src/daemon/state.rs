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
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use provost_actors::Keeping;
use provost_actors::spool::{SpoolError, WhenFull};
use provost_sandbox::spawn::SpawnerSource;

use super::lock::{InstanceLock, LockError};
use crate::store::{self, Store, StoreError};

/// Between two looks whether the daemon that is to be replaced has gone.
const LOOK: Duration = Duration::from_millis(5);

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
    #[expect(
        clippy::disallowed_methods,
        reason = "a lock with a deadline: nothing tells when it is free"
    )]
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
        let deadline = Instant::now() + patience;
        let lock = loop {
            match InstanceLock::take(&path.join("lock")) {
                Err(LockError::Held { .. }) if Instant::now() < deadline => std::thread::sleep(LOOK),
                taken => break taken?,
            }
        };
        Ok(Self {
            keeping: Keeping::open(path, SpawnerSource::Auto, when_full)?,
            database: Store::open(path, ended_max)?,
            lock,
        })
    }
}
