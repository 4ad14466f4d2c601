//! The spool: what is known of processes, on disk, so that it survives this process.
//!
//! ```text
//! <process>.journal              accepted, facts in order, the record      journal.rs
//! <process>.sealed               the same, once it has its record
//! <process>.gone                 the same, when it is being removed
//! <process>.compacted            a journal that is being made short           checkpoint.rs
//! <process>.calls                calls that wait for an answer            calls.rs
//! <process>.<stream>.<offset>    raw output                                segments.rs
//! damaged-<process>.…            what nobody can take up; for people
//! ballast                        room that is given back to seal records when the disk is full
//! trial                          for a moment, to see whether it can be written again
//! ```
//!
//! One truth: the journal. A process is taken up again by applying its facts to a new ledger, which is pure and takes
//! its time from the facts, so that events get the numbers they had ([`Spool::load`]). Output behind the last fact, for
//! which there was no time, becomes one more.
//!
//! The page cache survives the death of any process; a loss of power may take the last seconds.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize};

use crate::event::{ProcessId, StreamName};
use crate::spawner::lock;

mod calls;
mod checkpoint;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod journal;
mod load;
mod process;
mod segments;
mod standing;
mod stored;

#[cfg(test)]
mod tests;

pub(crate) use self::calls::{Calls, Left};
pub use self::journal::StdinProgress;
pub(crate) use self::journal::{Entry, Journal, Observed};
pub(crate) use self::load::Unfinished;
pub use self::load::{LoadError, Loaded};
pub(crate) use self::process::ProcessSpool;
pub(crate) use self::segments::{
    Moved, Opened, Place, Segment, SegmentWriter, Segments, StreamFiles, Unmoved, segment_bytes,
};
pub use self::stored::{Accepted, StoredSpec, monotonic};

/// Room that is kept for records when the disk is full, in bytes.
const BALLAST_BYTES: i64 = 4 << 20;
const BALLAST: &str = "ballast";
const TRIAL: &str = "trial";
const LIVE: &str = "journal";
const SEALED: &str = "sealed";
const GONE: &str = "gone";
/// Stands before the names of what was set aside, which are nobody's any more.
const ASIDE: &str = "damaged-";

/// The spool cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the spool {path}: {why}")]
pub struct SpoolError {
    /// The directory, or the file.
    pub path: String,
    /// Why.
    pub why: String,
}

/// A directory, held open.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    fd: OwnedFd,
}

impl Directory {
    fn open(&self, name: &str, flags: OFlag) -> io::Result<File> {
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        Ok(openat(self.fd.as_fd(), name, flags, mode)?.into())
    }

    fn remove(&self, name: &str) {
        match unlinkat(self.fd.as_fd(), name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => tracing::warn!(name, %error, "cannot remove a spool file"),
        }
    }
}

/// The spool of one user's daemon.
#[derive(Debug)]
pub struct Spool {
    directory: Arc<Directory>,
    boot: String,
    /// Why something could not be written, since there was room last; what lives since then may not survive us.
    trouble: Mutex<Option<String>>,
    /// Whose journals owe something.
    owing: Mutex<Vec<Arc<ProcessSpool>>>,
    /// Entries of journals that could neither be written nor wait.
    given_up: AtomicU64,
    /// One looks for room at a time.
    recovering: Mutex<()>,
    ballast: Mutex<bool>,
    when_full: WhenFull,
}

/// What becomes of processes whose output finds no room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// They go on; what they write is dropped and counted.
    #[default]
    Drop,
    /// They are stopped by their stop rules.
    Stop,
}

/// The processes of which there is something in the spool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Without a record.
    pub live: Vec<ProcessId>,
    /// With one.
    pub sealed: Vec<ProcessId>,
    /// Of which a removal was not finished: nobody is to see them again.
    pub gone: Vec<ProcessId>,
}

