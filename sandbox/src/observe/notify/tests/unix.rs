//! Unix sockets: the tree's own, strangers', and those that are not there.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::super::Tree;
use super::super::listener;
use super::harness::{connect, raw, run, setup, socket, unix};
use crate::denial::DenialTarget;
use crate::policy::NetMode;

const CONNECT: &[libc::c_long] = &[libc::SYS_connect];

/// A server in another process, which ends when its input does.
struct Server(Child);

impl Server {
    fn start(name: &str) -> Self {
        const PROGRAM: &str = "import socket, sys
s = socket.socket(socket.AF_UNIX)
name = sys.argv[1]
s.bind(chr(0) + name[1:] if name[0] == '@' else name)
s.listen()
print('ready', flush=True)
sys.stdin.read()";
        let mut child = Command::new("python3")
            .args(["-c", PROGRAM, name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    fn tree(&self) -> Tree {
        Tree {
            init: self.0.id().cast_signed(),
            pid_namespace: None,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// Some other tree.
fn elsewhere() -> Tree {
    Tree {
        init: 1 << 30,
        pid_namespace: None,
    }
}

fn setup_for(tree: Tree) -> super::super::DeciderSetup {
    super::super::DeciderSetup {
        tree,
        ..setup(NetMode::Off, &[])
    }
}

fn stream(path: &Path) -> Option<i32> {
    UnixStream::connect(path)
        .err()
        .and_then(|error| error.raw_os_error())
}

#[test]
fn escape_10_a_strangers_socket_is_refused_and_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let server = Server::start(path.to_str().unwrap());
    let ran = run(setup_for(elsewhere()), CONNECT, || stream(&path));
    assert_eq!(ran.result, Some(libc::EACCES));
    let expected = DenialTarget {
        path: Some(path.canonicalize().unwrap().display().to_string()),
        protocol: Some("unix".to_owned()),
        ..DenialTarget::default()
    };
    assert_eq!(ran.denial().target, expected);
    assert!(ran.denial().rule.starts_with("net = off (preset test)"));
    // The neighbour: the same server, in the tree.
    let ran = run(setup_for(server.tree()), CONNECT, || stream(&path));
    assert_eq!(ran.unrecorded(), None);
}

#[test]
fn own_sockets_work_by_absolute_relative_and_linked_paths() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let server = UnixListener::bind(&path).unwrap();
    std::os::unix::fs::symlink(&path, directory.path().join("link")).unwrap();
    let held = fs::File::open(directory.path()).unwrap();
    let by_descriptor = format!("/proc/self/fd/{}/s", held.as_raw_fd());
    let here = std::env::current_dir().unwrap();
    let relative: std::path::PathBuf = here
        .components()
        .skip(1)
        .map(|_| "..")
        .chain([&path.to_str().unwrap()[1..]])
        .collect();
    let ran = run(setup(NetMode::Off, &[]), CONNECT, || {
        for path in [
            path.as_path(),
            &directory.path().join("link"),
            Path::new(&by_descriptor),
            &relative,
        ] {
            assert_eq!(stream(path), None, "{path:?}");
            server.accept().unwrap();
        }
    });
    ran.unrecorded();
}

#[test]
fn i4_sockets_that_do_not_exist_are_no_denials() {
    let directory = tempfile::tempdir().unwrap();
    let stale = directory.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let ran = run(setup_for(elsewhere()), CONNECT, || {
        [
            stream(&directory.path().join("missing")),
            stream(&directory.path().join("missing/s")),
            stream(&file.join("s")),
            stream(&file),
            stream(&stale),
            connect(
                socket(libc::AF_UNIX, libc::SOCK_STREAM),
                &unix(b"\0provost no such name"),
            )
            .err(),
        ]
    });
    assert_eq!(
        ran.unrecorded(),
        [
            libc::ENOENT,
            libc::ENOENT,
            libc::ENOTDIR,
            libc::ECONNREFUSED,
            libc::ECONNREFUSED,
            libc::ECONNREFUSED
        ]
        .map(Some)
    );
}

#[test]
fn i4_lookups_of_the_c_library_are_probes_even_where_the_service_runs() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: making a mount namespace takes root");
        return;
    }
    // In mounts of the target's own: its view counts, not ours.
    let ran = run(setup(NetMode::Off, &[]), CONNECT, || {
        private_mounts("/run");
        fs::create_dir_all("/run/nscd").unwrap();
        let _service = UnixListener::bind("/run/nscd/socket").unwrap();
        let _neighbour = UnixListener::bind("/run/nscd/other").unwrap();
        [
            stream(Path::new("/run/nscd/socket")),
            stream(Path::new("/run/nscd/../nscd/socket")),
            stream(Path::new("/run/nscd/other")),
        ]
    });
    let refused = Some(libc::ECONNREFUSED);
    assert_eq!(ran.result, [refused, refused, None]);
    assert_eq!(ran.probes, ["connect(nscd)"; 2]);
    assert!(ran.denials.is_empty());
}

/// Gives the calling thread mounts of its own, with an empty file system on `path`.
fn private_mounts(path: &str) {
    use nix::mount::{MsFlags, mount};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), none).unwrap();
}

