//! Outputs, passed on: at once, or in the order of the items.

use std::io::Write;

use super::super::gather::Gathered;
use super::{Run, read};
use crate::cli::client::{Reader, write};
use crate::map::Row;

impl Run<'_> {
    /// With `--keep-order`: begins to read what is to be printed next, if that has ended.
    pub(super) fn print_next(&mut self) -> Result<(), String> {
        while self.map.plan.keep_order && self.prints() && self.printing.is_none() {
            let item = self.journal.printed() + 1;
            if item > self.all() {
                break;
            }
            if self.given_up.contains_key(&item) {
                self.set_printed(item)?;
                continue;
            }
            match self.journal.row(item).map_err(|error| error.to_string())? {
                Some(row) => self.printing = Some(read(&self.map.client, row, true)),
                None => break,
            }
        }
        Ok(())
    }

    pub(super) async fn print_in_order(
        &mut self,
        (row, gathered): (Row, Gathered),
    ) -> Result<Reader, String> {
        let reader = self.print(gathered).await?;
        self.set_printed(row.item)?;
        self.print_next()?;
        Ok(reader)
    }

    fn set_printed(&mut self, item: usize) -> Result<(), String> {
        self.journal.set_printed(item).map_err(|error| error.to_string())
    }

    /// Passes on what an item wrote, beside the bar.
    pub(super) async fn print(&self, gathered: Gathered) -> Result<Reader, String> {
        let beside = self.tally.beside();
        let printing = tokio::task::spawn_blocking(move || {
            beside.act(|| {
                let mut stderr = std::io::stderr().lock();
                let _ = stderr.write_all(&gathered.stderr);
                write(&mut std::io::stdout().lock(), &gathered.stdout)
            })
        });
        printing.await.unwrap_or_else(|error| Err(error.to_string()))
    }
}
