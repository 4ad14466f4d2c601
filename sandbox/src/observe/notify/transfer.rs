//! bind, listen, and the sends and receives that the filter asks about.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{SockaddrLike, SockaddrStorage, getsockname};

use super::address::{SocketAddress, effective};
use super::memory::{self, Unread};
use super::{Answer, Call, Decided, Decider, Observation, Response, Unavailable, listener};
use crate::denial::{Certainty, DenialClass, DenialTarget};
use crate::policy::{NetMode, Protocol};

/// Ports below are for those with `CAP_NET_BIND_SERVICE` (ip(7)).
const UNPRIVILEGED_PORT_MIN: u16 = 1024;
/// `struct msghdr`, of which the name's pointer and length matter here.
const MSGHDR_BYTES: usize = 16;
/// `struct mmsghdr` on a 64-bit machine.
const MMSGHDR_BYTES: u64 = 64;
/// The kernel looks at no more messages of one sendmmsg than this (`UIO_MAXIOV`).
const MESSAGES_MAX: u32 = 1024;

impl Decider {
    /// bind(2). Where it is not refused it is continued, and that decides nothing:
    ///
    /// - A unix socket is bound as the target, with its root, directory and umask, and Landlock's right to
    ///   make sockets holds it. Should the target swap a TCP socket in meanwhile, Landlock refuses to bind
    ///   it (`tcp_confined_by_landlock`); where it does not, what is gained is a port on which listen(2),
    ///   performed by us, refuses to listen.
    /// - A TCP socket is bound on its behalf, by a duplicate, where a rule lets it serve there.
    /// - In the other modes every bind is permitted, and the namespace holds the isolated one.
    ///
    /// Some programs bind to nothing in particular before they connect. Where TCP may connect anywhere at all, that
    /// is answered and not done: connect picks a port by itself, and listen refuses what was never bound.
    pub(super) fn bind(&self, call: Call<'_>) -> Decided {
        if self.setup.net.mode != NetMode::Off {
            return self.socket_file(call);
        }
        let (socket, kind) = match self.duplicate(call) {
            Ok(duplicate) => duplicate,
            Err(unavailable) => return call.fail(unavailable),
        };
        let stand_in = self.stand_in(&socket);
        if kind.is_unix() && stand_in.is_none() {
            return self.socket_file(call);
        }
        let address = match SocketAddress::copy(call.tid(), call.arg(1), call.int(2)) {
            Ok(address) => address,
            Err(unavailable) => return call.fail(unavailable),
        };
        if !call.is_valid() {
            return Decided::error(Errno::ESRCH);
        }
        if let Some(stand_in) = stand_in {
            return self.bind_stand_in(call, &stand_in, &address);
        }
        if let Ok((ip, port)) = address.inet_or_unspecified()
            && kind.is_tcp()
            && self.may_serve(ip, port)
        {
            let bound = listener::bind(socket.as_fd(), address.as_bytes());
            let done = |(at, is): (IpAddr, u16)| at == ip.to_canonical() && (port == 0 || is == port);
            if self.again && bound == Err(Errno::EINVAL) && bound_to(socket.as_fd()).is_some_and(done) {
                return Decided::performed(Ok(()));
            }
            return Decided::performed(bound);
        }
        if kind.is_tcp() && self.binds_to_connect() && is_anything(&address) {
            return Decided::now(Response::Value(0));
        }
        call.deny_net(Errno::EACCES, self.target(kind, &address), self.net_rule.as_str())
    }

    /// Whether TCP may reach any place, and serve nowhere: a bind is then meant for a connect, if for anything allowed.
    fn binds_to_connect(&self) -> bool {
        let (net, ask) = (&self.setup.net, &self.setup.ask);
        let by_address = net.allow.iter().any(|rule| rule.protocol == Protocol::Tcp);
        let by_name = net.names.rules.iter().any(|rule| rule.protocol == Protocol::Tcp);
        net.listen.is_empty() && (by_address || by_name || ask.net)
    }

