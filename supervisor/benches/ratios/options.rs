//! The flags of the bench.

use crate::Result;

/// What to measure, and how to say it.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) quick: bool,
    pub(crate) json: bool,
    /// One family; all of them when absent.
    pub(crate) only: Option<String>,
    /// Measure again as this user.
    pub(crate) as_user: Option<String>,
    /// Worker threads of the runtime that the library is embedded in, besides the thread that asks.
    pub(crate) workers: usize,
    /// This process is such a repetition: it starts no further ones.
    pub(crate) repetition: bool,
}

impl Options {
    pub(crate) fn parse(words: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            quick: false,
            json: false,
            only: None,
            as_user: None,
            workers: 1,
            repetition: false,
        };
        let mut words = words;
        while let Some(word) = words.next() {
            match word.as_str() {
                "--quick" => options.quick = true,
                "--json" => options.json = true,
                "--only" => options.only = Some(words.next().ok_or("--only wants a family")?),
                "--as-user" => options.as_user = Some(words.next().ok_or("--as-user wants a name")?),
                "--workers" => {
                    let words = words.next().ok_or("--workers wants a number")?;
                    options.workers = words
                        .parse()
                        .map_err(|error| format!("--workers {words}: {error}"))?;
                }
                "--repetition" => options.repetition = true,
                "--bench" => {} // cargo says so to every bench
                other => return Err(format!("{other}: no such option; see the top of main.rs").into()),
            }
        }
        Ok(options)
    }

    pub(crate) fn wants(&self, family: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == family)
    }

    /// So many samples of each side, or a tenth of that.
    pub(crate) fn rounds(&self, full: usize) -> usize {
        if self.quick { (full / 10).max(3) } else { full }
    }
}
