//! What a map is to do, written down before it begins.
//!
//! ```text
//! <maps>/<id>/plan.json      the command, the limits, where results go
//! <maps>/<id>/items.jsonl    its items
//! <maps>/<id>/journal.jsonl  what is known of them
//! ```
//!
//! The directory is the user's alone and, being below the state directory, hidden from sandboxed programs: what they write is
//! no record of ours.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::halt::HaltRule;
use super::items::{Item, Items};
use crate::protocol::{ProcessStart, RetryRule};

const PLAN: &str = "plan.json";
const ITEMS: &str = "items.jsonl";
const JOURNAL: &str = "journal.jsonl";
/// How long a map that nobody goes on with is kept.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// What a map is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Its id, a UUIDv7.
    pub id: String,
    /// The command as it was written, with its places.
    pub command: Vec<String>,
    /// The names of the items' columns.
    pub columns: Vec<String>,
    /// What every item's process has in common.
    pub spec: ProcessStart,
    /// How many at a time.
    pub at_a_time: usize,
    /// Whether and when items are tried again.
    pub retry: RetryRule,
    /// When it is given up.
    pub halt: Option<HaltRule>,
    /// The file of rows. Absolute.
    pub out: Option<PathBuf>,
    /// The directory of outputs and records. Absolute.
    pub results: Option<PathBuf>,
    /// Outputs are printed in the order of the items.
    pub keep_order: bool,
}

impl Plan {
    /// Its group of jobs.
    pub fn group(&self) -> String {
        format!("map-{}", self.id)
    }

    /// Whether going on with the other one is what this one asks for. What may change between the two is how many run at a
    /// time, and when it is given up.
    fn goes_on_with(&self, other: &Self) -> bool {
        (
            &self.command,
            &self.columns,
            &self.spec.cwd,
            &self.out,
            &self.results,
        ) == (
            &other.command,
            &other.columns,
            &other.spec.cwd,
            &other.out,
            &other.results,
        )
    }
}

/// Maps cannot be written down or found.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A file.
    #[error("cannot keep the map in {}: {error}", .path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// No map has this id.
    #[error("no map {id:?} is kept in {}; `--resume` without an id finds it by its command and items{hint}", .directory.display())]
    Unknown {
        /// The id.
        id: String,
        /// Where it was looked for.
        directory: PathBuf,
        /// What else may be meant.
        hint: &'static str,
    },
    /// More than one map begins so.
    #[error("more than one map begins with {0:?}; say more of the id")]
    Ambiguous(String),
}

/// The maps of a user.
#[derive(Debug, Clone)]
pub struct Maps {
    directory: PathBuf,
}

impl Maps {
    /// Those in this directory, which is made if it is not there. What nobody has gone on with for a month is removed.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(directory: &Path) -> Result<Self, PlanError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|error| said(directory, error))?;
        let maps = Self {
            directory: directory.to_owned(),
        };
        let long_ago = SystemTime::now() - KEPT;
        for id in maps.ids()? {
            let directory = maps.directory.join(&id);
            let touched = fs::metadata(directory.join(JOURNAL)).or_else(|_| fs::metadata(&directory));
            if touched
                .and_then(|found| found.modified())
                .is_ok_and(|at| at < long_ago)
            {
                let _ = fs::remove_dir_all(&directory);
            }
        }
        Ok(maps)
    }

    /// Writes one down, so that it is there after a crash.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(&self, plan: &Plan, items: &Items) -> Result<(), PlanError> {
        let directory = self.directory.join(&plan.id);
        let made = DirBuilder::new().mode(0o700).create(&directory);
        made.map_err(|error| said(&directory, error))?;
        let all: io::Result<()> = (|| {
            let mut file = new_file(&directory.join(ITEMS))?;
            write_items(&mut file, items)?;
            file.sync_all()?;
            // With its name in place everything is there.
            let (written, path) = (directory.join("plan.new"), directory.join(PLAN));
            let mut file = new_file(&written)?;
            file.write_all(&serde_json::to_vec_pretty(plan)?)?;
            file.sync_all()?;
            fs::rename(written, path)
        })();
        all.map_err(|error| said(&directory, error))
    }

    /// The one of this id, or beginning or end of an id.
    ///
    /// # Errors
    /// There is none, or more than one, or it cannot be read.
    pub fn load(&self, id: &str) -> Result<(Plan, Items), PlanError> {
        let mut found = self.ids()?;
        found.retain(|known| {
            known == id || id.len() >= 4 && (known.starts_with(id) || known.ends_with(id))
        });
        match &found[..] {
            [id] => self.read(id),
            [] => Err(PlanError::Unknown {
                id: id.to_owned(),
                directory: self.directory.clone(),
                hint: match id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
                    true => "",
                    false => "; write `--` before the command",
                },
            }),
            _ => Err(PlanError::Ambiguous(id.to_owned())),
        }
    }

    /// The last one of the same command and the same items, with the same results.
    ///
    /// # Errors
    /// Those that are there cannot be listed.
    pub fn find(&self, like: &Plan, items: &Items) -> Result<Option<Plan>, PlanError> {
        let mut wanted = Vec::new();
        write_items(&mut wanted, items).map_err(|error| said(&self.directory, error))?;
        let mut ids = self.ids()?;
        ids.sort_unstable();
        // The last one has the highest id.
        for id in ids.iter().rev() {
            let same = self
                .plan(id)
                .is_ok_and(|plan| like.goes_on_with(&plan))
                .then(|| fs::read(self.directory.join(id).join(ITEMS)));
            if matches!(same, Some(Ok(same)) if same == wanted) {
                return self.plan(id).map(Some);
            }
        }
        Ok(None)
    }

    /// Where the journal of one is.
    pub fn journal(&self, plan: &Plan) -> PathBuf {
        self.directory.join(&plan.id).join(JOURNAL)
    }

    fn ids(&self) -> Result<Vec<String>, PlanError> {
        let entries = fs::read_dir(&self.directory).map_err(|error| said(&self.directory, error))?;
        Ok(entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect())
    }

    fn plan(&self, id: &str) -> Result<Plan, PlanError> {
        let path = self.directory.join(id).join(PLAN);
        let text = fs::read(&path).map_err(|error| said(&path, error))?;
        serde_json::from_slice(&text).map_err(|error| said(&path, error.into()))
    }

    fn read(&self, id: &str) -> Result<(Plan, Items), PlanError> {
        let plan = self.plan(id)?;
        let path = self.directory.join(id).join(ITEMS);
        let say = |error| said(&path, error);
        let mut list = Vec::new();
        for line in BufReader::new(File::open(&path).map_err(say)?).lines() {
            let item: Item =
                serde_json::from_str(&line.map_err(say)?).map_err(|error| say(error.into()))?;
            list.push(item);
        }
        let columns = plan.columns.clone();
        Ok((plan, Items { columns, list }))
    }
}

fn said(path: &Path, error: io::Error) -> PlanError {
    PlanError::File {
        path: path.to_owned(),
        error,
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

fn write_items(to: &mut impl Write, items: &Items) -> io::Result<()> {
    let mut to = BufWriter::new(to);
    for item in &items.list {
        serde_json::to_writer(&mut to, item)?;
        to.write_all(b"\n")?;
    }
    to.flush()
}

#[cfg(test)]
#[path = "plan/tests.rs"]
mod tests;
