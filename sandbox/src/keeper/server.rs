//! The loop of spawner and keeper: what is asked for, and what inits say.
//!
//! Each turn takes in what inits have said, then what the kernel says of their deaths, then requests; at its end how
//! processes ended is written down, and then told. Telling never waits: what there is no room for stays in the
//! accounts.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::pipe2;
use uuid::Uuid;

use super::account::Account;
use super::init::{InitMessage, InitStarted};
use super::oom::OomScore;
use super::reserve::{self, Reserve};
use super::tree::{Fixed, Tree};
use super::warm::Warm;
use super::wire::{self, Started};
use super::{Step, probe, spare, sys};
use crate::extras::Extras;
use crate::kernel::KernelSupport;
use crate::observe::audit::AuditShare;

use errands::Errands;
use keeping::Keeping;
use peer::Peer;

mod ending;
mod errands;
mod keeping;
mod peer;
mod request;
mod telling;

const PEER: u64 = 0;
const SIGNALS: u64 = 1;
const LISTENER: u64 = 2;
const ERRANDS: u64 = 3;
/// Ids of ended trees that are remembered, so that a repeated request does not run a command twice.
const REMEMBERED_MAX: usize = 4096;

/// What this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It serves the socket on its standard input until that closes.
    Spawner,
    /// It serves one connection after the other to the socket that listens on its standard input.
    Keeper {
        /// It ends when it has kept nothing for so long, and nobody was connected.
        idle: Duration,
    },
}

/// Serves until there is nobody to serve. Returns the exit code.
pub(super) fn main(role: Role) -> i32 {
    match Server::new(role) {
        Ok(server) => serve(server),
        Err(error) => failed_with(&error),
    }
}

/// The same of a spawner whose host is busy with other things: meanwhile it finds out what it will be asked first.
pub(super) fn main_ahead() -> i32 {
    match Server::new(Role::Spawner) {
        Ok(mut server) => {
            server.probed = Some(Box::new(probe::support(false)));
            serve(server)
        }
        Err(error) => failed_with(&error),
    }
}

fn serve(mut server: Server) -> i32 {
    let served = server.serve();
    // Whatever ended it: nothing that it started may live on.
    server.end_everything();
    served.map_or_else(|error| failed_with(&error), |()| 0)
}

fn failed_with(error: &io::Error) -> i32 {
    tracing::error!(%error, "the spawner ends");
    1
}

/// What comes after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Turn,
    End,
}

struct Server {
    role: Role,
    /// What can be had here, found out before anybody asked.
    probed: Option<Box<KernelSupport>>,
    epoll: Epoll,
    signals: SignalFd,
    fixed: Fixed,
    // Boxed: the room that a map keeps free is not as large as they are.
    trees: HashMap<Uuid, Box<Tree>>,
    accounts: HashMap<Uuid, Box<Account>>,
    keys: HashMap<u64, Uuid>,
    by_init: HashMap<i32, Uuid>,
    /// Trees whose init is gone and of which something may live.
    ending: Vec<Uuid>,
    /// More children have ended than were reaped at once.
    reap_more: bool,
    /// Something is short that nothing announces when it is there again.
    pause: bool,
    /// There is no room for descriptors on their way, since then.
    short_since: Option<Instant>,
    reserve: Reserve,
    buffer: Box<wire::Buffer>,
    next_key: u64,
    warm: Warm,
    ended: HashSet<Uuid>,
    ended_order: VecDeque<Uuid>,
    peer: Option<Peer>,
    errands: Option<Errands>,
    keeping: Keeping,
    /// Dropped last of all.
    audit: Option<AuditShare>,
}

/// How long to wait for what nothing announces.
const PAUSE: Duration = Duration::from_millis(10);

