//! The spawner's loop.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use uuid::Uuid;

use super::init::InitMessage;
use super::tree::{Command, Fixed, Tree};
use super::wire::{self, Notice, Request, SpawnRequest, Started};
use super::{Step, probe, sys};
use crate::observe::audit::AuditShare;

const HOST: u64 = 0;
const SIGNALS: u64 = 1;
/// Ids of ended trees that are remembered, so that a repeated request does not run a command twice.
const REMEMBERED_MAX: usize = 4096;

/// The spawner: serves the socket on its standard input until that closes. Returns the exit code.
pub(super) fn main() -> i32 {
    match Server::new().and_then(|mut server| server.serve()) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!(%error, "the spawner ends");
            1
        }
    }
}

struct Server {
    epoll: Epoll,
    signals: SignalFd,
    fixed: Fixed,
    trees: HashMap<Uuid, Tree>,
    keys: HashMap<u64, Uuid>,
    by_init: HashMap<i32, Uuid>,
    next_key: u64,
    ended: HashSet<Uuid>,
    ended_order: VecDeque<Uuid>,
    /// Dropped last of all.
    audit: Option<AuditShare>,
}

impl Server {
    fn new() -> io::Result<Self> {
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
            },
            trees: HashMap::new(),
            keys: HashMap::new(),
            by_init: HashMap::new(),
            next_key: SIGNALS + 1,
            ended: HashSet::new(),
            ended_order: VecDeque::new(),
            audit: None,
        })
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            // What inits said comes before what the kernel says of their deaths.
            for event in &events[..count] {
                match event.data() {
                    HOST | SIGNALS => {}
                    key => self.tree_event(key)?,
                }
            }
            if events[..count].iter().any(|event| event.data() == SIGNALS) {
                self.reap()?;
            }
            if events[..count].iter().any(|event| event.data() == HOST) && !self.host_event()? {
                self.end_everything();
                return Ok(());
            }
        }
    }

    /// One request; false when the host is gone.
    fn host_event(&mut self) -> io::Result<bool> {
        match wire::receive::<Request>(host()) {
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
                // The probes' deaths are not news.
                while self.signals.read_signal()?.is_some() {}
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
                if let Some(tree) = self.trees.get(&process) {
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
        match Tree::start(request, fds, &self.fixed) {
            Ok(tree) => {
                let key = self.next_key;
                self.next_key += 1;
                let readable = EpollEvent::new(EpollFlags::EPOLLIN, key);
                self.epoll.add(&tree.control, readable)?;
                self.keys.insert(key, process);
                self.by_init.insert(tree.init_pid, process);
                self.trees.insert(process, tree);
                Ok(())
            }
            Err((step, errno, detail)) => {
                self.remember(process);
                failed(process, step, errno, detail)
            }
        }
    }

    fn tree_event(&mut self, key: u64) -> io::Result<()> {
        let Some(process) = self.keys.get(&key).copied() else {
            return Ok(());
        };
        self.hear(process)?;
        self.settle(process)
    }

    /// Takes in everything that an init has said.
    fn hear(&mut self, process: Uuid) -> io::Result<()> {
        let Some(tree) = self.trees.get_mut(&process) else {
            return Ok(());
        };
        while let Some((message, fds)) = tree.hear() {
            match message {
                InitMessage::Started {
                    listener,
                    pid,
                    pid_namespace,
                } => started(tree, listener, (pid, pid_namespace), fds)?,
                InitMessage::Failed { step, errno, detail } => {
                    tree.failed = true;
                    failed(process, step, errno, detail)?;
                }
                InitMessage::Exited { status } => exited(tree, status)?,
                InitMessage::Empty { killed, usage } => tree.empty = Some((killed, usage)),
            }
        }
        Ok(())
    }

    /// Reaps inits, and orphans of trees whose init was killed.
    fn reap(&mut self) -> io::Result<()> {
        while self.signals.read_signal()?.is_some() {}
        while let Ok((pid, status)) = sys::wait(-1, libc::WNOHANG) {
            if pid == 0 {
                break;
            }
            if let Some(process) = self.by_init.remove(&pid) {
                self.hear(process)?;
                if let Some(tree) = self.trees.get_mut(&process) {
                    tree.init_reaped = true;
                    self.epoll.delete(&tree.control)?;
                }
                self.settle(process)?;
            } else if let Some(tree) = self
                .trees
                .values_mut()
                .find(|tree| tree.command.as_ref().is_some_and(|command| command.pid == pid))
            {
                exited(tree, status)?;
            }
        }
        Ok(())
    }

    /// Ends the tree's entry when nothing of it can live any more.
    fn settle(&mut self, process: Uuid) -> io::Result<()> {
        let Some(tree) = self.trees.get_mut(&process) else {
            return Ok(());
        };
        if !tree.init_reaped {
            return Ok(());
        }
        if tree.is_populated() {
            // The init is gone and members are left: it was killed. So are they.
            tree.kill();
            if let Some(events) = tree.watch() {
                let key = self.next_key;
                self.next_key += 1;
                self.keys.insert(key, process);
                let changed = EpollEvent::new(EpollFlags::EPOLLPRI, key);
                match self.epoll.add(events, changed) {
                    Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                if tree.is_populated() {
                    return Ok(());
                }
            }
        }
        let Some(mut tree) = self.trees.remove(&process) else {
            return Ok(());
        };
        self.keys.retain(|_, id| *id != process);
        self.remember(process);
        if tree.failed {
            return Ok(());
        }
        if tree.command.is_none() {
            return failed(process, Step::InitDied, 0, 0);
        }
        if let Some(status) = tree
            .command
            .as_ref()
            .and_then(|command| sys::exit_status(command.pidfd.as_raw_fd()))
        {
            exited(&mut tree, status)?;
        }
        let (killed, usage) = tree.empty.unwrap_or_default();
        notify(
            &Notice::Ended {
                process,
                killed,
                usage,
            },
            &[],
        )
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

    /// The host is gone: nothing that it started may live on.
    fn end_everything(&mut self) {
        for tree in self.trees.values() {
            tree.kill();
        }
        // Every descendant without a namespace is our child once its init is gone; we are a subreaper.
        while sys::wait(-1, 0).is_ok() {}
        self.trees.clear();
    }
}

fn started(
    tree: &mut Tree,
    listener: bool,
    (pid, pid_namespace): (i32, u64),
    mut fds: Vec<OwnedFd>,
) -> io::Result<()> {
    let (Some(ends), false) = (tree.ours.take(), fds.is_empty()) else {
        tree.kill();
        return Ok(());
    };
    let listener_fd = listener.then(|| fds.pop()).flatten();
    let Some(pidfd) = fds.pop() else {
        tree.kill();
        return Ok(());
    };
    let mut sent = vec![
        pidfd.as_raw_fd(),
        ends.stdout.as_raw_fd(),
        ends.stderr.as_raw_fd(),
    ];
    sent.extend(ends.stdin.as_ref().map(AsRawFd::as_raw_fd));
    sent.extend(listener_fd.as_ref().map(AsRawFd::as_raw_fd));
    let notice = Notice::Started(Started {
        process: tree.process,
        pid,
        init_pid: tree.init_pid,
        pid_namespace,
        stdin_pipe: ends.stdin.is_some(),
        listener: listener_fd.is_some(),
    });
    tree.command = Some(Command {
        pid,
        pidfd: pidfd.try_clone()?,
    });
    notify(&notice, &sent)
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
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
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
