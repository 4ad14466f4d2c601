//! Ways to reach a socket: refused, recorded with their target, and without effect.

use std::net::TcpListener;
use std::process::Command;

use provost_tests::host::{TcpServer, UnixMailbox, UnixServer};
use provost_tests::{World, both_users, needs, network, require};

/// Tries to reach a server on loopback; it must see nothing.
fn reach(world: &World, name: &str, ip: &str, wanted: impl FnOnce(u16) -> provost_tests::Wanted) {
    let server = TcpServer::start();
    let port = server.port_text();
    require!(
        needs::possible(world, &[name, ip, &port]),
        "what `escape {name}` needs"
    );
    assert!(
        server.connections() <= 1,
        "a second caller of the test's own server"
    );
    world.escape(&[name, ip, &port]).denied(&wanted(server.port()));
    assert_eq!(server.connections(), 0, "the server was reached by {name}");
}

fn tcp_connect_is_refused_with_its_address(world: &World) {
    reach(world, "tcp-connect", "127.0.0.1", |port| {
        network("connect")
            .address("127.0.0.1")
            .port(port)
            .protocol("tcp")
            .certainty("observed")
    });
    let wanted = network("connect").address("192.0.2.1").port(80).protocol("tcp");
    world.escape(&["tcp-connect", "192.0.2.1", "80"]).denied(&wanted);
    let wanted = network("connect")
        .address("2001:db8::1")
        .port(443)
        .protocol("tcp");
    world
        .escape(&["tcp-connect", "2001:db8::1", "443"])
        .denied(&wanted);
}

fn curl_fails_at_once_and_the_record_names_the_address(world: &World) {
    require!(needs::command("curl"), "curl");
    let done = world
        .run(["curl", "-sS", "--max-time", "5", "http://192.0.2.1/"])
        .finish();
    assert_ne!(done.code, Some(0), "\n{done}");
    assert!(done.elapsed.as_secs() < 5, "it waited for an answer\n{done}");
    done.denial(&network("connect").address("192.0.2.1").port(80).protocol("tcp"));
}

fn escape_01_sendto_with_fast_open_is_refused(world: &World) {
    reach(world, "fastopen-sendto", "127.0.0.1", |port| {
        network("sendto")
            .or("send")
            .or("connect")
            .address("127.0.0.1")
            .port(port)
    });
    reach(world, "fastopen-connect", "127.0.0.1", |port| {
        network("connect").address("127.0.0.1").port(port)
    });
}

fn escape_02_sendmsg_with_fast_open_is_refused(world: &World) {
    reach(world, "fastopen-sendmsg", "127.0.0.1", |port| {
        network("sendmsg")
            .or("sendto")
            .or("send")
            .address("127.0.0.1")
            .port(port)
    });
    reach(world, "fastopen-sendmmsg", "127.0.0.1", |_| {
        network("sendmmsg").or("sendto").or("send")
    });
}

fn escape_03_mptcp_is_refused(world: &World) {
    reach(world, "mptcp", "127.0.0.1", |_| {
        network("socket").protocol("mptcp")
    });
}

fn escape_04_sctp_smc_and_dccp_are_refused(world: &World) {
    world
        .escape(&["sctp"])
        .denied(&network("socket").protocol("sctp"));
    world.escape(&["dccp"]).denied(&network("socket"));
    world.escape(&["udplite"]).denied(&network("socket"));
    world.escape(&["smc"]).denied(&network("socket"));
    world.escape(&["ulp"]).denied(&network("setsockopt"));
}

fn escape_05_udp_is_refused(world: &World) {
    for (name, operation) in [("udp-sendto", "sendto"), ("udp-connect", "connect")] {
        let wanted = network(operation).address("192.0.2.1").port(9).protocol("udp");
        world.escape(&[name, "192.0.2.1", "9"]).denied(&wanted);
    }
    // To port 53 it goes no further than to us.
    let done = world.escape(&["udp-sendto", "192.0.2.1", "53"]).finish();
    done.denial(&network("send").address("192.0.2.1").port(53).protocol("udp"));
    world
        .escape(&["ping-high-bits"])
        .denied(&network("socket").protocol("icmp"));
}

fn escape_06_a_udp_server_is_refused(world: &World) {
    world
        .escape(&["udp-bind", "127.0.0.1", "5353"])
        .denied(&network("bind").address("127.0.0.1").port(5353).protocol("udp"));
}

fn escape_07_listen_is_refused_with_and_without_bind(world: &World) {
    world
        .escape(&["listen-unbound"])
        .denied(&network("listen").protocol("tcp"));
    let wanted = network("bind").address("127.0.0.1").protocol("tcp");
    world.escape(&["bind-listen", "127.0.0.1", "0"]).denied(&wanted);
    world
        .escape(&["bind-unspec", "0.0.0.0", "0"])
        .denied(&network("bind"));
}

