//! Limits: what is over one ends or is refused, and the record says so by the kernel's own count.

use provost_tests::{Finished, World, both_users, needs, program, require};

fn by_class(done: &Finished) -> u64 {
    done.record()["denials"]["by_class"]["resource"]
        .as_u64()
        .unwrap_or(0)
}

/// Whether a group holds the limit. As root, where these tests demand everything, one must.
fn grouped(world: &World, done: &Finished, group: &str) -> bool {
    let grouped = limits(done).contains(group);
    if world.is_root() && std::env::var_os("MUST_HAVE").is_some() {
        assert!(grouped, "no {group}\n{done}");
    }
    grouped
}

fn limits(done: &Finished) -> String {
    done.record()["sandbox"]["limits"].to_string()
}

/// Touches memory until it is stopped.
const EATER: &str = "b = []\nwhile True: b.append(bytearray(8 << 20))";

fn memory_at_its_limit_is_an_outcome_of_its_own(world: &World) {
    require!(needs::command("python3"), "python3");
    let done = world
        .run(["python3", "-c", EATER])
        .with(["--memory", "200M"])
        .finish();
    if grouped(world, &done, "memory cgroup") {
        assert_eq!(done.outcome(), "out_of_memory", "\n{done}");
        assert_eq!(done.record()["signal"], "SIGKILL", "\n{done}");
        assert!(by_class(&done) >= 1, "\n{done}");
        assert_eq!(done.record()["denied"], true, "\n{done}");
        assert_eq!(
            done.record()["denials"]["first"][0]["operation"],
            "memory",
            "\n{done}"
        );
        assert_eq!(done.code, Some(137), "\n{done}");
    } else {
        // Each process by itself: the program sees the refusal and ends as it likes.
        assert!(limits(&done).contains("RLIMIT_DATA"), "\n{done}");
        assert!(done.stderr.contains("MemoryError"), "\n{done}");
        assert_eq!(done.outcome(), "exited", "\n{done}");
    }
}

fn a_child_that_is_killed_for_memory_is_recorded_though_the_command_goes_on(world: &World) {
    require!(needs::command("python3"), "python3");
    let script = format!("python3 -c '{EATER}' 2>/dev/null; echo went on");
    let done = world.shell(&script).with(["--memory", "200M"]).finish();
    assert_eq!(done.text(), "went on\n", "\n{done}");
    assert_eq!(done.outcome(), "exited", "\n{done}");
    assert_eq!(done.record()["succeeded"], true, "\n{done}");
    if grouped(world, &done, "memory cgroup") {
        assert_eq!(done.record()["denied"], true, "\n{done}");
    }
}

fn a_kill_of_ones_own_is_not_taken_for_the_kernels(world: &World) {
    let done = world.shell("kill -9 $$").with(["--memory", "200M"]).finish();
    assert_eq!(done.outcome(), "signaled", "\n{done}");
    assert_eq!(by_class(&done), 0, "\n{done}");
}

fn refused_forks_are_counted_where_a_group_counts_them(world: &World) {
    let witness = world.witness();
    let done = world
        .run([program("forkbomb"), witness.path()])
        .with(["--tasks", "50", "--timeout", "3s"])
        .finish();
    witness.wait_until_gone();
    if grouped(world, &done, "pids cgroup") {
        assert!(by_class(&done) > 1, "\n{done}");
        let first = &done.record()["denials"]["first"][0];
        assert_eq!(
            (&first["operation"], &first["rule"]),
            (&"fork".into(), &"limit tasks = 50".into()),
            "\n{done}"
        );
    }
}

fn cpu_time_at_its_limit_says_so(world: &World) {
    let done = world
        .shell("while :; do :; done")
        .with(["--cpu-time", "1s", "--timeout", "50s"])
        .finish();
    assert_eq!(
        (done.outcome(), &done.record()["signal"]),
        ("signaled", &"SIGXCPU".into()),
        "\n{done}"
    );
    assert_eq!(
        done.record()["denials"]["first"][0]["operation"],
        "cpu_time",
        "\n{done}"
    );
    // Who does not listen is killed all the same.
    let done = world
        .shell("trap '' XCPU; while :; do :; done")
        .with(["--cpu-time", "1s", "--timeout", "50s"])
        .finish();
    assert_eq!(done.record()["signal"], "SIGKILL", "\n{done}");
}

