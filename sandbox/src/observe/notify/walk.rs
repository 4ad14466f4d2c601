//! Walking a path by hand, for what the kernel does not do for us.
//!
//! A lookup in the target's view follows no link of the kind that `/proc` has: such a link means the task that looks,
//! and that is us. So a path that leads through one of the target's own (`link -> /proc/self/root`, then `link/etc`)
//! looks missing although the target gets through. Here every part is looked at by itself, and the target's own links
//! are replaced by what they mean for the target.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::readlinkat;

use super::paths::View;

/// As many links as the kernel follows in one path.
const LINKS_MAX: usize = 40;
/// Parts of a path, those of followed links included.
const PARTS_MAX: usize = 4096;

impl View {
    /// The path without links, as far as it exists.
    ///
    /// # Errors
    /// `ENXIO` for what is no file in a file system; `ELOOP` for too many links.
    pub(super) fn walk(&self, path: &Path, follow_last: bool) -> Result<PathBuf, Errno> {
        let own = self.own_numbers();
        let mut todo = parts(path);
        let mut at = PathBuf::from("/");
        let mut links = 0;
        for _ in 0..PARTS_MAX {
            let Some(part) = todo.pop() else {
                return Ok(at);
            };
            if part == ".." {
                at.pop();
                continue;
            }
            at.push(part);
            let last = todo.is_empty();
            if let Some(link) = own_link(&at, &own) {
                at = self.file_behind(&link)?;
            } else if !last || follow_last {
                let Some(target) = self.link_at(&at) else {
                    continue;
                };
                at.pop();
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                todo.extend(parts(&target));
            } else {
                continue;
            }
            links += 1;
            if links > LINKS_MAX {
                return Err(Errno::ELOOP);
            }
        }
        Err(Errno::ELOOP)
    }

    /// The target of an ordinary link; its directory has none in it.
    fn link_at(&self, path: &Path) -> Option<PathBuf> {
        if path == Path::new("/proc/self") || path == Path::new("/proc/thread-self") {
            return None; // as it is: `own_link` knows it
        }
        let file = self.open_plain(path).ok()?;
        readlinkat(&file, c"").ok().map(PathBuf::from)
    }

    /// The numbers of the target's thread and process in its own PID namespace.
    fn own_numbers(&self) -> Vec<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.tid())).unwrap_or_default();
        ["NStgid:", "NSpid:"]
            .iter()
            .filter_map(|name| status.lines().find_map(|line| line.strip_prefix(name)))
            .filter_map(|numbers| numbers.split_whitespace().last().map(str::to_owned))
            .collect()
    }
}

/// The parts of a path, the first one last.
fn parts(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

/// What a path is below `/proc/TID`, if it is one of the target's own links: `cwd`, `root`, `exe`, `fd/N`.
fn own_link(path: &Path, own: &[String]) -> Option<String> {
    let names: Vec<&str> = path
        .strip_prefix("/proc")
        .ok()?
        .components()
        .map(|component| component.as_os_str().to_str())
        .collect::<Option<_>>()?;
    let is_own =
        |name: &str| matches!(name, "self" | "thread-self") || own.iter().any(|own| own == name);
    let (first, rest) = names.split_first()?;
    if !is_own(first) {
        return None;
    }
    let rest = match rest {
        ["task", thread, rest @ ..] if is_own(thread) => rest,
        rest => rest,
    };
    match rest {
        [link @ ("cwd" | "root" | "exe")] => Some((*link).to_owned()),
        ["fd", number] => number.parse::<u32>().ok().map(|number| format!("fd/{number}")),
        _ => None,
    }
}

/// Whether this is the name of memory, which looks like a path and is none.
pub(super) fn is_memory(path: &Path) -> bool {
    path.as_os_str().as_bytes().starts_with(b"/memfd:")
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_targets_own_links_are_followed_wherever_they_stand() {
        let me = std::process::id();
        let view = View::open(me.cast_signed()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().canonicalize().unwrap();
        let file = fs::File::create(base.join("f")).unwrap();
        symlink("/proc/self/root", base.join("root")).unwrap();
        symlink("/proc/self/fd", base.join("fds")).unwrap();
        let number = file.as_raw_fd();
        for path in [
            format!("{0}/root{0}/f", base.display()),
            format!("{}/fds/{number}", base.display()),
            format!("/proc/../proc/self/root{}/f", base.display()),
            format!("/proc/{me}/fd/{number}"),
            format!("/proc/{me}/task/{me}/fd/{number}"),
            format!("/proc/self/task/../root{}/f", base.display()),
        ] {
            assert_eq!(view.walk(Path::new(&path), true), Ok(base.join("f")), "{path}");
        }
        assert_eq!(
            view.walk(&base.join("root"), false),
            Ok(base.join("root")),
            "the last link is not followed"
        );
        let (pipe, _writer) = std::io::pipe().unwrap();
        let path = format!("{}/fds/{}", base.display(), pipe.as_raw_fd());
        assert_eq!(view.walk(Path::new(&path), true), Err(Errno::ENXIO));
        symlink("b", base.join("a")).unwrap();
        symlink("a", base.join("b")).unwrap();
        assert_eq!(view.walk(&base.join("a"), true), Err(Errno::ELOOP));
        assert_eq!(
            own_link(Path::new("/proc/1/root"), &["2".to_owned()]),
            None,
            "another's"
        );
    }
}
