//! The socket: where it lies, who can reach it, and that there is one daemon to it.
//!
//! Whoever can connect can have commands run, so nobody can for even a moment who should not: the socket gets its mode and its
//! group between `bind` and `listen`, when every connect is still refused. The directory and what is above it must be such
//! that nobody else can put another socket, lock or link in its place.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use listenfd::ListenFd;
use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::fcntl::AtFlags;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen, socket,
    sockopt,
};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Group, fchownat, geteuid};
use provost_sandbox::environment;

use super::lock::{InstanceLock, LockError};

/// Where root's daemon listens; other tools of Provost's may have made the directory for themselves alone.
const SYSTEM_DIRECTORY: &str = "/run/provost";

/// The uid that stands for all those that a user namespace does not know.
const OVERFLOW_UID: u32 = 65_534;

/// Under which names the keeper keeps the socket for the next daemon: one that was made here, one that was passed.
pub const HELD_MADE: &str = "listener";
/// See [`HELD_MADE`].
pub const HELD_PASSED: &str = "listener-passed";

/// Why there is nothing to listen on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Nothing says where.
    #[error(
        "XDG_RUNTIME_DIR is not set, so there is no usual place for the socket; say where with --socket PATH or PROVOST_SOCKET"
    )]
    NoPath,
    /// The directory cannot be made, or others could change what is in it.
    #[error("the socket's directory {}: {why}", .path.display())]
    Directory {
        /// The directory, or one above it.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// Another daemon is there.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Something else listens there: systemd's socket unit, perhaps.
    #[error(
        "somebody listens on {} already; stop that, or if it is systemd's provost.socket, start provost.service instead",
        .0.display()
    )]
    InUse(PathBuf),
    /// What lies there is not a socket that a daemon of this user's left behind.
    #[error("{} exists and is no socket of this user's; remove it, or say another path", .0.display())]
    Foreign(PathBuf),
    /// There is no such group, or this user may not give the socket to it.
    #[error("the group {name}: {why}")]
    Group {
        /// Its name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// What was passed by the service manager is no listening Unix socket, or more than one.
    #[error(
        "the service manager passed {0}; want one listening Unix stream socket (ListenStream=/path)"
    )]
    Passed(String),
    /// Something else.
    #[error("cannot listen on {}: {error}", .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
}

/// A listening socket.
#[derive(Debug)]
pub struct Listening {
    socket: UnixListener,
    /// Absent where the service manager made the socket.
    made: Option<Made>,
}

/// The socket in the file system, and the right to be its only daemon. Removed, then unlocked.
#[derive(Debug)]
pub struct Made {
    path: PathBuf,
    identity: (u64, u64),
    _lock: InstanceLock,
}

impl Listening {
    /// The socket, non-blocking, and what is to be dropped at the very end: the file of a socket that was made here. Closed
    /// before that, the socket refuses new clients while the daemon still stops.
    pub fn split(self) -> (UnixListener, Option<Made>) {
        (self.socket, self.made)
    }
}

