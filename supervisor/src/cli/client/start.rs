//! `provost start`.

use std::ffi::OsString;
use std::time::Duration;

use clap::Args as ClapArgs;

use super::{Connection, block_on, print, said};
use crate::cli::args::{RunArgs, SpecArgs};
use crate::cli::{CliResult, config};
use crate::client::RECONNECT;
use crate::protocol::{self, AskCommand, ProcessStart, Started};
use crate::units::duration;
use crate::{LogLimits, ProcessId, ProcessSpec, TerminalSize, handle};

/// Start a command in the daemon and print its id
///
/// The sandbox is that of `provost run` here and now: policies, the directory and the environment are looked up by this
/// client. The command goes on whatever becomes of it. What the policy asks about (--ask) waits for `provost approve`, and is
/// denied at --ask-timeout; or the daemon runs --ask-command for each request.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  id=$(provost start -- make -j4)
  provost start --name web --session dev --timeout 1h -- ./server
  provost start --stdin --name sort --label job=7 -- sort && provost send sort 'b' --eof
  provost start --slot dev-server --slot-grace 2s -- ./server   # in place of the one before
  provost start --request-id deploy-42 -- ./deploy     # said twice, it starts once")]
pub(crate) struct StartArgs {
    #[command(flatten)]
    spec: SpecArgs,
    #[command(flatten)]
    connection: Connection,
    /// A name for it, unique among live processes
    #[arg(long, help_heading = "Daemon")]
    name: Option<String>,
    /// Start it in this session
    #[arg(long, value_name = "SESSION", help_heading = "Daemon")]
    session: Option<String>,
    /// Take this place in the session: what is there is replaced, and the command starts when nothing of that lives any more
    #[arg(long, value_name = "NAME", help_heading = "Daemon")]
    slot: Option<String>,
    /// How long what is replaced has to end before it is killed, if its own --grace is longer
    #[arg(long, value_name = "TIME", requires = "slot", value_parser = duration, help_heading = "Daemon")]
    slot_grace: Option<Duration>,
    /// Give it a standard input that `provost send` writes to
    #[arg(long, help_heading = "Daemon")]
    stdin: bool,
    /// Give it a terminal, of 24 lines of 80 characters, which `provost attach` ties yours to
    #[arg(long, short, conflicts_with = "stdin", help_heading = "Daemon")]
    tty: bool,
    /// Who is asked: the daemon runs this command for each request, as this user, here, and with a clean environment; it reads
    /// the request as JSON on stdin and writes `allow [once|process|session]` or `deny` [default: whoever answers with
    /// `provost approve`]
    #[arg(long, value_name = "COMMAND", help_heading = "Sandbox")]
    ask_command: Option<String>,
    /// A second start with the same word starts nothing and prints the id of the first
    #[arg(long, value_name = "WORD", help_heading = "Daemon")]
    request_id: Option<String>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

pub(super) fn run(args: StartArgs) -> CliResult {
    let mut request = ProcessStart {
        // A start whose answer is lost is asked for again, and starts once.
        request_id: args.request_id.or_else(|| Some(ProcessId::new().to_string())),
        session: args.session,
        name: args.name,
        slot: args.slot,
        slot_grace_ms: args.slot_grace.map(handle::millis),
        stdin: args.stdin,
        terminal: args.tty.then(|| terminal(TerminalSize::default())),
        ..request(&args.spec, args.command)?
    };
    if let Some(policy) = &request.prepared_policy
        && let Some(argv) = config::ask_command(args.ask_command.as_deref(), policy)?
    {
        let here = std::env::current_dir().map_err(|error| format!("the working directory: {error}"))?;
        let cwd = here.into_os_string().into_string();
        let cwd = cwd.map_err(|cwd| format!("the working directory is not UTF-8: {}", cwd.display()))?;
        request.ask_command = Some(AskCommand { argv, cwd });
    }
    block_on(async {
        let client = args.connection.open_lasting(RECONNECT).await?;
        let started: Started = client.call("process/start", &request).await.map_err(said)?;
        print(&format!("{}\n", started.process))
    })
}

/// `provost run --detach`.
pub(in crate::cli) fn detached(args: RunArgs) -> CliResult {
    let request = ProcessStart {
        request_id: Some(ProcessId::new().to_string()),
        session: args.session,
        slot: args.slot,
        slot_grace_ms: args.slot_grace.map(handle::millis),
        ..request(&args.spec, args.command)?
    };
    let connection = Connection { socket: args.socket };
    block_on(async {
        let client = connection.open_lasting(args.reconnect).await?;
        let started: Started = client.call("process/start", &request).await.map_err(said)?;
        print(&format!("{}\n", started.process))
    })
}

/// What to ask the daemon for, so that it is what `run` would run.
pub(super) fn request(args: &SpecArgs, command: Vec<OsString>) -> Result<ProcessStart, String> {
    let spec = config::spec(args, command)?;
    // Without a wish of the user's, it is the daemon's configuration that says how much is kept.
    let spec = ProcessSpec {
        retention: LogLimits::default(),
        ..spec
    };
    let request = handle::request(spec).map_err(|error| error.to_string())?;
    Ok(ProcessStart {
        max_output: args.max_output,
        ..request
    })
}

pub(super) fn terminal(size: TerminalSize) -> protocol::TerminalSize {
    size.into()
}
