//! The spawner as its host meets it: the protocol, and that nothing it started is lost or left behind.

mod support;

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;

use nix::poll::PollFlags;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use provost_sandbox::compile::PreparedSandbox;
use provost_sandbox::keeper::Step;
use provost_sandbox::keeper::plan::MountStep;
use provost_sandbox::keeper::wire::{Notice, Request, SignalScope, Stdin};
use provost_sandbox::report::Containment;
use provost_sandbox::spawn::{Spawner, SpawnerSource};
use support::{Running, Talk, code, directory, receive, request, signal, wait_for};

/// A daemon that holds stdout, in a session of its own, and a command that stays.
const FAMILY: [&str; 3] = [
    "sh",
    "-c",
    "setsid sh -c 'sleep 1000 & exec sleep 1000' & echo up; exec sleep 1000",
];

/// Calls the test with a sandbox for each containment that can be had here.
fn each_containment(test: impl Fn(&Talk, &PreparedSandbox, &Path)) {
    for containment in [
        Containment::PidNamespace,
        Containment::Cgroup,
        Containment::Subreaper,
    ] {
        let mut talk = Talk::start();
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
            test(&talk, &sandbox, &cwd);
        } else {
            println!("skipped: {containment:?} cannot be had here");
        }
    }
}

fn family(talk: &Talk, sandbox: &PreparedSandbox, cwd: &Path) -> Running {
    let running = talk.started(request(&FAMILY, cwd, sandbox), sandbox);
    wait_for(running.stdout.as_fd(), PollFlags::POLLIN);
    running
}

fn send_raw(spawner: &Spawner, packet: &[u8]) {
    nix::sys::socket::send(
        spawner.as_raw_fd(),
        packet,
        nix::sys::socket::MsgFlags::MSG_NOSIGNAL,
    )
    .expect("the packet is taken");
}

fn a_repeated_id_starts_nothing() {
    let talk = Talk::start();
    let (_directory, cwd) = directory();
    let sandbox = talk.sandbox("unconfined", &cwd, |_| {});
    let once = request(&["sh", "-c", "echo run >> runs; exec cat"], &cwd, &sandbox);
    let mut first = once.clone();
    first.stdin = Stdin::Pipe;
    let mut running = talk.started(first, &sandbox);
    let is_duplicate = |talk: &Talk| {
        talk.ask(once.clone(), &sandbox);
        let (notice, _) = talk.next();
        assert!(
            matches!(notice, Notice::Duplicate { process } if process == once.process),
            "{notice:?}"
        );
    };
    is_duplicate(&talk);
    drop(running.stdin.take());
    assert_eq!(code(talk.ended(once.process)), 0);
    is_duplicate(&talk);
    assert_eq!(fs::read_to_string(cwd.join("runs")).expect("it ran"), "run\n");

    // Also where the first one failed.
    let missing = request(&["/nonexistent"], &cwd, &sandbox);
    assert_eq!(talk.fails(missing.clone(), &sandbox).0, Step::Exec);
    talk.ask(missing, &sandbox);
    assert!(matches!(talk.next().0, Notice::Duplicate { .. }));
}

fn arguments_and_environment_may_be_large() {
    let talk = Talk::start();
    let (_directory, cwd) = directory();
    let sandbox = talk.sandbox("workspace-write", &cwd, |_| {});
    let mut large = request(&["sh", "-c", "echo $#:${#V7}", "sh"], &cwd, &sandbox);
    let (word, value) = (vec![b'a'; 8 * 1024], vec![b'v'; 100 * 1024]);
    large.argv.extend((0..96).map(|_| word.clone()));
    large
        .env
        .extend((0..8).map(|n| [format!("V{n}=").as_bytes(), &value].concat()));
    let (status, text) = talk.output(large.clone(), &sandbox);
    assert_eq!((code(status), text.as_str()), (0, "96:102400\n"));

    // What the kernel finds too large is a failed exec, and the spawner goes on.
    large.process = uuid::Uuid::now_v7();
    large.argv.extend((0..400).map(|_| word.clone()));
    assert_eq!(talk.fails(large, &sandbox), (Step::Exec, libc::E2BIG));
    let (status, _) = talk.output(request(&["true"], &cwd, &sandbox), &sandbox);
    assert_eq!(code(status), 0);
}

fn a_host_that_talks_nonsense_loses_everything() {
    each_containment(|talk, sandbox, cwd| {
        let running = family(talk, sandbox, cwd);
        send_raw(&talk.spawner, b"\x01\x00nonsense");
        assert!(receive(&talk.spawner).is_none(), "the spawner has ended");
        running.wait_until_gone();
    });
}

