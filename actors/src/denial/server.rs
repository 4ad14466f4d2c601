//! Serves one listener: every call that waits is decided, told, and answered.
//!
//! Usually on the runtime; a burst of calls on a thread of its own, which waits in the kernel. A call that may block runs on
//! another thread, and one that somebody is asked about on none; there are bounds on both, and past them the program is
//! told to try again, or refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use nix::poll::PollTimeout;
use provost_sandbox::compile::{PreparedSandbox, refused_syscalls};
use provost_sandbox::denial::{Certainty, Decision, Denial, DenialClass};
use provost_sandbox::observe::notify::{
    Answer, Decider, DeciderSetup, Notification, Observation, OutstandingNames, Question, Received,
    Report, Response, Tree,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::DenialArgs;
use super::blocking::{Blocking, give, on_a_thread};
use super::listener::SharedListener;
use super::witness::Witness;
use crate::approval::{ApprovalScope, Approvals, GrantRecord, Verdict, Waiting};
use crate::ledger::Fact;
use crate::proxy::Proxy;
use crate::spool::{Entry, ProcessSpool};
use crate::workers::Workers;

/// Notifications answered before other work of the runtime gets its turn.
const BATCH_MAX: usize = 64;
/// So many calls within this time are worth a thread of their own.
const BURST: u32 = 64;
const BURST_MAX: Duration = Duration::from_millis(20);
/// How long that thread waits for the next one.
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// How many such threads there may be. Who finds none free is served as everybody else.
static CLOSE: Semaphore = Semaphore::const_new(16);
/// What the server of the listener is told.
pub(crate) enum Answered {
    One {
        approval: u64,
        verdict: Verdict,
        by: String,
        reply: oneshot::Sender<bool>,
    },
    RefuseWaiting,
    RefusePending,
    /// A name is to be asked about; the program waits for an answer to its message.
    Name(Box<Question>),
}

/// How far a look at the listener came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// There may be more.
    Batch,
    /// More may come.
    AllThereWere,
    /// Nothing will come any more.
    Last,
}

pub(super) struct Server {
    decider: Decider,
    /// Calls taken in all, and since when how many of them.
    taken: u64,
    burst: u32,
    burst_began: Instant,
    pub(super) approvals: Approvals,
    /// Where the audit feed tells of file accesses, only what mounts refuse is taken from here.
    only_under: Option<Vec<PathBuf>>,
    /// What mounts hold read-only.
    read_only: Vec<PathBuf>,
    witness: Witness,
    spool: Option<Arc<ProcessSpool>>,
    blocking: Blocking,
    workers: Workers,
    /// A call may have been received before the next one, of which nobody knows.
    pub(super) unsure: bool,
}

impl Server {
    /// The server, and the process's proxy where it has one.
    ///
    /// # Errors
    /// The proxy cannot be watched.
    pub(super) fn new(
        args: &mut DenialArgs,
        answers: mpsc::UnboundedSender<Answered>,
    ) -> std::io::Result<(Self, Option<Proxy>)> {
        let sandbox = &args.sandbox;
        let approvals = Approvals::new(args.ask_timeout, args.session_grants.clone());
        let mut setup = setup(sandbox, args.init_pid, args.pid_namespace);
        setup.grants = approvals.grants();
        setup.ready = args.ready.take();
        let witness = Witness::new(args.process.clone(), args.spool.clone());
        let proxy = match args.proxy.take() {
            Some(port) => {
                let net = std::mem::replace(&mut setup.net, port.direct(&sandbox.policy.net));
                Some(Proxy::serve(port, net, refusals(witness.clone()))?)
            }
            None => None,
        };
        let server = Self {
            decider: Decider::new(setup).resolving(
                reporter(witness.clone()),
                Box::new(move |question| {
                    let sent = answers.send(Answered::Name(question));
                    sent.map_err(|unsent| match unsent.0 {
                        Answered::Name(question) => question,
                        Answered::One { .. } | Answered::RefuseWaiting | Answered::RefusePending => {
                            unreachable!("a name was sent")
                        }
                    })
                }),
            ),
            approvals,
            taken: 0,
            burst: 0,
            burst_began: Instant::now(),
            only_under: sandbox.uses_audit().then(|| sandbox.held_by_mount.clone()),
            read_only: read_only(sandbox),
            witness,
            spool: args.spool.clone(),
            blocking: Blocking::default(),
            workers: Workers::default(),
            unsure: false,
        };
        Ok((server, proxy))
    }

