//! Notices that what a sandbox was made from has changed: the directories which a policy was compiled from, the paths
//! of its mounts.
//!
//! Each witness is one path and what was found there. Checking costs one `statx` each.
//!
//! Times are compared for directories whose entries were enumerated. Kernels before 6.13 stamp files with
//! the timer tick, so there a change within the tick of the enumeration itself stays unseen; what is missed
//! is a new name, and new names are refused until they are seen.

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;

/// A path and what was there.
#[derive(Debug, Clone)]
pub(crate) struct Witness {
    path: PathBuf,
    seen: Option<Identity>,
    /// The entries of this directory were enumerated: times matter, not only which directory it is.
    entries: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    format: u32,
    /// An inode number may be used again at once; the time of birth tells the two apart.
    born: Option<SystemTime>,
    times: Option<[i64; 4]>,
}

impl Identity {
    fn of(found: &Metadata, entries: bool) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            format: found.mode() & libc::S_IFMT,
            born: found.created().ok(),
            times: entries.then(|| {
                [
                    found.mtime(),
                    found.mtime_nsec(),
                    found.ctime(),
                    found.ctime_nsec(),
                ]
            }),
        }
    }
}

impl Witness {
    /// Remembers which file this path names, or that it names none.
    pub(crate) fn identity(path: impl Into<PathBuf>) -> Self {
        Self::new(path.into(), false)
    }

    /// Remembers a directory with its entries. Take it *before* reading them.
    pub(crate) fn entries(path: impl Into<PathBuf>) -> Self {
        Self::new(path.into(), true)
    }

    fn new(path: PathBuf, entries: bool) -> Self {
        Self {
            seen: look(&path, entries),
            path,
            entries,
        }
    }

    /// Drops the witnesses whose change others would notice as well: a name cannot come, go or lead elsewhere without
    /// a change of its directory's times. What is mounted there is for [`MountTable`] to notice.
    pub(crate) fn needed(witnesses: Vec<Self>) -> Vec<Self> {
        let enumerated: HashSet<PathBuf> = witnesses
            .iter()
            .filter(|witness| witness.entries && witness.seen.is_some())
            .map(|witness| witness.path.clone())
            .collect();
        let mut kept = HashSet::new();
        let needed = witnesses.into_iter().filter(|witness| {
            let parent = witness.path.parent();
            let implied = !witness.entries && parent.is_some_and(|parent| enumerated.contains(parent));
            !implied && kept.insert((witness.path.clone(), witness.entries))
        });
        needed.collect()
    }

    /// Whether the path still names what it named.
    pub(crate) fn holds(&self) -> bool {
        look(&self.path, self.entries) == self.seen
    }
}

/// Notices that something was mounted or unmounted in our mount namespace (proc_pid_mountinfo(5): `poll` says so).
#[derive(Debug)]
pub(crate) struct MountTable {
    file: Option<File>,
    changed: AtomicBool,
}

impl MountTable {
    /// # Errors
    /// There is no descriptor for it, nor memory. Where there is no such file nobody can tell.
    pub(crate) fn now() -> Result<Self, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = match open("/proc/self/mountinfo", flags, Mode::empty()) {
            Ok(file) => Some(File::from(file)),
            Err(errno @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)) => return Err(errno),
            Err(_) => None,
        };
        Ok(Self {
            file,
            changed: AtomicBool::new(false),
        })
    }

    /// Whether it is as it was. Also where nobody can tell.
    pub(crate) fn holds(&self) -> bool {
        let Some(file) = &self.file else { return true };
        // Each change is told once.
        let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
        if poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
            self.changed.store(true, Ordering::Relaxed);
        }
        !self.changed.load(Ordering::Relaxed)
    }
}

fn look(path: &Path, entries: bool) -> Option<Identity> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some(Identity::of(&found, entries))
}
