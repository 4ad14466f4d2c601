//! Opens and directory changes: what is inferred, and what is not.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::super::DeciderSetup;
use super::harness::{Ran, raw, run, setup};
use crate::compile::access::AccessMap;
use crate::denial::{Certainty, DenialClass};
use crate::policy::{FilePolicy, NetMode, PathRule};

const NOTIFIED: &[libc::c_long] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_truncate,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_symlink,
];

/// A directory of which `rw` may be written, `ro` read, and `secret` neither.
struct Tree {
    directory: TempDir,
}

impl Tree {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["rw", "ro", "secret"] {
            fs::create_dir(directory.path().join(name)).unwrap();
            fs::write(directory.path().join(name).join("file"), "text").unwrap();
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join(name)
    }

    fn setup(&self, observe_reads: bool) -> DeciderSetup {
        let files = FilePolicy {
            read: vec![PathRule::preset("/", "preset test")],
            write: vec![PathRule::explicit(self.path("rw"), "--write rw")],
            deny: vec![PathRule::explicit(self.path("secret"), "--deny secret")],
            ..FilePolicy::default()
        };
        DeciderSetup {
            access: Some(AccessMap::new(&files, &[])),
            masked: Vec::new(),
            observe_reads,
            ..setup(NetMode::Off, &[])
        }
    }

    fn observe<T: Send>(&self, target: impl FnOnce() -> T + Send) -> Ran<T> {
        run(self.setup(false), NOTIFIED, target)
    }
}

/// Operation and path of each denial.
fn seen<T>(ran: &Ran<T>) -> Vec<(&str, PathBuf)> {
    ran.denials
        .iter()
        .map(|denial| {
            assert_eq!(denial.class, DenialClass::Filesystem);
            assert_eq!(denial.certainty, Certainty::Inferred);
            let path = denial.target.path.as_ref().unwrap();
            (denial.operation.as_str(), PathBuf::from(path))
        })
        .collect()
}

fn write(path: &Path) {
    // Neither truncates nor creates, so that nothing happens where nothing refuses.
    let _ = OpenOptions::new().write(true).open(path);
}

#[test]
fn writing_outside_the_writable_roots_is_inferred_and_inside_it_is_not() {
    let tree = Tree::new();
    let ran = tree.observe(|| {
        write(Path::new("/etc/passwd"));
        write(&tree.path("ro/file"));
        write(&tree.path("rw/file"));
        write(&tree.path("ro/missing"));
        write(&tree.path("missing/missing"));
        write(&tree.path("ro"));
        let _ = File::open(tree.path("ro/file"));
        let _ = File::open(tree.path("secret/file"));
        write(Path::new("/dev/null"));
    });
    assert_eq!(
        seen(&ran),
        [("write", "/etc/passwd".into()), ("write", tree.path("ro/file"))]
    );
    assert_eq!(ran.denials[0].errno, "EACCES");
}

#[test]
fn reads_are_judged_where_they_are_asked_for() {
    let tree = Tree::new();
    let ran = run(tree.setup(true), NOTIFIED, || {
        let _ = File::open(tree.path("secret/file"));
        let _ = File::open(tree.path("secret/missing"));
        let _ = File::open(tree.path("secret"));
        let _ = File::open(tree.path("ro/file"));
    });
    assert_eq!(seen(&ran), [("open", tree.path("secret/file"))]);
    assert!(
        ran.denials[0].rule.contains("--deny secret"),
        "{}",
        ran.denials[0].rule
    );
}

#[test]
fn creating_is_judged_by_the_parent_and_links_are_followed() {
    let tree = Tree::new();
    symlink(tree.path("ro/by-link"), tree.path("rw/dangling")).unwrap();
    symlink("../ro", tree.path("rw/up")).unwrap();
    let ran = tree.observe(|| {
        File::create(tree.path("ro/new")).unwrap();
        File::create(tree.path("rw/new")).unwrap();
        File::create(tree.path("rw/dangling")).unwrap();
        File::create(tree.path("rw/up/new")).unwrap();
        File::create_new(tree.path("ro/file")).unwrap_err();
    });
    assert_eq!(
        seen(&ran),
        [
            ("create", tree.path("ro/new")),
            ("create", tree.path("ro/by-link")),
            // It exists by now.
            ("write", tree.path("ro/new")),
        ]
    );
}

