//! Compiles a file policy into Landlock rulesets, built once and applied by every child.
//!
//! Two layers, because the rules within one only add up and a writable directory would otherwise give back
//! the reading of what is denied below it:
//!
//! ```text
//! reading   READ_FILE READ_DIR EXECUTE (REFER)    all that is readable, by naming the siblings along the
//!                                                 way to each denied path; names stay listable
//! writing   every other right of the kernel,      the writable paths and the harmless devices; TCP and
//!           TCP, scopes                           RESOLVE_UNIX are handled and granted to nobody
//! ```
//!
//! Three things are left to whoever mounts, and are returned: [`Mask`]s over denied paths below writable
//! ones, [`LandlockLayers::pins`] which keep those paths from being moved, and [`MountedGrant`]s. The kernel
//! looks for rules on a file's directories and skips a directory that is mounted over, so no rule on the
//! machine's own `/tmp` reaches a tmpfs mounted there: the child adds a rule for each such new root.

mod build;
mod plan;
mod resolve;
mod rights;
#[cfg(test)]
mod tests;
mod tree;

use std::fmt::Display;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;

use self::build::{Builder, RULES_MAX};
use self::plan::{Means, Plan, plan};
use self::rights::Rights;
use crate::compile::access::{AccessMap, PROC, Question};
use crate::policy::{Degrade, FilePolicy, PolicyError, is_at_or_below};
use crate::report::{Degradation, UnsupportedError};
use crate::witness::{MountTable, Witness};

/// `LANDLOCK_RESTRICT_SELF_LOG_SAME_EXEC_OFF`: what our own child does before exec is no denial.
const LOG_SAME_EXEC_OFF: u32 = 1;
/// `LANDLOCK_RESTRICT_SELF_LOG_NEW_EXEC_ON`: what the command does is.
const LOG_NEW_EXEC_ON: u32 = 2;

/// Each spawn with mounts of its own leaves rules behind in the rulesets, which makes applying them slower
/// (0.7 µs for each such spawn, measured with two private directories). Building anew takes about 2 ms: the
/// sum is smallest near this number.
const MOUNTED_SPAWNS_MAX: u32 = 64;

/// What to compile, and for what kernel.
#[derive(Debug, Clone, Copy)]
pub struct LandlockRequest<'a> {
    /// The policy.
    pub files: &'a FilePolicy,
    /// The kernel's Landlock version; 0 where there is none.
    pub abi: u32,
    /// A mount namespace is to be had.
    pub mounts: bool,
    /// Directories over which the process gets a tmpfs of its own. Needs `mounts`.
    pub private_dirs: &'a [PathBuf],
    /// Refuse all TCP, whatever a filter lets through.
    pub deny_tcp: bool,
    /// Set the flags that make the kernel log what it refuses.
    pub audit: bool,
    /// What to do where something cannot be held.
    pub degrade: Degrade,
}

/// The compiled policy. Apply every ruleset, in order, with `landlock_restrict_self`.
#[derive(Debug)]
pub struct LandlockLayers {
    /// Ruleset descriptors, close-on-exec: writing, reading. Empty where the kernel has no Landlock.
    pub rulesets: Vec<OwnedFd>,
    /// Flags for `landlock_restrict_self`.
    pub restrict_flags: u32,
    /// The version used: the kernel's, or the newest that this build knows.
    pub abi: u32,
    /// What these rulesets hold: `files`, `truncate`, `ioctl_dev`, `tcp`, `abstract_sockets`, `signals`,
    /// `unix_sockets`.
    pub held: Vec<String>,
    /// Denied paths that only a mount can hide.
    pub masks: Vec<Mask>,
    /// Directories above the masks to bind on themselves: a mount point cannot be renamed, and renaming one
    /// of these would give the secret another path, where the next spawn would not look for it.
    pub pins: Vec<PathBuf>,
    /// Paths that are readable only, below a directory that is writable or private: bind them there read-only,
    /// because that directory's rule reaches into what is mounted below it. (`protect` is not repeated here.)
    pub read_only: Vec<PathBuf>,
    /// Rules to add in the child for file systems that are mounted for it alone.
    pub mounted: Vec<MountedGrant>,
    /// The bits to allow, for each ruleset, where the child mounts pseudo-terminals of its own.
    pub terminals: Vec<u64>,
    /// What does not hold (best effort only).
    pub degraded: Vec<Degradation>,
    /// The policy with its links followed, as it was compiled: judge denials by it.
    pub access: AccessMap,
    witnesses: Vec<Witness>,
    mount_table: MountTable,
    spawns: AtomicU32,
}

/// A denied path below a writable one. Mount something empty and *read-only* over it: the writable rule
/// above reaches into the mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// What to hide; without links, and there when it was compiled.
    pub path: PathBuf,
    /// A directory, else a file.
    pub directory: bool,
    /// The words of the denying rule.
    pub source: String,
}

