//! ProcessActor: one supervised process.
//!
//! Its mailbox is the one ordering point: what the child actors observed arrives there as facts, the ledger
//! numbers them, the log keeps them. This actor only performs the effects that the ledger asks for.
//!
//! ```text
//! ProcessActor ── Ledger (pure) ── Log
//! ├─ StreamActor ×2   stdout, stderr; one for a terminal
//! ├─ ExitActor        exit status, empty tree
//! └─ DenialActor      seccomp listener, audit fence
//! ```

mod begin;
mod ending;
mod extras;
mod limits;
mod message;
mod orders;
mod request;
mod resume;
#[cfg(test)]
mod survive;
mod unkept;

pub use self::message::ProcessCommand;
pub(crate) use self::message::{ProcessMsg, Timer};
pub(crate) use self::request::{ledger_spec, spawn_request};
pub(crate) use self::resume::Resumed;
pub use self::unkept::NEVER_STARTED;
pub(crate) use self::unkept::Unkept;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use provost_sandbox::compile::PreparedSandbox;
use provost_sandbox::keeper::Step;
use provost_sandbox::keeper::wire::Notice;
use provost_sandbox::observe::notify::Grants;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::extras::ReadySource;
use self::request::spawn_error;
use crate::audit::AuditMsg;
use crate::denial::DenialMsg;
use crate::event::{ProcessId, StreamName};
use crate::exit::ExitMsg;
use crate::ledger::{Effect, Fact, Ledger};
use crate::log::Log;
use crate::proxy::ProxyPort;
use crate::record::{Closed, TerminalRecord};
use crate::spawner::SpawnerLink;
use crate::spec::ProcessSpec;
use crate::spool::{Entry, ProcessSpool};
use crate::stdin::StdinPort;
use crate::stream::StreamMsg;

/// How long the kernel may take to end what was killed, before it is named in the record.
pub(crate) const KILL_MAX: Duration = Duration::from_secs(10);

/// How long a start may take: a file system may hang under the program or the working directory.
const START_MAX: Duration = Duration::from_secs(30);

pub(crate) struct ProcessActor;

pub(crate) struct ProcessArgs {
    pub(crate) id: ProcessId,
    pub(crate) spec: ProcessSpec,
    pub(crate) sandbox: Arc<PreparedSandbox>,
    pub(crate) link: Arc<SpawnerLink>,
    pub(crate) audit: Option<ActorRef<AuditMsg>>,
    pub(crate) log: Arc<Log>,
    pub(crate) stdin: Arc<StdinPort>,
    /// The session it belongs to, for the record.
    pub(crate) session: Option<String>,
    /// When it was accepted.
    pub(crate) queued_at: Timestamp,
    /// Where what is known of it is kept on disk, if it is.
    pub(crate) spool: Option<Arc<ProcessSpool>>,
    /// What was allowed to every process of the session.
    pub(crate) session_grants: Grants,
    /// Where its proxy will be, if it has one.
    pub(crate) proxy: Option<ProxyPort>,
    /// It was accepted by an earlier daemon.
    pub(crate) resumed: Option<Box<Resumed>>,
}

pub(crate) struct ProcessState {
    args: ProcessArgs,
    ledger: Ledger,
    streams: Vec<(StreamName, ActorRef<StreamMsg>)>,
    exit: Option<ActorRef<ExitMsg>>,
    denials: Option<ActorRef<DenialMsg>>,
    timers: Vec<JoinHandle<()>>,
    last_output: Instant,
    stopping: bool,
    /// Why it cannot be said to have started; the record waits until nothing of it lives.
    refused: Option<String>,
    init_pid: i32,
    /// The place for its result, until that was read.
    report: Option<File>,
    /// Where it says that it is ready, as long as anybody listens.
    ready: Option<Arc<ReadySource>>,
    /// How long before now an earlier daemon accepted it, as far as that is known for sure; absent where we did.
    accepted_before: Option<Option<Duration>>,
}

/// A process actor that dies without sealing seals in its death, and takes its tree along (I1, I6).
impl Drop for ProcessState {
    fn drop(&mut self) {
        for timer in &self.timers {
            timer.abort();
        }
        self.args.link.remove_route(*self.args.id.as_uuid());
        if self.ledger.is_sealed() {
            return;
        }
        self.kill();
        let reason = "its supervising actor ended".to_owned();
        let mut last = vec![Fact::Lost {
            reason: reason.clone(),
        }];
        for &stream in self.args.spec.streams() {
            last.push(Fact::StreamClosed {
                stream,
                closed: Closed::Abandoned,
            });
        }
        last.push(Fact::DenialsDrained {
            complete: false,
            unobserved: self.args.sandbox.unobserved.clone(),
        });
        last.extend(self.reported());
        last.push(Fact::SpawnerLost { reason });
        for fact in last {
            for effect in self.args.take(&mut self.ledger, fact, None) {
                match effect {
                    Effect::Append(draft) => self.args.log.append_event(draft),
                    Effect::Seal { time, record } => self.seal(time, *record),
                    _ => {}
                }
            }
        }
    }
}

