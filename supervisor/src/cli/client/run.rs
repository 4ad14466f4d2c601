//! `provost run --daemon`: in the foreground here, supervised there.

use std::sync::Arc;

use nix::libc::{SIGHUP, SIGPIPE};
use tokio::sync::Mutex;

use super::{Connection, said, send, start};
use crate::cli::args::RunArgs;
use crate::cli::ask::AnsweringThere;
use crate::cli::run::{exit_code, launch};
use crate::cli::signals::{self, Interrupted};
use crate::cli::sink::Sink;
use crate::cli::target::{Target, close};
use crate::cli::tty::Attached;
use crate::cli::{CliResult, config, output, summary};
use crate::client::{Followed, Lasting};
use crate::protocol::{
    InputLost, ProcessAttach, ProcessAttached, ProcessFollow, ProcessStart, SessionOpen, SessionRef,
};
use provost_actors::session::OnDisconnect;

use crate::{EventBody, ProcessId, SignalScope, StdinSpec, StreamName, TerminalRecord, handle};

pub(in crate::cli) fn run(args: RunArgs) -> CliResult {
    let connection = Connection {
        socket: args.socket.clone(),
    };
    let reconnect = args.reconnect;
    let (stdin, note) = config::stdin(args.stdin)?;
    let wants_input = matches!(stdin, StdinSpec::Given(_));
    let attached = match args.tty {
        true => Some(Arc::new(Attached::new(args.stdin, stdin)?)),
        false => None,
    };
    let request = ProcessStart {
        session: args.session.clone(),
        slot: args.slot.clone(),
        slot_grace_ms: args.slot_grace.map(handle::millis),
        request_id: Some(ProcessId::new().to_string()),
        stdin: attached.is_none() && wants_input,
        terminal: attached.as_ref().map(|attached| start::terminal(attached.size())),
        ..start::request(&args.spec, args.command.clone())?
    };
    let policy = request.prepared_policy.as_deref();
    let asked = match policy {
        Some(policy) => config::asked(&args, policy)?,
        None => None,
    };
    let asks = policy.is_some_and(|policy| policy.ask.net || policy.ask.files);
    // Only what answers is run here.
    let launched = match &asked {
        Some(_) => Some(launch()?),
        None => None,
    };
    let (quiet, json, with_me) = (args.quiet, args.json, args.with_me);
    let mut request = request;
    let mut sink = Sink::open(&config::reporting(args))?;
    if let (Some(note), false) = (note, quiet) {
        output::note(&note);
    }
    // This thread writes to what may be slow; signals and input must get through meanwhile.
    let runtime = crate::cli::runtime(1)?;
    let result = runtime.block_on(async {
        let signals = signals::register(attached.is_some())
            .map_err(|error| format!("signal handlers: {error}"))?;
        let client = connection.open_lasting(reconnect).await?;
        let answerer = match (asked, launched) {
            (Some(asked), Some(launched)) => {
                let supervisor = launched.start().await.map_err(|error| error.to_string())?;
                supervisor.tree().map(|tree| asked.by(tree))
            }
            _ => None,
        };
        if asks && answerer.is_none() && !quiet {
            output::note("what it asks waits for `provost approve`; `provost approvals` lists it");
        }
        if with_me {
            // A session that stops when its holder, this connection, is gone.
            let open = SessionOpen {
                on_disconnect: OnDisconnect::Stop,
                ..SessionOpen::default()
            };
            let opened: SessionRef = client.call_once("session/open", &open).await.map_err(said)?;
            if let Ok(session) = opened.session.parse() {
                client.holds(session);
            }
            request.session = Some(opened.session);
        }
        let (started, events) = client.start_following(&request).await.map_err(said)?;
        let process = started.process.to_string();
        let interrupted = Interrupted::default();
        let target = Target::Daemon {
            client: client.clone(),
            process: process.clone(),
            place: Arc::new(Mutex::new(Some(0))),
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
                if let Err(why) = send::copy(&client, &process, &mut Some(0), false).await {
                    tracing::debug!(why, "its input is not passed on any more");
                }
                let _ = close(&client, &process, false).await;
            });
        }
        let leaving = async {
            let Some(attached) = &attached else {
                return std::future::pending().await;
            };
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
        let answering =
            answerer.map(|answerer| AnsweringThere::new(answerer, client.clone(), started.process));
        let followed = tokio::select! {
            record = follow(&client, &process, events, &target, &mut sink, answering) => Some(record),
            () = leaving => None,
        };
        drop(raw);
        let Some(record) = followed else {
            let what = if with_me { "it ends" } else { "it goes on" };
            output::note(&format!("left {process}; {what}"));
            return Ok(130);
        };
        let record = record
            .map_err(|why| format!("{why}; {process} may go on there: `provost wait {process}`"))?;
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
async fn take_input(client: &Lasting, process: &str, attached: &Attached) -> Result<(), String> {
    let asked = ProcessAttach {
        process: process.to_owned(),
        ..ProcessAttach::default()
    };
    let there: ProcessAttached = client.call("process/attach", &asked).await.map_err(said)?;
    match there.held_by {
        Some(by) => attached.input_lost(&by, "Ctrl-C leaves"),
        None => client.has_input(process),
    }
    Ok(())
}

/// Passes events on until the terminal record, over one connection after another.
async fn follow(
    client: &Lasting,
    process: &str,
    mut events: Followed,
    target: &Target,
    sink: &mut Sink,
    mut answering: Option<AnsweringThere>,
) -> Result<Arc<TerminalRecord>, String> {
    let mut asked = ProcessFollow {
        process: process.to_owned(),
        paced: true,
        ..ProcessFollow::default()
    };
    loop {
        while let Some(event) = events.next().await {
            asked.after_seq = event.seq;
            if let Some(answering) = &mut answering {
                answering.take(&event.body);
            }
            for stream in sink.take(&event) {
                tracing::debug!(%stream, "the reader is gone");
                let signal = match stream {
                    StreamName::Pty => SIGHUP,
                    StreamName::Stdout | StreamName::Stderr => SIGPIPE,
                };
                target.signal(signal, SignalScope::Group).await;
            }
            if let EventBody::Terminal { record } = event.body {
                return Ok(record);
            }
        }
        if !(events.is_lost() && client.lasts()) {
            return Err("the connection to the daemon is lost".to_owned());
        }
        events = client.follow(&asked).await.map_err(said)?;
    }
}
