//! `provost start`.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::Args as ClapArgs;

use super::{Connection, block_on, millis, print, said};
use crate::cli::args::SpecArgs;
use crate::cli::{CliResult, config};
use crate::protocol::{self, ProcessStart, Started};
use crate::{OnDenial, TerminalSize, TreeRule};

/// Start a command in the daemon and print its id
///
/// The sandbox is that of `provost run` here and now: policies, the directory and the environment are looked up by this
/// client. The command goes on whatever becomes of it. What the policy asks about (--ask) waits for a client that answers,
/// and is denied at --ask-timeout.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  id=$(provost start -- make -j4)
  provost start --name web --session dev --timeout 1h -- ./server
  provost start --stdin --label job=7 -- sort && provost send sort 'b' --eof
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
    /// Give it a standard input that `provost send` writes to
    #[arg(long, help_heading = "Daemon")]
    stdin: bool,
    /// Give it a terminal, of 24 lines of 80 characters, which `provost attach` ties yours to
    #[arg(long, short, conflicts_with = "stdin", help_heading = "Daemon")]
    tty: bool,
    /// A second start with the same word starts nothing and prints the id of the first
    #[arg(long, value_name = "WORD", help_heading = "Daemon")]
    request_id: Option<String>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

pub(super) fn run(args: StartArgs) -> CliResult {
    let request = ProcessStart {
        request_id: args.request_id,
        session: args.session,
        name: args.name,
        stdin: args.stdin,
        terminal: args.tty.then(|| terminal(TerminalSize::default())),
        ..request(&args.spec, args.command)?
    };
    block_on(async {
        let client = args.connection.open().await?;
        let started: Started = client.call("process/start", &request).await.map_err(said)?;
        print(&format!("{}\n", started.process))
    })
}

/// What to ask the daemon for, so that it is what `run` would run.
pub(super) fn request(args: &SpecArgs, command: Vec<OsString>) -> Result<ProcessStart, String> {
    let spec = config::spec(args, command)?;
    let argv = spec.argv.iter().map(|word| text(word, "an argument"));
    let env = spec.env.iter().map(|(key, value)| {
        let what = format!("the variable {}", key.display());
        Ok((text(key, &what)?, text(value, &what)?))
    });
    Ok(ProcessStart {
        argv: argv.collect::<Result<_, String>>()?,
        cwd: text(Path::as_os_str(&spec.cwd), "the directory")?,
        env: Some(env.collect::<Result<_, String>>()?),
        prepared_policy: Some(Box::new(spec.policy)),
        timeout_ms: spec.timeout.map(millis),
        idle_timeout_ms: spec.idle_timeout.map(millis),
        stop_signal: Some(spec.stop.signal.to_string()),
        grace_ms: Some(millis(spec.stop.grace)),
        tree: Some(match spec.tree {
            TreeRule::Kill => "kill".to_owned(),
            TreeRule::Wait => "wait".to_owned(),
        }),
        on_denial: Some(match spec.on_denial {
            OnDenial::Report => "report".to_owned(),
            OnDenial::Stop => "stop".to_owned(),
        }),
        ask_timeout_ms: Some(millis(spec.ask_timeout)),
        observe_reads: spec.observe_reads,
        max_output: args.max_output,
        labels: spec.labels,
        ..ProcessStart::default()
    })
}

pub(super) fn terminal(size: TerminalSize) -> protocol::TerminalSize {
    protocol::TerminalSize {
        rows: size.rows,
        cols: size.cols,
    }
}

/// The protocol is JSON, and bytes that are no UTF-8 would arrive as others.
fn text(bytes: &OsStr, what: &str) -> Result<String, String> {
    let text = bytes.to_str().map(str::to_owned);
    text.ok_or_else(|| format!("{what} is not UTF-8 and cannot be sent to the daemon: {bytes:?}"))
}
