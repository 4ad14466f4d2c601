//! Repositories below the working directory: what git would run in them is protected as in the directory itself.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

/// How deep is looked, how many directories are looked into, how many names are read and how many repositories are found, at
/// most: a policy is made for each command, and each protected path is a mount.
const DEPTH_MAX: usize = 3;
const DIRECTORIES_MAX: usize = 256;
const NAMES_MAX: usize = 16 * 1024;
const REPOSITORIES_MAX: usize = 16;

/// Directories with many others in them, and hardly a repository.
const SKIPPED: [&str; 3] = ["node_modules", "target", "__pycache__"];

/// In a repository's own directory: what git would run, and where it is told to.
const IN_GIT: [&str; 2] = ["hooks", "config"];

/// Provost's own settings.
const SETTINGS: &str = ".provost";

/// What is to be protected in a directory.
pub(super) struct Protected {
    /// In itself, whether it is there or not, and in the repositories below it that are.
    pub(super) paths: Vec<PathBuf>,
    /// A bound was met before everything was looked at: which.
    pub(super) unsearched: Option<String>,
}

pub(super) fn protected(root: &Path) -> Protected {
    let git = root.join(".git");
    let mut found: Vec<PathBuf> = IN_GIT.iter().map(|name| git.join(name)).collect();
    found.push(root.join(SETTINGS));
    // In a linked worktree it is a file that says where all of that is.
    if kind(&git).is_some_and(|kind| kind.is_file()) {
        found.push(git.clone());
    }
    submodules(&git.join("modules"), &mut found);
    let mut repositories = 0;
    let mut looked_into = 0;
    let mut names = 0;
    let mut unsearched = None;
    let mut waiting = VecDeque::from([(root.to_owned(), 0)]);
    while let Some((directory, depth)) = waiting.pop_front() {
        if repositories >= REPOSITORIES_MAX {
            unsearched = Some(format!(
                "{REPOSITORIES_MAX} repositories were found, and perhaps not all"
            ));
            break;
        }
        if looked_into >= DIRECTORIES_MAX || names >= NAMES_MAX {
            unsearched = Some(format!("only {looked_into} directories were looked into"));
            break;
        }
        looked_into += 1;
        if depth > 0 {
            let before = found.len();
            let git = directory.join(".git");
            match kind(&git) {
                Some(kind) if kind.is_file() => found.push(git),
                Some(kind) if kind.is_dir() => found.extend(IN_GIT.map(|name| git.join(name))),
                _ => {}
            }
            let settings = directory.join(SETTINGS);
            found.extend(kind(&settings).is_some().then_some(settings));
            repositories += usize::from(found.len() > before);
        }
        if depth == DEPTH_MAX {
            continue;
        }
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        for entry in entries.take(NAMES_MAX - names) {
            names += 1;
            let name = entry.file_name();
            let skipped = name.as_encoded_bytes().starts_with(b".")
                || SKIPPED.iter().any(|skipped| name.as_os_str() == *skipped);
            if !skipped && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.push_back((entry.path(), depth + 1));
            }
        }
    }
    if names >= NAMES_MAX && unsearched.is_none() {
        unsearched = Some(format!("only {NAMES_MAX} names were read"));
    }
    Protected {
        paths: found,
        unsearched,
    }
}

/// The repositories of submodules are in the one that they are part of.
fn submodules(modules: &Path, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(modules).into_iter().flatten().flatten();
    for module in entries.take(REPOSITORIES_MAX) {
        found.extend(IN_GIT.map(|name| module.path().join(name)));
    }
}

fn kind(path: &Path) -> Option<fs::FileType> {
    fs::symlink_metadata(path).ok().map(|found| found.file_type())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_below_are_found_and_links_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for name in [
            ".git/modules/sub/hooks",
            "a/b/.git/hooks",
            "c/.provost",
            "d/e/f/g/.git",
            "node_modules/x/.git",
            ".cache/.git",
        ] {
            fs::create_dir_all(path(name)).unwrap();
        }
        fs::create_dir(path("sub")).unwrap();
        fs::write(path("sub/.git"), "gitdir: ../.git/modules/sub").unwrap();
        std::os::unix::fs::symlink(path("a"), path("link")).unwrap();
        let Protected {
            paths: mut found,
            unsearched,
        } = protected(root.path());
        assert_eq!(unsearched, None);
        found.sort();
        let mut wanted = [
            ".git/hooks",
            ".git/config",
            ".provost",
            ".git/modules/sub/hooks",
            ".git/modules/sub/config",
            "a/b/.git/hooks",
            "a/b/.git/config",
            "c/.provost",
            "sub/.git",
        ]
        .map(path);
        wanted.sort();
        assert_eq!(found, wanted);
    }

    #[test]
    fn the_search_is_bounded_and_says_so() {
        let root = tempfile::tempdir().unwrap();
        for name in 0..REPOSITORIES_MAX + 5 {
            fs::create_dir_all(root.path().join(format!("{name}/.git"))).unwrap();
        }
        let bounded = protected(root.path());
        assert_eq!(bounded.paths.len() - 3, REPOSITORIES_MAX * IN_GIT.len());
        let said = bounded.unsearched.expect("a bound");
        assert!(said.contains("16 repositories"), "{said}");

        let root = tempfile::tempdir().unwrap();
        for name in 0..DIRECTORIES_MAX - 1 {
            fs::create_dir(root.path().join(name.to_string())).unwrap();
        }
        assert_eq!(protected(root.path()).unsearched, None);
        fs::create_dir(root.path().join("one more")).unwrap();
        let said = protected(root.path()).unsearched.expect("a bound");
        assert!(said.contains("256 directories"), "{said}");

        let root = tempfile::tempdir().unwrap();
        for name in 0..NAMES_MAX {
            fs::File::create(root.path().join(name.to_string())).unwrap();
        }
        let said = protected(root.path()).unsearched.expect("a bound");
        assert!(said.contains("16384 names"), "{said}");
    }
}
