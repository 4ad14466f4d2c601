//! What must hold of any bytes as a journal.

use std::path::Path;
use std::sync::Arc;

use super::{LIVE, Loaded, Spool, WhenFull, journal_name};
use crate::event::{Event, EventBody, ProcessId};

/// Whose journal it is; the seeds say so, too.
const PROCESS: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

/// Any bytes, as they are and with right checksums in front of them, in a directory that is empty.
///
/// # Panics
/// Loading panics, or what is loaded contradicts itself.
pub fn journal(directory: &Path, bytes: &[u8]) {
    load(&directory.join("plain"), bytes);
    load(&directory.join("mended"), &with_checksums(bytes));
}

/// How many events it tells, if it is one.
fn load(directory: &Path, bytes: &[u8]) -> Option<usize> {
    let spool = Spool::open(directory, WhenFull::Drop).expect("a spool");
    let process: ProcessId = PROCESS.parse().expect("an id");
    std::fs::write(directory.join(journal_name(process, LIVE)), bytes).expect("a disk");
    let loaded = spool.load(process).ok()?;
    let told = consistent(&loaded, process);
    // Its end is a clean one, whatever was cut off, and it says the same again.
    let untold = loaded.untold.clone();
    drop(loaded);
    let again = spool.load(process).expect("it was loaded before");
    assert_eq!(texts(&consistent(&again, process)), texts(&told));
    assert_eq!(again.untold, untold);
    Some(told.len())
}

/// As they are published: a record that was read again has times without nanoseconds.
pub(super) fn texts(events: &[Event]) -> Vec<String> {
    let text = |event| serde_json::to_string(event).expect("JSON");
    events.iter().map(text).collect()
}

/// The events of what was loaded.
fn consistent(loaded: &Loaded, process: ProcessId) -> Vec<Event> {
    assert_eq!(loaded.accepted.process, process);
    let mut cursor = loaded.log.follow(0, false);
    let told: Vec<Event> = std::iter::from_fn(|| cursor.try_next()).collect();
    let mut streams = [0; 3];
    for (index, event) in told.iter().enumerate() {
        assert_eq!(event.process, process);
        let (stream, from, to) = match &event.body {
            EventBody::Output { stream, offset, data } => (*stream, *offset, offset + data.len() as u64),
            EventBody::Gap { stream, from, to, .. } => (*stream, *from, *to),
            EventBody::Terminal { record } => {
                assert_eq!(index + 1, told.len(), "I1: the record is the last");
                assert_eq!(record.last_seq, event.seq, "{record:?}");
                continue;
            }
            _ => continue,
        };
        let end = &mut streams[stream.index()];
        assert!(*end <= from && from <= to, "I3: {event:?} after {end}");
        *end = to;
    }
    let numbers = told.iter().map(|event| event.seq);
    assert!(numbers.is_sorted_by(|one, next| one < next), "{told:?}");
    let whole = match told.split_last() {
        // Events before it may have found no room on the disk.
        Some((last, before)) if matches!(last.body, EventBody::Terminal { .. }) => before,
        _ => &told,
    };
    if whole.len() < loaded.log.limits().events_max {
        // Else retention has dropped some.
        let numbers = whole.iter().map(|event| event.seq);
        assert!(numbers.eq(1..=whole.len() as u64), "a hole: {told:?}");
    }
    let record = told.iter().find_map(|event| match &event.body {
        EventBody::Terminal { record } => Some(record.as_ref()),
        _ => None,
    });
    assert_eq!(loaded.record.as_deref(), record);
    assert_eq!(loaded.ledger.is_sealed(), record.is_some());
    told
}

