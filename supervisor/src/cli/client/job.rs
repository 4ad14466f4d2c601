//! `provost job`: what waits in the daemon for its turn. One verb, one file; those of one line together.

mod change;
mod list;
mod notify;
mod submit;
pub(super) mod wait;

use clap::{Args as ClapArgs, Subcommand};

use crate::cli::run::signal_code;
use crate::cli::{CliResult, EXIT_PROVOST, EXIT_TIMED_OUT, misspelt_option};
use crate::protocol::{JobEnd, JobOutcome};

/// Submit commands that wait for their turn, and look after them
///
/// A job is durable: it is done, or not done for a stated reason, whatever becomes of this client, and of the daemon. It is run by
/// the daemon in the sandbox that is said here and now.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  id=$(provost job submit -- make -j4)
  provost wait \"$id\"
  provost job submit --group gpu --after \"$id\" --retries 2 -- ./train
  provost job list
  provost job cancel \"$id\"")]
pub(crate) struct JobArgs {
    #[command(subcommand)]
    verb: JobVerb,
}

#[derive(Debug, Subcommand)]
enum JobVerb {
    /// Have a command run when it is its turn, and print the job's id
    Submit(Box<submit::SubmitArgs>),
    /// List jobs
    List(list::ListArgs),
    /// Show everything that is known of a job, as JSON
    Inspect(list::InspectArgs),
    /// Wait until jobs have ended; the exit code is theirs
    Wait(wait::JobWaitArgs),
    /// Cancel jobs, and wait until nothing of them runs
    Cancel(change::CancelArgs),
    /// Submit jobs that have ended once more, and print the ids
    Retry(change::RetryArgs),
    /// Start nothing of a group for now; what runs goes on
    Pause(change::PauseArgs),
    /// Start what is in a group again
    Resume(change::PauseArgs),
    /// Show groups, or change one
    Group(change::GroupArgs),
    /// Have somebody told when a job ends, at once if it has
    Notify(notify::NotifyArgs),
}

pub(super) fn run(args: JobArgs) -> CliResult {
    use super::block_on;
    match args.verb {
        JobVerb::Submit(args) => match misspelt_option(&args.command, std::env::args_os(), "submit") {
            Some(option) => Err(option),
            None => submit::run(*args),
        },
        JobVerb::List(args) => block_on(list::run(args)),
        JobVerb::Inspect(args) => block_on(list::inspect(args)),
        JobVerb::Wait(args) => block_on(wait::run(args)),
        JobVerb::Cancel(args) => block_on(change::cancel(args)),
        JobVerb::Retry(args) => block_on(change::retry(args)),
        JobVerb::Pause(args) => block_on(change::pause(args, true)),
        JobVerb::Resume(args) => block_on(change::pause(args, false)),
        JobVerb::Group(args) => block_on(change::group(args)),
        JobVerb::Notify(args) => block_on(notify::run(args)),
    }
}

/// The exit code that stands for a job's end.
pub(super) fn exit_code(end: &JobEnd) -> u8 {
    let own = || end.exit_code.and_then(|code| u8::try_from(code).ok());
    match end.outcome {
        JobOutcome::TimedOut | JobOutcome::IdleTimeout => EXIT_TIMED_OUT,
        JobOutcome::Cancelled => 130,
        JobOutcome::Lost | JobOutcome::Interrupted | JobOutcome::Skipped => EXIT_PROVOST,
        _ => own()
            .or_else(|| end.signal.as_deref().and_then(signal_code))
            .unwrap_or(EXIT_PROVOST),
    }
}

/// The end of a job in a few words.
pub(super) fn shown(end: &JobEnd) -> String {
    let outcome = serde_json::to_value(end.outcome).unwrap_or_default();
    let outcome = outcome.as_str().unwrap_or_default();
    match (end.exit_code, &end.signal) {
        (Some(code), _) => format!("{outcome} {code}"),
        (None, Some(signal)) => format!("{outcome} {signal}"),
        (None, None) => outcome.to_owned(),
    }
}
