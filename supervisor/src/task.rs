//! Tasks: async work of the host's own, under the same supervision as processes.
//!
//! ```text
//! Tasks ── start ──► Task: work ── spawns ──► processes of its session, tasks of its own
//!   │ abort_all        │
//!   └─► slots          └─► events: started, those of its processes, ended (the last one)
//! ```
//!
//! # Guarantees
//!
//! - A task has one [`TaskEnd`]. It is there when the work has ended or was dropped, nothing that it started lives any more, and
//!   its abort hook has run.
//! - [`TaskEvent::Ended`] is the last event.
//! - A task in a slot starts when nothing of the one before lives any more.
//! - Work that panics has failed. What it does outside of its [`TaskContext`] – threads, detached tokio tasks – is not known here
//!   and lives on.
//!
//! On an abort the token is cancelled and the processes of the task are told to stop, by their own rules, which refuses what
//! waits for an approval. After the grace the work is dropped at its next await, and its processes are killed. Work that never
//! awaits cannot be dropped, and is waited for.

mod context;
mod run;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use provost_actors::slots::{SlotEffect, Slots};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::Reason;
use crate::{ApprovalRequest, Error, Event, ProcessHandle, Slot, Supervisor, Verdict};

pub use context::TaskContext;

/// Events of a task that wait for a reader; then the readers of its processes wait, and lag as any slow reader does.
const EVENTS_MAX: usize = 256;

/// How a task is run.
#[derive(Debug, Clone)]
pub struct TaskSpec {
    /// What it is, for people.
    pub kind: String,
    /// How long it has to end by itself when it is aborted.
    pub grace: Duration,
    /// The place that it takes: the task there is aborted ([`AbortReason::Replaced`]), with its own grace, and this one starts
    /// when nothing of that lives any more.
    pub slot: Option<String>,
}

impl TaskSpec {
    /// A task without a slot, and 100 ms to end when it is aborted.
    pub fn new(kind: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            grace: Duration::from_millis(100),
            slot: None,
        }
    }
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum TaskEnd {
    /// Its work was done.
    Completed {
        /// What it says about that.
        message: String,
    },
    /// Its work could not be done, or panicked.
    Failed {
        /// Why.
        message: String,
    },
    /// It was aborted before its work was done.
    Aborted {
        /// Why.
        reason: AbortReason,
    },
}

/// Why a task was aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AbortReason {
    /// Somebody wanted it to end.
    Interrupted,
    /// Another one takes its slot.
    Replaced,
    /// Everything ends, or the task that it is part of has ended.
    Shutdown,
}

/// Something that happens in a task.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum TaskEvent {
    /// Its work begins.
    Started,
    /// An event of a process that it started.
    Process(Event),
    /// An event of a task that it started.
    Task {
        /// Which.
        task: TaskId,
        /// What.
        event: Box<TaskEvent>,
    },
    /// It has ended. The last event.
    Ended(TaskEnd),
}

/// The number of a task, unique in this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct TaskId(u64);

impl TaskId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

type Answer = futures_util::future::BoxFuture<'static, Verdict>;
type Approver = Arc<dyn Fn(ProcessHandle, ApprovalRequest) -> Answer + Send + Sync>;
type Hook = Box<dyn FnOnce(AbortReason) -> futures_util::future::BoxFuture<'static, ()> + Send>;

/// Starts tasks, and knows those that live. Clones are the same. Dropping it aborts nothing.
#[derive(Clone)]
pub struct Tasks(Arc<Shared>);

struct Shared {
    supervisor: Supervisor,
    approver: Option<Approver>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    live: BTreeMap<TaskId, Task>,
    slots: Slots<TaskId, oneshot::Sender<u64>>,
    /// Set by a shutdown: nothing starts any more.
    closed: bool,
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks")
            .field("supervisor", &self.0.supervisor)
            .finish_non_exhaustive()
    }
}

/// A task that was started. Clones are the same task; dropping one aborts nothing.
#[derive(Debug, Clone)]
pub struct Task {
    id: TaskId,
    kind: Arc<str>,
    fate: Arc<watch::Sender<Fate>>,
    end: watch::Receiver<Option<TaskEnd>>,
}

/// What decides between an abort and the end of the work: whichever changes it first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Open,
    Aborted(AbortReason),
    Done,
}

impl Fate {
    fn reason(self) -> Option<AbortReason> {
        match self {
            Self::Aborted(reason) => Some(reason),
            Self::Open | Self::Done => None,
        }
    }

    /// Changes it, if nobody has.
    fn decide(fate: &watch::Sender<Self>, to: Self) -> bool {
        fate.send_if_modified(|fate| {
            let first = *fate == Self::Open;
            if first {
                *fate = to;
            }
            first
        })
    }
}