#[test]
fn i4_what_exists_already_or_not_at_all_is_no_denial() {
    let tree = Tree::new();
    let ran = tree.observe(|| {
        fs::create_dir("/etc").unwrap_err();
        fs::create_dir(tree.path("ro")).unwrap_err();
        fs::create_dir(tree.path("ro/file")).unwrap_err();
        fs::create_dir(tree.path("missing/x")).unwrap_err();
        fs::remove_file(tree.path("ro/missing")).unwrap_err();
        fs::remove_file(tree.path("ro")).unwrap_err();
        fs::remove_dir(tree.path("ro/file")).unwrap_err();
        fs::rename(tree.path("ro/missing"), tree.path("ro/x")).unwrap_err();
        fs::hard_link(tree.path("ro/file"), tree.path("ro/file")).unwrap_err();
        symlink("x", tree.path("ro/file")).unwrap_err();
    });
    ran.unrecorded();
}

#[test]
fn directory_changes_name_the_operation_and_the_path() {
    let tree = Tree::new();
    let ran = tree.observe(|| {
        fs::create_dir(tree.path("ro/dir")).unwrap();
        symlink("x", tree.path("ro/link")).unwrap();
        fs::remove_file(tree.path("ro/link")).unwrap();
        fs::rename(tree.path("ro/file"), tree.path("rw/taken")).unwrap();
        fs::rename(tree.path("rw/taken"), tree.path("ro/given")).unwrap();
        fs::hard_link(tree.path("ro/given"), tree.path("rw/second")).unwrap();
        fs::remove_dir(tree.path("ro/dir")).unwrap();
        // And the same where it is permitted.
        fs::create_dir(tree.path("rw/dir")).unwrap();
        fs::rename(tree.path("rw/dir"), tree.path("rw/moved")).unwrap();
        fs::remove_dir(tree.path("rw/moved")).unwrap();
    });
    let expected = [
        ("mkdir", "ro/dir"),
        ("symlink", "ro/link"),
        ("unlink", "ro/link"),
        ("rename", "ro/file"),
        ("rename", "ro/given"),
        ("link", "ro/given"),
        ("rmdir", "ro/dir"),
    ];
    assert_eq!(
        seen(&ran),
        expected.map(|(operation, name)| (operation, tree.path(name)))
    );
    assert_eq!(ran.denials[5].errno, "EXDEV");
}

#[test]
fn relative_paths_begin_at_their_directory() {
    let tree = Tree::new();
    let ran = tree.observe(|| {
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(tree.path("rw"))
            .unwrap();
        let at = |path: &std::ffi::CStr, flags: i32| {
            raw(
                libc::SYS_openat,
                [
                    directory.as_raw_fd() as u64,
                    path.as_ptr() as u64,
                    flags as u64,
                    0o600,
                    0,
                    0,
                ],
            )
        };
        at(c"file", libc::O_WRONLY).unwrap();
        at(c"../ro/file", libc::O_WRONLY).unwrap();
        at(c"", libc::O_WRONLY).unwrap_err();
    });
    assert_eq!(seen(&ran), [("write", tree.path("ro/file"))]);
}

#[test]
fn standard_streams_and_pipes_are_no_files_to_judge() {
    let tree = Tree::new();
    let (_reader, writer) = std::io::pipe().unwrap();
    let ran = tree.observe(|| {
        write(Path::new(&format!("/proc/self/fd/{}", writer.as_raw_fd())));
        write(Path::new(&format!("/dev/fd/{}", writer.as_raw_fd())));
    });
    ran.unrecorded();
}

#[test]
fn openat2_is_read_from_memory_and_garbage_is_passed_on() {
    let tree = Tree::new();
    let path = std::ffi::CString::new(tree.path("ro/file").to_str().unwrap()).unwrap();
    let how = [libc::O_WRONLY as u64, 0, 0];
    let ran = tree.observe(|| {
        let here = libc::AT_FDCWD as u64;
        let open = |path: u64, how: u64| raw(libc::SYS_openat2, [here, path, how, 24, 0, 0]);
        let endless = vec![b'x'; 10_000];
        (
            open(path.as_ptr() as u64, how.as_ptr() as u64).is_ok(),
            open(path.as_ptr() as u64, 8),
            open(8, how.as_ptr() as u64),
            open(endless.as_ptr() as u64, how.as_ptr() as u64),
        )
    });
    assert_eq!(
        ran.result,
        (
            true,
            Err(libc::EFAULT),
            Err(libc::EFAULT),
            Err(libc::ENAMETOOLONG)
        )
    );
    assert_eq!(seen(&ran), [("write", tree.path("ro/file"))]);
}
