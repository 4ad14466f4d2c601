//! Submitting jobs: what is wrong with them at once, and what they share.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use provost_actors::jobs::{AfterRule, JobId, JobState};
use provost_actors::session::Holder;

use super::queue::{QueueMsg, SubmitError};
use super::requests::{then, unwritten};
use crate::daemon::Daemon;
use crate::daemon::sessions::check_name;
use crate::daemon::start::{REQUEST_ID_BYTES_MAX, digest};
use crate::protocol::{
    DEFAULT_GROUP, ErrorKind, JOBS_MAX, JOBS_PER_SUBMIT_MAX, JobItem, JobNotifyTarget, JobSubmit,
    JobSubmitted, JobsSubmitted, ProcessStart, RpcError, starting,
};
use crate::store::{JobRow, Request, Submitted};

/// What is written once for the jobs of one submission: their spec without what each has of its own.
pub(super) struct Shared(pub(super) ProcessStart);

impl Shared {
    fn of(spec: &ProcessStart) -> Self {
        Self(ProcessStart {
            argv: Vec::new(),
            labels: std::collections::BTreeMap::new(),
            name: None,
            session: None,
            ..spec.clone()
        })
    }

    /// What was written for this job, if the job was not forgotten since it was found.
    pub(super) fn read(json: Option<&str>, job: JobId) -> Result<Self, RpcError> {
        let gone = || {
            let why = "it was forgotten meanwhile";
            RpcError::new(ErrorKind::NotFound, format!("job {job}"), why)
        };
        serde_json::from_str(json.ok_or_else(gone)?)
            .map(Self)
            .map_err(|error| RpcError::new(ErrorKind::Internal, "read a job's spec", error.to_string()))
    }

    /// What a job runs.
    pub(super) fn spec_of(&self, row: &JobRow) -> ProcessStart {
        ProcessStart {
            argv: row.argv.clone(),
            labels: row.labels.clone(),
            name: row.name.clone(),
            session: row.session.map(|session| session.to_string()),
            ..self.0.clone()
        }
    }
}

/// A target, as it is written down.
pub(super) fn target(target: &JobNotifyTarget, what: &str) -> Result<String, RpcError> {
    let wrong = |why: String| RpcError::new(ErrorKind::InvalidParams, what, why);
    let path = match target {
        JobNotifyTarget::Command { argv, .. } if argv.is_empty() => {
            return Err(wrong("the command of a target is empty".to_owned()));
        }
        JobNotifyTarget::Command { cwd: path, .. }
        | JobNotifyTarget::Socket(path)
        | JobNotifyTarget::File(path) => path,
    };
    if !path.starts_with('/') {
        return Err(wrong(format!("`{path}` must be absolute")));
    }
    serde_json::to_string(target).map_err(|error| wrong(error.to_string()))
}

impl Daemon {
    pub(super) async fn submit_jobs(
        &self,
        asked: JobSubmit,
        holder: Holder,
    ) -> Result<JobsSubmitted, RpcError> {
        let what = format!("submit: {}", starting(&asked.spec.argv));
        let wrong = |why: String| RpcError::new(ErrorKind::InvalidParams, what.as_str(), why);
        if self.0.stopping.is_cancelled() {
            let why = "the daemon is stopping";
            return Err(RpcError::new(ErrorKind::ShuttingDown, what, why));
        }
        let spec = &asked.spec;
        if spec.request_id.is_some() || spec.stdin || spec.follow || spec.window.is_some() {
            let why = "a job's `spec` has no `request_id`, `stdin`, `follow` and `window`";
            return Err(wrong(why.to_owned()).hint("`request_id` belongs to each of `jobs`"));
        }
        if asked.jobs.is_empty() || asked.jobs.len() > JOBS_PER_SUBMIT_MAX {
            let why = format!("`jobs` has {}, want 1 to {JOBS_PER_SUBMIT_MAX}", asked.jobs.len());
            return Err(wrong(why));
        }
        let group = asked.group.clone().unwrap_or_else(|| DEFAULT_GROUP.to_owned());
        check_name(Some(&group))?;
        let session = match &spec.session {
            Some(session) => {
                let id = self.find_session(session)?;
                self.may_touch(Some(id), holder, &what)?;
                Some(id)
            }
            None => None,
        };
        self.check_spec(&asked, &what)?;
        let mut after: Vec<(JobId, AfterRule)> = Vec::new();
        for before in &asked.after {
            after.push((self.find_job(&before.job).await?.id, before.on));
        }
        let notices: Result<Vec<String>, RpcError> =
            asked.notify.iter().map(|one| target(one, &what)).collect();
        let notices = notices?;
        let shared_word = digest(&JobSubmit {
            jobs: Vec::new(),
            ..asked.clone()
        });
        let now = self.steady_now();
        let mut words: HashSet<&str> = HashSet::new();
        let mut rows = Vec::with_capacity(asked.jobs.len());
        for item in &asked.jobs {
            check_name(item.name.as_deref())?;
            let argv = item.argv.as_ref().unwrap_or(&spec.argv);
            if argv.is_empty() {
                return Err(wrong("`argv` is empty".to_owned()));
            }
            if let Some(word) = &item.request_id
                && (word.len() > REQUEST_ID_BYTES_MAX || !words.insert(word))
            {
                let why = format!(
                    "`request_id` `{word}` is there twice, or longer than {REQUEST_ID_BYTES_MAX} bytes"
                );
                return Err(wrong(why));
            }
            let request = item.request_id.as_ref().map(|word| {
                let alike = JobItem {
                    request_id: None,
                    ..item.clone()
                };
                Request {
                    id: word.clone(),
                    asked: digest(&(&shared_word, alike)),
                }
            });
            let mut labels = spec.labels.clone();
            labels.extend(item.labels.clone());
            rows.push(JobRow {
                id: JobId::new(),
                request,
                session,
                name: item.name.clone().or_else(|| spec.name.clone()),
                labels,
                argv: argv.clone(),
                group: group.clone(),
                priority: asked.priority,
                after: after.clone(),
                retry: asked.retry.clone().unwrap_or_default(),
                submitted_at: now,
                not_before: (asked.delay_ms > 0).then(|| then(now, asked.delay_ms)),
                deadline: asked.deadline_ms.map(|deadline| then(now, deadline)),
                retry_of: None,
                state: JobState::Queued,
                attempt: 0,
                process: None,
                cancel: None,
                spec: 0,
                end: None,
            });
        }
        let shared = Shared::of(spec);
        let submitted = self.queue_jobs(shared, rows, notices, &what).await?;
        let jobs = submitted.jobs.into_iter();
        Ok(JobsSubmitted {
            jobs: jobs
                .map(|(job, repeated)| JobSubmitted { job, repeated })
                .collect(),
        })
    }

