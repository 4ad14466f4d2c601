//! A disk that is full.

use std::fs::{self, File};
use std::io::Write;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;

use super::*;

/// Runs this where only it sees what is mounted on the directory: a small disk. Threads that it starts see it, too.
pub(super) fn on_a_small_disk(directory: &Path, size: &str, then: impl AsyncFnOnce() + Send) {
    let size = format!("size={size}");
    std::thread::scope(|scope| {
        let done = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(
                Some("tmpfs"),
                directory,
                Some("tmpfs"),
                MsFlags::empty(),
                Some(size.as_str()),
            )
            .unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(then());
        });
        done.join().unwrap();
    });
}

fn fill(path: &Path) {
    let mut filler = File::create(path).unwrap();
    for piece in [&[1; 65_536][..], &[1; 512]] {
        while filler.write_all(piece).is_ok() {}
    }
}

#[test]
fn i1_on_a_full_disk_what_runs_is_sealed_what_is_new_is_refused_and_room_ends_it() {
    if !geteuid().is_root() {
        return eprintln!("skipped: only root can make a disk small");
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    on_a_small_disk(path, "6m", async || {
        let store = opened(&directory).store;
        let running: Vec<ProcessRow> = (0..100).map(|_| process(None)).collect();
        // All at once, so that the log is short and has no room to give.
        let accepting = running.iter().map(|row| store.accept(row.clone()));
        futures_util::future::try_join_all(accepting).await.unwrap();
        let held = session();
        store.session_opened(held.clone()).await.unwrap();
        fill(&path.join("filler"));
        let mut accepted = 0;
        let refused = loop {
            match store.accept(process(None)).await {
                Ok(_) => accepted += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, StoreError::Full { .. }), "{refused:?}");
        assert!(
            matches!(store.health(), Health::Degraded { .. }),
            "{:?}",
            store.health()
        );
        assert!(store.session_opened(session()).await.unwrap_err().is_full());
        for row in &running {
            store.sealed(record(row, 1), denials()).await.unwrap();
        }
        store
            .session_changed(held.id, SessionState::Closed, at(1))
            .await
            .unwrap();
        assert!(store.accept(process(None)).await.unwrap_err().is_full());
        fs::remove_file(path.join("filler")).unwrap();
        store.accept(process(None)).await.unwrap();
        assert_eq!(store.health(), Health::Good);
        store.close().await;
        let Opened {
            store,
            loaded,
            moved_aside,
        } = opened(&directory);
        assert_eq!((moved_aside, loaded.sealed.len()), (None, running.len()));
        assert_eq!((loaded.unsealed.len(), loaded.sessions.len()), (accepted + 1, 0));
        assert_eq!(store.read(Reader::check).await.unwrap().problems, [""; 0]);
    });
}

#[test]
fn a_daemon_that_starts_on_a_full_disk_seals_what_it_finds() {
    if !geteuid().is_root() {
        return eprintln!("skipped: only root can make a disk small");
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    on_a_small_disk(path, "4m", async || {
        let store = opened(&directory).store;
        let row = process(None);
        store.accept(row.clone()).await.unwrap();
        store.close().await;
        fill(&path.join("filler"));
        let Opened { store, loaded, .. } = opened(&directory);
        assert_eq!(loaded.unsealed.len(), 1);
        assert!(
            matches!(store.health(), Health::Degraded { .. }),
            "{:?}",
            store.health()
        );
        store.sealed(record(&row, 1), vec![]).await.unwrap();
        assert!(store.accept(process(None)).await.unwrap_err().is_full());
    });
}
