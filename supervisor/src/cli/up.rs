//! `provost up`: a group of processes in the foreground, restarted by rule.

mod file;
mod show;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;
use futures_util::StreamExt;
use provost_sandbox::keeper::settle_in_leaf;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook_tokio::Signals;
use tokio::sync::{mpsc, oneshot};

use super::client::patience;
use super::run::launch;
use super::{CliResult, output, serve};
use crate::{Group, GroupCause, GroupEnd, GroupEvent, GroupSpec, Supervisor};
use show::{Screen, follow};

/// Lines that wait to be shown; then the members wait.
const SHOWN_MAX: usize = 64;

/// Start the processes of a file in order, keep them running, and stop them in reverse
///
/// They are restarted as the file says, in the terms of OTP's supervisors. Their output passes through with their names before
/// it; what happens to them is said on stderr. Ctrl-C stops them in reverse order, a second one kills them. Paths in the file
/// are seen from its directory.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Exit codes:
  0 every process has ended, the last time well; 1 one has not, or the group was given up; 125 Provost
  failed, or the file has a mistake; 128+N interrupted by signal N (130: Ctrl-C)

Examples:
  provost up dev.toml
  provost up --check dev.toml
  provost up --json dev.toml | jq -c 'select(.type == \"member_restarting\")'
  provost up --daemon dev.toml      # supervised there: provost ps, logs, approve")]
pub(crate) struct UpArgs {
    /// The file: see docs/restart.md
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Only say whether the file could be used; nothing is started
    #[arg(long)]
    check: bool,
    /// Have a daemon run the processes; when this client goes away, they are stopped
    #[arg(long, help_heading = "Daemon")]
    daemon: bool,
    /// The same, with the daemon that listens there
    #[arg(long, value_name = "PATH", help_heading = "Daemon")]
    socket: Option<PathBuf>,
    /// Where --daemon finds it.
    #[arg(long, hide = true, env = "PROVOST_SOCKET")]
    usual_socket: Option<PathBuf>,
    /// Go on where it was when the daemon is back within this time, after it has died or was replaced; 0 for never
    #[arg(long, value_name = "DURATION", value_parser = patience, default_value = "30s", help_heading = "Daemon")]
    reconnect: Duration,
    /// Write what happens, and the events of each process, as JSON lines to stdout instead of their output
    #[arg(long, help_heading = "Reporting")]
    json: bool,
    /// Say nothing about starts, ends and restarts
    #[arg(long, short, help_heading = "Reporting")]
    quiet: bool,
}

pub(super) fn run(args: UpArgs) -> CliResult {
    let socket = match (&args.socket, args.daemon) {
        (Some(path), _) => Some(std::path::absolute(path).map_err(|error| error.to_string())?),
        (None, true) => Some(match &args.usual_socket {
            Some(path) => path.clone(),
            None => serve::default_socket()?,
        }),
        (None, false) => None,
    };
    let spec = read(&args, socket.is_some())?;
    if args.check {
        let names: Vec<&str> = spec.members.iter().map(|member| member.name.as_str()).collect();
        output::note(&format!(
            "{}: {} would start, in this order: {}",
            args.file.display(),
            spec.name,
            names.join(", ")
        ));
        return Ok(0);
    }
    // This thread writes to what may be slow; the members, signals and rules are on the others.
    let runtime = super::runtime(2)?;
    let result = runtime.block_on(async {
        let signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT]);
        let signals = signals.map_err(|error| format!("signal handlers: {error}"))?;
        let supervisor = match &socket {
            Some(socket) => Supervisor::connect_lasting(socket, args.reconnect)
                .await
                .map_err(|error| error.to_string())?,
            None => {
                // Where groups with limits cannot be made beside us, others hold them or it is an error.
                settle_in_leaf();
                launch()?.start().await.map_err(|error| error.to_string())?
            }
        };
        supervise(&args, supervisor, spec, signals).await
    });
    runtime.shutdown_background();
    result
}

fn read(args: &UpArgs, may_ask: bool) -> Result<GroupSpec, String> {
    let shown = args.file.display();
    let path = std::path::absolute(&args.file).map_err(|error| format!("{shown}: {error}"))?;
    if let Some(directory) = path.parent() {
        std::env::set_current_dir(directory).map_err(|error| format!("{shown}: {error}"))?;
    }
    file::read(&path, may_ask).map_err(|error| error.to_string())
}

async fn supervise(
    args: &UpArgs,
    supervisor: Supervisor,
    spec: GroupSpec,
    signals: Signals,
) -> CliResult {
    let names = spec.members.iter().map(|member| member.name.clone()).collect();
    let mut screen = Screen::new(spec.name.clone(), names, args.json, args.quiet);
    let (group, mut events) = supervisor
        .start_group(spec)
        .await
        .map_err(|error| error.to_string())?;
    let (interrupt, mut interrupted) = oneshot::channel();
    let passing = tokio::spawn(pass_on(signals, group.clone(), interrupt));
    let (show, mut shown) = mpsc::channel(SHOWN_MAX);
    let mut show = Some(show);
    let mut end: Option<GroupEnd> = None;
    loop {
        tokio::select! {
            Some((member, what)) = shown.recv() => screen.member(member, what),
            Some(event) = events.next() => {
                match &event {
                    GroupEvent::MemberStarting { member, handle, .. } => {
                        if let Some(show) = &show {
                            let member = screen.index(member);
                            tokio::spawn(follow(member, handle.clone(), args.json, show.clone()));
                        }
                    }
                    GroupEvent::GroupEnded { end: how } => {
                        end = Some(how.clone());
                        // What the members have written is still to come, and then no more.
                        show = None;
                        continue;
                    }
                    _ => {}
                }
                screen.event(&event);
            }
            else => break,
        }
        if screen.gone {
            group.stop("nobody reads its output any more");
        }
    }
    passing.abort();
    let _ = passing.await;
    let end = end.ok_or("the group ended without a word")?;
    screen.event(&GroupEvent::GroupEnded { end: end.clone() });
    let code = match end.cause {
        GroupCause::Complete if end.failed.is_empty() => 0,
        GroupCause::Stopped => match interrupted.try_recv() {
            Ok(signal) => u8::try_from(128 + signal).unwrap_or(130),
            Err(_) => 1,
        },
        GroupCause::Lost => return Err(end.reason),
        _ => 1,
    };
    if !args.quiet {
        let failed = match end.failed.as_slice() {
            [] => String::new(),
            failed => format!("; not well: {}", failed.join(", ")),
        };
        output::note(&format!("the group has ended: {}{failed}", end.reason));
    }
    Ok(code)
}

/// The first signal stops the group, the next one kills it.
async fn pass_on(mut signals: Signals, group: Group, interrupted: oneshot::Sender<i32>) {
    let mut interrupted = Some(interrupted);
    while let Some(signal) = signals.next().await {
        let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
        let reason = format!("interrupted by {name}");
        match interrupted.take() {
            Some(first) => {
                let _ = first.send(signal);
                group.stop(reason);
            }
            None => group.kill(reason),
        }
    }
}
