//! What is known of a map's items, written down as it comes: what `--resume` goes on from.
//!
//! One line of JSON for each thing; only ever appended to. A line that was being written when its writer died is cut off: what
//! it said is still the daemon's to tell. Rows are read back from the file, so that a map takes no memory for its outputs.

use std::fs::{File, TryLockError};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::rows::Row;

/// A journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Somebody else has it.
    #[error("another client waits for this map already; let it, or end it first")]
    Held,
    /// It cannot be read or written.
    #[error("the map's journal {}: {error}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
}

/// A line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    /// The daemon has the items up to this one.
    Submitted(usize),
    /// An item has ended.
    Ended(Box<Row>),
    /// What the items up to this one wrote was printed, in their order.
    Printed(usize),
}

/// The journal of a map, as long as this client has it.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    end: u64,
    /// Where the row of each item is: offset and length.
    rows: Vec<Option<(u64, usize)>>,
    submitted: usize,
    printed: usize,
}

impl Journal {
    /// Opens the journal of a map of so many items, makes it if it is not there, and tells of each row in it.
    ///
    /// # Errors
    /// Another client has it, or it cannot be used.
    pub fn open(path: &Path, items: usize, mut tell: impl FnMut(&Row)) -> Result<Self, JournalError> {
        let say = |error| JournalError::File {
            path: path.to_owned(),
            error,
        };
        let mut options = File::options();
        options.read(true).append(true).create(true).mode(0o600);
        let file = options.open(path).map_err(say)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::Held),
            Err(TryLockError::Error(error)) => return Err(say(error)),
        }
        let mut journal = Self {
            path: path.to_owned(),
            file,
            end: 0,
            rows: vec![None; items],
            submitted: 0,
            printed: 0,
        };
        let mut reader = BufReader::new(journal.file.try_clone().map_err(say)?);
        let mut line = Vec::new();
        loop {
            line.clear();
            let count = reader.read_until(b'\n', &mut line).map_err(say)?;
            let Ok(entry) = serde_json::from_slice::<Entry>(&line) else {
                break;
            };
            if line.last() != Some(&b'\n') {
                break;
            }
            match entry {
                Entry::Submitted(upto) => journal.submitted = upto,
                Entry::Printed(upto) => journal.printed = upto,
                Entry::Ended(row) => {
                    if let Some(place @ None) =
                        row.item.checked_sub(1).and_then(|at| journal.rows.get_mut(at))
                    {
                        *place = Some((journal.end, count));
                        tell(&row);
                    }
                }
            }
            journal.end += count as u64;
        }
        journal.file.set_len(journal.end).map_err(say)?;
        Ok(journal)
    }

    /// Up to which item the daemon has them.
    pub fn submitted(&self) -> usize {
        self.submitted
    }

    /// The daemon has them up to this one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn set_submitted(&mut self, upto: usize) -> Result<(), JournalError> {
        if upto > self.submitted {
            self.append(&Entry::Submitted(upto))?;
            self.submitted = upto;
        }
        Ok(())
    }

    /// Up to which item outputs were printed in order.
    pub fn printed(&self) -> usize {
        self.printed
    }

    /// They were printed up to this one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn set_printed(&mut self, upto: usize) -> Result<(), JournalError> {
        self.append(&Entry::Printed(upto))?;
        self.printed = upto;
        Ok(())
    }

    /// An item has ended, which is said once; the first row stands.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn set_ended(&mut self, row: Row) -> Result<(), JournalError> {
        let item = row.item;
        if self.has_ended(item) {
            return Ok(());
        }
        let place = self.append(&Entry::Ended(Box::new(row)))?;
        self.rows[item - 1] = Some(place);
        Ok(())
    }

    /// Whether the row of this item is there.
    pub fn has_ended(&self, item: usize) -> bool {
        self.rows[item - 1].is_some()
    }

    /// The row of this item.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn row(&self, item: usize) -> Result<Option<Row>, JournalError> {
        let Some((offset, length)) = self.rows[item - 1] else {
            return Ok(None);
        };
        let mut line = vec![0; length];
        self.file
            .read_exact_at(&mut line, offset)
            .map_err(|error| self.say(error))?;
        match serde_json::from_slice(&line) {
            Ok(Entry::Ended(row)) => Ok(Some(*row)),
            _ => Err(self.say(io::Error::other(format!("the row of item {item} was changed")))),
        }
    }

    fn append(&mut self, entry: &Entry) -> Result<(u64, usize), JournalError> {
        let mut line = serde_json::to_vec(entry).map_err(|error| self.say(error.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(|error| self.say(error))?;
        let place = (self.end, line.len());
        self.end += line.len() as u64;
        Ok(place)
    }

    fn say(&self, error: io::Error) -> JournalError {
        JournalError::File {
            path: self.path.clone(),
            error,
        }
    }
}

#[cfg(test)]
#[path = "journal/tests.rs"]
mod tests;
