//! Looking after a database by hand: is it sound, make it small, take everything out.

use std::io::{self, Write};
use std::path::Path;

use provost_actors::record::TerminalRecord;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{BUSY_TIMEOUT, DATABASE_NAME, Reader, SCHEMA_VERSION, StoreError, schema, text};

/// All tables, in the order in which rows may be put back.
const TABLES: [&str; 10] = [
    "sessions",
    "processes",
    "records",
    "denials",
    "job_specs",
    "job_groups",
    "jobs",
    "job_attempts",
    "job_events",
    "job_notices",
];
/// Columns that hold JSON.
const JSON_COLUMNS: [&str; 7] = [
    "labels",
    "argv",
    "record",
    "target",
    "spec",
    "after_jobs",
    "retry",
];

/// What a look at everything found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// The version of its tables.
    pub schema: u32,
    /// How many sessions there are.
    pub sessions: i64,
    /// How many processes.
    pub processes: i64,
    /// How many records.
    pub records: i64,
    /// How many denials.
    pub denials: i64,
    /// What is wrong, in words; bounded.
    pub problems: Vec<String>,
}

impl Reader {
    /// Looks at every page, index, reference and record.
    ///
    /// # Errors
    /// It is so damaged that nothing can be said, or cannot be read.
    pub fn check(&self) -> Result<Checked, StoreError> {
        let checked = (|| {
            let view = self.connection.unchecked_transaction()?;
            let texts = |sql: &str| -> rusqlite::Result<Vec<String>> {
                view.prepare(sql)?.query_map([], |row| row.get(0))?.collect()
            };
            let mut problems = texts("PRAGMA integrity_check")?;
            problems.retain(|line| line != "ok");
            problems.extend(texts(
                "SELECT 'a row of ' || \"table\" || ' belongs to something that is not there'
                 FROM pragma_foreign_key_check LIMIT 100",
            )?);
            problems.extend(texts(
                "SELECT 'process ' || id || ' is sealed and has no record' FROM processes
                 WHERE state = 'sealed' AND id NOT IN (SELECT process FROM records) LIMIT 100",
            )?);
            let mut records = view.prepare("SELECT process, record FROM records")?;
            let mut rows = records.query([])?;
            while let Some(row) = rows.next()? {
                if let Err(error) = text::from_json::<TerminalRecord>(row, 1)
                    && problems.len() < 400
                {
                    problems.push(format!(
                        "the record of {} cannot be read: {error}",
                        row.get::<_, String>(0)?
                    ));
                }
            }
            let count = |table: &str| {
                view.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))
            };
            Ok(Checked {
                schema: SCHEMA_VERSION,
                sessions: count("sessions")?,
                processes: count("processes")?,
                records: count("records")?,
                denials: count("denials")?,
                problems,
            })
        })();
        checked.map_err(|error| StoreError::of(&self.path, "look at everything", error))
    }

    /// Writes every row as a line of JSON, with its table's name under `table`, all as of one moment.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn export(&self, to: &mut impl Write) -> Result<io::Result<()>, StoreError> {
        let exported = (|| {
            let view = self.connection.unchecked_transaction()?;
            for table in TABLES {
                let mut statement = view.prepare(&format!("SELECT * FROM {table}"))?;
                let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
                let mut rows = statement.query([])?;
                while let Some(row) = rows.next()? {
                    let mut line = format!("{{\"table\":{}", text::json(&table));
                    for (column, name) in names.iter().enumerate() {
                        line += &format!(",{}:{}", text::json(name), value(name, row.get_ref(column)?));
                    }
                    line += "}\n";
                    if let Err(error) = to.write_all(line.as_bytes()) {
                        return Ok(Err(error));
                    }
                }
            }
            Ok(to.flush())
        })();
        exported.map_err(|error| StoreError::of(&self.path, "export rows", error))
    }
}

fn value(column: &str, value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => text::json(&number),
        ValueRef::Text(text) => {
            let text = String::from_utf8_lossy(text);
            let is_json =
                JSON_COLUMNS.contains(&column) && serde_json::from_str::<&RawValue>(&text).is_ok();
            if is_json {
                text.into_owned()
            } else {
                text::json(&text)
            }
        }
        ValueRef::Blob(_) | ValueRef::Null => "null".to_owned(),
    }
}

/// Makes the database of a state directory as small as it can be; false if there is none. A daemon waits meanwhile.
///
/// # Errors
/// It cannot be written, another program holds it, there is no room for a second copy, or another program made it.
pub fn vacuum(state_dir: &Path) -> Result<bool, StoreError> {
    let Some(reader) = Reader::open(state_dir)? else {
        return Ok(false);
    };
    drop(reader);
    let path = state_dir.join(DATABASE_NAME);
    let say = |error| StoreError::of(&path, "make smaller what is", error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(&path, flags).map_err(say)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(say)?;
    schema::version(&connection, &path)?;
    connection.execute_batch("VACUUM").map_err(say)?;
    connection
        .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
        .map_err(say)?;
    Ok(true)
}
