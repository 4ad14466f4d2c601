//! The seccomp listener: which calls reached it, what they want, and what the answer is.
//!
//! The filter lets through what registers alone show to be harmless and sends everything else here. A
//! [`Listener`] hands out one [`Notification`] after another; the process's [`Decider`] says what to answer
//! and what to record.
//!
//! The target is hostile, runs on in other threads while we decide, and knows this code. Therefore:
//!
//! - Arguments in memory are copied once; what was copied is what is judged and what is performed.
//! - A descriptor is duplicated once; its family, type and protocol are asked of the duplicate, and the
//!   call is performed on the duplicate. The target may meanwhile put another file under the same number.
//! - [`Response::Continue`] lets the target's own call run on whatever its arguments say *by then*. It is
//!   given only where something else holds the line (Landlock, a namespace) or where nothing is forbidden.
//! - What was looked up by a thread's number counts only after [`Listener::is_valid`] said that the call
//!   still waits: else the number may belong to somebody else.
//! - Nothing that may block runs inside [`Decider::decide`]; see [`BlockingConnect`].

mod address;
mod ask;
mod attributes;
mod connect;
mod diag;
mod dns;
mod errands;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod listener;
mod memory;
mod metadata;
mod names;
mod opening;
mod paths;
mod ready;
mod receive;
mod relay;
mod slots;
mod socket;
mod stand_in;
mod syscall;
mod transfer;
mod tree;
mod unix;
mod walk;
mod watch;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::errno::Errno;

use crate::compile::access::AccessMap;
use crate::denial::{Certainty, Decision, Denial, DenialClass, DenialTarget, errno_name};
use crate::policy::{AskPolicy, NetPolicy};
use crate::syscalls::{self, Entry, Handling};

pub use ask::{Grant, Grants, Question};
pub use connect::{BlockingConnect, Canceller};
pub(crate) use errands::Errands;
pub(crate) use listener::descriptor_of_thread;
pub use listener::{Listener, Notification, Received, Response};
pub use names::{AskName, HeldName, Report, look_up};
pub use opening::HeldOpen;
pub use slots::{KeepsCalls, Place, SLOT_BYTES, Slots, decode as decode_slot, encode as encode_slot};
pub use tree::Tree;

/// What a [`Decider`] decides by.
#[derive(Debug)]
pub struct DeciderSetup {
    /// Sockets and addresses.
    pub net: NetPolicy,
    /// Present where opens and directory changes are notified, to be observed: what the policy says about
    /// files. Landlock enforces it.
    pub access: Option<AccessMap>,
    /// What the policy says about files, for changes of their metadata, which nothing else holds.
    pub metadata: AccessMap,
    /// Calls that the policy refuses by name, with its words.
    pub refused: BTreeMap<u32, String>,
    /// Denied paths that an empty mount covers: nothing can be looked up below them.
    pub masked: Vec<PathBuf>,
    /// Opens for reading are judged too.
    pub observe_reads: bool,
    /// The processes whose unix sockets may be reached, and who may be named by a pid.
    pub tree: Tree,
    /// Landlock refuses every TCP bind and connect that the target performs itself. No decision depends on it:
    /// without it a race gains the target a bound port, on which it still cannot listen.
    pub tcp_confined_by_landlock: bool,
    /// What is asked about instead of refused.
    pub ask: AskPolicy,
    /// What a program gets to say that it is ready, where it was asked to.
    pub ready: Option<OwnedFd>,
    /// What was allowed already when it was asked about: for this process, and for all that share the answer.
    pub grants: Vec<Grants>,
}

/// Decides about one process's notifications.
#[derive(Debug)]
pub struct Decider {
    setup: DeciderSetup,
    net_rule: String,
    own_sockets: unix::OwnSockets,
    /// The root of the file system, once it is known. It is every task's: nothing under the filter can change it.
    root: OnceLock<Arc<paths::Root>>,
    /// Present where names are resolved.
    names: Option<Arc<names::Names>>,
    /// The call may have been performed before.
    again: bool,
}

/// What to do about one notification.
#[derive(Debug)]
pub struct Decided {
    /// What to tell the target.
    pub answer: Answer,
    /// What to record, if anything.
    pub observation: Option<Observation>,
}

/// What to tell the target, and when.
#[derive(Debug)]
pub enum Answer {
    /// At once.
    Now(Response),
    /// When this has run, on a thread of its own.
    Blocking(BlockingConnect),
    /// With the descriptor that this opens, on a thread of its own.
    Open(HeldOpen),
    /// When somebody has answered.
    Ask(Box<Question>),
    /// To nobody's call: those who asked for a name are answered when this has run, on a thread of its own.
    Name(HeldName),
}

