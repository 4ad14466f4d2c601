//! Changing a file's attributes by a descriptor that is held, with plain file permissions only.
//!
//! Contract of this file: beside `listener` it is the only one of the module that may hold unsafe code. Every function is one
//! system call on memory that it borrows for the length of the call. [`WithoutCapabilities`] changes the calling thread alone and
//! puts it back when it is dropped; nothing may be awaited meanwhile.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// What is to be changed.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    Mode(u32),
    /// `-1` leaves one of them as it is.
    Owner {
        user: u32,
        group: u32,
    },
    /// Access and modification; the time of the call if absent.
    Times(Option<[libc::timespec; 2]>),
    SetAttribute {
        name: CString,
        value: Vec<u8>,
        flags: i32,
    },
    RemoveAttribute {
        name: CString,
    },
}

/// How the file is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// The target's own descriptor, duplicated.
    Open,
    /// An `O_PATH` descriptor; of a symlink itself if the target did not want it followed.
    Path { is_symlink: bool },
}

/// Changes the file, as a task of our user without capabilities.
pub(super) fn change(file: BorrowedFd<'_>, held: Held, change: &Change) -> Result<(), Errno> {
    let _plain = WithoutCapabilities::new()?;
    let fd = file.as_raw_fd();
    let by_path = CString::new(format!("/proc/self/fd/{fd}")).map_err(|_| Errno::EINVAL)?;
    const EMPTY: &CStr = c"";
    // SAFETY: every pointer below is to memory that is borrowed for the length of the call, NUL-terminated where it is a string,
    // and `value` is as long as its length says.
    // WHY: nix has none of these for a descriptor that may be `O_PATH`, and no extended attributes.
    let result = unsafe {
        match (held, change) {
            (Held::Open, Change::Mode(mode)) => libc::fchmod(fd, *mode),
            (Held::Path { is_symlink: true }, Change::Mode(_)) => return Err(Errno::EOPNOTSUPP),
            (Held::Path { .. }, Change::Mode(mode)) => libc::chmod(by_path.as_ptr(), *mode),
            (Held::Open, Change::Owner { user, group }) => libc::fchown(fd, *user, *group),
            (Held::Path { .. }, Change::Owner { user, group }) => {
                libc::fchownat(fd, EMPTY.as_ptr(), *user, *group, libc::AT_EMPTY_PATH)
            }
            (Held::Open, Change::Times(times)) => libc::futimens(fd, pointer(times)),
            (Held::Path { .. }, Change::Times(times)) => {
                libc::utimensat(fd, EMPTY.as_ptr(), pointer(times), libc::AT_EMPTY_PATH)
            }
            (Held::Open, Change::SetAttribute { name, value, flags }) => {
                libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), *flags)
            }
            (Held::Open, Change::RemoveAttribute { name }) => libc::fremovexattr(fd, name.as_ptr()),
            // Symlinks have no attributes that an ordinary program may set.
            (
                Held::Path { is_symlink: true },
                Change::SetAttribute { .. } | Change::RemoveAttribute { .. },
            ) => return Err(Errno::EPERM),
            (Held::Path { .. }, Change::SetAttribute { name, value, flags }) => libc::setxattr(
                by_path.as_ptr(),
                name.as_ptr(),
                value.as_ptr().cast(),
                value.len(),
                *flags,
            ),
            (Held::Path { .. }, Change::RemoveAttribute { name }) => {
                libc::removexattr(by_path.as_ptr(), name.as_ptr())
            }
        }
    };
    Errno::result(result).map(drop)
}

/// Adds a watch to an inotify instance, as a task of our user without capabilities; its number.
pub(super) fn watch(inotify: BorrowedFd<'_>, file: BorrowedFd<'_>, mask: u32) -> Result<i32, Errno> {
    let _plain = WithoutCapabilities::new()?;
    let by_path =
        CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the path is NUL-terminated and borrowed for the length of the call.
    // WHY: nix makes inotify instances of its own only.
    Errno::result(unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), by_path.as_ptr(), mask) })
}

fn pointer(times: &Option<[libc::timespec; 2]>) -> *const libc::timespec {
    times.as_ref().map_or(std::ptr::null(), |times| times.as_ptr())
}

/// The effective capabilities of this thread, put away until this is dropped.
pub(super) struct WithoutCapabilities([u32; 6]);

/// `struct __user_cap_header_struct`: version 3, this thread.
const CAPABILITY_HEADER: [u32; 2] = [0x2008_0522, 0];

impl WithoutCapabilities {
    pub(super) fn new() -> Result<Self, Errno> {
        let mut header = CAPABILITY_HEADER;
        let mut sets = [0u32; 6];
        // SAFETY: the kernel's structs are two and six 32-bit numbers.
        // WHY: nix has no capabilities.
        Errno::result(unsafe {
            libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr())
        })?;
        let kept = Self(sets);
        // Effective, permitted, inheritable; twice.
        let [_, permitted, inheritable, _, permitted_high, inheritable_high] = sets;
        if sets[0] != 0 || sets[3] != 0 {
            set(&[0, permitted, inheritable, 0, permitted_high, inheritable_high])?;
        }
        Ok(kept)
    }
}

impl Drop for WithoutCapabilities {
    fn drop(&mut self) {
        if (self.0[0] != 0 || self.0[3] != 0)
            && let Err(error) = set(&self.0)
        {
            // They were permitted a moment ago and still are.
            tracing::error!(%error, "cannot take capabilities up again");
        }
    }
}

fn set(sets: &[u32; 6]) -> Result<(), Errno> {
    // SAFETY: as above; both are only read.
    // WHY: nix has no capabilities.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, CAPABILITY_HEADER.as_ptr(), sets.as_ptr()) })
        .map(drop)
}
