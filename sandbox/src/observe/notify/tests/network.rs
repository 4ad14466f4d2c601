//! Connects, binds, listens and sends over TCP and UDP.

use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::connect::BlockingConnect;
use super::super::listener::{self, Listener};
use super::super::{Response, address::SocketAddress};
use super::harness::{connect, inet, raw, run, setup, socket};
use crate::denial::{Certainty, DenialClass, DenialTarget};
use crate::policy::NetMode;

const CONNECT: &[libc::c_long] = &[libc::SYS_connect];

fn server() -> (TcpListener, u16) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    (server, port)
}

fn nobody_came(server: &TcpListener) {
    server.set_nonblocking(true).unwrap();
    let error = server.accept().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn an_allowed_connect_succeeds_on_behalf_blocking_and_not() {
    let (server, port) = server();
    let rule = format!("127.0.0.1:{port}");
    let ran = run(setup(NetMode::Off, &[rule]), CONNECT, || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        drop(server.accept().unwrap());
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);

        let nonblocking = socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK);
        let started = connect(&nonblocking, &inet([127, 0, 0, 1], port));
        assert_eq!(started, Err(libc::EINPROGRESS));
        let mut fds = [PollFd::new(nonblocking.as_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, PollTimeout::NONE).unwrap();
        assert_eq!(listener::socket_int(nonblocking.as_fd(), libc::SO_ERROR), Ok(0));
        server.accept().unwrap();
    });
    ran.unrecorded();
}

#[test]
fn i4_a_refused_connect_tells_address_port_and_rule() {
    let (server, port) = server();
    let ran = run(setup(NetMode::Off, &["127.0.0.1:1".to_owned()]), CONNECT, || {
        TcpStream::connect(("127.0.0.1", port))
            .unwrap_err()
            .raw_os_error()
    });
    assert_eq!(ran.result, Some(libc::EACCES));
    let denial = ran.denial();
    assert_eq!(denial.class, DenialClass::Network);
    assert_eq!(denial.operation, "connect");
    assert_eq!(
        denial.target,
        DenialTarget::inet(Ipv4Addr::LOCALHOST.into(), port, "tcp")
    );
    assert_eq!(
        (denial.rule.as_str(), denial.errno.as_str()),
        ("net = off (preset test)", "EACCES")
    );
    assert_eq!(denial.certainty, Certainty::Observed);
    nobody_came(&server);
}

#[test]
fn a_refused_port_of_the_kernel_itself_is_no_denial() {
    // Bound and closed again: nobody listens there now.
    let (server, port) = server();
    drop(server);
    let rule = format!("127.0.0.1:{port}");
    let ran = run(setup(NetMode::Off, &[rule]), CONNECT, || {
        TcpStream::connect(("127.0.0.1", port))
            .unwrap_err()
            .raw_os_error()
    });
    assert_eq!(ran.unrecorded(), Some(libc::ECONNREFUSED));
}

#[test]
fn escape_09_a_mapped_address_is_judged_as_the_one_it_leads_to() {
    let (server, port) = server();
    let mapped = SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), port));
    let ran = run(setup(NetMode::Off, &["[::1]:*".to_owned()]), CONNECT, || {
        TcpStream::connect(mapped).unwrap_err().raw_os_error()
    });
    assert_eq!(ran.result, Some(libc::EACCES));
    assert_eq!(ran.denial().target.address, Some(Ipv4Addr::LOCALHOST.into()));
    let rule = format!("127.0.0.1:{port}");
    let ran = run(setup(NetMode::Off, &[rule]), CONNECT, || {
        TcpStream::connect(mapped).is_ok()
    });
    assert!(ran.unrecorded());
    server.accept().unwrap();
}

