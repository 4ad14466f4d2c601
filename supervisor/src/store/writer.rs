//! The thread that writes: what waits is committed together, and each caller is answered after the commit.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot, watch};

use super::ballast::Ballast;
use super::place::Place;
use super::statements::{Statements, Write, Written};
use super::{BUSY_AGAIN_TIMEOUT, BUSY_TIMEOUT, Health, StoreError};

/// What goes into one transaction at most.
const BATCH_MAX: usize = 256;
/// From the end of one transaction to the next one. What comes meanwhile is committed together: a commit writes whole
/// pages, of which most are the same for one row and for many.
const PAUSE: Duration = Duration::from_millis(1);

/// How long the log becomes before it is written into the database, in pages of 4 KiB: SQLite's default.
const CHECKPOINT_PAGES: u32 = 1000;
/// The same where there is no room for it.
const CHECKPOINT_PAGES_DEGRADED: u32 = 32;

/// A write, and who waits for it.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) write: Write,
    pub(super) answer: oneshot::Sender<Result<Written, StoreError>>,
}

impl Request {
    fn answer(self, answer: Result<Written, StoreError>) {
        // Who does not wait any more has asked all the same.
        let _ = self.answer.send(answer);
    }
}

/// Writes until nobody can ask any more, then closes the database.
pub(super) fn run(
    connection: Connection,
    place: &Place,
    ballast: Ballast,
    health: &watch::Sender<Health>,
    mut queue: mpsc::Receiver<Request>,
) {
    match Statements::prepare(&connection, &place.database) {
        Ok(statements) => {
            let full = health.borrow().clone();
            let mut writer = Writer {
                connection: &connection,
                statements,
                place,
                ballast,
                full,
                unwritable: None,
                health,
            };
            if !writer.ballast.is_held() {
                writer.checkpoint_every(CHECKPOINT_PAGES_DEGRADED);
            }
            let mut last = Instant::now();
            while let Some(first) = queue.blocking_recv() {
                #[allow(clippy::disallowed_methods, reason = "a thread that has nothing else to do")]
                std::thread::sleep(PAUSE.saturating_sub(last.elapsed()));
                let mut batch = vec![first];
                while batch.len() < BATCH_MAX
                    && let Ok(next) = queue.try_recv()
                {
                    batch.push(next);
                }
                writer.write(batch);
                last = Instant::now();
            }
        }
        Err(error) => {
            health.send_replace(Health::Damaged {
                why: error.to_string(),
            });
            while let Some(request) = queue.blocking_recv() {
                request.answer(Err(error.clone()));
            }
        }
    }
    if let Err((_, error)) = connection.close() {
        tracing::warn!(%error, "cannot close the database");
    }
}

struct Writer<'c> {
    connection: &'c Connection,
    statements: Statements<'c>,
    place: &'c Place,
    ballast: Ballast,
    /// What there is to say of the disk's room.
    full: Health,
    /// What there is to say where nothing can be written.
    unwritable: Option<Health>,
    health: &'c watch::Sender<Health>,
}

