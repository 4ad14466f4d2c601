//! Where policies are found, and reading them without being led astray.
//!
//! A policy decides what an untrusted program may do, so who can write the file can decide that too. Files in the policy
//! directories must belong to the user or to root and be writable by nobody else; for root that holds for every file. The
//! file is opened first and then looked at, so nothing can be put in its place in between.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::{PolicyFileError, Text};
use super::merge::PolicyFileContext;
use crate::PRESETS;

/// The longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What `--policy` or `extends` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyName {
    /// A built-in preset.
    Preset(String),
    /// A file, by its path.
    File(PathBuf),
    /// A policy of this name in one of the policy directories.
    Named(String),
}

impl PolicyName {
    /// `workspace-write` is a preset; what has a slash in it or ends with `.toml` is a file; anything else a name.
    pub fn parse(text: &str) -> Self {
        if PRESETS.contains(&text) {
            Self::Preset(text.to_owned())
        } else if text.contains('/') || text.ends_with(".toml") {
            Self::File(text.into())
        } else {
            Self::Named(text.to_owned())
        }
    }
}

/// The policies that can be named, with their files; the first of a name counts.
pub fn names(context: &PolicyFileContext) -> Vec<(String, PathBuf)> {
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for directory in &context.directories {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut here: Vec<PathBuf> = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
            .collect();
        here.sort();
        for path in here {
            let name = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if !found.iter().any(|(known, _)| *known == name) {
                found.push((name, path));
            }
        }
    }
    found
}

/// A policy file that was read.
pub(crate) struct Found {
    pub(crate) text: Text,
    pub(super) path: PathBuf,
    /// Others had to be kept from writing it, so they must be kept from writing what it extends.
    pub(super) strict: bool,
}

/// Reads a policy file. `strict` is that of the file which extends it.
pub(super) fn read(
    name: &PolicyName,
    context: &PolicyFileContext,
    strict: bool,
) -> Result<Found, PolicyFileError> {
    match name {
        PolicyName::Preset(preset) => Err(PolicyFileError::file(preset, "a preset has no file")),
        PolicyName::File(path) => {
            let real = path.canonicalize().unwrap_or_else(|_| path.clone());
            let in_directory = context.directories.iter().any(|directory| {
                let directory = directory.canonicalize().unwrap_or_else(|_| directory.clone());
                real.starts_with(&directory) || path.starts_with(&directory)
            });
            read_file(path, strict || in_directory || context.uid == 0, context.uid)
        }
        PolicyName::Named(name) => {
            for directory in &context.directories {
                let path = directory.join(format!("{name}.toml"));
                match read_file(&path, true, context.uid) {
                    Err(error) if error.why == NO_SUCH_FILE => {}
                    read => return read,
                }
            }
            let directories: Vec<String> = context
                .directories
                .iter()
                .map(|directory| directory.display().to_string())
                .collect();
            Err(
                PolicyFileError::file(name.clone(), "no such preset and no policy of that name").help(
                    format!(
                        "the presets are {}; policies are NAME.toml in {}; a file is named by its path",
                        PRESETS.join(", "),
                        directories.join(" and ")
                    ),
                ),
            )
        }
    }
}

pub(crate) const NO_SUCH_FILE: &str = "no such file";

/// Reads a file; with `strict` only if nobody but the user and root can have written it.
pub(crate) fn read_file(path: &Path, strict: bool, uid: u32) -> Result<Found, PolicyFileError> {
    let shown = path.display().to_string();
    let bad = |why: String| PolicyFileError::file(&shown, why);
    let opened = File::options()
        .read(true)
        // A fifo must not hold us up.
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY)
        .open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(bad(NO_SUCH_FILE.to_owned()));
        }
        Err(error) => return Err(bad(format!("cannot be opened: {error}"))),
    };
    let meta = file.metadata().map_err(|error| bad(error.to_string()))?;
    if !meta.is_file() {
        return Err(bad("not a regular file".to_owned()));
    }
    if meta.len() > FILE_BYTES_MAX {
        return Err(bad(format!("longer than {FILE_BYTES_MAX} bytes")));
    }
    if strict && meta.uid() != 0 && meta.uid() != uid {
        return Err(bad(format!("belongs to another user (uid {})", meta.uid()))
            .help("whoever owns it decides what is allowed; copy it, or chown it to yourself or root"));
    }
    if strict && meta.mode() & 0o022 != 0 {
        return Err(bad("can be written by other users".to_owned()).help("chmod go-w it"));
    }
    let mut bytes = Vec::new();
    // It may grow while it is read.
    (&mut file)
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| bad(format!("cannot be read: {error}")))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        PolicyFileError {
            place: Some((line + 1, 1)),
            ..bad("is not UTF-8".to_owned())
        }
    })?;
    Ok(Found {
        text: Text { file: shown, text },
        path: path.to_owned(),
        strict,
    })
}
