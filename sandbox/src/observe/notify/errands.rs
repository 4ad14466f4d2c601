//! What the kernel does not let us look at, asked of the keepers: they are ancestors of what they started.
//!
//! With Yama (`kernel.yama.ptrace_scope` = 1) only an ancestor may read a process's memory or duplicate its descriptors, and
//! a daemon that was started again is none. Nothing is asked where the kernel does it for ourselves.
//!
//! Where a keeper does not answer within [`ANSWER_MAX`], the kernel's refusal stands, and what depends on it is refused; it is asked
//! something else once the late answer is here. One that answers something else is not asked again over this connection. Whoever asks here must look afterwards whether the
//! call still waits, as if the kernel had answered: a thread's number may be another's by now.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt::ReceiveTimeout,
};
use nix::sys::time::TimeVal;

use super::listener;
use crate::keeper::errand::{self, Answer, Asked, Errand, READ_BYTES_MAX};

/// A keeper answers between two other things that it does, none of which waits for anybody.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Those of this process's keepers that are connected.
static KEEPERS: Mutex<Vec<Weak<Errands>>> = Mutex::new(Vec::new());

/// Where one keeper is asked, as long as that is connected.
#[derive(Debug)]
pub(crate) struct Errands(Mutex<Line>);

#[derive(Debug)]
struct Line {
    /// Nothing once something was wrong with it.
    socket: Option<OwnedFd>,
    asked: u64,
    /// The last question has no answer yet.
    is_owed: bool,
}

impl Line {
    fn ask(&mut self, errand: Errand) -> io::Result<(Answer, Option<OwnedFd>)> {
        if self.is_owed {
            self.hear()?;
        }
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        self.asked += 1;
        let number = self.asked;
        errand::send(socket.as_fd(), &Asked { number, errand }, &[])?;
        self.is_owed = true;
        self.hear()
    }

    fn hear(&mut self) -> io::Result<(Answer, Option<OwnedFd>)> {
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let heard = errand::receive::<Answer>(socket.as_fd())?.ok_or(io::ErrorKind::BrokenPipe)?;
        if heard.0.number != self.asked {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.is_owed = false;
        Ok(heard)
    }
}

impl Errands {
    /// Both ends: ours, which is asked as long as somebody holds it, and the keeper's.
    pub(crate) fn pair() -> io::Result<(Arc<Self>, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        let patience = TimeVal::new(ANSWER_MAX.as_secs().cast_signed(), 0);
        setsockopt(&ours, ReceiveTimeout, &patience)?;
        let errands = Arc::new(Self(Mutex::new(Line {
            socket: Some(ours),
            asked: 0,
            is_owed: false,
        })));
        let mut keepers = lock(&KEEPERS);
        keepers.retain(|keeper| keeper.strong_count() > 0);
        keepers.push(Arc::downgrade(&errands));
        Ok((errands, theirs))
    }

    /// What the kernel said to the keeper; `EPERM` where that is not to be had.
    fn ask(&self, errand: Errand) -> Result<(Vec<u8>, Option<OwnedFd>), Errno> {
        let mut line = lock(&self.0);
        match line.ask(errand) {
            Ok((answer, descriptor)) => Ok((answer.found.map_err(Errno::from_raw)?, descriptor)),
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock && line.socket.take().is_some() {
                    tracing::warn!(%error, "the keeper does not look into processes for us any more");
                }
                Err(Errno::EPERM)
            }
        }
    }
}

/// Copies what can be copied from the beginning of a range.
pub(super) fn read(tid: i32, address: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
    let mut done = 0;
    for part in buffer.chunks_mut(READ_BYTES_MAX) {
        let errand = Errand::Read {
            tid,
            address: address.checked_add(done as u64).ok_or(Errno::EFAULT)?,
            length: part.len() as u32,
        };
        let bytes = match ask(errand) {
            Ok((bytes, _)) if bytes.len() <= part.len() => bytes,
            Ok(_) => return Err(Errno::EPERM),
            Err(_) if done > 0 => return Ok(done),
            Err(errno) => return Err(errno),
        };
        part[..bytes.len()].copy_from_slice(&bytes);
        done += bytes.len();
        if bytes.len() < part.len() {
            break;
        }
    }
    Ok(done)
}

