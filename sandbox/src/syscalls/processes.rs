//! Processes: new namespaces, and reaching into processes that are not the sandbox's own.

use super::condition::{bits, either, int, null};
use super::{Handling, Row, Rules};

/// Every `CLONE_NEW*` flag that `clone` knows. `CLONE_NEWTIME` is not among them: there its bit (0x80) belongs to
/// the exit signal.
const NEW_NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;
const CLONE_NEWTIME: u32 = libc::CLONE_NEWTIME as u32;

/// `which` of `setpriority`.
pub(super) const PRIO_PROCESS: u32 = 0;
const PRIO_PGRP: u32 = 1;
/// `which` of `ioprio_set`.
pub(super) const IOPRIO_WHO_PROCESS: u32 = 1;
const IOPRIO_WHO_PGRP: u32 = 2;

const NAMESPACES: &str = "in a namespace of its own a program has every capability, and the kernel code that goes \
                          with them";
const OUTSIDERS: &str = "without a PID namespace it may name a process outside the sandbox";
const SHARED_IPC: &str = "without an IPC namespace its objects are the host's";
const MEMORY: &str = "without a PID namespace it may reach into processes outside the sandbox";

/// The first argument is a pid, and 0 the caller.
const ON_ITSELF: Rules = &[&[int(0, 0)]];

/// A call that acts on the process named by its first argument.
const fn on_pid(name: &'static str) -> Row {
    Row::new(name, Handling::PidArgument { index: 0 }, OUTSIDERS)
        .except(ON_ITSELF)
        .where_host_processes_are_visible()
}

/// A call on System V or POSIX message objects, which live in the IPC namespace.
const fn ipc(name: &'static str) -> Row {
    Row::refuse(name, SHARED_IPC).where_host_processes_are_visible()
}

pub(super) const ROWS: &[Row] = &[
    Row::refuse("clone", NAMESPACES).except(&[&[bits(0, NEW_NAMESPACES, 0)]]),
    Row::new(
        "clone3",
        Handling::Probe { errno: libc::ENOSYS },
        "its flags are in memory, which no filter sees; the C library falls back to clone",
    ),
    Row::refuse("unshare", NAMESPACES).except(&[&[bits(0, NEW_NAMESPACES | CLONE_NEWTIME, 0)]]),
    Row::refuse("setns", "enters the namespaces of another process"),
    Row::refuse("pidfd_getfd", "takes open descriptors out of another process"),
    // Landlock keeps these inside the domain, and a PID namespace hides everybody else: there debuggers work.
    Row::refuse("ptrace", MEMORY).where_host_processes_are_visible(),
    Row::refuse("process_vm_readv", MEMORY).where_host_processes_are_visible(),
    Row::refuse("process_vm_writev", MEMORY).where_host_processes_are_visible(),
    on_pid("prlimit64").except(&[&[int(0, 0)], &[null(2)]]),
    on_pid("sched_setaffinity"),
    on_pid("sched_setscheduler"),
    on_pid("sched_setparam"),
    on_pid("sched_setattr"),
    on_pid("migrate_pages"),
    on_pid("move_pages"),
    // The caller itself or its own process group; a user id of 0 means every process of the caller's user.
    Row::new("setpriority", Handling::PidArgument { index: 1 }, OUTSIDERS)
        .except(&[&[int(1, 0), either(0, u32::MAX, PRIO_PROCESS, PRIO_PGRP)]])
        .where_host_processes_are_visible(),
    Row::new("ioprio_set", Handling::PidArgument { index: 1 }, OUTSIDERS)
        .except(&[
            &[int(1, 0), int(0, IOPRIO_WHO_PROCESS)],
            &[int(1, 0), int(0, IOPRIO_WHO_PGRP)],
        ])
        .where_host_processes_are_visible(),
    ipc("shmget"),
    ipc("shmat"),
    ipc("shmctl"),
    ipc("msgget"),
    ipc("msgsnd"),
    ipc("msgrcv"),
    ipc("msgctl"),
    ipc("semget"),
    ipc("semop"),
    ipc("semtimedop"),
    ipc("semctl"),
    ipc("mq_open"),
    ipc("mq_unlink"),
];
