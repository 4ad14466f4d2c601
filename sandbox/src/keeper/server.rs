//! The spawner's loop: what its host asks for, and what inits say.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use uuid::Uuid;

use super::init::{InitMessage, InitStarted};
use super::reserve::{self, Reserve};
use super::tree::{Command, Fixed, Tree};
use super::warm::{Found, Warm};
use super::wire::{self, Notice, Request, SpawnRequest, Started};
use super::{Step, probe, sys};
use crate::observe::audit::AuditShare;

mod ending;

const HOST: u64 = 0;
const SIGNALS: u64 = 1;
/// Ids of ended trees that are remembered, so that a repeated request does not run a command twice.
const REMEMBERED_MAX: usize = 4096;

/// The spawner: serves the socket on its standard input until that closes. Returns the exit code.
pub(super) fn main() -> i32 {
    let mut server = match Server::new() {
        Ok(server) => server,
        Err(error) => return failed_with(&error),
    };
    let served = server.serve();
    // Whatever ended it: nothing that it started may live on.
    server.end_everything();
    served.map_or_else(|error| failed_with(&error), |()| 0)
}

fn failed_with(error: &io::Error) -> i32 {
    tracing::error!(%error, "the spawner ends");
    1
}

struct Server {
    epoll: Epoll,
    signals: SignalFd,
    fixed: Fixed,
    trees: HashMap<Uuid, Tree>,
    keys: HashMap<u64, Uuid>,
    by_init: HashMap<i32, Uuid>,
    /// Trees whose init is gone and of which something may live.
    ending: Vec<Uuid>,
    /// More children have ended than were reaped at once.
    reap_more: bool,
    reserve: Reserve,
    next_key: u64,
    warm: Warm,
    ended: HashSet<Uuid>,
    ended_order: VecDeque<Uuid>,
    /// Dropped last of all.
    audit: Option<AuditShare>,
}

