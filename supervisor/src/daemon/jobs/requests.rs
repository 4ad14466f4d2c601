//! What each method of jobs does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use provost_actors::jobs::schedule::Counts;
use provost_actors::jobs::{JobId, JobState};
use provost_actors::session::SessionId;
use tokio::sync::oneshot;

use super::follow;
use super::queue::{Ends, QueueMsg};
use super::submit::Shared;
use crate::daemon::Daemon;
use crate::daemon::connection::Client;
use crate::daemon::line::Line;
use crate::daemon::processes::described_bytes;
use crate::daemon::requests::{After, Answer, behind, ending, gone, subscribe, value};
use crate::daemon::sessions::check_name;
use crate::protocol::{
    DEFAULT_GROUP, ErrorKind, JOBS_MAX, JOBS_PER_ANSWER_MAX, JobCancel, JobCancelled, JobEnd, JobFollow,
    JobFollowing, JobGroup, JobGroupInfo, JobInfo, JobInspected, JobList, JobNotice, JobNotify, JobRef,
    JobRetry, JobSubmit, JobWait, JobsCancelled, JobsListed, JobsSubmitted, JobsWaited, RpcError,
};
use crate::store::{JobQuery, JobRow, NoticeRow, RESULT_BYTES_PER_READ, Reader, StoreError};

/// Jobs of a page, unless it is said how many.
const PAGE: usize = 1000;

/// About how many bytes a page has: not more than is read of results, so that none of them is left out.
const PAGE_BYTES: u64 = RESULT_BYTES_PER_READ;

/// Answers a request about jobs.
pub(in crate::daemon) async fn answer(
    client: &Arc<Client>,
    request: &Line,
    after: &mut After,
) -> Answer {
    let daemon = &client.daemon;
    match request.method.as_str() {
        "job/submit" => {
            let asked: JobSubmit = request.params()?;
            value(&daemon.submit_jobs(asked, client.holder).await?)
        }
        "job/list" => {
            let asked: JobList = request.params()?;
            after.large = client.large.clone().acquire_owned().await.ok();
            value(&list(client, asked).await?)
        }
        "job/wait" => {
            let asked: JobWait = request.params()?;
            wait(client, asked, after).await
        }
        "job/follow" => {
            let asked: JobFollow = request.params()?;
            start_following(client, asked, after).await
        }
        "job/cancel" => {
            let asked: JobCancel = request.params()?;
            cancel(client, asked, after).await
        }
        "job/retry" => {
            let asked: JobRetry = request.params()?;
            value(&retry(client, asked).await?)
        }
        "job/inspect" => {
            let asked: JobRef = request.params()?;
            let job = daemon.find_job(&asked.job).await?;
            after.large = client.large.clone().acquire_owned().await.ok();
            value(&inspect(daemon, job).await?)
        }
        "job/group" => {
            let asked: JobGroup = request.params()?;
            value(&group(daemon, asked).await?)
        }
        "job/groups" => value(&groups(daemon).await?),
        "job/notify" => {
            let asked: JobNotify = request.params()?;
            value(&notify(client, asked).await?)
        }
        other => Err(RpcError::new(
            ErrorKind::MethodNotFound,
            format!("`{}`", other.escape_default()),
            "there is no such method",
        )),
    }
}

impl Daemon {
    pub(super) fn jobs(&self) -> Result<&super::Jobs, RpcError> {
        let why = "the daemon does not serve jobs yet";
        let none = || RpcError::new(ErrorKind::ShuttingDown, "jobs", why).hint("try again");
        self.0.jobs.get().ok_or_else(none)
    }

    /// Reads about jobs.
    pub(super) async fn read_jobs<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, RpcError> {
        let read = self.jobs()?.store.read(read).await;
        read.map_err(|error| unwritten("read about jobs", &error))
    }

    /// The job that is meant by an id, a part of one, or a name.
    pub(super) async fn find_job(&self, word: &str) -> Result<JobRow, RpcError> {
        let what = || format!("job `{}`", word.escape_default());
        let found = match word.parse::<JobId>() {
            Ok(id) => Some(id),
            Err(_) => {
                let text = word.to_owned();
                let part =
                    word.len() >= 4 && word.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
                let found = self
                    .read_jobs(move |reader| reader.job_named(&text, part))
                    .await?;
                if found.len() > 1 {
                    let why = "more than one begins or ends so";
                    return Err(
                        RpcError::new(ErrorKind::Ambiguous, what(), why).hint("give more of the id")
                    );
                }
                found.first().copied()
            }
        };
        let row = match found {
            Some(id) => self.read_jobs(move |reader| reader.job(id)).await?,
            None => None,
        };
        row.ok_or_else(|| {
            let why = "there is none of that id or name";
            RpcError::new(ErrorKind::NotFound, what(), why).hint("`provost job list -a` lists them")
        })
    }

