//! The system calls that Provost has something to say about, each with its reason, and the names of all
//! others.
//!
//! Two things are kept apart. A *name table* per architecture lists every call of Linux up to 6.18; a number
//! that is not in it is refused, because nobody here has judged it. The *entries* say, by name and for all
//! architectures together, which calls may reach the listener, which of their arguments make them do so, and
//! what the listener does then. [`crate::compile::seccomp`] turns both into one filter.
//!
//! # Deliberately absent
//!
//! Some calls look as if they belonged here and do not:
//!
//! - `kill`, `tkill`, `tgkill`, `rt_sigqueueinfo`, `pidfd_send_signal`, and `F_SETOWN`: no register says
//!   whether the target is an outsider. The PID namespace hides outsiders, and without one Landlock's signal
//!   scope (ABI 6) refuses them.
//! - `process_madvise`, `process_mrelease`, `kcmp`, `get_robust_list`: they need ptrace rights over the
//!   target, which Landlock grants only inside the domain. Mesa uses `kcmp`.
//! - `mbind`, `set_mempolicy`: the caller's own memory; node, the JVM and numpy use them.
//! - `name_to_handle_at`: only reads an identity; opening by it is refused.
//! - `landlock_add_rule`: changes nothing until `landlock_restrict_self`, which is refused.
//! - `prctl(PR_SET_MM)`: without capabilities it redraws the caller's own address map only. What
//!   `/proc/PID/cmdline` then says is forgeable anyway, and nothing of ours trusts it.
//! - `prctl(PR_SET_PTRACER)`: widens Yama for the caller alone; debuggers inside the tree need it.
//! - `prctl(PR_SET_SYSCALL_USER_DISPATCH)`: a call that it diverts has not been made.
//! - `execve`, `execveat`, `dup2`, `dup3`, `close`, `close_range`, `fcntl`, `write`, `exit`, `rt_sig*`,
//!   `unshare(CLONE_FILES)`: made between the filter and the exec by a child whose parent may be suspended in
//!   `vfork`; a notification there could never be answered.
//! - `uretprobe`, `uprobe`: entered by the kernel's own trampolines; the kernel exempts them from filters.
//! - `nfsservctl`, `_sysctl`, `create_module` and their like: gone from every kernel that can run Provost.

use std::sync::LazyLock;

use seccompiler::TargetArch;

mod condition;
mod files;
mod kernel;
mod network;
mod processes;

#[cfg(any(target_arch = "aarch64", test, feature = "fuzzing"))]
pub(crate) mod aarch64;
#[cfg(any(target_arch = "x86_64", test, feature = "fuzzing"))]
pub(crate) mod x86_64;

pub(crate) use condition::{Calls, Compare, Rules, Test, bits, either, int, null};
pub(crate) use network::REFUSED_SEND_FLAGS;

#[cfg(target_arch = "aarch64")]
use aarch64::ABI as NATIVE;
#[cfg(target_arch = "x86_64")]
use x86_64::ABI as NATIVE;

#[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
compile_error!("Provost has system call tables for x86_64 and aarch64 only");

/// The `AUDIT_ARCH_*` value of this machine's own system calls.
pub const NATIVE_ARCH: u32 = NATIVE.audit_arch;

