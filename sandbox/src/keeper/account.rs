//! What is known of a process, and how much of it was told.
//!
//! Facts only come in and never change; what was told is about the connection there is. So a connection that is lost,
//! or that has no room, loses nothing: what is told next follows from the two alone.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use uuid::Uuid;

use super::exits::ExitRecord;
use super::held::{Held, HeldState, HeldTree, Kept, TreeEnd};
use super::tree::{Failure, SupervisorEnds};
use super::wire::{Notice, Started};
use crate::extras::{Extras, ReadyBy};

/// One process, from the request for it until it is forgotten.
#[derive(Default)]
pub(super) struct Account {
    start: Start,
    status: Option<i32>,
    end: Option<TreeEnd>,
    stdin: Option<OwnedFd>,
    /// stdout and stderr, or the terminal's master and both ends of its relay.
    output: Vec<OwnedFd>,
    /// The place for its result.
    report: Option<OwnedFd>,
    /// Where it is heard that it is ready.
    ready: Option<OwnedFd>,
    /// What it says that with, where it gets that when it asks for it.
    ready_sender: Option<OwnedFd>,
    told: Told,
    /// It waits to be told something.
    pub(super) queued: bool,
}

#[derive(Default)]
enum Start {
    #[default]
    Pending,
    Failed(Failure),
    Running(Box<Running>),
}

/// A command that was started.
struct Running {
    started: Started,
    pidfd: OwnedFd,
    listener: Option<OwnedFd>,
}

/// What the connection there is was told.
#[derive(Default, Clone, Copy)]
struct Told {
    /// There is such a process.
    process: bool,
    start: bool,
    status: bool,
    end: bool,
}

/// What to tell next, with its descriptors in order.
pub(super) struct News {
    pub(super) notice: Notice,
    pub(super) fds: Vec<RawFd>,
    after: Told,
}

impl Account {
    /// A process that the connection has just asked for.
    pub(super) fn new() -> Self {
        Self {
            told: Told {
                process: true,
                ..Told::default()
            },
            ..Self::default()
        }
    }

    /// Keeps what its supervisor gets once the command runs.
    pub(super) fn keep(&mut self, ends: SupervisorEnds) {
        self.stdin = ends.stdin;
        self.output = ends.output;
        self.report = ends.report;
        self.ready = ends.ready;
        self.ready_sender = ends.ready_sender;
    }

    /// The command runs.
    pub(super) fn started(
        &mut self,
        started: Started,
        pidfd: OwnedFd,
        terminal: impl IntoIterator<Item = OwnedFd>,
        listener: Option<OwnedFd>,
    ) {
        self.output.extend(terminal);
        self.start = Start::Running(Box::new(Running {
            started,
            pidfd,
            listener,
        }));
    }

    /// The command cannot be handed over, so that it ran was never true; its failure is told when it is gone.
    pub(super) fn unstart(&mut self) {
        self.start = Start::Pending;
        self.drop_descriptors();
    }

    /// It was not started. The first word counts.
    pub(super) fn fail(&mut self, failure: Failure) {
        if matches!(self.start, Start::Pending) {
            self.start = Start::Failed(failure);
            self.drop_descriptors();
        }
    }

    /// The command ended. The first word counts.
    pub(super) fn exited(&mut self, status: i32) {
        let runs = matches!(self.start, Start::Running(_));
        if runs && self.status.is_none() && self.end.is_none() {
            self.status = Some(status);
        }
    }

    /// Nothing of it lives. The first word counts.
    pub(super) fn ended(&mut self, end: TreeEnd) {
        if self.end.is_none() {
            self.end = Some(end);
        }
    }

    /// The pidfd of its command, once that runs.
    pub(super) fn pidfd(&self) -> Option<&OwnedFd> {
        match &self.start {
            Start::Running(running) => Some(&running.pidfd),
            _ => None,
        }
    }

    /// Closes descriptors that nobody is to get any more.
    pub(super) fn release(&mut self, what: Kept) {
        match (what, &mut self.start) {
            (Kept::Stdin, _) => self.stdin = None,
            (Kept::Output, _) => self.output.clear(),
            (Kept::Ready, _) => (self.ready, self.ready_sender) = (None, None),
            (Kept::Listener, Start::Running(running)) => running.listener = None,
            (Kept::Listener, _) => {}
        }
    }

    /// Its supervisor has them; nobody else will ask.
    pub(super) fn release_all(&mut self) {
        for what in [Kept::Stdin, Kept::Output, Kept::Listener, Kept::Ready] {
            self.release(what);
        }
        self.report = None;
    }

