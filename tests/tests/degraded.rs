//! Machines that offer less: the policy holds as far as it can, and the report says what is weaker.

use provost_tests::host::TcpServer;
use provost_tests::weaker::{no_user_namespaces, run_within};
use provost_tests::{Finished, World, both_users, filesystem, needs, network, program, require};

/// What containers leave to root by default (no mounts, no tracing, no audit).
const CONTAINER: &str = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,\
    +net_raw,+sys_chroot,+mknod,+audit_write,+setfcap";

/// A command line that runs what follows it on a machine with less.
fn within(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// What must hold wherever the default policy starts at all.
fn everything_is_refused(world: &World, wrapper: &[String]) -> Finished {
    let server = TcpServer::start();
    let secret = world.file("home/.ssh/id", "secret");
    let outside = world.text("outside/new");
    let script = format!(
        "{} tcp-connect 127.0.0.1 $1; cat $2; echo x > {outside}; chmod 777 {}; echo own > own && cat own; echo t > $TMPDIR/t || echo t > /tmp/t",
        program("escape"),
        world.file("outside/old", "old"),
    );
    let done = run_within(world, wrapper, &[], &script, &[&server.port_text(), &secret]);
    assert_eq!(done.text(), "result: EACCES\nown\n", "\n{done}");
    assert_eq!(server.connections(), 0, "\n{done}");
    assert!(!world.path("outside/new").exists(), "\n{done}");
    done.denial(&network("connect").port(server.port()));
    done.denial(&filesystem().path(world.text("outside/old")));
    assert!(
        done.has_denial(&filesystem().path(&outside))
            || done.has_denial(&filesystem().path(world.text("outside"))),
        "\n{done}"
    );
    done
}

fn without_user_namespaces_the_policy_holds_and_the_report_says_what_is_weaker(world: &World) {
    let wrapper = no_user_namespaces();
    let (first, rest) = (wrapper[0].as_str(), wrapper[1..].iter().map(String::as_str));
    let probe: Vec<&str> = rest.chain(["true"]).collect();
    require!(
        needs::succeeds(world, first, &probe),
        "a user namespace, or setpriv"
    );
    let done = everything_is_refused(world, &wrapper);
    let sandbox = &done.record()["sandbox"];
    assert_ne!(sandbox["containment"], "pid_namespace", "\n{done}");
    let degraded = sandbox["degraded"].to_string();
    for word in ["private /tmp", ".git/hooks"] {
        assert!(degraded.contains(word), "{word}\n{done}");
    }
    // What only a namespace can hold is an error, with what to do.
    let done = run_within(world, &wrapper, &["--net", "isolated"], "echo ran", &[]);
    assert_eq!((done.code, done.text().as_str()), (Some(125), ""), "\n{done}");
    assert!(done.stderr.contains("--net off"), "\n{done}");
    world.file("work/kept", "kept");
    let file = world.file(
        "work/protect.toml",
        "version = 1\nextends = \"workspace-write\"\n[files]\nprotect = [\"kept\"]\n",
    );
    let done = run_within(world, &wrapper, &["--policy", &file], "echo ran", &[]);
    assert_eq!((done.code, done.text().as_str()), (Some(125), ""), "\n{done}");
    assert!(
        done.stderr.contains("work/kept") && done.stderr.contains("protect.toml:4"),
        "\n{done}"
    );
    let done = run_within(
        world,
        &wrapper,
        &["--policy", &file, "--best-effort"],
        "echo ran",
        &[],
    );
    assert_eq!(done.text(), "ran\n", "\n{done}");
    assert!(
        done.record()["sandbox"]["degraded"]
            .to_string()
            .contains("work/kept"),
        "\n{done}"
    );
}

fn with_a_containers_capabilities_the_policy_holds(world: &World) {
    if !world.is_root() {
        return; // who has no capabilities to lose
    }
    let wrapper = within(&[
        "setpriv",
        &format!("--bounding-set={CONTAINER}"),
        "--inh-caps=-all",
    ]);
    require!(needs::command("setpriv"), "setpriv");
    let done = everything_is_refused(world, &wrapper);
    // Without the capability to read audit records.
    assert_ne!(done.record()["sandbox"]["file_denials"], "audit", "\n{done}");
}

fn without_a_home_the_policy_holds(world: &World) {
    let done = run_within(
        world,
        &within(&["env", "-u", "HOME"]),
        &[],
        "echo x > $2; echo ran",
        &["", &world.text("outside/new")],
    );
    assert_eq!(done.text(), "ran\n", "\n{done}");
    assert_eq!(done.record()["denied"], true, "\n{done}");
}

fn inside_a_sandbox_with_a_listener_only_best_effort_starts(world: &World) {
    let wrapper = within(&[&program("listened")]);
    let done = run_within(world, &wrapper, &[], "echo ran", &[]);
    assert_eq!((done.code, done.text().as_str()), (Some(125), ""), "\n{done}");
    for word in ["listener", "--best-effort"] {
        assert!(done.stderr.contains(word), "{word}\n{done}");
    }
    let server = TcpServer::start();
    let script = format!("{} tcp-connect 127.0.0.1 $1; echo x > $2", program("escape"));
    let outside = world.text("outside/new");
    let done = run_within(
        world,
        &wrapper,
        &["--best-effort"],
        &script,
        &[&server.port_text(), &outside],
    );
    // Landlock holds files and TCP; what only the listener sees is named.
    assert!(!world.path("outside/new").exists(), "\n{done}");
    assert_eq!(server.connections(), 0, "\n{done}");
    assert_eq!(done.record()["sandbox"]["seccomp"], false, "\n{done}");
    let unobserved = done.record()["denials"]["unobserved"].to_string();
    assert!(
        unobserved.contains("network") && unobserved.contains("system calls"),
        "\n{done}"
    );
}

both_users!(
    inside_a_sandbox_with_a_listener_only_best_effort_starts,
    without_user_namespaces_the_policy_holds_and_the_report_says_what_is_weaker,
    with_a_containers_capabilities_the_policy_holds,
    without_a_home_the_policy_holds,
);
