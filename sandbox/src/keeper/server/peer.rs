//! Who is connected, and what waits to be said to it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use uuid::Uuid;

use super::PEER;
use super::request::Received;
use crate::keeper::wire::{self, Notice};

/// Answers that may wait. One who asks and does not listen is not heard any further.
const ANSWERS_MAX: usize = 64;

/// Something to say. What is said of a process is looked up when there is room for it.
pub(super) enum Word {
    Answer(Box<Notice>),
    Process(Uuid),
    /// A named descriptor.
    Named(String),
    /// Everything that is held was told.
    All,
}

/// What became of a word.
pub(super) enum Sent {
    Told,
    /// There is no room until the peer reads.
    Full,
    /// The kernel has no room; nothing tells when it has.
    Short(i32),
    /// Nobody reads it.
    Gone,
}

/// One connection.
pub(super) struct Peer {
    socket: OwnedFd,
    /// It has said hello, or need not.
    pub(super) greeted: bool,
    pub(super) words: VecDeque<Word>,
    answers: usize,
    full: bool,
    watched_for: EpollFlags,
    /// Processes told with `Held`, named descriptors told.
    pub(super) introduced: (u64, u64),
}

impl Peer {
    /// The host of a spawner.
    pub(super) fn host(socket: BorrowedFd<'_>, epoll: &Epoll) -> io::Result<Self> {
        let mut peer = Self::new(socket.try_clone_to_owned()?, epoll)?;
        peer.greeted = true;
        Ok(peer)
    }

    pub(super) fn new(socket: OwnedFd, epoll: &Epoll) -> io::Result<Self> {
        set_nonblocking(socket.as_fd())?;
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, PEER))?;
        Ok(Self {
            socket,
            greeted: false,
            words: VecDeque::new(),
            answers: 0,
            full: false,
            watched_for: EpollFlags::EPOLLIN,
            introduced: (0, 0),
        })
    }

    pub(super) fn receive(&self, buffer: &mut wire::Buffer) -> Received {
        wire::receive_into(self.socket.as_fd(), buffer)
    }

    pub(super) fn push(&mut self, word: Word) {
        self.answers += usize::from(matches!(word, Word::Answer(_)));
        self.words.push_back(word);
    }

    pub(super) fn pop(&mut self) {
        if let Some(Word::Answer(_)) = self.words.pop_front() {
            self.answers -= 1;
        }
    }

    /// Never waits.
    pub(super) fn send(&mut self, notice: &Notice, fds: &[RawFd]) -> io::Result<Sent> {
        let error = match wire::send(self.socket.as_fd(), notice, fds) {
            Ok(()) => return Ok(Sent::Told),
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EAGAIN) => {
                self.full = true;
                Ok(Sent::Full)
            }
            // A user's descriptors on their way are limited in number.
            Some(
                errno
                @ (libc::ETOOMANYREFS | libc::ENOBUFS | libc::ENOMEM | libc::EMFILE | libc::ENFILE),
            ) => Ok(Sent::Short(errno)),
            Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN) => Ok(Sent::Gone),
            _ => Err(error),
        }
    }

    /// Nobody reads: what is left to say is not said. That it is gone is noticed by reading.
    pub(super) fn give_up(&mut self) {
        self.words.clear();
        self.answers = 0;
        self.greeted = false;
    }

    /// Waits for what there is to wait for.
    pub(super) fn watch(&mut self, epoll: &Epoll) -> io::Result<()> {
        let mut events = EpollFlags::empty();
        events.set(EpollFlags::EPOLLIN, self.answers < ANSWERS_MAX);
        events.set(EpollFlags::EPOLLOUT, std::mem::take(&mut self.full));
        if events != self.watched_for {
            epoll.modify(&self.socket, &mut EpollEvent::new(events, PEER))?;
            self.watched_for = events;
        }
        Ok(())
    }

    /// Ends the connection.
    pub(super) fn close(self, epoll: &Epoll) {
        // A child that was just forked may have it open for a moment longer.
        let _ = epoll.delete(&self.socket);
        let _ = nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&self.socket),
            nix::sys::socket::Shutdown::Both,
        );
    }
}

pub(super) fn set_nonblocking(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    fcntl(socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)
}
