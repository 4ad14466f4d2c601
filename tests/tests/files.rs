//! Files: what may be read and written, what not, and who learns of it.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use std::os::unix::fs::MetadataExt;

use provost_tests::{Finished, Wanted, World, both_users, filesystem, needs, require};

/// How a refused write is known: the kernel says so to root, others see the attempt.
fn certainty(world: &World) -> &'static str {
    if world.is_root() { "observed" } else { "inferred" }
}

/// The record must hold the denial of a write.
fn write_denial(world: &World, path: &str) -> Wanted {
    filesystem().path(path).certainty(certainty(world))
}

/// The record must hold the denial of a read, or say that it cannot know of any.
fn assert_read_denied_or_named_unobserved(world: &World, done: &Finished, path: &str) {
    if world.is_root() {
        done.denial(&filesystem().path(path).certainty("observed"));
    } else if !done.has_denial(&filesystem().path(path)) {
        let unobserved = done.record()["denials"]["unobserved"]
            .as_array()
            .map_or(0, Vec::len);
        assert!(
            unobserved > 0,
            "a refused read is neither recorded nor named unobserved\n{done}"
        );
    }
}

fn a_write_outside_is_refused_and_recorded(world: &World) {
    let done = world.shell("echo x > /etc/provost-tests-probe").finish();
    assert_ne!(done.code, Some(0), "\n{done}");
    assert!(!Path::new("/etc/provost-tests-probe").exists());
    done.denial(&write_denial(world, "/etc/provost-tests-probe"));
    let path = world.file("outside/file", "kept");
    for name in ["open-write", "open-append", "openat2-write", "unlink"] {
        world.escape(&[name, &path]).denied(&write_denial(world, &path));
    }
    for name in ["create", "mkdir"] {
        let fresh = world.text("outside/fresh");
        world.escape(&[name, &fresh]).denied(&write_denial(world, &fresh));
        assert!(!world.path("outside/fresh").exists());
    }
    let link = world.text("outside/link");
    world
        .escape(&["symlink", "/etc", &link])
        .denied(&write_denial(world, &link));
    assert_eq!(world.content("outside/file"), "kept");
}

fn the_working_directory_is_writable_and_its_neighbour_is_not(world: &World) {
    let script = "set -e; mkdir d; echo one > d/f; echo two >> d/f; mv d/f d/g; ln d/g h; ln -s h i; cat i; \
                  rm h i d/g; rmdir d; mkfifo p; rm p";
    let done = world.shell(script).finish();
    assert_eq!(done.text(), "one\ntwo\n", "\n{done}");
    done.assert_harmless();
}

fn read_only_refuses_what_workspace_write_allows(world: &World) {
    let path = world.file("work/file", "kept");
    let run = world
        .escape(&["open-write", &path])
        .with(["--policy", "read-only"]);
    run.denied(&write_denial(world, &path));
    world
        .run(["cat", "file"])
        .with(["--policy", "read-only"])
        .finish()
        .assert_harmless();
}

fn write_flags_open_what_they_name_and_nothing_else(world: &World) {
    world.make_directory(&world.path("outside/open"));
    let (inside, beside) = (world.text("outside/open/f"), world.text("outside/f"));
    let flags = ["--write".to_owned(), world.text("outside/open")];
    let done = world.escape(&["create", &inside]).with(flags.clone()).finish();
    assert_eq!(done.result(), "ok", "\n{done}");
    world
        .escape(&["create", &beside])
        .with(flags)
        .denied(&write_denial(world, &beside));
}

fn deny_flags_close_what_they_name_and_nothing_else(world: &World) {
    let (closed, beside) = (
        world.file("outside/closed", "secret"),
        world.file("outside/beside", "open"),
    );
    let flags = ["--deny", closed.as_str()];
    let done = world.escape(&["read", &closed]).with(flags).refused();
    assert_read_denied_or_named_unobserved(world, &done, &closed);
    let done = world.escape(&["read", &beside]).with(flags).finish();
    assert_eq!(done.result(), "ok", "\n{done}");
}