fn another_version_is_refused() {
    let spawner = Spawner::launch(&SpawnerSource::Auto).expect("a spawner");
    // A hello of another version.
    let [low, high] = (provost_sandbox::keeper::wire::VERSION + 1).to_le_bytes();
    send_raw(&spawner, &[low, high, 0, 1]);
    assert!(receive(&spawner).is_none(), "it was answered");
}

fn a_step_that_fails_comes_back_with_its_number() {
    let talk = Talk::start();
    let (_directory, cwd) = directory();
    let sandbox = talk.sandbox("workspace-write", &cwd, |_| {});
    let ask = || request(&["true"], &cwd, &sandbox);

    let mut nowhere = ask();
    nowhere.cwd = b"/nonexistent".to_vec();
    assert_eq!(
        talk.fails(nowhere, &sandbox),
        (Step::WorkingDirectory, libc::ENOENT)
    );
    let mut unknown_limit = ask();
    Arc::make_mut(&mut unknown_limit.plan).rlimits.push((999, 1));
    assert_eq!(talk.fails(unknown_limit, &sandbox), (Step::Limits, libc::EINVAL));
    let mut broken_filter = ask();
    Arc::make_mut(&mut broken_filter.plan).filter.truncate(1);
    assert_eq!(talk.fails(broken_filter, &sandbox), (Step::Seccomp, libc::EINVAL));
    let mut unknown_flags = ask();
    Arc::make_mut(&mut unknown_flags.plan).landlock_flags = u32::MAX;
    assert_eq!(
        talk.fails(unknown_flags, &sandbox),
        (Step::Landlock, libc::EINVAL)
    );
    let mut impossible_size = ask();
    Arc::make_mut(&mut impossible_size.plan)
        .mounts
        .push(MountStep::Private {
            path: b"/tmp".to_vec(),
            data: b"size=much".to_vec(),
        });
    assert_eq!(
        talk.fails(impossible_size, &sandbox),
        (Step::PrivateDirectory, libc::EINVAL)
    );
    let mut zero_in_the_middle = ask();
    zero_in_the_middle.argv.push(b"a\0b".to_vec());
    assert_eq!(
        talk.fails(zero_in_the_middle, &sandbox),
        (Step::Exec, libc::EINVAL)
    );
    let mut too_many_rulesets = ask();
    too_many_rulesets.rulesets += 1;
    assert_eq!(
        talk.fails(too_many_rulesets, &sandbox),
        (Step::Descriptors, libc::EMFILE)
    );
    let (status, _) = talk.output(ask(), &sandbox);
    assert_eq!(code(status), 0, "the spawner serves on");
}

fn escape_35_what_became_a_link_is_not_mounted() {
    let talk = Talk::start();
    let (_directory, cwd) = directory();
    let (_elsewhere, secrets) = directory();
    fs::write(secrets.join("config"), "secret").expect("a secret");
    std::os::unix::fs::symlink(&secrets, cwd.join(".git")).expect("a link");
    let sandbox = talk.sandbox("workspace-write", &cwd, |_| {});
    // As if `.git` had been a directory when this was compiled.
    let path = cwd.join(".git/config").into_os_string().into_encoded_bytes();
    let steps = [
        (MountStep::ReadOnly { path: path.clone() }, Step::Protect),
        (MountStep::Pin { path: path.clone() }, Step::Protect),
        (MountStep::Keep { path: path.clone() }, Step::KeepMount),
        (
            MountStep::Mask {
                path,
                directory: false,
            },
            Step::Mask,
        ),
    ];
    for (mount, step) in steps {
        let mut swapped = request(&["true"], &cwd, &sandbox);
        Arc::make_mut(&mut swapped.plan).mounts.push(mount);
        assert_eq!(talk.fails(swapped, &sandbox), (step, libc::ELOOP));
    }
}

