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

/// The same code without jumps to jumps, and without what can then not be reached. Each rule begins with a pair of
/// jumps: into itself, and on to the next number, which is out of the code and has no business in it.
fn compact(code: &[sock_filter]) -> Result<Vec<sock_filter>, &'static str> {
    let end_of_jumps = |mut at: usize| loop {
        match code.get(at) {
            None => return Err("a jump leads out of it"),
            Some(instruction) if instruction.code == JUMP => at += 1 + instruction.k as usize,
            Some(_) => return Ok(at),
        }
    };
    // Where each instruction that can be reached leads: on true, on false. Jumps go forward only.
    let mut reached = BTreeMap::new();
    let mut open = vec![end_of_jumps(0)?];
    while let Some(at) = open.pop() {
        let instruction = &code[at];
        let next = match instruction.code {
            RETURN => None,
            code if is_branch(code) => Some((
                end_of_jumps(at + 1 + usize::from(instruction.jt))?,
                end_of_jumps(at + 1 + usize::from(instruction.jf))?,
            )),
            _ => Some((end_of_jumps(at + 1)?, end_of_jumps(at + 1)?)),
        };
        if reached.insert(at, next).is_none() {
            open.extend(
                next.into_iter()
                    .flat_map(|(on_true, on_false)| [on_true, on_false]),
            );
        }
    }
    let kept: Vec<usize> = reached.keys().copied().collect();
    let mut compacted = Vec::with_capacity(kept.len());
    for (new, (&old, next)) in reached.iter().enumerate() {
        let mut instruction = code[old];
        let step = |target: usize| {
            let target = kept.binary_search(&target).map_err(|_| "a jump leads nowhere")?;
            u8::try_from(target - new - 1).map_err(|_| "a jump is too long")
        };
        match *next {
            Some((on_true, on_false)) if is_branch(instruction.code) => {
                (instruction.jt, instruction.jf) = (step(on_true)?, step(on_false)?);
            }
            Some((next, _)) if step(next)? != 0 => return Err("a load is followed by a jump"),
            _ => {}
        }
        compacted.push(instruction);
    }
    Ok(compacted)
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
