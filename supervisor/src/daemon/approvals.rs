//! What waits for an answer: listed, decided, or put to a command.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use provost_actors::approval::{ApprovalScope, Verdict};
use provost_actors::event::{Event, EventBody};
use provost_actors::session::Holder;
use provost_actors::{ProcessCommand, ProcessLink, Tree};
use provost_sandbox::denial::Decision;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{AbortHandle, JoinSet};

use super::Daemon;
use super::processes::Supervised;
use crate::decider::{BY, Decider};
use crate::policy_file::EnvironmentPolicy;
use crate::protocol::{
    ApprovalDecide, ApprovalList, ApprovalsWaiting, AskCommand, ErrorKind, RpcError, WaitingApproval,
};
use crate::{ApprovalRequest, ProcessSpec};

/// Requests in one answer.
const LISTED_MAX: usize = 1000;
/// The longest word for who decided.
const BY_BYTES_MAX: usize = 256;
/// What a command says on stderr, as far as it is logged.
const LOGGED_BYTES_MAX: usize = 1024;

impl Daemon {
    /// What waits, the oldest first.
    pub(super) fn list_approvals(&self, asked: &ApprovalList) -> Result<ApprovalsWaiting, RpcError> {
        let processes = match &asked.process {
            Some(process) => vec![self.find(process, false)?],
            None => self.state().processes.values().cloned().collect(),
        };
        let within = match &asked.session {
            Some(session) => Some(self.find_session(session)?),
            None => None,
        };
        let asks = processes
            .iter()
            .filter(|process| within.is_none_or(|id| process.within.contains(&id)));
        let mut approvals: Vec<WaitingApproval> = asks.flat_map(|process| waiting(process)).collect();
        approvals.sort_by(|one, other| one.requested_at.cmp(&other.requested_at));
        let more = approvals.len().saturating_sub(LISTED_MAX) as u64;
        approvals.truncate(LISTED_MAX);
        Ok(ApprovalsWaiting { approvals, more })
    }

    /// Answers a request. Of several who do, one wins and the others are told who did.
    pub(super) async fn decide(&self, asked: ApprovalDecide, holder: Holder) -> Result<(), RpcError> {
        let process = self.find(&asked.process, false)?;
        let what = format!("decide {}/{}", process.id(), asked.approval);
        if !asked.allow && asked.scope.is_some() {
            let why = "a denial has no `scope`";
            return Err(RpcError::new(ErrorKind::InvalidParams, what, why));
        }
        let by = asked.by.unwrap_or_else(|| "client".to_owned());
        if by.len() > BY_BYTES_MAX {
            let why = format!("`by` is longer than {BY_BYTES_MAX} bytes");
            return Err(RpcError::new(ErrorKind::InvalidParams, what, why));
        }
        if !asked.steal {
            self.may_touch(process.session, holder, &what)?;
        }
        let (reply, decided) = oneshot::channel();
        let told = process.link.tell(ProcessCommand::Decide {
            approval: asked.approval,
            verdict: match asked.allow {
                true => Verdict::Allow(asked.scope.unwrap_or(ApprovalScope::Once)),
                false => Verdict::Deny,
            },
            by,
            reply,
        });
        if told && decided.await.unwrap_or(false) {
            return Ok(());
        }
        Err(match process.link.log().await.decision(asked.approval).await {
            Some(decided) => {
                let word = match decided.decision {
                    Decision::Allow => "allowed",
                    Decision::Deny => "denied",
                };
                let why = format!("it was {word} already, by `{}`", decided.by);
                RpcError::new(ErrorKind::Conflict, what, why)
            }
            None => RpcError::new(ErrorKind::NotFound, what, "it never asked under that number")
                .hint("`provost approvals` lists what waits"),
        })
    }

