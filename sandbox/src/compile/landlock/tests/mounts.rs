//! Landlock together with mounts, as the child makes them. Needs root, or it says that it skipped.

use std::fs;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::*;

/// A mount namespace for this thread alone.
fn own_mounts() {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
}

fn new_mount(kind: &str, at: &Path, flags: MsFlags) {
    mount(Some(kind), at, Some(kind), flags, None::<&str>).unwrap();
}

fn skipped() -> bool {
    if !is_root() {
        eprintln!("skipped: only root mounts here");
    }
    !is_root()
}

#[test]
fn a_private_directory_is_writable_and_stays_apart() {
    if skipped() {
        return;
    }
    let it = Fixture::new();
    it.write("tmp/work/file", "x");
    let policy = it.policy(&["/"], &["tmp/work"], &["home/.ssh"]);
    let private = [it.path("tmp")];
    let mut request = request(&policy);
    request.mounts = true;
    request.private_dirs = &private;
    let layers = compile_landlock(&request).unwrap();
    let mounts = || {
        own_mounts();
        let work = fs::File::open(it.path("tmp/work")).unwrap();
        new_mount("tmpfs", &it.path("tmp"), MsFlags::empty());
        fs::create_dir(it.path("tmp/work")).unwrap();
        let from = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&work));
        let bind = MsFlags::MS_BIND;
        mount(
            Some(from.as_str()),
            &it.path("tmp/work"),
            None::<&str>,
            bind,
            None::<&str>,
        )
        .unwrap();
        new_mount("proc", Path::new("/proc"), MsFlags::empty());
    };
    let with_rules = || {
        mounts();
        for grant in &layers.mounted {
            if grant.path != Path::new("/dev/shm") {
                restrict::add_mounted(&layers, grant);
            }
        }
    };
    restricted_with(&layers, with_rules, || {
        let file = it.path("tmp/new");
        assert_allowed("make", fs::write(&file, "y"));
        assert_eq!(assert_allowed("read back", fs::read(&file)), b"y");
        assert_allowed("rename", fs::rename(&file, it.path("tmp/newer")));
        assert_allowed("the working directory", fs::write(it.path("tmp/work/new"), "y"));
        assert_allowed("own /proc", fs::read("/proc/self/status"));
        assert_refused("write to it", open_write(Path::new("/proc/self/oom_score_adj")));
        assert_refused("secret", fs::read(it.path("home/.ssh/key")));
    });
    // The reason why the grants exist: no rule made beforehand reaches into a mount of one's own.
    restricted_with(&compile_landlock(&request).unwrap(), mounts, || {
        assert_refused("make", fs::write(it.path("tmp/new"), "y"));
        assert_refused("own /proc", fs::read("/proc/self/status"));
    });
    assert!(!it.path("tmp/newer").exists());
}

#[test]
fn a_masked_secret_is_hidden_below_a_writable_home() {
    if skipped() {
        return;
    }
    let it = Fixture::new();
    it.write("home/.config/gh/hosts", "secret");
    let policy = it.policy(&["/"], &["home"], &["home/.ssh", "home/.config/gh"]);
    let mut request = request(&policy);
    request.mounts = true;
    let layers = compile_landlock(&request).unwrap();
    let mounts = || {
        own_mounts();
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        for pin in &layers.pins {
            mount(Some(pin), pin, None::<&str>, bind, None::<&str>).unwrap();
        }
        for mask in &layers.masks {
            assert!(mask.directory);
            new_mount("tmpfs", &mask.path, MsFlags::MS_RDONLY);
        }
    };
    restricted_with(&layers, mounts, || {
        assert!(fs::read(it.path("home/.ssh/key")).is_err());
        assert!(fs::read(it.path("home/.config/gh/hosts")).is_err());
        assert!(fs::write(it.path("home/.ssh/authorized_keys"), "x").is_err());
        for (from, to) in [("home/.ssh", "home/ssh"), ("home/.config", "home/config")] {
            let moved = fs::rename(it.path(from), it.path(to)).unwrap_err();
            assert_eq!(moved.raw_os_error(), Some(libc::EBUSY), "{from}");
        }
        assert_allowed("new name", fs::write(it.path("home/new"), "x"));
        assert_eq!(assert_allowed("read back", fs::read(it.path("home/new"))), b"x");
        assert_allowed("beside the mask", fs::write(it.path("home/.config/x"), "x"));
    });
    assert!(it.path("home/.ssh/key").exists());
}

#[test]
fn the_machines_own_directory_behind_a_private_one_is_closed() {
    let it = Fixture::new();
    it.write("tmp/others", "x");
    let policy = it.policy(&["/", "tmp/in"], &[], &[]);
    it.write("tmp/in/file", "x");
    let private = [it.path("tmp")];
    let mut request = request(&policy);
    request.mounts = true;
    request.private_dirs = &private;
    let layers = compile_landlock(&request).unwrap();
    restricted(&layers, || {
        assert_allowed("granted", fs::read(it.path("tmp/in/file")))
    });
    // Something beside it is denied, so that its parent is not granted as a whole.
    let policy = it.policy(&["/", "tmp/in"], &[], &["other"]);
    request.files = &policy;
    let layers = compile_landlock(&request).unwrap();
    restricted(&layers, || {
        assert_refused("read", fs::read(it.path("tmp/others")));
        assert_refused("write", fs::write(it.path("tmp/others"), "y"));
        assert_allowed("granted", fs::read(it.path("tmp/in/file")));
        assert_allowed("beside", fs::read(it.path("home/notes")));
    });
}

#[test]
fn rulesets_that_collected_rules_of_many_mounts_are_built_anew() {
    let it = Fixture::new();
    let policy = it.policy(&["/"], &[], &[]);
    let private = [it.path("other")];
    let mut request = request(&policy);
    request.mounts = true;
    request.private_dirs = &private;
    let layers = compile_landlock(&request).unwrap();
    for spawn in 0..MOUNTED_SPAWNS_MAX {
        assert!(layers.is_current(), "spawn {spawn}");
    }
    assert!(!layers.is_current());
}

#[test]
fn what_is_read_below_a_private_directory_is_to_be_bound_read_only() {
    let it = Fixture::new();
    let policy = it.policy(
        &["/", "tmp/in", "tmp/work/in"],
        &["tmp/work"],
        &["tmp/in/secret", "tmp/gone"],
    );
    it.write("tmp/in/secret", "x");
    it.write("tmp/gone", "x");
    let private = [it.path("tmp")];
    let mut request = request(&policy);
    request.mounts = true;
    request.private_dirs = &private;
    let layers = compile_landlock(&request).unwrap();
    assert_eq!(layers.read_only, [it.path("tmp/in")]);
    let masks: Vec<_> = layers.masks.iter().map(|mask| mask.path.clone()).collect();
    assert_eq!(masks, [it.path("tmp/in/secret")]);
}