#[test]
fn escape_09_the_unspecified_address_is_loopback() {
    let (server, port) = server();
    let anywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let ran = run(setup(NetMode::Off, &["0.0.0.0:*".to_owned()]), CONNECT, || {
        TcpStream::connect(anywhere).unwrap_err().raw_os_error()
    });
    assert_eq!(ran.result, Some(libc::EACCES));
    let rule = format!("127.0.0.1:{port}");
    let ran = run(setup(NetMode::Off, &[rule]), CONNECT, || {
        TcpStream::connect(anywhere).unwrap().peer_addr().unwrap()
    });
    assert_eq!(ran.unrecorded().ip(), Ipv4Addr::LOCALHOST);
    drop(server);
}

#[test]
fn isolated_permits_loopback_and_nothing_beyond() {
    let (_server, port) = server();
    let ran = run(setup(NetMode::Isolated, &[]), CONNECT, || {
        assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
        let udp = socket(libc::AF_INET, libc::SOCK_DGRAM);
        assert_eq!(connect(&udp, &inet([127, 0, 0, 1], 9)), Ok(0));
        assert_eq!(connect(&udp, &[0; 16]), Ok(0), "dissolved");
        (
            TcpStream::connect("192.0.2.1:80").unwrap_err().raw_os_error(),
            connect(&udp, &inet([192, 0, 2, 1], 53)),
        )
    });
    assert_eq!(ran.result, (Some(libc::ENETUNREACH), Err(libc::ENETUNREACH)));
    let targets: Vec<_> = ran.denials.iter().map(|denial| denial.target.clone()).collect();
    let there = "192.0.2.1".parse().unwrap();
    assert_eq!(
        targets,
        [
            DenialTarget::inet(there, 80, "tcp"),
            DenialTarget::inet(there, 53, "udp")
        ]
    );
    assert_eq!(ran.denials[0].rule, "net = isolated (preset test)");
}

#[test]
fn escape_07_listening_without_bind_and_binding_are_refused() {
    let notified = &[libc::SYS_bind, libc::SYS_listen];
    let ran = run(setup(NetMode::Off, &[]), notified, || {
        let tcp = socket(libc::AF_INET, libc::SOCK_STREAM);
        let fd = tcp.as_raw_fd() as u64;
        let listened = raw(libc::SYS_listen, [fd, 5, 0, 0, 0, 0]);
        assert_eq!(listener::socket_int(tcp.as_fd(), libc::SO_ACCEPTCONN), Ok(0));
        let address = inet([127, 0, 0, 1], 0);
        let bound = raw(libc::SYS_bind, [fd, address.as_ptr() as u64, 16, 0, 0, 0]);
        (listened, bound)
    });
    assert_eq!(ran.result, (Err(libc::EACCES), Err(libc::EACCES)));
    assert_eq!(ran.denials[0].operation, "listen");
    assert_eq!(ran.denials[0].target, DenialTarget::protocol("tcp"));
    assert_eq!(ran.denials[1].operation, "bind");
    assert_eq!(
        ran.denials[1].target,
        DenialTarget::inet(Ipv4Addr::LOCALHOST.into(), 0, "tcp")
    );
}

#[test]
fn listening_works_where_it_is_permitted() {
    let notified = &[libc::SYS_bind, libc::SYS_listen];
    for mode in [NetMode::Open, NetMode::Isolated] {
        let ran = run(setup(mode, &[]), notified, || {
            TcpListener::bind("127.0.0.1:0").is_ok()
        });
        assert!(ran.unrecorded());
    }
}

