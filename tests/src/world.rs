//! A user with a place to work in.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::{Live, Run, Witness, program, service};

/// A user id that no account has: what works for it works for any ordinary user.
const STRANGER: u32 = 64_321;

/// On whose behalf `provost` is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// The superuser.
    Root,
    /// Somebody without privileges: the tests' own user, or a made-up one where the tests run as root.
    Ordinary,
}

/// Directories for one test, owned by its user and removed at its end:
/// `work` (the sandbox's working directory), `home`, `outside` (readable, not writable in the sandbox) and
/// `records`.
#[derive(Debug)]
pub struct World {
    user: User,
    directory: TempDir,
}

impl World {
    /// A new world, or nothing (with the reason printed) where this process cannot act as that user.
    pub fn try_new(user: User) -> Option<Self> {
        let root = nix::unistd::geteuid().is_root();
        if user == User::Root && !root {
            println!("skipped: the tests do not run as root");
            return None;
        }
        // Not /tmp: the default policy gives each process a /tmp of its own.
        let directory = tempfile::Builder::new()
            .prefix("provost-tests-")
            .tempdir_in("/var/tmp")
            .expect("a directory below /var/tmp");
        let world = Self { user, directory };
        world.give_away(world.directory.path(), 0o755);
        for name in ["work", "home", "outside", "records"] {
            world.make_directory(&world.path(name));
        }
        Some(world)
    }

    /// A new world of whoever runs the tests, as whom a supervisor in their own process acts.
    pub fn try_own() -> Option<Self> {
        Self::try_new(match nix::unistd::geteuid().is_root() {
            true => User::Root,
            false => User::Ordinary,
        })
    }

    /// The user.
    pub fn user(&self) -> User {
        self.user
    }

    /// Whether the user is root.
    pub fn is_root(&self) -> bool {
        self.user == User::Root
    }

    /// The user's id.
    pub fn uid(&self) -> u32 {
        match self.user {
            User::Root => 0,
            User::Ordinary if nix::unistd::geteuid().is_root() => STRANGER,
            User::Ordinary => nix::unistd::geteuid().as_raw(),
        }
    }

    /// Whether a program must change its user id to act as this user.
    pub fn changes_uid(&self) -> bool {
        self.uid() != nix::unistd::geteuid().as_raw()
    }

    /// A path in this world.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The same as text, for arguments.
    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The working directory.
    pub fn work(&self) -> PathBuf {
        self.path("work")
    }

    /// Writes a file that belongs to the user and returns its path as text.
    pub fn file(&self, name: &str, content: &str) -> String {
        let path = self.path(name);
        if let Some(parent) = path.parent().filter(|parent| !parent.is_dir()) {
            self.make_directory(parent);
        }
        fs::write(&path, content).expect("a file of the test's own");
        self.give_away(&path, 0o644);
        path.display().to_string()
    }

    /// A file's content now.
    pub fn content(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("the file is still there")
    }

    /// Makes a directory, and those above it, that belong to the user.
    pub fn make_directory(&self, path: &Path) {
        if let Some(parent) = path.parent().filter(|parent| !parent.is_dir()) {
            self.make_directory(parent);
        }
        fs::create_dir(path).expect("a directory of the test's own");
        self.give_away(path, 0o755);
    }

    /// Gives a path to the user.
    pub fn give_away(&self, path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .expect("chmod of the test's own path");
        if self.changes_uid() {
            let (uid, gid) = (self.uid().into(), self.uid().into());
            nix::unistd::chown(path, Some(uid), Some(gid)).expect("chown of the test's own path");
        }
    }

    /// `provost run … -- COMMAND` in the working directory.
    pub fn run<I, S>(&self, command: I) -> Run<'_>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        Run::new(self, command.into_iter().map(Into::into).collect())
    }

    /// A library of this C source, as the variable by which a program loads it before all others.
    pub fn preloaded(&self, name: &str, source: &str) -> String {
        let source = self.file(&format!("work/{name}.c"), source);
        let library = self.text(&format!("work/{name}.so"));
        #[allow(
            clippy::disallowed_methods,
            reason = "a tool of the test's, not a supervised command"
        )]
        let built = std::process::Command::new("cc")
            .args(["-shared", "-fPIC", "-o", &library, &source])
            .status();
        assert!(built.expect("cc runs").success());
        format!("LD_PRELOAD={library}")
    }

    /// `provost up WORDS` of a group with this content, from elsewhere than its file.
    pub fn up(&self, group: &str, words: &[&str]) -> Live {
        let path = self.file("work/group.toml", group);
        let words: Vec<_> = ["up"]
            .iter()
            .chain(words)
            .copied()
            .chain([path.as_str()])
            .collect();
        let mut command = service::command(self, &words);
        command.current_dir("/");
        Live::from_command(command, None)
    }

    /// `provost run … -- sh -c SCRIPT`.
    pub fn shell(&self, script: &str) -> Run<'_> {
        self.run(["sh", "-c", script])
    }

    /// `provost run … -- escape NAME ARGUMENT…`.
    pub fn escape(&self, words: &[&str]) -> Run<'_> {
        let mut command = vec![program("escape")];
        command.extend(words.iter().map(|word| (*word).to_owned()));
        self.run(command)
    }

    /// A new witness in the working directory.
    pub fn witness(&self) -> Witness {
        self.witness_of("witness")
    }

    /// The same by this name, where there are several.
    pub fn witness_of(&self, name: &str) -> Witness {
        let path = self.work().join(name);
        let witness = Witness::new(&path);
        self.give_away(&path, 0o600);
        witness
    }
}
