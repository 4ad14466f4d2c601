//! `provost stop`, `kill` and `signal`.

use std::time::Duration;

use clap::Args as ClapArgs;
use futures_util::{StreamExt, stream};

use super::wait::{AT_A_TIME, until};
use super::{Connection, millis, said};
use crate::SignalScope;
use crate::cli::{CliResult, EXIT_PROVOST, output};
use crate::client::{Lasting, RECONNECT};
use crate::protocol::{ProcessSignal, ProcessStop, Told};
use crate::units::duration;

/// Stop processes by their own stop rules
///
/// Each gets its stop signal and, after its grace, is killed with all that it started. Returns when they have ended.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  provost stop web
  provost stop --grace 500ms web worker
  provost ps -q --label job=7 | xargs -r provost stop")]
pub(crate) struct StopArgs {
    #[command(flatten)]
    connection: Connection,
    /// Kill what has not ended after this time, where its own grace is longer
    #[arg(long, value_name = "TIME", value_parser = duration)]
    grace: Option<Duration>,
    #[command(flatten)]
    common: Common,
}

/// Kill processes at once
///
/// With all that they started. Returns when they have ended.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  provost kill web")]
pub(crate) struct KillArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, ClapArgs)]
struct Common {
    /// Return at once
    #[arg(long)]
    no_wait: bool,
    /// Why, for the record
    #[arg(long, value_name = "WORDS")]
    reason: Option<String>,
    /// The processes: ids, beginnings or ends of them, or names
    #[arg(required = true, value_name = "ID")]
    processes: Vec<String>,
}

/// Send a process a signal
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  provost signal web HUP
  provost signal --tree web STOP")]
pub(crate) struct SignalArgs {
    #[command(flatten)]
    connection: Connection,
    /// To its process group, not the command alone
    #[arg(long, conflicts_with = "tree")]
    group: bool,
    /// To every process of its tree
    #[arg(long)]
    tree: bool,
    /// The process: its id, a beginning or end of it, or its name
    #[arg(value_name = "ID")]
    process: String,
    /// A name like HUP or SIGUSR1, or a number
    signal: String,
}

pub(super) async fn stop(args: StopArgs) -> CliResult {
    let client = args.connection.open_lasting(RECONNECT).await?;
    end(&client, "process/stop", args.common, args.grace).await
}

pub(super) async fn kill(args: KillArgs) -> CliResult {
    let client = args.connection.open_lasting(RECONNECT).await?;
    end(&client, "process/kill", args.common, None).await
}

async fn end(client: &Lasting, method: &str, args: Common, grace: Option<Duration>) -> CliResult {
    let args = &args;
    let ends = args.processes.iter().map(|process| async move {
        let request = ProcessStop {
            process: process.clone(),
            reason: args.reason.clone(),
            grace_ms: grace.map(millis),
        };
        let told: Told = client.call(method, &request).await.map_err(said)?;
        if !told.told {
            output::note(&format!("{process} had ended already"));
        } else if !args.no_wait {
            until(client, process, None).await?;
        }
        Ok::<_, String>(())
    });
    let mut ends = stream::iter(ends).buffered(AT_A_TIME);
    let mut code = 0;
    while let Some(ended) = ends.next().await {
        if let Err(error) = ended {
            output::error(&error);
            code = EXIT_PROVOST;
        }
    }
    Ok(code)
}

pub(super) async fn signal(args: SignalArgs) -> CliResult {
    let client = args.connection.open().await?;
    let scope = match (args.group, args.tree) {
        (true, _) => SignalScope::Group,
        (_, true) => SignalScope::Tree,
        _ => SignalScope::Leader,
    };
    let request = ProcessSignal {
        process: args.process.clone(),
        signal: args.signal,
        scope: Some(scope),
    };
    let told: Told = client.call("process/signal", &request).await.map_err(said)?;
    match told.told {
        true => Ok(0),
        false => Err(format!("{} has ended; its record says how", args.process)),
    }
}