impl Spool {
    /// Opens a spool, which is made if it does not exist: a directory of this user's that is closed to others.
    ///
    /// # Errors
    /// It cannot be made, or belongs to somebody else, or others may write to it.
    pub fn open(path: &Path, when_full: WhenFull) -> Result<Arc<Self>, SpoolError> {
        let error = |why: String| SpoolError {
            path: path.display().to_string(),
            why,
        };
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path);
        made.map_err(|e| error(e.to_string()))?;
        let directory = File::options()
            .read(true)
            .custom_flags((OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits())
            .open(path)
            .map_err(|e| error(e.to_string()))?;
        let meta = directory.metadata().map_err(|e| error(e.to_string()))?;
        if meta.uid() != nix::unistd::geteuid().as_raw() || meta.permissions().mode() & 0o077 != 0 {
            return Err(error(
                "it must belong to this user and be closed to all others (0700)".to_owned(),
            ));
        }
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_err(|e| error(format!("the boot id: {e}")))?;
        let spool = Self {
            directory: Arc::new(Directory {
                path: path.to_owned(),
                fd: directory.into(),
            }),
            boot: boot.trim().to_owned(),
            trouble: Mutex::default(),
            owing: Mutex::default(),
            given_up: AtomicU64::new(0),
            recovering: Mutex::default(),
            ballast: Mutex::new(false),
            when_full,
        };
        if !spool.take_ballast() {
            tracing::warn!(path = %path.display(), "no room is kept for records: the disk is full");
        }
        Ok(Arc::new(spool))
    }

