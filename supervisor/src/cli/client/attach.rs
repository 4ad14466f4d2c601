//! `provost attach`.

use std::sync::Arc;

use clap::Args as ClapArgs;
use futures_util::StreamExt;
use signal_hook::consts::{SIGCONT, SIGTSTP, SIGWINCH};

use super::Connection;
use super::history::{Ended, Since, follow, read};
use super::logs::Printer;
use crate::EventBody;
use crate::cli::args::StdinArg;
use crate::cli::run::exit_code;
use crate::cli::target::Target;
use crate::cli::tty::Attached;
use crate::cli::{CliResult, config, output, signals, summary};

/// Tie this terminal to a process: its output here, what is typed there
///
/// A process with a terminal (`start --tty`) gets every key, and the size of this one; Ctrl-P Ctrl-Q leaves it alone again. Of
/// another one, what it reads is what comes on standard input, and Ctrl-C leaves. Its kept output is shown first.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Exit codes:
  the process's own, once it has ended; 0 left with Ctrl-P Ctrl-Q; 125 the connection was lost

Examples:
  provost start --tty --name sh -- bash && provost attach sh
  provost attach --since 1m sh")]
pub(crate) struct AttachArgs {
    #[command(flatten)]
    connection: Connection,
    /// Of the kept output only what came behind the event of this number, or since a time (as for `logs`)
    #[arg(long, value_name = "SEQ|TIME", value_parser = Since::parse, default_value = "0")]
    since: Since,
    /// The process: its id, a beginning or end of it, or its name
    #[arg(value_name = "ID")]
    process: String,
}

pub(super) async fn run(args: AttachArgs) -> CliResult {
    let client = args.connection.open().await?;
    let (stdin, _) = config::stdin(StdinArg::Auto)?;
    let attached = Arc::new(Attached::new(StdinArg::Auto, stdin)?.that_can_be_left());
    let target = Target::Daemon {
        client: client.clone(),
        process: args.process.clone(),
    };
    // Whether it has one is learned by telling it the size.
    let both = attached.is_terminal() && target.resize(attached.size()).await;
    let mut signals = signals::register(both).map_err(|error| format!("signal handlers: {error}"))?;
    let raw = both.then(|| attached.make_raw(false));
    // Without an input of ours the process keeps the one that it has.
    if attached.has_input() {
        tokio::spawn(Attached::tie(attached.clone(), target));
    }

    let mut printer = Printer::default();
    let mut record = None;
    let mut take = |event: crate::Event| {
        if let EventBody::Terminal { record: last } = &event.body {
            record = Some(last.clone());
        }
        printer.take(event)
    };
    let output = async {
        match read(&client, &args.process, args.since, &mut take).await? {
            Ended::SoFar(seq) => follow(&client, &args.process, seq, &mut take).await,
            Ended::Terminal | Ended::Enough => Ok(()),
        }
    };
    let leaving = async {
        while let Some(signal) = signals.next().await {
            match signal {
                SIGWINCH => attached.resized(),
                SIGCONT if both => attached.continued(),
                SIGCONT => {}
                SIGTSTP => {
                    attached.restore();
                    let _ = signal_hook::low_level::emulate_default_handler(SIGTSTP);
                }
                signal => return signal,
            }
        }
        std::future::pending().await
    };
    let left = tokio::select! {
        ended = output => ended.map(|()| None),
        () = attached.left() => Ok(Some(0)),
        signal = leaving => Ok(Some(u8::try_from(128 + signal).unwrap_or(130))),
    };
    // Put back before anything is said.
    drop(raw);
    match (left?, record) {
        (Some(code), _) => {
            output::note(&format!("left {}; it goes on", args.process));
            Ok(code)
        }
        (None, Some(record)) => {
            summary::print(&record);
            Ok(exit_code(&record, None))
        }
        // Whoever read our output has gone.
        (None, None) => Ok(0),
    }
}