/// What a notification shows.
#[expect(clippy::large_enum_variant, reason = "made once per refusal and handed on")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// An attempt was refused.
    Denial(Denial),
    /// A feature probe of the kind every harmless program makes: its name, to be counted.
    Probe(String),
}

/// A notification, with the means to ask about it again.
#[derive(Clone, Copy)]
struct Call<'a> {
    listener: &'a Listener,
    notification: &'a Notification,
    /// The system call's name.
    name: &'static str,
}

/// Why an argument cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unavailable {
    /// The program's own mistake, with the kernel's answer to it.
    Errno(Errno),
    /// We may not look at the target.
    Forbidden,
}

/// Questions about names that have not been answered yet. Nothing comes after them once the programs are gone.
#[derive(Debug)]
pub struct OutstandingNames(Option<Arc<names::Names>>);

impl OutstandingNames {
    /// Whether there are none.
    pub fn is_over(&self) -> bool {
        self.0.as_ref().is_none_or(|names| names.is_over())
    }

    /// Blocks until there are none, for at most the given time, and says whether there are none.
    pub fn wait(&self, patience: Duration) -> bool {
        self.0.as_ref().is_none_or(|names| names.finish(patience))
    }
}

impl Decider {
    /// A decider for one process.
    pub fn new(setup: DeciderSetup) -> Self {
        let net_rule = match setup.ask.net {
            true => "net = ask: not allowed".to_owned(),
            false => setup.net.ground_rule(),
        };
        Self {
            setup,
            net_rule,
            own_sockets: unix::OwnSockets::default(),
            root: OnceLock::new(),
            names: None,
            again: false,
        }
    }

    /// Answers questions about names, where destinations are refused. Refused ones are told to `report`; where the
    /// policy says so it is asked about them first. Without this no name is resolved and no address of one reached.
    #[must_use]
    pub fn resolving(mut self, report: Report, ask: AskName) -> Self {
        let net = &self.setup.net;
        self.names = net.resolves_names().then(|| {
            let ask = self.setup.ask.net.then_some(ask);
            names::Names::new(
                net.clone(),
                self.net_rule.clone(),
                report,
                ask,
                self.setup.grants.clone(),
            )
        });
        self
    }

    /// The questions about names that may be outstanding when the last program is gone.
    pub fn outstanding_names(&self) -> OutstandingNames {
        OutstandingNames(self.names.clone())
    }

    /// Decides about one notification. Never blocks on what the target controls, and never panics.
    ///
    /// Some calls are performed here, on behalf of the target; the answer then carries their result.
    pub fn decide(&mut self, listener: &Listener, notification: &Notification) -> Decided {
        let n = notification;
        if let Some(abi) = syscalls::is_foreign_abi(n.arch, n.number) {
            return self.foreign(listener, n, abi);
        }
        let Some(name) = syscalls::name(n.number) else {
            return Decided::probe(Errno::ENOSYS, format!("syscall_{}", n.number));
        };
        let call = Call {
            listener,
            notification,
            name,
        };
        if let Some(rule) = self.setup.refused.get(&n.number) {
            return call.refuse_syscall(Errno::EPERM, name, rule);
        }
        let Some(entry) = syscalls::entry(n.number) else {
            // The filter asks about no such call. Whoever makes it do so gets a refusal.
            return call.refuse_syscall(Errno::EPERM, name, "not a call that the filter asks about");
        };
        self.handle(call, entry)
    }

    /// The same for a call that somebody received before, who can have performed it and cannot have answered it: what it
    /// finds done already is what it wanted.
    pub fn decide_again(&mut self, listener: &Listener, notification: &Notification) -> Decided {
        self.again = true;
        let mut decided = self.decide(listener, notification);
        self.again = false;
        match &mut decided.answer {
            Answer::Blocking(connect) => connect.again(),
            Answer::Ask(question) => question.again(),
            Answer::Now(_) | Answer::Open(_) | Answer::Name(_) => {}
        }
        decided
    }

    fn handle(&mut self, call: Call<'_>, entry: &Entry) -> Decided {
        match entry.handling {
            Handling::Refuse { errno } => {
                call.refuse_syscall(Errno::from_raw(errno), entry.name, entry.reason)
            }
            Handling::Probe { errno } => Decided::probe(Errno::from_raw(errno), entry.name.to_owned()),
            Handling::Ioctl => call.refuse_ioctl(entry),
            Handling::PidArgument { .. } => self.pid_argument(call, entry),
            Handling::Socket => self.socket(call),
            Handling::Socketpair => self.socketpair(call),
            Handling::Connect => self.connect(call),
            Handling::Bind => self.bind(call),
            Handling::Listen => self.listen(call),
            Handling::Send => self.send(call),
            Handling::Receive => self.receive(call),
            Handling::SetSockOpt => self.set_socket_option(call, entry),
            Handling::SocketName => self.name_of_stand_in(call),
            Handling::Open => self.open(call),
            Handling::Metadata => self.metadata(call),
            Handling::Watch => self.watch(call),
            Handling::DirectoryChange => self.directory_change(call, entry),
        }
    }
}

