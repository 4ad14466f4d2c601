//! Groups for containment (v2) and limits (v1 or v2), made by the spawner for one tree and removed after it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::plan::CgroupPlan;
use super::wire::LimitHits;

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

    /// The file that tells when the group is empty (`EPOLLPRI`).
    pub(super) fn events(&self) -> Option<&File> {
        self.events.as_ref()
    }

    /// How often its limits were hit, as far as it has any.
    pub(super) fn hits(&self) -> LimitHits {
        let count = |file: &str, key: &str| {
            let text = fs::read_to_string(self.path.join(file)).unwrap_or_default();
            let found = text
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok());
            found.unwrap_or(0)
        };
        // v1 has the one, v2 the other; a group without the controller has neither.
        let memory = if self.unified {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        LimitHits {
            out_of_memory: count(memory, "oom_kill"),
            tasks: count("pids.events", "max"),
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
    }
}
