//! `provost wait`.

use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use futures_util::{StreamExt, stream};

use super::{Connection, Reconnect, job, left, print_line, said};
use crate::cli::run::exit_code;
use crate::cli::{CliResult, EXIT_PROVOST, EXIT_TIMED_OUT, output, summary};
use crate::client::{ClientError, Lasting};
use crate::protocol::{ErrorKind, ProcessInfo, ProcessList, ProcessWait, Waited};
use crate::units::duration;

/// Requests at a time, of one connection: fewer than the daemon works on.
pub(super) const AT_A_TIME: usize = 32;

/// Wait until processes or jobs have ended; the exit code is theirs
///
/// That this command is interrupted does nothing to them. What they were refused is told on stderr, as `provost run` does.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Exit codes:
  the process's own, as `provost run` gives it; 124 it timed out, or --timeout ran out here; 125 the
  connection was lost and the daemon did not come back (--reconnect), or there is no record.
  Of several the first that is not 0.

Examples:
  provost wait \"$id\"
  provost wait --timeout 10m web worker
  provost wait --json \"$id\" | jq .denials
  provost wait --group build         # its jobs that have not ended
  provost wait --all                 # every live process, every job that has not ended")]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    again: Reconnect,
    /// Wait at most so long; the processes go on
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// Print the terminal records as JSON, one on each line, in the order of the arguments
    #[arg(long)]
    json: bool,
    /// No summary on stderr
    #[arg(long, short)]
    quiet: bool,
    /// Everything that lives, and every job that has not ended
    #[arg(long, conflicts_with_all = ["processes", "group"])]
    all: bool,
    /// The jobs of this group that have not ended
    #[arg(long, value_name = "GROUP", conflicts_with = "processes")]
    group: Option<String>,
    /// The processes or jobs: ids, beginnings or ends of them, or names
    #[arg(required_unless_present_any = ["all", "group"], value_name = "ID")]
    processes: Vec<String>,
}

pub(super) async fn run(args: WaitArgs) -> CliResult {
    let client = args.connection.open_lasting(args.again.reconnect).await?;
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    let mut processes = args.processes;
    let jobs = match args.all || args.group.is_some() {
        true => job::wait::all(&client, args.group).await?,
        false => Vec::new(),
    };
    if args.all {
        let asked = ProcessList {
            live: Some(true),
            ..ProcessList::default()
        };
        let live: Vec<ProcessInfo> = client.call("process/list", &asked).await.map_err(said)?;
        processes = live.iter().map(|process| process.process.to_string()).collect();
    }
    let several = processes.len() > 1;
    let waits = processes.iter().map(|process| {
        let client = &client;
        async move { (process, until(client, process, deadline).await) }
    });
    let mut waits = stream::iter(waits).buffered(AT_A_TIME);
    let mut first = 0;
    while let Some((process, waited)) = waits.next().await {
        let code = match waited {
            Ok(Found::Process(Waited { record: Some(record) })) => {
                if args.json {
                    print_line(&record)?;
                }
                if !args.quiet {
                    if several {
                        output::note(&format!("{process}:"));
                    }
                    summary::print(&record);
                }
                exit_code(&record, None)
            }
            Ok(Found::Process(Waited { record: None })) => {
                output::error(&format!("{process} has not ended in time; it goes on"));
                EXIT_TIMED_OUT
            }
            Ok(Found::Job(waited)) => job::wait::tell(&waited, args.json, args.quiet)?,
            Err(error) => {
                output::error(&error);
                EXIT_PROVOST
            }
        };
        if first == 0 {
            first = code;
        }
    }
    let waited = job::wait::wait_for(&client, &jobs, deadline)
        .await
        .map_err(said)?;
    let code = job::wait::tell(&waited, args.json, args.quiet)?;
    Ok(if first == 0 { code } else { first })
}

/// What was meant, and what became of it.
pub(super) enum Found {
    Process(Waited),
    Job(Vec<job::wait::Waited>),
}

/// Waits for one process, or one job.
pub(super) async fn until(
    client: &Lasting,
    process: &str,
    deadline: Option<Instant>,
) -> Result<Found, String> {
    let asked = || ProcessWait {
        process: process.to_owned(),
        timeout_ms: left(deadline),
    };
    match client.call_with("process/wait", asked).await {
        Err(ClientError::Refused(error)) if error.data.kind == ErrorKind::NotFound => {
            let jobs = [process.to_owned()];
            match job::wait::wait_for(client, &jobs, deadline).await {
                Err(ClientError::Refused(none)) if none.data.kind == ErrorKind::NotFound => {
                    Err(said(ClientError::Refused(error)))
                }
                waited => waited.map(Found::Job).map_err(said),
            }
        }
        answer => answer.map(Found::Process).map_err(said),
    }
}
