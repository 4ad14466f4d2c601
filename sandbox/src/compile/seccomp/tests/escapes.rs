//! Known ways out, tried on the program; and beside each the harmless neighbour that must pass.

use super::*;

mod network;

const HIGH: u64 = 0xFFFF_FFFF_0000_0000;

fn with(net: NetMode, opens: OpenObservation, pid_namespace: bool) -> Filter {
    Filter::x86_64(&FilterPlan {
        net,
        opens,
        pid_namespace,
        refused: Vec::new(),
    })
}

#[test]
fn calls_that_the_policy_refuses_by_name_are_notified_whatever_their_arguments() {
    let numbers = |abi: &Abi| ["getppid", "openat"].map(|name| number(abi, name)).to_vec();
    let filter = Filter::x86_64(&FilterPlan {
        refused: numbers(&x86_64::ABI),
        ..default_plan()
    });
    assert!(filter.notifies("getppid", &[0; 6]) && filter.notifies("openat", &[0; 6]));
    assert!(!filter.notifies("getpid", &[0; 6]));
}

fn net(net: NetMode) -> Filter {
    with(net, OpenObservation::None, true)
}

fn everywhere() -> impl Iterator<Item = Filter> {
    plans().into_iter().map(|plan| Filter::x86_64(&plan))
}

#[test]
fn escape_22_every_call_through_int80_is_notified() {
    for filter in everywhere() {
        for number in 0..=1024 {
            let data = Data {
                number,
                arch: 0x4000_0003,
                args: [0; 6],
            };
            assert!(filter.notifies_data(&data));
        }
        // The same number as a call of our own: getpid here, mkdir there.
        assert!(!filter.notifies_number(39, [0; 6]));
    }
}

#[test]
fn escape_23_the_i386_socketcall_multiplexer_is_notified() {
    for filter in everywhere() {
        for call in 1..=20 {
            let data = Data {
                number: 102,
                arch: 0x4000_0003,
                args: [call, 0, 0, 0, 0, 0],
            };
            assert!(filter.notifies_data(&data));
        }
        // 102 is getuid on x86_64.
        assert!(!filter.notifies_number(102, [3, 0, 0, 0, 0, 0]));
    }
}

#[test]
fn escape_24_every_number_with_the_x32_bit_is_notified() {
    for filter in everywhere() {
        for number in 0..=1024 {
            assert!(filter.notifies_number(0x4000_0000 | number, [0; 6]));
            assert!(filter.notifies_number(0xC000_0000 | number, [0; 6]));
        }
        assert!(filter.notifies_number(0xFFFF_FFFE, [0; 6]));
        assert!(
            !filter.notifies_number(u32::MAX, [0; 6]),
            "a tracer's skipped call"
        );
    }
}

#[test]
fn escape_25_the_upper_half_of_an_ioctl_command_hides_nothing() {
    for filter in everywhere() {
        for command in [0x5412, 0x541C, 0x4008_6602, 0x4004_6602, 0x401C_5820] {
            for high in [0, 1 << 32, HIGH, 0x8000_0000_0000_0000] {
                assert!(filter.notifies("ioctl", &[0, command | high, 0]));
            }
        }
        // TCGETS, TIOCGWINSZ, FIONREAD, FIOCLEX, FICLONE, FS_IOC_GETFLAGS, and what is in the upper half alone.
        for command in [
            0x5401,
            0x5413,
            0x541B,
            0x5451,
            0x4004_9409,
            0x8008_6601,
            0x5412 << 32,
        ] {
            assert!(!filter.notifies("ioctl", &[0, command, 0]));
        }
    }
}

#[test]
fn escape_26_clone3_is_always_notified_and_clone_where_it_makes_namespaces() {
    let thread = 0x003D_0F00;
    let vfork = 0x4111;
    for filter in everywhere() {
        assert!(filter.notifies("clone3", &[0, 0]));
        for namespace in [17, 25, 26, 27, 28, 29, 30].map(|bit| 1_u64 << bit) {
            assert!(filter.notifies("clone", &[namespace | 17]));
            assert!(filter.notifies("clone", &[namespace | HIGH]));
            assert!(filter.notifies("unshare", &[namespace]));
        }
        assert!(filter.notifies("unshare", &[0x80]), "a time namespace");
        for harmless in [17, 0x80 | 17, thread, vfork, thread | HIGH] {
            assert!(!filter.notifies("clone", &[harmless]));
        }
        assert!(!filter.notifies("unshare", &[libc::CLONE_FILES as u64]));
        assert!(!filter.notifies("fork", &[]) && !filter.notifies("vfork", &[]));
    }
}

