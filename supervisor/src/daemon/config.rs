//! What `provost serve` is told, resolved once: a file, on top of it the environment, on top of that flags.
//!
//! ```text
//! provost.toml  ─►  PROVOST_SOCKET, PROVOST_STATE_DIR, PROVOST_LOG  ─►  flags  ─►  ServeConfig
//! ```
//!
//! Nobody else in the daemon reads the environment or flags. On reload the same is done again; what cannot change while it
//! runs is said by [`ServeConfig::needs_restart`].

mod file;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::unistd::geteuid;
use provost_actors::spool::WhenFull;
use serde::Deserialize;

use super::{Settings, logging};
use crate::policy_file::PolicyFileError;

/// What is wrong with the configuration: where, which key, and what to do.
pub type ConfigError = PolicyFileError;

/// The longest path that a socket address holds, in bytes: `sun_path` with its final zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// What the flags of `provost serve` say. The rest is in the file.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// The Unix socket to listen on.
    pub socket: Option<PathBuf>,
    /// The group whose members may connect, too.
    pub group: Option<String>,
    /// Where records are kept.
    pub state_dir: Option<PathBuf>,
    /// Nothing is kept.
    pub no_state: bool,
    /// What is logged.
    pub log: Option<String>,
    /// How it is logged.
    pub log_format: Option<LogFormat>,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// To the journal if stderr is connected to it, else as text.
    #[default]
    Auto,
    /// Lines for people, on stderr.
    Text,
    /// A JSON object per line, on stderr.
    Json,
    /// To the journal, with fields.
    Journald,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            "journald" => Ok(Self::Journald),
            _ => Err("want auto, text, json or journald".to_owned()),
        }
    }
}

/// Where metrics are to be served: never beyond this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// A loopback address.
    Loopback(SocketAddr),
}

/// Everything that `provost serve` is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeConfig {
    /// The file that was read; none where there is none.
    pub file: Option<PathBuf>,
    /// Where to listen, unless a socket was passed. Absent where nothing says it, and there is no default.
    pub socket: Option<PathBuf>,
    /// The group whose members may connect.
    pub group: Option<String>,
    /// Where records are kept. Absent where nothing says it, and there is no default.
    pub state_dir: Option<PathBuf>,
    /// Everything survives the daemon.
    pub durable: bool,
    /// What becomes of processes whose output finds no room.
    pub disk_full: WhenFull,
    /// A filter that [`logging::filter`] takes.
    pub log: String,
    /// How the log is written.
    pub log_format: LogFormat,
    /// Bounds, and what becomes of confined peers: what a reload changes.
    pub settings: Settings,
    /// Where metrics are served; nowhere by default.
    pub metrics: Option<MetricsAddress>,
}

/// What the defaults and the environment's share of the configuration come from.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    uid: u32,
    home: Option<PathBuf>,
    config_home: Option<PathBuf>,
    state_home: Option<PathBuf>,
    runtime_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    log: Option<String>,
    /// The system's file; another one in tests.
    system_file: PathBuf,
}

impl Surroundings {
    /// Those of this process. What is set but empty counts as unset, and so does what XDG says of relative paths.
    pub fn here() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let directory = |name| {
            variable(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        Self {
            uid: geteuid().as_raw(),
            home: directory("HOME"),
            config_home: directory("XDG_CONFIG_HOME"),
            state_home: directory("XDG_STATE_HOME"),
            runtime_dir: directory("XDG_RUNTIME_DIR"),
            socket: variable("PROVOST_SOCKET").map(PathBuf::from),
            state_dir: variable("PROVOST_STATE_DIR").map(PathBuf::from),
            log: variable("PROVOST_LOG").map(|value| value.to_string_lossy().into_owned()),
            system_file: "/etc/provost/provost.toml".into(),
        }
    }

    /// Where clients look for the daemon of this user: where `PROVOST_SOCKET` says, else where it listens if nobody says
    /// otherwise.
    pub fn socket(&self) -> Option<PathBuf> {
        self.socket.clone().or_else(|| self.default_socket())
    }

    /// Where this user's own state is: where `PROVOST_STATE_DIR` says, else where the daemon keeps its.
    pub fn state_dir(&self) -> Option<PathBuf> {
        self.state_dir.clone().or_else(|| self.default_state_dir())
    }

    fn default_socket(&self) -> Option<PathBuf> {
        match self.uid {
            0 => Some("/run/provost/provost.sock".into()),
            _ => Some(self.runtime_dir.as_ref()?.join("provost/provost.sock")),
        }
    }

    fn default_state_dir(&self) -> Option<PathBuf> {
        if self.uid == 0 {
            return Some("/var/lib/provost".into());
        }
        let below_home = || Some(self.home.as_ref()?.join(".local/state"));
        Some(self.state_home.clone().or_else(below_home)?.join("provost"))
    }

    fn default_file(&self) -> Option<PathBuf> {
        if self.uid == 0 {
            return Some(self.system_file.clone());
        }
        let below_home = || Some(self.home.as_ref()?.join(".config"));
        Some(
            self.config_home
                .clone()
                .or_else(below_home)?
                .join("provost/provost.toml"),
        )
    }
}

impl ServeConfig {
    /// Reads the file and puts environment and flags on top of it.
    ///
    /// # Errors
    /// The file that was named does not exist; a file cannot be read, or others can write it; a key is unknown or its value
    /// makes no sense; a variable's or a flag's value makes no sense.
    pub fn resolve(flags: &Flags, surroundings: &Surroundings) -> Result<Self, ConfigError> {
        let named = flags.config.clone();
        let must_exist = named.is_some();
        let config = match named.or_else(|| surroundings.default_file()) {
            Some(path) => file::read(&path, must_exist, surroundings)?,
            None => Self::default_for(surroundings),
        };
        config.with(flags, surroundings)
    }

