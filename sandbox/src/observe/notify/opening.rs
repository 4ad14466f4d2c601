//! open(2), performed on behalf of the target after somebody allowed it.
//!
//! The target may be in a mount namespace where the file cannot be opened for writing at all, and Landlock holds it: so
//! the file is opened here and put into its table of descriptors. It is held from the moment of the question on: the
//! path is looked up once in the target's view and once in ours, and both must lead to the same inode. Only regular
//! files are opened, only where target and supervisor are the same user, and without capabilities: plain file
//! permissions are asked as they would be for the target's own call.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, fstat, umask};
use nix::unistd::{getegid, geteuid};

use super::attributes::WithoutCapabilities;
use super::paths::View;

/// What of the target's flags is taken over; the rest has done its work in the lookup or is no business of a file's.
const KEPT: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_SYNC
    | libc::O_DSYNC
    | libc::O_TRUNC
    | libc::O_DIRECT
    | libc::O_NOATIME;

/// A file that somebody may be asked about, and how it is to be opened.
#[derive(Debug)]
pub struct HeldOpen {
    place: Place,
    flags: i32,
    mode: u32,
    umask: u32,
}

#[derive(Debug)]
enum Place {
    /// An `O_PATH` descriptor of the file.
    File(OwnedFd),
    /// A name to be made, and an `O_PATH` descriptor of its directory.
    Name { directory: OwnedFd, name: CString },
}

impl HeldOpen {
    /// Holds what a path of the target's leads to. Nothing where it cannot be opened on its behalf: then nobody needs
    /// to be asked.
    ///
    /// `path` is absolute and has no links in it, as the target sees it.
    pub(super) fn hold(view: &View, path: &Path, exists: bool, flags: i32, mode: u32) -> Option<Self> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", view.tid())).ok()?;
        let own = [geteuid().as_raw(), getegid().as_raw()];
        if [file_system_id(&status, "Uid:")?, file_system_id(&status, "Gid:")?] != own {
            return None;
        }
        let umask = field(&status, "Umask:").and_then(|mask| u32::from_str_radix(mask, 8).ok())?;
        let place = if exists {
            Place::File(same_in_both(view, path, libc::S_IFREG)?)
        } else {
            Place::Name {
                directory: same_in_both(view, path.parent()?, libc::S_IFDIR)?,
                name: CString::new(path.file_name()?.as_bytes()).ok()?,
            }
        };
        Some(Self {
            place,
            flags,
            mode,
            umask,
        })
    }

    /// Whether the target's descriptor is to be closed when it executes another program.
    pub fn close_on_exec(&self) -> bool {
        self.flags & libc::O_CLOEXEC != 0
    }

    /// Opens it. To be called on a thread that ends afterwards: it loses its capabilities.
    ///
    /// # Errors
    /// Those of open(2), which the target is to be told.
    pub fn run(self) -> Result<OwnedFd, Errno> {
        // The mask belongs to the whole process unless the thread has one of its own.
        unshare(CloneFlags::CLONE_FS)?;
        umask(Mode::from_bits_truncate(self.umask));
        crate::keeper::sys::drop_capability_sets().map_err(Errno::from_raw)?;
        let flags = OFlag::from_bits_retain(self.flags & KEPT) | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        match self.place {
            Place::File(file) => {
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                openat(AT_FDCWD, path.as_str(), flags, Mode::empty())
            }
            Place::Name { directory, name } => {
                let exclusive = OFlag::from_bits_retain(self.flags & libc::O_EXCL);
                let how = OpenHow::new()
                    .flags(flags | exclusive | OFlag::O_CREAT | OFlag::O_NOFOLLOW)
                    .mode(Mode::from_bits_truncate(self.mode & 0o777))
                    .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
                openat2(directory.as_fd(), name.as_c_str(), how)
            }
        }
    }
}

/// What a path without links leads to, if that is the same file for the target and for us, and of this type.
fn same_in_both(view: &View, path: &Path, kind: libc::mode_t) -> Option<OwnedFd> {
    // The directories on the way are asked for the command's rights, not for ours.
    let _plain = WithoutCapabilities::new().ok()?;
    let theirs = fstat(view.open_plain(path).ok()?).ok()?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let held = openat2(AT_FDCWD, path, how).ok()?;
    let ours = fstat(&held).ok()?;
    let same = (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino);
    (same && ours.st_mode & libc::S_IFMT == kind).then_some(held)
}

/// The last of the four ids: the one that file permissions are asked for.
fn file_system_id(status: &str, name: &str) -> Option<u32> {
    field(status, name)?.split_whitespace().nth(3)?.parse().ok()
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .map(str::trim)
}
