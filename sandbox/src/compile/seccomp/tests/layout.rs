//! The shape of the program: what it costs, and that a search of any size leads where it should.

use proptest::prelude::*;

use super::super::search::{LOAD_WORD, Leaf, RETURN};
use super::super::{chunk, outcome};
use super::oracle::Oracle;
use super::*;
use crate::syscalls::Calls;

#[test]
fn programs_are_short_and_always_allowed_calls_cost_few_instructions() {
    for abi in ABIS {
        for plan in plans() {
            let linear = Oracle::new(&abi, &plan).len();
            let filter = Filter::new(abi, &plan);
            let (mut allowed, mut steps, mut longest) = (0, 0, 0);
            for &(number, _) in filter.abi.names {
                let run = bpf::run(&filter.program, &Data::new(&filter.abi, number, [0; 6]));
                longest = longest.max(run.steps);
                if run.answer == SECCOMP_RET_ALLOW && !run.saw_arguments {
                    allowed += 1;
                    steps += run.steps;
                    assert!(run.steps <= 14, "{number} takes {} instructions", run.steps);
                }
            }
            println!(
                "{:#x} {plan:?}: {} instructions (linear {linear}); {allowed} calls always allowed, {:.1} \
                 instructions each; longest {longest}",
                abi.audit_arch,
                filter.program.len(),
                steps as f64 / f64::from(allowed),
            );
            assert!(filter.program.len() < 700 && filter.program.len() < linear);
            assert!(allowed > 200);
        }
    }
}

#[test]
fn nothing_but_allow_and_notify_is_answered() {
    for abi in ABIS {
        for plan in plans() {
            let program = compile_for(&abi, &plan).unwrap();
            for (at, instruction) in program.iter().enumerate() {
                if instruction.code == RETURN {
                    assert!(is_answer(instruction.code, instruction.k), "at {at}");
                }
            }
        }
    }
}

#[test]
fn the_native_filter_is_the_one_compiled_for_this_architecture() {
    let plan = default_plan();
    let key = |program: Vec<sock_filter>| -> Vec<_> {
        program.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect()
    };
    let native = ABIS
        .into_iter()
        .find(|abi| abi.audit_arch == crate::syscalls::NATIVE_ARCH)
        .unwrap();
    assert_eq!(
        key(compile_filter(&plan).unwrap()),
        key(compile_for(&native, &plan).unwrap())
    );
}

#[test]
fn every_chunk_stands_on_its_own() {
    for abi in ABIS {
        for plan in plans() {
            for entry in abi.entries() {
                let Some(calls @ (Calls::Only(_) | Calls::Except(_))) = outcome::calls(&entry, &plan)
                else {
                    continue;
                };
                let code = chunk::compile(abi.target, &entry, calls).unwrap();
                assert_eq!(code[0].code, LOAD_WORD, "{} trusts the accumulator", entry.name);
                assert!(code[0].k >= 16);
                assert_eq!(code.last().unwrap().code, RETURN);
            }
        }
    }
}

#[test]
fn a_chunk_that_cannot_tell_calls_apart_is_an_error() {
    let entries = x86_64::ABI.entries();
    let mount = entries.iter().find(|entry| entry.name == "mount").unwrap();
    let error = chunk::compile(x86_64::ABI.target, mount, Calls::All).unwrap_err();
    assert!(
        matches!(error, FilterError::Shape { syscall: "mount", .. }),
        "{error}"
    );
}

fn leaf() -> impl Strategy<Value = Leaf> {
    prop_oneof![
        Just(Leaf::Allow),
        Just(Leaf::Notify),
        (0_usize..150).prop_map(Leaf::Chunk)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn a_search_of_any_size_leads_every_number_to_its_leaf(
        leaves in prop_oneof![
            proptest::collection::vec((leaf(), 1_u32..4_000_000), 1..5),
            proptest::collection::vec((leaf(), 1_u32..200), 1..300),
            proptest::collection::vec((leaf(), 1_u32..4_000_000), 1..1000),
        ],
    ) {
        fuzzing::search_leads_every_number_to_its_leaf(&leaves);
    }
}
