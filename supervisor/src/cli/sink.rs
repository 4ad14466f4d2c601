//! Where the events of a run go: through, and to files.

use std::io::{self, Write};
use std::path::PathBuf;

use provost_actors::event::{Event, EventBody, StreamName};
use provost_actors::record::TerminalRecord;

use super::config::Reporting;
use super::report_file::ReportFile;

/// Where events go.
pub(super) struct Sink {
    stdout: Option<io::Stdout>,
    stderr: Option<io::Stderr>,
    json: bool,
    events: Option<ReportFile>,
    record: Option<ReportFile>,
    failure: Option<String>,
}

impl Sink {
    /// Opens every file before anything runs.
    pub(super) fn open(reporting: &Reporting) -> Result<Self, String> {
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
    pub(super) fn take(&mut self, event: &Event) -> Vec<StreamName> {
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
        // Nobody but a reader that does not have the pace, or came late, is told of gaps.
        if let EventBody::Gap { stream, bytes, .. } = &event.body {
            self.failure.get_or_insert(format!(
                "{bytes} bytes of {stream} were dropped before they could be read"
            ));
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
    pub(super) fn finish(&mut self, record: &TerminalRecord) -> Result<(), String> {
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
