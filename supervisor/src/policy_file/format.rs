//! What may stand in a policy file.
//!
//! Nothing else may: an unknown key is an error, for one that is silently ignored is a rule that silently does not hold.

use std::collections::BTreeMap;

#[cfg(feature = "cli")]
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Spanned;

use super::error::{PolicyFileError, Text};

/// The version that files carry now.
pub(super) const VERSION: u32 = 1;

/// A policy for `provost run --policy`.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "cli", derive(JsonSchema))]
#[cfg_attr(feature = "cli", schemars(title = "Provost policy file"))]
#[serde(deny_unknown_fields)]
pub(super) struct PolicyFile {
    /// The version of this format: 1.
    #[cfg_attr(feature = "cli", schemars(with = "u32", range(min = 1, max = 1)))]
    pub(super) version: Spanned<u32>,
    /// For people.
    #[serde(default)]
    #[allow(dead_code)] // it is there to be read in the file
    pub(super) description: Option<String>,
    /// What this policy begins with: a preset (`workspace-write`, `read-only`, `unconfined`), the name of another policy, or
    /// a file (`./base.toml`, relative to this one). Without it nothing is granted but what this file grants.
    #[serde(default)]
    #[cfg_attr(feature = "cli", schemars(with = "Option<String>"))]
    pub(super) extends: Option<Spanned<String>>,
    /// Start with less where this machine cannot hold the policy.
    #[serde(default)]
    pub(super) best_effort: Option<bool>,
    /// Files and directories.
    #[serde(default)]
    pub(super) files: Files,
    /// Sockets and addresses.
    #[serde(default)]
    pub(super) net: Net,
    /// System calls.
    #[serde(default)]
    pub(super) syscalls: Syscalls,
    /// Environment variables.
    #[serde(default)]
    pub(super) env: Env,
    /// Resource and time limits.
    #[serde(default)]
    pub(super) limits: Limits,
}

/// Paths are absolute, begin with `~`, or are relative to the command's working directory. `*`, `?`, `[…]` and `**` stand
/// for what exists when the command starts.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(feature = "cli", derive(JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Files {
    /// Readable and executable, with everything below.
    #[cfg_attr(feature = "cli", schemars(with = "Vec<String>"))]
    pub(super) read: Vec<Spanned<String>>,
    /// If any: of what is readable, only this may be executed, with everything below. Programs by their names: an interpreter
    /// that may be executed runs whatever it may read.
    #[cfg_attr(feature = "cli", schemars(with = "Vec<String>"))]
    pub(super) execute: Vec<Spanned<String>>,
    /// Writable (and readable), with everything below; must exist.
    #[cfg_attr(feature = "cli", schemars(with = "Vec<String>"))]
    pub(super) write: Vec<Spanned<String>>,
    /// Neither readable nor writable, with everything below.
    #[cfg_attr(feature = "cli", schemars(with = "Vec<String>"))]
    pub(super) deny: Vec<Spanned<String>>,
    /// Not writable although below a writable directory; what exists when the command starts.
    #[cfg_attr(feature = "cli", schemars(with = "Vec<String>"))]
    pub(super) protect: Vec<Spanned<String>>,
    /// An empty /tmp and /dev/shm of its own.
    pub(super) private_tmp: Option<bool>,
    /// Ask before opening or creating a file is refused that no rule speaks about.
    pub(super) ask: Option<bool>,
}

/// Sockets and addresses.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(feature = "cli", derive(JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Net {
    /// off (none), isolated (a private loopback), open (the machine's own), ask (off, but ask before refusing).
    #[cfg_attr(feature = "cli", schemars(with = "Option<NetModeName>"))]
    pub(super) mode: Option<Spanned<NetModeName>>,
    /// Destinations allowed with off or ask: `ADDRESS:PORT`, `CIDR:PORT`, `[IPv6]:PORT`, `HOST:PORT`, `*.HOST:PORT`; `*` for any
    /// port; `/udp` after it for UDP, else TCP.
    #[cfg_attr(feature = "cli", schemars(with = "Vec<String>"))]
    pub(super) allow: Vec<Spanned<String>>,
    /// Reach allowed names through a proxy of Provost's only, which tells hosts apart that share an address.
    pub(super) proxy: Option<bool>,
    /// Addresses of this machine where TCP may be served with off or ask: `127.0.0.1:8080`, `[::1]:*`. Ports from 1024 on.
    #[cfg_attr(feature = "cli", schemars(with = "Vec<String>"))]
    pub(super) listen: Vec<Spanned<String>>,
    /// Unix sockets of other programs that may be connected to: paths, as in files.
    #[cfg_attr(feature = "cli", schemars(with = "Vec<String>"))]
    pub(super) unix: Vec<Spanned<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "cli", derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub(super) enum NetModeName {
    Off,
    Isolated,
    Open,
    Ask,
}

