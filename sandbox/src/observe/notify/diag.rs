//! The kernel's own list of unix sockets (`sock_diag`), asked which sockets are bound to a name.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use super::listener;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const UDIAG_SHOW_NAME: u32 = 1;
const UDIAG_SHOW_VFS: u32 = 2;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_VFS: u16 = 1;
const NLM_F_DUMP_INTR: u16 = 0x10;

/// The states of a socket that is bound and not connected, as bits: `TCP_CLOSE` and `TCP_LISTEN`. The sockets
/// that accept(2) makes carry their listener's name and file too, and are in another state.
const UNCONNECTED: u32 = 1 << 7 | 1 << 10;
const ANY_STATE: u32 = u32::MAX;

const HEADER_BYTES: usize = 16;
const MESSAGE_BYTES: usize = 16;
const BUFFER_BYTES: usize = 64 * 1024;
/// Dumps that are begun again because sockets came and went meanwhile.
const ATTEMPTS_MAX: usize = 4;

/// What a socket is sought by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sought<'a> {
    /// The file it is bound to.
    File {
        /// `st_dev`.
        device: u64,
        /// `st_ino`.
        inode: u64,
    },
    /// Its name in the abstract namespace, without the leading NUL.
    Abstract(&'a [u8]),
}

/// A bound socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BoundSocket {
    /// Its inode number, as `/proc/PID/fd` shows it. These are used again after 2³² sockets.
    pub(super) inode: u32,
    /// Its cookie (`SO_COOKIE`), which is never used again.
    pub(super) cookie: u64,
}

