//! A spawn request as C strings and arrays, made before the fork so that nothing is allocated after it.

use std::ffi::CString;
use std::os::fd::RawFd;

use super::plan::MountStep;
use super::program::Program;
use super::tree::Fixed;
use super::wire::{SpawnRequest, Stdin, TerminalSize};

/// Everything that the init and the command need until exec.
pub(super) struct Image {
    pub(super) program: Program,
    /// The command waits for an order, once all is done that can be done before its program is known.
    pub(super) waits: bool,
    pub(super) cwd: CString,
    pub(super) mounts: Vec<MountImage>,
    pub(super) kept_trees: Vec<RawFd>,
    pub(super) has_masks: bool,
    /// [`super::plan::MountedRule`]s with their paths as C strings.
    pub(super) mounted: Vec<(CString, Vec<u64>)>,
    pub(super) id_maps: Option<(Vec<u8>, Vec<u8>)>,
    pub(super) filter: Vec<libc::sock_filter>,
    pub(super) rulesets: Vec<RawFd>,
    pub(super) stdio: [RawFd; 3],
    /// Whose slave takes the place of `stdio`, once it is open.
    pub(super) terminal: Option<TerminalImage>,
    pub(super) control: RawFd,
    /// The spawner's `/proc`.
    pub(super) proc: RawFd,
    /// Wait for a byte on the control socket before anything else (a cgroup is being joined).
    pub(super) wait_for_go: bool,
    /// Descriptors that stay open in the init until the command runs, sorted.
    pub(super) keep: Vec<RawFd>,
    /// What the command gets besides its stdio, and under which numbers. All of it, and `control` then, is above those.
    pub(super) extras: Vec<(RawFd, RawFd)>,
    /// Descriptors that the command has open before its exec, sorted.
    pub(super) command_keep: Vec<RawFd>,
    pub(super) last_capability: u32,
    /// The inode of the tree's own PID namespace, once the init is in it; 0 without one.
    pub(super) pid_namespace: u64,
    /// The host's own soft limit on descriptors, which the command gets back.
    pub(super) descriptors_soft: Option<u64>,
    pub(super) request: SpawnRequest,
}

/// A terminal to open.
pub(super) struct TerminalImage {
    pub(super) size: TerminalSize,
    /// Terminals of the process's own are mounted.
    pub(super) private: bool,
}

/// A [`MountStep`] with its paths as C strings.
pub(super) enum MountImage {
    Keep(CString),
    Private {
        path: CString,
        data: CString,
    },
    Terminals,
    Restore {
        slot: usize,
        path: CString,
        parents: Vec<CString>,
        directory: bool,
        read_only: bool,
    },
    Mask {
        path: CString,
        directory: bool,
    },
    Pin(CString),
    ReadOnly(CString),
}

/// The descriptors of one spawn.
pub(super) struct Descriptors {
    pub(super) stdio: [RawFd; 3],
    pub(super) control: RawFd,
    pub(super) proc: RawFd,
    pub(super) rulesets: Vec<RawFd>,
    pub(super) extras: Vec<(RawFd, RawFd)>,
}

impl Image {
    /// `None` where a string has a NUL in it.
    pub(super) fn new(
        request: SpawnRequest,
        (program, waits): (Program, bool),
        fds: Descriptors,
        fixed: &Fixed,
    ) -> Option<Self> {
        let plan = &request.plan;
        let mounts: Vec<MountImage> = plan.mounts.iter().map(mount_image).collect::<Option<_>>()?;
        let kept = mounts.iter().filter(|m| matches!(m, MountImage::Keep(_))).count();
        let mut keep = fds.rulesets.clone();
        keep.extend(fds.stdio);
        keep.push(fds.control);
        keep.push(fds.proc);
        keep.extend(fds.extras.iter().map(|(from, _)| from));
        keep.sort_unstable();
        keep.dedup();
        let mut command_keep = vec![0, 1, 2];
        command_keep.extend(fds.extras.iter().map(|(_, to)| to));
        // The init is suspended and reads no orders. The spawner's end closes when the spawner dies; this one at exec.
        command_keep.extend(waits.then_some(fds.control));
        command_keep.sort_unstable();
        Some(Self {
            program,
            waits,
            cwd: c_string(&request.cwd)?,
            has_masks: mounts.iter().any(|m| matches!(m, MountImage::Mask { .. })),
            mounts,
            mounted: plan
                .mounted
                .iter()
                .map(|rule| Some((c_string(&rule.path)?, rule.access.clone())))
                .collect::<Option<_>>()?,
            kept_trees: vec![-1; kept],
            id_maps: plan.user_namespace.then(super::probe::id_maps),
            filter: plan
                .filter
                .iter()
                .map(|i| libc::sock_filter {
                    code: i.code,
                    jt: i.jt,
                    jf: i.jf,
                    k: i.k,
                })
                .collect(),
            rulesets: fds.rulesets,
            stdio: fds.stdio,
            terminal: match request.stdin {
                Stdin::Terminal(size) => Some(TerminalImage {
                    size,
                    private: plan.mounts.contains(&MountStep::Terminals),
                }),
                _ => None,
            },
            control: fds.control,
            proc: fds.proc,
            wait_for_go: plan.cgroups.iter().any(|group| !group.unified),
            keep,
            extras: fds.extras,
            command_keep,
            last_capability: fixed.last_capability,
            pid_namespace: 0,
            descriptors_soft: fixed.descriptors_soft,
            request,
        })
    }
}

fn mount_image(step: &MountStep) -> Option<MountImage> {
    Some(match step {
        MountStep::Keep { path } => MountImage::Keep(c_string(path)?),
        MountStep::Private { path, data } => MountImage::Private {
            path: c_string(path)?,
            data: c_string(data)?,
        },
        MountStep::Terminals => MountImage::Terminals,
        MountStep::Restore {
            slot,
            path,
            parents,
            directory,
            read_only,
        } => MountImage::Restore {
            slot: *slot as usize,
            path: c_string(path)?,
            parents: parents.iter().map(|p| c_string(p)).collect::<Option<_>>()?,
            directory: *directory,
            read_only: *read_only,
        },
        MountStep::Mask { path, directory } => MountImage::Mask {
            path: c_string(path)?,
            directory: *directory,
        },
        MountStep::Pin { path } => MountImage::Pin(c_string(path)?),
        MountStep::ReadOnly { path } => MountImage::ReadOnly(c_string(path)?),
    })
}

fn c_string(bytes: &[u8]) -> Option<CString> {
    CString::new(bytes).ok()
}
