//! Modes, owners, times and attributes: changed where the policy lets a file be written, refused and recorded elsewhere.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::super::DeciderSetup;
use super::harness::{Ran, raw, run, setup};
use crate::compile::access::AccessMap;
use crate::denial::{Certainty, DenialClass};
use crate::policy::{FilePolicy, NetMode, PathRule};

const NOTIFIED: &[libc::c_long] = &[
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_fremovexattr,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utimes,
];

/// `rw` may be written, `ro` may not.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        // Not on a tmpfs, which may lack extended attributes.
        let tree = Self(tempfile::tempdir_in("/var/tmp").unwrap());
        for name in ["rw", "ro"] {
            fs::create_dir(tree.path(name)).unwrap();
            fs::write(tree.path(name).join("file"), "text").unwrap();
        }
        tree
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn run<T: Send>(&self, target: impl FnOnce() -> T + Send) -> Ran<T> {
        let files = FilePolicy {
            read: vec![PathRule::preset("/", "preset test")],
            write: vec![PathRule::explicit(self.path("rw"), "--write rw")],
            ..FilePolicy::default()
        };
        let setup = DeciderSetup {
            metadata: AccessMap::new(&files, &[]),
            ..setup(NetMode::Off, &[])
        };
        run(setup, NOTIFIED, target)
    }
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn at(path: &CString) -> u64 {
    path.as_ptr() as u64
}

const HERE: u64 = libc::AT_FDCWD as u64;
const NOFOLLOW: u64 = libc::AT_SYMLINK_NOFOLLOW as u64;

/// Every call that there is, each on a path or a descriptor; all of them should be answered the same.
fn all_changes(path: &Path) -> Vec<(&'static str, Result<i64, i32>)> {
    let (text, file) = (c(path), File::open(path).unwrap());
    let fd = file.as_raw_fd() as u64;
    let own = (
        nix::unistd::geteuid().as_raw() as u64,
        nix::unistd::getegid().as_raw() as u64,
    );
    let times: [i64; 4] = [1_000, 7, 2_000, 9];
    let (times, name, value) = (times.as_ptr() as u64, c"user.test", b"value");
    let (name, value, length) = (name.as_ptr() as u64, value.as_ptr() as u64, 5);
    vec![
        (
            "fchmodat",
            raw(libc::SYS_fchmodat, [HERE, at(&text), 0o640, 0, 0, 0]),
        ),
        (
            "fchmodat2",
            raw(libc::SYS_fchmodat2, [HERE, at(&text), 0o640, 0, 0, 0]),
        ),
        ("fchmod", raw(libc::SYS_fchmod, [fd, 0o640, 0, 0, 0, 0])),
        (
            "fchownat",
            raw(libc::SYS_fchownat, [HERE, at(&text), own.0, own.1, 0, 0]),
        ),
        ("fchown", raw(libc::SYS_fchown, [fd, own.0, own.1, 0, 0, 0])),
        (
            "utimensat",
            raw(libc::SYS_utimensat, [HERE, at(&text), times, 0, 0, 0]),
        ),
        ("futimens", raw(libc::SYS_utimensat, [fd, 0, times, 0, 0, 0])),
        (
            "setxattr",
            raw(libc::SYS_setxattr, [at(&text), name, value, length, 0, 0]),
        ),
        (
            "fsetxattr",
            raw(libc::SYS_fsetxattr, [fd, name, value, length, 0, 0]),
        ),
        (
            "fremovexattr",
            raw(libc::SYS_fremovexattr, [fd, name, 0, 0, 0, 0]),
        ),
    ]
}

#[test]
fn what_may_be_written_may_be_changed() {
    let tree = Tree::new();
    let path = tree.path("rw/file");
    let results = tree.run(|| all_changes(&path)).unrecorded();
    for (name, result) in results {
        assert_eq!(result, Ok(0), "{name}");
    }
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o640);
    assert_eq!(
        (meta.atime(), meta.atime_nsec(), meta.mtime(), meta.mtime_nsec()),
        (1_000, 7, 2_000, 9)
    );
}

#[test]
fn escape_31_what_may_not_be_written_stays_as_it_is_and_the_attempt_is_recorded() {
    let tree = Tree::new();
    let path = tree.path("ro/file");
    let before = fs::metadata(&path).unwrap();
    let ran = tree.run(|| all_changes(&path));
    for (name, result) in &ran.result {
        assert_eq!(*result, Err(libc::EPERM), "{name}");
    }
    let after = fs::metadata(&path).unwrap();
    let change = |meta: &fs::Metadata| (meta.ctime(), meta.ctime_nsec(), meta.mode());
    assert_eq!(change(&before), change(&after));
    assert_eq!(ran.denials.len(), ran.result.len());
    for denial in &ran.denials {
        assert_eq!(
            (denial.class, denial.certainty),
            (DenialClass::Filesystem, Certainty::Observed)
        );
        assert_eq!(denial.target.path.as_deref(), path.to_str());
        assert_eq!(denial.errno, "EPERM");
    }
}

