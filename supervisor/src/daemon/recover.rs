//! A daemon that begins where another ended: its sessions, its processes, and what was asked of it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use provost_actors::approval::ApprovalSummary;
use provost_actors::event::ProcessId;
use provost_actors::record::{DenialSummary, Outcome, RECORD_SCHEMA, TerminalRecord, TreeSummary};
use provost_actors::session::{OnDisconnect, OpenSession, SessionId};
use provost_actors::spool::{Found, LoadError, Loaded as Journal, Spool, SpoolError};
use provost_actors::{ProcessLink, SessionLink};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::Daemon;
use super::forget::erase;
use super::processes::Supervised;
use crate::store::{
    DenialRow, Loaded, ProcessRow, ProcessState, Request, SealedProcess, SessionRow, Store, StoreError,
};

/// A process that has ended by then is written down once, with its record.
const SHORT: Duration = Duration::from_millis(20);
/// Between two attempts to write a record down, at least: a database that can be written may still refuse this.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

/// What the daemon writes down with a process that it accepts, besides its spec.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) name: Option<String>,
    pub(super) policy: String,
    pub(super) confined: bool,
    /// The client's word for its request, and what that was.
    pub(super) request: Option<(String, String)>,
}

/// How long journals are tried that cannot be read.
const UNREAD_MAX: Duration = Duration::from_secs(5);
/// Between two attempts: descriptors that are free again, and a disk that answers again, are announced by nobody.
const UNREAD_AGAIN: Duration = Duration::from_millis(100);

/// What was found and taken up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Sessions that were open.
    pub sessions: usize,
    /// Processes without a record.
    pub live: usize,
    /// Processes with one.
    pub sealed: usize,
    /// Processes of which nothing can be read any more: each has a record that says so.
    pub unreadable: usize,
}

/// Nobody knows what there is to be taken up. Nothing was.
#[derive(Debug, thiserror::Error)]
#[error("{why}; what an earlier daemon left goes on, and waits for one that can")]
pub struct FindError {
    why: String,
}

/// What an earlier daemon left in the state directory.
#[derive(Debug, Default)]
pub struct Left {
    found: Found,
    /// Of those without a record.
    journals: Vec<Journal>,
    /// Of these there is a journal, and why it tells nothing and never will.
    damaged: Vec<(ProcessId, LoadError)>,
}

impl Daemon {
    /// Looks what an earlier daemon left in the state directory, and takes nothing up. What cannot be read is tried again for
    /// some seconds.
    ///
    /// # Errors
    /// Something of it cannot be read. To go on would be to take what belongs to that for foreign, and to kill it.
    pub async fn find_left(&self) -> Result<Left, FindError> {
        let mut left = Left::default();
        let Some(keeping) = self.0.tree.keeping() else {
            return Ok(left);
        };
        left.found = keeping.spool.find().map_err(|error| FindError {
            why: format!("cannot look what is in the spool: {error}"),
        })?;
        let deadline = Instant::now() + UNREAD_MAX;
        for id in left.found.live.iter().copied() {
            match load(&keeping.spool, id, deadline).await {
                Ok(journal) => left.journals.push(journal),
                Err(LoadError::Unread(error)) => {
                    let why = format!("a journal cannot be read: {error}");
                    return Err(FindError { why });
                }
                Err(error) => left.damaged.push((id, error)),
            }
        }
        Ok(left)
    }

