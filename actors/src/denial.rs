//! DenialActor: the seccomp listener of one process.
//!
//! Every notified call is decided here and answered, and what was refused becomes a fact. When the last task
//! under the filter is gone the listener hangs up; then the audit feed, where there is one, is read up to a
//! fence, and the channel says its last fact. A connect that would block runs on a thread of its own; there is a
//! bound on these, and past it the program is told to try again.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use provost_sandbox::compile::PreparedSandbox;
use provost_sandbox::denial::{Certainty, Denial, DenialClass};
use provost_sandbox::observe::notify::{
    Answer, Canceller, Decider, DeciderSetup, Listener, Observation, Received, Report, Response, Tree,
};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::audit::AuditMsg;
use crate::ledger::Fact;
use crate::process::ProcessMsg;
use crate::spawner::lock;
use crate::workers::Workers;

/// Connects that may wait at the same time, per process.
const BLOCKING_MAX: usize = 64;
/// How long the channel may take to run dry once the tree is gone.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// Notifications answered before other work of the runtime gets its turn.
const BATCH_MAX: usize = 64;
/// Facts that may wait in the process's mailbox.
const IN_FLIGHT_MAX: usize = 1024;

pub(crate) struct DenialActor;

pub(crate) enum DenialMsg {
    /// Nothing of the tree lives: what was not heard by the deadline will not be.
    TreeEnded,
    /// The deadline has passed.
    DrainExpired,
    /// The listener has hung up.
    HungUp,
    /// Every audit record queued before the fence was delivered; some may have been lost.
    AuditDrained { complete: bool },
}

pub(crate) struct DenialArgs {
    pub(crate) process_id: Uuid,
    pub(crate) process: ActorRef<ProcessMsg>,
    pub(crate) sandbox: Arc<PreparedSandbox>,
    pub(crate) listener: Option<OwnedFd>,
    pub(crate) pid: i32,
    pub(crate) init_pid: i32,
    pub(crate) pid_namespace: u64,
    pub(crate) audit: Option<ActorRef<AuditMsg>>,
}

pub(crate) struct DenialState {
    process_id: Uuid,
    process: ActorRef<ProcessMsg>,
    audit: Option<ActorRef<AuditMsg>>,
    unobserved: Vec<String>,
    serve: Option<JoinHandle<()>>,
    said: bool,
}

impl Drop for DenialState {
    fn drop(&mut self) {
        if let Some(serve) = &self.serve {
            serve.abort();
        }
        if let Some(audit) = &self.audit {
            let _ = audit.send_message(AuditMsg::Unregister(self.process_id));
        }
    }
}

impl Actor for DenialActor {
    type Msg = DenialMsg;
    type State = DenialState;
    type Arguments = DenialArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<DenialMsg>,
        args: DenialArgs,
    ) -> Result<DenialState, ActorProcessingErr> {
        if let Some(audit) = &args.audit {
            let _ = audit.send_message(AuditMsg::Register {
                process_id: args.process_id,
                pid: args.pid,
                process: args.process.clone(),
                sandbox: args.sandbox.clone(),
            });
        }
        let sandbox = &args.sandbox;
        let mut state = DenialState {
            process_id: args.process_id,
            process: args.process.clone(),
            audit: args.audit,
            unobserved: sandbox.unobserved.clone(),
            serve: None,
            said: false,
        };
        // Without a listener nothing tells when the last task is gone; the end of the tree will.
        if let Some(fd) = args.listener {
            let permits = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
            let server = Server {
                decider: Decider::new(setup(sandbox, args.init_pid, args.pid_namespace))
                    .resolving(reporter(args.process.clone(), permits.clone())),
                only_under: sandbox.uses_audit().then(|| sandbox.held_by_mount.clone()),
                read_only: read_only(sandbox),
                process: args.process,
                blocking: Blocking::default(),
                workers: Workers::default(),
                permits,
            };
            let listener = crate::readiness::watch(SharedListener::new(fd)?, Interest::READABLE)?;
            state.serve = Some(tokio::spawn(async move {
                let outstanding = server.decider.outstanding_names();
                server.serve(listener).await;
                let complete = match outstanding {
                    Some(wait) => tokio::task::spawn_blocking(move || wait(DRAIN_MAX))
                        .await
                        .unwrap_or(false),
                    None => true,
                };
                let _ = myself.send_message(if complete {
                    DenialMsg::HungUp
                } else {
                    DenialMsg::DrainExpired
                });
            }));
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<DenialMsg>,
        message: DenialMsg,
        state: &mut DenialState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            DenialMsg::TreeEnded => {
                if state.serve.is_none() {
                    state.ask_for_fence(&myself);
                }
                if !state.said {
                    myself.send_after(DRAIN_MAX, || DenialMsg::DrainExpired);
                }
            }
            DenialMsg::DrainExpired => state.drained(false),
            DenialMsg::HungUp => state.ask_for_fence(&myself),
            DenialMsg::AuditDrained { complete } => state.drained(complete),
        }
        Ok(())
    }
}

impl DenialState {
    fn ask_for_fence(&mut self, myself: &ActorRef<DenialMsg>) {
        let Some(audit) = &self.audit else {
            return self.drained(true);
        };
        let fence = AuditMsg::Fence {
            process_id: self.process_id,
            reply: myself.clone(),
        };
        if audit.send_message(fence).is_err() {
            self.drained(false);
        }
    }

    fn drained(&mut self, read_to_end: bool) {
        if std::mem::replace(&mut self.said, true) {
            return;
        }
        let mut unobserved = self.unobserved.clone();
        if !read_to_end {
            unobserved
                .push("details of some refusals (the channel was cut off or overflowed)".to_owned());
        }
        let last = Fact::DenialsDrained {
            complete: unobserved.is_empty(),
            unobserved,
        };
        let _ = self.process.send_message(ProcessMsg::Fact(last, None));
    }
}

