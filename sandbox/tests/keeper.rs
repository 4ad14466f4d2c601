//! The keeper as daemons meet it: they come and go, and what it keeps is the same for each.

#[path = "support/kept.rs"]
mod kept;
mod support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use kept::{Connected, Home};
use nix::poll::PollFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::Pid;
use provost_sandbox::compile::PreparedSandbox;
use provost_sandbox::keeper::Step;
use provost_sandbox::keeper::exits::{self, ExitRecord};
use provost_sandbox::keeper::wire::{HeldState, Kept, Notice, Request, SpawnRequest, Stdin};
use provost_sandbox::report::Containment;
use provost_sandbox::spawn::{LaunchError, Spawner, SpawnerSource};
use support::{DEADLINE, Running, Talk, children, code, directory, receive, request, signal, wait_for};

/// Says what it reads until it reads a number, with which it exits.
const ECHO: &str =
    "echo up; while read word; do echo $word; case $word in [0-9]*) exit $word;; esac; done";

fn echo(cwd: &Path, sandbox: &PreparedSandbox) -> SpawnRequest {
    let mut request = request(&["sh", "-c", ECHO], cwd, sandbox);
    request.stdin = Stdin::Pipe;
    request
}

fn write(running: &Running, text: &str) {
    let mut stdin = running.stdin.as_ref().expect("its stdin");
    stdin.write_all(text.as_bytes()).expect("room in the pipe");
}

/// The next bytes of its stdout, as many as this text has.
fn expect_text(running: &Running, text: &str) {
    let mut read = vec![0; text.len()];
    for byte in &mut read {
        wait_for(running.stdout.as_fd(), PollFlags::POLLIN);
        (&running.stdout)
            .read_exact(std::slice::from_mut(byte))
            .expect("a byte");
    }
    assert_eq!(String::from_utf8_lossy(&read), text);
}

/// Waits for something that nothing announces.
fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is() {
        assert!(Instant::now() < deadline, "it never came: {what}");
        std::thread::yield_now();
    }
}

