//! The init: a forked, un-exec'ed copy of the spawner that stays as parent of one command.
//!
//! With namespaces it is PID 1: when it ends, the kernel ends everything in its PID namespace, and it ends when
//! the spawner does. Without, it is the subreaper of every descendant, so that nothing of the tree can get away
//! from it by forking twice; it has no child left exactly when the tree is empty.
//!
//! It is not filtered, not in the command's Landlock domain (or the command could trace it), not dumpable, and
//! holds no descriptor of the command's but one: the slave of its terminal, until nothing of the tree is left. The master
//! would say hang-up whenever nobody has the slave open, and anybody in the tree may open it again.
//!
//! Contract: as in `child`: it runs on memory prepared before the fork; no allocation, no locks, no unwinding.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering;

use super::child::{self, Attempt};
use super::image::Image;
use super::sys;
use super::terminal;
use super::wire::Usage;
use super::{AFTER_FORK, Step, children, mounts, packet, spare};
use crate::report::Containment;

/// What an init says to its spawner: one packet of these words.
pub(super) const MESSAGE_WORDS: usize = 6;

/// Kinds of message; the words that follow are named by [`InitMessage`].
const STARTED: u64 = 1;
const FAILED: u64 = 2;
const EXITED: u64 = 3;
const EMPTY: u64 = 4;

/// A message from an init, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InitMessage {
    /// The command runs. Its pidfd comes along, then the terminal's master and the listener if there are any.
    Started(InitStarted),
    /// It does not.
    Failed { step: Step, errno: i32, detail: u32 },
    /// It ended.
    Exited { status: i32 },
    /// Nothing of the tree is left.
    Empty { killed: u64, usage: Usage },
}

/// A command that runs, as its init says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InitStarted {
    pub(super) terminal: bool,
    pub(super) listener: bool,
    pub(super) pid: i32,
    pub(super) pid_namespace: u64,
}

impl InitMessage {
    pub(super) fn decode(words: [u64; MESSAGE_WORDS]) -> Option<Self> {
        Some(match words[0] {
            STARTED => Self::Started(InitStarted {
                listener: words[1] != 0,
                pid: words[2] as i32,
                pid_namespace: words[3],
                terminal: words[4] != 0,
            }),
            FAILED => Self::Failed {
                step: Step::from_raw(words[1] as u32),
                errno: words[2] as i32,
                detail: words[3] as u32,
            },
            EXITED => Self::Exited {
                status: words[1] as i32,
            },
            EMPTY => Self::Empty {
                killed: words[1],
                usage: Usage {
                    user_us: words[2],
                    system_us: words[3],
                    max_rss_bytes: words[4],
                },
            },
            _ => return None,
        })
    }
}

/// What a spawner says to an init: a signal number and to whom; `KILL_TREE` for all of it.
pub(super) const ORDER_WORDS: usize = 2;
pub(super) const TO_LEADER: u32 = 0;
pub(super) const TO_GROUP: u32 = 1;
pub(super) const TO_TREE: u32 = 2;
pub(super) const KILL_TREE: u32 = 3;
pub(super) const GO: u32 = 4;

/// Bytes of stack for the command between vfork and exec.
const CHILD_STACK_BYTES: usize = 64 * 1024;
const SIGCHLD_MASK: u64 = 1 << (libc::SIGCHLD - 1);
/// Children reaped between two looks at the control socket. A tree can make orphans as fast as they are reaped; it
/// must not keep its own end from being ordered.
const REAPED_MAX: u32 = 64;

/// The forked child's whole life.
pub(super) fn run(image: &mut Image) -> ! {
    AFTER_FORK.store(true, Ordering::Relaxed);
    let control = image.control;
    let (signals, master) = match set_up(image) {
        Ok(opened) => opened,
        Err(failure) => fail(control, failure),
    };
    let command = match start_command(image, master) {
        Ok(command) => command,
        Err(failure) => fail(control, failure),
    };
    // Without a terminal it is the control socket once more.
    let slave = master.map(|_| image.stdio[0]);
    let mut keep = [control, signals, slave.unwrap_or(control)];
    keep.sort_unstable();
    let _ = sys::close_all_but(&keep);
    let namespaced = image.request.plan.containment == Containment::PidNamespace;
    // SAFETY: `image` was the last that pointed to the heap, and is not used any more; nothing allocates here, and what never
    // returns drops nothing.
    // WHY: an init lives as long as its command, and there may be thousands.
    unsafe {
        image.program.give_back();
        spare::give_back(CHILD_STACK_BYTES);
    }
    Reaper {
        control,
        signals,
        slave,
        command,
        namespaced,
        exited: false,
        killing: false,
        killed: 0,
    }
    .run()
}