impl Decided {
    fn now(response: Response) -> Self {
        Self {
            answer: Answer::Now(response),
            observation: None,
        }
    }

    /// The error that the kernel itself would give, or that follows from the target's own mistake.
    fn error(errno: Errno) -> Self {
        Self::now(Response::Errno(errno as i32))
    }

    /// The result of a call that was performed on behalf of the target.
    fn performed(result: Result<(), Errno>) -> Self {
        Self::now(connect::response(result))
    }

    fn probe(errno: Errno, name: String) -> Self {
        Self {
            answer: Answer::Now(Response::Errno(errno as i32)),
            observation: Some(Observation::Probe(name)),
        }
    }

    /// Refused with this error unless somebody allows it.
    fn ask(question: Question) -> Self {
        Self {
            answer: Answer::Ask(Box::new(question)),
            observation: None,
        }
    }

    const CONTINUE: Self = Self {
        answer: Answer::Now(Response::Continue),
        observation: None,
    };
}

impl Decider {
    /// The file system as the calling task sees it.
    fn view(&self, call: Call<'_>) -> Result<paths::View, Errno> {
        if let Some(root) = self.root.get() {
            return Ok(paths::View::within(call.tid(), root.clone()));
        }
        let view = paths::View::open(call.tid())?;
        // Else it may be the root of somebody who was given that number.
        if call.is_valid() {
            let _ = self.root.set(view.root());
        }
        Ok(view)
    }

    /// Whether this was allowed before, when it was asked about.
    fn is_granted(&self, grant: &Grant) -> bool {
        self.setup.grants.iter().any(|grants| grants.covers(grant))
    }
}

impl Call<'_> {
    fn tid(&self) -> i32 {
        self.notification.pid
    }

    fn arg(&self, index: usize) -> u64 {
        self.notification.args[index]
    }

    /// An argument that the kernel takes as an `int`: the upper half of the register means nothing.
    fn int(&self, index: usize) -> i32 {
        self.arg(index) as i32
    }

    fn is_valid(&self) -> bool {
        self.listener.is_valid(self.notification.id)
    }

    /// Refuses, and records it.
    fn deny(
        &self,
        class: DenialClass,
        errno: Errno,
        target: DenialTarget,
        rule: impl Into<String>,
    ) -> Decided {
        Decided {
            answer: Answer::Now(Response::Errno(errno as i32)),
            observation: Some(Observation::Denial(self.denial(
                class,
                self.name,
                errno,
                target,
                rule,
                Certainty::Observed,
            ))),
        }
    }

    /// Refuses a network call, and records it.
    fn deny_net(&self, errno: Errno, target: DenialTarget, rule: impl Into<String>) -> Decided {
        self.deny(DenialClass::Network, errno, target, rule)
    }

    fn fail(&self, unavailable: Unavailable) -> Decided {
        match unavailable {
            Unavailable::Errno(errno) => Decided::error(errno),
            Unavailable::Forbidden => self.deny_unreadable(),
        }
    }

    /// Refuses because the target cannot be looked into, so that nothing about the call is known.
    fn deny_unreadable(&self) -> Decided {
        if !self.is_valid() {
            return Decided::error(Errno::ESRCH);
        }
        self.deny_net(
            Errno::EACCES,
            DenialTarget::syscall(self.name),
            "target unreadable: its arguments cannot be judged",
        )
    }

    fn denial(
        &self,
        class: DenialClass,
        operation: &str,
        errno: Errno,
        target: DenialTarget,
        rule: impl Into<String>,
        certainty: Certainty,
    ) -> Denial {
        Denial {
            class,
            operation: operation.to_owned(),
            target,
            pid: (self.tid() > 0).then_some(self.tid()),
            comm: self.comm(),
            rule: rule.into(),
            errno: errno_name(errno as i32),
            certainty,
            decision: Decision::Deny,
            allow: None,
        }
    }

    /// The thread's name, unless the thread died: its number may be another's by then.
    fn comm(&self) -> Option<String> {
        let mut comm = fs::read(format!("/proc/{}/comm", self.tid())).ok()?;
        if comm.last() == Some(&b'\n') {
            comm.pop();
        }
        self.is_valid()
            .then(|| String::from_utf8_lossy(&comm).into_owned())
    }
}

#[cfg(test)]
mod tests;
