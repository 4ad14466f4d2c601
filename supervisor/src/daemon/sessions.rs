//! Sessions as clients see them: leases over supervisors in the tree.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use provost_actors::ProcessCommand;
use provost_actors::event::ProcessId;
use provost_actors::session::{Holder, LeaseError, Moved, OnDisconnect, OpenSession, SessionId};

use super::processes::Supervised;
use super::recover::AGAIN;
use super::{Daemon, State};
use crate::protocol::{
    ErrorKind, RpcError, SessionAttach, SessionClose, SessionEvent, SessionInfo, SessionOpen,
    SessionsMoved, SkippedSession,
};
use crate::store::{SessionRow, SessionState};

/// Sessions of one daemon.
const SESSIONS_MAX: usize = 4096;
/// The longest name.
const NAME_BYTES_MAX: usize = 128;

impl State {
    /// Whether a holder may change what is in a session: it has it, or a whole that it is part of, or nobody does.
    pub(super) fn may_touch(&self, session: Option<SessionId>, holder: Holder) -> bool {
        session.is_none_or(|id| {
            let free = self.leases.get(id).is_none_or(|lease| lease.holder.is_none());
            free || self.leases.is_held_by(id, holder)
        })
    }
}

impl Daemon {
    pub(super) async fn open_session(
        &self,
        request: SessionOpen,
        holder: Holder,
    ) -> Result<SessionId, RpcError> {
        let what = || {
            format!(
                "open session {}",
                request.name.as_deref().unwrap_or("without a name")
            )
        };
        check_name(request.name.as_deref())?;
        let parent = match &request.parent {
            Some(parent) => Some(self.find_session(parent)?),
            None => None,
        };
        let too_many = || {
            let why = format!("there are {SESSIONS_MAX} already");
            RpcError::new(ErrorKind::Limit, what(), why).hint("close some (`provost session clean`)")
        };
        if self.state().leases.len() >= SESSIONS_MAX {
            return Err(too_many());
        }
        let most = self.settings().session_bytes();
        if let Some(asked) = request.max_session_bytes.filter(|asked| *asked > most) {
            let why = format!("`max_session_bytes` is {asked}, and a session keeps at most {most} here");
            return Err(RpcError::new(ErrorKind::InvalidParams, what(), why)
                .hint("ask for less, or raise max_session_bytes in the daemon's configuration"));
        }
        let id = SessionId::new();
        let link = self.0.tree.open_session(id.to_string()).await;
        let link =
            link.map_err(|error| RpcError::new(ErrorKind::Internal, what(), error.to_string()))?;
        let open = OpenSession {
            name: request.name.clone(),
            parent,
            on_disconnect: request.on_disconnect,
            ttl: request.ttl_ms.map(Duration::from_millis),
            kept_bytes_max: request.max_session_bytes,
        };
        // Counted once more where it is added, for others were opening theirs meanwhile.
        let opened = {
            let mut state = self.state();
            match state.leases.len() >= SESSIONS_MAX {
                true => Err(too_many()),
                false => {
                    let opened = state.leases.open(id, open, Some(holder), link.clone());
                    if opened.is_ok() {
                        state.tell_of_session(id, &state.leases.ancestors(id), "opened");
                    }
                    opened.map_err(|error| refused(what(), error))
                }
            }
        };
        if let Err(error) = opened {
            link.close();
            return Err(error);
        }
        if let Some(kept) = &self.0.kept {
            let now = Timestamp::now();
            let row = SessionRow {
                id,
                name: request.name.clone(),
                parent,
                on_disconnect: request.on_disconnect,
                ttl: request.ttl_ms.map(Duration::from_millis),
                kept_bytes_max: request.max_session_bytes,
                state: SessionState::Attached,
                opened_at: now,
                changed_at: now,
            };
            // What is not written down would be gone after a crash, with everybody who counts on it.
            if let Err(error) = kept.store.session_opened(row).await {
                self.close_session(id, "it could not be written down", true);
                return Err(RpcError::new(ErrorKind::Internal, what(), error.to_string()));
            }
        }
        Ok(id)
    }

    /// Has the database know who holds sessions: what was told last of each, as soon as it can be written.
    fn note_sessions(&self, sessions: impl IntoIterator<Item = SessionId>, state: SessionState) {
        let Some(kept) = &self.0.kept else { return };
        let now = Timestamp::now();
        for session in sessions {
            if super::lock(&kept.changed).insert(session, (state, now)).is_some() {
                // Somebody is about to write what was told before, and will see this.
                continue;
            }
            let daemon = self.clone();
            kept.records
                .spawn(async move { daemon.write_change(session).await });
        }
    }

