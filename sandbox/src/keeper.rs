//! The spawner and the keeper: a small process that forks every supervised command and waits for it.
//!
//! ```text
//! host program ──socket──► spawner ──fork──► init (PID 1 of the namespaces) ──vfork──► command
//!  (tokio, actors)          │  one thread       │ un-exec'ed, unfiltered, reaps          │ Landlock, seccomp
//!                           │  only it forks    └──control socket──────────────►         └─ its descendants
//! ```
//!
//! Why a process of its own: a host may ignore `SIGCHLD`, call `wait(-1)`, have 200 MB of pages to copy or
//! thousands of descriptors; forking from it is slow and racy, and `PR_SET_PDEATHSIG` follows the forking
//! *thread*. The spawner has one thread, few pages and few descriptors.
//!
//! It is the same executable in another role, chosen by `argv[0]`. As *spawner* ([`ROLE`]) it serves one host, and
//! ends with everything it started when the socket to that host closes. As *keeper* ([`KEEPER_ROLE`]) it listens on a
//! socket in the file system, and whoever is connected may go: it keeps what it started, a copy of each descriptor that
//! its supervisor got, and what became of it, until that is forgotten on request.
//!
//! | file | what |
//! |---|---|
//! | `wire` | the messages, versioned, and how descriptors travel with them |
//! | `plan` | what the child is to do, as plain data |
//! | `image` | that data as C strings and arrays, made before the fork |
//! | `program` | what it executes, in memory shared with it |
//! | `held` | what a keeper says of a process to whoever connects |
//! | `account` | what is known of a process, and how much of it was told |
//! | `errand` | what a daemon asks a keeper to look at for it |
//! | `server` | the loop of spawner and keeper |
//! | `forked` | a spawner that is forked by a program that has just begun |
//! | `exits` | the file in which a keeper writes down how processes ended |
//! | `oom` | the own place of keeper and daemon in line when memory runs out |
//! | `tree` | one supervised tree, as the spawner sees it |
//! | `warm` | sandboxes made ahead |
//! | `init` | PID 1: namespaces, mounts, reaping |
//! | `child` | the command between clone and exec |
//! | `terminal` | its pseudo-terminal, where it has one |
//! | `sys` | raw system calls |
//! | `children` | the direct children of this process |
//! | `packet` | packets with descriptors |
//! | `probe` | what namespaces can be had here, found out by trying |
//! | `reserve` | descriptors kept back, and the limit on their number |
//! | `spare` | memory that an init gives back |
//! | `cgroup` | groups for containment and limits |

mod account;
mod cgroup;
mod child;
mod children;
mod delegate;
pub mod errand;
pub mod exits;
mod forked;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod held;
mod image;
mod init;
mod mounts;
mod oom;
pub(crate) mod packet;
pub mod plan;
mod probe;
mod program;
mod reserve;
mod server;
mod spare;
pub(crate) mod sys;
mod terminal;
mod tree;
mod warm;
pub mod wire;

pub use cgroup::settle_in_leaf;
pub use delegate::{DelegatedGroup, join_group};
pub use forked::{ForkedSpawner, fork_spawner, words};
pub use oom::{protect_daemon, with_ordinary_score};

use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

/// `argv[0]` of a process that is to be a spawner.
pub const ROLE: &str = "provost-spawner";

/// `argv[0]` of a process that is to be a keeper. Its one argument is how many milliseconds it stays without anything
/// to keep and anybody connected.
pub const KEEPER_ROLE: &str = "provost-keeper";

const ROLE_NAME: &std::ffi::CStr = c"provost-spawner";
const KEEPER_NAME: &std::ffi::CStr = c"provost-keeper";

/// Set when [`run_if_asked`] was called by a program that was not asked to be a spawner or keeper: its executable can
/// serve as one.
static HOOKED: AtomicBool = AtomicBool::new(false);

/// Set in a forked init and in the command until exec: nothing may allocate there. A test's allocator
/// looks at it.
pub static AFTER_FORK: AtomicBool = AtomicBool::new(false);

