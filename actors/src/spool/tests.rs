use std::io::Write;
use std::os::fd::OwnedFd;

use jiff::Timestamp;
use proptest::prelude::*;

use super::fuzzing::texts;
use super::journal::{self, Entry};
use super::*;
use crate::event::{Event, EventBody};
use crate::ledger::{Effect, Exit, Fact, Ledger, StopCause};
use crate::log::Log;
use crate::process::ledger_spec;
use crate::record::{Closed, TerminalRecord};
use crate::spec::ProcessSpec;
use provost_sandbox::denial::{Certainty, Decision, Denial, DenialClass, DenialTarget};
use provost_sandbox::policy::Policy;

mod compaction;
mod cut;
mod full;

const OUT: StreamName = StreamName::Stdout;

fn spool() -> (tempfile::TempDir, Arc<Spool>) {
    let directory = tempfile::tempdir().expect("a directory");
    let spool = Spool::open(&directory.path().join("spool"), WhenFull::Drop).expect("a spool");
    (directory, spool)
}

fn accepted(spool: &Spool) -> Accepted {
    let mut spec = ProcessSpec::new(["true"], "/", Policy::unconfined());
    spec.retention = crate::log::LogLimits {
        head_bytes: 64 << 10,
        tail_bytes: 256 << 10,
        events_max: 1 << 10,
    };
    Accepted {
        process: ProcessId::new(),
        session: Some("s".to_owned()),
        queued_at: Timestamp::now(),
        boot: spool.boot().to_owned(),
        monotonic: monotonic(),
        spec: StoredSpec::from(&spec),
        proxy: None,
        note: serde_json::json!({ "name": "n" }),
    }
}

/// A process actor's part: facts are written down, then taken.
struct Process {
    spool: Arc<ProcessSpool>,
    ledger: Ledger,
    log: Arc<Log>,
    writer: SegmentWriter,
    source: (OwnedFd, std::fs::File),
}

impl Process {
    fn begin(spool: &Arc<Spool>) -> Self {
        Self::of(spool, accepted(spool))
    }

    fn of(spool: &Arc<Spool>, accepted: Accepted) -> Self {
        let spec = accepted.spec.restore();
        let ledger = Ledger::new(ledger_spec(
            accepted.process,
            accepted.session.clone(),
            &spec,
            accepted.queued_at,
        ));
        let segments = spool.segments(accepted.process);
        let log = Arc::new(Log::in_files(accepted.process, spec.retention, segments));
        let writer = log.writer(OUT, None).expect("its output is in files");
        let (reader, sender) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).expect("a pipe");
        Self {
            spool: spool.begin(accepted).expect("a journal"),
            ledger,
            log,
            writer,
            source: (reader, sender.into()),
        }
    }

    fn id(&self) -> ProcessId {
        self.log.process()
    }

    fn take(&mut self, fact: Fact) {
        let now = Timestamp::now();
        let _ = self.spool.write(now, &Entry::Fact(fact.clone()));
        self.apply(now, fact);
    }

    /// The same with a fact that was observed before.
    fn took(&mut self, number: u64, fact: Fact) {
        let now = Timestamp::now();
        let _ = self.spool.write(now, &Entry::Took(number));
        self.apply(now, fact);
    }

    fn apply(&mut self, now: Timestamp, fact: Fact) {
        for effect in self.ledger.apply(fact, now) {
            match effect {
                Effect::Append(draft) => self.log.append_event(draft),
                Effect::Seal { time, record } => {
                    let spool = &self.spool;
                    self.log
                        .seal_after(time, *record, |record| spool.seal(time, record));
                }
                _ => {}
            }
        }
    }

    /// Output comes into its files; nobody is told.
    fn move_output(&mut self, bytes: &[u8]) -> Vec<Fact> {
        self.source.1.write_all(bytes).expect("there is room");
        let mut facts = Vec::new();
        let mut left = bytes.len();
        while left > 0 {
            let Moved::Bytes { segment, from } =
                self.writer.fill(&self.source.0, 50_000).expect("a disk")
            else {
                panic!("the pipe is open");
            };
            self.log.filled(OUT, segment);
            let length = segment.end - from;
            left -= length as usize;
            facts.push(Fact::Output {
                stream: OUT,
                offset: from,
                length,
            });
        }
        facts
    }

    fn say_output(&mut self, bytes: &[u8]) {
        for fact in self.move_output(bytes) {
            self.take(fact);
        }
    }

    fn end(&mut self) {
        self.take(Fact::Exited(Exit::Code(7)));
        for stream in [OUT, StreamName::Stderr] {
            let closed = Closed::Eof;
            self.take(Fact::StreamClosed { stream, closed });
        }
        self.take(Fact::TreeEmpty {
            killed: 0,
            usage: None,
            unkillable: Vec::new(),
        });
    }
}

