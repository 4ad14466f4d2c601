//! Ways to reach a socket.

use std::net::{IpAddr, SocketAddr};

use crate::Arguments;
use crate::raw::{Outcome, sys};

const FASTOPEN: i32 = 0x2000_0000;
const TCP_ULP: i32 = 31;
const TCP_FASTOPEN_CONNECT: i32 = 30;
const MPTCP: i32 = 262;
const SMC: i32 = 43;

/// The attempts of this file, by name.
pub(crate) fn attempt(name: &str, arguments: &Arguments) -> Option<Outcome> {
    let to = || destination(arguments);
    Some(match name {
        "tcp-connect" => socket_then(libc::SOCK_STREAM, 0, to(), connect),
        "mptcp" => socket_then(libc::SOCK_STREAM, MPTCP, to(), connect),
        "udp-connect" => socket_then(libc::SOCK_DGRAM, 0, to(), connect),
        "udp-sendto" => socket_then(libc::SOCK_DGRAM, 0, to(), |fd, to| sendto(fd, to, 0)),
        "udp-bind" => socket_then(libc::SOCK_DGRAM, 0, to(), bind),
        "fastopen-sendto" => socket_then(libc::SOCK_STREAM, 0, to(), |fd, to| sendto(fd, to, FASTOPEN)),
        "fastopen-sendmsg" => {
            socket_then(libc::SOCK_STREAM, 0, to(), |fd, to| sendmsg(fd, to, FASTOPEN))
        }
        "fastopen-sendmmsg" => socket_then(libc::SOCK_STREAM, 0, to(), sendmmsg_fastopen),
        "fastopen-connect" => socket_then(libc::SOCK_STREAM, 0, to(), fastopen_connect),
        "bind-listen" => socket_then(libc::SOCK_STREAM, 0, to(), |fd, to| {
            bind(fd, to).and_then(|_| listen(fd))
        }),
        "bind-unspec" => socket_then(libc::SOCK_STREAM, 0, to(), |fd, to| bind(fd, &unspecified(to))),
        "listen-unbound" => stream().and_then(listen),
        "unspec-retarget" => socket_then(libc::SOCK_STREAM, 0, to(), unspec_retarget),
        "sctp" => socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
        "dccp" => socket(libc::AF_INET, libc::SOCK_DCCP, libc::IPPROTO_DCCP),
        "udplite" => socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE),
        "smc" => socket(SMC, libc::SOCK_STREAM, 0),
        "ulp" => stream().and_then(ulp),
        "netlink" => socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE),
        "netlink-audit" => socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_AUDIT),
        "vsock" => socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0),
        "alg" => socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
        "packet" => socket(libc::AF_PACKET, libc::SOCK_RAW, 0x0300),
        "raw" => socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
        "ping" => socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
        // The kernel reads an int: garbage above it must change nothing.
        "ping-high-bits" => sys!(
            libc::SYS_socket,
            0x1_0000_0000_i64 | i64::from(libc::AF_INET),
            0x1_0000_0000_i64 | i64::from(libc::SOCK_DGRAM),
            0x1_0000_0000_i64 | i64::from(libc::IPPROTO_ICMP)
        ),
        "oob" => out_of_band(),
        "unix-stream" => unix(libc::SOCK_STREAM, arguments.text(0), connect),
        "unix-seqpacket" => unix(libc::SOCK_SEQPACKET, arguments.text(0), connect),
        "unix-dgram" => unix(libc::SOCK_DGRAM, arguments.text(0), |fd, to| sendto(fd, to, 0)),
        "unix-relative" => std::env::set_current_dir(arguments.text(0))
            .map_err(|error| error.raw_os_error().unwrap_or(0))
            .and_then(|()| unix(libc::SOCK_STREAM, arguments.text(1), connect)),
        "abstract" => unix(libc::SOCK_STREAM, &format!("\0{}", arguments.text(0)), connect),
        "pair-sendto" => datagram_pair().and_then(|fd| sendto(fd, &unix_address(arguments.text(0)), 0)),
        "pair-sendmsg" => {
            datagram_pair().and_then(|fd| sendmsg(fd, &unix_address(arguments.text(0)), 0))
        }
        _ => return None,
    })
}

/// A socket address as the kernel reads it.
type Address = Vec<u8>;

fn destination(arguments: &Arguments) -> Address {
    let ip: IpAddr = arguments.number(0);
    inet(SocketAddr::new(ip, arguments.number(1)))
}

