//! The list of mounts for a policy: private directories, what must stay visible in them, covers for denied paths
//! below writable ones, and read-only names below writable ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::CompileContext;
use super::access::FileAccess;
use super::landlock::LandlockLayers;
use crate::keeper::plan::MountStep;
use crate::policy::{PathRule, Policy};

/// Directories that a process gets its own empty copy of.
const PRIVATE: [&str; 2] = ["/tmp", "/dev/shm"];
/// Where pseudo-terminals are.
pub(super) const TERMINALS: &str = "/dev/pts";
/// Their size is bounded: they live in memory.
const PRIVATE_DATA: &[u8] = b"mode=1777,size=25%";

/// What to mount, and which paths mounts hold.
#[derive(Debug, Default)]
pub(super) struct MountPlan {
    pub(super) steps: Vec<MountStep>,
    pub(super) held_by_mount: Vec<PathBuf>,
    /// Denied paths that are covered.
    pub(super) masked: Vec<PathBuf>,
}

/// The private directories of a policy. A directory that is itself named as writable is meant to be the
/// machine's own, so it stays.
pub(super) fn private_directories(policy: &Policy) -> Vec<PathBuf> {
    if !policy.files.private_tmp {
        return Vec::new();
    }
    PRIVATE
        .iter()
        // A directory may be a link: what lies below it is known by its real path.
        .filter_map(|directory| Path::new(directory).canonicalize().ok())
        .filter(|directory| directory.is_dir())
        .filter(|directory| {
            !policy
                .files
                .write
                .iter()
                .any(|rule| directory.starts_with(&rule.path))
        })
        .collect()
}

/// Whether the process gets pseudo-terminals of its own; not if a rule of the user's names one of the machine's.
pub(super) fn private_terminals(policy: &Policy) -> bool {
    let files = &policy.files;
    let named = files.read.iter().chain(&files.write).chain(&files.deny);
    Path::new(TERMINALS).is_dir() && !named.into_iter().any(|rule| rule.path.starts_with(TERMINALS))
}

pub(super) fn plan(policy: &Policy, private: &[PathBuf], layers: &LandlockLayers) -> MountPlan {
    let mut steps = Vec::new();
    let mut held_by_mount = Vec::new();
    if private_terminals(policy) {
        steps.push(MountStep::Terminals);
    }
    let kept = kept_trees(policy, private);
    for path in kept.keys() {
        steps.push(MountStep::Keep { path: bytes(path) });
    }
    for directory in private {
        steps.push(MountStep::Private {
            path: bytes(directory),
            data: PRIVATE_DATA.to_vec(),
        });
    }
    for (slot, (path, tree)) in kept.iter().enumerate() {
        if !tree.writable {
            held_by_mount.push(path.clone());
        }
        steps.push(MountStep::Restore {
            slot: slot as u32,
            path: bytes(path),
            parents: parents(path, &tree.private),
            directory: path.is_dir(),
            read_only: !tree.writable,
        });
    }
    let masks: BTreeMap<PathBuf, bool> = layers
        .masks
        .iter()
        .map(|mask| (mask.path.clone(), mask.directory))
        .chain(denied_in(&kept, policy, layers))
        .collect();
    for (path, directory) in &masks {
        held_by_mount.push(path.clone());
        steps.push(MountStep::Mask {
            path: bytes(path),
            directory: *directory,
        });
    }
    for path in &layers.pins {
        steps.push(MountStep::Pin { path: bytes(path) });
    }
    for path in &layers.read_only {
        steps.push(MountStep::ReadOnly { path: bytes(path) });
        held_by_mount.push(path.clone());
    }
    for rule in &policy.files.protect {
        // Only what is there when the process starts can be covered.
        let Ok(real) = rule.path.canonicalize() else {
            continue;
        };
        // A link planted to lead to the writable directory itself would take that away.
        let leads_above = |root: &Path| root.canonicalize().is_ok_and(|root| root.starts_with(&real));
        if policy.files.write.iter().any(|rule| leads_above(&rule.path)) {
            continue;
        }
        // A directory with a mount in it can still be renamed away; one that is a mount cannot.
        let is_root = |path: &Path| policy.files.write.iter().any(|root| root.path == path);
        let is_writable =
            |path: &Path| policy.files.write.iter().any(|root| path.starts_with(&root.path));
        for above in real.ancestors().skip(1) {
            if is_root(above) || !is_writable(above) {
                break;
            }
            let pin = MountStep::Pin { path: bytes(above) };
            if !steps.contains(&pin) {
                steps.push(pin);
            }
        }
        steps.push(MountStep::ReadOnly { path: bytes(&real) });
        held_by_mount.push(real);
    }
    // Pins first: a mount on a parent would hide the mounts below it.
    let order = |step: &MountStep| match step {
        MountStep::Pin { .. } => 1,
        MountStep::ReadOnly { .. } => 2,
        _ => 0,
    };
    steps.sort_by_key(order);
    MountPlan {
        steps,
        held_by_mount,
        masked: masks.into_keys().collect(),
    }
}

