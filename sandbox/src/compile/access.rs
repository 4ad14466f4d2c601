//! What a file policy says about one path, without asking the kernel.
//!
//! The same map decides what Landlock is told, names the rule behind a denial and explains a policy. It is
//! pure: paths are compared by their components and nothing is looked up. Two questions are kept apart:
//!
//! - *Reading* is answered by `read`, `write` and `deny` rules.
//! - *Writing* is answered by `write`, `deny` and `protect` rules. A `read` rule gives reading and takes
//!   nothing away, so one below a writable path leaves that path writable.
//!
//! For each question the longest rule at or above the path wins, and among rules for the same path the
//! order that [`FilePolicy`] states. A few rules are built in: the harmless devices are open and the rest of
//! `/dev` is closed unless a rule names the device, `/proc` is not written, a private directory is writable,
//! and no name directly below `/` is made or removed. Names are never secret where a path is readable: listing is not asked here.

#[cfg(test)]
mod tests;

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::policy::{FilePolicy, PathRule, is_at_or_below};

/// Devices that every program may read, write and send ioctls to.
pub(crate) const DEVICES: [&str; 8] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/pts",
];

/// Directories below `/dev` that hold no devices; readable where `/dev` would be.
const DEVICE_FREE: [&str; 2] = ["/dev/shm", "/dev/mqueue"];

/// Where the process sees its tree. Reading it is harmless; writing would change the machine's settings and
/// what may be done to the process.
pub(crate) const PROC: &str = "/proc";

/// Why something is not executed that may be read.
pub(crate) const NOT_EXECUTABLE: &str = "not under any executable path (files.execute)";

/// What a program wants to do with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileAccess {
    /// Open for reading.
    Read,
    /// Execute.
    Execute,
    /// Open for writing, or truncate.
    Write,
    /// Make the name: create, mkdir, mknod, symlink, the new name of a link or of a rename.
    Create,
    /// Take the name away: unlink, rmdir, the old name of a rename.
    Remove,
}

/// The answer, and the words of the rule that gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the policy allows it.
    pub allowed: bool,
    /// The deciding rule for people: `--deny PATH`, `preset read-only: /home/u/.ssh is denied`.
    pub rule: String,
}

/// A file policy, ready to be asked.
#[derive(Debug, Clone)]
pub struct AccessMap {
    entries: Arc<[Entry]>,
    /// If any: of what is readable, only what is at or below these may be executed.
    executable: Arc<[PathBuf]>,
    /// What the preset's rules quote, for paths that no rule mentions.
    preset: Option<String>,
}

/// One of the two questions that a policy answers about a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    Reading,
    Writing,
}

/// What a rule says about its path and everything below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    /// Opened for reading and writing, but no names are made or removed.
    Device,
    Deny,
    /// Not writable; says nothing about reading.
    Protect,
}

/// Who made a rule. A built-in refusal cannot be overruled for the same path, a built-in grant always is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Explicit,
    Preset,
    BuiltIn,
}

/// A rule with what is needed to compare it.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) path: PathBuf,
    pub(crate) kind: Kind,
    pub(crate) origin: Origin,
    pub(crate) source: String,
    depth: usize,
}

impl AccessMap {
    /// A map of these rules as they are written: symbolic links are not followed.
    ///
    /// `private_dirs` are the directories that the process gets of its own (`/tmp`, `/dev/shm`). Rules that
    /// hide something below one of them are dropped, because it is the process's own from the start; rules
    /// that grant something below one keep meaning the machine's file of that name.
    pub fn new(files: &FilePolicy, private_dirs: &[PathBuf]) -> Self {
        let mut entries = Vec::new();
        let lists = [
            (&files.read, Kind::Read),
            (&files.write, Kind::Write),
            (&files.deny, Kind::Deny),
            (&files.protect, Kind::Protect),
        ];
        for (rules, kind) in lists {
            entries.extend(rules.iter().map(|rule| Entry::of(rule, kind)));
        }
        add_private_dirs(&mut entries, private_dirs);
        add_machine(&mut entries);
        let rules = || files.read.iter().chain(&files.write).chain(&files.deny);
        Self {
            entries: entries.into(),
            executable: files
                .execute
                .iter()
                .map(|rule| lexically_plain(&rule.path))
                .collect(),
            preset: rules()
                .find(|rule| !rule.explicit)
                .map(|rule| rule.source.clone()),
        }
    }

    /// Whether the policy allows `access` to `path`, which must be absolute with links already followed.
    pub fn decide(&self, path: &Path, access: FileAccess) -> Verdict {
        if !is_plain(path) {
            return refused("built-in: only absolute paths without `..` can be judged");
        }
        match access {
            FileAccess::Execute if !self.may_execute(path) => refused(NOT_EXECUTABLE),
            FileAccess::Read | FileAccess::Execute => self.answer(path, Question::Reading),
            FileAccess::Write => self.answer(path, Question::Writing),
            FileAccess::Create | FileAccess::Remove => self.answer_name(path),
        }
    }

