//! Calls that change the machine, gain privilege, or open large parts of the kernel to attack.

use std::os::unix::fs::PermissionsExt;

use provost_tests::{World, both_users, filesystem, needs, network, program, require, syscall};

/// Attempts whose call is refused by its number, for any caller: the record names the call.
fn refused_by_name(world: &World, attempts: &[(&str, &'static str)]) {
    for (attempt, name) in attempts {
        let done = world.escape(&[attempt]).denied(&syscall(name));
        let denial = done.denial(&syscall(name));
        assert_eq!(
            denial["errno"],
            done.result().as_str(),
            "{attempt}: the record names another error\n{done}"
        );
        assert_eq!(denial["comm"], "escape", "\n{done}");
        assert_eq!(denial["certainty"], "observed", "\n{done}");
    }
}

fn escape_29_a_filter_of_its_own_is_refused(world: &World) {
    refused_by_name(world, &[("nested-filter", "seccomp"), ("prctl-filter", "prctl")]);
    world.escape(&["prctl-strict"]).denied(&syscall("prctl"));
}

fn escape_63_a_landlock_domain_of_its_own_is_refused(world: &World) {
    refused_by_name(world, &[("nested-landlock", "landlock_restrict_self")]);
    // What it tries afterwards is seen all the same.
    let path = world.file("outside/file", "kept");
    world
        .escape(&["hide-denials", &path])
        .denied(&filesystem().path(&path));
}

fn escape_42_device_nodes_and_handles_are_refused(world: &World) {
    refused_by_name(world, &[("handle", "open_by_handle_at")]);
    for name in ["mknod-char", "mknod-block"] {
        let done = world.escape(&[name]).refused();
        assert!(done.denials_total() > 0, "\n{done}");
    }
    assert_eq!(
        std::fs::read_dir(world.work()).expect("work").count(),
        0,
        "a device node was made"
    );
}

fn escape_43_root_directory_and_mounts_stay_as_they_are(world: &World) {
    refused_by_name(
        world,
        &[
            ("chroot", "chroot"),
            ("umount", "umount2"),
            ("pivot-root", "pivot_root"),
            ("fsopen", "fsopen"),
            ("open-tree", "open_tree"),
            ("move-mount", "move_mount"),
            ("mount-setattr", "mount_setattr"),
        ],
    );
    world.escape(&["mount", "."]).denied(&syscall("mount"));
}

fn escape_51_new_namespaces_are_refused(world: &World) {
    refused_by_name(
        world,
        &[
            ("unshare-user", "unshare"),
            ("unshare-mount", "unshare"),
            ("clone-user", "clone"),
            ("clone-pid", "clone"),
            ("setns", "setns"),
        ],
    );
}

fn escape_52_no_privilege_is_left_and_none_can_be_gained(world: &World) {
    let done = world.escape(&["any-capability"]).refused();
    assert!(done.text().contains("NoNewPrivs:\t1"), "\n{done}");
    // A set-user-id program of root's, where the tests may make one.
    require!(
        nix::unistd::geteuid().is_root(),
        "root, to make a set-user-id program"
    );
    let copy = world.path("outside/gain");
    std::fs::copy(program("escape"), &copy).expect("a copy");
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o4755))
        .expect("the set-user-id bit");
    let path = copy.display().to_string();
    let without_sandbox = needs::gets_through(world, &[&path, "setuid-gain"]);
    assert!(
        world.is_root() || without_sandbox,
        "the set-user-id program is none"
    );
    let done = world.run([path.as_str(), "setuid-gain"]).refused();
    assert!(
        done.text()
            .contains(&format!("real {0} effective {0}", world.uid())),
        "\n{done}"
    );
}

fn escape_53_keys_are_out_of_reach(world: &World) {
    refused_by_name(
        world,
        &[
            ("keyctl", "keyctl"),
            ("add-key", "add_key"),
            ("request-key", "request_key"),
        ],
    );
}

fn escape_54_observers_of_the_kernel_are_refused(world: &World) {
    refused_by_name(
        world,
        &[
            ("bpf", "bpf"),
            ("perf", "perf_event_open"),
            ("userfaultfd", "userfaultfd"),
        ],
    );
}

fn escape_55_personality_vmsplice_and_fanotify_are_refused(world: &World) {
    refused_by_name(
        world,
        &[
            ("personality", "personality"),
            ("vmsplice", "vmsplice"),
            ("fanotify", "fanotify_init"),
        ],
    );
}

fn the_machine_cannot_be_stopped_or_changed(world: &World) {
    refused_by_name(
        world,
        &[
            ("reboot", "reboot"),
            ("swapon", "swapon"),
            ("swapoff", "swapoff"),
            ("kexec", "kexec_load"),
            ("kexec-file", "kexec_file_load"),
            ("init-module", "init_module"),
            ("finit-module", "finit_module"),
            ("delete-module", "delete_module"),
            ("acct", "acct"),
            ("set-time", "settimeofday"),
            ("clock-set", "clock_settime"),
            ("hostname", "sethostname"),
            ("domainname", "setdomainname"),
            ("syslog", "syslog"),
        ],
    );
    #[cfg(target_arch = "x86_64")]
    refused_by_name(world, &[("iopl", "iopl"), ("ioperm", "ioperm")]);
}

fn i4_a_refusal_in_a_grandchild_is_recorded_like_any_other(world: &World) {
    let escape = program("escape");
    let script = format!("(({escape} reboot; {escape} tcp-connect 192.0.2.1 80) & wait) >/dev/null");
    let done = world.shell(&script).finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    done.denial(&syscall("reboot"));
    done.denial(&network("connect").address("192.0.2.1"));
    assert_eq!(done.denials_total(), 2, "\n{done}");
}

fn on_denial_stop_ends_the_process_at_the_first_one(world: &World) {
    let mut witness = world.witness();
    let script = format!(
        "exec 3>{}; echo alive >&3; {} reboot; sleep 1000",
        witness.path(),
        program("escape")
    );
    let done = world.shell(&script).with(["--on-denial", "stop"]).finish();
    assert_eq!(done.outcome(), "denied", "\n{done}");
    assert_eq!(done.record()["succeeded"], false, "\n{done}");
    assert_ne!(done.code, Some(0), "\n{done}");
    done.denial(&syscall("reboot"));
    assert!(
        witness.was_alive() && witness.is_gone(),
        "something outlived the record\n{done}"
    );
}

both_users!(
    escape_29_a_filter_of_its_own_is_refused,
    escape_63_a_landlock_domain_of_its_own_is_refused,
    escape_42_device_nodes_and_handles_are_refused,
    escape_43_root_directory_and_mounts_stay_as_they_are,
    escape_51_new_namespaces_are_refused,
    escape_52_no_privilege_is_left_and_none_can_be_gained,
    escape_53_keys_are_out_of_reach,
    escape_54_observers_of_the_kernel_are_refused,
    escape_55_personality_vmsplice_and_fanotify_are_refused,
    the_machine_cannot_be_stopped_or_changed,
    i4_a_refusal_in_a_grandchild_is_recorded_like_any_other,
    on_denial_stop_ends_the_process_at_the_first_one,
);
