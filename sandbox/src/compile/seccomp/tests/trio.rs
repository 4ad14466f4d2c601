//! The searched program, the linear ones and the model, asked the same.

use super::bpf::Data;
use super::oracle::Oracle;
use super::{ABIS, Filter, model, plans};
use crate::compile::seccomp::FilterPlan;
use crate::syscalls::{Abi, Compare, Rules};

const GARBAGE: [u64; 3] = [0, 0xFFFF_FFFF_0000_0000, 1 << 32];

/// The three that must agree.
pub(super) struct Trio {
    pub(super) filter: Filter,
    oracle: Oracle,
    pub(super) plan: FilterPlan,
}

impl Trio {
    pub(super) fn new(abi: Abi, plan: &FilterPlan) -> Self {
        Self {
            oracle: Oracle::new(&abi, plan),
            filter: Filter::new(abi, plan),
            plan: plan.clone(),
        }
    }

    /// Asks all three, and returns the answer they share.
    pub(super) fn agree(&self, data: &Data) -> bool {
        let notified = self.filter.notifies_data(data);
        // What the policy refuses by its name neither of the others knows of.
        if self.plan.refused.contains(&data.number) {
            assert!(notified, "{data:x?} {:?}", self.plan);
            return true;
        }
        assert_eq!(notified, self.oracle.notifies(data), "{data:x?} {:?}", self.plan);
        if let Some(name) = self.name(data) {
            let expected = model::notifies(&self.plan, name, &data.args);
            assert_eq!(notified, expected, "{name} {data:x?} {:?}", self.plan);
        }
        notified
    }

    fn name(&self, data: &Data) -> Option<&'static str> {
        let row = self.filter.abi.names.iter().find(|row| row.0 == data.number)?;
        (data.arch == self.filter.abi.audit_arch).then_some(row.1)
    }
}

/// Every plan on every architecture.
pub(super) fn trios() -> impl Iterator<Item = Trio> {
    ABIS.into_iter()
        .flat_map(|abi| plans().into_iter().map(move |plan| Trio::new(abi, &plan)))
}

/// Arguments at and around each value that the rules of a call mention, for each rule with all its other tests
/// satisfied, each with and without garbage in the upper halves.
pub(super) fn boundary_arguments(rules: Rules) -> Vec<[u64; 6]> {
    let mut all = Vec::new();
    for rule in rules {
        for garbage in GARBAGE {
            let mut base = [garbage; 6];
            for test in *rule {
                base[usize::from(test.argument)] = match test.compare {
                    Compare::Int { value, .. } => u64::from(value) | garbage,
                    Compare::NullPointer => 0,
                };
            }
            all.push(base);
            for test in *rule {
                let at = usize::from(test.argument);
                let mut values = vec![0, 1, 1 << 31, 1 << 32, u64::MAX, u64::from(u32::MAX)];
                if let Compare::Int { mask, value } = test.compare {
                    let (mask, value) = (u64::from(mask), u64::from(value));
                    values.extend([
                        value.wrapping_sub(1),
                        value + 1,
                        value | !mask,
                        !value,
                        value << 32,
                    ]);
                    values.extend((0..32).map(|bit| value ^ 1 << bit));
                }
                for value in values {
                    let mut args = base;
                    args[at] = value;
                    all.push(args);
                    args[at] = value ^ garbage;
                    all.push(args);
                }
            }
        }
    }
    all
}