/// System calls.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(feature = "cli", derive(JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Syscalls {
    /// Refused with EPERM and recorded, beside those that always are: `ptrace`, `kexec_load`.
    #[cfg_attr(feature = "cli", schemars(with = "Vec<String>"))]
    pub(super) refuse: Vec<Spanned<String>>,
}

/// Environment variables.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(feature = "cli", derive(JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Env {
    /// Begin with PATH, HOME, USER, LOGNAME and SHELL only.
    pub(super) clean: Option<bool>,
    /// Variables to pass on where they are set. A name may end with `*`; what such a pattern matches is left out if its name
    /// looks like that of a secret.
    #[cfg_attr(feature = "cli", schemars(with = "Vec<String>"))]
    pub(super) pass: Vec<Spanned<String>>,
    /// Variables to set.
    #[cfg_attr(feature = "cli", schemars(with = "BTreeMap<String, String>"))]
    pub(super) set: BTreeMap<Spanned<String>, String>,
}

/// Resource and time limits.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(feature = "cli", derive(JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    /// Memory: `512M`, `2G`.
    #[cfg_attr(feature = "cli", schemars(with = "Option<String>"))]
    pub(super) memory: Option<Spanned<String>>,
    /// Processes and threads.
    #[cfg_attr(feature = "cli", schemars(with = "Option<u64>", range(min = 1)))]
    pub(super) tasks: Option<Spanned<u64>>,
    /// CPU time of each process: `90s`, `10m`.
    #[cfg_attr(feature = "cli", schemars(with = "Option<String>"))]
    pub(super) cpu_time: Option<Spanned<String>>,
    /// CPUs that it may keep busy: 1, 0.5.
    #[cfg_attr(feature = "cli", schemars(with = "Option<f64>", range(min = 0.01)))]
    pub(super) cpus: Option<Spanned<f64>>,
    /// What it may write to disks in all: `10G`.
    #[cfg_attr(feature = "cli", schemars(with = "Option<String>"))]
    pub(super) disk_written: Option<Spanned<String>>,
    /// Descriptors that each process may have open; at least 16.
    #[cfg_attr(feature = "cli", schemars(with = "Option<u64>", range(min = 16)))]
    pub(super) open_files: Option<Spanned<u64>>,
    /// The size of a file that is written: `512M`, `2G`.
    #[cfg_attr(feature = "cli", schemars(with = "Option<String>"))]
    pub(super) file_size: Option<Spanned<String>>,
    /// End the command when it has run this long: `90s`, `1h30m`.
    #[cfg_attr(feature = "cli", schemars(with = "Option<String>"))]
    pub(super) timeout: Option<Spanned<String>>,
    /// End the command when it has written nothing for this long.
    #[cfg_attr(feature = "cli", schemars(with = "Option<String>"))]
    pub(super) idle_timeout: Option<Spanned<String>>,
}

/// Reads a policy file's text.
pub(super) fn parse(text: &Text) -> Result<PolicyFile, PolicyFileError> {
    let file: PolicyFile = deserialize(text)?;
    if *file.version.get_ref() != VERSION {
        let why = format!(
            "this is version {}, and only {VERSION} is known",
            file.version.get_ref()
        );
        return Err(text
            .error(file.version.span(), "version", why)
            .help("write `version = 1`, or use a later provost"));
    }
    Ok(file)
}

/// Reads TOML; errors name the place, the key and what was probably meant.
pub(crate) fn deserialize<T: DeserializeOwned>(text: &Text) -> Result<T, PolicyFileError> {
    let toml = toml::Deserializer::parse(&text.text).map_err(|error| plain(text, &error, ""))?;
    serde_path_to_error::deserialize(toml).map_err(|error| {
        let key = match error.path().to_string() {
            root if root == "." => String::new(),
            // A detail of how places in the file are learned of.
            key => key.replace(".$__serde_spanned_private_value", ""),
        };
        plain(text, error.inner(), &key)
    })
}

fn plain(text: &Text, error: &toml::de::Error, key: &str) -> PolicyFileError {
    let span = error.span().unwrap_or(0..0);
    let message = error.message().replace('\n', ", ");
    let Some((unknown, known)) = unknown_key(&message) else {
        return match message.strip_prefix("missing field `version`") {
            Some(_) => text
                .error(span, "version", "missing")
                .help("begin the file with `version = 1`"),
            None => text.error(span, key, message),
        };
    };
    let meant = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(unknown, candidate), candidate))
        .min()
        .filter(|(distance, _)| *distance <= 2);
    let help = match meant {
        Some((_, meant)) => format!("did you mean `{meant}`?"),
        None => format!("the keys here are {}", known.join(", ")),
    };
    text.error(span, key, format!("unknown key `{unknown}`"))
        .help(help)
}

/// The parts of serde's "unknown field `x`, expected one of `a`, `b`".
fn unknown_key(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (unknown, rest) = rest.split_once('`')?;
    Some((unknown, rest.split('`').skip(1).step_by(2).collect()))
}
