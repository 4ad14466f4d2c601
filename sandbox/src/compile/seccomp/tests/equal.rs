//! The searched program, the linear ones and the model say the same of every call.

use proptest::prelude::*;
use proptest::sample::select;

use super::super::outcome;
use super::bpf::Data;
use super::trio::{Trio, boundary_arguments, trios};
use super::{ABIS, plans};
use crate::syscalls::Calls;

#[test]
fn search_and_linear_program_agree_on_every_number() {
    let numbers = (0..=1024).chain(0x4000_0000..=0x4000_0000 + 1024).chain([
        0x3FFF_FFFF,
        0x7FFF_FFFF,
        0x8000_0000,
        0xC000_0000,
        0xFFFF_FFFE,
        u32::MAX,
    ]);
    let numbers: Vec<u32> = numbers.collect();
    for trio in trios() {
        let native = trio.filter.abi.audit_arch;
        for &number in &numbers {
            for args in [[0; 6], [1; 6], [2; 6], [u64::MAX; 6]] {
                trio.agree(&Data {
                    number,
                    arch: native,
                    args,
                });
            }
            for arch in [0x4000_0003, 0x4000_0028, 0, u32::MAX, native ^ 1] {
                assert!(trio.agree(&Data {
                    number,
                    arch,
                    args: [0; 6]
                }));
            }
        }
    }
}

#[test]
fn search_and_linear_program_agree_around_every_value_a_rule_mentions() {
    for trio in trios() {
        for entry in trio.filter.abi.entries() {
            let Some(Calls::Only(rules) | Calls::Except(rules)) = outcome::calls(&entry, &trio.plan)
            else {
                continue;
            };
            let mut answers = [false; 2];
            for args in boundary_arguments(rules) {
                let data = Data::new(&trio.filter.abi, entry.number, args);
                answers[usize::from(trio.agree(&data))] = true;
            }
            assert_eq!(answers, [true; 2], "{} was only answered one way", entry.name);
        }
    }
}

fn argument() -> impl Strategy<Value = u64> {
    let known = select(vec![
        0,
        1,
        2,
        3,
        5,
        6,
        10,
        16,
        17,
        22,
        31,
        57,
        0x11,
        0x80,
        0x5412,
        0x541C,
        0x2000_0000,
        0x1000_0000,
        0o100,
        0o1000,
        0x2000,
        0x6000,
        0x8008,
        0x4_0000,
        0x40_0000,
        262,
        0x0080_0001,
        0x0008_0005,
        0x4008_6602,
        0x5000_9401,
        0xFFFF_FFFF,
    ]);
    let value = prop_oneof![4 => known, 1 => any::<u32>().prop_map(u64::from), 1 => (0..32).prop_map(|bit| 1_u64 << bit)];
    (value, select(vec![0, 0, 0, 1 << 32, 0xFFFF_FFFF_0000_0000])).prop_map(|(value, high)| value | high)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn search_linear_program_and_model_agree_on_any_call(
        plan in select(plans()),
        x86 in any::<bool>(),
        calls in proptest::collection::vec((0_usize..1000, [(); 6].map(|()| argument())), 400),
    ) {
        let [x86_64, aarch64] = ABIS;
        let trio = Trio::new(if x86 { x86_64 } else { aarch64 }, &plan);
        let entries = trio.filter.abi.entries();
        for (pick, args) in calls {
            // Mostly calls that have an entry.
            let number = entries.get(pick % (entries.len() + 60)).map_or(pick as u32, |entry| entry.number);
            trio.agree(&Data::new(&trio.filter.abi, number, args));
        }
    }
}