fn credentials_below_the_home_are_refused_and_what_lies_beside_them_is_not(world: &World) {
    let beside = world.file("home/notes", "open");
    for name in [
        "home/.ssh/id_x",
        "home/.aws/credentials",
        "home/.netrc",
        "home/.config/gh/hosts.yml",
    ] {
        let secret = world.file(name, "secret");
        let done = world.escape(&["read", &secret]).refused();
        assert!(!done.text().contains("secret\""), "\n{done}");
        assert_read_denied_or_named_unobserved(world, &done, &secret);
        let watched = world.escape(&["read", &secret]).with(["--observe", "reads"]);
        watched.denied(&filesystem().path(&secret));
    }
    let done = world.escape(&["read", &beside]).finish();
    assert_eq!(done.result(), "ok", "\n{done}");
    // Their names are no secret.
    world
        .run(["ls", &world.text("home/.config")])
        .finish()
        .assert_harmless();
}

fn credentials_are_refused_also_where_the_home_is_the_working_directory(world: &World) {
    require!(needs::pid_namespaces(world), "namespaces for this user");
    let secret = world.file("home/.ssh/id_x", "secret");
    for words in [
        ["read", secret.as_str()],
        ["open-write", &secret],
        ["unlink", &secret],
    ] {
        world.escape(&words).directory(world.path("home")).refused();
    }
    assert_eq!(world.content("home/.ssh/id_x"), "secret");
    // The home itself is the workspace, and works as one.
    let done = world
        .shell("echo x > new && cat new")
        .directory(world.path("home"))
        .finish();
    assert_eq!(done.text(), "x\n", "\n{done}");
}

fn a_secret_cannot_be_moved_into_view(world: &World) {
    let secret = world.file("home/.ssh/id_x", "secret");
    let here = world.text("work/id_x");
    for name in ["link", "rename"] {
        world.escape(&[name, &secret, &here]).refused();
    }
    let directory = world.text("home/.ssh");
    world
        .escape(&["rename", &directory, &world.text("work/ssh")])
        .refused();
    // A link is no way around: the rule is on the file, not on the name.
    std::os::unix::fs::symlink(&secret, world.path("work/link")).expect("a link of the test's own");
    world.escape(&["read", "link"]).refused();
    world
        .escape(&["read", &format!("/proc/self/root{secret}")])
        .refused();
    world
        .escape(&["read", "/proc/self/cwd/../home/.ssh/id_x"])
        .refused();
}

fn escape_15_a_descriptor_cannot_be_reopened_for_writing(world: &World) {
    let path = world.file("outside/file", "kept");
    world
        .escape(&["reopen", &path])
        .denied(&write_denial(world, &path));
}

fn escape_31_owner_mode_times_and_attributes_outside_stay(world: &World) {
    let path = world.file("outside/file", "kept");
    let before = std::fs::metadata(&path).expect("the file");
    for name in ["chmod", "fchmod", "chown", "utimes", "xattr"] {
        world
            .escape(&[name, &path])
            .denied(&filesystem().path(&path).certainty("observed"));
    }
    let after = std::fs::metadata(&path).expect("the file");
    assert_eq!(before.mode(), after.mode());
    assert_eq!(
        (before.ctime(), before.ctime_nsec()),
        (after.ctime(), after.ctime_nsec())
    );
    let own = world.file("work/file", "mine");
    for name in ["chmod", "fchmod", "chown", "utimes", "xattr"] {
        let done = world.escape(&[name, &own]).finish();
        assert_eq!(done.result(), "ok", "{name}\n{done}");
        assert_eq!(done.denials_total(), 0, "{name}\n{done}");
    }
    // A file of somebody else's is refused by plain permissions already.
    if !world.is_root() {
        let done = world.escape(&["chmod", "/etc/passwd"]).finish();
        assert_eq!(done.denials_total(), 0, "\n{done}");
    }
}

