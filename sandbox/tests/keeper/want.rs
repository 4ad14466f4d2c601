//! When memory or descriptors are short.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

use provost_sandbox::keeper::Step;
use provost_sandbox::keeper::wire::{Notice, Request, Stdin};

use crate::home::{self, Connected, Home};
use crate::support::{code, directory, receive, request};
use crate::{echo, write};

pub(super) fn the_keeper_is_the_last_to_go_when_memory_runs_out_and_what_it_starts_is_not() {
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

pub(super) fn want_of_descriptors_ends_no_tree_and_keeps_nobody_out() {
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
        let running = home::running(held, fds).1;
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

pub(super) fn a_process_costs_the_keeper_a_kibibyte_at_most() {
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
