//! Paths, seen as the target sees them: below its root, from its working directory, through its mounts.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, fstat};

use super::walk::is_memory;

/// Lookups that are begun again because a directory was moved meanwhile (`EAGAIN`).
const ATTEMPTS_MAX: usize = 8;
/// Links in `/proc` and dangling symlinks that are followed one after another.
const LINKS_MAX: usize = 8;

/// A target's view of the file system.
#[derive(Debug)]
pub(super) struct View {
    tid: i32,
    root: Arc<Root>,
}

/// The root of a target's file system.
#[derive(Debug)]
pub(super) struct Root {
    file: OwnedFd,
    /// Where it is, as paths of the target's mount namespace read.
    path: PathBuf,
}

/// A file that was looked up.
#[derive(Debug)]
pub(super) struct Found {
    /// An `O_PATH` descriptor.
    pub(super) file: OwnedFd,
    /// Its path in the target's view, without symlinks.
    pub(super) path: PathBuf,
}

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resolved {
    /// The path in the target's view: without symlinks, except for a last one that was not to be followed.
    pub(super) path: PathBuf,
    /// What is there.
    pub(super) kind: Kind,
}

/// What is at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing, in a directory that exists.
    Absent,
    /// A directory.
    Directory,
    /// A symlink.
    Symlink,
    /// Anything else.
    Other,
    /// Not to be known, because the lookup was refused: the path was only read as text.
    Unknown,
}

/// The target's call will fail, or does not concern a file with a path: nothing to say about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moot;

