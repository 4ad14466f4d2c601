//! Disks that can be filled, or fail.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{major, minor};

use crate::World;

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

/// A disk in the place of a directory, until it is dropped, that can fail. Only root can mount it.
#[derive(Debug)]
pub struct FailingDisk(PathBuf);

impl FailingDisk {
    /// One of 16 MiB, of the user's.
    pub fn mount(world: &World, name: &str) -> Self {
        let (at, image) = (world.path(name), world.path("disk"));
        fs::create_dir_all(&at).expect("a directory");
        let file = fs::File::create_new(&image).expect("a file of the test's own");
        file.set_len(16 << 20).expect("a sparse file");
        run(Command::new("mkfs.ext4").arg("-q").arg(&image));
        let options = "loop,errors=remount-ro";
        run(Command::new("mount")
            .args(["-t", "ext4", "-o", options])
            .args([&image, &at]));
        world.give_away(&at, 0o700);
        Self(at)
    }

    /// From now on nothing can be written, also to files that are open.
    pub fn fail(&self) {
        let device = fs::metadata(&self.0).expect("it is mounted").dev();
        let link = format!("/sys/dev/block/{}:{}", major(device), minor(device));
        let device = fs::read_link(link).expect("a block device");
        let name = device.file_name().expect("its name");
        let trigger = Path::new("/sys/fs/ext4").join(name).join("trigger_fs_error");
        fs::write(trigger, "a test of what depends on it").expect("root may break it");
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn run(command: &mut Command) {
    let done = command.output().expect("it starts");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}: {said}");
}
