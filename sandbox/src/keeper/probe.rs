//! What can be had here, found out by a child that tries.

use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use super::sys::{self, CloneArgs, Errno};
use super::{Step, cgroup};
use crate::kernel::{KernelSupport, LimitGroups, Probe};

/// Bytes of stack for a task that makes four system calls.
const TASK_STACK_BYTES: usize = 16 * 1024;
const NAMESPACES: i32 = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC;

/// Finds out everything except the audit feed, which the supervisor reads itself.
pub(super) fn support(thorough: bool) -> KernelSupport {
    // What is likely comes first: a refused attempt costs as much as one that works.
    let mut needs_user_namespace = !nix::unistd::geteuid().is_root();
    let mut found = try_namespaces(needs_user_namespace);
    let refused = |found: Result<(), (Step, Errno)>| found.is_err_and(|(step, _)| step == Step::Clone);
    if refused(found) {
        let other = try_namespaces(!needs_user_namespace);
        // Of two refusals the one with a user namespace tells more.
        if !refused(other) || !needs_user_namespace {
            needs_user_namespace = !needs_user_namespace;
            found = other;
        }
    }
    let (pid_namespace, private_proc) = match found {
        Ok(()) => (Probe::Yes, Probe::Yes),
        Err((Step::Proc, errno)) => (Probe::Yes, no(Step::Proc, errno)),
        Err((step, errno)) => {
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
        match try_child(libc::CLONE_NEWNET | user, maps) {
            Ok(()) => Probe::Yes,
            Err((step, errno)) => no(step, errno),
        }
    } else {
        Probe::Yes // what this rests on works; a spawn that needs it tells
    };
    let task = try_task();
    let groups = Groups::read();
    KernelSupport {
        release: nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default(),
        landlock_abi: sys::landlock_abi(),
        seccomp_listener: match task.seccomp {
            Ok(()) => Probe::Yes,
            Err(errno) => no(Step::Seccomp, errno),
        },
        seccomp_wait_killable: task.wait_killable,
        pid_namespace,
        needs_user_namespace,
        private_proc,
        net_namespace,
        cgroup2: groups.unified(),
        pids_groups: groups.with("pids"),
        memory_groups: groups.with("memory"),
        cpu_groups: groups.with("cpu"),
        audit: Probe::No("not asked".to_owned()),
        pidfd_exit_info: task.exit_info,
        ptrace_scope: ptrace_scope(),
    }
}

fn ptrace_scope() -> u8 {
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    scope
        .ok()
        .and_then(|scope| scope.trim().parse().ok())
        .unwrap_or(0)
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

/// What a task that shares everything with us finds out.
struct Task {
    seccomp: Result<(), Errno>,
    wait_killable: bool,
    exit_info: bool,
}

/// Forks a task that installs a filter on itself and ends. It shares our memory, as a command does until exec:
/// copying it would cost more than all else here.
fn try_task() -> Task {
    let mut task = Task {
        seccomp: Err(libc::ECHILD),
        wait_killable: false,
        exit_info: false,
    };
    let mut stack = [const { MaybeUninit::uninit() }; TASK_STACK_BYTES];
    let mut pidfd: RawFd = -1;
    let argument = (&raw mut task).cast();
    #[allow(unsafe_code)]
    // SAFETY: `task_entry` expects a `Task`, which outlives it: we are suspended until it ends.
    // WHY: a fork that copies our memory is the safe way, at several times the price.
    let forked = unsafe { sys::vfork_with_files(task_entry, argument, &mut stack, &mut pidfd) };
    match forked {
        Ok(pid) => {
            let reaped = sys::wait(pid, 0).is_ok();
            task.exit_info = reaped && sys::exit_status(pidfd).is_some();
            sys::close(pidfd);
        }
        Err(errno) => task.seccomp = Err(errno),
    }
    task
}

/// Runs in the forked task, under the contract of `sys`.
extern "C" fn task_entry(argument: *mut libc::c_void) -> libc::c_int {
    #[allow(unsafe_code)]
    // SAFETY: `try_task` passes its `Task` and is suspended meanwhile.
    // WHY: this is what an entry point gets.
    let task = unsafe { &mut *argument.cast::<Task>() };
    let _ = sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0);
    // One instruction: allow.
    let program = [libc::sock_filter {
        code: 0x06,
        jt: 0,
        jf: 0,
        k: 0x7fff_0000,
    }];
    task.wait_killable = sys::has_wait_killable();
    // The listener appears in the descriptor table that we share.
    task.seccomp = sys::install_filter(&program).map(sys::close);
    sys::exit(0);
}

fn try_namespaces(user: bool) -> Result<(), (Step, Errno)> {
    let flags = NAMESPACES | if user { libc::CLONE_NEWUSER } else { 0 };
    try_child(flags, user.then(id_maps))
}

/// Forks a child into new namespaces, which reports how far it came. It is not waited for, since the kernel takes
/// milliseconds to end a namespace; it is reaped later as any child is.
fn try_child(flags: i32, maps: Option<(Vec<u8>, Vec<u8>)>) -> Result<(), (Step, Errno)> {
    let (reader, writer) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| (Step::Clone, e as i32))?;
    let args = CloneArgs {
        flags: flags as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if sys::clone3(&args).map_err(|errno| (Step::Clone, errno))? == 0 {
        child(flags, maps.as_ref(), writer.as_raw_fd());
    }
    drop(writer);
    let mut answer = [0u8; 8];
    if sys::read(reader.as_raw_fd(), &mut answer) != Ok(answer.len()) {
        return Err((Step::Clone, libc::ECHILD));
    }
    let [a, b, c, d, e, f, g, h] = answer;
    match i32::from_ne_bytes([a, b, c, d]) {
        0 => Ok(()),
        step => Err((Step::from_raw(step as u32), i32::from_ne_bytes([e, f, g, h]))),
    }
}

/// Runs in the forked child, under the contract of `sys`.
fn child(flags: i32, maps: Option<&(Vec<u8>, Vec<u8>)>, writer: RawFd) -> ! {
    let (step, errno) = match attempt(flags, maps) {
        Ok(()) => (0, 0),
        Err((step, errno)) => (step as i32, errno),
    };
    let mut answer = [0u8; 8];
    answer[..4].copy_from_slice(&step.to_ne_bytes());
    answer[4..].copy_from_slice(&errno.to_ne_bytes());
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

/// Our own cgroup v2 directory, if we may make groups in it.
pub(super) fn own_unified_group() -> Option<PathBuf> {
    Groups::read().directory(None).map(PathBuf::from)
}

/// What the kernel says about cgroups and where we are in them.
struct Groups {
    mounts: String,
    own: String,
}

impl Groups {
    fn read() -> Self {
        Self {
            mounts: fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(),
            own: fs::read_to_string("/proc/self/cgroup").unwrap_or_default(),
        }
    }

    /// Where groups with this controller can be made: v1 where it is mounted there, else v2.
    fn with(&self, controller: &str) -> Option<LimitGroups> {
        if let Some(parent) = self.directory(Some(controller)) {
            let unified = false;
            return Some(LimitGroups { parent, unified });
        }
        let parent = self.unified()?;
        cgroup::enable(Path::new(&parent), controller).then_some(LimitGroups {
            parent,
            unified: true,
        })
    }

    /// The same in v2. A supervisor that has settled in a leaf makes its groups beside that one.
    fn unified(&self) -> Option<String> {
        let own = self.directory(None)?;
        let above = own
            .strip_suffix(cgroup::LEAF)
            .and_then(|above| above.strip_suffix('/'));
        Some(above.map_or_else(|| own.clone(), str::to_owned))
    }

    /// Our own directory in a cgroup hierarchy (v2 for `None`), if we may make groups in it.
    fn directory(&self, controller: Option<&str>) -> Option<String> {
        let (mount, root) = self.mounts.lines().find_map(|line| {
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
        let path = self.own.lines().find_map(|line| {
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
            && nix::unistd::access(&directory.join("cgroup.procs"), nix::unistd::AccessFlags::W_OK)
                .is_ok();
        writable.then(|| directory.to_string_lossy().trim_end_matches('/').to_owned())
    }
}
