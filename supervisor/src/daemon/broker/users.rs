//! Where the instances of users keep what survives them, and where root knows of their groups.
//!
//! ```text
//! <state_dir>/users/              root's, 0711: nobody but root makes, renames or removes anything here
//! <state_dir>/users/<uid>/        that user's, 0700
//! <state_dir>/users/<uid>.group   root's: the path of the cgroup that was given to the user
//! ```
//!
//! What is in a user's directory is never looked at by root: a user may put links, pipes and file systems of its own
//! there. Root only makes it, under another name first, so that nobody meets it half made.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat};
use provost_sandbox::keeper::DelegatedGroup;

use super::super::listen::{ListenError, check_directories};

/// Others go through it, and do not list it.
const THROUGH: u32 = 0o711;

/// The users' state directories cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the directory of the users' state directories: {}: {why}", .path.display())]
pub struct UsersError {
    /// The directory, or one above it.
    pub path: PathBuf,
    /// What is wrong, and what to do.
    pub why: String,
}

/// `users` in root's state directory.
#[derive(Debug)]
pub struct UserDirectories {
    path: PathBuf,
    directory: File,
}

impl UserDirectories {
    /// Opens it, making it if it is not there. Whoever calls this holds the lock of the state directory.
    ///
    /// # Errors
    /// It cannot be made, or others could change what is in it.
    pub fn open(state_dir: &Path) -> Result<Self, UsersError> {
        let path = state_dir.join("users");
        let bad = |error: io::Error| UsersError {
            path: path.clone(),
            why: error.to_string(),
        };
        match DirBuilder::new().mode(THROUGH).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(bad(error)),
            _ => {}
        }
        check_directories(&path).map_err(|error| match error {
            ListenError::Directory { path, why } => UsersError { path, why },
            other => bad(io::Error::other(other.to_string())),
        })?;
        for directory in [state_dir, &path] {
            fs::set_permissions(directory, Permissions::from_mode(THROUGH)).map_err(bad)?;
        }
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let directory = File::options()
            .read(true)
            .custom_flags(flags.bits())
            .open(&path)
            .map_err(bad)?;
        Ok(Self { path, directory })
    }

    /// The users who have a state directory.
    pub(super) fn known(&self) -> io::Result<Vec<u32>> {
        let names = fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name()));
        let names: Vec<_> = names.collect::<io::Result<_>>()?;
        let uids = names.iter().filter_map(|name| name.to_str()?.parse().ok());
        Ok(uids.filter(|uid| *uid != 0).collect())
    }

    /// A user's directory, made if it is not there.
    pub(super) fn of(&self, uid: u32, gid: Gid) -> io::Result<PathBuf> {
        let (name, new) = (uid.to_string(), format!("{uid}.new"));
        let users = self.directory.as_fd();
        // Asked without a word to a file system that may be the user's own.
        let there = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(users, name.as_str(), there, Mode::empty()) {
            Ok(_) => return Ok(self.path.join(name)),
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        // What an interrupted attempt left. It may be the user's already; one in which that user has put something
        // stays in the way.
        match unlinkat(users, new.as_str(), UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        mkdirat(users, new.as_str(), Mode::S_IRWXU)?;
        let owner = Some(Uid::from_raw(uid));
        fchownat(
            users,
            new.as_str(),
            owner,
            Some(gid),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )?;
        let once = RenameFlags::RENAME_NOREPLACE;
        renameat2(users, new.as_str(), users, name.as_str(), once)?;
        Ok(self.path.join(name))
    }

    /// The group that was given to a user, if it is still there.
    pub(super) fn group(&self, uid: u32) -> Option<DelegatedGroup> {
        let path = fs::read(self.group_file(uid)).ok()?;
        DelegatedGroup::find(Path::new(OsStr::from_bytes(&path)), uid)
    }

    /// Remembers it for whoever comes after us.
    pub(super) fn remember_group(&self, uid: u32, group: &DelegatedGroup) -> io::Result<()> {
        fs::write(self.group_file(uid), group.path().as_os_str().as_bytes())
    }

    pub(super) fn forget_group(&self, uid: u32) {
        let _ = fs::remove_file(self.group_file(uid));
    }

    fn group_file(&self, uid: u32) -> PathBuf {
        self.path.join(format!("{uid}.group"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn own() -> (u32, Gid) {
        (nix::unistd::geteuid().as_raw(), nix::unistd::getegid())
    }

    #[test]
    fn a_directory_is_made_once_closed_to_others_and_found_again() {
        let state = tempfile::tempdir().unwrap();
        let (uid, gid) = own();
        let users = UserDirectories::open(state.path()).unwrap();
        let path = users.of(uid, gid).unwrap();
        let made = path.symlink_metadata().unwrap();
        assert_eq!((made.mode() & 0o7777, made.uid()), (0o700, uid));
        fs::write(path.join("kept"), "").unwrap();
        let again = UserDirectories::open(state.path()).unwrap();
        assert_eq!(again.of(uid, gid).unwrap(), path);
        assert!(path.join("kept").exists());
        // As an attempt that was interrupted leaves it.
        fs::rename(&path, state.path().join("aside")).unwrap();
        fs::create_dir(state.path().join(format!("users/{uid}.new"))).unwrap();
        assert_eq!(again.of(uid, gid).unwrap(), path);
        assert!(!path.join("kept").exists());
        assert_eq!(fs::read_dir(state.path().join("users")).unwrap().count(), 1);
        fs::write(state.path().join("users/77.group"), "/nowhere").unwrap();
        let known = again.known().unwrap();
        assert_eq!(known, if uid == 0 { vec![] } else { vec![uid] });
        assert!(again.group(77).is_none());
    }

    #[test]
    fn a_place_that_others_could_change_is_not_used() {
        let state = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        symlink(elsewhere.path(), state.path().join("users")).unwrap();
        UserDirectories::open(state.path()).unwrap_err();
        fs::remove_file(state.path().join("users")).unwrap();
        fs::set_permissions(state.path(), Permissions::from_mode(0o777)).unwrap();
        let error = UserDirectories::open(state.path()).unwrap_err();
        assert!(error.to_string().contains("chmod go-w"), "{error}");
    }
}
