//! The verbs that talk to a daemon. One verb, one file.

mod approvals;
mod attach;
mod events;
mod history;
mod inspect;
mod job;
mod logs;
mod map;
mod ps;
pub(super) mod run;
mod send;
mod session;
mod start;
mod status;
mod stop;
pub(super) mod table;
mod tail;
mod wait;

use std::io::{ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args as ClapArgs, Subcommand};
use serde::Serialize;
use tokio::io::Interest;
use tokio::net::unix::pipe::Sender;

use super::{CliResult, misspelt_option, serve};
use crate::client::{Client, ClientError, Lasting};
use crate::units::duration;

/// What a client can ask a daemon for.
#[derive(Debug, Subcommand)]
pub(crate) enum ClientVerb {
    /// Start a command in the daemon and print its id
    Start(Box<start::StartArgs>),
    /// List processes
    Ps(ps::PsArgs),
    /// Show everything that is known of a process, as JSON
    Inspect(inspect::InspectArgs),
    /// Print the output of a process
    Logs(logs::LogsArgs),
    /// Tie this terminal to a process
    Attach(attach::AttachArgs),
    /// Print the events of a process as JSON lines
    Events(events::EventsArgs),
    /// Wait until processes or jobs have ended; the exit code is theirs
    Wait(wait::WaitArgs),
    /// Stop processes by their own stop rules
    Stop(stop::StopArgs),
    /// Kill processes at once
    Kill(stop::KillArgs),
    /// Send a process a signal
    Signal(stop::SignalArgs),
    /// Write to the standard input of a process
    Send(send::SendArgs),
    /// List what processes ask and what waits for an answer
    Approvals(approvals::ApprovalsArgs),
    /// Allow what processes ask
    Approve(approvals::ApproveArgs),
    /// Deny what processes ask
    Deny(approvals::DenyArgs),
    /// Submit commands that wait for their turn, and look after them
    Job(job::JobArgs),
    /// Run a command for each of many items, so many at a time
    Map(Box<map::MapArgs>),
    /// Open, list, attach, detach and close sessions
    Session(session::SessionArgs),
    /// Forget processes that have ended
    Prune(status::PruneArgs),
    /// Say what the daemon has, or how a job or a process is
    Status(status::StatusArgs),
}

/// Which daemon.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Connection {
    /// The daemon's socket [default: that of `provost serve`]
    #[arg(
        long,
        value_name = "PATH",
        env = "PROVOST_SOCKET",
        hide_env_values = true,
        global = true
    )]
    pub(crate) socket: Option<PathBuf>,
}

impl Connection {
    async fn open(&self) -> Result<Client, String> {
        Client::connect(&self.path()?).await.map_err(said)
    }

    /// One that is made again when it is lost.
    async fn open_lasting(&self, reconnect: Duration) -> Result<Lasting, String> {
        let note: fn(&str) = super::output::note;
        let note = std::io::stderr().is_terminal().then_some(note);
        Lasting::connect(&self.path()?, reconnect, note)
            .await
            .map_err(said)
    }

    fn path(&self) -> Result<PathBuf, String> {
        match &self.socket {
            Some(path) => Ok(path.clone()),
            None => serve::default_socket(),
        }
    }
}

/// What becomes of whoever waits or follows when the daemon dies or is replaced.
#[derive(Debug, ClapArgs)]
pub(crate) struct Reconnect {
    /// Go on where it was when the daemon is back within this time, after it has died or was replaced; 0 for never
    #[arg(long, value_name = "DURATION", value_parser = patience, default_value = "30s")]
    pub(crate) reconnect: Duration,
}

/// A time, or none.
pub(crate) fn patience(text: &str) -> Result<Duration, String> {
    if text == "0" {
        Ok(Duration::ZERO)
    } else {
        duration(text)
    }
}

