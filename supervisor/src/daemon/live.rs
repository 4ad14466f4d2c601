//! Which processes live. A daemon knows thousands that have ended: nobody who starts one looks at all of them.

use provost_actors::event::ProcessId;

/// Fewer than this are not looked through.
const LOOK_MIN: usize = 64;

/// The processes that live, and some that have ended since they were looked at.
#[derive(Debug, Default)]
pub(super) struct Live {
    ids: Vec<ProcessId>,
    /// Looked through when there are so many: then a start looks at two on average, however many live.
    look_at: usize,
}

impl Live {
    pub(super) fn add(&mut self, id: ProcessId, lives: impl FnMut(&ProcessId) -> bool) {
        if self.ids.len() >= self.look_at {
            self.look(lives);
        }
        self.ids.push(id);
    }

    /// Forgets those that have ended.
    pub(super) fn look(&mut self, lives: impl FnMut(&ProcessId) -> bool) {
        self.ids.retain(lives);
        self.look_at = LOOK_MIN.max(2 * self.ids.len());
    }

    /// All that live are among these; after [`Self::look`] these are all that live.
    pub(super) fn ids(&self) -> &[ProcessId] {
        &self.ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_live_are_known_and_few_of_those_that_ended() {
        let all: Vec<ProcessId> = (0..1000).map(|_| ProcessId::new()).collect();
        let mut live = Live::default();
        let mut looks = 0;
        for (index, id) in all.iter().enumerate() {
            // The first hundred live on, of the others the last one alone.
            let lives = |known: &ProcessId| {
                looks += 1;
                all[..100].contains(known)
                    || index.checked_sub(1).is_some_and(|last| *known == all[last])
            };
            live.add(*id, lives);
            assert!(all[..100.min(index + 1)].iter().all(|id| live.ids().contains(id)));
            assert!(live.ids().len() <= 2 * 101 + 1);
        }
        assert!(looks <= 2 * all.len(), "{looks} looks");
        live.look(|known| all[..100].contains(known));
        assert_eq!(live.ids(), &all[..100]);
    }
}