    /// The same from environment and flags alone.
    ///
    /// # Errors
    /// A variable's or a flag's value makes no sense.
    pub fn without_file(flags: &Flags, surroundings: &Surroundings) -> Result<Self, ConfigError> {
        Self::default_for(surroundings).with(flags, surroundings)
    }

    fn with(mut self, flags: &Flags, surroundings: &Surroundings) -> Result<Self, ConfigError> {
        let config = &mut self;
        let given = |flag: &Option<PathBuf>, flag_name, variable: &Option<PathBuf>, variable_name| {
            let flag = flag.clone().map(|path| (flag_name, path));
            flag.or_else(|| variable.clone().map(|path| (variable_name, path)))
        };
        if let Some((name, path)) =
            given(&flags.socket, "--socket", &surroundings.socket, "PROVOST_SOCKET")
        {
            config.socket = Some(checked(name, &path, socket_path)?);
        }
        if let Some((name, path)) = given(
            &flags.state_dir,
            "--state-dir",
            &surroundings.state_dir,
            "PROVOST_STATE_DIR",
        ) {
            config.state_dir = Some(checked(name, &path, absolute)?);
        }
        config.durable &= !flags.no_state;
        if let Some(group) = &flags.group {
            config.group = Some(group.clone());
        }
        let log = flags.log.as_ref().map(|log| ("--log", log));
        if let Some((name, log)) = log.or(surroundings.log.as_ref().map(|log| ("PROVOST_LOG", log))) {
            logging::filter(log).map_err(|why| said(name, why))?;
            config.log = log.clone();
        }
        if let Some(format) = flags.log_format {
            config.log_format = format;
        }
        Ok(self)
    }

    fn default_for(surroundings: &Surroundings) -> Self {
        Self {
            file: None,
            socket: surroundings.default_socket(),
            group: None,
            state_dir: surroundings.default_state_dir(),
            durable: true,
            disk_full: WhenFull::default(),
            log: logging::DEFAULT_FILTER.to_owned(),
            log_format: LogFormat::default(),
            settings: Settings::default(),
            metrics: None,
        }
    }

    /// The keys that differ in `next` but take effect with a restart only, for a reload to name them.
    pub fn needs_restart(&self, next: &Self) -> Vec<&'static str> {
        let differs = [
            ("socket", self.socket != next.socket),
            ("group", self.group != next.group),
            ("state_dir", self.state_dir != next.state_dir),
            ("durable", self.durable != next.durable),
            ("disk_full", self.disk_full != next.disk_full),
            ("log_format", self.log_format != next.log_format),
            ("metrics", self.metrics != next.metrics),
        ];
        let differing = differs.into_iter().filter(|(_, differs)| *differs);
        differing.map(|(key, _)| key).collect()
    }
}

/// An error about a flag or a variable.
fn said(name: &str, why: impl Into<String>) -> ConfigError {
    ConfigError::file(name, why)
}

fn checked<T>(
    name: &str,
    path: &Path,
    check: impl FnOnce(&Path) -> Result<T, String>,
) -> Result<T, ConfigError> {
    check(path).map_err(|why| said(name, why))
}

/// A path that means the same wherever the daemon is started.
fn absolute(path: &Path) -> Result<PathBuf, String> {
    if !path.is_absolute() {
        return Err(format!(
            "`{}` is no absolute path; begin it with /",
            path.display()
        ));
    }
    Ok(path.to_owned())
}

fn socket_path(path: &Path) -> Result<PathBuf, String> {
    let bytes = path.as_os_str().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        return Err(format!(
            "the path has {bytes} bytes, and a socket's may have {SOCKET_PATH_BYTES_MAX}; take a shorter one"
        ));
    }
    if path.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err(format!(
            "`{}` is a directory; name the socket in it",
            path.display()
        ));
    }
    absolute(path)
}