fn fail(control: RawFd, (step, errno, detail): mounts::Failure) -> ! {
    say(
        control,
        [FAILED, step as u64, errno as u64, u64::from(detail), 0, 0],
        &[],
    );
    sys::exit(1);
}

fn say(control: RawFd, words: [u64; MESSAGE_WORDS], fds: &[RawFd]) {
    // SAFETY: an array of integers is valid bytes.
    let bytes = unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<u8>(), size_of_val(&words)) };
    // A spawner that is gone is noticed by reading.
    let _ = packet::send(control, bytes, fds, 0);
}

/// Everything up to the fork of the command. Returns the descriptor that tells of ended children, and the terminal's master.
fn set_up(image: &mut Image) -> Result<(RawFd, Option<RawFd>), mounts::Failure> {
    let namespaced = image.request.plan.containment == Containment::PidNamespace;
    sys::close_all_but(&image.keep).map_err(|e| (Step::Descriptors, e, 0))?;
    let _ = sys::prctl(libc::PR_SET_NAME, c"provost-init".as_ptr() as u64, 0);
    if namespaced {
        sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).map_err(|e| (Step::Clone, e, 1))?;
    } else {
        // It outlives the spawner by as long as it takes to kill its tree.
        sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).map_err(|e| (Step::Clone, e, 2))?;
    }
    sys::setsid().map_err(|e| (Step::Session, e, 2))?;
    if image.wait_for_go {
        sys::wait_for_order(image.control).map_err(|e| (Step::InitDied, e, 2))?;
    }
    if let Some((uids, gids)) = &image.id_maps {
        // An older kernel without this file does not need it.
        match sys::write_file(c"/proc/self/setgroups", b"deny") {
            Ok(()) | Err(libc::ENOENT) => {}
            Err(errno) => return Err((Step::IdMap, errno, 0)),
        }
        sys::write_file(c"/proc/self/uid_map", uids).map_err(|e| (Step::IdMap, e, 1))?;
        sys::write_file(c"/proc/self/gid_map", gids).map_err(|e| (Step::IdMap, e, 2))?;
    }
    if image.request.plan.net_namespace {
        sys::loopback_up().map_err(|e| (Step::Loopback, e, 0))?;
    }
    if namespaced {
        mounts::build(image)?;
        mounts::allow(image)?;
    }
    let master = match &image.terminal {
        Some(wanted) => {
            let (master, slave) = terminal::open(wanted)?;
            image.stdio = [slave; 3];
            Some(master)
        }
        None => None,
    };
    if namespaced {
        // Before nobody may look any more.
        image.pid_namespace = sys::pid_namespace().unwrap_or(0);
    }
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).map_err(|e| (Step::Clone, e, 3))?;
    let signals = sys::signalfd(SIGCHLD_MASK).map_err(|e| (Step::Descriptors, e, 1))?;
    Ok((signals, master))
}

/// Forks the command and tells the spawner; returns its pid as this namespace numbers it. Not inlined: the stack that it
/// makes room for is given back when this has returned.
#[inline(never)]
fn start_command(image: &mut Image, master: Option<RawFd>) -> Result<i32, mounts::Failure> {
    let control = image.control;
    let mut stack = [const { MaybeUninit::uninit() }; CHILD_STACK_BYTES];
    let mut pidfd: RawFd = -1;
    let mut attempt = Attempt {
        image,
        step: 0,
        errno: 0,
        detail: 0,
        pid: 0,
        listener: -1,
    };
    let argument = (&raw mut attempt).cast();
    // SAFETY: `entry` expects an `Attempt`, which outlives it here.
    let pid = unsafe { sys::vfork_with_files(child::entry, argument, &mut stack, &mut pidfd) };
    let pid = pid.map_err(|errno| (Step::Vfork, errno, 0))?;
    if attempt.step != 0 {
        let _ = sys::wait(pid, 0);
        return Err((Step::from_raw(attempt.step), attempt.errno, attempt.detail));
    }
    let with_listener = attempt.listener >= 0;
    let mut fds = [pidfd; 3];
    let mut count = 1;
    let listener = with_listener.then_some(attempt.listener);
    for fd in master.into_iter().chain(listener) {
        fds[count] = fd;
        count += 1;
    }
    let (pid_in_host, namespace) = (attempt.pid as u64, attempt.image.pid_namespace);
    let (listener, terminal) = (u64::from(with_listener), u64::from(master.is_some()));
    let words = [STARTED, listener, pid_in_host, namespace, terminal, 0];
    say(control, words, &fds[..count]);
    Ok(pid)
}

