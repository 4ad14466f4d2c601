//! The filter under input that nobody thought of.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

use super::super::search::{self, JUMP, Leaf, RETURN, Range};
use super::super::{FilterError, chunk};
use super::bpf::{self, Data};
use super::trio::{Trio, boundary_arguments, trios};
use super::*;
use crate::fuzzing::Source;
use crate::syscalls::{Calls, Compare, Entry, Handling, Rules, Scope, Test};

/// Any call under any plan, a search of any shape, any rules about arguments.
pub fn bpf_layout(bytes: &[u8]) {
    let mut source = Source { rest: bytes };
    match source.u8() % 3 {
        0 => any_calls(&mut source),
        1 => any_search(&mut source),
        _ => any_rules(&mut source),
    }
}

fn any_calls(source: &mut Source<'_>) {
    static TRIOS: LazyLock<Vec<Trio>> = LazyLock::new(|| {
        let refusing = ABIS.map(|abi| {
            let plan = FilterPlan {
                refused: abi.names.iter().map(|row| row.0).step_by(7).collect(),
                ..default_plan()
            };
            Trio::new(abi, &plan)
        });
        trios().chain(refusing).collect()
    });
    let trio = source.pick(&TRIOS);
    let abi = &trio.filter.abi;
    while !source.rest.is_empty() {
        let number = match source.u8() {
            255 => source.u32(),
            _ => source.pick(abi.names).0,
        };
        let arch = match source.u8() {
            255 => source.u32(),
            _ => abi.audit_arch,
        };
        let args = [(); 6].map(|()| any_argument(source));
        trio.agree(&Data { number, arch, args });
    }
}

fn any_argument(source: &mut Source<'_>) -> u64 {
    match source.u8() {
        wide @ 128.. => source.u64() ^ u64::from(wide & 1),
        bit @ 64.. => 1 << (bit & 63),
        small @ 32.. => u64::from(small & 31),
        _ => u64::from(source.u32()),
    }
}

fn any_search(source: &mut Source<'_>) {
    let mut leaves = Vec::new();
    while !source.rest.is_empty() && leaves.len() < 1000 {
        let leaf = match source.u8() {
            0..64 => Leaf::Allow,
            64..128 => Leaf::Notify,
            chunk => Leaf::Chunk(usize::from(chunk)),
        };
        let width = u32::from(source.u16());
        leaves.push((leaf, 1 + if width & 1 == 0 { width & 0xFF } else { width << 6 }));
    }
    if !leaves.is_empty() {
        search_leads_every_number_to_its_leaf(&leaves);
    }
}

/// Leaves, each with how many numbers lead to it; the last has all that remain.
pub(super) fn search_leads_every_number_to_its_leaf(leaves: &[(Leaf, u32)]) {
    let mut first = 0;
    let mut ranges = Vec::new();
    for &(leaf, width) in leaves {
        ranges.push(Range { first, leaf });
        first += width;
    }
    let chunks: Vec<_> = (0..256).map(marked).collect();
    let program = search::assemble(7, &ranges, &chunks);
    for (at, range) in ranges.iter().enumerate() {
        let last = ranges.get(at + 1).map_or(u32::MAX, |next| next.first - 1);
        for number in [range.first, last, range.first + (last - range.first) / 2] {
            let data = Data {
                number,
                arch: 7,
                args: [0; 6],
            };
            assert_eq!(bpf::run(&program, &data).answer, expected(range.leaf));
            let foreign = Data { arch: 8, ..data };
            assert_eq!(bpf::run(&program, &foreign).answer, NOTIFY);
        }
    }
}

/// A chunk that can be told by its answer.
fn marked(index: usize) -> Vec<sock_filter> {
    let instruction = |code, k| sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    };
    vec![
        instruction(JUMP, 1),
        instruction(RETURN, 0),
        instruction(RETURN, 1000 + index as u32),
    ]
}

fn expected(leaf: Leaf) -> u32 {
    match leaf {
        Leaf::Allow => SECCOMP_RET_ALLOW,
        Leaf::Notify => NOTIFY,
        Leaf::Chunk(index) => 1000 + index as u32,
    }
}

/// Up to three calls with rules of their own, in one program: each answers as its rules say, whatever the arguments.
fn any_rules(source: &mut Source<'_>) {
    let abi = ABIS[usize::from(source.u8()) % 2];
    let (mut entries, mut chunks) = (Vec::new(), Vec::new());
    let mut ranges = vec![Range {
        first: 0,
        leaf: Leaf::Allow,
    }];
    let mut number = 1;
    for _ in 0..=source.u8() % 3 {
        let Some(calls) = any_conditions(source) else {
            return;
        };
        let entry = Entry {
            number,
            name: "any",
            handling: Handling::Refuse { errno: libc::EPERM },
            reason: "any",
            scope: Scope::Always,
            calls,
        };
        let code = match chunk::compile(abi.target, &entry, calls) {
            Ok(code) => code,
            // Rules that do not tell calls apart, or are too many for short jumps: said, not compiled.
            Err(FilterError::Shape { .. } | FilterError::Rules { .. }) => return,
            Err(other) => panic!("{other}"),
        };
        ranges.push(Range {
            first: number,
            leaf: Leaf::Chunk(chunks.len()),
        });
        chunks.push(code);
        entries.push(entry);
        number += 1 + u32::from(source.u8() % 2);
        ranges.push(Range {
            first: number,
            leaf: Leaf::Notify,
        });
        number += 1;
    }
    let program = search::assemble(abi.audit_arch, &ranges, &chunks);
    let chosen = [(); 4].map(|()| [(); 6].map(|()| any_argument(source)));
    for entry in &entries {
        let (Calls::Only(rules) | Calls::Except(rules)) = entry.calls else {
            continue;
        };
        for args in boundary_arguments(rules).into_iter().chain(chosen) {
            let answer = bpf::run(&program, &Data::new(&abi, entry.number, args)).answer;
            assert_eq!(answer == NOTIFY, entry.is_refused(&args), "{args:x?} {rules:?}");
        }
    }
}

/// How many rules are remembered: rules live as long as the program.
const RULES_KEPT_MAX: usize = 100_000;

fn any_conditions(source: &mut Source<'_>) -> Option<Calls> {
    static KEPT: LazyLock<Mutex<HashMap<Vec<u8>, Rules>>> = LazyLock::new(Mutex::default);
    let except = source.u8() & 1 == 1;
    let before = source.rest;
    let rules: Vec<Vec<Test>> = (0..=source.u8() % 3)
        .map(|_| (0..=source.u8() % 3).map(|_| any_test(source)).collect())
        .collect();
    let key = &before[..before.len() - source.rest.len()];
    let mut kept = KEPT.lock().expect("no panic so far");
    let rules = match kept.get(key) {
        Some(known) => known,
        None if kept.len() == RULES_KEPT_MAX => return None,
        None => {
            let rows: Vec<&'static [Test]> = rules.into_iter().map(|rule| &*rule.leak()).collect();
            let rules: Rules = rows.leak();
            kept.insert(key.to_vec(), rules);
            rules
        }
    };
    Some(if except {
        Calls::Except(rules)
    } else {
        Calls::Only(rules)
    })
}

fn any_test(source: &mut Source<'_>) -> Test {
    let choice = source.u8();
    let value = source.u32();
    let mask = match choice >> 6 {
        0 => u32::MAX,
        1 => source.u32(),
        2 => u32::from(source.u8()),
        _ => 0,
    };
    Test {
        argument: choice % 6,
        compare: match mask {
            0 => Compare::NullPointer,
            mask => Compare::Int {
                mask,
                value: value & mask,
            },
        },
    }
}
