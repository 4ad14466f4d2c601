//! `provost status` and `provost prune`.

use std::time::Duration;

use clap::Args as ClapArgs;
use serde_json::Value;

use super::{Connection, millis, print, print_line, said};
use crate::cli::CliResult;
use crate::protocol::{ProcessPrune, Status};
use crate::units::duration;

/// Say what the daemon has
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  provost status --json | jq .live")]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    connection: Connection,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: StatusArgs) -> CliResult {
    let client = args.connection.open().await?;
    let status: Status = client
        .call("daemon/status", &serde_json::json!({}))
        .await
        .map_err(said)?;
    if args.json {
        return print_line(&status);
    }
    let uptime = humantime::format_duration(Duration::from_secs(status.uptime_ms / 1000));
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    print(&format!(
        "version\t{}\npid\t{}\nuid\t{}\nuptime\t{uptime}\nclients\t{}\nsessions\t{}\nlive\t{}\nprocesses\t{}\nretained_bytes\t{}\nstate_dir\t{}\nkeeper\t{}\n{}",
        status.version,
        status.pid,
        status.uid,
        status.clients,
        status.sessions,
        status.live,
        status.processes,
        status.retained_bytes,
        or_none(status.state_dir),
        or_none(status.keeper.map(|pid| pid.to_string())),
        status
            .degraded
            .iter()
            .map(|why| format!("degraded\t{why}\n"))
            .collect::<String>(),
    ))
}

/// Forget processes that have ended
///
/// With their output and records. Prints how many.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  provost prune
  provost prune --older-than 1d --session dev")]
pub(crate) struct PruneArgs {
    #[command(flatten)]
    connection: Connection,
    /// Only those that ended so long ago
    #[arg(long, value_name = "TIME", value_parser = duration)]
    older_than: Option<Duration>,
    /// Only those of this session
    #[arg(long, value_name = "SESSION")]
    session: Option<String>,
}

pub(super) async fn prune(args: PruneArgs) -> CliResult {
    let client = args.connection.open().await?;
    let request = ProcessPrune {
        session: args.session,
        older_than_ms: args.older_than.map_or(0, millis),
    };
    let answer: Value = client.call("process/prune", &request).await.map_err(said)?;
    print(&format!("{}\n", answer["forgotten"]))
}
