//! Rules beside those for paths and TCP destinations: serving, datagrams, programs, system calls.

use std::net::UdpSocket;

use provost_tests::{World, both_users, filesystem, needs, network, require, syscall};

fn tcp_is_served_where_a_rule_says_so_and_nowhere_else(world: &World) {
    require!(needs::command("python3"), "python3");
    let script = "import socket\n\
        s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()\n\
        c = socket.create_connection(s.getsockname()); a, _ = s.accept()\n\
        c.sendall(b'through'); print(a.recv(7).decode())\n\
        for address in ('127.0.0.2', 0), ('0.0.0.0', 0), ('127.0.0.1', 1023):\n\
        \x20   try: socket.socket().bind(address); print('bound')\n\
        \x20   except PermissionError: print('refused')\n\
        try: socket.socket().listen(); print('listens')\n\
        except PermissionError: print('refused')\n";
    let done = world
        .run(["python3", "-c", script])
        .with(["--listen", "127.0.0.1:*", "--allow-net", "127.0.0.1:*"])
        .finish();
    assert_eq!(
        done.text(),
        "through\nrefused\nrefused\nrefused\nrefused\n",
        "\n{done}"
    );
    assert_eq!(done.denials_total(), 4, "\n{done}");
    let denial = done.denial(&network("bind").address("127.0.0.2").protocol("tcp"));
    assert_eq!(denial["allow"]["key"], "net.listen", "\n{done}");
    assert_eq!(denial["allow"]["value"], "127.0.0.2:*", "\n{done}");
    done.denial(&network("bind").address("127.0.0.1").port(1023));
    done.denial(&network("listen").protocol("tcp"));
}

/// Answers every datagram with the same in capitals, until it is told `end`.
fn shouting() -> (u16, std::thread::JoinHandle<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a UDP socket");
    let port = socket.local_addr().expect("its address").port();
    let answering = std::thread::spawn(move || {
        let mut datagram = [0; 4096];
        loop {
            let (length, from) = socket.recv_from(&mut datagram).expect("a datagram");
            if &datagram[..length] == b"end" {
                return;
            }
            let answer = datagram[..length].to_ascii_uppercase();
            socket.send_to(&answer, from).expect("it is sent");
        }
    });
    (port, answering)
}

fn datagrams_go_where_a_rule_says_so_and_nowhere_else(world: &World) {
    require!(needs::command("python3"), "python3");
    let (port, answering) = shouting();
    let (other, other_answering) = shouting();
    let script = "import socket, sys\n\
        there, other = ('127.0.0.1', int(sys.argv[1])), ('127.0.0.1', int(sys.argv[2]))\n\
        s = socket.socket(type=socket.SOCK_DGRAM); s.sendto(b'unconnected', there)\n\
        data, address = s.recvfrom(100); print(data.decode(), address == there)\n\
        c = socket.socket(type=socket.SOCK_DGRAM); c.connect(there); c.send(b'x' * 3000); print(len(c.recv(4000)))\n\
        for act in lambda: s.sendto(b'end', other), lambda: c.connect(other):\n\
        \x20   try: act(); print('sent')\n\
        \x20   except PermissionError: print('refused')\n\
        c.send(b'still'); print(c.recv(100).decode())\n";
    let done = world
        .run(["python3", "-c", script, &port.to_string(), &other.to_string()])
        .with(["--allow-net", &format!("127.0.0.1:{port}/udp")])
        .finish();
    assert_eq!(
        done.text(),
        "UNCONNECTED True\n3000\nrefused\nrefused\nSTILL\n",
        "\n{done}"
    );
    let denial = done.denial(&network("sendto").port(other).protocol("udp"));
    assert_eq!(
        denial["allow"]["value"],
        format!("127.0.0.1:{other}/udp"),
        "\n{done}"
    );
    let end = UdpSocket::bind("127.0.0.1:0").expect("a UDP socket");
    for port in [port, other] {
        end.send_to(b"end", ("127.0.0.1", port)).expect("it is sent");
    }
    answering.join().expect("the server");
    other_answering
        .join()
        .expect("nothing but our own word reached it");
}

fn only_listed_programs_are_executed(world: &World) {
    let script = "/bin/true && echo listed; cp /bin/true own; ./own || echo \"own $?\"; \
        cp /bin/true $TMPDIR/own 2>/dev/null || cp /bin/true /tmp/own; (exec ${TMPDIR:-/tmp}/own) || echo \"tmp $?\"";
    let done = world.shell(script).with(["--execute", "/usr/bin"]).finish();
    assert_eq!(done.text(), "listed\nown 126\ntmp 126\n", "\n{done}");
    if world.is_root() {
        let denial = done.denial(&filesystem().or("exec").path(world.text("work/own")));
        assert_eq!(denial["allow"]["key"], "files.execute", "\n{done}");
    } else {
        let unobserved = done.record()["denials"]["unobserved"].to_string();
        assert!(unobserved.contains("exec"), "\n{done}");
    }
    // Without the list they all are.
    let done = world.shell("cp /bin/true own; ./own && echo ran").finish();
    assert_eq!(done.text(), "ran\n", "\n{done}");
}

fn system_calls_are_refused_by_name(world: &World) {
    require!(needs::command("python3"), "python3");
    let script = "import os\n\
        try: os.getpriority(os.PRIO_PROCESS, 0); print('told')\n\
        except PermissionError: print('refused')";
    let done = world
        .run(["python3", "-c", script])
        .with(["--refuse-syscall", "getpriority"])
        .finish();
    assert_eq!(done.text(), "refused\n", "\n{done}");
    let denial = done.denial(&syscall("getpriority"));
    assert_eq!(denial["rule"], "--refuse-syscall getpriority", "\n{done}");
    for (name, why) in [
        ("getprioritee", "no system call of that name"),
        ("execve", "can start"),
    ] {
        let done = world.shell("true").with(["--refuse-syscall", name]).finish();
        assert_eq!(done.code, Some(125), "\n{done}");
        assert!(done.stderr.contains(why), "\n{done}");
    }
}

fn a_file_says_what_the_flags_say(world: &World) {
    require!(needs::command("python3"), "python3");
    let file = world.file(
        "work/all.toml",
        "version = 1\nextends = \"workspace-write\"\n[files]\nexecute = [\"/usr/bin\"]\n\
         [net]\nallow = [\"192.0.2.1:123/udp\"]\nlisten = [\"127.0.0.1:*\"]\n\
         [syscalls]\nrefuse = [\"getpriority\"]\n",
    );
    let script = "import os, socket\n\
        s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); print('served')\n\
        try: os.getpriority(os.PRIO_PROCESS, 0)\n\
        except PermissionError: print('refused')";
    let done = world
        .run(["python3", "-c", script])
        .with(["--policy", &file])
        .finish();
    assert_eq!(done.text(), "served\nrefused\n", "\n{done}");
    let denial = done.denial(&syscall("getpriority"));
    let rule = format!("{file}:9: syscalls.refuse `getpriority`");
    assert_eq!(denial["rule"], rule, "\n{done}");
}

both_users!(
    tcp_is_served_where_a_rule_says_so_and_nowhere_else,
    datagrams_go_where_a_rule_says_so_and_nowhere_else,
    only_listed_programs_are_executed,
    system_calls_are_refused_by_name,
    a_file_says_what_the_flags_say,
);