impl Server {
    fn new() -> io::Result<Self> {
        let descriptors_soft = reserve::raise_limit();
        // Nothing of the host's is kept: descriptors that were not close-on-exec, its session, its terminal.
        sys::close_range(3, u32::MAX).map_err(io::Error::from_raw_os_error)?;
        let _ = sys::setsid();
        let _ = sys::prctl(libc::PR_SET_NAME, c"provost-spawner".as_ptr() as u64, 0);
        sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).map_err(io::Error::from_raw_os_error)?;
        // A host that ignores SIGCHLD passes that on, and then nothing could be waited for.
        sys::reset_signals();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
        let mut child_mask = SigSet::empty();
        child_mask.add(nix::sys::signal::Signal::SIGCHLD);
        let signals = SignalFd::with_flags(&child_mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(host(), EpollEvent::new(EpollFlags::EPOLLIN, HOST))?;
        epoll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNALS))?;
        let last_capability = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(63);
        Ok(Self {
            epoll,
            signals,
            fixed: Fixed {
                null: File::options().read(true).write(true).open("/dev/null")?,
                proc: File::open("/proc")?,
                last_capability,
                descriptors_soft,
            },
            trees: HashMap::new(),
            keys: HashMap::new(),
            by_init: HashMap::new(),
            ending: Vec::new(),
            reap_more: false,
            reserve: Reserve::default(),
            next_key: SIGNALS + 1,
            warm: Warm::default(),
            ended: HashSet::new(),
            ended_order: VecDeque::new(),
            audit: None,
        })
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let patience = if self.reap_more {
                EpollTimeout::ZERO
            } else {
                self.warm.patience()
            };
            let count = match self.epoll.wait(&mut events, patience) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            if count == 0 && !self.reap_more {
                self.idle()?;
            }
            // What inits said comes before what the kernel says of their deaths.
            for event in &events[..count] {
                match event.data() {
                    HOST | SIGNALS => {}
                    key => self.tree_event(key, event.events())?,
                }
            }
            if self.reap_more || events[..count].iter().any(|event| event.data() == SIGNALS) {
                self.reap()?;
            }
            if events[..count].iter().any(|event| event.data() == HOST) && !self.host_event()? {
                return Ok(());
            }
        }
    }

    /// One request; false when the host is gone.
    fn host_event(&mut self) -> io::Result<bool> {
        self.reserve.release();
        let received = wire::receive::<Request>(host());
        let room = self.reserve.refill(&self.fixed.null);
        match (received, room) {
            (Ok(Some((Request::Spawn(request), fds))), Err(error)) => {
                drop(fds);
                self.remember(request.process);
                let errno = error.raw_os_error().unwrap_or(libc::EMFILE);
                failed(request.process, Step::Descriptors, errno, 0).map(|()| true)
            }
            (received, _) => self.received(received),
        }
    }

    fn received(&mut self, received: io::Result<Option<(Request, Vec<OwnedFd>)>>) -> io::Result<bool> {
        match received {
            Ok(Some((request, fds))) => self.request(request, fds).map(|()| true),
            Ok(None) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(false),
            Err(error) => {
                // Not our host's language: better to end, with everything, than to guess.
                tracing::error!(%error, "cannot read a request");
                Ok(false)
            }
        }
    }

    fn request(&mut self, request: Request, fds: Vec<OwnedFd>) -> io::Result<()> {
        match request {
            Request::Hello { thorough } => {
                let support = Box::new(probe::support(thorough));
                notify(
                    &Notice::Hello {
                        pid: sys::getpid(),
                        support,
                    },
                    &[],
                )
            }
            Request::Spawn(request) => self.spawn(*request, fds),
            Request::ShareAudit => {
                if self.audit.is_none() {
                    // Without one the host puts it back itself.
                    self.audit = AuditShare::join().ok().flatten();
                }
                Ok(())
            }
            Request::Signal {
                process,
                signal,
                scope,
            } => {
                if let Some(tree) = self.trees.get(&process) {
                    tree.signal(signal, scope);
                }
                Ok(())
            }
            Request::Kill { process } => {
                if let Some(tree) = self.trees.get_mut(&process) {
                    tree.kill();
                }
                Ok(())
            }
        }
    }

    fn spawn(&mut self, request: SpawnRequest, fds: Vec<OwnedFd>) -> io::Result<()> {
        let process = request.process;
        if self.trees.contains_key(&process) || self.ended.contains(&process) {
            return notify(&Notice::Duplicate { process }, &[]);
        }
        if let Some(unused) = self.warm.used(&request, &fds) {
            self.throw_away(unused);
        }
        if self.start_warm(&request)? {
            return Ok(());
        }
        match Tree::start(request, fds, &self.fixed) {
            Ok(tree) => self.add(tree),
            Err((step, errno, detail)) => {
                self.remember(process);
                failed(process, step, errno, detail)
            }
        }
    }

    fn add(&mut self, tree: Tree) -> io::Result<()> {
        let key = self.next_key;
        self.next_key += 1;
        let readable = EpollEvent::new(EpollFlags::EPOLLIN, key);
        self.epoll.add(&tree.control, readable)?;
        self.keys.insert(key, tree.process);
        self.by_init.insert(tree.init_pid, tree.process);
        self.trees.insert(tree.process, tree);
        Ok(())
    }

    /// Starts a command in a tree that was made ahead, if there is one that fits.
    fn start_warm(&mut self, request: &SpawnRequest) -> io::Result<bool> {
        let id = match self.warm.take(request) {
            None => return Ok(false),
            Some(Found::Stale(id)) => {
                self.throw_away(id);
                return Ok(false);
            }
            Some(Found::Fit(id)) => id,
        };
        self.hear(id)?;
        let Some(mut tree) = self.trees.remove(&id) else {
            return Ok(false);
        };
        if tree.failed || tree.go(request).is_err() {
            // Starting afresh tells why, or has the room.
            tree.destroy();
            self.trees.insert(id, tree);
            return Ok(false);
        }
        for known in self.keys.values_mut().chain(self.by_init.values_mut()) {
            if *known == id {
                *known = tree.process;
            }
        }
        self.trees.insert(tree.process, tree);
        Ok(true)
    }

    /// Nothing else is to be done.
    fn idle(&mut self) -> io::Result<()> {
        for unused in self.warm.expired() {
            self.throw_away(unused);
        }
        let Some((request, fds)) = self.warm.next() else {
            return Ok(());
        };
        let id = request.process;
        match Tree::make_ahead(request, fds, &self.fixed) {
            Ok(tree) => self.add(tree),
            Err(_) => {
                self.warm.forget(id);
                Ok(())
            }
        }
    }

    /// Ends a tree that was made ahead.
    fn throw_away(&mut self, id: Uuid) {
        if let Some(tree) = self.trees.get_mut(&id) {
            tree.destroy();
        }
    }

    fn tree_event(&mut self, key: u64, what: EpollFlags) -> io::Result<()> {
        let Some(process) = self.keys.get(&key).copied() else {
            return Ok(());
        };
        self.hear(process)?;
        if what.contains(EpollFlags::EPOLLHUP)
            && let Some(tree) = self.trees.get_mut(&process)
        {
            // The init is ending, which takes the kernel milliseconds where namespaces end with it. Its socket
            // would be ready all that time.
            unwatch(&self.epoll, tree)?;
        }
        if self.ending.contains(&process) {
            return self.settle_ending();
        }
        Ok(())
    }

    /// Takes in everything that an init has said.
    fn hear(&mut self, process: Uuid) -> io::Result<()> {
        let Some(tree) = self.trees.get_mut(&process) else {
            return Ok(());
        };
        loop {
            let starting = tree.command.is_none();
            if starting {
                self.reserve.release(); // it comes with descriptors
            }
            let heard = tree.hear();
            if starting {
                let _ = self.reserve.refill(&self.fixed.null);
            }
            let Some((message, fds)) = heard else {
                return Ok(());
            };
            match message {
                InitMessage::Started(command) => started(tree, command, fds)?,
                InitMessage::Failed { step, errno, detail } => {
                    tree.failed = true;
                    if tree.waiting.is_none() {
                        failed(process, step, errno, detail)?;
                    }
                }
                InitMessage::Exited { status } => exited(tree, status)?,
                InitMessage::Empty { killed, usage } => {
                    tree.empty = Some((killed, usage));
                    if tree.is_surely_empty() {
                        ended(tree)?;
                    }
                }
            }
        }
    }

    fn remember(&mut self, process: Uuid) {
        self.ended.insert(process);
        self.ended_order.push_back(process);
        if self.ended_order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.ended_order.pop_front()
        {
            self.ended.remove(&oldest);
        }
    }
}

