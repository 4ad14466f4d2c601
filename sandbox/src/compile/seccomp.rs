//! One seccomp filter that decides by registers alone, and asks about everything else.
//!
//! The filter knows two answers. What is plainly harmless is allowed; everything else goes to the listener
//! (`SECCOMP_RET_USER_NOTIF`), which refuses it with an error number and records that. Nothing is answered with
//! an error or a kill by the filter itself: such a refusal would happen unseen.
//!
//! ```text
//! arch ≠ ours ──────────────────────────────► notify
//! number, by binary search ──┬─ no rule ────► allow
//!                            ├─ refused ────► notify      also: unknown numbers, x32
//!                            └─ conditions ─► chunk ──┬─► allow
//!                                                     └─► notify
//! ```
//!
//! The conditions on arguments are compiled by `seccompiler`, one call at a time (`chunk`); it has no action for
//! user notification, so a marker stands in for it and is replaced afterwards. Its own layout compares the
//! number with one rule after the other, and the kernel, which runs a new filter over all numbers to learn
//! which are always allowed, is slow to install that; so the chunks become the leaves of a search (`search`).
//! The tests hold the two layouts against each other.
//!
//! Calls made between the filter and the exec are never notified: see [`crate::syscalls`].

use libc::{SECCOMP_RET_ALLOW, sock_filter};
use thiserror::Error;

use crate::policy::NetMode;
use crate::syscalls::{Abi, Calls, SKIPPED_BY_TRACER};

mod chunk;
mod outcome;
mod search;

use search::{Leaf, Range};

/// `SECCOMP_RET_USER_NOTIF`: hand the call to the listener.
pub(crate) const NOTIFY: u32 = 0x7FC0_0000;

/// The longest program the kernel takes (`BPF_MAXINSNS`).
const PROGRAM_LEN_MAX: usize = 4096;

/// What the filter depends on. Everything else is the same in every sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterPlan {
    /// Which sockets exist, and whether every datagram is looked at.
    pub net: NetMode,
    /// Which file calls are shown to the listener.
    pub opens: OpenObservation,
    /// Whether the process has a PID and IPC namespace of its own. Without one, calls that may name a process
    /// of the host, or its IPC objects, are notified too.
    pub pid_namespace: bool,
    /// Calls that are notified whatever their arguments, to be refused.
    pub refused: Vec<u32>,
}

/// Which file calls are notified, in order to observe them: enforcing is Landlock's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OpenObservation {
    /// None, because the kernel's audit records tell (device nodes are still refused).
    None,
    /// Opens that may write, and changes to directories.
    Writes,
    /// Every open, and changes to directories.
    All,
}

/// Why no filter came of a plan. None of these can be caused by a policy: they say that the tables or the
/// compiler are not what this module expects.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FilterError {
    /// `seccompiler` did not take the rules of a call.
    #[error("seccomp rules for {syscall} do not compile")]
    Rules {
        /// The call.
        syscall: &'static str,
        /// What it said.
        #[source]
        source: seccompiler::BackendError,
    },
    /// `seccompiler` produced code of another shape than the one that is understood here.
    #[error("seccompiler's code for {syscall} has an unexpected shape: {what}")]
    Shape {
        /// The call.
        syscall: &'static str,
        /// What is different.
        what: &'static str,
    },
    /// The program exceeds what the kernel takes.
    #[error("the seccomp filter has {len} instructions, the kernel takes {PROGRAM_LEN_MAX}")]
    TooLong {
        /// Its length.
        len: usize,
    },
}

/// Compiles the filter for this machine.
///
/// # Errors
/// See [`FilterError`]; every plan compiles as long as the tables are sound.
pub fn compile_filter(plan: &FilterPlan) -> Result<Vec<sock_filter>, FilterError> {
    compile_for(&Abi::NATIVE, plan)
}

fn compile_for(abi: &Abi, plan: &FilterPlan) -> Result<Vec<sock_filter>, FilterError> {
    let mut chunks = Vec::new();
    let ranges = ranges(abi, plan, &mut chunks)?;
    let program = search::assemble(abi.audit_arch, &ranges, &chunks);
    if program.len() > PROGRAM_LEN_MAX {
        return Err(FilterError::TooLong { len: program.len() });
    }
    Ok(program)
}

/// Maps every 32-bit number to a leaf: ascending ranges, the first of which begins at 0. Equal chunks are kept
/// once.
fn ranges(
    abi: &Abi,
    plan: &FilterPlan,
    chunks: &mut Vec<Vec<sock_filter>>,
) -> Result<Vec<Range>, FilterError> {
    let entries = abi.entries();
    let mut ranges: Vec<Range> = Vec::new();
    let mut push = |first: u32, leaf: Leaf| {
        if ranges.last().is_none_or(|last| last.leaf != leaf) {
            ranges.push(Range { first, leaf });
        }
    };
    let mut next = 0;
    for &(number, _) in abi.names {
        // A gap in the table: nobody has judged these numbers.
        if number > next {
            push(next, Leaf::Notify);
        }
        next = number + 1;
        let entry = entries.iter().find(|entry| entry.number == number);
        let calls = entry.and_then(|entry| Some((entry, outcome::calls(entry, plan)?)));
        let leaf = match calls {
            _ if plan.refused.contains(&number) => Leaf::Notify,
            None => Leaf::Allow,
            Some((_, Calls::All)) => Leaf::Notify,
            Some((entry, calls)) => {
                let code = chunk::compile(abi.target, entry, calls)?;
                let known = chunks.iter().position(|chunk| *chunk == code);
                Leaf::Chunk(known.unwrap_or_else(|| {
                    chunks.push(code);
                    chunks.len() - 1
                }))
            }
        };
        push(number, leaf);
    }
    // Newer calls, and on x86_64 everything with the x32 bit.
    push(next, Leaf::Notify);
    // A tracer inside the tree skips calls this way; there is nothing to refuse.
    push(SKIPPED_BY_TRACER, Leaf::Allow);
    Ok(ranges)
}

/// Whether an instruction is one of the two answers.
fn is_answer(code: u16, k: u32) -> bool {
    u32::from(code) == libc::BPF_RET | libc::BPF_K && (k == SECCOMP_RET_ALLOW || k == NOTIFY)
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests;
