//! Lays a map from numbers to answers out as a binary search in BPF.
//!
//! ```text
//! load arch; if not ours → notify
//! load number
//! block:  comparisons (≥ pivot), one for each border between two ranges
//!         ret NOTIFY │ ret ALLOW │ one long jump for each chunk
//! chunks, one after the other
//! ```
//!
//! Conditional jumps reach 255 instructions, unconditional ones everything; a block is small enough for the first
//! kind and leaves by the second. More ranges than a block holds are split between two, the choice between
//! which is made first.

use libc::{SECCOMP_RET_ALLOW, sock_filter};

use super::NOTIFY;

pub(super) const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
pub(super) const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
pub(super) const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
pub(super) const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_IF_NOT_LESS: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;

/// Offsets in `struct seccomp_data`.
pub(super) const NUMBER_OFFSET: u32 = 0;
const ARCH_OFFSET: u32 = 4;

/// More than the number of system calls of any kernel so far.
const TRIED: u32 = 512;

/// How far a conditional jump reaches.
const REACH: usize = u8::MAX as usize;

/// Where a number leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaf {
    Allow,
    Notify,
    /// The chunk of this index decides by the arguments.
    Chunk(usize),
}

/// All numbers from `first` to the next range's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u32,
    pub(super) leaf: Leaf,
}

/// The whole program. `ranges` ascend from 0 and are not empty.
pub(super) fn assemble(arch: u32, ranges: &[Range], chunks: &[Vec<sock_filter>]) -> Vec<sock_filter> {
    let mut layout = Layout {
        program: vec![
            statement(LOAD_WORD, ARCH_OFFSET),
            jump(JUMP_IF_EQUAL, arch, 1, 0),
            statement(RETURN, NOTIFY),
            statement(LOAD_WORD, NUMBER_OFFSET),
        ],
        long_jumps: Vec::new(),
    };
    layout.part(ranges);
    let mut starts = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        starts.push(layout.program.len());
        layout.program.extend_from_slice(chunk);
    }
    for (at, chunk) in layout.long_jumps {
        layout.program[at].k = distance(at, starts[chunk]) as u32;
    }
    layout.program
}

struct Layout {
    program: Vec<sock_filter>,
    /// Jumps that still lack their distance: where they are, and to which chunk.
    long_jumps: Vec<(usize, usize)>,
}

impl Layout {
    /// A block, or two behind a comparison.
    fn part(&mut self, ranges: &[Range]) {
        let leaves = leaves(ranges);
        // Comparisons and leaves: the first comparison must reach the last leaf.
        if ranges.len() - 1 + leaves.len() <= REACH {
            return self.block(ranges, &leaves);
        }
        let (low, high) = ranges.split_at(ranges.len() / 2);
        self.program.push(jump(JUMP_IF_NOT_LESS, high[0].first, 0, 1));
        let over = self.program.len();
        self.program.push(statement(JUMP, 0));
        self.part(low);
        self.program[over].k = distance(over, self.program.len()) as u32;
        self.part(high);
    }

    fn block(&mut self, ranges: &[Range], leaves: &[Leaf]) {
        let leaves_at = self.program.len() + ranges.len() - 1;
        if ranges.len() > 1 {
            self.compare(ranges, u32::MAX, leaves, leaves_at);
        }
        debug_assert_eq!(self.program.len(), leaves_at);
        for &leaf in leaves {
            let instruction = match leaf {
                Leaf::Allow => statement(RETURN, SECCOMP_RET_ALLOW),
                Leaf::Notify => statement(RETURN, NOTIFY),
                Leaf::Chunk(chunk) => {
                    self.long_jumps.push((self.program.len(), chunk));
                    statement(JUMP, 0)
                }
            };
            self.program.push(instruction);
        }
    }

    /// The comparisons for two or more ranges; returns where they begin. `leaves` holds every leaf of theirs; the
    /// first, were one missing, is to notify.
    fn compare(&mut self, ranges: &[Range], end: u32, leaves: &[Leaf], leaves_at: usize) -> usize {
        let (low, high) = ranges.split_at(middle(ranges, end));
        let at = self.program.len();
        self.program.push(jump(JUMP_IF_NOT_LESS, high[0].first, 0, 0));
        let mut side = |ranges: &[Range], end| match ranges {
            [only] => leaves_at + leaves.iter().position(|&leaf| leaf == only.leaf).unwrap_or(0),
            more => self.compare(more, end, leaves, leaves_at),
        };
        let (below, not_below) = (side(low, high[0].first), side(high, end));
        // Within reach, because the whole block is.
        self.program[at].jf = distance(at, below) as u8;
        self.program[at].jt = distance(at, not_below) as u8;
        at
    }
}

/// Where to divide two or more ranges, the last of which ends before `end`: at the border that comes nearest to
/// halving the *numbers*, of which the kernel tries each one when it installs the filter. Numbers above
/// [`TRIED`] it does not try.
fn middle(ranges: &[Range], end: u32) -> usize {
    let position = |at: usize| ranges[at].first.min(TRIED);
    let half = position(0).midpoint(end.min(TRIED));
    let nearest = |&at: &usize| (position(at).abs_diff(half), at.abs_diff(ranges.len() / 2));
    (1..ranges.len()).min_by_key(nearest).unwrap_or(1)
}

/// The different leaves of these ranges, plain answers first. A single range is not searched: execution runs into
/// its leaf.
fn leaves(ranges: &[Range]) -> Vec<Leaf> {
    if let [only] = ranges {
        return vec![only.leaf];
    }
    let mut leaves = vec![Leaf::Notify, Leaf::Allow];
    for range in ranges {
        if !leaves.contains(&range.leaf) {
            leaves.push(range.leaf);
        }
    }
    leaves
}

/// The operand of a jump from one place to a later one.
fn distance(from: usize, to: usize) -> usize {
    to - from - 1
}

fn statement(code: u16, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}
