"""Programs that look a name up and connect to it: each with its own resolver, or its own way with libc's.

They run in the network of compat_world.py, bare and under `provost run --allow-net allowed.test:8080`.
"""

GO = r"""
package main

import ("fmt"; "io"; "net"; "os"; "time")

func main() {
	connection, err := net.DialTimeout("tcp", os.Args[1]+":8080", 10*time.Second)
	if err != nil { fmt.Println("failed"); os.Exit(1) }
	fmt.Fprint(connection, "GET / HTTP/1.0\r\n\r\n")
	page, _ := io.ReadAll(connection)
	fmt.Println(connection.RemoteAddr(), string(page))
}
"""

RUST = r"""
use std::io::{Read, Write};

fn main() {
    let name = std::env::args().nth(1).unwrap();
    let mut stream = std::net::TcpStream::connect((name.as_str(), 8080)).expect("a connection");
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    println!("{} {page}", stream.peer_addr().unwrap());
}
"""

C = r"""
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int count, char **words) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    int error = getaddrinfo(words[1], "8080", &hints, &found);
    if (error) return printf("%s\n", gai_strerror(error)), 1;
    int fd = socket(found->ai_family, found->ai_socktype, 0);
    if (connect(fd, found->ai_addr, found->ai_addrlen)) return perror("connect"), 1;
    write(fd, "GET / HTTP/1.0\r\n\r\n", 18);
    char page[4096];
    for (ssize_t got; (got = read(fd, page, sizeof page)) > 0;) fwrite(page, 1, got, stdout);
    return 0;
}
"""

# Messages of its own, by the way that is asked for.
QUESTION = r"""
import socket, struct, sys
name, way = sys.argv[1:]
query = struct.pack('>HHHHHH', 7, 0x100, 1, 0, 0, 0) + b''.join(bytes([len(l)]) + l.encode() for l in name.split('.')) + b'\0\0\1\0\1'
def stream():
    s = socket.create_connection(('127.0.0.1', 53)); s.sendall(struct.pack('>H', len(query)) + query)
    return s.makefile('rb').read(struct.unpack('>H', s.recv(2, socket.MSG_WAITALL))[0])
def unconnected():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 0)); assert s.getsockname()[1]
    s.sendto(query, ('127.0.0.1', 53)); message, source = s.recvfrom(512); assert source == ('127.0.0.1', 53), source
    return message
def connected():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('127.0.0.1', 53)); assert s.getpeername() == ('127.0.0.1', 53)
    s.send(query); return s.recv(512)
message = {'tcp': stream, 'udp': unconnected, 'connected': connected}[way]()
print(message[3] & 15, socket.inet_ntoa(message[-4:]) if message[7] else None)
"""

FETCH = """
const name = process.argv[2];
require('dns').resolve4(name, (error, found) => {
    console.log(error && error.code, found);
    fetch(`http://${name}:8080/`).then(page => page.text()).then(console.log, error => console.log(error.cause.code));
});
"""

PERL = r"""
use IO::Socket::INET;
my $s = IO::Socket::INET->new("$ARGV[0]:8080") or die "failed\n"; print $s "GET / HTTP/1.0\r\n\r\n"; print $s->peerhost, <$s>;
"""

CHROMIUMS = "chromium-headless-shell|chromium|google-chrome"
CHROMIUM = """$(command -v chromium-headless-shell || command -v chromium || command -v google-chrome)"""

DNS_OVER_TCP = "DNS over TCP is refused like any other connection"

# Name: what must be there, how it is built in $MADE, how it asks for $NAME, and if its question is refused whatever the name:
# the denial's operation and port, and why.
CLIENTS = {
    "glibc": (["getent"], "", "getent ahostsv4 $NAME", None),
    "python": (["python3"], "", """python3 -c 'import socket, sys
s = socket.create_connection((sys.argv[1], 8080)); print(s.getpeername())' $NAME""", None),
    "python, UDP": (["python3"], "", "python3 $MADE/question.py $NAME udp && python3 $MADE/question.py $NAME connected", None),
    "python, DNS over TCP": (["python3"], "", "python3 $MADE/question.py $NAME tcp", ("connect", 53, DNS_OVER_TCP)),
    "curl": (["curl"], "", "curl -sS --max-time 20 http://$NAME:8080/", None),
    "wget": (["wget"], "", "wget -q -T 20 -O - http://$NAME:8080/", None),
    "perl": (["perl"], "", "perl $MADE/page.pl $NAME", None),
    "node, c-ares": (["node"], "", "node $MADE/fetch.js $NAME", None),
    "busybox nslookup": (["busybox"], "", "busybox nslookup $NAME", None),
    "busybox wget": (["busybox"], "", "busybox wget -q -O - http://$NAME:8080/", None),
    "dig": (["dig"], "", "dig +tries=1 +timeout=5 +short $NAME", None),
    "dig +tcp": (["dig"], "", "dig +tries=1 +timeout=5 +short +tcp $NAME", ("connect", 53, DNS_OVER_TCP)),
    "host": (["host"], "", "host -t A $NAME", None),
    "nslookup": (["nslookup"], "", "nslookup $NAME", None),
    "go, static": (["go"], "cd $MADE && CGO_ENABLED=0 GO111MODULE=off GOCACHE=$MADE/cache go build -o go page.go", "$MADE/go $NAME", None),
    "musl, C": (["musl-gcc"], "musl-gcc -static -o $MADE/c $MADE/page.c", "$MADE/c $NAME", None),
    "musl, Rust": (
        ["rustc"],
        "rustc --target x86_64-unknown-linux-musl -o $MADE/rust $MADE/page.rs",
        "$MADE/rust $NAME",
        None,
    ),
    "chromium": (
        [CHROMIUMS],
        "",
        CHROMIUM + " --headless --no-sandbox --user-data-dir=$PWD/profile --dump-dom http://$NAME:8080/",
        None,
    ),
}

FILES = {"page.go": GO, "page.rs": RUST, "page.c": C, "question.py": QUESTION, "fetch.js": FETCH, "page.pl": PERL}