fn started(tree: &mut Tree, command: InitStarted, mut fds: Vec<OwnedFd>) -> io::Result<()> {
    let InitStarted {
        terminal,
        listener,
        pid,
        pid_namespace,
    } = command;
    let wanted = 1 + usize::from(terminal) + usize::from(listener);
    let (Some(ends), true) = (tree.ours.take(), fds.len() == wanted) else {
        tree.refused = Some((Step::Descriptors, libc::EMFILE, fds.len() as u32));
        tree.kill();
        return Ok(());
    };
    let listener_fd = if listener { fds.pop() } else { None };
    let master = if terminal { fds.pop() } else { None };
    let Some(pidfd) = fds.pop() else {
        return Ok(());
    };
    let output = ends.output.iter().chain(&master);
    let others = ends.stdin.iter().chain(&listener_fd);
    let all = std::iter::once(&pidfd).chain(output).chain(others);
    let sent: Vec<_> = all.map(AsRawFd::as_raw_fd).collect();
    let notice = Notice::Started(Started {
        process: tree.process,
        pid,
        init_pid: tree.init_pid,
        pid_namespace,
        terminal,
        stdin_pipe: ends.stdin.is_some(),
        listener: listener_fd.is_some(),
    });
    let told = notify(&notice, &sent);
    tree.command = Some(Command { pid, pidfd });
    match told {
        // A user's descriptors on their way are limited in number (`ETOOMANYREFS`).
        Err(error) if is_shortage(&error) => {
            tree.refused = Some((Step::Descriptors, error.raw_os_error().unwrap_or(libc::EMFILE), 0));
            tree.kill();
            Ok(())
        }
        told => told,
    }
}

fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ETOOMANYREFS | libc::ENOBUFS | libc::ENOMEM | libc::EMFILE | libc::ENFILE)
    )
}

/// Tells the status once; the first word counts.
fn exited(tree: &mut Tree, status: i32) -> io::Result<()> {
    if tree.status_sent {
        return Ok(());
    }
    tree.status_sent = true;
    notify(
        &Notice::Exited {
            process: tree.process,
            status,
        },
        &[],
    )
}

/// Tells once that nothing of the tree lives.
fn ended(tree: &mut Tree) -> io::Result<()> {
    if std::mem::replace(&mut tree.end_sent, true) {
        return Ok(());
    }
    let (killed, usage) = match tree.empty {
        Some((killed, usage)) => (killed, Some(usage)),
        None => (tree.killed.in_group.max(tree.killed.reaped), None),
    };
    notify(
        &Notice::Ended {
            process: tree.process,
            killed,
            usage,
            hits: tree.limit_hits(),
        },
        &[],
    )
}

/// Its init says nothing more.
fn unwatch(epoll: &Epoll, tree: &mut Tree) -> io::Result<()> {
    if std::mem::replace(&mut tree.watched, false) {
        epoll.delete(&tree.control)?;
    }
    Ok(())
}

fn failed(process: Uuid, step: Step, errno: i32, detail: u32) -> io::Result<()> {
    notify(
        &Notice::Failed {
            process,
            step,
            errno,
            detail,
        },
        &[],
    )
}

fn notify(notice: &Notice, fds: &[i32]) -> io::Result<()> {
    match wire::send(host(), notice, fds) {
        // A host that is gone is noticed by reading.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// The socket to the host is our standard input.
#[allow(unsafe_code)]
fn host() -> BorrowedFd<'static> {
    // SAFETY: descriptor 0 stays open for the life of this process: nothing here closes it.
    // WHY: `std::io::stdin()` has a lock and a buffer that have no place here.
    unsafe { BorrowedFd::borrow_raw(0) }
}