    /// listen(2). An unbound TCP socket would bind itself to all addresses and no layer of the kernel would
    /// mind, so where the network is off this is performed on a duplicate that is known to be a unix socket.
    ///
    /// Clients of that socket then see *us* as the peer that listens (`SO_PEERCRED`).
    pub(super) fn listen(&self, call: Call<'_>) -> Decided {
        if self.setup.net.mode != NetMode::Off {
            return Decided::CONTINUE;
        }
        let (socket, kind) = match self.duplicate(call) {
            Ok(duplicate) => duplicate,
            Err(unavailable) => return call.fail(unavailable),
        };
        if !call.is_valid() {
            return Decided::error(Errno::ESRCH);
        }
        if kind.is_unix() {
            return Decided::performed(listener::listen(socket.as_fd(), call.int(1)));
        }
        let bound = bound_to(socket.as_fd());
        if kind.is_tcp() && bound.is_some_and(|(address, port)| self.may_serve(address, port)) {
            return Decided::performed(listener::listen(socket.as_fd(), call.int(1)));
        }
        let target = match bound {
            Some((address, port)) => DenialTarget::inet(address, port, &kind.name()),
            None => DenialTarget::protocol(kind.name()),
        };
        call.deny_net(Errno::EACCES, target, self.net_rule.as_str())
    }

    /// Whether a rule lets TCP be served here. We may have the privilege for low ports; the target has not.
    fn may_serve(&self, address: IpAddr, port: u16) -> bool {
        (port == 0 || port >= UNPRIVILEGED_PORT_MIN)
            && self.setup.net.decide_listen(address.to_canonical(), port).allowed
    }

    /// A send that connects by itself (`MSG_FASTOPEN`), sends out of band, or, in a private network
    /// namespace, carries an address.
    pub(super) fn send(&self, call: Call<'_>) -> Decided {
        let flags = call.int(if call.name == "sendmsg" { 2 } else { 3 });
        if flags & libc::MSG_FASTOPEN != 0 {
            let target = match destination(call) {
                Ok(Some(address)) => match address.inet_or_unspecified() {
                    Ok((ip, port)) => DenialTarget::inet(ip.to_canonical(), port, "tcp"),
                    Err(_) => DenialTarget::protocol("tcp"),
                },
                // Refused whatever it says: the flag is in a register.
                Ok(None) | Err(_) => DenialTarget::protocol("tcp"),
            };
            return call.deny_net(
                Errno::EOPNOTSUPP,
                target,
                "TCP Fast Open is refused: it passes by connect",
            );
        }
        if flags & libc::MSG_OOB != 0 {
            return self.deny_out_of_band(call);
        }
        if let Some(decided) = self.send_by_ready_socket(call) {
            return decided;
        }
        if self.names.is_some() {
            return self.send_by_stand_in(call);
        }
        if self.setup.net.mode != NetMode::Isolated {
            return Decided::CONTINUE;
        }
        if call.name == "sendmmsg" {
            return self.send_many(call);
        }
        match destination(call) {
            Ok(None) => Decided::CONTINUE,
            Ok(Some(address)) => match self.beyond_the_namespace(&address) {
                Some(target) => call.deny_net(Errno::ENETUNREACH, target, self.net_rule.as_str()),
                None => Decided::CONTINUE,
            },
            Err(unavailable) => call.fail(unavailable),
        }
    }

    /// Several messages: those before the first that leads nowhere are sent, so the kernel, which refuses
    /// that one itself, must see them.
    fn send_many(&self, call: Call<'_>) -> Decided {
        let count = call.int(2).cast_unsigned().min(MESSAGES_MAX);
        for index in 0..count {
            let offset = u64::from(index) * MMSGHDR_BYTES;
            let address = match call.arg(1).checked_add(offset) {
                Some(header) => message_name(call.tid(), header),
                None => Err(Unavailable::Errno(Errno::EFAULT)),
            };
            let target = match address {
                Ok(address) => address.and_then(|address| self.beyond_the_namespace(&address)),
                // The kernel finds the same mistake at the same message.
                Err(Unavailable::Errno(_)) => break,
                Err(Unavailable::Forbidden) => return call.deny_unreadable(),
            };
            let Some(target) = target else { continue };
            let mut decided = call.deny_net(Errno::ENETUNREACH, target, self.net_rule.as_str());
            if index > 0 {
                decided.answer = Answer::Now(Response::Continue);
            }
            return decided;
        }
        Decided::CONTINUE
    }

    /// Where an address leads that a private loopback does not have.
    ///
    /// This is for the record: the namespace refuses whatever address the target puts there afterwards.
    fn beyond_the_namespace(&self, address: &SocketAddress) -> Option<DenialTarget> {
        if let Ok(name) = address.unix() {
            // Unix sockets that could send to an address are refused when they are made.
            return Some(DenialTarget {
                path: Some(name.display()),
                protocol: Some("unix-dgram".to_owned()),
                ..DenialTarget::default()
            });
        }
        let (ip, port) = address.inet_or_unspecified().ok()?;
        (!effective(ip).is_loopback()).then(|| DenialTarget::inet(ip.to_canonical(), port, "udp"))
    }

