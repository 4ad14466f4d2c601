//! The raw output of one stream, in files.
//!
//! ```text
//! <process>.stdout.0000000000000000   the bytes from offset 0 on
//! <process>.stdout.0000000000040000   the bytes from 0x40000 on; what lies between two files was dropped
//! ```
//!
//! Bytes go from the pipe into the file within the kernel (`splice(2)`), so at every instant each is in one of the two:
//! whoever takes over reads on where the file ends. Retention unlinks whole files.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use nix::errno::Errno;
use nix::fcntl::{OFlag, SpliceFFlags, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Directory;
use crate::event::{ProcessId, StreamName};

/// Where the segments of one stream lie.
#[derive(Debug, Clone)]
pub(crate) struct StreamFiles {
    pub(super) directory: Arc<Directory>,
    pub(super) process: ProcessId,
    pub(super) stream: StreamName,
}

impl StreamFiles {
    fn name(&self, start: u64) -> String {
        format!("{}.{}.{start:016x}", self.process, self.stream)
    }

    /// # Errors
    /// There is no such file, or no descriptor is left.
    pub(crate) fn open(&self, start: u64) -> io::Result<File> {
        self.directory.open(&self.name(start), OFlag::O_RDONLY)
    }

    /// Removes every file of the stream.
    pub(super) fn remove_all(&self) {
        let begin = format!("{}.{}.", self.process, self.stream);
        let Ok(entries) = std::fs::read_dir(&self.directory.path) else {
            return;
        };
        for entry in entries.flatten() {
            if let Some(name) = entry.file_name().to_str().filter(|name| name.starts_with(&begin)) {
                self.directory.remove(name);
            }
        }
    }

    pub(crate) fn remove(&self, starts: &[u64]) {
        for start in starts {
            self.directory.remove(&self.name(*start));
        }
    }
}

/// One file, as far as it is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// Which segments there are: what the log knows of the files.
#[derive(Debug)]
pub(crate) struct Segments {
    files: StreamFiles,
    /// Never dropped.
    head: Vec<Segment>,
    /// Dropped from the front.
    tail: VecDeque<Segment>,
    end: u64,
}

/// Bytes in a file that is open, whatever becomes of its name.
#[derive(Debug)]
pub(crate) struct Place {
    file: Arc<File>,
    at: u64,
    length: usize,
}

impl Place {
    pub(crate) fn length(&self) -> u64 {
        self.length as u64
    }

    /// # Errors
    /// The disk is broken, or the file is shorter than it was.
    pub(crate) fn read(&self) -> io::Result<Bytes> {
        let mut bytes = BytesMut::zeroed(self.length);
        self.file.read_exact_at(&mut bytes, self.at)?;
        Ok(bytes.freeze())
    }
}

/// A segment that a reader has open.
pub(crate) type Opened = Option<(u64, Arc<File>)>;

impl Segments {
    /// What there is, in order.
    pub(crate) fn new(files: StreamFiles, found: Vec<Segment>) -> Self {
        let end = found.last().map_or(0, |last| last.end);
        Self {
            files,
            head: Vec::new(),
            tail: found.into(),
            end,
        }
    }

    /// The offset of the end.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Where the files begin, in order.
    pub(crate) fn starts(&self) -> Vec<u64> {
        let all = self.head.iter().chain(&self.tail);
        all.map(|segment| segment.start).collect()
    }

    /// Bytes have come into the segment that begins there.
    pub(crate) fn filled(&mut self, segment: Segment) {
        self.end = self.end.max(segment.end);
        let last = self.tail.back_mut().or_else(|| self.head.last_mut());
        match last.filter(|last| last.start == segment.start) {
            Some(last) => last.end = last.end.max(segment.end),
            None => self.tail.push_back(segment),
        }
    }

    /// Whether a range is in one of the files.
    pub(crate) fn holds(&self, offset: u64, length: u64) -> bool {
        self.find(offset, length).is_some()
    }

    fn find(&self, offset: u64, length: u64) -> Option<&Segment> {
        let end = offset.checked_add(length)?;
        // Nearly always the last one.
        let mut all = self.head.iter().chain(&self.tail).rev();
        all.find(|segment| segment.start <= offset && end <= segment.end)
    }

    /// Where the bytes of a range are; `None` if not all of them are in one file.
    pub(crate) fn place(&self, offset: u64, length: u64, opened: &mut Opened) -> Option<Place> {
        let segment = self.find(offset, length)?;
        let file = match opened {
            Some((start, file)) if *start == segment.start => Arc::clone(file),
            _ => {
                let file = self.files.open(segment.start);
                let file = Arc::new(
                    file.inspect_err(
                        |error| tracing::error!(process = %self.files.process, %error, "cannot open a spool file"),
                    )
                    .ok()?,
                );
                *opened = Some((segment.start, Arc::clone(&file)));
                file
            }
        };
        Some(Place {
            file,
            at: offset - segment.start,
            length: usize::try_from(length).ok()?,
        })
    }

    /// Makes every file that begins below `end` the head.
    pub(crate) fn keep_head(&mut self, end: u64) {
        while let Some(segment) = self.tail.pop_front_if(|segment| segment.start < end) {
            self.head.push(segment);
        }
    }

    /// Drops files of the head that begin at `end` or behind.
    pub(crate) fn shorten_head(&mut self, end: u64) {
        let mut dropped = Vec::new();
        while let Some(segment) = self.head.pop_if(|segment| segment.start >= end) {
            dropped.push(segment.start);
        }
        self.files.remove(&dropped);
    }

    /// Drops whole files between the head and `start`; the last one stays, for it is being filled.
    pub(crate) fn drop_below(&mut self, start: u64) {
        let mut dropped = Vec::new();
        while self.tail.len() > 1
            && let Some(segment) = self.tail.pop_front_if(|segment| segment.end <= start)
        {
            dropped.push(segment.start);
        }
        self.files.remove(&dropped);
    }
}

/// Fills the files of a stream.
#[derive(Debug)]
pub(crate) struct SegmentWriter {
    files: StreamFiles,
    /// The file that is being filled, and where it begins.
    current: Option<(File, u64)>,
    end: u64,
    segment_bytes: u64,
    /// For terminals, which cannot be spliced into files: a pipe in between, its reading end first. What is in it is kept by
    /// whoever keeps the terminal.
    relay: Option<(OwnedFd, OwnedFd)>,
}

/// What came of a look at the pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    /// So much is in this segment now; before it came, that ended at `from`.
    Bytes { segment: Segment, from: u64 },
    /// Nothing will come any more.
    End,
}