fn setup(sandbox: &PreparedSandbox, init_pid: i32, pid_namespace: u64) -> DeciderSetup {
    use provost_sandbox::compile::seccomp::OpenObservation;
    use provost_sandbox::report::Containment;
    let namespaced = sandbox.report.containment == Containment::PidNamespace;
    DeciderSetup {
        net: sandbox.policy.net.clone(),
        policy_name: sandbox.policy.name.clone(),
        access: (sandbox.opens != OpenObservation::None).then(|| sandbox.access.clone()),
        masked: sandbox.masked.clone(),
        observe_reads: sandbox.opens == OpenObservation::All,
        tree: Tree {
            init: init_pid,
            // Where there is one but its number is not known, nobody belongs to it.
            pid_namespace: namespaced.then_some(pid_namespace),
        },
        tcp_confined_by_landlock: sandbox.tcp_confined_by_landlock,
    }
}

/// What takes the refusals of names, on the resolver's own threads, which wait where the ledger is slower.
fn reporter(process: ActorRef<ProcessMsg>, permits: Arc<Semaphore>) -> Report {
    let runtime = tokio::runtime::Handle::current();
    Box::new(move |denial| {
        let permit = runtime.block_on(permits.clone().acquire_owned()).ok();
        let _ = process.send_message(ProcessMsg::Fact(Fact::Denied(denial), permit));
    })
}

fn read_only(sandbox: &PreparedSandbox) -> Vec<PathBuf> {
    let held = sandbox.held_by_mount.iter();
    held.filter(|path| !sandbox.masked.contains(path))
        .cloned()
        .collect()
}

/// The listener, shared with threads that answer late.
#[derive(Clone)]
pub(crate) struct SharedListener(Arc<Listener>);

impl SharedListener {
    fn new(fd: OwnedFd) -> std::io::Result<Self> {
        Ok(Self(Arc::new(Listener::new(fd)?)))
    }
}

impl AsRawFd for SharedListener {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

struct Server {
    decider: Decider,
    /// Where the audit feed tells of file accesses, only what mounts refuse is taken from here.
    only_under: Option<Vec<PathBuf>>,
    /// What mounts hold read-only.
    read_only: Vec<PathBuf>,
    process: ActorRef<ProcessMsg>,
    blocking: Blocking,
    workers: Workers,
    permits: Arc<Semaphore>,
}

impl Server {
    /// Answers until the listener hangs up.
    async fn serve(mut self, listener: AsyncFd<SharedListener>) {
        loop {
            let Ok(mut ready) = listener.readable().await else {
                return;
            };
            let mut batch = 0;
            loop {
                match listener.get_ref().0.receive() {
                    Ok(Received::Notification(notification)) => {
                        let decided = self.decider.decide(&listener.get_ref().0, &notification);
                        // Said before it is answered: the fact precedes whatever the program does next.
                        if let Some(observation) = decided.observation {
                            self.say(observation).await;
                        }
                        self.answer(listener.get_ref(), notification.id, decided.answer);
                    }
                    Ok(Received::Empty) => {
                        ready.clear_ready();
                        break;
                    }
                    Ok(Received::HungUp) => return,
                    Err(error) => {
                        tracing::warn!(%error, "cannot read a seccomp notification");
                        return;
                    }
                }
                batch += 1;
                if batch == BATCH_MAX {
                    batch = 0;
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    async fn say(&self, observation: Observation) {
        if self.is_told_by_audit(&observation) {
            return;
        }
        // A program that is refused faster than the ledger counts waits for it.
        let permit = self.permits.clone().acquire_owned().await.ok();
        let fact = match observation {
            Observation::Denial(denial) => Fact::Denied(self.as_the_program_saw_it(denial)),
            Observation::Probe(name) => Fact::Probed(name),
        };
        let _ = self.process.send_message(ProcessMsg::Fact(fact, permit));
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
        denial.class == DenialClass::Filesystem
            && !path.is_some_and(|path| held.iter().any(|root| path.starts_with(root)))
    }

    fn answer(&self, listener: &SharedListener, id: u64, answer: Answer) {
        let respond = |response| {
            if let Err(error) = listener.0.respond(id, response) {
                tracing::warn!(%error, "cannot answer a seccomp notification");
            }
        };
        match answer {
            Answer::Now(response) => respond(response),
            Answer::Blocking(connect) => {
                let canceller = connect.canceller().ok();
                let slot = canceller.and_then(|canceller| self.blocking.take(id, canceller));
                let Some(slot) = slot else {
                    return respond(Response::Errno(nix::libc::EAGAIN));
                };
                let late = listener.clone();
                let started = self.workers.run(Box::new(move || {
                    let response = connect.run(&late.0);
                    let _ = late.0.respond(id, response);
                    drop(slot);
                }));
                if !started {
                    respond(Response::Errno(nix::libc::EAGAIN));
                }
            }
        }
    }
}

/// Connects that wait on threads. Dropping it ends them: they are shut down on a duplicate of their socket.
#[derive(Default)]
struct Blocking(Arc<Mutex<HashMap<u64, Canceller>>>);

/// One waiting connect's place.
struct Slot {
    id: u64,
    all: Arc<Mutex<HashMap<u64, Canceller>>>,
}

impl Blocking {
    fn take(&self, id: u64, canceller: Canceller) -> Option<Slot> {
        let mut all = lock(&self.0);
        if all.len() >= BLOCKING_MAX {
            return None;
        }
        all.insert(id, canceller);
        Some(Slot {
            id,
            all: self.0.clone(),
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.all).remove(&self.id);
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        for (_, canceller) in lock(&self.0).drain() {
            canceller.cancel();
        }
    }
}
