//! Decisions by registers alone, and on other processes.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::{Answer, Decided, Decider, Listener, Notification, Observation, Received, Response};
use super::harness::{install, raw, run, setup};
use crate::denial::{Denial, DenialClass};
use crate::policy::NetMode;
use crate::syscalls;

fn decide(arch: u32, number: u32, args: [u64; 6]) -> Decided {
    let listener = Listener::new(OwnedFd::from(File::open("/dev/null").unwrap())).unwrap();
    let notification = Notification {
        id: 1,
        pid: 0,
        number,
        arch,
        args,
    };
    Decider::new(setup(NetMode::Off, &[])).decide(&listener, &notification)
}

fn native(number: libc::c_long, args: [u64; 6]) -> Decided {
    decide(syscalls::NATIVE_ARCH, number as u32, args)
}

#[track_caller]
fn denied(decided: Decided, errno: i32) -> Denial {
    let Answer::Now(Response::Errno(answer)) = decided.answer else {
        panic!("{decided:?}");
    };
    assert_eq!(answer, errno);
    match decided.observation {
        Some(Observation::Denial(denial)) => denial,
        other => panic!("{other:?}"),
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn escape_22_calls_by_int80_are_refused_by_name_of_their_abi() {
    let denial = denied(decide(0x4000_0003, 102, [0; 6]), libc::ENOSYS);
    assert_eq!(denial.class, DenialClass::Syscall);
    assert_eq!(denial.target.syscall.as_deref(), Some("i386:102"));
    assert_eq!(denial.errno, "ENOSYS");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn escape_24_calls_with_the_x32_bit_are_refused() {
    let denial = denied(
        decide(syscalls::NATIVE_ARCH, 0x4000_0000 | 42, [0; 6]),
        libc::ENOSYS,
    );
    assert_eq!(denial.target.syscall.as_deref(), Some("x32:42"));
}

#[test]
fn escape_25_high_bits_of_an_ioctl_command_change_nothing() {
    for high in [0, 1 << 32, u64::MAX << 32] {
        let denial = denied(
            native(libc::SYS_ioctl, [0, high | 0x5412, 0, 0, 0, 0]),
            libc::EPERM,
        );
        assert_eq!(denial.target.syscall.as_deref(), Some("ioctl(TIOCSTI)"));
    }
}

#[test]
fn i4_unknown_and_probing_calls_are_probes_and_no_denials() {
    let decided = native(9999, [0; 6]);
    assert!(matches!(
        decided.answer,
        Answer::Now(Response::Errno(libc::ENOSYS))
    ));
    assert_eq!(
        decided.observation,
        Some(Observation::Probe("syscall_9999".to_owned()))
    );
    let decided = native(libc::SYS_clone3, [0; 6]);
    assert_eq!(decided.observation, Some(Observation::Probe("clone3".to_owned())));
}

#[test]
fn calls_that_the_filter_never_asks_about_fail_closed() {
    let denial = denied(native(libc::SYS_getpid, [0; 6]), libc::EPERM);
    assert_eq!(denial.operation, "getpid");
}

#[test]
fn refused_calls_quote_their_reason() {
    let denial = denied(native(libc::SYS_mount, [0; 6]), libc::EPERM);
    assert_eq!(denial.operation, "mount");
    assert_eq!(denial.target.syscall.as_deref(), Some("mount"));
    assert_eq!(
        denial.rule,
        syscalls::entry(libc::SYS_mount as u32).unwrap().reason
    );
}

#[test]
fn escape_03_refused_sockets_are_told_by_their_protocol() {
    for (args, protocol, errno) in [
        ([2, 1, 262], "mptcp", libc::EPROTONOSUPPORT),
        ([2, 2 | 0o2000000, 0], "udp", libc::EACCES),
        ([16, 3, 0], "netlink", libc::EAFNOSUPPORT),
        ([40 | 1 << 32, 1, 0], "vsock", libc::EAFNOSUPPORT),
        ([1, 2, 0], "unix-dgram", libc::EACCES),
    ] {
        let [a, b, c] = args;
        let denial = denied(native(libc::SYS_socket, [a, b, c, 0, 0, 0]), errno);
        assert_eq!(denial.target.protocol.as_deref(), Some(protocol));
        assert_eq!(denial.rule, "net = off (preset test)");
        assert_eq!(denial.class, DenialClass::Network);
    }
}

#[test]
fn device_nodes_are_refused_and_other_nodes_are_only_observed() {
    let device = native(
        libc::SYS_mknodat,
        [0, 0, u64::from(libc::S_IFBLK | 0o600), 0, 0, 0],
    );
    denied(device, libc::EPERM);
    let fifo = native(
        libc::SYS_mknodat,
        [0, 0, u64::from(libc::S_IFIFO | 0o600), 0, 0, 0],
    );
    assert!(matches!(fifo.answer, Answer::Now(Response::Continue)));
    assert_eq!(fifo.observation, None);
}

#[test]
fn escape_48_only_processes_of_the_tree_may_be_named_by_a_pid() {
    let outsider = 1;
    let ran = run(
        setup(NetMode::Off, &[]),
        &[libc::SYS_sched_setaffinity],
        move || {
            let me = u64::from(std::process::id());
            let mask = [u64::MAX; 16];
            let pin = |pid: u64| {
                raw(
                    libc::SYS_sched_setaffinity,
                    [pid, 128, mask.as_ptr() as u64, 0, 0, 0],
                )
            };
            (pin(outsider), pin(me), pin(0), pin(u64::MAX))
        },
    );
    assert_eq!(ran.result, (Err(libc::EPERM), Ok(0), Ok(0), Err(libc::EPERM)));
    assert_eq!(ran.denials.len(), 2);
    assert_eq!(ran.denials[0].operation, "sched_setaffinity");
}

#[test]
fn i4_a_denial_says_which_thread_and_its_name() {
    let ran = run(setup(NetMode::Off, &[]), &[libc::SYS_mount], || {
        let _ = raw(
            libc::SYS_prctl,
            [libc::PR_SET_NAME as u64, c"evil\n1".as_ptr() as u64, 0, 0, 0, 0],
        );
        (nix::unistd::gettid().as_raw(), raw(libc::SYS_mount, [0; 6]))
    });
    let (tid, result) = ran.result;
    assert_eq!(result, Err(libc::EPERM));
    assert_eq!(ran.denial().pid, Some(tid));
    assert_ne!(tid, std::process::id().cast_signed(), "no leader");
    assert_eq!(ran.denial().comm.as_deref(), Some("evil\n1"));
}

#[test]
fn a_listener_is_empty_has_a_call_and_hangs_up_and_late_answers_are_no_errors() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let target = std::thread::spawn(move || {
        sender.send(install(&[libc::SYS_mount]).unwrap()).unwrap();
        gone.recv().unwrap();
        raw(libc::SYS_mount, [0; 6])
    });
    let listener = Listener::new(receiver.recv().unwrap()).unwrap();
    assert_eq!(listener.receive().unwrap(), Received::Empty);
    go.send(()).unwrap();
    wait(&listener);
    let Received::Notification(call) = listener.receive().unwrap() else {
        panic!("readable without a call");
    };
    assert_eq!(call.number, libc::SYS_mount as u32);
    assert!(listener.is_valid(call.id) && !listener.is_valid(call.id + 1));
    listener.respond(call.id + 1, Response::Continue).unwrap();
    listener.respond(call.id, Response::Value(7)).unwrap();
    assert_eq!(target.join().unwrap(), Ok(7));
    listener.respond(call.id, Response::Continue).unwrap();
    assert!(!listener.is_valid(call.id));
    wait(&listener);
    assert_eq!(listener.receive().unwrap(), Received::HungUp);
}

fn wait(listener: &Listener) {
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::NONE).unwrap();
}