/// A call that was refused.
pub(super) fn refusal() -> Denial {
    Denial {
        class: DenialClass::Network,
        operation: "connect".to_owned(),
        target: DenialTarget::default(),
        pid: Some(1),
        comm: None,
        rule: "net.off".to_owned(),
        errno: "EACCES".to_owned(),
        certainty: Certainty::Observed,
        decision: Decision::Deny,
        allow: None,
    }
}

fn events(log: &Arc<Log>) -> Vec<Event> {
    let mut cursor = log.follow(0, false);
    std::iter::from_fn(|| cursor.try_next()).collect()
}

/// The bytes that a reader gets; panics at a gap.
fn bytes(events: &[Event]) -> Vec<u8> {
    let mut all = Vec::new();
    for event in events {
        match &event.body {
            EventBody::Output { offset, data, .. } => {
                assert_eq!(*offset, all.len() as u64);
                all.extend_from_slice(data);
            }
            EventBody::Gap { .. } => panic!("{event:?}"),
            _ => {}
        }
    }
    all
}

fn json(record: &TerminalRecord) -> String {
    serde_json::to_string(record).expect("JSON")
}

fn counting(from: u32, count: u32) -> Vec<u8> {
    (from..from + count)
        .flat_map(|n| format!("{n}\n").into_bytes())
        .collect()
}

#[test]
fn i8_what_was_told_is_told_again_with_the_same_numbers() {
    let (_directory, spool) = spool();
    let mut process = Process::begin(&spool);
    process.say_output(b"one\n");
    process.take(Fact::StopRequested(StopCause::TimedOut));
    process.say_output(b"two\n");
    let before = events(&process.log);
    let id = process.id();
    drop(process);
    let loaded = spool.load(id).expect("a journal");
    assert_eq!(events(&loaded.log), before);
    assert_eq!(loaded.accepted.note["name"], "n");
    assert!(loaded.record.is_none() && loaded.untold.is_empty());
    assert_eq!(loaded.ledger.stop_cause(), Some(&StopCause::TimedOut));
}

#[test]
fn i8_output_that_nobody_was_told_of_is_found_behind_what_was() {
    let (_directory, spool) = spool();
    let mut process = Process::begin(&spool);
    process.say_output(b"told\n");
    // More than a segment holds, so that files were begun of which no fact tells.
    let untold = counting(0, 20_000);
    for piece in untold.chunks(50_000) {
        process.move_output(piece);
    }
    let id = process.id();
    drop(process);
    let mut loaded = spool.load(id).expect("a journal");
    assert!(loaded.untold.len() > 1, "{:?}", loaded.untold);
    for (_, fact) in std::mem::take(&mut loaded.untold) {
        for effect in loaded.ledger.apply(fact, Timestamp::now()) {
            if let Effect::Append(draft) = effect {
                loaded.log.append_event(draft);
            }
        }
    }
    let all = bytes(&events(&loaded.log));
    assert_eq!(all, [b"told\n".as_slice(), &untold].concat());
}

