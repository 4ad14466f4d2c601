//! One task, from its start to its end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{
    AbortReason, Claim, EVENTS_MAX, Fate, Task, TaskContext, TaskEnd, TaskEvent, TaskEvents, TaskId,
    TaskSpec, Tasks,
};
use crate::Error;

pub(super) async fn start<F, Fut>(
    tasks: &Tasks,
    spec: TaskSpec,
    work: F,
) -> Result<(Task, TaskEvents), Error>
where
    F: FnOnce(TaskContext) -> Fut + Send + 'static,
    Fut: Future<Output = Result<String, String>> + Send + 'static,
{
    let claim = match spec.slot.clone() {
        Some(slot) => Some(Claim::of(tasks, &spec.kind, slot).await?),
        None => None,
    };
    let session = tasks.0.supervisor.open_session_that_ends().await?;
    let (fate, decided) = watch::channel(Fate::Open);
    let (ended, end) = watch::channel(None);
    let (events, told) = mpsc::channel(EVENTS_MAX);
    let (passing, mut passed_on) = mpsc::channel(1);
    let task = Task {
        id: TaskId::next(),
        kind: spec.kind.as_str().into(),
        fate: Arc::new(fate),
        end,
    };
    let context = TaskContext {
        inner: Tasks::with(session.clone(), tasks.0.approver.clone()),
        session,
        fate: decided,
        // There is room for the first one.
        events: events.clone(),
        passing: Arc::new(Mutex::new(Some(passing))),
        hook: Arc::default(),
    };
    let refused = {
        let mut state = tasks.state();
        if !state.closed {
            state.live.insert(task.id, task.clone());
            if let Some(claim) = &claim {
                let effect = state.slots.taken(&claim.name, Some(claim.ticket), task.id);
                Tasks::perform(&mut state, effect);
            }
        }
        state.closed
    };
    // It takes the lock.
    drop(claim);
    if refused {
        let _ = context.session.shutdown(Duration::ZERO).await;
        return Err(Tasks::closed(&spec.kind));
    }
    let _ = events.try_send(TaskEvent::Started);
    let work = tokio::spawn(work(context.clone()));
    let (tasks, id, fate) = (tasks.clone(), task.id, task.fate.clone());
    tokio::spawn(async move {
        let end = live(&context, &fate, work, spec.grace).await;
        {
            let mut state = tasks.state();
            state.live.remove(&id);
            let _ = ended.send(Some(end.clone()));
            let effect = state.slots.gone(id);
            Tasks::perform(&mut state, effect);
        }
        // What is passed on comes to its end, since all of it has ended; ours comes behind it.
        context.nothing_more();
        while passed_on.recv().await.is_some() {}
        let _ = events.send(TaskEvent::Ended(end)).await;
    });
    Ok((task, TaskEvents { told, over: false }))
}

/// Until nothing of it lives and its hook has run.
async fn live(
    context: &TaskContext,
    fate: &watch::Sender<Fate>,
    mut work: JoinHandle<Result<String, String>>,
    grace: Duration,
) -> TaskEnd {
    let (end, aborted) = tokio::select! {
        biased;
        done = &mut work => match Fate::decide(fate, Fate::Done) {
            true => (how(done), None),
            // It is done because it was aborted, or too late.
            false => {
                let reason = context.aborted().await;
                (TaskEnd::Aborted { reason }, Some(reason))
            }
        },
        reason = context.aborted() => {
            let inner = context.inner.abort_all(reason);
            let stopping = context.session.shutdown(grace);
            let ending = async {
                if timeout(grace, &mut work).await.is_err() {
                    work.abort();
                    let _ = work.await;
                }
            };
            let ((), stopped, ()) = tokio::join!(inner, stopping, ending);
            if let Err(error) = stopped {
                tracing::warn!(%error, "what became of a task's processes is not known");
            }
            (TaskEnd::Aborted { reason }, Some(reason))
        }
    };
    // What it has left behind.
    context
        .inner
        .abort_all(aborted.unwrap_or(AbortReason::Shutdown))
        .await;
    let _ = context.session.shutdown(grace).await;
    let hook = context.hook.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let (Some(hook), Some(reason)) = (hook, aborted) {
        // One that panics has run.
        let _ = tokio::spawn(hook(reason)).await;
    }
    end
}

fn how(done: Result<Result<String, String>, tokio::task::JoinError>) -> TaskEnd {
    match done {
        Ok(Ok(message)) => TaskEnd::Completed { message },
        Ok(Err(message)) => TaskEnd::Failed { message },
        Err(panic) => TaskEnd::Failed {
            message: panic.to_string(),
        },
    }
}
