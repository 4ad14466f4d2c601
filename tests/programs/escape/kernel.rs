//! Calls that change the machine, or that open large parts of the kernel to attack.
//!
//! Where success would harm the machine that the attempt is tried on without a sandbox, the arguments are
//! ones that the kernel rejects by another error number than EPERM.

use crate::Arguments;
use crate::raw::{Outcome, c, sys};

/// The attempts of this file, by name.
pub(crate) fn attempt(name: &str, arguments: &Arguments) -> Option<Outcome> {
    mounts(name, arguments)
        .or_else(|| machine(name))
        .or_else(|| observers(name))
        .or_else(|| keys_and_others(name))
}

fn keys_and_others(name: &str) -> Option<Outcome> {
    const SESSION_KEYRING: i32 = -3;
    let (kind, label) = (c"user".as_ptr(), c"escape".as_ptr());
    Some(match name {
        "keyctl" => sys!(libc::SYS_keyctl, 0, SESSION_KEYRING, 0),
        "add-key" => sys!(libc::SYS_add_key, kind, label, b"x".as_ptr(), 1, SESSION_KEYRING),
        "request-key" => sys!(libc::SYS_request_key, kind, label, 0, SESSION_KEYRING),
        "io-uring" => io_uring(),
        "vmsplice" => vmsplice(),
        // READ_IMPLIES_EXEC
        "personality" => sys!(libc::SYS_personality, 0x0040_0000_u32),
        "handle" => open_by_handle(),
        "mknod-char" => node("escape-char", libc::S_IFCHR, 1, 3),
        "mknod-block" => node("escape-block", libc::S_IFBLK, 7, 0),
        _ => return None,
    })
}

fn mounts(name: &str, arguments: &Arguments) -> Option<Outcome> {
    let nowhere = c"/nonexistent".as_ptr();
    let attributes = [0_u64; 4];
    Some(match name {
        "chroot" => sys!(libc::SYS_chroot, c"/".as_ptr()),
        "mount" => sys!(
            libc::SYS_mount,
            c"none".as_ptr(),
            c(arguments.text(0)).as_ptr(),
            c"tmpfs".as_ptr(),
            0,
            0
        ),
        "umount" => sys!(libc::SYS_umount2, nowhere, 0),
        "pivot-root" => sys!(libc::SYS_pivot_root, nowhere, nowhere),
        "fsopen" => sys!(libc::SYS_fsopen, c"tmpfs".as_ptr(), 0),
        "open-tree" => sys!(libc::SYS_open_tree, libc::AT_FDCWD, c"/".as_ptr(), 1),
        "move-mount" => sys!(
            libc::SYS_move_mount,
            libc::AT_FDCWD,
            nowhere,
            libc::AT_FDCWD,
            nowhere,
            0
        ),
        "mount-setattr" => sys!(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            nowhere,
            0,
            attributes.as_ptr(),
            32
        ),
        _ => return None,
    })
}

fn machine(name: &str) -> Option<Outcome> {
    let nowhere = c"/nonexistent".as_ptr();
    let bad_time = [-1_i64, -1];
    Some(match name {
        // The magic numbers are wrong: EINVAL without a sandbox.
        "reboot" => sys!(libc::SYS_reboot, 0, 0, 0, 0),
        "swapon" => sys!(libc::SYS_swapon, nowhere, 0),
        "swapoff" => sys!(libc::SYS_swapoff, nowhere),
        "kexec" => sys!(libc::SYS_kexec_load, 0, 100_000, 0, 0xffff_ffff_u32),
        "kexec-file" => sys!(libc::SYS_kexec_file_load, -1, -1, 0, 0, 0xffff_ffff_u32),
        "init-module" => sys!(libc::SYS_init_module, 0, 0, c"".as_ptr()),
        "finit-module" => sys!(libc::SYS_finit_module, -1, c"".as_ptr(), 0),
        "delete-module" => sys!(
            libc::SYS_delete_module,
            c"escape-no-such".as_ptr(),
            libc::O_NONBLOCK
        ),
        "acct" => sys!(libc::SYS_acct, nowhere),
        "set-time" => sys!(libc::SYS_settimeofday, bad_time.as_ptr(), 0),
        "clock-set" => sys!(libc::SYS_clock_settime, 0, bad_time.as_ptr()),
        "hostname" => sys!(libc::SYS_sethostname, c"".as_ptr(), -1),
        "domainname" => sys!(libc::SYS_setdomainname, c"".as_ptr(), -1),
        "syslog" => sys!(libc::SYS_syslog, 10, 0, 0),
        #[cfg(target_arch = "x86_64")]
        "iopl" => sys!(libc::SYS_iopl, 3),
        #[cfg(target_arch = "x86_64")]
        "ioperm" => sys!(libc::SYS_ioperm, 0x80, 1, 1),
        _ => return None,
    })
}

fn observers(name: &str) -> Option<Outcome> {
    Some(match name {
        "bpf" => bpf(),
        "perf" => perf(),
        // Handling faults of user mode only needs no privilege.
        "userfaultfd" => sys!(libc::SYS_userfaultfd, 1),
        // Reporting to an unprivileged listener: class notification, FAN_REPORT_FID.
        "fanotify" => sys!(libc::SYS_fanotify_init, 0x200, 0),
        _ => return None,
    })
}

fn io_uring() -> Outcome {
    let mut parameters = [0_u64; 15];
    sys!(libc::SYS_io_uring_setup, 4, parameters.as_mut_ptr())
}

/// Creates an array map.
fn bpf() -> Outcome {
    let map = [2_u32, 4, 4, 1, 0, 0, 0, 0];
    sys!(libc::SYS_bpf, 0, map.as_ptr(), std::mem::size_of_val(&map))
}

/// Counts this process's own page faults, user mode only.
fn perf() -> Outcome {
    let mut attributes = [0_u64; 16];
    attributes[0] = 1 | (128 << 32);
    attributes[1] = 2;
    // exclude_kernel and exclude_hv
    attributes[5] = (1 << 5) | (1 << 6);
    sys!(libc::SYS_perf_event_open, attributes.as_ptr(), 0, -1, -1, 0)
}

fn vmsplice() -> Outcome {
    let mut ends = [0_i32; 2];
    sys!(libc::SYS_pipe2, ends.as_mut_ptr(), 0)?;
    let vector = [b"x".as_ptr() as usize, 1];
    sys!(libc::SYS_vmsplice, ends[1], vector.as_ptr(), 1, 0)
}

/// Opens the root directory by its handle, past every path rule.
fn open_by_handle() -> Outcome {
    let mut handle = [0_u32; 34];
    handle[0] = 128;
    let mut mount = 0_i32;
    let root = c"/".as_ptr();
    let known = sys!(
        libc::SYS_name_to_handle_at,
        libc::AT_FDCWD,
        root,
        handle.as_mut_ptr(),
        &raw mut mount,
        0
    );
    if known.is_err() {
        handle[..4].copy_from_slice(&[8, 1, 2, 0]);
    }
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    let root = sys!(libc::SYS_openat, libc::AT_FDCWD, root, flags)?;
    sys!(libc::SYS_open_by_handle_at, root, handle.as_ptr(), flags)
}

fn node(path: &str, kind: u32, major: u32, minor: u32) -> Outcome {
    sys!(
        libc::SYS_mknodat,
        libc::AT_FDCWD,
        c(path).as_ptr(),
        kind | 0o666,
        libc::makedev(major, minor)
    )
}
