//! What can be had here, found out by a child that tries.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use super::Step;
use super::sys::{self, CloneArgs, Errno};
use crate::kernel::{KernelSupport, Probe};

const NAMESPACES: i32 = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC;

/// Finds out everything except the audit feed, which the supervisor reads itself.
pub(super) fn support(thorough: bool) -> KernelSupport {
    let plain = try_child(0, None);
    let mut needs_user_namespace = false;
    let mut found = try_child(NAMESPACES, None);
    if matches!(found.failed, Some((Step::Clone, _))) {
        needs_user_namespace = true;
        found = try_child(NAMESPACES | libc::CLONE_NEWUSER, Some(id_maps()));
    }
    let (pid_namespace, private_proc) = match found.failed {
        None => (Probe::Yes, Probe::Yes),
        Some((Step::Proc, errno)) => (Probe::Yes, no(Step::Proc, errno)),
        Some((step, errno)) => {
            let why = namespace_reason(step, errno);
            (Probe::No(why.clone()), Probe::No(why))
        }
    };
    let net_namespace = if !pid_namespace.is_yes() {
        pid_namespace.clone()
    } else if thorough {
        let user = if needs_user_namespace {
            libc::CLONE_NEWUSER
        } else {
            0
        };
        let maps = needs_user_namespace.then(id_maps);
        match try_child(libc::CLONE_NEWNET | user, maps).failed {
            None => Probe::Yes,
            Some((step, errno)) => no(step, errno),
        }
    } else {
        Probe::Yes // what this rests on works; a spawn that needs it tells
    };
    let seccomp = match plain.seccomp {
        None => Probe::Yes,
        Some(errno) => no(Step::Seccomp, errno),
    };
    KernelSupport {
        release: nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default(),
        landlock_abi: sys::landlock_abi(),
        seccomp_listener: seccomp,
        seccomp_wait_killable: plain.wait_killable,
        pid_namespace,
        needs_user_namespace,
        private_proc,
        net_namespace,
        cgroup2: cgroup_directory(None),
        pids_v1: cgroup_directory(Some("pids")),
        memory_v1: cgroup_directory(Some("memory")),
        audit: Probe::No("not asked".to_owned()),
        pidfd_exit_info: plain.exit_info,
    }
}

fn no(step: Step, errno: Errno) -> Probe {
    let error = std::io::Error::from_raw_os_error(errno);
    Probe::No(format!("{step}: {error}"))
}

fn namespace_reason(step: Step, errno: Errno) -> String {
    let error = std::io::Error::from_raw_os_error(errno);
    let hint = match (step, errno) {
        (Step::Clone, libc::ENOSPC | libc::EUSERS) => "; user.max_user_namespaces is exhausted or 0",
        (Step::Clone, libc::EPERM) => "; user namespaces are disabled for this user or container",
        (Step::IdMap | Step::Propagation, libc::EPERM | libc::EACCES) => {
            "; an LSM (AppArmor's userns restriction?) forbids it"
        }
        _ => "",
    };
    format!("{step}: {error}{hint}")
}

struct Found {
    failed: Option<(Step, Errno)>,
    seccomp: Option<Errno>,
    wait_killable: bool,
    exit_info: bool,
}

/// Forks a child into new namespaces, which reports how far it came. Only one without namespaces is waited for:
/// the kernel takes milliseconds to end a namespace, and its child is reaped with others later.
fn try_child(flags: i32, maps: Option<(Vec<u8>, Vec<u8>)>) -> Found {
    let failure = |errno| Found {
        failed: Some((Step::Clone, errno)),
        seccomp: Some(errno),
        wait_killable: false,
        exit_info: false,
    };
    let Ok((reader, writer)) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC) else {
        return failure(libc::EMFILE);
    };
    let mut pidfd: RawFd = -1;
    let args = CloneArgs {
        flags: flags as u64 | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    let pid = match sys::clone3(&args) {
        Ok(0) => child(flags, maps.as_ref(), writer.as_raw_fd()),
        Ok(pid) => pid,
        Err(errno) => return failure(errno),
    };
    drop(writer);
    #[allow(unsafe_code)]
    // SAFETY: the kernel just made this descriptor for us.
    // WHY: clone3 hands it out as a number.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let mut answer = [0u8; 16];
    let read = sys::read(reader.as_raw_fd(), &mut answer);
    let exit_info =
        flags == 0 && sys::wait(pid, 0).is_ok() && sys::exit_status(pidfd.as_raw_fd()).is_some();
    if read != Ok(answer.len()) {
        return Found {
            exit_info,
            ..failure(libc::ECHILD)
        };
    }
    let word = |i: usize| i32::from_ne_bytes([answer[i], answer[i + 1], answer[i + 2], answer[i + 3]]);
    Found {
        failed: (word(0) != 0).then(|| (Step::from_raw(word(0) as u32), word(4))),
        seccomp: (word(8) != 0).then_some(word(8)),
        wait_killable: word(12) != 0,
        exit_info,
    }
}