    /// The names that were asked for and are not settled.
    pub(super) fn outstanding_names(&self) -> OutstandingNames {
        self.decider.outstanding_names()
    }

    /// Answers until the listener hangs up.
    pub(super) async fn serve(
        mut self,
        mut listener: AsyncFd<SharedListener>,
        mut answered: mpsc::UnboundedReceiver<Answered>,
    ) {
        loop {
            let deadline = self.approvals.next_deadline();
            let taken = tokio::select! {
                ready = listener.readable() => match ready {
                    Ok(mut ready) => {
                        let taken = self.take_calls(listener.get_ref(), PollTimeout::ZERO).await;
                        if taken == Taken::AllThereWere {
                            ready.clear_ready();
                        }
                        taken
                    }
                    Err(_) => Taken::Last,
                },
                Some(answer) = answered.recv() => {
                    self.take_answer(listener.get_ref(), answer).await;
                    Taken::AllThereWere
                }
                () = sleep_until(deadline) => {
                    while let Some((approval, waiting)) = self.approvals.take_expired(Instant::now()) {
                        self.refuse(listener.get_ref(), approval, waiting, "deadline").await;
                    }
                    Taken::AllThereWere
                }
            };
            match taken {
                Taken::Last => break,
                Taken::Batch => tokio::task::yield_now().await,
                Taken::AllThereWere => {}
            }
            if self.is_busy()
                && let Ok(thread) = CLOSE.try_acquire()
            {
                // Not watched meanwhile: every call would wake the runtime, too.
                let shared = listener.into_inner();
                let closely = move || {
                    let server = self.serve_closely(&shared, &answered);
                    drop(thread);
                    (server, shared, answered)
                };
                // The runtime shuts down, or no descriptor is left to watch with.
                let Ok(back) = tokio::task::spawn_blocking(closely).await else {
                    return;
                };
                let shared;
                (self, shared, answered) = back;
                listener = match crate::readiness::watch(shared, Interest::READABLE) {
                    Ok(listener) => listener,
                    Err(error) => {
                        tracing::error!(%error, "cannot watch a listener any more");
                        return;
                    }
                };
            }
        }
        answered.close();
        // What was said before the end counts, though the end was seen first.
        let mut by = "ended";
        while let Ok(late) = answered.try_recv() {
            if matches!(late, Answered::RefuseWaiting) {
                by = "stopped";
            }
            if let Answered::Name(question) = late {
                let (answer, denial) = question.refuse();
                self.say(Observation::Denial(denial), None).await;
                drop(answer);
            }
        }
        while let Some((approval, waiting)) = self.approvals.take_last_ones() {
            self.say_decided(approval, &waiting.question, Verdict::Deny, by)
                .await;
        }
    }

    /// Many calls came in a short time, and nobody is being asked.
    fn is_busy(&mut self) -> bool {
        if self.burst < BURST || self.approvals.next_deadline().is_some() {
            return false;
        }
        self.burst = 0;
        self.burst_began.elapsed() < BURST_MAX
    }

