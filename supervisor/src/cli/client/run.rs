//! `provost run --daemon`: in the foreground here, supervised there.

use nix::libc::SIGPIPE;

use super::{Connection, said, send, start};
use crate::cli::args::RunArgs;
use crate::cli::run::exit_code;
use crate::cli::signals::{self, Interrupted, Target};
use crate::cli::sink::Sink;
use crate::cli::{CliResult, config, output, summary};
use crate::client::{Client, Followed};
use crate::protocol::{ProcessSignal, ProcessStart, Told};
use crate::{EventBody, SignalScope, StdinSpec, TerminalRecord};

pub(in crate::cli) fn run(args: RunArgs) -> CliResult {
    if args.ask_command.is_some() {
        return Err(
            "--ask-command is for a run without a daemon; there, clients of it answer".to_owned(),
        );
    }
    if args.tty {
        return Err("--tty is for a run without a daemon".to_owned());
    }
    let connection = Connection {
        socket: args.socket.clone(),
    };
    let (stdin, note) = config::stdin(args.stdin)?;
    let request = ProcessStart {
        session: args.session.clone(),
        stdin: matches!(stdin, StdinSpec::Given(_)),
        ..start::request(&args.spec, args.command.clone())?
    };
    let quiet = args.quiet;
    let mut sink = Sink::open(&config::reporting(args))?;
    if let (Some(note), false) = (note, quiet) {
        output::note(&note);
    }
    // This thread writes to what may be slow; signals and input must get through meanwhile.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    let result = runtime.block_on(async {
        let signals = signals::register(false).map_err(|error| format!("signal handlers: {error}"))?;
        let client = connection.open().await?;
        let (started, mut events) = client.start_following(&request).await.map_err(said)?;
        let process = started.process.to_string();
        let interrupted = Interrupted::default();
        let target = Target::Daemon {
            client: client.clone(),
            process: process.clone(),
        };
        tokio::spawn(signals::pass_on(signals, target, interrupted.clone(), None));
        if request.stdin {
            let (client, process) = (client.clone(), process.clone());
            tokio::spawn(async move {
                // What it does not read, it does not want.
                if let Err(why) = send::copy(&client, &process).await {
                    tracing::debug!(why, "its input is not passed on any more");
                }
                let _ = send::close(&client, &process).await;
            });
        }
        let record = follow(&mut events, &client, &process, &mut sink).await;
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

/// Passes events on until the terminal record.
async fn follow(
    events: &mut Followed,
    client: &Client,
    process: &str,
    sink: &mut Sink,
) -> Option<Box<TerminalRecord>> {
    while let Some(event) = events.next().await {
        for stream in sink.take(&event) {
            tracing::debug!(%stream, "the reader is gone");
            let pipe = ProcessSignal {
                process: process.to_owned(),
                signal: SIGPIPE.to_string(),
                scope: Some(SignalScope::Group),
            };
            let _: Result<Told, _> = client.call("process/signal", &pipe).await;
        }
        if let EventBody::Terminal { record } = event.body {
            return Some(record);
        }
    }
    None
}
