//! The code that judges the arguments of one call, cut out of what `seccompiler` makes of its rules.

use std::collections::BTreeMap;

use libc::{SECCOMP_RET_ALLOW, SECCOMP_RET_TRACE, sock_filter};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use super::search::{JUMP, JUMP_IF_EQUAL, LOAD_WORD, NUMBER_OFFSET, RETURN};
use super::{FilterError, NOTIFY, is_answer};
use crate::syscalls::{Calls, Compare, Entry, Rules, Test};

/// Stands for "notify" until the code is cut out. `seccompiler` knows `SECCOMP_RET_TRACE` but not
/// `SECCOMP_RET_USER_NOTIF`; the value is arbitrary.
const MARKER: u32 = 0x7E17;

/// What precedes a call's rules in a program for this one call: load the architecture, compare, kill; load the
/// number, compare.
const PROLOGUE_LEN: usize = 5;

/// A call's code: entered with anything in the accumulator, it answers on every path.
pub(super) fn compile(
    target: TargetArch,
    entry: &Entry,
    calls: Calls,
) -> Result<Vec<sock_filter>, FilterError> {
    let shape = |what| FilterError::Shape {
        syscall: entry.name,
        what,
    };
    let program =
        linear(target, i64::from(entry.number), calls).map_err(|source| FilterError::Rules {
            syscall: entry.name,
            source,
        })?;
    let program: Vec<sock_filter> = program
        .iter()
        .map(|i| sock_filter {
            code: i.code,
            jt: i.jt,
            jf: i.jf,
            k: i.k,
        })
        .collect();
    match program.get(PROLOGUE_LEN - 2..PROLOGUE_LEN) {
        Some([load, compare])
            if (load.code, load.k) == (LOAD_WORD, NUMBER_OFFSET)
                && (compare.code, compare.k) == (JUMP_IF_EQUAL, entry.number)
                && (compare.jt, compare.jf) == (0, 1) => {}
        _ => return Err(shape("the comparison with the number is not where it was")),
    }
    // The last instruction answers other numbers, which cannot come here.
    let [body @ .., last] = &program[PROLOGUE_LEN..] else {
        return Err(shape("it is too short"));
    };
    if last.code != RETURN {
        return Err(shape("it does not end with an answer"));
    }
    let mut code = compact(body).map_err(shape)?;
    for instruction in &mut code {
        if instruction.code == RETURN && instruction.k == SECCOMP_RET_TRACE | MARKER {
            instruction.k = NOTIFY;
        }
    }
    check(&code).map_err(shape)?;
    Ok(code)
}

/// `seccompiler`'s own program for the rules of one number.
fn linear(target: TargetArch, number: i64, calls: Calls) -> Result<BpfProgram, BackendError> {
    let notify = SeccompAction::Trace(MARKER);
    let (rules, mismatch, matching) = match calls {
        Calls::All => (Vec::new(), SeccompAction::Allow, notify),
        Calls::Only(rules) => (translate(rules)?, SeccompAction::Allow, notify),
        Calls::Except(rules) => (translate(rules)?, notify, SeccompAction::Allow),
    };
    SeccompFilter::new(BTreeMap::from([(number, rules)]), mismatch, matching, target)?.try_into()
}

/// The rules in `seccompiler`'s terms.
pub(super) fn translate(rules: Rules) -> Result<Vec<SeccompRule>, BackendError> {
    let condition = |test: &Test| match test.compare {
        Compare::Int {
            mask: u32::MAX,
            value,
        } => SeccompCondition::new(
            test.argument,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::Eq,
            u64::from(value),
        ),
        Compare::Int { mask, value } => SeccompCondition::new(
            test.argument,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::MaskedEq(u64::from(mask)),
            u64::from(value),
        ),
        Compare::NullPointer => {
            SeccompCondition::new(test.argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)
        }
    };
    let rule = |rule: &&[Test]| SeccompRule::new(rule.iter().map(condition).collect::<Result<_, _>>()?);
    rules.iter().map(rule).collect()
}

