//! A second thread of the target changes what the first one's call says, while it is decided.

use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread;

use super::super::listener;
use super::harness::{inet, raw, run, setup, socket};
use crate::policy::NetMode;

#[test]
fn escape_28_an_address_changed_during_the_decision_is_never_reached() {
    const TRIES: usize = 5_000;
    let permitted = TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = |server: &TcpListener| server.local_addr().unwrap().port();
    let ports = [port(&permitted), port(&refused)];
    let rule = format!("127.0.0.1:{}", ports[0]);
    // struct sockaddr_in, of which the second half-word is the port.
    let address: Vec<AtomicU16> = inet([127, 0, 0, 1], ports[0])
        .chunks(2)
        .map(|pair| AtomicU16::new(u16::from_ne_bytes([pair[0], pair[1]])))
        .collect();
    let done = AtomicBool::new(false);
    let (ran, reached) = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for port in ports {
                    address[1].store(port.to_be(), Ordering::Relaxed);
                    thread::yield_now();
                }
            }
        });
        let server = &permitted;
        let accepting = scope.spawn(move || {
            // Ends with the first client that says so.
            let mut reached = 0;
            loop {
                use std::io::Read;
                let mut client = server.accept().unwrap().0;
                if client.read(&mut [0]).unwrap_or(0) == 1 {
                    return reached;
                }
                reached += 1;
            }
        });
        let ran = run(setup(NetMode::Off, &[rule]), &[libc::SYS_connect], || {
            let mut connected = 0;
            for _ in 0..TRIES {
                let client = socket(libc::AF_INET, libc::SOCK_STREAM);
                let at = address.as_ptr() as u64;
                match raw(libc::SYS_connect, [client.as_raw_fd() as u64, at, 16, 0, 0, 0]) {
                    Ok(_) => connected += 1,
                    Err(errno) => assert_eq!(errno, libc::EACCES),
                }
            }
            connected
        });
        done.store(true, Ordering::Relaxed);
        use std::io::Write;
        std::net::TcpStream::connect(("127.0.0.1", ports[0]))
            .unwrap()
            .write_all(b"x")
            .unwrap();
        (ran, accepting.join().unwrap())
    });
    assert_eq!(ran.result, reached);
    assert_eq!(ran.result + ran.denials.len(), TRIES);
    assert!(
        ran.result > 0 && !ran.denials.is_empty(),
        "no race: {} connected",
        ran.result
    );
    refused.set_nonblocking(true).unwrap();
    assert_eq!(
        refused.accept().unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock
    );
}

#[test]
fn escape_07_a_socket_swapped_during_the_decision_never_listens() {
    const TRIES: usize = 5_000;
    let tcp = socket(libc::AF_INET, libc::SOCK_STREAM);
    let unix = socket(libc::AF_UNIX, libc::SOCK_STREAM);
    let number = socket(libc::AF_UNIX, libc::SOCK_STREAM);
    let fd = number.as_raw_fd() as u64;
    let done = AtomicBool::new(false);
    let ran = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for socket in [&tcp, &unix] {
                    raw(libc::SYS_dup3, [socket.as_raw_fd() as u64, fd, 0, 0, 0, 0]).unwrap();
                    thread::yield_now();
                }
            }
        });
        let ran = run(setup(NetMode::Off, &[]), &[libc::SYS_listen], || {
            let mut unix_seen = 0;
            for _ in 0..TRIES {
                match raw(libc::SYS_listen, [fd, 1, 0, 0, 0, 0]) {
                    // An unbound unix socket cannot listen.
                    Err(libc::EINVAL) => unix_seen += 1,
                    other => assert_eq!(other, Err(libc::EACCES)),
                }
            }
            unix_seen
        });
        done.store(true, Ordering::Relaxed);
        ran
    });
    assert_eq!(listener::socket_int(tcp.as_fd(), libc::SO_ACCEPTCONN), Ok(0));
    assert!(
        ran.result > 0 && !ran.denials.is_empty(),
        "no race: {}",
        ran.result
    );
}
