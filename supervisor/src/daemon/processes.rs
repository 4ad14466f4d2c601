//! The processes that a daemon knows, live and ended.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use provost_actors::ProcessLink;
use provost_actors::event::{Event, EventBody, ProcessId};
use provost_actors::log::Cursor;
use provost_actors::session::SessionId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{Daemon, lock};
use crate::protocol::{ErrorKind, Events, ProcessInfo, ProcessList, ProcessRead, RpcError, Written};
use crate::store::{ProcessRow, ProcessState, Request};

/// What a read gives at most, unless it says less.
const READ_BYTES: usize = 1 << 20;
/// Events of one answer.
const READ_EVENTS_MAX: usize = 4096;
/// Bytes of writes, as they are sent, that wait for one process to read them: so many that one line always fits.
const WRITES_BYTES_MAX: usize = 16 << 20;
/// What a write takes besides.
const WRITE_BYTES: usize = 1024;
/// The longest that a read waits.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// A process that was accepted.
#[derive(Debug)]
pub(super) struct Supervised {
    pub(super) link: ProcessLink,
    pub(super) session: Option<SessionId>,
    /// Its session and those that this is part of, whatever becomes of them.
    pub(super) within: Vec<SessionId>,
    pub(super) name: Option<String>,
    pub(super) argv: Vec<String>,
    pub(super) cwd: String,
    pub(super) policy: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) started_at: Timestamp,
    /// A client that is confined itself started it.
    pub(super) confined: bool,
    /// What its client called its request.
    pub(super) request: Option<Request>,
    /// Its record is in the database, or never will be: it can be forgotten.
    pub(super) filed: watch::Sender<bool>,
    /// The database has not taken it yet, and is told of it with its record at the latest.
    pub(super) unwritten: AtomicBool,
    /// Bytes that it takes to say what it is.
    pub(super) described_bytes: u64,
    /// The daemon knows it no more.
    pub(super) forgotten: CancellationToken,
    writes: Mutex<Writes>,
    /// Room for writes that wait for it to read.
    write_room: Arc<Semaphore>,
}

/// Writes to the standard input: one after the other, in the order in which they came.
#[derive(Debug, Default)]
struct Writes {
    taken: u64,
    /// What lies between `taken` and this may have been written when the last daemon died.
    uncertain_to: u64,
    /// Done when the last one that came is.
    last: Option<oneshot::Receiver<()>>,
}

/// A write's turn among those to the same process.
#[derive(Debug)]
pub(super) struct Turn {
    before: Option<oneshot::Receiver<()>>,
    done: Option<oneshot::Sender<()>>,
    _room: OwnedSemaphorePermit,
}

/// A turn that is not used is passed on in its order: those behind it do not overtake those before it.
impl Drop for Turn {
    fn drop(&mut self) {
        if let (Some(before), Some(done)) = (self.before.take(), self.done.take()) {
            tokio::spawn(async move {
                let _ = before.await;
                drop(done);
            });
        }
    }
}

impl Supervised {
    pub(super) fn new(link: ProcessLink, session: Option<SessionId>, name: Option<String>) -> Self {
        Self {
            started_at: link.queued_at(),
            link,
            session,
            within: Vec::new(),
            name,
            argv: Vec::new(),
            cwd: String::new(),
            policy: String::new(),
            labels: BTreeMap::new(),
            confined: false,
            request: None,
            filed: watch::Sender::new(false),
            unwritten: AtomicBool::new(true),
            described_bytes: 0,
            forgotten: CancellationToken::new(),
            writes: Mutex::default(),
            write_room: Arc::new(Semaphore::new(WRITES_BYTES_MAX)),
        }
    }

    /// One that an earlier daemon accepted.
    pub(super) fn restored(link: ProcessLink, row: ProcessRow) -> Self {
        let mut process = Self::new(link, row.session, row.name);
        process.filed.send_replace(row.state == ProcessState::Sealed);
        process.unwritten = AtomicBool::new(false);
        process.described_bytes =
            described_bytes(&row.argv, &row.labels, row.cwd.as_deref().unwrap_or_default());
        process.argv = row.argv;
        process.cwd = row.cwd.unwrap_or_default();
        process.policy = row.policy.unwrap_or_default();
        process.labels = row.labels;
        process.confined = row.confined;
        process.request = row.request;
        let progress = process.link.stdin_before();
        *lock(&process.writes) = Writes {
            taken: progress.written,
            uncertain_to: progress.intended,
            last: None,
        };
        process
    }

    /// What the database is told of it.
    pub(super) fn row(&self) -> ProcessRow {
        ProcessRow {
            id: self.id(),
            session: self.session,
            name: self.name.clone(),
            labels: self.labels.clone(),
            argv: self.argv.clone(),
            cwd: Some(self.cwd.clone()),
            policy: Some(self.policy.clone()),
            confined: self.confined,
            request: self.request.clone(),
            queued_at: Some(self.started_at),
            boot_id: None,
            state: ProcessState::Accepted,
        }
    }

