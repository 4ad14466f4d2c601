//! Against the real kernel: a thread restricts itself with the rulesets and tries.

mod agree;
mod compile;
mod files;
mod mounts;
mod restrict;

use std::path::{Path, PathBuf};

use super::*;
use crate::policy::PathRule;
pub(super) use restrict::{restricted, restricted_with};

/// A directory of one test's own, outside of `/tmp`, with the tree that most tests use.
pub(super) struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    /// `home/{.ssh/key,.netrc,notes,project/code}` and `other/file`.
    pub(super) fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("provost-landlock-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let fixture = Self { dir };
        for file in [
            "home/.ssh/key",
            "home/.netrc",
            "home/notes",
            "home/project/code",
            "other/file",
        ] {
            fixture.write(file, "content");
        }
        fixture
    }

    pub(super) fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    pub(super) fn write(&self, below: &str, content: &str) {
        let path = self.path(below);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Rules for paths below the fixture; absolute paths stay as they are.
    pub(super) fn rules(&self, paths: &[&str]) -> Vec<PathRule> {
        let rule = |p: &&str| PathRule::preset(self.path(p), "preset test");
        paths.iter().map(rule).collect()
    }

    pub(super) fn policy(&self, read: &[&str], write: &[&str], deny: &[&str]) -> FilePolicy {
        FilePolicy {
            read: self.rules(read),
            write: self.rules(write),
            deny: self.rules(deny),
            ..FilePolicy::default()
        }
    }
}

/// A request for this kernel without mounts.
pub(super) fn request(files: &FilePolicy) -> LandlockRequest<'_> {
    LandlockRequest {
        files,
        abi: kernel_abi(),
        mounts: false,
        private_dirs: &[],
        deny_tcp: true,
        audit: false,
        degrade: Degrade::Required,
    }
}

pub(super) fn kernel_abi() -> u32 {
    restrict::abi()
}

pub(super) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether the attempt was refused by the sandbox, and not for another reason.
#[track_caller]
pub(super) fn assert_refused<T: std::fmt::Debug>(what: &str, result: std::io::Result<T>) {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {}
        other => panic!("{what}: not refused with EACCES: {other:?}"),
    }
}

#[track_caller]
pub(super) fn assert_allowed<T>(what: &str, result: std::io::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{what}: {error}"))
}

pub(super) fn open_write(path: &Path) -> std::io::Result<std::fs::File> {
    std::fs::OpenOptions::new().write(true).open(path)
}
