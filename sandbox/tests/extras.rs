//! What a command is handed besides its stdio: it has that and nothing else, it works under every policy, and the keeper
//! holds the other ends.

#[path = "keeper/home.rs"]
mod home;
mod support;

use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use home::{Connected, Home};
use nix::poll::PollFlags;
use provost_sandbox::compile::PreparedSandbox;
use provost_sandbox::extras::{Extras, ReadyBy, reported};
use provost_sandbox::keeper::wire::{Kept, Request, SpawnRequest, Stdin, TerminalSize};
use support::{DEADLINE, Running, Talk, children, directory, request, wait_for};

const BOTH: Extras = Extras {
    report: true,
    ready: ReadyBy::Fd,
};

/// Says which descriptors it has, reports and says that it is ready, by the variables alone.
const SCRIPT: &str = "for fd in 0 1 2 3 4 5 6 7 8 9 10 11 12; do test -e /proc/self/fd/$fd && echo $fd; done; \
    test -n \"$PROVOST_REPORT_FD\" && echo '{\"a\":1}' >&$PROVOST_REPORT_FD; \
    test -n \"$PROVOST_READY_FD\" && echo >&$PROVOST_READY_FD; :";

fn asked(extras: Extras, cwd: &Path, sandbox: &PreparedSandbox) -> SpawnRequest {
    let mut asked = request(&["sh", "-c", SCRIPT], cwd, sandbox);
    for (is_there, entry) in [
        (extras.report, "PROVOST_REPORT_FD=3"),
        (extras.ready == ReadyBy::Fd, "PROVOST_READY_FD=4"),
    ] {
        asked.env.extend(is_there.then(|| entry.as_bytes().to_vec()));
    }
    asked.extras = extras;
    asked
}

fn is_ready(running: &Running) -> bool {
    let mut ready = running.ready.as_ref().expect("its pipe");
    wait_for(ready.as_fd(), PollFlags::POLLIN);
    let mut byte = [0];
    matches!(ready.read(&mut byte), Ok(1)) && byte == *b"\n"
}

fn result(running: &Running) -> String {
    let bytes = reported(running.report.as_ref().expect("its place")).expect("it");
    String::from_utf8(bytes).expect("text")
}

/// Runs it, and checks that it had and did what it was asked for.
fn holds(talk: &Talk, extras: Extras, cwd: &Path, sandbox: &PreparedSandbox) -> i32 {
    let asked = asked(extras, cwd, sandbox);
    let process = asked.process;
    let running = talk.started(asked, sandbox);
    assert_eq!(running.started.extras, extras);
    let mut wanted = vec!["0", "1", "2"];
    wanted.extend(extras.report.then_some("3"));
    let ready = extras.ready == ReadyBy::Fd;
    wanted.extend(ready.then_some("4"));
    let text = running.stdout_text();
    assert_eq!(text.lines().collect::<Vec<_>>(), wanted, "{extras:?}");
    if ready {
        assert!(is_ready(&running));
    }
    talk.ended(process);
    if extras.report {
        assert_eq!(result(&running), "{\"a\":1}\n");
    }
    running.started.init_pid
}

fn a_command_has_what_it_was_asked_for_and_nothing_else() {
    let talk = Talk::start();
    let (_directory, cwd) = directory();
    for preset in ["unconfined", "read-only", "workspace-write"] {
        let sandbox = talk.sandbox(preset, &cwd, |_| {});
        for (report, ready) in [
            (true, ReadyBy::Fd),
            (true, ReadyBy::Nothing),
            (false, ReadyBy::Fd),
            (false, ReadyBy::Nothing),
            (true, ReadyBy::Notify),
        ] {
            holds(&talk, Extras { report, ready }, &cwd, &sandbox);
        }
    }
}

fn what_is_made_ahead_has_it_too_and_nobody_gets_another_ones() {
    let talk = Talk::start();
    let (_directory, cwd) = directory();
    let sandbox = talk.sandbox("workspace-write", &cwd, |_| {});
    let made_ahead = || {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let waits = |init: &i32| children(*init).len() == 1;
            if let Some(init) = children(talk.pid).into_iter().find(waits) {
                return init;
            }
            assert!(Instant::now() < deadline, "nothing is made ahead");
            std::thread::yield_now();
        }
    };
    for _ in 0..2 {
        holds(&talk, BOTH, &cwd, &sandbox);
    }
    let ahead = made_ahead();
    assert_ne!(holds(&talk, Extras::default(), &cwd, &sandbox), ahead);
    assert_eq!(holds(&talk, BOTH, &cwd, &sandbox), ahead, "another one was used");
}

fn a_command_with_a_terminal_has_it_too() {
    let talk = Talk::start();
    let (_directory, cwd) = directory();
    let sandbox = talk.sandbox("workspace-write", &cwd, |_| {});
    let mut asked = asked(BOTH, &cwd, &sandbox);
    asked.stdin = Stdin::Terminal(TerminalSize::default());
    let process = asked.process;
    talk.ask(asked, &sandbox);
    let (_, fds) = talk.next();
    let [_pidfd, _master, _listener, place, _ready] = fds.try_into().expect("five descriptors");
    talk.ended(process);
    assert_eq!(reported(&place.into()).expect("it"), b"{\"a\":1}\n");
}

fn i8_what_was_reported_is_kept_from_one_daemon_to_the_next_until_it_is_forgotten() {
    let home = Home::new();
    let talk = home.connect().talk;
    let (_directory, cwd) = directory();
    let sandbox = talk.unconfined(&cwd);
    let asked = asked(BOTH, &cwd, &sandbox);
    let process = asked.process;
    let first = talk.started(asked, &sandbox);
    drop((talk, first));
    // It reports and ends while nobody is there, or before.
    let (talk, tree, second) = home.find(process);
    if tree.end.is_none() {
        second.wait_until_gone();
    }
    assert!(is_ready(&second));
    let what = Kept::Ready;
    talk.tell(&Request::Release { process, what });
    drop((talk, second));
    let (talk, _, third) = home.find(process);
    assert!(third.ready.is_none(), "that was released");
    assert_eq!(result(&third), "{\"a\":1}\n");
    talk.forget(process);
    talk.obeyed();
    drop(talk);
    let Connected { held, named, .. } = home.connect();
    assert!(held.is_empty() && named.is_empty());
}

macro_rules! tests {
    ($($name:ident),+ $(,)?) => {
        fn main() {
            support::run(&[$((stringify!($name), $name)),+]);
        }
    };
}

tests!(
    a_command_has_what_it_was_asked_for_and_nothing_else,
    what_is_made_ahead_has_it_too_and_nobody_gets_another_ones,
    a_command_with_a_terminal_has_it_too,
    i8_what_was_reported_is_kept_from_one_daemon_to_the_next_until_it_is_forgotten,
);
