//! What Landlock can hold by itself, and what needs a mount.
//!
//! Landlock rules only add up, so a hole below a granted directory is made by naming everything but the
//! hole. Where a process may create names that fails: a new name would belong to nobody. So a denied path
//! below a writable one is left to a mask (an empty mount over it), and Landlock is told of the writable
//! directory as a whole. The same goes for what is below a file system that is mounted for the process
//! itself, whose files the ruleset cannot know beforehand.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{LandlockError, Mask};
use crate::compile::access::{AccessMap, Entry, Kind, Origin, PROC, Question};
use crate::policy::{Degrade, PathRule, PolicyError, is_at_or_below};
use crate::report::{Degradation, UnsupportedError};
use crate::witness::Witness;

/// The division of labour between Landlock and mounts.
pub(super) struct Plan {
    /// What Landlock is told: the policy without the denials that mounts hold.
    pub(super) view: AccessMap,
    pub(super) masks: Vec<Mask>,
    pub(super) pins: Vec<PathBuf>,
    /// Below a writable path, denied, and granted again for reading by the user.
    pub(super) read_only: Vec<PathBuf>,
    pub(super) degraded: Vec<Degradation>,
    pub(super) witnesses: Vec<Witness>,
}

/// What the plan depends on, apart from the policy.
pub(super) struct Means<'a> {
    pub(super) landlock: bool,
    pub(super) mounts: bool,
    pub(super) private_dirs: &'a [PathBuf],
    pub(super) degrade: Degrade,
}

/// Divides the denials of `map` between Landlock and masks.
pub(super) fn plan(map: &AccessMap, means: &Means<'_>) -> Result<Plan, LandlockError> {
    // Read-only names below a writable path are the mounts' business alone.
    let proc = |entry: &Entry| entry.origin == Origin::BuiltIn && entry.path == Path::new(PROC);
    let map = &map.retain(|entry| entry.kind != Kind::Protect || proc(entry));
    let mut plan = Plan {
        view: map.clone(),
        masks: Vec::new(),
        pins: Vec::new(),
        read_only: Vec::new(),
        degraded: Vec::new(),
        witnesses: Vec::new(),
    };
    // By path, so that a directory comes before what is below it; an explicit rule speaks for its path.
    let mut denied: BTreeMap<&Path, &Entry> = BTreeMap::new();
    for entry in map.entries().iter().filter(|e| is_policy_denial(e)) {
        let first = denied.entry(&entry.path).or_insert(entry);
        if entry.origin == Origin::Explicit {
            *first = entry;
        }
    }
    let mut not_told: Vec<PathBuf> = Vec::new();
    let mut hidden: Vec<PathBuf> = Vec::new();
    for (path, entry) in denied {
        if hidden.iter().any(|above| is_at_or_below(path, above)) {
            not_told.push(path.to_owned());
            continue;
        }
        // A grant for the same path may overrule the denial, for reading or for both.
        let readable = map.allows(path, Question::Reading);
        if readable && map.allows(path, Question::Writing) {
            continue;
        }
        let Some(reason) = why_not_landlock(map, &not_told, path, means) else {
            continue;
        };
        plan.witnesses.push(Witness::identity(path));
        let found = std::fs::symlink_metadata(path).ok();
        // What is not there hides nothing, and where a link leads is denied by itself.
        let Some(found) = found.filter(|f| !f.file_type().is_symlink()) else {
            not_told.push(path.to_owned());
            hidden.push(path.to_owned());
            continue;
        };
        if !means.mounts {
            if means.degrade == Degrade::Required {
                return Err(needs_mounts(entry, &reason).into());
            }
            if !plan.hold_without_mounts(map, entry, &reason) {
                not_told.push(path.to_owned());
            }
            continue;
        }
        not_told.push(path.to_owned());
        if readable {
            plan.read_only.push(path.to_owned());
            continue;
        }
        hidden.push(path.to_owned());
        if let Some(grant) = grant_below(map, path) {
            plan.refuse_nested(grant, entry, means.degrade)?;
        }
        plan.pins.extend(ancestors_that_could_move(map, path));
        plan.masks.push(Mask {
            path: path.to_owned(),
            directory: found.is_dir(),
            source: entry.source.clone(),
        });
    }
    plan.pins.sort();
    plan.pins.dedup();
    let is_left_out = |e: &Entry| is_policy_denial(e) && not_told.contains(&e.path);
    plan.view = map.retain(|e| !is_left_out(e));
    Ok(plan)
}