fn escape_31_protected_names_and_devices_keep_their_metadata(world: &World) {
    require!(needs::pid_namespaces(world), "a mount namespace for this user");
    let config = world.file("work/.git/config", "kept");
    world
        .escape(&["chmod", &config])
        .denied(&filesystem().path(&config));
    if world.is_root() {
        let before = std::fs::metadata("/dev/null").expect("it is there");
        world
            .escape(&["chmod", "/dev/null"])
            .denied(&filesystem().path("/dev/null"));
        let after = std::fs::metadata("/dev/null").expect("it is there");
        assert_eq!((before.mode(), before.ctime()), (after.mode(), after.ctime()));
    }
    // Its own directories are its own.
    let done = world
        .shell(
            "touch -d @5 /tmp/x && chmod 700 /tmp/x && stat -c '%a %Y' /tmp/x; chmod 755 . && touch .",
        )
        .finish();
    assert_eq!(done.text(), "700 5\n", "\n{done}");
    assert_eq!(done.denials_total(), 0, "\n{done}");
}

fn escape_32_inode_flags_are_refused(world: &World) {
    let path = world.file("outside/file", "kept");
    world
        .escape(&["setflags", &path])
        .denied(&provost_tests::syscall("ioctl(FS_IOC_SETFLAGS)"));
}

fn escape_33_truncation_is_a_write(world: &World) {
    let path = world.file("outside/file", "kept");
    for name in ["truncate", "open-truncate"] {
        world.escape(&[name, &path]).denied(&write_denial(world, &path));
    }
    assert_eq!(world.content("outside/file"), "kept");
}

fn escape_34_links_and_renames_do_not_cross_the_border(world: &World) {
    let outside = world.file("outside/file", "kept");
    let inside = world.file("work/file", "mine");
    let (out, own) = (world.text("outside/new"), world.text("work/new"));
    for name in ["link", "rename"] {
        world.escape(&[name, &outside, &own]).refused();
        let done = world.escape(&[name, &inside, &out]).refused();
        assert!(done.denials_total() > 0, "\n{done}");
    }
    world.escape(&["exchange", &outside, &inside]).refused();
    assert_eq!(world.content("outside/file"), "kept");
    assert_eq!(world.content("work/file"), "mine");
}

fn escape_35_a_link_in_the_workspace_leads_to_no_write_outside(world: &World) {
    let path = world.file("outside/file", "kept");
    std::os::unix::fs::symlink(&path, world.path("work/link")).expect("a link of the test's own");
    world
        .escape(&["open-truncate", "link"])
        .denied(&write_denial(world, &path));
    std::os::unix::fs::symlink(world.path("outside"), world.path("work/dir")).expect("a link");
    world.escape(&["create", "dir/new"]).refused();
    assert_eq!(world.content("outside/file"), "kept");
    assert!(!world.path("outside/new").exists());
}

fn escape_39_temporary_files_are_not_shared_with_the_host(world: &World) {
    require!(needs::pid_namespaces(world), "namespaces for this user");
    for directory in ["/tmp", "/dev/shm"] {
        let secret = tempfile::Builder::new()
            .prefix("provost-tests-")
            .tempfile_in(directory)
            .expect("a file");
        world.give_away(secret.path(), 0o644);
        let path = secret.path().display().to_string();
        let done = world.escape(&["read", &path]).invisible();
        assert_eq!(done.result(), "ENOENT", "\n{done}");
        let fresh = format!("{path}-fresh");
        let done = world.escape(&["create", &fresh]).finish();
        assert_eq!(done.result(), "ok", "a private {directory} is writable\n{done}");
        assert!(!Path::new(&fresh).exists(), "the file appeared on the host");
    }
}

