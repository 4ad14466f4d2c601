//! What is wrong with a policy file, where, and what to do.

use std::fmt;
use std::ops::Range;

/// An error in a policy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyFileError {
    /// The file as it was named.
    pub file: String,
    /// Line and column, from 1; absent where the file could not be read.
    pub place: Option<(usize, usize)>,
    /// The key, as in `files.write[2]`; empty where it is not about one.
    pub key: String,
    /// What is wrong.
    pub why: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl std::error::Error for PolicyFileError {}

impl fmt::Display for PolicyFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if let Some((line, column)) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.why)?;
        match &self.help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

impl PolicyFileError {
    /// An error about a file as a whole.
    pub(crate) fn file(file: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            place: None,
            key: String::new(),
            why: why.into(),
            help: None,
        }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// A file's name and text, for errors that name lines.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) file: String,
    pub(crate) text: String,
}

impl Text {
    /// Line and column of a byte, from 1; columns count characters.
    pub(crate) fn place(&self, byte: usize) -> (usize, usize) {
        let before = self.text.get(..byte).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.matches('\n').count() + 1;
        (line, before[line_start..].chars().count() + 1)
    }

    pub(crate) fn error(
        &self,
        span: Range<usize>,
        key: &str,
        why: impl Into<String>,
    ) -> PolicyFileError {
        PolicyFileError {
            place: Some(self.place(span.start)),
            key: key.to_owned(),
            ..PolicyFileError::file(&self.file, why)
        }
    }
}