/// The same code, shorter: the kernel translates every instruction at every spawn. Each of `seccompiler`'s rules
/// begins with a pair of jumps (into itself, and on to the next number, which is out of the code and has no
/// business in it), loads its arguments anew and has its own answer.
fn compact(code: &[sock_filter]) -> Result<Vec<sock_filter>, &'static str> {
    let mut code = code.to_vec();
    for at in repeated_loads(&code, &flow(&code)?) {
        (code[at].code, code[at].k) = (JUMP, 0);
    }
    let flow = flow(&code)?;
    let kept: Vec<usize> = flow.keys().copied().collect();
    let mut compacted = Vec::with_capacity(kept.len());
    for (new, (&old, successors)) in flow.iter().enumerate() {
        let step = |target: usize| {
            let target = kept.binary_search(&target).map_err(|_| "a jump leads nowhere")?;
            u8::try_from(target - new - 1).map_err(|_| "a jump is too long")
        };
        let mut instruction = code[old];
        match *successors {
            Successors::None => {}
            Successors::Branch(on_true, on_false) => {
                (instruction.jt, instruction.jf) = (step(on_true)?, step(on_false)?);
            }
            Successors::One(next) if step(next)? == 0 => {}
            Successors::One(_) => return Err("a load is not followed by its comparison"),
        }
        compacted.push(instruction);
    }
    Ok(compacted)
}

/// Where an instruction leads. Jumps go forward only.
#[derive(Clone, Copy)]
enum Successors {
    /// It answers.
    None,
    One(usize),
    /// If true, if false.
    Branch(usize, usize),
}

/// The instructions that can be reached, jumps left out, with their successors. Equal answers are taken for one,
/// the last.
fn flow(code: &[sock_filter]) -> Result<BTreeMap<usize, Successors>, &'static str> {
    let settle = |mut at: usize| loop {
        match code.get(at) {
            None => return Err("a jump leads out of it"),
            Some(jump) if jump.code == JUMP => at = at.saturating_add(1).saturating_add(jump.k as usize),
            Some(answer) if answer.code == RETURN => {
                let same = |other: &sock_filter| (other.code, other.k) == (answer.code, answer.k);
                return Ok(code.iter().rposition(same).unwrap_or(at));
            }
            Some(_) => return Ok(at),
        }
    };
    let mut flow = BTreeMap::new();
    let mut open = vec![settle(0)?];
    while let Some(at) = open.pop() {
        if flow.contains_key(&at) {
            continue;
        }
        let instruction = &code[at];
        let successors = if instruction.code == RETURN {
            Successors::None
        } else if is_branch(instruction.code) {
            let on_true = settle(at + 1 + usize::from(instruction.jt))?;
            let on_false = settle(at + 1 + usize::from(instruction.jf))?;
            open.extend([on_true, on_false]);
            Successors::Branch(on_true, on_false)
        } else {
            let next = settle(at + 1)?;
            open.push(next);
            Successors::One(next)
        };
        flow.insert(at, successors);
    }
    Ok(flow)
}

/// The loads of a word that is in the accumulator already, whichever way they are come to.
fn repeated_loads(code: &[sock_filter], flow: &BTreeMap<usize, Successors>) -> Vec<usize> {
    // What the accumulator holds before each instruction: `Some(offset)`, or `None` for anything else. Ascending
    // order sees every instruction after all that lead to it.
    let mut before: BTreeMap<usize, Option<u32>> = BTreeMap::new();
    let mut repeated = Vec::new();
    for (&at, &successors) in flow {
        let held = before.get(&at).copied().flatten();
        let instruction = &code[at];
        let after = match instruction.code {
            LOAD_WORD if held == Some(instruction.k) => {
                repeated.push(at);
                held
            }
            LOAD_WORD => Some(instruction.k),
            code if is_branch(code) => held,
            _ => None,
        };
        let mut meet = |next: usize| {
            let known = before.entry(next).or_insert(after);
            if *known != after {
                *known = None;
            }
        };
        match successors {
            Successors::None => {}
            Successors::One(next) => meet(next),
            Successors::Branch(on_true, on_false) => {
                meet(on_true);
                meet(on_false);
            }
        }
    }
    repeated
}

/// Whether it is a conditional jump.
fn is_branch(code: u16) -> bool {
    u32::from(code) & 0x07 == libc::BPF_JMP && code != JUMP
}

/// Whether the code gives our two answers, both, and no other. Where its paths lead, [`compact`] has seen.
fn check(code: &[sock_filter]) -> Result<(), &'static str> {
    let returns = || code.iter().filter(|instruction| instruction.code == RETURN);
    if !returns().all(|answer| is_answer(answer.code, answer.k)) {
        return Err("it answers with something else than allow or notify");
    }
    if !returns().any(|answer| answer.k == NOTIFY)
        || !returns().any(|answer| answer.k == SECCOMP_RET_ALLOW)
    {
        return Err("it does not tell calls apart");
    }
    Ok(())
}