fn escape_40_shared_memory_and_queues_of_the_host_are_out_of_sight(world: &World) {
    require!(needs::pid_namespaces(world), "namespaces for this user");
    let key = (std::process::id() * 2 + u32::from(world.is_root())).to_string();
    let name = format!("provost-tests-{key}");
    require!(
        needs::possible(world, &["shm-make", &key]),
        "System V shared memory"
    );
    require!(
        needs::possible(world, &["mq-make", &name]),
        "POSIX message queues"
    );
    let reachable =
        needs::possible(world, &["shm-get", &key]) && needs::possible(world, &["mq-open", &name]);
    let segment = world.escape(&["shm-get", &key]).finish();
    let queue = world.escape(&["mq-open", &name]).finish();
    assert!(
        needs::possible(world, &["shm-remove", &key]) & needs::possible(world, &["mq-remove", &name])
    );
    assert!(reachable, "without a sandbox they can be reached");
    assert_eq!(segment.result(), "ENOENT", "\n{segment}");
    assert_eq!(queue.result(), "ENOENT", "\n{queue}");
}

fn escape_44_git_hooks_and_config_cannot_be_planted(world: &World) {
    require!(needs::pid_namespaces(world), "namespaces for this user");
    let hook = world.file("work/.git/hooks/pre-commit", "kept");
    let config = world.file("work/.git/config", "kept");
    for path in [&hook, &config] {
        for name in ["open-write", "open-truncate", "unlink"] {
            let done = world.escape(&[name, path]).refused();
            let unobserved = done.record()["denials"]["unobserved"]
                .as_array()
                .map_or(0, Vec::len);
            assert!(
                done.denials_total() > 0 || unobserved > 0,
                "neither recorded nor unobserved\n{done}"
            );
        }
    }
    // Nor by replacing what contains them.
    let scripts = [
        "rm -rf .git/hooks; mkdir -p .git/hooks; echo planted > .git/hooks/pre-commit",
        "mv .git/hooks .git/old; mkdir -p .git/hooks; echo planted > .git/hooks/pre-commit",
        "mv .git old; mkdir -p .git/hooks; echo planted > .git/hooks/pre-commit; echo planted > .git/config",
        "cp -r .git new; echo planted > new/hooks/pre-commit; mv .git old; mv new .git",
        "echo planted > config; mv -f config .git/config; ln -f config .git/config",
        "rm -rf .git; mkdir -p .git/hooks; echo planted > .git/hooks/pre-commit; echo planted > .git/config",
    ];
    for script in scripts {
        let done = world
            .shell(&format!("{{ {script}; }} 2>/dev/null; exit 0"))
            .finish();
        for name in ["hooks/pre-commit", "config"] {
            let now = std::fs::read_to_string(world.path("work/.git").join(name)).unwrap_or_default();
            assert_ne!(now.trim(), "planted", "`{script}` planted .git/{name}\n{done}");
        }
    }
}

fn escape_44_repositories_below_the_working_directory_are_protected_too(world: &World) {
    require!(needs::pid_namespaces(world), "namespaces for this user");
    let names = [
        "sub/deep/.git/hooks/h",
        "sub/deep/.git/config",
        ".git/modules/m/hooks/h",
    ];
    let files = names.map(|name| world.file(&format!("work/{name}"), "kept"));
    for file in &files {
        world.escape(&["open-write", file]).refused();
        world.escape(&["unlink", file]).refused();
    }
    for script in [
        "rm -rf sub; mkdir -p sub/deep/.git/hooks; echo planted > sub/deep/.git/hooks/h",
        "mv sub old; mkdir -p sub/deep/.git/hooks; echo planted > sub/deep/.git/hooks/h; echo planted > sub/deep/.git/config",
        "mv sub/deep old; cp -r old sub/deep; echo planted > sub/deep/.git/hooks/h",
        "mv .git/modules old; mkdir -p .git/modules/m/hooks; echo planted > .git/modules/m/hooks/h",
    ] {
        let done = world
            .shell(&format!("{{ {script}; }} 2>/dev/null; exit 0"))
            .finish();
        for file in &files {
            let now = std::fs::read_to_string(file).unwrap_or_default();
            assert_ne!(now.trim(), "planted", "`{script}` planted {file}\n{done}");
        }
    }
}