/// How the listener treats a notified call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handling {
    /// Refused whenever it is notified, and recorded as a denial.
    Refuse {
        /// The answer.
        errno: i32,
    },
    /// A feature probe of the kind harmless programs make: refused and counted, but no denial.
    Probe {
        /// The answer.
        errno: i32,
    },
    /// `socket`: the family, type and protocol decide.
    Socket,
    /// `socketpair`: the type decides.
    Socketpair,
    /// `connect`: the address decides.
    Connect,
    /// `bind`: the address decides.
    Bind,
    /// `listen`: whether the socket was bound decides.
    Listen,
    /// `sendto`, `sendmsg`, `sendmmsg`: flags and addresses decide.
    Send,
    /// `recvfrom`, `recvmsg`, `recvmmsg` with a refused flag.
    Receive,
    /// `setsockopt` of a refused option.
    SetSockOpt,
    /// `getsockname`, `getpeername` where a socket of another kind stands in for UDP.
    SocketName,
    /// `ioctl` with a refused command.
    Ioctl,
    /// `open`, `openat`, `openat2`, `creat`: observed, never granted here.
    Open,
    /// `mkdir`, `unlink`, `rename`, `link`, `symlink`, `mknod` with their `at` forms, `rmdir`, `truncate`:
    /// observed, never granted here. See [`Entry::makes_device`].
    DirectoryChange,
    /// `chmod`, `chown`, `utimes`, `setxattr`, `removexattr` and their like: refused, or performed on behalf.
    Metadata,
    /// `inotify_add_watch`: refused where the path may not be read, else performed on behalf.
    Watch,
    /// A call that acts on a process named by a pid. See [`Entry::named_process`].
    PidArgument {
        /// Which argument (0 to 5) holds the pid.
        index: usize,
    },
}

/// A system call that may be notified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number on this architecture.
    pub number: u32,
    /// Its name.
    pub name: &'static str,
    /// What the listener does with it.
    pub handling: Handling,
    /// Why it is not plainly allowed, for people.
    pub reason: &'static str,
    /// When it is looked at.
    pub(crate) scope: Scope,
    /// Which of its calls are notified.
    pub(crate) calls: Calls,
}

/// When an entry applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// In every sandbox.
    Always,
    /// Only where the process shares PIDs and IPC with the host, for want of namespaces.
    HostProcessesVisible,
}

impl Entry {
    /// Whether this call (`mknod`, `mknodat`) makes a device node, which is refused whatever the path.
    pub fn makes_device(&self, args: &[u64; 6]) -> bool {
        match (self.handling, self.calls) {
            (Handling::DirectoryChange, Calls::Only(rules)) => condition::any_holds(rules, args),
            _ => false,
        }
    }

    /// Whether this call is of those that are refused whatever the socket (`setsockopt`).
    pub(crate) fn is_refused(&self, args: &[u64; 6]) -> bool {
        match self.calls {
            Calls::All => true,
            Calls::Only(rules) => condition::any_holds(rules, args),
            Calls::Except(rules) => !condition::any_holds(rules, args),
        }
    }

    /// The one process on which a [`Handling::PidArgument`] call acts; 0 is the caller. `None` where the call
    /// names a process group or all processes of a user, for which no single check can speak: refuse it.
    pub fn named_process(&self, args: &[u64; 6]) -> Option<i32> {
        let Handling::PidArgument { index } = self.handling else {
            return None;
        };
        // `which` is an int, as the pid is: the upper halves of the registers mean nothing.
        let which = args[0] as i32;
        let names_one = match self.name {
            "setpriority" => which == processes::PRIO_PROCESS as i32,
            "ioprio_set" => which == processes::IOPRIO_WHO_PROCESS as i32,
            _ => true,
        };
        names_one
            .then(|| args.get(index).map(|&pid| pid as i32))
            .flatten()
    }
}

/// One line of the tables: an [`Entry`] before an architecture gave it a number.
pub(crate) struct Row {
    name: &'static str,
    handling: Handling,
    scope: Scope,
    calls: Calls,
    reason: &'static str,
}

impl Row {
    /// Every call of this name is notified, in every sandbox.
    const fn new(name: &'static str, handling: Handling, reason: &'static str) -> Self {
        Self {
            name,
            handling,
            scope: Scope::Always,
            calls: Calls::All,
            reason,
        }
    }

    /// Every call is refused with `EPERM`.
    const fn refuse(name: &'static str, reason: &'static str) -> Self {
        Self::new(name, Handling::Refuse { errno: libc::EPERM }, reason)
    }

    /// Narrows it to the calls where one of these rules holds.
    const fn only(mut self, rules: Rules) -> Self {
        self.calls = Calls::Only(rules);
        self
    }

    /// Lets the calls pass where one of these rules holds.
    const fn except(mut self, rules: Rules) -> Self {
        self.calls = Calls::Except(rules);
        self
    }

