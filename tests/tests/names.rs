//! Destinations by name: libc's resolver, those that build their own messages, and what must not get out.
//!
//! The names here are given their addresses with `--resolve`, so nothing is looked up anywhere.

use std::io::Write;
use std::net::UdpSocket;

use provost_tests::host::TcpServer;
use provost_tests::{World, both_users, needs, network, require};

/// Questions and answers, as resolvers other than glibc's make them. `ask` insists that the answer comes from
/// the address that was asked, as musl does.
const CLIENT: &str = r#"
import socket, struct, sys, select, threading
PORT = int(sys.argv[1])
def query(name, kind, edns=False):
    head = struct.pack('>HHHHHH', 0x4242, 0x100, 1, 0, 0, 1 if edns else 0)
    body = b''.join(bytes([len(l)]) + l.encode() for l in name.split('.')) + b'\0' + struct.pack('>HH', kind, 1)
    return head + body + (b'\0\0\x29\x10\0\0\0\0\0\0\0' if edns else b'')
def read(message):
    ident, flags, _, answers = struct.unpack('>HHHH', message[:8])
    assert ident == 0x4242 and flags & 0x8200 == 0x8000, message
    return flags & 15, [message[-4:]] if answers else []
"#;

struct Name {
    server: TcpServer,
    flags: Vec<String>,
}

/// A server on loopback that is known by a name.
fn named(name: &str) -> Name {
    let server = TcpServer::start();
    let flags = [
        "--allow-net".to_owned(),
        format!("{name}:{}", server.port()),
        "--resolve".to_owned(),
        format!("{name}=127.0.0.1"),
    ];
    Name {
        server,
        flags: flags.into(),
    }
}

fn python(world: &World, script: &str, known: &Name) -> provost_tests::Finished {
    let (script, port) = (format!("{CLIENT}{script}"), known.server.port_text());
    world
        .run(["python3", "-c", &script, &port])
        .with(known.flags.clone())
        .finish()
}

fn an_allowed_name_is_reached_by_libc_and_nothing_is_recorded(world: &World) {
    require!(needs::command("python3"), "python3");
    let known = named("db.provost.example");
    let script = "print(socket.getaddrinfo('DB.provost.example', PORT, type=socket.SOCK_STREAM)[0][4])\n\
        s = socket.create_connection(('db.provost.example', PORT)); print(s.getpeername())";
    let done = python(world, script, &known);
    let there = format!("('127.0.0.1', {})\n", known.server.port());
    assert_eq!(done.text(), there.repeat(2), "\n{done}");
    assert_eq!(done.record()["denied"], false, "\n{done}");
    assert_eq!(known.server.connections(), 1, "\n{done}");
    let done = world
        .run(["getent", "ahostsv4", "db.provost.example"])
        .with(known.flags)
        .finish();
    assert!(done.text().starts_with("127.0.0.1"), "\n{done}");
    assert_eq!(done.record()["denied"], false, "\n{done}");
}

fn curl_reaches_an_allowed_name(world: &World) {
    require!(needs::command("curl"), "curl");
    let known = named("web.provost.example");
    let listener = known.server.listener().try_clone().expect("the listener");
    listener.set_nonblocking(false).expect("a blocking listener");
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream
            .write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            .expect("the client reads");
    });
    let url = format!("http://web.provost.example:{}/", known.server.port());
    let done = world
        .run(["curl", "-sS", "--noproxy", "*", "--max-time", "20", &url])
        .with(known.flags)
        .finish();
    assert_eq!(done.text(), "hello", "\n{done}");
    assert_eq!(done.record()["denied"], false, "\n{done}");
    answering.join().expect("the server's thread");
}

fn escape_19_a_forbidden_name_is_refused_with_its_name(world: &World) {
    require!(needs::command("python3"), "python3");
    let known = named("db.provost.example");
    for name in ["secret.evil.example", "x.db.provost.example", "provost.example"] {
        let script = format!(
            "try: socket.getaddrinfo('{name}', 443); print('found')\nexcept socket.gaierror: print('refused')"
        );
        let done = python(world, &script, &known);
        assert_eq!(done.text(), "refused\n", "\n{done}");
        done.denial(
            &network("resolve")
                .host(name)
                .protocol("dns")
                .certainty("observed"),
        );
    }
}