/// Why nothing was moved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unmoved {
    /// Where it comes from: `WouldBlock` if nothing is there, `EIO` at the end of a terminal.
    #[error("it cannot be read: {0}")]
    Source(#[source] io::Error),
    /// Where it was to go, whatever the reason. What is there is still there.
    #[error("it cannot be kept: {0}")]
    Disk(#[source] io::Error),
}

impl Unmoved {
    fn is_would_block(&self) -> bool {
        matches!(self, Self::Source(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl SegmentWriter {
    /// Goes on at the end of what is there.
    pub(crate) fn new(
        segments: &Segments,
        segment_bytes: u64,
        relay: Option<(OwnedFd, OwnedFd)>,
    ) -> Self {
        Self {
            files: segments.files.clone(),
            current: None,
            end: segments.end,
            segment_bytes,
            relay,
        }
    }

    /// Moves what is there, at most `most` bytes, into the current file.
    ///
    /// # Errors
    /// Nothing is there, or its place cannot be written.
    pub(crate) fn fill(&mut self, source: impl AsFd, most: usize) -> Result<Moved, Unmoved> {
        let Some((reader, writer)) = self.relay.take() else {
            return self.fill_from(source.as_fd(), most);
        };
        // First what is in between already.
        let mut moved = self.fill_from(reader.as_fd(), most);
        if moved.as_ref().is_err_and(Unmoved::is_would_block) {
            moved = move_on(source.as_fd(), writer.as_fd(), None, most)
                .map_err(Unmoved::Source)
                .and_then(|_| self.fill_from(reader.as_fd(), most));
        }
        self.relay = Some((reader, writer));
        moved
    }

    fn fill_from(&mut self, pipe: BorrowedFd<'_>, most: usize) -> Result<Moved, Unmoved> {
        let is_full = |start: u64| self.end - start >= self.segment_bytes;
        if self.current.as_ref().is_none_or(|(_, start)| is_full(*start)) {
            // No file for nothing.
            if !has_bytes(pipe).map_err(Unmoved::Source)? {
                return Ok(Moved::End);
            }
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT;
            let file = self.files.directory.open(&self.files.name(self.end), flags);
            self.current = Some((file.map_err(Unmoved::Disk)?, self.end));
        }
        let Some((file, start)) = &self.current else {
            return Err(Unmoved::Disk(io::Error::other("no segment")));
        };
        let start = *start;
        let room = self.segment_bytes - (self.end - start);
        let most = most.min(usize::try_from(room).unwrap_or(usize::MAX));
        let moved = match move_on(pipe, file.as_fd(), Some(self.end - start), most) {
            Ok(moved) => moved,
            // A pipe can be empty, and has no other trouble.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(Unmoved::Source(error));
            }
            Err(error) => return Err(Unmoved::Disk(error)),
        };
        if moved == 0 {
            return Ok(Moved::End);
        }
        let from = self.end;
        self.end += moved as u64;
        let end = self.end;
        let segment = Segment { start, end };
        Ok(Moved::Bytes { segment, from })
    }

    /// Nothing is to be moved any more. Known without touching the disk, and only of what comes straight from a pipe.
    pub(crate) fn is_over(&self, source: impl AsFd) -> bool {
        self.relay.is_none() && matches!(has_bytes(source.as_fd()), Ok(false))
    }

    /// Bytes go by way of a pipe.
    pub(crate) fn has_relay(&self) -> bool {
        self.relay.is_some()
    }

    /// Reads what would be moved next.
    ///
    /// # Errors
    /// As of read(2).
    pub(crate) fn read(&self, source: impl AsFd, bytes: &mut [u8]) -> nix::Result<usize> {
        if let Some((reader, _)) = &self.relay {
            match nix::unistd::read(reader, bytes) {
                Err(Errno::EAGAIN) => {}
                read => return read,
            }
        }
        nix::unistd::read(source, bytes)
    }

    /// The next bytes go to no file: they were read and dropped.
    pub(crate) fn skip(&mut self, bytes: u64) {
        self.end += bytes;
        self.current = None;
    }

    /// The offset of the end.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }
}

/// Whether something is in a pipe; if not it is at its end, or `WouldBlock`.
fn has_bytes(pipe: BorrowedFd<'_>) -> io::Result<bool> {
    let mut look = [PollFd::new(pipe, PollFlags::POLLIN)];
    poll(&mut look, PollTimeout::ZERO)?;
    let seen = look[0].revents().unwrap_or(PollFlags::empty());
    if seen.contains(PollFlags::POLLIN) {
        Ok(true)
    } else if seen.is_empty() {
        Err(io::ErrorKind::WouldBlock.into())
    } else {
        Ok(false)
    }
}

fn move_on(from: BorrowedFd<'_>, to: BorrowedFd<'_>, at: Option<u64>, most: usize) -> io::Result<usize> {
    let mut at = at.map(i64::try_from).transpose().map_err(io::Error::other)?;
    loop {
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        match splice(from, None, to, at.as_mut(), most, flags) {
            Ok(moved) => return Ok(moved),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// How large the files of a stream are of which so much is kept at its end.
pub(crate) fn segment_bytes(tail_bytes: u64) -> u64 {
    (tail_bytes / 4).clamp(64 << 10, 8 << 20)
}
