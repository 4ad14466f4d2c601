//! What a command is run for: arguments, lines, JSON lines or rows of CSV. All of them are read before anything starts.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufRead, Read};

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

/// The longest item, in bytes.
pub(super) const ITEM_BYTES_MAX: usize = 1 << 20;
/// Items of a map.
pub(super) const ITEMS_MAX: usize = 1_000_000;
/// The column of items that have no names for their parts.
pub(super) const ITEM: &str = "item";

/// How a stream of bytes is read as items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Each line is an item; empty ones are none.
    Lines,
    /// What stands between NUL bytes is an item.
    Nul,
    /// Each line is a JSON value; the members of an object are its columns. Blank lines are no items.
    JsonLines,
    /// CSV as RFC 4180 has it.
    Csv {
        /// Between fields.
        delimiter: u8,
        /// The first row names the columns; else they are called `1`, `2` …
        header: bool,
    },
}

/// Items, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Items {
    /// The names of columns, each once, in the order in which they came.
    pub columns: Vec<String>,
    /// One item each.
    pub list: Vec<Item>,
}

/// One item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// What it has in each column. Later ones than it has cells for are not there.
    pub cells: Vec<Option<Cell>>,
    /// All of it as one argument, where that is not its only cell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole: Option<String>,
}

/// What an item has in a column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// As an argument.
    pub text: String,
    /// The text is JSON, and no string.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub json: bool,
}

impl Cell {
    fn text(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            json: false,
        }
    }
}

impl Item {
    fn plain(text: impl Into<String>) -> Self {
        Self {
            cells: vec![Some(Cell::text(text))],
            whole: None,
        }
    }

    /// What it has in this column.
    pub fn cell(&self, column: usize) -> Option<&Cell> {
        self.cells.get(column)?.as_ref()
    }

    /// All of it as one argument.
    pub fn whole(&self) -> &str {
        match (&self.whole, self.cells.first()) {
            (Some(whole), _) => whole,
            (None, Some(Some(cell))) => &cell.text,
            (None, _) => "",
        }
    }
}

/// What is wrong with the items, and where.
#[derive(Debug, thiserror::Error)]
#[error("{source_name}{}: {kind}", place(*.line))]
pub struct ItemError {
    /// The file, or what else they come from.
    pub source_name: String,
    /// From 1; absent where it is about none.
    pub line: Option<u64>,
    /// What.
    pub kind: ItemErrorKind,
}

fn place(line: Option<u64>) -> String {
    line.map(|line| format!(", line {line}")).unwrap_or_default()
}

/// What is wrong with an item.
#[derive(Debug, thiserror::Error)]
pub enum ItemErrorKind {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(io::Error),
    /// Only text can be an argument here.
    #[error("it is not UTF-8; convert it first, for example with iconv")]
    NotUtf8,
    /// The file is in another encoding.
    #[error("it is UTF-16; convert it to UTF-8 first, for example with iconv -f UTF-16 -t UTF-8")]
    Utf16,
    /// No argument can have one.
    #[error("it has a NUL byte, which no argument can have")]
    Nul,
    /// It is too long.
    #[error("it has more than {ITEM_BYTES_MAX} bytes; give the command a path to read instead")]
    TooLong,
    /// There are too many.
    #[error("there are more than {ITEMS_MAX} items; split them")]
    TooMany,
    /// There is no header.
    #[error("it is empty: there is no header; with --no-header the columns are called 1, 2 …")]
    NoHeader,
    /// Two columns have one name.
    #[error("two columns are called {0:?}; name each only once")]
    Twice(String),
    /// It has more or less fields than the header.
    #[error("it has {found} fields, and the header {expected}; is a quote or a delimiter missing?")]
    Ragged {
        /// The header's.
        expected: u64,
        /// Its.
        found: u64,
    },
    /// It is no JSON.
    #[error("it is no JSON: {0}")]
    Json(serde_json::Error),
}

impl Items {
    /// Items that are arguments.
    ///
    /// # Errors
    /// There are too many.
    pub fn of_arguments(arguments: Vec<String>) -> Result<Self, ItemError> {
        let mut items = Collected::new("the items behind `:::`", vec![ITEM.to_owned()]);
        for argument in arguments {
            items.push(None, Item::plain(argument))?;
        }
        Ok(items.items)
    }

