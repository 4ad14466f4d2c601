//! The supervisor's side of the spawner and the keeper: starting one, and asking it for commands.

mod keeper;

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use uuid::Uuid;

use crate::extras::Extras;
use crate::keeper::wire::{self, Notice, Request, SpawnRequest, Stdin};
use crate::keeper::{ForkedSpawner, ROLE, is_hooked, with_ordinary_score};
use crate::observe::notify::Errands;

/// Where the spawner's executable is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SpawnerSource {
    /// This executable if its `main` begins with the hook, else `provost` beside it, else `provost` in PATH.
    #[default]
    Auto,
    /// This file, which must be a `provost` or begin its `main` with the hook.
    Executable(PathBuf),
}

/// The spawner could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Nothing can serve as the spawner.
    #[error(
        "no spawner executable: call provost::run_spawner_if_asked() at the start of main, put `provost` beside this program or in PATH, or name it with Builder::spawner"
    )]
    NotFound,
    /// It could not be started.
    #[error("cannot start the spawner `{path}`: {source}")]
    Start {
        /// The executable.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The place of the keeper's socket is not ours alone.
    #[error("`{path}` is no place for the keeper's socket: {reason}")]
    NotOurs {
        /// The socket or its directory.
        path: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// The keeper's socket cannot be used.
    #[error("cannot {doing} the keeper's socket `{path}`: {source}")]
    Socket {
        /// What failed.
        doing: &'static str,
        /// The socket.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// What listens there does not speak as a keeper of this release.
    #[error(
        "what listens on `{path}` does not answer as a keeper of this release: {reason}; if it belongs to another release of provost, stop that one with its own program first"
    )]
    NoKeeper {
        /// The socket.
        path: String,
        /// What it did instead.
        reason: String,
    },
}

/// How long a keeper stays without anything to keep and anybody connected.
pub const KEEPER_IDLE: Duration = Duration::from_secs(60);

/// A running spawner, or a connection to a keeper.
///
/// Dropping it leaves ([`Self::leave`]): a spawner ends with everything it holds, a keeper goes on.
#[derive(Debug)]
pub struct Spawner {
    socket: OwnedFd,
    pid: u32,
    kind: Kind,
}

/// What becomes of it without us.
#[derive(Debug)]
enum Kind {
    /// A child, to be waited for, that ends with the connection.
    Spawner(Option<Pid>),
    /// It outlives us.
    Keeper {
        /// It is asked there as long as we hold this.
        _errands: Option<Arc<Errands>>,
    },
}

impl Spawner {
    /// Starts a spawner. It has said nothing yet: send [`Request::Hello`] first.
    ///
    /// # Errors
    /// No executable, or it cannot be started.
    pub fn launch(source: &SpawnerSource) -> Result<Self, LaunchError> {
        let path = locate(source).ok_or(LaunchError::NotFound)?;
        let start_error = |source: io::Error| LaunchError::Start {
            path: path.display().to_string(),
            source,
        };
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(|errno| start_error(errno.into()))?;
        nix::fcntl::fcntl(
            &ours,
            nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
        )
        .map_err(|errno| start_error(errno.into()))?;
        let child = start(&path, ROLE, &[], theirs).map_err(start_error)?;
        Ok(Self {
            socket: ours,
            pid: child.id(),
            kind: Kind::Spawner(Some(pid_of(&child))),
        })
    }

    /// Speaks to a spawner that was [forked](crate::keeper::fork_spawner). It has said nothing yet, as one that was
    /// [launched](Self::launch).
    pub fn forked(ForkedSpawner { socket, pid }: ForkedSpawner) -> Self {
        Self {
            socket,
            pid: pid.as_raw().cast_unsigned(),
            kind: Kind::Spawner(Some(pid)),
        }
    }

    /// Connects to the keeper that listens on this socket, which replaces whoever is connected; where none listens, makes
    /// the socket and starts one first. It has said nothing of what it holds yet: send [`Request::Hello`] first. True if
    /// it was there.
    ///
    /// The directory of the socket must be ours and writable by nobody else. Hold a lock on it, so that no other starts a
    /// keeper at the same time. A keeper that nobody needs ends after `idle` (usually [`KEEPER_IDLE`]); one that was there
    /// keeps its own. This call waits for the keeper's first word, at most ten seconds.
    ///
    /// A keeper that this process started is its child as long as both live. It is reaped by a thread, which keeps nothing
    /// from ending.
    ///
    /// # Errors
    /// No executable, or it cannot be started; the socket or its directory is not ours alone; what listens there is no
    /// keeper, or one of a release with another version of the protocol.
    pub fn connect_or_launch(
        socket: &Path,
        source: &SpawnerSource,
        idle: Duration,
    ) -> Result<(Self, bool), LaunchError> {
        keeper::connect_or_launch(socket, source, idle)
    }

    /// The spawner's or keeper's pid.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it keeps what it holds when we leave.
    pub fn outlives_us(&self) -> bool {
        matches!(self.kind, Kind::Keeper { .. })
    }

    /// Sends a request with its descriptors.
    ///
    /// # Errors
    /// `WouldBlock` when the socket is full, `BrokenPipe` when the spawner is gone.
    pub fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        wire::send(self.socket.as_fd(), request, &raw)
    }

    /// Ends the conversation, although this value lives on. A spawner kills what it holds and ends; a keeper keeps
    /// everything, for whoever connects next.
    pub fn leave(&self) {
        let _ = nix::sys::socket::shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }

    /// Makes spawner or keeper kill what it holds and end. That it has is told by the end of the conversation.
    ///
    /// # Errors
    /// `WouldBlock` when the socket is full: a spawner ends nevertheless, a keeper was not told. `BrokenPipe` when it is
    /// gone.
    pub fn stop(&self) -> io::Result<()> {
        let told = self.send(&Request::Stop, &[]);
        if told.is_err() && !self.outlives_us() {
            self.leave();
        }
        told
    }

    /// Receives a notice with its descriptors; `None` when the spawner is gone.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; `InvalidData` when it cannot be read.
    pub fn receive(&self) -> io::Result<Option<(Notice, Vec<OwnedFd>)>> {
        match wire::receive(self.socket.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            other => other,
        }
    }
}

