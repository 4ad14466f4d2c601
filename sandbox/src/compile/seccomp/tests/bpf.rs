//! A small interpreter for the BPF that seccomp takes. It panics on whatever the kernel would not load.

use libc::sock_filter;

use crate::syscalls::Abi;

/// `struct seccomp_data`, without the instruction pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Data {
    pub(super) number: u32,
    pub(super) arch: u32,
    pub(super) args: [u64; 6],
}

impl Data {
    pub(super) fn new(abi: &Abi, number: u32, args: [u64; 6]) -> Self {
        Self {
            number,
            arch: abi.audit_arch,
            args,
        }
    }

    fn word(&self, offset: u32) -> u32 {
        assert_eq!(offset % 4, 0, "unaligned load");
        let argument = |offset: u32| self.args[offset as usize / 8 - 2];
        match offset {
            0 => self.number,
            4 => self.arch,
            16..64 if offset.is_multiple_of(8) => argument(offset) as u32,
            16..64 => (argument(offset - 4) >> 32) as u32,
            _ => panic!("load at {offset}"),
        }
    }
}

/// What a run came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) answer: u32,
    /// Instructions executed.
    pub(super) steps: usize,
    /// Whether an argument was looked at.
    pub(super) saw_arguments: bool,
}

/// Runs the program.
pub(super) fn run(program: &[sock_filter], data: &Data) -> Run {
    let (mut accumulator, mut at, mut steps, mut saw_arguments) = (0_u32, 0_usize, 0, false);
    loop {
        let instruction = program.get(at).expect("ran past the end");
        let sock_filter { code, jt, jf, k } = *instruction;
        at += 1;
        steps += 1;
        let mut branch = |taken: bool| at += usize::from(if taken { jt } else { jf });
        match code {
            0x20 => {
                accumulator = data.word(k);
                saw_arguments |= k >= 16;
            }
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => branch(accumulator == k),
            0x25 => branch(accumulator > k),
            0x35 => branch(accumulator >= k),
            0x45 => branch(accumulator & k != 0),
            0x06 => {
                return Run {
                    answer: k,
                    steps,
                    saw_arguments,
                };
            }
            other => panic!("instruction {other:#x}"),
        }
    }
}
