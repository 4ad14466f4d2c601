//! A daemon that begins where another ended: its sessions, its processes, and what was asked of it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use provost_actors::approval::ApprovalSummary;
use provost_actors::event::ProcessId;
use provost_actors::record::{DenialSummary, Outcome, RECORD_SCHEMA, TerminalRecord, TreeSummary};
use provost_actors::session::{OnDisconnect, OpenSession, SessionId};
use provost_actors::spool::{Found, Loaded as Journal};
use provost_actors::{ProcessLink, SessionLink};
use serde::{Deserialize, Serialize};

use super::Daemon;
use super::forget::erase;
use super::processes::Supervised;
use crate::store::{
    DenialRow, Loaded, ProcessRow, ProcessState, Request, SealedProcess, SessionRow, Store,
};

/// What the daemon writes down with a process that it accepts, besides its spec.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) name: Option<String>,
    pub(super) policy: String,
    pub(super) confined: bool,
    /// The client's word for its request, and what that was.
    pub(super) request: Option<(String, String)>,
}

/// What was found and taken up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Sessions that were open.
    pub sessions: usize,
    /// Processes without a record.
    pub live: usize,
    /// Processes with one.
    pub sealed: usize,
    /// Processes of which nothing can be read any more.
    pub unreadable: usize,
}