#[test]
fn i1_a_record_is_the_same_when_it_is_read_again() {
    let (_directory, spool) = spool();
    let mut process = Process::begin(&spool);
    process.say_output(b"x");
    process.end();
    let (id, record, before) = (process.id(), process.log.record(), events(&process.log));
    let record = record.expect("it is sealed");
    drop(process);
    assert_eq!(spool.find().expect("a directory").sealed, [id]);
    let loaded = spool.load(id).expect("a journal");
    assert_eq!(json(&loaded.record.expect("its record")), json(&record));
    assert_eq!(texts(&events(&loaded.log)), texts(&before));
    spool.remove(&[id].into()).expect("a directory");
    let left: Vec<_> = std::fs::read_dir(&spool.directory.path).expect("it").collect();
    assert_eq!(left.len(), 1, "{left:?}"); // the ballast
}

#[test]
fn i8_what_a_daemon_that_died_had_left_to_do_about_a_record_is_done_when_it_is_read() {
    let (_directory, spool) = spool();
    let mut process = Process::begin(&spool);
    process.end();
    let id = process.id();
    drop(process);
    let place = |kind| spool.directory.path.join(journal_name(id, kind));
    for was_renamed in [false, true] {
        if !was_renamed {
            std::fs::rename(place(SEALED), place(LIVE)).expect("a journal with a record");
        }
        let loaded = spool.load(id).expect("a journal");
        assert!(loaded.record.is_some());
        let (told, done) = std::sync::mpsc::channel();
        loaded
            .journal
            .once_kept(move || told.send(()).expect("somebody asks"));
        done.try_recv().expect("it is kept: the keeper may forget");
        assert_eq!(spool.find().expect("a directory").sealed, [id]);
    }
}

#[test]
fn i1_a_process_of_which_everything_was_known_is_sealed_when_it_is_read() {
    let (_directory, spool) = spool();
    let mut process = Process::begin(&spool);
    process.end();
    let (id, record) = (process.id(), process.log.record().expect("it is sealed"));
    drop(process);
    // The crash came before the record was written down.
    let name = spool.directory.path.join(journal_name(id, SEALED));
    let whole = std::fs::read(&name).expect("the journal");
    let mut ends = Vec::new();
    let mut at = 0;
    while at < whole.len() {
        at += 8 + u32::from_le_bytes(whole[at..at + 4].try_into().expect("four")) as usize;
        ends.push(at);
    }
    let cut = ends[ends.len() - 2];
    let live = spool.directory.path.join(journal_name(id, LIVE));
    std::fs::rename(&name, &live).expect("renamed");
    File::options()
        .write(true)
        .open(&live)
        .expect("it")
        .set_len(cut as u64)
        .expect("cut");
    for _ in 0..2 {
        let loaded = spool.load(id).expect("a journal");
        assert_eq!(json(&loaded.record.expect("its record")), json(&record));
    }
    assert_eq!(spool.find().expect("a directory").sealed, [id]);
}

