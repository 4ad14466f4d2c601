//! What becomes known of processes, and how it is told.

use std::io;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::peer::{Sent, Word};
use super::{Role, Server};
use crate::keeper::Step;
use crate::keeper::account::News;
use crate::keeper::held::TreeEnd;
use crate::keeper::tree::Failure;
use crate::keeper::wire::Notice;

/// How long a command that has just been started waits for the kernel to have room for its descriptors on their way.
/// Others of the same user may take that room for as long as they like.
const SHORT_MAX: Duration = Duration::from_secs(1);

impl Server {
    /// It was not started.
    pub(super) fn failed(&mut self, process: Uuid, failure: Failure) {
        if let Some(account) = self.accounts.get_mut(&process) {
            account.fail(failure);
            self.say(process);
        }
    }

    /// Its command ended.
    pub(super) fn exited(&mut self, process: Uuid, status: i32) {
        if let Some(tree) = self.trees.get_mut(&process) {
            tree.exited = true;
        }
        if let Some(account) = self.accounts.get_mut(&process) {
            account.exited(status);
            self.keeping.write_later(process);
            self.say(process);
        }
    }

    /// Nothing of its tree lives.
    pub(super) fn tree_ended(&mut self, process: Uuid) {
        let Some(tree) = self.trees.get(&process) else {
            return;
        };
        let (killed, usage) = match tree.empty {
            Some((killed, usage)) => (killed, Some(usage)),
            None => (tree.killed.in_group.max(tree.killed.reaped), None),
        };
        let hits = tree.limit_hits();
        if let Some(account) = self.accounts.get_mut(&process) {
            account.ended(TreeEnd { killed, usage, hits });
            self.keeping.write_later(process);
            self.say(process);
        }
    }

    /// There is something to tell of a process.
    pub(super) fn say(&mut self, process: Uuid) {
        if let (Some(peer), Some(account)) = (&mut self.peer, self.accounts.get_mut(&process))
            && peer.greeted
            && !std::mem::replace(&mut account.queued, true)
        {
            peer.push(Word::Process(process));
        }
    }

    pub(super) fn answer(&mut self, notice: Notice) {
        if let Some(peer) = &mut self.peer {
            peer.push(Word::Answer(Box::new(notice)));
        }
    }

    /// Says what there is room for.
    pub(super) fn tell(&mut self) -> io::Result<()> {
        while let Some(sent) = self.tell_next() {
            match sent {
                Ok(Sent::Told) => self.short_since = None,
                Ok(Sent::Full) => break,
                Ok(Sent::Short(_)) => {
                    self.short_since.get_or_insert_with(Instant::now);
                    self.pause = true;
                    break;
                }
                Ok(Sent::Gone) => {
                    if let Some(peer) = &mut self.peer {
                        peer.give_up();
                    }
                    break;
                }
                Err(error) if self.role == Role::Spawner => return Err(error),
                Err(error) => {
                    tracing::error!(%error, "cannot say something");
                    self.disconnect();
                }
            }
        }
        match &mut self.peer {
            Some(peer) => peer.watch(&self.epoll),
            None => Ok(()),
        }
    }

    /// `None` when there is nothing to say.
    fn tell_next(&mut self) -> Option<io::Result<Sent>> {
        let peer = self.peer.as_mut()?;
        let sent = match peer.words.pop_front()? {
            Word::Answer(notice) => {
                let sent = peer.send(&notice, &[]);
                peer.words.push_front(Word::Answer(notice));
                sent
            }
            Word::Named(name) => {
                let sent = self.keeping.send_named(&name, peer);
                peer.words.push_front(Word::Named(name));
                sent
            }
            Word::All => {
                let (trees, named) = peer.introduced;
                let sent = peer.send(&Notice::HeldAll { trees, named }, &[]);
                peer.words.push_front(Word::All);
                sent
            }
            Word::Process(process) => {
                peer.words.push_front(Word::Process(process));
                return Some(self.tell_of(process));
            }
        };
        if let Ok(Sent::Told) = sent {
            peer.pop();
        }
        Some(sent)
    }

    /// Tells everything that is new of a process, which is the next to be told of.
    fn tell_of(&mut self, process: Uuid) -> io::Result<Sent> {
        let Some(peer) = &mut self.peer else {
            return Ok(Sent::Gone);
        };
        while let Some(account) = self.accounts.get_mut(&process) {
            let Some(news) = account.news(process) else {
                break;
            };
            match peer.send(&news.notice, &news.fds)? {
                Sent::Told => {}
                Sent::Short(errno)
                    if matches!(news.notice, Notice::Started(_))
                        && self.short_since.is_some_and(|since| since.elapsed() >= SHORT_MAX) =>
                {
                    // It was never handed over, so there is nothing to lose but time.
                    peer.pop();
                    self.refuse(process, errno);
                    return Ok(Sent::Told);
                }
                other => return Ok(other),
            }
            account.told(&news);
            if let News {
                notice: Notice::Held(_),
                ..
            } = news
            {
                peer.introduced.0 += 1;
            }
            if self.role == Role::Spawner {
                account.release_all();
            }
        }
        peer.pop();
        if let Some(account) = self.accounts.get_mut(&process) {
            account.queued = false;
            if self.role == Role::Spawner && account.is_told() {
                self.accounts.remove(&process);
                self.remember(process);
            }
        }
        Ok(Sent::Told)
    }

    /// A command that runs and cannot be handed over: it fails, once nothing of it lives.
    fn refuse(&mut self, process: Uuid, errno: i32) {
        if let Some(account) = self.accounts.get_mut(&process) {
            account.unstart();
            account.queued = false;
        }
        if let Some(tree) = self.trees.get_mut(&process) {
            tree.refused = Some((Step::Descriptors, errno, 0));
            tree.kill();
        }
    }
}