/// The bytes of a `sockaddr_in` or `sockaddr_in6`.
pub(crate) fn inet(address: SocketAddr) -> Address {
    let mut bytes = Vec::with_capacity(28);
    match address {
        SocketAddr::V4(v4) => {
            bytes.extend(family(libc::AF_INET));
            bytes.extend(v4.port().to_be_bytes());
            bytes.extend(v4.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(v6) => {
            bytes.extend(family(libc::AF_INET6));
            bytes.extend(v6.port().to_be_bytes());
            bytes.extend([0; 4]);
            bytes.extend(v6.ip().octets());
            bytes.extend([0; 4]);
        }
    }
    bytes
}

fn unix_address(path: &str) -> Address {
    let mut bytes = Vec::from(family(libc::AF_UNIX));
    bytes.extend(path.as_bytes());
    if !path.starts_with('\0') {
        bytes.push(0);
    }
    bytes
}

fn family(number: i32) -> [u8; 2] {
    u16::try_from(number).unwrap_or(0).to_ne_bytes()
}

/// The same address under the family `AF_UNSPEC`, which bind takes for `AF_INET`.
fn unspecified(address: &Address) -> Address {
    let mut bytes = address.clone();
    bytes[..2].copy_from_slice(&family(libc::AF_UNSPEC));
    bytes
}

fn socket(domain: i32, kind: i32, protocol: i32) -> Outcome {
    sys!(libc::SYS_socket, domain, kind, protocol)
}

/// A TCP socket.
pub(crate) fn stream() -> Outcome {
    socket(libc::AF_INET, libc::SOCK_STREAM, 0)
}

fn socket_then(
    kind: i32,
    protocol: i32,
    to: Address,
    action: impl FnOnce(i64, &Address) -> Outcome,
) -> Outcome {
    let domain = i32::from(u16::from_ne_bytes([to[0], to[1]]));
    socket(domain, kind, protocol).and_then(|fd| action(fd, &to))
}

fn unix(kind: i32, path: &str, action: impl FnOnce(i64, &Address) -> Outcome) -> Outcome {
    socket(libc::AF_UNIX, kind, 0).and_then(|fd| action(fd, &unix_address(path)))
}

/// `connect(2)`.
pub(crate) fn connect(fd: i64, to: &Address) -> Outcome {
    sys!(libc::SYS_connect, fd, to.as_ptr(), to.len())
}

fn bind(fd: i64, to: &Address) -> Outcome {
    sys!(libc::SYS_bind, fd, to.as_ptr(), to.len())
}

fn listen(fd: i64) -> Outcome {
    sys!(libc::SYS_listen, fd, 1)
}

fn sendto(fd: i64, to: &Address, flags: i32) -> Outcome {
    sys!(
        libc::SYS_sendto,
        fd,
        b"x".as_ptr(),
        1,
        flags,
        to.as_ptr(),
        to.len()
    )
}

#[repr(C)]
struct Vector {
    base: *const u8,
    length: usize,
}

/// `struct msghdr` on 64-bit machines, with `struct mmsghdr`'s length behind it.
#[repr(C)]
struct Message {
    name: *const u8,
    name_length: u32,
    vectors: *const Vector,
    vectors_length: usize,
    control: *const u8,
    control_length: usize,
    flags: i32,
    sent: u32,
}

fn with_message(to: &Address, send: impl FnOnce(*const Message) -> Outcome) -> Outcome {
    let vector = Vector {
        base: b"x".as_ptr(),
        length: 1,
    };
    let message = Message {
        name: to.as_ptr(),
        name_length: u32::try_from(to.len()).unwrap_or(0),
        vectors: &raw const vector,
        vectors_length: 1,
        control: std::ptr::null(),
        control_length: 0,
        flags: 0,
        sent: 0,
    };
    send(&raw const message)
}

fn sendmsg(fd: i64, to: &Address, flags: i32) -> Outcome {
    with_message(to, |message| sys!(libc::SYS_sendmsg, fd, message, flags))
}

fn sendmmsg_fastopen(fd: i64, to: &Address) -> Outcome {
    with_message(to, |message| sys!(libc::SYS_sendmmsg, fd, message, 1, FASTOPEN))
}

fn set_tcp(fd: i64, option: i32, value: &[u8]) -> Outcome {
    sys!(
        libc::SYS_setsockopt,
        fd,
        libc::IPPROTO_TCP,
        option,
        value.as_ptr(),
        value.len()
    )
}

/// Connect that sends nothing yet: the first write carries the SYN.
fn fastopen_connect(fd: i64, to: &Address) -> Outcome {
    set_tcp(fd, TCP_FASTOPEN_CONNECT, &1_i32.to_ne_bytes())?;
    connect(fd, to)?;
    sys!(libc::SYS_write, fd, b"x".as_ptr(), 1)
}

/// A protocol on top of TCP that has connects of its own.
fn ulp(fd: i64) -> Outcome {
    set_tcp(fd, TCP_ULP, b"smc\0")
}

/// Dissolves the association first, in the hope that what follows is judged by the old address.
fn unspec_retarget(fd: i64, to: &Address) -> Outcome {
    connect(fd, &unspecified(to)).and_then(|_| connect(fd, to))
}

fn datagram_pair() -> Outcome {
    pair(libc::SOCK_DGRAM).map(|pair| i64::from(pair[0]))
}

fn pair(kind: i32) -> Result<[i32; 2], i32> {
    let mut pair = [0_i32; 2];
    sys!(libc::SYS_socketpair, libc::AF_UNIX, kind, 0, pair.as_mut_ptr()).map(|_| pair)
}

/// Urgent data: rarely used kernel code that has had holes.
fn out_of_band() -> Outcome {
    let pair = pair(libc::SOCK_STREAM)?;
    sys!(libc::SYS_sendto, pair[0], b"x".as_ptr(), 1, libc::MSG_OOB, 0, 0)
}
