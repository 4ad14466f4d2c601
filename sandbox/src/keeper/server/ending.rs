//! How trees end, as the spawner sees it.
//!
//! An init ends last: in a PID namespace the kernel sees to that, elsewhere it waits until it has no child left. But a
//! command without a PID namespace can kill its init, or stop it. The spawner is a subreaper too, so whatever such an
//! init leaves behind becomes a child of the spawner, who kills it; only then the tree counts as empty. A supervised
//! process that forks faster than it is killed can draw that out, which is why the report calls that containment
//! the weakest.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use uuid::Uuid;

use super::{Server, unwatch};
use crate::keeper::tree::Tree;
use crate::keeper::{Step, children, sys};

/// Children reaped between two looks at what else there is: members that fork faster than they are reaped must not
/// keep the host from being heard.
const REAPED_MAX: u32 = 256;

impl Server {
    /// Reaps inits, and members of trees whose init was killed.
    pub(super) fn reap(&mut self) -> io::Result<()> {
        while self.signals.read_signal()?.is_some() {}
        self.reap_more = false;
        for reaped in 0.. {
            let Ok((pid, status)) = sys::wait(-1, libc::WNOHANG | libc::WUNTRACED) else {
                break;
            };
            if pid == 0 {
                break;
            }
            self.reap_more = reaped == REAPED_MAX;
            if libc::WIFSTOPPED(status) {
                self.stopped(pid);
            } else if let Some(process) = self.by_init.remove(&pid) {
                self.hear(process);
                if let Some(tree) = self.trees.get_mut(&process) {
                    tree.init_reaped = true;
                    unwatch(&self.epoll, tree);
                    self.ending.push(process);
                }
            } else {
                self.member_reaped(pid, status);
            }
            if self.reap_more {
                break;
            }
        }
        self.settle_ending();
        Ok(())
    }

    /// Nobody has a reason to stop an init but who does not want it to end its tree.
    fn stopped(&self, pid: i32) {
        if let Some(tree) = self.by_init.get(&pid).and_then(|process| self.trees.get(process)) {
            tree.kill_init();
        }
    }

    /// A member of a tree without a PID namespace, whose init was killed.
    fn member_reaped(&mut self, pid: i32, status: i32) {
        let killed = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL;
        let mut may_own: Vec<Uuid> = self.ending.clone();
        may_own.retain(|process| {
            self.trees
                .get(process)
                .is_some_and(|tree| tree.may_have_orphans())
        });
        if let ([process], true) = (may_own.as_slice(), killed)
            && let Some(tree) = self.trees.get_mut(process)
        {
            tree.killed.reaped += 1;
        }
        let is_command =
            |process: &Uuid| self.trees.get(process).and_then(|tree| tree.command) == Some(pid);
        if let Some(process) = may_own.into_iter().find(is_command) {
            self.exited(process, status);
        }
    }

    /// Ends the entries of trees of which nothing can live any more.
    pub(super) fn settle_ending(&mut self) {
        if self.ending.is_empty() {
            return;
        }
        let may_own = |process| {
            self.trees
                .get(process)
                .is_some_and(|tree| tree.may_have_orphans())
        };
        let orphans = self.ending.iter().any(may_own) && self.kill_orphans();
        for process in std::mem::take(&mut self.ending) {
            let Some(tree) = self.trees.get_mut(&process) else {
                continue;
            };
            // Whose orphans they are cannot be seen; while there are any they may be this tree's.
            let populated = is_populated(tree, &self.epoll, &mut self.keys, &mut self.next_key);
            self.pause |= populated.is_err(); // it is looked at again, unannounced
            let lives = (orphans && tree.may_have_orphans()) || populated.unwrap_or(true);
            if lives {
                self.ending.push(process);
            } else {
                self.settle(process);
            }
        }
    }

    /// Members of a tree become our children when its init was killed. Kills those; says whether there are any,
    /// also such as wait to be reaped.
    fn kill_orphans(&self) -> bool {
        let mut any = false;
        children::for_each(|pid| {
            if !self.by_init.contains_key(&pid) {
                any = true;
                let _ = sys::kill(pid, libc::SIGKILL);
            }
        });
        any
    }

    /// Nothing of the tree lives: says how it ended.
    fn settle(&mut self, process: Uuid) {
        let Some(tree) = self.trees.get(&process) else {
            return;
        };
        let (waiting, refused) = (tree.waiting.is_some(), tree.refused);
        if waiting {
            self.warm.forget(process);
        } else if let Some(failure) = refused {
            self.failed(process, failure);
        } else if tree.command.is_none() {
            // One that said why keeps its word.
            self.failed(process, (Step::InitDied, 0, 0));
        } else {
            let pidfd = self.accounts.get(&process).and_then(|account| account.pidfd());
            if let Some(status) = pidfd.and_then(|pidfd| sys::exit_status(pidfd.as_raw_fd())) {
                self.exited(process, status);
            }
            self.tree_ended(process);
        }
        self.keys.retain(|_, id| *id != process);
        self.trees.remove(&process);
    }

    /// Nothing that was started may live on.
    pub(super) fn end_everything(&mut self) {
        for tree in self.trees.values_mut() {
            tree.destroy();
        }
        // Every descendant without a namespace is our child once its init is gone; we are a subreaper.
        loop {
            children::for_each(|pid| {
                let _ = sys::kill(pid, libc::SIGKILL);
            });
            if sys::wait(-1, 0).is_err() {
                break;
            }
            while matches!(sys::wait(-1, libc::WNOHANG), Ok((1.., _))) {}
        }
        self.trees.clear();
    }
}

/// Whether the tree's group has members. Its init is gone, so they are killed, and watched until they are gone.
fn is_populated(
    tree: &mut Tree,
    epoll: &Epoll,
    keys: &mut HashMap<u64, Uuid>,
    next_key: &mut u64,
) -> io::Result<bool> {
    if !tree.is_populated() {
        return Ok(false);
    }
    tree.kill();
    let Some(events) = tree.watch() else {
        return Ok(false);
    };
    let key = *next_key;
    match epoll.add(events, EpollEvent::new(EpollFlags::EPOLLPRI, key)) {
        Ok(()) => {
            *next_key += 1;
            keys.insert(key, tree.process);
        }
        Err(nix::errno::Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    Ok(tree.is_populated())
}
