//! The keeper behind a daemon.

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::Pid;
use provost_sandbox::keeper::wire::{self, HeldState, Notice, Request};

use crate::World;

fn reach(state: &Path) -> Option<OwnedFd> {
    let address = UnixAddr::new(&state.join("keeper.sock")).ok()?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("a socket");
    connect(socket.as_raw_fd(), &address).ok()?;
    Some(socket)
}

/// Ends the keeper of a state directory, with everything that it holds, if there is one.
pub fn end_keeper(state: &Path) {
    let Some(socket) = reach(state) else { return };
    let _ = wire::send(socket.as_fd(), &Request::Stop, &[]);
    // It closes the connection when it ends.
    while let Ok(Some(_)) = wire::receive::<Notice>(socket.as_fd()) {}
}

/// Waits, in the place of a daemon that has died, until the keeper knows how so many processes ended.
pub fn wait_until_ended(world: &World, count: usize) {
    let socket = reach(&world.path("state")).expect("the keeper lives");
    wire::send(socket.as_fd(), &Request::Hello { thorough: false }, &[]).expect("it listens");
    let mut ended = HashSet::new();
    while ended.len() < count {
        let mut waits = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let deadline = PollTimeout::try_from(crate::DEADLINE).unwrap_or(PollTimeout::MAX);
        assert_eq!(
            poll(&mut waits, deadline),
            Ok(1),
            "{ended:?} of {count} have ended"
        );
        match wire::receive(socket.as_fd()).expect("a keeper") {
            Some((Notice::Held(held), _)) => {
                if let HeldState::Started(tree) = held.state
                    && tree.end.is_some()
                {
                    ended.insert(held.process);
                }
            }
            Some((Notice::Ended { process, .. }, _)) => {
                ended.insert(process);
            }
            Some(_) => {}
            None => panic!("the keeper ended"),
        }
    }
}

/// Kills the keeper that a command runs under (`SIGKILL`).
pub fn kill_keeper(command: u64) {
    assert!(kill_keeper_of(command), "the command runs under a keeper");
}

/// The same, if it runs.
pub(crate) fn kill_keeper_of(command: u64) -> bool {
    let mut keeper = None;
    let mut pid = command;
    while let Some(parent) = parent(pid).filter(|parent| *parent > 1) {
        let words = std::fs::read(format!("/proc/{parent}/cmdline")).unwrap_or_default();
        if words.starts_with(b"provost-keeper") {
            keeper = Some(parent);
        }
        pid = parent;
    }
    keeper.is_some_and(|keeper| kill(Pid::from_raw(keeper as i32), Signal::SIGKILL).is_ok())
}

fn parent(pid: u64) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    parent.trim().parse().ok()
}
