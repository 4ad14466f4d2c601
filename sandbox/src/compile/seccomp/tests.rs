//! What the filter says, by the small interpreter in `bpf`. The fuzz target uses it too, so this is not for tests alone.
#![cfg_attr(not(test), allow(dead_code, reason = "some of this only the tests use"))]

use super::*;
use crate::syscalls::{aarch64, x86_64};

mod bpf;
#[cfg(test)]
mod equal;
#[cfg(test)]
mod escapes;
pub(crate) mod fuzzing;
#[cfg(test)]
mod layout;
mod model;
mod oracle;
mod trio;

use bpf::Data;

const ABIS: [Abi; 2] = [x86_64::ABI, aarch64::ABI];

/// Every plan there is.
fn plans() -> Vec<FilterPlan> {
    let mut plans = Vec::new();
    for net in [NetMode::Off, NetMode::Isolated, NetMode::Open] {
        for opens in [
            OpenObservation::None,
            OpenObservation::Writes,
            OpenObservation::All,
        ] {
            for pid_namespace in [true, false] {
                plans.push(FilterPlan {
                    net,
                    opens,
                    pid_namespace,
                    refused: Vec::new(),
                });
            }
        }
    }
    plans
}

/// The filter of the default policy.
fn default_plan() -> FilterPlan {
    FilterPlan {
        net: NetMode::Off,
        opens: OpenObservation::None,
        pid_namespace: true,
        refused: Vec::new(),
    }
}

fn number(abi: &Abi, name: &str) -> u32 {
    abi.names.iter().find(|row| row.1 == name).expect(name).0
}

/// The compiled filter of one plan on one architecture, and what it says to a call.
struct Filter {
    abi: Abi,
    program: Vec<sock_filter>,
    /// Whether names are resolved under the plan.
    names: bool,
}

impl Filter {
    fn new(abi: Abi, plan: &FilterPlan) -> Self {
        let program = compile_for(&abi, plan).unwrap();
        Self {
            abi,
            program,
            names: plan.net == NetMode::Off,
        }
    }

    fn x86_64(plan: &FilterPlan) -> Self {
        Self::new(x86_64::ABI, plan)
    }

    fn notifies_data(&self, data: &Data) -> bool {
        match bpf::run(&self.program, data).answer {
            NOTIFY => true,
            SECCOMP_RET_ALLOW => false,
            other => panic!("{data:?} is answered with {other:#x}"),
        }
    }

    fn notifies_number(&self, number: u32, args: [u64; 6]) -> bool {
        self.notifies_data(&Data::new(&self.abi, number, args))
    }

    fn notifies(&self, name: &str, args: &[u64]) -> bool {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        self.notifies_number(number(&self.abi, name), all)
    }
}
