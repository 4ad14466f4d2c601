//! Raw system calls about processes: forks, exec, exit, waiting.
//!
//! Contract, as in [`super`]: each is one system call (or a loop of them) on memory that the caller owns; no allocation, no lock,
//! no environment, no formatting, no unwinding. Errors are numbers, which the callers judge.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::os::fd::RawFd;

use super::{Errno, last_errno, syscall};

/// `struct clone_args` (include/uapi/linux/sched.h), up to and with `cgroup` (5.7).
#[repr(C)]
#[derive(Default)]
pub(crate) struct CloneArgs {
    pub(crate) flags: u64,
    pub(crate) pidfd: u64,
    pub(crate) child_tid: u64,
    pub(crate) parent_tid: u64,
    pub(crate) exit_signal: u64,
    pub(crate) stack: u64,
    pub(crate) stack_size: u64,
    pub(crate) tls: u64,
    pub(crate) set_tid: u64,
    pub(crate) set_tid_size: u64,
    pub(crate) cgroup: u64,
}

/// `CLONE_INTO_CGROUP`, which libc's type is too narrow for.
pub(crate) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks without `CLONE_VM`: the child has its own copy of everything. Returns 0 in the child.
pub(crate) fn clone3(args: &CloneArgs) -> Result<i32, Errno> {
    // SAFETY: no CLONE_VM and no stack, so the child continues here on its own copy; the process is
    // single-threaded, so no lock is held by a thread that the child lacks.
    // WHY: no safe fork takes namespaces, a cgroup and a pidfd at once.
    match unsafe { syscall!(libc::SYS_clone3, args as *const CloneArgs, size_of::<CloneArgs>()) } {
        // A filter around us cannot see into its argument, and says so: another sandbox, or an old container engine.
        Err(libc::ENOSYS) if args.flags & CLONE_INTO_CGROUP == 0 => {
            let flags = args.flags | args.exit_signal;
            // SAFETY: as above; the pidfd, if one is wanted, is stored where the parent's number would be.
            // WHY: as above.
            unsafe { syscall!(libc::SYS_clone, flags, 0, args.pidfd, 0, 0) }
        }
        forked => forked,
    }
    .map(|pid| pid as i32)
}

/// Forks sharing memory and descriptors, and waits until the child execs or ends. The child runs `entry` on
/// its own stack, which grows down from the end of `stack`.
///
/// # Safety
/// `argument` must be what `entry` expects; `entry` may only do what this file's contract allows.
pub(crate) unsafe fn vfork_with_files(
    entry: extern "C" fn(*mut libc::c_void) -> libc::c_int,
    argument: *mut libc::c_void,
    stack: &mut [MaybeUninit<u8>],
    pidfd: &mut RawFd,
) -> Result<i32, Errno> {
    let top = stack.as_mut_ptr_range().end as usize & !0xf;
    let flags =
        libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: the child has a stack of its own, 16-byte aligned; the parent is suspended while it runs.
    // WHY: nothing safe vforks; a plain fork copies pages and cannot hand over the listener's number.
    let pid = unsafe {
        libc::clone(
            entry,
            top as *mut libc::c_void,
            flags,
            argument,
            std::ptr::from_mut(pidfd),
        )
    };
    if pid < 0 { Err(last_errno()) } else { Ok(pid) }
}

/// Replaces the program. Returns only on failure.
///
/// # Safety
/// `argv` and `env` must be null-terminated arrays of NUL-terminated strings.
pub(crate) unsafe fn execve(
    path: *const libc::c_char,
    argv: *const *const libc::c_char,
    env: *const *const libc::c_char,
) -> Errno {
    // SAFETY: promised by the caller.
    unsafe { libc::syscall(libc::SYS_execve, path, argv, env) };
    last_errno()
}

pub(crate) fn exit(code: i32) -> ! {
    loop {
        // SAFETY: ends this process; takes no pointers.
        unsafe { libc::syscall(libc::SYS_exit_group, code) };
    }
}

pub(crate) fn getpid() -> i32 {
    // SAFETY: no arguments.
    unsafe { libc::syscall(libc::SYS_getpid) as i32 }
}

pub(crate) fn setsid() -> Result<(), Errno> {
    // SAFETY: no arguments.
    unsafe { syscall!(libc::SYS_setsid) }.map(drop)
}

pub(crate) fn prctl(option: i32, a: u64, b: u64) -> Result<usize, Errno> {
    // SAFETY: only used with options whose arguments are numbers, or NUL-terminated static names.
    unsafe { syscall!(libc::SYS_prctl, option, a, b, 0u64, 0u64) }
}

/// Reaps one child: pid and raw status; pid 0 when `WNOHANG` found none that ended.
pub(crate) fn wait(pid: i32, options: i32) -> Result<(i32, i32), Errno> {
    let mut status = 0i32;
    loop {
        // SAFETY: the status is a valid int; no rusage is asked for.
        match unsafe {
            syscall!(
                libc::SYS_wait4,
                pid,
                &raw mut status,
                options | libc::__WALL,
                std::ptr::null::<u8>()
            )
        } {
            Err(libc::EINTR) => {}
            other => return other.map(|pid| (pid as i32, status)),
        }
    }
}

/// The raw wait status of a process that ended and was reaped (`PIDFD_GET_INFO`, 6.15). `None` where the kernel
/// does not say.
pub(crate) fn exit_status(pidfd: RawFd) -> Option<i32> {
    // struct pidfd_info, first version: mask, cgroup, eleven ids, exit code.
    const BYTES: u64 = 64;
    const PIDFD_GET_INFO: u64 = (3 << 30) | (BYTES << 16) | (0xff << 8) | 11;
    const INFO_EXIT: u64 = 1 << 3;
    let mut info = [0u64; 8];
    info[0] = INFO_EXIT;
    // SAFETY: the buffer has the size that the request names.
    unsafe { syscall!(libc::SYS_ioctl, pidfd, PIDFD_GET_INFO, info.as_mut_ptr()) }.ok()?;
    let code = i32::from_ne_bytes(info[7].to_ne_bytes()[4..].try_into().ok()?);
    (info[0] & INFO_EXIT != 0).then_some(code)
}

/// What all reaped descendants used.
pub(crate) fn children_usage() -> crate::keeper::wire::Usage {
    // SAFETY: all zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the struct is valid for writing.
    unsafe { libc::syscall(libc::SYS_getrusage, libc::RUSAGE_CHILDREN, &raw mut usage) };
    let micros = |t: libc::timeval| (t.tv_sec as u64) * 1_000_000 + t.tv_usec as u64;
    crate::keeper::wire::Usage {
        user_us: micros(usage.ru_utime),
        system_us: micros(usage.ru_stime),
        max_rss_bytes: (usage.ru_maxrss as u64) * 1024,
    }
}