/// Nobody knows what there is to be taken up. Nothing was.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot look what is in the spool: {0}; what an earlier daemon left goes on, and waits for one that can"
)]
pub struct FindError(#[source] std::io::Error);

impl Daemon {
    /// Looks what an earlier daemon left in the state directory, and touches nothing.
    ///
    /// # Errors
    /// It cannot be seen. To go on would be to take everything for foreign, and to kill it.
    pub fn find_left(&self) -> Result<Found, FindError> {
        match self.0.tree.keeping() {
            Some(keeping) => keeping.spool.find().map_err(FindError),
            None => Ok(Found::default()),
        }
    }

    /// Takes up everything that was [found](Self::find_left). To be awaited before clients come.
    pub async fn recover(&self, loaded: Loaded, found: Found) -> Recovered {
        let mut recovered = Recovered::default();
        let (Some(kept), Some(keeping)) = (&self.0.kept, self.0.tree.keeping()) else {
            return recovered;
        };
        let (store, spool) = (&kept.store, &keeping.spool);
        recovered.sessions = self.restore_sessions(loaded.sessions).await;
        if !found.gone.is_empty()
            && let Err(error) = erase(store, spool, found.gone.clone()).await
        {
            tracing::error!(%error, "what was forgotten is still in the database");
        }
        for id in &found.live {
            let reading = spool.clone();
            let id = *id;
            let read = tokio::task::spawn_blocking(move || reading.load(id)).await;
            match read
                .map_err(|error| error.to_string())
                .and_then(|read| read.map_err(|e| e.to_string()))
            {
                Ok(journal) => {
                    recovered.live += 1;
                    self.take_up(store, journal).await;
                }
                Err(error) => {
                    tracing::error!(process = %id, error, "a journal cannot be read");
                    recovered.unreadable += 1;
                }
            }
        }
        let mut known: HashSet<ProcessId> = found.live.iter().copied().collect();
        let journals: HashSet<ProcessId> = found.sealed.iter().copied().collect();
        for SealedProcess { process, record } in loaded.sealed {
            if found.gone.binary_search(&process.id).is_ok() {
                continue;
            }
            known.insert(process.id);
            recovered.sealed += 1;
            let link = ProcessLink::ended(process.id, Arc::new(record), spool.clone());
            self.know(Supervised::restored(link, process));
        }
        // Sealed, and the daemon died before the database knew.
        for id in journals.difference(&known).copied().collect::<Vec<_>>() {
            let reading = spool.clone();
            let read = tokio::task::spawn_blocking(move || reading.load(id)).await;
            if let Ok(Ok(journal)) = read {
                recovered.sealed += 1;
                self.take_up(store, journal).await;
            }
        }
        for row in loaded.unsealed {
            if !known.contains(&row.id) && !journals.contains(&row.id) {
                self.seal_unknown(store, row).await;
                recovered.unreadable += 1;
            }
        }
        let strangers = self.0.tree.disown_rest();
        if strangers > 0 {
            tracing::error!(
                strangers,
                "the keeper held processes of which there is no journal; they were killed"
            );
        }
        let spool = spool.clone();
        let tidied = tokio::task::spawn_blocking(move || spool.remove_orphans(&found)).await;
        if let Ok(Err(error)) = tidied {
            tracing::warn!(%error, "the spool cannot be tidied up");
        }
        recovered
    }

    /// Sessions as they were, held by nobody. One that was to stop with its holder waits a while for that one to come back.
    async fn restore_sessions(&self, rows: Vec<SessionRow>) -> usize {
        let mut restored = 0;
        let grace = self.settings().reattach;
        for row in rows {
            let Ok(link) = self.0.tree.open_session(row.id.to_string()).await else {
                continue;
            };
            let give_up = (row.on_disconnect == OnDisconnect::Stop).then(|| Instant::now() + grace);
            let open = OpenSession {
                name: row.name,
                parent: row.parent,
                on_disconnect: row.on_disconnect,
                ttl: row.ttl,
                kept_bytes_max: row.kept_bytes_max,
            };
            let mut state = self.state();
            state.leases.restore(row.id, open, Instant::now(), give_up, link);
            restored += 1;
        }
        restored
    }

    /// Takes up what a journal tells of.
    async fn take_up(&self, store: &Store, journal: Journal) {
        let id = journal.accepted.process;
        let row = row(&journal);
        let session = self.session_link(row.session);
        if let Err(error) = store.accept(row.clone()).await {
            tracing::error!(process = %id, %error, "the database does not take it");
        }
        let link = match self.0.tree.adopt(session.as_ref(), journal).await {
            Ok(link) => link,
            Err(error) => {
                tracing::error!(process = %id, %error, "a process cannot be taken up again");
                return;
            }
        };
        let process = Supervised::restored(link, row);
        self.0.metrics.watch(&process);
        self.know(process);
    }

    fn session_link(&self, session: Option<SessionId>) -> Option<SessionLink> {
        let state = self.state();
        state.leases.get(session?).map(|lease| lease.value.clone())
    }

    /// Has it among the processes, and what came of its request among the requests.
    fn know(&self, mut process: Supervised) {
        let id = process.id();
        if let Some(session) = process.session {
            process.within = self.state().leases.ancestors(session);
        }
        if let Some(Request { id: word, asked }) = &process.request {
            super::lock(&self.0.starts).restore(word, asked, id);
        }
        let process = Arc::new(process);
        self.keep_record(&process);
        self.state().know(process);
    }

    /// Writes the record of a process down in the database, when it has one.
    pub(super) fn keep_record(&self, process: &Arc<Supervised>) {
        let Some(kept) = &self.0.kept else { return };
        if *process.filed.borrow() {
            return;
        }
        let (store, process) = (kept.store.clone(), process.clone());
        kept.records.spawn(async move {
            let record = process.link.sealed().await;
            let denials = process.link.log().await.denials().into_iter();
            let denials = denials.map(|(seq, time, denial)| DenialRow { seq, time, denial });
            // A full disk is the store's to report, and the journal has the record.
            if let Err(error) = store
                .sealed(TerminalRecord::clone(&record), denials.collect())
                .await
            {
                tracing::error!(process = %process.id(), %error, "a record is not in the database");
            }
            process.filed.send_replace(true);
        });
    }

    /// The database knows of it, and nothing else does.
    async fn seal_unknown(&self, store: &Store, row: ProcessRow) {
        let record = lost(&row, "its journal is gone");
        if let Err(error) = store.sealed(record.clone(), Vec::new()).await {
            tracing::error!(process = %row.id, %error, "a record is not in the database");
        }
        if let Some(keeping) = self.0.tree.keeping() {
            let link = ProcessLink::ended(row.id, Arc::new(record), keeping.spool.clone());
            self.know(Supervised::restored(link, row));
        }
    }
}

/// The row of a process of which there is a journal.
pub(super) fn row(journal: &Journal) -> ProcessRow {
    let accepted = &journal.accepted;
    let spec = accepted.spec.restore();
    let note: Option<Note> = serde_json::from_value(accepted.note.clone()).ok();
    let argv = spec.argv.iter().map(|word| word.to_string_lossy().into_owned());
    let request = note.as_ref().and_then(|note| note.request.clone());
    ProcessRow {
        id: accepted.process,
        session: accepted.session.as_deref().and_then(|id| id.parse().ok()),
        name: note.as_ref().and_then(|note| note.name.clone()),
        labels: spec.labels.clone(),
        argv: argv.collect(),
        cwd: Some(spec.cwd.to_string_lossy().into_owned()),
        policy: note.as_ref().map(|note| note.policy.clone()),
        confined: note.as_ref().is_some_and(|note| note.confined),
        request: request.map(|(id, asked)| Request { id, asked }),
        queued_at: Some(accepted.queued_at),
        boot_id: Some(accepted.boot.clone()),
        state: ProcessState::Accepted,
    }
}

/// The record of a process of which nothing else is known.
fn lost(row: &ProcessRow, why: &str) -> TerminalRecord {
    TerminalRecord {
        schema: RECORD_SCHEMA,
        process: row.id,
        session: row.session.map(|session| session.to_string()),
        labels: row.labels.clone(),
        argv: row.argv.clone(),
        outcome: Outcome::Lost,
        reason: Some(why.to_owned()),
        exit_code: None,
        signal: None,
        succeeded: false,
        denied: false,
        queued_at: row.queued_at,
        started_at: None,
        ended_at: Timestamp::now(),
        duration_ms: 0,
        output: BTreeMap::new(),
        denials: DenialSummary {
            total: 0,
            by_class: BTreeMap::new(),
            first: Vec::new(),
            probes: BTreeMap::new(),
            complete: false,
            unobserved: vec!["everything".to_owned()],
        },
        approvals: ApprovalSummary::default(),
        usage: None,
        tree: TreeSummary::default(),
        sandbox: None,
        last_seq: 1,
    }
}
