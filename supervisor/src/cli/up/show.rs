//! What `provost up` shows: the members' output with their names before it, and what happens in the group.

use std::io::{self, Write};

use anstyle::{AnsiColor, Color, Style};
use tokio::sync::mpsc;

use crate::cli::output;
use crate::{Event, EventBody, GroupEvent, ProcessHandle, StreamName};

/// A longer line is shown in pieces, in bytes.
const LINE_BYTES_MAX: usize = 16 << 10;

const COLOURS: [AnsiColor; 6] = [
    AnsiColor::Cyan,
    AnsiColor::Yellow,
    AnsiColor::Green,
    AnsiColor::Magenta,
    AnsiColor::Blue,
    AnsiColor::Red,
];

/// Something to show of one member.
pub(super) enum Shown {
    /// A line of its output, without its end.
    Line(StreamName, Vec<u8>),
    /// An event of its process, as it is.
    Event(Box<Event>),
    /// Words about it.
    Note(String),
}

/// Follows a process to its end, at its reader's pace.
pub(super) async fn follow(
    member: usize,
    process: ProcessHandle,
    json: bool,
    show: mpsc::Sender<(usize, Shown)>,
) {
    let mut lines = Lines::default();
    let mut events = process.events_paced();
    loop {
        let (shown, over) = match events.next().await {
            Ok(Some(event)) if json => (vec![Shown::Event(Box::new(event))], false),
            Ok(Some(event)) => (lines.take(event.body), false),
            Ok(None) => return,
            Err(error) => (vec![Shown::Note(error.to_string())], true),
        };
        for shown in shown {
            if show.send((member, shown)).await.is_err() {
                return;
            }
        }
        if over {
            return;
        }
    }
}

/// The beginnings of lines whose ends have not come yet.
#[derive(Default)]
struct Lines {
    begun: [Vec<u8>; 2],
}

impl Lines {
    fn take(&mut self, body: EventBody) -> Vec<Shown> {
        match body {
            EventBody::Output { stream, data, .. } => {
                let begun = &mut self.begun[usize::from(stream == StreamName::Stderr)];
                let mut lines = Vec::new();
                for piece in data.split_inclusive(|byte| *byte == b'\n') {
                    for piece in piece.chunks(LINE_BYTES_MAX) {
                        begun.extend_from_slice(piece);
                        if begun.ends_with(b"\n") {
                            begun.pop();
                        } else if begun.len() < LINE_BYTES_MAX {
                            continue;
                        }
                        lines.push(Shown::Line(stream, std::mem::take(begun)));
                    }
                }
                lines
            }
            EventBody::Gap { stream, bytes, .. } => {
                vec![Shown::Note(format!(
                    "{bytes} bytes of {stream} were dropped before they could be read"
                ))]
            }
            EventBody::Terminal { record } => {
                let streams = [StreamName::Stdout, StreamName::Stderr];
                let begun = streams.into_iter().zip(&mut self.begun);
                let rest = begun.filter(|(_, line)| !line.is_empty());
                let mut shown: Vec<_> = rest
                    .map(|(stream, line)| Shown::Line(stream, std::mem::take(line)))
                    .collect();
                let denials = record.denials.total;
                if denials > 0 {
                    shown.push(Shown::Note(format!(
                        "was refused {denials} {} ({}); its record lists them",
                        if denials == 1 { "thing" } else { "things" },
                        record.process
                    )));
                }
                shown
            }
            _ => Vec::new(),
        }
    }
}

/// Writes it all, on one thread.
pub(super) struct Screen {
    group: String,
    names: Vec<String>,
    width: usize,
    json: bool,
    quiet: bool,
    colour: [bool; 2],
    /// Nobody reads standard output any more.
    pub(super) gone: bool,
}

impl Screen {
    pub(super) fn new(group: String, names: Vec<String>, json: bool, quiet: bool) -> Self {
        let wants = |choice| choice != anstream::ColorChoice::Never;
        let colour = [
            wants(anstream::AutoStream::choice(&io::stdout())),
            wants(anstream::AutoStream::choice(&io::stderr())),
        ];
        Self {
            width: names.iter().map(String::len).max().unwrap_or(0),
            group,
            names,
            json,
            quiet,
            colour,
            gone: false,
        }
    }

    /// Which member is called so.
    pub(super) fn index(&self, name: &str) -> usize {
        self.names.iter().position(|known| known == name).unwrap_or(0)
    }

    pub(super) fn member(&mut self, member: usize, shown: Shown) {
        match shown {
            Shown::Line(stream, line) => {
                let is_stderr = stream == StreamName::Stderr;
                let name = &self.names[member];
                let colour = COLOURS[member % COLOURS.len()];
                let style = match self.colour[usize::from(is_stderr)] {
                    true => Style::new().fg_color(Some(Color::Ansi(colour))),
                    false => Style::new(),
                };
                let width = self.width;
                let mut whole = format!("{style}{name:width$} |{style:#} ").into_bytes();
                whole.extend_from_slice(&line);
                whole.push(b'\n');
                match is_stderr {
                    true => drop(io::stderr().write_all(&whole)),
                    false => self.write(&whole),
                }
            }
            Shown::Event(event) => {
                if let Ok(line) = serde_json::to_string(&event) {
                    self.write(format!("{line}\n").as_bytes());
                }
            }
            Shown::Note(text) => output::note(&format!("{} {text}", self.names[member])),
        }
    }

    /// Something happened in the group.
    pub(super) fn event(&mut self, event: &GroupEvent) {
        if self.json {
            if let Ok(serde_json::Value::Object(mut fields)) = serde_json::to_value(event) {
                fields.insert("group".to_owned(), self.group.clone().into());
                let now = format!("{:.6}", jiff::Timestamp::now());
                fields.insert("time".to_owned(), now.into());
                let line = serde_json::Value::Object(fields);
                self.write(format!("{line}\n").as_bytes());
            }
            return;
        }
        if let (false, Some(words)) = (self.quiet, words(event)) {
            output::note(&words);
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        let mut stdout = io::stdout();
        if !self.gone && stdout.write_all(bytes).and_then(|()| stdout.flush()).is_err() {
            self.gone = true;
        }
    }
}

fn words(event: &GroupEvent) -> Option<String> {
    Some(match event {
        GroupEvent::MemberStarting {
            member,
            incarnation,
            process,
            ..
        } => match incarnation {
            1 => format!("{member} starts ({process})"),
            _ => format!("{member} starts again ({process})"),
        },
        GroupEvent::MemberReady { member, .. } => format!("{member} is ready"),
        GroupEvent::MemberStopping { member, reason, .. } => format!("{member} is stopped: {reason}"),
        GroupEvent::MemberEnded { member, reason, .. } => format!("{member} has ended: {reason}"),
        GroupEvent::MemberRestarting {
            member,
            delay_ms,
            restarts,
            ..
        } => format!("{member} starts again in {delay_ms} ms (restart {restarts} in the period)"),
        // Said last of all.
        GroupEvent::GroupEnded { .. } => return None,
    })
}
