//! What Landlock holds without any mount.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use super::*;

#[test]
fn i5_a_denied_path_is_closed_and_its_siblings_are_open() {
    let it = Fixture::new();
    let policy = it.policy(&["/"], &["home/project"], &["home/.ssh", "home/.netrc"]);
    let layers = compile_landlock(&request(&policy)).unwrap();
    restricted(&layers, || {
        assert_refused("key", fs::read(it.path("home/.ssh/key")));
        assert_refused("netrc", fs::read(it.path("home/.netrc")));
        assert_allowed("notes", fs::read(it.path("home/notes")));
        assert_allowed("other", fs::read(it.path("other/file")));
        let names = assert_allowed("list", fs::read_dir(it.path("home/.ssh"))).count();
        assert_eq!(names, 1, "names stay listable");
        assert_allowed("list /", fs::read_dir("/"));
    });
}

#[test]
fn programs_run_where_secrets_are_denied() {
    let it = Fixture::new();
    fs::copy("/bin/true", it.path("home/.ssh/program")).unwrap();
    fs::copy("/bin/true", it.path("home/program")).unwrap();
    let layers = compile_landlock(&request(&it.policy(&["/"], &[], &["home/.ssh"]))).unwrap();
    restricted(&layers, || {
        assert!(assert_allowed("run", Command::new(it.path("home/program")).status()).success());
        assert!(assert_allowed("run", Command::new("/bin/true").status()).success());
        assert_refused("denied", Command::new(it.path("home/.ssh/program")).status());
    });
}

#[test]
fn writing_stays_below_the_writable_paths() {
    let it = Fixture::new();
    let layers =
        compile_landlock(&request(&it.policy(&["/"], &["home/project"], &["home/.ssh"]))).unwrap();
    restricted(&layers, || {
        let inside = it.path("home/project/new");
        assert_allowed("make inside", fs::write(&inside, "x"));
        assert_eq!(assert_allowed("read back", fs::read(&inside)), b"x");
        assert_allowed("mkdir inside", fs::create_dir(it.path("home/project/d")));
        assert_allowed("symlink inside", symlink("x", it.path("home/project/l")));
        assert_refused("overwrite", open_write(&it.path("home/notes")));
        assert_refused("make", fs::write(it.path("home/new"), "x"));
        assert_refused("mkdir", fs::create_dir(it.path("home/d")));
        assert_refused("remove", fs::remove_file(it.path("home/notes")));
        assert_refused("symlink", symlink("x", it.path("home/l")));
        assert_refused("write the secret", open_write(&it.path("home/.ssh/key")));
        assert_allowed("remove inside", fs::remove_file(&inside));
    });
}

#[test]
fn escape_33_a_read_only_file_is_not_truncated() {
    let it = Fixture::new();
    let layers = compile_landlock(&request(&it.policy(&["/"], &["home/project"], &[]))).unwrap();
    restricted(&layers, || {
        let refused = nix::unistd::truncate(&it.path("home/notes"), 0);
        assert_eq!(refused, Err(Errno::EACCES));
        assert_eq!(nix::unistd::truncate(&it.path("home/project/code"), 0), Ok(()));
    });
    assert_eq!(fs::read(it.path("home/notes")).unwrap(), b"content");
}

#[test]
fn escape_34_renames_and_links_work_within_a_root_and_not_across() {
    let it = Fixture::new();
    it.write("home/project/sub/file", "x");
    it.write("second/file", "x");
    let policy = it.policy(&["/"], &["home/project", "second"], &["home/.ssh"]);
    let layers = compile_landlock(&request(&policy)).unwrap();
    restricted(&layers, || {
        let code = it.path("home/project/code");
        assert_allowed("within", fs::rename(&code, it.path("home/project/sub/code")));
        assert_allowed(
            "to a root",
            fs::rename(it.path("home/project/sub/code"), it.path("second/code")),
        );
        assert_allowed(
            "link",
            fs::hard_link(it.path("second/code"), it.path("home/project/sub/hard")),
        );
        let out = fs::rename(it.path("second/code"), it.path("home/out")).unwrap_err();
        assert!(
            matches!(out.raw_os_error(), Some(libc::EACCES | libc::EXDEV)),
            "{out}"
        );
        let inward = fs::rename(it.path("home/.ssh/key"), it.path("second/key")).unwrap_err();
        assert!(
            matches!(inward.raw_os_error(), Some(libc::EACCES | libc::EXDEV)),
            "{inward}"
        );
        let link = fs::hard_link(it.path("home/.ssh/key"), it.path("second/key")).unwrap_err();
        assert!(
            matches!(link.raw_os_error(), Some(libc::EACCES | libc::EXDEV)),
            "{link}"
        );
    });
}

