//! Whose records are whose, where one process reads them for several users.
//!
//! A domain belongs to the real user of the process that made it, and to nobody unless that process was a Provost: the
//! kernel took both down when the domain was made, and writes them itself. A user can thus be shown only what its own
//! processes were refused; and not what a set-uid program was that it ran, which may know what the user may not.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::{AuditEvent, LandlockDenial};

/// Domains of a user that are remembered; of nobody in particular as many.
const DOMAINS_MAX: usize = 16_384;
/// Domains of which a denial came and the announcement, which follows at once, has not.
const UNANNOUNCED_MAX: usize = 1024;
/// Their denials, of all together.
const WAITING_MAX: usize = 4096;
/// A domain that was not announced in this time was announced before anybody listened (or the announcement was lost, which
/// the kernel counts).
const ANNOUNCED_WITHIN: Duration = Duration::from_secs(10);
/// What the kernel writes behind the path of a program that was replaced.
const DELETED: &str = " (deleted)";

/// What became of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Routed {
    /// This user's.
    To(u32, AuditEvent),
    /// Something of this user's is missing.
    LostOf(u32),
    /// Something is missing, and nobody can say whose.
    Lost,
}

/// Who made which domain.
#[derive(Debug)]
pub(super) struct Owners {
    /// The program that makes domains for us.
    executable: String,
    domains: HashMap<u64, Option<u32>>,
    /// The same by owners, oldest first: the kernel counts domains upwards.
    by_owner: HashMap<Option<u32>, BTreeSet<u64>>,
    unannounced: HashMap<u64, Unannounced>,
    waiting: usize,
}

#[derive(Debug)]
struct Unannounced {
    since: Instant,
    denials: Vec<LandlockDenial>,
    /// More, for which there was no room.
    uncounted: u64,
}

impl Owners {
    /// Of domains that `executable` makes, by its absolute path.
    pub(super) fn new(executable: String) -> Self {
        Self {
            executable,
            domains: HashMap::new(),
            by_owner: HashMap::new(),
            unannounced: HashMap::new(),
            waiting: 0,
        }
    }

    /// Says whose an event is. `is_served` tells which users want any.
    pub(super) fn route(
        &mut self,
        event: AuditEvent,
        is_served: impl Fn(u32) -> bool,
        mut out: impl FnMut(Routed),
    ) {
        match event {
            AuditEvent::Denied(denial) => match self.domains.get(&denial.domain) {
                Some(Some(uid)) => out(Routed::To(*uid, AuditEvent::Denied(denial))),
                Some(None) => {}
                None => self.wait(denial, out),
            },
            AuditEvent::DomainAllocated {
                domain, uid, ref exe, ..
            } => {
                let is_ours = exe.strip_suffix(DELETED).unwrap_or(exe) == self.executable;
                let owner = (is_ours && is_served(uid)).then_some(uid);
                if let Some(owner) = owner {
                    out(Routed::To(owner, event));
                }
                self.announced(domain, owner, out);
            }
            AuditEvent::DomainGone { domain, .. } => {
                self.forget_unannounced(domain);
                let owner = self.domains.remove(&domain).flatten();
                if let Some(of_owner) = self.by_owner.get_mut(&owner) {
                    of_owner.remove(&domain);
                }
                if let Some(uid) = owner {
                    out(Routed::To(uid, event));
                }
            }
            AuditEvent::Fence(_) | AuditEvent::Overflow => {}
        }
    }

    /// Forgets what a user owned who is not served any more.
    pub(super) fn forget(&mut self, uid: u32) {
        // Nobody's from now on: the denials that are still to come are not taken for those of an unknown domain.
        for domain in self.by_owner.remove(&Some(uid)).unwrap_or_default() {
            self.domains.remove(&domain);
            self.remember(domain, None);
        }
    }

    fn announced(&mut self, domain: u64, owner: Option<u32>, mut out: impl FnMut(Routed)) {
        let early = self.forget_unannounced(domain);
        let evicted = self.remember(domain, owner);
        let Some(uid) = owner else { return };
        if evicted {
            out(Routed::LostOf(uid));
        }
        if let Some(early) = early {
            for denial in early.denials {
                out(Routed::To(uid, AuditEvent::Denied(denial)));
            }
            for _ in 0..early.uncounted {
                out(Routed::LostOf(uid));
            }
        }
    }

    /// True if an older domain of the owner's had to be forgotten.
    fn remember(&mut self, domain: u64, owner: Option<u32>) -> bool {
        // Two tasks may be refused first.
        if self.domains.insert(domain, owner).is_some() {
            return false;
        }
        let of_owner = self.by_owner.entry(owner).or_default();
        of_owner.insert(domain);
        if of_owner.len() <= DOMAINS_MAX {
            return false;
        }
        if let Some(oldest) = of_owner.pop_first() {
            self.domains.remove(&oldest);
        }
        true
    }

    fn forget_unannounced(&mut self, domain: u64) -> Option<Unannounced> {
        let found = self.unannounced.remove(&domain)?;
        self.waiting -= found.denials.len();
        Some(found)
    }

