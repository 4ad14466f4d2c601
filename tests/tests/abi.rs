//! Other doors into the same kernel.

use provost_tests::host::TcpServer;
use provost_tests::{World, both_users, needs, require, syscall};

#[cfg(target_arch = "x86_64")]
fn escape_22_the_32_bit_entry_is_refused(world: &World) {
    require!(needs::possible(world, &["int80-getpid"]), "32-bit system calls");
    world.escape(&["int80-getpid"]).denied(&syscall("i386:20"));
}

#[cfg(target_arch = "x86_64")]
fn escape_23_the_socketcall_multiplexer_is_refused(world: &World) {
    let server = TcpServer::start();
    let words = ["int80-socketcall", "127.0.0.1", &server.port_text()];
    require!(needs::possible(world, &words), "32-bit system calls");
    assert_eq!(
        server.connections(),
        1,
        "without a sandbox the multiplexer connects"
    );
    world.escape(&words).denied(&syscall("i386:102"));
    assert_eq!(server.connections(), 0, "the server was reached");
}

#[cfg(target_arch = "x86_64")]
fn escape_24_the_x32_numbers_are_refused(world: &World) {
    world.escape(&["x32-getpid"]).denied(&syscall("x32:39"));
}

fn escape_25_high_bits_do_not_hide_an_ioctl(world: &World) {
    for name in ["tiocsti", "tiocsti-high-bits"] {
        world.escape(&[name]).denied(&syscall("ioctl(TIOCSTI)"));
    }
    for name in ["tioclinux", "tioclinux-high-bits"] {
        world.escape(&[name]).denied(&syscall("ioctl(TIOCLINUX)"));
    }
}

fn escape_26_clone3_is_refused_as_a_probe(world: &World) {
    for name in ["clone3", "clone3-user"] {
        let done = world.escape(&[name]).invisible();
        // The C library falls back to clone only if the call seems not to exist.
        assert_eq!(done.result(), "ENOSYS", "\n{done}");
        assert!(
            done.record()["denials"]["probes"]["clone3"].as_u64() >= Some(1),
            "\n{done}"
        );
    }
}

fn escape_27_newer_variants_of_open_meet_the_same_rules(world: &World) {
    let path = world.file("outside/file", "kept");
    world.escape(&["openat2-write", &path]).refused();
    let secret = world.file("home/.ssh/id_x", "secret");
    world.escape(&["openat2-read", &secret]).refused();
    let allowed = world.file("work/file", "mine");
    let done = world.escape(&["openat2-write", &allowed]).finish();
    assert_eq!(done.result(), "ok", "\n{done}");
}

fn calls_from_the_future_do_not_exist(world: &World) {
    let done = world.escape(&["future-call"]).invisible();
    assert_eq!(done.result(), "ENOSYS", "\n{done}");
}

#[cfg(target_arch = "x86_64")]
both_users!(
    escape_22_the_32_bit_entry_is_refused,
    escape_23_the_socketcall_multiplexer_is_refused,
    escape_24_the_x32_numbers_are_refused,
);

both_users!(
    escape_25_high_bits_do_not_hide_an_ioctl,
    escape_26_clone3_is_refused_as_a_probe,
    escape_27_newer_variants_of_open_meet_the_same_rules,
    calls_from_the_future_do_not_exist,
);
