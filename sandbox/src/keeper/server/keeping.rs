//! What a keeper does beyond a spawner: connections come and go, and what it keeps for them stays.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::socket::{Shutdown, SockFlag, accept4, getsockopt, shutdown, sockopt};
use uuid::Uuid;

use super::peer::{Peer, Sent, Word};
use super::{LISTENER, Next, Role, Server, stdin_socket};
use crate::keeper::exits::ExitsFile;
use crate::keeper::sys;
use crate::keeper::wire::{NAME_BYTES_MAX, NAMES_MAX, Notice};

/// Requests that wait in a connection when another takes its place: more than its socket has room for, but not what somebody
/// can send who goes on sending.
const UNHEARD_MAX: usize = 4096;

/// What is kept beside the processes.
#[derive(Default)]
pub(super) struct Keeping {
    named: BTreeMap<String, OwnedFd>,
    exits: Option<ExitsFile>,
    /// Processes of whose end something is not in that file.
    unwritten: Vec<Uuid>,
    /// Nothing is kept and nobody connected, since then.
    idle_since: Option<Instant>,
}

impl Keeping {
    /// How this process ended is to be written down.
    pub(super) fn write_later(&mut self, process: Uuid) {
        if self.exits.is_some() && self.unwritten.last() != Some(&process) {
            self.unwritten.push(process);
        }
    }

    pub(super) fn send_named(&self, name: &str, peer: &mut Peer) -> io::Result<Sent> {
        let Some(descriptor) = self.named.get(name) else {
            return Ok(Sent::Told); // it was dropped meanwhile
        };
        let notice = Notice::HeldNamed {
            name: name.to_owned(),
        };
        let sent = peer.send(&notice, &[descriptor.as_raw_fd()])?;
        if matches!(sent, Sent::Told) {
            peer.introduced.1 += 1;
        }
        Ok(sent)
    }
}

impl Server {
    /// The peer is gone, or is not to be understood.
    pub(super) fn peer_gone(&mut self) -> io::Result<Next> {
        if self.role == Role::Spawner {
            return Ok(Next::End);
        }
        self.disconnect();
        Ok(Next::Turn)
    }

    /// Ends the connection, and nothing else.
    pub(super) fn disconnect(&mut self) {
        self.close_errands();
        if let Some(peer) = self.peer.take() {
            peer.close(&self.epoll);
        }
        for account in self.accounts.values_mut() {
            account.queued = false;
        }
        // Nobody is there who could ask for them.
        for unused in self.warm.clear() {
            self.throw_away(unused);
        }
    }

    /// What the connection there is has asked for and was not read yet is done, before another one takes its place: its
    /// supervisor, who may be dead by now, has told others that it would be.
    pub(super) fn hear_out(&mut self) -> io::Result<Next> {
        for _ in 0..UNHEARD_MAX {
            self.reserve.release();
            let buffer = &mut self.buffer;
            let received = self.peer.as_ref().map(|peer| peer.receive(buffer));
            let room = self.reserve.refill(&self.fixed.null);
            let (request, fds) = match received {
                Some(Ok(Some(request))) => request,
                // It died with something unread, which is told first.
                Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => continue,
                _ => break,
            };
            if self.request(request, fds, room)? == Next::End {
                return Ok(Next::End);
            }
        }
        Ok(Next::Turn)
    }