/// Denied paths in trees that are put back into a private directory: the rule for that directory reaches into them,
/// so they need covers.
fn denied_in(
    kept: &BTreeMap<PathBuf, Kept>,
    policy: &Policy,
    layers: &LandlockLayers,
) -> Vec<(PathBuf, bool)> {
    policy
        .files
        .deny
        .iter()
        .filter_map(|rule| rule.path.canonicalize().ok())
        .filter(|real| kept.keys().any(|tree| real.starts_with(tree)))
        .filter(|real| !layers.access.decide(real, FileAccess::Read).allowed)
        .map(|real| {
            let directory = real.is_dir();
            (real, directory)
        })
        .collect()
}

/// A tree that stays visible in a private directory.
struct Kept {
    private: PathBuf,
    writable: bool,
}

/// Makes the working directory, the home and the program readable where a private directory would cover them: the
/// command could not even begin without. What the user denies stays denied.
pub(super) fn keep_visible(policy: &mut Policy, context: &CompileContext, private: &[PathBuf]) {
    let named = [
        Some(context.cwd.as_path()),
        context.home.as_deref(),
        context.program.as_deref(),
    ];
    for path in named.into_iter().flatten() {
        let Ok(path) = path.canonicalize() else {
            continue;
        };
        let covered = private
            .iter()
            .any(|directory| path.starts_with(directory) && path != *directory);
        if covered && !is_denied(policy, &path) {
            let source = "visible in a private directory";
            policy.files.read.push(PathRule::preset(path, source));
        }
    }
}

/// Whether the user's own rules deny the path: one of his denials covers it, and no longer grant does.
fn is_denied(policy: &Policy, path: &Path) -> bool {
    let longest = |rules: &[PathRule]| {
        rules
            .iter()
            .filter(|rule| rule.explicit)
            .map(|rule| rule.path.canonicalize().unwrap_or_else(|_| rule.path.clone()))
            .filter(|real| path.starts_with(real))
            .map(|real| real.components().count())
            .max()
    };
    let granted = longest(&policy.files.read).max(longest(&policy.files.write));
    longest(&policy.files.deny).is_some_and(|denied| granted.is_none_or(|granted| granted <= denied))
}

/// What the policy names below a private directory, outermost first.
fn kept_trees(policy: &Policy, private: &[PathBuf]) -> BTreeMap<PathBuf, Kept> {
    let files = &policy.files;
    let mut kept = BTreeMap::new();
    for rule in files.read.iter().chain(&files.write) {
        let Ok(path) = rule.path.canonicalize() else {
            continue;
        };
        let Some(directory) = private.iter().find(|directory| path.starts_with(directory)) else {
            continue;
        };
        if path == *directory {
            continue;
        }
        let writable = files.write.iter().any(|rule| path.starts_with(&rule.path));
        kept.insert(
            path,
            Kept {
                private: directory.clone(),
                writable,
            },
        );
    }
    // A tree inside another of the same kind comes along with it.
    let all: Vec<(PathBuf, bool)> = kept.iter().map(|(p, k)| (p.clone(), k.writable)).collect();
    kept.retain(|path, tree| {
        let outer = all
            .iter()
            .filter(|(other, _)| path.starts_with(other) && path != other)
            .max_by_key(|(other, _)| other.as_os_str().len());
        outer.is_none_or(|(_, writable)| *writable != tree.writable)
    });
    kept
}

fn parents(path: &Path, private: &Path) -> Vec<Vec<u8>> {
    let mut parents: Vec<Vec<u8>> = path
        .ancestors()
        .skip(1)
        .take_while(|ancestor| *ancestor != private)
        .map(bytes)
        .collect();
    parents.reverse();
    parents
}

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_encoded_bytes().to_vec()
}
