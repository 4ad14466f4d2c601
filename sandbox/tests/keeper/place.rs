//! Where it listens and for whom, and how long it stays.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use nix::poll::PollFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::Pid;
use provost_sandbox::spawn::{LaunchError, Spawner, SpawnerSource};

use crate::home::Home;
use crate::support::{directory, receive, request, wait_for};

pub(super) fn i12_nobody_else_may_connect() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: not root");
        return;
    }
    let home = Home::new();
    let talk = home.connect().talk;
    let mode = |path: &Path| fs::metadata(path).expect("it").permissions().mode() & 0o7777;
    assert_eq!(mode(&home.socket()), 0o600);
    // As if somebody had opened the door.
    fs::set_permissions(home.directory.path(), PermissionsExt::from_mode(0o755)).expect("ours");
    fs::set_permissions(home.socket(), PermissionsExt::from_mode(0o666)).expect("ours");
    let path = home.socket();
    let other = std::thread::spawn(move || {
        // SAFETY: numbers only. WHY: libc's own wrapper changes every thread.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, 1001, 1001, 1001) };
        assert_eq!(result, 0);
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("a socket");
        connect(socket.as_raw_fd(), &UnixAddr::new(&path).expect("an address"))
            .expect("the door is open");
        let mut byte = [0];
        (&File::from(socket)).read(&mut byte).expect("the end, no error")
    });
    assert_eq!(other.join().expect("the other user"), 0, "a word was said to it");
    talk.obeyed();
}

pub(super) fn a_place_that_is_not_ours_alone_is_refused() {
    let home = Home::new();
    let launch = |path: &Path| Spawner::connect_or_launch(path, &SpawnerSource::Auto, home.idle);
    let chmod =
        |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("ours");
    chmod(home.directory.path(), 0o770);
    assert!(matches!(launch(&home.socket()), Err(LaunchError::NotOurs { .. })));
    chmod(home.directory.path(), 0o700);
    fs::write(home.socket(), "").expect("a file");
    assert!(matches!(launch(&home.socket()), Err(LaunchError::NotOurs { .. })));
    fs::remove_file(home.socket()).expect("ours");
    assert!(matches!(
        launch(&home.directory.path().join("none/keeper.sock")),
        Err(LaunchError::Socket { .. })
    ));
    if nix::unistd::geteuid().is_root() {
        let other = Some(nix::unistd::Uid::from_raw(1001));
        nix::unistd::chown(home.directory.path(), other, None).expect("root may");
        assert!(matches!(launch(&home.socket()), Err(LaunchError::NotOurs { .. })));
    }
}

pub(super) fn a_dead_socket_is_replaced_and_a_umask_changes_nothing() {
    let home = Home::new();
    let first = home.connect();
    kill(Pid::from_raw(first.talk.pid), Signal::SIGKILL).expect("it lives");
    assert!(receive(&first.talk.spawner).is_none());
    let umask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o777));
    let second = home.connect();
    nix::sys::stat::umask(umask);
    assert!(!second.was_there);
    assert_ne!(second.talk.pid, first.talk.pid);
    let mode = fs::metadata(home.socket())
        .expect("the socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert!(home.connect().was_there);
}

pub(super) fn a_keeper_that_nobody_needs_ends() {
    let mut home = Home::new();
    home.idle = Duration::from_millis(50);
    let talk = home.connect().talk;
    let pid = talk.pid;
    let pidfd = pidfd(pid);
    let (_directory, cwd) = directory();
    let sandbox = talk.unconfined(&cwd);
    let asked = request(&["true"], &cwd, &sandbox);
    let process = asked.process;
    drop(talk.started(asked, &sandbox));
    drop(talk);
    // As long as nobody knows how that ended, it stays.
    let mut waits = [nix::poll::PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    assert_eq!(nix::poll::poll(&mut waits, 500u16), Ok(0), "it ended");
    let (talk, ..) = home.find(process);
    assert_eq!(talk.pid, pid);
    talk.forget(process);
    talk.obeyed();
    drop(talk);
    wait_for(pidfd.as_fd(), PollFlags::POLLIN);
    let next = home.connect();
    assert!(!next.was_there && next.held.is_empty());
}

/// A descriptor that is readable when the process has ended.
fn pidfd(pid: i32) -> std::os::fd::OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: numbers only; the descriptor is new and nobody else knows it. WHY: nix has no call for it.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        assert!(fd >= 0, "the process lives");
        std::os::fd::OwnedFd::from_raw_fd(fd as i32)
    }
}

pub(super) fn daemons_that_meet_a_keeper_while_it_ends_start_another() {
    let mut home = Home::new();
    home.idle = Duration::ZERO;
    for _ in 0..100 {
        // It may end as soon as nobody is connected, so at any point of the next connection.
        home.connect();
    }
}
