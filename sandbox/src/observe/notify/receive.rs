//! A receive on a stand-in, performed on behalf of the target: the answer and the address it is said to be from.

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::memory::{self, Unread};
use super::relay::DATAGRAM_BYTES_MAX;
use super::{Call, Listener, Response, Unavailable};

/// `struct msghdr` on a 64-bit machine.
const MSGHDR_BYTES: usize = 56;
/// `msg_len` of a `struct mmsghdr`.
const MESSAGE_LENGTH_AT: u64 = 56;
/// Parts of one message that are filled.
const PARTS_MAX: u64 = 16;
/// Nothing that we pass on is longer.
const ANSWER_BYTES_MAX: u64 = DATAGRAM_BYTES_MAX as u64;

/// Where the target wants a message and what is known of it. Copied once, before anything is received.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// Pointer and length of each part.
    parts: Vec<(u64, u64)>,
    /// Where the sender's address goes, and how many bytes of it.
    name: Option<(u64, usize)>,
    /// Where its length goes.
    name_length_at: Option<u64>,
    /// Where a header is to be completed.
    header_at: Option<u64>,
    /// Of several messages one is received, and its length goes into the array.
    several: bool,
}

impl Place {
    /// Reads the arguments of `recvfrom`, `recvmsg` or `recvmmsg`.
    pub(super) fn of(call: Call<'_>) -> Result<Self, Unavailable> {
        if call.name == "recvfrom" {
            let place = match call.arg(4) {
                0 => Self::default(),
                name_at => Self::of_name(call, name_at, call.arg(5))?,
            };
            return Ok(Self {
                parts: vec![(call.arg(1), call.arg(2))],
                ..place
            });
        }
        let several = call.name == "recvmmsg";
        if several && call.int(2) == 0 {
            return Err(Unavailable::Errno(Errno::EINVAL));
        }
        let header_at = call.arg(1);
        let mut header = [0; MSGHDR_BYTES];
        read(call.tid(), header_at, &mut header)?;
        let word = |at: usize| {
            header[at..]
                .first_chunk()
                .map_or(0, |bytes| u64::from_ne_bytes(*bytes))
        };
        let (name_at, capacity) = (word(0), word(8) as u32 as usize);
        let mut parts = Vec::new();
        for part in 0..word(24).min(PARTS_MAX) {
            let mut pair = [0; 16];
            let at = word(16)
                .checked_add(part * 16)
                .ok_or(Unavailable::Errno(Errno::EFAULT))?;
            read(call.tid(), at, &mut pair)?;
            let half = |at: usize| {
                pair[at..]
                    .first_chunk()
                    .map_or(0, |bytes| u64::from_ne_bytes(*bytes))
            };
            parts.push((half(0), half(8)));
        }
        Ok(Self {
            parts,
            name: (name_at != 0).then_some((name_at, capacity)),
            name_length_at: header_at.checked_add(8),
            header_at: Some(header_at),
            several,
        })
    }

    /// An address alone, and where its length stands and goes.
    pub(super) fn of_name(call: Call<'_>, name_at: u64, length_at: u64) -> Result<Self, Unavailable> {
        let mut length = [0; 4];
        read(call.tid(), length_at, &mut length)?;
        let capacity = i32::from_ne_bytes(length);
        let capacity = usize::try_from(capacity).map_err(|_| Unavailable::Errno(Errno::EINVAL))?;
        Ok(Self {
            name: Some((name_at, capacity)),
            name_length_at: Some(length_at),
            ..Self::default()
        })
    }

    fn room(&self) -> usize {
        let total: u64 = self.parts.iter().map(|part| part.1.min(ANSWER_BYTES_MAX)).sum();
        total.min(ANSWER_BYTES_MAX) as usize
    }

