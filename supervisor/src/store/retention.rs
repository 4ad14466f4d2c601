//! How long what has ended is kept, and how much of it.

use std::time::Duration;

use jiff::Timestamp;
use provost_actors::event::ProcessId;
use rusqlite::params;

use super::statements::Write;
use super::{Reader, Store, StoreError, text};

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
    /// Sealed processes that are too old or too many, for the caller to forget.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn expired(&self, retention: Retention) -> Result<Vec<ProcessId>, StoreError> {
        let before = Timestamp::now()
            .checked_sub(retention.age_max)
            .unwrap_or(Timestamp::MIN);
        self.read(move |reader| reader.victims(before, retention.bytes_max))
            .await
    }

    /// Forgets sessions that were closed so long ago and have no process left, and jobs that ended so long ago.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn forget_sessions(&self, age: Duration) -> Result<(), StoreError> {
        let before = Timestamp::now().checked_sub(age).unwrap_or(Timestamp::MIN);
        self.write(Write::ForgetSessions(before)).await.map(|_| ())?;
        self.forget_jobs(before).await
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
