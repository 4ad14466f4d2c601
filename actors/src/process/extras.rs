//! What a process has besides its streams: the place for its result, and the way in which it says that it is ready.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, SpliceFFlags, tee};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use nix::unistd::pipe2;
use provost_sandbox::extras::{Extras, ReadyBy, reported};
use provost_sandbox::keeper::wire::Kept;
use ractor::ActorRef;
use tokio::io::Interest;
use tokio::sync::oneshot;

use super::{ProcessMsg, ProcessState};
use crate::ledger::Fact;
use crate::readiness;
use crate::reported::Reported;

/// So much may come in the pipe before the line feed.
const BEFORE_BYTES_MAX: usize = 4096;
/// Of a message so much is looked at.
const MESSAGE_BYTES_MAX: usize = 4096;
/// So many messages are taken at a time; who sends more has to wait so long.
const MESSAGES_MAX: usize = 16;
const PAUSE: Duration = Duration::from_millis(20);
/// So many times as many are looked at when the process ends: more than the socket holds.
const LAST_MAX: usize = 64;

/// Where a process is heard to say that it is ready.
///
/// That it says so is taken away only after it was written down: who dies before leaves it to be found by the next daemon, and
/// who looks at the end of the process finds it however soon after saying so that ended. From a pipe nothing is taken at all. Messages
/// to the socket are, as long as the process lives, so that who sends them never fails; what else they say is nobody's business.
pub(super) struct ReadySource {
    from: Arc<OwnedFd>,
    by: ReadyBy,
    /// It was written down that it is ready.
    written: Mutex<bool>,
}

enum Heard {
    /// Nothing that decides.
    Nothing,
    /// The same, and there may be more.
    Much,
    /// It is ready.
    Ready,
    /// It never will be.
    Never,
}

impl ReadySource {
    fn look(&self) -> io::Result<Heard> {
        match self.by {
            ReadyBy::Notify => self.look_at_socket(),
            ReadyBy::Fd | ReadyBy::Nothing => self.look_at_pipe(),
        }
    }

    fn look_at_pipe(&self) -> io::Result<Heard> {
        let mut polled = [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO)?;
        let is_over = polled[0]
            .revents()
            .is_some_and(|found| found.contains(PollFlags::POLLHUP));
        let (copy, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
        let copied = match tee(&self.from, &into, BEFORE_BYTES_MAX, flags) {
            Err(Errno::EAGAIN) => 0,
            copied => copied?,
        };
        let mut bytes = vec![0; copied];
        File::from(copy).read_exact(&mut bytes)?;
        Ok(match bytes.contains(&b'\n') {
            true => Heard::Ready,
            false if is_over || copied >= BEFORE_BYTES_MAX => Heard::Never,
            false => Heard::Nothing,
        })
    }

    /// Descriptors that come along are not received, and so closed by the kernel: that is what those wait for who send them (sd_notify_barrier(3)).
    fn look_at_socket(&self) -> io::Result<Heard> {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let mut message = vec![0; MESSAGE_BYTES_MAX];
        for _ in 0..MESSAGES_MAX {
            let peek = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
            let length = match recv(self.from.as_raw_fd(), &mut message, peek) {
                Err(Errno::EAGAIN) => return Ok(Heard::Nothing),
                Err(Errno::EINTR) => continue,
                length => length?,
            };
            let mut lines = message[..length].split(|byte| *byte == b'\n');
            if !*written && lines.any(|line| line == b"READY=1") {
                return Ok(Heard::Ready);
            }
            match recv(self.from.as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT) {
                Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Heard::Much)
    }

    /// Tells what is heard; and empties the socket.
    async fn hear(&self, process: &ActorRef<ProcessMsg>) -> io::Result<()> {
        let from = readiness::watch(self.from.clone(), Interest::READABLE)?;
        loop {
            let mut readable = from.readable().await?;
            let said = match self.look()? {
                Heard::Nothing => {
                    readable.clear_ready();
                    continue;
                }
                Heard::Much => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Heard::Ready => true,
                Heard::Never => false,
            };
            let (taken, written) = oneshot::channel();
            if process
                .send_message(ProcessMsg::ReadySaid { said, taken })
                .is_err()
            {
                return Ok(());
            }
            let _ = written.await;
            if self.by != ReadyBy::Notify {
                return Ok(());
            }
        }
    }
}

impl ProcessState {
    /// Takes what came with the command. What it sends with to say that it is ready is for whoever gives it that.
    pub(super) fn take_extras(
        &mut self,
        myself: &ActorRef<ProcessMsg>,
        extras: Extras,
        fds: impl IntoIterator<Item = OwnedFd>,
    ) -> Option<OwnedFd> {
        let mut fds = fds.into_iter();
        self.report = extras.report.then(|| fds.next()).flatten().map(File::from);
        if extras.ready == ReadyBy::Nothing {
            return None;
        }
        let source = Arc::new(ReadySource {
            from: Arc::new(fds.next()?),
            by: extras.ready,
            written: Mutex::new(self.ledger.is_ready()),
        });
        self.ready = Some(source.clone());
        if self.ledger.is_ready() {
            self.ready_said(myself, true);
        }
        if self.ready.is_some() {
            let (myself, process) = (myself.clone(), self.args.id);
            self.timers.push(tokio::spawn(async move {
                if let Err(error) = source.hear(&myself).await {
                    tracing::error!(%process, %error, "cannot hear whether it is ready");
                }
            }));
        }
        fds.next()
    }

    /// It said that it is ready, or never will.
    pub(super) fn ready_said(&mut self, myself: &ActorRef<ProcessMsg>, said: bool) {
        let Some(source) = self.ready.clone() else {
            return; // that was seen at its end
        };
        if said && !self.ledger.is_ready() {
            self.fact(myself, Fact::Ready);
        }
        if source.by == ReadyBy::Notify {
            *source.written.lock().unwrap_or_else(PoisonError::into_inner) = true;
        } else {
            self.ready = None;
            // The keeper's copy would have the command wait when the pipe is full.
            self.args.link.release(*self.args.id.as_uuid(), Kept::Ready);
        }
    }

    /// Whether it said that it is ready before it ended.
    pub(super) fn look_if_ready(&mut self, myself: &ActorRef<ProcessMsg>) {
        let Some(source) = self.ready.clone() else { return };
        for _ in 0..LAST_MAX {
            match source.look() {
                Ok(Heard::Ready) => return self.ready_said(myself, true),
                Ok(Heard::Much) if !self.ledger.is_ready() => {}
                _ => return,
            }
        }
    }

    /// What it reported, once, when nobody writes there any more.
    pub(super) fn reported(&mut self) -> Option<Fact> {
        let found = reported(&self.report.take()?);
        Some(Fact::Reported(match found {
            Ok(bytes) => Reported::judge(&bytes),
            Err(error) => Reported::unknown(format!("what it reported cannot be read: {error}")),
        }))
    }
}