impl Made {
    /// Where clients find the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // Only what is still ours.
        if identity(&self.path).is_ok_and(|there| there == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Takes the socket that the service manager passed (`LISTEN_FDS`, `LISTEN_PID`), if it did, and removes the variables. To
/// be called before there is a second thread.
///
/// # Errors
/// What was passed is something else, or there are several; or there is a second thread.
pub fn passed() -> Result<Option<Listening>, ListenError> {
    let bad = |error: io::Error| ListenError::Passed(error.to_string());
    // Without the pid they may be anybody's: variables that something between the manager and us has inherited.
    let addressed = std::env::var_os("LISTEN_PID").is_some();
    environment::take(["LISTEN_FDNAMES", "LISTEN_FDS_FIRST_FD"]).map_err(bad)?;
    if !addressed {
        environment::take(["LISTEN_FDS"]).map_err(bad)?;
        return Ok(None);
    }
    // Removes both, which is sound as there is only this thread: seen above.
    let mut descriptors = ListenFd::from_env();
    match descriptors.len() {
        0 => return Ok(None),
        1 => {}
        several => return Err(ListenError::Passed(format!("{several} sockets"))),
    }
    let socket = descriptors.take_unix_listener(0).map_err(bad)?;
    let socket = socket.ok_or_else(|| ListenError::Passed("nothing".to_owned()))?;
    if !getsockopt(&socket, sockopt::AcceptConn).map_err(|error| bad(error.into()))? {
        return Err(ListenError::Passed("a socket that does not listen".to_owned()));
    }
    socket.set_nonblocking(true).map_err(bad)?;
    Ok(Some(Listening { socket, made: None }))
}

/// Makes the socket, for this user alone or for a group too, and the lock beside it (`PATH.lock`).
///
/// With `held`, the socket of the daemon before this one, that one is taken if it is the right one: clients that wait in it
/// are not lost. Else it refuses from now on. The lock may be held for `patience` by a daemon that is just leaving. Blocks.
///
/// # Errors
/// See [`ListenError`].
pub fn open(
    path: Option<&Path>,
    group: Option<&str>,
    held: Option<UnixListener>,
    patience: Duration,
) -> Result<Listening, ListenError> {
    let path = path.ok_or(ListenError::NoPath)?;
    let group = group.map(find_group).transpose()?;
    prepare_directory(path.parent().unwrap_or(Path::new("/")))?;
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock = InstanceLock::take_within(Path::new(&lock_path), patience)?;
    let io = |error: io::Error| ListenError::Io {
        path: path.to_owned(),
        error,
    };
    let (socket, identity) = match held.map(|held| take_over(held, path)).transpose().map_err(io)? {
        Some(Some(held)) => {
            let dressed = dress(path, group.as_ref()).and_then(|()| identity(path));
            (held, dressed.map_err(io)?)
        }
        _ => {
            remove_stale(path)?;
            bind_and_listen(path, group.as_ref()).map_err(io)?
        }
    };
    let made = Made {
        path: path.to_owned(),
        identity,
        _lock: lock,
    };
    Ok(Listening {
        socket,
        made: Some(made),
    })
}

fn find_group(name: &str) -> Result<Group, ListenError> {
    let bad = |why: String| ListenError::Group {
        name: name.to_owned(),
        why,
    };
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group),
        Ok(None) => Err(bad(
            "there is none of that name; make it with `groupadd`".to_owned()
        )),
        Err(error) => Err(bad(error.to_string())),
    }
}

/// Makes the directory if it is missing, and sees to it that nobody else can change what is in it.
fn prepare_directory(directory: &Path) -> Result<(), ListenError> {
    let is_root = geteuid().is_root();
    let bad = |path: &Path, why: String| ListenError::Directory {
        path: path.to_owned(),
        why,
    };
    // Others reach root's socket through it, its own mode says who.
    let mode = if is_root { 0o755 } else { 0o700 };
    let made = match DirBuilder::new().mode(mode).create(directory) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(bad(directory, format!("cannot be made: {error}"))),
    };
    check_directories(directory)?;
    if made || is_root && directory == Path::new(SYSTEM_DIRECTORY) {
        // Whatever the umask is, and whoever of ours made it.
        fs::set_permissions(directory, PermissionsExt::from_mode(mode))
            .map_err(|error| bad(directory, error.to_string()))?;
    }
    Ok(())
}

