//! Followers of jobs: they read events behind their cursor from the database, and wait for the number of the last one to grow.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::daemon::Daemon;
use crate::daemon::connection::notification;
use crate::daemon::follow::Way;
use crate::protocol::JobEventNotification;
use crate::store::JobQuery;

/// Events that are read at a time.
const PAGE: usize = 256;

/// Pushes events behind this one until nobody wants more.
pub(super) async fn push(
    daemon: Daemon,
    query: JobQuery,
    mut after: u64,
    way: Arc<Way>,
    behind: oneshot::Receiver<()>,
) {
    let Some(jobs) = daemon.0.jobs.get() else {
        return;
    };
    let _ = behind.await;
    let mut last = jobs.last.clone();
    let query = JobQuery { limit: PAGE, ..query };
    loop {
        last.mark_unchanged();
        let asked = query.clone();
        let read = jobs.store.read(move |reader| reader.job_events(after, &asked));
        let (events, read, more) = match read.await {
            Ok(read) => read,
            Err(error) => {
                // Ended without a word of a job's end: whoever follows knows that nothing is over.
                tracing::error!(%error, "events of jobs cannot be read");
                return;
            }
        };
        for event in events {
            let subscription = way.subscription;
            let event = event.into();
            let body = JobEventNotification { subscription, event };
            if !way.send_message(&notification("job/event", &body)).await {
                return;
            }
        }
        after = read;
        if more {
            continue;
        }
        tokio::select! {
            grown = last.changed() => if grown.is_err() { return },
            () = way.over() => return,
        }
    }
}