fn a_wildcard_covers_what_is_below_it(world: &World) {
    require!(needs::command("python3"), "python3");
    let server = TcpServer::start();
    let flags = [
        "--allow-net",
        &format!("*.provost.example:{}", server.port()),
        "--resolve",
        "a.b.provost.example=127.0.0.1",
    ]
    .map(str::to_owned)
    .to_vec();
    let known = Name { server, flags };
    let script = "socket.create_connection(('a.b.provost.example', PORT)); print('reached')\n\
        try: socket.getaddrinfo('provost.example', 443)\n\
        except socket.gaierror: print('refused')";
    let done = python(world, script, &known);
    assert_eq!(done.text(), "reached\nrefused\n", "\n{done}");
    assert_eq!(known.server.connections(), 1);
    done.denial(&network("resolve").host("provost.example"));
}

/// musl: one unconnected socket, every server asked, answers from elsewhere ignored.
fn a_resolver_that_checks_who_answered_is_answered(world: &World) {
    require!(needs::command("python3"), "python3");
    let known = named("db.provost.example");
    let script = "servers = [('192.0.2.53', 53), ('198.51.100.53', 53)]\n\
        for kind in (1, 28):\n\
        \x20   s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK); s.bind(('0.0.0.0', 0))\n\
        \x20   for server in servers: s.sendto(query('db.provost.example', kind), server)\n\
        \x20   for receive in (lambda: s.recvfrom(512), lambda: s.recvmsg(512)[0::3]):\n\
        \x20       assert select.select([s], [], [], 20)[0]\n\
        \x20       message, source = receive(); assert source in servers, source\n\
        \x20       print(kind, read(message))\n\
        six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n\
        six.sendto(query('db.provost.example', 1), ('2001:db8::53', 53))\n\
        message, source = six.recvfrom(512); print(source[:2], read(message))\n";
    let done = python(world, script, &known);
    let v4 = "1 (0, [b'\\x7f\\x00\\x00\\x01'])\n";
    let six = "('2001:db8::53', 53) (0, [b'\\x7f\\x00\\x00\\x01'])\n";
    assert_eq!(
        done.text(),
        [v4, v4, "28 (0, [])\n28 (0, [])\n", six].concat(),
        "\n{done}"
    );
    assert_eq!(done.record()["denied"], false, "\n{done}");
}

/// Go: connected sockets, write and read, EDNS, both families at once. And one that waits without a timeout.
fn resolvers_with_connected_sockets_are_answered(world: &World) {
    require!(needs::command("python3"), "python3");
    let known = named("db.provost.example");
    let script = "import os\n\
        results = {}\n\
        def go(kind):\n\
        \x20   s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        \x20   s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1); s.connect(('192.0.2.53', 53))\n\
        \x20   os.write(s.fileno(), query('db.provost.example', kind, True))\n\
        \x20   results[kind] = read(os.read(s.fileno(), 1232))\n\
        threads = [threading.Thread(target=go, args=(kind,)) for kind in (1, 28)]\n\
        [t.start() for t in threads]; [t.join() for t in threads]; print(results[1], results[28])\n\
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('192.0.2.53', 53))\n\
        def later(): s.send(query('db.provost.example', 1))\n\
        t = threading.Timer(0.2, later); t.start(); print(s.recvfrom(512)[1]); t.join()\n";
    let done = python(world, script, &known);
    let wanted = "(0, [b'\\x7f\\x00\\x00\\x01']) (0, [])\n('192.0.2.53', 53)\n";
    assert_eq!(done.text(), wanted, "\n{done}");
    assert_eq!(done.record()["denied"], false, "\n{done}");
}

