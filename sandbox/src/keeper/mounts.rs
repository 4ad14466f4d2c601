//! The mount namespace, built by the init before the command is forked.
//!
//! Contract: as in `sys`: nothing here allocates or locks.

use std::ffi::CStr;
use std::os::fd::RawFd;

use super::Step;
use super::image::{Image, MountImage};
use super::sys::{self, Errno};

/// Which step failed, why, and at which entry of the mount list.
pub(super) type Failure = (Step, Errno, u32);

const PROC: &CStr = c"/proc";
/// While `/proc` is covered, the empty things that masks are made of are here.
const MASK_DIRECTORY: &CStr = c"/proc/d";
const MASK_FILE: &CStr = c"/proc/f";

pub(super) fn build(image: &mut Image) -> Result<(), Failure> {
    // What the host mounts or unmounts later is seen here; nothing goes the other way.
    sys::mount(None, c"/", None, libc::MS_REC | libc::MS_SLAVE, None)
        .map_err(|errno| (Step::Propagation, errno, 0))?;
    let mut kept = 0;
    for (index, step) in image.mounts.iter().enumerate() {
        let index = index as u32;
        match step {
            MountImage::Keep(path) => {
                let tree = copy_of(path).map_err(|e| (Step::KeepMount, e, index))?;
                if let Some(slot) = image.kept_trees.get_mut(kept) {
                    *slot = tree;
                }
                kept += 1;
            }
            MountImage::Private { path, data } => sys::mount(
                Some(c"tmpfs"),
                path,
                Some(c"tmpfs"),
                libc::MS_NOSUID | libc::MS_NODEV,
                Some(data),
            )
            .map_err(|e| (Step::PrivateDirectory, e, index))?,
            MountImage::Terminals => sys::mount(
                Some(c"devpts"),
                c"/dev/pts",
                Some(c"devpts"),
                libc::MS_NOSUID | libc::MS_NOEXEC,
                // Anybody may make one: they are all the command's.
                Some(c"newinstance,mode=0600,ptmxmode=0666"),
            )
            .map_err(|e| (Step::PrivateDirectory, e, index))?,
            MountImage::Restore {
                slot,
                path,
                parents,
                directory,
                read_only,
            } => {
                let tree = image.kept_trees.get(*slot).copied().unwrap_or(-1);
                if *read_only {
                    sys::make_read_only(tree).map_err(|e| (Step::RestoreMount, e, index))?;
                }
                restore(tree, path, parents, *directory).map_err(|e| (Step::RestoreMount, e, index))?;
            }
            MountImage::Mask { .. } => {}
            MountImage::Pin(path) => {
                absent_is_fine(onto_itself(path, false)).map_err(|e| (Step::Protect, e, index))?;
            }
            MountImage::ReadOnly(path) => {
                absent_is_fine(onto_itself(path, true)).map_err(|e| (Step::Protect, e, index))?;
            }
        }
    }
    if image.has_masks {
        masks(image)?;
    }
    if image.request.plan.private_proc {
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        sys::mount(Some(c"proc"), PROC, Some(c"proc"), flags, None).map_err(|e| (Step::Proc, e, 0))?;
    }
    Ok(())
}

/// Adds the rights for what was mounted to the rulesets. These are shared with other spawns of the same sandbox, who
/// cannot reach these file systems.
pub(super) fn allow(image: &Image) -> Result<(), Failure> {
    for (index, (path, access)) in image.mounted.iter().enumerate() {
        let fail = |errno| (Step::Landlock, errno, 100 + index as u32);
        let directory = sys::open(path, libc::O_PATH | libc::O_DIRECTORY, 0).map_err(fail)?;
        for (ruleset, access) in image.rulesets.iter().zip(access) {
            if *access != 0 {
                sys::landlock_allow_below(*ruleset, *access, directory).map_err(fail)?;
            }
        }
        sys::close(directory);
    }
    Ok(())
}

fn restore(
    tree: RawFd,
    path: &CStr,
    parents: &[std::ffi::CString],
    directory: bool,
) -> Result<(), Errno> {
    for parent in parents {
        exists_is_fine(sys::mkdir(parent, 0o755))?;
    }
    if directory {
        exists_is_fine(sys::mkdir(path, 0o755))?;
    }
    let place = match sys::open_place(path) {
        // Not there yet: it is not in a tree that was put back before.
        Err(libc::ENOENT) if !directory => {
            sys::close(sys::open(path, libc::O_CREAT | libc::O_WRONLY, 0o600)?);
            sys::open_place(path)?
        }
        other => other?,
    };
    let moved = sys::move_mount(tree, place);
    sys::close(place);
    sys::close(tree);
    moved
}

/// A detached copy of the tree at `path`.
fn copy_of(path: &CStr) -> Result<RawFd, Errno> {
    let place = sys::open_place(path)?;
    let tree = sys::open_tree_clone(place);
    sys::close(place);
    tree
}

/// The path is looked up once: were the copy taken from one place and attached at another, whoever renames
/// directories in between would have his choice of files mounted where the policy allows reading.
fn onto_itself(path: &CStr, read_only: bool) -> Result<(), Errno> {
    let place = sys::open_place(path)?;
    let result = sys::open_tree_clone(place).and_then(|tree| {
        let result = if read_only {
            sys::make_read_only(tree)
        } else {
            Ok(())
        };
        let result = result.and_then(|()| sys::move_mount(tree, place));
        sys::close(tree);
        result
    });
    sys::close(place);
    result
}

fn cover(path: &CStr, cover: &CStr) -> Result<(), Errno> {
    let place = sys::open_place(path)?;
    let result = copy_of(cover).and_then(|tree| {
        let result = sys::move_mount(tree, place);
        sys::close(tree);
        result
    });
    sys::close(place);
    result
}

/// Covers denied paths with an empty directory or file of mode 0 on a read-only file system: without
/// capabilities nobody can open it, not even its owner, who cannot change its mode either. It is made on
/// `/proc`, where no denied path is, and taken away again; the covers stay.
fn masks(image: &Image) -> Result<(), Failure> {
    let fail = |errno| (Step::Mask, errno, u32::MAX);
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let data = Some(c"mode=0755,nr_inodes=8,size=4k");
    sys::mount(Some(c"tmpfs"), PROC, Some(c"tmpfs"), flags, data).map_err(fail)?;
    sys::mkdir(MASK_DIRECTORY, 0).map_err(fail)?;
    sys::close(sys::open(MASK_FILE, libc::O_CREAT | libc::O_RDONLY, 0).map_err(fail)?);
    sys::mount(None, PROC, None, libc::MS_REMOUNT | libc::MS_RDONLY | flags, None).map_err(fail)?;
    for (index, step) in image.mounts.iter().enumerate() {
        if let MountImage::Mask { path, directory } = step {
            let empty = if *directory { MASK_DIRECTORY } else { MASK_FILE };
            absent_is_fine(cover(path, empty)).map_err(|errno| (Step::Mask, errno, index as u32))?;
        }
    }
    sys::detach_mount(PROC).map_err(fail)
}

/// A path that is not there needs no cover, be it that a part of it is a file, as `.git` is in a linked worktree.
fn absent_is_fine(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(libc::ENOENT | libc::ENOTDIR) => Ok(()),
        other => other,
    }
}

fn exists_is_fine(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(libc::EEXIST) => Ok(()),
        other => other,
    }
}
