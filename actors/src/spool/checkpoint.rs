//! A journal made short again: of a process that writes for days it would grow without end.
//!
//! ```text
//! accepted | fact | fact | …… | fact | fact          <process>.journal
//!     │         └── checkpoint ──┘       │
//! accepted |        checkpoint      |  fact          <process>.compacted, which takes its name
//! ```
//!
//! What all facts came to is taken between two of them: the ledger and the log's index. What else stands ([`Standing`]) is
//! read from the journal itself, up to the same place. It is written beside the journal by a
//! thread that may wait for the disk, while facts go on into the journal; they are copied behind it, the last few while the
//! next one waits, and the new file takes the name of the old one. At every instant one whole journal has the name.
//!
//! Where there is no room for that, the checkpoint takes the place of what the journal [owes](super::journal) of the time before.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use jiff::Timestamp;
use nix::fcntl::{OFlag, renameat};
use serde::{Deserialize, Serialize};

use super::journal::{self, Cut, Entry, write_frame};
use super::standing::Standing;
use super::{LIVE, ProcessSpool, calls, journal_name};
use crate::ledger::Ledger;
use crate::log::KeptLog;
use crate::spawner::lock;

/// The name of a journal that is not finished.
pub(super) const COMPACTED: &str = "compacted";
/// What is copied while facts wait.
const LAST_BYTES: u64 = 64 << 10;

/// What all entries up to some place came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) ledger: Ledger,
    pub(crate) log: KeptLog,
    pub(super) standing: Standing,
}

impl ProcessSpool {
    /// Its journal has become long enough to be worth [`compact`](Self::compact): where it ends now. It is said once,
    /// and is of use between two facts: what the ledger is then is what they all came to.
    pub(crate) fn is_long(&self) -> Option<Cut> {
        lock(&self.journal).is_long()
    }

    #[cfg(test)]
    pub(crate) fn cut(&self) -> Cut {
        lock(&self.journal).cut()
    }

    /// Makes the journal short: at the cut, its facts had come to this ledger and this log. Waits for the disk. If that fails,
    /// the journal stays as it is.
    pub(crate) fn compact(self: &Arc<Self>, cut: &Cut, ledger: Ledger, log: KeptLog) {
        let name = journal_name(self.process, COMPACTED);
        if let Err(error) = self.try_compact(&name, cut, ledger, log) {
            tracing::warn!(process = %self.process, %error, "a journal stays long");
            self.spool.directory.remove(&name);
            lock(&self.journal).is_short();
        }
    }

    fn try_compact(&self, name: &str, cut: &Cut, ledger: Ledger, log: KeptLog) -> io::Result<()> {
        let (old, owed) = {
            let journal = lock(&self.journal);
            (journal.file(), journal.owed_before(cut).to_vec())
        };
        let (accepted, standing) = self.read_upto(&old, owed, cut)?;
        let checkpoint = Checkpoint {
            ledger,
            log,
            standing,
        };
        let mut frame = Vec::new();
        let entry = Entry::Checkpoint(Box::new(checkpoint));
        write_frame(&mut frame, Timestamp::now(), &entry)?;
        drop(entry);
        let begun = self.write_short(name, &[&accepted, &frame]);
        let replaced = begun.and_then(|(new, length)| self.replace(name, &old, cut, new, length));
        if replaced.is_err() {
            lock(&self.journal).owe_instead(cut, &frame);
        }
        replaced
    }

    /// Begins a shorter journal beside the other one.
    fn write_short(&self, name: &str, frames: &[&[u8]]) -> io::Result<(File, u64)> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC;
        let new = self.spool.directory.open(name, flags)?;
        let mut length = 0;
        for frame in frames {
            new.write_all_at(frame, length)?;
            length += frame.len() as u64;
        }
        Ok((new, length))
    }

    /// Copies what came since the cut, and gives the new one the name of the old one.
    fn replace(&self, name: &str, old: &File, cut: &Cut, new: File, mut length: u64) -> io::Result<()> {
        let mut copied = cut.upto;
        loop {
            let end = lock(&self.journal).length().max(copied);
            copy(old, copied..end, &new, &mut length)?;
            copied = end;
            // The last seconds may be lost with the power, but not what is older.
            new.sync_data()?;
            let mut journal = lock(&self.journal);
            let end = journal.length().max(copied);
            if end - copied > LAST_BYTES {
                continue;
            }
            if journal.is_complete() {
                return Err(io::Error::other("its process has ended meanwhile"));
            }
            copy(old, copied..end, &new, &mut length)?;
            let owed = journal.owed_from(end);
            new.write_all_at(owed, length)?;
            length += owed.len() as u64;
            let next = journal.goes_on_in(new, length)?;
            let directory = &self.spool.directory.fd;
            renameat(
                directory,
                name,
                directory,
                journal_name(self.process, LIVE).as_str(),
            )?;
            *journal = next;
            return Ok(());
        }
    }

    /// The first frame, which says what was accepted, and what stands at the cut.
    fn read_upto(&self, old: &File, owed: Vec<u8>, cut: &Cut) -> io::Result<(Vec<u8>, Standing)> {
        let written = cut.upto - owed.len() as u64;
        let mut bytes = vec![0; usize::try_from(written).map_err(io::Error::other)?];
        old.read_exact_at(&mut bytes, 0)?;
        bytes.extend(owed);
        let mut standing = Standing::default();
        let read = journal::read(&bytes, |_, entry| {
            match entry {
                Entry::Checkpoint(checkpoint) => standing = checkpoint.standing,
                entry => drop(standing.take(entry)),
            }
            Ok::<(), io::Error>(())
        })?;
        if read != cut.upto {
            return Err(io::Error::other("it cannot be read as it was written"));
        }
        // Read after the cut: which calls have an answer that is written before it, and are not done.
        let calls = calls::read(&self.spool.directory, self.process)?;
        standing.keep_answers(calls.as_ref());
        let accepted = journal::first_frame(&bytes).ok_or_else(|| io::Error::other("it is empty"))?;
        Ok((accepted.to_vec(), standing))
    }
}

/// Copies a part of one file to the end of the other.
fn copy(from: &File, range: std::ops::Range<u64>, to: &File, length: &mut u64) -> io::Result<()> {
    let mut at = range.start;
    let mut piece = vec![0; LAST_BYTES as usize];
    while at < range.end {
        let most = usize::try_from(range.end - at)
            .unwrap_or(usize::MAX)
            .min(piece.len());
        from.read_exact_at(&mut piece[..most], at)?;
        to.write_all_at(&piece[..most], *length)?;
        at += most as u64;
        *length += most as u64;
    }
    Ok(())
}