/// The first line of a `main` whose executable may be used as the spawner or keeper. Does nothing in an ordinary start;
/// in a process started as [`ROLE`] it serves until its host is gone, as [`KEEPER_ROLE`] until nobody needs it, and never
/// returns.
pub fn run_if_asked() {
    let name = match words() {
        Some(mut words) => words.next().unwrap_or_default().to_vec(),
        None => std::env::args_os()
            .next()
            .unwrap_or_default()
            .into_encoded_bytes(),
    };
    if name == ROLE.as_bytes() {
        std::process::exit(server::main(server::Role::Spawner));
    }
    if name == KEEPER_ROLE.as_bytes() {
        let idle = std::env::args_os().nth(1);
        let millis = idle.and_then(|word| word.to_str()?.parse().ok());
        let idle = std::time::Duration::from_millis(millis.unwrap_or(60_000));
        std::process::exit(server::main(server::Role::Keeper { idle }));
    }
    HOOKED.store(true, Ordering::Relaxed);
}

/// Whether this program's own executable can be used as the spawner.
pub fn is_hooked() -> bool {
    HOOKED.load(Ordering::Relaxed)
}

/// A step between fork and exec, in the order in which they are taken. A failure crosses to the
/// supervisor as (step, errno).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u32)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Step {
    Descriptors = 1,
    Cgroup = 2,
    Clone = 3,
    IdMap = 4,
    Propagation = 5,
    KeepMount = 6,
    PrivateDirectory = 7,
    RestoreMount = 8,
    Mask = 9,
    Protect = 10,
    Proc = 11,
    Loopback = 12,
    Vfork = 13,
    Session = 14,
    Limits = 15,
    WorkingDirectory = 16,
    Capabilities = 17,
    NoNewPrivs = 18,
    Landlock = 19,
    Seccomp = 20,
    Stdio = 21,
    Exec = 22,
    InitDied = 23,
    Duplicate = 24,
    Terminal = 25,
}

impl Step {
    const ALL: [Self; 25] = [
        Self::Descriptors,
        Self::Cgroup,
        Self::Clone,
        Self::IdMap,
        Self::Propagation,
        Self::KeepMount,
        Self::PrivateDirectory,
        Self::RestoreMount,
        Self::Mask,
        Self::Protect,
        Self::Proc,
        Self::Loopback,
        Self::Vfork,
        Self::Session,
        Self::Limits,
        Self::WorkingDirectory,
        Self::Capabilities,
        Self::NoNewPrivs,
        Self::Landlock,
        Self::Seccomp,
        Self::Stdio,
        Self::Exec,
        Self::InitDied,
        Self::Duplicate,
        Self::Terminal,
    ];

    fn from_raw(raw: u32) -> Self {
        Self::ALL
            .into_iter()
            .find(|step| *step as u32 == raw)
            .unwrap_or(Self::InitDied)
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "making pipes",
            Self::Cgroup => "making the cgroup",
            Self::Clone => "creating the namespaces",
            Self::IdMap => "mapping the user",
            Self::Propagation => "making mounts private",
            Self::KeepMount => "keeping a path visible",
            Self::PrivateDirectory => "mounting a private directory",
            Self::RestoreMount => "restoring a path in a private directory",
            Self::Mask => "hiding a denied path",
            Self::Protect => "making a path read-only",
            Self::Proc => "mounting /proc",
            Self::Loopback => "bringing up the private loopback",
            Self::Vfork => "forking the command",
            Self::Session => "creating the session",
            Self::Limits => "setting resource limits",
            Self::WorkingDirectory => "entering the working directory",
            Self::Capabilities => "dropping capabilities",
            Self::NoNewPrivs => "setting no_new_privs",
            Self::Landlock => "entering the Landlock domain",
            Self::Seccomp => "installing the seccomp filter",
            Self::Stdio => "connecting stdin, stdout and stderr",
            Self::Exec => "exec",
            Self::InitDied => "starting (the init died)",
            Self::Duplicate => "starting (the id was used before)",
            Self::Terminal => "opening the terminal",
        })
    }
}
