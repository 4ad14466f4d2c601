//! Sessions are leases: who holds one now, taken and given by compare-and-set (I9).
//!
//! A session's supervisor and processes stay where they are in the tree, whoever holds it. This is the pure part: no I/O,
//! no time of its own.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How deep sessions nest.
const DEPTH_MAX: usize = 16;

/// The id of a session; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(Uuid);

impl SessionId {
    /// A new one.
    #[expect(clippy::new_without_default, reason = "each is another")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for SessionId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

/// Whoever can hold sessions: a connection. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder(pub u64);

/// What becomes of a session when its holder goes away without a word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDisconnect {
    /// It is held by nobody, and goes on.
    #[default]
    Detach,
    /// Everything in it is stopped by its own stop rule.
    Stop,
}

/// How a session is to be opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenSession {
    /// For people; unique among those that one holder has.
    pub name: Option<String>,
    /// The session that it is part of.
    pub parent: Option<SessionId>,
    /// What becomes of it when its holder goes away.
    pub on_disconnect: OnDisconnect,
    /// How long it goes on with nobody holding it; for ever, if absent.
    pub ttl: Option<Duration>,
    /// Bytes of output that it keeps at most, with its parts.
    pub kept_bytes_max: Option<u64>,
}

/// One session.
#[derive(Debug)]
pub struct Lease<S> {
    /// How it was opened.
    pub open: OpenSession,
    /// Who holds it now.
    pub holder: Option<Holder>,
    /// Since when nobody does.
    pub detached_at: Option<Instant>,
    /// When it is given up if nobody attaches it before, whatever its time to live.
    pub give_up: Option<Instant>,
    /// What belongs to it.
    pub value: S,
}

/// Why a lease was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// There is no such session.
    #[error("there is no such session")]
    Absent,
    /// Somebody else holds it.
    #[error("it is attached elsewhere")]
    HeldElsewhere,
    /// The holder has one of that name.
    #[error("another session of that name is attached here")]
    NameTaken,
    /// Sessions nest no deeper.
    #[error("sessions nest at most {DEPTH_MAX} deep")]
    TooDeep,
}

/// Sessions that changed hands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moved {
    /// Which, and who held them before.
    pub sessions: Vec<(SessionId, Option<Holder>)>,
}

/// All sessions of one owner.
#[derive(Debug)]
pub struct Leases<S> {
    sessions: BTreeMap<SessionId, Lease<S>>,
}

impl<S> Default for Leases<S> {
    fn default() -> Self {
        Self {
            sessions: BTreeMap::new(),
        }
    }
}

impl<S> Leases<S> {
    /// Adds a session, held by whoever opens it.
    ///
    /// # Errors
    /// Its parent is not there, or its name is taken.
    pub fn open(
        &mut self,
        id: SessionId,
        open: OpenSession,
        holder: Option<Holder>,
        value: S,
    ) -> Result<(), LeaseError> {
        if let Some(parent) = open.parent {
            if !self.sessions.contains_key(&parent) {
                return Err(LeaseError::Absent);
            }
            if self.ancestors(parent).len() >= DEPTH_MAX {
                return Err(LeaseError::TooDeep);
            }
        }
        if let (Some(holder), Some(name)) = (holder, &open.name)
            && self.holds_name(holder, name)
        {
            return Err(LeaseError::NameTaken);
        }
        let lease = Lease {
            open,
            holder,
            detached_at: None,
            give_up: None,
            value,
        };
        self.sessions.insert(id, lease);
        Ok(())
    }

    /// Adds a session of an earlier daemon's, which nobody holds now; it is given up then, if nobody attaches it before.
    pub fn restore(
        &mut self,
        id: SessionId,
        open: OpenSession,
        now: Instant,
        give_up: Option<Instant>,
        value: S,
    ) {
        let lease = Lease {
            open,
            holder: None,
            detached_at: Some(now),
            give_up,
            value,
        };
        self.sessions.insert(id, lease);
    }

    /// The session of this id.
    pub fn get(&self, id: SessionId) -> Option<&Lease<S>> {
        self.sessions.get(&id)
    }