#[test]
fn escape_27_younger_siblings_are_held_like_the_call_they_replace() {
    let filter = with(NetMode::Off, OpenObservation::Writes, true);
    let create = (libc::O_WRONLY | libc::O_CREAT) as u64;
    for (name, args) in [
        ("open", [0, create, 0]),
        ("creat", [0, 0, 0]),
        ("openat", [0, 0, create]),
        ("openat2", [0, 0, 0]),
        ("mknodat", [0, 0, 0]),
        ("renameat2", [0, 0, 0]),
        ("open_tree_attr", [0, 0, 0]),
        ("file_setattr", [0, 0, 0]),
        ("umount2", [0, 0, 0]),
        ("sendmmsg", [0, 0, 0]),
    ] {
        let args = if name == "sendmmsg" {
            [0, 0, 0, libc::MSG_FASTOPEN as u64].to_vec()
        } else {
            args.to_vec()
        };
        assert!(filter.notifies(name, &args), "{name}");
    }
    assert!(!filter.notifies("file_getattr", &[]));
    // Landlock judges execution; notifying it would deadlock a vfork.
    assert!(!filter.notifies("execveat", &[]));
    // Numbers that nobody has judged, in a gap of the table and beyond its end.
    for unknown in [337, 400, 423, 470, 511, 512, 547, 1024, 0x3FFF_FFFF] {
        assert!(filter.notifies_number(unknown, [0; 6]), "{unknown}");
    }
}

#[test]
fn escape_29_a_program_cannot_install_a_filter_of_its_own() {
    for filter in everywhere() {
        for high in [0, HIGH] {
            assert!(filter.notifies("seccomp", &[high, 0, 0]));
            assert!(filter.notifies("seccomp", &[1 | high, 0, 0]));
            assert!(filter.notifies("prctl", &[22 | high, 2]));
        }
        assert!(filter.notifies("seccomp", &[4]), "an operation nobody knows");
        assert!(!filter.notifies("seccomp", &[2]) && !filter.notifies("seccomp", &[3]));
        // PR_GET_SECCOMP, PR_SET_NAME, PR_SET_NO_NEW_PRIVS, PR_SET_MM, and what only looks like 22.
        for option in [21, 15, 38, 35, 22 << 32] {
            assert!(!filter.notifies("prctl", &[option]));
        }
    }
}

#[test]
fn escape_63_a_program_cannot_nest_a_landlock_domain() {
    for filter in everywhere() {
        assert!(filter.notifies("landlock_restrict_self", &[3, 1]));
        assert!(
            filter.notifies("landlock_create_ruleset", &[0, 0, 1]),
            "asks for the version"
        );
        assert!(!filter.notifies("landlock_create_ruleset", &[4096, 8, 0]));
        assert!(!filter.notifies("landlock_add_rule", &[3, 1, 0, 0]));
    }
}

#[test]
fn escape_21_io_uring_is_notified() {
    for filter in everywhere() {
        for name in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
            assert!(filter.notifies(name, &[]));
        }
        assert!(!filter.notifies("io_setup", &[]) && !filter.notifies("epoll_wait", &[]));
    }
}

#[test]
fn escape_42_device_nodes_are_notified_whatever_is_observed() {
    for filter in everywhere() {
        for mode in [libc::S_IFCHR, libc::S_IFBLK].map(u64::from) {
            assert!(filter.notifies("mknod", &[0, mode | 0o600, 0x103]));
            assert!(filter.notifies("mknodat", &[0, 0, mode | HIGH, 0x103]));
        }
    }
    let fifo = u64::from(libc::S_IFIFO) | 0o600;
    let filter = net(NetMode::Off);
    assert!(!filter.notifies("mknod", &[0, fifo, 0]) && !filter.notifies("mknodat", &[0, 0, fifo, 0]));
}