/// libuv takes a socket that has a peer for connected; BIND's tools stop where a port cannot be shared.
fn a_socket_for_questions_says_of_itself_what_a_udp_socket_says(world: &World) {
    require!(needs::command("python3"), "python3");
    let known = named("db.provost.example");
    let script = "def peer(s):\n\
        \x20   try: return s.getpeername()\n\
        \x20   except OSError as e: return e.errno\n\
        for family, any, there in (socket.AF_INET, '0.0.0.0', '192.0.2.53'), (socket.AF_INET6, '::', '2001:db8::53'):\n\
        \x20   s = socket.socket(family, socket.SOCK_DGRAM)\n\
        \x20   s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n\
        \x20   assert s.getsockname()[:2] == (any, 0), s.getsockname()\n\
        \x20   s.bind(('', 0)); own = s.getsockname(); assert own[0] == any and own[1] >= 32768, own\n\
        \x20   s.sendto(query('db.provost.example', 1), (there, 53)); s.recv(512)\n\
        \x20   print(peer(s)); s.connect((there, 53)); print(peer(s)[:2]); assert s.getsockname() == own\n\
        import ctypes\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        def raw(address, length): return libc.getsockname(s.fileno(), address, length), ctypes.get_errno()\n\
        short, length = ctypes.create_string_buffer(b'_' * 8), ctypes.c_int(2)\n\
        print(raw(short, ctypes.byref(length))[0], short.raw[:3], length.value)\n\
        print(raw(None, ctypes.byref(ctypes.c_int(16))), raw(short, None), raw(short, ctypes.byref(ctypes.c_int(-1))))\n\
        t = socket.socket(); assert t.getsockname() == ('0.0.0.0', 0); print(peer(t))\n";
    let done = python(world, script, &known);
    let wanted = "107\n('192.0.2.53', 53)\n107\n('2001:db8::53', 53)\n\
        0 b'\\n\\x00_' 28\n(-1, 14) (-1, 14) (-1, 22)\n107\n";
    assert_eq!(done.text(), wanted, "\n{done}");
    assert_eq!(done.record()["denied"], false, "\n{done}");
}

fn dig_is_answered(world: &World) {
    require!(needs::command("dig"), "dig");
    let known = named("db.provost.example");
    let dig = |name: &str| {
        let words = ["dig", "+short", "+tries=1", "+timeout=20", name];
        world.run(words).with(known.flags.clone()).finish()
    };
    let done = dig("db.provost.example");
    assert_eq!(done.text(), "127.0.0.1\n", "\n{done}");
    let done = dig("secret.evil.example");
    assert_eq!(done.text(), "", "\n{done}");
    done.denial(&network("resolve").host("secret.evil.example"));
}

fn escape_19_nothing_but_questions_gets_out_of_a_datagram_socket(world: &World) {
    require!(needs::command("python3"), "python3");
    let mailbox = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    mailbox.set_nonblocking(true).expect("no waiting");
    let port = mailbox.local_addr().expect("its address").port();
    let known = named("db.provost.example");
    let script = format!(
        "there = ('127.0.0.1', {port})\n\
        def attempt(act):\n\
        \x20   s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        \x20   try: act(s); print('done')\n\
        \x20   except OSError as e: print(e.errno)\n\
        attempt(lambda s: s.connect(there))\n\
        attempt(lambda s: s.sendto(b'x', there))\n\
        attempt(lambda s: s.sendmsg([b'x'], [], 0, there))\n\
        attempt(lambda s: s.bind(('127.0.0.1', 5353)))\n\
        attempt(lambda s: s.connect(('192.0.2.1', 443)))\n\
        t = socket.socket()\n\
        try: t.connect(('192.0.2.53', 53))\n\
        except OSError as e: print(e.errno)\n"
    );
    let done = python(world, &script, &known);
    assert_eq!(done.text(), "13\n".repeat(6), "\n{done}");
    for operation in ["connect", "sendto", "sendmsg"] {
        done.denial(&network(operation).address("127.0.0.1").port(port).protocol("udp"));
    }
    done.denial(&network("connect").address("192.0.2.53").port(53).protocol("tcp"));
    assert!(mailbox.recv(&mut [0]).is_err(), "a datagram came out");
}

fn an_address_that_no_name_led_to_is_refused(world: &World) {
    require!(needs::command("python3"), "python3");
    let known = named("db.provost.example");
    let other = TcpServer::start();
    // Not asked for yet: the address is not pinned. Then it is, for its own port only.
    let script = format!(
        "def attempt(port):\n\
        \x20   try: socket.socket().connect(('127.0.0.1', port)); print('reached')\n\
        \x20   except OSError as e: print(e.errno)\n\
        attempt(PORT); socket.gethostbyname('db.provost.example'); attempt(PORT); attempt({})",
        other.port()
    );
    let done = python(world, &script, &known);
    assert_eq!(done.text(), "13\nreached\n13\n", "\n{done}");
    assert_eq!((known.server.connections(), other.connections()), (1, 0));
    let refused = network("connect").address("127.0.0.1").protocol("tcp");
    done.denial(&refused.clone().port(known.server.port()));
    done.denial(&refused.port(other.port()).host("db.provost.example"));
}

