#!/usr/bin/env python3
"""Runs a command in a network of its own, where two names lead to one web server.

    python3 tests/compat_world.py COMMAND…

`allowed.test` and `forbidden.test` have a public address, which the loopback of that network has; a name server at 127.0.0.1,
UDP and TCP, says so, and is the one in /etc/resolv.conf. The command runs as the user who asked for it. Needs the right to
make namespaces.
"""

import fcntl
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading

PUBLIC = "203.0.113.7"
NAMES = ["allowed.test", "forbidden.test"]
PAGE = b"<p id=a>old</p><script>document.getElementById('a').textContent='public'</script>\n"
TYPE_A = 1


def loopback():
    control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    fcntl.ioctl(control, 0x8914, struct.pack("16sh", b"lo", 0x49))  # SIOCSIFFLAGS: up
    address = struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton(PUBLIC))
    fcntl.ioctl(control, 0x8916, address)  # SIOCSIFADDR


def answer(query):
    """One question in, one answer out; EDNS is not looked at."""
    at, labels = 12, []
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode().lower())
        at += 1 + query[at]
    kind, known = query[at + 2], ".".join(labels) in NAMES
    found = [socket.inet_aton(PUBLIC)] if known and kind == TYPE_A else []
    head = query[:2] + bytes([0x81, 0x80 if known else 0x83, 0, 1, 0, len(found), 0, 0, 0, 0])
    return head + query[12 : at + 5] + b"".join(struct.pack(">HHHIH", 0xC00C, TYPE_A, 1, 60, 4) + each for each in found)


def serve_datagrams(server):
    while True:
        query, peer = server.recvfrom(4096)
        server.sendto(answer(query), peer)


def serve_streams(server, serve):
    def each(client):
        with client, client.makefile("rwb") as stream:
            try:
                serve(stream)
            except OSError:
                pass  # The client is gone.

    while True:
        threading.Thread(target=each, args=(server.accept()[0],), daemon=True).start()


def one_question(stream):
    while length := stream.read(2):
        told = answer(stream.read(*struct.unpack(">H", length)))
        stream.write(struct.pack(">H", len(told)) + told)
        stream.flush()


def one_page(stream):
    while stream.readline().strip():
        pass
    stream.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(PAGE) + PAGE)


def listening(address):
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(address)
    server.listen(64)
    return server


def inside(uid, gid, words):
    loopback()
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as configuration:
        configuration.write("nameserver 127.0.0.1\noptions timeout:2 attempts:2\n")
        configuration.flush()
        os.chmod(configuration.name, 0o644)
        subprocess.run(["mount", "--bind", configuration.name, "/etc/resolv.conf"], check=True)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 53))
    streams = [(listening(("127.0.0.1", 53)), one_question), (listening((PUBLIC, 8080)), one_page)]
    threading.Thread(target=serve_datagrams, args=(datagrams,), daemon=True).start()
    for server in streams:
        threading.Thread(target=serve_streams, args=server, daemon=True).start()
    # An ordinary user is one again: in a user namespace below the one that made the network.
    again = [] if uid == 0 else ["unshare", "--user", f"--map-user={uid}", f"--map-group={gid}", "--"]
    return subprocess.run(again + words).returncode


def main():
    if sys.argv[1] == "--inside":
        return inside(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    uid, gid = os.getuid(), os.getgid()
    user = [] if uid == 0 else ["--user", "--map-root-user"]
    here = [sys.executable, os.path.abspath(__file__), "--inside", str(uid), str(gid)]
    return subprocess.run(["unshare", *user, "--mount", "--net", "--", *here, *sys.argv[1:]]).returncode


if __name__ == "__main__":
    sys.exit(main())
