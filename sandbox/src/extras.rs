//! What a command may be handed besides its standard streams: a place for its result, and a way to say that it is ready.
//!
//! The place is a file in memory that neither grows nor shrinks, so that whatever is done to it costs a bounded amount of
//! memory and never blocks. What is in it when nothing of the tree lives any more counts. A program writes to it as to any
//! descriptor (`echo 7 >&$PROVOST_REPORT_FD`); [`report`] writes once and seals it, so that nobody can write again. It
//! outlives a supervisor that dies, because the keeper holds it too.
//!
//! The way is a pipe, into which the program writes a line feed; or, for programs that know sd_notify(3), a socket that it gets
//! where it asks for a unix datagram socket (`ready_sockets`).
//!
//! Contract of what is unsafe here: a descriptor that came by inheritance is known by its number alone. It is duplicated,
//! which the kernel refuses for a number that names nothing, and only the duplicate is used.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde::{Deserialize, Serialize};

/// The number that the place for its result has in a command that was asked for one.
pub const REPORT_FD: RawFd = 3;
/// The number of the pipe in which it says that it is ready.
pub const READY_FD: RawFd = 4;
/// The variable with the number of the one.
pub const REPORT_VARIABLE: &str = "PROVOST_REPORT_FD";
/// And that of the other.
pub const READY_VARIABLE: &str = "PROVOST_READY_FD";
/// The longest result, in bytes.
pub const REPORT_BYTES_MAX: usize = 64 << 10;

/// Room for the longest one, for a line feed behind it, and for seeing that one is longer. Whole pages.
const FILE_BYTES: usize = REPORT_BYTES_MAX + (4 << 10);
/// What nobody can take from the file again.
const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW);

/// The variable that says where to send `READY=1`.
pub const NOTIFY_VARIABLE: &str = "NOTIFY_SOCKET";
/// What it says is this name with `@` before it (an abstract one). No socket is bound to it: it only tells what the program means.
pub const NOTIFY_NAME: &str = "provost/notify";

/// How a command says that it is ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadyBy {
    /// Not at all.
    #[default]
    Nothing,
    /// By a line feed into the descriptor whose number is in `PROVOST_READY_FD`.
    Fd,
    /// By `READY=1` to `NOTIFY_SOCKET`, as sd_notify(3) does it. Only for what runs under a seccomp listener.
    Notify,
}

/// Which of them a command gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extras {
    /// A place for its result.
    pub report: bool,
    /// What it says with that it is ready.
    pub ready: ReadyBy,
}

impl Extras {
    /// How many descriptors that makes for its supervisor: with [`ReadyBy::Notify`] both ends.
    pub fn count(self) -> usize {
        let ready = match self.ready {
            ReadyBy::Nothing => 0,
            ReadyBy::Fd => 1,
            ReadyBy::Notify => 2,
        };
        usize::from(self.report) + ready
    }

    /// `KEY=VALUE` strings that tell the command of them, in place of those that told somebody else.
    pub(crate) fn tell(self, env: &mut Vec<Vec<u8>>) {
        let number = |is_there: bool, number: RawFd| is_there.then(|| number.to_string());
        let address = (self.ready == ReadyBy::Notify).then(|| format!("@{NOTIFY_NAME}"));
        let all = [
            (REPORT_VARIABLE, number(self.report, REPORT_FD)),
            (READY_VARIABLE, number(self.ready == ReadyBy::Fd, READY_FD)),
            (NOTIFY_VARIABLE, address),
        ];
        for (name, value) in all {
            if value.is_none() && name == NOTIFY_VARIABLE {
                continue; // somebody else's, who may have meant it for this command
            }
            env.retain(|entry| {
                let rest = entry.strip_prefix(name.as_bytes());
                rest.is_none_or(|rest| rest.first() != Some(&b'='))
            });
            env.extend(value.map(|value| format!("{name}={value}").into_bytes()));
        }
    }
}

