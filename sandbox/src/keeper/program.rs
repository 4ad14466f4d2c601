//! What a child executes: files to try, arguments and environment, laid out as `execve` takes them.
//!
//! It lies in memory that the spawner shares with the one child it was made for, so that it can be written after that
//! child was forked: a child that waits in a sandbox made ahead is told so what to run. The pointers in it are right
//! on both sides, because a fork keeps addresses.
//!
//! Contract: the spawner writes before it tells the child to go on, over a socket; the child reads after that, and the
//! spawner never writes again. Reading is done by the child between vfork and exec: no allocation there.

#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use libc::c_char;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::wire::SpawnRequest;

const SHELL: &[u8] = b"/bin/sh";
const POINTER: usize = size_of::<*const c_char>();

/// Shared memory with one program in it, once written.
pub(super) struct Program {
    block: NonNull<Table>,
    bytes: NonZeroUsize,
}

/// The beginning of the block: null-terminated arrays of NUL-terminated strings, all in the block.
#[repr(C)]
struct Table {
    candidates: *mut *const c_char,
    argv: *mut *const c_char,
    env: *mut *const c_char,
    shell_argv: *mut *const c_char,
}

/// Why a program could not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unwritten {
    /// It needs more room than there is.
    NoRoom,
    /// A string has a NUL in it.
    Nul,
}

impl Program {
    /// Memory for programs of up to this many bytes, as [`Self::bytes`] counts them.
    pub(super) fn with_room(bytes: usize) -> Result<Self, i32> {
        let bytes = NonZeroUsize::new(bytes.max(size_of::<Table>())).ok_or(libc::EINVAL)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: new memory at an address of the kernel's choice.
        let block = unsafe { mmap_anonymous(None, bytes, protection, flags) };
        Ok(Self {
            block: block.map_err(|errno| errno as i32)?.cast(),
            bytes,
        })
    }

    /// The room that a request's program needs.
    pub(super) fn bytes(request: &SpawnRequest) -> usize {
        let strings = [&request.candidates, &request.argv, &request.env];
        let text: usize = strings
            .iter()
            .flat_map(|list| list.iter())
            .map(|s| s.len() + 1)
            .sum();
        // Each array with its null, and the shell's: one more word than argv.
        let pointers: usize =
            strings.iter().map(|list| list.len() + 1).sum::<usize>() + request.argv.len().max(1) + 2;
        size_of::<Table>() + pointers * POINTER + text + SHELL.len() + 1
    }

    /// Writes a request's program.
    pub(super) fn write(&mut self, request: &SpawnRequest) -> Result<(), Unwritten> {
        if Self::bytes(request) > self.bytes.get() {
            return Err(Unwritten::NoRoom);
        }
        let strings = [&request.candidates, &request.argv, &request.env];
        if strings
            .iter()
            .any(|list| list.iter().any(|text| text.contains(&0)))
        {
            return Err(Unwritten::Nul);
        }
        let arguments = request.argv.len();
        let counts = strings.map(Vec::len);
        let shell_words = arguments.max(1) + 1;
        // SAFETY: `bytes` counted exactly what is written here, and the block has at least that: the table, the
        // arrays, then the strings. The block is page-aligned and pointers keep their alignment behind the table.
        // Nobody reads yet.
        unsafe {
            let base = self.block.as_ptr();
            let mut array = base.add(1).cast::<*const c_char>();
            let all_pointers = counts.iter().sum::<usize>() + 3 + shell_words + 1;
            let mut text = array.add(all_pointers).cast::<u8>();
            let mut put = |string: &[u8]| {
                let at = text;
                std::ptr::copy_nonoverlapping(string.as_ptr(), at, string.len());
                at.add(string.len()).write(0);
                text = at.add(string.len() + 1);
                at.cast_const().cast::<c_char>()
            };
            let shell = put(SHELL);
            let mut starts = [std::ptr::null_mut(); 3];
            for (list, start) in strings.iter().zip(&mut starts) {
                *start = array;
                for string in list.iter() {
                    array.write(put(string));
                    array = array.add(1);
                }
                array.write(std::ptr::null());
                array = array.add(1);
            }
            let [candidates, argv, env] = starts;
            // `/bin/sh FILE ARG…`; the file is filled in by who tries it.
            array.write(shell);
            array.add(1).write(std::ptr::null());
            for index in 1..arguments {
                array.add(index + 1).write(argv.add(index).read());
            }
            array.add(shell_words).write(std::ptr::null());
            base.write(Table {
                candidates,
                argv,
                env,
                shell_argv: array,
            });
        }
        Ok(())
    }