impl Server {
    fn new(role: Role) -> io::Result<Self> {
        spare::note_heap();
        let descriptors_soft = reserve::raise_limit();
        // Nothing of the host's is kept: descriptors that were not close-on-exec, its session, its terminal.
        sys::close_range(3, u32::MAX).map_err(io::Error::from_raw_os_error)?;
        let _ = sys::setsid();
        let name = match role {
            Role::Spawner => super::ROLE_NAME,
            Role::Keeper { .. } => super::KEEPER_NAME,
        };
        let _ = sys::prctl(libc::PR_SET_NAME, name.as_ptr() as u64, 0);
        sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).map_err(io::Error::from_raw_os_error)?;
        // A host that ignores SIGCHLD passes that on, and then nothing could be waited for.
        sys::reset_signals();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
        let mut child_mask = SigSet::empty();
        child_mask.add(nix::sys::signal::Signal::SIGCHLD);
        let signals = SignalFd::with_flags(&child_mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNALS))?;
        let (peer, oom) = match role {
            Role::Spawner => (Some(Peer::host(stdin_socket(), &epoll)?), OomScore::default()),
            Role::Keeper { .. } => {
                peer::set_nonblocking(stdin_socket())?;
                epoll.add(stdin_socket(), EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
                // Its host may go with the directory it was started in.
                std::env::set_current_dir("/")?;
                (None, OomScore::protect_keeper())
            }
        };
        let last_capability = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(63);
        Ok(Self {
            role,
            probed: None,
            epoll,
            signals,
            fixed: Fixed {
                null: File::options().read(true).write(true).open("/dev/null")?,
                proc: File::open("/proc")?,
                last_capability,
                descriptors_soft,
                oom,
            },
            trees: HashMap::new(),
            accounts: HashMap::new(),
            keys: HashMap::new(),
            by_init: HashMap::new(),
            ending: Vec::new(),
            reap_more: false,
            pause: false,
            short_since: None,
            reserve: Reserve::default(),
            buffer: wire::buffer(),
            next_key: ERRANDS + 1,
            warm: Warm::default(),
            ended: HashSet::new(),
            ended_order: VecDeque::new(),
            peer,
            errands: None,
            keeping: Keeping::default(),
            audit: None,
        })
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let count = match self.epoll.wait(&mut events, self.patience()) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let is = |key: u64| events[..count].iter().any(|event| event.data() == key);
            if self.turn(&events[..count], is)? == Next::End {
                return Ok(());
            }
        }
    }

    /// How long to wait for something to do.
    fn patience(&self) -> EpollTimeout {
        if self.reap_more {
            return EpollTimeout::ZERO;
        }
        let pause = self.pause.then_some(PAUSE);
        let waits = [pause, self.warm.patience(), self.idle_left()];
        let shortest = waits.into_iter().flatten().min();
        shortest.map_or(EpollTimeout::NONE, |wait| {
            // Rounded up, or it would be asked again and again in the last millisecond.
            EpollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(EpollTimeout::MAX)
        })
    }

    fn turn(&mut self, events: &[EpollEvent], is: impl Fn(u64) -> bool) -> io::Result<Next> {
        if events.is_empty() && !self.reap_more {
            self.spare_time();
        }
        if std::mem::take(&mut self.pause) {
            self.settle_ending();
            self.listen(true);
        }
        // What inits said comes before what the kernel says of their deaths.
        for event in events {
            match event.data() {
                PEER | SIGNALS | LISTENER | ERRANDS => {}
                key => self.tree_event(key, event.events()),
            }
        }
        if self.reap_more || is(SIGNALS) {
            self.reap()?;
        }
        if is(PEER) && self.peer_event(events)? == Next::End {
            return Ok(Next::End);
        }
        if is(ERRANDS) {
            self.run_errand();
        }
        if is(LISTENER) {
            if self.hear_out()? == Next::End {
                return Ok(Next::End);
            }
            self.accept();
        }
        self.write_exits();
        self.tell()?;
        Ok(self.keep_on())
    }

    fn add(&mut self, mut tree: Tree) {
        let key = self.next_key;
        self.next_key += 1;
        let readable = EpollEvent::new(EpollFlags::EPOLLIN, key);
        match self.epoll.add(&tree.control, readable) {
            Ok(()) => {
                self.keys.insert(key, tree.process);
            }
            Err(errno) => {
                // It is refused when it is gone, which its parent is told.
                tree.watched = false;
                tree.refused = Some((Step::Descriptors, errno as i32, 0));
                tree.destroy();
            }
        }
        self.by_init.insert(tree.init_pid, tree.process);
        self.trees.insert(tree.process, Box::new(tree));
    }

    /// Nothing else is to be done.
    fn spare_time(&mut self) {
        for unused in self.warm.expired() {
            self.throw_away(unused);
        }
        let Some((request, fds)) = self.warm.next() else {
            return;
        };
        let id = request.process;
        match Tree::make_ahead(request, fds, &self.fixed) {
            Ok(tree) => self.add(tree),
            Err(_) => self.warm.forget(id),
        }
    }

    /// Ends a tree that was made ahead.
    fn throw_away(&mut self, id: Uuid) {
        if let Some(tree) = self.trees.get_mut(&id) {
            tree.destroy();
        }
    }

    fn tree_event(&mut self, key: u64, what: EpollFlags) {
        let Some(process) = self.keys.get(&key).copied() else {
            return;
        };
        self.hear(process);
        if what.contains(EpollFlags::EPOLLHUP)
            && let Some(tree) = self.trees.get_mut(&process)
        {
            // The init is ending, which takes the kernel milliseconds where namespaces end with it. Its socket
            // would be ready all that time.
            unwatch(&self.epoll, tree);
        }
        if self.ending.contains(&process) {
            self.settle_ending();
        }
    }

    /// Takes in everything that an init has said.
    fn hear(&mut self, process: Uuid) {
        while let Some(tree) = self.trees.get_mut(&process) {
            let starting = tree.command.is_none();
            if starting {
                self.reserve.release(); // it comes with descriptors
            }
            let heard = tree.hear();
            if starting {
                let _ = self.reserve.refill(&self.fixed.null);
            }
            let Some((message, fds)) = heard else {
                return;
            };
            match message {
                InitMessage::Started(command) => self.started(process, command, fds),
                InitMessage::Failed { step, errno, detail } => {
                    tree.failed = true;
                    if tree.refused.is_none() {
                        self.failed(process, (step, errno, detail));
                    }
                }
                InitMessage::Exited { status } => self.exited(process, status),
                InitMessage::Empty { killed, usage } => {
                    tree.empty = Some((killed, usage));
                    if tree.is_surely_empty() {
                        self.tree_ended(process);
                    }
                }
            }
        }
    }

    fn started(&mut self, process: Uuid, command: InitStarted, mut fds: Vec<OwnedFd>) {
        let Some(tree) = self.trees.get_mut(&process) else {
            return;
        };
        let InitStarted {
            terminal,
            listener,
            pid,
            pid_namespace,
        } = command;
        let wanted = 1 + usize::from(terminal) + usize::from(listener);
        if fds.len() != wanted {
            tree.refused = Some((Step::Descriptors, libc::EMFILE, fds.len() as u32));
            tree.kill();
            return;
        }
        tree.command = Some(pid);
        let listener = if listener { fds.pop() } else { None };
        let mut output = Vec::new();
        if terminal {
            output.extend(fds.pop());
        }
        let relay = terminal && matches!(self.role, Role::Keeper { .. });
        if relay {
            match pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK) {
                Ok((reader, writer)) => output.extend([reader, writer]),
                Err(errno) => {
                    tree.refused = Some((Step::Descriptors, errno as i32, 0));
                    tree.kill();
                    return;
                }
            }
        }
        let started = Started {
            process,
            pid,
            init_pid: tree.init_pid,
            pid_namespace,
            terminal,
            relay,
            stdin_pipe: false,
            listener: false,
            extras: Extras::default(),
        };
        if let (Some(account), Some(pidfd)) = (self.accounts.get_mut(&process), fds.pop()) {
            account.started(started, pidfd, output, listener);
            self.say(process);
        }
    }

    fn remember(&mut self, process: Uuid) {
        if self.ended.insert(process) {
            self.ended_order.push_back(process);
        }
        if self.ended_order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.ended_order.pop_front()
        {
            self.ended.remove(&oldest);
        }
    }
}

/// Its init says nothing more.
fn unwatch(epoll: &Epoll, tree: &mut Tree) {
    if std::mem::replace(&mut tree.watched, false) {
        // It was added, and is open.
        let _ = epoll.delete(&tree.control);
    }
}

/// The socket that we serve is our standard input.
#[allow(unsafe_code)]
fn stdin_socket() -> BorrowedFd<'static> {
    // SAFETY: descriptor 0 stays open for the life of this process: nothing here closes it.
    // WHY: `std::io::stdin()` has a lock and a buffer that have no place here.
    unsafe { BorrowedFd::borrow_raw(0) }
}