    /// Serves on a thread of its own while calls come close upon each other: there the answer takes a third of the time,
    /// because the thread waits in the kernel for the call itself. Goes back when there is a pause, somebody is to be
    /// asked, or something is said to us.
    fn serve_closely(
        mut self,
        listener: &SharedListener,
        answered: &mpsc::UnboundedReceiver<Answered>,
    ) -> Self {
        let runtime = tokio::runtime::Handle::current();
        let pause = PollTimeout::try_from(PAUSE_MAX).unwrap_or(PollTimeout::ZERO);
        while self.approvals.next_deadline().is_none() && answered.is_empty() {
            let before = self.taken;
            let taken = runtime.block_on(self.take_calls(listener, pause));
            // Nothing came; or nothing will, which the other loop finds out as well.
            if taken == Taken::Last || self.taken == before {
                break;
            }
        }
        self.burst = 0;
        self
    }

    /// Takes what waits now, or comes in this time, and what comes close after it.
    async fn take_calls(&mut self, listener: &SharedListener, wait: PollTimeout) -> Taken {
        // In batches, that other work of the runtime gets its turn, and answers are heard.
        for _ in 0..BATCH_MAX {
            match listener.receive_within(wait) {
                Ok(Received::Notification(notification)) => {
                    self.count();
                    if self.unsure {
                        self.interrupt_before(listener, notification.id).await;
                    }
                    self.take_call(listener, &notification, false).await;
                }
                Ok(Received::Empty) => return Taken::AllThereWere,
                Ok(Received::HungUp) => return Taken::Last,
                Err(error) => {
                    tracing::warn!(%error, "cannot read a seccomp notification");
                    return Taken::Last;
                }
            }
        }
        Taken::Batch
    }

    /// Decides about a call, perhaps one that somebody had received before.
    pub(super) async fn take_call(
        &mut self,
        listener: &SharedListener,
        call: &Notification,
        again: bool,
    ) {
        let decided = match again {
            false => self.decider.decide(listener.raw(), call),
            true => self.decider.decide_again(listener.raw(), call),
        };
        // Said before it is answered: the fact precedes whatever the program does next.
        if let Some(observation) = decided.observation
            && !self.is_told_by_audit(&observation)
        {
            self.say(observation, answer_now(Some(call.id), &decided.answer))
                .await;
        }
        match decided.answer {
            Answer::Ask(question) => self.ask(listener, Some(call.id), question).await,
            answer => self.answer(listener, Some(call.id), answer),
        }
    }

    fn count(&mut self) {
        self.taken += 1;
        if self.burst == 0 {
            self.burst_began = Instant::now();
        }
        self.burst += 1;
    }

    async fn ask(&mut self, listener: &SharedListener, call: Option<u64>, question: Box<Question>) {
        let attempt = Box::new(question.denial().clone());
        match self.approvals.ask(call, question) {
            Ok(approval) => {
                let deadline = Timestamp::now()
                    .checked_add(self.approvals.timeout())
                    .unwrap_or(Timestamp::MAX);
                let asked = Fact::ApprovalRequested {
                    approval,
                    attempt,
                    deadline,
                };
                self.tell(asked, None).await;
            }
            Err((question, why)) => {
                let (answer, mut denial) = question.refuse();
                denial.rule = format!("{}; nobody was asked: {why}", denial.rule);
                self.say(Observation::Denial(denial), answer_now(call, &answer))
                    .await;
                self.answer(listener, call, answer);
            }
        }
    }

