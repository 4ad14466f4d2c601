//! The files in which readers agree: locks that die with their holders, and a state that does not.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;

use super::super::control;

/// How long coming or going waits for the turnstile.
const TURNSTILE_DEADLINE: Duration = Duration::from_secs(2);
/// How often it tries meanwhile.
const TURNSTILE_RETRY: Duration = Duration::from_millis(1);

const TURNSTILE: &str = "audit.lock";
const USERS: &str = "audit.users";
const STATE: &str = "audit.state";

/// What was before we switched on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Before {
    /// The boot in which that was: a state of another one means nothing.
    pub(super) boot: String,
    pub(super) backlog_limit: u32,
    /// What we set it to; if it is something else later, somebody set it.
    pub(super) backlog_limit_set: u32,
}

/// Makes the directory, or checks that nobody else can write to the one that is there.
pub(super) fn prepare(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => check_private(directory),
    }
}

pub(super) fn check_private(directory: &Path) -> io::Result<()> {
    let found = std::fs::symlink_metadata(directory)?;
    if !found.is_dir() || found.uid() != geteuid().as_raw() || found.mode() & 0o022 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it must be a directory of our own that nobody else can write to",
        ));
    }
    Ok(())
}

/// The file that is held shared by everybody who relies on audit being on because of us.
pub(super) fn open_users(directory: &Path) -> io::Result<File> {
    open_private(&directory.join(USERS))
}

fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
}

/// The lock for the moment of coming or going.
#[derive(Debug)]
pub(super) struct Turnstile(File);

impl Turnstile {
    pub(super) fn pass(directory: &Path) -> io::Result<Self> {
        let turnstile = open_private(&directory.join(TURNSTILE))?;
        let deadline = Instant::now() + TURNSTILE_DEADLINE;
        loop {
            match turnstile.try_lock() {
                Ok(()) => return Ok(Self(turnstile)),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                // flock has no deadline of its own.
                Err(TryLockError::WouldBlock) => {
                    control::poll_until(&mut [], Instant::now() + TURNSTILE_RETRY)?;
                }
            }
        }
    }
}

impl Drop for Turnstile {
    fn drop(&mut self) {
        // Closing alone would leave the lock with a child that is just between fork and exec.
        let _ = self.0.unlock();
    }
}

pub(super) fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// Written beside it and renamed: there is either a whole state or none.
pub(super) fn write_state(directory: &Path, before: &Before) -> io::Result<()> {
    let Before {
        boot,
        backlog_limit,
        backlog_limit_set,
    } = before;
    let beside = directory.join("audit.state.new");
    // Nobody else can be writing it inside the turnstile: what is there is a dead writer's.
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = open_private(&beside)?;
    file.write_all(format!("1 {boot} {backlog_limit} {backlog_limit_set}\n").as_bytes())?;
    std::fs::rename(&beside, directory.join(STATE))
}

pub(super) fn remove_state(directory: &Path) -> io::Result<()> {
    match std::fs::remove_file(directory.join(STATE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub(super) fn state_exists(directory: &Path) -> bool {
    directory.join(STATE).exists()
}

pub(super) fn read_state(directory: &Path) -> io::Result<Option<Before>> {
    let file = match OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(directory.join(STATE))
    {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    file.take(256).read_to_string(&mut text)?;
    parse_state(&text).map(Some).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "it is of another version of Provost or damaged; remove it",
        )
    })
}

fn parse_state(text: &str) -> Option<Before> {
    let mut parts = text.strip_suffix('\n')?.split(' ');
    if parts.next()? != "1" {
        return None;
    }
    let before = Before {
        boot: parts.next()?.to_owned(),
        backlog_limit: parts.next()?.parse().ok()?,
        backlog_limit_set: parts.next()?.parse().ok()?,
    };
    parts.next().is_none().then_some(before)
}

/// Keeps tests that lose records apart from tests that count them, also in other processes.
#[cfg(test)]
pub(in super::super) fn among_tests(directory: &Path, floods: bool) -> File {
    prepare(directory).unwrap();
    let file = open_private(&directory.join("audit.tests")).unwrap();
    if floods { file.lock() } else { file.lock_shared() }.unwrap();
    file
}

/// Keeps all other readers of the machine out, for tests of what they share.
#[cfg(test)]
#[derive(Debug)]
pub(in super::super) struct Alone {
    _turnstile: Turnstile,
}

#[cfg(test)]
impl Alone {
    /// Waits until all others have left. They wait for us then, but not for long.
    pub(in super::super) fn wait(directory: &Path) -> io::Result<Self> {
        prepare(directory)?;
        loop {
            let turnstile = open_private(&directory.join(TURNSTILE))?;
            turnstile.lock()?;
            let turnstile = Turnstile(turnstile);
            let users = open_users(directory)?;
            if users.try_lock().is_ok() {
                return Ok(Self {
                    _turnstile: turnstile,
                });
            }
            drop(turnstile);
            users.lock()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_survives_being_written_and_nothing_else_is_one() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read_state(directory.path()).unwrap(), None);
        let before = Before {
            boot: boot_id().unwrap(),
            backlog_limit: 64,
            backlog_limit_set: 8192,
        };
        write_state(directory.path(), &before).unwrap();
        assert_eq!(read_state(directory.path()).unwrap(), Some(before));
        for text in ["", "1\n", "1 a 2 3", "1 a 2 3 4\n", "2 a 2 3\n", "1 a -2 3\n"] {
            assert_eq!(parse_state(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        prepare(directory.path()).unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o722)).unwrap();
        assert!(prepare(directory.path()).is_err());
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/tmp", &link).unwrap();
        assert!(prepare(&link).is_err());
    }
}
