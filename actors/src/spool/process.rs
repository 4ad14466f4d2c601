//! The spool of one process that has no record yet. Its actor writes facts; whoever writes to its standard input, how far that
//! came.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};

use super::journal::Appended;
use super::{Entry, Journal, LIVE, Observed, SEALED, Spool, Unfinished, calls, journal_name};
use crate::event::ProcessId;
use crate::ledger::Fact;
use crate::record::TerminalRecord;
use crate::spawner::lock;

/// What is written of one process.
#[derive(Debug)]
pub(crate) struct ProcessSpool {
    pub(super) spool: Arc<Spool>,
    pub(super) process: ProcessId,
    pub(super) journal: Mutex<Journal>,
    /// There is a file of calls.
    pub(super) has_calls: AtomicBool,
    /// What an earlier daemon was in the middle of.
    pub(super) unfinished: Mutex<Unfinished>,
    kept: Mutex<Kept>,
}

/// Whether the record is on disk.
#[derive(Default)]
enum Kept {
    #[default]
    NotYet,
    /// Then this is to be done.
    Awaited(Box<dyn FnOnce() + Send>),
    Done,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotYet => "NotYet",
            Self::Awaited(_) => "Awaited",
            Self::Done => "Done",
        })
    }
}

impl ProcessSpool {
    pub(super) fn new(spool: &Arc<Spool>, process: ProcessId, journal: Journal) -> Arc<Self> {
        Arc::new(Self {
            spool: Arc::clone(spool),
            process,
            journal: Mutex::new(journal),
            has_calls: AtomicBool::new(false),
            unfinished: Mutex::default(),
            kept: Mutex::default(),
        })
    }

    pub(super) fn process(&self) -> ProcessId {
        self.process
    }

    /// What an earlier daemon was in the middle of; empty but for the first who asks.
    pub(crate) fn take_unfinished(&self) -> Unfinished {
        std::mem::take(&mut *lock(&self.unfinished))
    }

    pub(super) fn open_calls(&self) -> io::Result<File> {
        self.has_calls.store(true, Ordering::Relaxed);
        let flags = OFlag::O_RDWR | OFlag::O_CREAT;
        self.spool.directory.open(&calls::name(self.process), flags)
    }

    /// The whole spool.
    pub(crate) fn spool(&self) -> Arc<Spool> {
        Arc::clone(&self.spool)
    }

    /// Writes an entry down. Where there is no room even with the ballast, it is owed, and the spool says that it is degraded: the
    /// process goes on.
    ///
    /// # Errors
    /// It is not on disk now: a daemon that dies has forgotten it.
    pub(crate) fn write(self: &Arc<Self>, time: Timestamp, entry: &Entry) -> io::Result<()> {
        self.write_to(&mut lock(&self.journal), time, entry)
    }

    fn write_to(
        self: &Arc<Self>,
        journal: &mut Journal,
        time: Timestamp,
        entry: &Entry,
    ) -> io::Result<()> {
        let owed_before = journal.owes();
        let appended = journal.append(time, entry);
        self.came_of(journal, owed_before, appended)
    }

    fn came_of(
        self: &Arc<Self>,
        journal: &mut Journal,
        owed_before: bool,
        appended: Appended,
    ) -> io::Result<()> {
        match appended {
            Appended::Written => Ok(()),
            Appended::Owed(error) if owed_before => Err(error),
            Appended::Owed(error) => {
                self.spool.give_ballast(&error);
                journal.settle().inspect_err(|error| {
                    tracing::error!(process = %self.process, %error, "the journal cannot be written: it waits");
                    self.spool.is_owed(Arc::clone(self));
                })
            }
            Appended::GivenUp(error) => {
                tracing::error!(process = %self.process, %error, "an entry of the journal is given up");
                self.spool.is_full(&error);
                self.spool.given_up.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    /// Writes down what was observed, before the ledger takes it: each fact comes back with the number by which that is
    /// said ([`Entry::Took`]), or without one where it could not even be owed.
    pub(crate) fn observe(self: &Arc<Self>, observed: Observed) -> Vec<(Option<u64>, Fact)> {
        let mut journal = lock(&self.journal);
        let owed_before = journal.owes();
        let (appended, observed) = journal.observe(Timestamp::now(), Box::new(observed));
        let first = (!matches!(appended, Appended::GivenUp(_))).then_some(observed.number);
        // Where it is owed, that is all that can be done: its program has been told already, or cannot wait.
        let _ = self.came_of(&mut journal, owed_before, appended);
        drop(journal);
        let facts = (0..).zip(observed.facts);
        facts
            .map(|(at, fact)| (first.map(|first| first + at), fact))
            .collect()
    }

    /// Writes the record down: the journal is complete.
    pub(crate) fn seal(self: &Arc<Self>, time: Timestamp, record: &Arc<TerminalRecord>) {
        if self.write_record(time, record) {
            self.is_kept();
        }
    }

    /// The same but for what is left to do then: nobody who wants to see the record need wait for [that](Self::is_kept). False if
    /// the record is not on disk.
    #[must_use]
    pub(crate) fn write_record(self: &Arc<Self>, time: Timestamp, record: &Arc<TerminalRecord>) -> bool {
        let mut journal = lock(&self.journal);
        journal.complete();
        let entry = Entry::Sealed(Arc::clone(record));
        self.write_to(&mut journal, time, &entry).is_ok()
    }

    /// Does this once the record is on disk, which it may be.
    pub(crate) fn once_kept(&self, what: impl FnOnce() + Send + 'static) {
        let mut kept = lock(&self.kept);
        match *kept {
            Kept::Done => {
                drop(kept);
                what();
            }
            _ => *kept = Kept::Awaited(Box::new(what)),
        }
    }

    /// Writes what is owed. False if it still is.
    pub(super) fn settle(&self) -> bool {
        let mut journal = lock(&self.journal);
        let (settled, complete) = (journal.settle().is_ok(), journal.is_complete());
        drop(journal);
        if settled && complete {
            self.is_kept();
        }
        settled
    }

    /// Its record is on disk. That may have been so before: a daemon can die between the two.
    pub(crate) fn is_kept(&self) {
        if self.has_calls.load(Ordering::Relaxed) {
            self.spool.directory.remove(&calls::name(self.process));
        }
        let directory = self.spool.directory.fd.as_fd();
        let (from, to) = (
            journal_name(self.process, LIVE),
            journal_name(self.process, SEALED),
        );
        match renameat(directory, from.as_str(), directory, to.as_str()) {
            // It was renamed before, or is to be removed.
            Ok(()) | Err(Errno::ENOENT) => {}
            // It is found, and found complete, all the same.
            Err(error) => {
                tracing::warn!(process = %self.process, %error, "cannot rename a journal");
            }
        }
        if let Kept::Awaited(what) = std::mem::replace(&mut *lock(&self.kept), Kept::Done) {
            what();
        }
    }
}
