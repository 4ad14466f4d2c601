//! The record comes last and is complete: output, status, denials and the tree have all crossed one log.

use std::time::Duration;

use provost_tests::{World, both_users, network, program};

fn i2_output_of_a_grandchild_that_ends_late_is_in_the_record(world: &World) {
    // The leader is gone before the grandchild writes: it waits for the leader's end of the pipe.
    let script = "mkfifo gate; (cat gate; echo late) & exec 3>gate; echo early; exit 0";
    let done = world.shell(script).with(["--tree", "wait"]).json().finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    assert_eq!(done.stream("stdout"), (b"early\nlate\n".to_vec(), 0), "\n{done}");
    assert_eq!(done.record()["output"]["stdout"]["closed"], "eof", "\n{done}");
    let types: Vec<String> = done
        .events()
        .iter()
        .map(|event| event["type"].as_str().unwrap_or("").to_owned())
        .collect();
    let place = |name: &str| {
        types
            .iter()
            .rposition(|kind| kind == name)
            .expect("such an event")
    };
    assert!(
        place("exited") < place("terminal") && place("output") < place("stream_closed"),
        "\n{done}"
    );
}

fn i2_a_grandchild_that_holds_the_pipes_delays_the_record_no_longer_than_the_deadline(world: &World) {
    let done = world.shell("sleep 300 & echo out; exit 3").finish();
    assert_eq!(done.code, Some(3), "\n{done}");
    assert_eq!(done.text(), "out\n", "\n{done}");
    assert_eq!(
        done.record()["output"]["stdout"]["closed"],
        "abandoned",
        "\n{done}"
    );
    assert!(done.record()["tree"]["killed"].as_u64() >= Some(1), "\n{done}");
    assert!(done.elapsed < Duration::from_secs(20), "\n{done}");
}

fn i2_a_daemon_that_let_go_of_the_pipes_delays_nothing(world: &World) {
    let mut witness = world.witness();
    let done = world
        .run([program("daemonise"), witness.path(), "close".into()])
        .finish();
    assert_eq!(done.record()["output"]["stdout"]["closed"], "eof", "\n{done}");
    assert!(witness.was_alive() && witness.is_gone(), "\n{done}");
    let done = world.shell("setsid sh -c '(sleep 300 &)'; exit 0").finish();
    assert_eq!(done.code, Some(0), "\n{done}");
}

fn i2_tree_wait_waits_for_the_last_descendant(world: &World) {
    let mut witness = world.witness();
    let script = "sh -c 'read x < gate; exec 3>\"$1\"; echo alive >&3; echo last' sh \"$1\" >out 2>&1 </dev/null & \
                  exec 3>gate; exit 0";
    let script = format!("mkfifo gate; {script}");
    let done = world
        .run(["sh", "-c", &script, "sh", &witness.path()])
        .with(["--tree", "wait"])
        .finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    assert!(witness.was_alive() && witness.is_gone(), "\n{done}");
    assert_eq!(
        world.content("work/out"),
        "last\n",
        "the descendant was cut short\n{done}"
    );
    assert_eq!(done.record()["tree"]["killed"], 0, "\n{done}");
}

fn i2_denials_made_just_before_the_end_are_in_the_record(world: &World) {
    let script = format!(
        "for i in 1 2 3; do {} tcp-connect 192.0.2.$i 80 & done; wait",
        program("escape")
    );
    for _ in 0..5 {
        let done = world.shell(&script).finish();
        assert_eq!(done.denials_total(), 3, "\n{done}");
        for address in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
            done.denial(&network("connect").address(address));
        }
    }
}

fn i4_file_denials_made_just_before_the_end_are_in_the_record(world: &World) {
    let probe = world.text("outside/probe");
    for _ in 0..5 {
        let done = world.run([&program("denials"), "write", "7", &probe]).finish();
        assert_eq!(done.text(), "refused: 7\n", "\n{done}");
        assert_eq!(done.record()["denials"]["by_class"]["filesystem"], 7, "\n{done}");
    }
}

fn i1_a_command_that_cannot_start_has_a_record_too(world: &World) {
    let done = world.run(["/nonexistent/program"]).json().finish();
    assert_eq!(done.code, Some(127), "\n{done}");
    assert_eq!(done.outcome(), "spawn_failed", "\n{done}");
    assert!(
        done.record()["reason"]
            .as_str()
            .is_some_and(|r| r.contains("/nonexistent/program")),
        "\n{done}"
    );
    let events = done.events();
    assert_eq!(
        events.last().map(|event| event["type"] == "terminal"),
        Some(true),
        "\n{done}"
    );
}

fn i1_many_at_once_have_one_record_each(world: &World) {
    let running: Vec<_> = (0..8)
        .map(|n| world.shell(&format!("echo {n}; exit {n}")).start())
        .collect();
    let mut processes = std::collections::BTreeSet::new();
    for (n, live) in (0..).zip(running) {
        let done = live.finish();
        assert_eq!(done.code, Some(n), "\n{done}");
        assert_eq!(done.text(), format!("{n}\n"), "\n{done}");
        processes.insert(done.record()["process"].to_string());
    }
    assert_eq!(processes.len(), 8, "process ids are unique");
}

both_users!(
    i2_output_of_a_grandchild_that_ends_late_is_in_the_record,
    i2_a_grandchild_that_holds_the_pipes_delays_the_record_no_longer_than_the_deadline,
    i2_a_daemon_that_let_go_of_the_pipes_delays_nothing,
    i2_tree_wait_waits_for_the_last_descendant,
    i2_denials_made_just_before_the_end_are_in_the_record,
    i4_file_denials_made_just_before_the_end_are_in_the_record,
    i1_a_command_that_cannot_start_has_a_record_too,
    i1_many_at_once_have_one_record_each,
);