    fn wait(&mut self, denial: LandlockDenial, mut out: impl FnMut(Routed)) {
        let domain = denial.domain;
        let is_full = self.unannounced.len() >= UNANNOUNCED_MAX || self.waiting >= WAITING_MAX;
        if is_full && !self.unannounced.contains_key(&domain) {
            self.unannounced
                .retain(|_, unannounced| unannounced.since.elapsed() < ANNOUNCED_WITHIN);
            self.waiting = self.unannounced.values().map(|found| found.denials.len()).sum();
            if self.unannounced.len() >= UNANNOUNCED_MAX {
                return out(Routed::Lost);
            }
        }
        let unannounced = self.unannounced.entry(domain).or_insert_with(|| Unannounced {
            since: Instant::now(),
            denials: Vec::new(),
            uncounted: 0,
        });
        if self.waiting < WAITING_MAX {
            unannounced.denials.push(denial);
            self.waiting += 1;
        } else {
            unannounced.uncounted += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::LandlockTarget;
    use super::*;

    const OURS: &str = "/usr/bin/provost";

    fn denied(domain: u64) -> AuditEvent {
        AuditEvent::Denied(LandlockDenial {
            domain,
            blockers: vec!["fs.read_file".to_owned()],
            target: LandlockTarget::Unknown,
        })
    }

    fn announced(domain: u64, uid: u32, exe: &str) -> AuditEvent {
        AuditEvent::DomainAllocated {
            domain,
            pid: 7,
            uid,
            comm: "c".to_owned(),
            exe: exe.to_owned(),
        }
    }

    fn gone(domain: u64) -> AuditEvent {
        AuditEvent::DomainGone { domain, denials: 1 }
    }

    fn routed(owners: &mut Owners, event: AuditEvent) -> Vec<Routed> {
        let mut all = Vec::new();
        owners.route(event, |uid| uid >= 1000, |routed| all.push(routed));
        all
    }

    #[test]
    fn i12_a_domain_s_records_go_to_the_user_who_made_it_with_provost_and_to_nobody_else() {
        let mut owners = Owners::new(OURS.to_owned());
        // A denial comes before the announcement.
        assert_eq!(routed(&mut owners, denied(1)), []);
        let told = announced(1, 1001, OURS);
        assert_eq!(
            routed(&mut owners, told.clone()),
            [Routed::To(1001, told), Routed::To(1001, denied(1))]
        );
        assert_eq!(routed(&mut owners, denied(1)), [Routed::To(1001, denied(1))]);
        let replaced = announced(2, 1002, &format!("{OURS}{DELETED}"));
        assert_eq!(
            routed(&mut owners, replaced.clone()),
            [Routed::To(1002, replaced)]
        );
        assert_eq!(routed(&mut owners, denied(2)), [Routed::To(1002, denied(2))]);
        // A set-uid program that the user ran, somebody who is not served, and what nobody announced.
        for event in [
            announced(3, 1001, "/usr/bin/su"),
            denied(3),
            gone(3),
            announced(4, 0, OURS),
            denied(4),
            gone(4),
            denied(5),
            gone(5),
        ] {
            assert_eq!(routed(&mut owners, event), []);
        }
        assert_eq!(routed(&mut owners, gone(1)), [Routed::To(1001, gone(1))]);
        assert_eq!(routed(&mut owners, gone(1)), []);
        // Who comes later under the same number does not get what was an earlier one's.
        owners.forget(1002);
        assert_eq!(routed(&mut owners, denied(2)), []);
        assert_eq!(routed(&mut owners, gone(2)), []);
        assert!(owners.domains.is_empty() && owners.unannounced.is_empty() && owners.waiting == 0);
    }

    #[test]
    fn i3_domains_without_end_are_bounded_and_what_is_forgotten_is_said_to_be_lost() {
        let mut owners = Owners::new(OURS.to_owned());
        let mut lost = 0;
        for domain in 0..3 * DOMAINS_MAX as u64 {
            let all = routed(&mut owners, announced(domain, 1001, OURS));
            lost += all
                .iter()
                .filter(|routed| **routed == Routed::LostOf(1001))
                .count();
        }
        assert_eq!((lost, owners.domains.len()), (2 * DOMAINS_MAX, DOMAINS_MAX));
        // Another's are not forgotten for that.
        let other = announced(u64::MAX, 1002, OURS);
        assert_eq!(routed(&mut owners, other.clone()), [Routed::To(1002, other)]);

        let mut lost = 0;
        for domain in 0..2 * UNANNOUNCED_MAX as u64 {
            lost += routed(&mut owners, denied((1 << 40) + domain)).len();
        }
        assert_eq!(
            (lost, owners.unannounced.len()),
            (UNANNOUNCED_MAX, UNANNOUNCED_MAX)
        );
        for _ in 0..2 * WAITING_MAX {
            let _ = routed(&mut owners, denied(1 << 40));
        }
        assert_eq!(owners.waiting, WAITING_MAX);
        let all = routed(&mut owners, announced(1 << 40, 1002, OURS));
        let lost = all
            .iter()
            .filter(|routed| **routed == Routed::LostOf(1002))
            .count();
        assert_eq!(all.len() - 1, 2 * WAITING_MAX + 1);
        assert_eq!(lost, 2 * WAITING_MAX + 1 - (WAITING_MAX - UNANNOUNCED_MAX + 1));
    }
}
