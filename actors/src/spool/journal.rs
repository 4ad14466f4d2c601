//! One process's journal: what was accepted, and every fact in the order in which the ledger took it.
//!
//! ```text
//! length u32 | crc32 u32 | kind u8 | time i64 (ns since 1970) | body        little endian, one after the other
//! ```
//!
//! A frame is written with one `write(2)` to the page cache before its event becomes visible to anybody, so it survives
//! the death of this process, though not a loss of power. A frame that was torn (a full disk, a crash of the machine)
//! is the end of the journal: it and what follows is cut off when it is opened again.
//!
//! A frame that finds no room is *owed*: it waits in memory, and everything that comes after it behind it, so that there is never
//! a hole. It is written as soon as it can be. What is owed is bounded as the journal is: what it came to takes its place
//! ([`checkpoint`](super::checkpoint)).

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use jiff::Timestamp;
use provost_sandbox::observe::notify::{Grant, Response};
use serde::{Deserialize, Serialize};

use super::checkpoint::Checkpoint;
use super::stored::Accepted;
use crate::approval::ApprovalScope;
use crate::event::StreamName;
use crate::ledger::Fact;
use crate::record::TerminalRecord;

/// What stands before a frame's kind.
const HEAD_BYTES: usize = 8;
/// Kind and time.
const PREFIX_BYTES: usize = 9;
/// The longest frame: a spec's argv and env together are bounded by the kernel's 2 MiB, and JSON makes them longer; so does what
/// a checkpoint says of some hundred thousand pieces of output.
const FRAME_BYTES_MAX: usize = 64 << 20;

/// What a frame says.
#[derive(Debug, Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every entry is a fact, and none is kept"
)]
pub(crate) enum Entry {
    /// The first: what is to run.
    Accepted(Box<Accepted>),
    /// A fact, as the ledger took it.
    Fact(Fact),
    /// The record: the last.
    Sealed(Arc<TerminalRecord>),
    /// Standard input: how far it was written for sure, and how far perhaps.
    Stdin(StdinProgress),
    /// Facts that the ledger has not taken yet.
    Observed(Box<Observed>),
    /// The ledger took the observed fact of this number.
    Took(u64),
    /// What was allowed beyond one call.
    Granted(ApprovalScope, Grant),
    /// What all facts before it came to: it stands in their place.
    Checkpoint(Box<Checkpoint>),
}

/// Facts that are written down before their program can go on, and what else is true as of then.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Observed {
    /// The number of the first; the others count on.
    pub(crate) number: u64,
    pub(crate) facts: Vec<Fact>,
    /// Which of the listener's calls is answered now, and how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) answered: Option<(u64, Response)>,
    /// How many denials of which Landlock domains were told by now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) domains: Vec<(u64, u64)>,
}

/// How far standard input was written, in bytes from its beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StdinProgress {
    /// Everything below was handed to the command.
    pub written: u64,
    /// What lies between that and this was about to be.
    pub intended: u64,
}

#[derive(Clone, Copy)]
#[repr(u8)]
enum Kind {
    Accepted = 1,
    Fact = 2,
    Output = 3,
    Sealed = 4,
    Stdin = 5,
    Observed = 6,
    Took = 7,
    Granted = 8,
    Checkpoint = 9,
}

/// A journal that is written.
#[derive(Debug)]
pub(crate) struct Journal {
    file: Arc<File>,
    /// The end of the last whole frame.
    length: u64,
    /// Whole frames that come behind it and are not written yet.
    owed: Vec<u8>,
    /// The number of the next fact that is observed.
    observed: u64,
    /// From this length on it should be made shorter.
    long: u64,
    /// The same of what is owed.
    owed_long: usize,
    /// Its record is in it, or on the way.
    complete: bool,
}

/// A place between two entries of a journal that is written.
#[derive(Debug)]
pub(crate) struct Cut {
    /// How many bytes lie before it, those that are owed included.
    pub(super) upto: u64,
}

