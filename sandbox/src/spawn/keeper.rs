//! Finding the keeper, or starting one.
//!
//! The socket lies in a directory of ours that nobody else may write to, and is reached through that directory's
//! descriptor: what its path leads to may change meanwhile, and may be longer than an address.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen, socket,
    sockopt,
};
use nix::sys::stat::{Mode, fchmod};

use super::{Kind, LaunchError, Spawner, SpawnerSource, locate, pid_of, reap_later, start};
use crate::keeper::KEEPER_ROLE;
use crate::keeper::wire::{Notice, Request};
use crate::observe::notify::Errands;

/// How long a keeper has for its first word.
const WELCOME_MAX: Duration = Duration::from_secs(10);
/// Keepers that are met while they end. Each takes as long as a process takes to end.
const ATTEMPTS_MAX: u32 = 3;

pub(super) fn connect_or_launch(
    path: &Path,
    source: &SpawnerSource,
    idle: Duration,
) -> Result<(Spawner, bool), LaunchError> {
    let place = Place::open(path)?;
    for _ in 0..ATTEMPTS_MAX {
        let (socket, was_there) = match place.connect()? {
            Some(socket) => (socket, true),
            None => {
                place.launch(source, idle)?;
                let socket = place.connect()?;
                let gone = || place.no_keeper("it ended at once");
                (socket.ok_or_else(gone)?, false)
            }
        };
        if let Some(spawner) = place.welcomed(socket)? {
            return Ok((spawner, was_there));
        }
    }
    Err(place.no_keeper("it closes every connection"))
}

/// Where the socket is.
struct Place<'a> {
    path: &'a Path,
    /// The path as it is reached through its directory.
    reached: PathBuf,
    address: UnixAddr,
    _directory: File,
}

