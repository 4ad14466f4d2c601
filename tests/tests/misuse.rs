//! Wrong use is answered with an exit code that says whose fault it was, and with words that help.

use provost_tests::{Finished, Run, World, both_users};

/// Exit code 125, and words on stderr that name the culprit.
fn rejected(run: Run<'_>, words: &[&str]) -> Finished {
    let done = run.finish();
    assert_eq!(done.code, Some(125), "\n{done}");
    assert_eq!(done.text(), "", "a rejected command must not run\n{done}");
    for word in words {
        assert!(done.stderr.contains(word), "`{word}` is not named\n{done}");
    }
    assert!(!done.stderr.contains("panicked"), "\n{done}");
    done
}

fn an_unknown_policy_is_rejected_and_the_known_ones_are_named(world: &World) {
    let run = world.run(["echo", "ran"]).with(["--policy", "no-such-policy"]);
    rejected(
        run,
        &["no-such-policy", "workspace-write", "read-only", "unconfined"],
    );
}

fn a_missing_directory_in_a_flag_is_rejected(world: &World) {
    let missing = world.text("outside/missing");
    for flag in ["--write", "--read", "--cwd"] {
        rejected(world.run(["echo", "ran"]).with([flag, &missing]), &[&missing]);
    }
}

fn a_malformed_destination_is_rejected_with_the_right_form(world: &World) {
    for bad in [
        "example.com",
        "*.com:80",
        "127.0.0.1",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "::1:80",
        "x-.com:80",
        "10.0.0.0/33:80",
    ] {
        rejected(
            world.run(["echo", "ran"]).with(["--allow-net", bad]),
            &[bad, "ADDRESS:PORT"],
        );
    }
}

fn values_that_cannot_be_are_rejected(world: &World) {
    for (flag, value) in [
        ("--net", "sometimes"),
        ("--timeout", "soon"),
        ("--tasks", "0"),
        ("--tasks", "many"),
        ("--memory", "lots"),
        ("--on-denial", "shrug"),
        ("--tree", "fell"),
        ("--stdin", "maybe"),
        ("--env", "=value"),
    ] {
        rejected(world.run(["echo", "ran"]).with([flag, value]), &[]);
    }
    rejected(
        world.run(["echo", "ran"]).with(["--no-such-flag"]),
        &["--no-such-flag"],
    );
}

fn no_command_at_all_is_rejected(world: &World) {
    rejected(world.run(Vec::<String>::new()), &[]);
}

fn a_record_that_cannot_be_written_is_rejected_before_anything_runs(world: &World) {
    let run = world
        .run(["touch", "ran"])
        .record_at(world.path("outside/missing/record.json"));
    rejected(run, &["missing"]);
    assert!(!world.path("work/ran").exists());
}

fn a_command_that_does_not_exist_gives_127(world: &World) {
    for name in ["no-such-command-anywhere", "/nonexistent/program", "./missing"] {
        let done = world.run([name]).finish();
        assert_eq!(done.code, Some(127), "\n{done}");
        assert!(done.stderr.contains(name), "\n{done}");
        assert_eq!(done.record()["outcome"], "spawn_failed", "\n{done}");
        assert_eq!(done.record()["exit_code"], 127, "\n{done}");
    }
}

fn a_file_that_is_no_program_gives_126(world: &World) {
    let plain = world.file("work/plain", "text");
    let directory = world.text("work");
    for path in [plain, directory] {
        let done = world.run([path.as_str()]).finish();
        assert_eq!(done.code, Some(126), "\n{done}");
        assert!(done.stderr.contains(&path), "\n{done}");
        assert_eq!(done.record()["outcome"], "spawn_failed", "\n{done}");
    }
}

fn an_exit_code_of_the_commands_own_is_not_mistaken_for_a_rejection(world: &World) {
    for code in [124, 125, 126, 127, 130] {
        let done = world.shell(&format!("exit {code}")).finish();
        assert_eq!(done.code, Some(code), "\n{done}");
        assert_eq!(done.outcome(), "exited", "\n{done}");
        assert_eq!(done.record()["exit_code"], code, "\n{done}");
    }
}

fn arguments_that_are_not_utf_8_or_very_long_reach_the_command(world: &World) {
    let long = "x".repeat(100_000);
    let done = world.run(["sh", "-c", "echo ${#1}", "sh", &long]).finish();
    assert_eq!(done.text(), "100000\n", "\n{}", done.stderr);
}

both_users!(
    an_unknown_policy_is_rejected_and_the_known_ones_are_named,
    a_missing_directory_in_a_flag_is_rejected,
    a_malformed_destination_is_rejected_with_the_right_form,
    values_that_cannot_be_are_rejected,
    no_command_at_all_is_rejected,
    a_record_that_cannot_be_written_is_rejected_before_anything_runs,
    a_command_that_does_not_exist_gives_127,
    a_file_that_is_no_program_gives_126,
    an_exit_code_of_the_commands_own_is_not_mistaken_for_a_rejection,
    arguments_that_are_not_utf_8_or_very_long_reach_the_command,
);
