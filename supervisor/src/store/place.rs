//! The files of the database: made for this user alone, and moved aside when they are damaged.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::unistd::geteuid;

use super::StoreError;

/// The database's name in the state directory.
pub const DATABASE_NAME: &str = "provost.db";

/// Where everything lies.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) database: PathBuf,
}

impl Place {
    pub(super) fn in_directory(state_dir: &Path) -> Self {
        Self::of(&state_dir.join(DATABASE_NAME))
    }

    /// No files at all.
    pub(super) fn in_memory() -> Self {
        Self::of(Path::new(":memory:"))
    }

    pub(super) fn of(database: &Path) -> Self {
        Self {
            database: database.to_owned(),
        }
    }

    /// A file beside the database, named after it.
    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.database.clone().into_os_string();
        name.push(suffix);
        name.into()
    }

    pub(super) fn ballast(&self) -> PathBuf {
        self.beside(".ballast")
    }

    /// Makes the directory and the file if they are missing, and looks whose they are. SQLite gives the other files of a
    /// database the mode of this one.
    pub(super) fn prepare(&self) -> Result<(), StoreError> {
        let path = &self.database;
        if let Some(directory) = path.parent() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.map_err(|error| StoreError::io("make the directory", directory, error))?;
        }
        let io = |error| StoreError::io("make or look at the database", path, error);
        // Not opened to be looked at: closing it would take away the locks that this process may have on it.
        let found = match fs::symlink_metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let mut options = OpenOptions::new();
                options.write(true).create_new(true).mode(0o600);
                return options.open(path).map(drop).map_err(io);
            }
            Err(error) => return Err(io(error)),
        };
        if !found.is_file() || found.uid() != geteuid().as_raw() || found.mode() & 0o022 != 0 {
            return Err(StoreError::Foreign(path.clone()));
        }
        if found.mode() & 0o077 != 0 {
            // Commands and their arguments are nobody else's business.
            fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(io)?;
        }
        Ok(())
    }

    /// Whether it was seen to be damaged while it was in use.
    pub(super) fn is_marked(&self) -> bool {
        fs::symlink_metadata(self.beside(".damaged")).is_ok()
    }

    /// Remembers that it is damaged, for the next start.
    pub(super) fn mark(&self, why: &str) {
        if !self.database.is_absolute() {
            return;
        }
        let marked = fs::write(self.beside(".damaged"), why);
        if let Err(error) = marked {
            tracing::warn!(%error, "cannot note that the database is damaged");
        }
    }

    /// Moves the database away, with what was not yet written into it; where to.
    pub(super) fn move_aside(&self) -> Result<PathBuf, StoreError> {
        let io = |path: &Path, error| StoreError::io("move aside", path, error);
        let time = Timestamp::now().strftime("%Y%m%dT%H%M%S%.6fZ").to_string();
        let aside = self.beside(&format!(".corrupt-{time}"));
        let gone = |path: &Path, done: std::io::Result<()>| match done {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(io(path, error)),
            _ => Ok(()),
        };
        // The log before the database: a new database beside an old log would take over what stands in that.
        let (log, index, mark) = (self.beside("-wal"), self.beside("-shm"), self.beside(".damaged"));
        let mut log_aside = aside.clone().into_os_string();
        log_aside.push("-wal");
        gone(&log, fs::rename(&log, log_aside))?;
        gone(&index, fs::remove_file(&index))?;
        gone(&self.database, fs::rename(&self.database, &aside))?;
        gone(&mark, fs::remove_file(&mark))?;
        Ok(aside)
    }
}