    async fn take_answer(&mut self, listener: &SharedListener, answered: Answered) {
        match answered {
            Answered::One {
                approval,
                verdict,
                by,
                reply,
            } => {
                let Some(waiting) = self.approvals.take(approval) else {
                    let _ = reply.send(false);
                    return;
                };
                if let Some(call) = waiting.call.filter(|call| !listener.is_valid(*call)) {
                    // Whoever asked is gone: nothing is performed for it.
                    listener.forget(call);
                    self.say_decided(approval, &waiting.question, Verdict::Deny, "ended")
                        .await;
                    let _ = reply.send(false);
                    return;
                }
                match verdict {
                    Verdict::Deny => self.refuse(listener, approval, waiting, &by).await,
                    Verdict::Allow(scope) => {
                        self.remember(&waiting.question, scope);
                        self.permit(listener, approval, waiting, scope, &by).await;
                        // The same may have been asked more than once before the answer came.
                        while let Some((approval, waiting)) = self.approvals.take_granted() {
                            self.permit(listener, approval, waiting, scope, &by).await;
                        }
                    }
                }
                let _ = reply.send(true);
            }
            Answered::Name(question) => self.ask(listener, None, question).await,
            Answered::RefusePending => {
                while let Some((approval, waiting)) = self.approvals.take_first() {
                    self.refuse(listener, approval, waiting, "detached").await;
                }
            }
            Answered::RefuseWaiting => {
                while let Some((approval, waiting)) = self.approvals.take_last_ones() {
                    self.refuse(listener, approval, waiting, "stopped").await;
                }
            }
        }
    }

    /// What is allowed is so before anybody hears of it.
    fn remember(&self, question: &Question, scope: ApprovalScope) {
        let grant = question.grant().clone();
        if let Some(spool) = &self.spool
            && scope != ApprovalScope::Once
        {
            // Where that is forgotten, it is asked about again.
            let _ = spool.write(Timestamp::now(), &Entry::Granted(scope, grant.clone()));
        }
        self.approvals.add(scope, grant);
    }

    async fn permit(
        &self,
        listener: &SharedListener,
        approval: u64,
        waiting: Waiting,
        scope: ApprovalScope,
        by: &str,
    ) {
        let verdict = Verdict::Allow(scope);
        self.say_decided(approval, &waiting.question, verdict, by).await;
        self.answer(listener, waiting.call, waiting.question.permit());
    }

    async fn refuse(&self, listener: &SharedListener, approval: u64, waiting: Waiting, by: &str) {
        self.say_decided(approval, &waiting.question, Verdict::Deny, by)
            .await;
        let (answer, denial) = waiting.question.refuse();
        self.say(Observation::Denial(denial), answer_now(waiting.call, &answer))
            .await;
        self.answer(listener, waiting.call, answer);
    }

    async fn say_decided(&self, approval: u64, question: &Question, verdict: Verdict, by: &str) {
        let (decision, scope) = match verdict {
            Verdict::Allow(scope) => (Decision::Allow, scope),
            Verdict::Deny => (Decision::Deny, ApprovalScope::Once),
        };
        let denial = question.denial();
        let grant = Box::new(GrantRecord {
            approval,
            scope,
            operation: denial.operation.clone(),
            target: denial.target.clone(),
            by: by.to_owned(),
        });
        self.tell(Fact::ApprovalDecided { grant, decision }, None).await;
    }

    async fn say(&self, observation: Observation, answered: Option<(u64, Response)>) {
        let fact = match observation {
            Observation::Denial(denial) => Fact::Denied(self.as_the_program_saw_it(denial)),
            Observation::Probe(name) => Fact::Probed(name),
        };
        self.tell(fact, answered).await;
    }

    pub(super) async fn tell(&self, fact: Fact, answered: Option<(u64, Response)>) {
        self.witness.tell(fact, answered).await;
    }

    /// What a read-only mount refuses is refused with another error than Landlock's.
    fn as_the_program_saw_it(&self, mut denial: Denial) -> Denial {
        let path = denial.target.path.as_deref().map(Path::new);
        if denial.certainty == Certainty::Inferred
            && path.is_some_and(|path| self.read_only.iter().any(|root| path.starts_with(root)))
        {
            denial.errno = "EROFS".to_owned();
        }
        denial
    }

    fn is_told_by_audit(&self, observation: &Observation) -> bool {
        let (Some(held), Observation::Denial(denial)) = (&self.only_under, observation) else {
            return false;
        };
        let path = denial.target.path.as_deref().map(Path::new);
        // What was refused here, no audit record tells of.
        denial.class == DenialClass::Filesystem
            && denial.certainty == Certainty::Inferred
            && !path.is_some_and(|path| held.iter().any(|root| path.starts_with(root)))
    }

