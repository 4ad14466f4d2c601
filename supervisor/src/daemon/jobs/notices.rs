//! Telling somebody of the end of a job: at least once, until it was taken.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use provost_actors::event::ProcessId;
use provost_actors::record::TerminalRecord;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::daemon::start::Prescribed;
use crate::daemon::{Daemon, lock};
use crate::protocol::{JobMessage, JobNotifyTarget, ProcessStart, RpcError};
use crate::store::NoticeRow;

/// How many are told at the same time.
const AT_A_TIME: usize = 8;
/// How long one may take, if it has no limit of its own.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between the first two attempts; twice as long each time, up to the most.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What wakes [`tell_all`].
#[derive(Debug, Default)]
pub(super) struct Notices {
    /// Somebody is to be told, or was: as long as nobody is, an end is no reason to look.
    any: AtomicBool,
    wake: Notify,
}

impl Notices {
    /// Somebody is to be told of some job's end. To be said once that is written down.
    pub(super) fn expect(&self) {
        self.any.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// A job has ended, and that is written down.
    pub(super) fn ended(&self) {
        if self.any.load(Ordering::Acquire) {
            self.wake.notify_one();
        }
    }
}

/// Tells whoever is to be told, as long as the daemon serves.
pub(super) async fn tell_all(daemon: Daemon) {
    let Some(jobs) = daemon.0.jobs.get() else {
        return;
    };
    let turns = Arc::new(Semaphore::new(AT_A_TIME));
    let under_way: Arc<Mutex<HashSet<i64>>> = Arc::default();
    // When those are tried again that were not taken.
    let mut again: HashMap<i64, (Instant, Duration)> = HashMap::new();
    loop {
        let notified = jobs.notices.wake.notified();
        let open = match jobs.store.read(|reader| reader.open_notices()).await {
            Ok(open) => open,
            Err(error) => {
                tracing::error!(%error, "who is to be told of ends of jobs cannot be read");
                Vec::new()
            }
        };
        again.retain(|id, _| open.iter().any(|notice| notice.id == *id));
        let now = Instant::now();
        for notice in open {
            let id = notice.id;
            let (due, pause) = again.get(&id).copied().unwrap_or((now, PAUSE));
            if due > now || !lock(&under_way).insert(id) {
                continue;
            }
            again.insert(id, (now + pause, (pause * 2).min(PAUSE_MAX)));
            let (daemon, turns, under_way) = (daemon.clone(), turns.clone(), under_way.clone());
            tokio::spawn(async move {
                let _turn = turns.acquire().await;
                daemon.tell_of_end(notice).await;
                lock(&under_way).remove(&id);
            });
        }
        let next = again.values().map(|(due, _)| *due).min();
        let pause = async {
            match next {
                // One that is still under way then is looked at again a little later.
                Some(due) => tokio::time::sleep_until(due.max(now + PAUSE)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = notified => {}
            () = pause => {}
            () = daemon.0.stopping.cancelled() => return,
            () = daemon.0.leaving.begun.cancelled() => return,
        }
    }
}

impl Daemon {
    /// Tells somebody once, and writes down whether that was taken.
    async fn tell_of_end(&self, notice: NoticeRow) {
        let Some(jobs) = self.0.jobs.get() else { return };
        let id = notice.id;
        let told = match self.message(&notice).await {
            Ok(Some((target, message))) => self.tell_one(&target, &message).await,
            Ok(None) => return,
            Err(why) => Err(why),
        };
        let (taken, error) = match told {
            Ok(()) => (Some(Timestamp::now()), None),
            Err(error) => {
                tracing::info!(job = %notice.job, error, "whoever is to be told of its end did not take it");
                (None, Some(error))
            }
        };
        if let Err(error) = jobs.store.notice_tried(id, taken, error).await {
            tracing::error!(%error, "it will be told again");
        }
    }

    async fn message(&self, notice: &NoticeRow) -> Result<Option<(JobNotifyTarget, String)>, String> {
        let Some(jobs) = self.0.jobs.get() else {
            return Ok(None);
        };
        let said = |error: &dyn std::fmt::Display| error.to_string();
        let job = notice.job;
        let row = jobs.store.read(move |reader| reader.job(job)).await;
        let Some(row) = row.map_err(|error| said(&error))? else {
            return Ok(None);
        };
        let record = self.record_of(row.process).await;
        let message = JobMessage {
            schema: 1,
            dedup: notice.dedup(),
            job: row.into(),
            record,
        };
        let target = serde_json::from_str(&notice.target).map_err(|error| said(&error))?;
        let line = serde_json::to_string(&message).map_err(|error| said(&error))?;
        Ok(Some((target, line + "\n")))
    }

    /// The record of a process, if it has one and is not forgotten.
    pub(super) async fn record_of(&self, process: Option<ProcessId>) -> Option<Arc<TerminalRecord>> {
        let process = process?;
        let known = self.state().processes.get(&process).cloned();
        if let Some(known) = known {
            return known.link.record();
        }
        let jobs = self.0.jobs.get()?;
        let sealed = jobs.store.sealed_process(process).await.ok().flatten();
        sealed.map(|sealed| Arc::new(sealed.record))
    }

    async fn tell_one(&self, target: &JobNotifyTarget, message: &str) -> Result<(), String> {
        let told = async {
            match target {
                JobNotifyTarget::Command { argv, cwd, policy } => {
                    self.tell_command(argv, cwd, policy.as_deref(), message).await
                }
                JobNotifyTarget::Socket(path) => tell_socket(path, message)
                    .await
                    .map_err(|error| format!("{path}: {error}")),
                JobNotifyTarget::File(path) => {
                    let (file, message) = (path.clone(), message.to_owned());
                    let told = tokio::task::spawn_blocking(move || append(Path::new(&file), &message));
                    let told = told.await.map_err(io::Error::other).flatten();
                    told.map_err(|error| format!("{path}: {error}"))
                }
            }
        };
        let told = tokio::time::timeout(PATIENCE + PAUSE, told).await;
        told.unwrap_or_else(|_| Err("it was not taken in time".to_owned()))
    }

    async fn tell_command(
        &self,
        argv: &[String],
        cwd: &str,
        policy: Option<&str>,
        message: &str,
    ) -> Result<(), String> {
        let start = ProcessStart {
            argv: argv.to_vec(),
            cwd: cwd.to_owned(),
            policy: policy.map(str::to_owned),
            stdin: true,
            timeout_ms: Some(u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX)),
            ..ProcessStart::default()
        };
        let started = self.start_job(start, Prescribed::default()).await;
        let link = started.map_err(|error: RpcError| error.message)?;
        // One that takes it without reading has the right to.
        let feeding = async {
            let _ = link.write_stdin(message.as_bytes()).await;
            link.close_stdin();
        };
        let (record, ()) = tokio::join!(link.sealed(), feeding);
        match (record.succeeded, &record.reason, record.exit_code) {
            (true, ..) => Ok(()),
            (false, Some(reason), _) => Err(format!("process {}: {reason}", link.id())),
            (false, None, Some(code)) => Err(format!("process {} ended with {code}", link.id())),
            (false, None, None) => Err(format!("process {} did not take it", link.id())),
        }
    }
}

async fn tell_socket(path: &str, message: &str) -> io::Result<()> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(message.as_bytes()).await?;
    stream.shutdown().await?;
    // An answer or the end: without either nobody has read it.
    let mut answer = [0; 1];
    stream.read(&mut answer).await.map(drop)
}

/// Appends a line with one write, so that those of several are not mixed up.
fn append(path: &Path, message: &str) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let file = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        // A pipe that nobody reads would hold this up for ever.
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC)
        .open(path);
    let mut file = file?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    file.write_all(message.as_bytes())?;
    file.sync_data()
}
