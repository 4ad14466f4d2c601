//! What flags and modes allow works, and its neighbour is refused.

use std::io::{Read, Write};

use provost_tests::host::{TcpServer, UnixServer};
use provost_tests::{World, both_users, needs, network, require};

fn an_allowed_address_is_reached_and_its_neighbour_is_not(world: &World) {
    let (allowed, other) = (TcpServer::start(), TcpServer::start());
    let rule = allowed.address().to_string();
    let reached = world.escape(&["tcp-connect", "127.0.0.1", &allowed.port_text()]);
    let done = reached.with(["--allow-net", &rule]).finish();
    assert_eq!(done.result(), "ok", "\n{done}");
    assert_eq!(done.record()["denied"], false, "\n{done}");
    assert_eq!(allowed.connections(), 1, "\n{done}");
    let refused = world.escape(&["tcp-connect", "127.0.0.1", &other.port_text()]);
    refused
        .with(["--allow-net", &rule])
        .denied(&network("connect").port(other.port()));
    assert_eq!(other.connections(), 0);
    // Fast open to the allowed address would be a connect that nobody checked.
    let fast = world.escape(&["fastopen-sendto", "127.0.0.1", &other.port_text()]);
    fast.with(["--allow-net", &rule]).refused();
    assert_eq!(other.connections(), 0);
}

/// As `dig +tcp` does. Nothing is bound by it: listen is refused as it is of a socket that never was.
fn escape_07_a_bind_to_nothing_in_particular_before_an_allowed_connect_binds_nothing(world: &World) {
    require!(needs::command("python3"), "python3");
    let server = TcpServer::start();
    let script = "import socket, sys\n\
        there = ('127.0.0.1', int(sys.argv[1]))\n\
        def bound(address, family=socket.AF_INET):\n\
        \x20   s = socket.socket(family); s.bind(address); return s\n\
        def attempt(act):\n\
        \x20   try: print('done', act())\n\
        \x20   except OSError as e: print(e.errno)\n\
        attempt(lambda: bound(('0.0.0.0', 0)).connect(there))\n\
        attempt(lambda: bound(('::', 0), socket.AF_INET6).connect(('::ffff:127.0.0.1', there[1])))\n\
        attempt(lambda: bound(('0.0.0.0', 0)).getsockname())\n\
        attempt(lambda: bound(('0.0.0.0', 0)).listen())\n\
        for address in ('0.0.0.0', 8099), ('127.0.0.1', 0): attempt(lambda: bound(address))\n";
    let run = || world.run(["python3", "-c", script, &server.port_text()]);
    let done = run()
        .with(["--allow-net", &server.address().to_string()])
        .finish();
    let wanted = "done None\ndone None\ndone ('0.0.0.0', 0)\n13\n13\n13\n";
    assert_eq!(done.text(), wanted, "\n{done}");
    assert_eq!(server.connections(), 2, "\n{done}");
    done.denial(&network("listen").protocol("tcp"));
    done.denial(&network("bind").address("0.0.0.0").port(8099));
    done.denial(&network("bind").address("127.0.0.1").port(0));
    // Where nothing can be reached there is no reason for it.
    let done = run().finish();
    assert_eq!(done.text(), "13\n".repeat(6), "\n{done}");
}

fn curl_talks_to_an_allowed_server(world: &World) {
    require!(needs::command("curl"), "curl");
    let server = TcpServer::start();
    let address = server.address().to_string();
    let listener = server.listener().try_clone().expect("the listener");
    listener.set_nonblocking(false).expect("a blocking listener");
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut request = [0; 1024];
        let _ = stream.read(&mut request);
        stream
            .write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            .expect("the client reads");
    });
    let url = format!("http://{address}/");
    let done = world
        .run(["curl", "-sS", "--max-time", "20", &url])
        .with(["--allow-net", &address])
        .finish();
    assert_eq!(done.text(), "hello", "\n{done}");
    done.assert_harmless();
    answering.join().expect("the server's thread");
}

