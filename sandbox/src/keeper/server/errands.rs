//! Looking into processes for a daemon that may not: the socket on which it asks, and the answers.
//!
//! Nobody asks here whose thread it is. Who is connected is the same user or root, and what the kernel does for the keeper
//! itself is what it did for the same user's daemon: threads of the same user, and with Yama those below the keeper alone.
//! Numbers of threads mean the same on both ends only within one PID namespace, so that is compared.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{Shutdown, shutdown};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use super::{ERRANDS, Role, Server};
use crate::keeper::errand::{self, Answer, Asked, Errand, READ_BYTES_MAX};
use crate::observe::notify::descriptor_of_thread;

/// Where it is asked.
pub(super) struct Errands(OwnedFd);

impl Errands {
    fn new(socket: OwnedFd, epoll: &Epoll) -> Result<Self, Errno> {
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, ERRANDS))?;
        Ok(Self(socket))
    }

    fn close(self, epoll: &Epoll) {
        // A child that was just forked may have it open for a moment longer.
        let _ = epoll.delete(&self.0);
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }
}

impl Server {
    /// Asked there from now on, and nowhere else any more. What comes without room for more descriptors, or from another
    /// PID namespace, is closed: whoever asks learns at once that nobody answers.
    pub(super) fn use_errands(&mut self, pid_namespace: u64, fds: Vec<OwnedFd>, room: io::Result<()>) {
        if self.role == Role::Spawner {
            return;
        }
        self.close_errands();
        let is_ours =
            || std::fs::metadata("/proc/self/ns/pid").is_ok_and(|status| status.ino() == pid_namespace);
        if room.is_ok()
            && let Some(socket) = fds.into_iter().next()
            && is_ours()
        {
            self.errands = Errands::new(socket, &self.epoll).ok();
        }
    }

    pub(super) fn close_errands(&mut self) {
        if let Some(errands) = self.errands.take() {
            errands.close(&self.epoll);
        }
    }

    /// One question. Who says something else, or does not read the answers, is not heard any more.
    pub(super) fn run_errand(&mut self) {
        let Some(Errands(socket)) = &self.errands else {
            return;
        };
        self.reserve.release();
        let done = match errand::receive_now::<Asked>(socket.as_fd()) {
            Ok(Some((asked, _))) => answer(socket, asked),
            Ok(None) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        };
        let _ = self.reserve.refill(&self.fixed.null);
        if let Err(error) = done {
            tracing::debug!(%error, "no more errands");
            self.close_errands();
        }
    }
}

fn answer(socket: &OwnedFd, asked: Asked) -> io::Result<()> {
    let Asked { number, errand } = asked;
    let say = |found: Result<Vec<u8>, Errno>, fds: &[i32]| {
        let found = found.map_err(|errno| errno as i32);
        errand::send(socket.as_fd(), &Answer { number, found }, fds)
    };
    let descriptor = match errand {
        Errand::Read { tid, address, length } => return say(read(tid, address, length), &[]),
        Errand::Descriptor { tid, fd } => descriptor_of_thread(tid, fd),
    };
    let descriptor = match descriptor {
        Ok(descriptor) => descriptor,
        Err(errno) => return say(Err(errno), &[]),
    };
    match say(Ok(Vec::new()), &[descriptor.as_raw_fd()]) {
        // A user's descriptors on their way are limited in number.
        Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => {
            say(Err(Errno::ETOOMANYREFS), &[])
        }
        said => said,
    }
}

fn read(tid: i32, address: u64, length: u32) -> Result<Vec<u8>, Errno> {
    let len = length as usize;
    if tid <= 0 || len == 0 || len > READ_BYTES_MAX {
        return Err(Errno::EINVAL);
    }
    let base = usize::try_from(address).map_err(|_| Errno::EFAULT)?;
    let mut bytes = vec![0; len];
    let remote = [RemoteIoVec { base, len }];
    let got = process_vm_readv(Pid::from_raw(tid), &mut [IoSliceMut::new(&mut bytes)], &remote)?;
    bytes.truncate(got);
    Ok(bytes)
}