#[test]
fn escape_48_calls_on_a_named_process_are_notified_where_outsiders_are_visible() {
    let visible = with(NetMode::Off, OpenObservation::None, false);
    let hidden = net(NetMode::Off);
    let cases: [(&str, &[u64], &[u64]); 6] = [
        ("prlimit64", &[42, 7, 4096, 0], &[42, 7, 0, 4096]),
        ("prlimit64", &[42, 7, 1 << 32, 0], &[HIGH, 7, 4096, 0]),
        ("sched_setaffinity", &[42, 8, 1], &[0, 8, 1]),
        ("sched_setattr", &[u64::MAX, 1, 0], &[HIGH, 1, 0]),
        ("setpriority", &[2, 0, 19], &[0, 0, 19]),
        ("ioprio_set", &[3, 0, 0], &[1, 0, 0]),
    ];
    for (name, on_another, on_itself) in cases {
        assert!(visible.notifies(name, on_another), "{name}");
        assert!(!visible.notifies(name, on_itself), "{name}");
        assert!(!hidden.notifies(name, on_another), "{name}");
    }
    for name in ["ptrace", "process_vm_writev", "shmget", "shmat", "mq_open"] {
        assert!(
            visible.notifies(name, &[]) && !hidden.notifies(name, &[]),
            "{name}"
        );
    }
}

#[test]
fn escape_53_54_55_what_no_command_needs_is_notified_everywhere() {
    for filter in everywhere() {
        for name in model::REFUSED {
            assert!(
                filter.notifies(name, &[]) && filter.notifies(name, &[u64::MAX; 6]),
                "{name}"
            );
        }
        for harmless in [0, 8, 0x4_0000, 0x4_0008, 0x2_0008, 0xFFFF_FFFF, 0x4_0000 | HIGH] {
            assert!(!filter.notifies("personality", &[harmless]));
        }
        for refused in [0x40_0000, 0x44_0000, 1, 0x10_0000, 0xFFFF_FFFE] {
            assert!(filter.notifies("personality", &[refused]));
        }
    }
}

#[test]
fn nothing_is_notified_between_the_filter_and_the_exec() {
    // A child in vfork shares its parent's memory and its parent waits: nobody could answer.
    for abi in ABIS {
        for plan in plans() {
            let filter = Filter::new(abi, &plan);
            for name in [
                "execve",
                "execveat",
                "dup",
                "dup3",
                "close_range",
                "close",
                "fcntl",
                "write",
                "read",
                "exit",
                "exit_group",
                "rt_sigprocmask",
                "rt_sigaction",
                "rt_sigreturn",
                "kill",
                "tgkill",
                "getpid",
                "futex",
                "mmap",
                "munmap",
                "chdir",
                "setsid",
                "setrlimit",
                "wait4",
            ] {
                for args in [[0; 6], [u64::MAX; 6]] {
                    assert!(!filter.notifies(name, &args), "{name}");
                }
            }
            assert!(!filter.notifies("unshare", &[libc::CLONE_FILES as u64]));
            // PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP.
            assert!(
                [1, 4, 38, 24]
                    .iter()
                    .all(|&option| !filter.notifies("prctl", &[option]))
            );
        }
    }
}

#[test]
fn opens_are_notified_as_far_as_they_are_observed() {
    let read = (libc::O_CLOEXEC | libc::O_DIRECTORY | libc::O_NOFOLLOW) as u64;
    let (none, writes, all) = (
        net(NetMode::Off),
        with(NetMode::Off, OpenObservation::Writes, true),
        with(NetMode::Off, OpenObservation::All, true),
    );
    for (name, at) in [("open", 1), ("openat", 2)] {
        let args = |flags: i32| {
            let mut args = [0; 6];
            args[at] = flags as u64;
            args
        };
        for flags in [
            libc::O_WRONLY,
            libc::O_RDWR,
            libc::O_CREAT,
            libc::O_TRUNC,
            libc::O_ACCMODE,
        ] {
            assert!(!none.notifies(name, &args(flags)));
            assert!(writes.notifies(name, &args(flags)) && all.notifies(name, &args(flags)));
        }
        assert!(!writes.notifies(name, &args(read as i32)) && all.notifies(name, &args(read as i32)));
    }
    for name in [
        "openat2",
        "creat",
        "truncate",
        "mkdir",
        "unlinkat",
        "renameat2",
        "linkat",
        "symlink",
    ] {
        assert!(
            !none.notifies(name, &[]) && writes.notifies(name, &[]) && all.notifies(name, &[]),
            "{name}"
        );
    }
    assert!(!all.notifies("ftruncate", &[]) && !all.notifies("stat", &[]));
}
