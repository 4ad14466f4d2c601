//! Daemons come and go: wherever a connection is cut, the next one learns the same.

use std::fs;
use std::os::fd::AsRawFd;

use provost_sandbox::compile::PreparedSandbox;
use provost_sandbox::keeper::Step;
use provost_sandbox::keeper::wire::{HeldState, Notice, Request, SpawnRequest};

use crate::home::{self, Connected, Home};
use crate::support::{Running, Talk, children, code, directory, receive, request};
use crate::{echo, expect_text, until, write};

pub(super) fn i8_a_process_outlives_its_daemon_and_its_descriptors_go_on() {
    let home = Home::new();
    let Connected { talk, was_there, .. } = home.connect();
    assert!(!was_there);
    let (_directory, cwd) = directory();
    let sandbox = talk.sandbox("workspace-write", &cwd, |_| {});
    let first = talk.started(echo(&cwd, &sandbox), &sandbox);
    let process = first.started.process;
    expect_text(&first, "up\n");
    let keeper = talk.pid;
    drop((talk, first));

    let (talk, tree, second) = home.find(process);
    assert_eq!((talk.pid, tree.exited, tree.end), (keeper, None, None));
    assert!(second.listener.is_some(), "the listener is kept");
    write(&second, "one\n");
    expect_text(&second, "one\n");
    // What is written while nobody is there waits in the pipe.
    write(&second, "two\n");
    drop((talk, second));
    let (talk, _, third) = home.find(process);
    expect_text(&third, "two\n");
    write(&third, "7\n");
    assert_eq!(third.stdout_text(), "7\n");
    assert_eq!(code(talk.ended(process)), 7);
}

/// What is done with a process from its start until it is forgotten. After each step the daemon may die.
const STEPS: usize = 6;

/// A daemon that knows nothing but what it is told, and does the steps that are left.
struct Daemon<'a> {
    home: &'a Home,
    sandbox: &'a PreparedSandbox,
    request: &'a SpawnRequest,
    talk: Talk,
    running: Option<Running>,
    exited: Option<i32>,
    ended: bool,
}

impl<'a> Daemon<'a> {
    fn start(home: &'a Home, sandbox: &'a PreparedSandbox, request: &'a SpawnRequest) -> Self {
        let Connected { talk, mut held, .. } = home.connect();
        let mut daemon = Self {
            home,
            sandbox,
            request,
            talk,
            running: None,
            exited: None,
            ended: false,
        };
        if let Some((one, fds)) = held.pop() {
            daemon.hear(Notice::Held(one), fds);
        }
        daemon
    }

    fn hear(&mut self, notice: Notice, fds: Vec<std::os::fd::OwnedFd>) {
        match notice {
            Notice::Held(held) if held.state == HeldState::Starting => {}
            Notice::Held(held) => {
                let (tree, running) = home::running(held, fds);
                assert!(tree.exited.is_some() || tree.end.is_none());
                self.running = Some(running);
                self.exited = tree.exited;
                self.ended = tree.end.is_some();
            }
            Notice::Started(started) => self.running = Some(Running::new(started, fds)),
            Notice::Exited { status, .. } => assert!(self.exited.replace(status).is_none()),
            Notice::Ended { .. } => assert!(!std::mem::replace(&mut self.ended, true)),
            other => panic!("unexpected: {other:?}"),
        }
    }

    fn hear_until(&mut self, is: impl Fn(&Self) -> bool) {
        while !is(self) {
            let (notice, fds) = self.talk.next();
            self.hear(notice, fds);
        }
    }

    fn step(&mut self, number: usize) {
        match number {
            0 => self.talk.ask(self.request.clone(), self.sandbox),
            1 => {
                // Was it asked for before? Nobody knows; it starts once.
                self.talk.ask(self.request.clone(), self.sandbox);
                self.hear_until(|daemon| daemon.running.is_some());
            }
            2 => write(self.running.as_ref().expect("it runs"), "7\n"),
            3 => self.hear_until(|daemon| daemon.exited.is_some()),
            4 => self.hear_until(|daemon| daemon.ended),
            _ => {
                self.talk.forget(self.request.process);
                // Two answers to the same question are of no harm.
                while !matches!(
                    self.talk.spawner.send(&Request::Hello { thorough: false }, &[]),
                    Ok(())
                ) {}
                loop {
                    match self.talk.next().0 {
                        Notice::Hello { .. } => break,
                        Notice::Held(_) => {}
                        other => panic!("unexpected: {other:?}"),
                    }
                }
            }
        }
    }

    fn die(self) -> Self {
        let Self {
            home,
            sandbox,
            request,
            ..
        } = self;
        drop((self.talk, self.running));
        Self::start(home, sandbox, request)
    }
}

pub(super) fn i8_wherever_the_connection_is_cut_the_next_one_learns_the_same() {
    let home = Home::new();
    let probe = home.connect().talk;
    let (_directory, cwd) = directory();
    let sandbox = probe.unconfined(&cwd);
    drop(probe);
    // Cut twice: after each step, and after each later one (or the same).
    for first in 0..STEPS {
        for second in first..STEPS {
            let asked = echo(&cwd, &sandbox);
            let mut daemon = Daemon::start(&home, &sandbox, &asked);
            for step in 0..STEPS {
                daemon.step(step);
                for cut in [first, second] {
                    if cut == step && step + 1 < STEPS {
                        daemon = daemon.die();
                    }
                }
            }
            assert_eq!(daemon.exited.map(code), Some(7), "cut after {first} and {second}");
            let text = daemon.running.as_ref().map(Running::stdout_text);
            assert_eq!(text.as_deref(), Some("up\n7\n"), "cut after {first} and {second}");
        }
    }
    assert!(home.connect().held.is_empty());
}