    /// What can be seen to be wrong at once. What depends on files may have changed when the job starts.
    fn check_spec(&self, asked: &JobSubmit, what: &str) -> Result<(), RpcError> {
        check_name(asked.spec.name.as_deref())?;
        let mut spec = asked.spec.clone();
        if spec.argv.is_empty() {
            spec.argv = vec!["of each job".to_owned()];
        }
        let output_bytes = self.settings().output_bytes;
        match self.spec(&spec, what, output_bytes, None) {
            Err(error) if error.data.kind == ErrorKind::InvalidParams => Err(error),
            _ => Ok(()),
        }
    }

    /// Submits an ended job once more, as another one.
    pub(super) async fn submit_again(
        &self,
        row: JobRow,
        word: Option<String>,
    ) -> Result<JobSubmitted, RpcError> {
        let what = format!("retry job {}", row.id);
        let (old, spec) = (row.id, row.spec);
        let (spec, notices) = self
            .read_jobs(move |reader| Ok((reader.job_spec(spec)?, reader.notices(old)?)))
            .await?;
        let shared = Shared::read(spec.as_deref(), old)?;
        let again = JobRow {
            id: JobId::new(),
            request: word.map(|id| Request {
                id,
                asked: digest(&("retry", old)),
            }),
            after: Vec::new(),
            submitted_at: Timestamp::now(),
            not_before: None,
            deadline: None,
            retry_of: Some(old),
            state: JobState::Queued,
            attempt: 0,
            process: None,
            cancel: None,
            spec: 0,
            end: None,
            ..row
        };
        let notices = notices.into_iter().map(|notice| notice.target).collect();
        let submitted = self.queue_jobs(shared, vec![again], notices, &what).await?;
        let first = submitted.jobs.first().copied();
        let (job, repeated) =
            first.ok_or_else(|| RpcError::new(ErrorKind::Internal, what, "nothing was submitted"))?;
        Ok(JobSubmitted { job, repeated })
    }

    async fn queue_jobs(
        &self,
        shared: Shared,
        rows: Vec<JobRow>,
        notices: Vec<String>,
        what: &str,
    ) -> Result<Submitted, RpcError> {
        let words: Vec<Option<String>> = rows
            .iter()
            .map(|row| row.request.as_ref().map(|request| request.id.clone()))
            .collect();
        let submitted = self.ask_queue(|reply| QueueMsg::Submit {
            spec: Arc::new(shared.0),
            rows,
            notices,
            reply,
        });
        submitted.await?.map_err(|error| match error {
            SubmitError::Conflict(place) => {
                let word = words.get(place).cloned().flatten().unwrap_or_default();
                let why = format!("another job had the request_id `{word}`");
                RpcError::new(ErrorKind::Conflict, what, why).hint("use a new one for a new job")
            }
            SubmitError::Full => {
                let why = format!("there are {JOBS_MAX} jobs that have not ended, with these");
                RpcError::new(ErrorKind::Limit, what, why).hint("wait until some have ended")
            }
            SubmitError::Store(error) => unwritten(what, &error),
        })
    }
}
