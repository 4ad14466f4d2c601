//! What is written down before it is answered: new jobs, and groups.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use provost_actors::jobs::JobId;
use provost_actors::jobs::schedule::Counts;

use super::decisions::plan;
use super::{Job, State, SubmitError};
use crate::protocol::{JOBS_MAX, ProcessStart};
use crate::store::{GroupRow, JobRow, StoreError, Submitted};

impl State {
    pub(super) async fn submit(
        &mut self,
        spec: Arc<ProcessStart>,
        rows: Vec<JobRow>,
        notices: Vec<String>,
    ) -> Result<Submitted, SubmitError> {
        if self.jobs.len() + rows.len() > JOBS_MAX {
            return Err(SubmitError::Full);
        }
        // Of those that it is to come after and are not here; what is here is known better here.
        let after: HashSet<JobId> = rows
            .iter()
            .flat_map(|row| row.after.iter().map(|(job, _)| *job))
            .collect();
        let elsewhere: Vec<JobId> = after
            .into_iter()
            .filter(|job| !self.jobs.contains_key(job))
            .collect();
        let ended = match elsewhere.is_empty() {
            true => HashMap::new(),
            false => {
                let read = self.store.read(move |reader| reader.jobs_of(&elsewhere));
                read.await.map_err(SubmitError::Store)?
            }
        };
        // The last thing that can fail: what is written down is queued, whoever asked.
        let json = serde_json::to_string(&*spec).unwrap_or_default();
        let to_tell = !notices.is_empty();
        let written = self.store.submit_jobs(json, rows.clone(), notices).await;
        let submitted = match written {
            Ok(Ok(submitted)) => submitted,
            Ok(Err(place)) => return Err(SubmitError::Conflict(place)),
            Err(error) => return Err(SubmitError::Store(error)),
        };
        if to_tell {
            self.notices.expect();
        }
        let mut skipped = Vec::new();
        for (mut row, (id, repeated)) in rows.into_iter().zip(&submitted.jobs) {
            if *repeated {
                continue;
            }
            row.spec = submitted.spec;
            let plan = plan(&row);
            let known = |job: JobId| {
                let here = self.jobs.get(&job).map(|job| &job.row);
                let end = here.or_else(|| ended.get(&job))?.end.as_ref()?;
                Some((end.outcome, end.succeeded))
            };
            skipped.extend(self.schedule.add(*id, plan, known));
            let spec = spec.clone();
            let job = Job {
                row,
                spec,
                link: None,
                waiting: Vec::new(),
            };
            self.jobs.insert(*id, job);
        }
        self.last.send_replace(submitted.seq);
        self.skip(skipped);
        Ok(submitted)
    }

    pub(super) async fn group(
        &mut self,
        name: String,
        limit: Option<usize>,
        paused: Option<bool>,
        temporary: bool,
    ) -> Result<Counts, StoreError> {
        let known = self.groups.get(&name);
        let row = GroupRow {
            name: name.clone(),
            limit: limit.or_else(|| known.and_then(|known| known.limit)),
            paused: paused.unwrap_or_else(|| known.is_some_and(|known| known.paused)),
            temporary: known.map_or(temporary, |known| known.temporary),
        };
        if known != Some(&row) {
            self.store.set_group(row.clone()).await?;
            self.schedule.set_group(&name, row.limit, row.paused);
            self.groups.insert(name.clone(), row);
        }
        Ok(self.schedule.counts(&name))
    }

    pub(super) async fn remove_group(&mut self, name: String) -> Result<bool, StoreError> {
        let counts = self.schedule.counts(&name);
        if counts.queued + counts.running > 0 {
            return Ok(false);
        }
        self.store.remove_group(name.clone()).await?;
        self.groups.remove(&name);
        Ok(self.schedule.remove_group(&name))
    }
}
