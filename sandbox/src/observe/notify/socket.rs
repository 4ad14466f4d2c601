//! Sockets: what they are called, which may be made, and duplicates of them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::{Call, Decided, Decider, Unavailable, errands, listener};
use crate::denial::DenialTarget;
use crate::policy::NetMode;

/// `SOCK_NONBLOCK` and `SOCK_CLOEXEC` travel in the same argument.
const TYPE_MASK: i32 = 0xf;
const SOCK_DCCP: i32 = 6;
const SOCK_PACKET: i32 = 10;
const IPPROTO_SMC: i32 = 256;

/// What a socket is, as its creator said or as the kernel says of a duplicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SocketKind {
    /// `AF_*`.
    pub(super) family: i32,
    /// `SOCK_*`, without flags.
    pub(super) type_: i32,
    /// `IPPROTO_*` and the like; 0 for the family's default.
    pub(super) protocol: i32,
}

impl SocketKind {
    /// Asks the kernel about a socket.
    pub(super) fn of(socket: BorrowedFd<'_>) -> Result<Self, Errno> {
        Ok(Self {
            family: listener::socket_int(socket, libc::SO_DOMAIN)?,
            type_: listener::socket_int(socket, libc::SO_TYPE)?,
            protocol: listener::socket_int(socket, libc::SO_PROTOCOL)?,
        })
    }

    fn is_inet(self) -> bool {
        matches!(self.family, libc::AF_INET | libc::AF_INET6)
    }

    pub(super) fn is_tcp(self) -> bool {
        self.is_inet()
            && self.type_ == libc::SOCK_STREAM
            && matches!(self.protocol, 0 | libc::IPPROTO_TCP)
    }

    pub(super) fn is_udp(self) -> bool {
        self.is_inet()
            && self.type_ == libc::SOCK_DGRAM
            && matches!(self.protocol, 0 | libc::IPPROTO_UDP)
    }

    pub(super) fn is_unix(self) -> bool {
        self.family == libc::AF_UNIX
    }

    /// As denials call it.
    pub(super) fn name(self) -> String {
        let known = match self.family {
            libc::AF_INET | libc::AF_INET6 => self.inet_name(),
            libc::AF_UNIX => match self.type_ {
                libc::SOCK_STREAM | libc::SOCK_SEQPACKET => Some("unix"),
                // The kernel makes datagram sockets of raw ones.
                libc::SOCK_DGRAM | libc::SOCK_RAW => Some("unix-dgram"),
                _ => None,
            },
            family => family_name(family),
        };
        known.map_or_else(
            || {
                format!(
                    "family {} type {} protocol {}",
                    self.family, self.type_, self.protocol
                )
            },
            str::to_owned,
        )
    }

    fn inet_name(self) -> Option<&'static str> {
        Some(match (self.type_, self.protocol) {
            (libc::SOCK_STREAM, 0 | libc::IPPROTO_TCP) => "tcp",
            (libc::SOCK_DGRAM, 0 | libc::IPPROTO_UDP) => "udp",
            (libc::SOCK_STREAM, libc::IPPROTO_MPTCP) => "mptcp",
            (libc::SOCK_STREAM, IPPROTO_SMC) => "smc",
            (libc::SOCK_STREAM | libc::SOCK_SEQPACKET, libc::IPPROTO_SCTP) => "sctp",
            (libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE) => "udplite",
            (libc::SOCK_DGRAM, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6) => "icmp",
            (SOCK_DCCP, _) => "dccp",
            (libc::SOCK_RAW, _) => "raw",
            (SOCK_PACKET, _) => "packet",
            _ => return None,
        })
    }

    /// What a program gets that asks for one it may not have: an error on which it can fall back.
    fn refusal(self) -> Errno {
        if self.is_unix() {
            return Errno::EACCES;
        }
        if !self.is_inet() {
            return Errno::EAFNOSUPPORT;
        }
        match self.inet_name() {
            Some("mptcp" | "smc" | "sctp" | "udplite" | "dccp") => Errno::EPROTONOSUPPORT,
            _ => Errno::EACCES,
        }
    }
}

fn family_name(family: i32) -> Option<&'static str> {
    Some(match family {
        libc::AF_NETLINK => "netlink",
        libc::AF_PACKET => "packet",
        libc::AF_VSOCK => "vsock",
        libc::AF_ALG => "alg",
        libc::AF_BLUETOOTH => "bluetooth",
        libc::AF_XDP => "xdp",
        libc::AF_CAN => "can",
        libc::AF_TIPC => "tipc",
        libc::AF_KEY => "key",
        libc::AF_RDS => "rds",
        libc::AF_RXRPC => "rxrpc",
        libc::AF_NFC => "nfc",
        libc::AF_IB => "ib",
        // libc has no names for these three.
        41 => "kcm",
        42 => "qipcrtr",
        43 => "smc",
        _ => return None,
    })
}