/// Why a result was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// There is no place for one.
    #[error(
        "descriptor {0} is no place for a result; something on the way closed it or put another in its place"
    )]
    NoPlace(RawFd),
    /// Somebody was quicker.
    #[error("a result was reported already, and the first one stands")]
    Twice,
    /// There is no room for it.
    #[error("the result has {0} bytes, and may have {REPORT_BYTES_MAX}")]
    TooLong(usize),
    /// The kernel says no.
    #[error("the result cannot be written: {0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for ReportError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// A place for a result.
pub(crate) fn place() -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // Nothing is executed from it, where the kernel knows how to say so (6.3).
    let sealed = flags | MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
    let file = match memfd_create(c"provost-report", sealed) {
        Err(Errno::EINVAL) => memfd_create(c"provost-report", flags)?,
        made => made?,
    };
    nix::unistd::ftruncate(&file, FILE_BYTES as i64)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS))?;
    Ok(file)
}

/// What receives `READY=1`, and what the program gets for sending it: the two ends of a pair in which messages keep their bounds and
/// the kernel ignores the addresses that they carry. Whoever has the one reaches whoever holds the other, and nobody else does.
/// Sending never waits, for what nobody takes away: it fails.
pub(crate) fn ready_sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// What was written there, without the zeros behind it: no JSON has any. At most a little more than [`REPORT_BYTES_MAX`].
///
/// # Errors
/// It cannot be read.
pub fn reported(place: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; FILE_BYTES];
    place.read_exact_at(&mut bytes, 0)?;
    let length = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    bytes.truncate(length);
    Ok(bytes)
}

/// Reports a result to whoever supervises this process, through the descriptor of this number. Of several who do so at the
/// same time one is the first.
///
/// # Errors
/// See [`ReportError`]. After an error nothing was written, but for [`ReportError::Io`].
pub fn report(number: RawFd, value: &[u8]) -> Result<(), ReportError> {
    if value.len() > REPORT_BYTES_MAX {
        return Err(ReportError::TooLong(value.len()));
    }
    let place = inherited(number).ok_or(ReportError::NoPlace(number))?;
    let seals = fcntl(&place, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_retain);
    let seals = seals.map_err(|_| ReportError::NoPlace(number))?;
    if !seals.contains(SEALS) || place.metadata()?.len() != FILE_BYTES as u64 {
        return Err(ReportError::NoPlace(number));
    }
    // Of the process, not of the open file: that one everybody in the tree has in common.
    let lock = libc::flock {
        l_type: libc::F_WRLCK as _,
        l_whence: libc::SEEK_SET as _,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    while let Err(errno) = fcntl(&place, FcntlArg::F_SETLKW(&lock)) {
        if errno != Errno::EINTR {
            return Err(errno.into());
        }
    }
    if !reported(&place)?.is_empty() {
        return Err(ReportError::Twice);
    }
    match place.write_all_at(value, 0) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => return Err(ReportError::Twice),
        written => written?,
    }
    // Refused only where somebody has mapped it for writing, who then must be trusted not to write.
    let _ = fcntl(&place, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE));
    Ok(())
}

fn inherited(number: RawFd) -> Option<File> {
    // SAFETY: numbers only; the duplicate is new and nobody else's.
    // WHY: what was inherited has no owner in this program from whom it could be borrowed.
    unsafe {
        let duplicate = libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3);
        (duplicate >= 0).then(|| File::from(OwnedFd::from_raw_fd(duplicate)))
    }
}

/// Another number for a descriptor, above those that a command's extras take.
pub(crate) fn above(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > READY_FD {
        return Ok(fd);
    }
    let moved = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(READY_FD + 1))?;
    // SAFETY: the kernel has just made it for us.
    // WHY: nix returns it as a number.
    Ok(unsafe { OwnedFd::from_raw_fd(moved) })
}

#[cfg(test)]
#[path = "extras/tests.rs"]
mod tests;
