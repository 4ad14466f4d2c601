//! The verbs that ask a daemon.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::run::PATH;
use crate::{AtTerminal, DEADLINE, Finished, Live, Run, Served, World, provost};

/// A daemon, and its clients, which are of the same user. Dropped, it is killed, and everything of its with it.
#[derive(Debug)]
pub struct Service<'w> {
    world: &'w World,
    served: Option<Served>,
    socket: PathBuf,
}

impl<'w> Service<'w> {
    /// Starts one.
    pub fn start(world: &'w World) -> Self {
        let served = Served::start(world);
        let socket = served.socket().to_owned();
        Self {
            world,
            served: Some(served),
            socket,
        }
    }

    /// Its socket, as text.
    pub fn socket(&self) -> String {
        self.socket.display().to_string()
    }

    /// `provost WORDS`, with this daemon.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = command(self.world, words);
        command.env("PROVOST_SOCKET", &self.socket);
        command
    }

    /// The same, under way.
    pub fn live(&self, words: &[&str]) -> Live {
        Live::from_command(self.command(words), None)
    }

    /// The same, ended.
    pub fn ask(&self, words: &[&str]) -> Finished {
        self.live(words).finish()
    }

    /// The same, which must succeed; its output without the last newline.
    pub fn say(&self, words: &[&str]) -> String {
        self.say_code(0, words)
    }

    /// The same with another exit code.
    pub fn say_code(&self, code: i32, words: &[&str]) -> String {
        let done = self.ask(words);
        assert_eq!(done.code, Some(code), "\n{done}");
        done.text().trim_end_matches('\n').to_owned()
    }

    /// The terminal record of a process of it, once that has ended.
    pub fn record(&self, id: &str) -> serde_json::Value {
        let done = self.ask(&["wait", "--json", id]);
        serde_json::from_str(&done.text()).expect("a record")
    }

    /// Waits until so many clients are connected, one that asks for it aside.
    pub fn clients(&self, count: u64) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let status = self.say(&["status", "--json"]);
            let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
            if status["clients"] == count + 1 {
                return;
            }
            assert!(Instant::now() < deadline, "never so many clients: {status}");
        }
    }

    /// The same, given this to read.
    pub fn feed(&self, words: &[&str], input: &[u8]) -> Finished {
        let file = self.world.path("input");
        std::fs::write(&file, input).expect("a file of the test's own");
        let mut command = self.command(words);
        command.stdin(std::fs::File::open(file).expect("the input"));
        Live::from_command(command, None).finish()
    }

    /// `provost WORDS` at a terminal of this size, whose session it leads.
    pub fn at_terminal(&self, words: &[&str], rows: u16, cols: u16) -> AtTerminal {
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(provost());
        dress(&mut command, self.world, words);
        command.env("PROVOST_SOCKET", &self.socket).env("TERM", "xterm");
        AtTerminal::start(command, None, rows, cols)
    }

    /// `provost run --daemon -- COMMAND`.
    pub fn run<const N: usize>(&self, command: [&str; N]) -> Run<'w> {
        let run = self.world.run(command);
        run.with(["--daemon"]).env("PROVOST_SOCKET", &self.socket())
    }

    /// `kill -9` of the daemon, and of nothing that it supervises; another one takes its place.
    pub fn restart(&mut self) {
        self.restart_after(|| ());
    }

    /// The same, where the other one is started by way of another command.
    pub fn restart_by(&mut self, wrapper: &[&str]) {
        self.served.take().expect("it lives").crash();
        self.served = Some(Served::start_by(self.world, wrapper, &[]));
    }

    /// The same; in between there is none while `meanwhile` runs.
    pub fn restart_after(&mut self, meanwhile: impl FnOnce()) {
        self.served.take().expect("it lives").crash();
        meanwhile();
        self.served = Some(Served::start(self.world));
    }

    /// Another daemon takes the place of this one, which leaves it everything.
    pub fn replace(&mut self) {
        let served = self.served.take().expect("it lives");
        self.served = Some(served.replace(self.world, &[]));
    }

    /// `kill -9` of the daemon.
    pub fn die(&mut self) {
        let served = self.served.take().expect("it dies once");
        served.signal(Signal::SIGKILL);
        served.stop_signalled();
    }
}

/// `provost WORDS` of the user, in the working directory.
pub(crate) fn command(world: &World, words: &[&str]) -> Command {
    let mut command = Command::new(provost());
    dress(&mut command, world, words);
    command.process_group(0).stdin(Stdio::null());
    command
}

fn dress(command: &mut Command, world: &World, words: &[&str]) {
    command
        .args(words)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", world.path("home"))
        .env("LANG", "C.UTF-8")
        .current_dir(world.work());
    if world.changes_uid() {
        command.uid(world.uid()).gid(world.uid());
    }
}
