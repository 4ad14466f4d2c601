//! Symbolic links in a policy's paths.
//!
//! Landlock judges files, not names, and a notified path arrives with its links followed. So every rule is
//! taken to where it really leads. A denied path is denied twice when its last part is a link: where the
//! link is (it may become a directory) and where it leads.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use crate::policy::{FilePolicy, PathRule};

/// As many links as the kernel follows in one path.
const LINKS_MAX: usize = 40;

/// A path with its links followed as far as it exists.
pub(super) struct Resolved {
    pub(super) path: PathBuf,
    /// The links that were followed, for noticing when one of them is changed.
    pub(super) links: Vec<PathBuf>,
}

/// Follows the links of `path`. Parts that do not exist are kept as they are written; so is everything
/// after more links than the kernel would follow.
pub(super) fn resolve(path: &Path) -> Resolved {
    let mut todo: Vec<OsString> = parts(path);
    let mut real = PathBuf::from("/");
    let mut links = Vec::new();
    while let Some(part) = todo.pop() {
        if part == ".." {
            real.pop();
            continue;
        }
        real.push(&part);
        if links.len() >= LINKS_MAX {
            continue;
        }
        let Ok(target) = std::fs::read_link(&real) else {
            continue;
        };
        links.push(real.clone());
        real.pop();
        if target.is_absolute() {
            real = PathBuf::from("/");
        }
        todo.extend(parts(&target));
    }
    Resolved { path: real, links }
}

/// The names of a path, the first one last.
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

/// Dynamic loaders, glibc's and musl's.
const LOADERS: [&str; 4] = [
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-aarch64.so.1",
];

/// The policy with every path resolved, and the links that were met.
pub(super) fn resolve_policy(files: &FilePolicy) -> (FilePolicy, Vec<PathBuf>) {
    let mut links = Vec::new();
    let mut follow = |rules: &[PathRule]| -> Vec<PathRule> {
        let mut resolved = Vec::with_capacity(rules.len());
        for rule in rules {
            let real = resolve(&rule.path);
            links.extend(real.links);
            resolved.push(PathRule {
                path: real.path,
                ..rule.clone()
            });
        }
        resolved
    };
    let (read, write, protect) = (follow(&files.read), follow(&files.write), follow(&files.protect));
    let execute = match files.execute.is_empty() {
        true => Vec::new(),
        // Without its loader no program starts that is linked to a library.
        false => {
            let loaders = LOADERS.map(|path| PathRule::preset(path, "built-in"));
            [follow(&files.execute), follow(&loaders)].concat()
        }
    };
    let mut deny = follow(&files.deny);
    // A link that leads to `/` denies nothing: whoever may write next to a secret could plant one, and
    // then nothing would run any more.
    deny.retain(|rule| rule.path != Path::new("/") || files.deny.contains(rule));
    for rule in &files.deny {
        let place = match (rule.path.parent(), rule.path.file_name()) {
            (Some(parent), Some(name)) => resolve(parent).path.join(name),
            _ => continue,
        };
        let place = PathRule {
            path: place,
            ..rule.clone()
        };
        if !deny.contains(&place) {
            deny.push(place);
        }
    }
    let resolved = FilePolicy {
        read,
        execute,
        write,
        deny,
        protect,
        unsearched: files.unsearched.clone(),
        private_tmp: files.private_tmp,
    };
    (resolved, links)
}
