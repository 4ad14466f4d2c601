//! `provost job submit`.

use std::ffi::OsString;
use std::time::Duration;

use clap::Args as ClapArgs;

use super::super::{Connection, block_on, millis, print, said, start};
use super::notify::{Targets, targets};
use super::wait::{Waited, wait_for};
use crate::ProcessId;
use crate::cli::CliResult;
use crate::cli::args::SpecArgs;
use crate::client::RECONNECT;
use crate::protocol::{AfterRule, JobAfter, JobItem, JobSubmit, JobsSubmitted, RetryOn, RetryRule};
use crate::units::duration;

/// Have a command run when it is its turn, and print the job's id
///
/// It waits for the jobs that it comes after, for its time, and for a place in its group. What it may touch is said here and now;
/// it runs in the daemon, whatever becomes of this client.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  id=$(provost job submit -- make -j4)
  provost job submit --group gpu --priority 5 -- ./train
  provost job submit --after \"$id\" --on failure -- ./tell-somebody
  provost job submit --retries 3 --backoff 10s --deadline 1h -- ./flaky
  provost job submit --request-id nightly-42 -- ./nightly     # said twice, it runs once
  provost job submit --wait -- make test                      # the exit code is the command's")]
pub(crate) struct SubmitArgs {
    #[command(flatten)]
    spec: SpecArgs,
    #[command(flatten)]
    connection: Connection,
    /// A name for it
    #[arg(long, help_heading = "Job")]
    name: Option<String>,
    /// In this session
    #[arg(long, value_name = "SESSION", help_heading = "Job")]
    session: Option<String>,
    /// In this group, which says how many run at the same time
    #[arg(
        long,
        short,
        value_name = "GROUP",
        default_value = "default",
        help_heading = "Job"
    )]
    group: String,
    /// Those with a higher number first
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        allow_negative_numbers = true,
        help_heading = "Job"
    )]
    priority: i32,
    /// Only after this job; repeatable
    #[arg(long, value_name = "JOB", value_delimiter = ',', help_heading = "Job")]
    after: Vec<String>,
    /// What must become of those: success, end (however), failure
    #[arg(long, value_name = "RULE", value_parser = words::<AfterRule>, default_value = "success", requires = "after", help_heading = "Job")]
    on: AfterRule,
    /// Not before so much time has passed
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Job")]
    delay: Option<Duration>,
    /// Everything has to be over when so much time has passed
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Job")]
    deadline: Option<Duration>,
    /// Try it again so often at most
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Job")]
    retries: u32,
    /// After which ends it is tried again: failed, signaled, timed_out, idle_timeout, out_of_memory (these by default), denied,
    /// spawn_failed, lost, interrupted
    #[arg(long, value_name = "END", value_delimiter = ',', value_parser = words::<RetryOn>, requires = "retries", help_heading = "Job")]
    retry_on: Vec<RetryOn>,
    /// How long it waits before it is tried again; twice as long each time, a minute at most
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "retries", help_heading = "Job")]
    backoff: Option<Duration>,
    #[command(flatten)]
    notify: Targets,
    /// A second job with the same word is not submitted; the id of the first is printed
    #[arg(long, value_name = "WORD", help_heading = "Job")]
    request_id: Option<String>,
    /// Wait until it has ended; the exit code is its own. That this command is interrupted does nothing to it
    #[arg(long, conflicts_with = "detach", help_heading = "Job")]
    wait: bool,
    /// Do not wait, which is the default
    #[arg(long, help_heading = "Job")]
    detach: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

/// A word of the protocol.
fn words<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

pub(super) fn run(args: SubmitArgs) -> CliResult {
    let mut spec = start::request(&args.spec, args.command)?;
    spec.name = args.name;
    spec.session = args.session;
    let usual = RetryRule::default();
    let backoff_ms = args.backoff.map_or(usual.backoff_ms, millis);
    let asked = JobSubmit {
        spec,
        group: Some(args.group),
        priority: args.priority,
        after: args
            .after
            .into_iter()
            .map(|job| JobAfter { job, on: args.on })
            .collect(),
        delay_ms: args.delay.map_or(0, millis),
        deadline_ms: args.deadline.map(millis),
        retry: Some(RetryRule {
            times: args.retries,
            on: match args.retry_on.is_empty() {
                true => usual.on,
                false => args.retry_on,
            },
            backoff_ms,
            backoff_max_ms: usual.backoff_max_ms.max(backoff_ms),
        }),
        notify: targets(args.notify)?,
        jobs: vec![JobItem {
            // One whose answer is lost is asked for again, and submitted once.
            request_id: args.request_id.or_else(|| Some(ProcessId::new().to_string())),
            ..JobItem::default()
        }],
    };
    block_on(async {
        let client = args.connection.open_lasting(RECONNECT).await?;
        let submitted: JobsSubmitted = client.call("job/submit", &asked).await.map_err(said)?;
        let job = submitted
            .jobs
            .first()
            .ok_or("the daemon does not say which job it is")?;
        print(&format!("{}\n", job.job))?;
        if !args.wait {
            return Ok(0);
        }
        let waited = wait_for(&client, &[job.job.to_string()], None).await;
        match waited.map_err(said)?.pop() {
            Some(Waited::Ended(info, end)) => {
                super::wait::note(&info, &end);
                Ok(super::exit_code(&end))
            }
            _ => Err("the daemon does not say how it ended".to_owned()),
        }
    })
}
