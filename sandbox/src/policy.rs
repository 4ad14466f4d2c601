//! The wish: what a process may touch.
//!
//! A [`Policy`] is plain data. It says nothing about how the kernel will hold it; [`crate::compile`] does
//! that against a [`crate::kernel::KernelSupport`]. Every rule carries the words that put it there
//! (`--write out/`, `preset workspace-write`), because a denial quotes them.

mod name;
mod nested;
mod net;
mod own;
mod preset;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::syscalls;

pub use name::{Destination, FixedName, NamePolicy, NameRule};
pub use net::{NetMode, NetPolicy, NetRule, NetVerdict, Protocol};
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
    /// System calls that are refused beside those that always are.
    #[serde(default)]
    pub refuse_syscalls: Vec<SyscallRule>,
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
    /// If any: of what is readable, only this may be executed, with everything below. Programs that are run by name; not
    /// what an interpreter or the dynamic loader is told to run.
    #[serde(default)]
    pub execute: Vec<PathRule>,
    /// Writable (and readable), with everything below.
    pub write: Vec<PathRule>,
    /// Neither readable nor writable, with everything below.
    pub deny: Vec<PathRule>,
    /// Read-only although below a writable root; held by a mount namespace where there is one.
    pub protect: Vec<PathRule>,
    /// Why not everything was found that a preset protects below the working directory, where that is so.
    #[serde(default)]
    pub unsearched: Option<String>,
    /// Give the process its own empty `/tmp` and `/dev/shm`.
    pub private_tmp: bool,
}

/// A system call that is refused, and the words that put it there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyscallRule {
    /// Its name on this machine.
    pub name: String,
    /// As it was written.
    pub source: String,
}

impl SyscallRule {
    /// A rule for this call.
    ///
    /// # Errors
    /// There is no such call here, or no command could start without it.
    pub fn new(name: &str, source: impl Into<String>) -> Result<Self, PolicyError> {
        let bad = |why: &str| Err(PolicyError::new("refused system call", name, why));
        if syscalls::number(name).is_none() {
            return bad("this machine has no system call of that name");
        }
        if syscalls::NEEDED_TO_START.contains(&name) {
            return bad("no command can start without it");
        }
        Ok(Self {
            name: name.to_owned(),
            source: source.into(),
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
    /// CPUs that it may keep busy, in thousandths.
    #[serde(default)]
    pub cpu_millis: Option<u64>,
    /// Bytes that all of its processes together may write to disks. Looked at now and then: it may write more before it is
    /// ended.
    #[serde(default)]
    pub disk_bytes: Option<u64>,
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
                listen: Vec::new(),
                names: NamePolicy::default(),
                proxy: false,
            },
            refuse_syscalls: Vec::new(),
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
            .chain(&files.execute)
            .chain(&files.write)
            .chain(&files.deny)
            .chain(&files.protect)
            .chain(&self.net.unix)
        {
            if !rule.path.is_absolute() {
                return Err(PolicyError::path(rule, "the path is not absolute"));
            }
        }
        let granted = files.read.iter().chain(&files.write).chain(&files.execute);
        for rule in granted.filter(|r| r.explicit) {
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
