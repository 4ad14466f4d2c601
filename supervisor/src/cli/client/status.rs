//! `provost status` and `provost prune`.

use std::time::Duration;

use clap::Args as ClapArgs;
use serde_json::Value;

use super::wait::{Found, until};
use super::{Connection, Reconnect, job, millis, print, print_line, said};
use crate::cli::run::exit_code;
use crate::cli::{CliResult, EXIT_PROVOST, summary};
use crate::client::ClientError;
use crate::protocol::{ErrorKind, JobRef, ProcessPrune, ProcessRef, Status, Waited};
use crate::units::duration;

/// Say what the daemon has, or how a job or a process is
#[derive(Debug, ClapArgs)]
#[command(after_help = "With --wait the exit code is that of `provost wait`.

Examples:
  provost status --json | jq .live
  provost status \"$id\"
  provost status \"$id\" --wait && echo done")]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    again: Reconnect,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Wait until it has ended
    #[arg(long, requires = "which")]
    wait: bool,
    /// A job or a process
    #[arg(value_name = "ID")]
    which: Option<String>,
}

/// Says how a job or a process is.
async fn of(args: &StatusArgs, which: &str) -> CliResult {
    let client = args.connection.open_lasting(args.again.reconnect).await?;
    let code = match args.wait {
        true => match until(&client, which, None).await? {
            Found::Process(Waited { record: Some(record) }) => exit_code(&record, None),
            Found::Process(Waited { record: None }) => EXIT_PROVOST,
            Found::Job(waited) => job::wait::tell(&waited, false, true)?,
        },
        false => 0,
    };
    let asked = JobRef {
        job: which.to_owned(),
    };
    let found: Value = match client.call("job/inspect", &asked).await {
        Err(ClientError::Refused(error)) if error.data.kind == ErrorKind::NotFound => {
            let asked = ProcessRef {
                process: which.to_owned(),
            };
            client.call("process/inspect", &asked).await.map_err(said)?
        }
        found => found.map_err(said)?,
    };
    if args.json {
        print_line(&found)?;
        return Ok(code);
    }
    let word = |of: &Value| of.as_str().map(str::to_owned);
    let live = || if found["live"] == true { "running" } else { "ended" };
    let state = word(&found["state"]).unwrap_or_else(|| live().to_owned());
    let end = if found["end"].is_object() {
        &found["end"]
    } else {
        &found
    };
    let mut text = format!("state\t{state}\n");
    for name in ["outcome", "exit_code", "signal", "reason", "denied"] {
        if state == "ended" && !end[name].is_null() {
            let shown = word(&end[name]).unwrap_or_else(|| end[name].to_string());
            text += &format!("{name}\t{}\n", summary::visible(&shown));
        }
    }
    print(&text)?;
    Ok(code)
}

pub(super) async fn run(args: StatusArgs) -> CliResult {
    if let Some(which) = &args.which {
        return of(&args, which).await;
    }
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
