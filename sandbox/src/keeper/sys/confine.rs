//! Raw system calls that confine: resource limits, capabilities, Landlock, seccomp.
//!
//! Contract, as in [`super`]: each is one system call (or a loop of them) on memory that the caller owns; no allocation, no lock,
//! no environment, no formatting, no unwinding. Errors are numbers, which the callers judge.

#![allow(unsafe_code)]

use std::os::fd::RawFd;

use super::{Errno, syscall};

/// Sets both limits, as far as the hard one allows.
pub(crate) fn set_rlimit(resource: u32, value: u64) -> Result<(), Errno> {
    let [_, hard] = rlimit(resource)?;
    // SIGXCPU comes at the soft limit and says why; a second later, at the hard one, SIGKILL.
    let later = u64::from(resource == libc::RLIMIT_CPU);
    change_rlimit(resource, [value.min(hard), value.saturating_add(later).min(hard)])
}

/// Sets the soft limit, as far as the hard one allows, and says what it was.
pub(crate) fn set_soft_rlimit(resource: u32, value: u64) -> Result<u64, Errno> {
    let [soft, hard] = rlimit(resource)?;
    change_rlimit(resource, [value.min(hard), hard]).map(|()| soft)
}

/// The soft and the hard limit.
fn rlimit(resource: u32) -> Result<[u64; 2], Errno> {
    let mut limits = [0u64; 2];
    // SAFETY: `struct rlimit64` is two 64-bit numbers.
    unsafe {
        syscall!(
            libc::SYS_prlimit64,
            0,
            resource,
            std::ptr::null::<u64>(),
            limits.as_mut_ptr()
        )
    }
    .map(|_| limits)
}

fn change_rlimit(resource: u32, new: [u64; 2]) -> Result<(), Errno> {
    // SAFETY: as above.
    unsafe {
        syscall!(
            libc::SYS_prlimit64,
            0,
            resource,
            new.as_ptr(),
            std::ptr::null::<u64>()
        )
    }
    .map(drop)
}

/// Empties the effective, permitted and inheritable capability sets.
pub(crate) fn drop_capability_sets() -> Result<(), Errno> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let data = [0u32; 6];
    // SAFETY: the kernel's structs are two and six 32-bit numbers.
    unsafe { syscall!(libc::SYS_capset, header.as_ptr(), data.as_ptr()) }.map(drop)
}

pub(crate) fn landlock_restrict_self(ruleset: RawFd, flags: u32) -> Result<(), Errno> {
    // SAFETY: numbers only.
    unsafe { syscall!(libc::SYS_landlock_restrict_self, ruleset, flags) }.map(drop)
}

/// Allows `access` at and below `directory` in a ruleset.
pub(crate) fn landlock_allow_below(ruleset: RawFd, access: u64, directory: RawFd) -> Result<(), Errno> {
    #[repr(C, packed)]
    struct PathBeneath {
        access: u64,
        directory: i32,
    }
    const RULE_PATH_BENEATH: u32 = 1;
    let rule = PathBeneath { access, directory };
    // SAFETY: `rule` has the kernel's layout (struct landlock_path_beneath_attr, packed).
    unsafe {
        syscall!(
            libc::SYS_landlock_add_rule,
            ruleset,
            RULE_PATH_BENEATH,
            &raw const rule,
            0u32
        )
    }
    .map(drop)
}

/// The kernel's Landlock ABI version, 0 where there is none.
pub(crate) fn landlock_abi() -> u32 {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the pointer and size must be null and zero.
    unsafe {
        syscall!(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            VERSION
        )
    }
    .map_or(0, |abi| abi as u32)
}

/// Installs a filter on the calling task and returns its listener.
pub(crate) fn install_filter(program: &[libc::sock_filter]) -> Result<RawFd, Errno> {
    const SET_MODE_FILTER: u32 = 1;
    const NEW_LISTENER: u64 = 1 << 3;
    const WAIT_KILLABLE_RECV: u64 = 1 << 5;
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    let install = |flags: u64| {
        // SAFETY: the program lives through the call; the kernel copies and checks it.
        unsafe { syscall!(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const program) }
    };
    match install(NEW_LISTENER | WAIT_KILLABLE_RECV) {
        Err(libc::EINVAL) => install(NEW_LISTENER), // before 5.19
        other => other,
    }
    .map(|fd| fd as RawFd)
}

/// Whether the kernel knows `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`.
pub(crate) fn has_wait_killable() -> bool {
    // A null program with known flags answers EFAULT, with unknown flags EINVAL.
    // SAFETY: the kernel checks the flags first and then finds the null pointer.
    let result = unsafe {
        syscall!(
            libc::SYS_seccomp,
            1u32,
            (1u64 << 3) | (1 << 5),
            std::ptr::null::<u8>()
        )
    };
    result == Err(libc::EFAULT)
}