    /// Reads all items. `name` is that of the source, for errors.
    ///
    /// # Errors
    /// The first thing that is wrong with them, with its line.
    pub fn read(name: &str, source: Source, from: impl Read) -> Result<Self, ItemError> {
        let mut from = io::BufReader::with_capacity(64 << 10, from);
        if let Err(kind) = skip_mark(&mut from) {
            return Err(error(name, None, kind));
        }
        match source {
            Source::Lines => lines(name, b'\n', from),
            Source::Nul => lines(name, 0, from),
            Source::JsonLines => json_lines(name, from),
            Source::Csv { delimiter, header } => csv_rows(name, delimiter, header, from),
        }
    }
}

fn error(name: &str, line: Option<u64>, kind: ItemErrorKind) -> ItemError {
    ItemError {
        source_name: name.to_owned(),
        line,
        kind,
    }
}

/// Skips a mark of UTF-8 at the beginning, and refuses those of UTF-16.
fn skip_mark(from: &mut impl BufRead) -> Result<(), ItemErrorKind> {
    let start = from.fill_buf().map_err(ItemErrorKind::Read)?;
    if start.starts_with(b"\xff\xfe") || start.starts_with(b"\xfe\xff") {
        return Err(ItemErrorKind::Utf16);
    }
    if start.starts_with(b"\xef\xbb\xbf") {
        from.consume(3);
    }
    Ok(())
}

/// Items as they come in.
struct Collected<'a> {
    name: &'a str,
    items: Items,
}

impl<'a> Collected<'a> {
    fn new(name: &'a str, columns: Vec<String>) -> Self {
        let items = Items {
            columns,
            list: Vec::new(),
        };
        Self { name, items }
    }

    fn push(&mut self, line: Option<u64>, item: Item) -> Result<(), ItemError> {
        let say = |kind| Err(error(self.name, line, kind));
        let texts = item.cells.iter().flatten().map(|cell| &cell.text);
        let (mut bytes, mut nul) = (0, false);
        for text in texts.chain(&item.whole) {
            bytes = text.len().max(bytes);
            nul |= text.contains('\0');
        }
        if nul {
            return say(ItemErrorKind::Nul);
        }
        if bytes > ITEM_BYTES_MAX {
            return say(ItemErrorKind::TooLong);
        }
        if self.items.list.len() >= ITEMS_MAX {
            return say(ItemErrorKind::TooMany);
        }
        self.items.list.push(item);
        Ok(())
    }
}

