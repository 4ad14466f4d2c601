//! What can be wrong with files, and what is said of it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};

use nix::mount::{MsFlags, mount};
use nix::unistd::geteuid;

use super::*;

fn database(directory: &TempDir) -> PathBuf {
    directory.path().join(DATABASE_NAME)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A database with a session and a sealed process, closed.
async fn made(directory: &TempDir) -> ProcessRow {
    let store = opened(directory).store;
    let row = process(None);
    store.session_opened(session()).await.unwrap();
    store.accept(row.clone()).await.unwrap();
    store.sealed(record(&row, 1), denials()).await.unwrap();
    store.close().await;
    row
}

#[tokio::test]
async fn what_is_no_database_is_moved_aside_with_its_log_and_a_new_one_is_begun() {
    let directory = tempfile::tempdir().unwrap();
    made(&directory).await;
    fs::write(
        database(&directory),
        "not SQLite's, but ours until now".repeat(200),
    )
    .unwrap();
    fs::write(directory.path().join("provost.db-wal"), "its log").unwrap();
    let Opened {
        store,
        loaded,
        moved_aside,
    } = opened(&directory);
    let aside = moved_aside.expect("it says so");
    assert_eq!(loaded, Loaded::default());
    let name = aside.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(
        name.starts_with("provost.db.corrupt-20") && name.ends_with('Z'),
        "{name}"
    );
    assert!(fs::read_to_string(&aside).unwrap().starts_with("not SQLite's"));
    let log = aside.with_file_name(name + "-wal");
    assert_eq!(fs::read_to_string(log).unwrap(), "its log");
    let row = process(None);
    store.accept(row.clone()).await.unwrap();
    store.close().await;
    let again = opened(&directory);
    assert_eq!((again.moved_aside, again.loaded.unsealed), (None, vec![row]));
}

#[tokio::test]
async fn pages_that_turn_out_damaged_while_it_runs_are_said_and_moved_aside_at_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    made(&directory).await;
    let root = |table: &str| -> u64 {
        let connection = Connection::open(database(&directory)).unwrap();
        let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
        connection
            .query_row(sql, [table], |row| row.get::<_, i64>(0))
            .unwrap()
            .unsigned_abs()
    };
    let page = root("records");
    let file = fs::OpenOptions::new()
        .write(true)
        .open(database(&directory))
        .unwrap();
    file.write_all_at(&[0xff; 4096], (page - 1) * 4096).unwrap();
    let Opened {
        store, moved_aside, ..
    } = Store::open(directory.path(), 0).unwrap();
    assert_eq!(
        moved_aside, None,
        "what the start does not read is not known to be damaged"
    );
    let row = process(None);
    let sealed = store.sealed(record(&row, 2), vec![]).await;
    assert!(matches!(sealed, Err(StoreError::Damaged { .. })), "{sealed:?}");
    assert!(
        matches!(store.health(), Health::Damaged { .. }),
        "{:?}",
        store.health()
    );
    assert!(matches!(store.accept(row).await, Err(StoreError::Damaged { .. })));
    store.close().await;
    let again = opened(&directory);
    assert!(again.moved_aside.is_some_and(|aside| aside.exists()));
    assert_eq!(
        (again.loaded, again.store.health()),
        (Loaded::default(), Health::Good)
    );
    again.store.close().await;
    assert_eq!(opened(&directory).moved_aside, None, "once");
}

#[tokio::test]
async fn what_a_newer_program_made_is_refused_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    made(&directory).await;
    let path = database(&directory);
    let newer = Connection::open(&path).unwrap();
    newer
        .execute_batch("CREATE TABLE of_later (id TEXT) STRICT; PRAGMA user_version = 99")
        .unwrap();
    drop(newer);
    let before = fs::read(&path).unwrap();
    let refused = Store::open(directory.path(), 10).unwrap_err();
    assert!(
        matches!(
            refused,
            StoreError::NewerSchema {
                found: 99,
                known: SCHEMA_VERSION,
                ..
            }
        ),
        "{refused:?}"
    );
    assert!(matches!(
        Reader::open(directory.path()),
        Err(StoreError::NewerSchema { .. })
    ));
    assert!(matches!(
        vacuum(directory.path()),
        Err(StoreError::NewerSchema { .. })
    ));
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn everything_is_the_users_alone() {
    let directory = tempfile::tempdir().unwrap();
    let state_dir = directory.path().join("state/below");
    let store = Store::open(&state_dir, 10).unwrap().store;
    store.accept(process(None)).await.unwrap();
    let mut names = Vec::new();
    for entry in fs::read_dir(&state_dir).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(
            entry.metadata().unwrap().permissions().mode() & 0o777,
            0o600,
            "{:?}",
            entry.path()
        );
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(
        names,
        [
            "provost.db",
            "provost.db-shm",
            "provost.db-wal",
            "provost.db.ballast"
        ]
    );
    assert_eq!(
        fs::metadata(&state_dir).unwrap().permissions().mode() & 0o777,
        0o700
    );
}

