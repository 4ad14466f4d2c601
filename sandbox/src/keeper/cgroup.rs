//! Groups for containment (v2) and limits (v1 or v2), made by the spawner for one tree and removed after it.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::plan::CgroupPlan;
use super::wire::LimitHits;

/// The group that a supervisor moves itself to, below the one that was delegated to it: only a group without processes of
/// its own can pass controllers on (cgroups(7), "no internal processes").
pub(super) const LEAF: &str = "provost-supervisor";

/// Moves this process into a leaf of the cgroup v2 group that it is alone in, so that groups with limits can be made
/// beside it. For programs that are nothing but a supervisor; call it before the spawner is started. Says whether it is in
/// such a leaf now; in a root group, or one that it shares, it stays.
pub fn settle_in_leaf() -> bool {
    let Some(own) = super::probe::own_unified_group() else {
        return false;
    };
    if own.ends_with(LEAF) {
        return true;
    }
    let alone = fs::read_to_string(own.join("cgroup.procs"))
        .is_ok_and(|members| members.trim() == std::process::id().to_string());
    let leaf = own.join(LEAF);
    let made = || match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => fs::write(leaf.join("cgroup.procs"), "0"),
    };
    // The root group may have processes and pass controllers on.
    alone && own.join("cgroup.type").exists() && made().is_ok()
}

/// Makes the controller available in groups below this one; false where it cannot be.
pub(super) fn enable(directory: &Path, controller: &str) -> bool {
    let has = |file: &str| {
        fs::read_to_string(directory.join(file))
            .is_ok_and(|text| text.split_ascii_whitespace().any(|name| name == controller))
    };
    has("cgroup.subtree_control")
        || has("cgroup.controllers")
            && fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}")).is_ok()
}

/// A group of one tree. Dropping it removes the directory.
#[derive(Debug)]
pub(super) struct Group {
    path: PathBuf,
    pub(super) unified: bool,
    events: Option<File>,
}

impl Group {
    /// Makes the group and writes its files.
    pub(super) fn create(plan: &CgroupPlan, process: Uuid) -> io::Result<Self> {
        let path = Path::new(&plan.parent).join(format!("provost-{process}"));
        fs::create_dir(&path)?;
        let mut group = Self {
            path,
            unified: plan.unified,
            events: None,
        };
        for (name, content) in &plan.files {
            group.write(name, content)?;
        }
        if plan.unified {
            group.events = Some(File::open(group.path.join("cgroup.events"))?);
        }
        Ok(group)
    }

    /// The directory, for `CLONE_INTO_CGROUP`.
    pub(super) fn open(&self) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC)
            .open(&self.path)
    }

    /// Moves a process in.
    pub(super) fn join(&self, pid: i32) -> io::Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// Kills everything in it (5.14; a group without `cgroup.kill` is left to the init).
    pub(super) fn kill(&self) -> io::Result<()> {
        self.write("cgroup.kill", "1")
    }

    /// How many processes are in it.
    pub(super) fn members(&self) -> u64 {
        fs::read_to_string(self.path.join("cgroup.procs")).map_or(0, |text| text.lines().count() as u64)
    }

    /// Whether nobody but one process can be in it, nor in groups below it. Only v2 groups can tell.
    pub(super) fn has_init_alone(&self) -> bool {
        let read = |name: &str| fs::read_to_string(self.path.join(name));
        let alone = |members: String| members.lines().count() <= 1;
        let childless = |text: String| text.lines().any(|line| line == "nr_descendants 0");
        self.unified && read("cgroup.procs").is_ok_and(alone) && read("cgroup.stat").is_ok_and(childless)
    }

    /// The file that tells when the group is empty (`EPOLLPRI`).
    pub(super) fn events(&self) -> Option<&File> {
        self.events.as_ref()
    }

    /// How often its limits were hit, as far as it has any.
    pub(super) fn hits(&self) -> LimitHits {
        let mut unknown = false;
        let mut count = |file: &str, key: &str| {
            let value = |text: &str| {
                let mut lines = text.lines();
                lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
            };
            match fs::read_to_string(self.path.join(file)) {
                Ok(text) => value(&text).unwrap_or_else(|| {
                    unknown = true;
                    0
                }),
                // A group without the controller has no such file.
                Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                Err(_) => {
                    unknown = true;
                    0
                }
            }
        };
        let memory = if self.unified {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let (out_of_memory, tasks) = (count(memory, "oom_kill"), count("pids.events", "max"));
        LimitHits {
            out_of_memory,
            tasks,
            unknown,
        }
    }

    /// Whether anything lives in it. Reading also re-arms the event.
    pub(super) fn is_populated(&mut self) -> bool {
        let Some(events) = &mut self.events else {
            return false;
        };
        let mut text = String::new();
        let read = events
            .seek(SeekFrom::Start(0))
            .and_then(|_| events.read_to_string(&mut text));
        read.is_err() || !text.lines().any(|line| line == "populated 0")
    }

    fn write(&self, name: &str, content: &str) -> io::Result<()> {
        OpenOptions::new()
            .write(true)
            .open(self.path.join(name))?
            .write_all(content.as_bytes())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a cgroup");
        }
        if let Some(parent) = self.path.parent() {
            sweep(parent);
        }
    }
}

