//! What a task's work has: its token, its processes, its tasks, its hook.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, watch};

use super::{AbortReason, Fate, Hook, Task, TaskEvent, TaskEvents, TaskSpec, Tasks};
use crate::{Error, ProcessHandle, ProcessSpec, Supervisor};

/// What a task's work has. Clones are the same.
#[derive(Clone)]
pub struct TaskContext {
    pub(super) session: Supervisor,
    pub(super) inner: Tasks,
    pub(super) fate: watch::Receiver<Fate>,
    pub(super) events: mpsc::Sender<TaskEvent>,
    /// Held by whoever passes events on; nobody sends. Gone when the task has ended.
    pub(super) passing: Arc<Mutex<Option<mpsc::Sender<()>>>>,
    pub(super) hook: Arc<Mutex<Option<Hook>>>,
}

impl std::fmt::Debug for TaskContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskContext")
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

impl TaskContext {
    /// Waits until the task is aborted, and why.
    pub async fn aborted(&self) -> AbortReason {
        let mut fate = self.fate.clone();
        let reason = fate
            .wait_for(|fate| fate.reason().is_some())
            .await
            .ok()
            .and_then(|fate| fate.reason());
        reason.unwrap_or(AbortReason::Shutdown)
    }

    /// Why the task is aborted, if it is.
    pub fn is_aborted(&self) -> Option<AbortReason> {
        self.fate.borrow().reason()
    }

    /// Starts a process of the task: it ends with the task at the latest, its events are among the task's, and what it asks
    /// about is answered by who answers for the task.
    ///
    /// # Errors
    /// As [`Supervisor::spawn`].
    pub async fn spawn(&self, spec: ProcessSpec) -> Result<ProcessHandle, Error> {
        let process = self.session.spawn(spec).await?;
        let (mut told, events) = (process.events(), self.events.clone());
        let passing = self.passing();
        tokio::spawn(async move {
            let _passing = passing;
            // A daemon that is gone is an error of whoever waits for the process.
            while let Ok(Some(event)) = told.next().await {
                if events.send(TaskEvent::Process(event)).await.is_err() {
                    return;
                }
            }
        });
        if let Some(approver) = self.inner.0.approver.clone() {
            let asking = process.clone();
            let answer = move |request| approver(asking.clone(), request);
            tokio::spawn(process.answer_approvals("the task's handler", answer));
        }
        Ok(process)
    }

    /// The session of the task, for what is not to be among its events. Everything in it ends with the task.
    pub fn session(&self) -> &Supervisor {
        &self.session
    }

    /// Starts a task in this one: it is aborted when this one ends or is aborted, and its events are among this one's.
    ///
    /// # Errors
    /// As [`Tasks::start`].
    pub async fn start<F, Fut>(&self, spec: TaskSpec, work: F) -> Result<Task, Error>
    where
        F: FnOnce(Self) -> Fut + Send + 'static,
        Fut: Future<Output = Result<String, String>> + Send + 'static,
    {
        let (task, told) = self.inner.start(spec, work).await?;
        let (id, events) = (task.id(), self.events.clone());
        let passing = self.passing();
        tokio::spawn(async move {
            pass_on(id, told, events).await;
            drop(passing);
        });
        Ok(task)
    }

    fn passing(&self) -> Option<mpsc::Sender<()>> {
        self.passing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What comes from now on is not among its events.
    pub(super) fn nothing_more(&self) {
        *self.passing.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Runs this when the task was aborted and nothing of it lives any more, before its end is told. The last one counts. It is
    /// waited for.
    pub fn on_abort<F, Fut>(&self, hook: F)
    where
        F: FnOnce(AbortReason) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let hook: Hook = Box::new(move |reason| Box::pin(hook(reason)));
        *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = Some(hook);
    }
}

async fn pass_on(task: super::TaskId, mut told: TaskEvents, events: mpsc::Sender<TaskEvent>) {
    while let Some(event) = told.next().await {
        let event = Box::new(event);
        if events.send(TaskEvent::Task { task, event }).await.is_err() {
            return;
        }
    }
}
