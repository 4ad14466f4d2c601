//! `provost job wait`, and waiting for jobs elsewhere.

use std::time::{Duration, Instant};

use clap::Args as ClapArgs;

use super::super::{Connection, Reconnect, left, print_line, said};
use super::list::{pages, unended};
use super::{exit_code, shown};
use crate::cli::{CliResult, EXIT_TIMED_OUT, output};
use crate::client::{ClientError, Lasting};
use crate::protocol::{JOBS_PER_ANSWER_MAX, JobEnd, JobInfo, JobList, JobWait, JobsWaited};
use crate::units::duration;

/// Wait until jobs have ended; the exit code is theirs
///
/// That this command is interrupted does nothing to them. A daemon that dies or is replaced is waited for (--reconnect).
#[derive(Debug, ClapArgs)]
#[command(after_help = "Exit codes:
  the command's own, as `provost run` gives it; 124 it timed out, or --timeout ran out here; 125 it
  was skipped or lost, or the connection was lost and the daemon did not come back; 130 cancelled.
  Of several the first that is not 0.

Examples:
  provost job wait \"$id\"
  provost job wait --group build --timeout 10m
  provost job wait --all --json | jq .end")]
pub(crate) struct JobWaitArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    again: Reconnect,
    /// Wait at most so long; the jobs go on
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// Print the jobs as JSON, one on each line
    #[arg(long)]
    json: bool,
    /// Nothing on stderr
    #[arg(long, short)]
    quiet: bool,
    /// All that have not ended
    #[arg(long, short, conflicts_with_all = ["jobs", "group"])]
    all: bool,
    /// All of this group that have not ended
    #[arg(long, short, value_name = "GROUP", conflicts_with = "jobs")]
    group: Option<String>,
    /// The jobs: ids, beginnings or ends of them, or names
    #[arg(value_name = "JOB", required_unless_present_any = ["all", "group"])]
    jobs: Vec<String>,
}

pub(super) async fn run(args: JobWaitArgs) -> CliResult {
    let client = args.connection.open_lasting(args.again.reconnect).await?;
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    let jobs = match args.all || args.group.is_some() {
        true => all(&client, args.group).await?,
        false => args.jobs,
    };
    let waited = wait_for(&client, &jobs, deadline).await.map_err(said)?;
    tell(&waited, args.json, args.quiet)
}

/// Ids of those that have not ended, of a group or all.
pub(in crate::cli::client) async fn all(
    client: &Lasting,
    group: Option<String>,
) -> Result<Vec<String>, String> {
    let asked = JobList {
        group,
        states: unended(),
        ..JobList::default()
    };
    let found = pages(&client.client(), asked).await?;
    Ok(found.into_iter().map(|job| job.job.to_string()).collect())
}

/// A job that was waited for.
pub(in crate::cli::client) enum Waited {
    Ended(Box<JobInfo>, JobEnd),
    NotYet(Box<JobInfo>),
}

/// Waits for all of these, over one connection after another.
pub(in crate::cli::client) async fn wait_for(
    client: &Lasting,
    jobs: &[String],
    deadline: Option<Instant>,
) -> Result<Vec<Waited>, ClientError> {
    let mut waited = Vec::with_capacity(jobs.len());
    for some in jobs.chunks(JOBS_PER_ANSWER_MAX) {
        let asked = || JobWait {
            jobs: some.to_vec(),
            timeout_ms: left(deadline),
        };
        let answer: JobsWaited = client.call_with("job/wait", asked).await?;
        waited.extend(answer.jobs.into_iter().map(|info| match info.end.clone() {
            Some(end) => Waited::Ended(Box::new(info), end),
            None => Waited::NotYet(Box::new(info)),
        }));
    }
    Ok(waited)
}

/// Tells what became of them; the exit code that stands for it.
pub(in crate::cli::client) fn tell(waited: &[Waited], json: bool, quiet: bool) -> CliResult {
    let mut first = 0;
    for one in waited {
        let code = match one {
            Waited::Ended(info, end) => {
                if json {
                    print_line(info)?;
                }
                if !quiet {
                    note(info, end);
                }
                exit_code(end)
            }
            Waited::NotYet(info) => {
                output::error(&format!("job {} has not ended in time; it goes on", info.job));
                EXIT_TIMED_OUT
            }
        };
        if first == 0 {
            first = code;
        }
    }
    Ok(first)
}

/// Says on stderr how a job ended that did not succeed.
pub(super) fn note(info: &JobInfo, end: &JobEnd) {
    if end.succeeded && !end.denied {
        return;
    }
    let why = end
        .reason
        .as_ref()
        .map_or(String::new(), |why| format!(": {why}"));
    let denied = match (end.denied, info.process) {
        (true, Some(process)) => {
            format!("; something was denied, `provost inspect {process}` says what")
        }
        _ => String::new(),
    };
    output::note(&format!("job {}: {}{why}{denied}", info.job, shown(end)));
}