    async fn find_jobs(&self, words: &[String]) -> Result<Vec<JobRow>, RpcError> {
        if words.len() > JOBS_PER_ANSWER_MAX {
            let why = format!("`jobs` has more than {JOBS_PER_ANSWER_MAX}");
            return Err(RpcError::new(ErrorKind::InvalidParams, "jobs", why));
        }
        let ids: Result<Vec<JobId>, _> = words.iter().map(|word| word.parse::<JobId>()).collect();
        if let Ok(ids) = ids {
            let asked = ids.clone();
            let found = self.read_jobs(move |reader| reader.jobs_of(&asked)).await?;
            let known: Option<Vec<JobRow>> = ids.iter().map(|id| found.get(id).cloned()).collect();
            if let Some(known) = known {
                return Ok(known);
            }
        }
        let mut found = Vec::with_capacity(words.len());
        for word in words {
            found.push(self.find_job(word).await?);
        }
        Ok(found)
    }

    /// Tells the queue something that it answers.
    pub(super) async fn ask_queue<T>(
        &self,
        message: impl FnOnce(oneshot::Sender<T>) -> QueueMsg,
    ) -> Result<T, RpcError> {
        let (reply, answered) = oneshot::channel();
        let gone = || RpcError::new(ErrorKind::ShuttingDown, "jobs", "the queue has ended");
        self.jobs()?
            .queue
            .send_message(message(reply))
            .map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }

    /// Whose jobs are meant; everybody's, if none.
    fn sessions_meant(
        &self,
        client: &Client,
        session: Option<&str>,
        all: bool,
    ) -> Result<Option<Vec<SessionId>>, RpcError> {
        if let Some(session) = session {
            let id = self.find_session(session)?;
            return Ok(Some(self.state().leases.with_parts(id)));
        }
        let state = self.state();
        let held = state
            .leases
            .iter()
            .filter(|(_, lease)| lease.holder == Some(client.holder));
        let held: Vec<SessionId> = held.map(|(id, _)| id).collect();
        if all || held.is_empty() {
            return Ok(None);
        }
        let parts = held.iter().flat_map(|id| state.leases.with_parts(*id));
        Ok(Some(parts.collect()))
    }
}

/// The database has something against it.
pub(super) fn unwritten(what: &str, error: &StoreError) -> RpcError {
    let kind = match error {
        StoreError::Full { .. } => ErrorKind::Limit,
        _ => ErrorKind::Internal,
    };
    RpcError::new(kind, what, error.to_string())
}

async fn list(client: &Client, asked: JobList) -> Result<JobsListed, RpcError> {
    let daemon = &client.daemon;
    let query = JobQuery {
        sessions: daemon.sessions_meant(client, asked.session.as_deref(), asked.all)?,
        group: asked.group,
        states: asked.states,
        labels: asked.labels,
        after: asked.after,
        limit: asked.limit.unwrap_or(PAGE).clamp(1, JOBS_PER_ANSWER_MAX),
    };
    let (mut jobs, more) = daemon.read_jobs(move |reader| reader.jobs(&query)).await?;
    // Where arguments or results are long, the page is short.
    let mut room = PAGE_BYTES;
    let fit = jobs.iter().take_while(|job| {
        let result = job.end.as_ref().and_then(|end| end.result.as_ref());
        let result = result.map_or(0, |result| result.as_json().len() as u64);
        let takes = described_bytes(&job.argv, &job.labels, "") + result + 1024;
        let fits = room > 0;
        room = room.saturating_sub(takes);
        fits
    });
    let fit = fit.count();
    let cut = fit < jobs.len();
    jobs.truncate(fit);
    Ok(JobsListed {
        jobs: jobs.into_iter().map(JobInfo::from).collect(),
        more: more || cut,
    })
}

/// Waits until all have ended, or the client has gone.
async fn ended(client: &Client, ends: Vec<Ends>, patience: Option<u64>) -> Result<(), RpcError> {
    let patience = patience.map_or(Duration::MAX, Duration::from_millis);
    tokio::select! {
        _ = tokio::time::timeout(patience, join_all(ends)) => Ok(()),
        () = client.outbox.closed() => Err(gone()),
    }
}

