//! What the filter is meant to do, written once more by name and without the tables, the rules or BPF.

use super::super::{FilterPlan, OpenObservation};
use crate::policy::NetMode;

/// Whether a native call of this name is notified.
pub(super) fn notifies(plan: &FilterPlan, name: &str, args: &[u64; 6]) -> bool {
    let int = |at: usize| args[at] as i32;
    let flags = |at: usize, mask: i32| int(at) & mask != 0;
    let visible = !plan.pid_namespace;
    let fastopen_or_oob = libc::MSG_FASTOPEN | libc::MSG_OOB;
    let isolated = plan.net == NetMode::Isolated;
    let names = plan.net == NetMode::Off;
    let observed = plan.opens != OpenObservation::None;
    let opens_all = plan.opens == OpenObservation::All;
    let writes = |at| opens_all || observed && flags(at, 0o3 | libc::O_CREAT | libc::O_TRUNC);
    let device = |at| [libc::S_IFCHR, libc::S_IFBLK].contains(&(args[at] as u32 & libc::S_IFMT));
    let namespaces = 0x7E02_0000;
    match name {
        "socket" => !socket_is_plain(plan.net, int(0), int(1) & 0xF, int(2)),
        "socketpair" => !(int(0) == libc::AF_UNIX && matches!(int(1) & 0xF, 1 | 5)),
        "connect" | "bind" | "listen" => true,
        "sendto" => flags(3, fastopen_or_oob) || (isolated || names) && args[4] != 0,
        "sendmsg" => isolated || names || flags(2, fastopen_or_oob),
        "sendmmsg" => isolated || names || flags(3, fastopen_or_oob),
        "recvmsg" => names || flags(2, libc::MSG_OOB),
        "recvfrom" => names && args[4] != 0 || flags(3, libc::MSG_OOB),
        "recvmmsg" => names || flags(3, libc::MSG_OOB),
        "setsockopt" if names && (matches!(int(1), 0 | 41) || (int(1), int(2)) == (1, 15)) => true,
        "setsockopt" => matches!((int(1), int(2)), (6, 31) | (0, 4) | (41, 57 | 6)),
        "getsockname" | "getpeername" => names,
        "ioctl" => matches!(
            args[1] as u32,
            0x5412
                | 0x541C
                | 0x4008_6602
                | 0x4004_6602
                | 0x401C_5820
                | 0x4008_7602
                | 0x4008_6604
                | 0x4080_6685
                | 0x800C_6613
                | 0x4004_7211
                | 0x5000_9401
                | 0x5000_940E
                | 0x5000_940F
                | 0x5000_9417
                | 0x5000_9418
                | 0x4008_941A
                | 0x5000_943F
        ),
        "open" => writes(1),
        "openat" => writes(2),
        "openat2" | "creat" | "truncate" | "mkdir" | "mkdirat" | "rmdir" | "unlink" | "unlinkat"
        | "rename" | "renameat" | "renameat2" | "link" | "linkat" | "symlink" | "symlinkat" => observed,
        "mknod" => observed || device(1),
        "mknodat" => observed || device(2),
        "clone" => flags(0, namespaces),
        "unshare" => flags(0, namespaces | 0x80),
        "prctl" => int(0) == 22,
        "seccomp" => !matches!(int(0), 2 | 3),
        "landlock_create_ruleset" => int(2) != 0,
        "personality" => int(0) != -1 && args[0] as u32 & !0x6_0008 != 0,
        "prlimit64" if visible => int(0) != 0 && args[2] != 0,
        "sched_setaffinity" | "sched_setscheduler" | "sched_setparam" | "sched_setattr"
        | "migrate_pages" | "move_pages"
            if visible =>
        {
            int(0) != 0
        }
        // In a PID namespace only our init is a stranger.
        "prlimit64" | "sched_setaffinity" | "sched_setscheduler" | "sched_setparam"
        | "sched_setattr" | "migrate_pages" | "move_pages" => int(0) == 1,
        "setpriority" | "ioprio_set" if !visible => int(1) == 1,
        "setpriority" => !(matches!(int(0), 0 | 1) && int(1) == 0),
        "ioprio_set" => !(matches!(int(0), 1 | 2) && int(1) == 0),
        "ptrace" | "process_vm_readv" | "process_vm_writev" => visible,
        "shmget" | "shmat" | "shmctl" | "msgget" | "msgsnd" | "msgrcv" | "msgctl" | "semget"
        | "semop" | "semtimedop" | "semctl" | "mq_open" | "mq_unlink" => visible,
        other => REFUSED.contains(&other),
    }
}

fn socket_is_plain(net: NetMode, family: i32, kind: i32, protocol: i32) -> bool {
    let inet = family == libc::AF_INET || family == libc::AF_INET6;
    match kind {
        libc::SOCK_STREAM if family == libc::AF_UNIX => true,
        libc::SOCK_SEQPACKET => family == libc::AF_UNIX,
        libc::SOCK_STREAM => inet && (protocol == 0 || protocol == 6),
        libc::SOCK_DGRAM if inet => net != NetMode::Off && (protocol == 0 || protocol == 17),
        libc::SOCK_DGRAM | libc::SOCK_RAW => family == 16 && net != NetMode::Off && protocol == 0,
        _ => false,
    }
}

/// Notified whatever the arguments, in every sandbox.
pub(super) const REFUSED: &[&str] = &[
    "acct",
    "add_key",
    "adjtimex",
    "bpf",
    "chroot",
    "clock_adjtime",
    "clock_settime",
    "clone3",
    "delete_module",
    "fanotify_init",
    "fanotify_mark",
    "file_setattr",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "landlock_restrict_self",
    "lookup_dcookie",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_by_handle_at",
    "open_tree",
    "open_tree_attr",
    "perf_event_open",
    "pidfd_getfd",
    "pivot_root",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "sysfs",
    "syslog",
    "umount2",
    "uselib",
    "userfaultfd",
    "vhangup",
    // What changes metadata.
    "chmod",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "chown",
    "fchown",
    "lchown",
    "fchownat",
    "utime",
    "utimes",
    "futimesat",
    "utimensat",
    "setxattr",
    "lsetxattr",
    "fsetxattr",
    "removexattr",
    "lremovexattr",
    "fremovexattr",
    "setxattrat",
    "inotify_add_watch",
    "removexattrat",
    "vmsplice",
];
