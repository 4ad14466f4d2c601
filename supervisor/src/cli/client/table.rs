//! Lists: aligned and coloured on a terminal, columns between tabs elsewhere.

use std::io::IsTerminal;

use anstyle::{AnsiColor, Style};
use jiff::Timestamp;

use super::print;
use crate::cli::{CliResult, summary};

const HEAD: Style = Style::new().bold();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default();
const PLAIN: Style = Style::new();

/// One cell.
pub(in crate::cli) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// Words that others chose may hold anything; nothing stands for nothing.
    pub(in crate::cli) fn new(text: impl AsRef<str>) -> Self {
        let text = summary::visible(text.as_ref());
        Self {
            text: if text.is_empty() { "-".to_owned() } else { text },
            style: PLAIN,
        }
    }

    pub(in crate::cli) fn good(text: impl AsRef<str>) -> Self {
        Self {
            style: GOOD,
            ..Self::new(text)
        }
    }

    pub(in crate::cli) fn bad(text: impl AsRef<str>) -> Self {
        Self {
            style: BAD,
            ..Self::new(text)
        }
    }
}

/// Whether people look at stdout.
pub(in crate::cli) fn for_people() -> bool {
    std::io::stdout().is_terminal()
}

/// An id: its end, which differs most, for people; all of it for programs.
pub(in crate::cli) fn id(id: impl ToString) -> Cell {
    let id = id.to_string();
    let from = id.len().saturating_sub(12);
    Cell::new(if for_people() { &id[from..] } else { &id })
}

/// A time: how long ago for people; RFC 3339 for programs.
pub(in crate::cli) fn ago(time: &str) -> Cell {
    match time.parse::<Timestamp>() {
        Ok(then) if for_people() => {
            let seconds = Timestamp::now().duration_since(then).as_secs().max(0);
            let seconds = u64::try_from(seconds).unwrap_or_default();
            let shown = humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string();
            // The largest two units say enough.
            let shown: Vec<&str> = shown.split(' ').take(2).collect();
            Cell::new(format!("{} ago", shown.join(" ")))
        }
        _ => Cell::new(time),
    }
}

/// Prints a table; the last column is as long as it likes.
pub(in crate::cli) fn show<const N: usize>(head: [&str; N], rows: &[[Cell; N]]) -> CliResult {
    let mut text = String::new();
    if !for_people() {
        text += &(head.join("\t") + "\n");
        for row in rows {
            let cells: Vec<&str> = row.iter().map(|cell| cell.text.as_str()).collect();
            text += &(cells.join("\t") + "\n");
        }
        return print(&text);
    }
    let colour = anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never;
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].text.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut put = |cells: [(&str, Style); N]| {
        for (column, (cell, style)) in cells.into_iter().enumerate() {
            let padding = match column + 1 == N {
                true => 0,
                false => widths[column] - cell.chars().count() + 2,
            };
            let style = if colour { style } else { PLAIN };
            text += &format!("{style}{cell}{style:#}{:padding$}", "");
        }
        text.push('\n');
    };
    put(head.map(|cell| (cell, HEAD)));
    for row in rows {
        put(row.each_ref().map(|cell| (cell.text.as_str(), cell.style)));
    }
    print(&text)
}
