//! connect(2), performed on behalf of the target on a duplicate of its socket, with the copied address.
//!
//! It is never continued: the call that was judged is the call that is made.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, SockaddrStorage, getpeername, shutdown};

use super::address::{SocketAddress, effective};
use super::receive::Receive;
use super::socket::SocketKind;
use super::{Answer, Call, Decided, Decider, Grant, Listener, Question, Response, listener};
use crate::denial::{Certainty, DenialClass, DenialTarget};
use crate::policy::{NetMode, Protocol};

/// A permitted connect that may take its time.
///
/// Every connect of a stream socket is one, also where the socket was non-blocking a moment ago: the flag
/// belongs to the file that the target shares, and a thread of the target that clears it at the right
/// moment would hold up whoever performs the call. On a non-blocking socket [`Self::run`] returns at once,
/// with `EINPROGRESS` where the kernel says so.
#[derive(Debug)]
pub struct BlockingConnect {
    socket: OwnedFd,
    work: Work,
    /// It may have been performed before, by somebody who could not say so.
    again: bool,
}

#[derive(Debug)]
enum Work {
    Connect {
        address: SocketAddress,
        /// What the address names by descriptor, if it does.
        named: Option<OwnedFd>,
    },
    Receive(Receive),
}

impl BlockingConnect {
    pub(super) fn new(socket: OwnedFd, address: SocketAddress, named: Option<OwnedFd>) -> Self {
        Self {
            socket,
            work: Work::Connect { address, named },
            again: false,
        }
    }

    pub(super) fn again(&mut self) {
        self.again = true;
    }

    /// A receive from a socket that stands in for a UDP one, which may take its time, too.
    pub(super) fn receiving(socket: OwnedFd, receive: Receive) -> Self {
        Self {
            socket,
            work: Work::Receive(receive),
            again: false,
        }
    }

    /// Connects, and says what to answer. Blocks as long as the target's own call would have.
    pub fn run(self, listener: &Listener) -> Response {
        let (address, named) = match self.work {
            Work::Connect { address, named } => (address, named),
            Work::Receive(receive) => return receive.run(&self.socket, listener, true),
        };
        let result = loop {
            match listener::connect(self.socket.as_fd(), address.as_bytes()) {
                // A signal of ours, not of the target's: go on waiting for the same attempt.
                Err(Errno::EINTR) => {}
                result => break result,
            }
        };
        drop(named);
        response(match result {
            Err(Errno::EISCONN) if self.again && is_peer(&self.socket, &address) => Ok(()),
            Err(Errno::EALREADY) if self.again => Err(Errno::EINPROGRESS),
            result => result,
        })
    }

    /// A handle that ends a waiting [`Self::run`].
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn canceller(&self) -> std::io::Result<Canceller> {
        Ok(Canceller {
            socket: self.socket.try_clone()?,
        })
    }
}

/// Ends a [`BlockingConnect`].
#[derive(Debug)]
pub struct Canceller {
    socket: OwnedFd,
}

impl Canceller {
    /// Shuts the socket down. A connect over TCP returns at once. One to a unix socket whose queue is full
    /// returns when its server goes: that one belongs to the same tree, and dies with it.
    pub fn cancel(&self) {
        // It fails where nothing is connected or waiting: then there is nothing to end.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }
}

/// Whether the socket is connected to this address. What cannot be compared is not.
fn is_peer(socket: &OwnedFd, address: &SocketAddress) -> bool {
    let Ok(peer) = getpeername::<SockaddrStorage>(socket.as_raw_fd()) else {
        return false;
    };
    let peer = (peer.as_sockaddr_in().map(|v4| (IpAddr::from(v4.ip()), v4.port())))
        .or_else(|| peer.as_sockaddr_in6().map(|v6| (v6.ip().into(), v6.port())));
    match peer {
        Some((ip, port)) => address.inet().is_ok_and(|(wanted, wanted_port)| {
            // The kernel takes the unspecified address for the loopback one.
            (effective(ip), port) == (effective(wanted), wanted_port)
        }),
        // A unix socket has one peer in its life.
        None => address.family() == Some(libc::AF_UNIX),
    }
}

pub(super) fn response(result: Result<(), Errno>) -> Response {
    match result {
        Ok(()) => Response::Value(0),
        Err(errno) => Response::Errno(errno as i32),
    }
}

impl Decider {
    pub(super) fn connect(&mut self, call: Call<'_>) -> Decided {
        let (socket, kind) = match self.duplicate(call) {
            Ok(duplicate) => duplicate,
            Err(unavailable) => return call.fail(unavailable),
        };
        let address = match SocketAddress::copy(call.tid(), call.arg(1), call.int(2)) {
            Ok(address) => address,
            Err(unavailable) => return call.fail(unavailable),
        };
        if !call.is_valid() {
            return Decided::error(Errno::ESRCH);
        }
        if let Some(stand_in) = self.stand_in(&socket) {
            return self.connect_stand_in(call, &stand_in, &address);
        }
        if self.is_ready_socket(&socket) {
            return self.connect_ready_socket(call, &address);
        }
        if kind.is_unix() && address.family() != Some(libc::AF_UNSPEC) {
            return self.connect_unix(call, socket, kind, address);
        }
        if kind.is_tcp() || kind.is_udp() {
            return self.connect_inet(call, socket, kind, address);
        }
        if kind.family == libc::AF_NETLINK && self.setup.net.mode != NetMode::Off {
            return self.connect_netlink(call, &socket, &address);
        }
        if kind.is_unix() {
            return Decided::performed(listener::connect(socket.as_fd(), address.as_bytes()));
        }
        // No such socket can be made under the filter; it was inherited.
        call.deny_net(Errno::EACCES, self.target(kind, &address), self.net_rule.as_str())
    }

