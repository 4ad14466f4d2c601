//! The seccomp listener and the few raw calls that answering it takes.
//!
//! Contract of this file: beside `attributes` and `slots` it is the only one of the module that may hold unsafe code. Every function is
//! one system call on memory that this file owns or borrows for the length of the call; descriptors that
//! the kernel hands out become an `OwnedFd` at once; nothing here decides anything.
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::slots::{KeepsCalls, SLOT_BYTES};

/// Wakes the answering thread on the asking thread's CPU: 48 → 5 µs for one notification.
/// (`SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`)
const SYNC_WAKE_UP: u64 = 1;
/// `ioctl_unix_file(2)`: an `O_PATH` descriptor of the file that a unix socket is bound to.
const SIOCUNIXFILE: u64 = 0x89e0;
/// `_IOW('!', 3, struct seccomp_notif_addfd)`; not every version of libc has it.
const SECCOMP_IOCTL_NOTIF_ADDFD: u64 = 0x4018_2103;
/// The longest socket address of any family that the kernel takes.
pub(super) const SOCKADDR_BYTES_MAX: usize = 128;

/// The supervisor's end of a seccomp filter. When the last task under the filter is gone it hangs up.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    fits_slots: bool,
}

/// One system call that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notification {
    /// What [`Listener::respond`] and [`Listener::is_valid`] want to know it by. The kernel counts it up from call to call,
    /// from a random beginning, and hands calls out in that order.
    pub id: u64,
    /// The *thread* that called, as this process numbers it; 0 if it has no number here.
    pub pid: i32,
    /// The system call's number in its ABI.
    pub number: u32,
    /// `AUDIT_ARCH_*` of the ABI.
    pub arch: u32,
    /// The argument registers.
    pub args: [u64; 6],
}

/// What [`Listener::receive`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// A call that waits.
    Notification(Notification),
    /// Nothing now: wait until the descriptor is readable.
    Empty,
    /// No task is under the filter any more, and none will be.
    HungUp,
}

/// The answer to a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// The call fails with this error number.
    Errno(i32),
    /// The call returns this without having run.
    Value(i64),
    /// The call runs in the target, with whatever its arguments point to by then. Never a security decision.
    Continue,
}

/// The kernel's `struct seccomp_notif` with room for a kernel that has made it longer.
#[repr(C)]
struct NotificationBuffer {
    head: libc::seccomp_notif,
    tail: [u64; 32],
}

