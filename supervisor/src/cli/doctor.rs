//! `provost doctor`: what this machine offers, and which guarantees hold.

use provost_sandbox::keeper::settle_in_leaf;
use provost_sandbox::kernel::{KernelSupport, Probe};
use serde::Serialize;

use super::CliResult;
use super::args::DoctorArgs;
use crate::Supervisor;

const LIMIT_HINT: &str = "Run as root, or where a cgroup with that controller is delegated and nothing else runs in it: systemd-run --user --scope -p Delegate=yes provost …";

/// One line of the report.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    holds: bool,
    detail: String,
    /// What happens without it.
    meaning: &'static str,
    /// What to do about it; empty where nothing can be done but take a later kernel.
    hint: &'static str,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    version: &'static str,
    default_policy_holds: bool,
    checks: &'a [Check],
    kernel: &'a KernelSupport,
}

pub(super) fn run(args: &DoctorArgs) -> CliResult {
    // As a run with limits would.
    settle_in_leaf();
    let runtime = super::runtime(0)?;
    let kernel = runtime.block_on(async {
        let supervisor = Supervisor::builder()
            .thorough_probes(true)
            .start()
            .await
            .map_err(|error| error.to_string())?;
        supervisor.kernel().await.map_err(|error| error.to_string())
    })?;
    let checks = checks(&kernel);
    // Below ABI 3 truncation cannot be refused, and a policy that is not best effort does not compile.
    let holds = kernel.landlock_abi >= 3 && kernel.seccomp_listener.is_yes();
    if args.json {
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            default_policy_holds: holds,
            checks: &checks,
            kernel: &kernel,
        };
        let text = serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?;
        anstream::println!("{text}");
    } else {
        print(&kernel, &checks, holds);
    }
    Ok(u8::from(!holds))
}

fn print(kernel: &KernelSupport, checks: &[Check], holds: bool) {
    use anstyle::{AnsiColor, Style};
    const GOOD: Style = AnsiColor::Green.on_default().bold();
    const BAD: Style = AnsiColor::Yellow.on_default().bold();
    anstream::println!(
        "provost {} on Linux {}\n",
        env!("CARGO_PKG_VERSION"),
        kernel.release
    );
    for check in checks {
        let (style, mark) = if check.holds { (GOOD, "yes") } else { (BAD, "no ") };
        anstream::println!("{style}{mark}{style:#}  {}: {}", check.name, check.detail);
        if !check.holds {
            anstream::println!("       {}", check.meaning);
            if !check.hint.is_empty() {
                anstream::println!("       To do: {}", check.hint);
            }
        }
    }
    let verdict = if holds {
        "The default policy (workspace-write) can be held here."
    } else {
        "The default policy (workspace-write) cannot be held here without --best-effort."
    };
    anstream::println!("\n{verdict}");
}