#[test]
fn escape_01_fast_open_is_refused_with_its_address() {
    let (server, port) = server();
    let notified = &[libc::SYS_sendto, libc::SYS_sendmsg, libc::SYS_sendmmsg];
    let flags = (libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL) as u64;
    let ran = run(setup(NetMode::Open, &[]), notified, || {
        let tcp = socket(libc::AF_INET, libc::SOCK_STREAM);
        let fd = tcp.as_raw_fd() as u64;
        let address = inet([127, 0, 0, 1], port);
        let text = b"x";
        // struct mmsghdr, of which the first part is struct msghdr.
        let mut header = [0u64; 8];
        header[0] = address.as_ptr() as u64;
        header[1] = 16;
        let (text, name, header) = (
            text.as_ptr() as u64,
            address.as_ptr() as u64,
            header.as_ptr() as u64,
        );
        [
            raw(libc::SYS_sendto, [fd, text, 1, flags, name, 16]),
            raw(libc::SYS_sendmsg, [fd, header, flags, 0, 0, 0]),
            raw(libc::SYS_sendmmsg, [fd, header, 1, flags, 0, 0]),
            // Unreadable, and refused all the same.
            raw(libc::SYS_sendto, [fd, text, 1, flags, 1, 16]),
        ]
    });
    assert_eq!(ran.result, [Err(libc::EOPNOTSUPP); 4]);
    let target = DenialTarget::inet(Ipv4Addr::LOCALHOST.into(), port, "tcp");
    for (denial, operation) in ran.denials.iter().zip(["sendto", "sendmsg", "sendmmsg"]) {
        assert_eq!((denial.operation.as_str(), &denial.target), (operation, &target));
    }
    assert_eq!(ran.denials[3].target, DenialTarget::protocol("tcp"));
    nobody_came(&server);
}

#[test]
fn escape_20_out_of_band_data_is_refused() {
    let notified = &[libc::SYS_sendto, libc::SYS_recvfrom];
    let ran = run(setup(NetMode::Off, &[]), notified, || {
        let unix = socket(libc::AF_UNIX, libc::SOCK_STREAM);
        let fd = unix.as_raw_fd() as u64;
        let byte = [0u8];
        let flags = libc::MSG_OOB as u64;
        let at = byte.as_ptr() as u64;
        [
            raw(libc::SYS_sendto, [fd, at, 1, flags, 0, 0]),
            raw(libc::SYS_recvfrom, [fd, at, 1, flags, 0, 0]),
        ]
    });
    assert_eq!(ran.result, [Err(libc::EOPNOTSUPP); 2]);
    assert_eq!(ran.denials[1].operation, "recvfrom");
    assert_eq!(ran.denials[1].target, DenialTarget::protocol("unix"));
}

#[test]
fn isolated_sends_beyond_loopback_are_refused_and_recorded() {
    let notified = &[libc::SYS_sendto, libc::SYS_sendmmsg];
    let ran = run(setup(NetMode::Isolated, &[]), notified, || {
        let udp = socket(libc::AF_INET, libc::SOCK_DGRAM);
        let fd = udp.as_raw_fd() as u64;
        let (near, far) = (inet([127, 0, 0, 1], 9), inet([192, 0, 2, 1], 53));
        let mut headers = [0u64; 16];
        (headers[0], headers[1], headers[8], headers[9]) =
            (near.as_ptr() as u64, 16, far.as_ptr() as u64, 16);
        let send = |to: &[u8; 16]| raw(libc::SYS_sendto, [fd, 0, 0, 0, to.as_ptr() as u64, 16]);
        let many = |from: usize, count: u64| {
            let at = headers[from..].as_ptr() as u64;
            raw(libc::SYS_sendmmsg, [fd, at, count, 0, 0, 0])
        };
        (send(&near), send(&far), many(0, 1), many(8, 1))
    });
    assert_eq!(
        ran.result,
        (Ok(0), Err(libc::ENETUNREACH), Ok(1), Err(libc::ENETUNREACH))
    );
    assert_eq!(ran.denials.len(), 2);
    assert_eq!(ran.denials[1].target.port, Some(53));
}

