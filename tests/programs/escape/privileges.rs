//! Ways to gain privilege, to loosen the sandbox or to blind it.

use crate::Arguments;
use crate::raw::{Outcome, exit_now, sys};

const PR_SET_SECCOMP: i32 = 22;

/// The attempts of this file, by name.
pub(crate) fn attempt(name: &str, arguments: &Arguments) -> Option<Outcome> {
    Some(match name {
        "unshare-user" => sys!(libc::SYS_unshare, libc::CLONE_NEWUSER),
        "unshare-mount" => sys!(libc::SYS_unshare, libc::CLONE_NEWNS),
        "clone-user" => clone(libc::CLONE_NEWUSER),
        "clone-pid" => clone(libc::CLONE_NEWPID),
        "setns" => setns(),
        "nested-filter" => nested_filter(),
        "prctl-filter" => prctl_filter(),
        "prctl-strict" => sys!(libc::SYS_prctl, PR_SET_SECCOMP, 1, 0, 0, 0),
        "nested-landlock" => nested_landlock(),
        "hide-denials" => hide_denials(arguments),
        "setuid-gain" => setuid_gain(),
        "any-capability" => any_capability(),
        _ => return None,
    })
}

fn clone(namespaces: i32) -> Outcome {
    match sys!(libc::SYS_clone, namespaces | libc::SIGCHLD, 0, 0, 0, 0) {
        Ok(0) => exit_now(0),
        other => other,
    }
}

/// Joins a user namespace by its file: our own, which the kernel rejects with EINVAL, not EPERM.
fn setns() -> Outcome {
    let fd = crate::files::open("/proc/self/ns/user", libc::O_RDONLY).unwrap_or(-1);
    sys!(libc::SYS_setns, fd, libc::CLONE_NEWUSER)
}

/// One instruction: allow everything. `BPF_RET | BPF_K`, `SECCOMP_RET_ALLOW`.
#[repr(C)]
struct Program {
    length: u16,
    instructions: *const u64,
}

fn with_program(install: impl FnOnce(*const Program) -> Outcome) -> Outcome {
    let allow = [u64::from_ne_bytes([0x06, 0, 0, 0, 0, 0, 0xff, 0x7f])];
    let program = Program {
        length: 1,
        instructions: allow.as_ptr(),
    };
    sys!(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)?;
    install(&raw const program)
}

/// A filter whose ERRNO would outrank the supervisor's listener.
fn nested_filter() -> Outcome {
    with_program(|program| sys!(libc::SYS_seccomp, 1, 0, program))
}

fn prctl_filter() -> Outcome {
    with_program(|program| sys!(libc::SYS_prctl, PR_SET_SECCOMP, 2, program, 0, 0))
}

/// A Landlock domain of its own, whose denials would be logged under another name or not at all.
fn nested_landlock() -> Outcome {
    sys!(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)?;
    // Every file right of the first version of Landlock.
    let rights = [0x1fff_u64];
    let ruleset = sys!(libc::SYS_landlock_create_ruleset, rights.as_ptr(), 8, 0)?;
    sys!(libc::SYS_landlock_restrict_self, ruleset, 0)
}

/// First tries to blind the observer, then does what should be seen.
fn hide_denials(arguments: &Arguments) -> Outcome {
    let _ = nested_landlock();
    let _ = nested_filter();
    crate::files::open(arguments.text(0), libc::O_WRONLY)
}

/// Meant to be run as a set-user-id program of root by somebody else.
fn setuid_gain() -> Outcome {
    let (real, effective) = (nix::unistd::getuid(), nix::unistd::geteuid());
    println!("real {real} effective {effective}");
    if effective == real {
        Err(libc::EPERM)
    } else {
        Ok(0)
    }
}

/// Whether any capability is in force, permitted, inheritable or can be had by exec.
fn any_capability() -> Outcome {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut found = false;
    for line in status
        .lines()
        .filter(|line| line.starts_with("Cap") || line.starts_with("NoNewPrivs"))
    {
        println!("{line}");
        let counts = ["CapInh", "CapPrm", "CapEff", "CapAmb"]
            .iter()
            .any(|set| line.starts_with(set));
        found |= counts && line.chars().skip(7).any(|c| !c.is_whitespace() && c != '0');
    }
    if found { Ok(0) } else { Err(libc::EPERM) }
}
