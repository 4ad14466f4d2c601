//! Notices that what a sandbox was made from has changed: the directories which a policy was compiled from, the paths
//! of its mounts.
//!
//! Each witness is one path and what was found there. Checking costs one `statx` each.
//!
//! Times are compared for directories whose entries were enumerated. Kernels before 6.13 stamp files with
//! the timer tick, so there a change within the tick of the enumeration itself stays unseen; what is missed
//! is a new name, and new names are refused until they are seen.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

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

    /// Whether the path still names what it named.
    pub(crate) fn holds(&self) -> bool {
        look(&self.path, self.entries) == self.seen
    }
}

fn look(path: &Path, entries: bool) -> Option<Identity> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some(Identity::of(&found, entries))
}