/// The init's loop: reap, obey, and end when nothing is left.
struct Reaper {
    control: RawFd,
    signals: RawFd,
    /// The terminal's, where the command has one.
    slave: Option<RawFd>,
    command: i32,
    namespaced: bool,
    exited: bool,
    killing: bool,
    killed: u64,
}

impl Reaper {
    fn run(mut self) -> ! {
        loop {
            let all = self.reap();
            let (ordered, ended) = sys::poll2(self.control, self.signals, all);
            if ended {
                let mut drain = [0u8; 128];
                let _ = sys::read(self.signals, &mut drain);
            }
            if ordered {
                self.obey();
            }
        }
    }

    /// Reaps what ended, up to a bound; true if that was all. Ends this process when no child is left.
    fn reap(&mut self) -> bool {
        let mut all = false;
        for _ in 0..REAPED_MAX {
            match sys::wait(-1, libc::WNOHANG) {
                Ok((0, _)) => {
                    all = true;
                    break;
                }
                Ok((pid, status)) => {
                    if self.killing
                        && libc::WIFSIGNALED(status)
                        && libc::WTERMSIG(status) == libc::SIGKILL
                    {
                        self.killed += 1;
                    }
                    if pid == self.command && !self.exited {
                        self.exited = true;
                        say(self.control, [EXITED, status as u32 as u64, 0, 0, 0, 0], &[]);
                    }
                }
                Err(_) => self.finish(),
            }
        }
        if self.killing && !self.namespaced {
            // Orphans of those just killed have become our children.
            self.kill_children();
        }
        all
    }

    /// No child is left, and every descendant was or became one: the tree is empty.
    fn finish(&self) -> ! {
        if let Some(slave) = self.slave {
            // The last one: the master has its end now, and need not wait for ours.
            sys::close(slave);
        }
        let usage = sys::children_usage();
        let words = [
            EMPTY,
            self.killed,
            usage.user_us,
            usage.system_us,
            usage.max_rss_bytes,
            0,
        ];
        say(self.control, words, &[]);
        sys::exit(0);
    }

    fn obey(&mut self) {
        let mut bytes = [0u8; ORDER_WORDS * 4];
        match sys::read(self.control, &mut bytes) {
            Ok(read) if read == bytes.len() => {}
            Ok(0) | Err(_) => return self.kill_tree(), // the spawner is gone
            Ok(_) => return,
        }
        let [a, b, c, d, e, f, g, h] = bytes;
        let whom = u32::from_ne_bytes([a, b, c, d]);
        let signal = i32::from_ne_bytes([e, f, g, h]);
        match whom {
            // Until it is reaped, which only we do, its pid is its own.
            TO_LEADER if !self.exited => {
                let _ = sys::kill(self.command, signal);
            }
            TO_GROUP if !self.exited => {
                let _ = sys::kill(-self.command, signal);
            }
            TO_TREE if self.namespaced => {
                let _ = sys::kill(-1, signal);
            }
            TO_TREE => {
                if !self.exited {
                    let _ = sys::kill(-self.command, signal);
                }
                let told = (!self.exited).then_some(self.command);
                children::for_each(|pid| {
                    if Some(pid) != told {
                        let _ = sys::kill(pid, signal);
                    }
                });
            }
            KILL_TREE => self.kill_tree(),
            _ => {}
        }
    }

    fn kill_tree(&mut self) {
        self.killing = true;
        if self.namespaced {
            // All of the namespace but us, at once: a fork that races with it is killed as well.
            let _ = sys::kill(-1, libc::SIGKILL);
        } else {
            if !self.exited {
                let _ = sys::kill(-self.command, libc::SIGKILL);
            }
            self.kill_children();
        }
    }

    fn kill_children(&self) {
        children::for_each(|pid| {
            let _ = sys::kill(pid, libc::SIGKILL);
        });
    }
}