    fn drop_descriptors(&mut self) {
        self.stdin = None;
        self.output.clear();
        self.report = None;
        self.release(Kept::Ready);
    }

    /// Another connection: it was told nothing.
    pub(super) fn tell_anew(&mut self) {
        self.told = Told::default();
    }

    /// Everything there will ever be to tell was told.
    pub(super) fn is_told(&self) -> bool {
        match self.start {
            Start::Pending => false,
            Start::Failed(_) => self.told.start,
            Start::Running(_) => self.told.end,
        }
    }

    /// What is to be told next; nothing while nothing new is known.
    pub(super) fn news(&self, process: Uuid) -> Option<News> {
        if !self.told.process {
            return Some(self.all(process));
        }
        let (notice, fds, after) = match &self.start {
            Start::Pending => return None,
            Start::Failed((step, errno, detail)) if !self.told.start => {
                let notice = Notice::Failed {
                    process,
                    step: *step,
                    errno: *errno,
                    detail: *detail,
                };
                (
                    notice,
                    Vec::new(),
                    Told {
                        start: true,
                        ..self.told
                    },
                )
            }
            Start::Running(running) if !self.told.start => {
                let started = self.now(running);
                let after = Told {
                    start: true,
                    ..self.told
                };
                (Notice::Started(started), self.fds(running), after)
            }
            _ => match (self.status, self.end) {
                (Some(status), _) if !self.told.status => {
                    let after = Told {
                        status: true,
                        ..self.told
                    };
                    (Notice::Exited { process, status }, Vec::new(), after)
                }
                (_, Some(end)) if !self.told.end => {
                    let notice = Notice::Ended {
                        process,
                        killed: end.killed,
                        usage: end.usage,
                        hits: end.hits,
                    };
                    (
                        notice,
                        Vec::new(),
                        Told {
                            end: true,
                            ..self.told
                        },
                    )
                }
                _ => return None,
            },
        };
        Some(News { notice, fds, after })
    }

    /// Those news were told.
    pub(super) fn told(&mut self, news: &News) {
        self.told = news.after;
        if self.told.end {
            // Nobody is left whose calls could wait for it; but a file that the command made keeps its Landlock domain, and the
            // kernel says what it counted of that when it goes.
            self.release(Kept::Listener);
        }
    }

    fn all(&self, process: Uuid) -> News {
        let (state, fds) = match &self.start {
            Start::Pending => (HeldState::Starting, Vec::new()),
            Start::Failed((step, errno, detail)) => {
                let state = HeldState::Failed {
                    step: *step,
                    errno: *errno,
                    detail: *detail,
                };
                (state, Vec::new())
            }
            Start::Running(running) => {
                let state = HeldState::Started(HeldTree {
                    started: self.now(running),
                    output: !self.output.is_empty(),
                    exited: self.status,
                    end: self.end,
                });
                (state, self.fds(running))
            }
        };
        News {
            notice: Notice::Held(Held { process, state }),
            fds,
            after: Told {
                process: true,
                start: !matches!(self.start, Start::Pending),
                status: self.status.is_some(),
                end: self.end.is_some(),
            },
        }
    }

    /// Who runs, with the descriptors that there are now.
    fn now(&self, running: &Running) -> Started {
        Started {
            relay: running.started.relay && !self.output.is_empty(),
            stdin_pipe: self.stdin.is_some(),
            listener: running.listener.is_some(),
            extras: Extras {
                report: self.report.is_some(),
                ready: match (&self.ready, &self.ready_sender) {
                    (None, _) => ReadyBy::Nothing,
                    (Some(_), None) => ReadyBy::Fd,
                    (Some(_), Some(_)) => ReadyBy::Notify,
                },
            },
            ..running.started
        }
    }

    fn fds(&self, running: &Running) -> Vec<RawFd> {
        let extras = self.report.iter().chain(&self.ready).chain(&self.ready_sender);
        let others = self.stdin.iter().chain(&running.listener).chain(extras);
        let all = std::iter::once(&running.pidfd).chain(&self.output).chain(others);
        all.map(AsRawFd::as_raw_fd).collect()
    }

    /// Its command ended, or its tree.
    pub(super) fn has_ended_somehow(&self) -> bool {
        self.status.is_some() || self.end.is_some()
    }

    /// What is to be written down of it, if it has ended in any way.
    pub(super) fn exit_record(&self, process: Uuid) -> Option<ExitRecord> {
        self.has_ended_somehow().then_some(ExitRecord {
            process,
            status: self.status,
            end: self.end,
        })
    }
}