/// The directory is one, no link, and from the root to it nobody but us and root can rename what is on the way.
pub(super) fn check_directories(directory: &Path) -> Result<(), ListenError> {
    let bad = |path: &Path, why: &str| ListenError::Directory {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    let cannot = |path: &Path, error: io::Error| bad(path, &error.to_string());
    let last = directory
        .symlink_metadata()
        .map_err(|error| cannot(directory, error))?;
    if !last.is_dir() {
        return Err(bad(
            directory,
            "is no directory, or a link to one; name it itself",
        ));
    }
    let own = geteuid().as_raw();
    // In a user namespace root itself may be one of those that are not known in it.
    let namespaced = fs::read_to_string("/proc/self/uid_map").map_or(true, |map| {
        map.split_ascii_whitespace().nth(2) != Some("4294967295")
    });
    let real = directory
        .canonicalize()
        .map_err(|error| cannot(directory, error))?;
    for ancestor in real.ancestors() {
        let found = ancestor
            .symlink_metadata()
            .map_err(|error| cannot(ancestor, error))?;
        let trusted = [own, 0].contains(&found.uid())
            || namespaced && found.uid() == OVERFLOW_UID && ancestor != real;
        if !trusted {
            return Err(bad(
                ancestor,
                "belongs to another user; take a directory of your own",
            ));
        }
        // In a directory like /tmp others cannot touch what is ours.
        let sticky = found.mode() & 0o1000 != 0;
        let writers = if ancestor == real { 0o022 } else { 0o002 };
        if found.mode() & writers != 0 && !sticky {
            return Err(bad(ancestor, "can be written by other users; chmod go-w it"));
        }
    }
    Ok(())
}

/// Removes what a daemon left behind that did not end by itself. Whoever calls this holds the lock.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let io = |error: io::Error| ListenError::Io {
        path: path.to_owned(),
        error,
    };
    let there = match path.symlink_metadata() {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
    };
    if !there.file_type().is_socket() || there.uid() != geteuid().as_raw() {
        return Err(ListenError::Foreign(path.to_owned()));
    }
    // Somebody without our lock, like the service manager, may listen there. A full queue must not hold us up.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe =
        socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(|error| io(error.into()))?;
    let address = UnixAddr::new(path).map_err(|error| io(error.into()))?;
    match connect(probe.as_raw_fd(), &address) {
        Err(Errno::ECONNREFUSED) => fs::remove_file(path).map_err(io),
        _ => Err(ListenError::InUse(path.to_owned())),
    }
}

/// Between bind and listen nobody can connect, so that is when the socket gets its mode.
fn bind_and_listen(path: &Path, group: Option<&Group>) -> io::Result<(UnixListener, (u64, u64))> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // The name is made with the mode of the socket, less the umask: never more than this.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let finish = || {
        dress(path, group)?;
        listen(&socket, Backlog::MAXCONN)?;
        identity(path)
    };
    match finish() {
        Ok(identity) => Ok((UnixListener::from(socket), identity)),
        Err(error) => {
            let _ = fs::remove_file(path);
            Err(error)
        }
    }
}

/// Gives the socket its group and mode.
fn dress(path: &Path, group: Option<&Group>) -> io::Result<()> {
    let gid: Option<Gid> = group.map(|group| group.gid);
    fchownat(AT_FDCWD, path, None, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    fs::set_permissions(path, PermissionsExt::from_mode(mode))
}

/// The socket of the daemon before us, if it is the one that clients find at this path.
fn take_over(held: UnixListener, path: &Path) -> io::Result<Option<UnixListener>> {
    let bound = held.local_addr()?.as_pathname().map(Path::to_owned);
    let is_ours = |path: &Path| {
        let found = path.symlink_metadata();
        found.is_ok_and(|found| found.file_type().is_socket() && found.uid() == geteuid().as_raw())
    };
    let listens = getsockopt(&held, sockopt::AcceptConn)?;
    if bound.as_deref() == Some(path) && is_ours(path) && listens {
        held.set_nonblocking(true)?;
        return Ok(Some(held));
    }
    // Nobody may wait in it for ever.
    nix::sys::socket::shutdown(held.as_raw_fd(), nix::sys::socket::Shutdown::Both)?;
    if let Some(bound) = bound.filter(|bound| is_ours(bound)) {
        let _ = fs::remove_file(bound);
    }
    Ok(None)
}

/// The socket that the service manager once passed to a daemon before us.
pub fn passed_before(held: UnixListener) -> io::Result<Listening> {
    held.set_nonblocking(true)?;
    Ok(Listening {
        socket: held,
        made: None,
    })
}

/// Which file it is, whatever it is called.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = path.symlink_metadata()?;
    Ok((found.dev(), found.ino()))
}

#[cfg(test)]
mod tests;
