//! What a process wrote, from the daemon.

use std::sync::Arc;

use crate::client::{ClientError, Lasting};
use crate::protocol::{ErrorKind, Events, ProcessRead};
use crate::{EventBody, StreamName, TerminalRecord};

/// What the daemon still has of a process.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// What it wrote to standard output, or to its terminal, as far as that was kept.
    pub(super) stdout: Vec<u8>,
    /// The same of standard error.
    pub(super) stderr: Vec<u8>,
    /// Its record; absent if the process is forgotten, or never was.
    pub(super) record: Option<Arc<TerminalRecord>>,
}

impl Gathered {
    /// How many bytes it wrote to standard output.
    pub(super) fn output_bytes(&self) -> Option<u64> {
        let output = &self.record.as_ref()?.output;
        let of = |stream| output.get(&stream).map(|summary| summary.bytes);
        of(StreamName::Stdout).or_else(|| of(StreamName::Pty)).or(Some(0))
    }
}

/// Reads all that there is of a process that has ended.
pub(super) async fn gather(client: &Lasting, process: &str) -> Result<Gathered, ClientError> {
    let mut gathered = Gathered::default();
    let mut after_seq = 0;
    loop {
        let asked = ProcessRead {
            process: process.to_owned(),
            after_seq,
            ..ProcessRead::default()
        };
        let there: Events = match client.call("process/read", &asked).await {
            Err(ClientError::Refused(error)) if error.data.kind == ErrorKind::NotFound => {
                return Ok(gathered);
            }
            there => there?,
        };
        if there.events.is_empty() {
            return Ok(gathered);
        }
        after_seq = there.next_seq;
        for event in there.events {
            match event.body {
                EventBody::Output { stream, data, .. } => {
                    let to = match stream {
                        StreamName::Stderr => &mut gathered.stderr,
                        StreamName::Stdout | StreamName::Pty => &mut gathered.stdout,
                    };
                    to.extend_from_slice(&data);
                }
                EventBody::Terminal { record } => {
                    gathered.record = Some(record);
                    return Ok(gathered);
                }
                _ => {}
            }
        }
    }
}

/// The longest output in a row, in bytes.
pub(super) const TEXT_BYTES_MAX: usize = 64 << 10;

/// Output as the text of a row: its beginning, without the last line feeds, as `$(…)` gives it to a shell.
pub(super) fn as_text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let end = text.floor_char_boundary(TEXT_BYTES_MAX);
    text[..end].trim_end_matches(['\n', '\r']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_as_text_is_bounded_and_has_no_last_line_feed() {
        assert_eq!(as_text(b"a\nb\r\n\n"), "a\nb");
        assert_eq!(as_text(b"\xff"), "\u{fffd}");
        let long = "ä".repeat(TEXT_BYTES_MAX);
        assert_eq!(as_text(format!("x{long}").as_bytes()).len(), TEXT_BYTES_MAX - 1);
    }
}
