//! Questions about records, as people ask them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use provost_actors::record::Outcome;
use rusqlite::types::Value;
use rusqlite::{Row, params_from_iter};

use super::{Reader, StoreError, text};

/// The shortest part of an id that is looked for.
const ID_PART_MIN: usize = 4;

/// Which records. Everything that is said must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordQuery {
    /// Only these processes: ids, beginnings or ends of ids (four characters or more), or names.
    pub processes: Vec<String>,
    /// Only what ended then or later.
    pub since: Option<Timestamp>,
    /// Only what ended before.
    pub until: Option<Timestamp>,
    /// Only these outcomes.
    pub outcomes: Vec<Outcome>,
    /// Only what has all these labels.
    pub labels: BTreeMap<String, String>,
    /// Only what belonged to the sessions of this id, part of an id, or name.
    pub session: Option<String>,
    /// Only what was denied something.
    pub denied: bool,
    /// Only what did not exit with 0 by itself.
    pub failed: bool,
    /// Of these the ones that ended last.
    pub last: Option<u64>,
}

/// What is known of a process that has ended: a row, as it stands in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordRow {
    /// The process.
    pub process: String,
    /// The session it belonged to.
    pub session: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Its labels, a JSON object.
    pub labels: String,
    /// How it ended.
    pub outcome: String,
    /// Its exit code.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<String>,
    /// It exited with 0.
    pub succeeded: bool,
    /// At least one attempt was denied.
    pub denied: bool,
    /// When it started.
    pub started_at: Option<String>,
    /// When it ended.
    pub ended_at: String,
    /// How long it ran.
    pub duration_ms: i64,
    /// How much it wrote.
    pub output_bytes: i64,
    /// How many denials there were.
    pub denials_total: i64,
    /// The whole record, as JSON.
    pub record: String,
}

impl Reader {
    /// Shows the records that are asked for, in the order of their ends, one by one, until `see` says false.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn records(
        &self,
        query: &RecordQuery,
        mut see: impl FnMut(RecordRow) -> bool,
    ) -> Result<(), StoreError> {
        let (sql, values) = query.sql();
        let shown = (|| {
            let mut statement = self.connection.prepare(&sql)?;
            let mut rows = statement.query(params_from_iter(values))?;
            while let Some(row) = rows.next()? {
                if !see(read(row)?) {
                    break;
                }
            }
            Ok(())
        })();
        shown.map_err(|error| StoreError::of(&self.path, "read records", error))
    }
}

impl RecordQuery {
    fn sql(&self) -> (String, Vec<Value>) {
        let mut wanted = Wanted::default();
        if let Some(since) = &self.since {
            wanted.that("r.ended_at >= ?", [text::time(since)]);
        }
        if let Some(until) = &self.until {
            wanted.that("r.ended_at < ?", [text::time(until)]);
        }
        if !self.outcomes.is_empty() {
            wanted.any(
                "r.outcome = ?",
                self.outcomes.iter().map(|outcome| vec![text::word(outcome)]),
            );
        }
        for (key, value) in &self.labels {
            let has = "EXISTS (SELECT 1 FROM json_each(p.labels) WHERE key = ? AND value = ?)";
            wanted.that(has, [key.clone(), value.clone()]);
        }
        if let Some(session) = &self.session {
            let named = "p.session IN (SELECT id FROM sessions WHERE name = ?)";
            wanted.any(&format!("({named} OR {})", is("p.session")), [texts(session)]);
        }
        if !self.processes.is_empty() {
            let named = format!("(p.name = ? OR {})", is("p.id"));
            wanted.any(&named, self.processes.iter().map(|text| texts(text)));
        }
        if self.denied {
            wanted.that("r.denied", []);
        }
        if self.failed {
            wanted.that("NOT r.succeeded", []);
        }
        let mut values = wanted.values;
        let conditions = match wanted.conditions.is_empty() {
            true => "TRUE".to_owned(),
            false => wanted.conditions.join(" AND "),
        };
        let last = self.last.map(|last| {
            values.push(text::integer(last).into());
            " LIMIT ?"
        });
        // The last ones are found first, so that only those are read whole.
        let sql = format!(
            "SELECT p.id, p.session, p.name, p.argv, p.labels, r.outcome, r.exit_code, r.signal, r.succeeded, r.denied,
                    r.started_at, r.ended_at, r.duration_ms, r.output_bytes, r.denials_total, r.record
             FROM (SELECT r.process, r.ended_at FROM records r JOIN processes p ON p.id = r.process
                   WHERE {conditions} ORDER BY r.ended_at DESC, r.process DESC{}) AS found
             JOIN records r ON r.process = found.process JOIN processes p ON p.id = found.process
             ORDER BY found.ended_at, found.process",
            last.unwrap_or_default()
        );
        (sql, values)
    }
}

#[derive(Default)]
struct Wanted {
    conditions: Vec<String>,
    values: Vec<Value>,
}

impl Wanted {
    fn that<const N: usize>(&mut self, condition: &str, values: [String; N]) {
        self.conditions.push(condition.to_owned());
        self.values.extend(values.map(Value::from));
    }

    fn any(&mut self, condition: &str, of: impl IntoIterator<Item = Vec<String>>) {
        let mut conditions = Vec::new();
        for values in of {
            conditions.push(condition);
            self.values.extend(values.into_iter().map(Value::from));
        }
        self.conditions.push(format!("({})", conditions.join(" OR ")));
    }
}

/// That an id is meant by three texts: the whole, its beginning, its end.
fn is(id: &str) -> String {
    format!("{id} = ? OR {id} LIKE ? || '%' OR {id} LIKE '%' || ?")
}

/// A name, and the three texts of [`is`].
fn texts(text: &str) -> Vec<String> {
    let part = text.len() >= ID_PART_MIN && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    // No id has an `x`.
    let part = if part { text } else { "x" };
    vec![text.to_owned(), text.to_owned(), part.to_owned(), part.to_owned()]
}

fn read(row: &Row<'_>) -> rusqlite::Result<RecordRow> {
    Ok(RecordRow {
        process: row.get(0)?,
        session: row.get(1)?,
        name: row.get(2)?,
        argv: text::from_json(row, 3)?,
        labels: row.get(4)?,
        outcome: row.get(5)?,
        exit_code: row.get(6)?,
        signal: row.get(7)?,
        succeeded: row.get(8)?,
        denied: row.get(9)?,
        started_at: row.get(10)?,
        ended_at: row.get(11)?,
        duration_ms: row.get(12)?,
        output_bytes: row.get(13)?,
        denials_total: row.get(14)?,
        record: row.get(15)?,
    })
}
