//! What stands in for a UDP socket where names are resolved by us.
//!
//! The program asks for a UDP socket and gets one end of a pair of local sockets (`SOCK_SEQPACKET`: messages keep
//! their bounds, addresses given to a send are ignored by the kernel, and the end of the last holder is seen).
//! It therefore never holds a socket that can send to a network, whatever its threads do meanwhile; this is what
//! makes it safe to continue its sends. Calls with an address are notified only to learn whom the program means
//! to ask, and to tell it that the answer came from there.
//!
//! Libraries ask a socket for its addresses before they use it (libuv takes one that has a peer for connected):
//! they are told what a UDP socket would say. Other calls show the difference: `SO_TYPE`, `SO_DOMAIN`.

use std::fs::{File, OpenOptions};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};

use super::address::{SocketAddress, effective};
use super::connect::BlockingConnect;
use super::receive::{Place, Receive};
use super::socket::SocketKind;
use super::transfer::destination;
use super::{Answer, Call, Decided, Decider, Response, Unavailable, listener};
use crate::denial::DenialTarget;
use crate::policy::Protocol;
use crate::syscalls::Entry;

/// Where name servers listen.
const DNS_PORT: u16 = 53;
/// Where the ports begin that the kernel gives to sockets which do not care, and how many they are.
const PORTS_FIRST: u16 = 32768;
const PORTS: u64 = 28232;

/// One socket in UDP's place.
#[derive(Debug)]
pub(super) struct StandIn {
    /// The unspecified address of the family that the program asked for.
    unspecified: IpAddr,
    /// What it is told of its port. There is none, but sockets that were used have one.
    port: u16,
    seen: Mutex<Seen>,
}

#[derive(Debug, Clone)]
struct Seen {
    /// Whom the program asked last.
    destination: Option<SocketAddr>,
    /// Whom it is connected to.
    peer: Option<SocketAddr>,
    /// Whether it has a port: by bind, or by having been used.
    bound: bool,
    /// The thread that used it last, and its name.
    pid: i32,
    comm: Option<String>,
}