    /// Takes up everything that was [found](Self::find_left). To be awaited before clients come.
    pub async fn recover(&self, loaded: Loaded, left: Left) -> Recovered {
        let mut recovered = Recovered::default();
        let (Some(kept), Some(keeping)) = (&self.0.kept, self.0.tree.keeping()) else {
            return recovered;
        };
        let (store, spool) = (&kept.store, &keeping.spool);
        let found = left.found;
        recovered.sessions = self.restore_sessions(loaded.sessions).await;
        if !found.gone.is_empty()
            && let Err(error) = erase(store, spool, found.gone.clone()).await
        {
            tracing::error!(%error, "what was forgotten is still in the database");
        }
        let mut told = records_of(store, &left.journals).await;
        let mut believed = HashSet::new();
        for mut journal in left.journals {
            if let Some(record) = told.remove(&journal.accepted.process) {
                // There was no room for it in the journal, and somebody was told.
                believed.insert(record.process);
                let believing = tokio::task::spawn_blocking(move || {
                    journal.believe(record);
                    journal
                });
                journal = match believing.await {
                    Ok(journal) => journal,
                    Err(error) => {
                        tracing::error!(%error, "a process cannot be taken up again");
                        continue;
                    }
                };
                recovered.sealed += 1;
            } else {
                recovered.live += 1;
            }
            self.take_up(store, journal).await;
        }
        let mut unsealed: BTreeMap<_, _> =
            loaded.unsealed.into_iter().map(|row| (row.id, row)).collect();
        for (id, error) in left.damaged {
            let row = unsealed.remove(&id);
            recovered.unreadable += usize::from(self.give_up(store, row, id, &error).await);
        }
        let mut known: HashSet<ProcessId> = found.live.iter().copied().collect();
        let journals: HashSet<ProcessId> = found.sealed.iter().copied().collect();
        for SealedProcess { process, record } in loaded.sealed {
            if found.gone.binary_search(&process.id).is_ok() || believed.contains(&process.id) {
                continue;
            }
            known.insert(process.id);
            recovered.sealed += 1;
            let link = ProcessLink::ended(process.id, Arc::new(record), spool.clone());
            self.know(Supervised::restored(link, process));
        }
        // Sealed, and the daemon died before the database knew.
        for id in journals.difference(&known).copied() {
            match load(spool, id, Instant::now()).await {
                Ok(journal) => {
                    recovered.sealed += 1;
                    self.take_up(store, journal).await;
                }
                Err(error @ LoadError::Unread(_)) => {
                    tracing::error!(process = %id, %error, "an ended process is not to be seen until the next start");
                }
                Err(error) => {
                    let row = unsealed.remove(&id);
                    recovered.unreadable += usize::from(self.give_up(store, row, id, &error).await);
                }
            }
        }
        for row in unsealed.into_values() {
            if !known.contains(&row.id) && !journals.contains(&row.id) {
                self.seal_lost(store, row, "its journal is gone").await;
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
        let accepted = store.accept(row.clone()).await;
        if let Err(error) = &accepted {
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
        process.unwritten.store(accepted.is_err(), Ordering::Relaxed);
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

    /// Writes a process down in the database, and its record when it has one; where that cannot be written, as soon as it can.
    /// Nobody waits for it: the journal has all of it, and is read before the database is believed.
    pub(super) fn keep_record(&self, process: &Arc<Supervised>) {
        self.0.house.stir();
        let Some(kept) = &self.0.kept else { return };
        if *process.filed.borrow() {
            return;
        }
        let (store, process) = (kept.store.clone(), process.clone());
        kept.records.spawn(async move {
            let record = match timeout(SHORT, process.link.sealed()).await {
                Ok(record) => record,
                Err(_) => {
                    begin(&store, &process).await;
                    process.link.sealed().await
                }
            };
            let denials = process.link.log().await.denials().into_iter();
            let denials = denials.map(|(seq, time, denial)| DenialRow { seq, time, denial });
            let denials: Vec<_> = denials.collect();
            let mut said = false;
            while let Err(error) = file(&store, &process, &record, &denials).await {
                // The journal has it, and what keeps it out is the store's to report.
                if !std::mem::replace(&mut said, true) {
                    tracing::error!(process = %process.id(), %error, "a record is not in the database");
                }
                if !error.may_pass() {
                    break;
                }
                let again = async { tokio::join!(tokio::time::sleep(AGAIN), store.writable()) };
                tokio::select! {
                    _ = again => {}
                    // It would come back.
                    () = process.forgotten.cancelled() => break,
                }
            }
            process.filed.send_replace(true);
        });
    }

    /// There is a journal of it, from which it will never be taken up: it is killed, and gets a record that says so. False if
    /// it has one already, or there never was such a process.
    async fn give_up(
        &self,
        store: &Store,
        row: Option<ProcessRow>,
        id: ProcessId,
        error: &LoadError,
    ) -> bool {
        let Some(spool) = self.0.tree.keeping().map(|keeping| keeping.spool.clone()) else {
            return false;
        };
        let was_held = self.0.tree.disown(id).await;
        let has_record = matches!(store.sealed_process(id).await, Ok(Some(_)));
        if let (LoadError::Short(_), None, false, false) = (error, &row, was_held, has_record) {
            // An earlier daemon died while it began to accept it: nobody was told, and nothing was started.
            tracing::info!(process = %id, "a process was not accepted to the end");
            if let Err(error) = erase(store, &spool, vec![id]).await {
                tracing::warn!(process = %id, %error, "it cannot be forgotten");
            }
            return false;
        }
        tracing::error!(process = %id, %error, was_held, "a process cannot be taken up, and is given up");
        let sealed = has_record || {
            let row = row.unwrap_or_else(|| unknown(id));
            let why = format!("its journal is damaged, so that it was killed: {error}");
            self.seal_lost(store, row, &why).await
        };
        // Until there is a record the next daemon has to find it.
        if sealed {
            match tokio::task::spawn_blocking(move || spool.set_aside(id)).await {
                Ok(Ok(())) => {}
                failed => {
                    tracing::error!(process = %id, ?failed, "a damaged journal cannot be moved aside")
                }
            }
        }
        !has_record
    }

    /// Gives a process a record of which nothing but its row is known; whether the database has it.
    async fn seal_lost(&self, store: &Store, row: ProcessRow, why: &str) -> bool {
        let record = lost(&row, why);
        let sealed = store.sealed(record.clone(), Vec::new()).await;
        if let Err(error) = &sealed {
            tracing::error!(process = %row.id, %error, "a record is not in the database");
        }
        if let Some(keeping) = self.0.tree.keeping() {
            let link = ProcessLink::ended(row.id, Arc::new(record), keeping.spool.clone());
            self.know(Supervised::restored(link, row));
        }
        sealed.is_ok()
    }
}

/// Reads a journal; if it cannot be read, tries that again until then.
async fn load(spool: &Arc<Spool>, id: ProcessId, deadline: Instant) -> Result<Journal, LoadError> {
    let mut failed_before = false;
    loop {
        let reading = spool.clone();
        let read = match tokio::task::spawn_blocking(move || reading.load(id)).await {
            Ok(read) => read,
            Err(error) => Err(LoadError::Unread(SpoolError {
                path: id.to_string(),
                why: error.to_string(),
            })),
        };
        match read {
            Err(LoadError::Unread(error)) if Instant::now() < deadline => {
                if !std::mem::replace(&mut failed_before, true) {
                    tracing::warn!(%error, "a journal cannot be read: it is tried again");
                }
                tokio::time::sleep(UNREAD_AGAIN).await;
            }
            read => return read,
        }
    }
}

/// The records that the database has of processes whose journals have none.
async fn records_of(store: &Store, journals: &[Journal]) -> BTreeMap<ProcessId, TerminalRecord> {
    let unsealed = journals.iter().filter(|journal| journal.record.is_none());
    let ids: Vec<ProcessId> = unsealed.map(|journal| journal.accepted.process).collect();
    let read = store.read(move |reader| {
        let mut records = BTreeMap::new();
        for id in ids {
            if let Some(sealed) = reader.sealed(id)? {
                records.insert(id, sealed.record);
            }
        }
        Ok(records)
    });
    read.await.unwrap_or_else(|error| {
        tracing::error!(%error, "the database does not tell which processes have ended");
        BTreeMap::new()
    })
}

/// What is known of a process that no row tells of.
fn unknown(id: ProcessId) -> ProcessRow {
    ProcessRow {
        id,
        session: None,
        name: None,
        labels: BTreeMap::new(),
        argv: Vec::new(),
        cwd: None,
        policy: None,
        confined: false,
        request: None,
        queued_at: None,
        boot_id: None,
        state: ProcessState::Accepted,
    }
}

/// Writes down that a process was accepted. Where that cannot be, it is written with its record.
async fn begin(store: &Store, process: &Supervised) {
    if !process.unwritten.load(Ordering::Relaxed) {
        return;
    }
    match store.accept(process.row()).await {
        Ok(_) => process.unwritten.store(false, Ordering::Relaxed),
        Err(error) => {
            tracing::error!(process = %process.id(), %error, "the database does not take it");
        }
    }
}

/// Writes a record down, with what is to be known of its process.
async fn file(
    store: &Store,
    process: &Supervised,
    record: &TerminalRecord,
    denials: &[DenialRow],
) -> Result<(), StoreError> {
    if process.unwritten.load(Ordering::Relaxed) {
        // Before the record, which would make a row that knows less, and that stays.
        match store.accept(process.row()).await {
            // Then there is room for the record alone.
            Ok(_) | Err(StoreError::Full { .. }) => {}
            Err(error) => return Err(error),
        }
        process.unwritten.store(false, Ordering::Relaxed);
    }
    store.sealed(record.clone(), denials.to_vec()).await
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
        result: None,
        result_error: None,
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