/// Frames as they are, but for their checksums; else next to nothing would ever be read.
fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut all = bytes.to_vec();
    let mut rest = all.as_mut_slice();
    while let Some((head, behind)) = rest.split_first_chunk_mut::<8>() {
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let body = length.min(behind.len());
        // The last one may have become longer or shorter.
        head[..4].copy_from_slice(&(body as u32).to_le_bytes());
        let (body, next) = behind.split_at_mut(body);
        head[4..].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
        rest = next;
    }
    all
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use jiff::Timestamp;
    use proptest::prelude::*;
    use provost_sandbox::denial::Decision;
    use provost_sandbox::observe::notify::Grant;
    use provost_sandbox::policy::Policy;

    use super::super::tests::refusal;
    use super::super::{Accepted, Entry, Journal, Observed, StdinProgress, StoredSpec};
    use super::*;
    use crate::approval::{ApprovalScope, GrantRecord};
    use crate::event::StreamName;
    use crate::ledger::{Effect, Exit, Fact, Ledger, StopCause};
    use crate::process::ledger_spec;
    use crate::record::Closed;
    use crate::spec::ProcessSpec;

    const OUT: StreamName = StreamName::Stdout;

    fn accepted() -> Accepted {
        let mut spec = ProcessSpec::new(["true", "x"], "/", Policy::unconfined());
        spec.retention.events_max = 100;
        Accepted {
            process: PROCESS.parse().expect("an id"),
            session: Some("s".to_owned()),
            queued_at: Timestamp::UNIX_EPOCH,
            boot: "b".to_owned(),
            monotonic: Some(std::time::Duration::from_secs(9)),
            spec: StoredSpec::from(&spec),
            proxy: None,
            note: serde_json::json!({ "name": "n" }),
        }
    }

    /// What a process writes down from its start to its end, with everything that a journal may hold.
    fn whole() -> Vec<Entry> {
        let started = Fact::Started {
            pid: 42,
            report: Arc::new(crate::record::tests::report()),
        };
        let output = |offset, length| Fact::Output {
            stream: OUT,
            offset,
            length,
        };
        let grant = Box::new(GrantRecord {
            approval: 1,
            scope: ApprovalScope::Process,
            operation: "connect".to_owned(),
            target: refusal().target,
            by: "somebody".to_owned(),
        });
        let observed = |number, fact| {
            Entry::Observed(Box::new(Observed {
                number,
                facts: vec![fact],
                domains: vec![(7, number)],
                ..Observed::default()
            }))
        };
        let asked = Fact::ApprovalRequested {
            approval: 1,
            attempt: Box::new(refusal()),
            deadline: Timestamp::UNIX_EPOCH,
        };
        let decision = Decision::Allow;
        let decided = Fact::ApprovalDecided { grant, decision };
        let grant = Grant::Connect {
            address: [192, 0, 2, 1].into(),
            port: 80,
        };
        let mut entries = vec![
            Entry::Accepted(Box::new(accepted())),
            Entry::Fact(started),
            Entry::Fact(output(0, 4)),
            Entry::Stdin(StdinProgress {
                written: 1,
                intended: 5,
            }),
            observed(0, Fact::Denied(refusal())),
            Entry::Took(0),
            observed(1, asked),
            Entry::Took(1),
            observed(2, decided),
            Entry::Granted(ApprovalScope::Process, grant),
            Entry::Fact(Fact::StopRequested(StopCause::TimedOut)),
            Entry::Fact(output(4, 4)),
            Entry::Took(2),
            Entry::Fact(Fact::Exited(Exit::Code(7))),
        ];
        for stream in [OUT, StreamName::Stderr] {
            let closed = Closed::Eof;
            entries.push(Entry::Fact(Fact::StreamClosed { stream, closed }));
        }
        entries.push(Entry::Fact(Fact::TreeEmpty {
            killed: 0,
            usage: None,
            unkillable: Vec::new(),
        }));
        entries.push(sealed(&entries));
        entries
    }

    fn sealed(entries: &[Entry]) -> Entry {
        let spec = accepted().spec.restore();
        let process = PROCESS.parse().expect("an id");
        let session = Some("s".to_owned());
        let mut ledger = Ledger::new(ledger_spec(process, session, &spec, Timestamp::UNIX_EPOCH));
        let mut observed = Vec::new();
        let facts = entries.iter().filter_map(|entry| match entry {
            Entry::Fact(fact) => Some(fact.clone()),
            Entry::Observed(was) => {
                observed.extend(was.facts.clone());
                None
            }
            Entry::Took(number) => Some(observed[*number as usize].clone()),
            _ => None,
        });
        let effects = facts.flat_map(|fact| ledger.apply(fact, Timestamp::UNIX_EPOCH));
        let mut records = effects.filter_map(|effect| match effect {
            Effect::Seal { record, .. } => Some(record),
            _ => None,
        });
        Entry::Sealed(Arc::from(records.next().expect("everything is known")))
    }

    fn written(entries: &[Entry]) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let opened = File::options().write(true).open(file.path()).expect("it");
        let mut journal = Journal::new(opened, 0).expect("a journal");
        for entry in entries {
            let appended = journal.append(Timestamp::UNIX_EPOCH, entry);
            appended.written().expect("a disk");
        }
        std::fs::read(file.path()).expect("it")
    }

    fn try_it(bytes: &[u8]) {
        let directory = tempfile::tempdir().expect("a directory");
        journal(directory.path(), bytes);
    }

    fn seeds() -> Vec<(&'static str, Vec<u8>)> {
        let entries = whole();
        let bytes = written(&entries);
        vec![
            ("accepted", written(&entries[..1])),
            ("running", written(&entries[..4])),
            ("refused", written(&entries[..5])),
            ("asked", written(&entries[..7])),
            ("unsealed", written(&entries[..entries.len() - 1])),
            ("torn", bytes[..bytes.len() - 10].to_vec()),
            ("sealed", bytes),
        ]
    }

    #[test]
    fn journals_of_today_are_among_the_seeds_and_are_read() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/journal");
        for (name, bytes) in seeds() {
            try_it(&bytes);
            let path = directory.join(name);
            if std::env::var_os("WRITE_SEEDS").is_some() {
                std::fs::create_dir_all(&directory).expect("ours");
                std::fs::write(&path, &bytes).expect("ours");
            }
            let there = std::fs::read(path).ok();
            assert_eq!(there.as_ref(), Some(&bytes), "{name}: WRITE_SEEDS=1 writes it");
        }
        let directory = tempfile::tempdir().expect("a directory");
        let told = load(directory.path().join("x").as_path(), &written(&whole()));
        assert_eq!(told, Some(10), "all of it is read");
    }

    proptest! {
        #[test]
        fn any_journal_is_loaded_or_refused(
            which in any::<prop::sample::Index>(),
            place in any::<prop::sample::Index>(),
            changes in prop::collection::vec(any::<u8>(), 0..4),
            cut in 0usize..80,
        ) {
            let mut seeds = seeds();
            let mut bytes = seeds.swap_remove(which.index(seeds.len())).1;
            let at = place.index(bytes.len());
            bytes.splice(at..(at + changes.len()).min(bytes.len()), changes);
            bytes.truncate(bytes.len().saturating_sub(cut));
            try_it(&bytes);
        }
    }
}
