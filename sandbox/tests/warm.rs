//! Sandboxes that the spawner makes ahead: nobody can tell them from others, but by the time it takes.

mod support;

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::poll::PollFlags;
use provost_sandbox::compile::PreparedSandbox;
use provost_sandbox::keeper::Step;
use provost_sandbox::keeper::wire::{Notice, Request, Stdin};
use provost_sandbox::report::Containment;
use support::{Talk, children, code, directory, request, signal, wait_for};

/// The pid of the init, and what the command says.
fn init_and_output(talk: &Talk, words: &[&str], cwd: &Path, sandbox: &PreparedSandbox) -> (i32, String) {
    let request = request(words, cwd, sandbox);
    let process = request.process;
    let running = talk.started(request, sandbox);
    let text = running.stdout_text();
    talk.ended(process);
    (running.started.init_pid, text)
}

/// A spawner whose kernel is said to offer less.
fn without_namespaces() -> Talk {
    let mut talk = Talk::start();
    let no = || provost_sandbox::kernel::Probe::No("for this test".to_owned());
    talk.kernel.pid_namespace = no();
    talk.kernel.net_namespace = no();
    talk.kernel.private_proc = no();
    talk.kernel.cgroup2 = None;
    talk
}

fn a_sandbox_that_is_used_again_is_made_ahead_and_holds_the_same() {
    for talk in [Talk::start(), without_namespaces()] {
        let (_directory, cwd) = directory();
        let (_elsewhere, denied) = directory();
        fs::write(denied.join("secret"), "secret").expect("a secret");
        let deny = denied.clone();
        let sandbox = talk.sandbox("workspace-write", &cwd, |policy| {
            let rule = provost_sandbox::policy::PathRule::explicit(deny, "the test");
            policy.files.deny.push(rule);
        });
        // Nobody answers the listener here: nothing that it is asked about.
        let script = format!(
            "cat {}/secret 2>&1 | grep -o 'denied'; echo $0; \
             grep -E 'Seccomp:|NoNewPrivs|CapEff' /proc/self/status; ls /proc/self/fd | wc -l",
            denied.display()
        );
        let words = ["sh", "-c", &script, "word"];
        let (_, first) = init_and_output(&talk, &words, &cwd, &sandbox);
        assert!(
            first.starts_with("denied\nword\n") && first.contains("Seccomp:\t2"),
            "{first}"
        );
        let ahead = talk.made_ahead(&cwd, &sandbox);
        let (init, second) = init_and_output(&talk, &words, &cwd, &sandbox);
        assert_eq!(init, ahead, "another one was used");
        assert_eq!(first, second);
    }
}

fn another_sandbox_never_gets_what_was_made_ahead() {
    let talk = Talk::start();
    let (_directory, cwd) = directory();
    let sandbox = talk.sandbox("workspace-write", &cwd, |_| {});
    let ahead = talk.made_ahead(&cwd, &sandbox);
    // The same policy, compiled again: its rulesets are others.
    let again = talk.sandbox("workspace-write", &cwd, |_| {});
    let (init, _) = init_and_output(&talk, &["true"], &cwd, &again);
    assert_ne!(init, ahead);
    let narrow = talk.sandbox("read-only", &cwd, |_| {});
    let (init, text) = init_and_output(
        &talk,
        &["sh", "-c", "grep -c CapEff /proc/self/status"],
        &cwd,
        &narrow,
    );
    assert_ne!(init, ahead);
    assert_eq!(text, "1\n");
}

fn escape_35_what_was_made_ahead_of_a_change_is_thrown_away() {
    let talk = Talk::start();
    let (directory, cwd) = directory();
    fs::create_dir_all(cwd.join(".git/hooks")).expect("hooks");
    let sandbox = talk.sandbox("workspace-write", &cwd, |_| {});
    if sandbox.report.containment != Containment::PidNamespace {
        println!("skipped: no mount namespace can be had here");
        return;
    }
    // Removing a mount point takes away what is mounted there, in every namespace.
    let ahead = talk.made_ahead(&cwd, &sandbox);
    fs::remove_dir(cwd.join(".git/hooks")).expect("remove");
    fs::create_dir(cwd.join(".git/hooks")).expect("the same again");
    let ask = ["sh", "-c", "test -w .git/hooks || echo read-only"];
    let (init, text) = init_and_output(&talk, &ask, &cwd, &sandbox);
    assert_ne!(init, ahead);
    assert_eq!(text, "read-only\n");

    // Another directory at the path of the working directory.
    let ahead = talk.made_ahead(&cwd, &sandbox);
    let aside = cwd.with_extension("aside");
    fs::rename(&cwd, &aside).expect("rename");
    fs::create_dir(&cwd).expect("another");
    fs::write(cwd.join("mark"), "").expect("a mark");
    let (init, text) = init_and_output(&talk, &["ls"], &cwd, &sandbox);
    assert_ne!(init, ahead);
    assert_eq!(text, "mark\n");
    fs::remove_dir_all(aside).expect("clean");
    drop(directory);
}

