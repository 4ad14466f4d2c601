//! Sockets. What a filter can decide by registers passes silently; the rest is asked.

use super::condition::{bits, int};
use super::{Handling, Row, Rules};

/// The flags that turn a send into something else: `MSG_FASTOPEN` connects without `connect`, `MSG_OOB` reaches
/// little-used kernel code with a record of bugs.
pub(crate) const REFUSED_SEND_FLAGS: u32 = MSG_FASTOPEN | MSG_OOB;

const MSG_FASTOPEN: u32 = libc::MSG_FASTOPEN as u32;
const MSG_OOB: u32 = libc::MSG_OOB as u32;

const SOL_IP: u32 = libc::SOL_IP as u32;
const SOL_IPV6: u32 = libc::SOL_IPV6 as u32;
const SOL_TCP: u32 = libc::SOL_TCP as u32;
/// `IP_OPTIONS`: may carry a source route.
const IP_OPTIONS: u32 = 4;
/// `IPV6_2292PKTOPTIONS`, `IPV6_RTHDR`: may carry a routing header.
const IPV6_2292PKTOPTIONS: u32 = 6;
const IPV6_RTHDR: u32 = 57;
/// `TCP_ULP`: replaces the protocol under a TCP socket.
const TCP_ULP: u32 = libc::TCP_ULP as u32;

const REFUSED_OPTIONS: Rules = &[
    &[int(1, SOL_TCP), int(2, TCP_ULP)],
    &[int(1, SOL_IP), int(2, IP_OPTIONS)],
    &[int(1, SOL_IPV6), int(2, IPV6_RTHDR)],
    &[int(1, SOL_IPV6), int(2, IPV6_2292PKTOPTIONS)],
];

const OUT_OF_BAND: &str = "out-of-band data reaches little-used kernel code with a record of bugs";
const SEND: &str = "a send may carry its own destination, or connect by itself (TCP Fast Open)";

const STAND_IN: &str = "a socket that stands in for UDP has no internet address to tell";

pub(super) const ROWS: &[Row] = &[
    Row::new(
        "socket",
        Handling::Socket,
        "families, types and protocols other than the plain ones pass by the rules for TCP",
    ),
    Row::new(
        "socketpair",
        Handling::Socketpair,
        "a datagram pair can be pointed at any unix socket of the machine",
    ),
    Row::new("connect", Handling::Connect, "the destination is in memory, which no filter sees"),
    Row::new("bind", Handling::Bind, "the address is in memory, which no filter sees"),
    Row::new("listen", Handling::Listen, "an unbound socket listens on all addresses"),
    Row::new("sendto", Handling::Send, SEND).except(&[&[bits(3, REFUSED_SEND_FLAGS, 0)]]),
    Row::new("sendmsg", Handling::Send, SEND).except(&[&[bits(2, REFUSED_SEND_FLAGS, 0)]]),
    Row::new("sendmmsg", Handling::Send, SEND).except(&[&[bits(3, REFUSED_SEND_FLAGS, 0)]]),
    Row::new("recvfrom", Handling::Receive, OUT_OF_BAND).except(&[&[bits(3, MSG_OOB, 0)]]),
    Row::new("recvmsg", Handling::Receive, OUT_OF_BAND).except(&[&[bits(2, MSG_OOB, 0)]]),
    Row::new("recvmmsg", Handling::Receive, OUT_OF_BAND).except(&[&[bits(3, MSG_OOB, 0)]]),
    Row::new(
        "setsockopt",
        Handling::SetSockOpt,
        "another protocol under a TCP socket, or a route of its own, leads past the rules for destinations",
    )
    .only(REFUSED_OPTIONS),
    Row::new("getsockname", Handling::SocketName, STAND_IN),
    Row::new("getpeername", Handling::SocketName, STAND_IN),
];