fn localhost_is_a_name(world: &World) {
    require!(needs::command("python3"), "python3");
    let server = TcpServer::start();
    let flags = vec!["--allow-net".to_owned(), format!("localhost:{}", server.port())];
    let known = Name { server, flags };
    let script = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        s.sendto(query('localhost', 1), ('192.0.2.53', 53)); print(read(s.recv(512)))\n\
        socket.create_connection(('127.0.0.1', PORT))";
    let done = python(world, script, &known);
    assert_eq!(done.text(), "(0, [b'\\x7f\\x00\\x00\\x01'])\n", "\n{done}");
    assert_eq!(known.server.connections(), 1, "\n{done}");
}

fn floods_of_sockets_and_questions_are_bounded(world: &World) {
    require!(needs::command("python3"), "python3");
    let server = TcpServer::start();
    let flags = vec!["--allow-net".to_owned(), "*.provost.invalid:443".to_owned()];
    let known = Name { server, flags };
    let script = "made = []\n\
        try:\n\
        \x20   while len(made) < 1000: made.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))\n\
        except OSError as e: print(len(made), e.errno)\n\
        s = made[0]; s.connect(('192.0.2.53', 53))\n\
        for n in range(300): s.send(query(f'n{n}.evil.example', 1)); s.recv(512)\n\
        made.clear(); s.send(b'not a question'); print(s.recv(512)[3] & 15)";
    let done = python(world, script, &known);
    assert_eq!(done.text(), "64 105\n1\n", "\n{done}");
    assert_eq!(done.record()["denials"]["total"], 301, "\n{done}");
}

fn escape_19_without_any_rule_a_wanted_name_is_known(world: &World) {
    require!(needs::command("python3"), "python3");
    let script = "import socket, sys\n\
        try: socket.getaddrinfo('Wanted.provost.example', 443); print('found')\n\
        except socket.gaierror: print('refused')";
    let done = world.run(["python3", "-c", script]).finish();
    assert_eq!(done.text(), "refused\n", "\n{done}");
    let record = done.record();
    let named = network("resolve").host("wanted.provost.example").protocol("dns");
    let denial = done.denial(&named);
    assert_eq!(denial["allow"]["value"], "wanted.provost.example:443", "\n{done}");
    assert_eq!(
        record["denials"]["by_class"]["network"], record["denials"]["total"],
        "\n{done}"
    );
}

/// Runs a client of a named server under `--net ask`, with a decider that says this.
fn asked(world: &World, decision: &str, script: &str) -> (provost_tests::Finished, usize) {
    let server = TcpServer::start();
    let decider = world.file("work/decide", &format!("cat >> asked.jsonl; {decision}"));
    let ask = format!("sh {decider}");
    let script = format!("import socket, sys\nPORT = int(sys.argv[1])\n{script}");
    let done = world
        .run(["python3", "-c", &script, &server.port_text()])
        .with(["--net", "ask", "--ask-command", &ask])
        .with(["--resolve", "db.provost.example=127.0.0.1"])
        .finish();
    (done, server.connections())
}

fn asked_about(world: &World) -> Vec<String> {
    let text = std::fs::read_to_string(world.work().join("asked.jsonl")).unwrap_or_default();
    text.lines()
        .map(|line| {
            let request: serde_json::Value = serde_json::from_str(line).expect("a request");
            let attempt = &request["attempt"];
            format!("{} {}", attempt["operation"], attempt["target"]["host"]).replace('"', "")
        })
        .collect()
}

const TWO_CONNECTIONS: &str =
    "for _ in range(2): socket.create_connection(('db.provost.example', PORT)); print('there')";