impl AsFd for Spawner {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Spawner {
    fn as_raw_fd(&self) -> i32 {
        self.socket.as_raw_fd()
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        self.leave();
        if let Kind::Spawner(child) = &mut self.kind {
            child.take().into_iter().for_each(reap_later);
        }
    }
}

/// Starts an executable in a role, with this socket as its standard input. The one place where a supervisor starts a
/// process itself. Its environment is empty: nothing that is secret may be read from the spawner or from the inits,
/// which are its forks.
#[allow(clippy::disallowed_methods, reason = "the spawner itself")]
fn start(path: &Path, role: &str, arguments: &[String], socket: OwnedFd) -> io::Result<Child> {
    let mut command = std::process::Command::new(path);
    command
        .arg0(role)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    with_ordinary_score(|| command.spawn())
}

/// Somebody must wait for it, or a host that starts many supervisors collects zombies. A host that reaps with wait(-1)
/// or ignores SIGCHLD is quicker. The thread ends with this process.
fn reap_later(child: Pid) {
    let reaper = std::thread::Builder::new().name("provost-reaper".to_owned());
    let _ = reaper.spawn(move || while waitpid(child, None) == Err(Errno::EINTR) {});
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

fn locate(source: &SpawnerSource) -> Option<PathBuf> {
    match source {
        SpawnerSource::Executable(path) => Some(path.clone()),
        SpawnerSource::Auto if is_hooked() => Some("/proc/self/exe".into()),
        SpawnerSource::Auto => {
            let own = std::env::current_exe().ok();
            let beside = own
                .iter()
                .flat_map(|exe| exe.ancestors().skip(1).take(2)) // target/debug/deps/test → target/debug
                .map(|directory| directory.join("provost"));
            let path = std::env::var_os("PATH").unwrap_or_default();
            beside
                .chain(std::env::split_paths(&path).map(|directory| directory.join("provost")))
                .find(|candidate| is_executable(candidate))
        }
    }
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}

/// What to run, as its caller says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The process id.
    pub process: Uuid,
    /// Arguments, the program first.
    pub argv: Vec<Vec<u8>>,
    /// `KEY=VALUE` strings: the whole environment.
    pub env: Vec<Vec<u8>>,
    /// Working directory, absolute.
    pub cwd: PathBuf,
    /// Standard input.
    pub stdin: Stdin,
    /// What it gets besides.
    pub extras: Extras,
}

impl Command {
    /// The request that starts this command in this sandbox.
    pub fn request(self, sandbox: &crate::compile::PreparedSandbox) -> SpawnRequest {
        let candidates = candidates(&self.argv, &self.env);
        let mut env = self.env;
        if let Some(directory) = sandbox.temp_directory() {
            env.retain(|entry| !entry.starts_with(b"TMPDIR="));
            env.push([b"TMPDIR=", directory.as_os_str().as_encoded_bytes()].concat());
        }
        self.extras.tell(&mut env);
        SpawnRequest {
            process: self.process,
            plan: sandbox.plan.clone(),
            rulesets: sandbox.rulesets().len() as u32,
            candidates,
            argv: self.argv,
            env,
            cwd: self.cwd.into_os_string().into_encoded_bytes(),
            stdin: self.stdin,
            extras: self.extras,
        }
    }
}

/// The raw wait status of a process that has ended and was reaped, by the kernel's own word (Linux 6.15). `None`
/// while it lives, is a zombie, or where the kernel does not tell.
pub fn exit_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    crate::keeper::sys::exit_status(pidfd.as_raw_fd())
}

/// The files to try: the program itself if it has a slash, else that name in each directory of the command's
/// own PATH, as `execvp` does.
pub fn candidates(argv: &[Vec<u8>], env: &[Vec<u8>]) -> Vec<Vec<u8>> {
    const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin";
    let Some(program) = argv.first() else {
        return Vec::new();
    };
    if program.contains(&b'/') {
        return vec![program.clone()];
    }
    if program.is_empty() {
        return Vec::new();
    }
    let path = env
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix(b"PATH="))
        .unwrap_or(DEFAULT_PATH);
    path.split(|byte| *byte == b':')
        .map(|directory| {
            let directory = if directory.is_empty() { b"." } else { directory };
            Path::new(OsStr::from_bytes(directory))
                .join(OsStr::from_bytes(program))
                .into_os_string()
                .into_encoded_bytes()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(items: &[&str]) -> Vec<Vec<u8>> {
        items.iter().map(|s| s.as_bytes().to_vec()).collect()
    }

    #[test]
    fn a_name_is_looked_up_in_the_commands_own_path() {
        let found = candidates(&strings(&["ls", "-l"]), &strings(&["A=b", "PATH=/x::/y"]));
        assert_eq!(found, strings(&["/x/ls", "./ls", "/y/ls"]));
    }

    #[test]
    fn a_path_is_taken_as_it_is() {
        assert_eq!(
            candidates(&strings(&["./a/b"]), &strings(&["PATH=/x"])),
            strings(&["./a/b"])
        );
        assert!(candidates(&strings(&[""]), &[]).is_empty());
    }
}