/// A task's events, for one reader. One that is dropped is not missed.
#[derive(Debug)]
pub struct TaskEvents {
    told: mpsc::Receiver<TaskEvent>,
    over: bool,
}

impl TaskEvents {
    /// The next event; `None` after [`TaskEvent::Ended`].
    pub async fn next(&mut self) -> Option<TaskEvent> {
        if self.over {
            return None;
        }
        let event = self.told.recv().await;
        self.over = matches!(event, None | Some(TaskEvent::Ended(_)));
        event
    }
}

impl Task {
    /// Its number.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// What it is.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Aborts it. The first reason counts; false if there was one, or its work was done before.
    pub fn abort(&self, reason: AbortReason) -> bool {
        Fate::decide(&self.fate, Fate::Aborted(reason))
    }

    /// Waits for its end.
    pub async fn end(&self) -> TaskEnd {
        let mut end = self.end.clone();
        let end = end
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|end| end.clone());
        end.unwrap_or(TaskEnd::Aborted {
            reason: AbortReason::Shutdown,
        })
    }
}

impl Tasks {
    /// Tasks whose processes are this supervisor's. What their policies ask about waits for whoever answers.
    pub fn new(supervisor: Supervisor) -> Self {
        Self::with(supervisor, None)
    }

    /// The same, and this callback answers what their processes, and those of the tasks in them, ask about.
    pub fn with_approvals<F, Fut>(supervisor: Supervisor, answer: F) -> Self
    where
        F: Fn(ProcessHandle, ApprovalRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Verdict> + Send + 'static,
    {
        let approver: Approver = Arc::new(move |process, request| Box::pin(answer(process, request)));
        Self::with(supervisor, Some(approver))
    }

    fn with(supervisor: Supervisor, approver: Option<Approver>) -> Self {
        let state = Mutex::default();
        Self(Arc::new(Shared {
            supervisor,
            approver,
            state,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a task: when this returns its work begins, and it will have an end. With a slot that waits for what is there to
    /// make room.
    ///
    /// # Errors
    /// [`Error::Closed`] after a shutdown; those of [`Supervisor::open_session`].
    pub async fn start<F, Fut>(&self, spec: TaskSpec, work: F) -> Result<(Task, TaskEvents), Error>
    where
        F: FnOnce(TaskContext) -> Fut + Send + 'static,
        Fut: Future<Output = Result<String, String>> + Send + 'static,
    {
        run::start(self, spec, work).await
    }

    /// The tasks that live, oldest first.
    pub fn live(&self) -> Vec<Task> {
        self.state().live.values().cloned().collect()
    }

    /// Aborts all tasks that live and waits for their ends. After [`AbortReason::Shutdown`] none starts any more.
    pub async fn abort_all(&self, reason: AbortReason) {
        let live = {
            let mut state = self.state();
            if reason == AbortReason::Shutdown {
                state.closed = true;
                state.slots.close();
            }
            state.live.values().cloned().collect::<Vec<Task>>()
        };
        for task in &live {
            task.abort(reason);
        }
        join_all(live.iter().map(Task::end)).await;
    }

    fn closed(kind: &str) -> Error {
        let what = format!("start task `{kind}`");
        Error::Closed(Reason::new(what, "its tasks are shut down", ""))
    }

    /// Does what the slots say, with the lock that they are behind.
    fn perform(state: &mut State, mut effect: Option<SlotEffect<TaskId, oneshot::Sender<u64>>>) {
        while let Some(now) = effect.take() {
            match now {
                SlotEffect::Give { name, ticket, to } => {
                    if to.send(ticket).is_err() {
                        effect = state.slots.released(&name, ticket);
                    }
                }
                SlotEffect::Replace { process, .. } => {
                    if let Some(task) = state.live.get(&process) {
                        task.abort(AbortReason::Replaced);
                    }
                }
            }
        }
    }
}

/// A slot that was given, until the task has it.
struct Claim<'a> {
    tasks: &'a Tasks,
    name: String,
    ticket: u64,
}

impl<'a> Claim<'a> {
    async fn of(tasks: &'a Tasks, kind: &str, name: String) -> Result<Self, Error> {
        let (to, given) = oneshot::channel();
        {
            let mut state = tasks.state();
            if state.closed {
                return Err(Tasks::closed(kind));
            }
            let slot = Slot {
                name: name.clone(),
                grace: None,
            };
            let effect = state.slots.claim(slot, to);
            Tasks::perform(&mut state, effect);
        }
        let ticket = given.await.map_err(|_| Tasks::closed(kind))?;
        Ok(Self { tasks, name, ticket })
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.tasks.state();
        let effect = state.slots.released(&self.name, self.ticket);
        Tasks::perform(&mut state, effect);
    }
}
