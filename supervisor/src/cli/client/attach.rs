//! `provost attach`.

use std::io::{self, IsTerminal};
use std::sync::Arc;

use clap::Args as ClapArgs;
use futures_util::StreamExt;
use jiff::Timestamp;
use signal_hook::consts::{SIGCONT, SIGTSTP, SIGWINCH};

use super::history::{Ended, Since, follow, read};
use super::logs::Printer;
use super::tail::{cut, lead};
use super::{Connection, Reader, Reconnect, said, write};
use crate::cli::args::StdinArg;
use crate::cli::run::exit_code;
use crate::cli::screen::Screen;
use crate::cli::target::Target;
use crate::cli::tty::Attached;
use crate::cli::{CliResult, config, output, signals, summary};
use crate::protocol::{InputLost, ProcessAttach, ProcessAttached};
use crate::units::bytes;
use crate::{Event, EventBody, StreamName};

/// What is shown of what was written before, unless something else is asked for: some screens full.
const TAIL_BYTES: u64 = 32 << 10;

/// Tie this terminal to a process: its output here, what is typed there
///
/// A process with a terminal (`start --tty`) gets every key, and the size of this one, and draws its screen again; Ctrl-P Ctrl-Q
/// leaves it alone again. Of another one, what it reads is what comes on standard input, and Ctrl-C leaves. The end of its kept
/// output is shown first. What it asks is answered with `provost approve`.
///
/// Any number may attach, and one of them has the input: the first, until it leaves or another one takes it over with --steal.
/// The others see what it sees, and leave with Ctrl-C, too.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Exit codes:
  the process's own, once it has ended; 0 left with Ctrl-P Ctrl-Q, or Ctrl-C where the input is
  another's; 125 the connection was lost and the daemon did not come back (--reconnect)

Examples:
  provost start --tty --name sh -- bash && provost attach sh
  provost attach --read-only sh
  provost attach --since 1m sh")]
pub(crate) struct AttachArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    again: Reconnect,
    /// Take the input over from whoever has it
    #[arg(long, conflicts_with = "read_only")]
    steal: bool,
    /// Only show it
    #[arg(long)]
    read_only: bool,
    /// Of the kept output about the last so many bytes [default: 32K]
    #[arg(long, value_name = "BYTES", value_parser = tail_bytes, conflicts_with = "since")]
    tail: Option<u64>,
    /// Of the kept output what came behind the event of this number, or since a time (as for `logs`)
    #[arg(long, value_name = "SEQ|TIME", value_parser = Since::parse)]
    since: Option<Since>,
    /// The process: its id, a beginning or end of it, or its name
    #[arg(value_name = "ID")]
    process: String,
}

