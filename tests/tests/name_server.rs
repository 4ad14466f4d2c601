//! Names that are looked up for real: at a name server of the test's own, in a network namespace without a way out.

#![allow(
    clippy::disallowed_methods,
    reason = "the world around `provost` is made with unshare"
)]

use std::process::Command;

use provost_tests::{World, both_users, needs, provost, require};
use serde_json::Value;

/// Makes loopback and a public address on it, a name server at 127.0.0.1:53 that is the machine's, a server at the
/// public address, and runs `provost` among them. Prints what the command printed, then the names that were asked.
const WORLD: &str = r#"
import fcntl, json, socket, struct, subprocess, sys, threading
provost, uid, directory, script = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def flags(name, up): fcntl.ioctl(s, 0x8914, struct.pack('16sh', name, up))
def address(name, ip): fcntl.ioctl(s, 0x8916, struct.pack('16sHH4s8x', name, socket.AF_INET, 0, socket.inet_aton(ip)))
flags(b'lo', 0x49); address(b'lo:1', '203.0.113.7')
open(directory + '/resolv.conf', 'w').write('nameserver 127.0.0.1\noptions timeout:1 attempts:1\n')
subprocess.run(['mount', '--bind', directory + '/resolv.conf', '/etc/resolv.conf'], check=True)
KNOWN = {'public.test': ['203.0.113.7'], 'inner.test': ['10.0.0.9'], 'rebind.test': ['127.0.0.1', '203.0.113.7'],
         'metadata.test': ['169.254.169.254'], 'a.wild.test': ['203.0.113.7']}
asked = []
dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); dns.bind(('127.0.0.1', 53))
def serve():
    while True:
        query, peer = dns.recvfrom(4096)
        at, labels = 12, []
        while query[at]: labels.append(query[at+1:at+1+query[at]].decode().lower()); at += 1 + query[at]
        name, kind = '.'.join(labels), query[at+2]
        asked.append(name)
        found = KNOWN.get(name, []) if kind == 1 else []
        code = 0 if name in KNOWN else 3
        answer = query[:2] + bytes([0x81, 0x80 | code, 0, 1, 0, len(found), 0, 0, 0, 0]) + query[12:at+5]
        for ip in found: answer += struct.pack('>HHHIH', 0xC00C, 1, 1, 60, 4) + socket.inet_aton(ip)
        dns.sendto(answer, peer)
threading.Thread(target=serve, daemon=True).start()
inner = socket.socket(); inner.bind(('127.0.0.1', 8080)); inner.listen(9)
web = socket.socket(); web.bind(('203.0.113.7', 8080)); web.listen(9)
def answer():
    while True: c, _ = web.accept(); c.sendall(b'public'); c.close()
threading.Thread(target=answer, daemon=True).start()
names = [a for n in ('public.test', 'inner.test', 'rebind.test', 'metadata.test', '*.wild.test', 'gone.test') for a in ('--allow-net', n + ':8080')]
ran = subprocess.run([provost, 'run', '--record', directory + '/record.json', *names, '--', 'python3', '-c', script],
    cwd=directory, user=uid, group=uid, extra_groups=[], env={'PATH': '/usr/local/bin:/usr/bin:/bin', 'HOME': directory}, stdout=subprocess.PIPE, timeout=60)
inner.setblocking(False)
try: inner.accept(); print('INNER REACHED')
except BlockingIOError: pass
sys.stdout.write(ran.stdout.decode()); print('asked', *sorted(set(asked)))
"#;

const COMMAND: &str = r#"
import socket
def attempt(host, port=8080):
    try: print(host, socket.create_connection((host, port), 10).recv(6).decode())
    except socket.gaierror: print(host, 'no name')
    except OSError as e: print(host, e.errno)
for host in ('203.0.113.7', 'public.test', '203.0.113.7', 'inner.test', 'rebind.test', '127.0.0.1', 'metadata.test',
             'a.wild.test', 'gone.test', 'secret.evil.test'): attempt(host)
"#;

fn names_are_looked_up_at_the_machines_name_server_and_lead_outside_only(world: &World) {
    require!(
        nix::unistd::geteuid().is_root(),
        "the superuser, to make a network"
    );
    require!(needs::command("python3"), "python3");
    let (uid, directory) = (world.uid().to_string(), world.work().display().to_string());
    let output = Command::new("unshare")
        .args(["--mount", "--net", "python3", "-c", WORLD])
        .args([
            provost().as_os_str(),
            uid.as_ref(),
            directory.as_ref(),
            COMMAND.as_ref(),
        ])
        .output()
        .expect("unshare");
    let (text, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let wanted = "203.0.113.7 13\npublic.test public\n203.0.113.7 public\ninner.test no name\n\
        rebind.test public\n127.0.0.1 13\nmetadata.test no name\na.wild.test public\ngone.test no name\n\
        secret.evil.test no name\n\
        asked a.wild.test gone.test inner.test metadata.test public.test rebind.test\n";
    assert_eq!(text, wanted, "{errors}");
    let record: Value = serde_json::from_str(&world.content("work/record.json")).expect("a record");
    let refused: std::collections::BTreeSet<&str> = record["denials"]["first"]
        .as_array()
        .expect("denials")
        .iter()
        .filter_map(|denial| denial["target"]["host"].as_str())
        .collect();
    let expected = ["inner.test", "metadata.test", "secret.evil.test"];
    assert!(refused.iter().eq(&expected), "{refused:?}\n{errors}");
}

both_users!(names_are_looked_up_at_the_machines_name_server_and_lead_outside_only);