    /// Writes a received message; the result of the call.
    pub(super) fn fill(
        &self,
        memory: &File,
        message: &[u8],
        length: usize,
        source: Option<SocketAddr>,
    ) -> std::io::Result<i64> {
        let mut rest = message;
        for &(at, room) in &self.parts {
            let (now, later) =
                rest.split_at(rest.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            if !now.is_empty() {
                memory.write_all_at(now, at)?;
            }
            rest = later;
        }
        let name = source.map_or_else(Vec::new, socket_address);
        if let Some((at, capacity)) = self.name {
            memory.write_all_at(&name[..name.len().min(capacity)], at)?;
        }
        if let Some(at) = self.name_length_at {
            let told = if self.name.is_some() { name.len() as u32 } else { 0 };
            memory.write_all_at(&told.to_ne_bytes(), at)?;
        }
        if let Some(at) = self.header_at {
            // msg_controllen: no control message came. msg_flags: whether the message was cut.
            memory.write_all_at(&0u64.to_ne_bytes(), at.saturating_add(40))?;
            let cut = if length > message.len() {
                libc::MSG_TRUNC
            } else {
                0
            };
            memory.write_all_at(&cut.to_ne_bytes(), at.saturating_add(48))?;
        }
        if self.several {
            let at = self.header_at.unwrap_or(0).saturating_add(MESSAGE_LENGTH_AT);
            memory.write_all_at(&(length as u32).to_ne_bytes(), at)?;
            return Ok(1);
        }
        Ok(length as i64)
    }
}

/// A receive that may have to wait.
#[derive(Debug)]
pub(super) struct Receive {
    id: u64,
    flags: MsgFlags,
    memory: File,
    place: Place,
    source: Option<SocketAddr>,
}

impl Receive {
    pub(super) fn new(
        id: u64,
        flags: i32,
        memory: File,
        place: Place,
        source: Option<SocketAddr>,
    ) -> Self {
        let kept = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
        Self {
            id,
            flags: MsgFlags::from_bits_retain(flags) & kept,
            memory,
            place,
            source,
        }
    }

    /// Receives and writes; waits for a message if it `may_wait`, as long as the socket's own timeout says.
    pub(super) fn run(self, socket: &OwnedFd, listener: &Listener, may_wait: bool) -> Response {
        match self.receive(socket, listener, may_wait) {
            Ok(value) => Response::Value(value),
            Err(errno) => Response::Errno(errno as i32),
        }
    }

    fn receive(&self, socket: &OwnedFd, listener: &Listener, may_wait: bool) -> Result<i64, Errno> {
        let mut message = vec![0; self.place.room()];
        loop {
            // Only looked at: whoever called may be gone when it comes, and it is somebody else's then.
            if may_wait {
                match recv(socket.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK) {
                    Ok(_) => {}
                    Err(Errno::EINTR) => continue,
                    Err(errno) => return Err(errno),
                }
            }
            if !listener.is_valid(self.id) {
                return Err(Errno::ESRCH);
            }
            let flags = self.flags | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
            match recv(socket.as_raw_fd(), &mut message, flags) {
                Err(Errno::EAGAIN) if may_wait => {}
                Err(errno) => return Err(errno),
                Ok(length) => {
                    let got = &message[..length.min(message.len())];
                    let told = if self.flags.contains(MsgFlags::MSG_TRUNC) {
                        length
                    } else {
                        got.len()
                    };
                    return self
                        .place
                        .fill(&self.memory, got, told, self.source)
                        .map_err(|_| Errno::EFAULT);
                }
            }
        }
    }
}

fn read(tid: i32, at: u64, buffer: &mut [u8]) -> Result<(), Unavailable> {
    memory::read_exact(tid, at, buffer).map_err(|unread| match unread {
        Unread::Fault | Unread::TooLong => Unavailable::Errno(Errno::EFAULT),
        Unread::Forbidden => Unavailable::Forbidden,
    })
}

/// `struct sockaddr_in` or `sockaddr_in6`.
fn socket_address(address: SocketAddr) -> Vec<u8> {
    let port = address.port().to_be_bytes();
    match address {
        SocketAddr::V4(v4) => {
            let family = (libc::AF_INET as u16).to_ne_bytes();
            [&family[..], &port, &v4.ip().octets(), &[0; 8]].concat()
        }
        SocketAddr::V6(v6) => {
            let family = (libc::AF_INET6 as u16).to_ne_bytes();
            [&family[..], &port, &[0; 4], &v6.ip().octets(), &[0; 4]].concat()
        }
    }
}