pub(super) async fn run(args: AttachArgs) -> CliResult {
    let client = args.connection.open_lasting(args.again.reconnect).await?;
    let (stdin, _) = config::stdin(StdinArg::Auto)?;
    let attached = Arc::new(Attached::new(StdinArg::Auto, stdin)?.that_can_be_left());
    let process = args.process.as_str();
    let mut lost = client.lost_inputs();
    // Without an input of ours the process keeps the one that it has.
    let wants_input = attached.has_input() && !args.read_only;
    let asked = ProcessAttach {
        process: process.to_owned(),
        read_only: !wants_input,
        steal: args.steal,
    };
    let there: ProcessAttached = client.call("process/attach", &asked).await.map_err(said)?;
    let both = attached.is_terminal() && there.terminal.is_some();
    let mut signals = signals::register(both).map_err(|error| format!("signal handlers: {error}"))?;
    match there.writer {
        true => client.has_input(process),
        false => attached.set_read_only(),
    }
    if let (true, Some(by)) = (wants_input, &there.held_by) {
        let leaves = leaves(both);
        output::note(&format!(
            "the input of {process} is attached elsewhere, by {by}: it is only shown here; {leaves}, and --steal takes it over"
        ));
    }
    let raw = both.then(|| attached.make_raw(false));
    let mut shown = Shown {
        printer: Printer::default(),
        screen: (both && io::stdout().is_terminal()).then(Screen::default),
        notes_asks: !both,
        record: None,
    };
    shown.begin(attached.size().rows)?;

    let output = async {
        let most = args.tail.unwrap_or(TAIL_BYTES);
        let since = args.since.unwrap_or(Since::Tail(lead(most)));
        let mut history = Vec::new();
        let ended = read(&client, process, since, |event| {
            history.push(event);
            Ok(Reader::There)
        })
        .await?;
        if args.since.is_none() {
            let (screen, events) = cut(history, most);
            shown.modes(&screen)?;
            history = events;
        }
        for event in history {
            if shown.take(event)? == Reader::Gone {
                return Ok(());
            }
        }
        let Ended::SoFar(seq) = ended else { return Ok(()) };
        // What it draws again comes behind what it has drawn.
        if attached.has_input() && (wants_input || both) {
            let (client, process) = (client.clone(), args.process.clone());
            tokio::spawn(Attached::tie(
                attached.clone(),
                Target::Daemon {
                    client,
                    process,
                    place: Arc::default(),
                },
            ));
        }
        follow(&client, process, seq, |event| shown.take(event)).await
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
    let losing = async {
        while let Some(InputLost { by, .. }) = lost.recv().await {
            attached.input_lost(&by, leaves(both));
        }
        std::future::pending::<()>().await;
    };
    let left = tokio::select! {
        ended = output => ended.map(|()| None),
        () = attached.left() => Ok(Some(0)),
        signal = leaving => Ok(Some(u8::try_from(128 + signal).unwrap_or(130))),
        () = losing => Ok(None),
    };
    // Put back before anything is said.
    shown.put_back();
    drop(raw);
    match (left?, shown.record) {
        (Some(code), _) => {
            output::note(&format!("left {process}; it goes on"));
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

/// Nothing, too.
fn tail_bytes(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { bytes(text) }
}

fn leaves(by_keys: bool) -> &'static str {
    match by_keys {
        true => "Ctrl-C or Ctrl-P Ctrl-Q leaves",
        false => "Ctrl-C leaves",
    }
}

/// What was shown so far.
struct Shown {
    printer: Printer,
    /// What became of the user's terminal by that, where it is one.
    screen: Option<Screen>,
    /// Says what it asks. A terminal that is the process's is not written to.
    notes_asks: bool,
    record: Option<Arc<crate::TerminalRecord>>,
}

impl Shown {
    /// Begins with an empty screen; what was there is still to be found above it.
    fn begin(&self, rows: u16) -> Result<(), String> {
        if self.screen.is_some() {
            let text = "\n".repeat(usize::from(rows.saturating_sub(1))) + "\x1b[H\x1b[J";
            write(&mut io::stdout(), text.as_bytes())?;
        }
        Ok(())
    }

    /// Makes the terminal what the process's was before what is shown.
    fn modes(&mut self, before: &Screen) -> Result<(), String> {
        let text = before.set_modes();
        if let Some(screen) = &mut self.screen {
            screen.take(text.as_bytes());
            write(&mut io::stdout(), text.as_bytes())?;
        }
        Ok(())
    }

    fn take(&mut self, event: Event) -> Result<Reader, String> {
        match (&event.body, &mut self.screen) {
            (EventBody::Terminal { record }, _) => self.record = Some(record.clone()),
            (EventBody::Output { stream, data, .. }, Some(screen)) if *stream == StreamName::Pty => {
                screen.take(data);
            }
            (
                EventBody::ApprovalRequested {
                    approval,
                    attempt,
                    deadline,
                },
                _,
            ) if self.notes_asks && *deadline > Timestamp::now() => output::note(&format!(
                "it asks: {}; answer with: provost approve {}/{approval}",
                summary::line(attempt),
                event.process
            )),
            _ => {}
        }
        self.printer.take(event)
    }

    /// A full-screen program that goes on without us does not put our terminal back.
    fn put_back(&self) {
        if let Some(screen) = &self.screen {
            let _ = write(&mut io::stdout(), screen.put_back().as_bytes());
        }
    }
}