fn a_file_does_not_grow_over_its_limit(world: &World) {
    let done = world
        .run(["dd", "if=/dev/zero", "of=big", "bs=1M", "count=10", "status=none"])
        .with(["--file-size", "1M"])
        .finish();
    let length = std::fs::metadata(world.path("work/big"))
        .expect("it was begun")
        .len();
    assert_eq!(length, 1 << 20, "\n{done}");
    assert_eq!(done.record()["signal"], "SIGXFSZ", "\n{done}");
    assert_eq!(
        done.record()["denials"]["first"][0]["operation"],
        "file_size",
        "\n{done}"
    );
}

fn descriptors_are_limited(world: &World) {
    let script = "i=3; while [ $i -lt 9 ]; do eval \"exec $i<.\" && i=$((i+1)); done; ulimit -n; ulimit -Hn; ulimit -n 100";
    let done = world.shell(script).with(["--open-files", "16"]).finish();
    assert_eq!(done.text(), "16\n16\n", "\n{done}");
    assert!(limits(&done).contains("open-files=16"), "\n{done}");
}

fn what_a_tree_writes_to_disks_is_limited(world: &World) {
    // Without end, by children that are gone when it is counted, deaf to polite signals.
    let script = "trap '' TERM; n=0; while :; do n=$((n+1)); dd if=/dev/zero of=f$((n % 8)) bs=1M count=4 2>/dev/null; done";
    let done = world.shell(script).with(["--disk-written", "20M"]).finish();
    let record = done.record();
    assert_eq!(done.outcome(), "denied", "\n{done}");
    assert_eq!(record["signal"], "SIGKILL", "\n{done}");
    let first = &record["denials"]["first"][0];
    assert_eq!(
        (&first["class"], &first["operation"]),
        (&"resource".into(), &"disk_written".into()),
        "\n{done}"
    );
    let done = world
        .shell("dd if=/dev/zero of=f bs=1M count=4 2>/dev/null")
        .with(["--disk-written", "20M"])
        .finish();
    assert_eq!(done.outcome(), "exited", "\n{done}");
    assert_eq!(done.denials_total(), 0, "\n{done}");
}

fn cpus_are_limited_by_a_group_or_it_is_an_error(world: &World) {
    let done = world
        .run(["timeout", "1", "sh", "-c", "while :; do :; done"])
        .with(["--cpus", "0.2"])
        .finish();
    if done.code == Some(125) {
        assert!(!world.is_root(), "\n{done}");
        assert!(
            done.stderr.contains("limit CPUs") && done.stderr.contains("delegated"),
            "\n{done}"
        );
        return;
    }
    assert!(limits(&done).contains("cpus=0.200 (cpu cgroup)"), "\n{done}");
    let used = done.record()["usage"]["user_ms"].as_u64().expect("a number");
    assert!(used < 600, "it kept more than a fifth of a CPU busy\n{done}");
}

/// A cgroup v2 of this test. Dropping it removes it.
struct Delegated(std::path::PathBuf);

impl Drop for Delegated {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(self.0.join("provost-supervisor"));
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn who_is_alone_in_a_group_makes_room_for_groups_beside_it() {
    let Some(world) = World::try_new(provost_tests::User::Root) else {
        return;
    };
    let unified = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .into_iter()
        .find(|path| std::path::Path::new(path).join("cgroup.controllers").exists())
        .expect("cgroup v2 is mounted");
    let group = Delegated(format!("{unified}/provost-test-{}", std::process::id()).into());
    std::fs::create_dir(&group.0).expect("root makes groups");
    let script = format!(
        "echo $$ > {}/cgroup.procs && exec {} doctor --json",
        group.0.display(),
        provost_tests::provost().display()
    );
    let output = std::process::Command::new("sh")
        .args(["-c", &script])
        .current_dir(world.work())
        .output()
        .expect("sh runs");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a report");
    assert_eq!(
        report["kernel"]["cgroup2"],
        group.0.to_string_lossy().as_ref(),
        "{report}"
    );
    assert!(
        group.0.join("provost-supervisor").is_dir(),
        "it moved itself out of the way"
    );
}

both_users!(
    memory_at_its_limit_is_an_outcome_of_its_own,
    a_child_that_is_killed_for_memory_is_recorded_though_the_command_goes_on,
    a_kill_of_ones_own_is_not_taken_for_the_kernels,
    refused_forks_are_counted_where_a_group_counts_them,
    cpu_time_at_its_limit_says_so,
    a_file_does_not_grow_over_its_limit,
    descriptors_are_limited,
    what_a_tree_writes_to_disks_is_limited,
    cpus_are_limited_by_a_group_or_it_is_an_error,
);