/// What became of an entry.
#[derive(Debug)]
pub(crate) enum Appended {
    /// It is written.
    Written,
    /// It is owed, because of this.
    Owed(io::Error),
    /// It can neither be written nor owed: it is gone.
    GivenUp(io::Error),
}

impl Appended {
    /// Whether it is written.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn written(self) -> io::Result<()> {
        match self {
            Self::Written => Ok(()),
            Self::Owed(error) | Self::GivenUp(error) => Err(error),
        }
    }
}

/// How long a journal is at least that is made shorter, in bytes.
const LONG_BYTES: u64 = if cfg!(test) { 4 << 10 } else { 1 << 20 };
/// How much is owed at least before what it came to takes its place, in bytes.
const OWED_LONG_BYTES: usize = if cfg!(test) { 1 << 10 } else { 64 << 10 };
/// More than this is never owed but for the record, in bytes: what a checkpoint cannot make less is beyond help.
const OWED_BYTES_MAX: usize = 16 << 20;

impl Journal {
    /// Goes on with a journal whose whole frames take so many bytes; what follows them is cut off.
    ///
    /// # Errors
    /// It cannot be cut off.
    pub(crate) fn new(file: File, length: u64) -> io::Result<Self> {
        if file.metadata()?.len() > length {
            file.set_len(length)?;
        }
        Ok(Self {
            file: Arc::new(file),
            length,
            owed: Vec::new(),
            observed: 0,
            long: LONG_BYTES,
            owed_long: OWED_LONG_BYTES,
            complete: false,
        })
    }

    /// The end of the last whole frame.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// The file.
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Nothing but the record comes any more.
    pub(super) fn complete(&mut self) {
        self.complete = true;
    }

    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether something waits to be written.
    pub(super) fn owes(&self) -> bool {
        !self.owed.is_empty()
    }

    /// Where it ends now.
    pub(super) fn cut(&self) -> Cut {
        Cut {
            upto: self.length + self.owed.len() as u64,
        }
    }

    /// It should be made shorter: where it ends. Said once.
    pub(super) fn is_long(&mut self) -> Option<Cut> {
        let long = self.length >= self.long || self.owed.len() >= self.owed_long;
        (long && !self.complete).then(|| {
            (self.long, self.owed_long) = (u64::MAX, usize::MAX);
            self.cut()
        })
    }

    /// What is owed, up to the cut.
    pub(super) fn owed_before(&self, cut: &Cut) -> &[u8] {
        &self.owed[..self.owed_at(cut.upto)]
    }

    /// What is owed of what follows this place.
    pub(super) fn owed_from(&self, place: u64) -> &[u8] {
        &self.owed[self.owed_at(place)..]
    }

    fn owed_at(&self, place: u64) -> usize {
        usize::try_from(place.saturating_sub(self.length))
            .map_or(self.owed.len(), |at| at.min(self.owed.len()))
    }

    /// A checkpoint of everything before the cut takes the place of what was owed of it.
    pub(super) fn owe_instead(&mut self, cut: &Cut, checkpoint: &[u8]) {
        let before = self.owed_at(cut.upto);
        if before > checkpoint.len() {
            self.owed.splice(..before, checkpoint.iter().copied());
            self.owed.shrink_to_fit();
        }
    }

    /// A shorter one goes on where this one is, with everything that this one owed.
    pub(super) fn goes_on_in(&self, file: File, length: u64) -> io::Result<Self> {
        let mut next = Self::new(file, length)?;
        next.observed = self.observed;
        next.is_short();
        Ok(next)
    }

    /// It is as short as it can be made now: once more when it is twice as long.
    pub(super) fn is_short(&mut self) {
        self.long = (self.length * 2).max(LONG_BYTES);
        self.owed_long = (self.owed.len() * 2).max(OWED_LONG_BYTES);
    }

    /// Goes on counting observed facts there.
    pub(super) fn observed_from(&mut self, number: u64) {
        self.observed = number;
    }