pub(super) fn run(verb: ClientVerb) -> CliResult {
    match verb {
        ClientVerb::Start(args) => match misspelt_option(&args.command, std::env::args_os(), "start") {
            Some(option) => Err(option),
            None => start::run(*args),
        },
        ClientVerb::Ps(args) => block_on(ps::run(args)),
        ClientVerb::Inspect(args) => block_on(inspect::run(args)),
        ClientVerb::Logs(args) => block_on(logs::run(args)),
        ClientVerb::Attach(args) => block_on(attach::run(args)),
        ClientVerb::Events(args) => block_on(events::run(args)),
        ClientVerb::Wait(args) => block_on(wait::run(args)),
        ClientVerb::Stop(args) => block_on(stop::stop(args)),
        ClientVerb::Kill(args) => block_on(stop::kill(args)),
        ClientVerb::Signal(args) => block_on(stop::signal(args)),
        ClientVerb::Send(args) => block_on(send::run(args)),
        ClientVerb::Approvals(args) => block_on(approvals::approvals(args)),
        ClientVerb::Approve(args) => block_on(approvals::approve(args)),
        ClientVerb::Deny(args) => block_on(approvals::deny(args)),
        ClientVerb::Job(args) => job::run(args),
        ClientVerb::Map(args) => match misspelt_option(&args.command, std::env::args_os(), "map") {
            Some(option) => Err(option),
            None => map::run(*args),
        },
        ClientVerb::Session(args) => block_on(session::run(args)),
        ClientVerb::Prune(args) => block_on(status::prune(args)),
        ClientVerb::Status(args) => block_on(status::run(args)),
    }
}

pub(super) use start::detached as start_detached;

fn block_on(verb: impl Future<Output = CliResult>) -> CliResult {
    let runtime = super::runtime(0)?;
    let result = runtime.block_on(verb);
    // A thread that reads standard input must not hold the exit up.
    runtime.shutdown_background();
    result
}

/// An error of the connection or the daemon, with what to do about it.
fn said(error: ClientError) -> String {
    match error {
        ClientError::Refused(error) if !error.data.hint.is_empty() => {
            format!("{}; {}", error.message, error.data.hint)
        }
        error => error.to_string(),
    }
}

/// Whether there is still a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    There,
    Gone,
}

/// Writes all at once.
pub(super) fn write(to: &mut impl Write, bytes: &[u8]) -> Result<Reader, String> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(format!("cannot write: {error}")),
    }
}

/// Done when whoever read our stdout has gone; never, where that cannot be known (a file, say). Who waits for events must not
/// wait for the next one to notice: `events -f | grep -m1` would go on until then, and whatever comes behind it in the shell.
pub(super) async fn reader_gone() {
    let stdout = std::io::stdout().as_fd().try_clone_to_owned();
    // Unchecked, for it is not written to: the flags that others share stay as they are.
    let watched = stdout.and_then(Sender::from_owned_fd_unchecked);
    match watched {
        Ok(watched) if watched.ready(Interest::ERROR).await.is_ok() => {}
        _ => std::future::pending().await,
    }
}

/// Writes to stdout; a reader who has seen enough is no error.
pub(super) fn print(text: &str) -> CliResult {
    write(&mut std::io::stdout().lock(), text.as_bytes()).map(|_| 0)
}

/// The same as one line of JSON.
pub(super) fn print_line(value: &impl Serialize) -> CliResult {
    print(&line(value)?)
}

fn line(value: &impl Serialize) -> Result<String, String> {
    let text = serde_json::to_string(value).map_err(|error| format!("cannot write JSON: {error}"))?;
    Ok(text + "\n")
}

/// The same as JSON for people.
fn print_pretty(value: &impl Serialize) -> CliResult {
    let text = serde_json::to_string_pretty(value);
    print(&(text.map_err(|error| format!("cannot write JSON: {error}"))? + "\n"))
}

/// How long is left until a deadline, as requests say it.
fn left(deadline: Option<Instant>) -> Option<u64> {
    deadline.map(|deadline| millis(deadline.saturating_duration_since(Instant::now())))
}

/// Whole milliseconds, at least one.
fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}