    fn connect_inet(
        &self,
        call: Call<'_>,
        socket: OwnedFd,
        kind: SocketKind,
        address: SocketAddress,
    ) -> Decided {
        if address.family() == Some(libc::AF_UNSPEC) {
            // Dissolves an association; the next connect is asked about again.
            return Decided::performed(listener::connect(socket.as_fd(), address.as_bytes()));
        }
        let (given, port) = match address.inet() {
            Ok(inet) => inet,
            Err(errno) => return Decided::error(errno),
        };
        let grant = Grant::Connect {
            address: effective(given),
            port,
        };
        let refused = self.permits(kind, effective(given), port).err();
        let asks = self.setup.ask.net && kind.is_tcp() && self.setup.net.mode == NetMode::Off;
        let granted = asks && self.is_granted(&grant);
        let shown = DenialTarget {
            host: self.host_of(effective(given)),
            ..self.target(kind, &address)
        };
        if let Some(errno) = refused
            && !asks
        {
            return call.deny_net(errno, shown, self.net_rule.as_str());
        }
        let address = match self.setup.net.mode {
            NetMode::Open => address,
            NetMode::Off | NetMode::Isolated => address.with_loopback_named(),
        };
        if kind.is_udp() {
            // Only remembers the address: nothing to wait for.
            return Decided::performed(listener::connect(socket.as_fd(), address.as_bytes()));
        }
        let connect = BlockingConnect::new(socket, address, None);
        match refused {
            Some(errno) if !granted => self.ask_to_connect(call, connect, grant, errno, shown),
            _ => Decided {
                answer: Answer::Blocking(connect),
                observation: None,
            },
        }
    }

    /// Refused, unless somebody who is asked allows it.
    pub(super) fn ask_to_connect(
        &self,
        call: Call<'_>,
        connect: BlockingConnect,
        grant: Grant,
        errno: Errno,
        target: DenialTarget,
    ) -> Decided {
        let (class, rule) = (DenialClass::Network, self.net_rule.as_str());
        let denial = call.denial(class, call.name, errno, target, rule, Certainty::Observed);
        Decided::ask(Question::connect(denial, errno as i32, grant, connect))
    }

    fn permits(&self, kind: SocketKind, address: IpAddr, port: u16) -> Result<(), Errno> {
        let net = &self.setup.net;
        let protocol = match kind.is_tcp() {
            true => Protocol::Tcp,
            false => Protocol::Udp,
        };
        let by_name = || {
            let names = self.names.as_ref();
            names.is_some_and(|names| names.permits(protocol, address, port))
        };
        let by_address = net.decide(protocol, address, port).allowed;
        if by_address || net.mode == NetMode::Off && by_name() {
            return Ok(());
        }
        Err(match net.mode {
            // No rule helps: nothing but loopback exists in the namespace.
            NetMode::Isolated => Errno::ENETUNREACH,
            NetMode::Open | NetMode::Off => Errno::EACCES,
        })
    }

    /// A netlink socket may be connected to the kernel, which is what everybody wants. Other ports and
    /// groups take privileges that we may have and the target does not.
    fn connect_netlink(&self, call: Call<'_>, socket: &OwnedFd, address: &SocketAddress) -> Decided {
        // struct sockaddr_nl: family, padding, port id, groups.
        let elsewhere = address
            .as_bytes()
            .get(4..12)
            .is_some_and(|bytes| bytes.iter().any(|&byte| byte != 0));
        if address.family() == Some(libc::AF_NETLINK) && elsewhere {
            return call.deny_net(
                Errno::EPERM,
                DenialTarget::protocol("netlink"),
                self.net_rule.as_str(),
            );
        }
        Decided::performed(listener::connect(socket.as_fd(), address.as_bytes()))
    }

    /// What a denial about this socket and address shows.
    pub(super) fn target(&self, kind: SocketKind, address: &SocketAddress) -> DenialTarget {
        if let Ok(name) = address.unix() {
            return DenialTarget {
                path: Some(name.display()),
                protocol: Some(kind.name()),
                ..DenialTarget::default()
            };
        }
        match address.inet_or_unspecified() {
            Ok((ip, port)) => DenialTarget::inet(ip.to_canonical(), port, &kind.name()),
            Err(_) => DenialTarget::protocol(kind.name()),
        }
    }
}