#[tokio::test]
async fn what_others_could_have_put_there_is_not_used() {
    let directory = tempfile::tempdir().unwrap();
    made(&directory).await;
    set_mode(&database(&directory), 0o666);
    let refused = Store::open(directory.path(), 10).unwrap_err();
    assert!(matches!(refused, StoreError::Foreign(_)), "{refused:?}");
    // Readable to others is mended, for they could put nothing into it.
    set_mode(&database(&directory), 0o644);
    assert_eq!(opened(&directory).loaded.sealed.len(), 1);
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(database(&directory), database(&elsewhere)).unwrap();
    let refused = Store::open(elsewhere.path(), 10).unwrap_err();
    assert!(matches!(refused, StoreError::Foreign(_)), "{refused:?}");
}

#[test]
fn what_cannot_be_written_is_said_with_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let check = async || {
        made(&directory).await;
        set_mode(&database(&directory), 0o400);
        if geteuid().is_root() {
            // Root writes what it likes, but not there.
            let (none, flags) = (None::<&str>, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
            mount(none, directory.path(), none, flags, none).unwrap();
        }
        let refused = Store::open(directory.path(), 10).unwrap_err();
        assert!(matches!(refused, StoreError::ReadOnly { .. }), "{refused:?}");
        assert!(
            refused
                .to_string()
                .contains(database(&directory).to_str().unwrap()),
            "{refused}"
        );
    };
    if geteuid().is_root() {
        super::full::on_a_small_disk(directory.path(), "4m", check);
    } else {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(check());
    }
    let refused = Store::open(Path::new("/proc/provost"), 10).unwrap_err();
    assert!(
        matches!(
            refused,
            StoreError::Io {
                what: "make the directory",
                ..
            }
        ),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_database_that_another_program_holds_makes_callers_wait_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(&directory).store;
    let other = Connection::open(database(&directory)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (row, late) = (process(None), process(None));
    let refused = store.accept(row.clone()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Locked { .. }), "{refused:?}");
    let said = store.health().trouble().unwrap_or_default();
    assert!(said.contains("another program holds it"), "{said}");
    store.recover().await;
    assert!(store.health().trouble().is_some(), "it is held still");
    // This runtime has one thread: were it blocked, nobody would let go.
    let waiting = tokio::spawn({
        let (store, late) = (store.clone(), late.clone());
        async move { store.accept(late).await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    assert_eq!(
        store.read(|reader| reader.load(10)).await.unwrap(),
        Loaded::default()
    );
    other.execute_batch("COMMIT").unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), Acceptance::Accepted);
    store.writable().await;
    assert_eq!(store.health(), Health::Good);

    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    store.live(late.id).await.unwrap_err();
    assert_ne!(store.health(), Health::Good);
    other.execute_batch("COMMIT").unwrap();
    store.recover().await;
    assert_eq!(store.health(), Health::Good, "it looks by itself");
    store.close().await;
    assert_eq!(
        opened(&directory).loaded.unsealed,
        [late],
        "what was refused was not written"
    );
}

#[tokio::test]
async fn a_row_that_somebody_spoilt_by_hand_keeps_nobody_from_starting() {
    let directory = tempfile::tempdir().unwrap();
    made(&directory).await;
    let by_hand = Connection::open(database(&directory)).unwrap();
    by_hand
        .execute_batch("UPDATE records SET record = '{}'; UPDATE sessions SET opened_at = 'then'")
        .unwrap();
    drop(by_hand);
    let Opened {
        store,
        loaded,
        moved_aside,
    } = opened(&directory);
    assert_eq!((loaded, moved_aside), (Loaded::default(), None));
    let checked = store.read(Reader::check).await.unwrap();
    assert_eq!(checked.problems.len(), 1, "{checked:?}");
    assert!(checked.problems[0].contains("cannot be read"), "{checked:?}");
}
