//! `provost run`: one command, and no daemon unless one is asked for.

use std::sync::Arc;

use nix::libc::{SIGHUP, SIGPIPE};
use provost_actors::event::{EventBody, StreamName};
use provost_actors::record::{Outcome, TerminalRecord};
use provost_sandbox::keeper::wire::SignalScope;
use provost_sandbox::keeper::{ForkedSpawner, settle_in_leaf};

use super::args::RunArgs;
use super::config::{self, RunConfig};
use super::signals::{self, Interrupted};
use super::sink::Sink;
use super::target::Target;
use super::tty::Attached;
use super::{CliResult, EXIT_PROVOST, EXIT_TIMED_OUT, ask, client, output, summary};
use crate::{Builder, PRESETS, ProcessHandle, Supervisor};

/// Whether the words ask for a command to be run here, so that a spawner is wanted as soon as can be; and not with limits, for
/// which it must come [later](settle_in_leaf). What is not sure is not simple.
pub(super) fn is_simple<'a>(mut words: impl Iterator<Item = &'a [u8]>) -> bool {
    const OTHERWISE: [&[u8]; 9] = [
        b"--policy=",
        b"--memory",
        b"--tasks",
        b"--cpus",
        b"--daemon",
        b"--detach",
        b"--with-me",
        b"--session",
        b"--slot",
    ];
    if words.nth(1) != Some(b"run") {
        return false;
    }
    while let Some(word) = words.next().filter(|word| *word != b"--") {
        if matches!(word, b"-p" | b"--policy") {
            let is_preset = |name: &[u8]| PRESETS.iter().any(|preset| preset.as_bytes() == name);
            if words.next().is_some_and(is_preset) {
                continue;
            }
            return false;
        }
        let short = word.starts_with(b"-") && !word.starts_with(b"--");
        if short && word.contains(&b'p') || OTHERWISE.iter().any(|option| word.starts_with(option)) {
            return false;
        }
    }
    true
}

/// With the spawner that was forked for it, if one was.
pub(super) fn run(args: RunArgs, forked: Option<ForkedSpawner>) -> CliResult {
    if args.detach {
        return client::start_detached(args);
    }
    if args.daemon || args.with_me || args.session.is_some() {
        return client::run::run(args);
    }
    if args.slot.is_some() {
        return Err(
            "a --slot is a place in a daemon's session, and nothing is replaced without one; \
                    add --daemon, --session SESSION or --detach"
                .to_owned(),
        );
    }
    let preset = PRESETS.contains(&args.spec.policy.as_str());
    if !preset || args.spec.memory.or(args.spec.tasks).or(args.spec.cpus).is_some() {
        // Where groups with limits cannot be made beside us, others hold them or it is an error.
        settle_in_leaf();
    }
    // First of all: the spawner takes its time to start, and has it while the rest is looked at.
    let supervisor = match forked {
        Some(forked) => Supervisor::builder()
            .forked(forked)
            .map_err(|error| error.to_string())?,
        None => launch()?,
    };
    supervise_with(supervisor, config::resolve(args)?).map(|(_, code)| code)
}

/// Runs a command to its end; its record, and the exit code that stands for it.
pub(super) fn supervise(config: RunConfig) -> Result<(Arc<TerminalRecord>, u8), String> {
    supervise_with(launch()?, config)
}

/// Starts a spawner, and a supervisor with it when that is needed.
pub(super) fn launch() -> Result<Builder, String> {
    Supervisor::builder().launch().map_err(|error| error.to_string())
}