impl<'a> Place<'a> {
    /// Looks whether the directory is ours alone.
    fn open(path: &'a Path) -> Result<Self, LaunchError> {
        let failed = |doing| move |source| socket_error(doing, path, source);
        let (parent, name) = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) if parent != Path::new("") => (parent, name),
            (Some(_), Some(name)) => (Path::new("."), name),
            _ => return Err(not_ours(path, "it has no file name")),
        };
        let mut options = File::options();
        options.read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY);
        let directory = options.open(parent).map_err(failed("find the directory of"))?;
        let status = directory.metadata().map_err(failed("look at the directory of"))?;
        is_ours_alone(parent, &status)?;
        let reached = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
        let address =
            UnixAddr::new(&reached).map_err(|errno| failed("reach")(io::Error::from(errno)))?;
        Ok(Self {
            path,
            reached,
            address,
            _directory: directory,
        })
    }

    /// Nothing if nobody listens.
    fn connect(&self) -> Result<Option<OwnedFd>, LaunchError> {
        let failed = |errno: Errno| socket_error("connect to", self.path, errno.into());
        match self.reached.symlink_metadata() {
            Ok(status) if !status.file_type().is_socket() => {
                return Err(not_ours(
                    self.path,
                    "something that is no socket lies there; move it away",
                ));
            }
            Ok(status) => is_ours_alone(self.path, &status)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(socket_error("look at", self.path, error)),
        }
        // Connecting to a socket with a full queue would wait.
        let socket = new_socket().map_err(failed)?;
        match connect(socket.as_raw_fd(), &self.address) {
            Ok(()) => {}
            Err(Errno::ENOENT | Errno::ECONNREFUSED) => return Ok(None),
            Err(errno) => return Err(failed(errno)),
        }
        let uid = getsockopt(&socket, sockopt::PeerCredentials)
            .map_err(failed)?
            .uid();
        if uid != nix::unistd::geteuid().as_raw() {
            return Err(not_ours(self.path, &format!("uid {uid} listens there")));
        }
        Ok(Some(socket))
    }

    /// Makes the socket and starts a keeper that listens on it.
    fn launch(&self, source: &SpawnerSource, idle: Duration) -> Result<(), LaunchError> {
        let executable = locate(source).ok_or(LaunchError::NotFound)?;
        let failed = |doing| move |source| socket_error(doing, self.path, source);
        match std::fs::remove_file(&self.reached) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove what is left of")(error));
            }
            _ => {}
        }
        let make = || {
            let socket = new_socket()?;
            // Before it has a name: nobody may ever connect whom we do not let.
            fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
            bind(socket.as_raw_fd(), &self.address)?;
            listen(&socket, Backlog::MAXCONN)?;
            Ok(socket)
        };
        let socket = make().map_err(|errno: Errno| failed("make")(errno.into()))?;
        // Whatever the umask took away.
        std::fs::set_permissions(&self.reached, Permissions::from_mode(0o600))
            .map_err(failed("make"))?;
        let started = start(&executable, KEEPER_ROLE, &[idle.as_millis().to_string()], socket);
        match started {
            Ok(child) => {
                reap_later(pid_of(&child));
                Ok(())
            }
            Err(source) => {
                let _ = std::fs::remove_file(&self.reached);
                Err(LaunchError::Start {
                    path: executable.display().to_string(),
                    source,
                })
            }
        }
    }

    /// Waits for the first word. Nothing if the keeper ended instead.
    fn welcomed(&self, socket: OwnedFd) -> Result<Option<Spawner>, LaunchError> {
        let mut spawner = Spawner {
            socket,
            pid: 0,
            kind: Kind::Keeper { _errands: None },
        };
        let deadline = Instant::now() + WELCOME_MAX;
        loop {
            match spawner.receive() {
                Ok(Some((Notice::Welcome { pid }, _))) => {
                    spawner.pid = pid.unsigned_abs();
                    spawner.kind = Kind::Keeper {
                        _errands: hand_over_errands(&spawner),
                    };
                    return Ok(Some(spawner));
                }
                Ok(Some(_)) => return Err(self.no_keeper("it spoke out of turn")),
                Ok(None) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(self.no_keeper(&error.to_string())),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut waits = [PollFd::new(spawner.as_fd(), PollFlags::POLLIN)];
            match poll(&mut waits, timeout) {
                Ok(0) => return Err(self.no_keeper("no word in 10 s")),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(socket_error("wait for", self.path, errno.into())),
            }
        }
    }

    fn no_keeper(&self, reason: &str) -> LaunchError {
        LaunchError::NoKeeper {
            path: self.path.display().to_string(),
            reason: reason.to_owned(),
        }
    }
}

/// Without it the keeper is not asked, and what the kernel does not let us look at is refused: that is said, and no reason not to
/// serve.
fn hand_over_errands(spawner: &Spawner) -> Option<Arc<Errands>> {
    let hand_over = || {
        let pid_namespace = std::fs::metadata("/proc/self/ns/pid")?.ino();
        let (ours, theirs) = Errands::pair()?;
        spawner.send(&Request::Errands { pid_namespace }, &[theirs.as_fd()])?;
        io::Result::Ok(ours)
    };
    let handed = hand_over();
    handed
        .inspect_err(
            |error| tracing::warn!(%error, "the keeper cannot be asked to look into processes for us"),
        )
        .ok()
}

fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
}

fn is_ours_alone(path: &Path, status: &std::fs::Metadata) -> Result<(), LaunchError> {
    let own = nix::unistd::geteuid().as_raw();
    if status.uid() != own {
        let reason = format!("it belongs to uid {}, not to {own}", status.uid());
        return Err(not_ours(path, &reason));
    }
    if status.mode() & 0o022 != 0 {
        let reason = format!(
            "others may write to it (mode {:o}); chmod go-w it",
            status.mode() & 0o7777
        );
        return Err(not_ours(path, &reason));
    }
    Ok(())
}

fn not_ours(path: &Path, reason: &str) -> LaunchError {
    LaunchError::NotOurs {
        path: path.display().to_string(),
        reason: reason.to_owned(),
    }
}

fn socket_error(doing: &'static str, path: &Path, source: io::Error) -> LaunchError {
    LaunchError::Socket {
        doing,
        path: path.display().to_string(),
        source,
    }
}
