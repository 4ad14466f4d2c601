//! Processes outside stay untouched; processes inside end when they should.

use std::time::Duration;

use nix::sys::signal::Signal;
use provost_tests::host::Outsider;
use provost_tests::{World, both_users, filesystem, needs, program, require, syscall};

/// Attempts on a process outside: it must not even be in sight.
fn out_of_sight(world: &World, attempts: &[&str]) {
    require!(needs::pid_namespaces(world), "a PID namespace for this user");
    let mut outsider = Outsider::start(world, "unseen");
    for attempt in attempts {
        let done = world.escape(&[attempt, &outsider.pid()]).invisible();
        assert_eq!(done.result(), "ESRCH", "{attempt}\n{done}");
        outsider.assert_untouched();
    }
}

fn escape_46_signals_reach_nobody_outside(world: &World) {
    out_of_sight(
        world,
        &["kill", "tgkill", "sigqueue", "pidfd-signal", "sigio-owner"],
    );
}

fn escape_46_a_signal_to_everyone_reaches_only_the_tree(world: &World) {
    require!(needs::pid_namespaces(world), "a PID namespace for this user");
    let mut outsider = Outsider::start(world, "unseen");
    let namespace = std::fs::read_link("/proc/self/ns/pid").expect("this PID namespace");
    let done = world
        .escape(&["kill-everyone", &namespace.display().to_string()])
        .finish();
    assert!(!done.text().contains("not tried"), "no PID namespace\n{done}");
    outsider.assert_untouched();
}

fn escape_47_nobody_outside_can_be_traced_or_read(world: &World) {
    out_of_sight(world, &["ptrace", "vm-read", "vm-write", "pidfd-getfd"]);
    world.escape(&["pidfd-getfd-own"]).denied(&syscall("pidfd_getfd"));
}

fn escape_47_the_init_cannot_be_traced_read_or_ended(world: &World) {
    require!(needs::pid_namespaces(world), "a PID namespace for this user");
    for attempt in ["ptrace", "vm-read", "vm-write", "prlimit"] {
        world.escape(&[attempt, "1"]).refused();
    }
    for file in ["mem", "environ", "root/etc/passwd"] {
        world.escape(&["read", &format!("/proc/1/{file}")]).refused();
    }
    // A signal to it is either refused or without effect: the command lives to tell.
    let done = world.escape(&["kill", "1"]).finish();
    assert!(!done.result().is_empty(), "\n{done}");
    assert_eq!(done.outcome(), "exited", "\n{done}");
}

fn escape_48_limits_and_priorities_of_others_stay(world: &World) {
    out_of_sight(
        world,
        &["prlimit", "priority", "affinity", "scheduler", "io-priority"],
    );
}

fn escape_49_the_choice_of_the_memory_killer_stays(world: &World) {
    world.escape(&["oom-score"]).denied(&filesystem());
}

fn escape_36_and_37_other_processes_are_not_in_proc(world: &World) {
    require!(needs::pid_namespaces(world), "a PID namespace for this user");
    let mut outsider = Outsider::start(world, "unseen-word");
    for file in ["environ", "cmdline", "mem", "root/etc/passwd", "cwd/file", "fd/0"] {
        world
            .escape(&["read", &format!("/proc/{}/{file}", outsider.pid())])
            .invisible();
    }
    let reversed: String = "unseen-word".chars().rev().collect();
    world.escape(&["environment", &reversed]).refused();
    outsider.assert_untouched();
}

fn escape_50_i6_a_daemon_does_not_outlive_the_record(world: &World) {
    for mode in ["close", "hold"] {
        let mut witness = world.witness();
        let done = world.run([&program("daemonise"), &witness.path(), mode]).finish();
        assert_eq!(done.code, Some(0), "\n{done}");
        assert!(done.text().contains("leader done"), "\n{done}");
        assert!(witness.was_alive(), "the daemon never lived\n{done}");
        assert!(witness.is_gone(), "the daemon outlived the record\n{done}");
        assert!(done.record()["tree"]["killed"].as_u64() >= Some(1), "\n{done}");
        std::fs::remove_file(witness.path()).expect("the FIFO");
    }
}

fn i6_a_stopped_descendant_does_not_outlive_the_record(world: &World) {
    let mut witness = world.witness();
    let script = "exec 3>\"$1\"; echo alive >&3; sh -c 'kill -STOP $$; exit' & exit 0";
    let done = world.run(["sh", "-c", script, "sh", &witness.path()]).finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    assert!(
        witness.was_alive() && witness.is_gone(),
        "a stopped process outlived the record\n{done}"
    );
}

