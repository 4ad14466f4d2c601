//! `provost logs`.

use std::collections::VecDeque;
use std::io;

use clap::{Args as ClapArgs, ValueEnum};

use super::history::{Ended, Since, follow, read};
use super::{Connection, Reader, Reconnect, line, write};
use crate::cli::{CliResult, output};
use crate::units::bytes;
use crate::{Event, EventBody, StreamName};

/// Print the output of a process
///
/// Its bytes as they were: those of stdout to stdout, those of stderr to stderr. Where some were dropped, a line on stderr
/// says which. Without --follow: what is there now.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  provost logs web
  provost logs -f --tail 4K web
  provost logs --stream stderr --since 5m web
  provost logs --json web | jq -r .offset

With --follow the exit code is 0 once the process has ended, and 125 if the connection ends before and the daemon does not come back (--reconnect).")]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    again: Reconnect,
    /// Go on with what comes, until the process has ended
    #[arg(long, short)]
    follow: bool,
    /// Only what came behind the event of this number, or since a time (RFC 3339, or 5m for five minutes ago)
    #[arg(long, value_name = "SEQ|TIME", value_parser = Since::parse, default_value = "0")]
    since: Since,
    /// Of what is there, only the last bytes; with --json the last whole events that have them
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    tail: Option<u64>,
    /// Only this stream (a terminal is stdout)
    #[arg(long, value_enum, value_name = "STREAM")]
    stream: Option<StreamArg>,
    /// Print output and gap events as JSON lines instead
    #[arg(long)]
    json: bool,
    /// The process: its id, a beginning or end of it, or its name
    #[arg(value_name = "ID")]
    process: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StreamArg {
    Stdout,
    Stderr,
}

pub(super) async fn run(args: LogsArgs) -> CliResult {
    let client = args.connection.open_lasting(args.again.reconnect).await?;
    let mut printer = Printer {
        stream: args.stream,
        json: args.json,
        ..Printer::default()
    };
    let mut tail = Tail::default();
    let ended = read(&client, &args.process, args.since, |event| match args.tail {
        Some(most) => {
            if printer.wants(&event) {
                tail.push(event, most);
            }
            Ok(Reader::There)
        }
        None => printer.take(event),
    })
    .await?;
    if let Some(most) = args.tail {
        for event in tail.last(most, args.json) {
            if printer.take(event)? == Reader::Gone {
                return Ok(0);
            }
        }
    }
    if let (Ended::SoFar(seq), true) = (ended, args.follow) {
        follow(&client, &args.process, seq, |event| printer.take(event)).await?;
    }
    Ok(0)
}

/// Prints output.
#[derive(Default)]
pub(super) struct Printer {
    stream: Option<StreamArg>,
    json: bool,
    /// The end of what was printed of each stream, for gaps are told anew to each reader.
    read_to: [u64; StreamName::ALL.len()],
}

impl Printer {
    fn wants(&self, event: &Event) -> bool {
        let (EventBody::Output { stream, .. } | EventBody::Gap { stream, .. }) = &event.body else {
            return false;
        };
        let stream = match stream {
            StreamName::Stderr => StreamArg::Stderr,
            _ => StreamArg::Stdout,
        };
        self.stream.is_none_or(|wanted| wanted == stream)
    }

    /// Prints what an event has of it.
    pub(super) fn take(&mut self, event: Event) -> Result<Reader, String> {
        if !self.wants(&event) {
            return Ok(Reader::There);
        }
        if self.json {
            return write(&mut io::stdout(), line(&event)?.as_bytes());
        }
        let place = |stream: StreamName| stream as usize;
        match event.body {
            EventBody::Output { stream, offset, data } => {
                self.read_to[place(stream)] = offset + data.len() as u64;
                match stream {
                    StreamName::Stderr => write(&mut io::stderr(), &data),
                    _ => write(&mut io::stdout(), &data),
                }
            }
            EventBody::Gap { stream, from, to, .. } => {
                let from = from.max(self.read_to[place(stream)]);
                if from < to {
                    let bytes = to - from;
                    output::note(&format!(
                        "gap: {bytes} bytes of {stream} are not kept any more (from {from} to {to})"
                    ));
                    self.read_to[place(stream)] = to;
                }
                Ok(Reader::There)
            }
            _ => Ok(Reader::There),
        }
    }
}

/// The last events of many.
#[derive(Default)]
struct Tail {
    events: VecDeque<Event>,
    bytes: u64,
}

impl Tail {
    fn push(&mut self, event: Event, most: u64) {
        self.bytes += length(&event);
        self.events.push_back(event);
        while let Some(first) = self.events.front().map(length)
            && self.bytes - first >= most
        {
            self.bytes -= first;
            self.events.pop_front();
        }
    }

    /// What is left, the first one cut to size unless events are to stay whole.
    fn last(mut self, most: u64, whole: bool) -> VecDeque<Event> {
        let excess = self.bytes.saturating_sub(most);
        let output = self.events.iter_mut().find_map(|event| match &mut event.body {
            EventBody::Output { offset, data, .. } => Some((offset, data)),
            _ => None,
        });
        if let (Some((offset, data)), false) = (output, whole) {
            let cut = usize::try_from(excess).unwrap_or(usize::MAX).min(data.len());
            *offset += cut as u64;
            *data = data.slice(cut..);
        }
        self.events
    }
}

fn length(event: &Event) -> u64 {
    match &event.body {
        EventBody::Output { data, .. } => data.len() as u64,
        _ => 0,
    }
}