    /// Whether there is a process without a record in the spool at this path, which is neither opened nor made.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn has_live(path: &Path) -> io::Result<bool> {
        let entries = match std::fs::read_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            entries => entries?,
        };
        for entry in entries {
            if Path::new(&entry?.file_name())
                .extension()
                .is_some_and(|kind| kind == LIVE)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// This boot of the machine.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    pub(crate) fn when_full(&self) -> WhenFull {
        self.when_full
    }

    /// What is wrong with it, in words: something could not be written since there was room last, or it is not where it was.
    pub fn trouble(&self) -> Option<String> {
        if !self.is_in_place() {
            return Some(format!(
                "{} is not the directory any more that it was: nothing new is started; put it back, or start the daemon again",
                self.directory.path.display()
            ));
        }
        let why = lock(&self.trouble).clone()?;
        let path = self.directory.path.display();
        let mut said = format!(
            "{path} cannot be written ({why}): what lives may not survive the daemon; make room, or let it be written"
        );
        let owing = lock(&self.owing).len();
        if owing > 0 {
            said += &format!("; of {owing} processes something waits in memory to be written");
        }
        let given_up = self.given_up.load(Ordering::Relaxed);
        if given_up > 0 {
            said += &format!("; {given_up} entries of journals were given up, for too much waited");
        }
        Some(said)
    }

    /// Whoever looks for it by its name finds it.
    fn is_in_place(&self) -> bool {
        let named = std::fs::symlink_metadata(&self.directory.path);
        let held = nix::sys::stat::fstat(&self.directory.fd);
        matches!((named, held), (Ok(named), Ok(held))
            if (named.dev(), named.ino()) == (held.st_dev, held.st_ino) && held.st_nlink > 0)
    }

    /// Whether something could not be written, so that [`recover_room`](Self::recover_room) has something to do.
    pub fn is_in_trouble(&self) -> bool {
        lock(&self.trouble).is_some()
    }

    /// Looks whether there is room again; to be called now and then. What journals owe comes first.
    pub fn recover_room(&self) {
        if !self.is_in_trouble() {
            return;
        }
        let _one = lock(&self.recovering);
        if self.settle() && self.take_ballast() && self.can_be_written() {
            tracing::info!("the spool can be written again");
            *lock(&self.trouble) = None;
            self.given_up.store(0, Ordering::Relaxed);
        }
    }

    /// Writes what journals owe. False if some of it stays.
    fn settle(&self) -> bool {
        let owing = std::mem::take(&mut *lock(&self.owing));
        let owing: Vec<_> = owing.into_iter().filter(|process| !process.settle()).collect();
        let mut left = lock(&self.owing);
        left.extend(owing);
        left.is_empty()
    }

    /// This journal owes something from now on.
    fn is_owed(&self, by: Arc<ProcessSpool>) {
        lock(&self.owing).push(by);
    }

    /// Whether something of this process is in memory alone.
    pub(crate) fn owes(&self, process: ProcessId) -> bool {
        lock(&self.owing).iter().any(|owing| owing.process() == process)
    }

    /// Whether a file can be made in it and filled: room is not all that can be missing.
    fn can_be_written(&self) -> bool {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
        let written = self
            .directory
            .open(TRIAL, flags)
            .and_then(|file| file.write_all_at(TRIAL.as_bytes(), 0));
        self.directory.remove(TRIAL);
        written.is_ok()
    }

    /// Keeps room for records. False if there is none.
    fn take_ballast(&self) -> bool {
        let mut held = lock(&self.ballast);
        if *held {
            return true;
        }
        let taken = self
            .directory
            .open(BALLAST, OFlag::O_WRONLY | OFlag::O_CREAT)
            .and_then(|file| Ok(fallocate(&file, FallocateFlags::empty(), 0, BALLAST_BYTES)?));
        match taken {
            Ok(()) => *held = true,
            Err(error) => {
                tracing::debug!(%error, "no room can be kept for records");
                self.directory.remove(BALLAST);
            }
        }
        *held
    }

    /// Begins the journal of a process.
    ///
    /// # Errors
    /// The disk is full or broken. Nothing stays.
    pub(crate) fn begin(self: &Arc<Self>, accepted: Accepted) -> io::Result<Arc<ProcessSpool>> {
        if !self.is_in_place() {
            // The next start would not find it.
            return Err(io::Error::other(
                "the state directory was moved, replaced or removed while the daemon ran; put it back, or start the daemon again",
            ));
        }
        // Who made room need not wait for the next look.
        self.recover_room();
        if let Some(why) = &*lock(&self.trouble) {
            let why = format!("{why}; what room there is is for the records of what runs: make room");
            return Err(io::Error::other(why));
        }
        let process = accepted.process;
        let name = journal_name(process, LIVE);
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        let begun = self.directory.open(&name, flags).and_then(|file| {
            let mut journal = Journal::new(file, 0)?;
            let time = accepted.queued_at;
            let entry = Entry::Accepted(Box::new(accepted));
            journal.append(time, &entry).written()?;
            Ok(journal)
        });
        match begun {
            Ok(journal) => Ok(ProcessSpool::new(self, process, journal)),
            Err(error) => {
                self.directory.remove(&name);
                Err(error)
            }
        }
    }

    /// Which processes there are.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn find(&self) -> io::Result<Found> {
        let mut found = Found::default();
        for entry in std::fs::read_dir(&self.directory.path)? {
            let name = entry?.file_name();
            let Some((id, kind)) = name.to_str().and_then(|name| name.split_once('.')) else {
                continue;
            };
            let Ok(process) = id.parse::<ProcessId>() else {
                continue;
            };
            match kind {
                LIVE => found.live.push(process),
                SEALED => found.sealed.push(process),
                GONE => found.gone.push(process),
                _ => {}
            }
        }
        found.live.sort_unstable();
        found.sealed.sort_unstable();
        found.gone.sort_unstable();
        Ok(found)
    }

    /// Says of processes that have ended that they are to be [removed](Self::remove): from now on none is found, also after a
    /// crash.
    pub fn mark_gone(&self, processes: &[ProcessId]) {
        lock(&self.owing).retain(|owing| !processes.contains(&owing.process()));
        let directory = self.directory.fd.as_fd();
        for process in processes {
            let to = journal_name(*process, GONE);
            // It may get its other name meanwhile.
            for from in [SEALED, LIVE, SEALED] {
                match renameat(
                    directory,
                    journal_name(*process, from).as_str(),
                    directory,
                    to.as_str(),
                ) {
                    Ok(()) => break,
                    Err(Errno::ENOENT) => {}
                    Err(error) => tracing::warn!(%process, %error, "cannot mark a journal"),
                }
            }
        }
    }

    /// Sets aside what there is of a process whose journal is damaged: for whoever wants to look at it, and to be removed by
    /// them. From now on nothing of it is found.
    ///
    /// # Errors
    /// Something stays where it was; the journal is the last that is moved.
    pub fn set_aside(&self, process: ProcessId) -> io::Result<()> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.directory.path)? {
            let name = entry?.file_name();
            let of_process = |name: &&str| {
                name.split_once('.')
                    .is_some_and(|(id, _)| id == process.to_string())
            };
            names.extend(name.to_str().filter(of_process).map(str::to_owned));
        }
        let is_journal = |name: &String| {
            [LIVE, SEALED]
                .iter()
                .any(|kind| *name == journal_name(process, kind))
        };
        names.sort_by_key(is_journal);
        let directory = self.directory.fd.as_fd();
        for name in names {
            renameat(
                directory,
                name.as_str(),
                directory,
                format!("{ASIDE}{name}").as_str(),
            )?;
        }
        Ok(())
    }

    /// Removes the output of these streams of a process that has ended; the rest of it stays.
    pub(crate) fn remove_output(&self, process: ProcessId, streams: &[StreamName]) {
        for files in self.stream_files(process) {
            if streams.contains(&files.stream) {
                files.remove_all();
            }
        }
    }

    /// Removes everything there is of these processes.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn remove(&self, processes: &HashSet<ProcessId>) -> io::Result<()> {
        self.remove_if(|process| processes.contains(&process))
    }

    /// Removes output that belongs to no journal: what a removal left that was interrupted.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn remove_orphans(&self, found: &Found) -> io::Result<()> {
        let known: HashSet<_> = found.live.iter().chain(&found.sealed).copied().collect();
        self.remove_if(|process| !known.contains(&process))
    }

    fn remove_if(&self, remove: impl Fn(ProcessId) -> bool) -> io::Result<()> {
        let mut marks = Vec::new();
        for entry in std::fs::read_dir(&self.directory.path)? {
            let name = entry?.file_name();
            let Some((id, kind)) = name.to_str().and_then(|name| name.split_once('.')) else {
                continue;
            };
            if id.parse().is_ok_and(&remove) {
                match kind {
                    GONE => marks.push(format!("{id}.{kind}")),
                    _ => self.directory.remove(&format!("{id}.{kind}")),
                }
            }
        }
        // Last: as long as one is there, so may be something else.
        marks.iter().for_each(|mark| self.directory.remove(mark));
        Ok(())
    }

    /// Something could not be written.
    pub(crate) fn is_full(&self, error: &io::Error) {
        if lock(&self.trouble).replace(error.to_string()).is_none() {
            tracing::error!(path = %self.directory.path.display(), %error, "the spool cannot be written");
        }
    }

    /// Room for what must be written all the same.
    fn give_ballast(&self, error: &io::Error) {
        self.is_full(error);
        if std::mem::take(&mut *lock(&self.ballast)) {
            self.directory.remove(BALLAST);
        }
    }

    /// The files of a process that has none yet.
    pub(crate) fn segments(&self, process: ProcessId) -> [Segments; 3] {
        self.stream_files(process)
            .map(|files| Segments::new(files, Vec::new()))
    }

    fn stream_files(&self, process: ProcessId) -> [StreamFiles; 3] {
        StreamName::ALL.map(|stream| StreamFiles {
            directory: Arc::clone(&self.directory),
            process,
            stream,
        })
    }
}

fn journal_name(process: ProcessId, kind: &str) -> String {
    format!("{process}.{kind}")
}