impl Actor for ProcessActor {
    type Msg = ProcessMsg;
    type State = ProcessState;
    type Arguments = ProcessArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<ProcessMsg>,
        mut args: ProcessArgs,
    ) -> Result<ProcessState, ActorProcessingErr> {
        let id = *args.id.as_uuid();
        let ledger = match args.resumed.take() {
            Some(resumed) => {
                let ledger = resumed.ledger.clone();
                // Before anything that is routed to it.
                myself.send_message(ProcessMsg::Resume(resumed))?;
                ledger
            }
            None => {
                let session = args.session.clone();
                Ledger::new(ledger_spec(args.id, session, &args.spec, args.queued_at))
            }
        };
        args.link.add_route(id, myself.clone());
        let mut state = ProcessState {
            args,
            ledger,
            streams: Vec::new(),
            exit: None,
            denials: None,
            timers: Vec::new(),
            last_output: Instant::now(),
            stopping: false,
            refused: None,
            init_pid: -1,
            report: None,
            ready: None,
            accepted_before: None,
        };
        state.arm(&myself, START_MAX, Timer::Start);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<ProcessMsg>,
        message: ProcessMsg,
        state: &mut ProcessState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ProcessMsg::Fact(fact, permit) => {
                state.fact(&myself, fact);
                drop(permit);
            }
            ProcessMsg::Observed(number, fact, permit) => {
                state.observed(&myself, Some(number), fact);
                drop(permit);
            }
            ProcessMsg::Notice(notice, fds) => state.notice(&myself, notice, fds).await?,
            ProcessMsg::Command(command) => state.command(&myself, command),
            ProcessMsg::Timer(timer) => state.timer(&myself, timer),
            ProcessMsg::ReadySaid { said, taken } => {
                state.ready_said(&myself, said);
                drop(taken);
            }
            ProcessMsg::Resume(resumed) => state.resume(&myself, *resumed).await?,
            ProcessMsg::Written { bytes, took } => state.written(&myself, bytes, took),
            ProcessMsg::SpawnerLost(reason) => state.spawner_lost(&myself, reason),
            ProcessMsg::NotAsked(reason) => state.did_not_start(&myself, &reason),
        }
        state.shorten_journal();
        Ok(())
    }

    /// Restart decision: none. A child that ended without its last fact is given up on: its part is counted as
    /// abandoned or incomplete, and a process that can no longer be observed is killed.
    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<ProcessMsg>,
        event: SupervisionEvent,
        state: &mut ProcessState,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(who, error) = event {
            tracing::error!(process = %state.args.id, %error, "a child actor failed");
            state.child_failed(&myself, who.get_id());
        }
        Ok(())
    }
}

impl ProcessArgs {
    /// Takes a fact to the ledger: first it is written down, so that nobody sees what a crash could make undone.
    fn take(&self, ledger: &mut Ledger, fact: Fact, number: Option<u64>) -> Vec<Effect> {
        let now = Timestamp::now();
        let Some(spool) = self.spool.as_ref().filter(|_| !ledger.is_sealed()) else {
            return ledger.apply(fact, now);
        };
        // Where it cannot be written now it is owed, and the spool says so: the process goes on.
        if let Some(number) = number {
            let _ = spool.write(now, &Entry::Took(number));
            return ledger.apply(fact, now);
        }
        let entry = Entry::Fact(fact);
        let _ = spool.write(now, &entry);
        match entry {
            Entry::Fact(fact) => ledger.apply(fact, now),
            _ => Vec::new(),
        }
    }
}

impl ProcessState {
    /// Takes a fact to the ledger and does what that asks for.
    fn fact(&mut self, myself: &ActorRef<ProcessMsg>, fact: Fact) {
        self.observed(myself, None, fact);
    }

    /// The same of a fact that may have been written down already.
    fn observed(&mut self, myself: &ActorRef<ProcessMsg>, number: Option<u64>, fact: Fact) {
        if let Fact::Output { .. } = fact {
            self.last_output = Instant::now();
        }
        let tree_ended = matches!(fact, Fact::TreeEmpty { .. } | Fact::SpawnerLost { .. });
        if tree_ended || matches!(fact, Fact::Exited(_)) {
            self.look_if_ready(myself);
        }
        if tree_ended && let Some(reported) = self.reported() {
            self.fact(myself, reported);
        }
        let closes = matches!(fact, Fact::StreamClosed { .. } | Fact::DenialsDrained { .. });
        let closes = (closes && self.args.spool.is_some()).then(|| fact.clone());
        for effect in self.args.take(&mut self.ledger, fact, number) {
            self.perform(myself, effect);
        }
        if let Some(closed) = closes {
            self.release_closed(&closed);
        }
        if tree_ended && let Some(denials) = &self.denials {
            let _ = denials.send_message(DenialMsg::TreeEnded);
        }
    }

    /// Has a journal made short that has become long: here, between two facts, what they came to is known.
    fn shorten_journal(&self) {
        let Some(spool) = &self.args.spool else { return };
        let Some(cut) = spool.is_long() else { return };
        let (spool, ledger, log) = (spool.clone(), self.ledger.clone(), self.args.log.kept());
        tokio::task::spawn_blocking(move || spool.compact(&cut, ledger, log));
    }