impl Writer<'_> {
    fn write(&mut self, mut batch: Vec<Request>) {
        if let Health::Damaged { why } = &*self.health.borrow() {
            let (path, why) = (self.database(), why.clone());
            let damaged = StoreError::Damaged { path, why };
            return answer_all(batch, &damaged);
        }
        if !self.ballast.is_held() && self.ballast.take().is_ok() {
            tracing::info!("there is room for the database again");
            self.checkpoint_every(CHECKPOINT_PAGES);
            self.full = Health::Good;
            self.say_health();
        }
        let mut made_room = false;
        loop {
            if !self.ballast.is_held() {
                // What is left is for the records of what runs already.
                batch = self.refuse_new(batch);
            }
            if batch.is_empty() {
                return;
            }
            match self.attempt(&batch) {
                Ok(written) => {
                    self.is_writable();
                    let answers = batch.into_iter().zip(written);
                    return answers.for_each(|(request, written)| request.answer(Ok(written)));
                }
                Err(error) if error.is_full() && !made_room => {
                    made_room = true;
                    self.empty_log();
                }
                Err(error) if error.is_full() && self.ballast.is_held() => {
                    made_room = false;
                    self.give_up_ballast(&error);
                }
                Err(error @ StoreError::Damaged { .. }) => {
                    self.place.mark(&error.to_string());
                    tracing::error!(%error, "the database cannot be used any more");
                    self.health.send_replace(Health::Damaged {
                        why: error.to_string(),
                    });
                    return answer_all(batch, &error);
                }
                // Whoever holds the database, or forbids to write, does so for each of them.
                Err(error) if error.is_of_the_place() => {
                    self.is_unwritable(&error);
                    return answer_all(batch, &error);
                }
                // Where several cannot be written together, each of them is tried alone.
                Err(_) if batch.len() > 1 => {
                    return batch.into_iter().for_each(|request| self.write(vec![request]));
                }
                Err(error) => return answer_all(batch, &error),
            }
        }
    }

    /// All of it in one transaction, or nothing.
    fn attempt(&mut self, batch: &[Request]) -> Result<Vec<Written>, StoreError> {
        let written = (|| {
            self.statements.begin()?;
            let written: Result<Vec<Written>, StoreError> = batch
                .iter()
                .map(|request| self.statements.perform(&request.write))
                .collect();
            let written = written?;
            self.statements.commit()?;
            Ok(written)
        })();
        // A failed commit may leave the transaction open, and a full disk may have ended it.
        if written.is_err() && !self.connection.is_autocommit() {
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        written
    }

    /// Nobody is to wait again for what somebody did not get in all that time.
    fn is_unwritable(&mut self, error: &StoreError) {
        if self.unwritable.is_some() {
            return;
        }
        tracing::error!(%error, "nothing can be written now");
        self.unwritable = Some(Health::Unwritable {
            why: error.to_string(),
            since: Timestamp::now(),
        });
        let _ = self.connection.busy_timeout(self.patience());
        self.say_health();
    }

    fn is_writable(&mut self) {
        if self.unwritable.take().is_some() {
            tracing::info!("the database can be written again");
            let _ = self.connection.busy_timeout(self.patience());
            self.say_health();
        }
    }

    fn patience(&self) -> Duration {
        match self.unwritable {
            Some(_) => BUSY_AGAIN_TIMEOUT,
            None => BUSY_TIMEOUT,
        }
    }

    fn say_health(&self) {
        let health = self.unwritable.as_ref().unwrap_or(&self.full);
        self.health.send_replace(health.clone());
    }

    fn give_up_ballast(&mut self, error: &StoreError) {
        tracing::error!(%error, "only records are written from now on");
        self.ballast.release();
        self.full = Health::Degraded {
            why: error.to_string(),
            since: Timestamp::now(),
        };
        self.say_health();
        // The log must not eat what was given up: from now on it is emptied before it grows.
        self.checkpoint_every(CHECKPOINT_PAGES_DEGRADED);
    }

    /// What stands in the log goes into the database, and its room is free, unless somebody reads at this moment.
    fn empty_log(&self) {
        let waited = self.connection.busy_timeout(Duration::ZERO);
        let emptied = self.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
        if let Err(error) = waited.and(emptied) {
            tracing::warn!(%error, "cannot empty the database's log");
        }
        let _ = self.connection.busy_timeout(self.patience());
    }

    fn checkpoint_every(&self, pages: u32) {
        let set = format!("PRAGMA wal_autocheckpoint = {pages}");
        if let Err(error) = self.connection.execute_batch(&set) {
            tracing::warn!(%error, "cannot bound the database's log");
        }
    }

    fn refuse_new(&self, batch: Vec<Request>) -> Vec<Request> {
        let (new, rest): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|request| match &request.write {
                Write::Accept(_) | Write::SessionOpened(_) => true,
                Write::Job(job) => job.is_new(),
                _ => false,
            });
        let full = StoreError::Full {
            what: "begin something new",
            path: self.database(),
        };
        answer_all(new, &full);
        rest
    }

    fn database(&self) -> PathBuf {
        self.place.database.clone()
    }
}

fn answer_all(batch: Vec<Request>, error: &StoreError) {
    for request in batch {
        request.answer(Err(error.clone()));
    }
}
