//! Raw system calls for code that runs after a fork.
//!
//! Contract: every function here is one system call (or a loop of them) on memory that the caller owns. None
//! allocates, locks, reads the environment, formats or unwinds, so that each may be called in a forked
//! child of a process in any state, and in a child that shares its parent's memory. Errors are numbers.
//! Results are checked by the callers: a step that fails ends the child.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;

/// An error number.
pub(crate) type Errno = i32;

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

pub(crate) fn last_errno() -> Errno {
    // SAFETY: __errno_location returns this thread's valid errno.
    unsafe { *libc::__errno_location() }
}

fn check(result: libc::c_long) -> Result<usize, Errno> {
    if result < 0 {
        Err(last_errno())
    } else {
        Ok(result as usize)
    }
}

/// One system call, its error as a number.
macro_rules! syscall {
    ($number:expr $(, $argument:expr)*) => {
        check(libc::syscall($number $(, $argument)*))
    };
}

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

pub(crate) fn exit(code: i32) -> ! {
    loop {
        // SAFETY: ends this process; takes no pointers.
        unsafe { libc::syscall(libc::SYS_exit_group, code) };
    }
}

pub(crate) fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    if first > last {
        return Ok(());
    }
    // SAFETY: closes descriptors of this process by number; the caller gives up what it owned there.
    unsafe { syscall!(libc::SYS_close_range, first, last, 0u32) }.map(drop)
}

/// Closes every descriptor except those in `keep`, which is sorted.
pub(crate) fn close_all_but(keep: &[RawFd]) -> Result<(), Errno> {
    let mut next = 0u32;
    for fd in keep {
        let fd = *fd as u32;
        if fd > next {
            close_range(next, fd - 1)?;
        }
        next = fd + 1;
    }
    close_range(next, u32::MAX)
}

pub(crate) fn close(fd: RawFd) {
    // SAFETY: the caller owns the number.
    unsafe { libc::syscall(libc::SYS_close, fd) };
}

pub(crate) fn prctl(option: i32, a: u64, b: u64) -> Result<usize, Errno> {
    // SAFETY: only used with options whose arguments are numbers, or NUL-terminated static names.
    unsafe { syscall!(libc::SYS_prctl, option, a, b, 0u64, 0u64) }
}

pub(crate) fn setsid() -> Result<(), Errno> {
    // SAFETY: no arguments.
    unsafe { syscall!(libc::SYS_setsid) }.map(drop)
}

pub(crate) fn open(path: &CStr, flags: i32, mode: u32) -> Result<RawFd, Errno> {
    // SAFETY: `path` is NUL-terminated and lives through the call.
    unsafe {
        syscall!(
            libc::SYS_openat,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags | libc::O_CLOEXEC,
            mode
        )
    }
    .map(|fd| fd as RawFd)
}

pub(crate) fn read(fd: RawFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        // SAFETY: the buffer is valid for its length.
        match unsafe { syscall!(libc::SYS_read, fd, buffer.as_mut_ptr(), buffer.len()) } {
            Err(libc::EINTR) => {}
            other => return other,
        }
    }
}

/// Waits for a packet, whatever it says. An error when the peer is gone.
pub(crate) fn wait_for_order(socket: RawFd) -> Result<(), Errno> {
    let mut order = [0u8; 16];
    match read(socket, &mut order)? {
        0 => Err(libc::EPIPE),
        _ => Ok(()),
    }
}

/// Writes all of a small buffer to a file that takes it whole.
pub(crate) fn write_file(path: &CStr, content: &[u8]) -> Result<(), Errno> {
    let fd = open(path, libc::O_WRONLY, 0)?;
    // SAFETY: the buffer is valid for its length.
    let result = unsafe { syscall!(libc::SYS_write, fd, content.as_ptr(), content.len()) };
    close(fd);
    result.map(drop)
}

pub(crate) fn mkdir(path: &CStr, mode: u32) -> Result<(), Errno> {
    // SAFETY: `path` is NUL-terminated and lives through the call.
    unsafe { syscall!(libc::SYS_mkdirat, libc::AT_FDCWD, path.as_ptr(), mode) }.map(drop)
}

pub(crate) fn chdir(path: &CStr) -> Result<(), Errno> {
    // SAFETY: `path` is NUL-terminated and lives through the call.
    unsafe { syscall!(libc::SYS_chdir, path.as_ptr()) }.map(drop)
}

