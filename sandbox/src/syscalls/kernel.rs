//! Calls that change the machine, or the walls of the sandbox: no command needs them, whatever its policy.

use super::condition::{bits, either, int};
use super::{Handling, Row};

/// `SECCOMP_GET_ACTION_AVAIL` and `SECCOMP_GET_NOTIF_SIZES`: questions.
const SECCOMP_GET_ACTION_AVAIL: u32 = 2;
const SECCOMP_GET_NOTIF_SIZES: u32 = 3;

/// `PER_LINUX32`, `UNAME26` and `ADDR_NO_RANDOMIZE`.
const HARMLESS_PERSONAS: u32 = 0x0008 | 0x0002_0000 | 0x0004_0000;
const PERSONALITY_QUERY: u32 = 0xFFFF_FFFF;

const MOUNTS: &str = "changes what paths mean, and with it what the policy says about them";
const SANDBOX: &str =
    "a filter of its own could answer calls before Provost sees them, and hide attempts";
const MODULES: &str = "loads or unloads kernel code";
const CLOCK: &str = "sets the machine's clock";
const KEYS: &str = "kernel keyrings hold the session's keys and belong to no namespace";
const FANOTIFY: &str = "watches, and may hold up, other programs' file accesses";
const IO_URING: &str = "a ring performs operations that no filter sees; libuv and others probe for it and do \
                        without";
const PORTS: &str = "direct access to I/O ports";

pub(super) const ROWS: &[Row] = &[
    // Mounts and roots.
    Row::refuse("mount", MOUNTS),
    Row::refuse("umount2", MOUNTS),
    Row::refuse("pivot_root", MOUNTS),
    Row::refuse("chroot", MOUNTS),
    Row::refuse("move_mount", MOUNTS),
    Row::refuse("open_tree", MOUNTS),
    Row::refuse("open_tree_attr", MOUNTS),
    Row::refuse("fsopen", MOUNTS),
    Row::refuse("fsconfig", MOUNTS),
    Row::refuse("fsmount", MOUNTS),
    Row::refuse("fspick", MOUNTS),
    Row::refuse("mount_setattr", MOUNTS),
    // The sandbox itself.
    Row::refuse("seccomp", SANDBOX).except(&[&[either(
        0,
        u32::MAX,
        SECCOMP_GET_ACTION_AVAIL,
        SECCOMP_GET_NOTIF_SIZES,
    )]]),
    Row::refuse("prctl", SANDBOX).only(&[&[int(0, libc::PR_SET_SECCOMP as u32)]]),
    Row::refuse(
        "landlock_restrict_self",
        "a domain of its own may switch off the logging of denials",
    ),
    // Only the questions (version, errata). Told that there is no Landlock, xz and others do without; told that
    // there is, they take the refusal of `landlock_restrict_self` for fatal.
    Row::new(
        "landlock_create_ruleset",
        Handling::Probe {
            errno: libc::EOPNOTSUPP,
        },
        "Landlock is in use already, and a sandboxed program cannot add to it",
    )
    .except(&[&[int(2, 0)]]),
    Row::new(
        "io_uring_setup",
        Handling::Probe { errno: libc::ENOSYS },
        IO_URING,
    ),
    Row::new(
        "io_uring_enter",
        Handling::Probe { errno: libc::ENOSYS },
        IO_URING,
    ),
    Row::new(
        "io_uring_register",
        Handling::Probe { errno: libc::ENOSYS },
        IO_URING,
    ),
    // The machine.
    Row::refuse(
        "reboot",
        "restarts the machine, or kills the PID namespace's init",
    ),
    Row::refuse("kexec_load", "replaces the running kernel"),
    Row::refuse("kexec_file_load", "replaces the running kernel"),
    Row::refuse("init_module", MODULES),
    Row::refuse("finit_module", MODULES),
    Row::refuse("delete_module", MODULES),
    Row::refuse("swapon", "changes the machine's swap space"),
    Row::refuse("swapoff", "changes the machine's swap space"),
    Row::refuse("acct", "switches process accounting for the whole machine"),
    Row::refuse("quotactl", "reads and sets disk quotas of other users"),
    Row::refuse("quotactl_fd", "reads and sets disk quotas of other users"),
    Row::refuse("settimeofday", CLOCK),
    Row::refuse("clock_settime", CLOCK),
    Row::refuse("clock_adjtime", CLOCK),
    Row::refuse("adjtimex", CLOCK),
    Row::refuse("sethostname", "renames the machine"),
    Row::refuse("setdomainname", "renames the machine"),
    Row::refuse("iopl", PORTS),
    Row::refuse("ioperm", PORTS),
    Row::refuse("vhangup", "hangs up the terminal for everybody on it"),
    Row::refuse(
        "syslog",
        "the kernel log tells about the machine and other programs",
    ),
    Row::refuse("sysfs", "obsolete; lists the kernel's file systems"),
    Row::refuse("uselib", "obsolete; maps a library past the usual exec checks"),
    Row::refuse(
        "lookup_dcookie",
        "obsolete; turns profiler cookies into paths of other programs",
    ),
    // Large or dangerous parts of the kernel.
    Row::refuse("bpf", "loads programs into the kernel"),
    Row::refuse("perf_event_open", "watches the kernel and other programs"),
    Row::refuse(
        "userfaultfd",
        "lets a program hold the kernel in the middle of a memory access",
    ),
    Row::refuse("fanotify_init", FANOTIFY),
    Row::refuse("fanotify_mark", FANOTIFY),
    Row::refuse("open_by_handle_at", "opens files by number, past every path rule"),
    Row::refuse("keyctl", KEYS),
    Row::refuse("add_key", KEYS),
    Row::refuse("request_key", KEYS),
    Row::refuse(
        "vmsplice",
        "pages lent to a pipe can still be changed after their bytes were read and logged",
    ),
    // `linux32`, `setarch`, gdb and the thread sanitizer need these; READ_IMPLIES_EXEC and foreign
    // personalities nobody does.
    Row::refuse(
        "personality",
        "makes memory executable, or asks for another system's behaviour",
    )
    .except(&[&[bits(0, !HARMLESS_PERSONAS, 0)], &[int(0, PERSONALITY_QUERY)]]),
];
