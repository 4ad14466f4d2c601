//! `provost records`.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args as ClapArgs;
use jiff::Timestamp;
use provost_actors::record::Outcome;

use super::client::table::{Cell, ago, for_people, id, show};
use super::client::{Reader as Who, print, write};
use super::{CliResult, config, db, output, summary};
use crate::store::{Reader, RecordQuery, RecordRow};
use crate::units;

/// Print records of processes that have ended, the last one last
///
/// They are read from the daemon's database, whether the daemon runs or not. On a terminal ids are shown by their ends.
/// Elsewhere columns are whole, separated by tabs.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  provost records --since 1h
  provost records --failed --label job=7
  provost records --since 2026-01-02T00:00:00Z --until 2026-01-03T00:00:00Z --csv > day.csv
  provost records --denied --json | jq -r '.[].denials.first[].target'
  provost records --limit 1 --json")]
pub(crate) struct RecordsArgs {
    /// Only what ended then or later: RFC 3339, or 5m for five minutes ago
    #[arg(long, value_name = "DURATION|TIME", value_parser = units::moment)]
    since: Option<Timestamp>,
    /// Only what ended before
    #[arg(long, value_name = "DURATION|TIME", value_parser = units::moment)]
    until: Option<Timestamp>,
    /// Only this outcome: exited, signaled, timed_out, idle_timeout, cancelled, replaced, denied, spawn_failed, out_of_memory or
    /// lost; repeatable
    #[arg(long, value_name = "OUTCOME", value_parser = outcome)]
    outcome: Vec<Outcome>,
    /// Only what had this label; repeatable, then all of them
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Only what belonged to this session: its id, a beginning or end of it, or its name
    #[arg(long, value_name = "SESSION")]
    session: Option<String>,
    /// Only what was denied something
    #[arg(long)]
    denied: bool,
    /// Only what did not exit with 0
    #[arg(long)]
    failed: bool,
    /// Of these the ones that ended last
    #[arg(long, short = 'n', value_name = "N")]
    limit: Option<u64>,
    #[command(flatten)]
    state_dir: db::StateDir,
    /// Print a JSON array of whole records
    #[arg(long, conflicts_with_all = ["csv", "quiet"])]
    json: bool,
    /// Print CSV with a line of names
    #[arg(long, conflicts_with = "quiet")]
    csv: bool,
    /// Print ids only
    #[arg(long, short)]
    quiet: bool,
    /// The processes: ids, beginnings or ends of ids, or names
    #[arg(value_name = "ID")]
    processes: Vec<String>,
}

pub(super) fn run(args: RecordsArgs) -> CliResult {
    let query = RecordQuery {
        processes: args.processes.clone(),
        since: args.since,
        until: args.until,
        outcomes: args.outcome.clone(),
        labels: config::labels(&args.label)?,
        session: args.session.clone(),
        denied: args.denied,
        failed: args.failed,
        last: args.limit,
    };
    let reader = args.state_dir.open()?;
    let mut missing = args.processes.clone();
    let mut see = |row: &RecordRow| missing.retain(|text| !is(text, row));
    match &reader {
        Some(reader) if args.json => print_json(reader, &query, &mut see)?,
        Some(reader) if args.csv => print_lines(reader, &query, CSV_HEAD, csv, &mut see)?,
        Some(reader) if args.quiet => {
            print_lines(reader, &query, "", |row| row.process.clone() + "\n", &mut see)?;
        }
        Some(reader) => {
            let mut rows = Vec::new();
            let read = reader.records(&query, |row| {
                see(&row);
                rows.push(cells(&row));
                true
            });
            read.map_err(|error| error.to_string())?;
            show(HEAD, &rows)?;
        }
        None if args.json => {
            print("[]\n")?;
        }
        None if args.csv => {
            print(CSV_HEAD)?;
        }
        None if args.quiet => {}
        None => {
            show(HEAD, &[])?;
        }
    }
    if let Some(missing) = missing.first().filter(|_| reader.is_some()) {
        return Err(format!(
            "there is no record of `{missing}` that fits; it may still run (`provost ps`), or be forgotten already"
        ));
    }
    Ok(0)
}

/// Whether this text means this process; as the database sees it.
fn is(text: &str, row: &RecordRow) -> bool {
    row.name.as_deref() == Some(text) || row.process.starts_with(text) || row.process.ends_with(text)
}

/// Prints while it reads: there may be more than fits into memory.
fn print_lines(
    reader: &Reader,
    query: &RecordQuery,
    head: &str,
    line: impl Fn(&RecordRow) -> String,
    see: &mut impl FnMut(&RecordRow),
) -> Result<(), String> {
    let mut printer = Printer::default();
    printer.put(head);
    let read = reader.records(query, |row| {
        see(&row);
        printer.put(&line(&row))
    });
    read.map_err(|error| error.to_string())?;
    printer.finish()
}

