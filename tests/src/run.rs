//! One `provost run`, put together.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{AtTerminal, Finished, Live, World, provost};

/// Where commands are looked for. The caller's own PATH may name directories that the user cannot read.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the command gets to read.
#[derive(Debug)]
enum Input {
    Nothing,
    Bytes(Vec<u8>),
    Piped,
    Open(PathBuf),
}

/// One `provost run`, not started yet.
#[derive(Debug)]
pub struct Run<'w> {
    world: &'w World,
    options: Vec<String>,
    command: Vec<String>,
    environment: Vec<(String, String)>,
    input: Input,
    directory: PathBuf,
    record: Option<PathBuf>,
    small_output_pipe: bool,
}

impl<'w> Run<'w> {
    pub(crate) fn new(world: &'w World, command: Vec<String>) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self {
            world,
            options: Vec::new(),
            command,
            environment: Vec::new(),
            input: Input::Nothing,
            directory: world.work(),
            record: Some(world.path("records").join(format!("{number}.json"))),
            small_output_pipe: false,
        }
    }

    /// Adds options of `provost run`.
    pub fn with<I, S>(mut self, options: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        self.options.extend(options.into_iter().map(Into::into));
        self
    }

    /// Asks for events instead of raw output on standard output.
    pub fn json(self) -> Self {
        self.with(["--json"])
    }

    /// Sets a variable in the environment of `provost` itself.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Feeds these bytes, then the end, to standard input.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Gives a file or directory, opened for reading, as standard input.
    pub fn input_from(mut self, path: impl AsRef<Path>) -> Self {
        self.input = Input::Open(path.as_ref().to_owned());
        self
    }

    /// Keeps standard input open for [`Live::feed`].
    pub fn piped_input(mut self) -> Self {
        self.input = Input::Piped;
        self
    }

    /// Starts `provost` in another directory than `work`.
    pub fn directory(mut self, directory: impl AsRef<Path>) -> Self {
        self.directory = directory.as_ref().to_owned();
        self
    }

    /// Has the record written somewhere else.
    pub fn record_at(mut self, path: impl AsRef<Path>) -> Self {
        self.record = Some(path.as_ref().to_owned());
        self
    }

    /// Gives `provost` an output pipe of one page, which makes its reader as slow as can be.
    pub fn small_output_pipe(mut self) -> Self {
        self.small_output_pipe = true;
        self
    }

    /// Starts it.
    pub fn start(self) -> Live {
        let mut command = self.command(Command::new(provost()));
        let shown = format!("{command:?}");
        command
            // Its own process group, whose parent is in another one: job control signals work, and a signal to
            // this group reaches no test.
            .process_group(0)
            .stdin(match &self.input {
                Input::Nothing => Stdio::null(),
                Input::Open(path) => std::fs::File::open(path).expect("the input").into(),
                Input::Bytes(_) | Input::Piped => Stdio::piped(),
            })
            .stderr(Stdio::piped());
        let fed = match self.input {
            Input::Bytes(bytes) => Some(bytes),
            _ => None,
        };
        Live::start(command, shown, fed, self.record, self.small_output_pipe)
    }

    /// Starts it at a terminal of this size, as a user would: `provost` leads the terminal's session.
    pub fn at_terminal(self, rows: u16, cols: u16) -> AtTerminal {
        let mut leader = Command::new("setsid");
        leader.arg("--ctty").arg(provost());
        let command = self.command(leader);
        AtTerminal::start(command, self.record, rows, cols)
    }

    /// The command line that is wanted, behind what begins it.
    fn command(&self, mut command: Command) -> Command {
        command.arg("run");
        if let Some(record) = &self.record {
            command.arg("--record").arg(record);
        }
        command.args(&self.options).arg("--").args(&self.command);
        command
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", self.world.path("home"))
            .env("LANG", "C.UTF-8")
            .env("TERM", "xterm")
            .envs(self.environment.iter().cloned())
            .current_dir(&self.directory);
        if self.world.changes_uid() {
            command.uid(self.world.uid()).gid(self.world.uid());
        }
        command
    }

    /// Starts it and waits for its end.
    pub fn finish(self) -> Finished {
        self.start().finish()
    }

    /// Starts it, waits, and asserts that the command (an escape) was refused by the kernel.
    pub fn refused(self) -> Finished {
        let done = self.finish();
        assert!(
            done.result().starts_with('E') && done.code == Some(0),
            "the attempt was not refused\n{done}"
        );
        done
    }

    /// Like [`Self::refused`], and the record must not hold a denial: the thing was out of sight, or what was
    /// tried is a probe that harmless programs make.
    pub fn invisible(self) -> Finished {
        let done = self.refused();
        assert_eq!(done.record()["denied"], false, "\n{done}");
        done
    }

    /// Like [`Self::refused`], and the record must hold such a denial.
    pub fn denied(self, wanted: &crate::Wanted) -> Finished {
        let done = self.refused();
        done.denial(wanted);
        done
    }
}