/// Why Landlock alone cannot keep the path closed; nothing where it can.
enum Reason {
    /// Below this path, in which the process may create names.
    Writable(PathBuf),
    /// Below this path, on which the process gets a file system of its own.
    Mounted(PathBuf),
    /// There is no Landlock.
    Absent,
}

/// `not_told` are the denials, higher up among them, that Landlock will not know of.
fn why_not_landlock(
    map: &AccessMap,
    not_told: &[PathBuf],
    path: &Path,
    means: &Means<'_>,
) -> Option<Reason> {
    let parent = path.parent()?;
    let own = means.private_dirs.iter().map(PathBuf::as_path);
    if let Some(dir) = own
        .chain([Path::new(PROC)])
        .find(|dir| is_at_or_below(parent, dir))
    {
        return Some(Reason::Mounted(dir.to_owned()));
    }
    let is_told = |e: &Entry| !is_policy_denial(e) || !not_told.contains(&e.path);
    match map.winner_among(parent, Question::Writing, is_told) {
        Some(entry) if entry.kind == Kind::Write => Some(Reason::Writable(entry.path.clone())),
        _ if !means.landlock => Some(Reason::Absent),
        _ => None,
    }
}

fn needs_mounts(entry: &Entry, reason: &Reason) -> UnsupportedError {
    let why = match reason {
        Reason::Writable(root) => format!("it is below {}, which is writable", root.display()),
        Reason::Mounted(dir) => format!("it is below {}", dir.display()),
        Reason::Absent => "the kernel has no Landlock".to_owned(),
    };
    UnsupportedError {
        what: format!("hiding {} ({})", entry.path.display(), entry.source),
        why: format!("{why}, and no mount namespace can be had here"),
        hint: "use another working directory or narrower writable paths, or allow best effort"
            .to_owned(),
    }
}

impl Plan {
    /// Best effort without mounts. False: the path stays open.
    fn hold_without_mounts(&mut self, map: &AccessMap, entry: &Entry, reason: &Reason) -> bool {
        match reason {
            Reason::Writable(_) => {
                let chain = entry.path.ancestors().skip(1);
                for dir in chain.take_while(|dir| map.allows(dir, Question::Writing)) {
                    self.degrade(
                        format!("making and removing names directly in {}", dir.display()),
                        format!(
                            "{} below it is denied and there are no mounts",
                            entry.path.display()
                        ),
                    );
                }
                true
            }
            Reason::Mounted(_) | Reason::Absent => {
                let why = needs_mounts(entry, reason).why;
                self.degrade(format!("hiding {}", entry.path.display()), why);
                false
            }
        }
    }

    /// A mask hides everything below it, also what another rule grants there.
    fn refuse_nested(
        &mut self,
        grant: &Entry,
        hidden_by: &Entry,
        degrade: Degrade,
    ) -> Result<(), LandlockError> {
        let why = format!(
            "it is below {}, which is denied ({}) below a writable path and is hidden as a whole; make the \
             writable path narrower",
            hidden_by.path.display(),
            hidden_by.source
        );
        if degrade == Degrade::Required {
            let rule = PathRule::preset(&grant.path, &grant.source);
            return Err(PolicyError::path(&rule, why).into());
        }
        self.degrade(format!("access to {}", grant.path.display()), why);
        Ok(())
    }

    fn degrade(&mut self, what: String, why: String) {
        if !self.degraded.iter().any(|known| known.what == what) {
            self.degraded.push(Degradation { what, why });
        }
    }
}

fn is_policy_denial(entry: &Entry) -> bool {
    entry.kind == Kind::Deny && entry.origin != Origin::BuiltIn
}

fn grant_below<'a>(map: &'a AccessMap, path: &Path) -> Option<&'a Entry> {
    let below = |e: &&Entry| e.path != path && is_at_or_below(&e.path, path);
    map.entries()
        .iter()
        .filter(below)
        .find(|e| e.grants() && e.origin != Origin::BuiltIn)
}

/// Directories on the way to a mask whose names the process could change, and with them what the path of
/// the denied file means to the next process.
fn ancestors_that_could_move(map: &AccessMap, path: &Path) -> Vec<PathBuf> {
    let may_rename = |dir: &&Path| {
        dir.parent()
            .is_some_and(|parent| parent != Path::new("/") && map.allows(parent, Question::Writing))
    };
    path.ancestors()
        .skip(1)
        .take_while(may_rename)
        .map(Path::to_owned)
        .collect()
}