/// Rights to add to the rulesets for the root of a file system that the child mounts at `path`, with
/// `landlock_add_rule` on the rulesets' descriptors, after mounting and before restricting itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedGrant {
    /// Where it is mounted.
    pub path: PathBuf,
    /// For each ruleset the bits to allow; 0: no rule there.
    pub access: Vec<u64>,
}

/// Why a policy could not be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LandlockError {
    /// The machine lacks what the policy requires.
    #[error(transparent)]
    Unsupported(#[from] UnsupportedError),
    /// The policy contradicts itself.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Something that the user granted cannot be opened.
    #[error("cannot open {} ({source_words}): {reason}; create it or drop the rule", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// The rule that names it.
        source_words: String,
        /// Why not.
        reason: String,
    },
    /// There are no descriptors or no memory left to look at the policy's paths. What cannot be looked at is not taken for
    /// missing.
    #[error("cannot look at {}: {reason}; let other work end, or allow more open files (RLIMIT_NOFILE)", path.display())]
    Exhausted {
        /// The path.
        path: PathBuf,
        /// What is exhausted.
        reason: String,
    },
    /// Hiding something in a directory takes naming everything else in it.
    #[error(
        "{} has too many entries: hiding paths below it takes more than {rules_max} Landlock rules; deny a \
         directory further up instead", directory.display()
    )]
    TooManyRules {
        /// The directory in which the limit was reached.
        directory: PathBuf,
        /// The limit.
        rules_max: usize,
    },
    /// The kernel refused.
    #[error("Landlock: {step} failed: {reason}")]
    Kernel {
        /// What was being done.
        step: &'static str,
        /// The error.
        reason: String,
    },
}

impl LandlockError {
    fn open(path: &Path, source_words: &str, errno: Errno) -> Self {
        Self::Open {
            path: path.to_owned(),
            source_words: source_words.to_owned(),
            reason: errno.desc().to_owned(),
        }
    }

    /// Ok where the error tells something of the path, and not of us.
    fn unless_exhausted(path: &Path, errno: Errno) -> Result<(), Self> {
        match errno {
            Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM => Err(Self::Exhausted {
                path: path.to_owned(),
                reason: errno.desc().to_owned(),
            }),
            _ => Ok(()),
        }
    }

    fn kernel(step: &'static str, error: &impl Display) -> Self {
        Self::Kernel {
            step,
            reason: error.to_string(),
        }
    }
}

/// Compiles the policy's file rules.
///
/// # Errors
/// What the policy requires and neither this kernel nor a mount can hold, a grant of the user's that is not
/// there, or a directory too large to name its entries.
pub fn compile_landlock(request: &LandlockRequest<'_>) -> Result<LandlockLayers, LandlockError> {
    let mut degraded = Vec::new();
    let has_landlock = require(request, 1, "5.13", "file rules", &mut degraded)?;
    if has_landlock {
        require(
            request,
            3,
            "6.2",
            "keeping read-only files from being truncated",
            &mut degraded,
        )?;
    }
    let mount_table = MountTable::now().map_err(|errno| LandlockError::Exhausted {
        path: "/proc/self/mountinfo".into(),
        reason: errno.desc().to_owned(),
    })?;
    let (files, links) = resolve::resolve_policy(request.files);
    let private_dirs = private_dirs(request, &mut degraded)?;
    let access = AccessMap::new(&files, &private_dirs);
    let means = Means {
        landlock: has_landlock,
        mounts: request.mounts,
        private_dirs: &private_dirs,
        degrade: request.degrade,
    };
    let plan = plan(&access, &means)?;
    let mut read_only = read_only_below(&access, &private_dirs);
    read_only.extend(plan.read_only.iter().cloned());
    read_only.sort();
    read_only.dedup();
    let mut layers = LandlockLayers {
        rulesets: Vec::new(),
        restrict_flags: 0,
        abi: 0,
        held: Vec::new(),
        masks: Vec::new(),
        pins: Vec::new(),
        read_only,
        mounted: Vec::new(),
        terminals: Vec::new(),
        degraded,
        access,
        witnesses: links.into_iter().map(Witness::identity).collect(),
        mount_table,
        spawns: AtomicU32::new(0),
    };
    if has_landlock {
        layers.add_rulesets(request, &plan, &private_dirs)?;
    }
    layers.masks = plan.masks;
    layers.pins = plan.pins;
    layers.degraded.extend(plan.degraded);
    layers.witnesses.extend(plan.witnesses);
    // Mounts protect what is there: what comes later needs another list of mounts.
    let protected = files.protect.iter();
    layers
        .witnesses
        .extend(protected.map(|rule| Witness::identity(&rule.path)));
    layers.witnesses = Witness::needed(layers.witnesses);
    Ok(layers)
}