#[test]
fn links_are_followed_as_the_call_says() {
    let tree = Tree::new();
    let (inside, outside) = (tree.path("rw/link"), tree.path("ro/file"));
    symlink(&outside, &inside).unwrap();
    let text = c(&inside);
    let times: [i64; 4] = [5, 0, 6, 0];
    let times = times.as_ptr() as u64;
    let ran = tree.run(|| {
        (
            raw(libc::SYS_utimensat, [HERE, at(&text), times, NOFOLLOW, 0, 0]),
            raw(libc::SYS_utimensat, [HERE, at(&text), times, 0, 0, 0]),
            raw(libc::SYS_fchmodat2, [HERE, at(&text), 0o777, NOFOLLOW, 0, 0]),
        )
    });
    assert_eq!(ran.result, (Ok(0), Err(libc::EPERM), Err(libc::EOPNOTSUPP)));
    assert_eq!(ran.denial().target.path.as_deref(), outside.to_str());
    assert_eq!(fs::symlink_metadata(&inside).unwrap().mtime(), 6);
    assert_ne!(fs::metadata(&outside).unwrap().mtime(), 6);
}

#[test]
fn what_is_in_no_file_system_is_the_targets_own() {
    let tree = Tree::new();
    let (reader, _writer) = std::io::pipe().unwrap();
    let gone = File::create(tree.path("rw/gone")).unwrap();
    fs::remove_file(tree.path("rw/gone")).unwrap();
    let ran = tree.run(|| {
        let chmod = |fd: i32| raw(libc::SYS_fchmod, [fd as u64, 0o600, 0, 0, 0, 0]);
        (
            chmod(reader.as_raw_fd()),
            chmod(gone.as_raw_fd()),
            chmod(9_999),
            chmod(-1),
        )
    });
    let bad = Err(libc::EBADF);
    assert_eq!(ran.unrecorded(), (Ok(0), Ok(0), bad, bad));
}

#[test]
fn mistakes_get_the_kernels_errors() {
    let tree = Tree::new();
    let (file, missing) = (c(&tree.path("rw/file")), c(&tree.path("rw/missing")));
    let odd_time: [i64; 4] = [0, 5_000_000_000, 0, 0];
    let results = tree.run(|| {
        [
            raw(libc::SYS_fchmodat, [HERE, at(&missing), 0, 0, 0, 0]),
            raw(libc::SYS_fchmodat, [HERE, 1, 0, 0, 0, 0]),
            raw(libc::SYS_fchmodat2, [HERE, at(&file), 0, 0x8000, 0, 0]),
            raw(
                libc::SYS_utimensat,
                [HERE, at(&file), odd_time.as_ptr() as u64, 0, 0, 0],
            ),
            raw(
                libc::SYS_setxattr,
                [at(&file), c"user.x".as_ptr() as u64, 1, 1 << 20, 0, 0],
            ),
            raw(
                libc::SYS_setxattr,
                [at(&file), c"user.x".as_ptr() as u64, 1, 10, 0, 0],
            ),
            raw(
                libc::SYS_removexattr,
                [at(&file), c"user.none".as_ptr() as u64, 0, 0, 0, 0],
            ),
            raw(libc::SYS_setxattr, [at(&file), c"".as_ptr() as u64, 1, 0, 0, 0]),
        ]
    });
    let errors = [
        libc::ENOENT,
        libc::EFAULT,
        libc::EINVAL,
        libc::EINVAL,
        libc::E2BIG,
        libc::EFAULT,
        libc::ENODATA,
        libc::ERANGE,
    ];
    assert_eq!(results.unrecorded(), errors.map(Err));
}

/// Another thread changes the path in memory from one file to the other all the while.
#[test]
fn escape_28_a_path_that_changes_meanwhile_never_reaches_the_other_file() {
    let tree = Tree::new();
    let (inside, outside) = (tree.path("rw/file"), tree.path("ro/file"));
    let before = fs::metadata(&outside).unwrap();
    // Both end alike: only the eight bytes before the end differ.
    let (good, bad) = (c(&inside), c(&outside));
    let split = good
        .as_bytes()
        .iter()
        .zip(bad.as_bytes())
        .position(|(a, b)| a != b)
        .unwrap();
    let buffer: Vec<AtomicU64> = good
        .as_bytes_with_nul()
        .chunks(8)
        .map(|_| AtomicU64::new(0))
        .collect();
    let words = |text: &CString| -> Vec<u64> {
        text.as_bytes_with_nul()
            .chunks(8)
            .map(|chunk| {
                let mut bytes = [0; 8];
                bytes[..chunk.len()].copy_from_slice(chunk);
                u64::from_ne_bytes(bytes)
            })
            .collect()
    };
    let (good, bad) = (words(&good), words(&bad));
    for (slot, word) in buffer.iter().zip(&good) {
        slot.store(*word, Ordering::Relaxed);
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for words in [&bad, &good] {
                    for at in split / 8..words.len() {
                        buffer[at].store(words[at], Ordering::Relaxed);
                    }
                }
            }
        });
        let path = buffer.as_ptr() as u64;
        let ran = tree.run(|| {
            let mut refused = 0;
            for _ in 0..20_000 {
                if raw(libc::SYS_fchmodat, [HERE, path, 0o600, 0, 0, 0]).is_err() {
                    refused += 1;
                }
            }
            refused
        });
        done.store(true, Ordering::Relaxed);
        assert!(ran.result > 0, "the other path was never seen");
    });
    let after = fs::metadata(&outside).unwrap();
    assert_eq!(
        (before.ctime(), before.ctime_nsec()),
        (after.ctime(), after.ctime_nsec())
    );
}
