//! The socket that listens: a member of the multicast group on which the kernel copies every audit record.
//!
//! Contract for the one unsafe block: it attaches a constant socket filter, and nothing else. The filter
//! only lessens what this socket receives.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, NetlinkAddr, recvmsg, setsockopt, sockopt};

use super::AuditUnavailable;
use super::control::audit_socket;
use super::wire;

/// `AUDIT_NLGRP_READLOG`, as a bit in the mask of groups.
const READLOG: u32 = 1;
/// Larger than any record: the longest path is 4 KiB, 8 KiB in hexadecimal.
const RECORD_BYTES_MAX: usize = 32 << 10;

/// The socket that listens.
#[derive(Debug)]
pub(super) struct Feed {
    socket: OwnedFd,
    buffer: Box<[u8]>,
}

/// What [`Feed::receive`] found.
pub(super) enum Received<'a> {
    /// Nothing is waiting.
    Nothing,
    /// Something that is no record of the kernel's.
    Ignored,
    /// The buffer overflowed: records are missing here.
    Overflow,
    /// A record.
    Record {
        /// Its type.
        kind: u16,
        /// Its text.
        text: &'a [u8],
    },
}

impl Feed {
    /// Joins the group.
    pub(super) fn open(receive_buffer_bytes: usize) -> Result<Self, AuditUnavailable> {
        let socket = audit_socket(READLOG).map_err(|errno| {
            AuditUnavailable::new(match errno {
                Errno::EPERM => "listening needs CAP_AUDIT_READ in the initial user namespace; \
                                 run Provost as root"
                    .to_owned(),
                other => format!("no socket to listen on: {}", other.desc()),
            })
        })?;
        // Beyond the machine's limit where we may, up to it where we may not. Not having it is no failure:
        // an overflow is noticed.
        if setsockopt(&socket, sockopt::RcvBufForce, &receive_buffer_bytes).is_err() {
            let _ = setsockopt(&socket, sockopt::RcvBuf, &receive_buffer_bytes);
        }
        attach_filter(&socket).map_err(|errno| {
            AuditUnavailable::new(format!("no filter on the socket: {}", errno.desc()))
        })?;
        Ok(Self::at(socket))
    }

    /// Goes on at the socket of an earlier one.
    pub(super) fn at(socket: OwnedFd) -> Self {
        Self {
            socket,
            buffer: vec![0; RECORD_BYTES_MAX].into_boxed_slice(),
        }
    }

    /// Takes one record, without waiting.
    pub(super) fn receive(&mut self) -> io::Result<Received<'_>> {
        let received = loop {
            match recv(&self.socket, &mut self.buffer) {
                Err(Errno::EINTR) => {}
                other => break other,
            }
        };
        match received {
            Ok((bytes, sender)) => {
                if sender != Some(0) {
                    return Ok(Received::Ignored);
                }
                let Some(message) = self.buffer.get(..bytes) else {
                    return Ok(Received::Overflow);
                };
                let (Some(header), Some(text)) =
                    (wire::Header::parse(message), message.get(wire::HEADER_BYTES..))
                else {
                    return Ok(Received::Ignored);
                };
                // One datagram is one record. The length in the header is not looked at: kernels have
                // counted it with and without the header.
                let end = text.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
                Ok(Received::Record {
                    kind: header.kind,
                    text: text.get(..end).unwrap_or_default(),
                })
            }
            Err(Errno::EAGAIN) => Ok(Received::Nothing),
            Err(Errno::ENOBUFS) => Ok(Received::Overflow),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Receives one datagram: its whole length (also where that did not fit), and its sender's netlink address.
fn recv(socket: &OwnedFd, buffer: &mut [u8]) -> Result<(usize, Option<u32>), Errno> {
    let mut parts = [io::IoSliceMut::new(buffer)];
    let message = recvmsg::<NetlinkAddr>(socket.as_raw_fd(), &mut parts, None, MsgFlags::MSG_TRUNC)?;
    Ok((message.bytes, message.address.map(|sender| sender.pid())))
}

impl AsFd for Feed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Lets through only the kinds of records that are read here. A machine that audits its system calls writes
/// many more, and each would wake us.
fn attach_filter(socket: &OwnedFd) -> Result<(), Errno> {
    // Filters load in network byte order what the kernel wrote in its own.
    let kind = |kind: u16| u32::from(u16::from_be_bytes(kind.to_ne_bytes()));
    let step = |code: u32, jump_true: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt: jump_true,
        jf: 0,
        k,
    };
    const JUMP_IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let mut filter = [
        step(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 4), // nlmsg_type
        step(JUMP_IF_EQUAL, 3, kind(wire::LANDLOCK_ACCESS)),
        step(JUMP_IF_EQUAL, 2, kind(wire::LANDLOCK_DOMAIN)),
        step(JUMP_IF_EQUAL, 1, kind(wire::USER)),
        step(RETURN, 0, 0),        // drop
        step(RETURN, 0, u32::MAX), // keep all of it
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: `program` and the instructions it points to live until the call returns; the kernel copies
    // and verifies them, and writes nothing.
    // WHY: nix has no wrapper for SO_ATTACH_FILTER.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop)
}
