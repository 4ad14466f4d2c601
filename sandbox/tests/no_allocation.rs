//! Between the fork of an init and the exec of its command nothing may allocate: the allocator of this program, which
//! is also the spawner, ends the process that tries.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::Ordering;

use provost_sandbox::keeper::wire::{Notice, Request, Stdin, TerminalSize};
use provost_sandbox::keeper::{AFTER_FORK, Step};
use provost_sandbox::policy::NetMode;
use support::{Talk, code, directory, request, signal};

struct NotAfterFork;

fn check() {
    if AFTER_FORK.load(Ordering::Relaxed) {
        std::process::abort();
    }
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for NotAfterFork {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check();
        // SAFETY: promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        check();
        // SAFETY: promised by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        check();
        // SAFETY: promised by the caller.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: NotAfterFork = NotAfterFork;

/// Runs what goes well and what does not, in every kind of sandbox.
fn every_path(preset: &str, net: NetMode, limited: bool) {
    let talk = Talk::start();
    let (_directory, cwd) = directory();
    let git = cwd.join(".git/hooks");
    std::fs::create_dir_all(&git).expect("hooks to protect");
    let sandbox = talk.sandbox(preset, &cwd, |policy| {
        policy.net.mode = net;
        policy.limits.tasks = limited.then_some(50);
        policy.limits.cpu_seconds = Some(1000);
    });
    let ask = |words: &[&str]| request(words, &cwd, &sandbox);

    let (status, text) = talk.output(ask(&["sh", "-c", "echo out; exit 7"]), &sandbox);
    assert_eq!((code(status), text.as_str()), (7, "out\n"));

    // Without `#!`: the second exec.
    let script = cwd.join("script");
    std::fs::write(&script, "echo \"$1\"; exit 8\n").expect("a script");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("chmod");
    let (status, text) = talk.output(ask(&[&script.to_string_lossy(), "word"]), &sandbox);
    assert_eq!((code(status), text.as_str()), (8, "word\n"));

    assert_eq!(
        talk.fails(ask(&["/nonexistent"]), &sandbox),
        (Step::Exec, libc::ENOENT)
    );
    assert_eq!(
        talk.fails(ask(&["/etc/passwd"]), &sandbox),
        (Step::Exec, libc::EACCES)
    );
    let mut elsewhere = ask(&["true"]);
    elsewhere.cwd = b"/nonexistent".to_vec();
    assert_eq!(
        talk.fails(elsewhere, &sandbox),
        (Step::WorkingDirectory, libc::ENOENT)
    );

    if !limited && preset != "unconfined" {
        talk.made_ahead(&cwd, &sandbox);
        let (status, text) = talk.output(ask(&["sh", "-c", "echo ahead; exit 9"]), &sandbox);
        assert_eq!((code(status), text.as_str()), (9, "ahead\n"));
        talk.made_ahead(&cwd, &sandbox);
        assert_eq!(
            talk.fails(ask(&["/nonexistent"]), &sandbox),
            (Step::Exec, libc::ENOENT)
        );
    }

    // A terminal is opened, and becomes the controlling one.
    let mut typed = ask(&["sh", "-c", "test -t 0 && exit 5"]);
    typed.stdin = Stdin::Terminal(TerminalSize::default());
    let process = typed.process;
    talk.ask(typed, &sandbox);
    let (notice, _master) = talk.next();
    assert!(
        matches!(&notice, Notice::Started(started) if started.terminal),
        "{notice:?}"
    );
    assert_eq!(code(talk.ended(process)), 5);

    // The init reaps, obeys and kills.
    let mut daemons = ask(&[
        "sh",
        "-c",
        "for i in 1 2 3; do setsid sleep 1000 & done; echo up; exec cat",
    ]);
    daemons.stdin = Stdin::Pipe;
    let process = daemons.process;
    let running = talk.started(daemons, &sandbox);
    support::wait_for(
        std::os::fd::AsFd::as_fd(&running.stdout),
        nix::poll::PollFlags::POLLIN,
    );
    talk.spawner
        .send(&Request::Kill { process }, &[])
        .expect("kill is taken");
    assert_eq!(signal(talk.ended(process)), libc::SIGKILL);
    running.wait_until_gone();
}

fn no_allocation_between_clone_and_exec_in_a_workspace() {
    every_path("workspace-write", NetMode::Off, false);
}

fn no_allocation_between_clone_and_exec_with_a_private_network() {
    every_path("workspace-write", NetMode::Isolated, false);
}

fn no_allocation_between_clone_and_exec_read_only() {
    every_path("read-only", NetMode::Off, false);
}

fn no_allocation_between_clone_and_exec_unconfined() {
    every_path("unconfined", NetMode::Open, false);
}

fn no_allocation_between_clone_and_exec_in_a_limited_group() {
    let talk = Talk::start();
    if talk.kernel.pids_groups.is_none() {
        println!("skipped: no pids cgroup may be made here");
        return;
    }
    every_path("workspace-write", NetMode::Off, true);
}

fn main() {
    support::run(&[
        (
            "no_allocation_between_clone_and_exec_in_a_workspace",
            no_allocation_between_clone_and_exec_in_a_workspace,
        ),
        (
            "no_allocation_between_clone_and_exec_with_a_private_network",
            no_allocation_between_clone_and_exec_with_a_private_network,
        ),
        (
            "no_allocation_between_clone_and_exec_read_only",
            no_allocation_between_clone_and_exec_read_only,
        ),
        (
            "no_allocation_between_clone_and_exec_unconfined",
            no_allocation_between_clone_and_exec_unconfined,
        ),
        (
            "no_allocation_between_clone_and_exec_in_a_limited_group",
            no_allocation_between_clone_and_exec_in_a_limited_group,
        ),
    ]);
}