async fn wait(client: &Client, asked: JobWait, after: &mut After) -> Answer {
    let daemon = &client.daemon;
    let found = daemon.find_jobs(&asked.jobs).await?;
    let ids: Vec<JobId> = found.iter().map(|row| row.id).collect();
    let jobs = ids.clone();
    let ends = daemon.ask_queue(|reply| QueueMsg::Await { jobs, reply }).await?;
    ended(client, ends, asked.timeout_ms).await?;
    after.large = client.large.clone().acquire_owned().await.ok();
    let now = rows_of(daemon, &ids).await?;
    value(&JobsWaited {
        jobs: now.into_iter().map(JobInfo::from).collect(),
    })
}

/// The jobs as they are now.
async fn rows_of(daemon: &Daemon, ids: &[JobId]) -> Result<Vec<JobRow>, RpcError> {
    let asked = ids.to_vec();
    let found: HashMap<JobId, JobRow> = daemon.read_jobs(move |reader| reader.jobs_of(&asked)).await?;
    let row = |id: &JobId| {
        let forgotten = || {
            RpcError::new(
                ErrorKind::NotFound,
                format!("job {id}"),
                "it was forgotten meanwhile",
            )
        };
        found.get(id).cloned().ok_or_else(forgotten)
    };
    ids.iter().map(row).collect()
}

async fn start_following(client: &Arc<Client>, asked: JobFollow, after: &mut After) -> Answer {
    let daemon = &client.daemon;
    let query = JobQuery {
        sessions: daemon.sessions_meant(client, asked.session.as_deref(), asked.all)?,
        group: asked.group,
        ..JobQuery::default()
    };
    let last = *daemon.jobs()?.last.borrow();
    let begin = asked.after_seq.unwrap_or(last);
    let way = subscribe(client, asked.window)?;
    let subscription = way.subscription;
    let pushing = follow::push(daemon.clone(), query, begin, way, behind(after));
    client.tasks.spawn(ending(client.clone(), subscription, pushing));
    value(&JobFollowing {
        subscription,
        after_seq: begin,
    })
}

async fn cancel(client: &Client, asked: JobCancel, after: &mut After) -> Answer {
    let daemon = &client.daemon;
    let mut found = daemon.find_jobs(&asked.jobs).await?;
    match &asked.group {
        Some(_) if !asked.jobs.is_empty() => {
            let why = "`jobs` and `group` exclude each other";
            return Err(RpcError::new(ErrorKind::InvalidParams, "job/cancel", why));
        }
        Some(group) => {
            let query = JobQuery {
                group: Some(group.clone()),
                states: vec![JobState::Queued, JobState::Starting, JobState::Running],
                limit: JOBS_MAX,
                ..JobQuery::default()
            };
            (found, _) = daemon.read_jobs(move |reader| reader.jobs(&query)).await?;
        }
        None => {}
    }
    for row in &found {
        daemon.may_touch(row.session, client.holder, &format!("cancel job {}", row.id))?;
    }
    let ids: Vec<JobId> = found.iter().map(|row| row.id).collect();
    let reason = asked.reason.unwrap_or_else(|| "a client cancelled it".to_owned());
    let (jobs, kill) = (ids.clone(), asked.kill);
    let ends = daemon.ask_queue(|reply| QueueMsg::Cancel {
        jobs,
        reason,
        kill,
        reply,
    });
    ended(client, ends.await?, None).await?;
    after.large = client.large.clone().acquire_owned().await.ok();
    let told = ids.get(..JOBS_PER_ANSWER_MAX).unwrap_or(&ids);
    let more = (ids.len() - told.len()) as u64;
    let mut cancelled = Vec::with_capacity(told.len());
    for row in rows_of(daemon, told).await? {
        let Some(end) = row.end else {
            let why = "the daemon ends before the job does";
            return Err(RpcError::new(
                ErrorKind::ShuttingDown,
                format!("cancel job {}", row.id),
                why,
            ));
        };
        cancelled.push(JobCancelled {
            job: row.id,
            cancelled: end.outcome == provost_actors::jobs::JobOutcome::Cancelled,
            end: JobEnd::from(end),
        });
    }
    value(&JobsCancelled {
        jobs: cancelled,
        more,
    })
}

async fn retry(client: &Client, asked: JobRetry) -> Result<JobsSubmitted, RpcError> {
    let daemon = &client.daemon;
    let mut submitted = Vec::new();
    let found = daemon.find_jobs(&asked.jobs).await?;
    for row in &found {
        let what = format!("retry job {}", row.id);
        daemon.may_touch(row.session, client.holder, &what)?;
        if row.state != JobState::Ended {
            let why = format!("it is {}", row.state.as_str());
            return Err(RpcError::new(ErrorKind::Conflict, what, why).hint("wait for it, or cancel it"));
        }
    }
    for row in found {
        let word = asked.request_id.as_ref().map(|word| format!("{word}/{}", row.id));
        submitted.push(daemon.submit_again(row, word).await?);
    }
    Ok(JobsSubmitted { jobs: submitted })
}

