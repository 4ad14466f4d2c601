//! What became of each item, as one row: of CSV, or as a line of JSON.

use std::io::{self, Write};
use std::path::Path;

use provost_actors::reported::ReportedValue;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use super::items::Item;

/// What became of an item.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Row {
    /// Its number, from 1.
    pub item: usize,
    /// How it ended: the outcome of its job.
    pub outcome: String,
    /// Why, in words, where the outcome alone does not say it.
    pub reason: Option<String>,
    /// The exit code of its command.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<String>,
    /// Its command exited with 0, and nothing else.
    pub succeeded: bool,
    /// Something was denied to it.
    pub denied: bool,
    /// How often it was tried.
    pub attempts: u32,
    /// How long the last attempt ran.
    pub duration_ms: u64,
    /// What it wrote to standard output without the last line feeds, or the path of the file that has it.
    pub output: Option<String>,
    /// How many bytes it wrote to standard output.
    pub output_bytes: Option<u64>,
    /// The result that it reported.
    pub result: Option<ReportedValue>,
    /// Why there is none.
    pub result_error: Option<String>,
    /// Its job.
    pub job: Option<String>,
    /// The process of the last attempt.
    pub process: Option<String>,
}

/// The columns of a row of CSV behind those of the item.
const COLUMNS: [&str; 11] = [
    "outcome",
    "reason",
    "exit_code",
    "signal",
    "denied",
    "attempts",
    "duration_ms",
    "output",
    "output_bytes",
    "result",
    "result_error",
];

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// With a header: the item's columns, and behind them what became of it.
    Csv,
    /// One object a line: `item`, `input` and what became of it.
    JsonLines,
}

impl Format {
    /// The one that the name of a file says.
    ///
    /// # Errors
    /// It says none; the error says what would.
    pub fn of(path: &Path) -> Result<Self, String> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("csv") => Ok(Self::Csv),
            Some("jsonl" | "ndjson") => Ok(Self::JsonLines),
            _ => Err(format!(
                "{}: the name says how it is written; end it in .csv or .jsonl",
                path.display()
            )),
        }
    }
}

/// Writes rows.
#[derive(Debug)]
pub struct Writer<'a, W: Write> {
    to: To<W>,
    columns: &'a [String],
}

#[derive(Debug)]
enum To<W: Write> {
    Csv(Box<csv::Writer<W>>),
    JsonLines(W),
}

impl<'a, W: Write> Writer<'a, W> {
    /// Begins: with the header, where the format has one. A column of the item's keeps its name; ours is called `provost_…` where
    /// an item has one of that name.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(to: W, format: Format, columns: &'a [String]) -> io::Result<Self> {
        let to = match format {
            Format::JsonLines => To::JsonLines(to),
            Format::Csv => {
                let mut to = csv::Writer::from_writer(to);
                let own = COLUMNS.map(|name| {
                    let mut name = name.to_owned();
                    while columns.contains(&name) {
                        name.insert_str(0, "provost_");
                    }
                    name
                });
                to.write_record(columns.iter().chain(&own))?;
                To::Csv(Box::new(to))
            }
        };
        Ok(Self { to, columns })
    }

    /// Writes the next one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn row(&mut self, item: &Item, row: &Row) -> io::Result<()> {
        match &mut self.to {
            To::Csv(to) => {
                let mut record = csv::StringRecord::new();
                for column in 0..self.columns.len() {
                    record.push_field(item.cell(column).map_or("", |cell| &cell.text));
                }
                let number = |number: Option<u64>| number.map(|number| number.to_string());
                for field in [
                    Some(row.outcome.clone()),
                    row.reason.clone(),
                    row.exit_code.map(|code| code.to_string()),
                    row.signal.clone(),
                    Some(row.denied.to_string()),
                    Some(row.attempts.to_string()),
                    number(Some(row.duration_ms)),
                    row.output.clone(),
                    number(row.output_bytes),
                    row.result.as_ref().map(|result| result.as_json().to_owned()),
                    row.result_error.clone(),
                ] {
                    record.push_field(&field.unwrap_or_default());
                }
                to.write_record(&record)?;
            }
            To::JsonLines(to) => {
                let columns = self.columns;
                let input = Input { item, columns };
                let line = Line { input, row };
                serde_json::to_writer(&mut *to, &line)?;
                to.write_all(b"\n")?;
            }
        }
        Ok(())
    }

    /// Ends: everything is written.
    ///
    /// # Errors
    /// It cannot be.
    pub fn finish(self) -> io::Result<W> {
        match self.to {
            To::Csv(to) => to.into_inner().map_err(|error| error.into_error()),
            To::JsonLines(mut to) => {
                to.flush()?;
                Ok(to)
            }
        }
    }
}

/// A line of JSON.
struct Line<'a> {
    input: Input<'a>,
    row: &'a Row,
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let row = self.row;
        let mut line = serializer.serialize_map(None)?;
        line.serialize_entry("item", &row.item)?;
        line.serialize_entry("input", &self.input)?;
        line.serialize_entry("outcome", &row.outcome)?;
        line.serialize_entry("reason", &row.reason)?;
        line.serialize_entry("exit_code", &row.exit_code)?;
        line.serialize_entry("signal", &row.signal)?;
        line.serialize_entry("succeeded", &row.succeeded)?;
        line.serialize_entry("denied", &row.denied)?;
        line.serialize_entry("attempts", &row.attempts)?;
        line.serialize_entry("duration_ms", &row.duration_ms)?;
        line.serialize_entry("output", &row.output)?;
        line.serialize_entry("output_bytes", &row.output_bytes)?;
        line.serialize_entry("result", &row.result)?;
        line.serialize_entry("result_error", &row.result_error)?;
        line.serialize_entry("job", &row.job)?;
        line.serialize_entry("process", &row.process)?;
        line.end()
    }
}

/// What an item is, by its columns.
struct Input<'a> {
    item: &'a Item,
    columns: &'a [String],
}

impl Serialize for Input<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut input = serializer.serialize_map(None)?;
        for (column, name) in self.columns.iter().enumerate() {
            let Some(cell) = self.item.cell(column) else {
                continue;
            };
            match serde_json::from_str::<&RawValue>(&cell.text) {
                Ok(json) if cell.json => input.serialize_entry(name, json)?,
                _ => input.serialize_entry(name, &cell.text)?,
            }
        }
        input.end()
    }
}

#[cfg(test)]
#[path = "rows/tests.rs"]
mod tests;