pub(crate) fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: u64,
    data: Option<&CStr>,
) -> Result<(), Errno> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: each pointer is null or a NUL-terminated string that lives through the call.
    unsafe {
        syscall!(
            libc::SYS_mount,
            pointer(source),
            target.as_ptr(),
            pointer(kind),
            flags,
            pointer(data)
        )
    }
    .map(drop)
}

pub(crate) fn detach_mount(target: &CStr) -> Result<(), Errno> {
    // SAFETY: `target` is NUL-terminated and lives through the call.
    unsafe { syscall!(libc::SYS_umount2, target.as_ptr(), libc::MNT_DETACH) }.map(drop)
}

/// Opens a path for mounting. No part of it may be a symbolic link (`ELOOP`): the paths of a policy had theirs
/// followed when it was compiled, and what has become a link since was made by somebody else.
pub(crate) fn open_place(path: &CStr) -> Result<RawFd, Errno> {
    const RESOLVE_NO_MAGICLINKS: u64 = 2;
    const RESOLVE_NO_SYMLINKS: u64 = 4;
    // `struct open_how`: flags, mode, resolve.
    let how = [
        (libc::O_PATH | libc::O_CLOEXEC) as u64,
        0,
        RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS,
    ];
    // SAFETY: `path` is NUL-terminated; `how` has the kernel's layout; both live through the call.
    unsafe {
        syscall!(
            libc::SYS_openat2,
            libc::AT_FDCWD,
            path.as_ptr(),
            how.as_ptr(),
            size_of_val(&how)
        )
    }
    .map(|fd| fd as RawFd)
}

/// A detached copy of the mount tree at an open place.
pub(crate) fn open_tree_clone(place: RawFd) -> Result<RawFd, Errno> {
    const OPEN_TREE_CLONE: u32 = 1;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as u32;
    let flags = flags | (libc::AT_RECURSIVE | libc::AT_EMPTY_PATH) as u32;
    // SAFETY: the path is NUL-terminated and static.
    unsafe { syscall!(libc::SYS_open_tree, place, c"".as_ptr(), flags) }.map(|fd| fd as RawFd)
}

/// Attaches a detached tree at an open place.
pub(crate) fn move_mount(tree: RawFd, place: RawFd) -> Result<(), Errno> {
    const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;
    const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
    // SAFETY: both strings are NUL-terminated and static.
    unsafe {
        syscall!(
            libc::SYS_move_mount,
            tree,
            c"".as_ptr(),
            place,
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
        )
    }
    .map(drop)
}

/// Makes a detached tree read-only, with everything mounted in it.
pub(crate) fn make_read_only(tree: RawFd) -> Result<(), Errno> {
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let attr = MountAttr {
        set: MOUNT_ATTR_RDONLY,
        clear: 0,
        propagation: 0,
        user_namespace: 0,
    };
    // SAFETY: `attr` has the kernel's layout (struct mount_attr, 32 bytes) and lives through the call.
    unsafe {
        syscall!(
            libc::SYS_mount_setattr,
            tree,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<MountAttr>()
        )
    }
    .map(drop)
}

pub(crate) fn unshare(flags: i32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    unsafe { syscall!(libc::SYS_unshare, flags) }.map(drop)
}

pub(crate) fn dup2(from: RawFd, to: RawFd) -> Result<(), Errno> {
    // SAFETY: numbers only; `to` is one of 0, 1, 2, which the caller gives up.
    unsafe { syscall!(libc::SYS_dup3, from, to, 0) }.map(drop)
}

/// Another number for a descriptor that will go to 0, 1 or 2, in place of the one it has.
pub(crate) fn above_stdio(fd: RawFd) -> Result<RawFd, Errno> {
    // SAFETY: numbers only.
    let moved = unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, 3) };
    close(fd);
    moved.map(|fd| fd as RawFd)
}

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

pub(crate) fn write(fd: RawFd, content: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the buffer is valid for its length.
    unsafe { syscall!(libc::SYS_write, fd, content.as_ptr(), content.len()) }
}

/// Every signal back to its default action.
pub(crate) fn reset_signals() {
    // `struct sigaction` of the kernel: handler (SIG_DFL is 0), flags, restorer, mask. All zero.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: the struct is all zero and large enough; KILL and STOP answer EINVAL, which is right.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null::<u64>(),
                8usize,
            )
        };
    }
}

pub(crate) fn set_signal_mask(mask: u64) {
    // SAFETY: the kernel's signal set is one 64-bit number.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            std::ptr::null::<u64>(),
            8usize,
        )
    };
}

