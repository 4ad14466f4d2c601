//! Provost inside of a sandbox: what the outer one lacks to the inner one is an error or is said, and the outer one holds.

use provost_tests::{User, World, both_users, network, provost};

fn inner(world: &World, options: &[&str], command: &[&str]) -> Vec<String> {
    let record = world.text("work/inner.json");
    let own = provost().display().to_string();
    let words = [&own, "run", "--record", &record];
    let words = words.into_iter().chain(options.iter().copied());
    let words = words.chain(["--"]).chain(command.iter().copied());
    words.map(str::to_owned).collect()
}

fn inner_record(world: &World) -> serde_json::Value {
    serde_json::from_str(&world.content("work/inner.json")).expect("the inner record")
}

fn inside_an_unconfined_command_everything_holds(world: &World) {
    let server = provost_tests::host::TcpServer::start();
    let escape = provost_tests::program("escape");
    let command = [escape.as_str(), "tcp-connect", "127.0.0.1", &server.port_text()];
    let done = world
        .run(inner(world, &[], &command))
        .with(["--policy", "unconfined"])
        .finish();
    assert_eq!(done.result(), "EACCES", "\n{done}");
    let record = inner_record(world);
    assert_eq!(record["denials"]["by_class"]["network"], 1, "{record}\n{done}");
    assert_eq!(server.connections(), 0);
}

fn inside_a_confined_command_a_second_listener_is_an_error_with_a_reason(world: &World) {
    let done = world.run(inner(world, &[], &["echo", "ran"])).finish();
    assert_eq!((done.code, done.text().as_str()), (Some(125), ""), "\n{done}");
    for word in ["seccomp with a listener", "--best-effort"] {
        assert!(done.stderr.contains(word), "{word}\n{done}");
    }
}

fn inside_a_confined_command_best_effort_says_what_is_missing_and_the_outer_one_holds(world: &World) {
    let server = provost_tests::host::TcpServer::start();
    let escape = provost_tests::program("escape");
    let command = [escape.as_str(), "tcp-connect", "127.0.0.1", &server.port_text()];
    let done = world.run(inner(world, &["--best-effort"], &command)).finish();
    assert_eq!(done.result(), "EACCES", "\n{done}");
    assert_eq!(server.connections(), 0);
    done.denial(&network("connect").port(server.port()));
    let record = inner_record(world);
    let degraded = record["sandbox"]["degraded"].to_string();
    assert!(degraded.contains("seccomp"), "{record}");
    assert_eq!(record["denials"]["complete"], false, "{record}");
}

fn inside_a_confined_command_supervision_alone_works(world: &World) {
    let words = inner(
        world,
        &["--policy", "unconfined"],
        &["sh", "-c", "echo in; setsid sleep 300 & exit 7"],
    );
    let done = world.run(words).finish();
    assert_eq!((done.code, done.text().as_str()), (Some(7), "in\n"), "\n{done}");
    let record = inner_record(world);
    assert_eq!(record["exit_code"], 7, "{record}");
    assert_eq!(record["tree"]["killed"], 1, "{record}");
}

#[test]
fn mounts_of_a_sandbox_do_not_reach_where_mounts_are_shared() {
    let Some(world) = World::try_new(User::Root) else {
        return;
    };
    // As on a machine with systemd: what is mounted anywhere appears everywhere, unless it is kept from that.
    let script = "mkfifo in out; mounts() { cut -d' ' -f5 /proc/self/mountinfo | sort; }; before=$(mounts)
        \"$1\" run --write . -- sh -c 'mount | grep -c provost; echo up; read x' < in > out & exec 3> in 4< out
        while read line <&4 && [ \"$line\" != up ]; do :; done; during=$(mounts); echo >&3; wait
        [ \"$line\" = up ] && [ \"$before\" = \"$during\" ] && echo apart";
    let output = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "shared", "sh", "-c", script, "sh"])
        .arg(provost())
        .current_dir(world.work())
        .output()
        .expect("unshare runs");
    let (said, wrong) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(said, "apart\n", "{wrong}");
}

both_users!(
    inside_an_unconfined_command_everything_holds,
    inside_a_confined_command_a_second_listener_is_an_error_with_a_reason,
    inside_a_confined_command_best_effort_says_what_is_missing_and_the_outer_one_holds,
    inside_a_confined_command_supervision_alone_works,
);
