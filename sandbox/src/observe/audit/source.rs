//! Where audit records come from: the kernel, or somebody who reads them for us.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{AuditEvent, AuditReader, AuditUnavailable, BrokeredReader, Drain, FenceId};

/// Reads audit records, in one of two ways.
#[derive(Debug)]
pub enum AuditSource {
    /// From the kernel.
    Kernel(Box<AuditReader>),
    /// From a broker.
    Broker(BrokeredReader),
}

impl AuditSource {
    /// Begins to listen: at this socket, or to the kernel. Blocks the thread, mostly for less than a few milliseconds.
    ///
    /// # Errors
    /// As of [`AuditReader::open`] and [`BrokeredReader::open`].
    pub fn open(broker: Option<OwnedFd>) -> Result<Self, AuditUnavailable> {
        match broker {
            Some(socket) => BrokeredReader::open(socket).map(Self::Broker),
            None => AuditReader::open().map(|reader| Self::Kernel(Box::new(reader))),
        }
    }

    /// Goes on at the socket of an earlier reader of the kernel's records ([`AuditSource::as_fd`]), which somebody kept open
    /// meanwhile, or begins anew where that cannot be.
    ///
    /// # Errors
    /// As of [`AuditReader::open`].
    pub fn go_on(socket: OwnedFd) -> Result<Self, AuditUnavailable> {
        AuditReader::go_on(socket).map(|reader| Self::Kernel(Box::new(reader)))
    }

    /// Where the kernel is read, the socket, for [`AuditSource::go_on`].
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Kernel(reader) => Some(reader.as_fd()),
            Self::Broker(_) => None,
        }
    }

    /// Nothing was missed since an earlier reader stopped, but for what [`AuditSource::lost`] says.
    pub fn is_continued(&self) -> bool {
        match self {
            Self::Kernel(reader) => reader.is_continued(),
            Self::Broker(_) => false,
        }
    }

    /// As [`AuditReader::read`].
    ///
    /// # Errors
    /// As there, and where the broker is gone.
    pub fn read(&mut self, out: &mut Vec<AuditEvent>) -> io::Result<Drain> {
        match self {
            Self::Kernel(reader) => reader.read(out),
            Self::Broker(reader) => reader.read(out),
        }
    }

    /// As [`AuditReader::send_fence`].
    ///
    /// # Errors
    /// As there, and where the broker is gone.
    pub fn send_fence(&mut self) -> io::Result<FenceId> {
        match self {
            Self::Kernel(reader) => reader.send_fence(),
            Self::Broker(reader) => reader.send_fence(),
        }
    }

    /// As [`AuditReader::lost`].
    ///
    /// # Errors
    /// As there.
    pub fn lost(&mut self) -> io::Result<u64> {
        match self {
            Self::Kernel(reader) => reader.lost(),
            Self::Broker(reader) => Ok(reader.lost()),
        }
    }
}

impl AsFd for AuditSource {
    /// Readable when [`AuditSource::read`] has something to read. For waiting only.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Kernel(reader) => reader.as_fd(),
            Self::Broker(reader) => reader.as_fd(),
        }
    }
}
