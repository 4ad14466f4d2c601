//! One daemon after another, with what they supervise: `serve --replace`, SIGUSR2, and the check before either.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use provost_sandbox::keeper::{wire, with_ordinary_score};
use serde::{Deserialize, Serialize};

use crate::client::{Client, ClientError};
use crate::daemon::config::ServeConfig;
use crate::daemon::lock::InstanceLock;
use crate::daemon::notify::Notifier;
use crate::daemon::state::StateDir;
use crate::protocol::{DaemonLeave, DaemonLeaves, ErrorKind};
use crate::store::SCHEMA_VERSION;

/// How long the daemon that runs may take to answer, and a new program to check itself.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the daemon that was asked to leave may take to end.
pub(super) const LEAVE_MAX: Duration = Duration::from_secs(60);

/// What `serve --check` prints: what another program must agree with to take over.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Checked {
    version: String,
    keeper_protocol: u16,
    schema: u32,
}

/// Whether this program could serve here with this configuration.
pub(super) fn check(config: &ServeConfig) -> Result<Checked, String> {
    if let (true, Some(path)) = (config.durable, &config.state_dir) {
        StateDir::check(path).map_err(|error| error.to_string())?;
    }
    Ok(Checked {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        keeper_protocol: wire::VERSION,
        schema: SCHEMA_VERSION,
    })
}

/// Asks the daemon that listens there to leave, if there is one, and takes its place with the service manager. To be called
/// while there is one thread.
pub(super) fn ask_to_leave(config: &ServeConfig, notifier: Notifier) -> Result<Notifier, String> {
    check(config)?;
    let (Some(socket), Some(state_dir)) = (&config.socket, &config.state_dir) else {
        return Err(
            "there is nothing to replace: a socket and a state directory must be known".to_owned(),
        );
    };
    // A socket may be there without anybody behind it.
    if !state_dir.exists() || InstanceLock::take(&state_dir.join("lock")).is_ok() {
        return Ok(notifier);
    }
    let asked = DaemonLeave {
        pid: std::process::id(),
        keeper_protocol: wire::VERSION,
        schema: SCHEMA_VERSION,
        state_dir: state_dir.display().to_string(),
    };
    let answer = super::runtime(0)?.block_on(async {
        let leave = async {
            let client = Client::connect(socket).await?;
            client.call::<DaemonLeaves>("daemon/leave", &asked).await
        };
        tokio::time::timeout(ANSWER, leave).await
    });
    match answer {
        Ok(Ok(leaves)) => {
            tracing::info!(pid = leaves.pid, "the daemon that ran leaves");
            let watchdog = leaves.watchdog_usec.map(Duration::from_micros);
            let notifier = notifier.or_that_of(leaves.notify_socket.map(OsString::from), watchdog);
            notifier.map_err(|error| error.to_string())
        }
        // Nobody is there; or it has died since, and the lock says when that is over.
        Ok(Err(ClientError::Connect { .. } | ClientError::Lost)) => Ok(notifier),
        Ok(Err(ClientError::Refused(error))) if error.data.kind == ErrorKind::MethodNotFound => {
            Err(format!(
                "the daemon at {} is too old to leave to another one; stop it instead",
                socket.display()
            ))
        }
        Ok(Err(ClientError::Refused(error))) => Err(format!(
            "the daemon at {} goes on: {}; {}",
            socket.display(),
            error.message,
            error.data.hint
        )),
        Ok(Err(error)) => Err(format!(
            "the daemon at {} cannot be replaced: {error}",
            socket.display()
        )),
        Err(_) => Err(format!(
            "the daemon at {} does not answer; if it hangs, kill it and start this one without --replace",
            socket.display()
        )),
    }
}

/// This program, as it was started.
#[derive(Debug, Clone)]
pub(super) struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    /// The soft limit of descriptors, which is raised later on.
    descriptors: rlim_t,
}

impl Program {
    /// To be called first of all.
    pub(super) fn this() -> io::Result<Self> {
        let path = std::env::current_exe()?;
        let (descriptors, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
        Ok(Self {
            path: without_deleted(&path),
            // There is nobody else to replace the next time.
            arguments: std::env::args_os()
                .skip(1)
                .filter(|word| word != "--replace")
                .collect(),
            descriptors,
        })
    }

    /// Its file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    #[expect(clippy::disallowed_methods, reason = "this program itself, no command")]
    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments);
        command
    }

    /// Whether the program that is on disk now could go on where this one stops. Blocks.
    pub(super) fn check(&self) -> Result<(), String> {
        let path = self.path.display();
        let mut command = self.command();
        command
            .arg("--check")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .map_err(|error| format!("{path} cannot be started: {error}"))?;
        let id = rustix::process::Pid::from_child(&child);
        let (done, ended) = std::sync::mpsc::channel::<()>();
        // One that hangs is no program to become.
        let watching = std::thread::spawn(move || {
            if ended.recv_timeout(ANSWER) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
            }
        });
        let (mut said, mut wrong) = (String::new(), String::new());
        let read = |from: Option<&mut dyn io::Read>, to: &mut String| {
            from.map(|from| io::Read::take(from, 64 * 1024).read_to_string(to))
        };
        use io::Read as _;
        read(
            child.stdout.as_mut().map(|from| from as &mut dyn io::Read),
            &mut said,
        );
        read(
            child.stderr.as_mut().map(|from| from as &mut dyn io::Read),
            &mut wrong,
        );
        // Not reaped before the watcher has gone: its number could be another's.
        drop(done);
        let _ = watching.join();
        let status = child.wait().map_err(|error| format!("{path} --check: {error}"))?;
        if !status.success() {
            return Err(format!("{path} says: {}", wrong.trim()));
        }
        let checked: Checked = serde_json::from_str(said.trim())
            .map_err(|error| format!("{path} --check is not understood: {error}"))?;
        if checked.keeper_protocol != wire::VERSION {
            return Err(format!(
                "{path} speaks version {} of the keeper's protocol, and the keeper of what runs {}; \
                 stop the daemon when nothing runs that must go on",
                checked.keeper_protocol,
                wire::VERSION
            ));
        }
        if checked.schema < SCHEMA_VERSION {
            return Err(format!(
                "{path} is older than this program, and cannot read the database"
            ));
        }
        Ok(())
    }

    /// Becomes that program: the same process, with the same arguments. What comes back is why not.
    pub(super) fn exec(&self, notifier: &Notifier) -> io::Error {
        if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, self.descriptors.min(hard), hard);
        }
        let mut command = self.command();
        if let Some(socket) = notifier.socket() {
            command.env("NOTIFY_SOCKET", socket);
            if let Some(watchdog) = notifier.watchdog() {
                command.env("WATCHDOG_USEC", watchdog.as_micros().to_string());
                command.env("WATCHDOG_PID", std::process::id().to_string());
            }
        }
        with_ordinary_score(|| command.exec())
    }
}

/// What the kernel says of a program whose file was replaced while it started.
fn without_deleted(path: &Path) -> PathBuf {
    let text = path.to_str().and_then(|path| path.strip_suffix(" (deleted)"));
    match text {
        Some(before) if !path.exists() => PathBuf::from(before),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_a_replaced_program_is_that_of_its_successor() {
        let there = std::env::current_exe().unwrap();
        assert_eq!(without_deleted(&there), there);
        let mut deleted = there.clone().into_os_string();
        deleted.push(" (deleted)");
        assert_eq!(without_deleted(Path::new(&deleted)), there);
    }
}