    pub(super) fn id(&self) -> ProcessId {
        self.link.id()
    }

    pub(super) fn is_live(&self) -> bool {
        self.link.record().is_none()
    }

    /// Bytes of its output that are kept.
    pub(super) fn retained(&self) -> u64 {
        self.link.retained()
    }

    pub(super) fn info(&self) -> ProcessInfo {
        ProcessInfo {
            process: self.id(),
            name: self.name.clone(),
            session: self.session,
            argv: self.argv.clone(),
            cwd: self.cwd.clone(),
            policy: self.policy.clone(),
            labels: self.labels.clone(),
            started_at: format!("{:.6}", self.started_at),
            live: true,
            outcome: None,
            exit_code: None,
            denied: false,
        }
        .ended(self.link.record().as_deref())
    }

    /// A place in the order of writes. Taken before anything else is done about one.
    pub(super) fn turn(&self, bytes: usize) -> Result<Turn, RpcError> {
        let need = u32::try_from((bytes + WRITE_BYTES).min(WRITES_BYTES_MAX)).unwrap_or(u32::MAX);
        let Ok(room) = self.write_room.clone().try_acquire_many_owned(need) else {
            let what = format!("write to {}", self.id());
            let why = "it has too much to read already";
            return Err(RpcError::new(ErrorKind::Limit, what, why)
                .hint("wait for the answers to earlier writes"));
        };
        let (done, after) = oneshot::channel();
        let before = lock(&self.writes).last.replace(after);
        Ok(Turn {
            before,
            done: Some(done),
            _room: room,
        })
    }

    /// Writes what was not written yet of bytes that begin at this place, if it still `may` be when its turn comes.
    pub(super) async fn write(
        &self,
        mut turn: Turn,
        offset: Option<u64>,
        bytes: &[u8],
        close: bool,
        may: impl FnOnce() -> Result<(), RpcError>,
    ) -> Result<Written, RpcError> {
        if let Some(before) = &mut turn.before {
            // An error as well means that it is done with.
            let _ = before.await;
        }
        turn.before = None;
        may()?;
        let what = || format!("write to {}", self.id());
        let taken = {
            let mut writes = lock(&self.writes);
            let uncertain_to = writes.uncertain_to;
            if uncertain_to > writes.taken {
                if offset.is_some_and(|offset| offset < uncertain_to) {
                    let why = format!(
                        "bytes {} to {uncertain_to} may or may not have been written when the daemon ended",
                        writes.taken
                    );
                    return Err(RpcError::new(ErrorKind::Uncertain, what(), why).hint(format!(
                        "go on at offset {uncertain_to} if they need not be written again, or write them again without an offset"
                    )));
                }
                writes.taken = uncertain_to;
            }
            writes.taken
        };
        let rest = match offset {
            // How much an earlier daemon wrote to it is not known any more, and nothing will be.
            Some(offset) if offset > taken && !self.is_live() => {
                return Err(RpcError::new(ErrorKind::Ended, what(), "it has ended"));
            }
            Some(offset) if offset > taken => {
                let why = format!("bytes {taken} to {offset} were not written");
                return Err(RpcError::new(ErrorKind::Conflict, what(), why)
                    .hint(format!("go on at offset {taken}")));
            }
            Some(offset) => {
                let known = usize::try_from(taken - offset).unwrap_or(usize::MAX);
                bytes.get(known..).unwrap_or_default()
            }
            None => bytes,
        };
        if !rest.is_empty()
            && let Err(error) = self.link.write_stdin(rest).await
        {
            let kind = match error.kind() {
                io::ErrorKind::BrokenPipe => ErrorKind::Ended,
                io::ErrorKind::StorageFull => {
                    // Some of it may have found room.
                    let written = self.link.stdin_written().await;
                    lock(&self.writes).taken = written;
                    let hint =
                        format!("make room in the state directory, then go on at offset {written}");
                    let refused = RpcError::new(ErrorKind::Refused, what(), error.to_string());
                    return Err(refused.hint(hint));
                }
                _ => ErrorKind::Internal,
            };
            return Err(RpcError::new(kind, what(), error.to_string()));
        }
        let offset = {
            let mut writes = lock(&self.writes);
            writes.taken += rest.len() as u64;
            writes.taken
        };
        if close {
            self.link.close_stdin();
        }
        Ok(Written { offset })
    }

    /// A place to read from.
    pub(super) async fn reading(&self, request: &ProcessRead) -> Reading {
        let log = self.link.log().await;
        let after = request
            .tail
            .map_or(request.after_seq, |tail| log.before_tail(tail));
        Reading {
            cursor: log.follow(after, false),
            first: None,
        }
    }
}

