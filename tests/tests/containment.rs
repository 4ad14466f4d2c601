//! What holds a tree together, also where that is weaker than a PID namespace and where somebody kills what should
//! hold it. As root `unconfined` means a cgroup, for an ordinary user only an init that is a subreaper.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use provost_tests::weaker::{no_user_namespaces, run_within};
use provost_tests::{Live, World, both_users, needs, program, require};

const POLICIES: [&str; 2] = ["workspace-write", "unconfined"];

/// Opens the witness in a session of its own and in the command itself, then goes on with `then`.
fn family(then: &str) -> String {
    format!("exec 3>\"$1\"; echo alive >&3; setsid sleep 1000 & echo ready; {then}")
}

fn start(world: &World, policy: &str, script: &str, witness: &str) -> Live {
    let words = ["sh", "-c", script, "sh", witness];
    world.run(words).with(["--policy", policy]).start()
}

/// The spawner of a running `provost`.
fn spawner(live: &Live) -> Pid {
    let tasks = PathBuf::from(format!("/proc/{}/task", live.pid()));
    let children = fs::read_dir(tasks)
        .expect("its threads")
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok())
        .collect::<String>();
    let pid = children.split_whitespace().next().expect("a spawner");
    Pid::from_raw(pid.parse().expect("a pid"))
}

/// What a process may write to of its memory, but for what it shares.
fn memory(pid: Pid) -> Vec<u8> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("its mappings");
    let file = fs::File::open(format!("/proc/{pid}/mem")).expect("its memory");
    let mut all = Vec::new();
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (range, rights) = (words.next().expect("a range"), words.next().expect("rights"));
        if !rights.starts_with("rw-p") {
            continue;
        }
        let (from, to) = range.split_once('-').expect("from and to");
        let [from, to] = [from, to].map(|end| u64::from_str_radix(end, 16).expect("an address"));
        let mut bytes = vec![0; usize::try_from(to - from).expect("a size")];
        file.read_exact_at(&mut bytes, from).expect("it is mapped");
        all.extend(bytes);
    }
    all
}

fn a_spawner_and_its_init_know_nothing_of_what_provost_was_told(world: &World) {
    require!(nix::unistd::geteuid().is_root(), "root, to look into processes");
    // What an allocator writes into memory that was freed does not hide them.
    let (front, back) = ("x".repeat(300), "y".repeat(300));
    let (variable, word) = ("in-no-environment-of-7261", "in-no-words-of-9143");
    for policy in POLICIES {
        let label = format!("note={front}{word}{back}");
        let told = format!("{front}{variable}{back}");
        let run = world.shell("echo ready; exec sleep 1000").env("TOLD", &told);
        let mut live = run.with(["--policy", policy, "--label", &label]).start();
        live.wait_for("ready");
        let spawner = spawner(&live);
        let inits = fs::read_to_string(format!("/proc/{spawner}/task/{spawner}/children"));
        let inits = inits.expect("its children");
        let inits = inits
            .split_ascii_whitespace()
            .map(|pid| pid.parse().expect("a pid"));
        let inits: Vec<Pid> = inits.map(Pid::from_raw).collect();
        assert!(!inits.is_empty(), "nothing was looked at");
        let knows = |pid: Pid, what: &str| {
            let memory = memory(pid);
            memory.windows(what.len()).any(|bytes| bytes == what.as_bytes())
        };
        for secret in [variable, word] {
            assert!(knows(live.pid(), secret), "it would not be found");
            if secret == variable && policy == "unconfined" {
                continue; // its command gets all variables
            }
            for pid in inits.iter().chain([&spawner]) {
                assert!(!knows(*pid, secret), "{policy}: {secret} in {pid}");
            }
        }
        let line = fs::read(format!("/proc/{spawner}/cmdline")).expect("its words");
        assert!(line.starts_with(b"provost-spawner\0"), "{}", line.escape_ascii());
        live.signal(Signal::SIGKILL);
        drop(live);
    }
}

fn escape_61_nothing_outlives_a_killed_provost_in_any_containment(world: &World) {
    for policy in POLICIES {
        let mut witness = world.witness();
        let mut live = start(world, policy, &family("exec sleep 1000"), &witness.path());
        live.wait_for("ready");
        assert!(witness.was_alive());
        live.signal(Signal::SIGKILL);
        witness.wait_until_gone();
        drop(live);
        fs::remove_file(witness.path()).expect("the FIFO");
    }
}