#[test]
fn escape_35_a_secret_is_closed_through_links_too() {
    let it = Fixture::new();
    it.write("vault/ssh/key", "secret");
    symlink(it.path("vault/ssh"), it.path("home/.gnupg")).unwrap();
    fs::create_dir(it.path("links")).unwrap();
    symlink("../home", it.path("links/casa")).unwrap();
    symlink(it.path("home/.ssh/key"), it.path("home/innocent")).unwrap();
    let policy = it.policy(&[""], &["home/project"], &["home/.gnupg", "links/casa/.ssh"]);
    let layers = compile_landlock(&request(&policy)).unwrap();
    restricted(&layers, || {
        assert_refused("through the link", fs::read(it.path("home/.gnupg/key")));
        assert_refused("where it leads", fs::read(it.path("vault/ssh/key")));
        assert_refused("denied by another name", fs::read(it.path("home/.ssh/key")));
        assert_refused("a link to it", fs::read(it.path("home/innocent")));
        symlink(it.path("vault"), it.path("home/project/v")).unwrap();
        assert_refused("a new link", fs::read(it.path("home/project/v/ssh/key")));
        assert_allowed("neighbour", fs::read(it.path("links/casa/notes")));
    });
    assert!(layers.is_current());
    fs::remove_file(it.path("links/casa")).unwrap();
    symlink("../other", it.path("links/casa")).unwrap();
    assert!(!layers.is_current(), "a link of the policy leads elsewhere");
}

#[test]
fn a_link_at_a_denied_path_that_becomes_a_directory_is_closed() {
    let it = Fixture::new();
    symlink(it.path("other"), it.path("home/.gnupg")).unwrap();
    let layers = compile_landlock(&request(&it.policy(&[""], &[], &["home/.gnupg"]))).unwrap();
    fs::remove_file(it.path("home/.gnupg")).unwrap();
    it.write("home/.gnupg/key", "secret");
    assert!(!layers.is_current());
    restricted(&layers, || {
        assert_refused("the directory", fs::read(it.path("home/.gnupg/key")));
        assert_allowed("its neighbour", fs::read(it.path("home/notes")));
    });
}

#[test]
fn a_secret_created_after_compiling_is_closed() {
    let it = Fixture::new();
    let policy = it.policy(
        &["/"],
        &["home/project"],
        &["home/.aws", "home/.ssh", "home/.config/gh"],
    );
    let layers = compile_landlock(&request(&policy)).unwrap();
    it.write("home/.aws/credentials", "secret");
    it.write("home/.config/gh/hosts", "secret");
    it.write("home/.ssh/new", "secret");
    restricted(&layers, || {
        assert_refused("new secret", fs::read(it.path("home/.aws/credentials")));
        assert_refused("new secret, deeper", fs::read(it.path("home/.config/gh/hosts")));
        assert_refused(
            "new file in a denied directory",
            fs::read(it.path("home/.ssh/new")),
        );
    });
}

#[test]
fn a_secret_replaced_by_renaming_is_closed() {
    let it = Fixture::new();
    let layers = compile_landlock(&request(&it.policy(&["home"], &[], &["home/.netrc"]))).unwrap();
    it.write("home/.netrc.tmp", "secret");
    fs::rename(it.path("home/.netrc.tmp"), it.path("home/.netrc")).unwrap();
    assert!(!layers.is_current());
    restricted(&layers, || {
        assert_refused("replaced secret", fs::read(it.path("home/.netrc")));
    });
}

#[test]
fn a_grant_below_a_denied_path_holds_by_itself() {
    let it = Fixture::new();
    let policy = it.policy(
        &["/", "home/.ssh/config"],
        &["home/project"],
        &["home", "home/project/.env"],
    );
    it.write("home/.ssh/config", "x");
    let mut request = request(&policy);
    request.mounts = true;
    let layers = compile_landlock(&request).unwrap();
    restricted(&layers, || {
        assert_refused("denied", fs::read(it.path("home/notes")));
        assert_refused("denied, deeper", fs::read(it.path("home/.ssh/key")));
        assert_allowed("granted file", fs::read(it.path("home/.ssh/config")));
        assert_refused("only for reading", open_write(&it.path("home/.ssh/config")));
        assert_allowed("granted directory", fs::write(it.path("home/project/new"), "x"));
        assert_allowed("and read", fs::read(it.path("home/project/new")));
    });
}