fn escape_08_an_unspecified_address_does_not_open_a_way(world: &World) {
    reach(world, "unspec-retarget", "127.0.0.1", |port| {
        network("connect").address("127.0.0.1").port(port)
    });
}

fn escape_09_other_spellings_of_loopback_are_loopback(world: &World) {
    reach(world, "tcp-connect", "::ffff:127.0.0.1", |port| {
        network("connect").address("127.0.0.1").port(port)
    });
    reach(world, "tcp-connect", "0.0.0.0", |port| {
        network("connect")
            .address("127.0.0.1")
            .address("0.0.0.0")
            .port(port)
    });
    reach(world, "tcp-connect", "::ffff:0.0.0.0", |port| {
        network("connect")
            .address("127.0.0.1")
            .address("0.0.0.0")
            .port(port)
    });
}

fn escape_10_unix_sockets_of_the_host_are_refused(world: &World) {
    // Neither where the sandbox may not write nor where it may.
    for name in ["outside/host.sock", "work/host.sock"] {
        let server = UnixServer::start(world, name);
        let path = world.text(name);
        let wanted = network("connect").protocol("unix").path(path.as_str());
        world.escape(&["unix-stream", &path]).denied(&wanted);
        let directory = world
            .path(name)
            .parent()
            .map(|d| d.display().to_string())
            .unwrap_or_default();
        world
            .escape(&["unix-relative", &directory, "host.sock"])
            .denied(&wanted);
        world
            .escape(&["unix-stream", &format!("/proc/self/root{path}")])
            .refused();
        let link = world.text("work/link");
        std::os::unix::fs::symlink(&path, &link).expect("a link of the test's own");
        world
            .escape(&["unix-stream", &link])
            .denied(&network("connect").protocol("unix"));
        std::fs::remove_file(&link).expect("the link");
        assert_eq!(server.connections(), 0, "the host's socket was reached");
    }
}

fn escape_11_unix_datagrams_to_the_host_are_refused(world: &World) {
    let mailbox = UnixMailbox::start(world, "outside/host.sock");
    let path = world.text("outside/host.sock");
    let wanted = network("socket").protocol("unix-dgram");
    world.escape(&["unix-dgram", &path]).denied(&wanted);
    // A pair is connected to itself, but may be pointed elsewhere.
    for name in ["pair-sendto", "pair-sendmsg"] {
        world
            .escape(&[name, &path])
            .denied(&network("socketpair").protocol("unix-dgram"));
    }
    assert_eq!(mailbox.messages(), 0, "the host's socket was reached");
}

fn escape_12_abstract_sockets_of_the_host_are_refused(world: &World) {
    let name = format!("provost-tests-{}-{}", std::process::id(), world.uid());
    let server = UnixServer::start_abstract(&name);
    world.escape(&["abstract", &name]).refused();
    assert_eq!(server.connections(), 0, "the host's socket was reached");
}

fn escape_16_netlink_is_refused(world: &World) {
    // libc asks for routes before it resolves a name: counted, and no denial.
    let done = world.escape(&["netlink"]).invisible();
    assert_eq!(done.record()["denials"]["probes"]["netlink_route"], 1, "\n{done}");
    world
        .escape(&["netlink-audit"])
        .denied(&network("socket").protocol("netlink"));
}

fn escape_17_vsock_is_refused(world: &World) {
    world
        .escape(&["vsock"])
        .denied(&network("socket").protocol("vsock"));
}

fn escape_18_odd_families_and_raw_sockets_are_refused(world: &World) {
    world.escape(&["alg"]).denied(&network("socket").protocol("alg"));
    world
        .escape(&["packet"])
        .denied(&network("socket").protocol("packet"));
    world.escape(&["raw"]).denied(&network("socket").protocol("raw"));
    world
        .escape(&["ping"])
        .denied(&network("socket").protocol("icmp"));
}

fn escape_20_out_of_band_data_is_refused(world: &World) {
    let done = world.escape(&["oob"]).refused();
    assert_eq!(done.record()["denials"]["by_class"]["network"], 1, "\n{done}");
}

fn escape_21_io_uring_is_refused_as_a_probe(world: &World) {
    let done = world.escape(&["io-uring"]).invisible();
    assert_eq!(
        done.record()["denials"]["probes"]["io_uring_setup"],
        1,
        "\n{done}"
    );
}

