//! `provost run`: one command, no daemon.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use nix::libc::{SIGHUP, SIGPIPE};
use provost_actors::event::{Event, EventBody, StreamName};
use provost_actors::record::{Outcome, TerminalRecord};
use provost_sandbox::keeper::settle_in_leaf;
use provost_sandbox::keeper::wire::SignalScope;

use super::args::RunArgs;
use super::config::{self, Reporting, RunConfig};
use super::report_file::ReportFile;
use super::signals::{self, Interrupted};
use super::tty::Attached;
use super::{CliResult, EXIT_PROVOST, ask, output, summary};
use crate::{Builder, PRESETS, ProcessHandle, Supervisor};

pub(super) fn run(args: RunArgs) -> CliResult {
    let preset = PRESETS.contains(&args.policy.as_str());
    if !preset || args.memory.or(args.tasks).or(args.cpus).is_some() {
        // Where groups with limits cannot be made beside us, others hold them or it is an error.
        settle_in_leaf();
    }
    // First of all: the spawner takes its time to start, and has it while the rest is looked at.
    let supervisor = launch()?;
    supervise_with(supervisor, config::resolve(args)?).map(|(_, code)| code)
}

/// Runs a command to its end; its record, and the exit code that stands for it.
pub(super) fn supervise(config: RunConfig) -> Result<(Box<TerminalRecord>, u8), String> {
    supervise_with(launch()?, config)
}

fn launch() -> Result<Builder, String> {
    Supervisor::builder().launch().map_err(|error| error.to_string())
}

fn supervise_with(supervisor: Builder, config: RunConfig) -> Result<(Box<TerminalRecord>, u8), String> {
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
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    // This thread alone writes to files that may be slow; the actors are on the workers.
    let result = runtime.block_on(async {
        let signals = signals::register(attached.is_some())
            .map_err(|error| format!("signal handlers: {error}"))?;
        let supervisor = supervisor
            .expect(&spec)
            .start()
            .await
            .map_err(|error| error.to_string())?;
        let process = supervisor.spawn(spec).await.map_err(|error| error.to_string())?;
        let interrupted = Interrupted::default();
        // Put back before anything is said, and whatever happens.
        let raw = attached
            .as_ref()
            .map(|attached| attached.make_raw(reporting.json));
        let passing = signals::pass_on(signals, process.clone(), interrupted.clone(), attached.clone());
        let passing = tokio::spawn(passing);
        let tied = attached.map(|attached| tokio::spawn(Attached::tie(attached, process.clone())));
        let answering =
            asked.map(|asked| tokio::spawn(ask::answer(asked, supervisor.clone(), process.clone())));
        let record = follow(&process, &mut sink).await;
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
async fn follow(process: &ProcessHandle, sink: &mut Sink) -> Option<Box<TerminalRecord>> {
    let mut events = process.events_paced();
    while let Some(event) = events.next().await {
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
            return Some(record);
        }
    }
    None
}

/// Where events go.
struct Sink {
    stdout: Option<io::Stdout>,
    stderr: Option<io::Stderr>,
    json: bool,
    events: Option<ReportFile>,
    record: Option<ReportFile>,
    failure: Option<String>,
}

impl Sink {
    /// Opens every file before anything runs.
    fn open(reporting: &Reporting) -> Result<Self, String> {
        let open = |path: &Option<PathBuf>, flag| match path {
            Some(path) => ReportFile::create(path, flag).map(Some),
            None => Ok(None),
        };
        let events = open(&reporting.events, "--events")?;
        let record = open(&reporting.record, "--record")?;
        Ok(Self {
            stdout: Some(io::stdout()),
            stderr: Some(io::stderr()),
            json: reporting.json,
            events,
            record,
            failure: None,
        })
    }

    /// Takes one event; says which streams have just lost their reader.
    fn take(&mut self, event: &Event) -> Vec<StreamName> {
        let mut lost = Vec::new();
        if self.json || self.events.is_some() {
            let line = match serde_json::to_string(event) {
                Ok(line) => line + "\n",
                Err(error) => {
                    self.failure
                        .get_or_insert(format!("cannot write an event: {error}"));
                    return lost;
                }
            };
            if let Some(file) = &mut self.events
                && let Err(error) = file.write(line.as_bytes())
            {
                self.failure.get_or_insert(error);
                self.events = None;
            }
            if self.json && !write_all(&mut self.stdout, line.as_bytes(), &mut self.failure) {
                lost.push(StreamName::Stdout);
            }
        }
        if self.json {
            return lost;
        }
        if let EventBody::Output { stream, data, .. } = &event.body {
            let kept = match stream {
                StreamName::Stderr => write_all(&mut self.stderr, data, &mut self.failure),
                _ => write_all(&mut self.stdout, data, &mut self.failure),
            };
            if !kept {
                lost.push(*stream);
            }
        }
        lost
    }

    /// Writes the record. What could not be written is an error: silence would be taken for success.
    fn finish(&mut self, record: &TerminalRecord) -> Result<(), String> {
        if let Some(file) = self.events.take() {
            file.finish()?;
        }
        if let Some(mut file) = self.record.take() {
            let mut text = serde_json::to_vec_pretty(record).map_err(|error| error.to_string())?;
            text.push(b'\n');
            file.replace(&text)?;
            file.finish()?;
        }
        match self.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }
}

/// Writes and flushes; false when the reader has just gone.
fn write_all<W: Write>(target: &mut Option<W>, bytes: &[u8], failure: &mut Option<String>) -> bool {
    let Some(writer) = target else {
        return true; // told before
    };
    match writer.write_all(bytes).and_then(|()| writer.flush()) {
        Ok(()) => true,
        Err(error) => {
            *target = None;
            if error.kind() != io::ErrorKind::BrokenPipe {
                failure.get_or_insert(format!("cannot write the command's output: {error}"));
            }
            false
        }
    }
}

fn exit_code(record: &TerminalRecord, interrupted: Option<i32>) -> u8 {
    let by_signal = || {
        let number = record
            .signal
            .as_deref()
            .and_then(|name| name.parse::<nix::sys::signal::Signal>().ok())
            .map(|signal| signal as u8);
        number.map(|number| 128 + number)
    };
    let own = || record.exit_code.and_then(|code| u8::try_from(code).ok());
    match record.outcome {
        Outcome::TimedOut | Outcome::IdleTimeout => 124,
        Outcome::Cancelled => match interrupted {
            Some(signal) => u8::try_from(128 + signal).unwrap_or(130),
            None => 130,
        },
        Outcome::Lost => EXIT_PROVOST,
        _ => own().or_else(by_signal).unwrap_or(EXIT_PROVOST),
    }
}
