//! The wish: what a process may touch.
//!
//! A [`Policy`] is plain data. It says nothing about how the kernel will hold it; [`crate::compile`] does
//! that against a [`crate::kernel::KernelSupport`]. Every rule carries the words that put it there
//! (`--write out/`, `preset workspace-write`), because a denial quotes them.

mod name;
mod preset;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use name::{Destination, FixedName, NamePolicy, NameRule};
pub use preset::{PRESETS, PresetContext};

/// What a process may touch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The name that records and denials quote: a preset's name.
    pub name: String,
    /// False for `unconfined`: no sandbox at all, the same supervision.
    pub confined: bool,
    /// Files and directories.
    pub files: FilePolicy,
    /// Sockets and addresses.
    pub net: NetPolicy,
    /// Resource limits.
    pub limits: Limits,
    /// What is asked about before it is refused.
    #[serde(default)]
    pub ask: AskPolicy,
    /// What to do where the kernel cannot hold what is asked.
    pub degrade: Degrade,
}

/// What is asked about before it is refused: the call waits for an answer, and is refused if none comes in time.
///
/// Only what no rule speaks about is asked about: what a rule denies stays denied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskPolicy {
    /// TCP connections, and connections to unix sockets of other programs by their path.
    pub net: bool,
    /// Opening and creating regular files. Other changes (rename, unlink, mkdir …) are refused as ever.
    pub files: bool,
}

/// What to do where the kernel lacks something that the policy asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Degrade {
    /// Refuse to start.
    Required,
    /// Start with less, and say what is missing in the report.
    BestEffort,
}

/// A path in a policy and where the rule came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRule {
    /// Absolute path.
    pub path: PathBuf,
    /// The words that put it there, quoted by denials: `--deny PATH`, `preset workspace-write`.
    pub source: String,
    /// Written by the user, not by a preset: wins over a preset's rule for the same path.
    pub explicit: bool,
}

impl PathRule {
    /// A rule that a preset makes.
    pub fn preset(path: impl Into<PathBuf>, source: &str) -> Self {
        Self {
            path: path.into(),
            source: source.to_owned(),
            explicit: false,
        }
    }

    /// A rule that the user wrote.
    pub fn explicit(path: impl Into<PathBuf>, source: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            source: source.into(),
            explicit: true,
        }
    }
}

/// Rules for files. For one path the *longest* matching rule wins. For the same path: an explicit `deny`,
/// then an explicit grant, then a preset's `deny`, then a preset's grant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePolicy {
    /// Readable and executable, with everything below.
    pub read: Vec<PathRule>,
    /// Writable (and readable), with everything below.
    pub write: Vec<PathRule>,
    /// Neither readable nor writable, with everything below.
    pub deny: Vec<PathRule>,
    /// Read-only although below a writable root; held by a mount namespace where there is one.
    pub protect: Vec<PathRule>,
    /// Give the process its own empty `/tmp` and `/dev/shm`.
    pub private_tmp: bool,
}

/// Rules for sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetPolicy {
    /// The ground rule.
    pub mode: NetMode,
    /// The words that put it there, quoted by denials: `preset workspace-write`, `--net off`.
    #[serde(default)]
    pub source: String,
    /// Unix sockets of other programs that may be connected to, by their paths. All others stay closed, in every mode.
    #[serde(default)]
    pub unix: Vec<PathRule>,
    /// TCP destinations allowed on top of it.
    pub allow: Vec<NetRule>,
    /// TCP destinations allowed by their names.
    #[serde(default)]
    pub names: NamePolicy,
}

/// What a policy says about one TCP destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetVerdict {
    /// Whether a connection is allowed.
    pub allowed: bool,
    /// The deciding rule for people.
    pub rule: String,
}

impl NetPolicy {
    /// Whether a TCP connection to this destination is allowed, and by which rule. A decision by asking counts as refused.
    pub fn decide_tcp(&self, address: IpAddr, port: u16) -> NetVerdict {
        let (allowed, rule) = match self.mode {
            NetMode::Open => (true, self.ground_rule()),
            NetMode::Isolated => (address.to_canonical().is_loopback(), self.ground_rule()),
            NetMode::Off => match self.allow.iter().find(|rule| rule.covers(address, port)) {
                Some(rule) => (true, rule.source.clone()),
                None => (false, self.ground_rule()),
            },
        };
        NetVerdict { allowed, rule }
    }