    async fn write_change(&self, session: SessionId) {
        let Some(kept) = &self.0.kept else { return };
        let mut said = false;
        loop {
            let Some(change) = super::lock(&kept.changed).get(&session).copied() else {
                return;
            };
            let written = kept.store.session_changed(session, change.0, change.1).await;
            let passes = match &written {
                Ok(()) => false,
                Err(error) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::error!(%session, %error, "the database does not know of a change");
                    }
                    error.may_pass()
                }
            };
            if passes {
                tokio::join!(tokio::time::sleep(AGAIN), kept.store.writable());
                continue;
            }
            let mut changed = super::lock(&kept.changed);
            if changed.get(&session) == Some(&change) {
                changed.remove(&session);
                return;
            }
        }
    }

    pub(super) fn detach_session(
        &self,
        session: &str,
        holder: Holder,
    ) -> Result<SessionsMoved, RpcError> {
        // One that is not there is nothing to detach, and no error.
        let Ok(id) = self.find_session(session) else {
            return Ok(SessionsMoved::default());
        };
        let moved = self.state().leases.detach(id, holder, Instant::now());
        let moved = moved.map_err(|error| refused(format!("detach session `{session}`"), error))?;
        let moved_ids: Vec<SessionId> = moved.sessions.iter().map(|(id, _)| *id).collect();
        self.tell_detached(&moved_ids);
        Ok(self.summary(moved, Vec::new()))
    }

    pub(super) fn attach_sessions(
        &self,
        request: &SessionAttach,
        holder: Holder,
    ) -> Result<SessionsMoved, RpcError> {
        if let Some(count) = request
            .sessions
            .as_ref()
            .map(Vec::len)
            .filter(|count| *count > SESSIONS_MAX)
        {
            let why = format!("there are at most {SESSIONS_MAX} sessions, and {count} are named");
            return Err(RpcError::new(ErrorKind::InvalidParams, "session/attach", why));
        }
        let mut skipped = Vec::new();
        let mut skip = |session: String, error: RpcError| {
            skipped.push(SkippedSession {
                session,
                kind: Some(error.data.kind),
                why: error.data.why,
            });
        };
        let wanted: Vec<(String, SessionId)> = match &request.sessions {
            Some(sessions) => sessions
                .iter()
                .filter_map(|session| match self.find_session(session) {
                    Ok(id) => Some((session.clone(), id)),
                    Err(error) => {
                        skip(session.clone(), error);
                        None
                    }
                })
                .collect(),
            None => {
                let state = self.state();
                let free = state.leases.iter().filter(|(_, lease)| lease.holder.is_none());
                free.map(|(id, _)| (id.to_string(), id)).collect()
            }
        };
        let mut all = Moved::default();
        for (text, id) in wanted {
            let moved = self.state().leases.attach(id, holder, request.steal);
            match moved {
                Ok(moved) => all.sessions.extend(moved.sessions),
                Err(error) => skip(text.clone(), refused(format!("attach session `{text}`"), error)),
            }
        }
        self.note_sessions(all.sessions.iter().map(|(id, _)| *id), SessionState::Attached);
        for (id, before) in &all.sessions {
            if let Some(before) = before {
                let within = self.state().leases.ancestors(*id);
                self.tell(Some(*before), *id, "lost", &within);
            }
            for process in self.live_in(&[*id]) {
                let session = id.to_string();
                process.link.tell(ProcessCommand::Attached { session });
            }
        }
        Ok(self.summary(all, skipped))
    }

    /// Takes a session and its parts away and stops what is in them.
    pub(super) fn close_session(&self, id: SessionId, reason: &str, kill: bool) -> Vec<SessionId> {
        let (closed, within) = {
            let mut state = self.state();
            let parts = state.leases.with_parts(id).into_iter();
            let within: HashMap<_, _> = parts.map(|id| (id, state.leases.ancestors(id))).collect();
            (state.leases.close(id), within)
        };
        let ids: Vec<SessionId> = closed.iter().map(|(id, _)| *id).collect();
        for (id, lease) in &closed {
            self.tell(lease.holder, *id, "closed", &within[id]);
        }
        // Before what runs of them ends: it is not to be tried again.
        self.cancel_jobs_of(&ids, reason);
        let (daemon, reason, gone) = (self.clone(), reason.to_owned(), ids.clone());
        tokio::spawn(async move {
            let stopping = closed
                .iter()
                .map(|(_, lease)| lease.value.stop_all(reason.as_str(), kill));
            futures_util::future::join_all(stopping).await;
            for (_, lease) in &closed {
                lease.value.close();
            }
            // Not before everything has stopped: until then a daemon that takes over has it to stop.
            daemon.note_sessions(gone.iter().copied(), SessionState::Closed);
            daemon.unwatch_sessions(&gone);
        });
        ids
    }

    pub(super) async fn close_sessions(
        &self,
        request: &SessionClose,
        holder: Holder,
        detached_only: bool,
    ) -> Result<SessionsMoved, RpcError> {
        let wanted: Vec<SessionId> = match &request.session {
            Some(session) => vec![self.find_session(session)?],
            None if detached_only => {
                let state = self.state();
                let free = state.leases.iter().filter(|(_, lease)| lease.holder.is_none());
                free.map(|(id, _)| id).collect()
            }
            None => {
                return Err(RpcError::new(
                    ErrorKind::InvalidParams,
                    "session/close",
                    "no `session` is given",
                ));
            }
        };
        let mut result = SessionsMoved::default();
        let mut stopping = Vec::new();
        for id in wanted {
            {
                let state = self.state();
                let Some(lease) = state.leases.get(id) else {
                    continue;
                };
                let elsewhere = lease.holder.is_some() && !state.leases.is_held_by(id, holder);
                if elsewhere || detached_only && lease.holder.is_some() {
                    result.skipped.push(SkippedSession {
                        session: id.to_string(),
                        kind: Some(ErrorKind::NotHolder),
                        why: LeaseError::HeldElsewhere.to_string(),
                    });
                    continue;
                }
            }
            let parts = self.state().leases.with_parts(id);
            stopping.extend(self.live_in(&parts));
            result
                .moved
                .extend(self.close_session(id, "its session was closed", request.kill));
        }
        result.processes = stopping.iter().map(|process| process.id()).collect();
        // What was stopped is over when this is answered.
        for process in stopping {
            process.link.sealed().await;
        }
        if !detached_only && result.moved.is_empty() && !result.skipped.is_empty() {
            let what = format!(
                "close session `{}`",
                request.session.as_deref().unwrap_or_default()
            );
            return Err(refused(what, LeaseError::HeldElsewhere));
        }
        Ok(result)
    }

    pub(super) fn list_sessions(&self, holder: Holder) -> Vec<SessionInfo> {
        let state = self.state();
        let in_session = |id: SessionId| {
            let processes = state.processes.values();
            processes.filter(move |process| process.session == Some(id))
        };
        state
            .leases
            .iter()
            .map(|(id, lease)| SessionInfo {
                session: id,
                name: lease.open.name.clone(),
                parent: lease.open.parent,
                attached: lease.holder.is_some(),
                attached_here: lease.holder == Some(holder),
                on_disconnect: lease.open.on_disconnect,
                live: in_session(id).filter(|process| process.is_live()).count(),
                processes: in_session(id).count(),
            })
            .collect()
    }

    /// What a request took while its connection ended is given up again.
    pub(super) fn settle(&self, holder: Holder) {
        if !self.state().holders.contains_key(&holder) {
            self.disconnect(holder);
        }
    }

    /// A connection is over: what it held goes on or stops, as it was opened.
    pub(super) fn disconnect(&self, holder: Holder) {
        self.0.house.stir();
        let left = {
            let mut state = self.state();
            state.holders.remove(&holder);
            // The daemon goes, not the client, which will be back.
            if self.0.leaving.begun.is_cancelled() {
                return;
            }
            state.inputs.retain(|_, held| *held != holder);
            state.leases.disconnect(holder, Instant::now())
        };
        let detached = left.iter().filter(|(_, rule)| *rule == OnDisconnect::Detach);
        let detached: Vec<SessionId> = detached.map(|(id, _)| *id).collect();
        self.tell_detached(&detached);
        for (id, rule) in left {
            if rule == OnDisconnect::Stop {
                self.close_session(id, "its client is gone", false);
            }
        }
    }

    /// The session that is meant by an id, an unambiguous part of one, or a name.
    pub(super) fn find_session(&self, text: &str) -> Result<SessionId, RpcError> {
        let state = self.state();
        let what = || format!("session `{text}`");
        if let Ok(id) = text.parse::<SessionId>()
            && state.leases.get(id).is_some()
        {
            return Ok(id);
        }
        let named: Vec<SessionId> = state
            .leases
            .iter()
            .filter(|(_, lease)| lease.open.name.as_deref() == Some(text))
            .map(|(id, _)| id)
            .collect();
        let fitting: Vec<SessionId> = if named.is_empty() && text.len() >= 4 {
            let all = state.leases.iter().map(|(id, _)| id);
            all.filter(|id| id.to_string().starts_with(text) || id.to_string().ends_with(text))
                .collect()
        } else {
            named
        };
        match fitting[..] {
            [id] => Ok(id),
            [] => Err(
                RpcError::new(ErrorKind::NotFound, what(), "there is none of that id or name")
                    .hint("`provost session list` lists them"),
            ),
            _ => {
                Err(RpcError::new(ErrorKind::Ambiguous, what(), "there are several").hint("give the id"))
            }
        }
    }

    /// Whether a holder may change what is in a session; an error if not.
    pub(super) fn may_touch(
        &self,
        session: Option<SessionId>,
        holder: Holder,
        what: &str,
    ) -> Result<(), RpcError> {
        match self.state().may_touch(session, holder) {
            true => Ok(()),
            false => Err(refused(what.to_owned(), LeaseError::HeldElsewhere)),
        }
    }

    pub(super) fn live_in(&self, sessions: &[SessionId]) -> Vec<Arc<Supervised>> {
        let state = self.state();
        let there = |process: &&Arc<Supervised>| {
            process.is_live() && process.session.is_some_and(|id| sessions.contains(&id))
        };
        state.processes.values().filter(there).cloned().collect()
    }

    /// What was given up runs on; what waits for an answer in it, or in its parts, is refused, unless somebody still has a
    /// whole that it is part of and can answer.
    fn tell_detached(&self, sessions: &[SessionId]) {
        let unattended: BTreeSet<SessionId> = {
            let state = self.state();
            let parts = sessions.iter().flat_map(|id| state.leases.with_parts(*id));
            parts.filter(|id| !state.leases.is_attended(*id)).collect()
        };
        let unattended: Vec<SessionId> = unattended.into_iter().collect();
        for process in self.live_in(&unattended) {
            process.link.tell(ProcessCommand::Unattended);
        }
        for id in sessions {
            self.note_sessions([*id], SessionState::Detached);
            for process in self.live_in(&[*id]) {
                let session = id.to_string();
                process.link.tell(ProcessCommand::Detached { session });
            }
        }
    }

    /// Tells a session's holder, and whoever follows what it is part of.
    fn tell(&self, holder: Option<Holder>, session: SessionId, event: &str, within: &[SessionId]) {
        let state = self.state();
        if let Some(connected) = holder.and_then(|holder| state.holders.get(&holder)) {
            connected.outbox.push(&super::connection::notification(
                "session/event",
                &SessionEvent {
                    session,
                    event: event.to_owned(),
                    subscription: None,
                },
            ));
        }
        state.tell_of_session(session, within, event);
    }

    fn summary(&self, moved: Moved, skipped: Vec<SkippedSession>) -> SessionsMoved {
        let ids: Vec<SessionId> = moved.sessions.iter().map(|(id, _)| *id).collect();
        let processes: Vec<ProcessId> = self.live_in(&ids).iter().map(|process| process.id()).collect();
        SessionsMoved {
            moved: ids,
            skipped,
            processes,
        }
    }
}

/// Names are for people and scripts: nothing that could be taken for something else.
pub(super) fn check_name(name: Option<&str>) -> Result<(), RpcError> {
    let Some(name) = name else { return Ok(()) };
    let sound = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && !name.starts_with('-')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.:@".contains(&b));
    if sound {
        return Ok(());
    }
    Err(RpcError::new(
        ErrorKind::InvalidParams,
        format!("name `{}`", name.escape_default()),
        "want 1 to 128 letters, digits and - _ . : @, not beginning with -",
    ))
}

fn refused(what: String, error: LeaseError) -> RpcError {
    let (kind, hint) = match error {
        LeaseError::Absent => (ErrorKind::NotFound, "`provost session list` lists them"),
        LeaseError::HeldElsewhere => (ErrorKind::NotHolder, "attach it with `steal` to take it over"),
        LeaseError::NameTaken => (ErrorKind::Conflict, "choose another name, or detach that session"),
        LeaseError::TooDeep => (ErrorKind::Limit, ""),
    };
    RpcError::new(kind, what, error.to_string()).hint(hint)
}
