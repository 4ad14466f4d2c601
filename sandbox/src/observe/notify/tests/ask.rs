//! Asking: what is allowed is performed exactly as it was asked about, what is not is refused.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::PathBuf;

use super::super::{DeciderSetup, Grants};
use super::harness::{run_asked, setup};
use crate::compile::access::AccessMap;
use crate::denial::{Certainty, DenialClass};
use crate::policy::{AskPolicy, FilePolicy, NetMode, PathRule};

const OPENS: &[libc::c_long] = &[libc::SYS_openat, libc::SYS_openat2];
const CONNECT: &[libc::c_long] = &[libc::SYS_connect];

/// `rw` may be written, `deny` is denied, nothing is said about the rest.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for name in ["rw", "deny", "other"] {
            fs::create_dir(tree.path(name)).unwrap();
            fs::write(tree.path(name).join("file"), "text").unwrap();
        }
        tree
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn setup(&self) -> DeciderSetup {
        let files = FilePolicy {
            read: vec![PathRule::preset("/usr", "preset test")],
            write: vec![PathRule::explicit(self.path("rw"), "--write rw")],
            deny: vec![PathRule::explicit(self.path("deny"), "--deny deny")],
            ..FilePolicy::default()
        };
        DeciderSetup {
            access: Some(AccessMap::new(&files, &[])),
            observe_reads: true,
            ask: AskPolicy {
                net: true,
                files: true,
            },
            ..setup(NetMode::Off, &[])
        }
    }
}

fn error<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn an_allowed_open_is_the_targets_own_descriptor() {
    let tree = Tree::new();
    let path = tree.path("other/file");
    let mut asked = Vec::new();
    let ran = run_asked(
        tree.setup(),
        OPENS,
        |question| {
            let denial = question.denial();
            asked.push((denial.operation.clone(), denial.target.path.clone()));
            true
        },
        || {
            let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
            file.write_all(b" more").unwrap();
            let mut text = String::new();
            fs::File::open(&path).unwrap().read_to_string(&mut text).unwrap();
            text
        },
    );
    assert_eq!(ran.result, "text more");
    assert!(ran.denials.is_empty());
    let shown = Some(path.display().to_string());
    assert_eq!(
        asked,
        [("write".to_owned(), shown.clone()), ("open".to_owned(), shown)]
    );
}

#[test]
fn a_refused_open_is_a_denial_and_changes_nothing() {
    let tree = Tree::new();
    let (file, new) = (tree.path("other/file"), tree.path("other/new"));
    let ran = run_asked(
        tree.setup(),
        OPENS,
        |_| false,
        || (error(fs::write(&file, "x")), error(fs::write(&new, "x"))),
    );
    assert_eq!(ran.result, (Some(libc::EACCES), Some(libc::EACCES)));
    assert_eq!(fs::read_to_string(&file).unwrap(), "text");
    assert!(!new.exists());
    assert_eq!(ran.denials.len(), 2);
    for denial in &ran.denials {
        assert_eq!(
            (denial.class, denial.certainty),
            (DenialClass::Filesystem, Certainty::Observed)
        );
    }
}

#[test]
fn a_new_file_has_the_mode_that_the_target_asked_for() {
    let tree = Tree::new();
    let new = tree.path("other/new");
    let ran = run_asked(
        tree.setup(),
        OPENS,
        |question| question.denial().operation == "create",
        || {
            fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o4750)
                .open(&new)
                .unwrap()
                .write_all(b"x")
                .unwrap();
        },
    );
    drop(ran);
    let mode = fs::metadata(&new).unwrap().permissions().mode();
    assert_eq!(
        mode & 0o7777 & !0o27,
        0o750 & !0o27,
        "{mode:o}: no set-id bit is given away"
    );
}

#[test]
fn what_a_rule_denies_is_not_asked_about() {
    let tree = Tree::new();
    let denied = tree.path("deny/file");
    symlink(&denied, tree.path("rw/link")).unwrap();
    let link = tree.path("rw/link");
    let mut asked = 0;
    let ran = run_asked(
        tree.setup(),
        OPENS,
        |_| {
            asked += 1;
            true
        },
        || {
            // Nothing but the decider refuses here: that both are let through says that nobody was asked.
            let _ = (fs::read(&denied), fs::write(&link, "x"));
            let _ = fs::File::open("/dev/null");
        },
    );
    assert_eq!(asked, 0, "{:?}", ran.denials);
    assert_eq!(ran.denials.len(), 2, "{:?}", ran.denials);
}

#[test]
fn what_was_allowed_for_good_is_not_asked_about_again() {
    let tree = Tree::new();
    let path = tree.path("other/file");
    let grants = Grants::default();
    let setup = DeciderSetup {
        ready: None,
        grants: vec![Grants::default(), grants.clone()],
        ..tree.setup()
    };
    let mut asked = 0;
    let ran = run_asked(
        setup,
        OPENS,
        |question| {
            asked += 1;
            grants.add(question.grant().clone())
        },
        || {
            for _ in 0..3 {
                fs::write(&path, "again").unwrap();
                fs::read(&path).unwrap();
            }
        },
    );
    assert_eq!((asked, ran.denials.len()), (1, 0));
}

#[test]
fn an_allowed_connect_reaches_what_was_asked_about() {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = server.local_addr().unwrap();
    let tree = Tree::new();
    let ran = run_asked(
        tree.setup(),
        CONNECT,
        |question| question.denial().target.port == Some(address.port()),
        || {
            let allowed = TcpStream::connect(address).unwrap().peer_addr().unwrap();
            (allowed, error(TcpStream::connect("192.0.2.1:80")))
        },
    );
    assert_eq!(ran.result, (address, Some(libc::EACCES)));
    assert_eq!(ran.denial().rule, "net = ask: not allowed");
}

#[test]
fn a_strangers_socket_is_asked_about_by_its_path() {
    let tree = Tree::new();
    let path = tree.path("other/socket");
    let _server = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let setup = || DeciderSetup {
        tree: super::super::Tree {
            init: 1 << 30,
            pid_namespace: None,
        },
        ..tree.setup()
    };
    let connect = || error(std::os::unix::net::UnixStream::connect(&path));
    let shown = path.display().to_string();
    let allows =
        |question: &super::super::Question| question.denial().target.path.as_ref() == Some(&shown);
    assert_eq!(run_asked(setup(), CONNECT, allows, connect).result, None);
    assert_eq!(
        run_asked(setup(), CONNECT, |_| false, connect).result,
        Some(libc::EACCES)
    );
}
