//! `provost run --daemon`: in the foreground here, supervised there.

use std::sync::Arc;

use nix::libc::{SIGHUP, SIGPIPE};

use super::{Connection, said, send, start};
use crate::cli::args::RunArgs;
use crate::cli::run::exit_code;
use crate::cli::signals::{self, Interrupted};
use crate::cli::sink::Sink;
use crate::cli::target::{Target, close};
use crate::cli::tty::Attached;
use crate::cli::{CliResult, config, output, summary};
use crate::client::{Client, Followed};
use crate::protocol::{InputLost, ProcessAttach, ProcessAttached, ProcessStart};
use crate::{EventBody, SignalScope, StdinSpec, StreamName, TerminalRecord};

pub(in crate::cli) fn run(args: RunArgs) -> CliResult {
    if args.ask_command.is_some() {
        return Err(
            "--ask-command is for a run without a daemon; there, clients of it answer".to_owned(),
        );
    }
    let connection = Connection {
        socket: args.socket.clone(),
    };
    let (stdin, note) = config::stdin(args.stdin)?;
    let wants_input = matches!(stdin, StdinSpec::Given(_));
    let attached = match args.tty {
        true => Some(Arc::new(Attached::new(args.stdin, stdin)?)),
        false => None,
    };
    let request = ProcessStart {
        session: args.session.clone(),
        stdin: attached.is_none() && wants_input,
        terminal: attached.as_ref().map(|attached| start::terminal(attached.size())),
        ..start::request(&args.spec, args.command.clone())?
    };
    let (quiet, json) = (args.quiet, args.json);
    let mut sink = Sink::open(&config::reporting(args))?;
    if let (Some(note), false) = (note, quiet) {
        output::note(&note);
    }
    // This thread writes to what may be slow; signals and input must get through meanwhile.
    let runtime = crate::cli::runtime(1)?;
    let result = runtime.block_on(async {
        let signals = signals::register(attached.is_some()).map_err(|error| format!("signal handlers: {error}"))?;
        let client = connection.open().await?;
        let (started, mut events) = client.start_following(&request).await.map_err(said)?;
        let process = started.process.to_string();
        let interrupted = Interrupted::default();
        let target = Target::Daemon {
            client: client.clone(),
            process: process.clone(),
        };
        let raw = attached.as_ref().map(|attached| attached.make_raw(json));
        let mut lost = client.lost_inputs();
        if let Some(attached) = attached.clone() {
            take_input(&client, &process, &attached).await?;
            tokio::spawn(Attached::tie(attached, target.clone()));
        }
        tokio::spawn(signals::pass_on(
            signals,
            target.clone(),
            interrupted.clone(),
            attached.clone(),
        ));
        if request.stdin {
            let (client, process) = (client.clone(), process.clone());
            tokio::spawn(async move {
                // What it does not read, it does not want.
                if let Err(why) = send::copy(&client, &process, false).await {
                    tracing::debug!(why, "its input is not passed on any more");
                }
                let _ = close(&client, &process, false).await;
            });
        }
        let leaving = async {
            let Some(attached) = &attached else { return std::future::pending().await };
            let losing = async {
                while let Some(InputLost { by, .. }) = lost.recv().await {
                    attached.input_lost(&by, "Ctrl-C leaves");
                }
                std::future::pending().await
            };
            tokio::select! {
                () = attached.left() => {}
                () = losing => {}
            }
        };
        let followed = tokio::select! {
            record = follow(&mut events, &target, &mut sink) => Some(record),
            () = leaving => None,
        };
        drop(raw);
        let Some(record) = followed else {
            output::note(&format!("left {process}; it goes on"));
            return Ok(130);
        };
        let record = record.ok_or_else(|| {
            format!("the connection to the daemon is lost; {process} may go on there: `provost wait {process}`")
        })?;
        sink.finish(&record)?;
        if !quiet {
            summary::print(&record);
        }
        Ok(exit_code(&record, interrupted.signal()))
    });
    runtime.shutdown_background();
    result
}

/// Takes the input of what we have started, as `provost attach` would.
async fn take_input(client: &Client, process: &str, attached: &Attached) -> Result<(), String> {
    let asked = ProcessAttach {
        process: process.to_owned(),
        ..ProcessAttach::default()
    };
    let there: ProcessAttached = client.call("process/attach", &asked).await.map_err(said)?;
    if let Some(by) = there.held_by {
        attached.input_lost(&by, "Ctrl-C leaves");
    }
    Ok(())
}

/// Passes events on until the terminal record.
async fn follow(events: &mut Followed, target: &Target, sink: &mut Sink) -> Option<Box<TerminalRecord>> {
    while let Some(event) = events.next().await {
        for stream in sink.take(&event) {
            tracing::debug!(%stream, "the reader is gone");
            let signal = match stream {
                StreamName::Pty => SIGHUP,
                StreamName::Stdout | StreamName::Stderr => SIGPIPE,
            };
            target.signal(signal, SignalScope::Group).await;
        }
        if let EventBody::Terminal { record } = event.body {
            return Some(record);
        }
    }
    None
}