    /// The session of this id.
    pub fn get_mut(&mut self, id: SessionId) -> Option<&mut Lease<S>> {
        self.sessions.get_mut(&id)
    }

    /// How many there are.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks that")]
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Every session, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (SessionId, &Lease<S>)> {
        self.sessions.iter().map(|(id, lease)| (*id, lease))
    }

    /// Whether this holder has the session, or one that it is part of.
    pub fn is_held_by(&self, id: SessionId, holder: Holder) -> bool {
        self.ancestors(id).into_iter().any(|id| {
            self.sessions
                .get(&id)
                .is_some_and(|lease| lease.holder == Some(holder))
        })
    }

    /// Whether anybody has the session, or one that it is part of.
    pub fn is_attended(&self, id: SessionId) -> bool {
        let held = |id| self.sessions.get(&id).is_some_and(|lease| lease.holder.is_some());
        self.ancestors(id).into_iter().any(held)
    }

    /// Gives a session up, with those parts of it that the same holder has. One that is not there is nothing to give up.
    ///
    /// # Errors
    /// Somebody else holds it.
    pub fn detach(&mut self, id: SessionId, holder: Holder, now: Instant) -> Result<Moved, LeaseError> {
        match self.sessions.get(&id) {
            None => return Ok(Moved::default()),
            Some(lease) if lease.holder.is_some_and(|held| held != holder) => {
                return Err(LeaseError::HeldElsewhere);
            }
            Some(_) => {}
        }
        let mut moved = Moved::default();
        for id in self.with_parts(id) {
            if let Some(lease) = self.sessions.get_mut(&id)
                && lease.holder == Some(holder)
            {
                lease.holder = None;
                lease.detached_at = Some(now);
                moved.sessions.push((id, Some(holder)));
            }
        }
        Ok(moved)
    }

    /// Takes a session that nobody holds, with those parts of it that nobody holds; or, with `steal`, whoever does.
    ///
    /// # Errors
    /// It is not there, somebody else holds it, or the holder has one of its name.
    pub fn attach(&mut self, id: SessionId, holder: Holder, steal: bool) -> Result<Moved, LeaseError> {
        let lease = self.sessions.get(&id).ok_or(LeaseError::Absent)?;
        let before = lease.holder;
        if before == Some(holder) {
            return Ok(Moved::default());
        }
        if before.is_some() && !steal {
            return Err(LeaseError::HeldElsewhere);
        }
        if lease
            .open
            .name
            .as_ref()
            .is_some_and(|name| self.holds_name(holder, name))
        {
            return Err(LeaseError::NameTaken);
        }
        let mut moved = Moved::default();
        for part in self.with_parts(id) {
            let taken = self
                .sessions
                .get(&part)
                .and_then(|lease| lease.open.name.as_ref())
                .is_some_and(|name| self.holds_name(holder, name));
            if let Some(lease) = self.sessions.get_mut(&part)
                && lease.holder == before
                && (part == id || !taken)
            {
                lease.holder = Some(holder);
                lease.detached_at = None;
                lease.give_up = None;
                moved.sessions.push((part, before));
            }
        }
        Ok(moved)
    }

    /// A holder is gone: what it held, and what is to become of each.
    pub fn disconnect(&mut self, holder: Holder, now: Instant) -> Vec<(SessionId, OnDisconnect)> {
        let mut left = Vec::new();
        for (id, lease) in &mut self.sessions {
            if lease.holder == Some(holder) {
                lease.holder = None;
                lease.detached_at = Some(now);
                left.push((*id, lease.open.on_disconnect));
            }
        }
        left
    }

    /// Takes a session out, with all its parts, the innermost first.
    pub fn close(&mut self, id: SessionId) -> Vec<(SessionId, Lease<S>)> {
        let mut parts = self.with_parts(id);
        parts.reverse();
        parts
            .into_iter()
            .filter_map(|id| Some((id, self.sessions.remove(&id)?)))
            .collect()
    }

