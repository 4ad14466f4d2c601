//! Tasks: async work of a host's own, with processes of its own.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use provost::{
    AbortReason, ApprovalScope, EventBody, Outcome, ProcessHandle, TaskEnd, TaskEvent, TaskEvents,
    TaskSpec, Tasks, Verdict,
};
use provost_tests::{DEADLINE, World, embedded, script};
use tokio::sync::oneshot;
use tokio::time::timeout;

async fn within<T>(wanted: impl Future<Output = T>) -> T {
    timeout(DEADLINE, wanted).await.expect("in time")
}

/// Everything that is told of a task, in words.
async fn story(mut events: TaskEvents) -> Vec<String> {
    let mut story = Vec::new();
    while let Some(event) = within(events.next()).await {
        story.extend(word(&event));
    }
    story
}

fn word(event: &TaskEvent) -> Option<String> {
    Some(match event {
        TaskEvent::Started => "started".to_owned(),
        TaskEvent::Process(event) => match &event.body {
            EventBody::Output { data, .. } => format!("says {}", String::from_utf8_lossy(data).trim()),
            EventBody::Terminal { record } => format!("process {:?}", record.outcome),
            _ => return None,
        },
        TaskEvent::Task { event, .. } => format!("inner {}", word(event)?),
        TaskEvent::Ended(end) => format!("ended {end:?}"),
        _ => return None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn work_ends_completed_failed_or_panicked_and_its_end_is_the_last_event() {
    let Some(world) = World::try_own() else { return };
    let tasks = Tasks::new(embedded().await);
    let spec = script(&world, "echo out; sleep 1000");
    let work = async move |context: provost::TaskContext| {
        let process = context.spawn(spec).await.map_err(|error| error.to_string())?;
        let mut events = process.events();
        while let Ok(Some(event)) = events.next().await {
            if let EventBody::Output { .. } = event.body {
                return Ok("done".to_owned());
            }
        }
        Err("it said nothing".to_owned())
    };
    let (task, events) = tasks.start(TaskSpec::new("search"), work).await.expect("a task");
    assert_eq!(task.kind(), "search");
    let message = "done".to_owned();
    let end = TaskEnd::Completed { message };
    assert_eq!(within(task.end()).await, end);
    let ended = format!("ended {end:?}");
    // What it left running is stopped, and its end is told before that of the task.
    assert_eq!(
        story(events).await,
        ["started", "says out", "process Cancelled", &ended]
    );
    assert!(!task.abort(AbortReason::Interrupted), "it has ended");

    let (task, _) = tasks
        .start(TaskSpec::new("a"), async |_| Err("no".to_owned()))
        .await
        .expect("a task");
    assert_eq!(
        within(task.end()).await,
        TaskEnd::Failed {
            message: "no".to_owned()
        }
    );
    let (task, _) = tasks
        .start(TaskSpec::new("b"), async |_| panic!("as it should"))
        .await
        .expect("a task");
    assert!(
        matches!(within(task.end()).await, TaskEnd::Failed { message } if message.contains("as it should"))
    );
    assert!(tasks.live().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_gives_the_grace_ends_everything_and_runs_the_hook_before_the_end() {
    let Some(world) = World::try_own() else { return };
    let tasks = Tasks::new(embedded().await);
    for (polite, grace) in [
        (true, Duration::from_secs(3600)),
        (false, Duration::from_millis(50)),
    ] {
        let said = Arc::new(Mutex::new(Vec::new()));
        let (begun, begins) = oneshot::channel::<ProcessHandle>();
        let (spec, heard) = (
            script(&world, "trap 'exit 0' TERM; while :; do sleep 0.05; done"),
            said.clone(),
        );
        let work = TaskSpec {
            grace,
            ..TaskSpec::new("work")
        };
        let (task, events) = tasks
            .start(work, move |context| async move {
                let process = context.spawn(spec).await.map_err(|error| error.to_string())?;
                let hook = heard.clone();
                context.on_abort(move |reason| async move {
                    hook.lock().expect("no panic").push(format!("hook {reason:?}"));
                });
                let _ = begun.send(process);
                let reason = context.aborted().await;
                heard.lock().expect("no panic").push(format!("told {reason:?}"));
                if !polite {
                    std::future::pending::<()>().await;
                }
                Err("never said".to_owned())
            })
            .await
            .expect("a task");
        let process = within(begins).await.expect("it begins");
        assert!(task.abort(AbortReason::Interrupted));
        assert!(!task.abort(AbortReason::Shutdown), "the first reason counts");
        let end = within(task.end()).await;
        assert_eq!(
            end,
            TaskEnd::Aborted {
                reason: AbortReason::Interrupted
            }
        );
        assert_eq!(
            *said.lock().expect("no panic"),
            ["told Interrupted", "hook Interrupted"]
        );
        assert!(within(process.record()).await.expect("a record").outcome == Outcome::Cancelled);
        assert_eq!(
            story(events).await.last().expect("an end"),
            &format!("ended {end:?}")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_has_one_task_and_a_shutdown_aborts_all_and_starts_none() {
    let tasks = Tasks::new(embedded().await);
    let lives = Arc::new(Mutex::new(0));
    let spec = || TaskSpec {
        slot: Some("one".to_owned()),
        ..TaskSpec::new("work")
    };
    let mut all = Vec::new();
    for _ in 0..20 {
        let lives = lives.clone();
        let work = move |context: provost::TaskContext| async move {
            let count = |by: i32| {
                let mut lives = lives.lock().expect("no panic");
                *lives += by;
                assert!(*lives <= 1, "two in one slot");
            };
            count(1);
            context.aborted().await;
            count(-1);
            Ok(String::new())
        };
        all.push(within(tasks.start(spec(), work)).await.expect("a task").0);
    }
    within(tasks.abort_all(AbortReason::Shutdown)).await;
    let last = all.pop().expect("the last one");
    for task in all {
        assert_eq!(
            within(task.end()).await,
            TaskEnd::Aborted {
                reason: AbortReason::Replaced
            }
        );
    }
    assert_eq!(
        within(last.end()).await,
        TaskEnd::Aborted {
            reason: AbortReason::Shutdown
        }
    );
    let refused = tasks.start(spec(), async |_| Ok(String::new())).await;
    assert!(matches!(refused, Err(provost::Error::Closed(_))));
}

/// What asks is a process of a task in a task.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_inner_task_asks_reaches_the_handler_and_an_abort_refuses_it() {
    let Some(world) = World::try_own() else { return };
    let asked = Arc::new(Mutex::new(0));
    let counted = asked.clone();
    let (waits, waiting) = oneshot::channel::<()>();
    let waits = Mutex::new(Some(waits));
    let tasks = Tasks::with_approvals(embedded().await, move |_, _| {
        let number = {
            let mut asked = counted.lock().expect("no panic");
            *asked += 1;
            *asked
        };
        let waits = (number == 2)
            .then(|| waits.lock().expect("no panic").take())
            .flatten();
        async move {
            if number == 1 {
                return Verdict::Allow(ApprovalScope::Once);
            }
            waits.map(|waits| waits.send(()));
            std::future::pending().await
        }
    });
    let outside = world.path("outside");
    let first = format!(
        "echo x > {0}/first && echo written; echo x > {0}/second",
        outside.display()
    );
    let mut spec = script(&world, &first);
    spec.policy_mut().ask.files = true;
    spec.ask_timeout = Duration::from_secs(3600);
    let (task, events) = tasks
        .start(TaskSpec::new("outer"), move |context| async move {
            let work = move |context: provost::TaskContext| async move {
                let process = context.spawn(spec).await.map_err(|error| error.to_string())?;
                let record = process.record().await.map_err(|error| error.to_string())?;
                Ok(format!("{:?}", record.outcome))
            };
            let inner = context.start(TaskSpec::new("inner"), work).await;
            let inner = inner.map_err(|error| error.to_string())?;
            Ok(format!("{:?}", inner.end().await))
        })
        .await
        .expect("a task");
    within(waiting).await.expect("it asks twice");
    assert!(task.abort(AbortReason::Interrupted));
    let reason = AbortReason::Interrupted;
    let end = TaskEnd::Aborted { reason };
    assert_eq!(within(task.end()).await, end, "what waits does not hold it up");
    assert_eq!(*asked.lock().expect("no panic"), 2);
    let story = story(events).await;
    assert!(story.contains(&"inner says written".to_owned()), "{story:?}");
    assert!(story.contains(&"inner process Cancelled".to_owned()), "{story:?}");
    let (inner, own) = (format!("inner ended {end:?}"), format!("ended {end:?}"));
    assert_eq!(story[story.len() - 2..], [inner, own], "{story:?}");
    assert!(!outside.join("second").exists());
}
