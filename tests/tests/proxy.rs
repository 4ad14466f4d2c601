//! Hosts by name through the proxy: the name decides for each connection, whoever shares the address.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::JoinHandle;

use provost_tests::host::TcpServer;
use provost_tests::{Finished, World, both_users, needs, network, require};

/// Speaks to the proxy, and makes first messages of TLS with OpenSSL.
const CLIENT: &str = r#"
import os, socket, ssl, sys, urllib.parse, base64
PORT = int(sys.argv[1])
proxy = urllib.parse.urlsplit(os.environ['https_proxy'])
word = base64.b64encode(f'{proxy.username}:{proxy.password}'.encode()).decode()
def hello(name):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(); context.check_hostname = name is not None
    if name is None: context.verify_mode = ssl.CERT_NONE
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    try: tls.do_handshake()
    except ssl.SSLWantReadError: pass
    return outgoing.read()
def ask(head, known=True):
    s = socket.create_connection((proxy.hostname, proxy.port))
    s.sendall((head + (f'Proxy-Authorization: Basic {word}\r\n' if known else '') + '\r\n').encode())
    return s
def status(s):
    text = b''
    while b'\r\n\r\n' not in text: text += s.recv(1) or exit('the proxy hung up')
    return int(text.split()[1])
def tunnel(name, port=PORT):
    s = ask(f'CONNECT {name}:{port} HTTP/1.1\r\nHost: {name}:{port}\r\n')
    return s, status(s)
"#;

struct Web {
    server: TcpServer,
    flags: Vec<String>,
}

/// A server on loopback that two names lead to, of which one is allowed.
fn web() -> Web {
    let server = TcpServer::start();
    let flags = [
        "--proxy".to_owned(),
        "--allow-net".to_owned(),
        format!("web.provost.example:{}", server.port()),
        "--resolve".to_owned(),
        "web.provost.example=127.0.0.1".to_owned(),
    ];
    Web {
        server,
        flags: flags.into(),
    }
}

impl Web {
    /// Answers the next client with this, and gives back what it said until then.
    fn answer(&self, answer: &'static [u8]) -> JoinHandle<Vec<u8>> {
        let listener = self.server.listener().try_clone().expect("the listener");
        listener.set_nonblocking(false).expect("a blocking listener");
        std::thread::spawn(move || {
            let (mut stream, _): (TcpStream, _) = listener.accept().expect("a client");
            let mut said = vec![0; 16 * 1024];
            let length = stream.read(&mut said).expect("what it says");
            said.truncate(length);
            stream.write_all(answer).expect("the client reads");
            said
        })
    }

    fn python(&self, world: &World, script: &str) -> Finished {
        let (script, port) = (format!("{CLIENT}{script}"), self.server.port_text());
        world
            .run(["python3", "-c", &script, &port])
            .with(self.flags.clone())
            .finish()
    }
}

fn a_tunnel_carries_tls_for_the_name_it_was_allowed_for(world: &World) {
    require!(needs::command("python3"), "python3");
    let web = web();
    let served = web.answer(b"pong");
    let script = "s, code = tunnel('WEB.provost.example'); s.sendall(hello('web.provost.example')); print(code, s.recv(4))";
    let done = web.python(world, script);
    assert_eq!(done.text(), "200 b'pong'\n", "\n{done}");
    assert_eq!(done.record()["denied"], false, "\n{done}");
    let said = served.join().expect("the server");
    assert_eq!(said[0], 22, "the first record of TLS");
    assert!(said.windows(19).any(|part| part == b"web.provost.example"));
}

fn a_tunnel_carries_nothing_for_another_name_at_the_same_address(world: &World) {
    require!(needs::command("python3"), "python3");
    let web = web();
    let script = "for first in hello('other.provost.example'), hello(None), b'GET / HTTP/1.1\\r\\nHost: other\\r\\n\\r\\n':\n\
        \x20   s, code = tunnel('web.provost.example'); s.sendall(first); print(code, s.recv(4))";
    let done = web.python(world, script);
    assert_eq!(done.text(), "200 b''\n200 b''\n200 b''\n", "\n{done}");
    let denial = done.denial(&network("connect").host("other.provost.example"));
    assert!(
        denial["rule"]
            .as_str()
            .unwrap_or("")
            .contains("TLS for another name"),
        "\n{done}"
    );
    assert_eq!(done.denials_total(), 3, "\n{done}");
    for mut client in web.server.listener().incoming().take(3).flatten() {
        let mut said = Vec::new();
        client.read_to_end(&mut said).expect("the proxy hangs up");
        assert!(said.is_empty(), "{said:?}");
    }
}