fn a_name_is_asked_about_once_and_with_it_its_addresses_are_allowed(world: &World) {
    require!(needs::command("python3"), "python3");
    let (done, connections) = asked(world, "echo allow process", TWO_CONNECTIONS);
    assert_eq!(done.text(), "there\nthere\n", "\n{done}");
    assert_eq!(connections, 2, "\n{done}");
    assert_eq!(asked_about(world), ["resolve db.provost.example"], "\n{done}");
    assert_eq!(done.record()["denied"], false, "\n{done}");
    assert_eq!(done.record()["approvals"]["allowed"], 1, "\n{done}");
}

fn a_name_that_is_allowed_once_is_looked_up_and_each_connection_asked_about(world: &World) {
    require!(needs::command("python3"), "python3");
    let (done, connections) = asked(world, "echo allow once", TWO_CONNECTIONS);
    assert_eq!(done.text(), "there\nthere\n", "\n{done}");
    assert_eq!(connections, 2, "\n{done}");
    let connect = "connect db.provost.example";
    let wanted = ["resolve db.provost.example", connect, connect];
    assert_eq!(asked_about(world), wanted, "\n{done}");
}

const LOOKUP: &str = "try: socket.getaddrinfo('db.provost.example', 1); print('found')\n\
    except socket.gaierror: print('refused')";

fn a_name_that_is_refused_when_asked_about_does_not_exist(world: &World) {
    require!(needs::command("python3"), "python3");
    let (done, _) = asked(world, "echo deny", LOOKUP);
    assert_eq!(done.text(), "refused\n", "\n{done}");
    done.denial(&network("resolve").host("db.provost.example"));
    assert_eq!(done.record()["approvals"]["allowed"], 0, "\n{done}");
}

fn a_name_whose_decider_hangs_does_not_exist_after_the_deadline(world: &World) {
    require!(needs::command("python3"), "python3");
    let done = world
        .run(["python3", "-c", &format!("import socket\n{LOOKUP}")])
        .with(["--net", "ask", "--ask-command", "sleep 1000"])
        .with([
            "--ask-timeout",
            "300ms",
            "--resolve",
            "db.provost.example=127.0.0.1",
        ])
        .finish();
    assert_eq!(done.text(), "refused\n", "\n{done}");
    done.denial(&network("resolve").host("db.provost.example"));
}

fn i2_a_program_that_ends_while_its_name_is_asked_about_leaves_the_attempt_in_its_record(world: &World) {
    require!(needs::command("python3"), "python3");
    let script = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        s.sendto(query('late.provost.example', 1), ('192.0.2.1', 53))\n\
        import os; os._exit(3)";
    let script = format!("{CLIENT}{script}");
    let done = world
        .run(["python3", "-c", &script, "1"])
        .with(["--net", "ask", "--ask-command", "sleep 1000"])
        .finish();
    let record = done.record();
    assert_eq!(record["exit_code"], 3, "\n{done}");
    assert!(
        !record["denials"]["unobserved"].to_string().contains("net"),
        "\n{done}"
    );
    let told = [&record["denials"]["total"], &record["approvals"]["refused"]];
    assert!(told.iter().any(|count| **count == 1), "\n{done}");
}

both_users!(
    escape_19_without_any_rule_a_wanted_name_is_known,
    a_name_is_asked_about_once_and_with_it_its_addresses_are_allowed,
    a_name_that_is_allowed_once_is_looked_up_and_each_connection_asked_about,
    a_name_that_is_refused_when_asked_about_does_not_exist,
    a_name_whose_decider_hangs_does_not_exist_after_the_deadline,
    i2_a_program_that_ends_while_its_name_is_asked_about_leaves_the_attempt_in_its_record,
    an_allowed_name_is_reached_by_libc_and_nothing_is_recorded,
    curl_reaches_an_allowed_name,
    escape_19_a_forbidden_name_is_refused_with_its_name,
    a_wildcard_covers_what_is_below_it,
    a_resolver_that_checks_who_answered_is_answered,
    resolvers_with_connected_sockets_are_answered,
    a_socket_for_questions_says_of_itself_what_a_udp_socket_says,
    dig_is_answered,
    escape_19_nothing_but_questions_gets_out_of_a_datagram_socket,
    an_address_that_no_name_led_to_is_refused,
    localhost_is_a_name,
    floods_of_sockets_and_questions_are_bounded,
);
