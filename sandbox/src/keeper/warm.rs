//! Sandboxes made ahead.
//!
//! Who runs one command in a sandbox often runs another in the same one. Once a sandbox has been used twice, the spawner
//! makes the next one while it has nothing else to do: init, namespaces, mounts, and a child that has entered the
//! Landlock domain, has installed its filter and waits to be told what to execute. Starting a command in it then costs
//! little more than its exec.
//!
//! What is made ahead must be what would be made now. Its mounts and its working directory were looked up earlier, so
//! it is used only while every path of them names what it named before they were looked up, and thrown away otherwise.
//! What is not used for a while is thrown away too.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::plan::{MountStep, SandboxPlan};
use super::wire::{SpawnRequest, Stdin};
use crate::extras::Extras;
use crate::witness::Witness;

/// Room for arguments and environment in a sandbox made ahead; what needs more starts afresh.
pub(super) const PROGRAM_BYTES: usize = 256 * 1024;
/// Sandboxes that are remembered, with one tree made ahead each.
const REMEMBERED_MAX: usize = 4;
/// Uses of a sandbox before one is made ahead.
const USES_MIN: u32 = 2;
/// Quiet before one is made: it must not be in the way of what runs.
const QUIET: Duration = Duration::from_millis(2);
/// Unused for so long, it goes.
const KEPT: Duration = Duration::from_secs(10);

/// The sandboxes in use, and what is made ahead for them.
#[derive(Default)]
pub(super) struct Warm {
    entries: Vec<Entry>,
}

struct Entry {
    plan: Arc<SandboxPlan>,
    cwd: Vec<u8>,
    stdin: Stdin,
    extras: Extras,
    /// Copies of all of them, once there are any: without one of them the sandbox would be weaker.
    rulesets: Option<Vec<OwnedFd>>,
    uses: u32,
    used: Instant,
    made: Option<Made>,
}

/// A tree that waits for an order.
struct Made {
    tree: Uuid,
    /// Taken before it was made.
    witnesses: Vec<Witness>,
}

/// A tree made ahead for a request.
pub(super) enum Found {
    /// It is as it would be made now.
    Fit(Uuid),
    /// Something has changed since.
    Stale(Uuid),
}

impl Warm {
    /// Takes the tree that was made for such a request.
    pub(super) fn take(&mut self, request: &SpawnRequest) -> Option<Found> {
        let entry = self.entries.iter_mut().find(|entry| entry.is_for(request))?;
        let made = entry.made.take()?;
        Some(if made.witnesses.iter().all(Witness::holds) {
            Found::Fit(made.tree)
        } else {
            Found::Stale(made.tree)
        })
    }

    /// A tree that was made is gone.
    pub(super) fn forget(&mut self, tree: Uuid) {
        // Whatever ended it would end the next one: not before it was used twice again.
        self.entries
            .retain(|entry| entry.made.as_ref().is_none_or(|made| made.tree != tree));
    }

