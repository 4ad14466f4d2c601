//! Datagrams to destinations that a rule allows: sent by us, from sockets of ours, for a program that holds a stand-in.
//!
//! A stand-in's messages do not say where they are to go: they go where the program said last. Whatever its threads do
//! meanwhile, that is a destination that was judged, or none.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{MsgFlags, Shutdown, send, shutdown};

/// Destinations of one stand-in, each with a socket and a thread that waits for what comes back.
const DESTINATIONS_MAX: usize = 8;
/// The longest datagram, more or less.
pub(super) const DATAGRAM_BYTES_MAX: usize = 65_536;

/// The sockets of one stand-in. Dropping it ends their threads.
#[derive(Default)]
pub(super) struct Relays(HashMap<SocketAddr, Arc<UdpSocket>>);

impl Relays {
    /// Sends a datagram; what comes back goes to the program by `back`.
    pub(super) fn send(
        &mut self,
        to: SocketAddr,
        datagram: &[u8],
        back: &Arc<OwnedFd>,
    ) -> io::Result<()> {
        if let Some(socket) = self.0.get(&to) {
            return socket.send(datagram).map(drop);
        }
        if self.0.len() >= DESTINATIONS_MAX {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let from: SocketAddr = match to {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = Arc::new(UdpSocket::bind(from)?);
        socket.connect(to)?;
        let (receiving, back) = (socket.clone(), back.clone());
        let thread = std::thread::Builder::new().name("provost-datagrams".to_owned());
        thread.spawn(move || pass_back(&receiving, &back))?;
        let socket = self.0.entry(to).or_insert(socket);
        socket.send(datagram).map(drop)
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        for socket in self.0.values() {
            // What its thread waits in returns nothing then.
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
    }
}

fn pass_back(socket: &UdpSocket, back: &OwnedFd) {
    let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
    // An empty datagram would read as the end, to us and to the program: none is passed on.
    while let Ok(length) = receive(socket, &mut datagram)
        && length > 0
    {
        // What nobody makes room for is dropped, as it would be on the wire.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let _ = send(back.as_raw_fd(), &datagram[..length], flags);
    }
}

/// The next datagram; that a host refused an earlier one is no reason to stop.
fn receive(socket: &UdpSocket, datagram: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket.recv(datagram) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::HostUnreachable
                        | io::ErrorKind::NetworkUnreachable
                        | io::ErrorKind::Interrupted
                ) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, recv, socketpair};

    fn pair() -> (Arc<OwnedFd>, OwnedFd) {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        (Arc::new(ours), theirs)
    }

    #[test]
    fn datagrams_go_there_and_back_and_the_threads_end_with_the_relays() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (ours, theirs) = pair();
        let mut relays = Relays::default();
        relays
            .send(server.local_addr().unwrap(), b"there", &ours)
            .unwrap();
        let mut buffer = [0; 16];
        let (length, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"there");
        server.send_to(b"", from).ok();
        drop(relays);
        drop(ours);
        // The last holder of the other end is the relay's thread: its end is the pair's.
        assert_eq!(recv(theirs.as_raw_fd(), &mut buffer, MsgFlags::empty()), Ok(0));
    }

    #[test]
    fn destinations_are_bounded() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let (ours, _theirs) = pair();
        let mut relays = Relays::default();
        let sent = (1..=DESTINATIONS_MAX as u8 + 2)
            .filter(|host| {
                relays
                    .send((Ipv4Addr::new(127, 0, 0, *host), port).into(), b"x", &ours)
                    .is_ok()
            })
            .count();
        assert_eq!(sent, DESTINATIONS_MAX);
    }
}