    /// Numbers facts and writes them.
    pub(super) fn observe(
        &mut self,
        time: Timestamp,
        mut observed: Box<Observed>,
    ) -> (Appended, Box<Observed>) {
        observed.number = self.observed;
        let entry = Entry::Observed(observed);
        let appended = self.append(time, &entry);
        let Entry::Observed(observed) = entry else {
            unreachable!("it was made here")
        };
        if !matches!(appended, Appended::GivenUp(_)) {
            self.observed += observed.facts.len() as u64;
        }
        (appended, observed)
    }

    /// Writes an entry, or has it wait behind those that wait already.
    pub(crate) fn append(&mut self, time: Timestamp, entry: &Entry) -> Appended {
        let before = self.owed.len();
        if let Err(error) = write_frame(&mut self.owed, time, entry) {
            self.owed.truncate(before);
            return Appended::GivenUp(error);
        }
        if before > 0 {
            // Whoever comes by now and then tries all of it together.
            let error = io::Error::other("what came before it could not be written");
            if self.owed.len() > OWED_BYTES_MAX && !matches!(entry, Entry::Sealed(_)) {
                self.owed.truncate(before);
                return Appended::GivenUp(error);
            }
            return Appended::Owed(error);
        }
        match self.settle() {
            Ok(()) => Appended::Written,
            Err(error) => Appended::Owed(error),
        }
    }

    /// Writes what is owed. If that fails nothing of it is in the file.
    ///
    /// # Errors
    /// The disk is full, or broken.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        if let Err(error) = self.file.write_all_at(&self.owed, self.length) {
            let _ = self.file.set_len(self.length);
            return Err(error);
        }
        self.length += self.owed.len() as u64;
        self.owed.clear();
        // One large frame, the first, must not be held for ever.
        if self.owed.capacity() > 4096 {
            self.owed = Vec::new();
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn write_into(&mut self, file: File) -> Arc<File> {
        std::mem::replace(&mut self.file, Arc::new(file))
    }
}

/// Puts what an entry is in a journal behind what is there.
pub(super) fn write_frame(frames: &mut Vec<u8>, time: Timestamp, entry: &Entry) -> io::Result<()> {
    let start = frames.len();
    frames.resize(start + HEAD_BYTES, 0);
    encode(frames, time, entry)?;
    let (head, body) = frames[start..].split_at_mut(HEAD_BYTES);
    if body.len() > FRAME_BYTES_MAX {
        return Err(io::Error::other("it is longer than can be read again"));
    }
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4..].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    Ok(())
}

fn encode(frame: &mut Vec<u8>, time: Timestamp, entry: &Entry) -> io::Result<()> {
    let (kind, json) = match entry {
        Entry::Accepted(accepted) => (Kind::Accepted, serde_json::to_vec(accepted)),
        Entry::Fact(Fact::Output {
            stream,
            offset,
            length,
        }) => {
            // What there may be millions of.
            prefix(frame, Kind::Output, time);
            frame.push(stream.index() as u8);
            frame.extend(offset.to_le_bytes());
            frame.extend(length.to_le_bytes());
            return Ok(());
        }
        Entry::Fact(fact) => (Kind::Fact, serde_json::to_vec(fact)),
        Entry::Observed(observed) => (Kind::Observed, serde_json::to_vec(observed)),
        Entry::Granted(scope, grant) => (Kind::Granted, serde_json::to_vec(&(scope, grant))),
        Entry::Took(number) => {
            prefix(frame, Kind::Took, time);
            frame.extend(number.to_le_bytes());
            return Ok(());
        }
        Entry::Sealed(record) => (Kind::Sealed, serde_json::to_vec(record)),
        Entry::Checkpoint(checkpoint) => (Kind::Checkpoint, serde_json::to_vec(checkpoint)),
        Entry::Stdin(progress) => {
            prefix(frame, Kind::Stdin, time);
            frame.extend(progress.written.to_le_bytes());
            frame.extend(progress.intended.to_le_bytes());
            return Ok(());
        }
    };
    prefix(frame, kind, time);
    frame.write_all(&json?)
}

