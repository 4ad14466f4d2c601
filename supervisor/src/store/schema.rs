//! The tables, and how those of an older program become ours.
//!
//! `PRAGMA user_version` counts the migrations that were applied; each is a file, and none is ever changed again.

use std::path::Path;

use rusqlite::Connection;

use super::StoreError;

/// Migration `n` makes version `n + 1` out of version `n`.
pub(super) const MIGRATIONS: [&str; 4] = [
    include_str!("schema/1.sql"),
    include_str!("schema/2.sql"),
    include_str!("schema/3.sql"),
    include_str!("schema/4.sql"),
];

/// The version that this program writes and reads.
pub const SCHEMA_VERSION: u32 = MIGRATIONS.len() as u32;

/// Which version a database has; 0 for an empty one.
pub(super) fn version(connection: &Connection, path: &Path) -> Result<u32, StoreError> {
    let found = connection.query_row("PRAGMA user_version", [], |row| row.get(0));
    let found: u32 = found.map_err(|error| StoreError::of(path, "read its version", error))?;
    if found > SCHEMA_VERSION {
        return Err(StoreError::NewerSchema {
            path: path.to_owned(),
            found,
            known: SCHEMA_VERSION,
        });
    }
    Ok(found)
}

/// Applies what is missing, all of it or nothing.
pub(super) fn migrate(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let say = |error| StoreError::of(path, "bring its tables up to date", error);
    if version(connection, path)? == SCHEMA_VERSION {
        return Ok(());
    }
    connection.execute_batch("BEGIN IMMEDIATE").map_err(say)?;
    let migrated = (|| {
        // Somebody else may have done it while this one waited for the lock.
        let from = version(connection, path)? as usize;
        for migration in &MIGRATIONS[from..] {
            connection.execute_batch(migration).map_err(say)?;
        }
        let set = format!("PRAGMA user_version = {SCHEMA_VERSION}; COMMIT");
        connection.execute_batch(&set).map_err(say)
    })();
    if migrated.is_err() {
        let _ = connection.execute_batch("ROLLBACK");
    }
    migrated
}