    /// The command that is to answer for a process, if one is.
    pub(super) fn decider(
        &self,
        command: Option<&AskCommand>,
        spec: &ProcessSpec,
        confined: bool,
        what: &str,
    ) -> Result<Option<Decider>, RpcError> {
        let Some(command) = command else {
            return Ok(None);
        };
        let invalid = |why: &str| RpcError::new(ErrorKind::InvalidParams, what, why);
        if confined {
            // It would be run outside of every sandbox.
            let why = "the client is confined itself, and `ask_command` would not be";
            return Err(RpcError::new(ErrorKind::Forbidden, what, why));
        }
        if !(spec.policy.ask.net || spec.policy.ask.files) {
            return Err(invalid("`ask_command` answers nothing: the policy does not ask"));
        }
        if command.argv.is_empty() {
            return Err(invalid("`ask_command` has no `argv`"));
        }
        let cwd = PathBuf::from(&command.cwd);
        if !cwd.is_absolute() {
            return Err(invalid("the `cwd` of `ask_command` must be absolute"));
        }
        Ok(Some(Decider {
            argv: command.argv.clone(),
            cwd,
            env: self.0.account.environment(&EnvironmentPolicy::default()),
            timeout: spec.ask_timeout,
        }))
    }

    /// Has a command answer everything that a process asks, until it ends. What somebody else decides meanwhile is asked no
    /// more: a command that hangs takes no turn from others.
    pub(super) fn answer_by(&self, decider: Decider, process: &ProcessLink) {
        let answering = Answering {
            decider,
            tree: self.0.tree.clone(),
            turns: self.0.deciders.clone(),
            process: process.clone(),
        };
        let answering = Arc::new(answering);
        let mut events = process.log_now().follow(0, false).without_output();
        tokio::spawn(async move {
            let mut answers = JoinSet::new();
            let mut asked = HashMap::new();
            while let Some(event) = events.next().await {
                match event.body {
                    EventBody::ApprovalRequested {
                        approval,
                        attempt,
                        deadline,
                    } => {
                        let request = ApprovalRequest {
                            approval,
                            attempt,
                            deadline,
                        };
                        asked.insert(approval, answers.spawn(answering.clone().answer(request)));
                    }
                    EventBody::ApprovalDecided { approval, .. } => {
                        let answer: Option<AbortHandle> = asked.remove(&approval);
                        answer.inspect(AbortHandle::abort);
                    }
                    _ => {}
                }
                while answers.try_join_next().is_some() {}
            }
        });
    }
}

/// A command that answers for a process.
struct Answering {
    decider: Decider,
    tree: Arc<Tree>,
    turns: Arc<Semaphore>,
    process: ProcessLink,
}

impl Answering {
    async fn answer(self: Arc<Self>, request: ApprovalRequest) {
        let (id, approval) = (self.process.id(), request.approval);
        let _turn = self.turns.acquire().await;
        let said = |bytes: &[u8]| {
            let bytes = bytes.get(..LOGGED_BYTES_MAX).unwrap_or(bytes);
            let said = String::from_utf8_lossy(bytes);
            tracing::info!(process = %id, said = %said.escape_debug(), "ask-command");
        };
        let answer = self.decider.ask(&self.tree, id, &request, said).await;
        let verdict = answer.unwrap_or_else(|why| {
            tracing::warn!(process = %id, approval, why, "ask-command gave no answer; denied");
            Verdict::Deny
        });
        // Whoever was quicker has decided, and nobody here asks who.
        let (reply, _) = oneshot::channel();
        self.process.tell(ProcessCommand::Decide {
            approval,
            verdict,
            by: BY.to_owned(),
            reply,
        });
    }
}

fn waiting(process: &Supervised) -> Vec<WaitingApproval> {
    // One that has ended, and is on disk only, waits for nothing.
    let log = process.link.log_in_memory();
    let requests = log.map(|log| log.approvals_waiting()).unwrap_or_default();
    let one = |request: Event| match request.body {
        EventBody::ApprovalRequested {
            approval,
            attempt,
            deadline,
        } => Some(WaitingApproval {
            process: process.id(),
            name: process.name.clone(),
            session: process.session,
            approval,
            requested_at: format!("{:.6}", request.time),
            deadline: format!("{deadline:.6}"),
            attempt,
        }),
        _ => None,
    };
    requests.into_iter().filter_map(one).collect()
}