    fn perform(&mut self, myself: &ActorRef<ProcessMsg>, effect: Effect) {
        match effect {
            Effect::Append(draft) => self.args.log.append_event(draft),
            Effect::StopTree { cause } => self.stop(myself, &cause),
            Effect::KillTree => self.kill_tree(myself),
            Effect::ArmDrain => self.arm(myself, self.args.spec.drain, Timer::Drain),
            Effect::AbandonStreams => {
                for (_, stream) in &self.streams {
                    let _ = stream.send_message(StreamMsg::Abandon);
                }
            }
            Effect::Seal { time, record } => {
                self.seal(time, *record);
                myself.stop(None);
            }
        }
    }

    fn seal(&self, time: Timestamp, record: TerminalRecord) {
        // First: to whoever sees the record, nothing can be written any more.
        self.args.stdin.close();
        let spool = &self.args.spool;
        let mut written = false;
        self.args.log.seal_after(time, record, |record| {
            if let Some(spool) = spool {
                written = spool.write_record(time, record);
            }
        });
        if let Some(spool) = spool {
            if written {
                spool.is_kept();
            }
            // Until then nobody else would know.
            let (link, id) = (self.args.link.clone(), *self.args.id.as_uuid());
            spool.once_kept(move || link.forget(id));
        }
    }

    async fn notice(
        &mut self,
        myself: &ActorRef<ProcessMsg>,
        notice: Notice,
        fds: Vec<OwnedFd>,
    ) -> Result<(), ActorProcessingErr> {
        match notice {
            Notice::Started(started) => self.started(myself, started, fds).await,
            Notice::Failed {
                step, errno, detail, ..
            } => {
                if step == Step::InitDied && self.refused.is_none() {
                    // The last it did may have been to start the command.
                    let reason =
                        "its init was killed before it said whether the command runs".to_owned();
                    self.fact(myself, Fact::Lost { reason });
                    return Ok(());
                }
                let error = spawn_error(&self.args.spec, step, errno, detail);
                let reason = self.refused.take().unwrap_or_else(|| error.to_string());
                let exit_code = error.exit_code();
                self.fact(myself, Fact::SpawnFailed { reason, exit_code });
                Ok(())
            }
            Notice::Ended { .. } if self.refused.is_some() => {
                self.did_not_start(myself, "");
                Ok(())
            }
            Notice::Exited { status, .. } => {
                self.limit_signal(myself, status);
                self.tell_exit(ExitMsg::Exited { status })
            }
            Notice::Ended {
                killed, usage, hits, ..
            } => {
                self.limit_hits(myself, hits);
                self.tell_exit(ExitMsg::Ended { killed, usage })
            }
            Notice::Hello { .. }
            | Notice::Duplicate { .. }
            | Notice::Welcome { .. }
            | Notice::Held(_)
            | Notice::HeldNamed { .. }
            | Notice::HeldAll { .. }
            | Notice::NotHeld { .. } => Ok(()),
        }
    }

    fn tell_exit(&self, message: ExitMsg) -> Result<(), ActorProcessingErr> {
        match &self.exit {
            Some(exit) => Ok(exit.send_message(message).map_err(|_| "the exit actor is gone")?),
            None => Ok(()),
        }
    }

    fn spawner_lost(&mut self, myself: &ActorRef<ProcessMsg>, reason: String) {
        match &self.exit {
            Some(exit) => {
                let _ = exit.send_message(ExitMsg::SpawnerLost { reason });
            }
            None if self.ledger.is_started() => {
                self.resume_unkept(myself, Unkept::KeeperLost { reason, exit: None });
            }
            None => {
                // The last it did may have been to start the command.
                let reason = format!("{reason} before it said whether the command runs");
                self.fact(myself, Fact::Lost { reason });
            }
        }
    }

    /// A child actor died without its last fact.
    fn child_failed(&mut self, myself: &ActorRef<ProcessMsg>, who: ractor::ActorId) {
        let is = |cell: &ractor::ActorCell| cell.get_id() == who;
        let failed_stream = self.streams.iter().find(|(_, actor)| is(actor));
        if let Some(&(stream, _)) = failed_stream {
            let closed = Closed::Abandoned;
            self.fact(myself, Fact::StreamClosed { stream, closed });
        } else if self.denials.as_ref().is_some_and(|actor| is(actor)) {
            let unobserved = self.args.sandbox.unobserved.clone();
            let complete = false;
            self.fact(myself, Fact::DenialsDrained { complete, unobserved });
        } else {
            let reason = "the actor that watches for its exit failed".to_owned();
            self.fact(myself, Fact::Lost { reason });
        }
        self.kill_tree(myself);
    }

    fn arm(&mut self, myself: &ActorRef<ProcessMsg>, after: Duration, timer: Timer) {
        self.timers.retain(|timer| !timer.is_finished());
        let myself = myself.clone();
        self.timers.push(tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let _ = myself.send_message(ProcessMsg::Timer(timer));
        }));
    }
}
