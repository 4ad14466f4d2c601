use std::collections::BTreeSet;

use super::*;

const ABIS: [Abi; 2] = [x86_64::ABI, aarch64::ABI];

fn rows() -> impl Iterator<Item = &'static Row> {
    [kernel::ROWS, network::ROWS, files::ROWS, processes::ROWS]
        .into_iter()
        .flatten()
}

fn named(name: &str) -> &'static Entry {
    let number = Abi::NATIVE.names.iter().find(|row| row.1 == name).expect(name).0;
    entry(number).expect(name)
}

#[test]
fn name_tables_ascend_and_name_nothing_twice() {
    for abi in ABIS {
        assert!(abi.names.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let names: BTreeSet<_> = abi.names.iter().map(|row| row.1).collect();
        assert_eq!(names.len(), abi.names.len());
        assert_eq!(abi.highest(), 469, "Linux 6.18 ends with file_setattr");
        assert_eq!(abi.name(469), Some("file_setattr"));
    }
}

#[test]
fn every_row_names_a_system_call_once_and_gives_a_reason() {
    let mut seen = BTreeSet::new();
    for row in rows() {
        assert!(seen.insert(row.name), "{} twice", row.name);
        assert!(
            ABIS.iter()
                .any(|abi| abi.names.iter().any(|known| known.1 == row.name)),
            "{} is no system call",
            row.name
        );
        assert!(row.reason.len() > 10, "{} has no reason", row.name);
    }
    // x86_64 has every call that aarch64 has an entry for, and some older ones.
    assert_eq!(x86_64::ABI.entries().len(), seen.len());
}

#[test]
fn numbers_agree_with_libc() {
    macro_rules! agree {
        ($($name:ident = $number:path),* $(,)?) => {
            [$((stringify!($name), $number)),*]
        };
    }
    let known = agree![
        read = libc::SYS_read,
        socket = libc::SYS_socket,
        connect = libc::SYS_connect,
        sendmmsg = libc::SYS_sendmmsg,
        clone = libc::SYS_clone,
        clone3 = libc::SYS_clone3,
        prctl = libc::SYS_prctl,
        seccomp = libc::SYS_seccomp,
        ioctl = libc::SYS_ioctl,
        mount = libc::SYS_mount,
        io_uring_setup = libc::SYS_io_uring_setup,
        landlock_restrict_self = libc::SYS_landlock_restrict_self,
        openat = libc::SYS_openat,
        openat2 = libc::SYS_openat2,
        mknodat = libc::SYS_mknodat,
        prlimit64 = libc::SYS_prlimit64,
        bpf = libc::SYS_bpf,
        keyctl = libc::SYS_keyctl,
        process_vm_writev = libc::SYS_process_vm_writev,
        pidfd_getfd = libc::SYS_pidfd_getfd,
        mount_setattr = libc::SYS_mount_setattr,
        execveat = libc::SYS_execveat,
    ];
    for (name_in_libc, number) in known {
        assert_eq!(name(u32::try_from(number).unwrap()), Some(name_in_libc));
    }
}

#[test]
fn entries_are_found_by_number_and_only_where_something_may_be_notified() {
    assert_eq!(named("connect").handling, Handling::Connect);
    assert_eq!(named("clone3").handling, Handling::Probe { errno: libc::ENOSYS });
    assert_eq!(named("mount").handling, Handling::Refuse { errno: libc::EPERM });
    let read = u32::try_from(libc::SYS_read).unwrap();
    assert_eq!(name(read), Some("read"));
    assert_eq!(entry(read), None);
    assert_eq!(entry(highest_known() + 1), None);
    assert_eq!(name(highest_known() + 1), None);
    assert_eq!(name(u32::MAX), None);
}

#[test]
fn foreign_ways_in_are_told_by_architecture_and_number() {
    let (x86, arm) = (x86_64::ABI, aarch64::ABI);
    assert_eq!(x86.foreign(x86.audit_arch, 0), None);
    assert_eq!(x86.foreign(x86.audit_arch, 0x3FFF_FFFF), None);
    assert_eq!(x86.foreign(x86.audit_arch, 0x4000_0000), Some("x32"));
    assert_eq!(x86.foreign(x86.audit_arch, 0xFFFF_FFFE), Some("x32"));
    assert_eq!(x86.foreign(x86.audit_arch, SKIPPED_BY_TRACER), None);
    assert_eq!(x86.foreign(0x4000_0003, 102), Some("i386"));
    assert_eq!(x86.foreign(arm.audit_arch, 0), Some("foreign"));
    assert_eq!(arm.foreign(arm.audit_arch, 0x4000_0000), None);
    assert_eq!(arm.foreign(0x4000_0028, 0), Some("arm"));
    assert_eq!(is_foreign_abi(NATIVE_ARCH, 0), None);
}

#[test]
fn the_named_process_is_none_where_a_call_speaks_of_many() {
    let garbage = 0xDEAD_BEEF_0000_0000;
    let prlimit = named("prlimit64");
    assert_eq!(prlimit.named_process(&[garbage | 42, 0, 1, 0, 0, 0]), Some(42));
    let setpriority = named("setpriority");
    let process = u64::from(processes::PRIO_PROCESS) | garbage;
    assert_eq!(setpriority.named_process(&[process, 42, 0, 0, 0, 0]), Some(42));
    for group_or_user in [1, 2, 3, u64::MAX] {
        assert_eq!(setpriority.named_process(&[group_or_user, 0, 0, 0, 0, 0]), None);
    }
    let ioprio = named("ioprio_set");
    assert_eq!(ioprio.named_process(&[1, 42, 0, 0, 0, 0]), Some(42));
    for group_or_user in [0, 2, 3] {
        assert_eq!(ioprio.named_process(&[group_or_user, 0, 0, 0, 0, 0]), None);
    }
    assert_eq!(named("mount").named_process(&[1; 6]), None);
}

#[test]
fn device_nodes_are_told_from_other_nodes() {
    let mknodat = named("mknodat");
    let mode = |mode: libc::mode_t| [0, 0, u64::from(mode) | 0xF00_0000_0000, 0, 0, 0];
    assert!(mknodat.makes_device(&mode(libc::S_IFBLK | 0o600)));
    assert!(mknodat.makes_device(&mode(libc::S_IFCHR)));
    for harmless in [0, 0o644, libc::S_IFREG, libc::S_IFIFO | 0o600, libc::S_IFSOCK] {
        assert!(!mknodat.makes_device(&mode(harmless)));
    }
    assert!(!named("mkdirat").makes_device(&mode(libc::S_IFBLK)));
    assert!(!named("ioctl").makes_device(&[0, 0x5412, 0, 0, 0, 0]));
}