    /// Whether the mode, owner, times and attributes of what is at `path` may be changed: what may be written may be, but
    /// for devices, which are the machine's.
    pub fn decide_metadata(&self, path: &Path) -> Verdict {
        match self.winner(path, Question::Writing) {
            Some(entry) if entry.kind == Kind::Device => refused("built-in: devices stay as they are"),
            _ => self.decide(path, FileAccess::Write),
        }
    }

    /// Whether no rule speaks about this access, neither for nor against: a policy that asks asks about it.
    pub fn is_asked(&self, path: &Path, access: FileAccess) -> bool {
        let question = match access {
            FileAccess::Read | FileAccess::Execute => Question::Reading,
            FileAccess::Write | FileAccess::Create | FileAccess::Remove => Question::Writing,
        };
        is_plain(path) && self.winner(path, question).is_none()
    }

    /// Whether a rule denies reading `path`: nobody is asked about that either.
    pub(crate) fn denies(&self, path: &Path) -> bool {
        let winner = self.winner(path, Question::Reading);
        winner.is_some_and(|rule| !rule.grants())
    }

    /// Whether the question's answer for `path` is yes.
    pub(crate) fn allows(&self, path: &Path, question: Question) -> bool {
        self.winner(path, question).is_some_and(Entry::grants)
    }

    /// The rule that decides, if any does.
    pub(crate) fn winner(&self, path: &Path, question: Question) -> Option<&Entry> {
        self.winner_among(path, question, |_| true)
    }

    /// The rule that would decide if there were only those that are counted.
    pub(crate) fn winner_among(
        &self,
        path: &Path,
        question: Question,
        counts: impl Fn(&Entry) -> bool,
    ) -> Option<&Entry> {
        let bytes = plain_bytes(path);
        let covers = |entry: &Entry| match bytes {
            Some(bytes) => entry.covers(bytes),
            None => is_at_or_below(path, &entry.path),
        };
        self.entries
            .iter()
            .filter(|entry| entry.answers(question) && covers(entry))
            .filter(|entry| counts(entry))
            .max_by_key(|entry| (entry.depth, entry.rank()))
    }

    /// Whether no list of executable paths leaves this one out.
    pub(crate) fn may_execute(&self, path: &Path) -> bool {
        self.executable.is_empty() || self.executable.iter().any(|root| is_at_or_below(path, root))
    }

    /// The only paths that may be executed; empty where all that is readable may.
    pub(crate) fn executable(&self) -> &[PathBuf] {
        &self.executable
    }

    /// Every rule, the built-in ones included.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The same map with fewer rules about reading and writing.
    pub(crate) fn retain(&self, keep: impl Fn(&Entry) -> bool) -> Self {
        Self {
            entries: self.entries.iter().filter(|entry| keep(entry)).cloned().collect(),
            executable: self.executable.clone(),
            preset: self.preset.clone(),
        }
    }

    fn answer(&self, path: &Path, question: Question) -> Verdict {
        match self.winner(path, question) {
            Some(entry) => Verdict {
                allowed: entry.grants(),
                rule: entry.words(question),
            },
            None => self.unmentioned(question),
        }
    }

    /// A name belongs to its directory; and a name that is itself refused is not replaced either.
    fn answer_name(&self, path: &Path) -> Verdict {
        let own = self.answer(path, Question::Writing);
        let Some(parent) = path.parent() else {
            return refused("built-in: `/` itself is neither made nor removed");
        };
        if !own.allowed {
            return own;
        }
        match self.winner(parent, Question::Writing) {
            Some(entry) if entry.kind == Kind::Device => {
                refused("built-in: no names are made in /dev/pts")
            }
            Some(_) if parent == Path::new("/") => {
                refused("built-in: names directly below / are neither made nor removed")
            }
            _ => self.answer(parent, Question::Writing),
        }
    }

    fn unmentioned(&self, question: Question) -> Verdict {
        let what = match question {
            Question::Reading => "readable",
            Question::Writing => "writable",
        };
        let preset = self
            .preset
            .as_ref()
            .map_or_else(String::new, |p| format!(" ({p})"));
        refused(format!("not under any {what} path{preset}"))
    }
}

impl Entry {
    fn of(rule: &PathRule, kind: Kind) -> Self {
        let origin = if rule.explicit {
            Origin::Explicit
        } else {
            Origin::Preset
        };
        Self::new(lexically_plain(&rule.path), kind, origin, rule.source.clone())
    }

    fn built_in(path: impl Into<PathBuf>, kind: Kind) -> Self {
        Self::new(path.into(), kind, Origin::BuiltIn, "built-in".to_owned())
    }

    fn new(path: PathBuf, kind: Kind, origin: Origin, source: String) -> Self {
        let depth = path.components().count();
        Self {
            path,
            kind,
            origin,
            source,
            depth,
        }
    }