    /// Narrows it to sandboxes that see the host's processes.
    const fn where_host_processes_are_visible(mut self) -> Self {
        self.scope = Scope::HostProcessesVisible;
        self
    }
}

/// What is peculiar to one architecture's system calls.
#[derive(Clone, Copy)]
pub(crate) struct Abi {
    /// `AUDIT_ARCH_*`.
    pub(crate) audit_arch: u32,
    /// The same for `seccompiler`.
    pub(crate) target: TargetArch,
    /// Number and name, ascending.
    pub(crate) names: &'static [(u32, &'static str)],
    /// Other architectures' calls that this kernel may serve.
    foreign_arches: &'static [(u32, &'static str)],
    /// A bit in the number that selects another set of calls under the same architecture value.
    foreign_bit: Option<(u32, &'static str)>,
}

/// "No system call" (-1): what a tracer writes over a number to have the call skipped. The kernel runs the
/// filter on it and then does nothing.
pub(crate) const SKIPPED_BY_TRACER: u32 = u32::MAX;

impl Abi {
    /// This machine's.
    pub(crate) const NATIVE: Self = NATIVE;

    fn name(&self, number: u32) -> Option<&'static str> {
        let at = self.names.binary_search_by_key(&number, |&(number, _)| number);
        at.ok().map(|at| self.names[at].1)
    }

    /// The highest number in the table.
    pub(crate) fn highest(&self) -> u32 {
        self.names.last().map_or(0, |&(number, _)| number)
    }

    /// The entries that exist here, by ascending number.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let rows = || {
            [kernel::ROWS, network::ROWS, files::ROWS, processes::ROWS]
                .into_iter()
                .flatten()
        };
        let entry = |&(number, name): &(u32, &'static str)| {
            let row = rows().find(|row| row.name == name)?;
            Some(Entry {
                number,
                name,
                handling: row.handling,
                reason: row.reason,
                scope: row.scope,
                calls: row.calls,
            })
        };
        self.names.iter().filter_map(entry).collect()
    }

    fn foreign(&self, arch: u32, number: u32) -> Option<&'static str> {
        if arch != self.audit_arch {
            let known = self.foreign_arches.iter().find(|&&(value, _)| value == arch);
            return Some(known.map_or("foreign", |&(_, name)| name));
        }
        let (bit, name) = self.foreign_bit?;
        (number & bit != 0 && number != SKIPPED_BY_TRACER).then_some(name)
    }
}

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| Abi::NATIVE.entries());

/// The entry of a native call that may be notified. `None` for calls that are always allowed, and for numbers
/// that nobody knows.
pub fn entry(number: u32) -> Option<&'static Entry> {
    let at = ENTRIES.binary_search_by_key(&number, |entry| entry.number);
    at.ok().map(|at| &ENTRIES[at])
}

/// The name of a native call, if it is in the table. A call without a name is notified, and to be answered as
/// the kernel answers what it does not have: `ENOSYS`, a probe.
pub fn name(number: u32) -> Option<&'static str> {
    Abi::NATIVE.name(number)
}

/// The number of a native call.
pub fn number(name: &str) -> Option<u32> {
    let known = Abi::NATIVE.names.iter().find(|(_, known)| *known == name);
    known.map(|(number, _)| *number)
}

/// Calls that a command makes before it is itself, on the way from the filter to its first instruction, or that no
/// program can do without.
pub const NEEDED_TO_START: [&str; 12] = [
    "execve",
    "execveat",
    "exit",
    "exit_group",
    "rt_sigreturn",
    "rt_sigprocmask",
    "unshare",
    "dup2",
    "dup3",
    "close",
    "close_range",
    "write",
];

/// The way in, where it is not this machine's own: `i386`, `x32`, `arm`, or `foreign` for any other. The numbers
/// of such calls mean nothing here.
pub fn is_foreign_abi(arch: u32, number: u32) -> Option<&'static str> {
    Abi::NATIVE.foreign(arch, number)
}

/// The highest native number in the table; every higher one is notified.
pub fn highest_known() -> u32 {
    Abi::NATIVE.highest()
}

#[cfg(test)]
mod tests;