fn print_json(
    reader: &Reader,
    query: &RecordQuery,
    see: &mut impl FnMut(&RecordRow),
) -> Result<(), String> {
    let mut printer = Printer::default();
    let mut before = "[";
    let read = reader.records(query, |row| {
        see(&row);
        let text = format!("{before}{}", row.record);
        before = ",\n";
        printer.put(&text)
    });
    read.map_err(|error| error.to_string())?;
    printer.put(if before == "[" { "[]\n" } else { "]\n" });
    printer.finish()
}

/// Writes to stdout in pieces, until nobody reads any more.
#[derive(Default)]
struct Printer {
    waiting: String,
    failed: Option<String>,
    gone: bool,
}

impl Printer {
    /// Whether anybody wants more.
    fn put(&mut self, text: &str) -> bool {
        self.waiting += text;
        if self.waiting.len() > 64 << 10 {
            self.flush();
        }
        !self.gone && self.failed.is_none()
    }

    fn flush(&mut self) {
        match write(&mut std::io::stdout(), self.waiting.as_bytes()) {
            Ok(who) => self.gone |= who == Who::Gone,
            Err(error) => self.failed = Some(error),
        }
        self.waiting.clear();
    }

    fn finish(mut self) -> Result<(), String> {
        if !self.gone && self.failed.is_none() {
            self.flush();
        }
        self.failed.map_or(Ok(()), Err)
    }
}

const HEAD: [&str; 7] = [
    "PROCESS", "NAME", "OUTCOME", "DENIALS", "ENDED", "TOOK", "COMMAND",
];

fn cells(row: &RecordRow) -> [Cell; 7] {
    let how = match (&row.signal, row.exit_code) {
        (Some(signal), _) => format!("{} {signal}", row.outcome),
        (None, Some(code)) => format!("{} {code}", row.outcome),
        (None, None) => row.outcome.clone(),
    };
    let took = std::time::Duration::from_millis(row.duration_ms.unsigned_abs());
    [
        id(&row.process),
        Cell::new(row.name.as_deref().unwrap_or_default()),
        if row.succeeded {
            Cell::new(how)
        } else {
            Cell::bad(how)
        },
        match row.denied {
            true => Cell::bad(row.denials_total.to_string()),
            false => Cell::new("0"),
        },
        ago(&row.ended_at),
        match for_people() {
            true => Cell::new(humantime::format_duration(took).to_string()),
            false => Cell::new(row.duration_ms.to_string()),
        },
        Cell::new(shell_words::join(&row.argv)),
    ]
}

const CSV_HEAD: &str = "process,session,name,outcome,exit_code,signal,succeeded,denied,started_at,ended_at,duration_ms,\
output_bytes,denials,labels,command\r\n";

/// As RFC 4180 has it.
fn csv(row: &RecordRow) -> String {
    let optional = |text: &Option<String>| text.clone().unwrap_or_default();
    let fields = [
        row.process.clone(),
        optional(&row.session),
        optional(&row.name),
        row.outcome.clone(),
        row.exit_code.map(|code| code.to_string()).unwrap_or_default(),
        optional(&row.signal),
        row.succeeded.to_string(),
        row.denied.to_string(),
        optional(&row.started_at),
        row.ended_at.clone(),
        row.duration_ms.to_string(),
        row.output_bytes.to_string(),
        row.denials_total.to_string(),
        row.labels.clone(),
        shell_words::join(&row.argv),
    ];
    let mut line = String::new();
    for (at, field) in fields.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        // A terminal would do what stands there.
        let field = if for_people() {
            summary::visible(field)
        } else {
            field.clone()
        };
        let _ = match field.contains([',', '"', '\r', '\n']) {
            true => write!(line, "{comma}\"{}\"", field.replace('"', "\"\"")),
            false => write!(line, "{comma}{field}"),
        };
    }
    line + "\r\n"
}

fn outcome(text: &str) -> Result<Outcome, String> {
    serde_json::from_value(text.into()).map_err(|_| {
        "want exited, signaled, timed_out, idle_timeout, cancelled, replaced, denied, spawn_failed, out_of_memory or lost"
            .to_owned()
    })
}

/// That there is no database is no mistake: nothing was recorded yet.
pub(super) fn hint(state_dir: &std::path::Path) {
    let directory: PathBuf = state_dir.to_owned();
    output::note(&format!(
        "there is no database in {}: `provost serve` makes it; --state-dir names another place",
        directory.display()
    ));
}
