//! `provost job list` and `provost job inspect`.

use clap::Args as ClapArgs;
use serde_json::Value;

use super::super::table::{Cell, ago, id, show};
use super::super::{Connection, line, print, print_pretty, said};
use super::shown;
use crate::cli::{CliResult, config};
use crate::client::Client;
use crate::protocol::{JobInfo, JobList, JobRef, JobState, JobsListed};

/// List jobs
///
/// Those that have not ended, unless it is said which. On a terminal ids are shown by their ends, which every verb takes.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  provost job list
  provost job list -a --group build
  provost job list -q --state queued | xargs -r provost job cancel
  provost job list -a --json | jq -r 'select(.end.succeeded == false).job'")]
pub(crate) struct ListArgs {
    #[command(flatten)]
    connection: Connection,
    /// Also those that have ended
    #[arg(long, short, conflicts_with = "state")]
    all: bool,
    /// Those in this state: queued, starting, running, ended; repeatable
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = state)]
    state: Vec<JobState>,
    /// Those of this session and its parts
    #[arg(long, value_name = "SESSION")]
    session: Option<String>,
    /// Those of this group
    #[arg(long, short, value_name = "GROUP")]
    group: Option<String>,
    /// Those with this label; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Print JSON, one object on each line
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print ids only
    #[arg(long, short)]
    quiet: bool,
}

fn state(text: &str) -> Result<JobState, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

/// States of jobs that have not ended.
pub(in crate::cli::client) fn unended() -> Vec<JobState> {
    vec![JobState::Queued, JobState::Starting, JobState::Running]
}

pub(super) async fn run(args: ListArgs) -> CliResult {
    let states = match (args.all, args.state.is_empty()) {
        (true, _) => Vec::new(),
        (false, true) => unended(),
        (false, false) => args.state,
    };
    let asked = JobList {
        session: args.session,
        group: args.group,
        states,
        labels: config::labels(&args.label)?,
        ..JobList::default()
    };
    let client = args.connection.open().await?;
    let found = pages(&client, asked).await?;
    if args.quiet {
        return print(
            &found
                .iter()
                .map(|job| format!("{}\n", job.job))
                .collect::<String>(),
        );
    }
    if args.json {
        let lines: Result<String, String> = found.iter().map(line).collect();
        return print(&lines?);
    }
    let rows: Vec<_> = found.iter().map(row).collect();
    let head = ["JOB", "NAME", "GROUP", "STATE", "ATTEMPT", "SUBMITTED", "COMMAND"];
    show(head, &rows)
}

/// All of them, page after page.
pub(in crate::cli::client) async fn pages(
    client: &Client,
    mut asked: JobList,
) -> Result<Vec<JobInfo>, String> {
    let mut found: Vec<JobInfo> = Vec::new();
    loop {
        let page: JobsListed = client.call("job/list", &asked).await.map_err(said)?;
        let more = page.more;
        found.extend(page.jobs);
        match found.last() {
            Some(last) if more => asked.after = Some(last.job),
            _ => return Ok(found),
        }
    }
}

fn row(job: &JobInfo) -> [Cell; 7] {
    let state = match &job.end {
        None if job.cancelling => Cell::new("cancelling"),
        None if job.state == JobState::Running => Cell::good("running"),
        None => Cell::new(job.state.as_str()),
        Some(end) if end.succeeded => Cell::new(shown(end)),
        Some(end) => Cell::bad(shown(end)),
    };
    [
        id(job.job),
        Cell::new(job.name.as_deref().unwrap_or_default()),
        Cell::new(&job.group),
        state,
        Cell::new(job.attempt.to_string()),
        ago(&job.submitted_at),
        Cell::new(shell_words::join(&job.argv)),
    ]
}

/// Show everything that is known of a job, as JSON
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  provost job inspect \"$id\" | jq .attempts")]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    connection: Connection,
    /// The job: its id, a beginning or end of it, or its name
    #[arg(value_name = "JOB")]
    job: String,
}

pub(super) async fn inspect(args: InspectArgs) -> CliResult {
    let client = args.connection.open().await?;
    let asked = JobRef { job: args.job };
    let found: Value = client.call("job/inspect", &asked).await.map_err(said)?;
    print_pretty(&found)
}
