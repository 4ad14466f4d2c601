//! The audit records of one's own processes, where another process reads them for us.
//!
//! The socket keeps packets apart. Towards the broker: eight bytes, how many fences were asked for so far. From it: how many
//! records of ours may be missing so far, how many fences are answered, and events. What a packet says of fences holds
//! behind its events, and the socket keeps their order: a fence that is answered has every record before it that the kernel
//! had written when it was asked for.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use landlock::{AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{MsgFlags, recv, send};

use super::{AuditEvent, AuditUnavailable, Drain, FenceId, control, landlock_writes_records};

/// Larger than any packet.
pub(super) const PACKET_BYTES_MAX: usize = 64 * 1024;
/// How long the broker may take until records are proven to arrive.
const SELF_TEST_DEADLINE: Duration = Duration::from_secs(2);
/// Bytes that one call of [`BrokeredReader::read`] takes at most.
const READ_BYTES_MAX: usize = 2 << 20;
/// What stands for the number of answered fences where there are no records to be had; the reason follows.
pub(super) const UNAVAILABLE: u64 = u64::MAX;
/// Bytes of the two numbers in front.
pub(super) const HEAD_BYTES: usize = 16;

/// Writes a packet's two numbers.
pub(super) fn head(lost: u64, answered: u64) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(&lost.to_le_bytes());
    head[8..].copy_from_slice(&answered.to_le_bytes());
    head
}

fn split(packet: &[u8]) -> Option<(u64, u64, &[u8])> {
    let (lost, rest) = packet.split_first_chunk()?;
    let (answered, rest) = rest.split_first_chunk()?;
    Some((u64::from_le_bytes(*lost), u64::from_le_bytes(*answered), rest))
}

/// Reads what an [`AuditBroker`](super::AuditBroker) forwards: Landlock's records of this user's processes alone.
///
/// Says the same as [`AuditReader`](super::AuditReader), with the same guarantees. When the broker is gone, everything
/// fails: nothing is taken for complete then.
#[derive(Debug)]
pub struct BrokeredReader {
    socket: OwnedFd,
    asked: u64,
    answered: u64,
    lost: u64,
    lost_told: u64,
    buffer: Box<[u8]>,
}

impl BrokeredReader {
    /// Begins to listen on a socket that [`AuditBroker::subscribe`](super::AuditBroker::subscribe) made.
    ///
    /// Ends only after a denial of this process's own has come through, with a fence behind it. Blocks the thread for
    /// about a millisecond, and two seconds at the worst.
    ///
    /// # Errors
    /// The broker has none, is gone or does not answer; or what is this process's own does not come through.
    pub fn open(socket: OwnedFd) -> Result<Self, AuditUnavailable> {
        landlock_writes_records()?;
        let mut reader = Self::new(socket);
        reader.prove_that_own_records_arrive()?;
        Ok(reader)
    }

    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            asked: 0,
            answered: 0,
            lost: 0,
            lost_told: 0,
            buffer: vec![0; PACKET_BYTES_MAX].into_boxed_slice(),
        }
    }

    fn prove_that_own_records_arrive(&mut self) -> Result<(), AuditUnavailable> {
        let failed =
            |error: io::Error| AuditUnavailable::new(format!("the broker of audit records: {error}"));
        // The broker opens its own feed with the first fence, so the test's refusal can only come behind that.
        let deadline = Instant::now() + SELF_TEST_DEADLINE;
        self.read_to_fence(deadline).map_err(failed)?;
        be_refused();
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let seen = self.read_to_fence(deadline).map_err(failed)?;
        let is_own =
            |event: &AuditEvent| matches!(event, AuditEvent::DomainAllocated { pid, .. } if *pid == own);
        if !seen.iter().any(is_own) {
            return Err(AuditUnavailable::new(
                "the records of this user's own processes do not come through the broker; \
                 run both from the same file, in the same PID namespace",
            ));
        }
        self.lost_told = self.lost;
        Ok(())
    }

    /// As [`AuditReader::read`](super::AuditReader::read).
    ///
    /// # Errors
    /// The broker is gone, or has said something that is not understood.
    pub fn read(&mut self, out: &mut Vec<AuditEvent>) -> io::Result<Drain> {
        use std::os::fd::AsRawFd;
        let mut bytes = 0;
        while bytes < READ_BYTES_MAX {
            let length = match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err(io::ErrorKind::BrokenPipe.into()),
                Ok(length) => length,
                Err(Errno::EAGAIN) => return Ok(Drain::Empty),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            bytes += length;
            let packet = self.buffer.get(..length).and_then(split);
            let (lost, answered, mut rest) = packet.ok_or(io::ErrorKind::InvalidData)?;
            if answered == UNAVAILABLE {
                return Err(io::Error::other(String::from_utf8_lossy(rest).into_owned()));
            }
            self.lost = self.lost.max(lost);
            while !rest.is_empty() {
                let (event, after) = postcard::take_from_bytes(rest).map_err(io::Error::other)?;
                out.push(event);
                rest = after;
            }
            while self.answered < answered.min(self.asked) {
                self.answered += 1;
                out.push(AuditEvent::Fence(FenceId::numbered(self.answered)));
            }
        }
        Ok(Drain::More)
    }

    /// As [`AuditReader::send_fence`](super::AuditReader::send_fence); never waits.
    ///
    /// # Errors
    /// The broker is gone, or has not taken what was sent before.
    pub fn send_fence(&mut self) -> io::Result<FenceId> {
        use std::os::fd::AsRawFd;
        let asked = self.asked + 1;
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(self.socket.as_raw_fd(), &asked.to_le_bytes(), flags)?;
        self.asked = asked;
        Ok(FenceId::numbered(asked))
    }

    /// How many records may be missing since the last call, as far as the broker has told: of a fence that is answered,
    /// all before it.
    pub fn lost(&mut self) -> u64 {
        let before = std::mem::replace(&mut self.lost_told, self.lost);
        self.lost - before
    }

    pub(super) fn read_to_fence(&mut self, deadline: Instant) -> io::Result<Vec<AuditEvent>> {
        self.send_fence()?;
        let mut events = Vec::new();
        while self.answered < self.asked {
            if self.read(&mut events)? == Drain::Empty && self.answered < self.asked {
                if Instant::now() >= deadline {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer"));
                }
                let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
                control::poll_until(&mut fds, deadline)?;
            }
        }
        Ok(events)
    }
}

impl AsFd for BrokeredReader {
    /// Readable when [`BrokeredReader::read`] has something to read. For waiting only.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Is refused something by Landlock, on a thread of its own, which takes the restriction along when it ends.
fn be_refused() {
    let refused = std::thread::Builder::new()
        .name("provost-probe".to_owned())
        .spawn(|| {
            let restricted = Ruleset::default()
                .set_compatibility(CompatLevel::HardRequirement)
                .handle_access(AccessFs::ReadDir)
                .and_then(Ruleset::create)
                .and_then(landlock::RulesetCreated::restrict_self);
            // That it cannot be tried shows in nothing coming through.
            restricted.is_ok() && File::open("/").is_err()
        });
    let _ = refused.map(std::thread::JoinHandle::join);
}
