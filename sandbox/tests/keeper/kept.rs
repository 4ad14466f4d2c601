//! What it keeps for the next daemon: descriptors, how processes ended, sandboxes made ahead.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use provost_sandbox::keeper::exits::{self, ExitRecord};
use provost_sandbox::keeper::wire::{HeldState, Kept, Notice, Request, Stdin};

use crate::home::{self, Home};
use crate::support::{Talk, children, directory, receive, request};
use crate::{echo, expect_text, until};

pub(super) fn released_descriptors_are_closed() {
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
    let (tree, running) = home::running(held, fds);
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

pub(super) fn named_descriptors_are_given_to_the_next_connection() {
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

pub(super) fn i8_how_processes_ended_is_known_after_the_keeper_is_killed() {
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

pub(super) fn what_is_made_ahead_is_used_and_thrown_away_when_nobody_is_there() {
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
