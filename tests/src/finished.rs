//! What a `provost run` left behind.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use serde_json::Value;

use crate::{Wanted, record};

/// A `provost run` that has ended. Its `Display` is everything it said, for failure messages.
#[derive(Debug)]
pub struct Finished {
    shown: String,
    /// The exit code, unless a signal ended `provost` itself.
    pub code: Option<i32>,
    /// The signal that ended `provost` itself.
    pub signal: Option<i32>,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
    /// From the start of `provost` to its end.
    pub elapsed: Duration,
    record: Option<Value>,
}

impl Finished {
    pub(crate) fn new(
        shown: String,
        status: ExitStatus,
        stdout: Vec<u8>,
        stderr: Vec<u8>,
        record: Option<&Path>,
        elapsed: Duration,
    ) -> Self {
        let mut done = Self {
            shown,
            code: status.code(),
            signal: status.signal(),
            stdout,
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            elapsed,
            record: None,
        };
        // A link that the program planted is not a record.
        let is_file =
            |path: &&Path| std::fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_symlink());
        let text = record
            .filter(is_file)
            .map(std::fs::read_to_string)
            .and_then(Result::ok)
            .filter(|text| !text.is_empty());
        if let Some(text) = text {
            match serde_json::from_str(&text) {
                Ok(value) => done.record = Some(value),
                Err(error) => panic!("the record cannot be read: {error}\n{text}\n{done}"),
            }
        }
        if let Some(value) = &done.record {
            let wrong = record::contradictions(value);
            assert!(
                wrong.is_empty(),
                "the record contradicts itself: {wrong:?}\n{done}"
            );
        }
        done
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The terminal record.
    pub fn record(&self) -> &Value {
        self.record
            .as_ref()
            .unwrap_or_else(|| panic!("no record was written\n{self}"))
    }

    /// Whether a record was written.
    pub fn has_record(&self) -> bool {
        self.record.is_some()
    }

    /// The record's outcome.
    pub fn outcome(&self) -> &str {
        self.record()["outcome"].as_str().unwrap_or("")
    }

    /// The events that `--json` printed.
    pub fn events(&self) -> Vec<Value> {
        let parse = |line: &str| {
            serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("not an event: {line}: {error}\n{self}"))
        };
        self.text().lines().map(parse).collect()
    }

    /// The bytes of one stream, put together from the events, with gaps as they are counted.
    ///
    /// Panics where output and gaps do not cover the stream from its beginning without overlap.
    pub fn stream(&self, name: &str) -> (Vec<u8>, u64) {
        let (mut bytes, mut next, mut dropped) = (Vec::new(), 0, 0);
        for event in self.events().iter().filter(|event| event["stream"] == name) {
            match event["type"].as_str() {
                Some("output") => {
                    let text = event["data"].as_str().unwrap_or("");
                    let data = base64_simd::STANDARD.decode_to_vec(text).expect("base64");
                    assert_eq!(event["offset"], next, "a piece is missing or doubled\n{self}");
                    next += data.len() as u64;
                    bytes.extend(data);
                }
                Some("gap") => {
                    assert_eq!(event["from"], next, "a gap is in the wrong place\n{self}");
                    next = event["to"].as_u64().expect("the gap's end");
                    let lost = event["bytes"].as_u64().expect("the gap's size");
                    assert_eq!(
                        event["from"].as_u64().map(|from| from + lost),
                        Some(next),
                        "\n{self}"
                    );
                    dropped += lost;
                }
                _ => {}
            }
        }
        (bytes, dropped)
    }

    /// What the escape program said of its attempt: `ok`, or the error number's name.
    pub fn result(&self) -> String {
        let text = self.text();
        let line = text.lines().find_map(|line| line.strip_prefix("result: "));
        line.unwrap_or_else(|| panic!("the program did not get to say a result\n{self}"))
            .to_owned()
    }

    /// The denials that the record lists.
    pub fn denials(&self) -> Vec<Value> {
        self.record()["denials"]["first"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    }

    /// The number of denials in the record.
    pub fn denials_total(&self) -> u64 {
        self.record()["denials"]["total"].as_u64().unwrap_or(0)
    }

    /// The listed denial that is as wanted; panics if there is none.
    pub fn denial(&self, wanted: &Wanted) -> Value {
        let found = self.denials().into_iter().find(|denial| wanted.fits(denial));
        let found = found.unwrap_or_else(|| panic!("no denial in the record fits {wanted:?}\n{self}"));
        assert_eq!(self.record()["denied"], true, "\n{self}");
        for field in ["rule", "errno", "certainty"] {
            assert!(
                found[field].as_str().is_some_and(|text| !text.is_empty()),
                "no {field} in {found}\n{self}"
            );
        }
        found
    }

    /// Whether some listed denial is as wanted.
    pub fn has_denial(&self, wanted: &Wanted) -> bool {
        self.denials().iter().any(|denial| wanted.fits(denial))
    }

    /// Asserts that the command ran, succeeded and was refused nothing.
    pub fn assert_harmless(&self) {
        let record = self.record();
        assert_eq!(self.code, Some(0), "\n{self}");
        assert_eq!(record["succeeded"], true, "\n{self}");
        assert_eq!(
            record["denied"], false,
            "a harmless program was refused something\n{self}"
        );
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.shown)?;
        writeln!(
            f,
            "code {:?} signal {:?} after {:?}",
            self.code, self.signal, self.elapsed
        )?;
        let shown = &self.stdout[..self.stdout.len().min(4096)];
        writeln!(f, "stdout: {}", String::from_utf8_lossy(shown))?;
        writeln!(
            f,
            "stderr: {}",
            self.stderr.chars().take(4096).collect::<String>()
        )?;
        match &self.record {
            Some(record) => writeln!(f, "record: {record:#}"),
            None => writeln!(f, "no record"),
        }
    }
}

/// Asserts that a piece of the flood program's output is what belongs at this offset.
pub fn check_pattern(piece: &[u8], offset: u64) {
    for (position, byte) in (offset..).zip(piece) {
        let group = (position / 8).to_le_bytes();
        let expected = group[usize::try_from(position % 8).unwrap_or(0)];
        assert_eq!(*byte, expected, "wrong byte at offset {position}");
    }
}
