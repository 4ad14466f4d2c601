//! What this kernel and this user have to offer, found out by trying.
//!
//! Versions are not trusted where trying is possible: a container, an LSM or a sysctl may take away what
//! the version promises.

use serde::{Deserialize, Serialize};

/// What can be had here. The namespace part is found by the spawner, which alone may fork.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelSupport {
    /// `uname -r`.
    pub release: String,
    /// Landlock's ABI version; 0 where there is none.
    pub landlock_abi: u32,
    /// Seccomp notifications can be had (a filter with a listener could be installed).
    pub seccomp_listener: Probe,
    /// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV` (5.19).
    pub seccomp_wait_killable: bool,
    /// A PID namespace with a mount namespace.
    pub pid_namespace: Probe,
    /// It needs a user namespace (we are not privileged).
    pub needs_user_namespace: bool,
    /// A fresh `/proc` can be mounted in it.
    pub private_proc: Probe,
    /// A network namespace, with its loopback up.
    pub net_namespace: Probe,
    /// A cgroup v2 directory in which we may create groups.
    pub cgroup2: Option<String>,
    /// Where groups can be made that limit tasks.
    pub pids_groups: Option<LimitGroups>,
    /// Where groups can be made that limit memory.
    pub memory_groups: Option<LimitGroups>,
    /// Where groups can be made that limit CPU time.
    pub cpu_groups: Option<LimitGroups>,
    /// Landlock's audit records can be read.
    pub audit: Probe,
    /// `PIDFD_GET_INFO` tells exit codes (6.15).
    pub pidfd_exit_info: bool,
    /// Yama's `kernel.yama.ptrace_scope`; 0 also where there is no Yama.
    pub ptrace_scope: u8,
}

/// A directory of a cgroup hierarchy in which we may create groups with a certain controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitGroups {
    /// The directory.
    pub parent: String,
    /// It is cgroup v2's; else a v1 hierarchy's.
    pub unified: bool,
}

impl KernelSupport {
    /// A guess before anything was tried: what this kernel usually offers this user. For getting things ready
    /// that are used only if it [comes true](Self::decides_like).
    pub fn usual() -> Self {
        Self {
            release: String::new(),
            landlock_abi: crate::keeper::sys::landlock_abi(),
            seccomp_listener: Probe::Yes,
            seccomp_wait_killable: true,
            pid_namespace: Probe::Yes,
            needs_user_namespace: !nix::unistd::geteuid().is_root(),
            private_proc: Probe::Yes,
            net_namespace: Probe::Yes,
            cgroup2: None,
            pids_groups: None,
            memory_groups: None,
            cpu_groups: None,
            audit: Probe::No("not asked".to_owned()),
            pidfd_exit_info: true,
            ptrace_scope: 0,
        }
    }

    /// Whether a policy without limits compiles to the same on both. (Groups matter for limits, and where there
    /// is no PID namespace.)
    pub fn decides_like(&self, other: &Self) -> bool {
        let decisive = |kernel: &Self| {
            (
                kernel.landlock_abi,
                kernel.needs_user_namespace,
                [
                    kernel.seccomp_listener.is_yes(),
                    kernel.pid_namespace.is_yes(),
                    kernel.private_proc.is_yes(),
                    kernel.net_namespace.is_yes(),
                    kernel.audit.is_yes(),
                ],
            )
        };
        self.pid_namespace.is_yes() && decisive(self) == decisive(other)
    }
}

/// Whether something can be had, and why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// It was tried and works.
    Yes,
    /// It was tried and does not, with the reason.
    No(String),
}

impl Probe {
    /// Whether it works.
    pub fn is_yes(&self) -> bool {
        matches!(self, Self::Yes)
    }

    /// Why it does not; empty where it does.
    pub fn why(&self) -> &str {
        match self {
            Self::Yes => "",
            Self::No(why) => why,
        }
    }
}
