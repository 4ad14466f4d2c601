//! `provost ps`.

use clap::Args as ClapArgs;

use super::table::{Cell, ago, id, show};
use super::{Connection, line, print, said};
use crate::cli::{CliResult, config};
use crate::protocol::{ProcessInfo, ProcessList};

/// List processes
///
/// On a terminal ids are shown by their ends, which every verb takes. Elsewhere columns are whole, separated by tabs.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  provost ps
  provost ps -a --label job=7
  provost ps -q --session dev | xargs -r provost stop
  provost ps -a --json | jq -r 'select(.denied).process'")]
pub(crate) struct PsArgs {
    #[command(flatten)]
    connection: Connection,
    /// Also those that have ended
    #[arg(long, short)]
    all: bool,
    /// Only those of this session and its parts
    #[arg(long, value_name = "SESSION")]
    session: Option<String>,
    /// Only those with this label; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Print JSON, one object on each line
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print ids only
    #[arg(long, short)]
    quiet: bool,
}

pub(super) async fn run(args: PsArgs) -> CliResult {
    let request = ProcessList {
        session: args.session,
        live: (!args.all).then_some(true),
        labels: config::labels(&args.label)?,
    };
    let client = args.connection.open().await?;
    let found: Vec<ProcessInfo> = client.call("process/list", &request).await.map_err(said)?;
    if args.quiet {
        let ids = found.iter().map(|process| format!("{}\n", process.process));
        return print(&ids.collect::<String>());
    }
    if args.json {
        let lines: Result<String, String> = found.iter().map(line).collect();
        return print(&lines?);
    }
    let rows: Vec<_> = found.iter().map(row).collect();
    let head = [
        "PROCESS", "NAME", "SESSION", "STATE", "DENIED", "STARTED", "COMMAND",
    ];
    show(head, &rows)
}

fn row(process: &ProcessInfo) -> [Cell; 7] {
    let state = match (&process.outcome, process.exit_code) {
        (None, _) => Cell::good("running"),
        (Some(outcome), Some(0)) => Cell::new(format!("{outcome} 0")),
        (Some(outcome), Some(code)) => Cell::bad(format!("{outcome} {code}")),
        (Some(outcome), None) => Cell::bad(outcome),
    };
    let denied = match process.denied {
        true => Cell::bad("yes"),
        false => Cell::new("no"),
    };
    [
        id(process.process),
        Cell::new(process.name.as_deref().unwrap_or_default()),
        process.session.map_or_else(|| Cell::new(""), id),
        state,
        denied,
        ago(&process.started_at),
        Cell::new(shell_words::join(&process.argv)),
    ]
}
