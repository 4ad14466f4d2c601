//! A cgroup v2 group that another user may do as it likes in, and cannot leave.
//!
//! What is given away is what the kernel says may be (cgroups(7), "delegation"): the directory, for new groups, and the files
//! that move processes about *within* it. Its limits stay its maker's. Where a process may be moved from and to, the kernel
//! asks for the right to write in the group that is above both: nothing gets out, and nothing of that user's gets in from
//! elsewhere. Version 1 asks for no such thing: whoever was given a group there could bring any process of its own into it, away from
//! the limits that it has where it is. So groups of version 1 are not given away.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use uuid::Uuid;

use super::cgroup::{LEAF, remove_empty};

/// What is given away besides the directory.
const GIVEN: [&str; 3] = ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"];
/// Groups that may be nested in it: those of processes, and what these make of them.
const DEPTH_MAX: u32 = 8;
/// How long what is killed may take to be gone.
const EMPTY_WITHIN: Duration = Duration::from_secs(2);

/// A group that was given away. It stays, with whatever is in it, until it is [ended](Self::end).
#[derive(Debug)]
pub struct DelegatedGroup {
    path: PathBuf,
}

impl DelegatedGroup {
    /// Makes one, beside those of this supervisor's own processes. Nothing where there is no cgroup v2 that this process may
    /// make groups in.
    ///
    /// # Errors
    /// It could not be given away; nothing is left of it then.
    pub fn create(uid: u32, gid: u32, descendants_max: usize) -> io::Result<Option<Self>> {
        let Some(own) = super::probe::own_unified_group() else {
            return Ok(None);
        };
        // A supervisor that has settled in a leaf makes groups beside it.
        let parent = match own.ends_with(LEAF) {
            true => own.parent().unwrap_or(&own),
            false => &own,
        };
        let path = parent.join(format!("provost-{}", Uuid::now_v7()));
        fs::create_dir(&path)?;
        let group = Self { path };
        match group.give(uid, gid, descendants_max) {
            Ok(()) => Ok(Some(group)),
            Err(error) => {
                group.end();
                Err(error)
            }
        }
    }

    /// One that an earlier supervisor gave to this user, if it is still there. Who says where it is must be trusted.
    pub fn find(path: &Path, uid: u32) -> Option<Self> {
        let there = path.symlink_metadata().ok()?;
        let is_group = there.is_dir() && path.join("cgroup.events").exists();
        (is_group && there.uid() == uid).then(|| Self {
            path: path.to_owned(),
        })
    }

    fn give(&self, uid: u32, gid: u32, descendants_max: usize) -> io::Result<()> {
        let write = |name: &str, content: String| fs::write(self.path.join(name), content);
        // Before anybody else may do anything in it.
        write("cgroup.max.depth", DEPTH_MAX.to_string())?;
        write("cgroup.max.descendants", descendants_max.to_string())?;
        for name in GIVEN {
            chown(self.path.join(name), Some(uid), Some(gid))?;
        }
        chown(&self.path, Some(uid), Some(gid))
    }

    /// Kills whatever is in it, waits for that (two seconds at most), and removes it.
    pub fn end(self) {
        if let Err(error) = self.kill() {
            tracing::warn!(path = %self.path.display(), %error, "cannot empty a cgroup");
        }
        if let Err(error) = remove_empty(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a cgroup");
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Kills whatever is in it, also what stands still (5.14), and waits until nothing is.
    fn kill(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")?;
        let mut events = File::open(self.path.join("cgroup.events"))?;
        let deadline = Instant::now() + EMPTY_WITHIN;
        loop {
            let mut text = String::new();
            // Reading also re-arms the event.
            events.seek(SeekFrom::Start(0))?;
            events.read_to_string(&mut text)?;
            let left = deadline.saturating_duration_since(Instant::now());
            if text.lines().any(|line| line == "populated 0") {
                return Ok(());
            }
            if left.is_zero() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "something in it does not end",
                ));
            }
            let patience = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], patience)?;
        }
    }
}

/// Moves this process into a group: into the leaf of a supervisor that was in it before, where there is one, for then the
/// group itself may pass controllers on and take no processes.
///
/// # Errors
/// It may not, or the group is gone.
pub fn join_group(path: &Path) -> io::Result<()> {
    match fs::write(path.join(LEAF).join("cgroup.procs"), "0") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::write(path.join("cgroup.procs"), "0")
        }
        joined => joined,
    }
}