    /// Sessions that nobody has held for longer than they are to go on so.
    pub fn expired(&self, now: Instant) -> Vec<SessionId> {
        let outlived = |lease: &Lease<S>| match (lease.detached_at, lease.open.ttl) {
            (Some(since), Some(ttl)) => now.duration_since(since) >= ttl,
            _ => false,
        };
        let given_up = |lease: &Lease<S>| lease.give_up.is_some_and(|at| now >= at);
        let expired = |lease: &Lease<S>| outlived(lease) || given_up(lease);
        self.iter()
            .filter(|(_, lease)| expired(lease))
            .map(|(id, _)| id)
            .collect()
    }

    /// Whether time alone may bring one to its end.
    pub fn may_expire(&self) -> bool {
        self.iter().any(|(_, lease)| {
            lease.give_up.is_some() || lease.detached_at.is_some() && lease.open.ttl.is_some()
        })
    }

    /// A session and everything that is part of it, the outermost first.
    pub fn with_parts(&self, id: SessionId) -> Vec<SessionId> {
        let mut found = Vec::new();
        let mut next = vec![id];
        while let Some(id) = next.pop() {
            if !self.sessions.contains_key(&id) || found.contains(&id) {
                continue;
            }
            found.push(id);
            let parts = self
                .sessions
                .iter()
                .filter(|(_, lease)| lease.open.parent == Some(id));
            next.extend(parts.map(|(id, _)| *id));
        }
        found
    }

    /// A session and those that it is part of, the innermost first.
    pub fn ancestors(&self, id: SessionId) -> Vec<SessionId> {
        let mut found = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next {
            let Some(lease) = self.sessions.get(&id) else {
                break;
            };
            found.push(id);
            next = lease.open.parent;
        }
        found
    }

