//! How long what has ended is kept, and how much of it.

use std::time::Duration;

use jiff::Timestamp;
use provost_actors::event::ProcessId;
use rusqlite::params;

use super::statements::Write;
use super::{Reader, Store, StoreError, text};

/// What is deleted in one transaction: others wait that long.
const BATCH: usize = 64;

/// How long, and how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Processes that ended longer ago are forgotten.
    pub age_max: Duration,
    /// Records, denials and kept output of all ended processes together, in bytes, as of the time when they were sealed. Of more
    /// the oldest are forgotten.
    pub bytes_max: u64,
}

impl Store {
    /// Forgets sealed processes that are too old or too many, and sessions that ended that long ago and have no process left.
    /// The processes' ids are for the caller to delete their output: before a crash between the two, ids may have been
    /// forgotten whose output is still there.
    ///
    /// # Errors
    /// The database cannot be read or written. What was forgotten up to then is forgotten.
    pub async fn sweep(&self, retention: Retention) -> Result<Vec<ProcessId>, StoreError> {
        let before = Timestamp::now()
            .checked_sub(retention.age_max)
            .unwrap_or(Timestamp::MIN);
        let victims = self
            .read(move |reader| reader.victims(before, retention.bytes_max))
            .await?;
        for batch in victims.chunks(BATCH) {
            self.write(Write::Forget(batch.to_vec())).await?;
        }
        self.write(Write::ForgetSessions(before)).await?;
        Ok(victims)
    }
}

impl Reader {
    /// Those that ended before this time, and the oldest of the others as far as all keep too much.
    fn victims(&self, before: Timestamp, bytes_max: u64) -> Result<Vec<ProcessId>, StoreError> {
        // `above` is what a process keeps with all that ended after it.
        const SQL: &str = "SELECT process FROM
                (SELECT process, ended_at, sum(kept_bytes) OVER (ORDER BY ended_at DESC, process DESC) AS above FROM records)
             WHERE ended_at < ?1 OR above > ?2 ORDER BY ended_at, process";
        let victims: rusqlite::Result<Vec<ProcessId>> = (|| {
            let mut statement = self.connection.prepare(SQL)?;
            let found = params![text::time(&before), text::integer(bytes_max)];
            let found = statement.query_map(found, |row| text::process(row, 0))?;
            found.collect()
        })();
        victims.map_err(|error| StoreError::of(&self.path, "look for what is too old", error))
    }
}
