//! Raw system calls about mounts.
//!
//! Contract, as in [`super`]: each is one system call (or a loop of them) on memory that the caller owns; no allocation, no lock,
//! no environment, no formatting, no unwinding. Errors are numbers, which the callers judge.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::RawFd;

use super::{Errno, syscall};

pub(crate) fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: u64,
    data: Option<&CStr>,
) -> Result<(), Errno> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: each pointer is null or a NUL-terminated string that lives through the call.
    unsafe {
        syscall!(
            libc::SYS_mount,
            pointer(source),
            target.as_ptr(),
            pointer(kind),
            flags,
            pointer(data)
        )
    }
    .map(drop)
}

pub(crate) fn detach_mount(target: &CStr) -> Result<(), Errno> {
    // SAFETY: `target` is NUL-terminated and lives through the call.
    unsafe { syscall!(libc::SYS_umount2, target.as_ptr(), libc::MNT_DETACH) }.map(drop)
}

/// Opens a path for mounting. No part of it may be a symbolic link (`ELOOP`): the paths of a policy had theirs
/// followed when it was compiled, and what has become a link since was made by somebody else.
pub(crate) fn open_place(path: &CStr) -> Result<RawFd, Errno> {
    const RESOLVE_NO_MAGICLINKS: u64 = 2;
    const RESOLVE_NO_SYMLINKS: u64 = 4;
    // `struct open_how`: flags, mode, resolve.
    let how = [
        (libc::O_PATH | libc::O_CLOEXEC) as u64,
        0,
        RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS,
    ];
    // SAFETY: `path` is NUL-terminated; `how` has the kernel's layout; both live through the call.
    unsafe {
        syscall!(
            libc::SYS_openat2,
            libc::AT_FDCWD,
            path.as_ptr(),
            how.as_ptr(),
            size_of_val(&how)
        )
    }
    .map(|fd| fd as RawFd)
}

/// A detached copy of the mount tree at an open place.
pub(crate) fn open_tree_clone(place: RawFd) -> Result<RawFd, Errno> {
    const OPEN_TREE_CLONE: u32 = 1;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as u32;
    let flags = flags | (libc::AT_RECURSIVE | libc::AT_EMPTY_PATH) as u32;
    // SAFETY: the path is NUL-terminated and static.
    unsafe { syscall!(libc::SYS_open_tree, place, c"".as_ptr(), flags) }.map(|fd| fd as RawFd)
}

/// Attaches a detached tree at an open place.
pub(crate) fn move_mount(tree: RawFd, place: RawFd) -> Result<(), Errno> {
    const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;
    const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
    // SAFETY: both strings are NUL-terminated and static.
    unsafe {
        syscall!(
            libc::SYS_move_mount,
            tree,
            c"".as_ptr(),
            place,
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
        )
    }
    .map(drop)
}

/// Makes a detached tree read-only, with everything mounted in it.
pub(crate) fn make_read_only(tree: RawFd) -> Result<(), Errno> {
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let attr = MountAttr {
        set: MOUNT_ATTR_RDONLY,
        clear: 0,
        propagation: 0,
        user_namespace: 0,
    };
    // SAFETY: `attr` has the kernel's layout (struct mount_attr, 32 bytes) and lives through the call.
    unsafe {
        syscall!(
            libc::SYS_mount_setattr,
            tree,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<MountAttr>()
        )
    }
    .map(drop)
}