#[test]
fn escape_12_a_strangers_abstract_socket_is_refused_and_an_own_one_is_not() {
    let name = format!("provost-test-{}", std::process::id());
    let address = unix(format!("\0{name}").as_bytes());
    let server = Server::start(&format!("@{name}"));
    let try_it = || connect(socket(libc::AF_UNIX, libc::SOCK_STREAM), &address);
    let ran = run(setup_for(elsewhere()), CONNECT, try_it);
    assert_eq!(ran.result, Err(libc::EACCES));
    assert_eq!(
        ran.denial().target.path.as_deref(),
        Some(format!("@{name}").as_str())
    );
    let ran = run(setup_for(server.tree()), CONNECT, try_it);
    assert_eq!(ran.unrecorded(), Ok(0));
}

#[test]
fn unix_servers_listen_where_the_network_is_off() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let notified = &[libc::SYS_connect, libc::SYS_bind, libc::SYS_listen];
    let ran = run(setup(NetMode::Off, &[]), notified, || {
        let server = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        server.accept().unwrap();
        drop(client);
        let unbound = socket(libc::AF_UNIX, libc::SOCK_STREAM);
        raw(libc::SYS_listen, [unbound.as_raw_fd() as u64, 1, 0, 0, 0, 0])
    });
    assert_eq!(ran.unrecorded(), Err(libc::EINVAL), "the kernel's own answer");
}

#[test]
fn a_private_network_namespace_keeps_own_and_foreign_sockets_apart() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: making a network namespace takes root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (own, foreign) = (directory.path().join("own"), directory.path().join("foreign"));
    // In the host's namespace, and open in a process that is not of the tree.
    let _stranger = Server::start(foreign.to_str().unwrap());
    let mut setup = setup_for(elsewhere());
    setup.net.mode = NetMode::Isolated;
    let ran = run(setup, CONNECT, || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        stream(&foreign)
    });
    assert_eq!(ran.result, Some(libc::EACCES));
    assert_eq!(ran.denials.len(), 1);

    let setup = super::harness::setup(NetMode::Isolated, &[]);
    let ran = run(setup, CONNECT, || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let server = UnixListener::bind(&own).unwrap();
        assert_eq!(stream(&own), None);
        let accepted = server.accept().unwrap();
        let address = SocketAddr::from_abstract_name("provost own").unwrap();
        let named = UnixListener::bind_addr(&address).unwrap();
        assert!(UnixStream::connect_addr(&address).is_ok());
        drop((accepted, named));
        let nobody = SocketAddr::from_abstract_name("provost nobody").unwrap();
        UnixStream::connect_addr(&nobody).unwrap_err().raw_os_error()
    });
    assert_eq!(ran.unrecorded(), Some(libc::ECONNREFUSED));
}

#[test]
fn unix_addresses_with_odd_lengths_and_bytes_are_answered_as_the_kernel_does() {
    let ran = run(setup(NetMode::Off, &[]), CONNECT, || {
        let client = socket(libc::AF_UNIX, libc::SOCK_STREAM);
        let long = unix(&[b'x'; 108]);
        let path = directory_path();
        [
            connect(client.as_fd(), &unix(b"")),
            connect(client.as_fd(), &unix(&[b'x'; 109])),
            connect(client.as_fd(), &long),
            connect(client.as_fd(), &unix(b"\xff\xfe/\x01")),
            connect(client.as_fd(), &unix(&path)),
            connect(client.as_fd(), &[0, 0]),
        ]
    });
    let errors = [
        libc::EINVAL,
        libc::EINVAL,
        libc::ENOENT,
        libc::ENOENT,
        libc::ECONNREFUSED,
        libc::EINVAL,
    ];
    assert_eq!(ran.unrecorded(), errors.map(Err));
}

fn directory_path() -> Vec<u8> {
    std::env::temp_dir().as_os_str().as_bytes().to_vec()
}

#[test]
fn the_held_file_is_what_is_connected_to() {
    // A listener's file is replaced while the connect waits to run: the connect goes to the first one.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let first = UnixListener::bind(&path).unwrap();
    let file = super::super::paths::View::open(std::process::id().cast_signed())
        .unwrap()
        .lookup(&path, true)
        .unwrap()
        .file;
    fs::rename(&path, directory.path().join("aside")).unwrap();
    let second = UnixListener::bind(&path).unwrap();
    let held = format!("/proc/self/fd/{}", file.as_raw_fd());
    listener::connect(
        socket(libc::AF_UNIX, libc::SOCK_STREAM).as_fd(),
        &unix(held.as_bytes()),
    )
    .unwrap();
    first.accept().unwrap();
    second.set_nonblocking(true).unwrap();
    assert!(second.accept().is_err());
}