fn escape_57_i6_a_fork_bomb_ends_under_its_limit(world: &World) {
    let witness = world.witness();
    let done = world
        .run([program("forkbomb"), witness.path()])
        .with(["--tasks", "100"])
        .finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    let text = done.text();
    let forks = text
        .lines()
        .find_map(|line| line.strip_prefix("forks ")?.parse::<u32>().ok());
    assert!(
        forks.is_some_and(|forks| forks <= 100),
        "the limit did not hold\n{done}"
    );
    assert!(
        witness.is_gone(),
        "a part of the bomb outlived the record\n{done}"
    );
}

fn escape_57_i6_a_tree_that_keeps_its_reaper_busy_ends_when_told(world: &World) {
    let mut witness = world.witness();
    let done = world
        .run([program("orphans"), witness.path()])
        .with(["--tasks", "2000", "--timeout", "1s", "--grace", "100ms"])
        .finish();
    assert_eq!(done.code, Some(124), "\n{done}");
    assert!(done.elapsed < Duration::from_secs(15), "\n{done}");
    assert!(witness.was_alive() && witness.is_gone(), "\n{done}");
}

fn escape_61_nothing_outlives_a_killed_supervisor(world: &World) {
    let mut witness = world.witness();
    let mut live = world.run([program("ignore_term"), witness.path()]).start();
    live.wait_for("ready");
    assert!(witness.was_alive());
    live.signal(Signal::SIGKILL);
    witness.wait_until_gone();
    drop(live);
}

fn a_timeout_ends_the_tree_by_term_and_says_so(world: &World) {
    let done = world.run(["sleep", "100"]).with(["--timeout", "300ms"]).finish();
    assert_eq!(done.code, Some(124), "\n{done}");
    assert_eq!(done.outcome(), "timed_out", "\n{done}");
    assert_eq!(done.record()["signal"], "SIGTERM", "\n{done}");
    let script = "trap 'echo told; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    let done = world.shell(script).with(["--timeout", "500ms"]).finish();
    assert_eq!(done.text(), "ready\ntold\n", "\n{done}");
    assert_eq!(done.code, Some(124), "\n{done}");
    assert_eq!(done.outcome(), "timed_out", "\n{done}");
    assert_eq!(done.record()["exit_code"], 9, "\n{done}");
}

fn a_stop_escalates_to_kill_after_grace(world: &World) {
    let mut witness = world.witness();
    let command = [program("ignore_term"), witness.path()];
    let done = world
        .run(command)
        .with(["--timeout", "300ms", "--grace", "200ms"])
        .finish();
    assert_eq!(done.code, Some(124), "\n{done}");
    assert_eq!(done.record()["signal"], "SIGKILL", "\n{done}");
    assert!(done.elapsed < Duration::from_secs(20), "\n{done}");
    assert!(witness.was_alive() && witness.is_gone(), "\n{done}");
}

fn silence_ends_a_command_that_has_an_idle_timeout(world: &World) {
    let done = world
        .shell("echo once; sleep 100")
        .with(["--idle-timeout", "300ms"])
        .finish();
    assert_eq!(done.code, Some(124), "\n{done}");
    assert_eq!(done.outcome(), "idle_timeout", "\n{done}");
    assert_eq!(done.text(), "once\n", "\n{done}");
    let busy = "for i in 1 2 3 4 5 6; do echo $i; sleep 0.1; done";
    let done = world.shell(busy).with(["--idle-timeout", "30s"]).finish();
    assert_eq!(done.code, Some(0), "\n{done}");
}

fn an_interrupt_ends_the_tree_politely(world: &World) {
    let script = "trap 'echo told; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    let mut live = world.shell(script).start();
    live.wait_for("ready\n");
    live.signal(Signal::SIGINT);
    let done = live.finish();
    assert_eq!(done.text(), "ready\ntold\n", "\n{done}");
    assert_eq!(done.code, Some(130), "\n{done}");
    assert_eq!(done.outcome(), "cancelled", "\n{done}");
}