impl View {
    pub(super) fn open(tid: i32) -> Result<Self, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let file = open(format!("/proc/{tid}/root").as_str(), flags, Mode::empty())?;
        let path = path_of(&file)?;
        let root = Arc::new(Root { file, path });
        Ok(Self { tid, root })
    }

    /// The view of a task whose root is known.
    pub(super) fn within(tid: i32, root: Arc<Root>) -> Self {
        Self { tid, root }
    }

    pub(super) fn root(&self) -> Arc<Root> {
        self.root.clone()
    }

    /// A path argument made absolute: relative ones begin at the working directory or at `directory`.
    pub(super) fn absolute(&self, directory: i32, path: &[u8]) -> Result<PathBuf, Errno> {
        if path.is_empty() {
            return Err(Errno::ENOENT);
        }
        let path = Path::new(OsStr::from_bytes(path));
        if path.is_absolute() {
            return Ok(path.to_owned());
        }
        let base = if directory == libc::AT_FDCWD {
            self.link("cwd")?
        } else if directory < 0 {
            return Err(Errno::EBADF);
        } else {
            match self.link(&format!("fd/{directory}")) {
                Err(Errno::ENOENT) => return Err(Errno::EBADF),
                other => other?,
            }
        };
        if !base.is_absolute() {
            return Err(Errno::ENOTDIR);
        }
        Ok(base.join(path))
    }

    /// A path argument as text: absolute, without `.` and `..`, symlinks left as they are.
    pub(super) fn plain(&self, directory: i32, path: &[u8]) -> Option<PathBuf> {
        self.absolute(directory, path).ok().map(|path| lexical(&path))
    }

    /// The path that a descriptor of the target's is open on; relative (`pipe:[1]`) where it has none.
    pub(super) fn descriptor(&self, fd: i32) -> Result<PathBuf, Errno> {
        self.link(&format!("fd/{fd}"))
    }

    /// Where the file of a descriptor is for the target; nothing where it is in no file system.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn path_of(&self, file: &OwnedFd) -> Result<Option<PathBuf>, Errno> {
        let path = path_of(file)?;
        Ok((path.is_absolute() && !is_memory(&path)).then(|| self.within_root(path)))
    }

    /// Looks a path up below the target's root. Links of the kind that `/proc` has are followed only where
    /// the path names one of the target's own outright; `ELOOP` for others.
    pub(super) fn lookup(&self, path: &Path, follow_last: bool) -> Result<Found, Errno> {
        let path = self.through_own_links(path)?;
        let file = self.open_in_root(&path, follow_last)?;
        let path = self.within_root(path_of(&file)?);
        Ok(Found { file, path })
    }

    /// Like [`Self::lookup`], and where that fails with the target's own links followed wherever they stand.
    pub(super) fn lookup_thoroughly(&self, path: &Path) -> Result<Found, Errno> {
        match self.lookup(path, true) {
            Err(error @ (Errno::ENOENT | Errno::ELOOP | Errno::EXDEV)) => {
                let walked = self.walk(path, true).map_err(|_| error)?;
                self.lookup(&walked, true).map_err(|_| error)
            }
            found => found,
        }
    }

    /// What is at a path whose last part is not followed.
    pub(super) fn open_plain(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.open_in_root(path, false)
    }

    fn open_in_root(&self, path: &Path, follow_last: bool) -> Result<OwnedFd, Errno> {
        let mut flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        if !follow_last {
            flags |= OFlag::O_NOFOLLOW;
        }
        let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        let mut attempts = 0;
        loop {
            match openat2(self.root.file.as_fd(), path, how) {
                Err(Errno::EAGAIN | Errno::EINTR) if attempts < ATTEMPTS_MAX => attempts += 1,
                result => return result,
            }
        }
    }

    /// What a path leads to, for judging.
    ///
    /// # Errors
    /// [`Moot`] where the call must fail for want of a directory on the way, and where what is named is no
    /// file in a file system (a pipe, a socket, a memfd).
    pub(super) fn resolve(
        &self,
        directory: i32,
        path: &[u8],
        follow_last: bool,
    ) -> Result<Resolved, Moot> {
        let mut path = match self.absolute(directory, path) {
            Ok(path) => path,
            Err(Errno::EACCES | Errno::EPERM) if path.starts_with(b"/") => lexical(&bytes_path(path)),
            Err(_) => return Err(Moot),
        };
        let mut walked = false;
        for _ in 0..LINKS_MAX {
            match self.lookup(&path, follow_last) {
                Ok(found) => {
                    return Ok(Resolved {
                        kind: kind_of(&found.file),
                        path: found.path,
                    });
                }
                Err(Errno::ENOENT) => match self.absent(&path, follow_last) {
                    Ok(Absent::Here(path)) => {
                        return Ok(Resolved {
                            path,
                            kind: Kind::Absent,
                        });
                    }
                    Ok(Absent::Dangling(next)) => path = next,
                    Err(Moot) if !walked => {
                        walked = true;
                        path = self.walk(&path, follow_last).map_err(|_| Moot)?;
                    }
                    Err(Moot) => return Err(Moot),
                },
                Err(Errno::ENOTDIR | Errno::ENAMETOOLONG | Errno::ENXIO) => return Err(Moot),
                Err(Errno::ELOOP | Errno::EXDEV) if !walked => {
                    walked = true;
                    match self.walk(&path, follow_last) {
                        Ok(next) => path = next,
                        Err(Errno::ENXIO) => return Err(Moot),
                        Err(_) => {}
                    }
                }
                Err(_) => {
                    return Ok(Resolved {
                        path: lexical(&path),
                        kind: Kind::Unknown,
                    });
                }
            }
        }
        Err(Moot)
    }

    /// Looks again at a path whose lookup ended at something missing.
    fn absent(&self, path: &Path, follow_last: bool) -> Result<Absent, Moot> {
        let (parent, name) = split_last(path).ok_or(Moot)?;
        let directory = self.lookup(&parent, true).map_err(|_| Moot)?;
        let here = directory.path.join(&name);
        if follow_last && let Ok(link) = self.lookup(&here, false) {
            // A symlink to nothing: creating by it creates what it points to.
            let target = nix::fcntl::readlinkat(&link.file, c"").map_err(|_| Moot)?;
            return Ok(Absent::Dangling(directory.path.join(target)));
        }
        Ok(Absent::Here(here))
    }

    /// Replaces a beginning that means the caller by what it means for the target: `/proc/self/fd/N`,
    /// `/proc/self/cwd`, `/dev/stdout` and the like.
    fn through_own_links(&self, path: &Path) -> Result<PathBuf, Errno> {
        let mut path = path.to_owned();
        for _ in 0..LINKS_MAX {
            let Some((link, rest)) = own_link(&path) else {
                return Ok(self.numbered(path));
            };
            let base = self.file_behind(&link)?;
            path = if rest.as_os_str().is_empty() {
                base
            } else {
                base.join(rest)
            };
        }
        Err(Errno::ELOOP)
    }

    /// `/proc/self` means whoever looks; here it must mean the target, by its number in its own `/proc`.
    fn numbered(&self, path: PathBuf) -> PathBuf {
        let rest = path
            .strip_prefix("/proc/self")
            .or_else(|_| path.strip_prefix("/proc/thread-self"));
        let Ok(rest) = rest else { return path };
        match self.own_number() {
            Some(number) => Path::new("/proc").join(number).join(rest),
            None => path,
        }
    }

    /// The target's number in the innermost PID namespace that it is in.
    fn own_number(&self) -> Option<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.tid)).ok()?;
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        numbers.split_whitespace().last().map(str::to_owned)
    }

    /// Where one of the target's own links leads; `ENXIO` for a pipe, a socket, or memory.
    pub(super) fn file_behind(&self, link: &str) -> Result<PathBuf, Errno> {
        let base = self.link(link)?;
        if !base.is_absolute() || is_memory(&base) {
            return Err(Errno::ENXIO);
        }
        Ok(base)
    }

    pub(super) fn tid(&self) -> i32 {
        self.tid
    }

    fn link(&self, name: &str) -> Result<PathBuf, Errno> {
        let target = fs::read_link(format!("/proc/{}/{name}", self.tid))
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        Ok(self.within_root(target))
    }

    fn within_root(&self, path: PathBuf) -> PathBuf {
        match path.strip_prefix(&self.root.path) {
            Ok(rest) => Path::new("/").join(rest),
            Err(_) => path,
        }
    }
}

enum Absent {
    Here(PathBuf),
    Dangling(PathBuf),
}

fn bytes_path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

fn path_of(file: &OwnedFd) -> Result<PathBuf, Errno> {
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
}

