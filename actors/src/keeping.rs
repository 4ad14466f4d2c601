//! What lets processes survive this one: their keeper, and the spool.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use provost_sandbox::keeper::exits::{self, ExitRecord};
use provost_sandbox::spawn::SpawnerSource;
use uuid::Uuid;

use crate::spawner::{LaunchedSpawner, StartError};
use crate::spool::{Spool, SpoolError, WhenFull};

/// A state directory, as one daemon at a time uses it. Whoever opens it holds a lock on it.
#[derive(Debug, Clone)]
pub struct Keeping {
    /// What is known of processes.
    pub spool: Arc<Spool>,
    directory: PathBuf,
    source: SpawnerSource,
}

impl Keeping {
    /// Opens a state directory: a directory of this user's that is closed to others.
    ///
    /// # Errors
    /// It cannot be made or used.
    pub fn open(
        directory: &Path,
        source: SpawnerSource,
        when_full: WhenFull,
    ) -> Result<Self, SpoolError> {
        Ok(Self {
            spool: Spool::open(&directory.join("spool"), when_full)?,
            directory: directory.to_owned(),
            source,
        })
    }

    /// The state directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Connects to the keeper, or launches one.
    ///
    /// # Errors
    /// It cannot be found, reached or started.
    pub fn keeper(&self) -> Result<LaunchedSpawner, StartError> {
        LaunchedSpawner::keeper(&self.directory.join("keeper.sock"), &self.source)
    }

    /// The file in which keepers write down how processes end, and what is in it.
    pub(crate) fn exits(&self) -> io::Result<(OwnedFd, HashMap<Uuid, ExitRecord>)> {
        let mut file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(self.directory.join("exits"))?;
        let records = exits::read(&mut file)?;
        let by_process = records.into_iter().map(|record| (record.process, record));
        Ok((file.into(), by_process.collect()))
    }
}
