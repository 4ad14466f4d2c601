//! A spawner that is forked, not executed: for a program that knows at once that it will need one, and would wait for it.
//!
//! Executing a program again costs more than all that a spawner does for one command. A fork is as good where nothing has
//! happened yet: one thread, no locks, nothing in memory but the program's words and environment, which the fork forgets before
//! it serves anybody.
//!
//! Contract: the fork is made by the only thread there is, which is looked up; nobody holds references to the words or
//! the environment in the fork, which goes straight to the spawner's loop and never returns from there.

#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork};

use super::{ROLE_NAME, server};

/// More than the kernel lets words and environment be (`MAX_ARG_STRLEN` and a quarter of the stack's limit, execve(2)).
const WORDS_BYTES_MAX: usize = 64 << 20;

/// A spawner that was forked, and nobody has spoken to yet. It ends when this is dropped, and is waited for by whoever
/// [speaks to it](crate::spawn::Spawner::forked).
#[derive(Debug)]
pub struct ForkedSpawner {
    pub(crate) socket: OwnedFd,
    pub(crate) pid: Pid,
}

/// This program's words, the first its own name, where the kernel put them: nothing copies them. `None` without `/proc`.
pub fn words() -> Option<impl Iterator<Item = &'static [u8]> + Clone> {
    let [words, _] = words_and_environment()?;
    let start = std::ptr::with_exposed_provenance::<u8>(words.start);
    // SAFETY: the kernel wrote them onto the stack of the first thread, where they stay as long as this program lives; it is the
    // fork alone that writes there, which looks at none of this.
    // WHY: `std::env::args` copies all of them, and what was freed is not forgotten.
    let words = unsafe { std::slice::from_raw_parts(start, words.len()) };
    let words = words.strip_suffix(b"\0").unwrap_or(words);
    Some(words.split(|byte| *byte == 0))
}

/// Forks a spawner. To be called first in `main`, behind [`run_if_asked`](super::run_if_asked), and before anything looks at its
/// words but by [`words`].
///
/// `None` where that cannot be done: there is another thread already, `/proc` is not there, no process or descriptor can be had, or
/// something is preloaded into this program, which a spawner is to be without. Then one is
/// [executed](crate::spawn::Spawner::launch) when it is needed, which says what is wrong.
///
/// The fork stays in the groups (cgroups(7)) in which this program is now.
pub fn fork_spawner() -> Option<ForkedSpawner> {
    let preloads = ["LD_PRELOAD", "LD_AUDIT"].map(std::env::var_os);
    if preloads.iter().any(Option::is_some) || fs::read_dir("/proc/self/task").ok()?.count() != 1 {
        return None;
    }
    let secrets = words_and_environment()?;
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .ok()?;
    let nonblocking = nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK);
    nix::fcntl::fcntl(&ours, nonblocking).ok()?;
    // SAFETY: there is no other thread, so no lock is held that the fork lacks the holder of.
    // WHY: there is no safe fork.
    match unsafe { fork() }.ok()? {
        ForkResult::Parent { child } => Some(ForkedSpawner {
            socket: ours,
            pid: child,
        }),
        ForkResult::Child => {
            drop(ours);
            forget(secrets);
            let code = match take_place(theirs) {
                Ok(()) => server::main_ahead(),
                Err(_) => 1,
            };
            super::sys::exit(code)
        }
    }
}

/// As [`Spawner::launch`](crate::spawn::Spawner::launch) has it: the socket is standard input, and nothing is said anywhere.
fn take_place(socket: OwnedFd) -> io::Result<()> {
    let null = nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    dup2_stdin(&socket)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(())
}

/// Where the kernel put this program's words and its environment (proc_pid_stat(5), fields 48 to 51).
fn words_and_environment() -> Option<[Range<usize>; 2]> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut numbers = behind_name.split_ascii_whitespace().skip(48 - 3);
    let mut range = || {
        let (from, to) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
        let is_sound = from != 0 && from <= to && to - from < WORDS_BYTES_MAX;
        is_sound.then_some(from..to)
    };
    Some([range()?, range()?])
}

/// What this program was told is nothing for the commands of a spawner, whose inits are its forks.
fn forget([words, environment]: [Range<usize>; 2]) {
    // SAFETY: there is one thread, and nobody in it has a pointer into the environment from here on.
    // WHY: there is no other way to make C's list of variables empty.
    unsafe { libc::clearenv() };
    for range in [&words, &environment] {
        let start = std::ptr::with_exposed_provenance_mut::<u8>(range.start);
        // SAFETY: the kernel wrote these bytes onto our stack, which is writable, and nobody refers to them.
        // WHY: they are on no Rust value.
        unsafe { start.write_bytes(0, range.len()) };
    }
    // What `ps` shows of it.
    let name = ROLE_NAME.to_bytes_with_nul();
    if name.len() <= words.len() {
        let start = std::ptr::with_exposed_provenance_mut::<u8>(words.start);
        // SAFETY: as above; it fits.
        // WHY: as above.
        unsafe { start.copy_from_nonoverlapping(name.as_ptr(), name.len()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_where_the_kernel_says() {
        let [words, environment] = words_and_environment().expect("/proc");
        assert!(words.end <= environment.start, "{words:?} {environment:?}");
        let line = fs::read("/proc/self/cmdline").expect("our words");
        assert_eq!(line.len(), words.len());
        let told: Vec<_> = std::env::args_os()
            .map(|word| word.into_encoded_bytes())
            .collect();
        assert!(super::words().expect("/proc").eq(told));
    }

    #[test]
    fn with_another_thread_nothing_is_forked() {
        // A test runs in a thread of its own.
        assert!(fork_spawner().is_none());
    }
}