impl Decider {
    /// The filter lets through what the policy permits, so whatever arrives is refused.
    pub(super) fn socket(&self, call: Call<'_>) -> Decided {
        self.refuse_kind(call)
    }

    /// Likewise: a datagram pair is a unix datagram socket, which can be pointed at any other.
    pub(super) fn socketpair(&self, call: Call<'_>) -> Decided {
        self.refuse_kind(call)
    }

    fn refuse_kind(&self, call: Call<'_>) -> Decided {
        let kind = SocketKind {
            family: call.int(0),
            type_: call.int(1) & TYPE_MASK,
            protocol: call.int(2),
        };
        if let Some(decided) = self.make_stand_in(call, kind) {
            return decided;
        }
        if call.name == "socket"
            && let Some(decided) = self.make_ready_socket(call, kind)
        {
            return decided;
        }
        // libc asks for the machine's addresses before it resolves a name, and can do without.
        if self.names.is_some()
            && kind.family == libc::AF_NETLINK
            && kind.protocol == libc::NETLINK_ROUTE
        {
            return Decided::probe(kind.refusal(), "netlink_route".to_owned());
        }
        let rule = match self.setup.net.mode {
            NetMode::Off => self.net_rule.clone(),
            _ => format!("{} covers TCP, UDP and unix streams only", self.net_rule),
        };
        call.deny_net(kind.refusal(), DenialTarget::protocol(kind.name()), rule)
    }

    /// The duplicate of the descriptor that a call names by its first argument, and what it is.
    pub(super) fn duplicate(&self, call: Call<'_>) -> Result<(OwnedFd, SocketKind), Unavailable> {
        let fd = call.int(0);
        if fd < 0 {
            return Err(Unavailable::Errno(Errno::EBADF));
        }
        let duplicated = errands::descriptor_of_thread(call.tid(), fd);
        match duplicated {
            Ok(socket) => {
                let kind = SocketKind::of(socket.as_fd()).map_err(Unavailable::Errno)?;
                Ok((socket, kind))
            }
            Err(Errno::EBADF) => Err(Unavailable::Errno(Errno::EBADF)),
            Err(_) => Err(Unavailable::Forbidden),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_sockets_have_names_and_errors_to_fall_back_on() {
        let check = |family, type_, protocol, name: &str, errno| {
            let kind = SocketKind {
                family,
                type_,
                protocol,
            };
            assert_eq!((kind.name().as_str(), kind.refusal()), (name, errno));
        };
        check(libc::AF_INET, libc::SOCK_DGRAM, 0, "udp", Errno::EACCES);
        check(libc::AF_INET6, libc::SOCK_DGRAM, 17, "udp", Errno::EACCES);
        check(
            libc::AF_INET,
            libc::SOCK_STREAM,
            262,
            "mptcp",
            Errno::EPROTONOSUPPORT,
        );
        check(
            libc::AF_INET,
            libc::SOCK_SEQPACKET,
            132,
            "sctp",
            Errno::EPROTONOSUPPORT,
        );
        check(libc::AF_INET, SOCK_DCCP, 33, "dccp", Errno::EPROTONOSUPPORT);
        check(libc::AF_INET, libc::SOCK_RAW, 1, "raw", Errno::EACCES);
        check(libc::AF_INET, libc::SOCK_DGRAM, 1, "icmp", Errno::EACCES);
        check(
            libc::AF_NETLINK,
            libc::SOCK_RAW,
            0,
            "netlink",
            Errno::EAFNOSUPPORT,
        );
        check(libc::AF_VSOCK, libc::SOCK_STREAM, 0, "vsock", Errno::EAFNOSUPPORT);
        check(libc::AF_ALG, libc::SOCK_SEQPACKET, 0, "alg", Errno::EAFNOSUPPORT);
        check(
            libc::AF_PACKET,
            libc::SOCK_RAW,
            768,
            "packet",
            Errno::EAFNOSUPPORT,
        );
        check(libc::AF_UNIX, libc::SOCK_DGRAM, 0, "unix-dgram", Errno::EACCES);
        check(-1, 15, -7, "family -1 type 15 protocol -7", Errno::EAFNOSUPPORT);
        check(
            libc::AF_INET,
            libc::SOCK_SEQPACKET,
            7,
            "family 2 type 5 protocol 7",
            Errno::EACCES,
        );
    }
}
