//! Ways to change or read files that are not the sandbox's to give.

use crate::Arguments;
use crate::raw::{Outcome, c, sys};

const FS_IOC_GETFLAGS: i64 = 0x8008_6601;
const FS_IOC_SETFLAGS: i64 = 0x4008_6602;
const NODUMP: i64 = 0x40;

/// The attempts of this file, by name.
pub(crate) fn attempt(name: &str, arguments: &Arguments) -> Option<Outcome> {
    let path = || c(arguments.text(0));
    let at = libc::AT_FDCWD;
    Some(match name {
        "read" => open(arguments.text(0), libc::O_RDONLY).and_then(read_some),
        "open-write" => open(arguments.text(0), libc::O_WRONLY),
        "open-truncate" => open(arguments.text(0), libc::O_WRONLY | libc::O_TRUNC),
        "open-append" => open(arguments.text(0), libc::O_WRONLY | libc::O_APPEND),
        "create" => open(arguments.text(0), libc::O_WRONLY | libc::O_CREAT),
        "openat2-write" => openat2(arguments.text(0), libc::O_WRONLY),
        "openat2-read" => openat2(arguments.text(0), libc::O_RDONLY).and_then(read_some),
        "write-text" => {
            open(arguments.text(0), libc::O_WRONLY).and_then(|fd| write_text(fd, arguments.text(1)))
        }
        "reopen" => reopen(arguments.text(0)),
        "truncate" => sys!(libc::SYS_truncate, path().as_ptr(), 0),
        "mkdir" => sys!(libc::SYS_mkdirat, at, path().as_ptr(), 0o755),
        "unlink" => sys!(libc::SYS_unlinkat, at, path().as_ptr(), 0),
        "symlink" => sys!(
            libc::SYS_symlinkat,
            path().as_ptr(),
            at,
            c(arguments.text(1)).as_ptr()
        ),
        "link" => sys!(
            libc::SYS_linkat,
            at,
            path().as_ptr(),
            at,
            c(arguments.text(1)).as_ptr(),
            0
        ),
        "rename" => sys!(
            libc::SYS_renameat2,
            at,
            path().as_ptr(),
            at,
            c(arguments.text(1)).as_ptr(),
            0
        ),
        "exchange" => sys!(
            libc::SYS_renameat2,
            at,
            path().as_ptr(),
            at,
            c(arguments.text(1)).as_ptr(),
            libc::RENAME_EXCHANGE
        ),
        "chmod" => sys!(libc::SYS_fchmodat, at, path().as_ptr(), 0o777),
        "chown" => sys!(libc::SYS_fchownat, at, path().as_ptr(), own_uid(), own_gid(), 0),
        "utimes" => sys!(libc::SYS_utimensat, at, path().as_ptr(), 0, 0),
        "fchmod" => {
            open(arguments.text(0), libc::O_RDONLY).and_then(|fd| sys!(libc::SYS_fchmod, fd, 0o777))
        }
        "xattr" => sys!(
            libc::SYS_setxattr,
            path().as_ptr(),
            c"user.escape".as_ptr(),
            b"x".as_ptr(),
            1,
            0
        ),
        "setflags" => open(arguments.text(0), libc::O_RDONLY).and_then(set_flags),
        "shm-make" => shared_memory(arguments.number(0), libc::IPC_CREAT | libc::IPC_EXCL | 0o666),
        "shm-get" => shared_memory(arguments.number(0), 0),
        "shm-remove" => shared_memory(arguments.number(0), 0)
            .and_then(|id| sys!(libc::SYS_shmctl, id, libc::IPC_RMID, 0)),
        "mq-make" => queue(&path(), libc::O_RDWR | libc::O_CREAT | libc::O_EXCL),
        "mq-open" => queue(&path(), libc::O_RDONLY),
        "mq-remove" => sys!(libc::SYS_mq_unlink, path().as_ptr()),
        _ => return None,
    })
}

fn own_uid() -> u32 {
    nix::unistd::getuid().as_raw()
}

fn own_gid() -> u32 {
    nix::unistd::getgid().as_raw()
}

/// `openat(2)` from the working directory.
pub(crate) fn open(path: &str, flags: i32) -> Outcome {
    sys!(
        libc::SYS_openat,
        libc::AT_FDCWD,
        c(path).as_ptr(),
        flags | libc::O_CLOEXEC,
        0o644
    )
}

/// Reads: only then does a secret leave its file. Non-blocking files and empty ones count as got through.
fn read_some(fd: i64) -> Outcome {
    let mut buffer = [0_u8; 4096];
    let length = sys!(libc::SYS_read, fd, buffer.as_mut_ptr(), buffer.len())?;
    let text = String::from_utf8_lossy(&buffer[..usize::try_from(length).unwrap_or(0)]);
    println!("content: {}", text.escape_debug());
    Ok(length)
}

fn write_text(fd: i64, text: &str) -> Outcome {
    sys!(libc::SYS_write, fd, text.as_ptr(), text.len())
}

fn openat2(path: &str, flags: i32) -> Outcome {
    let how = [u64::try_from(flags | libc::O_CLOEXEC).unwrap_or(0), 0, 0];
    sys!(
        libc::SYS_openat2,
        libc::AT_FDCWD,
        c(path).as_ptr(),
        how.as_ptr(),
        std::mem::size_of_val(&how)
    )
}

/// Opens for reading, then opens the descriptor's own name for writing.
fn reopen(path: &str) -> Outcome {
    let fd = open(path, libc::O_RDONLY)?;
    open(&format!("/proc/self/fd/{fd}"), libc::O_RDWR)
}

/// Sets an attribute that needs no more than a descriptor open for reading.
fn set_flags(fd: i64) -> Outcome {
    let mut flags = 0_i64;
    let _ = sys!(libc::SYS_ioctl, fd, FS_IOC_GETFLAGS, &raw mut flags);
    flags ^= NODUMP;
    sys!(libc::SYS_ioctl, fd, FS_IOC_SETFLAGS, &raw const flags)
}

/// A System V segment by its key, which every process of the IPC namespace can use.
fn shared_memory(key: i32, flags: i32) -> Outcome {
    sys!(libc::SYS_shmget, key, 16, flags)
}

/// A POSIX message queue by its name, likewise.
fn queue(name: &std::ffi::CStr, flags: i32) -> Outcome {
    sys!(libc::SYS_mq_open, name.as_ptr(), flags, 0o666, 0)
}