impl LandlockLayers {
    /// Whether another child may be restricted with these rulesets: what they were compiled from is still
    /// so. Call it once before each spawn. It costs a `statx` for each directory that was enumerated and for each
    /// path of the policy that is not in one.
    ///
    /// It also turns false after a number of calls where the child adds [`MountedGrant`]s, because those
    /// rules stay in the shared rulesets when the mounts are long gone.
    pub fn is_current(&self) -> bool {
        let fresh = self.mounted.is_empty()
            || self.rulesets.is_empty()
            || self.spawns.fetch_add(1, Ordering::Relaxed) < MOUNTED_SPAWNS_MAX;
        fresh && self.mount_table.holds() && self.witnesses.iter().all(Witness::holds)
    }

    fn add_rulesets(
        &mut self,
        request: &LandlockRequest<'_>,
        plan: &Plan,
        private_dirs: &[PathBuf],
    ) -> Result<(), LandlockError> {
        let rights = Rights {
            lists_executables: !self.access.executable().is_empty(),
            ..Rights::of(request.abi)
        };
        let mut builder = Builder::new(rights, request.deny_tcp, RULES_MAX)?;
        builder.add_tree(&tree::tree(&plan.view, private_dirs))?;
        for path in self.access.executable() {
            builder.add_executable(path)?;
        }
        self.witnesses.append(&mut builder.witnesses);
        self.rulesets = builder.finish();
        self.abi = rights.abi;
        self.held = rights.held(request.deny_tcp);
        if request.audit && rights.abi >= 7 {
            self.restrict_flags = LOG_SAME_EXEC_OFF | LOG_NEW_EXEC_ON;
        }
        self.terminals = vec![rights.write_device().bits(), rights.read_proc().bits()];
        if request.mounts {
            self.mounted = mounted(&self.access, private_dirs, rights);
        }
        Ok(())
    }
}

/// The directories that become the process's own, with their links followed.
fn private_dirs(
    request: &LandlockRequest<'_>,
    degraded: &mut Vec<Degradation>,
) -> Result<Vec<PathBuf>, LandlockError> {
    if request.mounts || request.private_dirs.is_empty() {
        let dirs = request.private_dirs.iter();
        return Ok(dirs.map(|dir| resolve::resolve(dir).path).collect());
    }
    let (what, why) = ("a private /tmp", "no mount namespace can be had here");
    if request.degrade == Degrade::Required {
        return Err(unsupported(what, why, "do without it, or allow best effort").into());
    }
    degraded.push(degradation(what, why));
    Ok(Vec::new())
}

/// Whether the kernel's Landlock is at least `abi`; if not, an error or an entry in `degraded`.
fn require(
    request: &LandlockRequest<'_>,
    abi: u32,
    release: &str,
    what: &str,
    degraded: &mut Vec<Degradation>,
) -> Result<bool, LandlockError> {
    if request.abi >= abi {
        return Ok(true);
    }
    let why = match request.abi {
        0 => "the kernel has no Landlock, or it is not switched on".to_owned(),
        found => format!("the kernel's Landlock is version {found}, and this needs {abi}"),
    };
    if request.degrade == Degrade::Required {
        let hint = format!("use Linux {release} or newer with `landlock` in lsm=, or allow best effort");
        return Err(unsupported(what, why, hint).into());
    }
    degraded.push(degradation(what, why));
    Ok(false)
}

fn mounted(access: &AccessMap, private_dirs: &[PathBuf], rights: Rights) -> Vec<MountedGrant> {
    let tree = [
        rights.write_tree().bits(),
        (rights.read_tree() | rights.refer()).bits(),
    ];
    let mut grants: Vec<MountedGrant> = private_dirs
        .iter()
        .filter(|dir| access.allows(dir, Question::Writing))
        .map(|dir| MountedGrant {
            path: dir.clone(),
            access: match access.may_execute(dir) {
                true => vec![tree[0], tree[1] | rights.execute().bits()],
                false => tree.to_vec(),
            },
        })
        .collect();
    if access.allows(Path::new(PROC), Question::Reading) {
        grants.push(MountedGrant {
            path: PROC.into(),
            access: vec![0, rights.read_proc().bits()],
        });
    }
    grants
}

/// What is brought into a private directory from outside for reading only.
fn read_only_below(access: &AccessMap, private_dirs: &[PathBuf]) -> Vec<PathBuf> {
    let below = |path: &Path| {
        private_dirs
            .iter()
            .any(|dir| path != dir && is_at_or_below(path, dir))
    };
    access
        .entries()
        .iter()
        .map(|entry| &entry.path)
        .filter(|path| below(path))
        .filter(|path| access.allows(path, Question::Reading) && !access.allows(path, Question::Writing))
        .cloned()
        .collect()
}

fn unsupported(what: &str, why: impl Into<String>, hint: impl Into<String>) -> UnsupportedError {
    UnsupportedError {
        what: what.to_owned(),
        why: why.into(),
        hint: hint.into(),
    }
}

fn degradation(what: &str, why: impl Into<String>) -> Degradation {
    Degradation {
        what: what.to_owned(),
        why: why.into(),
    }
}
