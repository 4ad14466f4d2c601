//! What it looks at for a daemon that may not, asked directly.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::poll::PollFlags;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use nix::sys::stat::fstat;
use provost_sandbox::keeper::errand::{self, Answer, Asked, Errand, READ_BYTES_MAX};
use provost_sandbox::keeper::wire::Request;

use crate::echo;
use crate::home::Home;
use crate::support::{Talk, directory, wait_for};

fn hand_over(talk: &Talk, pid_namespace: u64) -> OwnedFd {
    let (family, flags) = (AddressFamily::Unix, SockFlag::SOCK_CLOEXEC);
    let (ours, theirs) = socketpair(family, SockType::SeqPacket, None, flags).expect("a pair");
    let request = Request::Errands { pid_namespace };
    talk.spawner
        .send(&request, &[theirs.as_fd()])
        .expect("the request is taken");
    ours
}

fn own_namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").expect("our own").ino()
}

fn ask(socket: BorrowedFd<'_>, number: u64, errand: Errand) -> (Result<Vec<u8>, i32>, Option<OwnedFd>) {
    errand::send(socket, &Asked { number, errand }, &[]).expect("there is room");
    wait_for(socket, PollFlags::POLLIN);
    let answer = errand::receive::<Answer>(socket).expect("an answer");
    let (answer, descriptor) = answer.expect("an answer, not the end");
    assert_eq!(answer.number, number);
    (answer.found, descriptor)
}

fn expect_end(socket: BorrowedFd<'_>) {
    wait_for(socket, PollFlags::POLLHUP);
}

pub(super) fn what_a_thread_has_is_looked_at_for_the_daemon() {
    let home = Home::new();
    let talk = home.connect().talk;
    let (_directory, cwd) = directory();
    let sandbox = talk.unconfined(&cwd);
    let running = talk.started(echo(&cwd, &sandbox), &sandbox);
    let tid = running.started.pid;
    let socket = hand_over(&talk, own_namespace());
    let socket = socket.as_fd();
    let maps = fs::read_to_string(format!("/proc/{tid}/maps")).expect("it lives");
    let first = maps.split('-').next().expect("its executable comes first");
    let address = u64::from_str_radix(first, 16).expect("an address");
    let read = |number, tid, address, length| {
        let errand = Errand::Read { tid, address, length };
        ask(socket, number, errand).0
    };
    assert_eq!(read(7, tid, address, 4), Ok(b"\x7fELF".to_vec()));
    let whole = read(8, tid, address, READ_BYTES_MAX as u32);
    assert_eq!(whole.expect("a page").len(), READ_BYTES_MAX);
    assert_eq!(read(8, tid, 0, 4), Err(libc::EFAULT));
    for length in [0, READ_BYTES_MAX as u32 + 1, u32::MAX] {
        assert_eq!(read(9, tid, address, length), Err(libc::EINVAL));
    }
    assert_eq!(read(u64::MAX, i32::MAX, address, 4), Err(libc::ESRCH));
    assert_eq!(read(0, -1, address, 4), Err(libc::EINVAL));

    let descriptor = |tid, fd| ask(socket, 10, Errand::Descriptor { tid, fd });
    let (found, stdout) = descriptor(tid, 1);
    assert_eq!(found, Ok(Vec::new()));
    let inode = |fd: BorrowedFd<'_>| fstat(fd).expect("open").st_ino;
    assert_eq!(
        inode(stdout.expect("it comes along").as_fd()),
        inode(running.stdout.as_fd())
    );
    for (tid, fd, errno) in [
        (tid, 900, libc::EBADF),
        (tid, -1, libc::EBADF),
        (i32::MAX, 1, libc::ESRCH),
    ] {
        let (found, descriptor) = descriptor(tid, fd);
        assert_eq!((found, descriptor.is_some()), (Err(errno), false), "{tid} {fd}");
    }
}

pub(super) fn errands_end_with_the_connection_and_with_who_is_not_to_be_served() {
    let home = Home::new();
    let talk = home.connect().talk;
    let errand = Errand::Descriptor { tid: -1, fd: 0 };
    let is_served = |socket: &OwnedFd| assert_eq!(ask(socket.as_fd(), 1, errand).0, Err(libc::EINVAL));

    let elsewhere = hand_over(&talk, own_namespace() + 1);
    expect_end(elsewhere.as_fd());
    let old = hand_over(&talk, own_namespace());
    is_served(&old);
    let new = hand_over(&talk, own_namespace());
    expect_end(old.as_fd());
    is_served(&new);
    send(
        std::os::fd::AsRawFd::as_raw_fd(&new),
        &[255; 40],
        MsgFlags::MSG_NOSIGNAL,
    )
    .expect("there is room");
    expect_end(new.as_fd());

    // One who asks on and on, and never reads.
    let deaf = hand_over(&talk, own_namespace());
    let error = loop {
        if let Err(error) = errand::send(deaf.as_fd(), &Asked { number: 1, errand }, &[]) {
            if error.kind() != ErrorKind::WouldBlock {
                break error;
            }
            wait_for(deaf.as_fd(), PollFlags::POLLOUT);
        }
    };
    assert!(
        matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset),
        "{error}"
    );

    let last = hand_over(&talk, own_namespace());
    is_served(&last);
    talk.obeyed();
    drop(talk);
    expect_end(last.as_fd());
}
