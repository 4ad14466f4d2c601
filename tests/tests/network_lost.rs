//! Names and the proxy over the death of the daemon, which answers the one and is the other.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Instant;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use provost_tests::host::TcpServer;
use provost_tests::{DEADLINE, Service, World, both_users, needs, require};

/// Speaks to the proxy, makes first messages of TLS, and asks for names without libc.
const CLIENT: &str = r#"
import os, socket, ssl, struct, sys, urllib.parse, base64
PORT = int(sys.argv[1])
def say(*words): print(*words, flush=True)
def wait():
    say('ready'); open('go').read()
def hello(name):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
    try: tls.do_handshake()
    except ssl.SSLWantReadError: pass
    return outgoing.read()
def tunnel(name):
    proxy = urllib.parse.urlsplit(os.environ['https_proxy'])
    word = base64.b64encode(f'{proxy.username}:{proxy.password}'.encode()).decode()
    s = socket.create_connection((proxy.hostname, proxy.port))
    s.sendall(f'CONNECT {name}:{PORT} HTTP/1.1\r\nHost: {name}:{PORT}\r\nProxy-Authorization: Basic {word}\r\n\r\n'.encode())
    text = b''
    while b'\r\n\r\n' not in text: text += s.recv(1) or exit('the proxy hung up')
    return s, int(text.split()[1])
def query(name):
    body = b''.join(bytes([len(l)]) + l.encode() for l in name.split('.')) + b'\0' + struct.pack('>HH', 1, 1)
    return struct.pack('>HHHHHH', 0x4242, 0x100, 1, 0, 0, 0) + body
def tried(what):
    try: return what()
    except OSError as error: return type(error).__name__
"#;

/// A process that waits for the test before it goes on, and then outlives the daemon that began it.
fn over_a_crash(
    world: &World,
    flags: &[&str],
    server: &TcpServer,
    script: &str,
) -> (String, serde_json::Value) {
    let go: PathBuf = world.path("work/go");
    mkfifo(&go, Mode::S_IRWXU).expect("a FIFO");
    world.give_away(&go, 0o600);
    let mut service = Service::start(world);
    let (port, script) = (server.port_text(), format!("{CLIENT}{script}"));
    let allowed = format!("web.provost.example:{port}");
    let mut words = vec![
        "start",
        "--allow-net",
        &allowed,
        "--resolve",
        "web.provost.example=127.0.0.1",
    ];
    words.extend(flags);
    words.extend(["--", "python3", "-c", &script, &port]);
    let id = service.say(&words);
    let deadline = Instant::now() + DEADLINE;
    while !service.say(&["logs", &id]).contains("ready") {
        assert!(Instant::now() < deadline, "{}", service.say(&["logs", &id]));
    }
    service.restart();
    fs::write(&go, "go").expect("it waits");
    let record = service.say_code(0, &["wait", "--json", &id]);
    let record = serde_json::from_str(&record).expect("JSON");
    (service.say(&["logs", &id]), record)
}

fn a_proxy_is_where_it_was_after_the_daemon_died_and_its_tunnels_have_ended(world: &World) {
    require!(needs::command("python3"), "python3");
    let server = TcpServer::start();
    let listener = server.listener().try_clone().expect("the listener");
    listener.set_nonblocking(false).expect("a blocking listener");
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            std::thread::spawn(move || {
                if client.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {
                    let _ = client.write_all(b"pong");
                }
            });
        }
    });
    let script = "\
s, code = tunnel('web.provost.example'); say(code); wait()
say('before', tried(lambda: s.recv(1)) in (b'', 'ConnectionResetError'))
s, code = tunnel('web.provost.example'); s.sendall(hello('web.provost.example')); say(code, s.recv(4))
say(tunnel('other.provost.example')[1])
say('beside', tried(lambda: socket.create_connection(('127.0.0.1', PORT))))";
    let (said, record) = over_a_crash(world, &["--proxy"], &server, script);
    let expected = "200\nready\nbefore True\n200 b'pong'\n403\nbeside PermissionError\n";
    assert_eq!(said.trim(), expected.trim(), "{record}");
    assert_eq!(record["denials"]["total"], 2, "{record}");
}

fn names_are_answered_by_the_next_daemon_and_sockets_of_before_have_ended(world: &World) {
    require!(needs::command("python3"), "python3");
    let server = TcpServer::start();
    let script = "\
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('192.0.2.53', 53))
s.send(query('web.provost.example')); say('asked', s.recv(512)[-4:] == bytes([127, 0, 0, 1])); wait()
say('before', tried(lambda: s.send(query('web.provost.example'))))
say('found', socket.getaddrinfo('web.provost.example', PORT, type=socket.SOCK_STREAM)[0][4][0])
say('reached', socket.create_connection(('web.provost.example', PORT)).getpeername()[0])
say('other', tried(lambda: socket.getaddrinfo('other.provost.example', PORT)))";
    let (said, record) = over_a_crash(world, &[], &server, script);
    let expected = "asked True\nready\nbefore BrokenPipeError\nfound 127.0.0.1\nreached 127.0.0.1\nother gaierror\n";
    assert_eq!(said.trim(), expected.trim(), "{record}");
    assert_eq!(server.connections(), 1);
}

/// The next daemon knows no address that an earlier one found: it refuses until it is asked itself.
fn an_address_that_an_earlier_daemon_found_is_refused_until_its_name_is_asked_for_again(world: &World) {
    require!(needs::command("python3"), "python3");
    let server = TcpServer::start();
    let script = "\
def find(): return socket.getaddrinfo('web.provost.example', PORT, type=socket.SOCK_STREAM)[0][4]
found = find(); say(found[0]); wait()
say('before', tried(lambda: socket.create_connection(found)))
find(); say('after', tried(lambda: socket.create_connection(found).getpeername()[0]))";
    let (said, record) = over_a_crash(world, &[], &server, script);
    let expected = "127.0.0.1\nready\nbefore PermissionError\nafter 127.0.0.1";
    assert_eq!(said.trim(), expected, "{record}");
    assert_eq!(record["denials"]["total"], 1, "{record}");
}

both_users! {
    a_proxy_is_where_it_was_after_the_daemon_died_and_its_tunnels_have_ended,
    names_are_answered_by_the_next_daemon_and_sockets_of_before_have_ended,
    an_address_that_an_earlier_daemon_found_is_refused_until_its_name_is_asked_for_again,
}