#[test]
fn block_devices_are_closed_even_to_root_and_harmless_ones_open() {
    let it = Fixture::new();
    let layers = compile_landlock(&request(&it.policy(&["/"], &[], &[]))).unwrap();
    let closed = [
        "/dev/vda",
        "/dev/sda",
        "/dev/nvme0n1",
        "/dev/loop0",
        "/dev/kmsg",
        "/dev/kvm",
    ];
    let there: Vec<_> = closed.iter().filter(|path| fs::metadata(path).is_ok()).collect();
    assert!(!there.is_empty(), "no device to try");
    restricted(&layers, || {
        for path in &there {
            assert_refused(path, fs::File::open(path));
        }
        for path in ["/dev/null", "/dev/zero", "/dev/urandom", "/dev/full"] {
            assert_allowed(path, fs::File::open(path));
        }
        assert_allowed("write to null", fs::write("/dev/null", "x"));
        assert_refused("make a name in /dev", fs::write("/dev/provost-test", "x"));
        let pty = nix::pty::openpty(None, None).unwrap();
        let name = nix::unistd::ttyname(&pty.slave).unwrap();
        let tty = assert_allowed(
            "terminal",
            fs::OpenOptions::new().read(true).write(true).open(name),
        );
        assert!(std::io::IsTerminal::is_terminal(&tty), "terminals answer ioctls");
        let null = fs::File::open("/dev/null").unwrap();
        let asked = nix::sys::termios::tcgetattr(&null).unwrap_err();
        assert_eq!(asked, Errno::ENOTTY, "asking what a device is is no denial");
    });
}

#[test]
fn escape_42_device_nodes_are_not_made_and_not_granted_in_passing() {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    if !is_root() {
        eprintln!("skipped: only root makes device nodes");
        return;
    }
    let it = Fixture::new();
    let node = |path: &Path| mknod(path, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 5));
    node(&it.path("home/zero")).unwrap();
    let layers = compile_landlock(&request(&it.policy(&["/"], &["other"], &["home/.ssh"]))).unwrap();
    restricted(&layers, || {
        assert_eq!(node(&it.path("other/zero")), Err(Errno::EACCES));
        assert_refused("node beside a secret", fs::File::open(it.path("home/zero")));
    });
}

#[test]
fn escape_49_proc_is_read_and_not_written() {
    let it = Fixture::new();
    let layers = compile_landlock(&request(&it.policy(&["/"], &["/"], &[]))).unwrap();
    restricted(&layers, || {
        assert_allowed("read", fs::read("/proc/self/status"));
        assert_refused("write", open_write(Path::new("/proc/self/oom_score_adj")));
        assert_allowed("writable elsewhere", fs::write(it.path("home/notes"), "x"));
        assert_refused("directly below /", fs::write("/provost-test", "x"));
    });
}

#[test]
fn escape_12_and_46_abstract_sockets_and_signals_are_scoped_and_tcp_is_closed() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    if kernel_abi() < 6 {
        eprintln!("skipped: the kernel's Landlock has no scopes");
        return;
    }
    let it = Fixture::new();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let name = it.path("x").to_string_lossy().into_owned();
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
    let pid = nix::unistd::Pid::from_raw(sleeper.id() as i32);
    let layers = compile_landlock(&request(&it.policy(&["/"], &[], &[]))).unwrap();
    restricted(&layers, || {
        assert_refused("tcp", std::net::TcpStream::connect(tcp.local_addr().unwrap()));
        assert_refused("bind", std::net::TcpListener::bind("127.0.0.1:0"));
        let refused = UnixStream::connect_addr(&address).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        let signal = nix::sys::signal::kill(pid, None);
        assert_eq!(signal, Err(Errno::EPERM));
        let (mut a, _b) = UnixStream::pair().unwrap();
        assert_allowed("socketpair", std::io::Write::write(&mut a, b"x"));
    });
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}

#[test]
fn a_working_directory_that_is_the_home_is_held_by_naming_siblings_at_best_effort() {
    let it = Fixture::new();
    let policy = it.policy(&["/"], &["home"], &["home/.ssh", "home/.netrc", "home/.aws"]);
    let required = compile_landlock(&request(&policy)).unwrap_err();
    let text = required.to_string();
    assert!(matches!(required, LandlockError::Unsupported(_)), "{text}");
    assert!(
        text.contains("mount namespace") && text.contains("best effort"),
        "{text}"
    );

    let mut request = request(&policy);
    request.degrade = Degrade::BestEffort;
    let layers = compile_landlock(&request).unwrap();
    let home = it.path("home").display().to_string();
    assert!(
        layers.degraded.iter().any(|d| d.what.ends_with(&home)),
        "{:?}",
        layers.degraded
    );
    restricted(&layers, || {
        assert_refused("secret", fs::read(it.path("home/.ssh/key")));
        assert_refused("secret", open_write(&it.path("home/.netrc")));
        assert_refused(
            "plant a key",
            fs::write(it.path("home/.ssh/authorized_keys"), "x"),
        );
        let away = fs::rename(it.path("home/.ssh"), it.path("home/project/ssh"));
        assert!(away.is_err(), "the secret was moved away");
        assert_allowed("existing file", open_write(&it.path("home/notes")));
        assert_allowed("existing directory", fs::write(it.path("home/project/new"), "x"));
        assert_refused("new name", fs::write(it.path("home/new"), "x"));
    });
}
