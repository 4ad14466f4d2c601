//! `provost job cancel`, `retry`, `pause`, `resume` and `group`.

use clap::Args as ClapArgs;

use super::super::table::{Cell, show};
use super::super::{Connection, Reconnect, line, print, print_line, said};
use super::shown;
use crate::ProcessId;
use crate::cli::{CliResult, output};
use crate::client::RECONNECT;
use crate::protocol::{
    DEFAULT_GROUP, JobCancel, JobGroup, JobGroupInfo, JobRetry, JobsCancelled, JobsSubmitted,
};

/// Cancel jobs, and wait until nothing of them runs
///
/// What waits never starts; what runs is stopped by its stop rule. Of a job that ended by itself before, it is said how.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Exit codes:
  0 all of them are cancelled; 1 at least one ended otherwise before; 125 as for every verb

Examples:
  provost job cancel \"$id\"
  provost job cancel --kill --reason 'not needed' \"$id\"
  provost job cancel --group build")]
pub(crate) struct CancelArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    again: Reconnect,
    /// Kill what runs, at once
    #[arg(long)]
    kill: bool,
    /// Why, for the records
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// All of this group that have not ended
    #[arg(long, short, value_name = "GROUP", conflicts_with = "jobs")]
    group: Option<String>,
    /// Print JSON, one object on each line
    #[arg(long)]
    json: bool,
    /// Nothing on stderr
    #[arg(long, short)]
    quiet: bool,
    /// The jobs
    #[arg(value_name = "JOB", required_unless_present = "group")]
    jobs: Vec<String>,
}

pub(super) async fn cancel(args: CancelArgs) -> CliResult {
    let client = args.connection.open_lasting(args.again.reconnect).await?;
    let asked = JobCancel {
        jobs: args.jobs,
        group: args.group,
        reason: args.reason,
        kill: args.kill,
    };
    let done: JobsCancelled = client.call("job/cancel", &asked).await.map_err(said)?;
    let mut code = 0;
    for job in &done.jobs {
        if args.json {
            print_line(job)?;
        }
        if !job.cancelled {
            code = 1;
            if !args.quiet {
                let how = shown(&job.end);
                output::note(&format!("job {} had ended before: {how}", job.job));
            }
        }
    }
    if done.more > 0 && !args.quiet {
        output::note(&format!("{} more have ended", done.more));
    }
    Ok(code)
}

/// Submit jobs that have ended once more, and print the ids
///
/// Each as another job; the old ones stay as they ended.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  provost job retry \"$id\"
  provost job list --state ended --json | jq -r 'select(.end.succeeded | not).job' |
    xargs -r provost job retry")]
pub(crate) struct RetryArgs {
    #[command(flatten)]
    connection: Connection,
    /// A second retry of the same job with the same word submits nothing, and prints the same id
    #[arg(long, value_name = "WORD")]
    request_id: Option<String>,
    /// The jobs
    #[arg(value_name = "JOB", required = true)]
    jobs: Vec<String>,
}

pub(super) async fn retry(args: RetryArgs) -> CliResult {
    let client = args.connection.open_lasting(RECONNECT).await?;
    let asked = JobRetry {
        jobs: args.jobs,
        request_id: args.request_id.or_else(|| Some(ProcessId::new().to_string())),
    };
    let done: JobsSubmitted = client.call("job/retry", &asked).await.map_err(said)?;
    let ids = done.jobs.iter().map(|job| format!("{}\n", job.job));
    print(&ids.collect::<String>())
}

/// Start nothing of a group for now, or again
///
/// What runs goes on.
#[derive(Debug, ClapArgs)]
pub(crate) struct PauseArgs {
    #[command(flatten)]
    connection: Connection,
    /// The group
    #[arg(value_name = "GROUP", default_value = DEFAULT_GROUP)]
    group: String,
}

pub(super) async fn pause(args: PauseArgs, paused: bool) -> CliResult {
    let client = args.connection.open_lasting(RECONNECT).await?;
    let asked = JobGroup {
        group: Some(args.group),
        paused: Some(paused),
        ..JobGroup::default()
    };
    let _: JobGroupInfo = client.call("job/group", &asked).await.map_err(said)?;
    Ok(0)
}

/// Show groups, or change one
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  provost job group
  provost job group gpu --limit 1
  provost job group old --remove")]
pub(crate) struct GroupArgs {
    #[command(flatten)]
    connection: Connection,
    /// How many of its jobs run at the same time
    #[arg(long, short = 'j', value_name = "N", requires = "group")]
    limit: Option<usize>,
    /// Take it away
    #[arg(long, requires = "group", conflicts_with = "limit")]
    remove: bool,
    /// Print JSON, one object on each line
    #[arg(long)]
    json: bool,
    /// The group; all of them, if none is named
    #[arg(value_name = "GROUP")]
    group: Option<String>,
}

pub(super) async fn group(args: GroupArgs) -> CliResult {
    let client = args.connection.open_lasting(RECONNECT).await?;
    let found: Vec<JobGroupInfo> = match &args.group {
        Some(_) if args.limit.is_some() || args.remove => {
            let asked = JobGroup {
                group: args.group.clone(),
                limit: args.limit,
                remove: args.remove,
                ..JobGroup::default()
            };
            let changed = client.call("job/group", &asked).await.map_err(said)?;
            if args.remove { Vec::new() } else { vec![changed] }
        }
        _ => {
            let empty = serde_json::json!({});
            let all: Vec<JobGroupInfo> = client.call("job/groups", &empty).await.map_err(said)?;
            let wanted =
                |group: &JobGroupInfo| args.group.as_ref().is_none_or(|name| group.group == *name);
            all.into_iter().filter(wanted).collect()
        }
    };
    if args.json {
        let lines: Result<String, String> = found.iter().map(line).collect();
        return print(&lines?);
    }
    if args.remove {
        return Ok(0);
    }
    let rows: Vec<_> = found
        .iter()
        .map(|group| {
            [
                Cell::new(&group.group),
                Cell::new(group.limit.to_string()),
                Cell::new(if group.paused { "paused" } else { "open" }),
                Cell::new(group.queued.to_string()),
                Cell::new(group.running.to_string()),
            ]
        })
        .collect();
    show(["GROUP", "LIMIT", "STATE", "QUEUED", "RUNNING"], &rows)
}