    /// Whether TCP connections to the addresses of this name are allowed, and by which rule. The name is in lower case and
    /// has no final dot.
    pub fn decide_name(&self, name: &str, port: u16) -> NetVerdict {
        let rule = self
            .names
            .rules
            .iter()
            .find(|rule| rule.covers_name(name) && rule.covers_port(port));
        match (self.mode, rule) {
            (NetMode::Off, Some(rule)) => NetVerdict {
                allowed: true,
                rule: rule.source.clone(),
            },
            (mode, _) => NetVerdict {
                allowed: mode == NetMode::Open,
                rule: self.ground_rule(),
            },
        }
    }

    /// The ground rule in words.
    pub fn ground_rule(&self) -> String {
        format!("net = {} ({})", self.mode.as_str(), self.source)
    }
}

/// The ground rule for sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetMode {
    /// No network. Sockets among the process's own tree still work.
    Off,
    /// A private loopback (a network namespace): bind and connect there, nothing else.
    Isolated,
    /// The machine's own network, TCP and UDP. Unix sockets of other programs stay closed.
    Open,
}

impl FromStr for NetMode {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        match text {
            "off" => Ok(Self::Off),
            "isolated" => Ok(Self::Isolated),
            "open" => Ok(Self::Open),
            other => Err(PolicyError::new(
                "network mode",
                other,
                "not one of off, isolated, open",
            )),
        }
    }
}

impl NetPolicy {
    /// Whether questions about names are answered by the supervisor: where destinations are refused, so that a refused
    /// name is known.
    pub fn resolves_names(&self) -> bool {
        self.mode == NetMode::Off
    }
}

impl NetMode {
    /// As written on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Isolated => "isolated",
            Self::Open => "open",
        }
    }
}

/// One allowed TCP destination: `192.0.2.1:443`, `10.0.0.0/8:5432`, `[2001:db8::/32]:443`, `[::1]:*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetRule {
    /// The addresses.
    pub net: IpNet,
    /// The port; absent for `*`.
    pub port: Option<u16>,
    /// As it was written.
    pub source: String,
}

impl NetRule {
    /// Whether the rule covers this destination. IPv4-mapped IPv6 addresses count as IPv4.
    pub fn covers(&self, address: IpAddr, port: u16) -> bool {
        self.net.contains(&address.to_canonical()) && self.port.is_none_or(|p| p == port)
    }
}

impl FromStr for NetRule {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        const WHAT: &str = "allowed destination";
        const HINT: &str = "want ADDRESS:PORT or CIDR:PORT (IPv6 in brackets, * for any port), like 127.0.0.1:8080, 10.0.0.0/8:5432 or [::1]:443";
        let bad = |why: &str| PolicyError::new(WHAT, text, format!("{why}; {HINT}"));
        let (host, port) = text.rsplit_once(':').ok_or_else(|| bad("no port"))?;
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = match bracketed {
            Some(inner) => inner,
            None if host.contains(':') => return Err(bad("an IPv6 address needs brackets")),
            None => host,
        };
        let port = match port {
            "*" => None,
            digits => match digits.parse::<u16>() {
                Ok(0) | Err(_) => return Err(bad("the port is not a number from 1 to 65535")),
                Ok(port) => Some(port),
            },
        };
        let net = if host.contains('/') {
            host.parse::<IpNet>()
                .map_err(|_| bad("not an address block"))?
                .trunc()
        } else {
            IpNet::from(
                host.parse::<IpAddr>()
                    .map_err(|_| bad("not an IP address (host names are not resolved)"))?,
            )
        };
        let net = match net {
            IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.network().to_ipv4_mapped() {
                Some(v4) => ipnet::Ipv4Net::new(v4, v6.prefix_len() - 96)
                    .map(IpNet::V4)
                    .map_err(|_| bad("not an address block"))?,
                None => net,
            },
            _ => net,
        };
        Ok(Self {
            net,
            port,
            source: text.to_owned(),
        })
    }
}

