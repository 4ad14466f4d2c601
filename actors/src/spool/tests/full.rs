//! A journal for which there is no room.

use super::*;
use crate::spool::checkpoint::COMPACTED;

fn path(process: &ProcessSpool, kind: &str) -> PathBuf {
    process
        .spool
        .directory
        .path
        .join(journal_name(process.process, kind))
}

/// From now on its journal can neither be written nor made short.
pub(super) fn fill(process: &ProcessSpool) {
    let mut journal = lock(&process.journal);
    if let Ok(file) = File::open(path(process, LIVE)) {
        journal.write_into(file);
    }
    let _ = std::fs::create_dir(path(process, COMPACTED));
}

/// It can be again.
pub(super) fn make_room(process: &ProcessSpool) {
    {
        let mut journal = lock(&process.journal);
        if let Ok(file) = File::options().read(true).write(true).open(path(process, LIVE)) {
            journal.write_into(file);
        }
    }
    let _ = std::fs::remove_dir(path(process, COMPACTED));
    process.spool.recover_room();
}

#[test]
fn i1_a_record_that_found_no_room_is_sealed_as_it_was_told_once_there_is_room() {
    let (_directory, spool) = spool();
    let mut process = Process::begin(&spool);
    process.say_output(b"before\n");
    fill(&process.spool);
    process.take(Fact::Denied(refusal()));
    process.end();
    let (id, told, record) = (process.id(), events(&process.log), process.log.record());
    let forgotten = Arc::new(AtomicU64::new(0));
    let forget = forgotten.clone();
    process
        .spool
        .once_kept(move || forget.store(1, Ordering::Relaxed));
    let said = spool.trouble().expect("it cannot be written");
    assert!(
        said.contains("of 1 processes something waits in memory"),
        "{said}"
    );
    assert!(spool.owes(id));
    assert_eq!(
        spool.find().expect("a directory").live,
        [id],
        "nothing says that it has ended"
    );
    spool.recover_room();
    assert!(spool.owes(id), "there is no more room than before");
    assert_eq!(
        forgotten.load(Ordering::Relaxed),
        0,
        "its keeper has to know it as yet"
    );

    make_room(&process.spool);
    assert_eq!((spool.trouble(), spool.owes(id)), (None, false));
    assert_eq!(forgotten.load(Ordering::Relaxed), 1);
    drop(process);
    assert_eq!(spool.find().expect("a directory").sealed, [id]);
    let loaded = spool.load(id).expect("a journal");
    let record = record.expect("it is sealed");
    assert_eq!(json(&loaded.record.expect("its record")), json(&record));
    assert_eq!(texts(&events(&loaded.log)), texts(&told));
}

#[test]
fn i1_a_record_is_believed_by_a_daemon_whose_journal_does_not_tell_all_of_it() {
    let (_directory, spool) = spool();
    let mut process = Process::begin(&spool);
    process.say_output(b"before\n");
    fill(&process.spool);
    process.end();
    let (id, record) = (process.id(), process.log.record().expect("it is sealed"));
    // The daemon dies: what it owed is gone. The database has the record.
    std::mem::take(&mut *lock(&spool.owing));
    drop(process);
    let mut loaded = spool.load(id).expect("a journal");
    assert!(loaded.record.is_none());
    loaded.believe(TerminalRecord::clone(&record));
    assert_eq!(json(&loaded.record.expect("it is believed")), json(&record));
    for _ in 0..2 {
        let again = spool.load(id).expect("a journal");
        assert_eq!(json(&again.record.expect("its record")), json(&record));
        assert_eq!(bytes(&events(&again.log)), b"before\n");
        assert_eq!(again.log.last_seq(), record.last_seq);
    }
    assert_eq!(spool.find().expect("a directory").sealed, [id]);
}

#[test]
fn what_a_journal_owes_is_bounded_as_the_journal_is() {
    let (_directory, spool) = spool();
    let mut process = Process::begin(&spool);
    fill(&process.spool);
    let (mut most, mut times) = (0, 0);
    for n in 0..20_000_u32 {
        process.take(Fact::Probed(format!("probe-{}", n % 10)));
        if let Some(cut) = process.spool.is_long() {
            let (ledger, log) = (process.ledger.clone(), process.log.kept());
            process.spool.compact(&cut, ledger, log);
            times += 1;
        }
        most = most.max(lock(&process.spool.journal).owed_from(0).len());
    }
    assert!(most < 64 << 10 && times > 10, "{most} bytes, {times} times");
    let ledger = serde_json::to_value(&process.ledger).expect("JSON");
    let id = process.id();
    make_room(&process.spool);
    assert_eq!(spool.trouble(), None);
    drop(process);
    let loaded = spool.load(id).expect("a journal");
    let again = serde_json::to_value(&loaded.ledger).expect("JSON");
    assert_eq!(again["denials"]["probes"], ledger["denials"]["probes"]);
}