fn i11_a_program_that_cannot_be_executed_fails_the_same_way() {
    let talk = Talk::start();
    let (_directory, cwd) = directory();
    let sandbox = talk.sandbox("workspace-write", &cwd, |_| {});
    for (word, errno) in [("/nonexistent", libc::ENOENT), ("/etc/passwd", libc::EACCES)] {
        talk.made_ahead(&cwd, &sandbox);
        let failed = talk.fails(request(&[word], &cwd, &sandbox), &sandbox);
        assert_eq!(failed, (Step::Exec, errno));
    }
    // More than there is room for.
    talk.made_ahead(&cwd, &sandbox);
    let long = "x".repeat(100_000);
    let words = ["sh", "-c", "echo $#", "sh", &long, &long, &long];
    let (_, text) = init_and_output(&talk, &words, &cwd, &sandbox);
    assert_eq!(text, "3\n");
}

fn stdin_signals_and_kill_reach_a_command_in_what_was_made_ahead() {
    for talk in [Talk::start(), without_namespaces()] {
        let (_directory, cwd) = directory();
        let sandbox = talk.sandbox("workspace-write", &cwd, |_| {});
        talk.made_ahead(&cwd, &sandbox);
        // A pipe as stdin is another kind: the second use of it is made ahead, too.
        let running = (0..3).map(|_| {
            let mut cat = request(&["cat"], &cwd, &sandbox);
            cat.stdin = Stdin::Pipe;
            (cat.process, talk.started(cat, &sandbox))
        });
        for (process, running) in running {
            let mut stdin = running.stdin.as_ref().expect("a pipe");
            stdin.write_all(b"hello").expect("room");
            wait_for(running.stdout.as_fd(), PollFlags::POLLIN);
            talk.spawner
                .send(&Request::Kill { process }, &[])
                .expect("kill is taken");
            assert_eq!(signal(talk.ended(process)), libc::SIGKILL);
            running.wait_until_gone();
        }
    }
}

fn escape_61_what_was_made_ahead_ends_with_its_host() {
    for talk in [Talk::start(), without_namespaces()] {
        let (_directory, cwd) = directory();
        let sandbox = talk.sandbox("workspace-write", &cwd, |_| {});
        let init = talk.made_ahead(&cwd, &sandbox);
        let waiting = children(init)[0];
        let both = [init, waiting].map(pidfd);
        drop(talk);
        for pidfd in both {
            wait_for(pidfd.as_fd(), PollFlags::POLLIN);
        }
    }
}

fn what_was_made_ahead_and_is_not_used_goes() {
    let talk = Talk::start();
    let (_directory, cwd) = directory();
    let sandbox = talk.sandbox("workspace-write", &cwd, |_| {});
    let init = pidfd(talk.made_ahead(&cwd, &sandbox));
    wait_for(init.as_fd(), PollFlags::POLLIN);
    let (status, _) = talk.output(request(&["true"], &cwd, &sandbox), &sandbox);
    assert_eq!(code(status), 0);
}

fn killing_what_was_made_ahead_harms_nobody() {
    let talk = Talk::start();
    let (_directory, cwd) = directory();
    let sandbox = talk.sandbox("workspace-write", &cwd, |_| {});
    for _ in 0..3 {
        let init = talk.made_ahead(&cwd, &sandbox);
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(init),
            nix::sys::signal::Signal::SIGKILL,
        );
        // At once, so that the spawner may not have noticed.
        let process = request(&["true"], &cwd, &sandbox);
        let id = process.process;
        talk.ask(process, &sandbox);
        loop {
            match talk.next().0 {
                Notice::Ended { process, .. } if process == id => break,
                Notice::Failed { process, step, .. } if process == id => {
                    assert_eq!(step, Step::InitDied);
                    break;
                }
                _ => {}
            }
        }
    }
    let (status, _) = talk.output(request(&["true"], &cwd, &sandbox), &sandbox);
    assert_eq!(code(status), 0);
}

/// A descriptor that becomes readable when the process ends.
#[allow(unsafe_code)]
fn pidfd(pid: i32) -> OwnedFd {
    // SAFETY: numbers only; the descriptor that comes back is nobody else's.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd as i32)
    }
}

fn main() {
    support::run(&[
        (
            "a_sandbox_that_is_used_again_is_made_ahead_and_holds_the_same",
            a_sandbox_that_is_used_again_is_made_ahead_and_holds_the_same,
        ),
        (
            "another_sandbox_never_gets_what_was_made_ahead",
            another_sandbox_never_gets_what_was_made_ahead,
        ),
        (
            "escape_35_what_was_made_ahead_of_a_change_is_thrown_away",
            escape_35_what_was_made_ahead_of_a_change_is_thrown_away,
        ),
        (
            "i11_a_program_that_cannot_be_executed_fails_the_same_way",
            i11_a_program_that_cannot_be_executed_fails_the_same_way,
        ),
        (
            "stdin_signals_and_kill_reach_a_command_in_what_was_made_ahead",
            stdin_signals_and_kill_reach_a_command_in_what_was_made_ahead,
        ),
        (
            "escape_61_what_was_made_ahead_ends_with_its_host",
            escape_61_what_was_made_ahead_ends_with_its_host,
        ),
        (
            "what_was_made_ahead_and_is_not_used_goes",
            what_was_made_ahead_and_is_not_used_goes,
        ),
        (
            "killing_what_was_made_ahead_harms_nobody",
            killing_what_was_made_ahead_harms_nobody,
        ),
    ]);
}
