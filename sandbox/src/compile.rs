//! Policy and kernel in, prepared sandbox out. Runs before any fork; allocates whatever it likes.

pub mod access;
pub mod landlock;
pub mod seccomp;

mod limits;
mod mounts;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use uuid::Uuid;

use self::access::AccessMap;
use self::landlock::{LandlockError, LandlockLayers, LandlockRequest, compile_landlock};
use self::mounts::MountPlan;
use self::seccomp::{FilterError, FilterPlan, OpenObservation, compile_filter};
use crate::keeper::plan::{Instruction, MountedRule, SandboxPlan};
use crate::kernel::KernelSupport;
use crate::policy::{Degrade, NetMode, PathRule, Policy, PolicyError};
use crate::report::{Containment, Degradation, FileObservation, SandboxReport, UnsupportedError};
use crate::syscalls;

/// What a policy is compiled for, besides the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CompileContext {
    /// The command's working directory.
    pub cwd: PathBuf,
    /// The user's home: stays visible where a private directory would cover it.
    pub home: Option<PathBuf>,
    /// The program's file, if it is a path: stays visible too.
    pub program: Option<PathBuf>,
    /// Watch every open, also for reading, where the audit feed cannot be had.
    pub observe_reads: bool,
}

/// A policy compiled for this kernel: everything that a spawn needs, allocated.
#[derive(Debug)]
pub struct PreparedSandbox {
    /// The policy it was made from.
    pub policy: Policy,
    /// What the spawner is to do.
    pub plan: Arc<SandboxPlan>,
    /// What will hold.
    pub report: Arc<SandboxReport>,
    /// How file accesses that the listener is told of are judged.
    pub access: AccessMap,
    /// Which opens the listener is told of.
    pub opens: OpenObservation,
    /// Paths that a mount protects, whose refusals the audit feed does not show.
    pub held_by_mount: Vec<PathBuf>,
    /// Denied paths that an empty mount covers.
    pub masked: Vec<PathBuf>,
    /// Classes of refusals that nobody learns of here.
    pub unobserved: Vec<String>,
    /// TCP is denied by Landlock below the listener.
    pub tcp_confined_by_landlock: bool,
    layers: Option<LandlockLayers>,
    /// Stands in for a private `/tmp` where nothing can be mounted.
    temp: Option<PathBuf>,
    temp_owner: Option<TempDir>,
}