fn escape_28_an_address_that_changes_while_it_is_checked_reaches_nothing_else(world: &World) {
    let forbidden = TcpServer::start();
    // This one takes its callers at once: more of them come than a backlog holds.
    let allowed = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
    let address = allowed.local_addr().expect("its address");
    std::thread::spawn(move || allowed.incoming().for_each(drop));
    let (rule, ports) = (
        address.to_string(),
        [address.port().to_string(), forbidden.port_text()],
    );
    let words = ["swap-address", &ports[0], &ports[1], "100000"];
    let done = world.escape(&words).with(["--allow-net", &rule]).finish();
    assert!(done.code.is_some_and(|code| code == 0 || code == 3), "\n{done}");
    assert_eq!(
        forbidden.connections(),
        0,
        "the forbidden server was reached\n{done}"
    );
}

fn escape_30_interrupted_calls_are_counted_once_each(world: &World) {
    let done = world.escape(&["interrupted-connects", "300"]).finish();
    let text = done.text();
    let number = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.parse::<u64>().ok())
    };
    // Before the supervisor has taken a call up, a signal may still interrupt it, as it may any connect.
    let (refused, interrupted) = (number("refused: "), number("interrupted: "));
    assert_eq!(
        refused.zip(interrupted).map(|(a, b)| a + b),
        Some(300),
        "\n{done}"
    );
    assert!(refused > Some(0), "\n{done}");
    assert_eq!(Some(done.denials_total()), refused, "\n{done}");
}

fn i4_a_socket_that_does_not_exist_is_no_denial(world: &World) {
    let missing = world.text("outside/missing.sock");
    let done = world.escape(&["unix-stream", &missing]).invisible();
    assert_eq!(done.result(), "ENOENT", "\n{done}");
}

#[test]
fn the_tests_own_server_is_reached_without_a_sandbox() {
    // Otherwise the tests above would prove nothing.
    let server = TcpServer::start();
    let escape = provost_tests::program("escape");
    for name in [
        "tcp-connect",
        "fastopen-sendto",
        "fastopen-sendmsg",
        "fastopen-connect",
    ] {
        let status = Command::new(&escape)
            .args([name, "127.0.0.1", &server.port_text()])
            .output();
        assert_eq!(
            status.expect("the program").status.code(),
            Some(3),
            "{name} is no real attempt"
        );
        assert_eq!(server.connections(), 1, "{name} did not reach the server");
    }
}

fn escape_13_descriptors_are_passed_within_the_tree_and_to_nobody_else(world: &World) {
    require!(needs::command("python3"), "python3");
    let server = UnixServer::start(world, "outside/socket");
    let script = "import array, os, socket, sys\n\
        file = os.open('kept', os.O_RDONLY)\n\
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [file]))]\n\
        one, other = socket.socketpair()\n\
        one.sendmsg([b'x'], rights)\n\
        _, got, _, _ = other.recvmsg(1, 64)\n\
        fd = array.array('i', got[0][2])[0]\n\
        print(os.read(fd, 10).decode())\n\
        try:\n\
        \x20   out = socket.socket(socket.AF_UNIX)\n\
        \x20   out.connect(sys.argv[1])\n\
        \x20   out.sendmsg([b'x'], rights)\n\
        \x20   print('passed')\n\
        except OSError as error: print(error.strerror)\n";
    world.file("work/kept", "content");
    let path = world.text("outside/socket");
    let done = world.run(["python3", "-c", script, &path]).finish();
    assert_eq!(done.text(), "content\nPermission denied\n", "\n{done}");
    assert_eq!(server.connections(), 0, "\n{done}");
    done.denial(&network("connect").path(&path));
}

both_users!(
    escape_13_descriptors_are_passed_within_the_tree_and_to_nobody_else,
    tcp_connect_is_refused_with_its_address,
    curl_fails_at_once_and_the_record_names_the_address,
    escape_01_sendto_with_fast_open_is_refused,
    escape_02_sendmsg_with_fast_open_is_refused,
    escape_03_mptcp_is_refused,
    escape_04_sctp_smc_and_dccp_are_refused,
    escape_05_udp_is_refused,
    escape_06_a_udp_server_is_refused,
    escape_07_listen_is_refused_with_and_without_bind,
    escape_08_an_unspecified_address_does_not_open_a_way,
    escape_09_other_spellings_of_loopback_are_loopback,
    escape_10_unix_sockets_of_the_host_are_refused,
    escape_11_unix_datagrams_to_the_host_are_refused,
    escape_12_abstract_sockets_of_the_host_are_refused,
    escape_16_netlink_is_refused,
    escape_17_vsock_is_refused,
    escape_18_odd_families_and_raw_sockets_are_refused,
    escape_20_out_of_band_data_is_refused,
    escape_21_io_uring_is_refused_as_a_probe,
    escape_28_an_address_that_changes_while_it_is_checked_reaches_nothing_else,
    escape_30_interrupted_calls_are_counted_once_each,
    i4_a_socket_that_does_not_exist_is_no_denial,
);
