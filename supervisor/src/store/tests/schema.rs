//! The tables of every older program become ours.

use super::super::schema::MIGRATIONS;
use super::*;

/// Tables and indices, as they were made.
fn shape(path: &Path) -> Vec<String> {
    let connection = Connection::open(path).unwrap();
    let mut statement = connection
        .prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")
        .unwrap();
    statement
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap()
}

#[tokio::test]
async fn every_older_version_becomes_the_same_as_a_new_one() {
    let fresh = tempfile::tempdir().unwrap();
    opened(&fresh).store.close().await;
    let expected = shape(&fresh.path().join(DATABASE_NAME));
    assert!(expected.len() > 6, "{expected:?}");
    for version in 0..=MIGRATIONS.len() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(DATABASE_NAME);
        let old = Connection::open(&path).unwrap();
        for migration in &MIGRATIONS[..version] {
            old.execute_batch(migration).unwrap();
        }
        old.execute_batch(&format!("PRAGMA user_version = {version}"))
            .unwrap();
        drop(old);
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let store = opened(&directory).store;
        store.accept(process(None)).await.unwrap();
        store.close().await;
        assert_eq!(shape(&path), expected, "from version {version}");
        let connection = Connection::open(&path).unwrap();
        let now: u32 = connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .unwrap();
        assert_eq!(now, SCHEMA_VERSION);
    }
}

#[test]
fn a_migration_that_fails_leaves_what_was_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(DATABASE_NAME);
    let foreign = Connection::open(&path).unwrap();
    // The last table of ours: everything before it is made, and taken back.
    foreign
        .execute_batch("CREATE TABLE denials (other TEXT); INSERT INTO denials VALUES ('kept')")
        .unwrap();
    drop(foreign);
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let refused = Store::open(directory.path(), 10).unwrap_err();
    assert!(matches!(refused, StoreError::Sqlite { .. }), "{refused:?}");
    assert_eq!(shape(&path), ["CREATE TABLE denials (other TEXT)"]);
}
