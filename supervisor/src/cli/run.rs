//! `provost run`: one command, and no daemon unless one is asked for.

use std::ffi::OsString;
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

/// Whether the words ask for a command to be run: here, most likely, and then a spawner is wanted as soon as can be.
pub(super) fn is_asked(mut words: impl Iterator<Item = OsString>) -> bool {
    words.nth(1).is_some_and(|verb| verb == "run")
}

/// With the spawner that was forked for it, if one was.
pub(super) fn run(args: RunArgs, forked: Option<ForkedSpawner>) -> CliResult {
    let elsewhere = args.detach || args.daemon || args.with_me || args.session.is_some();
    let forked = forked.filter(|_| !elsewhere);
    if args.detach {
        return client::start_detached(args);
    }
    if elsewhere {
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
    let limits = !preset || args.spec.memory.or(args.spec.tasks).or(args.spec.cpus).is_some();
    if limits {
        // Where groups with limits cannot be made beside us, others hold them or it is an error.
        settle_in_leaf();
    }
    // First of all: the spawner takes its time to start, and has it while the rest is looked at.
    let supervisor = match forked {
        // It would have stayed in the group of before.
        Some(forked) if !limits => Supervisor::builder()
            .forked(forked)
            .map_err(|error| error.to_string())?,
        _ => launch()?,
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