fn escape_62_the_record_cannot_be_led_elsewhere_or_forged(world: &World) {
    let victim = world.file("outside/victim", "kept");
    let record = world.text("work/record.json");
    let script = format!("rm -f record.json; ln -s {victim} record.json; exit 5");
    let done = world.shell(&script).record_at(&record).finish();
    // A record that is not where it was asked for is an error, never silence.
    assert_eq!(done.code, Some(125), "\n{done}");
    assert_eq!(
        world.content("outside/victim"),
        "kept",
        "the record was written through a planted link"
    );
    std::fs::remove_file(&record).ok();
    let script = "echo '{\"outcome\":\"exited\",\"exit_code\":0}' > record.json; exit 5";
    let done = world.shell(script).record_at(&record).finish();
    assert_eq!(
        done.record()["exit_code"],
        5,
        "the program's forgery stands in the record's place\n{done}"
    );
}

fn i4_what_does_not_exist_or_is_refused_by_plain_permissions_is_no_denial(world: &World) {
    let script = "cat missing; cat /nonexistent/file; ls /nonexistent; echo x > missing/file; rm missing; \
                  mkdir -p .; mkdir work; mkdir work; rmdir /nonexistent; \
                  : > locked; chmod 000 locked; cat locked; echo x > locked; exit 0";
    let done = world.shell(script).finish();
    assert_eq!(done.record()["denied"], false, "\n{done}");
}

/// Block devices hold every file of the machine.
#[test]
fn block_devices_are_refused_even_to_root() {
    let Some(world) = World::try_new(provost_tests::User::Root) else {
        return;
    };
    let devices: Vec<String> = std::fs::read_dir("/dev")
        .expect("/dev")
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_block_device()))
        .map(|entry| entry.path().display().to_string())
        .collect();
    for device in devices.iter().take(4) {
        world.escape(&["read", device]).denied(&filesystem().path(device));
        world.escape(&["open-write", device]).refused();
    }
}

#[test]
fn what_only_root_may_read_is_refused_to_roots_programs() {
    let Some(world) = World::try_new(provost_tests::User::Root) else {
        return;
    };
    world
        .escape(&["read", "/etc/shadow"])
        .denied(&filesystem().path("/etc/shadow"));
    let done = world.escape(&["read", "/etc/passwd"]).finish();
    assert_eq!(done.result(), "ok", "\n{done}");
}

fn escape_56_the_users_other_terminals_are_out_of_sight(world: &World) {
    require!(needs::pid_namespaces(world), "a mount namespace for this user");
    let pty = nix::pty::openpty(None, None).expect("a terminal of the machine's");
    let name = nix::unistd::ttyname(&pty.slave).expect("its name");
    world.give_away(&name, 0o600);
    nix::unistd::write(&pty.master, b"typed\n").expect("a key press");
    let name = name.display().to_string();
    world.escape(&["read", &name]).invisible();
    world.escape(&["open-write", &name]).invisible();
    require!(needs::command("script"), "script");
    let own = "tty; echo from a terminal of its own";
    let done = world.run(["script", "-qec", own, "/dev/null"]).finish();
    assert!(done.text().contains("/dev/pts/"), "\n{done}");
    assert!(done.text().contains("from a terminal of its own"), "\n{done}");
    done.assert_harmless();
}

fn i4_refused_writes_by_way_of_ones_own_links_are_recorded(world: &World) {
    let path = world.file("outside/file", "kept");
    let links = [("/proc/self/root", "a"), ("/proc/thread-self/root", "b")];
    for (target, name) in links {
        let link = world.path("work").join(name);
        std::os::unix::fs::symlink(target, &link).expect("a link");
        let through = format!("{}{path}", link.display());
        world
            .escape(&["open-write", &through])
            .denied(&write_denial(world, &path));
    }
    let through = format!("/proc/../proc/self/root{path}");
    world
        .escape(&["open-write", &through])
        .denied(&write_denial(world, &path));
    // What is allowed that way is no denial.
    let script = "echo x > own; exec 3<own; echo y > a$PWD/own; echo z > /proc/$$/fd/3; cat own";
    let done = world.shell(script).finish();
    assert_eq!(done.text(), "z\n", "\n{done}");
    done.assert_harmless();
}

