//! Ways to touch processes outside, and what was inherited from them.

use crate::Arguments;
use crate::raw::{Outcome, errno, sys};

/// The attempts of this file, by name.
pub(crate) fn attempt(name: &str, arguments: &Arguments) -> Option<Outcome> {
    let pid = || arguments.number::<i32>(0);
    Some(match name {
        "kill" => sys!(libc::SYS_kill, pid(), libc::SIGKILL),
        "tgkill" => sys!(libc::SYS_tgkill, pid(), pid(), libc::SIGKILL),
        "kill-everyone" => kill_everyone(arguments.text(0)),
        "sigqueue" => sys!(
            libc::SYS_rt_sigqueueinfo,
            pid(),
            libc::SIGKILL,
            [-1_i64; 16].as_ptr()
        ),
        "pidfd-signal" => {
            pidfd(pid()).and_then(|fd| sys!(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, 0, 0))
        }
        "sigio-owner" => sigio_owner(pid()),
        "ptrace" => sys!(libc::SYS_ptrace, libc::PTRACE_SEIZE, pid(), 0, 0),
        "vm-read" => vm(libc::SYS_process_vm_readv, pid()),
        "vm-write" => vm(libc::SYS_process_vm_writev, pid()),
        "pidfd-getfd" => pidfd(pid()).and_then(|fd| sys!(libc::SYS_pidfd_getfd, fd, 0, 0)),
        "pidfd-getfd-own" => {
            pidfd(nix::unistd::getpid().as_raw()).and_then(|fd| sys!(libc::SYS_pidfd_getfd, fd, 0, 0))
        }
        "prlimit" => prlimit(pid()),
        "priority" => sys!(libc::SYS_setpriority, libc::PRIO_PROCESS, pid(), 19),
        "affinity" => sys!(libc::SYS_sched_setaffinity, pid(), 8, [1_u64].as_ptr()),
        "scheduler" => sys!(
            libc::SYS_sched_setscheduler,
            pid(),
            libc::SCHED_IDLE,
            [0_i32].as_ptr()
        ),
        "io-priority" => sys!(libc::SYS_ioprio_set, 1, pid(), 3 << 13),
        "oom-score" => oom_score(),
        "descriptors" => descriptors(),
        "environment" => environment(arguments.text(0)),
        _ => return None,
    })
}

fn pidfd(pid: i32) -> Outcome {
    sys!(libc::SYS_pidfd_open, pid, 0)
}

/// Signals everyone in reach, but only from inside another PID namespace than the one named: elsewhere this
/// would end the caller's whole session.
fn kill_everyone(outer_namespace: &str) -> Outcome {
    let own = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    if own.as_os_str().is_empty() || own.as_os_str() == outer_namespace {
        println!("not tried: no PID namespace of our own");
        return Ok(0);
    }
    sys!(libc::SYS_kill, -1, libc::SIGKILL)
}

/// Lets the kernel send the signal: the owner of a descriptor gets SIGKILL instead of SIGIO.
fn sigio_owner(pid: i32) -> Outcome {
    let mut pair = [0_i32; 2];
    sys!(
        libc::SYS_socketpair,
        libc::AF_UNIX,
        libc::SOCK_STREAM,
        0,
        pair.as_mut_ptr()
    )?;
    sys!(libc::SYS_fcntl, pair[0], libc::F_SETOWN, pid)?;
    sys!(libc::SYS_fcntl, pair[0], 10, libc::SIGKILL)?;
    sys!(libc::SYS_fcntl, pair[0], libc::F_SETFL, libc::O_ASYNC)?;
    sys!(libc::SYS_write, pair[1], b"x".as_ptr(), 1)
}

/// One byte at an address that every program has mapped: its own argument area is not known here, so the
/// attempt asks for address 0x1000 and takes EFAULT for having passed the permission check.
fn vm(number: i64, pid: i32) -> Outcome {
    let mut byte = [0_u8; 1];
    let local = [byte.as_mut_ptr() as usize, 1];
    let remote = [0x1000_usize, 1];
    match sys!(number, pid, local.as_ptr(), 1, remote.as_ptr(), 1, 0) {
        Err(libc::EFAULT) => Ok(0),
        other => other,
    }
}

/// Sets a limit to what it is: nothing changes where the attempt gets through.
fn prlimit(pid: i32) -> Outcome {
    let mut now = [0_u64; 2];
    sys!(libc::SYS_prlimit64, pid, libc::RLIMIT_CORE, 0, now.as_mut_ptr())?;
    sys!(libc::SYS_prlimit64, pid, libc::RLIMIT_CORE, now.as_ptr(), 0)
}

/// Raises its own score for being chosen when memory runs out, which needs no privilege.
fn oom_score() -> Outcome {
    let fd = crate::files::open("/proc/self/oom_score_adj", libc::O_WRONLY)?;
    sys!(libc::SYS_write, fd, b"1000".as_ptr(), 4)
}

/// Any descriptor beyond the three standard ones counts as got through.
fn descriptors() -> Outcome {
    let open: Vec<i32> = (0..65_536)
        // SAFETY: F_GETFD reads a flag of a number that need not be open.
        // WHY: safe wrappers want a descriptor known to be open, which is the question.
        .filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0)
        .collect();
    println!("descriptors: {open:?}");
    if open.iter().any(|fd| *fd > 2) {
        Ok(0)
    } else {
        Err(libc::EBADF)
    }
}

/// Whether a word occurs in the environment or command line of any process in sight. It is given in reverse,
/// because command lines up to the supervisor's quote the argument.
fn environment(reversed: &str) -> Outcome {
    let word: String = reversed.chars().rev().collect();
    let mut found = std::env::vars_os()
        .any(|(key, value)| format!("{}={}", key.display(), value.display()).contains(&word));
    for entry in std::fs::read_dir("/proc").map_err(|_| errno())?.flatten() {
        for file in ["environ", "cmdline"] {
            let bytes = std::fs::read(entry.path().join(file)).unwrap_or_default();
            if String::from_utf8_lossy(&bytes).contains(&word) {
                println!("found in {}", entry.path().join(file).display());
                found = true;
            }
        }
    }
    if found { Ok(0) } else { Err(libc::ENOENT) }
}