fn supervise_with(supervisor: Builder, config: RunConfig) -> Result<(Arc<TerminalRecord>, u8), String> {
    let RunConfig {
        spec,
        reporting,
        asked,
        attached,
        note,
    } = config;
    let mut sink = Sink::open(&reporting)?;
    let attached = attached.map(Arc::new);
    if let (Some(note), false) = (note, reporting.quiet) {
        output::note(&note);
    }
    let runtime = super::runtime(2)?;
    // This thread alone writes to files that may be slow; the actors are on the workers.
    let result = runtime.block_on(async {
        let signals = signals::register(attached.is_some())
            .map_err(|error| format!("signal handlers: {error}"))?;
        let supervisor = supervisor
            .expect(&spec)
            .start()
            .await
            .map_err(|error| error.to_string())?;
        let process = supervisor.spawn(spec).await.map_err(|error| error.why())?;
        let interrupted = Interrupted::default();
        // Put back before anything is said, and whatever happens.
        let raw = attached
            .as_ref()
            .map(|attached| attached.make_raw(reporting.json));
        let passing = signals::pass_on(
            signals,
            Target::Here(process.clone()),
            interrupted.clone(),
            attached.clone(),
        );
        let passing = tokio::spawn(passing);
        let tied = attached
            .map(|attached| tokio::spawn(Attached::tie(attached, Target::Here(process.clone()))));
        let answering = asked.zip(supervisor.tree());
        let answering =
            answering.map(|(asked, tree)| tokio::spawn(ask::answer(asked, tree, process.clone())));
        let record = follow(&process, &mut sink).await?;
        if let Some(answering) = answering {
            answering.abort();
            let _ = answering.await;
        }
        // They hold the process, and with it the tree.
        for task in [Some(passing), tied].into_iter().flatten() {
            task.abort();
            let _ = task.await;
        }
        drop(raw);
        let record = record.ok_or("the event stream ended without a record")?;
        sink.finish(&record)?;
        if !reporting.quiet {
            summary::print(&record);
        }
        let code = exit_code(&record, interrupted.signal());
        Ok((record, code))
    });
    // What is left are idle threads; a thread that waits for a slow disk must not hold the exit up.
    runtime.shutdown_background();
    result
}

/// Passes events on until the terminal record.
async fn follow(
    process: &ProcessHandle,
    sink: &mut Sink,
) -> Result<Option<Arc<TerminalRecord>>, String> {
    let mut events = process.events_paced();
    while let Some(event) = events.next().await.map_err(|error| error.to_string())? {
        for stream in sink.take(&event) {
            // Its reader is gone: the command is told as it would be without us.
            tracing::debug!(%stream, "the reader is gone");
            let signal = match stream {
                StreamName::Pty => SIGHUP,
                StreamName::Stdout | StreamName::Stderr => SIGPIPE,
            };
            let _ = process.signal(signal, SignalScope::Group).await;
        }
        if let EventBody::Terminal { record } = event.body {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

/// The exit code that stands for a signal of this name.
pub(super) fn signal_code(name: &str) -> Option<u8> {
    let signal = name.parse::<nix::sys::signal::Signal>().ok()?;
    Some(128 + signal as u8)
}

/// The exit code that stands for a record.
pub(super) fn exit_code(record: &TerminalRecord, interrupted: Option<i32>) -> u8 {
    let by_signal = || record.signal.as_deref().and_then(signal_code);
    let own = || record.exit_code.and_then(|code| u8::try_from(code).ok());
    match record.outcome {
        Outcome::TimedOut | Outcome::IdleTimeout => EXIT_TIMED_OUT,
        Outcome::Cancelled => match interrupted {
            Some(signal) => u8::try_from(128 + signal).unwrap_or(130),
            None => 130,
        },
        Outcome::Lost => EXIT_PROVOST,
        _ => own().or_else(by_signal).unwrap_or(EXIT_PROVOST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_a_group_or_a_daemon_is_not_simple() {
        let simple = |line: &str| is_simple(line.split(' ').map(str::as_bytes));
        for line in [
            "provost run true",
            "provost run -p unconfined true",
            "provost run --policy read-only -- true --memory",
            "provost run --json -- make -p",
            "provost run -q -- x --memory 1G",
        ] {
            assert!(simple(line), "{line}");
        }
        for line in [
            "provost",
            "provost start true",
            "provost --version run",
            "provost run -p FILE true",
            "provost run -p",
            "provost run -p unconfined --memory 1G true",
            "provost run -qp FILE -- true",
            "provost run --policy=FILE true",
            "provost run --memory 1G -- true",
            "provost run --json --cpus=2 -- true",
            "provost run --tasks 5 true",
            "provost run --daemon -- true",
            "provost run --detach -- true",
        ] {
            assert!(!simple(line), "{line}");
        }
    }
}