fn writing_to_ones_own_streams_by_name_is_no_denial(world: &World) {
    let script = "exec 3>own; echo a > /dev/stderr; echo b > /proc/self/fd/1; echo c > /dev/stdout; echo d > /dev/fd/3";
    let done = world.shell(script).finish();
    assert_eq!(done.text(), "b\nc\n", "\n{done}");
    done.assert_harmless();
}

fn i4_a_socket_that_may_not_be_made_is_recorded(world: &World) {
    require!(needs::command("python3"), "python3");
    let path = world.text("outside/socket");
    let script = "import socket, sys\nsocket.socket(socket.AF_UNIX).bind(sys.argv[1])";
    let done = world.run(["python3", "-c", script, &path]).finish();
    assert_ne!(done.code, Some(0), "\n{done}");
    assert!(!world.path("outside/socket").exists());
    done.denial(&filesystem().certainty(certainty(world)));
}

fn what_the_user_denies_is_not_made_visible_in_a_private_directory(world: &World) {
    let temp = tempfile::Builder::new()
        .tempdir_in("/tmp")
        .expect("a directory below /tmp");
    world.give_away(temp.path(), 0o755);
    for name in ["home", "home/w"] {
        world.make_directory(&temp.path().join(name));
    }
    let secret = temp.path().join("home/secret");
    std::fs::write(&secret, "secret").expect("a file");
    world.give_away(&secret, 0o644);
    let (home, secret) = (temp.path().join("home"), secret.display().to_string());
    let home = home.display().to_string();
    let read = || {
        let run = world.run(["cat", &secret]).env("HOME", &home);
        run.directory(temp.path().join("home/w"))
    };
    assert_eq!(read().finish().text(), "secret");
    let done = read().with(["--deny", &home]).finish();
    assert_eq!(done.text(), "", "\n{done}");
    // One file in a tree that is put back for reading only.
    let done = read().with(["--write", &secret]).finish();
    assert_eq!(done.text(), "secret", "\n{done}");
}

fn escape_44_the_file_that_names_a_worktrees_repository_is_read_only(world: &World) {
    require!(needs::pid_namespaces(world), "a mount namespace for this user");
    let file = world.file("work/.git", "gitdir: /somewhere");
    world
        .escape(&["open-write", &file])
        .denied(&filesystem().path(&file));
    world.escape(&["unlink", &file]).denied(&filesystem().path(&file));
    assert_eq!(world.content("work/.git"), "gitdir: /somewhere");
}

fn escape_44_a_worktrees_file_is_read_only_in_a_private_directory_too(world: &World) {
    require!(needs::pid_namespaces(world), "a mount namespace for this user");
    let temp = tempfile::Builder::new()
        .tempdir_in("/tmp")
        .expect("a directory below /tmp");
    world.give_away(temp.path(), 0o755);
    let file = temp.path().join(".git");
    std::fs::write(&file, "gitdir: /somewhere").expect("a file");
    world.give_away(&file, 0o644);
    let done = world
        .shell("cat .git; echo planted > .git; mv .git old; rm .git")
        .directory(temp.path())
        .finish();
    assert_eq!(done.text(), "gitdir: /somewhere", "\n{done}");
    done.denial(&filesystem().path(file.display().to_string()));
    assert_eq!(
        std::fs::read_to_string(&file).ok().as_deref(),
        Some("gitdir: /somewhere")
    );
}

