//! What a command inherits: three descriptors, and no secret of its caller's.

use std::os::fd::{FromRawFd, OwnedFd};

use provost_tests::host::TcpServer;
use provost_tests::{World, both_users};

/// A copy of a descriptor under a high number, which programs started from here inherit.
fn leak(file: impl std::os::fd::AsFd) -> OwnedFd {
    let fd = nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_DUPFD(57)).expect("a descriptor");
    // SAFETY: the call just made it, and nobody else knows it.
    // WHY: nix returns the number only.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn escape_14_no_descriptor_is_inherited_but_the_three(world: &World) {
    let secret = world.file("home/.ssh/id_x", "secret");
    let file = leak(std::fs::File::open(&secret).expect("the test's own file"));
    let server = TcpServer::start();
    let client = leak(std::net::TcpStream::connect(server.address()).expect("a connection"));
    let done = world.escape(&["descriptors"]).refused();
    assert!(done.text().contains("descriptors: [0, 1, 2]\n"), "\n{done}");
    let done = world
        .escape(&["descriptors"])
        .with(["--policy", "unconfined"])
        .refused();
    assert!(done.text().contains("descriptors: [0, 1, 2]\n"), "\n{done}");
    drop((file, client));
}

fn escape_14_the_standard_streams_are_pipes_of_provosts(world: &World) {
    let before = world.file("outside/input", "kept");
    let script = "for n in 1 2; do case $(readlink /proc/$$/fd/$n) in pipe:*) ;; *) exit 9;; esac; done";
    let done = world
        .shell(script)
        .input(std::fs::read(before).expect("the file"))
        .finish();
    assert_eq!(done.code, Some(0), "\n{done}");
}

fn escape_14_a_directory_is_no_standard_input(world: &World) {
    // From there a path would lead past every mount: to what is hidden below the writable home, among others.
    world.file("home/.ssh/id_x", "secret");
    let home = world.path("home");
    let run = world.run(["true"]).directory(&home).input_from(&home);
    let done = run.with(["--stdin", "inherit"]).finish();
    assert_eq!(done.code, Some(125), "\n{done}");
    assert!(done.stderr.contains("standard input is a directory"), "\n{done}");
}

fn escape_59_secrets_in_the_environment_stay_outside(world: &World) {
    let word = "provost-tests-secret-word";
    let reversed: String = word.chars().rev().collect();
    let run = world
        .escape(&["environment", &reversed])
        .env("UNRELATED", word)
        .with(["--clean-env"]);
    run.refused();
    for name in [
        "AWS_SECRET_ACCESS_KEY",
        "GITHUB_TOKEN",
        "OPENAI_API_KEY",
        "SSH_AUTH_SOCK",
    ] {
        world
            .escape(&["environment", &reversed])
            .env(name, word)
            .refused();
    }
}

both_users!(
    escape_14_a_directory_is_no_standard_input,
    escape_14_no_descriptor_is_inherited_but_the_three,
    escape_14_the_standard_streams_are_pipes_of_provosts,
    escape_59_secrets_in_the_environment_stay_outside,
);