/// About how many bytes it takes to say what a process is; its `started` event says it once more.
pub(super) fn described_bytes(argv: &[String], labels: &BTreeMap<String, String>, cwd: &str) -> u64 {
    let words = argv.iter().chain(labels.keys()).chain(labels.values());
    let words = words.map(String::len).chain([cwd.len()]);
    2 * words.map(|length| length as u64 + 64).sum::<u64>()
}

/// A read that is under way.
pub(super) struct Reading {
    cursor: Cursor,
    first: Option<Event>,
}

impl Reading {
    /// Waits for the first event, as long as the request says.
    pub(super) async fn wait(&mut self, request: &ProcessRead) {
        let wait = Duration::from_millis(request.wait_ms).min(WAIT_MAX);
        if !wait.is_zero() {
            let first = tokio::time::timeout(wait, self.cursor.next()).await;
            self.first = first.ok().flatten();
        }
    }

    /// Events that are there.
    pub(super) fn take(mut self, request: &ProcessRead) -> Events {
        let mut events: Vec<Event> = Vec::new();
        let mut room = request.max_bytes.unwrap_or(READ_BYTES).clamp(1, READ_BYTES);
        while room > 0 && events.len() < READ_EVENTS_MAX {
            let Some(event) = self.first.take().or_else(|| self.cursor.try_next()) else {
                break;
            };
            room = room.saturating_sub(weight(&event));
            events.push(event);
        }
        Events {
            next_seq: self.cursor.seq(),
            ended: self.cursor.is_finished(),
            events,
        }
    }
}

/// About how many bytes an event is, before it is written as JSON.
fn weight(event: &Event) -> usize {
    match &event.body {
        EventBody::Output { data, .. } => data.len() + 128,
        _ => 512,
    }
}

impl Daemon {
    /// The process that is meant by an id, an unambiguous beginning or end of one, or a name; among all, or among those
    /// of confined clients.
    pub(super) fn find(&self, text: &str, confined_only: bool) -> Result<Arc<Supervised>, RpcError> {
        let state = self.state();
        let known = |process: &Supervised| process.confined || !confined_only;
        if let Ok(id) = text.parse::<ProcessId>()
            && let Some(process) = state.processes.get(&id).filter(|process| known(process))
        {
            return Ok(process.clone());
        }
        let what = || format!("process `{text}`");
        let named = |live: bool| {
            let mut processes = state.processes.values().rev().filter(|process| known(process));
            processes
                .find(|process| process.name.as_deref() == Some(text) && (!live || process.is_live()))
        };
        if let Some(process) = named(true).or_else(|| named(false)) {
            return Ok(process.clone());
        }
        let part = text.len() >= ID_PART_MIN && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        let mut fitting = state.processes.values().filter(|process| {
            let id = process.id().to_string();
            part && known(process) && (id.starts_with(text) || id.ends_with(text))
        });
        let was_there = || {
            let id = text.parse().ok();
            id.is_some_and(|id| state.forgotten.has(id, confined_only))
        };
        match (fitting.next(), fitting.next()) {
            (Some(process), None) => Ok(process.clone()),
            (Some(_), Some(_)) => {
                Err(
                    RpcError::new(ErrorKind::Ambiguous, what(), "more than one begins or ends so")
                        .hint("give more of the id"),
                )
            }
            (None, _) if was_there() => Err(RpcError::new(
                ErrorKind::Forgotten,
                what(),
                "it ended, and was forgotten with its record",
            )
            .hint(
                "`provost ps -a` lists what is left; `records_max_age`, `records_max_bytes` and `max_memory_bytes` say how much that is",
            )),
            (None, _) => {
                Err(
                    RpcError::new(ErrorKind::NotFound, what(), "there is none of that id or name")
                        .hint("`provost ps -a` lists them"),
                )
            }
        }
    }

    pub(super) fn list(&self, request: &ProcessList) -> Result<Vec<ProcessInfo>, RpcError> {
        let within = match &request.session {
            Some(session) => {
                let id = self.find_session(session)?;
                Some(self.state().leases.with_parts(id))
            }
            None => None,
        };
        let processes: Vec<Arc<Supervised>> = self.state().processes.values().cloned().collect();
        Ok(processes
            .iter()
            .filter(|process| {
                let there =
                    |sessions: &Vec<SessionId>| process.session.is_some_and(|id| sessions.contains(&id));
                within.as_ref().is_none_or(there)
                    && request.live.is_none_or(|live| process.is_live() == live)
                    && request
                        .labels
                        .iter()
                        .all(|(key, value)| process.labels.get(key) == Some(value))
            })
            .map(|process| process.info())
            .collect())
    }
}

/// The shortest part of an id that is looked for.
const ID_PART_MIN: usize = 4;
