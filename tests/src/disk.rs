//! A disk that can be filled.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A small disk in the place of a directory, until it is dropped. Only root can mount it.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// One of 16 MiB, of root's.
    pub fn mount(at: &Path) -> Self {
        fs::create_dir_all(at).expect("a directory");
        let options = Some("size=16m,mode=0711");
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), options).expect("root may mount");
        Self(at.to_owned())
    }

    /// Leaves no room, until the file is removed. Once more where some was made meanwhile: it is the same file.
    pub fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = fs::File::options();
        let mut file = file.append(true).create(true).open(&path).expect("a file");
        for size in [1 << 16, 1 << 12, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
