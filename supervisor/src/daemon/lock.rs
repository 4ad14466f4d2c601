//! One daemon at a time: a lock that dies with its holder, in a file that says who that is.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::libc::{O_CLOEXEC, O_NOFOLLOW};
use nix::unistd::geteuid;

/// Why the lock was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error(
        "another daemon{} holds {}; stop it first, or give this one a path of its own",
        .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(),
        .path.display()
    )]
    Held {
        /// The file.
        path: PathBuf,
        /// Who has it; absent in the moment before that is written down.
        pid: Option<i32>,
    },
    /// What lies there is no file of ours: somebody who can write to it could hold us up, or lead us elsewhere.
    #[error("{} is not a file of this user's alone; remove it", .0.display())]
    Foreign(PathBuf),
    /// The file cannot be opened or locked.
    #[error("cannot lock {}: {error}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
}

/// The lock, held as long as this lives. The file stays: to remove it would let two hold two files of one name.
#[derive(Debug)]
pub struct InstanceLock(File);

/// Between two looks whether the holder has gone: `flock` tells nobody when it is free, or waits for ever.
const LOOK: Duration = Duration::from_millis(5);

impl InstanceLock {
    /// Takes the lock, waiting at most so long for its holder to leave. Blocks.
    ///
    /// # Errors
    /// As of [`InstanceLock::take`].
    #[expect(
        clippy::disallowed_methods,
        reason = "a lock with a deadline: nothing tells when it is free"
    )]
    pub fn take_within(path: &Path, patience: Duration) -> Result<Self, LockError> {
        let deadline = Instant::now() + patience;
        loop {
            match Self::take(path) {
                Err(LockError::Held { .. }) if Instant::now() < deadline => std::thread::sleep(LOOK),
                taken => return taken,
            }
        }
    }

    /// Takes the lock, or says who has it; does not wait.
    ///
    /// # Errors
    /// Another process has it; what lies there is no file of ours; it cannot be opened.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let io = |error| LockError::Io {
            path: path.to_owned(),
            error,
        };
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(O_NOFOLLOW | O_CLOEXEC)
                .open(path)
                .map_err(io)?;
            let opened = file.metadata().map_err(io)?;
            if !opened.is_file() || opened.uid() != geteuid().as_raw() || opened.mode() & 0o022 != 0 {
                return Err(LockError::Foreign(path.to_owned()));
            }
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::Held {
                        path: path.to_owned(),
                        pid: holder(&mut file),
                    });
                }
                Err(TryLockError::Error(error)) => return Err(io(error)),
            }
            // Somebody may have tidied up between the two calls: a lock on a file without a name keeps nobody out.
            if path
                .symlink_metadata()
                .is_ok_and(|there| (there.dev(), there.ino()) == (opened.dev(), opened.ino()))
            {
                write_holder(&mut file).map_err(io)?;
                return Ok(Self(file));
            }
        }
    }
}

#[cfg(test)]
impl InstanceLock {
    /// As the death of its holder does.
    pub(super) fn give_up_for_tests(&self) {
        self.0.unlock().unwrap();
    }
}

impl Drop for InstanceLock {
    fn drop(&mut self) {
        // Closing alone would leave the lock with a child that is just between fork and exec.
        let _ = self.0.set_len(0);
        let _ = self.0.unlock();
    }
}

fn holder(file: &mut File) -> Option<i32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_holder(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(format!("{}\n", std::process::id()).as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn the_second_is_told_who_the_first_is_and_gets_it_afterwards() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        // What a holder that was killed left behind.
        std::fs::write(&path, "999999999999 and more\n").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let first = InstanceLock::take(&path).unwrap();
        let error = InstanceLock::take(&path).unwrap_err();
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(matches!(error, LockError::Held { pid: Some(pid), .. } if pid == own));
        assert!(error.to_string().contains(&format!("(process {own})")), "{error}");
        drop(first);
        InstanceLock::take(&path).unwrap();
    }

    #[test]
    fn what_others_could_have_put_there_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        let path = directory.path().join("lock");
        std::fs::write(&target, "kept").unwrap();
        symlink(&target, &path).unwrap();
        assert!(matches!(InstanceLock::take(&path), Err(LockError::Io { .. })));
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "kept");
        std::fs::set_permissions(&target, PermissionsExt::from_mode(0o666)).unwrap();
        assert!(matches!(InstanceLock::take(&target), Err(LockError::Foreign(_))));
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "kept");
    }
}