pub(crate) fn signalfd(mask: u64) -> Result<RawFd, Errno> {
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the kernel's signal set is one 64-bit number.
    unsafe { syscall!(libc::SYS_signalfd4, -1, &raw const mask, 8usize, flags) }.map(|fd| fd as RawFd)
}

pub(crate) fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: numbers only.
    unsafe { syscall!(libc::SYS_kill, pid, signal) }.map(drop)
}

/// The inode of our own PID namespace, where `/proc` is ours to read.
pub(crate) fn pid_namespace() -> Option<u64> {
    // `struct statx`: the inode is at byte 32, as a 64-bit number; 256 bytes in all.
    let mut status = [0u64; 32];
    const STATX_INO: u32 = 0x100;
    // SAFETY: the path is NUL-terminated, the buffer as large as the kernel's struct.
    unsafe {
        syscall!(
            libc::SYS_statx,
            libc::AT_FDCWD,
            c"/proc/self/ns/pid".as_ptr(),
            0,
            STATX_INO,
            status.as_mut_ptr()
        )
    }
    .ok()?;
    Some(status[4])
}

/// Our own pid as the `/proc` behind this descriptor numbers it; `None` where it does not.
pub(crate) fn pid_in(proc: RawFd) -> Option<i32> {
    let mut link = [0u8; 16];
    // SAFETY: the name is NUL-terminated, the buffer valid for its length.
    let length = unsafe {
        syscall!(
            libc::SYS_readlinkat,
            proc,
            c"self".as_ptr(),
            link.as_mut_ptr(),
            link.len()
        )
    }
    .ok()?;
    link.get(..length)?.iter().try_fold(0i32, |number, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number.checked_mul(10)?.checked_add(i32::from(digit))
    })
}

/// Where the heap of `brk` ends.
pub(crate) fn heap_end() -> usize {
    // SAFETY: asks for an impossible end, which changes nothing and answers with the real one.
    unsafe { syscall!(libc::SYS_brk, 0usize) }.unwrap_or(0)
}

/// Gives private memory back to the kernel; what is read there afterwards is zero. Where nothing is mapped nothing is done.
///
/// # Safety
/// Nobody relies on what is there.
pub(crate) unsafe fn forget_memory(from: usize, bytes: usize) {
    // SAFETY: promised by the caller.
    // WHY: there is no safe way to do without memory that something may point to.
    let _ = unsafe { syscall!(libc::SYS_madvise, from, bytes, libc::MADV_DONTNEED) };
}

pub(crate) fn getpid() -> i32 {
    // SAFETY: no arguments.
    unsafe { libc::syscall(libc::SYS_getpid) as i32 }
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

/// What all reaped descendants used.
pub(crate) fn children_usage() -> super::wire::Usage {
    // SAFETY: all zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the struct is valid for writing.
    unsafe { libc::syscall(libc::SYS_getrusage, libc::RUSAGE_CHILDREN, &raw mut usage) };
    let micros = |t: libc::timeval| (t.tv_sec as u64) * 1_000_000 + t.tv_usec as u64;
    super::wire::Usage {
        user_us: micros(usage.ru_utime),
        system_us: micros(usage.ru_stime),
        max_rss_bytes: (usage.ru_maxrss as u64) * 1024,
    }
}

/// Says which of two descriptors is readable or hung up; waits until one is, if asked to.
pub(crate) fn poll2(a: RawFd, b: RawFd, wait: bool) -> (bool, bool) {
    let entry = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut entries = [entry(a), entry(b)];
    let mut at_once = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let timeout = if wait {
        std::ptr::null_mut()
    } else {
        &raw mut at_once
    };
    // SAFETY: the array is valid, and the timeout null or ours; no mask.
    unsafe {
        libc::syscall(
            libc::SYS_ppoll,
            entries.as_mut_ptr(),
            2usize,
            timeout,
            std::ptr::null::<u8>(),
            8usize,
        )
    };
    (entries[0].revents != 0, entries[1].revents != 0)
}

/// Brings the loopback of this network namespace up.
pub(crate) fn loopback_up() -> Result<(), Errno> {
    // SAFETY: numbers only.
    let socket = unsafe {
        syscall!(
            libc::SYS_socket,
            libc::AF_INET,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            0
        )
    }? as RawFd;
    // SAFETY: all zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request is a valid ifreq that names `lo`.
    let result = unsafe { syscall!(libc::SYS_ioctl, socket, libc::SIOCSIFFLAGS, &raw const request) };
    close(socket);
    result.map(drop)
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