    /// Does without this process's mapping; that of others stays.
    ///
    /// # Safety
    /// This is neither used nor dropped any more.
    pub(super) unsafe fn give_back(&self) {
        // SAFETY: promised by the caller.
        let _ = unsafe { munmap(self.block.cast(), self.bytes.get()) };
    }

    /// What was written, for the child.
    pub(super) fn read(&self) -> Written {
        // SAFETY: memory from the kernel is zero until it is written; then the table is whole.
        let table = unsafe { self.block.as_ref() };
        Written {
            candidates: table.candidates,
            argv: table.argv,
            env: table.env,
            shell_argv: table.shell_argv,
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the block is ours and nobody in this process uses it any more; a child has its own mapping of it.
        let _ = unsafe { munmap(self.block.cast(), self.bytes.get()) };
    }
}

/// A written program.
pub(super) struct Written {
    candidates: *mut *const c_char,
    /// Its arguments, null-terminated.
    pub(super) argv: *const *const c_char,
    /// Its environment, null-terminated.
    pub(super) env: *const *const c_char,
    shell_argv: *mut *const c_char,
}

impl Written {
    /// The file to try at this place; null when there are no more.
    pub(super) fn candidate(&self, index: usize) -> *const c_char {
        // SAFETY: the array ends with a null, and the callers ask in order and stop there.
        unsafe { self.candidates.add(index).read() }
    }

    /// The arguments of a shell that runs this file.
    pub(super) fn shell_for(&self, file: *const c_char) -> *const *const c_char {
        // SAFETY: the second word was left for this.
        unsafe { self.shell_argv.add(1).write(file) };
        self.shell_argv
    }
}

/// What is written of a request is what its child reads; only a NUL is not written.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn reads_as_it_was_written(request: &SpawnRequest) {
    fn strings(mut array: *const *const c_char) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        // SAFETY: null-terminated arrays of NUL-terminated strings, which is what is tested here.
        unsafe {
            while !(*array).is_null() {
                found.push(std::ffi::CStr::from_ptr(*array).to_bytes().to_vec());
                array = array.add(1);
            }
        }
        found
    }
    let lists = [&request.candidates, &request.argv, &request.env];
    let mut program = Program::with_room(Program::bytes(request)).expect("memory");
    if lists.iter().any(|list| list.iter().any(|text| text.contains(&0))) {
        return assert_eq!(program.write(request), Err(Unwritten::Nul));
    }
    program.write(request).expect("room");
    let written = program.read();
    assert_eq!(strings(written.candidates), request.candidates);
    assert_eq!(strings(written.argv), request.argv);
    assert_eq!(strings(written.env), request.env);
    let file = c"/the/file".as_ptr();
    let mut shell = vec![SHELL.to_vec(), b"/the/file".to_vec()];
    shell.extend(request.argv.iter().skip(1).cloned());
    assert_eq!(strings(written.shell_for(file)), shell);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::keeper::plan::SandboxPlan;
    use crate::keeper::wire::Stdin;
    use crate::report::Containment;

    fn request(candidates: &[Vec<u8>], argv: &[Vec<u8>], env: &[Vec<u8>]) -> SpawnRequest {
        SpawnRequest {
            process: Uuid::nil(),
            plan: SandboxPlan::unconfined(Containment::Subreaper).into(),
            rulesets: 0,
            candidates: candidates.to_vec(),
            argv: argv.to_vec(),
            env: env.to_vec(),
            cwd: b"/".to_vec(),
            stdin: Stdin::Null,
            extras: crate::extras::Extras::default(),
        }
    }

    fn words() -> impl Strategy<Value = Vec<Vec<u8>>> {
        prop::collection::vec(prop::collection::vec(1u8.., 0..20), 0..8)
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(candidates in words(), argv in words(), env in words()) {
            reads_as_it_was_written(&request(&candidates, &argv, &env));
        }
    }

    #[test]
    fn what_does_not_fit_or_cannot_be_said_is_not_written() {
        let long = request(&[], &[vec![b'x'; 5000]], &[]);
        let mut program = Program::with_room(4096).expect("memory");
        assert_eq!(program.write(&long), Err(Unwritten::NoRoom));
        let odd = request(&[], &[b"a\0b".to_vec()], &[]);
        assert_eq!(program.write(&odd), Err(Unwritten::Nul));
    }
}
