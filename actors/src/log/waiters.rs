//! Who waits for what.
//!
//! Waiters register under the same lock under which the thing they wait for is looked at, so no wake-up can
//! come between; and they are removed when they stop waiting, so there are never more than there are.

use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

/// Names one waiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WaiterId(u64);

impl WaiterId {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Those who wait, each with a condition.
#[derive(Debug)]
pub(super) struct Waiters<C> {
    all: Vec<(WaiterId, C, Waker)>,
}

impl<C> Default for Waiters<C> {
    fn default() -> Self {
        Self { all: Vec::new() }
    }
}

impl<C> Waiters<C> {
    pub(super) fn register(&mut self, id: WaiterId, condition: C, waker: &Waker) {
        match self.all.iter_mut().find(|(other, ..)| *other == id) {
            Some((_, old, known)) => {
                *old = condition;
                known.clone_from(waker);
            }
            None => self.all.push((id, condition, waker.clone())),
        }
    }

    pub(super) fn remove(&mut self, id: WaiterId) {
        self.all.retain(|(other, ..)| *other != id);
    }

    pub(super) fn take_all(&mut self) -> Vec<Waker> {
        self.all.drain(..).map(|(.., waker)| waker).collect()
    }

    /// Takes those whose condition holds.
    pub(super) fn take_if(&mut self, holds: impl Fn(&C) -> bool) -> Vec<Waker> {
        self.all
            .extract_if(.., |(_, condition, _)| holds(condition))
            .map(|(.., waker)| waker)
            .collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}