    fn holds_name(&self, holder: Holder, name: &str) -> bool {
        self.sessions
            .values()
            .any(|lease| lease.holder == Some(holder) && lease.open.name.as_deref() == Some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Holder = Holder(1);
    const B: Holder = Holder(2);

    fn open(
        leases: &mut Leases<()>,
        name: &str,
        parent: Option<SessionId>,
        holder: Holder,
    ) -> SessionId {
        let id = SessionId::new();
        let open = OpenSession {
            name: Some(name.to_owned()),
            parent,
            ..OpenSession::default()
        };
        leases.open(id, open, Some(holder), ()).unwrap();
        id
    }

    #[test]
    fn i9_of_two_who_attach_one_wins_and_the_other_is_told() {
        let mut leases = Leases::default();
        let id = open(&mut leases, "s", None, A);
        leases.detach(id, A, Instant::now()).unwrap();
        assert_eq!(leases.attach(id, B, false).unwrap().sessions, [(id, None)]);
        assert_eq!(leases.attach(id, A, false), Err(LeaseError::HeldElsewhere));
        assert_eq!(leases.attach(id, A, true).unwrap().sessions, [(id, Some(B))]);
        assert_eq!(
            leases.detach(id, B, Instant::now()),
            Err(LeaseError::HeldElsewhere)
        );
        assert!(leases.is_held_by(id, A));
    }

    #[test]
    fn parts_go_with_the_whole_and_what_another_holds_stays() {
        let mut leases = Leases::default();
        let whole = open(&mut leases, "whole", None, A);
        let part = open(&mut leases, "part", Some(whole), A);
        let others = open(&mut leases, "others", Some(whole), B);
        let inner = open(&mut leases, "inner", Some(part), A);
        let moved = leases.detach(whole, A, Instant::now()).unwrap();
        let ids: Vec<_> = moved.sessions.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids.len(), 3);
        assert!([whole, part, inner].iter().all(|id| ids.contains(id)));
        assert_eq!(leases.get(others).unwrap().holder, Some(B));
        assert!(!leases.is_held_by(inner, A));
        leases.attach(whole, A, false).unwrap();
        assert!(
            leases.is_held_by(others, A),
            "who holds the whole may touch its parts"
        );
        let closed: Vec<_> = leases.close(whole).into_iter().map(|(id, _)| id).collect();
        assert_eq!(closed.len(), 4);
        assert_eq!(closed.last(), Some(&whole), "the whole comes last");
    }

    #[test]
    fn names_are_unique_for_a_holder_and_absent_sessions_are_nothing_to_detach() {
        let mut leases = Leases::default();
        let one = open(&mut leases, "same", None, A);
        let other = open(&mut leases, "same", None, B);
        leases.detach(other, B, Instant::now()).unwrap();
        assert_eq!(leases.attach(other, A, false), Err(LeaseError::NameTaken));
        assert_eq!(
            leases.detach(SessionId::new(), A, Instant::now()),
            Ok(Moved::default())
        );
        leases.detach(one, A, Instant::now()).unwrap();
        assert!(leases.attach(other, A, false).is_ok());
    }

    #[test]
    fn a_part_is_attended_as_long_as_somebody_has_it_or_the_whole() {
        let mut leases = Leases::default();
        let whole = open(&mut leases, "whole", None, A);
        let part = open(&mut leases, "part", Some(whole), B);
        let inner = open(&mut leases, "inner", Some(part), B);
        leases.detach(part, B, Instant::now()).unwrap();
        assert!(leases.is_attended(inner) && leases.is_attended(part));
        leases.detach(whole, A, Instant::now()).unwrap();
        assert!(!leases.is_attended(inner) && !leases.is_attended(part));
        leases.attach(inner, B, false).unwrap();
        assert!(leases.is_attended(inner) && !leases.is_attended(whole));
    }

    #[test]
    fn who_goes_away_leaves_sessions_as_they_were_opened() {
        let mut leases = Leases::default();
        let stays = open(&mut leases, "stays", None, A);
        let id = SessionId::new();
        let with_ttl = OpenSession {
            on_disconnect: OnDisconnect::Stop,
            ttl: Some(Duration::from_secs(5)),
            ..OpenSession::default()
        };
        leases.open(id, with_ttl, Some(A), ()).unwrap();
        let now = Instant::now();
        let left = leases.disconnect(A, now);
        assert!(
            left.contains(&(stays, OnDisconnect::Detach)) && left.contains(&(id, OnDisconnect::Stop))
        );
        assert!(leases.expired(now).is_empty());
        assert_eq!(leases.expired(now + Duration::from_secs(5)), [id]);
        assert!(leases.disconnect(A, now).is_empty());
    }

    proptest! {
        /// Whatever is done, a session has one holder at most, names do not collide, and what was moved was told.
        #[test]
        fn i9_leases_change_hands_only_as_told(steps in proptest::collection::vec((0u8..5, 0usize..6, 1u64..4, any::<bool>()), 1..60)) {
            let mut leases: Leases<()> = Leases::default();
            let mut ids: Vec<SessionId> = Vec::new();
            let now = Instant::now();
            for (what, which, holder, flag) in steps {
                let holder = Holder(holder);
                let before: BTreeMap<_, _> = leases.iter().map(|(id, lease)| (id, lease.holder)).collect();
                let mut told = Vec::new();
                let target = ids.get(which).copied();
                match (what, target) {
                    (0, _) => {
                        let id = SessionId::new();
                        let spec = OpenSession {
                            name: Some(format!("{}", which % 3)),
                            parent: target.filter(|_| flag),
                            ..OpenSession::default()
                        };
                        if leases.open(id, spec, Some(holder), ()).is_ok() {
                            ids.push(id);
                        }
                    }
                    (1, Some(id)) => told.extend(leases.detach(id, holder, now).unwrap_or_default().sessions),
                    (2, Some(id)) => told.extend(leases.attach(id, holder, flag).unwrap_or_default().sessions),
                    (3, _) => told.extend(leases.disconnect(holder, now).into_iter().map(|(id, _)| (id, Some(holder)))),
                    (4, Some(id)) => drop(leases.close(id)),
                    _ => {}
                }
                for (id, lease) in leases.iter() {
                    if let Some(was) = before.get(&id) {
                        let told = told.iter().any(|(moved, from)| *moved == id && from == was);
                        prop_assert_eq!(*was != lease.holder, told);
                    }
                    prop_assert_eq!(lease.holder.is_none(), lease.detached_at.is_some());
                }
                let mut names: Vec<_> = leases
                    .iter()
                    .filter_map(|(_, lease)| Some((lease.holder?, lease.open.name.clone()?)))
                    .collect();
                let all = names.len();
                names.sort();
                names.dedup();
                prop_assert_eq!(names.len(), all);
            }
        }
    }
}