fn i8_a_process_outlives_its_daemon_and_its_descriptors_go_on() {
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
                let (tree, running) = kept::running(held, fds);
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

fn i8_wherever_the_connection_is_cut_the_next_one_learns_the_same() {
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

fn i8_what_ended_is_told_until_it_is_forgotten() {
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

fn what_is_forgotten_while_it_lives_is_not_spoken_of_again() {
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

fn a_daemon_that_does_not_read_stops_nothing() {
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

fn the_newest_connection_is_the_one_that_is_served() {
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

fn i12_nobody_else_may_connect() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: not root");
        return;
    }
    let home = Home::new();
    let talk = home.connect().talk;
    let mode = |path: &Path| fs::metadata(path).expect("it").permissions().mode() & 0o7777;
    assert_eq!(mode(&home.socket()), 0o600);
    // As if somebody had opened the door.
    fs::set_permissions(home.directory.path(), PermissionsExt::from_mode(0o755)).expect("ours");
    fs::set_permissions(home.socket(), PermissionsExt::from_mode(0o666)).expect("ours");
    let path = home.socket();
    let other = std::thread::spawn(move || {
        // SAFETY: numbers only. WHY: libc's own wrapper changes every thread.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, 1001, 1001, 1001) };
        assert_eq!(result, 0);
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("a socket");
        connect(socket.as_raw_fd(), &UnixAddr::new(&path).expect("an address"))
            .expect("the door is open");
        let mut byte = [0];
        (&File::from(socket)).read(&mut byte).expect("the end, no error")
    });
    assert_eq!(other.join().expect("the other user"), 0, "a word was said to it");
    talk.obeyed();
}

fn a_place_that_is_not_ours_alone_is_refused() {
    let home = Home::new();
    let launch = |path: &Path| Spawner::connect_or_launch(path, &SpawnerSource::Auto, home.idle);
    let chmod =
        |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("ours");
    chmod(home.directory.path(), 0o770);
    assert!(matches!(launch(&home.socket()), Err(LaunchError::NotOurs { .. })));
    chmod(home.directory.path(), 0o700);
    fs::write(home.socket(), "").expect("a file");
    assert!(matches!(launch(&home.socket()), Err(LaunchError::NotOurs { .. })));
    fs::remove_file(home.socket()).expect("ours");
    assert!(matches!(
        launch(&home.directory.path().join("none/keeper.sock")),
        Err(LaunchError::Socket { .. })
    ));
    if nix::unistd::geteuid().is_root() {
        let other = Some(nix::unistd::Uid::from_raw(1001));
        nix::unistd::chown(home.directory.path(), other, None).expect("root may");
        assert!(matches!(launch(&home.socket()), Err(LaunchError::NotOurs { .. })));
    }
}

fn a_dead_socket_is_replaced_and_a_umask_changes_nothing() {
    let home = Home::new();
    let first = home.connect();
    kill(Pid::from_raw(first.talk.pid), Signal::SIGKILL).expect("it lives");
    assert!(receive(&first.talk.spawner).is_none());
    let umask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o777));
    let second = home.connect();
    nix::sys::stat::umask(umask);
    assert!(!second.was_there);
    assert_ne!(second.talk.pid, first.talk.pid);
    let mode = fs::metadata(home.socket())
        .expect("the socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert!(home.connect().was_there);
}

fn a_keeper_that_nobody_needs_ends() {
    let mut home = Home::new();
    home.idle = Duration::from_millis(50);
    let talk = home.connect().talk;
    let pid = talk.pid;
    let pidfd = pidfd(pid);
    let (_directory, cwd) = directory();
    let sandbox = talk.unconfined(&cwd);
    let asked = request(&["true"], &cwd, &sandbox);
    let process = asked.process;
    drop(talk.started(asked, &sandbox));
    drop(talk);
    // As long as nobody knows how that ended, it stays.
    let mut waits = [nix::poll::PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    assert_eq!(nix::poll::poll(&mut waits, 500u16), Ok(0), "it ended");
    let (talk, ..) = home.find(process);
    assert_eq!(talk.pid, pid);
    talk.forget(process);
    talk.obeyed();
    drop(talk);
    wait_for(pidfd.as_fd(), PollFlags::POLLIN);
    let next = home.connect();
    assert!(!next.was_there && next.held.is_empty());
}

/// A descriptor that is readable when the process has ended.
fn pidfd(pid: i32) -> std::os::fd::OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: numbers only; the descriptor is new and nobody else knows it. WHY: nix has no call for it.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        assert!(fd >= 0, "the process lives");
        std::os::fd::OwnedFd::from_raw_fd(fd as i32)
    }
}

fn daemons_that_meet_a_keeper_while_it_ends_start_another() {
    let mut home = Home::new();
    home.idle = Duration::ZERO;
    for _ in 0..100 {
        // It may end as soon as nobody is connected, so at any point of the next connection.
        home.connect();
    }
}

fn released_descriptors_are_closed() {
    let home = Home::new();
    let talk = home.connect().talk;
    let (_directory, cwd) = directory();
    let sandbox = talk.unconfined(&cwd);
    let mut asked = request(
        &["sh", "-c", "cat; echo end of input; sleep 1000"],
        &cwd,
        &sandbox,
    );
    asked.stdin = Stdin::Pipe;
    let process = asked.process;
    let mut running = talk.started(asked, &sandbox);
    drop(running.stdin.take());
    let release = |talk: &Talk, what| talk.tell(&Request::Release { process, what });
    release(&talk, Kept::Stdin);
    expect_text(&running, "end of input\n");
    drop((talk, running));

    let mut connected = home.connect();
    let (held, fds) = connected.held.remove(0);
    let (tree, running) = kept::running(held, fds);
    assert!(!tree.started.stdin_pipe && running.stdin.is_none());
    release(&connected.talk, Kept::Output);
    release(&connected.talk, Kept::Listener);
    connected.talk.obeyed();
    drop(connected.talk);
    let (held, fds) = home.connect().held.remove(0);
    let HeldState::Started(tree) = held.state else {
        panic!("{held:?}");
    };
    assert!(!tree.output && !tree.started.listener);
    assert_eq!(fds.len(), 1, "the pidfd alone");
}

fn named_descriptors_are_given_to_the_next_connection() {
    let home = Home::new();
    let talk = home.connect().talk;
    let (_directory, cwd) = directory();
    let file = |name: &str| {
        fs::write(cwd.join(name), name).expect("a file");
        File::open(cwd.join(name)).expect("a file")
    };
    let hold = |talk: &Talk, name: &str, file: Option<&File>| {
        let request = Request::Hold {
            name: name.to_owned(),
        };
        let fds: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
        talk.spawner.send(&request, &fds).expect("the request is taken");
    };
    hold(&talk, "listener", Some(&file("old")));
    hold(&talk, "listener", Some(&file("new")));
    hold(&talk, "feed", Some(&file("feed")));
    hold(&talk, "gone", Some(&file("gone")));
    hold(&talk, "gone", None);
    talk.obeyed();
    drop(talk);
    for _ in 0..2 {
        let connected = home.connect();
        let texts = connected.named.into_iter().map(|(name, fd)| {
            let mut text = String::new();
            let mut file = File::from(fd);
            std::io::Seek::rewind(&mut file).expect("a file");
            file.read_to_string(&mut text).expect("a file");
            (name, text)
        });
        let wanted = [("feed", "feed"), ("listener", "new")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(texts.collect::<Vec<_>>(), wanted);
    }
    let talk = home.connect().talk;
    hold(&talk, &"x".repeat(65), Some(&file("large")));
    let (notice, _) = talk.next();
    assert!(
        matches!(
            notice,
            Notice::NotHeld {
                errno: libc::E2BIG,
                ..
            }
        ),
        "{notice:?}"
    );
    let many: Vec<String> = (0..31).map(|number| format!("many-{number}")).collect();
    many.iter()
        .for_each(|name| hold(&talk, name, Some(&file("many"))));
    let (notice, _) = talk.next();
    assert!(
        matches!(notice, Notice::NotHeld { name, .. } if name == "many-30"),
        "one too many"
    );
    talk.obeyed();
}

fn i8_how_processes_ended_is_known_after_the_keeper_is_killed() {
    let home = Home::new();
    let talk = home.connect().talk;
    let (_directory, cwd) = directory();
    let sandbox = talk.sandbox("workspace-write", &cwd, |_| {});
    let path = home.directory.path().join("exits");
    let file = || {
        File::options()
            .append(true)
            .create(true)
            .open(&path)
            .expect("a file")
    };
    let read = || exits::read(&mut File::open(&path).expect("the file")).expect("it is read");
    let run = |talk: &Talk, words: &[&str]| {
        let asked = request(words, &cwd, &sandbox);
        let process = asked.process;
        drop(talk.started(asked, &sandbox));
        (process, talk.ended(process))
    };
    let give = |talk: &Talk| {
        talk.spawner
            .send(&Request::ExitsFile, &[file().as_fd()])
            .expect("the request is taken");
        talk.obeyed();
    };
    // One that ended before there was a file, one after that, one that was forgotten, and one of which a part lives.
    let before = run(&talk, &["sh", "-c", "exit 4"]);
    give(&talk);
    let after = run(&talk, &["sh", "-c", "kill -9 $$"]);
    let forgotten = run(&talk, &["true"]);
    talk.forget(forgotten.0);
    let lives = request(
        &["sh", "-c", "setsid sleep 1000 > /dev/null 2>&1 & exit 6"],
        &cwd,
        &sandbox,
    );
    talk.started(lives.clone(), &sandbox);
    let Notice::Exited { status: half, .. } = talk.next().0 else {
        panic!("it exited");
    };
    kill(Pid::from_raw(talk.pid), Signal::SIGKILL).expect("it lives");
    assert!(receive(&talk.spawner).is_none());
    let known: Vec<_> = read();
    let status = |process| known.iter().find(|record| record.process == process);
    let is_whole = |(process, status_was): (uuid::Uuid, i32)| {
        let Some(ExitRecord {
            status: Some(raw),
            end: Some(end),
            ..
        }) = status(process)
        else {
            panic!("not known: {known:?}");
        };
        assert_eq!(*raw, status_was);
        assert!(end.usage.is_some());
    };
    [before, after, forgotten].into_iter().for_each(is_whole);
    assert_eq!(
        status(lives.process),
        Some(&ExitRecord {
            process: lives.process,
            status: Some(half),
            end: None
        })
    );

    // The next one empties it when everything in it is known elsewhere.
    let talk = home.connect().talk;
    give(&talk);
    assert_eq!(read().len(), 4, "nobody has taken it in yet");
    let last = run(&talk, &["true"]);
    assert_eq!(read().len(), 5);
    talk.forget(last.0);
    talk.obeyed();
    assert_eq!(fs::metadata(&path).expect("the file").len(), 0);
}

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

fn escape_61_nothing_outlives_the_keeper() {
    each_containment(|_, talk, sandbox, cwd| {
        let running = talk.started(request(&FAMILY, cwd, sandbox), sandbox);
        expect_text(&running, "up\n");
        kill(Pid::from_raw(talk.pid), Signal::SIGKILL).expect("the keeper lives");
        running.wait_until_gone();
    });
}

fn i6_a_tree_killed_by_the_next_daemon_is_gone_when_that_is_said() {
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

fn a_keeper_that_is_stopped_ends_everything() {
    each_containment(|home, talk, sandbox, cwd| {
        let running = talk.started(request(&FAMILY, cwd, sandbox), sandbox);
        expect_text(&running, "up\n");
        talk.spawner.stop().expect("it is told");
        running.wait_until_gone();
        assert!(receive(&talk.spawner).is_none());
        assert!(!home.connect().was_there);
    });
}

fn nonsense_and_other_versions_end_the_connection_alone() {
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

fn what_is_made_ahead_is_used_and_thrown_away_when_nobody_is_there() {
    let home = Home::new();
    let talk = home.connect().talk;
    let (_directory, cwd) = directory();
    let sandbox = talk.sandbox("workspace-write", &cwd, |_| {});
    let init = talk.made_ahead(&cwd, &sandbox);
    let running = talk.started(echo(&cwd, &sandbox), &sandbox);
    assert_ne!(running.started.init_pid, init, "another stdin is another sandbox");
    let plain = talk.started(
        request(&["sh", "-c", "echo up; sleep 1000"], &cwd, &sandbox),
        &sandbox,
    );
    assert_eq!(plain.started.init_pid, init, "it was made for this");
    expect_text(&plain, "up\n");
    talk.tell(&Request::Kill {
        process: plain.started.process,
    });
    talk.ended(plain.started.process);
    // It makes the next one, which goes with the connection; what runs stays.
    until("the next one", || {
        children(talk.pid)
            .iter()
            .any(|init| *init != running.started.init_pid && children(*init).len() == 1)
    });
    let keeper = talk.pid;
    drop(talk);
    until("the end of what was made ahead", || {
        children(keeper) == [running.started.init_pid]
    });
}

fn the_keeper_is_the_last_to_go_when_memory_runs_out_and_what_it_starts_is_not() {
    let home = Home::new();
    let own = fs::read_to_string("/proc/self/oom_score_adj").expect("our own");
    let talk = home.connect().talk;
    let (_directory, cwd) = directory();
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", talk.pid)).expect("the keeper's");
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").expect("our own");
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = u64::from_str_radix(capabilities.expect("a set").trim(), 16).expect("a set");
    let privileged = capabilities >> CAP_SYS_RESOURCE & 1 == 1;
    assert_eq!(score.trim(), if privileged { "-900" } else { own.trim() });
    for preset in ["workspace-write", "unconfined"] {
        let sandbox = talk.sandbox(preset, &cwd, |_| {});
        let asked = request(&["cat", "/proc/self/oom_score_adj"], &cwd, &sandbox);
        let (_, text) = talk.output(asked, &sandbox);
        assert_eq!(text, own);
    }
}

fn want_of_descriptors_ends_no_tree_and_keeps_nobody_out() {
    let home = Home::new();
    let talk = home.connect().talk;
    let (_directory, cwd) = directory();
    let sandbox = talk.unconfined(&cwd);
    let limit = |count: u64| {
        let limit = libc::rlimit64 {
            rlim_cur: count,
            rlim_max: 64,
        };
        // SAFETY: the limit lives through the call, which writes nothing back.
        // WHY: nix limits only its own process.
        let result = unsafe {
            libc::prlimit64(
                talk.pid,
                libc::RLIMIT_NOFILE,
                &raw const limit,
                std::ptr::null_mut(),
            )
        };
        assert_eq!(result, 0, "the limit of our own keeper");
    };
    limit(64);
    let mut started = std::collections::BTreeSet::new();
    let errno = loop {
        assert!(started.len() < 64, "the limit does not hold");
        talk.ask(echo(&cwd, &sandbox), &sandbox);
        match talk.next().0 {
            Notice::Started(one) => assert!(started.insert(one.process)),
            Notice::Failed {
                step, errno, process, ..
            } => {
                assert_eq!(step, Step::Descriptors);
                talk.forget(process);
                break errno;
            }
            other => panic!("unexpected: {other:?}"),
        }
    };
    assert_eq!(errno, libc::EMFILE);
    assert!(started.len() >= 4, "only {} fit", started.len());
    // A repeated request is still answered with what is known, and a descriptor too many is refused in words.
    let mut again = echo(&cwd, &sandbox);
    again.process = *started.first().expect("one");
    talk.ask(again, &sandbox);
    assert!(matches!(talk.next().0, Notice::Held(_)));
    let lowest = (0..).find(|fd| !Path::new(&format!("/proc/{}/fd/{fd}", talk.pid)).exists());
    limit(lowest.expect("a number"));
    let file = File::open("/dev/null").expect("it");
    let hold = Request::Hold {
        name: "one".to_owned(),
    };
    talk.spawner
        .send(&hold, &[file.as_fd()])
        .expect("the request is taken");
    let (notice, _) = talk.next();
    assert!(
        matches!(
            notice,
            Notice::NotHeld {
                errno: libc::EMFILE,
                ..
            }
        ),
        "{notice:?}"
    );
    drop(talk);
    let Connected { talk, held, .. } = home.connect();
    let processes: std::collections::BTreeSet<_> = held.iter().map(|(held, _)| held.process).collect();
    assert_eq!(processes, started);
    for (held, fds) in held {
        let running = kept::running(held, fds).1;
        write(&running, "3\n");
        assert_eq!(code(talk.ended(held.process)), 3);
        talk.forget(held.process);
        talk.obeyed();
    }
}

/// What a process's own memory comes to, in bytes, with what it shares with inits, which are its forks.
fn own_bytes(pid: i32) -> i64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("it lives");
    let line = text.lines().find(|line| line.starts_with("Anonymous:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<i64>().ok());
    kib.expect("a number") * 1024
}

fn a_process_costs_the_keeper_a_kibibyte_at_most() {
    let home = Home::new();
    let talk = home.connect().talk;
    let (_directory, cwd) = directory();
    let sandbox = talk.unconfined(&cwd);
    let run = |count: usize| {
        for _ in 0..count {
            let mut asked = request(&["sleep", "1000"], &cwd, &sandbox);
            asked.stdin = Stdin::Pipe;
            talk.started(asked, &sandbox);
        }
    };
    // What the first ones need is needed once: pages that were never written before.
    run(24);
    let before = own_bytes(talk.pid);
    const COUNT: usize = 1000;
    run(COUNT);
    let each = (own_bytes(talk.pid) - before) / COUNT as i64;
    println!("{each} bytes for each live process");
    assert!(each <= 1024, "{each} bytes for each");
    talk.spawner.stop().expect("it is told");
    assert!(receive(&talk.spawner).is_none());
}

macro_rules! tests {
    ($($name:ident),+ $(,)?) => {
        fn main() {
            support::run(&[$((stringify!($name), $name)),+]);
        }
    };
}

tests!(
    i8_a_process_outlives_its_daemon_and_its_descriptors_go_on,
    i8_wherever_the_connection_is_cut_the_next_one_learns_the_same,
    i8_what_ended_is_told_until_it_is_forgotten,
    what_is_forgotten_while_it_lives_is_not_spoken_of_again,
    a_daemon_that_does_not_read_stops_nothing,
    the_newest_connection_is_the_one_that_is_served,
    i12_nobody_else_may_connect,
    a_place_that_is_not_ours_alone_is_refused,
    a_dead_socket_is_replaced_and_a_umask_changes_nothing,
    a_keeper_that_nobody_needs_ends,
    daemons_that_meet_a_keeper_while_it_ends_start_another,
    released_descriptors_are_closed,
    named_descriptors_are_given_to_the_next_connection,
    i8_how_processes_ended_is_known_after_the_keeper_is_killed,
    escape_61_nothing_outlives_the_keeper,
    i6_a_tree_killed_by_the_next_daemon_is_gone_when_that_is_said,
    a_keeper_that_is_stopped_ends_everything,
    nonsense_and_other_versions_end_the_connection_alone,
    what_is_made_ahead_is_used_and_thrown_away_when_nobody_is_there,
    the_keeper_is_the_last_to_go_when_memory_runs_out_and_what_it_starts_is_not,
    want_of_descriptors_ends_no_tree_and_keeps_nobody_out,
    a_process_costs_the_keeper_a_kibibyte_at_most,
);