fn kind_of(file: &OwnedFd) -> Kind {
    match fstat(file).map(|stat| stat.st_mode & libc::S_IFMT) {
        Ok(libc::S_IFDIR) => Kind::Directory,
        Ok(libc::S_IFLNK) => Kind::Symlink,
        Ok(_) => Kind::Other,
        Err(_) => Kind::Unknown,
    }
}

/// Parent and last name; `None` where the last component is no name (`/`, `.`, `..`).
fn split_last(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let bytes = path.as_os_str().as_bytes();
    let end = bytes.iter().rposition(|&byte| byte != b'/')? + 1;
    let start = bytes[..end]
        .iter()
        .rposition(|&byte| byte == b'/')
        .map_or(0, |at| at + 1);
    let name = &bytes[start..end];
    if matches!(name, b"." | b"..") {
        return None;
    }
    Some((bytes_path(&bytes[..start]), bytes_path(name)))
}

/// The path as text alone says it, where nobody may look.
fn lexical(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => {
                plain.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    plain
}

/// The link below `/proc/TID` with which a path begins, and the rest of the path.
fn own_link(path: &Path) -> Option<(String, PathBuf)> {
    let mut names = path.strip_prefix("/").ok()?.components();
    let mut name = || match names.next()? {
        Component::Normal(name) => name.to_str(),
        _ => None,
    };
    let link = match (name()?, name()?) {
        ("dev", "stdin") => "fd/0".to_owned(),
        ("dev", "stdout") => "fd/1".to_owned(),
        ("dev", "stderr") => "fd/2".to_owned(),
        ("dev", "fd") => format!("fd/{}", number(name()?)?),
        ("proc", "self" | "thread-self") => match name()? {
            "fd" => format!("fd/{}", number(name()?)?),
            link @ ("cwd" | "root") => link.to_owned(),
            _ => return None,
        },
        _ => return None,
    };
    Some((link, names.as_path().to_owned()))
}

fn number(text: &str) -> Option<u32> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn view() -> View {
        View::open(std::process::id().cast_signed()).unwrap()
    }

    fn resolve(path: &Path, follow: bool) -> Result<Resolved, Moot> {
        view().resolve(libc::AT_FDCWD, path.as_os_str().as_bytes(), follow)
    }

    #[test]
    fn names_that_do_not_exist_resolve_by_their_parent() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().canonicalize().unwrap();
        let absent = |path: PathBuf| {
            Ok(Resolved {
                path,
                kind: Kind::Absent,
            })
        };
        assert_eq!(resolve(&base.join("new"), true), absent(base.join("new")));
        assert_eq!(resolve(&base.join("new/"), true), absent(base.join("new")));
        assert_eq!(resolve(&base.join("missing/new"), true), Err(Moot));
        std::os::unix::fs::symlink("elsewhere", base.join("dangling")).unwrap();
        assert_eq!(
            resolve(&base.join("dangling"), true),
            absent(base.join("elsewhere"))
        );
        let link = resolve(&base.join("dangling"), false).unwrap();
        assert_eq!((link.path, link.kind), (base.join("dangling"), Kind::Symlink));
        assert_eq!(resolve(&base.join("dangling/x"), true), Err(Moot));
        std::os::unix::fs::symlink(&base, base.join("loop")).unwrap();
        assert_eq!(
            resolve(&base.join("loop/loop/new"), true),
            absent(base.join("new"))
        );
        assert_eq!(resolve(&base.join("loop"), true).unwrap().kind, Kind::Directory);
    }

    #[test]
    fn a_circle_of_dangling_links_ends() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("b", directory.path().join("a")).unwrap();
        std::os::unix::fs::symlink("a", directory.path().join("b")).unwrap();
        // The kernel's own ELOOP: only the text is left to judge.
        assert_eq!(
            resolve(&directory.path().join("a"), true).unwrap().kind,
            Kind::Unknown
        );
    }

    #[test]
    fn descriptors_are_followed_to_files_and_pipes_are_moot() {
        use std::os::fd::AsRawFd;
        let (reader, _writer) = std::io::pipe().unwrap();
        let pipe = format!("/proc/self/fd/{}", reader.as_raw_fd());
        assert_eq!(resolve(Path::new(&pipe), true), Err(Moot));
        let directory = tempfile::tempdir().unwrap();
        let file = fs::File::create(directory.path().join("f")).unwrap();
        for prefix in ["/proc/self/fd", "/dev/fd", "/proc/thread-self/fd"] {
            let path = format!("{prefix}/{}", file.as_raw_fd());
            let resolved = resolve(Path::new(&path), true).unwrap();
            assert_eq!(resolved.path, directory.path().canonicalize().unwrap().join("f"));
        }
    }

    proptest! {
        #[test]
        fn any_path_resolves_without_a_panic(bytes in "[a./]{0,40}") {
            let _ = view().resolve(libc::AT_FDCWD, bytes.as_bytes(), true);
            let plain = lexical(Path::new(&bytes));
            prop_assert!(plain.is_absolute() && !plain.components().any(|c| c == Component::ParentDir));
        }
    }
}
