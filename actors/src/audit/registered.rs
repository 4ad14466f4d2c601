//! A process whose records are routed to it: what it is told, and what is only counted.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use provost_sandbox::compile::PreparedSandbox;
use provost_sandbox::compile::access::FileAccess;
use provost_sandbox::denial::DenialClass;
use provost_sandbox::observe::audit::LandlockDenial;
use ractor::ActorRef;

use crate::denial::tell_all;
use crate::ledger::Fact;
use crate::process::ProcessMsg;
use crate::spool::{Observed, ProcessSpool};

/// Denials of one process that are told one by one: the first, and then those unlike any before, as many of them as
/// its ledger tells apart.
const ANYWAY_MAX: u64 = 1000;
const DISTINCT_MAX: usize = 4096;

/// A command that has entered Landlock domains.
pub(super) struct Registered {
    pub(super) pid: i32,
    pub(super) process: ActorRef<ProcessMsg>,
    pub(super) sandbox: Arc<PreparedSandbox>,
    pub(super) spool: Option<Arc<ProcessSpool>>,
    /// Somebody watched it before.
    pub(super) resumed: bool,
    /// The lost counter when it came.
    pub(super) lost_before: u64,
    pub(super) told: Told,
    /// What is to be told, and how many denials of each of its domains that makes.
    pub(super) facts: Vec<Fact>,
    pub(super) domains: BTreeMap<u64, u64>,
    /// The latter as they were last written down.
    pub(super) written: Vec<(u64, u64)>,
    /// Denials of which only the number is known.
    pub(super) uncounted: u64,
}

/// What a process was told of. A program can be refused faster than its ledger counts; nothing may pile up between
/// the two, so repetitions are only counted, and told as a number once for each batch.
#[derive(Default)]
pub(super) struct Told {
    /// Hashes: the program chooses how long a path is, and the key keeps it from aiming at a collision.
    seen: HashSet<u64>,
    key: RandomState,
    total: u64,
    repeated: BTreeMap<DenialClass, u64>,
}

impl Told {
    /// Whether to tell this one; if not, it is counted.
    pub(super) fn is_to_be_told(&mut self, denial: &LandlockDenial) -> bool {
        self.total += 1;
        let hash = self.key.hash_one((&denial.blockers, &denial.target));
        let new = self.seen.len() < DISTINCT_MAX && self.seen.insert(hash);
        if new || self.total <= ANYWAY_MAX {
            return true;
        }
        *self.repeated.entry(denial.class()).or_default() += 1;
        false
    }
}

impl Registered {
    pub(super) fn count(&mut self, class: DenialClass, extra: u64) {
        if extra > 0 {
            self.facts.push(Fact::DenialsCounted { class, extra });
        }
    }

    /// Tells everything there is, and first writes it down: all of it, or nothing.
    pub(super) fn flush(&mut self) {
        for (class, extra) in std::mem::take(&mut self.told.repeated) {
            self.count(class, extra);
        }
        let facts = std::mem::take(&mut self.facts);
        let domains: Vec<_> = self
            .domains
            .iter()
            .map(|(domain, told)| (*domain, *told))
            .collect();
        let observed = match &self.spool {
            Some(spool) if domains != self.written => {
                self.written.clone_from(&domains);
                spool.observe(Observed {
                    facts,
                    domains,
                    ..Observed::default()
                })
            }
            _ => facts.into_iter().map(|fact| (None, fact)).collect(),
        };
        tell_all(&self.process, observed, None);
    }
}

/// The line of the policy that refused.
pub(super) fn rule(sandbox: &PreparedSandbox, target: &str, wanted: &str) -> String {
    let access = match wanted {
        "read" => FileAccess::Read,
        "write" => FileAccess::Write,
        "execute" => FileAccess::Execute,
        "connect" | "bind" => {
            return sandbox.policy.net.ground_rule();
        }
        other => {
            return format!(
                "{other} does not leave the sandbox (policy {})",
                sandbox.policy.name
            );
        }
    };
    sandbox.access.decide(target.as_ref(), access).rule
}