fn checks(kernel: &KernelSupport) -> Vec<Check> {
    let abi = kernel.landlock_abi;
    let probe = |name, probe: &Probe, good: &str, (meaning, hint)| Check {
        name,
        holds: probe.is_yes(),
        detail: if probe.is_yes() {
            good.to_owned()
        } else {
            probe.why().to_owned()
        },
        meaning,
        hint,
    };
    let group = |name, found: Option<&String>, (meaning, hint)| Check {
        name,
        holds: found.is_some(),
        detail: found
            .cloned()
            .unwrap_or_else(|| "no group may be made here".to_owned()),
        meaning,
        hint,
    };
    vec![
        Check {
            name: "Landlock",
            holds: abi >= 3,
            detail: format!("ABI {abi}: {}", landlock_features(abi)),
            meaning: "File access cannot be restricted in full.",
            hint: "Take Linux 6.2 or later (5.13 with --best-effort) with landlock among its LSMs (kernel parameter lsm=landlock,…; see /sys/kernel/security/lsm).",
        },
        probe(
            "seccomp listener",
            &kernel.seccomp_listener,
            "network and dangerous system calls are decided and recorded",
            (
                "The network and dangerous system calls are not held; only --best-effort starts anything.",
                "Inside another sandbox with a listener there can be no second one: run Provost outside of it.",
            ),
        ),
        Check {
            name: "killable notifications",
            holds: kernel.seccomp_wait_killable,
            detail: "a signal does not restart a call that is being decided (Linux 5.19)".to_owned(),
            meaning: "Programs with fast timers may see EINTR from calls that are being decided.",
            hint: "",
        },
        probe(
            "PID and mount namespaces",
            &kernel.pid_namespace,
            if kernel.needs_user_namespace {
                "through a user namespace"
            } else {
                "with this user's own privileges"
            },
            (
                "Trees are held by a cgroup or a subreaper instead; no private /tmp, no read-only .git/hooks.",
                "Allow user namespaces: sysctl user.max_user_namespaces (not 0), on Debian kernel.unprivileged_userns_clone=1, on Ubuntu the AppArmor profile in supervisor/apparmor; in a container, options that permit them.",
            ),
        ),
        probe(
            "private /proc",
            &kernel.private_proc,
            "other processes are invisible",
            (
                "Other processes' names and arguments stay visible in /proc.",
                "In a container: do not mask /proc (some engines call that an unmasked or nested /proc).",
            ),
        ),
        probe(
            "network namespace",
            &kernel.net_namespace,
            "--net isolated works",
            (
                "--net isolated does not work here.",
                "As for PID and mount namespaces.",
            ),
        ),
        group(
            "cgroup v2",
            kernel.cgroup2.as_ref(),
            (
                "Without namespaces, trees are held by a subreaper only.",
                "Run as root, or where a group is delegated (systemd-run --user --scope -p Delegate=yes).",
            ),
        ),
        group(
            "pids cgroup",
            kernel.pids_groups.as_ref().map(|groups| &groups.parent),
            (
                "--tasks is held by RLIMIT_NPROC in a user namespace, or not at all as root.",
                LIMIT_HINT,
            ),
        ),
        group(
            "memory cgroup",
            kernel.memory_groups.as_ref().map(|groups| &groups.parent),
            (
                "--memory is held for each process by itself (RLIMIT_DATA).",
                LIMIT_HINT,
            ),
        ),
        group(
            "cpu cgroup",
            kernel.cpu_groups.as_ref().map(|groups| &groups.parent),
            ("--cpus is an error.", LIMIT_HINT),
        ),
        probe(
            "Landlock audit feed",
            &kernel.audit,
            "refused file accesses are known exactly",
            (
                "Refused writes are inferred from attempts; refused reads are not seen unless --observe reads.",
                "Run as root (CAP_AUDIT_READ and CAP_AUDIT_CONTROL) on Linux 6.15 or later.",
            ),
        ),
        Check {
            name: "exit status from a pidfd",
            holds: kernel.pidfd_exit_info,
            detail: "the status is known even if the spawner dies (Linux 6.15)".to_owned(),
            meaning: "If the spawner dies, what it held is recorded as lost.",
            hint: "",
        },
        looking(kernel.ptrace_scope, nix::unistd::geteuid().is_root()),
    ]
}

/// The scopes of admin/LSM/Yama in the kernel's documentation; the calls are `process_vm_readv(2)` and `pidfd_getfd(2)`.
fn looking(ptrace_scope: u8, is_root: bool) -> Check {
    let detail = match ptrace_scope {
        0 => "no Yama that forbids it".to_owned(),
        1 => "Yama lets ancestors: a daemon that was started again asks its keeper".to_owned(),
        scope => format!("kernel.yama.ptrace_scope is {scope}"),
    };
    Check {
        name: "looking into commands",
        holds: ptrace_scope <= 1 || (ptrace_scope == 2 && is_root),
        detail,
        meaning: "Connects, and what else is decided by what a command's memory says, are refused whatever the policy says.",
        hint: "sysctl kernel.yama.ptrace_scope=1 (3 stays until the machine starts again).",
    }
}

fn landlock_features(abi: u32) -> String {
    let features = [
        (1, "files"),
        (2, "moves between directories"),
        (3, "truncation"),
        (4, "TCP"),
        (5, "device ioctls"),
        (6, "signals and abstract sockets"),
        (7, "audit records"),
    ];
    let held: Vec<&str> = features
        .iter()
        .filter(|(since, _)| abi >= *since)
        .map(|(_, name)| *name)
        .collect();
    if held.is_empty() {
        return "none".to_owned();
    }
    held.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yama_forbids_looking_into_commands_as_the_kernel_documents_its_scopes() {
        let holds = |is_root| [0, 1, 2, 3].map(|scope| looking(scope, is_root).holds);
        assert_eq!(holds(false), [true, true, false, false]);
        assert_eq!(holds(true), [true, true, true, false]);
    }
}