fn a_second_interrupt_kills_at_once(world: &World) {
    let mut witness = world.witness();
    let run = world.run([program("ignore_term"), witness.path()]).json();
    let mut live = run.with(["--grace", "1h"]).start();
    assert_event(&mut live, "\"type\":\"output\"");
    live.signal(Signal::SIGINT);
    assert_event(&mut live, "\"type\":\"signal_sent\"");
    live.signal(Signal::SIGINT);
    let done = live.finish();
    assert_eq!(done.code, Some(130), "\n{done}");
    assert!(witness.was_alive() && witness.is_gone(), "\n{done}");
}

fn assert_event(live: &mut provost_tests::Live, text: &str) {
    live.wait_for(text);
}

fn job_control_stops_and_continues(world: &World) {
    let mut live = world.run(["cat"]).piped_input().start();
    live.feed("before\n");
    live.wait_for("before\n");
    live.signal(Signal::SIGTSTP);
    live.wait_until_stopped();
    live.signal(Signal::SIGCONT);
    live.feed("after\n");
    live.wait_for("after\n");
    live.end_input();
    let done = live.finish();
    assert_eq!(done.text(), "before\nafter\n", "\n{done}");
    assert_eq!(done.code, Some(0), "\n{done}");
}

fn the_command_is_not_pid_1_and_dies_of_ordinary_signals(world: &World) {
    let done = world.shell("echo $$").finish();
    assert_ne!(done.text(), "1\n", "\n{done}");
    for (signal, code) in [("TERM", 143), ("INT", 130), ("ABRT", 134), ("PIPE", 141)] {
        let done = world
            .run(["sh", "-c", &format!("kill -{signal} $$; sleep 1000")])
            .finish();
        assert_eq!(done.code, Some(code), "{signal}\n{done}");
    }
}

fn cpu_time_has_a_limit_when_asked(world: &World) {
    let done = world
        .shell("while :; do :; done")
        .with(["--cpu-time", "1s"])
        .finish();
    assert_ne!(done.code, Some(0), "\n{done}");
    assert_eq!(done.record()["succeeded"], false, "\n{done}");
}

fn escape_45_what_is_executed_from_memory_or_the_workspace_stays_confined(world: &World) {
    require!(needs::command("python3"), "python3");
    let server = provost_tests::host::TcpServer::start();
    let script = "import os, shutil, sys\n\
        helper, arguments = sys.argv[1], sys.argv[2:]\n\
        memory = os.memfd_create('program')\n\
        with open(helper, 'rb') as file: os.write(memory, file.read())\n\
        shutil.copy(helper, 'copied')\n\
        for program in (f'/proc/self/fd/{memory}', './copied'):\n\
        \x20   if os.fork() == 0:\n\
        \x20       os.execv(program, [program, *arguments])\n\
        \x20   os.wait()\n";
    let (helper, port) = (program("escape"), server.port_text());
    let done = world
        .run([
            "python3",
            "-c",
            script,
            &helper,
            "tcp-connect",
            "127.0.0.1",
            &port,
        ])
        .finish();
    assert_eq!(done.text(), "result: EACCES\n".repeat(2), "\n{done}");
    assert_eq!(server.connections(), 0, "\n{done}");
    assert_eq!(done.record()["denials"]["by_class"]["network"], 2, "\n{done}");
}

both_users!(
    escape_45_what_is_executed_from_memory_or_the_workspace_stays_confined,
    escape_46_signals_reach_nobody_outside,
    escape_46_a_signal_to_everyone_reaches_only_the_tree,
    escape_47_nobody_outside_can_be_traced_or_read,
    escape_47_the_init_cannot_be_traced_read_or_ended,
    escape_48_limits_and_priorities_of_others_stay,
    escape_49_the_choice_of_the_memory_killer_stays,
    escape_36_and_37_other_processes_are_not_in_proc,
    escape_50_i6_a_daemon_does_not_outlive_the_record,
    i6_a_stopped_descendant_does_not_outlive_the_record,
    escape_57_i6_a_fork_bomb_ends_under_its_limit,
    escape_57_i6_a_tree_that_keeps_its_reaper_busy_ends_when_told,
    escape_61_nothing_outlives_a_killed_supervisor,
    a_timeout_ends_the_tree_by_term_and_says_so,
    a_stop_escalates_to_kill_after_grace,
    silence_ends_a_command_that_has_an_idle_timeout,
    an_interrupt_ends_the_tree_politely,
    a_second_interrupt_kills_at_once,
    job_control_stops_and_continues,
    the_command_is_not_pid_1_and_dies_of_ordinary_signals,
    cpu_time_has_a_limit_when_asked,
);
