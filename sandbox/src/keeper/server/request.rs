//! What is asked for.

use std::io;
use std::os::fd::OwnedFd;

use nix::sys::epoll::{EpollEvent, EpollFlags};
use uuid::Uuid;

use super::{Account, Next, PEER, Role, Server};
use crate::keeper::tree::Tree;
use crate::keeper::warm::Found;
use crate::keeper::wire::{Notice, Request, SpawnRequest};
use crate::keeper::{Step, probe, sys};
use crate::observe::audit::AuditShare;

impl Server {
    /// One request, or the end of them.
    pub(super) fn peer_event(&mut self, events: &[EpollEvent]) -> io::Result<Next> {
        let mut events = events.iter().filter(|event| event.data() == PEER);
        if events.all(|event| event.events() == EpollFlags::EPOLLOUT) {
            return Ok(Next::Turn); // there is room again, no more
        }
        self.reserve.release();
        let received = match &self.peer {
            Some(peer) => peer.receive(&mut self.buffer),
            None => return Ok(Next::Turn),
        };
        let room = self.reserve.refill(&self.fixed.null);
        match received {
            Ok(Some((request, fds))) => self.request(request, fds, room),
            Ok(None) => self.peer_gone(),
            Err(error) => match error.kind() {
                // A peer that died with something unread is told of once, before what it had sent; its end comes last.
                io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionReset => Ok(Next::Turn),
                _ => {
                    // Not our host's language: better to end it than to guess.
                    tracing::error!(%error, "cannot read a request");
                    self.peer_gone()
                }
            },
        }
    }

    /// `room` says whether there is any for more descriptors.
    pub(super) fn request(
        &mut self,
        request: Request,
        fds: Vec<OwnedFd>,
        room: io::Result<()>,
    ) -> io::Result<Next> {
        match request {
            Request::Hello { thorough } => self.hello(thorough),
            Request::Spawn(request) => self.spawn(*request, fds, room),
            Request::ShareAudit => {
                if self.audit.is_none() {
                    // Without one the host puts it back itself.
                    self.audit = AuditShare::join().ok().flatten();
                }
            }
            Request::Signal {
                process,
                signal,
                scope,
            } => {
                if let Some(tree) = self.trees.get(&process) {
                    tree.signal(signal, scope);
                }
            }
            Request::Kill { process } => {
                if let Some(tree) = self.trees.get_mut(&process) {
                    tree.kill();
                }
            }
            Request::Forget { process } => self.forget(process),
            Request::Release { process, what } => {
                if let Some(account) = self.accounts.get_mut(&process) {
                    account.release(what);
                }
            }
            Request::Hold { name } => self.hold(name, fds, room),
            Request::ExitsFile => self.use_exits_file(fds),
            Request::Errands { pid_namespace } => self.use_errands(pid_namespace, fds, room),
            Request::Stop => return Ok(Next::End),
        }
        Ok(Next::Turn)
    }

    fn hello(&mut self, thorough: bool) {
        let probed = self.probed.take().filter(|_| !thorough);
        let support = probed.unwrap_or_else(|| Box::new(probe::support(thorough)));
        let pid = sys::getpid();
        self.answer(Notice::Hello { pid, support });
        if self.role != Role::Spawner {
            self.introduce();
        }
    }

    fn spawn(&mut self, request: SpawnRequest, fds: Vec<OwnedFd>, room: io::Result<()>) {
        let process = request.process;
        if self.repeats(process) {
            return;
        }
        self.accounts.insert(process, Box::new(Account::new()));
        if let Err(error) = room {
            drop(fds);
            let errno = error.raw_os_error().unwrap_or(libc::EMFILE);
            return self.failed(process, (Step::Descriptors, errno, 0));
        }
        if let Some(unused) = self.warm.used(&request, &fds) {
            self.throw_away(unused);
        }
        if self.start_warm(&request) {
            return;
        }
        match Tree::start(request, fds, &self.fixed) {
            Ok(tree) => {
                self.add(tree);
                self.keep_ends(process);
            }
            Err(failure) => self.failed(process, failure),
        }
    }

    /// An id that was used before is answered with what is known of it.
    fn repeats(&mut self, process: Uuid) -> bool {
        if self.role != Role::Spawner
            && let Some(account) = self.accounts.get_mut(&process)
        {
            account.tell_anew();
            self.say(process);
            return true;
        }
        let known = self.accounts.contains_key(&process) || self.trees.contains_key(&process);
        if known || self.ended.contains(&process) {
            self.answer(Notice::Duplicate { process });
            return true;
        }
        false
    }

    fn keep_ends(&mut self, process: Uuid) {
        let ends = self.trees.get_mut(&process).and_then(|tree| tree.ours.take());
        if let (Some(account), Some(ends)) = (self.accounts.get_mut(&process), ends) {
            account.keep(ends);
        }
    }

    /// Starts a command in a tree that was made ahead, if there is one that fits.
    fn start_warm(&mut self, request: &SpawnRequest) -> bool {
        let id = match self.warm.take(request) {
            None => return false,
            Some(Found::Stale(id)) => {
                self.throw_away(id);
                return false;
            }
            Some(Found::Fit(id)) => id,
        };
        self.hear(id);
        let Some(mut tree) = self.trees.remove(&id) else {
            return false;
        };
        if tree.failed || tree.refused.is_some() || tree.go(request).is_err() {
            // Starting afresh tells why, or has the room.
            tree.destroy();
            self.trees.insert(id, tree);
            return false;
        }
        for known in self.keys.values_mut().chain(self.by_init.values_mut()) {
            if *known == id {
                *known = tree.process;
            }
        }
        let process = tree.process;
        self.trees.insert(process, tree);
        self.keep_ends(process);
        true
    }
}

/// Requests and the descriptors that came with them.
pub(super) type Received = io::Result<Option<(Request, Vec<OwnedFd>)>>;