    pub(super) fn respond(&self, listener: &SharedListener, id: u64, response: Response) {
        if let Err(error) = listener.respond(id, response) {
            tracing::warn!(%error, "cannot answer a seccomp notification");
        }
    }

    /// Answers a call, or, without one, a message.
    fn answer(&self, listener: &SharedListener, call: Option<u64>, answer: Answer) {
        let Some(id) = call else {
            if let Answer::Name(name) = answer {
                // Where there is no thread it is answered that there is no such name.
                let _ = on_a_thread("provost-names", move || name.run());
            }
            return;
        };
        let respond = |response| self.respond(listener, id, response);
        match answer {
            Answer::Now(response) => respond(response),
            Answer::Blocking(connect) => {
                let canceller = connect.canceller().ok();
                let slot = canceller.and_then(|canceller| self.blocking.take(id, Some(canceller)));
                let late = listener.clone();
                let started = slot.is_some_and(|slot| {
                    self.workers.run(Box::new(move || {
                        let response = connect.run(late.raw());
                        let _ = late.respond(id, response);
                        drop(slot);
                    }))
                });
                if !started {
                    respond(Response::Errno(nix::libc::EAGAIN));
                }
            }
            Answer::Open(open) => {
                let late = listener.clone();
                let started = self.blocking.take(id, None).and_then(|slot| {
                    on_a_thread("provost-open", move || {
                        give(&late, id, open);
                        drop(slot);
                    })
                });
                if started.is_none() {
                    respond(Response::Errno(nix::libc::EAGAIN));
                }
            }
            // Asked about before it comes here, and of no call; refused, should that ever be otherwise.
            Answer::Ask(_) | Answer::Name(_) => respond(Response::Errno(nix::libc::EACCES)),
        }
    }
}

/// How a call is answered, if it is now.
fn answer_now(call: Option<u64>, answer: &Answer) -> Option<(u64, Response)> {
    match (call, answer) {
        (Some(call), Answer::Now(response)) => Some((call, *response)),
        _ => None,
    }
}

fn setup(sandbox: &PreparedSandbox, init_pid: i32, pid_namespace: u64) -> DeciderSetup {
    use provost_sandbox::compile::seccomp::OpenObservation;
    use provost_sandbox::report::Containment;
    let namespaced = sandbox.report.containment == Containment::PidNamespace;
    DeciderSetup {
        net: sandbox.policy.net.clone(),
        access: (sandbox.opens != OpenObservation::None).then(|| sandbox.access.clone()),
        metadata: sandbox.access.clone(),
        refused: refused_syscalls(&sandbox.policy),
        masked: sandbox.masked.clone(),
        observe_reads: sandbox.opens == OpenObservation::All,
        tree: Tree {
            init: init_pid,
            // Where there is one but its number is not known, nobody belongs to it.
            pid_namespace: namespaced.then_some(pid_namespace),
        },
        tcp_confined_by_landlock: sandbox.tcp_confined_by_landlock,
        ask: sandbox.policy.ask,
        ready: None,
        grants: Vec::new(),
    }
}

/// What takes the refusals of names, on the resolver's own threads, which wait where the ledger is slower.
fn reporter(witness: Witness) -> Report {
    let runtime = tokio::runtime::Handle::current();
    Box::new(move |denial| witness.tell_blocking(&runtime, Fact::Denied(denial)))
}

/// The same for the proxy, which waits for it.
fn refusals(witness: Witness) -> crate::proxy::Report {
    Arc::new(move |denial| {
        let witness = witness.clone();
        Box::pin(async move { witness.tell(Fact::Denied(denial), None).await })
    })
}

fn read_only(sandbox: &PreparedSandbox) -> Vec<PathBuf> {
    let held = sandbox.held_by_mount.iter();
    held.filter(|path| !sandbox.masked.contains(path))
        .cloned()
        .collect()
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