/// A group that is older than this and empty is nobody's: one that was just made is empty for a moment, too.
const ABANDONED: Duration = Duration::from_secs(600);

/// Removes what a spawner left behind that was killed before it could. A group with anything in it cannot be removed.
/// Once for each parent.
fn sweep(parent: &Path) {
    static SWEPT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let first = SWEPT
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(parent.to_owned());
    if !first {
        return;
    }
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let id = name
            .to_str()
            .and_then(|name| name.strip_prefix("provost-")?.parse::<Uuid>().ok());
        if id.is_some_and(|id| is_abandoned(id, SystemTime::now())) {
            let _ = remove_empty(&entry.path());
        }
    }
}

/// Removes a group with those in it, unless anything lives in one of them: a group that was just made and is in use may be
/// empty for a moment, too.
pub(super) fn remove_empty(path: &Path) -> io::Result<()> {
    let events = fs::read_to_string(path.join("cgroup.events"));
    if events.is_ok_and(|events| events.lines().any(|line| line == "populated 0")) {
        for entry in fs::read_dir(path)?.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let _ = remove_empty(&entry.path());
            }
        }
    }
    fs::remove_dir(path)
}

/// Ids carry the time at which they were given.
fn is_abandoned(id: Uuid, now: SystemTime) -> bool {
    let Some((seconds, nanoseconds)) = id.get_timestamp().map(|time| time.to_unix()) else {
        return false;
    };
    let given = UNIX_EPOCH + Duration::new(seconds, nanoseconds);
    now.duration_since(given).is_ok_and(|age| age > ABANDONED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_groups_of_long_ago_are_taken_for_abandoned() {
        let id = Uuid::now_v7();
        let now = SystemTime::now();
        assert!(!is_abandoned(id, now));
        assert!(!is_abandoned(id, now - ABANDONED));
        assert!(is_abandoned(id, now + 2 * ABANDONED));
        assert!(!is_abandoned(Uuid::nil(), now + 2 * ABANDONED), "no time in it");
    }

    #[test]
    fn what_was_left_behind_is_removed_and_what_is_in_use_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let name = |id: &str| parent.path().join(format!("provost-{id}"));
        // Given in 2001.
        let (old, used) = (
            "00e3a8b5-ac96-774b-bcce-b302099a8057",
            "00e3a8b5-ac97-774b-bcce-b302099a8057",
        );
        for path in [
            name(old),
            name(used).join("inside"),
            name(&Uuid::now_v7().to_string()),
        ] {
            fs::create_dir_all(path).unwrap();
        }
        fs::create_dir(parent.path().join("another")).unwrap();
        sweep(parent.path());
        assert!(!name(old).exists() && name(used).exists());
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 3);
    }
}
