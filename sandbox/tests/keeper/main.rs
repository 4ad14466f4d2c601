//! The keeper as daemons meet it: they come and go, and what it keeps is the same for each.

mod connections;
mod errands;
mod home;
mod kept;
mod place;
#[path = "../support/mod.rs"]
mod support;
mod trees;
mod want;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use nix::poll::PollFlags;
use provost_sandbox::compile::PreparedSandbox;
use provost_sandbox::keeper::wire::{SpawnRequest, Stdin};
use support::{DEADLINE, Running, request, wait_for};

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

macro_rules! tests {
    ($($family:ident: $($name:ident),+;)+) => {
        fn main() {
            support::run(&[$($((stringify!($name), $family::$name)),+),+]);
        }
    };
}

tests!(
    connections:
        i8_a_process_outlives_its_daemon_and_its_descriptors_go_on,
        i8_wherever_the_connection_is_cut_the_next_one_learns_the_same,
        i8_what_ended_is_told_until_it_is_forgotten,
        what_is_forgotten_while_it_lives_is_not_spoken_of_again,
        a_daemon_that_does_not_read_stops_nothing,
        the_newest_connection_is_the_one_that_is_served,
        nonsense_and_other_versions_end_the_connection_alone;
    errands:
        what_a_thread_has_is_looked_at_for_the_daemon,
        errands_end_with_the_connection_and_with_who_is_not_to_be_served;
    place:
        i12_nobody_else_may_connect,
        a_place_that_is_not_ours_alone_is_refused,
        a_dead_socket_is_replaced_and_a_umask_changes_nothing,
        a_keeper_that_nobody_needs_ends,
        daemons_that_meet_a_keeper_while_it_ends_start_another;
    kept:
        released_descriptors_are_closed,
        named_descriptors_are_given_to_the_next_connection,
        i8_how_processes_ended_is_known_after_the_keeper_is_killed,
        what_is_made_ahead_is_used_and_thrown_away_when_nobody_is_there;
    trees:
        escape_61_nothing_outlives_the_keeper,
        i6_a_tree_killed_by_the_next_daemon_is_gone_when_that_is_said,
        a_keeper_that_is_stopped_ends_everything;
    want:
        the_keeper_is_the_last_to_go_when_memory_runs_out_and_what_it_starts_is_not,
        want_of_descriptors_ends_no_tree_and_keeps_nobody_out,
        a_process_costs_the_keeper_a_kibibyte_at_most;
);