fn prefix(frame: &mut Vec<u8>, kind: Kind, time: Timestamp) {
    frame.push(kind as u8);
    // Until the year 2262.
    let nanos = i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX);
    frame.extend(nanos.to_le_bytes());
}

/// Reads the whole frames of a journal in order, and says how many bytes they take.
///
/// Frames that are whole and not understood end it, too.
///
/// # Errors
/// What `take` says.
pub(crate) fn read<E>(
    journal: &[u8],
    mut take: impl FnMut(Timestamp, Entry) -> Result<(), E>,
) -> Result<u64, E> {
    let mut rest = journal;
    while let Some((body, after)) = next_frame(rest) {
        let Some((time, entry)) = decode(body) else { break };
        take(time, entry)?;
        rest = after;
    }
    Ok((journal.len() - rest.len()) as u64)
}

/// The whole frame that stands there, understood or not.
pub(super) fn first_frame(rest: &[u8]) -> Option<&[u8]> {
    let (_, after) = next_frame(rest)?;
    rest.get(..rest.len() - after.len())
}

/// Whether it ends within its first frame.
pub(super) fn is_short(journal: &[u8]) -> bool {
    let Some((length, rest)) = journal.split_first_chunk::<4>() else {
        return true;
    };
    let length = u32::from_le_bytes(*length) as usize;
    length <= FRAME_BYTES_MAX && rest.len() < HEAD_BYTES - 4 + length
}

fn next_frame(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (checksum, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length) as usize;
    if !(PREFIX_BYTES..=FRAME_BYTES_MAX).contains(&length) {
        return None;
    }
    let (body, rest) = rest.split_at_checked(length)?;
    (crc32fast::hash(body) == u32::from_le_bytes(*checksum)).then_some((body, rest))
}

fn decode(body: &[u8]) -> Option<(Timestamp, Entry)> {
    let (kind, body) = body.split_first()?;
    let (nanos, body) = body.split_first_chunk::<8>()?;
    let time = Timestamp::from_nanosecond(i64::from_le_bytes(*nanos).into()).ok()?;
    let entry = match *kind {
        kind if kind == Kind::Accepted as u8 => Entry::Accepted(serde_json::from_slice(body).ok()?),
        kind if kind == Kind::Fact as u8 => Entry::Fact(serde_json::from_slice(body).ok()?),
        kind if kind == Kind::Observed as u8 => Entry::Observed(serde_json::from_slice(body).ok()?),
        kind if kind == Kind::Granted as u8 => {
            let (scope, grant) = serde_json::from_slice(body).ok()?;
            Entry::Granted(scope, grant)
        }
        kind if kind == Kind::Took as u8 => Entry::Took(u64::from_le_bytes(body.try_into().ok()?)),
        kind if kind == Kind::Sealed as u8 => Entry::Sealed(serde_json::from_slice(body).ok()?),
        kind if kind == Kind::Checkpoint as u8 => Entry::Checkpoint(serde_json::from_slice(body).ok()?),
        kind if kind == Kind::Output as u8 => {
            let (stream, body) = body.split_first()?;
            let [offset, length] = two_words(body)?;
            Entry::Fact(Fact::Output {
                stream: *StreamName::ALL.get(usize::from(*stream))?,
                offset,
                length,
            })
        }
        kind if kind == Kind::Stdin as u8 => {
            let [written, intended] = two_words(body)?;
            Entry::Stdin(StdinProgress { written, intended })
        }
        _ => return None,
    };
    Some((time, entry))
}

fn two_words(body: &[u8]) -> Option<[u64; 2]> {
    let (first, body) = body.split_first_chunk::<8>()?;
    let (second, body) = body.split_first_chunk::<8>()?;
    body.is_empty()
        .then(|| [u64::from_le_bytes(*first), u64::from_le_bytes(*second)])
}
