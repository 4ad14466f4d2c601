//! `provost events`.

use clap::Args as ClapArgs;

use super::history::{Ended, Since, follow, read};
use super::{Connection, Reconnect, line, write};
use crate::Event;
use crate::cli::CliResult;

/// Print the events of a process as JSON lines
///
/// The last one is the terminal event with the record. Without --follow: what is there now.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  provost events web
  provost events -f web | jq -r 'select(.type == \"denial\").rule'
  provost events --since 120 web      # what came behind event 120

With --follow the exit code is 0 once the terminal event is there, and 125 if the connection ends before and the daemon does not come back (--reconnect).")]
pub(crate) struct EventsArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    again: Reconnect,
    /// Go on with what comes, until the process has ended
    #[arg(long, short)]
    follow: bool,
    /// Only what came behind the event of this number, or since a time (RFC 3339, or 5m for five minutes ago)
    #[arg(long, value_name = "SEQ|TIME", value_parser = Since::parse, default_value = "0")]
    since: Since,
    /// The process: its id, a beginning or end of it, or its name
    #[arg(value_name = "ID")]
    process: String,
}

pub(super) async fn run(args: EventsArgs) -> CliResult {
    let client = args.connection.open_lasting(args.again.reconnect).await?;
    let mut stdout = std::io::stdout().lock();
    let mut take = |event: Event| write(&mut stdout, line(&event)?.as_bytes());
    let ended = read(&client, &args.process, args.since, &mut take).await?;
    if let (Ended::SoFar(seq), true) = (ended, args.follow) {
        follow(&client, &args.process, seq, &mut take).await?;
    }
    Ok(0)
}
