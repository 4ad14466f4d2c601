//! A daemon that may not look into the processes of its keeper, as an ordinary user's with Yama once it was started again. The
//! kernel of a test may have no Yama; a filter and a domain of Landlock, which the keeper is not in, refuse the daemon the same.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use provost_tests::host::TcpServer;
use provost_tests::{DEADLINE, Service, Wanted, World, both_users, filesystem, needs, network, require};
use serde_json::Value;

/// `process_vm_readv(2)` and `pidfd_getfd(2)` fail with `EPERM`.
const FILTERED: &str = r"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
SECCOMP, READ = {'x86_64': (317, 310), 'aarch64': (277, 270)}[os.uname().machine]
LOAD, JUMP, RETURN, ALLOW, EPERM = 0x20, 0x15, 0x06, 0x7fff0000, 0x50001
lines = [(LOAD, 0, 0, 0), (JUMP, 2, 0, READ), (JUMP, 1, 0, 438), (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, EPERM)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *line) for line in lines))
program = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', len(lines), ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.syscall(SECCOMP, 1, 0, program) == 0, ctypes.get_errno()
os.execv(sys.argv[1], sys.argv[1:])
";

/// Whoever is in a domain of Landlock may not look into who is not, in any way. This one forbids TCP binds and nothing else.
const IN_A_DOMAIN: &str = r"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
ruleset = libc.syscall(444, struct.pack('QQ', 0, 1), 16, 0)
assert ruleset >= 0, ctypes.get_errno()
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.syscall(446, ruleset, 0) == 0, ctypes.get_errno()
os.execv(sys.argv[1], sys.argv[1:])
";

const CONNECTS: &str = r"
import os, socket, sys
PORT, OUTSIDE = int(sys.argv[1]), sys.argv[2]
def tried(what):
    try: return what()
    except OSError as error: return type(error).__name__
print('ready', flush=True); open('go').read()
print('allowed', tried(lambda: socket.create_connection(('127.0.0.1', PORT)).getpeername()[0]))
print('refused', tried(lambda: socket.create_connection(('192.0.2.1', 80))))
";

const METADATA: &str = r"
open('own', 'w').close(); own = os.open('own', os.O_RDONLY)
os.chmod('own', 0o640); print('mode %o' % os.stat('own').st_mode)
os.fchmod(own, 0o604); print('mode %o' % os.stat('own').st_mode)
print('outside', tried(lambda: os.chmod(OUTSIDE, 0o600)), tried(lambda: os.fchmod(os.open(OUTSIDE, os.O_RDONLY), 0o600)))
s = socket.socket(socket.AF_UNIX); s.bind('own.sock'); s.listen()
c = socket.socket(socket.AF_UNIX); c.connect('own.sock'); c.send(b'own'); print('unix', s.accept()[0].recv(3))
";

const END: &str = "open('done', 'w').close()";

/// What the script says, and its record, when the daemon is another one from its `ready` on, started by this wrapper.
fn served_on_by(world: &World, wrapper: &str, script: &str) -> (String, Value, TcpServer) {
    let [go, done] = ["work/go", "work/done"].map(|name| {
        let path = world.path(name);
        mkfifo(&path, Mode::S_IRWXU).expect("a FIFO");
        world.give_away(&path, 0o600);
        path
    });
    let server = TcpServer::start();
    let allowed = server.address().to_string();
    let outside = world.file("outside/file", "kept");
    let mut service = Service::start(world);
    let id = service.say(&[
        "start",
        "--allow-net",
        &allowed,
        "--",
        "python3",
        "-c",
        script,
        &server.port_text(),
        &outside,
    ]);
    let deadline = Instant::now() + DEADLINE;
    while !service.say(&["logs", &id]).contains("ready") {
        assert!(Instant::now() < deadline, "{}", service.say(&["logs", &id]));
    }
    service.restart_by(&["python3", "-c", wrapper]);
    fs::write(&go, "go").expect("it waits");
    if wrapper == IN_A_DOMAIN {
        // That one may not look at clients either.
        fs::read(&done).expect("it ends");
        service.restart();
    }
    let record = service.say_code(0, &["wait", "--json", &id]);
    let record = serde_json::from_str(&record).expect("JSON");
    (service.say(&["logs", &id]), record, server)
}

fn assert_denied(record: &Value, wanted: &[Wanted]) {
    let denials = record["denials"]["first"].as_array().expect("denials");
    for wanted in wanted {
        assert!(
            denials.iter().any(|denial| wanted.fits(denial)),
            "{wanted:?}: {record:#}"
        );
    }
}

fn a_daemon_that_may_not_look_into_a_living_command_asks_its_keeper(world: &World) {
    require!(needs::command("python3"), "python3");
    let (said, record, server) = served_on_by(world, FILTERED, &format!("{CONNECTS}{METADATA}"));
    let expected = "ready\nallowed 127.0.0.1\nrefused PermissionError\nmode 100640\nmode 100604\n\
                    outside PermissionError PermissionError\nunix b'own'";
    assert_eq!(said.trim(), expected, "{record:#}");
    assert_eq!(server.connections(), 1);
    let outside = world.path("outside/file");
    let metadata = fs::metadata(&outside).expect("the file");
    assert_eq!(metadata.mode() & 0o777, 0o644);
    let refused = network("connect").address("192.0.2.1").port(80).protocol("tcp");
    let changed = filesystem().path(outside.display().to_string());
    assert_denied(&record, &[refused, changed]);
    assert_eq!(record["denials"]["total"], 3, "{record:#}");
}

/// There `/proc/PID/mem` is no way around either.
fn arguments_are_read_through_the_keeper_where_nothing_else_reads_them(world: &World) {
    require!(needs::command("python3"), "python3");
    require!(needs::landlock_abi() >= 4, "Landlock's network rules");
    let (said, record, server) = served_on_by(world, IN_A_DOMAIN, &format!("{CONNECTS}{END}"));
    let expected = "ready\nallowed 127.0.0.1\nrefused PermissionError";
    assert_eq!(said.trim(), expected, "{record:#}");
    assert_eq!(server.connections(), 1);
    let refused = network("connect").address("192.0.2.1").port(80).protocol("tcp");
    assert_denied(&record, &[refused]);
    assert_eq!(record["denials"]["total"], 1, "{record:#}");
}

both_users! {
    a_daemon_that_may_not_look_into_a_living_command_asks_its_keeper,
    arguments_are_read_through_the_keeper_where_nothing_else_reads_them,
}
