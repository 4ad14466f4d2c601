//! What a refused attempt looks like, as a fact.
//!
//! A denial comes from the kernel (a seccomp notification, a Landlock audit record) and never from
//! reading a program's output. These types are part of the published event and record formats.

mod allow;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use allow::{AllowingRule, is_deceptive};

/// One attempt that the sandbox refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// What kind of thing was refused.
    pub class: DenialClass,
    /// The attempted operation: `connect`, `bind`, `socket`, `open`, `write`, `mkdir`, `mount`, …
    pub operation: String,
    /// What it was attempted on.
    pub target: DenialTarget,
    /// The thread that tried, as this supervisor's PID namespace numbers it. Absent where the kernel does
    /// not say (Landlock audit records name the domain, not the task).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pid: Option<i32>,
    /// The thread's name (`/proc/PID/comm`) at the time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub comm: Option<String>,
    /// The line of the policy that refused, for people.
    pub rule: String,
    /// The error number the program got, as its name (`EACCES`).
    pub errno: String,
    /// How we know.
    pub certainty: Certainty,
    /// Always `deny`.
    pub decision: Decision,
    /// The smallest rule that would have allowed it, where one alone would do. The ledger fills it in.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub allow: Option<Box<AllowingRule>>,
}

/// The class of a denial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenialClass {
    /// Sockets and addresses.
    Network,
    /// Files and directories.
    Filesystem,
    /// A system call refused as such.
    Syscall,
    /// A resource limit.
    Resource,
}

/// How a denial is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Certainty {
    /// The kernel said so, or Provost itself answered the call with the error.
    Observed,
    /// Provost saw the attempt and the policy refuses it; the kernel enforced it unseen.
    Inferred,
}

/// What was decided about an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Refused.
    Deny,
    /// Allowed after it was asked about.
    Allow,
}

/// What a refused attempt was aimed at. Only the fields that apply are present.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenialTarget {
    /// Host name, in lower case: one that was asked for and refused, or the one whose address this is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host: Option<String>,
    /// Internet address.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub address: Option<IpAddr>,
    /// Port, where the address has one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port: Option<u16>,
    /// `tcp`, `udp`, `mptcp`, `raw`, `unix`, `unix-dgram`, `netlink`, `vsock`, …
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub protocol: Option<String>,
    /// A path. Bytes that are not UTF-8 are shown as U+FFFD. Names of abstract sockets begin with `@`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path: Option<String>,
    /// A system call's name, with the argument that mattered where there is one (`ioctl(TIOCSTI)`).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub syscall: Option<String>,
}

impl DenialTarget {
    /// A file or directory.
    pub fn path(path: impl Into<String>) -> Self {
        Self {
            path: Some(path.into()),
            ..Self::default()
        }
    }

    /// A system call.
    pub fn syscall(name: impl Into<String>) -> Self {
        Self {
            syscall: Some(name.into()),
            ..Self::default()
        }
    }

    /// An internet address.
    pub fn inet(address: IpAddr, port: u16, protocol: &str) -> Self {
        Self {
            address: Some(address),
            port: Some(port),
            protocol: Some(protocol.to_owned()),
            ..Self::default()
        }
    }

    /// A host name that was asked of the resolver.
    pub fn host(name: impl Into<String>) -> Self {
        Self {
            host: Some(name.into()),
            protocol: Some("dns".to_owned()),
            ..Self::default()
        }
    }

    /// A protocol, where the refused call carries no address.
    pub fn protocol(protocol: impl Into<String>) -> Self {
        Self {
            protocol: Some(protocol.into()),
            ..Self::default()
        }
    }
}

/// The name of an error number, or `errno N`.
pub fn errno_name(errno: i32) -> String {
    match nix::errno::Errno::from_raw(errno) {
        nix::errno::Errno::UnknownErrno => format!("errno {errno}"),
        known => format!("{known:?}"),
    }
}

/// A notified system call was a feature probe of the kind every harmless program makes (I4): it is counted
/// by name and is no denial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The system call's name.
    pub name: String,
}
