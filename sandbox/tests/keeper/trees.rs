//! What becomes of trees when the keeper dies, is stopped, or is told to end them.

use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use provost_sandbox::compile::PreparedSandbox;
use provost_sandbox::keeper::wire::Request;
use provost_sandbox::report::Containment;

use crate::expect_text;
use crate::home::Home;
use crate::support::{Talk, directory, receive, request, signal};

/// Calls the test for each containment that can be had here.
fn each_containment(test: impl Fn(&Home, Talk, &PreparedSandbox, &Path)) {
    for containment in [
        Containment::PidNamespace,
        Containment::Cgroup,
        Containment::Subreaper,
    ] {
        let home = Home::new();
        let mut talk = home.connect().talk;
        if containment == Containment::Subreaper {
            talk.kernel.cgroup2 = None;
        }
        let (_directory, cwd) = directory();
        let preset = match containment {
            Containment::PidNamespace => "workspace-write",
            _ => "unconfined",
        };
        let sandbox = talk.sandbox(preset, &cwd, |_| {});
        if sandbox.report.containment == containment {
            test(&home, talk, &sandbox, &cwd);
        } else {
            println!("skipped: {containment:?} cannot be had here");
        }
    }
}

/// A daemon that forked twice in a session of its own, and a command that stays.
const FAMILY: [&str; 3] = [
    "sh",
    "-c",
    "(setsid sh -c 'sleep 1000 & exec sleep 1000' &) ; echo up; exec sleep 1000",
];

pub(super) fn escape_61_nothing_outlives_the_keeper() {
    each_containment(|_, talk, sandbox, cwd| {
        let running = talk.started(request(&FAMILY, cwd, sandbox), sandbox);
        expect_text(&running, "up\n");
        kill(Pid::from_raw(talk.pid), Signal::SIGKILL).expect("the keeper lives");
        running.wait_until_gone();
    });
}

pub(super) fn i6_a_tree_killed_by_the_next_daemon_is_gone_when_that_is_said() {
    each_containment(|home, talk, sandbox, cwd| {
        let running = talk.started(request(&FAMILY, cwd, sandbox), sandbox);
        let process = running.started.process;
        expect_text(&running, "up\n");
        drop((talk, running));
        let (talk, _, running) = home.find(process);
        assert!(!running.is_gone());
        talk.tell(&Request::Kill { process });
        assert_eq!(signal(talk.ended(process)), libc::SIGKILL);
        assert!(running.is_gone(), "a member outlived the word that it was gone");
    });
}

pub(super) fn a_keeper_that_is_stopped_ends_everything() {
    each_containment(|home, talk, sandbox, cwd| {
        let running = talk.started(request(&FAMILY, cwd, sandbox), sandbox);
        expect_text(&running, "up\n");
        talk.spawner.stop().expect("it is told");
        running.wait_until_gone();
        assert!(receive(&talk.spawner).is_none());
        assert!(!home.connect().was_there);
    });
}