async fn inspect(daemon: &Daemon, row: JobRow) -> Result<JobInspected, RpcError> {
    let (id, spec) = (row.id, row.spec);
    let (spec, attempts, notices) = daemon
        .read_jobs(move |reader| Ok((reader.job_spec(spec)?, reader.attempts(id)?, reader.notices(id)?)))
        .await?;
    let shared = Shared::read(spec.as_deref(), id)?;
    let record = daemon.record_of(row.process).await;
    let notices: Result<Vec<JobNotice>, _> = notices.into_iter().map(JobNotice::try_from).collect();
    let unread = |error: serde_json::Error| {
        RpcError::new(ErrorKind::Internal, format!("job {id}"), error.to_string())
    };
    Ok(JobInspected {
        spec: Box::new(shared.spec_of(&row)),
        after: row
            .after
            .iter()
            .map(|(job, on)| crate::protocol::JobAfter {
                job: job.to_string(),
                on: *on,
            })
            .collect(),
        retry: row.retry.clone(),
        attempts: attempts.into_iter().map(Into::into).collect(),
        notices: notices.map_err(unread)?,
        record,
        job: row.into(),
    })
}

async fn group(daemon: &Daemon, asked: JobGroup) -> Result<JobGroupInfo, RpcError> {
    let name = asked.group.unwrap_or_else(|| DEFAULT_GROUP.to_owned());
    check_name(Some(&name))?;
    let what = format!("group `{name}`");
    let wrong = |why: &str| RpcError::new(ErrorKind::InvalidParams, what.as_str(), why);
    if asked.limit == Some(0) {
        return Err(wrong("`limit` is 0").hint("pause it instead"));
    }
    if asked.remove {
        if asked.limit.is_some() || asked.paused.is_some() {
            return Err(wrong("`remove` excludes everything else"));
        }
        let of = name.clone();
        let removed = daemon
            .ask_queue(|reply| QueueMsg::RemoveGroup { name: of, reply })
            .await?;
        if !removed.map_err(|error| unwritten(&what, &error))? {
            let why = "it has jobs that have not ended";
            return Err(RpcError::new(ErrorKind::Conflict, what, why).hint("cancel them, or wait"));
        }
        return Ok(group_info(name, Counts::default()));
    }
    let (of, temporary) = (name.clone(), asked.temporary);
    let counts = daemon.ask_queue(|reply| QueueMsg::Group {
        name: of,
        limit: asked.limit,
        paused: asked.paused,
        temporary,
        reply,
    });
    let counts = counts.await?.map_err(|error| unwritten(&what, &error))?;
    Ok(group_info(name, counts))
}

async fn groups(daemon: &Daemon) -> Result<Vec<JobGroupInfo>, RpcError> {
    let found = daemon.ask_queue(|reply| QueueMsg::Groups { reply }).await?;
    Ok(found
        .into_iter()
        .map(|(name, counts)| group_info(name, counts))
        .collect())
}

fn group_info(group: String, counts: Counts) -> JobGroupInfo {
    JobGroupInfo {
        group,
        limit: counts.limit,
        paused: counts.paused,
        queued: counts.queued,
        running: counts.running,
    }
}

async fn notify(client: &Client, asked: JobNotify) -> Result<JobNotice, RpcError> {
    let daemon = &client.daemon;
    let row = daemon.find_job(&asked.job).await?;
    let what = format!("notify of job {}", row.id);
    daemon.may_touch(row.session, client.holder, &what)?;
    let target = super::submit::target(&asked.target, &what)?;
    let jobs = daemon.jobs()?;
    let id = jobs.store.add_notice(row.id, target.clone()).await;
    let id = id.map_err(|error| unwritten(&what, &error))?;
    jobs.notices.expect();
    let notice = NoticeRow {
        id,
        job: row.id,
        target,
        delivered_at: None,
        tries: 0,
        error: None,
    };
    JobNotice::try_from(notice)
        .map_err(|error| RpcError::new(ErrorKind::Internal, what, error.to_string()))
}

/// When so many milliseconds have passed.
pub(super) fn then(now: Timestamp, wait_ms: u64) -> Timestamp {
    now.checked_add(Duration::from_millis(wait_ms))
        .unwrap_or(Timestamp::MAX)
}
