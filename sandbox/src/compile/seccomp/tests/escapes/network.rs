//! The same for sockets.

use super::{HIGH, everywhere, net};
use crate::policy::NetMode;

const UNIX: u64 = libc::AF_UNIX as u64;
const INET: u64 = libc::AF_INET as u64;
const INET6: u64 = libc::AF_INET6 as u64;
const STREAM: u64 = libc::SOCK_STREAM as u64;
const DGRAM: u64 = libc::SOCK_DGRAM as u64;
const RAW: u64 = libc::SOCK_RAW as u64;
const SEQPACKET: u64 = libc::SOCK_SEQPACKET as u64;
const CLOEXEC: u64 = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u64;
const FASTOPEN: u64 = libc::MSG_FASTOPEN as u64;
const OOB: u64 = libc::MSG_OOB as u64;

#[test]
fn escape_1_2_20_fast_open_and_out_of_band_flags_are_notified_on_every_send() {
    for filter in everywhere() {
        for flag in [FASTOPEN, OOB, FASTOPEN | OOB | 0x4000, FASTOPEN | HIGH] {
            assert!(filter.notifies("sendto", &[3, 1, 1, flag, 0, 0]));
            assert!(filter.notifies("sendmsg", &[3, 1, flag]));
            assert!(filter.notifies("sendmmsg", &[3, 1, 1, flag]));
        }
        for (name, at) in [("recvfrom", 3), ("recvmsg", 2), ("recvmmsg", 3)] {
            let mut args = [0; 6];
            args[at] = OOB;
            assert!(filter.notifies(name, &args));
            args[at] = 0x4000_0000 | HIGH;
            // Where names are resolved, a receive that may ask for the sender's address is looked at.
            let asked = filter.names && name != "recvfrom";
            assert_eq!(filter.notifies(name, &args), asked);
            if name == "recvfrom" {
                args[4] = 1;
                assert_eq!(filter.notifies(name, &args), filter.names);
            }
        }
        // send() as libc makes it, with MSG_NOSIGNAL and garbage above.
        assert!(!filter.notifies("sendto", &[3, 1, 1, 0x4000 | HIGH, 0, 0]));
    }
}

#[test]
fn escape_3_4_17_18_only_plain_sockets_pass_unasked() {
    for filter in everywhere() {
        for (family, kind, protocol) in [
            (INET, STREAM, 262),
            (INET, STREAM, 132),
            (INET, STREAM, 256),
            (INET, SEQPACKET, 0),
            (INET, DGRAM, 1),
            (INET, DGRAM, 136),
            (INET, RAW, 0),
            (UNIX, DGRAM, 0),
            (UNIX, RAW, 0),
            (16, RAW, 9),
            (16, STREAM, 0),
            (17, RAW, 0),
            (17, DGRAM, 0),
            (38, SEQPACKET, 0),
            (40, STREAM, 0),
            (43, STREAM, 0),
            (0, STREAM, 0),
        ] {
            for high in [0, HIGH] {
                let args = [family | high, kind | CLOEXEC | high, protocol | high];
                assert!(filter.notifies("socket", &args), "{args:x?}");
            }
        }
        for (family, kind, protocol) in [
            (INET, STREAM, 0),
            (INET6, STREAM, 6),
            (UNIX, STREAM, 0),
            (UNIX, SEQPACKET, 0),
        ] {
            for high in [0, HIGH] {
                let args = [family | high, kind | CLOEXEC | high, protocol | high];
                assert!(!filter.notifies("socket", &args), "{args:x?}");
            }
        }
        assert!(filter.notifies("socketpair", &[UNIX, DGRAM]));
        assert!(filter.notifies("socketpair", &[UNIX, RAW]));
        assert!(filter.notifies("socketpair", &[30, STREAM]));
        assert!(!filter.notifies("socketpair", &[UNIX, STREAM | CLOEXEC]));
    }
}

#[test]
fn escape_5_6_16_udp_and_netlink_sockets_exist_only_where_there_is_a_network() {
    let sockets = [
        [INET, DGRAM, 0],
        [INET, DGRAM, 17],
        [INET6, DGRAM | CLOEXEC, 17],
        [16, RAW, 0],
        [16, DGRAM, 0],
    ];
    for args in sockets {
        assert!(net(NetMode::Off).notifies("socket", &args));
        assert!(!net(NetMode::Isolated).notifies("socket", &args));
        assert!(!net(NetMode::Open).notifies("socket", &args));
    }
    let datagram = [3, 1, 1, 0, 0x7FFF_0000_0000, 16];
    for mode in [NetMode::Off, NetMode::Isolated] {
        assert!(net(mode).notifies("sendto", &datagram));
        assert!(
            net(mode).notifies("sendto", &[3, 1, 1, 0, 1 << 40, 16]),
            "an upper half alone"
        );
        assert!(net(mode).notifies("sendmsg", &[3, 1, 0]));
        assert!(net(mode).notifies("sendmmsg", &[3, 1, 1, 0]));
    }
    assert!(!net(NetMode::Open).notifies("sendto", &datagram));
    assert!(!net(NetMode::Open).notifies("sendmsg", &[3, 1, 0]));
}

#[test]
fn escape_7_8_10_every_connect_bind_and_listen_is_notified() {
    for filter in everywhere() {
        for name in ["connect", "bind", "listen"] {
            assert!(filter.notifies(name, &[3, 0, 0]));
        }
        for name in ["accept", "accept4", "getsockopt", "shutdown"] {
            assert!(!filter.notifies(name, &[3, 0, 0]));
        }
        for name in ["getsockname", "getpeername"] {
            assert_eq!(filter.notifies(name, &[3, 0, 0]), filter.names);
        }
        // TCP_ULP, IP_OPTIONS and IPV6_RTHDR; beside them TCP_NODELAY, IP_TOS, IPV6_V6ONLY, SO_REUSEADDR, SO_REUSEPORT.
        for (level, option) in [(6, 31), (0, 4), (41, 57)] {
            assert!(filter.notifies("setsockopt", &[3, level | HIGH, option | HIGH]));
        }
        for (level, option) in [(6, 1), (0, 1), (41, 26), (1, 2), (1, 15), (1, 31), (6, 4)] {
            let of_udp = filter.names && (matches!(level, 0 | 41) || option == 15);
            assert_eq!(filter.notifies("setsockopt", &[3, level, option]), of_udp);
        }
    }
}