/// A socket to ask by. It sees the network namespace that it was opened in.
#[derive(Debug)]
pub(super) struct Diag {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Diag {
    pub(super) fn open() -> Result<Self, Errno> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        Ok(Self {
            socket,
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    /// The cookie of the network namespace that this sees.
    pub(super) fn namespace(&self) -> Result<u64, Errno> {
        listener::socket_u64(self.socket.as_fd(), libc::SO_NETNS_COOKIE)
    }

    /// The sockets of this type that are bound to what is sought.
    ///
    /// The kernel tells 32 bits of a file's inode number. Where file systems use more, two files may look
    /// alike: then both are found, and the caller must not choose.
    pub(super) fn find(&mut self, type_: i32, sought: Sought<'_>) -> Result<Vec<BoundSocket>, Errno> {
        for _ in 0..ATTEMPTS_MAX {
            if let Some(found) = self.dump(type_, sought)? {
                return Ok(found);
            }
        }
        Err(Errno::EAGAIN)
    }

    /// One dump; `None` where it was not consistent.
    fn dump(&mut self, type_: i32, sought: Sought<'_>) -> Result<Option<Vec<BoundSocket>>, Errno> {
        let states = if type_ == libc::SOCK_DGRAM {
            ANY_STATE
        } else {
            UNCONNECTED
        };
        send(self.socket.as_raw_fd(), &request(states), MsgFlags::empty())?;
        let mut found = Vec::new();
        let mut consistent = true;
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(errno) => {
                    // What is left of this dump must not be taken for the next one.
                    *self = Self::open()?;
                    return Err(errno);
                }
            };
            let mut rest = &self.buffer[..length];
            while let Some((header, body)) = next(&mut rest) {
                consistent &= header.flags & NLM_F_DUMP_INTR == 0;
                match i32::from(header.kind) {
                    libc::NLMSG_DONE => return Ok(consistent.then_some(found)),
                    libc::NLMSG_ERROR => {
                        let code = word(body, 0).map_or(libc::EIO, |word| -word.cast_signed());
                        return Err(Errno::from_raw(code));
                    }
                    _ => found.extend(matching(body, type_, sought)),
                }
            }
        }
    }
}

fn request(states: u32) -> [u8; 40] {
    let mut bytes = [0; 40];
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    bytes[0..4].copy_from_slice(&40u32.to_ne_bytes());
    bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    // struct unix_diag_req: family, protocol, padding, states, inode, show, cookie.
    bytes[16] = libc::AF_UNIX as u8;
    bytes[20..24].copy_from_slice(&states.to_ne_bytes());
    bytes[28..32].copy_from_slice(&(UDIAG_SHOW_NAME | UDIAG_SHOW_VFS).to_ne_bytes());
    bytes
}

struct Header {
    kind: u16,
    flags: u16,
}

/// Takes the next netlink message off the front.
fn next<'a>(rest: &mut &'a [u8]) -> Option<(Header, &'a [u8])> {
    let length = word(rest, 0)? as usize;
    let header = Header {
        kind: half(rest, 4)?,
        flags: half(rest, 6)?,
    };
    let body = rest.get(HEADER_BYTES..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((header, body))
}

/// The socket of one `struct unix_diag_msg`, if it is one of those sought.
fn matching(body: &[u8], type_: i32, sought: Sought<'_>) -> Option<BoundSocket> {
    if i32::from(*body.get(1)?) != type_ {
        return None;
    }
    let socket = BoundSocket {
        inode: word(body, 4)?,
        cookie: u64::from(word(body, 8)?) | u64::from(word(body, 12)?) << 32,
    };
    let mut attributes = body.get(MESSAGE_BYTES..)?;
    while let Some(length) = half(attributes, 0).map(usize::from) {
        let kind = half(attributes, 2)?;
        let value = attributes.get(4..length)?;
        let same = match (kind, sought) {
            (UNIX_DIAG_NAME, Sought::Abstract(name)) => value.strip_prefix(&[0]) == Some(name),
            (UNIX_DIAG_VFS, Sought::File { device, inode }) => {
                word(value, 0) == Some(inode as u32) && word(value, 4) == Some(kernel_device(device))
            }
            _ => false,
        };
        if same {
            return Some(socket);
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

/// A device number as the kernel keeps it: 12 bits major, 20 bits minor.
fn kernel_device(device: u64) -> u32 {
    libc::major(device) << 20 | libc::minor(device)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    fn cookie(socket: impl AsFd) -> u64 {
        listener::socket_u64(socket.as_fd(), libc::SO_COOKIE).unwrap()
    }

    #[test]
    fn a_listener_is_found_by_its_file_and_its_accepted_sockets_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let server = UnixListener::bind(&path).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        let _accepted = server.accept().unwrap();
        let file = std::fs::symlink_metadata(&path).unwrap();
        let sought = Sought::File {
            device: file.dev(),
            inode: file.ino(),
        };
        let mut diag = Diag::open().unwrap();
        let found = diag.find(libc::SOCK_STREAM, sought).unwrap();
        assert_eq!(
            found.iter().map(|s| s.cookie).collect::<Vec<_>>(),
            [cookie(&server)]
        );
        assert!(diag.find(libc::SOCK_SEQPACKET, sought).unwrap().is_empty());
    }

    #[test]
    fn a_listener_is_found_by_its_abstract_name_and_by_no_prefix_of_it() {
        let name = format!("provost-diag-{}", std::process::id());
        let server = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let mut diag = Diag::open().unwrap();
        let found = diag
            .find(libc::SOCK_STREAM, Sought::Abstract(name.as_bytes()))
            .unwrap();
        assert_eq!(
            found.iter().map(|s| s.cookie).collect::<Vec<_>>(),
            [cookie(&server)]
        );
        let shorter = &name.as_bytes()[..name.len() - 1];
        assert!(
            diag.find(libc::SOCK_STREAM, Sought::Abstract(shorter))
                .unwrap()
                .is_empty()
        );
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut rest = bytes.as_slice();
            while let Some((_, body)) = next(&mut rest) {
                matching(body, libc::SOCK_STREAM, Sought::Abstract(b"x"));
                if body.is_empty() { break; }
            }
            matching(&bytes, libc::SOCK_STREAM, Sought::File { device: 1, inode: 2 });
        }
    }
}
