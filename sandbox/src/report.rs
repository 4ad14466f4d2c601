//! What really held: the last of the four nouns.

use serde::{Deserialize, Serialize};

/// What held for one process. Part of the `started` event and of the terminal record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxReport {
    /// The policy's name.
    pub policy: String,
    /// False: no sandbox was asked for (`unconfined`).
    pub confined: bool,
    /// What keeps the process tree together.
    pub containment: Containment,
    /// The kernel's Landlock ABI that was used; absent where Landlock was not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub landlock_abi: Option<u32>,
    /// What Landlock holds here: `files`, `truncate`, `ioctl_dev`, `tcp`, `abstract_sockets`, `signals`.
    #[serde(default)]
    pub landlock: Vec<String>,
    /// A seccomp filter with a listener is in force.
    pub seccomp: bool,
    /// New namespaces: `user`, `pid`, `mount`, `ipc`, `net`.
    #[serde(default)]
    pub namespaces: Vec<String>,
    /// The process sees only its own tree in `/proc`.
    pub private_proc: bool,
    /// `/tmp` and `/dev/shm` are the process's own.
    pub private_tmp: bool,
    /// The ground rule for sockets.
    pub net: String,
    /// Limits and by what they are held: `tasks=100 (pids cgroup)`.
    #[serde(default)]
    pub limits: Vec<String>,
    /// How refusals of file access are learned of.
    pub file_denials: FileObservation,
    /// What the policy asked for and this machine could not hold (best effort only).
    #[serde(default)]
    pub degraded: Vec<Degradation>,
}

/// What keeps a process tree together, strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Containment {
    /// An init of ours is PID 1 of a PID namespace: when it ends, the kernel ends everything in it.
    PidNamespace,
    /// A cgroup v2 of its own: `cgroup.kill` ends everything in it, `populated` proves that it is empty.
    Cgroup,
    /// An init of ours is the subreaper of every descendant; it has no children left when the tree is
    /// empty. A descendant that kills the init (possible where signals are not scoped) escapes the proof.
    Subreaper,
}

/// How refusals of file access are learned of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileObservation {
    /// From the kernel's Landlock audit records: exact.
    Audit,
    /// Writes and directory changes are seen as attempts and held against the policy.
    InferredWrites,
    /// The same, and every open for reading too.
    InferredAll,
    /// Not at all (nothing is confined).
    None,
}

/// Something that the policy asked for and that did not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Degradation {
    /// What does not hold.
    pub what: String,
    /// Why not.
    pub why: String,
}

/// The machine lacks what the policy requires.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}; {hint}")]
pub struct UnsupportedError {
    /// What cannot be held.
    pub what: String,
    /// Why not on this machine.
    pub why: String,
    /// What to do.
    pub hint: String,
}

/// Why a process could not be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpawnError {
    /// A step between fork and exec failed.
    #[error("cannot start `{program}`: {step} failed: {reason}")]
    Step {
        /// The program asked for.
        program: String,
        /// Which step.
        step: crate::keeper::Step,
        /// The error number.
        errno: i32,
        /// The error in words, with what to do where that is known.
        reason: String,
    },
    /// The request could not be used.
    #[error("cannot start `{program}`: {reason}")]
    Request {
        /// The program asked for.
        program: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The spawner is gone.
    #[error("the spawner process ended: {0}")]
    SpawnerGone(String),
}

impl SpawnError {
    /// The shell's exit code for this failure: 127 not found, 126 not executable, 125 for ours.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Step {
                step: crate::keeper::Step::Exec,
                errno,
                ..
            } => match *errno {
                libc::ENOENT | libc::ENOTDIR => 127,
                libc::EACCES
                | libc::ENOEXEC
                | libc::EISDIR
                | libc::EPERM
                | libc::ELOOP
                | libc::ETXTBSY
                | libc::ENAMETOOLONG => 126,
                _ => 126,
            },
            _ => 125,
        }
    }
}