fn a_forbidden_host_is_refused_with_its_name_and_never_looked_up(world: &World) {
    require!(needs::command("python3"), "python3");
    let web = web();
    let script = "print(tunnel('evil.provost.example')[1], tunnel('web.provost.example', 1)[1], tunnel('127.0.0.1')[1])\n\
        print(status(ask('GET http://evil.provost.example/ HTTP/1.1\\r\\nHost: web.provost.example\\r\\n')))";
    let done = web.python(world, script);
    assert_eq!(done.text(), "403 403 403\n403\n", "\n{done}");
    let denial = done.denial(&network("connect").host("evil.provost.example").port(80));
    assert_eq!(denial["allow"]["value"], "evil.provost.example:80", "\n{done}");
    done.denial(&network("connect").host("web.provost.example").port(1));
    done.denial(&network("connect").address("127.0.0.1").port(web.server.port()));
    assert_eq!(done.denials_total(), 4, "\n{done}");
    assert_eq!(web.server.connections(), 0);
}

fn plain_requests_go_to_the_host_they_name_whatever_their_headers_say(world: &World) {
    require!(needs::command("curl"), "curl");
    let web = web();
    let served = web.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    let url = format!("http://web.provost.example:{}/path?x=1", web.server.port());
    let done = world
        .run([
            "curl",
            "-sS",
            "--max-time",
            "20",
            "-H",
            "Host: other.provost.example",
            &url,
        ])
        .with(web.flags.clone())
        .finish();
    assert_eq!(done.text(), "hello", "\n{done}");
    let said = String::from_utf8_lossy(&served.join().expect("the server")).to_ascii_lowercase();
    assert!(said.starts_with("get /path?x=1 http/1.1\r\n"), "{said}");
    assert!(
        said.contains(&format!("host: web.provost.example:{}\r\n", web.server.port())),
        "{said}"
    );
    assert!(
        !said.contains("other.provost.example") && !said.contains("proxy-"),
        "{said}"
    );
}

fn there_is_no_way_around_the_proxy(world: &World) {
    require!(needs::command("python3"), "python3");
    let web = web();
    let script = "try: socket.getaddrinfo('web.provost.example', PORT); print('found')\n\
        except socket.gaierror: print('no name')\n\
        try: socket.create_connection(('127.0.0.1', PORT)); print('connected')\n\
        except PermissionError: print('refused')\n\
        print(status(ask(f'CONNECT web.provost.example:{PORT} HTTP/1.1\\r\\n', known=False)))";
    let done = web.python(world, script);
    assert_eq!(done.text(), "no name\nrefused\n407\n", "\n{done}");
    let denial = done.denial(&network("resolve").host("web.provost.example"));
    assert!(
        denial["rule"]
            .as_str()
            .unwrap_or("")
            .contains("through the proxy only"),
        "\n{done}"
    );
    assert_eq!(web.server.connections(), 0);
}

fn i2_what_was_asked_of_the_proxy_at_the_last_moment_is_in_the_record(world: &World) {
    require!(needs::command("python3"), "python3");
    let web = web();
    let script = "s = ask('CONNECT last.provost.example:443 HTTP/1.1\\r\\n'); os._exit(3)";
    let done = web.python(world, script);
    assert_eq!(done.code, Some(3), "\n{done}");
    done.denial(&network("connect").host("last.provost.example").port(443));
}

fn the_proxy_goes_with_a_closed_network_only(world: &World) {
    for flags in [["--net", "open"], ["--net", "isolated"], ["--net", "ask"]] {
        let done = world
            .shell("true")
            .with(flags)
            .with(["--proxy", "--ask-command", "true"])
            .finish();
        assert_eq!(done.code, Some(125), "\n{done}");
        assert!(done.stderr.contains("proxy"), "\n{done}");
    }
}

both_users!(
    a_tunnel_carries_tls_for_the_name_it_was_allowed_for,
    a_tunnel_carries_nothing_for_another_name_at_the_same_address,
    a_forbidden_host_is_refused_with_its_name_and_never_looked_up,
    plain_requests_go_to_the_host_they_name_whatever_their_headers_say,
    there_is_no_way_around_the_proxy,
    i2_what_was_asked_of_the_proxy_at_the_last_moment_is_in_the_record,
    the_proxy_goes_with_a_closed_network_only,
);