/// The kernel's `struct seccomp_notif_resp`, likewise.
#[repr(C)]
struct ResponseBuffer {
    head: libc::seccomp_notif_resp,
    tail: [u64; 32],
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Listener {
    /// Takes over the descriptor that `seccomp(SECCOMP_FILTER_FLAG_NEW_LISTENER)` returned.
    ///
    /// # Errors
    /// The kernel has no user notification, or its messages are longer than any known today.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let mut sizes = libc::seccomp_notif_sizes {
            seccomp_notif: 0,
            seccomp_notif_resp: 0,
            seccomp_data: 0,
        };
        // SAFETY: `sizes` is a valid, exclusively borrowed `struct seccomp_notif_sizes`.
        // WHY: neither libc nor nix wraps seccomp(2).
        let asked = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_GET_NOTIF_SIZES,
                0,
                &raw mut sizes,
            )
        };
        Errno::result(asked)?;
        if usize::from(sizes.seccomp_notif) > size_of::<NotificationBuffer>()
            || usize::from(sizes.seccomp_notif_resp) > size_of::<ResponseBuffer>()
        {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "seccomp notifications of this kernel are longer than the listener has room for",
            ));
        }
        // SAFETY: the request takes its argument by value; `fd` is open for the length of the call.
        // WHY: nix has no seccomp ioctls. A kernel before 6.6 refuses, which only costs time.
        unsafe {
            libc::ioctl(fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP);
        }
        let fits_slots = usize::from(sizes.seccomp_notif) <= SLOT_BYTES;
        Ok(Self { fd, fits_slots })
    }

    /// Takes the next waiting call; never blocks.
    ///
    /// The kernel ignores `O_NONBLOCK` here, so this polls first; there must be one reader only.
    ///
    /// # Errors
    /// The descriptor is no listener, or the kernel is out of memory.
    pub fn receive(&self) -> io::Result<Received> {
        self.receive_within(PollTimeout::ZERO, None)
    }

    /// The same, but waits this long for one, and has it kept, if by anybody, from the moment at which the kernel hands it out.
    ///
    /// # Errors
    /// As [`Self::receive`]; or what was kept cannot be read.
    pub fn receive_within(
        &self,
        timeout: PollTimeout,
        keeps: Option<&dyn KeepsCalls>,
    ) -> io::Result<Received> {
        loop {
            let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let events = fds[0].revents().unwrap_or(PollFlags::empty());
            if !events.contains(PollFlags::POLLIN) {
                let over = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
                return Ok(if events.intersects(over) {
                    Received::HungUp
                } else {
                    Received::Empty
                });
            }
            let taken = match keeps {
                None => self.take(),
                Some(keeps) => match keeps.place().filter(|_| self.fits_slots) {
                    None => self.take().inspect(|call| keeps.unplaced(call)),
                    Some(place) => match self.take_into(place.address()) {
                        Ok(()) => return keeps.placed().map(Received::Notification),
                        // There is no room for it in the file, or it was not empty.
                        Err(Errno::EFAULT | Errno::EINVAL) => {
                            self.take().inspect(|call| keeps.unplaced(call))
                        }
                        Err(error) => Err(error),
                    },
                },
            };
            match taken {
                Ok(notification) => return Ok(Received::Notification(notification)),
                // ENOENT: its thread died between poll and here; look whether another one waits.
                Err(Errno::ENOENT | Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn take(&self) -> Result<Notification, Errno> {
        // The kernel insists that the buffer is zero.
        let mut buffer = NotificationBuffer {
            head: libc::seccomp_notif {
                id: 0,
                pid: 0,
                flags: 0,
                data: libc::seccomp_data {
                    nr: 0,
                    arch: 0,
                    instruction_pointer: 0,
                    args: [0; 6],
                },
            },
            tail: [0; 32],
        };
        // The buffer is exclusively borrowed, zeroed, and as long as this kernel's message: `new` compared the sizes.
        // Every bit pattern is valid for it.
        self.take_into((&raw mut buffer).cast())?;
        let head = buffer.head;
        Ok(Notification {
            id: head.id,
            pid: i32::try_from(head.pid).unwrap_or(0),
            number: head.data.nr.cast_unsigned(),
            arch: head.data.arch,
            args: head.data.args,
        })
    }

    /// Takes a call into memory that is at least as long as this kernel's message.
    fn take_into(&self, address: *mut libc::c_void) -> Result<(), Errno> {
        // SAFETY: the kernel writes its message there, for which there is room: on our stack, or in a slot, of which nobody
        // expects anything. What is not mapped is an error.
        // WHY: nix has no seccomp ioctls.
        let taken = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, address) };
        Errno::result(taken).map(drop)
    }

    /// Whether the call still waits. What was opened or read by the thread's number *before* this said yes
    /// belonged to that thread, and not to one that was given its number afterwards.
    pub fn is_valid(&self, id: u64) -> bool {
        // SAFETY: `id` lives on this stack frame and is only read.
        // WHY: nix has no seccomp ioctls.
        let valid = unsafe {
            libc::ioctl(
                self.fd.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_ID_VALID,
                &raw const id,
            )
        };
        valid == 0
    }

    /// Answers a call. That its thread died meanwhile is no error.
    ///
    /// # Errors
    /// The call was answered before, or the descriptor is no listener.
    pub fn respond(&self, id: u64, response: Response) -> io::Result<()> {
        let (val, error, flags) = match response {
            // An error number outside the kernel's range would be taken for a value.
            Response::Errno(errno @ 1..=4095) => (0, -errno, 0),
            Response::Errno(_) => (0, -libc::EPERM, 0),
            Response::Value(value) => (value, 0, 0),
            Response::Continue => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
        };
        let mut buffer = ResponseBuffer {
            head: libc::seccomp_notif_resp {
                id,
                val,
                error,
                flags,
            },
            tail: [0; 32],
        };
        loop {
            // SAFETY: the buffer is initialised, borrowed for the call, and at least as long as the kernel
            // reads: `new` compared the sizes.
            // WHY: nix has no seccomp ioctls.
            let sent = unsafe {
                libc::ioctl(
                    self.fd.as_raw_fd(),
                    libc::SECCOMP_IOCTL_NOTIF_SEND,
                    &raw mut buffer,
                )
            };
            match Errno::result(sent) {
                Ok(_) | Err(Errno::ENOENT) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Listener {
    /// Puts a duplicate of `fd` into the table of the task whose call waits, and lets that call return its
    /// number: at once, or not at all. Since Linux 5.14.
    ///
    /// # Errors
    /// The target has no room for it, its thread died, or the kernel cannot do it in one step.
    pub fn give(&self, id: u64, fd: BorrowedFd<'_>, close_on_exec: bool) -> Result<i64, Errno> {
        let mut request = libc::seccomp_notif_addfd {
            id,
            flags: libc::SECCOMP_ADDFD_FLAG_SEND as u32,
            srcfd: fd.as_raw_fd().cast_unsigned(),
            newfd: 0,
            newfd_flags: if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 },
        };
        // SAFETY: `request` is a valid, exclusively borrowed `struct seccomp_notif_addfd`, whose size is part of
        // the request's number; `fd` is open for the length of the call.
        // WHY: nix has no seccomp ioctls.
        let given = unsafe {
            libc::ioctl(
                self.fd.as_raw_fd(),
                SECCOMP_IOCTL_NOTIF_ADDFD as libc::Ioctl,
                &raw mut request,
            )
        };
        Errno::result(given).map(i64::from)
    }
}

/// A pidfd of one thread (not necessarily a leader), or of the whole process where the kernel knows no
/// pidfds of threads (before 6.9).
pub(super) fn pidfd_of_thread(tid: i32) -> Result<OwnedFd, Errno> {
    match pidfd_open(tid, libc::PIDFD_THREAD) {
        Err(Errno::EINVAL) => pidfd_open(tid, 0),
        other => other,
    }
}

/// A pidfd of a process.
pub(super) fn pidfd_of_process(pid: i32) -> Result<OwnedFd, Errno> {
    pidfd_open(pid, 0)
}

fn pidfd_open(pid: i32, flags: libc::c_uint) -> Result<OwnedFd, Errno> {
    // SAFETY: no memory is passed.
    // WHY: nix has no pidfd_open.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) })
}

/// A duplicate (close-on-exec) of another process's descriptor.
pub(super) fn pidfd_getfd(pidfd: &OwnedFd, fd: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: no memory is passed.
    // WHY: nix has no pidfd_getfd.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })
}

/// A duplicate (close-on-exec) of a descriptor of a thread's, for whom the kernel lets us look at.
pub(crate) fn descriptor_of_thread(tid: i32, fd: RawFd) -> Result<OwnedFd, Errno> {
    pidfd_of_thread(tid).and_then(|pidfd| pidfd_getfd(&pidfd, fd))
}

/// Makes the descriptor that a system call returned ours.
fn owned(returned: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = Errno::result(returned)?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel just returned it to us and nobody else knows of it.
    // WHY: an OwnedFd is what keeps it from leaking.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// connect(2) with an address given as bytes.
pub(super) fn connect(socket: BorrowedFd<'_>, address: &[u8]) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(address.len()).map_err(|_| Errno::EINVAL)?;
    // The kernel copies bytes and knows no alignment; libc's type does.
    // SAFETY: pointer and length describe one live slice, which is only read.
    // WHY: nix takes typed addresses; these must reach the kernel exactly as they were judged.
    Errno::result(unsafe { libc::connect(socket.as_raw_fd(), address.as_ptr().cast(), length) })
        .map(drop)
}

/// bind(2) with an address given as bytes.
pub(super) fn bind(socket: BorrowedFd<'_>, address: &[u8]) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(address.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: pointer and length describe one live slice, which is only read.
    // WHY: nix takes typed addresses; these must reach the kernel exactly as they were judged.
    Errno::result(unsafe { libc::bind(socket.as_raw_fd(), address.as_ptr().cast(), length) }).map(drop)
}

/// listen(2) with the backlog as the target gave it.
pub(super) fn listen(socket: BorrowedFd<'_>, backlog: i32) -> Result<(), Errno> {
    // SAFETY: no memory is passed.
    // WHY: nix cuts the backlog at its own constant, not at the machine's setting.
    Errno::result(unsafe { libc::listen(socket.as_raw_fd(), backlog) }).map(drop)
}

/// A socket option of level `SOL_SOCKET` that is an `int`.
pub(super) fn socket_int(socket: BorrowedFd<'_>, option: i32) -> Result<i32, Errno> {
    let mut value: i32 = 0;
    socket_option(socket, option, &mut value)?;
    Ok(value)
}

/// A socket option of level `SOL_SOCKET` that is a `u64` (the cookies).
pub(super) fn socket_u64(socket: BorrowedFd<'_>, option: i32) -> Result<u64, Errno> {
    let mut value: u64 = 0;
    socket_option(socket, option, &mut value)?;
    Ok(value)
}

/// Types that every bit pattern is a value of.
trait Plain: Copy {}
impl Plain for i32 {}
impl Plain for u64 {}

fn socket_option<T: Plain>(socket: BorrowedFd<'_>, option: i32, value: &mut T) -> Result<(), Errno> {
    let mut length = size_of_val(value) as libc::socklen_t;
    // SAFETY: `value` is exclusively borrowed, `length` is its size, and `Plain` makes any bytes valid.
    // WHY: nix has no SO_DOMAIN, SO_PROTOCOL, SO_COOKIE or SO_NETNS_COOKIE.
    Errno::result(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_mut(value).cast(),
            &raw mut length,
        )
    })
    .map(drop)
}

/// The file that a unix socket is bound to, as an `O_PATH` descriptor. Takes `CAP_NET_ADMIN` over the
/// socket's network namespace, which its maker has.
pub(super) fn unix_file(socket: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: this request reads and writes no memory of ours.
    // WHY: nix has no SIOCUNIXFILE.
    let fd = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCUNIXFILE as libc::Ioctl, 0) };
    owned(libc::c_long::from(fd))
}