fn an_isolated_network_serves_itself_and_reaches_nobody(world: &World) {
    require!(needs::pid_namespaces(world), "namespaces for this user");
    require!(needs::command("python3"), "python3");
    let script = "import socket\n\
        s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()\n\
        c = socket.create_connection(s.getsockname()); a, _ = s.accept()\n\
        c.sendall(b'through'); print(a.recv(7).decode())\n\
        u = socket.socket(type=socket.SOCK_DGRAM); u.bind(('127.0.0.1', 0))\n\
        u.sendto(b'datagram', u.getsockname()); print(u.recv(8).decode())\n";
    let done = world
        .run(["python3", "-c", script])
        .with(["--net", "isolated"])
        .finish();
    assert_eq!(done.text(), "through\ndatagram\n", "\n{done}");
    done.assert_harmless();
    let server = TcpServer::start();
    let host = world.escape(&["tcp-connect", "127.0.0.1", &server.port_text()]);
    host.with(["--net", "isolated"]).refused();
    assert_eq!(server.connections(), 0, "the host's loopback was reached");
    let out = world
        .escape(&["tcp-connect", "192.0.2.1", "80"])
        .with(["--net", "isolated"]);
    out.denied(&network("connect").address("192.0.2.1").port(80));
    let out = world
        .escape(&["udp-sendto", "192.0.2.1", "53"])
        .with(["--net", "isolated"]);
    out.denied(&network("sendto").or("send").address("192.0.2.1").port(53));
    // Whatever opens the network must not open the host's sockets.
    let unix = UnixServer::start(world, "outside/host.sock");
    for mode in ["isolated", "open"] {
        let path = world.text("outside/host.sock");
        world
            .escape(&["unix-stream", &path])
            .with(["--net", mode])
            .refused();
    }
    assert_eq!(unix.connections(), 0, "the host's socket was reached");
}

fn an_open_network_reaches_the_hosts_loopback(world: &World) {
    let server = TcpServer::start();
    let port = server.port_text();
    let done = world
        .escape(&["tcp-connect", "127.0.0.1", &port])
        .with(["--net", "open"])
        .finish();
    assert_eq!(done.result(), "ok", "\n{done}");
    assert_eq!(server.connections(), 1, "\n{done}");
    // Still no raw access to the wire.
    world
        .escape(&["packet"])
        .with(["--net", "open"])
        .denied(&network("socket").protocol("packet"));
    world
        .escape(&["mptcp", "127.0.0.1", &port])
        .with(["--net", "open"])
        .refused();
}

fn sockets_among_the_processes_own_tree_work(world: &World) {
    require!(needs::command("python3"), "python3");
    let script = "import os, socket\n\
        socket.setdefaulttimeout(20)\n\
        a, b = socket.socketpair(); a.sendall(b'pair'); print(b.recv(4).decode())\n\
        s = socket.socket(socket.AF_UNIX); s.bind('own.sock'); s.listen()\n\
        if os.fork() == 0:\n\
        \x20   c = socket.socket(socket.AF_UNIX); c.connect('own.sock'); c.sendall(b'child'); os._exit(0)\n\
        p, _ = s.accept(); print(p.recv(5).decode()); os.wait()\n\
        r, w = os.pipe(); socket.send_fds(a, [b'x'], [w]); fd = socket.recv_fds(b, 1, 1)[1][0]\n\
        os.write(fd, b'passed'); print(os.read(r, 6).decode())\n";
    let done = world.run(["python3", "-c", script]).finish();
    assert_eq!(done.text(), "pair\nchild\npassed\n", "\n{done}");
    done.assert_harmless();
}

fn an_allowed_unix_socket_is_reached_and_its_neighbour_is_not(world: &World) {
    let (allowed, other) = (
        UnixServer::start(world, "outside/allowed"),
        UnixServer::start(world, "outside/other"),
    );
    let (path, neighbour) = (world.text("outside/allowed"), world.text("outside/other"));
    let connect = |path: &str, option: &str, value: &str| {
        world
            .escape(&["unix-stream", path])
            .with([option, value])
            .finish()
    };
    let done = connect(&path, "--allow-unix", &path);
    assert_eq!(done.result(), "ok", "\n{done}");
    assert_eq!(done.record()["denied"], false, "\n{done}");
    assert_eq!(allowed.connections(), 1);
    let done = connect(&neighbour, "--allow-unix", &path);
    assert_eq!(done.result(), "EACCES", "\n{done}");
    done.denial(&network("connect").path(&neighbour));
    let file = world.file(
        "work/unix.toml",
        &format!("version = 1\nextends = \"workspace-write\"\n[net]\nunix = [\"{neighbour}\"]\n"),
    );
    let done = connect(&neighbour, "--policy", &file);
    assert_eq!(done.result(), "ok", "\n{done}");
    assert_eq!(other.connections(), 1);
}

both_users!(
    an_allowed_unix_socket_is_reached_and_its_neighbour_is_not,
    an_allowed_address_is_reached_and_its_neighbour_is_not,
    escape_07_a_bind_to_nothing_in_particular_before_an_allowed_connect_binds_nothing,
    curl_talks_to_an_allowed_server,
    an_isolated_network_serves_itself_and_reaches_nobody,
    an_open_network_reaches_the_hosts_loopback,
    sockets_among_the_processes_own_tree_work,
);
