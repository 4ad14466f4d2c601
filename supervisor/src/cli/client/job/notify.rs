//! `provost job notify`, and who is told at a submit.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::super::{Connection, print, said};
use crate::cli::CliResult;
use crate::protocol::{JobNotice, JobNotify, JobNotifyTarget};

/// Who is told of the end of a job: one line of JSON with the job, its `end` and the record, at least once, with the same `dedup`
/// each time.
#[derive(Debug, Clone, ClapArgs)]
pub(super) struct Targets {
    /// Run this command then, in the default sandbox and this directory; it reads the message on stdin, and has taken it when it
    /// exits with 0
    #[arg(long, value_name = "COMMAND", help_heading = "Notification")]
    notify_command: Option<String>,
    /// What that command may touch: a preset, a policy's name or its file
    #[arg(
        long,
        value_name = "POLICY",
        requires = "notify_command",
        help_heading = "Notification"
    )]
    notify_policy: Option<String>,
    /// Write it to this Unix socket then
    #[arg(long, value_name = "PATH", help_heading = "Notification")]
    notify_socket: Option<PathBuf>,
    /// Append it to this file then
    #[arg(long, value_name = "FILE", help_heading = "Notification")]
    notify_file: Option<PathBuf>,
}

fn absolute(path: PathBuf) -> Result<String, String> {
    let shown = path.display().to_string();
    let path = std::path::absolute(path).map_err(|error| format!("{shown}: {error}"))?;
    let path = path.into_os_string().into_string();
    path.map_err(|_| format!("{shown} is not UTF-8"))
}

pub(super) fn targets(args: Targets) -> Result<Vec<JobNotifyTarget>, String> {
    let mut targets = Vec::new();
    if let Some(command) = args.notify_command {
        let argv = shell_words::split(&command).map_err(|error| format!("`{command}`: {error}"))?;
        let cwd = absolute(PathBuf::from("."))?;
        let policy = match args.notify_policy {
            // A file is looked up here, a name there.
            Some(policy) if policy.contains('/') => Some(absolute(policy.into())?),
            policy => policy,
        };
        targets.push(JobNotifyTarget::Command { argv, cwd, policy });
    }
    if let Some(socket) = args.notify_socket {
        targets.push(JobNotifyTarget::Socket(absolute(socket)?));
    }
    if let Some(file) = args.notify_file {
        targets.push(JobNotifyTarget::File(absolute(file)?));
    }
    Ok(targets)
}

/// Have somebody told when a job ends, at once if it has
///
/// Told at least once: until it was taken it is tried again, also by the next daemon. `provost job inspect` shows how that goes.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  provost job notify \"$id\" --notify-file done.jsonl
  provost job notify \"$id\" --notify-command './on-end --fast'
  provost job notify \"$id\" --notify-socket \"$XDG_RUNTIME_DIR/me.sock\"")]
#[command(group(clap::ArgGroup::new("who").required(true).multiple(true).args(["notify_command", "notify_socket", "notify_file"])))]
pub(crate) struct NotifyArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    targets: Targets,
    /// The job
    #[arg(value_name = "JOB")]
    job: String,
}

pub(super) async fn run(args: NotifyArgs) -> CliResult {
    let client = args.connection.open().await?;
    for target in targets(args.targets)? {
        let asked = JobNotify {
            job: args.job.clone(),
            target,
        };
        let notice: JobNotice = client.call("job/notify", &asked).await.map_err(said)?;
        print(&format!("{}\n", notice.dedup))?;
    }
    Ok(0)
}