#[test]
fn malformed_arguments_get_the_kernels_own_errors_and_no_denial() {
    let ran = run(setup(NetMode::Off, &[]), CONNECT, || {
        let tcp = socket(libc::AF_INET, libc::SOCK_STREAM);
        let six = socket(libc::AF_INET6, libc::SOCK_STREAM);
        let unix = socket(libc::AF_UNIX, libc::SOCK_STREAM);
        let file = std::fs::File::open("/dev/null").unwrap();
        let fd = tcp.as_raw_fd() as u64;
        let raw = |fd: u64, at: u64, length: u64| raw(libc::SYS_connect, [fd, at, length, 0, 0, 0]);
        let address = inet([127, 0, 0, 1], 1);
        let at = address.as_ptr() as u64;
        [
            (raw(fd, 0, 16), libc::EFAULT),
            (raw(fd, 1, 16), libc::EFAULT),
            (raw(fd, u64::MAX - 7, 16), libc::EFAULT),
            (raw(fd, 1 << 63, 16), libc::EFAULT),
            (raw(fd, at, u64::from(u32::MAX)), libc::EINVAL),
            (raw(fd, at, 129), libc::EINVAL),
            (raw(fd, at, 1), libc::EINVAL),
            (raw(fd, at, 15), libc::EINVAL),
            (raw(u64::from(u32::MAX), at, 16), libc::EBADF),
            (raw(1 << 20, at, 16), libc::EBADF),
            (raw(file.as_raw_fd() as u64, at, 16), libc::ENOTSOCK),
            (raw(unix.as_raw_fd() as u64, at, 16), libc::EINVAL),
            (connect(&six, &[10, 0, 0, 0]), libc::EINVAL),
            (connect(&tcp, &[0xee; 16]), libc::EAFNOSUPPORT),
        ]
    });
    for (index, (result, errno)) in ran.unrecorded().into_iter().enumerate() {
        assert_eq!(result, Err(errno), "case {index}");
    }
}

#[test]
fn a_waiting_connect_ends_when_it_is_cancelled() {
    // A listener whose queue is full leaves further connects waiting.
    let full = socket(libc::AF_INET, libc::SOCK_STREAM);
    let fd = full.as_raw_fd() as u64;
    let any = inet([127, 0, 0, 1], 0);
    raw(libc::SYS_bind, [fd, any.as_ptr() as u64, 16, 0, 0, 0]).unwrap();
    listener::listen(full.as_fd(), 0).unwrap();
    let bound = nix::sys::socket::getsockname::<nix::sys::socket::SockaddrIn>(full.as_raw_fd()).unwrap();
    let there = inet([127, 0, 0, 1], bound.port());
    let fillers: Vec<_> = (0..4)
        .map(|_| {
            let filler = socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK);
            let _ = connect(&filler, &there);
            filler
        })
        .collect();
    let address = SocketAddress::copy(
        std::process::id().cast_signed(),
        there.as_ptr() as u64,
        there.len() as i32,
    )
    .unwrap();
    let waiting = BlockingConnect::new(socket(libc::AF_INET, libc::SOCK_STREAM), address, None);
    let canceller = waiting.canceller().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    // A connect asks nothing of the listener: any descriptor will do.
    let listener = Listener::new(socket(libc::AF_UNIX, libc::SOCK_STREAM)).unwrap();
    let thread = std::thread::spawn(move || {
        sender.send(waiting.run(&listener)).unwrap();
    });
    // It may not have begun to wait yet: cancel until it has ended.
    let response = loop {
        canceller.cancel();
        if let Ok(response) = receiver.recv_timeout(std::time::Duration::from_millis(5)) {
            break response;
        }
    };
    thread.join().unwrap();
    assert!(matches!(response, Response::Errno(_)), "{response:?}");
    drop(fillers);
}

#[test]
fn ipv6_loopback_and_others_are_told_apart() {
    let ran = run(setup(NetMode::Off, &["[::1]:9".to_owned()]), CONNECT, || {
        let permitted = TcpStream::connect(SocketAddr::from((Ipv6Addr::LOCALHOST, 9)));
        let refused = TcpStream::connect("[2001:db8::1]:9");
        (
            permitted.unwrap_err().raw_os_error(),
            refused.unwrap_err().raw_os_error(),
        )
    });
    assert_ne!(ran.result.0, Some(libc::EACCES), "performed");
    assert_eq!(ran.result.1, Some(libc::EACCES));
    assert_eq!(ran.denial().target.address, Some("2001:db8::1".parse().unwrap()));
}