/// Resource limits. Absent means none beyond what the caller itself has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
    /// Seconds of CPU time, of each process by itself.
    pub cpu_seconds: Option<u64>,
    /// Descriptors that each process may have open.
    #[serde(default)]
    pub open_files: Option<u64>,
    /// Bytes that a file may be long which it writes.
    #[serde(default)]
    pub file_bytes: Option<u64>,
}

impl Policy {
    /// A policy without a sandbox: the same supervision, nothing refused.
    pub fn unconfined() -> Self {
        Self {
            name: "unconfined".to_owned(),
            confined: false,
            files: FilePolicy::default(),
            net: NetPolicy {
                mode: NetMode::Open,
                source: "preset unconfined".to_owned(),
                unix: Vec::new(),
                allow: Vec::new(),
                names: NamePolicy::default(),
            },
            limits: Limits::default(),
            ask: AskPolicy::default(),
            degrade: Degrade::Required,
        }
    }

    /// Checks what can be checked without the kernel: paths are absolute, and roots that must exist do.
    ///
    /// # Errors
    /// The first rule that cannot be held, with its path and source.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let files = &self.files;
        for rule in files
            .read
            .iter()
            .chain(&files.write)
            .chain(&files.deny)
            .chain(&files.protect)
            .chain(&self.net.unix)
        {
            if !rule.path.is_absolute() {
                return Err(PolicyError::path(rule, "the path is not absolute"));
            }
        }
        for rule in files.read.iter().chain(&files.write).filter(|r| r.explicit) {
            match std::fs::metadata(&rule.path) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(PolicyError::path(
                        rule,
                        "no such file or directory; create it first",
                    ));
                }
                Err(error) => return Err(PolicyError::path(rule, error.to_string())),
            }
        }
        if self.limits.tasks == Some(0) {
            return Err(PolicyError::new("limit", "tasks", "must be at least 1"));
        }
        Ok(())
    }
}

/// An error of the policy's author.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{subject}`: {why}")]
pub struct PolicyError {
    /// What kind of thing is wrong.
    pub what: String,
    /// The offending value.
    pub subject: String,
    /// Why, and what to do.
    pub why: String,
}

impl PolicyError {
    /// An error about a value.
    pub fn new(what: impl Into<String>, subject: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            subject: subject.into(),
            why: why.into(),
        }
    }

    /// An error about a path rule.
    pub fn path(rule: &PathRule, why: impl Into<String>) -> Self {
        Self::new(
            format!("path of {}", rule.source),
            rule.path.display().to_string(),
            why,
        )
    }
}

/// Whether `path` is `root` or below it.
pub fn is_at_or_below(path: &Path, root: &Path) -> bool {
    path.starts_with(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn net_rules_parse_addresses_blocks_and_ports() {
        let rule: NetRule = "10.1.2.3/8:5432".parse().unwrap();
        assert!(rule.covers("10.200.0.1".parse().unwrap(), 5432));
        assert!(!rule.covers("11.0.0.1".parse().unwrap(), 5432));
        assert!(!rule.covers("10.200.0.1".parse().unwrap(), 5433));
        let v6: NetRule = "[2001:db8::/32]:443".parse().unwrap();
        assert!(v6.covers("2001:db8::7".parse().unwrap(), 443));
        let any: NetRule = "127.0.0.1:*".parse().unwrap();
        assert!(any.covers("::ffff:127.0.0.1".parse().unwrap(), 1));
        let mapped: NetRule = "[::ffff:127.0.0.1]:80".parse().unwrap();
        assert!(mapped.covers("127.0.0.1".parse().unwrap(), 80));
    }

    #[test]
    fn net_rules_that_cannot_be_read_say_why() {
        for bad in [
            "",
            "127.0.0.1",
            "127.0.0.1:",
            "127.0.0.1:0",
            "127.0.0.1:65536",
            "::1:80",
            "example.com:80",
            "10.0.0.0/33:80",
            "[::1]",
            ":80",
            "1.2.3:4",
        ] {
            let error = bad.parse::<NetRule>().unwrap_err();
            assert!(error.to_string().contains("ADDRESS:PORT"), "{bad}: {error}");
        }
    }
}