    /// Whether a path that is written plainly is this one or below it. Many are asked, so bytes are compared.
    fn covers(&self, path: &[u8]) -> bool {
        let own = self.path.as_os_str().as_bytes();
        path.strip_prefix(own)
            .is_some_and(|rest| rest.is_empty() || own == b"/" || rest[0] == b'/')
    }

    pub(crate) fn grants(&self) -> bool {
        matches!(self.kind, Kind::Read | Kind::Write | Kind::Device)
    }

    fn answers(&self, question: Question) -> bool {
        match question {
            Question::Reading => self.kind != Kind::Protect,
            Question::Writing => self.kind != Kind::Read,
        }
    }

    fn rank(&self) -> u8 {
        match (self.origin, self.grants()) {
            (Origin::BuiltIn, false) => 6,
            (Origin::Explicit, false) => 5,
            (Origin::Explicit, true) => 4,
            (Origin::Preset, false) => 3,
            (Origin::Preset, true) => 2,
            (Origin::BuiltIn, true) => 1,
        }
    }

    fn words(&self, question: Question) -> String {
        let says = match (self.kind, question) {
            (Kind::Deny, _) if self.origin == Origin::BuiltIn => {
                return "built-in: devices are closed unless a rule names the device".to_owned();
            }
            (Kind::Deny, _) => "is denied",
            (Kind::Protect, _) => "is read-only",
            (Kind::Read, _) | (_, Question::Reading) => "is readable",
            (Kind::Write | Kind::Device, Question::Writing) => "is writable",
        };
        match self.origin {
            Origin::Explicit => self.source.clone(),
            Origin::Preset | Origin::BuiltIn => {
                format!("{}: {} {says}", self.source, self.path.display())
            }
        }
    }
}

/// The bytes of a path that has no empty parts, no `.` in it and no slash at its end; of others nothing.
fn plain_bytes(path: &Path) -> Option<&[u8]> {
    let bytes = path.as_os_str().as_bytes();
    let end = |at: usize| matches!(bytes.get(at), None | Some(b'/'));
    let odd = bytes
        .iter()
        .enumerate()
        .any(|(at, byte)| *byte == b'/' && (end(at + 1) || bytes[at + 1] == b'.' && end(at + 2)));
    (bytes == b"/" || !odd).then_some(bytes)
}

/// A private directory is writable unless the policy denies it by name. What was hidden below it is not
/// there any more; what was readable there is brought in from outside and stays read-only.
fn add_private_dirs(entries: &mut Vec<Entry>, private_dirs: &[PathBuf]) {
    for dir in private_dirs.iter().map(|dir| lexically_plain(dir)) {
        if entries.iter().any(|e| e.kind == Kind::Deny && e.path == dir) {
            continue;
        }
        let below = |path: &Path| path != dir && is_at_or_below(path, &dir);
        let grants: Vec<(PathBuf, Kind)> = entries
            .iter()
            .filter(|e| e.grants() && below(&e.path))
            .map(|e| (e.path.clone(), e.kind))
            .collect();
        entries.retain(|e| {
            e.grants() || !below(&e.path) || grants.iter().any(|(path, _)| is_at_or_below(&e.path, path))
        });
        for (path, kind) in &grants {
            let writable =
                |(other, kind): &(PathBuf, Kind)| *kind == Kind::Write && path.starts_with(other);
            if *kind == Kind::Read && !grants.iter().any(writable) {
                entries.push(Entry::built_in(path.clone(), Kind::Protect));
            }
        }
        entries.push(Entry::built_in(dir, Kind::Write));
    }
}

/// Keeps `/proc` from being written, closes `/dev` and opens the harmless part of it again, except what the policy denies in there by name.
fn add_machine(entries: &mut Vec<Entry>) {
    let dev = Path::new("/dev");
    let longest = |path: &Path| {
        entries
            .iter()
            .filter(|e| e.answers(Question::Reading) && is_at_or_below(path, &e.path))
            .max_by_key(|e| (e.depth, e.rank()))
    };
    let denied =
        |path: &Path| longest(path).is_some_and(|e| !e.grants() && is_at_or_below(&e.path, dev));
    let mut built_in = vec![
        Entry::built_in(dev, Kind::Deny),
        Entry::built_in(PROC, Kind::Protect),
    ];
    for device in DEVICES.map(Path::new) {
        if !denied(device) {
            built_in.push(Entry::built_in(device, Kind::Device));
        }
    }
    for dir in DEVICE_FREE.map(Path::new) {
        if longest(dir).is_some_and(Entry::grants) {
            built_in.push(Entry::built_in(dir, Kind::Read));
        }
    }
    entries.extend(built_in);
}

fn refused(rule: impl Into<String>) -> Verdict {
    Verdict {
        allowed: false,
        rule: rule.into(),
    }
}

fn is_plain(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|c| c == Component::ParentDir)
}

/// The path without `.` and `..`, as its spelling alone has it.
fn lexically_plain(path: &Path) -> PathBuf {
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