    /// A command is started by this request. Returns a tree that there is no room for any more.
    pub(super) fn used(&mut self, request: &SpawnRequest, fds: &[OwnedFd]) -> Option<Uuid> {
        let alone = matches!(request.stdin, Stdin::Given | Stdin::Terminal(_));
        if alone || !request.plan.cgroups.is_empty() {
            return None; // made for one process alone
        }
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.is_for(request)) {
            entry.uses = entry.uses.saturating_add(1);
            entry.used = Instant::now();
            if entry.uses == USES_MIN {
                // Where there is no room for them nothing is made ahead.
                let rulesets = fds.get(..request.rulesets as usize);
                entry.rulesets = rulesets.and_then(copies);
            }
            return None;
        }
        let oldest = if self.entries.len() < REMEMBERED_MAX {
            None
        } else {
            let oldest = self
                .entries
                .iter()
                .enumerate()
                .min_by_key(|(_, entry)| entry.used);
            oldest.map(|(index, _)| index)
        };
        let dropped = oldest.and_then(|index| self.entries.swap_remove(index).made);
        self.entries.push(Entry {
            plan: request.plan.clone(),
            cwd: request.cwd.clone(),
            stdin: request.stdin,
            extras: request.extras,
            rulesets: None,
            uses: 1,
            used: Instant::now(),
            made: None,
        });
        dropped.map(|made| made.tree)
    }

    /// How long to wait for something else to do before [`Self::next`] or [`Self::expired`] has work.
    pub(super) fn patience(&self) -> Option<Duration> {
        if self.entries.iter().any(Entry::wants) {
            return Some(QUIET);
        }
        let used = self.entries.iter().map(|entry| entry.used).min()?;
        Some(KEPT.saturating_sub(used.elapsed()) + QUIET)
    }

    /// What to make ahead next: the request for it, with its rulesets. Whether it was made is to be told with
    /// [`Self::made`].
    pub(super) fn next(&mut self) -> Option<(SpawnRequest, Vec<OwnedFd>)> {
        let entry = self.entries.iter_mut().find(|entry| entry.wants())?;
        let Some(rulesets) = entry.rulesets.as_deref().and_then(copies) else {
            entry.rulesets = None; // no room
            return None;
        };
        let tree = Uuid::now_v7();
        entry.made = Some(Made {
            tree,
            witnesses: paths(&entry.plan, &entry.cwd).map(Witness::identity).collect(),
        });
        let request = SpawnRequest {
            process: tree,
            plan: entry.plan.clone(),
            rulesets: rulesets.len() as u32,
            candidates: Vec::new(),
            argv: Vec::new(),
            env: Vec::new(),
            cwd: entry.cwd.clone(),
            stdin: entry.stdin,
            extras: entry.extras,
        };
        Some((request, rulesets))
    }

    /// Forgets what was not used for long; returns the trees to end.
    pub(super) fn expired(&mut self) -> Vec<Uuid> {
        let old = |entry: &mut Entry| entry.used.elapsed() >= KEPT;
        let old = self.entries.extract_if(.., old);
        old.filter_map(|entry| entry.made.map(|made| made.tree)).collect()
    }

    /// Forgets everything; returns the trees to end.
    pub(super) fn clear(&mut self) -> Vec<Uuid> {
        let all = std::mem::take(&mut self.entries).into_iter();
        all.filter_map(|entry| entry.made.map(|made| made.tree)).collect()
    }
}

impl Entry {
    fn is_for(&self, request: &SpawnRequest) -> bool {
        self.plan.sandbox == request.plan.sandbox
            && self.stdin == request.stdin
            && self.extras == request.extras
            && self.cwd == request.cwd
            && self.plan == request.plan
    }

    fn wants(&self) -> bool {
        self.rulesets.is_some() && self.made.is_none() && self.used.elapsed() < KEPT
    }
}

/// Copies of all of them, or nothing.
fn copies(fds: &[OwnedFd]) -> Option<Vec<OwnedFd>> {
    let copies = fds.iter().map(|fd| fd.as_fd().try_clone_to_owned());
    copies.collect::<Result<_, _>>().ok()
}

/// What is looked up when a tree is made.
fn paths<'a>(plan: &'a SandboxPlan, cwd: &'a [u8]) -> impl Iterator<Item = &'a Path> {
    let mounts = plan.mounts.iter().filter_map(|step| match step {
        MountStep::Keep { path }
        | MountStep::Restore { path, .. }
        | MountStep::Private { path, .. }
        | MountStep::Mask { path, .. }
        | MountStep::Pin { path }
        | MountStep::ReadOnly { path } => Some(path.as_slice()),
        MountStep::Terminals => None,
    });
    let paths = mounts.chain(std::iter::once(cwd));
    paths.map(|path| Path::new(OsStr::from_bytes(path)))
}
