//! Approvals: what a process is asked about before it is refused.
//!
//! ```text
//! DenialActor ── approval_requested ─► event stream ─► whoever decides
//!      ▲                                                    │
//!      └────────── ProcessCommand::Decide ◄─────────────────┘
//! ```
//!
//! The call waits in the kernel meanwhile, and costs no thread. Whatever happens, each request gets exactly one
//! `approval_decided`: by somebody, by its deadline, or because the process is stopped or ended.

use std::collections::BTreeMap;
use std::time::Duration;

use provost_sandbox::observe::notify::{Grant, Grants, Question};
use tokio::time::Instant;

use provost_sandbox::denial::DenialTarget;
use serde::{Deserialize, Serialize};

/// Calls of one process that may wait for an answer at the same time; further ones are refused.
const PENDING_MAX: usize = 256;
/// How often one process can ask; then it is refused without asking.
const REQUESTS_MAX: u64 = 1000;

/// How far a permission reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalScope {
    /// This call.
    Once,
    /// The same act of this process and its descendants, until they end.
    Process,
    /// The same act of every process of the session.
    Session,
}

/// The answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The call is performed.
    Allow(ApprovalScope),
    /// It fails, and is a denial.
    Deny,
}

/// A permission that was given, as the record lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantRecord {
    /// The number of the request.
    pub approval: u64,
    /// How far it reaches.
    pub scope: ApprovalScope,
    /// The operation that was allowed.
    pub operation: String,
    /// On what.
    pub target: DenialTarget,
    /// Who decided.
    pub by: String,
}

/// What was asked about, as the record sums it up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalSummary {
    /// How many requests there were.
    pub requested: u64,
    /// How many were allowed.
    pub allowed: u64,
    /// How many were refused, each of which is also a denial.
    pub refused: u64,
    /// The first permissions; bounded.
    pub grants: Vec<GrantRecord>,
}

/// A call that waits for an answer.
pub(crate) struct Waiting {
    /// What the listener knows the call by. Without one a message waits.
    pub(crate) call: Option<u64>,
    pub(crate) question: Box<Question>,
    deadline: Instant,
}

/// The requests of one process that wait for an answer.
pub(crate) struct Approvals {
    timeout: Duration,
    asked: u64,
    waiting: BTreeMap<u64, Waiting>,
    /// Set when the process is to end: nothing is asked any more.
    closed: bool,
    process: Grants,
    session: Grants,
}

impl Approvals {
    pub(crate) fn new(timeout: Duration, session: Grants) -> Self {
        Self {
            timeout,
            asked: 0,
            waiting: BTreeMap::new(),
            closed: false,
            process: Grants::default(),
            session,
        }
    }

    /// Goes on where somebody else had to stop: with the number of the last request, and what was allowed.
    pub(crate) fn go_on(&mut self, asked: u64, grants: Vec<(ApprovalScope, Grant)>) {
        self.asked = asked;
        for (scope, grant) in grants {
            self.add(scope, grant);
        }
    }

    /// What the decider consults.
    pub(crate) fn grants(&self) -> Vec<Grants> {
        vec![self.process.clone(), self.session.clone()]
    }

    /// How long a request waits.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Takes a question in and numbers it, or gives it back with the reason why nobody will be asked.
    pub(crate) fn ask(
        &mut self,
        call: Option<u64>,
        question: Box<Question>,
    ) -> Result<u64, (Box<Question>, &'static str)> {
        if self.closed {
            return Err((question, "the process is being stopped"));
        }
        if self.waiting.len() >= PENDING_MAX {
            return Err((question, "too many requests wait for an answer"));
        }
        if self.asked >= REQUESTS_MAX {
            return Err((question, "it has asked too often"));
        }
        self.asked += 1;
        let deadline = Instant::now() + self.timeout;
        let waiting = Waiting {
            call,
            question,
            deadline,
        };
        self.waiting.insert(self.asked, waiting);
        Ok(self.asked)
    }

    /// Takes out the request of this number, if it waits.
    pub(crate) fn take(&mut self, approval: u64) -> Option<Waiting> {
        self.waiting.remove(&approval)
    }

    /// Takes out a request whose deadline has passed. All wait equally long, so the oldest is the first.
    pub(crate) fn take_expired(&mut self, now: Instant) -> Option<(u64, Waiting)> {
        let (&oldest, waiting) = self.waiting.first_key_value()?;
        (waiting.deadline <= now).then(|| self.waiting.remove_entry(&oldest))?
    }

    /// Takes out a request that a remembered permission covers by now.
    pub(crate) fn take_granted(&mut self) -> Option<(u64, Waiting)> {
        let covered = |grants: &Grants, waiting: &Waiting| grants.covers(waiting.question.grant());
        let granted = self
            .waiting
            .iter()
            .find(|(_, waiting)| covered(&self.process, waiting) || covered(&self.session, waiting));
        let &approval = granted?.0;
        self.waiting.remove_entry(&approval)
    }

    /// Takes out any request.
    pub(crate) fn take_first(&mut self) -> Option<(u64, Waiting)> {
        self.waiting.pop_first()
    }

    /// Takes out any request; from now on nothing is asked.
    pub(crate) fn take_last_ones(&mut self) -> Option<(u64, Waiting)> {
        self.closed = true;
        self.waiting.pop_first()
    }

    /// When the next deadline passes.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.waiting
            .first_key_value()
            .map(|(_, waiting)| waiting.deadline)
    }

    /// Remembers a permission as far as it reaches.
    pub(crate) fn add(&self, scope: ApprovalScope, grant: Grant) {
        let grants = match scope {
            ApprovalScope::Once => return,
            ApprovalScope::Process => &self.process,
            ApprovalScope::Session => &self.session,
        };
        if !grants.add(grant) {
            tracing::warn!("no room for another permission; it will be asked about again");
        }
    }
}
