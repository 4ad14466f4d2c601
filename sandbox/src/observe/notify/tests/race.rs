//! A second thread of the target changes what the first one's call says, while it is decided.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread;

use super::super::listener;
use super::harness::{inet, raw, run, setup, socket};
use crate::policy::NetMode;

/// Lets the other threads of a test end, also when the test fails.
struct Finally<F: FnMut()>(F);

impl<F: FnMut()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Accepts until a client says something; the number of those who did not.
fn count_clients(server: &TcpListener) -> usize {
    let mut reached = 0;
    while server.accept().unwrap().0.read(&mut [0]).unwrap_or(0) == 0 {
        reached += 1;
    }
    reached
}

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
    let (ran, reached, wrongly_reached) = thread::scope(|scope| {
        let finally = Finally(|| {
            done.store(true, Ordering::Relaxed);
            for port in ports {
                TcpStream::connect(("127.0.0.1", port))
                    .unwrap()
                    .write_all(b"x")
                    .unwrap();
            }
        });
        let reached = scope.spawn(|| count_clients(&permitted));
        let wrongly_reached = scope.spawn(|| count_clients(&refused));
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for port in ports {
                    address[1].store(port.to_be(), Ordering::Relaxed);
                    thread::yield_now();
                }
            }
        });
        let ran = run(setup(NetMode::Off, &[rule]), &[libc::SYS_connect], || {
            let at = address.as_ptr() as u64;
            let mut others = Vec::new();
            let mut connected = 0;
            for _ in 0..TRIES {
                let client = socket(libc::AF_INET, libc::SOCK_STREAM);
                match raw(libc::SYS_connect, [client.as_raw_fd() as u64, at, 16, 0, 0, 0]) {
                    Ok(_) => connected += 1,
                    Err(libc::EACCES) => {}
                    Err(errno) => others.push(errno),
                }
            }
            (connected, others)
        });
        drop(finally);
        (ran, reached.join().unwrap(), wrongly_reached.join().unwrap())
    });
    let (connected, others) = ran.result;
    assert_eq!(wrongly_reached, 0);
    assert_eq!(others, []);
    assert_eq!(connected, reached);
    assert_eq!(connected + ran.denials.len(), TRIES);
    assert!(
        connected > 0 && connected < TRIES,
        "no race: {connected} connected"
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
        let _finally = Finally(|| done.store(true, Ordering::Relaxed));
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for socket in [&tcp, &unix] {
                    raw(libc::SYS_dup3, [socket.as_raw_fd() as u64, fd, 0, 0, 0, 0]).unwrap();
                    thread::yield_now();
                }
            }
        });
        run(setup(NetMode::Off, &[]), &[libc::SYS_listen], || {
            let tries = (0..TRIES).map(|_| raw(libc::SYS_listen, [fd, 1, 0, 0, 0, 0]));
            tries.collect::<Vec<_>>()
        })
    });
    assert_eq!(listener::socket_int(tcp.as_fd(), libc::SO_ACCEPTCONN), Ok(0));
    let count = |errno| ran.result.iter().filter(|&&result| result == Err(errno)).count();
    // An unbound unix socket cannot listen, whoever asks.
    let (unix_seen, tcp_seen) = (count(libc::EINVAL), count(libc::EACCES));
    assert_eq!(unix_seen + tcp_seen, TRIES);
    assert_eq!(tcp_seen, ran.denials.len());
    assert!(unix_seen > 0 && tcp_seen > 0, "no race: {unix_seen}, {tcp_seen}");
}
