//! DenialActor: the seccomp listener of one process.
//!
//! Every notified call is decided here and answered, and what was refused becomes a fact. When the last task
//! under the filter is gone the listener hangs up; then the audit feed, where there is one, is read up to a
//! fence, and the channel says its last fact. The calls themselves are served in `server`.

mod blocking;
mod listener;
mod recovery;
mod server;
mod witness;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use provost_sandbox::compile::PreparedSandbox;
use provost_sandbox::observe::notify::Grants;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::io::Interest;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use uuid::Uuid;

pub(crate) use self::listener::SharedListener;
pub(crate) use self::server::Answered;
use self::server::Server;
pub(crate) use self::witness::tell_all;
use crate::audit::AuditMsg;
use crate::ledger::Fact;
use crate::process::ProcessMsg;
use crate::proxy::ProxyPort;
use crate::spool::{Calls, ProcessSpool};

/// How long the channel may stand still once the tree is gone.
const STILL_MAX: Duration = Duration::from_secs(2);
/// How long it may take to run dry in all, as long as it goes on. What was written before the fence is read in this time on
/// any machine that works at all.
const DRAIN_MAX: Duration = Duration::from_secs(60);

pub(crate) struct DenialActor;

pub(crate) enum DenialMsg {
    /// Nothing of the tree lives: what was not heard by the deadline will not be.
    TreeEnded,
    /// The deadline may have passed.
    DrainExpired,
    /// The listener has hung up, and everything that had come there was seen to, or not.
    HungUp { complete: bool },
    /// For who serves the listener.
    Answered(Answered),
    /// The audit feed is still on its way to the fence.
    AuditAdvanced,
    /// Every audit record queued before the fence was delivered; some may have been lost.
    AuditDrained { complete: bool },
}

pub(crate) struct DenialArgs {
    pub(crate) process_id: Uuid,
    pub(crate) process: ActorRef<ProcessMsg>,
    pub(crate) sandbox: Arc<PreparedSandbox>,
    pub(crate) listener: Option<OwnedFd>,
    /// What it gets to say that it is ready.
    pub(crate) ready: Option<OwnedFd>,
    pub(crate) pid: i32,
    pub(crate) init_pid: i32,
    pub(crate) pid_namespace: u64,
    pub(crate) audit: Option<ActorRef<AuditMsg>>,
    pub(crate) ask_timeout: Duration,
    /// What was allowed to every process of the session.
    pub(crate) session_grants: Grants,
    /// Where its proxy is to be, if it has one.
    pub(crate) proxy: Option<ProxyPort>,
    /// Where what is known of it is kept on disk, if it is.
    pub(crate) spool: Option<Arc<ProcessSpool>>,
}

pub(crate) struct DenialState {
    process_id: Uuid,
    process: ActorRef<ProcessMsg>,
    audit: Option<ActorRef<AuditMsg>>,
    unobserved: Vec<String>,
    serve: Option<JoinHandle<()>>,
    answers: Option<mpsc::UnboundedSender<Answered>>,
    /// The calls were all seen to.
    calls_complete: bool,
    /// When the tree was gone.
    ended: Option<Instant>,
    /// When the channel was last seen to go on.
    advanced: Instant,
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
        mut args: DenialArgs,
    ) -> Result<DenialState, ActorProcessingErr> {
        let mut unfinished = args
            .spool
            .as_ref()
            .map(|spool| spool.take_unfinished())
            .unwrap_or_default();
        if let Some(audit) = &args.audit {
            let _ = audit.send_message(AuditMsg::Register {
                process_id: args.process_id,
                pid: args.pid,
                process: args.process.clone(),
                sandbox: args.sandbox.clone(),
                spool: args.spool.clone(),
                earlier: unfinished
                    .interrupted
                    .then(|| std::mem::take(&mut unfinished.domains)),
            });
        }
        let mut unobserved = args.sandbox.unobserved.clone();
        if args.audit.is_some() && unfinished.interrupted {
            // The dead daemon may have read of refusals before it knew whose they were, and the kernel's own count may
            // come too late: what is known may not be all.
            unobserved.push("file refusals while one daemon died and another took it up".to_owned());
        }
        let mut state = DenialState {
            process_id: args.process_id,
            process: args.process.clone(),
            audit: args.audit.clone(),
            unobserved,
            serve: None,
            answers: None,
            calls_complete: true,
            ended: None,
            advanced: Instant::now(),
            said: false,
        };
        // Without a listener nothing tells when the last task is gone; the end of the tree will.
        if let Some(fd) = args.listener.take() {
            let left = unfinished.calls.take();
            let calls = args.spool.clone().map(|spool| {
                let left = left.as_deref().unwrap_or_default();
                Calls::new(spool, left)
            });
            let listener = SharedListener::new(fd, calls)?;
            let listener = crate::readiness::watch(listener, Interest::READABLE)?;
            let (answers, answered) = mpsc::unbounded_channel();
            let (mut server, proxy) = Server::new(&mut args, answers.clone())?;
            server.go_on(&mut unfinished);
            state.answers = Some(answers);
            state.serve = Some(tokio::spawn(async move {
                let names = server.outstanding_names();
                if let Some(left) = left {
                    server.take_up(listener.get_ref(), left, unfinished.answers).await;
                }
                server.serve(listener, answered).await;
                let names = names.is_over()
                    || tokio::task::spawn_blocking(move || names.wait(STILL_MAX))
                        .await
                        .unwrap_or(false);
                let complete = match proxy {
                    Some(proxy) => proxy.drain(STILL_MAX).await && names,
                    None => names,
                };
                let _ = myself.send_message(DenialMsg::HungUp { complete });
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
                state.ended = Some(Instant::now());
                state.goes_on();
                if state.serve.is_none() {
                    state.ask_for_fence(&myself);
                }
                state.drain_expired(&myself);
            }
            DenialMsg::DrainExpired => state.drain_expired(&myself),
            DenialMsg::AuditAdvanced => state.goes_on(),
            DenialMsg::HungUp { complete } => {
                state.goes_on();
                state.calls_complete = complete;
                // Whoever answers now is told at once that nothing waits any more.
                state.answers = None;
                state.ask_for_fence(&myself);
            }
            DenialMsg::Answered(answered) => state.tell_server(answered),
            DenialMsg::AuditDrained { complete } => state.drained(complete && state.calls_complete),
        }
        Ok(())
    }
}

impl DenialState {
    fn goes_on(&mut self) {
        self.advanced = Instant::now();
    }

    /// Gives the channel up if it has stood still for too long, or goes on for too long; else looks again when that can be.
    fn drain_expired(&mut self, myself: &ActorRef<DenialMsg>) {
        let Some(ended) = self.ended.filter(|_| !self.said) else {
            return;
        };
        let deadline = (self.advanced + STILL_MAX).min(ended + DRAIN_MAX);
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            self.drained(false);
        } else {
            myself.send_after(left, || DenialMsg::DrainExpired);
        }
    }

    fn tell_server(&self, answered: Answered) {
        if let Some(answers) = &self.answers {
            let _ = answers.send(answered);
        }
    }

    fn ask_for_fence(&mut self, myself: &ActorRef<DenialMsg>) {
        let Some(audit) = &self.audit else {
            return self.drained(self.calls_complete);
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
