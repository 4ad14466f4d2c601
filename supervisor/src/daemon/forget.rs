//! Forgetting processes that have ended: in memory, in the database and on disk together.
//!
//! ```text
//! mark the journal (.gone) ─► delete the rows ─► remove the files, the mark last
//! ```
//!
//! Whatever stands between two of these steps, the next start sees the mark and does the rest.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use provost_actors::event::ProcessId;
use provost_actors::spool::Spool;

use super::processes::Supervised;
use super::{Daemon, Kept};
use crate::protocol::{ProcessPrune, RpcError};
use crate::store::{Retention, Store, StoreError};

/// How long records of processes that have ended may take into the database, before they are forgotten all the same.
const FILED_MAX: Duration = Duration::from_secs(10);
/// Forgotten in one step: others wait that long.
const BATCH: usize = 64;

/// How many of those that were forgotten are known to have been there.
const FORGOTTEN_MAX: usize = 10_000;

/// Which processes were forgotten last, since the daemon started.
#[derive(Debug, Default)]
pub(super) struct Forgotten(VecDeque<(ProcessId, bool)>);

impl Forgotten {
    /// It is forgotten now; a client that is confined itself had started it, or not.
    pub(super) fn note(&mut self, id: ProcessId, confined: bool) {
        if self.0.len() == FORGOTTEN_MAX {
            self.0.pop_front();
        }
        self.0.push_back((id, confined));
    }

    /// Whether it was there, for somebody who would have found it.
    pub(super) fn has(&self, id: ProcessId, confined_only: bool) -> bool {
        let mut all = self.0.iter();
        all.any(|(known, confined)| *known == id && (*confined || !confined_only))
    }
}

impl Daemon {
    /// Forgets processes that have ended; how many.
    pub(super) async fn prune(&self, request: &ProcessPrune) -> Result<usize, RpcError> {
        let within = match &request.session {
            Some(session) => Some(self.find_session(session)?),
            None => None,
        };
        let age = Duration::from_millis(request.older_than_ms);
        let before = Timestamp::now().checked_sub(age).unwrap_or(Timestamp::MIN);
        let forgotten: Vec<Arc<Supervised>> = {
            let mut state = self.state();
            let goes = |process: &Supervised| {
                let elsewhere = within.is_some() && process.session != within;
                !elsewhere
                    && process
                        .link
                        .record()
                        .is_some_and(|record| record.ended_at <= before)
            };
            let all = std::mem::take(&mut state.processes);
            let (gone, left) = all.into_iter().partition(|(_, process)| goes(process));
            state.processes = left;
            let gone: std::collections::BTreeMap<_, Arc<Supervised>> = gone;
            for (id, process) in &gone {
                state.forgotten.note(*id, process.confined);
            }
            gone.into_values().collect()
        };
        forgotten
            .iter()
            .for_each(|process: &Arc<Supervised>| process.forgotten.cancel());
        let count = forgotten.len();
        self.remove(forgotten).await;
        Ok(count)
    }

    /// Removes everything that is kept of processes that nobody finds any more.
    pub(super) async fn remove(&self, processes: Vec<Arc<Supervised>>) {
        let (Some(kept), Some(keeping)) = (&self.0.kept, self.0.tree.keeping()) else {
            return;
        };
        let patience = tokio::time::Instant::now() + FILED_MAX;
        for batch in processes.chunks(BATCH) {
            for process in batch {
                // Else its record would come into the database after it was deleted there.
                let mut filed = process.filed.subscribe();
                let _ = tokio::time::timeout_at(patience, filed.wait_for(|filed| *filed)).await;
            }
            let ids = batch.iter().map(|process| process.id()).collect();
            if let Err(error) = erase(&kept.store, &keeping.spool, ids).await {
                tracing::error!(%error, "what was forgotten is removed at the next start");
            }
        }
    }

    /// What is done now and then, and may wait for the disk. Whether anything was forgotten.
    pub(super) async fn tidy(&self, sweep: bool) -> bool {
        let daemon = self.clone();
        let looked = tokio::task::spawn_blocking(move || {
            if let Some(keeping) = daemon.0.tree.keeping() {
                keeping.spool.recover_room();
            }
            daemon.keep_within_bounds()
        });
        let forgotten = looked.await.unwrap_or_default();
        let forgot = !forgotten.is_empty();
        if let Some(kept) = &self.0.kept {
            // First: what is removed may wait for it.
            kept.store.recover().await;
        }
        self.remove(forgotten).await;
        let (Some(kept), Some(keeping)) = (&self.0.kept, self.0.tree.keeping()) else {
            return forgot;
        };
        let filed = |process: &Arc<Supervised>| *process.filed.borrow() && process.link.holds_events();
        let processes: Vec<_> = {
            let state = self.state();
            let all = state.processes.values();
            all.filter(|process| filed(process)).cloned().collect()
        };
        if !processes.is_empty() {
            let letting_go = tokio::task::spawn_blocking(move || {
                processes.iter().for_each(|process| process.link.let_go());
            });
            let _ = letting_go.await;
        }
        if sweep && let Err(error) = self.sweep(kept, &keeping.spool).await {
            tracing::error!(%error, "what is too old cannot be forgotten");
        }
        forgot
    }

    /// Forgets what is older, and more, than is to be kept on disk.
    async fn sweep(&self, kept: &Kept, spool: &Arc<Spool>) -> Result<(), StoreError> {
        let settings = self.settings();
        let retention = Retention {
            age_max: settings.records_age,
            bytes_max: settings.records_bytes,
        };
        let victims = kept.store.expired(retention).await?;
        for batch in victims.chunks(BATCH) {
            {
                let mut state = self.state();
                for id in batch {
                    let process = state.processes.remove(id);
                    if let Some(process) = &process {
                        process.forgotten.cancel();
                    }
                    let confined = process.is_some_and(|process| process.confined);
                    state.forgotten.note(*id, confined);
                }
            }
            erase(&kept.store, spool, batch.to_vec()).await?;
        }
        kept.store.forget_sessions(settings.records_age).await
    }

    /// What does not work as it should, in words.
    pub(super) fn degraded(&self) -> Vec<String> {
        let mut degraded = Vec::new();
        let (Some(kept), Some(keeping)) = (&self.0.kept, self.0.tree.keeping()) else {
            return degraded;
        };
        degraded.extend(keeping.spool.trouble());
        degraded.extend(kept.store.health().trouble());
        if let Some((_, Some(why))) = self.0.tree.keeper() {
            degraded.push(format!(
                "the keeper is gone ({why}): the next start of a process makes a new one"
            ));
        }
        degraded
    }
}

/// Deletes rows and files.
pub(super) async fn erase(
    store: &Store,
    spool: &Arc<Spool>,
    processes: Vec<ProcessId>,
) -> Result<(), StoreError> {
    let (marking, ids) = (spool.clone(), processes.clone());
    let _ = tokio::task::spawn_blocking(move || marking.mark_gone(&ids)).await;
    store.forget(processes.clone()).await?;
    let spool = spool.clone();
    let ids: HashSet<ProcessId> = processes.into_iter().collect();
    let removed = tokio::task::spawn_blocking(move || spool.remove(&ids)).await;
    if let Ok(Err(error)) = removed {
        tracing::warn!(%error, "files are left in the spool until the next start");
    }
    Ok(())
}
