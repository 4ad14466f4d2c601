//! The same rules as `seccompiler` lays them out itself: one comparison after the other.

use std::collections::BTreeMap;

use libc::sock_filter;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule};

use super::super::{FilterPlan, chunk, outcome};
use super::bpf::{self, Data};
use crate::syscalls::{Abi, Calls};

const MARKER: u32 = 0x1234;

type LinearRules = BTreeMap<i64, Vec<SeccompRule>>;

/// A filter has one action for what matches. Calls that are notified *unless* a rule holds need the opposite of
/// the others, hence two programs.
pub(super) struct Oracle {
    audit_arch: u32,
    known: Vec<u32>,
    exceptions: Vec<u32>,
    notify_if: Vec<sock_filter>,
    allow_if: Vec<sock_filter>,
}

impl Oracle {
    pub(super) fn new(abi: &Abi, plan: &FilterPlan) -> Self {
        let (mut notify_if, mut allow_if) = (LinearRules::new(), LinearRules::new());
        for entry in abi.entries() {
            let number = i64::from(entry.number);
            match outcome::calls(&entry, plan) {
                None => {}
                Some(Calls::All) => drop(notify_if.insert(number, Vec::new())),
                Some(Calls::Only(rules)) => {
                    drop(notify_if.insert(number, chunk::translate(rules).unwrap()))
                }
                Some(Calls::Except(rules)) => {
                    drop(allow_if.insert(number, chunk::translate(rules).unwrap()))
                }
            }
        }
        let program = |rules: LinearRules, mismatch, matching| {
            let filter = SeccompFilter::new(rules, mismatch, matching, abi.target).unwrap();
            let program: BpfProgram = filter.try_into().unwrap();
            let convert = |i: &seccompiler::sock_filter| sock_filter {
                code: i.code,
                jt: i.jt,
                jf: i.jf,
                k: i.k,
            };
            program.iter().map(convert).collect::<Vec<_>>()
        };
        let (allow, notify) = (SeccompAction::Allow, SeccompAction::Trace(MARKER));
        Self {
            audit_arch: abi.audit_arch,
            known: abi.names.iter().map(|row| row.0).collect(),
            exceptions: allow_if
                .keys()
                .map(|&number| u32::try_from(number).unwrap())
                .collect(),
            notify_if: program(notify_if, allow.clone(), notify.clone()),
            allow_if: program(allow_if, notify, allow),
        }
    }

    /// How long the two programs are together.
    pub(super) fn len(&self) -> usize {
        self.notify_if.len() + self.allow_if.len()
    }

    /// Whether the call is notified.
    pub(super) fn notifies(&self, data: &Data) -> bool {
        if data.arch != self.audit_arch {
            return true;
        }
        if self.known.binary_search(&data.number).is_err() {
            return data.number != u32::MAX;
        }
        let program = match self.exceptions.binary_search(&data.number).is_ok() {
            true => &self.allow_if,
            false => &self.notify_if,
        };
        match bpf::run(program, data).answer {
            libc::SECCOMP_RET_ALLOW => false,
            answer => {
                assert_eq!(answer, libc::SECCOMP_RET_TRACE | MARKER);
                true
            }
        }
    }
}
