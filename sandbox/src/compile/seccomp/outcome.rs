//! Which calls of an entry a plan notifies.

use crate::compile::seccomp::{FilterPlan, OpenObservation};
use crate::policy::NetMode;
use crate::syscalls::{
    Calls, Entry, Handling, REFUSED_SEND_FLAGS, Rules, Scope, Test, bits, either, int, null,
};

const AF_UNIX: u32 = libc::AF_UNIX as u32;
const AF_INET: u32 = libc::AF_INET as u32;
const AF_INET6: u32 = libc::AF_INET6 as u32;
const AF_NETLINK: u32 = libc::AF_NETLINK as u32;

const STREAM: u32 = libc::SOCK_STREAM as u32;
const DGRAM: u32 = libc::SOCK_DGRAM as u32;
const RAW: u32 = libc::SOCK_RAW as u32;
const SEQPACKET: u32 = libc::SOCK_SEQPACKET as u32;

/// The part of `socket`'s second argument that is the type; the rest is `SOCK_CLOEXEC` and `SOCK_NONBLOCK`.
const SOCK_TYPE_MASK: u32 = 0xF;

const INET: Test = either(0, u32::MAX, AF_INET, AF_INET6);

const fn kind(value: u32) -> Test {
    bits(1, SOCK_TYPE_MASK, value)
}

const fn protocol(value: libc::c_int) -> Test {
    int(2, value as u32)
}

/// Unix sockets that must be connected before anything passes; datagrams name their target each time, and
/// `SOCK_RAW` is another name for them.
const UNIX: &[Test] = &[int(0, AF_UNIX), either(1, SOCK_TYPE_MASK, STREAM, SEQPACKET)];

/// TCP by its two names, so that neither MPTCP nor SCTP passes.
const TCP_UNNAMED: &[Test] = &[INET, kind(STREAM), protocol(0)];
const TCP: &[Test] = &[INET, kind(STREAM), protocol(libc::IPPROTO_TCP)];

/// UDP likewise.
const UDP_UNNAMED: &[Test] = &[INET, kind(DGRAM), protocol(0)];
const UDP: &[Test] = &[INET, kind(DGRAM), protocol(libc::IPPROTO_UDP)];

/// The netlink family that lists interfaces and routes; as with all of netlink, its two types are one.
const ROUTES: &[Test] = &[
    int(0, AF_NETLINK),
    either(1, SOCK_TYPE_MASK, RAW, DGRAM),
    protocol(libc::NETLINK_ROUTE),
];

const SOCKETS_WITHOUT_NETWORK: Rules = &[TCP_UNNAMED, TCP, UNIX];
const SOCKETS_WITH_NETWORK: Rules = &[TCP_UNNAMED, TCP, UNIX, UDP_UNNAMED, UDP, ROUTES];

/// `send` as libc makes it: neither flags that we refuse nor an address.
const SENDTO_WITHOUT_ADDRESS: Rules = &[&[bits(3, REFUSED_SEND_FLAGS, 0), null(4)]];

/// `recv` as libc makes it.
const RECVFROM_WITHOUT_ADDRESS: Rules = &[&[bits(3, libc::MSG_OOB as u32, 0), null(4)]];

/// The refused options, and what the socket in UDP's place does not have: whole levels, and sharing a port, which
/// Linux refuses to local sockets since 6.13.
const OPTIONS_OF_INTERNET_SOCKETS: Rules = &[
    &[int(1, libc::SOL_TCP as u32), int(2, libc::TCP_ULP as u32)],
    &[int(1, libc::SOL_IP as u32)],
    &[int(1, libc::SOL_IPV6 as u32)],
    &[int(1, libc::SOL_SOCKET as u32), int(2, libc::SO_REUSEPORT as u32)],
];

/// In a PID namespace of its own a process sees one stranger: our init, whose limits and priorities are not its
/// business.
const INIT_FIRST: Rules = &[&[int(0, 1)]];
const INIT_SECOND: Rules = &[&[int(1, 1)]];

/// The notified calls of this entry; `None` where all are allowed.
pub(super) fn calls(entry: &Entry, plan: &FilterPlan) -> Option<Calls> {
    if plan.pid_namespace
        && let Handling::PidArgument { index } = entry.handling
    {
        return Some(Calls::Only(if index == 0 { INIT_FIRST } else { INIT_SECOND }));
    }
    if plan.pid_namespace && entry.scope == Scope::HostProcessesVisible {
        return None;
    }
    match entry.handling {
        Handling::Socket => Some(match plan.net {
            NetMode::Off => Calls::Except(SOCKETS_WITHOUT_NETWORK),
            NetMode::Isolated | NetMode::Open => Calls::Except(SOCKETS_WITH_NETWORK),
        }),
        Handling::Socketpair => Some(Calls::Except(&[UNIX])),
        // There are datagram sockets, and only some destinations are allowed; in `Open` every destination is. In `Off` they
        // are stand-ins, which are told to whom a message goes, and tell from whom one comes.
        Handling::Send if plan.net != NetMode::Open => Some(match entry.name {
            "sendto" => Calls::Except(SENDTO_WITHOUT_ADDRESS),
            _ => Calls::All,
        }),
        Handling::Receive if plan.net == NetMode::Off => Some(match entry.name {
            "recvfrom" => Calls::Except(RECVFROM_WITHOUT_ADDRESS),
            _ => Calls::All,
        }),
        Handling::SetSockOpt if plan.net == NetMode::Off => {
            Some(Calls::Only(OPTIONS_OF_INTERNET_SOCKETS))
        }
        Handling::SocketName if plan.net != NetMode::Off => None,
        Handling::Open => match plan.opens {
            OpenObservation::None => None,
            OpenObservation::Writes => Some(entry.calls),
            OpenObservation::All => Some(Calls::All),
        },
        Handling::DirectoryChange => match (plan.opens, entry.calls) {
            (OpenObservation::Writes | OpenObservation::All, _) => Some(Calls::All),
            (OpenObservation::None, Calls::All) => None,
            (OpenObservation::None, device_nodes) => Some(device_nodes),
        },
        Handling::Refuse { .. }
        | Handling::Probe { .. }
        | Handling::Connect
        | Handling::Bind
        | Handling::Listen
        | Handling::Send
        | Handling::Receive
        | Handling::SetSockOpt
        | Handling::SocketName
        | Handling::Ioctl
        | Handling::Metadata
        | Handling::Watch
        | Handling::PidArgument { .. } => Some(entry.calls),
    }
}