impl StandIn {
    fn new(call: Call<'_>, cookie: u64) -> Self {
        Self {
            unspecified: match call.int(0) {
                libc::AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
                _ => Ipv4Addr::UNSPECIFIED.into(),
            },
            port: PORTS_FIRST + (cookie % PORTS) as u16,
            seen: Mutex::new(Seen {
                destination: None,
                peer: None,
                bound: false,
                pid: call.tid(),
                comm: call.comm(),
            }),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread that used it last.
    pub(super) fn last_user(&self) -> (i32, Option<String>) {
        let seen = self.seen();
        (seen.pid, seen.comm.clone())
    }

    /// Whom the program asked last.
    pub(super) fn destination(&self) -> Option<SocketAddr> {
        self.seen().destination
    }

    fn connected(&self, call: Call<'_>, peer: Option<SocketAddr>) {
        self.used(call, peer);
        self.seen().peer = peer;
    }

    fn used(&self, call: Call<'_>, destination: Option<SocketAddr>) {
        let comm = call.comm();
        let mut seen = self.seen();
        seen.destination = destination;
        seen.bound = true;
        (seen.pid, seen.comm) = (call.tid(), comm);
    }

    /// What getsockname(2) tells.
    fn own_address(&self) -> SocketAddr {
        let port = if self.seen().bound { self.port } else { 0 };
        SocketAddr::new(self.unspecified, port)
    }
}

impl Decider {
    /// socket(2) for UDP: puts a stand-in into the program's table. `None` where names are not resolved.
    pub(super) fn make_stand_in(&self, call: Call<'_>, kind: SocketKind) -> Option<Decided> {
        let names = self.names.as_ref().filter(|_| kind.is_udp())?;
        let made = || -> Result<i64, Errno> {
            let (ours, theirs) = socketpair(
                AddressFamily::Unix,
                SockType::SeqPacket,
                None,
                SockFlag::SOCK_CLOEXEC,
            )?;
            if call.int(1) & libc::SOCK_NONBLOCK != 0 {
                fcntl(&theirs, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            }
            let cookie = listener::socket_u64(theirs.as_fd(), libc::SO_COOKIE)?;
            if !names.serve(cookie, Arc::new(StandIn::new(call, cookie)), ours) {
                return Err(Errno::ENOBUFS);
            }
            let close_on_exec = call.int(1) & libc::SOCK_CLOEXEC != 0;
            call.listener
                .give(call.notification.id, theirs.as_fd(), close_on_exec)
        };
        Some(match made() {
            // The kernel has answered already: this answer finds nobody who waits.
            Ok(fd) => Decided::now(Response::Value(fd)),
            Err(errno) => Decided::error(errno),
        })
    }

    /// The stand-in that a duplicate is, if it is one.
    pub(super) fn stand_in(&self, socket: &OwnedFd) -> Option<Arc<StandIn>> {
        let names = self.names.as_ref()?;
        names.stand_in(listener::socket_u64(socket.as_fd(), libc::SO_COOKIE).ok()?)
    }

    /// connect(2): to a name server it succeeds, whichever it is. To other places UDP has no route; that is what
    /// resolvers find out when they sort addresses, and is no denial for those that may be reached by TCP.
    pub(super) fn connect_stand_in(
        &self,
        call: Call<'_>,
        stand_in: &StandIn,
        address: &SocketAddress,
    ) -> Decided {
        if address.family() == Some(libc::AF_UNSPEC) {
            stand_in.connected(call, None);
            return Decided::now(Response::Value(0));
        }
        let (ip, port) = match address.inet() {
            Ok(inet) => inet,
            Err(errno) => return Decided::error(errno),
        };
        let address = effective(ip);
        if port == DNS_PORT || self.passes_datagrams(address, port) {
            stand_in.connected(call, Some(SocketAddr::new(ip, port)));
            return Decided::now(Response::Value(0));
        }
        let allowed = self
            .setup
            .net
            .allow
            .iter()
            .any(|rule| rule.protocol == Protocol::Tcp && rule.net.contains(&address));
        if allowed || self.host_of(address).is_some() {
            return Decided::probe(Errno::ENETUNREACH, "udp_route".to_owned());
        }
        self.deny_datagram(call, ip, port)
    }

    /// bind(2): to no port in particular, as resolvers do.
    pub(super) fn bind_stand_in(
        &self,
        call: Call<'_>,
        stand_in: &StandIn,
        address: &SocketAddress,
    ) -> Decided {
        match address.inet_or_unspecified() {
            Ok((_, 0)) => {
                stand_in.seen().bound = true;
                Decided::now(Response::Value(0))
            }
            Ok((ip, port)) => self.deny_datagram(call, ip, port),
            Err(errno) => Decided::error(errno),
        }
    }

    /// A send that may carry an address. It runs on in the target: see the head of this file.
    pub(super) fn send_by_stand_in(&self, call: Call<'_>) -> Decided {
        let Some(stand_in) = self.duplicate(call).ok().and_then(|(fd, _)| self.stand_in(&fd)) else {
            return Decided::CONTINUE;
        };
        match destination(call) {
            Ok(Some(address)) => match address.inet_or_unspecified() {
                Ok((ip, port)) if port == DNS_PORT || self.passes_datagrams(effective(ip), port) => {
                    stand_in.used(call, Some(SocketAddr::new(ip, port)));
                }
                Ok((ip, port)) => return self.deny_datagram(call, ip, port),
                Err(errno) => return Decided::error(errno),
            },
            Ok(None) => {}
            Err(unavailable) => return call.fail(unavailable),
        }
        Decided::CONTINUE
    }

    /// A receive that may ask for the sender's address: performed, to tell it.
    pub(super) fn receive_by_stand_in(&self, call: Call<'_>) -> Decided {
        let Ok((socket, _)) = self.duplicate(call) else {
            return Decided::CONTINUE;
        };
        let Some(stand_in) = self.stand_in(&socket) else {
            return Decided::CONTINUE;
        };
        let place = match Place::of(call) {
            Ok(place) => place,
            Err(unavailable) => return call.fail(unavailable),
        };
        let memory = match memory_of(call) {
            Ok(memory) => memory,
            Err(unavailable) => return call.fail(unavailable),
        };
        let flags = call.int(if call.name == "recvmsg" { 2 } else { 3 });
        let receive = Receive::new(call.notification.id, flags, memory, place, stand_in.destination());
        let patient = flags & libc::MSG_DONTWAIT == 0
            && fcntl(&socket, FcntlArg::F_GETFL)
                .is_ok_and(|flags| !OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK));
        let look = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        if patient && recv(socket.as_raw_fd(), &mut [0], look) == Err(Errno::EAGAIN) {
            return Decided {
                answer: Answer::Blocking(BlockingConnect::receiving(socket, receive)),
                observation: None,
            };
        }
        Decided::now(receive.run(&socket, call.listener, false))
    }

    /// getsockname(2), getpeername(2).
    pub(super) fn name_of_stand_in(&self, call: Call<'_>) -> Decided {
        let Some(stand_in) = self.duplicate(call).ok().and_then(|(fd, _)| self.stand_in(&fd)) else {
            return Decided::CONTINUE;
        };
        let address = match call.name {
            "getpeername" => stand_in.seen().peer,
            _ => Some(stand_in.own_address()),
        };
        let Some(address) = address else {
            return Decided::error(Errno::ENOTCONN);
        };
        let place = Place::of_name(call, call.arg(1), call.arg(2));
        match place.and_then(|place| Ok((place, memory_of(call)?))) {
            Ok((place, memory)) => Decided::now(match place.fill(&memory, &[], 0, Some(address)) {
                Ok(value) => Response::Value(value),
                Err(_) => Response::Errno(Errno::EFAULT as i32),
            }),
            Err(unavailable) => call.fail(unavailable),
        }
    }

    /// setsockopt(2) of what a UDP socket has and a stand-in has not: it holds without having an effect.
    pub(super) fn set_socket_option(&self, call: Call<'_>, entry: &Entry) -> Decided {
        if entry.is_refused(&call.notification.args) {
            return call.refuse_socket_option(entry);
        }
        match self.duplicate(call).ok().and_then(|(fd, _)| self.stand_in(&fd)) {
            Some(_) => Decided::now(Response::Value(0)),
            // The option is in registers, which nobody changes: it is not one of those refused.
            None => Decided::CONTINUE,
        }
    }

    /// The name by which an address was handed out.
    pub(super) fn host_of(&self, address: IpAddr) -> Option<String> {
        self.names.as_ref()?.name_of(address)
    }

    fn passes_datagrams(&self, address: IpAddr, port: u16) -> bool {
        let names = self.names.as_ref();
        names.is_some_and(|names| names.permits_datagrams(address, port))
    }

    fn deny_datagram(&self, call: Call<'_>, ip: IpAddr, port: u16) -> Decided {
        let target = DenialTarget {
            host: self.host_of(effective(ip)),
            ..DenialTarget::inet(ip.to_canonical(), port, "udp")
        };
        call.deny_net(Errno::EACCES, target, self.net_rule.as_str())
    }
}

/// The memory of the thread that waits, to be read and written: bound to it, whoever has its number later.
fn memory_of(call: Call<'_>) -> Result<File, Unavailable> {
    let memory = OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/{}/mem", call.tid()));
    let memory = memory.map_err(|_| Unavailable::Forbidden)?;
    match call.is_valid() {
        true => Ok(memory),
        false => Err(Unavailable::Errno(Errno::ESRCH)),
    }
}