    /// A new connection takes the place of the one there is.
    pub(super) fn accept(&mut self) {
        self.reserve.release();
        let accepted = accept();
        let replaced = match accepted {
            Ok(Some(socket)) => {
                self.disconnect();
                Peer::new(socket, &self.epoll).map(Some)
            }
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        let _ = self.reserve.refill(&self.fixed.null);
        match replaced {
            Ok(Some(peer)) => {
                self.peer = Some(peer);
                self.answer(Notice::Welcome { pid: sys::getpid() });
            }
            Ok(None) => {}
            Err(error) => {
                // It waits in the queue of the socket; asking for it again at once helps nobody.
                tracing::warn!(%error, "cannot accept a connection");
                self.listen(false);
                self.pause = true;
            }
        }
    }

    /// Whether to be told of new connections.
    pub(super) fn listen(&self, on: bool) {
        if self.role != Role::Spawner {
            let mut events = EpollFlags::empty();
            events.set(EpollFlags::EPOLLIN, on);
            // It was added, and is open.
            let _ = self
                .epoll
                .modify(stdin_socket(), &mut EpollEvent::new(events, LISTENER));
        }
    }

    /// The connection says hello: it is told of everything that is held.
    pub(super) fn introduce(&mut self) {
        let Some(peer) = &mut self.peer else { return };
        if std::mem::replace(&mut peer.greeted, true) {
            return;
        }
        for (process, account) in &mut self.accounts {
            account.tell_anew();
            account.queued = true;
            peer.push(Word::Process(*process));
        }
        for name in self.keeping.named.keys() {
            peer.push(Word::Named(name.clone()));
        }
        peer.push(Word::All);
    }

    /// What is known of this process need not be known here any more.
    pub(super) fn forget(&mut self, process: Uuid) {
        if self.role == Role::Spawner || self.accounts.remove(&process).is_none() {
            return;
        }
        self.remember(process);
        let keeping = &mut self.keeping;
        keeping.unwritten.retain(|unwritten| *unwritten != process);
        let is_needed = || self.accounts.values().any(|account| account.has_ended_somehow());
        if let Some(exits) = &mut keeping.exits
            && !is_needed()
            && let Err(error) = exits.empty()
        {
            tracing::warn!(%error, "cannot empty the exits file");
        }
    }

    pub(super) fn hold(&mut self, name: String, mut fds: Vec<OwnedFd>, room: io::Result<()>) {
        let named = &mut self.keeping.named;
        let too_large = name.len() > NAME_BYTES_MAX
            || !fds.is_empty() && named.len() >= NAMES_MAX && !named.contains_key(&name);
        let refused = match (fds.pop(), room) {
            (Some(_), _) if too_large => Some(libc::E2BIG),
            (Some(descriptor), Ok(())) => {
                named.insert(name.clone(), descriptor);
                None
            }
            (Some(_), Err(error)) => Some(error.raw_os_error().unwrap_or(libc::EMFILE)),
            (None, _) => {
                named.remove(&name);
                None
            }
        };
        if let Some(errno) = refused {
            named.remove(&name);
            self.answer(Notice::NotHeld { name, errno });
        }
    }

    pub(super) fn use_exits_file(&mut self, mut fds: Vec<OwnedFd>) {
        if self.role == Role::Spawner {
            return;
        }
        self.keeping.exits = fds.pop().map(|file| ExitsFile::new(File::from(file)));
        self.keeping.unwritten = self.accounts.keys().copied().collect();
    }

    /// Writes down how processes ended, before anybody is told.
    pub(super) fn write_exits(&mut self) {
        let keeping = &mut self.keeping;
        let Some(exits) = &mut keeping.exits else {
            return keeping.unwritten.clear();
        };
        let accounts = &self.accounts;
        let mut failed = None;
        keeping.unwritten.retain(|process| {
            let record = accounts
                .get(process)
                .and_then(|account| account.exit_record(*process));
            let written = record.map_or(Ok(()), |record| exits.append(&record));
            written.map_err(|error| failed = Some(error)).is_err()
        });
        if let Some(error) = failed {
            // They are known here as long as this process lives, and written with the next.
            tracing::warn!(%error, "cannot write down how processes ended");
        }
    }

    /// Whether there is anything to go on for; where nobody is connected, what is only for others is given back.
    pub(super) fn keep_on(&mut self) -> Next {
        let Role::Keeper { idle } = self.role else {
            return Next::Turn;
        };
        if self.peer.is_some() || !self.trees.is_empty() {
            self.keeping.idle_since = None;
            return Next::Turn;
        }
        self.audit = None;
        if !self.accounts.is_empty() {
            self.keeping.idle_since = None;
            return Next::Turn;
        }
        let since = *self.keeping.idle_since.get_or_insert_with(Instant::now);
        if since.elapsed() < idle {
            return Next::Turn;
        }
        // Who connects from now on is refused; who has, and was not welcomed yet, sees the end. Both start another.
        let _ = shutdown(stdin_socket().as_raw_fd(), Shutdown::Both);
        Next::End
    }

    /// How long until this process may be the last to know that it is not needed.
    pub(super) fn idle_left(&self) -> Option<Duration> {
        match (self.role, self.keeping.idle_since) {
            (Role::Keeper { idle }, Some(since)) => Some(idle.saturating_sub(since.elapsed())),
            _ => None,
        }
    }
}

/// The next connection from one who may connect; nothing where there is none.
fn accept() -> io::Result<Option<OwnedFd>> {
    let listener = stdin_socket();
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = match accept4(listener.as_raw_fd(), flags) {
        Ok(socket) => owned(socket),
        Err(Errno::EAGAIN | Errno::ECONNABORTED | Errno::EINTR) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let peer = getsockopt(&socket, sockopt::PeerCredentials)?.uid();
    let own = nix::unistd::geteuid().as_raw();
    if peer != own && peer != 0 {
        tracing::warn!(uid = peer, "somebody else tried to connect");
        return Ok(None);
    }
    Ok(Some(socket))
}

#[allow(unsafe_code)]
fn owned(socket: i32) -> OwnedFd {
    // SAFETY: the kernel has just made it for us, and nobody else knows it.
    // WHY: nix's accept4 returns a number.
    unsafe { OwnedFd::from_raw_fd(socket) }
}