fn escape_38_what_may_not_be_read_cannot_be_watched_either(world: &World) {
    require!(needs::command("python3"), "python3");
    let secret = world.file("home/.ssh/id", "secret");
    let script = "import ctypes, os, sys\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        fd = libc.inotify_init1(0o4000)\n\
        for path in sys.argv[1:]:\n\
        \x20   watch = libc.inotify_add_watch(fd, path.encode(), 0xfff)\n\
        \x20   print(os.path.basename(path), 'watched' if watch >= 0 else os.strerror(ctypes.get_errno()))\n\
        open(sys.argv[1] + '/new', 'w').close()\n\
        print(b'new' in os.read(fd, 4096))\n";
    let own = world.work().display().to_string();
    let home = world.text("home/.ssh");
    let done = world
        .run(["python3", "-c", script, &own, &secret, &home])
        .finish();
    let refused = "Permission denied";
    assert_eq!(
        done.text(),
        format!("work watched\nid {refused}\n.ssh {refused}\nTrue\n"),
        "\n{done}"
    );
    done.denial(&filesystem().path(&secret));
    done.denial(&filesystem().path(&home));
}

fn escape_41_devices_take_no_ioctls_unless_they_are_harmless(world: &World) {
    require!(needs::command("python3"), "python3");
    let control = std::path::Path::new("/dev/loop-control");
    if world.is_root() && control.exists() {
        // A device that happens to lie in the workspace can be opened, and still no ioctl reaches it.
        let number = std::fs::metadata(control).expect("the device").rdev();
        let node = world.path("work/device");
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
        nix::sys::stat::mknod(&node, nix::sys::stat::SFlag::S_IFCHR, mode, number).expect("a node");
        let script = "import fcntl, os\n\
            fd = os.open('device', os.O_RDONLY)\n\
            try: print('got', fcntl.ioctl(fd, 0x4c82))\n\
            except OSError as error: print(error.strerror)\n";
        let done = world.run(["python3", "-c", script]).finish();
        assert_eq!(done.text(), "Permission denied\n", "\n{done}");
        done.denial(&filesystem().path(node.display().to_string()));
    }
    // A block device is not even opened.
    let done = world.shell("cat /dev/vda /dev/loop0 /dev/kmsg").finish();
    assert_eq!(
        (done.text().as_str(), done.code != Some(0)),
        ("", true),
        "\n{done}"
    );
    if world.is_root() {
        assert!(done.denials_total() > 0, "\n{done}");
    }
}

both_users!(
    escape_38_what_may_not_be_read_cannot_be_watched_either,
    escape_41_devices_take_no_ioctls_unless_they_are_harmless,
    escape_44_a_worktrees_file_is_read_only_in_a_private_directory_too,
    writing_to_ones_own_streams_by_name_is_no_denial,
    escape_56_the_users_other_terminals_are_out_of_sight,
    i4_refused_writes_by_way_of_ones_own_links_are_recorded,
    i4_a_socket_that_may_not_be_made_is_recorded,
    what_the_user_denies_is_not_made_visible_in_a_private_directory,
    escape_44_the_file_that_names_a_worktrees_repository_is_read_only,
    a_write_outside_is_refused_and_recorded,
    the_working_directory_is_writable_and_its_neighbour_is_not,
    read_only_refuses_what_workspace_write_allows,
    write_flags_open_what_they_name_and_nothing_else,
    deny_flags_close_what_they_name_and_nothing_else,
    credentials_below_the_home_are_refused_and_what_lies_beside_them_is_not,
    credentials_are_refused_also_where_the_home_is_the_working_directory,
    a_secret_cannot_be_moved_into_view,
    escape_15_a_descriptor_cannot_be_reopened_for_writing,
    escape_31_owner_mode_times_and_attributes_outside_stay,
    escape_31_protected_names_and_devices_keep_their_metadata,
    escape_32_inode_flags_are_refused,
    escape_33_truncation_is_a_write,
    escape_34_links_and_renames_do_not_cross_the_border,
    escape_35_a_link_in_the_workspace_leads_to_no_write_outside,
    escape_39_temporary_files_are_not_shared_with_the_host,
    escape_40_shared_memory_and_queues_of_the_host_are_out_of_sight,
    escape_44_git_hooks_and_config_cannot_be_planted,
    escape_44_repositories_below_the_working_directory_are_protected_too,
    escape_62_the_record_cannot_be_led_elsewhere_or_forged,
    i4_what_does_not_exist_or_is_refused_by_plain_permissions_is_no_denial,
);