    /// Receiving out of band, or where names are resolved.
    pub(super) fn receive(&self, call: Call<'_>) -> Decided {
        let flags = call.int(if call.name == "recvmsg" { 2 } else { 3 });
        if self.names.is_some() && flags & libc::MSG_OOB == 0 {
            return self.receive_by_stand_in(call);
        }
        self.deny_out_of_band(call)
    }

    fn deny_out_of_band(&self, call: Call<'_>) -> Decided {
        // The flag alone decides; which socket it was is told where it can be.
        let protocol = match self.duplicate(call) {
            Ok((_, kind)) => kind.name(),
            Err(Unavailable::Errno(errno)) => return Decided::error(errno),
            Err(Unavailable::Forbidden) => "unknown".to_owned(),
        };
        Decided {
            answer: Answer::Now(Response::Errno(libc::EOPNOTSUPP)),
            observation: Some(Observation::Denial(call.denial(
                DenialClass::Network,
                call.name,
                Errno::EOPNOTSUPP,
                DenialTarget::protocol(protocol),
                "out-of-band data is refused (MSG_OOB)",
                Certainty::Observed,
            ))),
        }
    }
}

/// The address of the first (or only) message of a send, if it carries one.
pub(super) fn destination(call: Call<'_>) -> Result<Option<SocketAddress>, Unavailable> {
    match call.name {
        "sendto" if call.arg(4) == 0 => Ok(None),
        "sendto" => SocketAddress::copy(call.tid(), call.arg(4), call.int(5)).map(Some),
        _ => message_name(call.tid(), call.arg(1)),
    }
}

/// `msg_name` of a `struct msghdr`.
fn message_name(tid: i32, header: u64) -> Result<Option<SocketAddress>, Unavailable> {
    let mut bytes = [0; MSGHDR_BYTES];
    memory::read_exact(tid, header, &mut bytes).map_err(|unread| match unread {
        Unread::Forbidden => Unavailable::Forbidden,
        Unread::Fault | Unread::TooLong => Unavailable::Errno(Errno::EFAULT),
    })?;
    let (pointer, rest) = bytes.split_at(8);
    let pointer = pointer
        .first_chunk()
        .map_or(0, |bytes| u64::from_ne_bytes(*bytes));
    let length = rest.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if pointer == 0 || length == 0 {
        return Ok(None);
    }
    if length < 0 {
        return Err(Unavailable::Errno(Errno::EINVAL));
    }
    // Here, unlike elsewhere, the kernel cuts what is too long.
    let length = length.min(listener::SOCKADDR_BYTES_MAX as i32);
    SocketAddress::copy(tid, pointer, length).map(Some)
}

/// No address in particular, and no port.
fn is_anything(address: &SocketAddress) -> bool {
    matches!(address.inet(), Ok((ip, 0)) if ip.to_canonical().is_unspecified())
}

/// The address and port that a socket is bound to, where it is bound.
fn bound_to(socket: BorrowedFd<'_>) -> Option<(IpAddr, u16)> {
    let name = getsockname::<SockaddrStorage>(socket.as_raw_fd()).ok()?;
    let (address, port) = match name.family()? {
        nix::sys::socket::AddressFamily::Inet => {
            let v4 = name.as_sockaddr_in()?;
            (IpAddr::from(v4.ip()), v4.port())
        }
        nix::sys::socket::AddressFamily::Inet6 => {
            let v6 = name.as_sockaddr_in6()?;
            (IpAddr::from(v6.ip()), v6.port())
        }
        _ => return None,
    };
    (port != 0).then(|| (address.to_canonical(), port))
}

#[cfg(test)]
mod tests {
    use super::super::socket::SocketKind;
    use super::*;

    #[test]
    fn kinds_of_this_process_are_told_apart() {
        let (stream, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(SocketKind::of(stream.as_fd()).unwrap().is_unix());
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(SocketKind::of(tcp.as_fd()).unwrap().is_tcp());
        assert_eq!(bound_to(tcp.as_fd()).unwrap().1, tcp.local_addr().unwrap().port());
    }
}
