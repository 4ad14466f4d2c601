//! `provost wait`.

use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use futures_util::{StreamExt, stream};

use super::{Connection, Reconnect, millis, print_line, said};
use crate::cli::run::exit_code;
use crate::cli::{CliResult, EXIT_PROVOST, output, summary};
use crate::client::{ClientError, Lasting};
use crate::protocol::{ProcessWait, Waited};
use crate::units::duration;

/// Requests at a time, of one connection: fewer than the daemon works on.
pub(super) const AT_A_TIME: usize = 32;
const TIMED_OUT: u8 = 124;

/// Wait until processes have ended; the exit code is theirs
///
/// That this command is interrupted does nothing to them. What they were refused is told on stderr, as `provost run` does.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Exit codes:
  the process's own, as `provost run` gives it; 124 it timed out, or --timeout ran out here; 125 the
  connection was lost and the daemon did not come back (--reconnect), or there is no record. Of several the first that is not 0.

Examples:
  provost wait \"$id\"
  provost wait --timeout 10m web worker
  provost wait --json \"$id\" | jq .denials")]
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
    /// The processes: ids, beginnings or ends of them, or names
    #[arg(required = true, value_name = "ID")]
    processes: Vec<String>,
}

pub(super) async fn run(args: WaitArgs) -> CliResult {
    let client = args.connection.open_lasting(args.again.reconnect).await?;
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    let waits = args.processes.iter().map(|process| {
        let client = &client;
        async move { (process, until(client, process, deadline).await) }
    });
    let mut waits = stream::iter(waits).buffered(AT_A_TIME);
    let mut first = 0;
    while let Some((process, waited)) = waits.next().await {
        let code = match waited {
            Ok(Waited { record: Some(record) }) => {
                if args.json {
                    print_line(&record)?;
                }
                if !args.quiet {
                    if args.processes.len() > 1 {
                        output::note(&format!("{process}:"));
                    }
                    summary::print(&record);
                }
                exit_code(&record, None)
            }
            Ok(Waited { record: None }) => {
                output::error(&format!("{process} has not ended in time; it goes on"));
                TIMED_OUT
            }
            Err(error) => {
                output::error(&error);
                EXIT_PROVOST
            }
        };
        if first == 0 {
            first = code;
        }
    }
    Ok(first)
}

/// Waits for one record.
pub(super) async fn until(
    client: &Lasting,
    process: &str,
    deadline: Option<Instant>,
) -> Result<Waited, String> {
    let left = |deadline: Instant| millis(deadline.saturating_duration_since(Instant::now()));
    let mut connection = client.client();
    loop {
        let request = ProcessWait {
            process: process.to_owned(),
            timeout_ms: deadline.map(left),
        };
        match connection.call("process/wait", &request).await {
            Err(error @ ClientError::Lost) => {
                connection = client.renew(&connection, error).await.map_err(said)?;
            }
            answer => return answer.map_err(said),
        }
    }
}
