//! The command of a map: arguments with places that each item fills.
//!
//! `{name}` stands for a column of the item, `{}` and `{item}` for all of it, `{n}` for its number from 1; a column of the name
//! `item` or `n` comes first. `{{` and `}}` are a brace each. What is put in never becomes more than a part of the one argument
//! that it was put into, and no shell reads it.

use std::path::Path;

use super::items::{ITEM, Item};

/// The number of an item.
const NUMBER: &str = "n";

/// A command with places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandTemplate {
    arguments: Vec<Vec<Part>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Whole,
    Number,
    Column(usize),
}

/// What is wrong with a command as a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// No item has such a thing.
    #[error("{argument:?}: there is no {{{name}}}; there are {known}; write {{{{ for a brace")]
    Unknown {
        /// The argument.
        argument: String,
        /// What stands between the braces.
        name: String,
        /// What may stand there.
        known: String,
    },
    /// A brace without its other.
    #[error("{argument:?}: a brace stands alone; write {{{{ or }}}} for one that is no placeholder")]
    Alone {
        /// The argument.
        argument: String,
    },
    /// Nothing of the items would be used.
    #[error(
        "the command has no placeholder, so that it would be the same for every item; there are {known}"
    )]
    Same {
        /// What may stand there.
        known: String,
    },
    /// What a shell reads as a program.
    #[error(
        "{argument:?}: {shell} would read as commands what an item has there; say {shell} -c '… \"$1\" …' {shell} PLACEHOLDER instead"
    )]
    Shell {
        /// The argument.
        argument: String,
        /// The shell.
        shell: String,
    },
    /// An item has nothing in this column.
    #[error("item {item} has no {name:?}")]
    Missing {
        /// Its number, from 1.
        item: usize,
        /// The column.
        name: String,
    },
}

impl CommandTemplate {
    /// Reads a command as a template. Without any place the item becomes its last argument, if items have one column of no
    /// name of their own.
    ///
    /// # Errors
    /// See [`TemplateError`].
    pub fn parse(argv: &[String], columns: &[String]) -> Result<Self, TemplateError> {
        let mut arguments = argv
            .iter()
            .map(|argument| parts(argument, columns))
            .collect::<Result<Vec<_>, _>>()?;
        if !arguments.iter().any(|parts| has_place(parts)) {
            if columns.len() > 1 || columns.first().is_some_and(|name| name != ITEM) {
                return Err(TemplateError::Same {
                    known: known(columns),
                });
            }
            arguments.push(vec![Part::Whole]);
        }
        if let Some((shell, script)) = script(argv)
            && has_place(&arguments[script])
        {
            return Err(TemplateError::Shell {
                argument: argv[script].clone(),
                shell,
            });
        }
        Ok(Self { arguments })
    }

    /// The command for an item.
    ///
    /// # Errors
    /// The item has nothing in a column that the command wants.
    pub fn expand(
        &self,
        number: usize,
        item: &Item,
        columns: &[String],
    ) -> Result<Vec<String>, TemplateError> {
        let of_part = |text: &mut String, part: &Part| -> Result<(), TemplateError> {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Whole => text.push_str(item.whole()),
                Part::Number => text.push_str(&number.to_string()),
                Part::Column(column) => {
                    let cell = item.cell(*column).ok_or_else(|| TemplateError::Missing {
                        item: number,
                        name: columns[*column].clone(),
                    })?;
                    text.push_str(&cell.text);
                }
            }
            Ok(())
        };
        let argument = |parts: &Vec<Part>| {
            let mut text = String::new();
            parts.iter().try_for_each(|part| of_part(&mut text, part))?;
            Ok(text)
        };
        self.arguments.iter().map(argument).collect()
    }
}

fn has_place(parts: &[Part]) -> bool {
    parts.iter().any(|part| !matches!(part, Part::Text(_)))
}

fn known(columns: &[String]) -> String {
    let mut names: Vec<&str> = columns.iter().map(String::as_str).collect();
    names.retain(|name| !name.is_empty());
    for own in [ITEM, NUMBER] {
        if !names.contains(&own) {
            names.push(own);
        }
    }
    let names: Vec<String> = names.iter().map(|name| format!("{{{name}}}")).collect();
    format!("{} and {{}}", names.join(", "))
}

fn parts(argument: &str, columns: &[String]) -> Result<Vec<Part>, TemplateError> {
    let alone = || TemplateError::Alone {
        argument: argument.to_owned(),
    };
    let (mut parts, mut text, mut rest) = (Vec::new(), String::new(), argument);
    while let Some(at) = rest.find(['{', '}']) {
        text.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            text.push_str(brace);
            rest = after;
            continue;
        }
        let end = match brace {
            "{" => rest.find(['{', '}']).filter(|end| rest[*end..].starts_with('}')),
            _ => None,
        };
        let end = end.ok_or_else(alone)?;
        let name = &rest[..end];
        let part = match columns.iter().position(|column| column == name) {
            _ if name.is_empty() => Part::Whole,
            Some(column) => Part::Column(column),
            None if name == ITEM => Part::Whole,
            None if name == NUMBER => Part::Number,
            None => {
                return Err(TemplateError::Unknown {
                    argument: argument.to_owned(),
                    name: name.to_owned(),
                    known: known(columns),
                });
            }
        };
        if !text.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut text)));
        }
        parts.push(part);
        rest = &rest[end + 1..];
    }
    text.push_str(rest);
    if !text.is_empty() || parts.is_empty() {
        parts.push(Part::Text(text));
    }
    Ok(parts)
}

/// Which argument a shell would read as its program.
fn script(argv: &[String]) -> Option<(String, usize)> {
    let shell = Path::new(argv.first()?).file_name()?.to_str()?;
    if !["sh", "bash", "dash", "zsh", "ksh", "ash", "fish"].contains(&shell) {
        return None;
    }
    let takes = |word: &&String| word.starts_with('-') && !word.starts_with("--") && word.contains('c');
    let option = argv.iter().skip(1).position(|word| takes(&word))? + 1;
    // More options may stand between.
    let behind = argv.iter().enumerate().skip(option + 1);
    let (script, _) = behind
        .into_iter()
        .find(|(_, word)| !word.starts_with(['-', '+']))?;
    Some((shell.to_owned(), script))
}

#[cfg(test)]
#[path = "template/tests.rs"]
mod tests;
