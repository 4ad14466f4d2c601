//! The socket for requests: one question, its answer, a deadline.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, sendto,
    socket,
};

use super::AuditUnavailable;
use super::wire::{self, Header, RuleKind, Status};

/// How long the kernel may take to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);
/// Larger than any answer: a rule is at most 1 KiB and its texts.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// The socket for requests to the audit system.
#[derive(Debug)]
pub(super) struct Control {
    socket: OwnedFd,
    sequence: u32,
    buffer: Box<[u8]>,
}

/// Whether a request expects further messages.
enum Wait {
    Done,
    More,
}

/// The loaded rules, summed up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Rules {
    /// Ours is among them.
    pub(super) ours: bool,
    /// Somebody else's are among them.
    pub(super) foreign: bool,
    /// One of them may keep Landlock's records out of the stream.
    pub(super) hides_landlock: bool,
}

impl Control {
    /// Opens the socket. That the kernel listens to us shows with the first request.
    pub(super) fn open() -> Result<Self, AuditUnavailable> {
        let socket = audit_socket(0)
            .map_err(|errno| AuditUnavailable::new(format!("no audit socket: {}", errno.desc())))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: vec![0; ANSWER_BYTES_MAX].into_boxed_slice(),
        })
    }

    /// `AUDIT_GET`.
    pub(super) fn status(&mut self) -> io::Result<Status> {
        let mut status = None;
        self.request(wire::GET, 0, &[], |kind, payload| {
            if kind == wire::GET {
                status = Status::parse(payload);
                Wait::Done
            } else {
                Wait::More
            }
        })?;
        status.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "the kernel's audit status is too short",
            )
        })
    }

    /// `AUDIT_LIST_RULES`.
    pub(super) fn rules(&mut self) -> io::Result<Rules> {
        let mut rules = Rules::default();
        self.request(wire::LIST_RULES, 0, &[], |kind, payload| {
            match kind {
                wire::NLMSG_DONE => return Wait::Done,
                wire::LIST_RULES => match wire::rule::classify(payload) {
                    RuleKind::Ours => rules.ours = true,
                    RuleKind::Foreign => rules.foreign = true,
                    RuleKind::HidesLandlock => {
                        rules.foreign = true;
                        rules.hides_landlock = true;
                    }
                },
                _ => {}
            }
            Wait::More
        })?;
        Ok(rules)
    }

    /// Adds our rule before all others.
    pub(super) fn add_rule(&mut self) -> io::Result<()> {
        self.command(wire::ADD_RULE, &wire::rule::to_add())
    }

    /// Removes our rule, as often as it is there.
    pub(super) fn delete_rule(&mut self) -> io::Result<()> {
        loop {
            match self.command(wire::DEL_RULE, &wire::rule::to_delete()) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn set_enabled(&mut self, enabled: u32) -> io::Result<()> {
        self.command(wire::SET, &Status::set_enabled(enabled))
    }

    pub(super) fn set_backlog_limit(&mut self, limit: u32) -> io::Result<()> {
        self.command(wire::SET, &Status::set_backlog_limit(limit))
    }

    /// `AUDIT_USER`: puts a message into the stream, behind everything queued before.
    pub(super) fn send_user_message(&mut self, text: &str) -> io::Result<()> {
        // The kernel puts a NUL over the last byte.
        let mut payload = text.as_bytes().to_vec();
        payload.push(0);
        self.command(wire::USER, &payload)
    }

    /// A request that is answered by an acknowledgement or an error.
    pub(super) fn command(&mut self, kind: u16, payload: &[u8]) -> io::Result<()> {
        self.request(kind, libc::NLM_F_ACK, payload, |_, _| Wait::More)
    }

    /// Sends a request and hands each answer to `take`, until that is done, the kernel acknowledges or
    /// refuses, or the deadline passes.
    fn request(
        &mut self,
        kind: u16,
        flags: i32,
        payload: &[u8],
        mut take: impl FnMut(u16, &[u8]) -> Wait,
    ) -> io::Result<()> {
        let deadline = Instant::now() + ANSWER_DEADLINE;
        // Answers to a request that was given up on may still come: they carry another number.
        self.sequence = self.sequence.wrapping_add(1);
        let message = wire::request(kind, flags, self.sequence, payload);
        self.send(&message, deadline)?;
        loop {
            let received = self.receive(deadline)?;
            let mut rest = self.buffer.get(..received).unwrap_or_default();
            while let Some(header) = Header::parse(rest) {
                let end = header.bytes.min(rest.len());
                let Some(payload) = rest.get(wire::HEADER_BYTES..end) else {
                    break;
                };
                if header.sequence == self.sequence {
                    if header.kind == wire::NLMSG_ERROR {
                        return match wire::u32_at(payload, 0).map(u32::cast_signed) {
                            Some(0) => Ok(()),
                            Some(errno) => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
                            None => Err(io::ErrorKind::InvalidData.into()),
                        };
                    }
                    if matches!(take(header.kind, payload), Wait::Done) {
                        return Ok(());
                    }
                }
                // Messages in one datagram are aligned to four bytes.
                rest = rest.get(end.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }

    fn send(&self, message: &[u8], deadline: Instant) -> io::Result<()> {
        let kernel = NetlinkAddr::new(0, 0);
        loop {
            match sendto(self.socket.as_raw_fd(), message, &kernel, MsgFlags::MSG_DONTWAIT) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
                    poll_until(&mut fds, deadline)?;
                    if Instant::now() >= deadline {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// One datagram of the kernel's, into the buffer.
    fn receive(&mut self, deadline: Instant) -> io::Result<usize> {
        loop {
            let answer = recvfrom::<NetlinkAddr>(self.socket.as_raw_fd(), &mut self.buffer);
            match answer {
                Ok((bytes, Some(sender))) if sender.pid() == 0 => return Ok(bytes),
                // Other processes can send to this socket, and are not answered.
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
                    poll_until(&mut fds, deadline)?;
                }
                Err(errno) => return Err(errno.into()),
            }
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

/// A nonblocking audit socket in the given multicast groups.
pub(super) fn audit_socket(groups: u32) -> Result<OwnedFd, Errno> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkAudit,
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

/// Waits until one of `fds` is ready, the deadline passes, or a signal comes.
pub(super) fn poll_until(fds: &mut [PollFd<'_>], deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    // Rounded up: a wait of less than a millisecond must not become a busy loop.
    let left_ms = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
    match poll(fds, PollTimeout::from(left_ms)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