fn escape_44_hooks_that_appear_later_are_protected_from_the_next_start_on() {
    let talk = Talk::start();
    let (_directory, cwd) = directory();
    let sandbox = talk.sandbox("workspace-write", &cwd, |_| {});
    if sandbox.report.containment != Containment::PidNamespace {
        println!("skipped: no mount namespace can be had here");
        return;
    }
    assert!(sandbox.is_current());
    fs::create_dir_all(cwd.join(".git/hooks")).expect("hooks");
    assert!(!sandbox.is_current(), "the mounts are those of before");
    let sandbox = talk.sandbox("workspace-write", &cwd, |_| {});
    let ask = ["sh", "-c", "test -w .git && ! test -w .git/hooks"];
    let (status, _) = talk.output(request(&ask, &cwd, &sandbox), &sandbox);
    assert_eq!(code(status), 0);

    // A link that leads to the workspace would make all of it read-only.
    fs::remove_dir(cwd.join(".git/hooks")).expect("the hooks");
    std::os::unix::fs::symlink("..", cwd.join(".git/hooks")).expect("a link");
    assert!(!sandbox.is_current());
    let sandbox = talk.sandbox("workspace-write", &cwd, |_| {});
    let (status, _) = talk.output(request(&["test", "-w", "."], &cwd, &sandbox), &sandbox);
    assert_eq!(code(status), 0, "a planted link took the workspace away");
}

fn i6_the_end_of_an_init_is_the_end_of_its_tree() {
    each_containment(|talk, sandbox, cwd| {
        for deadly in [Signal::SIGKILL, Signal::SIGSTOP] {
            let running = family(talk, sandbox, cwd);
            kill(Pid::from_raw(running.started.init_pid), deadly).expect("the init lives");
            assert_eq!(signal(talk.ended(running.started.process)), libc::SIGKILL);
            assert!(running.is_gone(), "a member outlived the word that it was gone");
        }
        let (status, _) = talk.output(request(&["true"], cwd, sandbox), sandbox);
        assert_eq!(code(status), 0, "the spawner serves on");
    });
}

fn i6_a_killed_tree_is_gone_when_that_is_said() {
    each_containment(|talk, sandbox, cwd| {
        let running = family(talk, sandbox, cwd);
        let process = running.started.process;
        let stop = Request::Signal {
            process,
            signal: libc::SIGSTOP,
            scope: SignalScope::Tree,
        };
        talk.spawner.send(&stop, &[]).expect("the signal is taken");
        let request = Request::Kill { process };
        talk.spawner.send(&request, &[]).expect("the kill is taken");
        assert_eq!(signal(talk.ended(process)), libc::SIGKILL);
        assert!(running.is_gone(), "a member outlived the word that it was gone");
    });
}

fn escape_61_nothing_outlives_the_spawner() {
    each_containment(|talk, sandbox, cwd| {
        let running = family(talk, sandbox, cwd);
        kill(Pid::from_raw(talk.pid), Signal::SIGKILL).expect("the spawner lives");
        running.wait_until_gone();
    });
}

fn escape_61_nothing_outlives_the_host() {
    each_containment(|talk, sandbox, cwd| {
        let running = family(talk, sandbox, cwd);
        talk.spawner.leave();
        running.wait_until_gone();
    });
}

fn a_spawner_without_room_refuses_in_words_and_serves_on() {
    let talk = Talk::start();
    let (_directory, cwd) = directory();
    let sandbox = talk.sandbox("workspace-write", &cwd, |_| {});
    limit_descriptors(talk.pid, ROOM);
    let mut running = Vec::new();
    let (step, errno) = loop {
        assert!(running.len() < 64, "the limit does not hold");
        talk.ask(request(&["sleep", "1000"], &cwd, &sandbox), &sandbox);
        match talk.next() {
            (Notice::Started(started), fds) => running.push((started.process, fds)),
            (Notice::Failed { step, errno, .. }, _) => break (step, errno),
            (other, _) => panic!("unexpected: {other:?}"),
        }
    };
    assert_eq!((step, errno), (Step::Descriptors, libc::EMFILE));
    // Not one more, when what it keeps back has the lowest numbers. A large message takes a descriptor by itself.
    talk.spawner
        .send(&Request::Hello { thorough: false }, &[])
        .expect("hello is taken");
    assert!(matches!(talk.next().0, Notice::Hello { .. }));
    limit_descriptors(talk.pid, lowest_free(talk.pid));
    let mut large = request(&["true"], &cwd, &sandbox);
    large.argv.push(vec![b'a'; 100 * 1024]);
    assert_eq!(talk.fails(large, &sandbox), (Step::Descriptors, libc::EMFILE));
    limit_descriptors(talk.pid, ROOM);

    assert!(running.len() >= 4, "only {} fit", running.len());
    for (process, _) in running.drain(..4) {
        talk.spawner
            .send(&Request::Kill { process }, &[])
            .expect("the kill is taken");
        assert_eq!(signal(talk.ended(process)), libc::SIGKILL);
    }
    let (status, _) = talk.output(request(&["true"], &cwd, &sandbox), &sandbox);
    assert_eq!(code(status), 0, "there is room again");
}