pub(super) fn i8_what_ended_is_told_until_it_is_forgotten() {
    let home = Home::new();
    let talk = home.connect().talk;
    let (_directory, cwd) = directory();
    let sandbox = talk.unconfined(&cwd);
    let asked = request(&["sh", "-c", "echo run >> runs; exit 3"], &cwd, &sandbox);
    let process = asked.process;
    talk.started(asked.clone(), &sandbox);
    assert_eq!(code(talk.ended(process)), 3);
    let missing = request(&["/nonexistent"], &cwd, &sandbox);
    assert_eq!(talk.fails(missing.clone(), &sandbox), (Step::Exec, libc::ENOENT));
    drop(talk);
    for _ in 0..2 {
        let connected = home.connect();
        assert_eq!(connected.held.len(), 2);
        for (held, fds) in connected.held {
            match held.state {
                HeldState::Started(tree) => {
                    assert_eq!((held.process, tree.exited.map(code)), (process, Some(3)));
                    let end = tree.end.expect("its tree has ended");
                    assert!(end.usage.is_some());
                    assert_eq!(fds.len(), 3);
                }
                HeldState::Failed { step, errno, .. } => {
                    assert_eq!(held.process, missing.process);
                    assert_eq!((step, errno), (Step::Exec, libc::ENOENT));
                }
                HeldState::Starting => panic!("neither started nor failed"),
            }
        }
    }

    // A repeated request is answered with what is known, and after that with what is not.
    let talk = home.connect().talk;
    talk.ask(asked.clone(), &sandbox);
    let (notice, _) = talk.next();
    assert!(
        matches!(notice, Notice::Held(held) if held.process == process),
        "{notice:?}"
    );
    talk.forget(process);
    talk.forget(missing.process);
    for repeated in [asked, missing] {
        talk.ask(repeated, &sandbox);
        let (notice, _) = talk.next();
        assert!(matches!(notice, Notice::Duplicate { .. }), "{notice:?}");
    }
    assert_eq!(fs::read_to_string(cwd.join("runs")).expect("it ran"), "run\n");
    drop(talk);
    assert!(home.connect().held.is_empty());
}

pub(super) fn what_is_forgotten_while_it_lives_is_not_spoken_of_again() {
    let home = Home::new();
    let talk = home.connect().talk;
    let (_directory, cwd) = directory();
    let sandbox = talk.unconfined(&cwd);
    let asked = echo(&cwd, &sandbox);
    let running = talk.started(asked.clone(), &sandbox);
    let init = running.started.init_pid;
    talk.forget(asked.process);
    talk.obeyed();
    drop(talk);
    let Connected { talk, held, .. } = home.connect();
    assert!(held.is_empty());
    // It lives, until the last one who has its stdin lets go.
    assert!(children(talk.pid).contains(&init));
    drop(running);
    until("its end", || !children(talk.pid).contains(&init));
    talk.obeyed();
}

pub(super) fn a_daemon_that_does_not_read_stops_nothing() {
    let home = Home::new();
    let talk = home.connect().talk;
    let (_directory, cwd) = directory();
    let sandbox = talk.unconfined(&cwd);
    const COUNT: usize = 400;
    let asked: Vec<_> = (0..COUNT).map(|_| request(&["true"], &cwd, &sandbox)).collect();
    for request in &asked {
        talk.ask(request.clone(), &sandbox);
    }
    // Far more is to be said than a socket has room for. All are reaped nevertheless.
    until("the reaping of all", || children(talk.pid).is_empty());
    let mut ended = 0;
    while ended < COUNT {
        ended += usize::from(matches!(talk.next().0, Notice::Ended { .. }));
    }
    // The same with one that never reads again, and one after it.
    for _ in 0..10 * COUNT {
        let hello = Request::Hello { thorough: false };
        if talk.spawner.send(&hello, &[]).is_err() {
            break; // not even asking goes on for ever
        }
    }
    let next = home.connect();
    assert_eq!(next.held.len(), COUNT);
    for (held, _) in &next.held {
        next.talk.forget(held.process);
        next.talk.obeyed();
    }
    drop(talk);
    drop(next);
    assert!(home.connect().held.is_empty());
}

pub(super) fn the_newest_connection_is_the_one_that_is_served() {
    let home = Home::new();
    let older = home.connect().talk;
    let (_directory, cwd) = directory();
    let sandbox = older.unconfined(&cwd);
    let process = older.started(echo(&cwd, &sandbox), &sandbox).started.process;
    let (newer, _, running) = home.find(process);
    assert!(receive(&older.spawner).is_none(), "the older one hears the end");
    assert!(older.spawner.send(&Request::Kill { process }, &[]).is_err());
    drop(older);
    write(&running, "5\n");
    assert_eq!(code(newer.ended(process)), 5);
}

pub(super) fn nonsense_and_other_versions_end_the_connection_alone() {
    let home = Home::new();
    let talk = home.connect().talk;
    let (_directory, cwd) = directory();
    let sandbox = talk.unconfined(&cwd);
    let process = talk.started(echo(&cwd, &sandbox), &sandbox).started.process;
    let [low, high] = (provost_sandbox::keeper::wire::VERSION + 1).to_le_bytes();
    drop(talk);
    for packet in [&b"\x05\x00nonsense"[..], &[low, high, 0, 1], b"\x05"] {
        let (spawner, _) = home.link();
        let flags = nix::sys::socket::MsgFlags::MSG_NOSIGNAL;
        nix::sys::socket::send(spawner.as_raw_fd(), packet, flags).expect("the packet is taken");
        assert!(receive(&spawner).is_none(), "it was answered");
    }
    let (talk, _, running) = home.find(process);
    write(&running, "9\n");
    assert_eq!(code(talk.ended(process)), 9);
}