/// Runs in the forked child, under the contract of `sys`.
fn child(flags: i32, maps: Option<&(Vec<u8>, Vec<u8>)>, writer: RawFd) -> ! {
    let (step, errno) = match attempt(flags, maps) {
        Ok(()) => (0, 0),
        Err((step, errno)) => (step as i32, errno),
    };
    let _ = sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0);
    // One instruction: allow.
    let program = [libc::sock_filter {
        code: 0x06,
        jt: 0,
        jf: 0,
        k: 0x7fff_0000,
    }];
    let wait_killable = sys::has_wait_killable();
    let seccomp = match sys::install_filter(&program) {
        Ok(_) => 0,
        Err(errno) => errno,
    };
    let mut answer = [0u8; 16];
    for (i, word) in [step, errno, seccomp, i32::from(wait_killable)]
        .into_iter()
        .enumerate()
    {
        answer[i * 4..i * 4 + 4].copy_from_slice(&word.to_ne_bytes());
    }
    let _ = sys::write(writer, &answer);
    sys::exit(0);
}

fn attempt(flags: i32, maps: Option<&(Vec<u8>, Vec<u8>)>) -> Result<(), (Step, Errno)> {
    if let Some((uids, gids)) = maps {
        let _ = sys::write_file(c"/proc/self/setgroups", b"deny");
        sys::write_file(c"/proc/self/uid_map", uids).map_err(|e| (Step::IdMap, e))?;
        sys::write_file(c"/proc/self/gid_map", gids).map_err(|e| (Step::IdMap, e))?;
    }
    if flags & libc::CLONE_NEWNET != 0 {
        sys::loopback_up().map_err(|e| (Step::Loopback, e))?;
    }
    if flags & libc::CLONE_NEWNS != 0 {
        sys::mount(None, c"/", None, libc::MS_REC | libc::MS_SLAVE, None)
            .map_err(|e| (Step::Propagation, e))?;
        let options = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        sys::mount(Some(c"proc"), c"/proc", Some(c"proc"), options, None)
            .map_err(|e| (Step::Proc, e))?;
    }
    Ok(())
}

/// Each id maps to itself: the command is who its caller is.
pub(super) fn id_maps() -> (Vec<u8>, Vec<u8>) {
    let line = |id: u32| format!("{id} {id} 1\n").into_bytes();
    (
        line(nix::unistd::geteuid().as_raw()),
        line(nix::unistd::getegid().as_raw()),
    )
}

/// Our own directory in a cgroup hierarchy (v2 for `None`), if we may make groups in it.
fn cgroup_directory(controller: Option<&str>) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let (mount, root) = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut tail = after.split(' ');
        let (kind, options) = (tail.next()?, tail.nth(1)?);
        let wanted = match controller {
            None => kind == "cgroup2",
            Some(name) => kind == "cgroup" && options.split(',').any(|o| o == name),
        };
        let mut head = before.split(' ');
        let (root, mount) = (head.nth(3)?, head.next()?);
        wanted.then(|| (mount.to_owned(), root.to_owned()))
    })?;
    let path = own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let ours = match controller {
            None => controllers.is_empty(),
            Some(name) => controllers.split(',').any(|c| c == name),
        };
        ours.then(|| path.to_owned())
    })?;
    let relative = Path::new(&path)
        .strip_prefix(&root)
        .or_else(|_| Path::new(&path).strip_prefix("/"))
        .ok()?;
    let directory: PathBuf = Path::new(&mount).join(relative);
    let writable = nix::unistd::access(&directory, nix::unistd::AccessFlags::W_OK).is_ok()
        && nix::unistd::access(&directory.join("cgroup.procs"), nix::unistd::AccessFlags::W_OK).is_ok();
    writable.then(|| directory.to_string_lossy().trim_end_matches('/').to_owned())
}