/// Calls back with each line that is not blank, without its end.
fn each_line(
    name: &str,
    end: u8,
    mut from: impl BufRead,
    mut take: impl FnMut(u64, &str) -> Result<(), ItemError>,
) -> Result<(), ItemError> {
    let mut bytes = Vec::new();
    for line in 1.. {
        let say = |kind| Err(error(name, Some(line), kind));
        bytes.clear();
        // One more than it may have, and its end.
        let mut bounded = (&mut from).take(ITEM_BYTES_MAX as u64 + 2);
        match bounded.read_until(end, &mut bytes) {
            Ok(0) => break,
            Ok(_) => {}
            Err(why) => return say(ItemErrorKind::Read(why)),
        }
        if bytes.last() == Some(&end) {
            bytes.pop();
            if end == b'\n' && bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        if bytes.len() > ITEM_BYTES_MAX {
            return say(ItemErrorKind::TooLong);
        }
        match std::str::from_utf8(&bytes) {
            Ok("") => {}
            Ok(text) => take(line, text)?,
            Err(_) => return say(ItemErrorKind::NotUtf8),
        }
    }
    Ok(())
}

fn lines(name: &str, end: u8, from: impl BufRead) -> Result<Items, ItemError> {
    let mut items = Collected::new(name, vec![ITEM.to_owned()]);
    each_line(name, end, from, |line, text| {
        items.push(Some(line), Item::plain(text))
    })?;
    Ok(items.items)
}

fn json_lines(name: &str, from: impl BufRead) -> Result<Items, ItemError> {
    let mut items = Collected::new(name, Vec::new());
    let mut known = HashMap::new();
    each_line(name, b'\n', from, |line, text| {
        let text = text.trim();
        if text.is_empty() {
            return Ok(());
        }
        let say = |why| error(name, Some(line), why);
        let json = |why| say(ItemErrorKind::Json(why));
        let mut cells = Vec::new();
        let mut put = |name: String, cell| {
            let next = known.len();
            let at = *known.entry(name.clone()).or_insert(next);
            if at == next {
                items.items.columns.push(name.clone());
            }
            if cells.len() <= at {
                cells.resize_with(at + 1, || None);
            }
            match cells[at].replace(cell) {
                None => Ok(()),
                Some(_) => Err(say(ItemErrorKind::Twice(name))),
            }
        };
        let whole = if text.starts_with('{') {
            let Members(members) = serde_json::from_str(text).map_err(json)?;
            for (name, value) in members {
                put(name, cell(&value).map_err(json)?)?;
            }
            Some(text.to_owned())
        } else {
            let value: Box<RawValue> = serde_json::from_str(text).map_err(json)?;
            put(ITEM.to_owned(), cell(&value).map_err(json)?)?;
            // The column of such items need not be the first.
            cells.first().is_none_or(Option::is_none).then(|| {
                let last = cells.last().and_then(Option::as_ref);
                last.map(|cell| cell.text.clone()).unwrap_or_default()
            })
        };
        items.push(Some(line), Item { cells, whole })
    })?;
    Ok(items.items)
}

/// A string as its text, anything else as it is written.
fn cell(value: &RawValue) -> Result<Cell, serde_json::Error> {
    Ok(match value.get().starts_with('"') {
        true => Cell::text(serde_json::from_str::<String>(value.get())?),
        false => Cell {
            text: value.get().to_owned(),
            json: true,
        },
    })
}

/// The members of an object, in their order.
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(All)
    }
}

fn csv_rows(name: &str, delimiter: u8, header: bool, from: impl Read) -> Result<Items, ItemError> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .has_headers(header)
        .from_reader(from);
    let mut columns = Vec::new();
    if header {
        let names = reader.headers().map_err(|why| of_csv(name, why))?;
        if names.is_empty() {
            return Err(error(name, None, ItemErrorKind::NoHeader));
        }
        columns = names.iter().map(str::to_owned).collect();
        let mut sorted: Vec<&String> = columns.iter().collect();
        sorted.sort();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(error(name, Some(1), ItemErrorKind::Twice(pair[0].clone())));
        }
    }
    let mut items = Collected::new(name, columns);
    for row in reader.records() {
        let row = row.map_err(|why| of_csv(name, why))?;
        let line = row.position().map(csv::Position::line);
        if row.as_slice().len() > ITEM_BYTES_MAX {
            return Err(error(name, line, ItemErrorKind::TooLong));
        }
        if items.items.columns.is_empty() {
            items.items.columns = (1..=row.len()).map(|number| number.to_string()).collect();
        }
        let whole = as_object(&items.items.columns, &row);
        let cells = row.iter().map(|field| Some(Cell::text(field))).collect();
        let whole = Some(whole);
        items.push(line, Item { cells, whole })?;
    }
    Ok(items.items)
}

/// A row as an object, its members in the order of the columns.
fn as_object(columns: &[String], row: &csv::StringRecord) -> String {
    let member = |(name, field): (&String, &str)| {
        let (name, field) = (
            serde_json::Value::from(name.as_str()),
            serde_json::Value::from(field),
        );
        format!("{name}:{field}")
    };
    let members: Vec<String> = columns.iter().zip(row).map(member).collect();
    format!("{{{}}}", members.join(","))
}

fn of_csv(name: &str, why: csv::Error) -> ItemError {
    let line = why.position().map(csv::Position::line);
    let kind = match why.into_kind() {
        csv::ErrorKind::Io(why) => ItemErrorKind::Read(why),
        csv::ErrorKind::Utf8 { .. } => ItemErrorKind::NotUtf8,
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => ItemErrorKind::Ragged {
            expected: expected_len,
            found: len,
        },
        other => ItemErrorKind::Read(io::Error::other(format!("{other:?}"))),
    };
    error(name, line, kind)
}

#[cfg(test)]
#[path = "items/tests.rs"]
mod tests;