#[test]
fn i3_retention_drops_whole_files_and_readers_are_told_of_the_gap() {
    let (directory, spool) = spool();
    let mut process = Process::begin(&spool);
    for n in 0..100 {
        process.say_output(&counting(n * 8000, 8000));
    }
    let size = |directory: &Path| -> u64 {
        let files = std::fs::read_dir(directory)
            .expect("it")
            .map(|file| file.expect("a file"));
        let output = files.filter(|file| file.file_name().to_string_lossy().contains("stdout"));
        output.map(|file| file.metadata().expect("a file").len()).sum()
    };
    let kept = size(&directory.path().join("spool"));
    assert!(kept < 600_000, "{kept} bytes of output are kept on disk");
    let (id, end) = (process.id(), process.writer.end());
    let before = events(&process.log);
    let mut at = 0;
    for event in &before {
        match &event.body {
            EventBody::Output { offset, data, .. } => {
                assert_eq!(*offset, at);
                at += data.len() as u64;
            }
            EventBody::Gap { from, to, .. } => {
                assert_eq!(*from, at);
                at = *to;
            }
            _ => {}
        }
    }
    assert_eq!(at, end);
    // The beginning and the end are there.
    assert!(matches!(&before[0].body, EventBody::Output { data, .. } if data.starts_with(b"0\n1\n")));
    process.end();
    drop(process);
    let loaded = spool.load(id).expect("a journal");
    let again = events(&loaded.log);
    assert_eq!(
        again.last().map(|event| event.seq),
        Some(before.last().expect("one").seq + 4)
    );
    let tail = |events: &[Event]| match &events
        .iter()
        .rev()
        .find(|event| matches!(event.body, EventBody::Output { .. }))
        .expect("output")
        .body
    {
        EventBody::Output { data, .. } => data.clone(),
        _ => unreachable!("looked for output"),
    };
    assert_eq!(tail(&again), tail(&before));
}

#[test]
fn a_spool_that_others_can_read_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    let refused = Spool::open(directory.path(), WhenFull::Drop).expect_err("it is open to others");
    assert!(refused.to_string().contains("0700"), "{refused}");
}

fn any_fact() -> impl Strategy<Value = Fact> {
    prop_oneof![
        (any::<u64>(), any::<u64>()).prop_map(|(offset, length)| Fact::Output {
            stream: OUT,
            offset,
            length
        }),
        any::<i32>().prop_map(|code| Fact::Exited(Exit::Code(code))),
        "[a-z]{0,40}".prop_map(|reason| Fact::StopRequested(StopCause::Cancelled { reason })),
        "\\PC{0,20}".prop_map(Fact::Probed),
        Just(Fact::DrainExpired),
    ]
}

proptest! {
    /// However much of the end is missing or wrong, everything before it is read, and it can be gone on with.
    #[test]
    fn i8_a_torn_journal_gives_its_whole_frames(
        facts in proptest::collection::vec(any_fact(), 0..20),
        torn in any::<prop::sample::Index>(),
        flip in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("journal");
        let open = || File::options().read(true).write(true).create(true).truncate(false).open(&path).expect("a file");
        let mut journal = Journal::new(open(), 0).expect("a journal");
        let time = Timestamp::now();
        let mut ends = vec![0];
        for fact in &facts {
            journal.append(time, &Entry::Fact(fact.clone())).written().expect("a disk");
            ends.push(std::fs::metadata(&path).expect("a file").len());
        }
        let mut bytes = std::fs::read(&path).expect("a file");
        bytes.truncate(torn.index(bytes.len() + 1));
        let mut sound = bytes.len();
        if let Some(flip) = flip.filter(|_| !bytes.is_empty()) {
            sound = flip.index(bytes.len());
            bytes[sound] ^= 0x10;
        }
        let whole = ends.iter().filter(|end| **end <= sound as u64).count() - 1;
        let mut read = Vec::new();
        let length = journal::read(&bytes, |at, entry| {
            assert_eq!(at, time);
            if let Entry::Fact(fact) = entry {
                read.push(fact);
            }
            Ok::<(), ()>(())
        }).expect("nothing refuses");
        prop_assert_eq!(length, ends[whole]);
        prop_assert_eq!(&read, &facts[..whole]);
        std::fs::write(&path, &bytes).expect("a disk");
        let mut journal = Journal::new(open(), length).expect("a journal");
        journal.append(time, &Entry::Stdin(StdinProgress::default())).written().expect("a disk");
        let bytes = std::fs::read(&path).expect("a file");
        let mut count = 0;
        journal::read(&bytes, |_, _| { count += 1; Ok::<(), ()>(()) }).expect("nothing refuses");
        prop_assert_eq!(count, whole + 1);
    }
}