fn i1_i6_a_killed_spawner_takes_its_trees_along_and_each_has_its_record(world: &World) {
    for policy in POLICIES {
        let mut witness = world.witness();
        let mut live = start(world, policy, &family("exec sleep 1000"), &witness.path());
        live.wait_for("ready");
        assert!(witness.was_alive());
        kill(spawner(&live), Signal::SIGKILL).expect("the spawner lives");
        let done = live.finish();
        witness.wait_until_gone();
        let record = done.record();
        match done.outcome() {
            "signaled" => assert_eq!(record["signal"], "SIGKILL", "\n{done}"),
            outcome => assert_eq!(outcome, "lost", "\n{done}"),
        }
        assert_eq!(record["succeeded"], false, "\n{done}");
        let reason = record["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("spawner"), "the record says why\n{done}");
        fs::remove_file(witness.path()).expect("the FIFO");
    }
}

fn i6_a_command_that_kills_or_stops_its_init_ends_with_everything(world: &World) {
    for signal in ["KILL", "STOP"] {
        let mut witness = world.witness();
        let script = family(&format!("kill -{signal} $PPID; exec sleep 1000"));
        let done = start(world, "unconfined", &script, &witness.path()).finish();
        assert!(witness.was_alive(), "\n{done}");
        assert!(witness.is_gone(), "a member outlived the record\n{done}");
        if done.outcome() == "lost" {
            // It was killed before it could say that the command had started.
            assert_eq!(done.code, Some(125), "\n{done}");
        } else {
            assert_eq!(done.outcome(), "signaled", "\n{done}");
            assert_eq!(done.record()["signal"], "SIGKILL", "\n{done}");
            assert!(done.record()["tree"]["killed"].as_u64() >= Some(1), "\n{done}");
        }
        fs::remove_file(witness.path()).expect("the FIFO");
    }
}

fn i6_a_stopped_tree_that_ignores_signals_is_killed(world: &World) {
    for policy in POLICIES {
        let mut witness = world.witness();
        let script = format!(
            "trap '' TERM; {}",
            family("kill -STOP $$; kill -STOP $$; sleep 1000")
        );
        let words = ["sh", "-c", &script, "sh", &witness.path()];
        let run = world.run(words).with(["--policy", policy]);
        let done = run.with(["--timeout", "400ms", "--grace", "200ms"]).finish();
        assert!(witness.was_alive(), "\n{done}");
        assert!(witness.is_gone(), "a member outlived the record\n{done}");
        assert_eq!(done.code, Some(124), "\n{done}");
        assert_eq!(done.record()["signal"], "SIGKILL", "\n{done}");
        fs::remove_file(witness.path()).expect("the FIFO");
    }
}

fn i6_a_daemon_of_an_unconfined_command_does_not_outlive_the_record(world: &World) {
    let mut witness = world.witness();
    let words = [program("daemonise"), witness.path(), "close".into()];
    let done = world.run(words).with(["--policy", "unconfined"]).finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    assert!(witness.was_alive() && witness.is_gone(), "\n{done}");
    assert!(done.record()["tree"]["killed"].as_u64() >= Some(1), "\n{done}");
    assert_ne!(
        done.record()["sandbox"]["containment"],
        "pid_namespace",
        "\n{done}"
    );
}

fn escape_57_an_unconfined_fork_bomb_ends_under_its_limit(world: &World) {
    let witness = world.witness();
    let words = [program("forkbomb"), witness.path()];
    let run = world
        .run(words)
        .with(["--policy", "unconfined", "--tasks", "100"]);
    let done = run.finish();
    if world.is_root() {
        assert_eq!(done.code, Some(0), "\n{done}");
        assert!(
            done.text().contains("stopped by EAGAIN"),
            "the limit did not hold\n{done}"
        );
        assert!(witness.is_gone(), "a part of it outlived the record\n{done}");
    } else {
        // Nothing holds such a limit here, and that is said (I5).
        assert_eq!(done.code, Some(125), "\n{done}");
        assert!(done.stderr.contains("limit tasks"), "\n{done}");
    }
}

fn i6_a_confined_command_without_namespaces_cannot_touch_its_init(world: &World) {
    if world.is_root() {
        return; // who needs nothing for a PID namespace
    }
    require!(
        needs::succeeds(
            world,
            "unshare",
            &[
                "--user",
                "--map-root-user",
                "setpriv",
                "--bounding-set=-all",
                "true"
            ]
        ),
        "a user namespace, or setpriv"
    );
    require!(needs::landlock_abi() >= 6, "Landlock with scopes for signals");
    let mut witness = world.witness();
    let script = family("kill -KILL $PPID || kill -STOP $PPID || echo untouched; exit 4");
    let words = no_user_namespaces();
    let done = run_within(world, &words, &["--best-effort"], &script, &[&witness.path()]);
    assert_eq!(done.record()["sandbox"]["containment"], "subreaper", "\n{done}");
    assert!(done.text().contains("untouched"), "\n{done}");
    assert_eq!(done.code, Some(4), "\n{done}");
    assert!(witness.was_alive() && witness.is_gone(), "\n{done}");
    assert!(done.record()["tree"]["killed"].as_u64() >= Some(1), "\n{done}");
}

both_users!(
    a_spawner_and_its_init_know_nothing_of_what_provost_was_told,
    escape_61_nothing_outlives_a_killed_provost_in_any_containment,
    i1_i6_a_killed_spawner_takes_its_trees_along_and_each_has_its_record,
    i6_a_command_that_kills_or_stops_its_init_ends_with_everything,
    i6_a_stopped_tree_that_ignores_signals_is_killed,
    i6_a_daemon_of_an_unconfined_command_does_not_outlive_the_record,
    escape_57_an_unconfined_fork_bomb_ends_under_its_limit,
    i6_a_confined_command_without_namespaces_cannot_touch_its_init,
);