/// A policy could not be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The policy itself is wrong.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// This machine cannot hold it.
    #[error(transparent)]
    Unsupported(#[from] UnsupportedError),
    /// The Landlock rulesets could not be made.
    #[error(transparent)]
    Landlock(#[from] LandlockError),
    /// The filter could not be made.
    #[error(transparent)]
    Filter(#[from] FilterError),
}

/// Compiles a policy for this kernel.
///
/// # Errors
/// The policy is wrong, or the kernel lacks what it requires.
pub fn compile(
    policy: &Policy,
    kernel: &KernelSupport,
    context: &CompileContext,
) -> Result<PreparedSandbox, CompileError> {
    policy.validate()?;
    let mut degraded = Vec::new();
    let limits = limits::plan(policy, kernel, &mut degraded)?;
    if !policy.confined {
        return Ok(unconfined(policy, kernel, limits, degraded));
    }
    let best_effort = policy.degrade == Degrade::BestEffort;
    let containment = containment(kernel);
    let mounts = containment == Containment::PidNamespace;
    let mut policy = policy.clone();
    let mut temp = None;
    require_listener(kernel, best_effort, &mut degraded)?;
    if policy.net.mode == NetMode::Isolated && !kernel.net_namespace.is_yes() {
        lacking(
            best_effort,
            &mut degraded,
            "net = isolated",
            kernel.net_namespace.why(),
            "use --net off, or allow user namespaces",
        )?;
        policy.net.mode = NetMode::Off;
    }
    if !mounts && policy.files.private_tmp {
        policy.files.private_tmp = false;
        let directory = temp_directory()?;
        let source = "private temporary directory";
        policy
            .files
            .write
            .push(PathRule::preset(directory.path(), source));
        temp = Some(directory);
        degraded.push(Degradation {
            what: "private /tmp and /dev/shm: there is a directory of its own in TMPDIR instead"
                .to_owned(),
            why: format!("no mount namespace ({})", kernel.pid_namespace.why()),
        });
    }
    if !mounts && !policy.files.protect.is_empty() {
        let why = format!("no mount namespace ({})", kernel.pid_namespace.why());
        // What a preset protects is a precaution; what the user names is asked for.
        if let Some(rule) = policy.files.protect.iter().find(|rule| rule.explicit) {
            lacking(
                best_effort,
                &mut degraded,
                &format!("read-only {} ({})", rule.path.display(), rule.source),
                &why,
                "allow user namespaces, or leave what is to be protected out of the writable directories",
            )?;
        }
        degraded.push(Degradation {
            what: "read-only .git/hooks and .git/config".to_owned(),
            why,
        });
    } else if let Some(why) = policy.files.unsearched.take() {
        degraded.push(Degradation {
            what: "read-only .git/hooks and .git/config of repositories below the working directory"
                .to_owned(),
            why,
        });
    }
    let private_dirs = mounts::private_directories(&policy);
    mounts::keep_visible(&mut policy, context, &private_dirs);
    let audit = kernel.audit.is_yes() && kernel.landlock_abi >= 7;
    let layers = compile_landlock(&LandlockRequest {
        files: &policy.files,
        abi: kernel.landlock_abi,
        mounts,
        private_dirs: &private_dirs,
        deny_tcp: policy.net.mode == NetMode::Off,
        audit,
        degrade: policy.degrade,
    })?;
    degraded.extend(layers.degraded.iter().cloned());
    let MountPlan {
        steps,
        held_by_mount,
        masked,
    } = if mounts {
        mounts::plan(&policy, &private_dirs, &layers)
    } else {
        MountPlan::default()
    };
    let opens = observation(audit, context, &masked, &held_by_mount).max(asked(&policy));
    let filter = compile_filter(&FilterPlan {
        net: policy.net.mode,
        opens,
        pid_namespace: mounts,
        refused: refused_syscalls(&policy).into_keys().collect(),
    })?;
    let user_namespace = mounts && kernel.needs_user_namespace;
    let net_namespace = policy.net.mode == NetMode::Isolated;
    let private_proc = mounts && kernel.private_proc.is_yes();
    if mounts && !private_proc {
        degraded.push(Degradation {
            what: "private /proc".to_owned(),
            why: kernel.private_proc.why().to_owned(),
        });
    }
    let mut cgroups = limits.cgroups;
    if containment == Containment::Cgroup && !cgroups.iter().any(|group| group.unified) {
        cgroups.extend(containment_group(kernel));
    }
    let tcp_confined_by_landlock = layers.held.iter().any(|held| held == "tcp");
    let report = Arc::new(SandboxReport {
        policy: policy.name.clone(),
        confined: true,
        containment,
        landlock_abi: (layers.abi > 0).then_some(layers.abi),
        landlock: layers.held.clone(),
        seccomp: kernel.seccomp_listener.is_yes(),
        namespaces: namespaces(user_namespace, mounts, net_namespace),
        private_proc,
        private_tmp: !private_dirs.is_empty(),
        net: policy.net.mode.as_str().to_owned(),
        limits: limits.described,
        file_denials: match (audit, context.observe_reads) {
            (true, _) => FileObservation::Audit,
            (false, true) => FileObservation::InferredAll,
            (false, false) => FileObservation::InferredWrites,
        },
        degraded,
    });
    let plan = Arc::new(SandboxPlan {
        sandbox: Uuid::now_v7(),
        containment,
        user_namespace,
        net_namespace,
        mounts: steps,
        private_proc,
        mounted: mounted(
            &layers,
            private_proc,
            mounts && mounts::private_terminals(&policy),
        ),
        drop_capabilities: true,
        no_new_privs: true,
        landlock_flags: layers.restrict_flags,
        filter: if kernel.seccomp_listener.is_yes() {
            filter.into_iter().map(Instruction::from).collect()
        } else {
            Vec::new()
        },
        rlimits: limits.rlimits,
        cgroups,
    });
    Ok(PreparedSandbox {
        access: layers.access.clone(),
        unobserved: unobserved(audit, context, kernel),
        policy,
        plan,
        report,
        opens,
        held_by_mount,
        masked,
        tcp_confined_by_landlock,
        layers: Some(layers),
        temp: temp.as_ref().map(|directory| directory.path().to_owned()),
        temp_owner: temp,
    })
}

impl PreparedSandbox {
    /// The Landlock rulesets, in the order in which they are to be applied.
    pub fn rulesets(&self) -> Vec<BorrowedFd<'_>> {
        self.layers
            .iter()
            .flat_map(|layers| layers.rulesets.iter().map(AsFd::as_fd))
            .collect()
    }

    /// A directory for temporary files, where the process has no `/tmp` of its own. Processes of one prepared
    /// sandbox share it.
    pub fn temp_directory(&self) -> Option<&Path> {
        self.temp.as_deref()
    }

    /// Whoever takes this removes that directory by dropping it, after the last process.
    pub fn take_temp_directory(&mut self) -> Option<TempDir> {
        self.temp_owner.take()
    }

    /// Whether the file system still looks as it did where the rules depend on it. A sandbox that is not
    /// current fails closed (new names beside a denied path cannot be read); compile again.
    pub fn is_current(&self) -> bool {
        self.layers.as_ref().is_none_or(LandlockLayers::is_current)
    }

    /// Refusals of file access come through the audit feed.
    pub fn uses_audit(&self) -> bool {
        self.report.file_denials == FileObservation::Audit
    }
}

/// The calls that the policy refuses by name, with its words.
pub fn refused_syscalls(policy: &Policy) -> BTreeMap<u32, String> {
    let rules = policy.refuse_syscalls.iter();
    rules
        .filter_map(|rule| Some((syscalls::number(&rule.name)?, rule.source.clone())))
        .collect()
}

fn unconfined(
    policy: &Policy,
    kernel: &KernelSupport,
    limits: limits::LimitPlan,
    degraded: Vec<Degradation>,
) -> PreparedSandbox {
    let group = containment_group(kernel);
    let containment = if group.is_some() {
        Containment::Cgroup
    } else {
        Containment::Subreaper
    };
    let mut plan = SandboxPlan::unconfined(containment);
    plan.rlimits = limits.rlimits;
    plan.cgroups = limits.cgroups;
    if !plan.cgroups.iter().any(|group| group.unified) {
        plan.cgroups.extend(group);
    }
    PreparedSandbox {
        policy: policy.clone(),
        plan: Arc::new(plan),
        report: Arc::new(SandboxReport {
            policy: policy.name.clone(),
            confined: false,
            containment,
            landlock_abi: None,
            landlock: Vec::new(),
            seccomp: false,
            namespaces: Vec::new(),
            private_proc: false,
            private_tmp: false,
            net: NetMode::Open.as_str().to_owned(),
            limits: limits.described,
            file_denials: FileObservation::None,
            degraded,
        }),
        access: AccessMap::new(&policy.files, &[]),
        opens: OpenObservation::None,
        held_by_mount: Vec::new(),
        masked: Vec::new(),
        unobserved: Vec::new(),
        tcp_confined_by_landlock: false,
        layers: None,
        temp: None,
        temp_owner: None,
    }
}

fn temp_directory() -> Result<TempDir, UnsupportedError> {
    let made = tempfile::Builder::new().prefix("provost-").tempdir_in("/tmp");
    made.map_err(|error| UnsupportedError {
        what: "a private temporary directory".to_owned(),
        why: format!("nothing can be mounted, and none can be made in /tmp: {error}"),
        hint: "make /tmp writable".to_owned(),
    })
}

fn containment(kernel: &KernelSupport) -> Containment {
    if kernel.pid_namespace.is_yes() {
        Containment::PidNamespace
    } else if kernel.cgroup2.is_some() {
        Containment::Cgroup
    } else {
        Containment::Subreaper
    }
}

fn containment_group(kernel: &KernelSupport) -> Option<crate::keeper::plan::CgroupPlan> {
    kernel
        .cgroup2
        .as_ref()
        .map(|parent| crate::keeper::plan::CgroupPlan {
            parent: parent.clone(),
            unified: true,
            files: Vec::new(),
        })
}

/// Notes what is lacking under best effort; else it is an error.
fn lacking(
    best_effort: bool,
    degraded: &mut Vec<Degradation>,
    what: &str,
    why: &str,
    hint: &str,
) -> Result<(), UnsupportedError> {
    if best_effort {
        degraded.push(Degradation {
            what: what.to_owned(),
            why: why.to_owned(),
        });
        return Ok(());
    }
    Err(UnsupportedError {
        what: what.to_owned(),
        why: why.to_owned(),
        hint: format!("{hint}, or allow less with --best-effort"),
    })
}

fn require_listener(
    kernel: &KernelSupport,
    best_effort: bool,
    degraded: &mut Vec<Degradation>,
) -> Result<(), UnsupportedError> {
    if kernel.seccomp_listener.is_yes() {
        return Ok(());
    }
    lacking(
        best_effort,
        degraded,
        "seccomp with a listener (network and dangerous system calls)",
        kernel.seccomp_listener.why(),
        "run outside of another seccomp sandbox that has a listener",
    )
}

fn observation(
    audit: bool,
    context: &CompileContext,
    masked: &[PathBuf],
    held_by_mount: &[PathBuf],
) -> OpenObservation {
    if audit {
        // Mounts refuse before Landlock is asked, so what they hold is watched here.
        if !masked.is_empty() {
            OpenObservation::All
        } else if held_by_mount.is_empty() {
            OpenObservation::None
        } else {
            OpenObservation::Writes
        }
    } else if context.observe_reads {
        OpenObservation::All
    } else {
        OpenObservation::Writes
    }
}

/// Which opens must be seen before they are refused.
fn asked(policy: &Policy) -> OpenObservation {
    let reads_everything = policy.files.read.iter().any(|rule| rule.path == Path::new("/"));
    match (policy.ask.files, reads_everything) {
        (false, _) => OpenObservation::None,
        (true, true) => OpenObservation::Writes,
        (true, false) => OpenObservation::All,
    }
}

fn unobserved(audit: bool, context: &CompileContext, kernel: &KernelSupport) -> Vec<String> {
    let mut classes = Vec::new();
    if !kernel.seccomp_listener.is_yes() {
        classes.push("network".to_owned());
        classes.push("system calls".to_owned());
    }
    if !audit {
        if !context.observe_reads {
            classes.push("file reads".to_owned());
        }
        classes.push("file execution".to_owned());
    }
    classes
}

/// The rights for what the init will have mounted; `/proc` only where it is.
fn mounted(layers: &LandlockLayers, private_proc: bool, terminals: bool) -> Vec<MountedRule> {
    let grants = layers
        .mounted
        .iter()
        .filter(|grant| private_proc || grant.path != Path::new("/proc"))
        .map(|grant| (grant.path.as_path(), &grant.access));
    let terminals = (terminals && !layers.terminals.is_empty())
        .then(|| (Path::new(mounts::TERMINALS), &layers.terminals));
    grants
        .chain(terminals)
        .map(|(path, access)| MountedRule {
            path: path.as_os_str().as_encoded_bytes().to_vec(),
            access: access.clone(),
        })
        .collect()
}

fn namespaces(user: bool, mounts: bool, net: bool) -> Vec<String> {
    let mut names = Vec::new();
    let mut add = |held: bool, name: &str| {
        if held {
            names.push(name.to_owned());
        }
    };
    add(user, "user");
    add(mounts, "pid");
    add(mounts, "mount");
    add(mounts, "ipc");
    add(net, "net");
    names
}