/// The descriptors that the spawner may have in that test.
const ROOM: u64 = 64;

/// The number that the process's next descriptor would have.
fn lowest_free(pid: i32) -> u64 {
    let taken: std::collections::BTreeSet<u64> = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("its descriptors")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    (0..).find(|number| !taken.contains(number)).expect("a number")
}

fn limit_descriptors(pid: i32, count: u64) {
    let limit = libc::rlimit64 {
        rlim_cur: count,
        rlim_max: ROOM,
    };
    // SAFETY: the limit lives through the call, which writes nothing back.
    // WHY: nix limits only its own process.
    let result =
        unsafe { libc::prlimit64(pid, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut()) };
    assert_eq!(result, 0, "the limit of our own spawner");
}

fn a_command_gets_its_hosts_own_limit_on_descriptors() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    let ours = soft.min(777);
    setrlimit(Resource::RLIMIT_NOFILE, ours, hard).expect("a lower limit");
    let talk = Talk::start();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("the limit of before");
    let (_directory, cwd) = directory();
    let sandbox = talk.sandbox("unconfined", &cwd, |_| {});
    let (_, text) = talk.output(request(&["sh", "-c", "ulimit -Sn"], &cwd, &sandbox), &sandbox);
    assert_eq!(text.trim(), ours.to_string());
}

fn a_start_that_hangs_can_be_killed() {
    let (_directory, cwd) = directory();
    // To compile a policy is to look at what is to be hung.
    let sandboxes = {
        let talk = Talk::start();
        ["workspace-write", "unconfined"].map(|preset| talk.sandbox(preset, &cwd, |_| {}))
    };
    let Some(_hanging) = HangingDirectory::mount() else {
        println!("skipped: no FUSE, or not root");
        return;
    };
    let talk = Talk::start();
    for sandbox in sandboxes {
        let mut hangs = request(&["true"], &cwd, &sandbox);
        hangs.cwd = HangingDirectory::PATH.to_bytes().to_vec();
        let process = hangs.process;
        talk.ask(hangs, &sandbox);
        talk.spawner
            .send(&Request::Kill { process }, &[])
            .expect("the kill is taken");
        let (notice, _) = talk.next();
        assert!(
            matches!(
                notice,
                Notice::Failed {
                    step: Step::InitDied,
                    ..
                }
            ),
            "{notice:?}"
        );
    }
}

/// A file system whose server never answers, in a mount namespace of this process's own. Dropping it ends the waiting.
struct HangingDirectory(#[allow(dead_code)] fs::File);

impl HangingDirectory {
    /// A directory that nobody needs meanwhile.
    const PATH: &std::ffi::CStr = c"/mnt";

    fn mount() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            return None;
        }
        let server = fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .ok()?;
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).ok()?;
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0\0", server.as_raw_fd());
        let mount = |kind: &std::ffi::CStr, target: &std::ffi::CStr, flags, data: &str| {
            // SAFETY: every string ends with NUL and lives through the call.
            // WHY: this crate does without nix's feature for mounting.
            let result = unsafe {
                libc::mount(
                    kind.as_ptr(),
                    target.as_ptr(),
                    kind.as_ptr(),
                    flags,
                    data.as_ptr().cast(),
                )
            };
            (result == 0).then_some(())
        };
        mount(c"none", c"/", libc::MS_REC | libc::MS_PRIVATE, "\0")?;
        mount(c"fuse", Self::PATH, 0, &data)?;
        Some(Self(server))
    }
}

macro_rules! tests {
    ($($name:ident),+ $(,)?) => {
        fn main() {
            support::run(&[$((stringify!($name), $name)),+]);
        }
    };
}

tests!(
    a_repeated_id_starts_nothing,
    arguments_and_environment_may_be_large,
    a_host_that_talks_nonsense_loses_everything,
    another_version_is_refused,
    a_step_that_fails_comes_back_with_its_number,
    escape_35_what_became_a_link_is_not_mounted,
    escape_44_hooks_that_appear_later_are_protected_from_the_next_start_on,
    i6_the_end_of_an_init_is_the_end_of_its_tree,
    i6_a_killed_tree_is_gone_when_that_is_said,
    escape_61_nothing_outlives_the_spawner,
    escape_61_nothing_outlives_the_host,
    a_spawner_without_room_refuses_in_words_and_serves_on,
    a_command_gets_its_hosts_own_limit_on_descriptors,
    a_start_that_hangs_can_be_killed,
);