/// A duplicate (close-on-exec) of a thread's descriptor.
pub(super) fn descriptor_of_thread(tid: i32, fd: i32) -> Result<OwnedFd, Errno> {
    let pidfd = listener::pidfd_of_thread(tid)?;
    descriptor(tid, &pidfd, fd)
}

/// The same, of which a pidfd is there already.
pub(super) fn descriptor(tid: i32, pidfd: &OwnedFd, fd: i32) -> Result<OwnedFd, Errno> {
    match listener::pidfd_getfd(pidfd, fd) {
        // Without one there was no room for it here.
        Err(Errno::EPERM) => ask(Errand::Descriptor { tid, fd })?.1.ok_or(Errno::EMFILE),
        other => other,
    }
}

/// Every keeper in turn, until one may look.
fn ask(errand: Errand) -> Result<(Vec<u8>, Option<OwnedFd>), Errno> {
    let keepers: Vec<_> = lock(&KEEPERS).iter().filter_map(Weak::upgrade).collect();
    for keeper in keepers {
        match keeper.ask(errand) {
            Err(Errno::EPERM) => {}
            answered => return answered,
        }
    }
    Err(Errno::EPERM)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERRAND: Errand = Errand::Descriptor { tid: 1, fd: 0 };

    fn answer(number: u64) -> Answer {
        let found = Ok(Vec::new());
        Answer { number, found }
    }

    /// Asks one who says this beforehand, and whether it may be asked again.
    fn after(said: &[Answer]) -> (Result<(), Errno>, bool) {
        let (errands, theirs) = Errands::pair().expect("a pair");
        for answer in said {
            errand::send(theirs.as_fd(), answer, &[]).expect("room");
        }
        let answered = errands.ask(ERRAND).map(drop);
        let is_asked_again = lock(&errands.0).socket.is_some();
        (answered, is_asked_again)
    }

    #[test]
    fn a_keeper_that_answers_something_else_or_is_gone_is_not_asked_again() {
        assert_eq!(after(&[answer(1)]), (Ok(()), true));
        assert_eq!(after(&[answer(2)]), (Err(Errno::EPERM), false));
        let (errands, theirs) = Errands::pair().expect("a pair");
        drop(theirs);
        assert_eq!(errands.ask(ERRAND).map(drop), Err(Errno::EPERM));
        assert!(lock(&errands.0).socket.is_none());
    }

    #[test]
    fn a_late_answer_is_no_answer_to_the_next_question() {
        let (errands, theirs) = Errands::pair().expect("a pair");
        let asked = || {
            errand::receive::<Asked>(theirs.as_fd())
                .expect("a question")
                .expect("one")
                .0
                .number
        };
        assert_eq!(errands.ask(ERRAND).map(drop), Err(Errno::EPERM));
        assert_eq!(asked(), 1);
        let late = Answer {
            number: 1,
            found: Err(libc::ESRCH),
        };
        let next = Answer {
            number: 2,
            found: Err(libc::EBADF),
        };
        for answer in [late, next] {
            errand::send(theirs.as_fd(), &answer, &[]).expect("room");
        }
        assert_eq!(errands.ask(ERRAND).map(drop), Err(Errno::EBADF));
        assert_eq!(asked(), 2);
    }

    #[test]
    fn a_silent_keeper_has_one_question_to_answer() {
        let (errands, theirs) = Errands::pair().expect("a pair");
        for _ in 0..2 {
            assert_eq!(errands.ask(ERRAND).map(drop), Err(Errno::EPERM));
        }
        assert!(errand::receive::<Asked>(theirs.as_fd()).is_ok_and(|first| first.is_some()));
        let more = errand::send(theirs.as_fd(), &answer(1), &[]).and_then(|()| {
            drop(errands);
            errand::receive::<Asked>(theirs.as_fd())
        });
        assert!(!matches!(more, Ok(Some(_))), "{more:?}");
    }

    #[test]
    fn what_the_kernel_said_to_a_keeper_is_no_reason_not_to_ask_it_again() {
        let refused = Answer {
            number: 1,
            found: Err(libc::EBADF),
        };
        assert_eq!(after(&[refused]), (Err(Errno::EBADF), true));
    }
}
