//! Whole processes, cut off at every byte: what was told by then is told again, the same, and nothing is invented.

use provost_sandbox::observe::notify::{KeepsCalls, Notification, SLOT_BYTES};

use super::*;
use crate::spool::fuzzing::texts;

/// A process that said things, was refused a call, was stopped and has its record.
struct Whole {
    id: ProcessId,
    told: Vec<Event>,
    journal: Vec<u8>,
    /// Lengths of the journal, with how many events were told when it had them, and whether the refusal was written down.
    steps: Vec<(usize, usize, bool)>,
}

impl Whole {
    fn begin(spool: &Arc<Spool>) -> Self {
        let mut process = Process::begin(spool);
        let id = process.id();
        let mut steps = Vec::new();
        let length = || {
            let place = |kind| spool.directory.path.join(journal_name(id, kind));
            let file = std::fs::metadata(place(LIVE)).or_else(|_| std::fs::metadata(place(SEALED)));
            file.expect("a journal").len() as usize
        };
        let mut step = |process: &Process, refused| {
            steps.push((length(), events(&process.log).len(), refused));
        };
        step(&process, false);
        process.say_output(b"one\n");
        step(&process, false);
        let observed = Observed {
            facts: vec![Fact::Denied(refusal())],
            ..Observed::default()
        };
        let observed = process.spool.observe(observed);
        step(&process, true);
        let progress = StdinProgress {
            written: 1,
            intended: 5,
        };
        process
            .spool
            .write(Timestamp::now(), &Entry::Stdin(progress))
            .expect("a disk");
        step(&process, true);
        for (number, fact) in observed {
            process.took(number.expect("there is room"), fact);
            step(&process, true);
        }
        process.take(Fact::StopRequested(StopCause::TimedOut));
        step(&process, true);
        process.say_output(b"two\n");
        step(&process, true);
        process.end();
        step(&process, true);
        let sealed = spool.directory.path.join(journal_name(id, SEALED));
        Self {
            id,
            told: events(&process.log),
            journal: std::fs::read(sealed).expect("the journal"),
            steps,
        }
    }

    /// How many events were told when the journal had that length, at least, and whether the refusal was known.
    fn told_at(&self, length: usize) -> Option<(usize, bool)> {
        let step = self.steps.iter().rev().find(|(end, ..)| *end <= length);
        step.map(|(_, told, refused)| (*told, *refused))
    }
}

/// Puts this in the place of what there is of a journal.
fn put(spool: &Spool, id: ProcessId, bytes: &[u8]) {
    let place = |kind| spool.directory.path.join(journal_name(id, kind));
    let _ = std::fs::remove_file(place(SEALED));
    std::fs::write(place(LIVE), bytes).expect("a journal");
}

/// How often the refusal is known, taken by the ledger or not.
fn refusals(loaded: &Loaded) -> usize {
    let told = events(&loaded.log);
    let told = told
        .iter()
        .filter(|event| matches!(event.body, EventBody::Denial { .. }));
    let untold = loaded.untold.iter();
    told.count() + untold.filter(|(_, fact)| matches!(fact, Fact::Denied(_))).count()
}

/// Everything told of standard output; what its file has lost is `?`.
fn out(events: &[Event]) -> Vec<u8> {
    let mut all = Vec::new();
    for event in events {
        match &event.body {
            EventBody::Output { offset, data, .. } => {
                assert_eq!(*offset, all.len() as u64);
                all.extend_from_slice(data);
            }
            EventBody::Gap { from, to, .. } => {
                assert_eq!(*from, all.len() as u64);
                all.resize(*to as usize, b'?');
            }
            _ => {}
        }
    }
    all
}

#[test]
fn i8_a_journal_that_ends_at_any_byte_tells_all_that_was_told_by_then_and_can_be_gone_on_with() {
    let (_directory, spool) = spool();
    let whole = Whole::begin(&spool);
    for end in 0..=whole.journal.len() {
        put(&spool, whole.id, &whole.journal[..end]);
        let Some((told, refused)) = whole.told_at(end) else {
            assert!(spool.load(whole.id).is_err(), "nothing was accepted at {end}");
            continue;
        };
        let loaded = spool.load(whole.id).expect("it was accepted");
        let again = events(&loaded.log);
        assert!(again.len() >= told, "told and forgotten, at {end}");
        assert_eq!(texts(&again), texts(&whole.told[..again.len()]), "at {end}");
        assert_eq!(
            loaded.record.is_some(),
            again.len() == whole.told.len(),
            "at {end}"
        );
        let known = refusals(&loaded);
        assert!(known == usize::from(refused), "{known} refusals at {end}");
        // Its end is a clean one: what comes next is read.
        let next = StdinProgress {
            written: 7,
            intended: 7,
        };
        loaded
            .journal
            .write(Timestamp::now(), &Entry::Stdin(next))
            .expect("a disk");
        let gone_on = spool.load(whole.id).expect("it was accepted");
        assert_eq!(gone_on.stdin, next, "at {end}");
        assert_eq!(texts(&events(&gone_on.log)), texts(&again), "at {end}");
    }
}

#[test]
fn i8_a_journal_with_any_byte_changed_tells_all_that_was_told_before_it() {
    let (_directory, spool) = spool();
    let whole = Whole::begin(&spool);
    for at in 0..whole.journal.len() {
        let mut changed = whole.journal.clone();
        changed[at] ^= 0x41;
        put(&spool, whole.id, &changed);
        let Some((told, _)) = whole.told_at(at) else {
            assert!(
                spool.load(whole.id).is_err(),
                "what was accepted is not known, at {at}"
            );
            continue;
        };
        let again = events(&spool.load(whole.id).expect("it was accepted").log);
        assert!(again.len() >= told, "told and forgotten, at {at}");
        assert_eq!(texts(&again), texts(&whole.told[..again.len()]), "at {at}");
    }
}

#[test]
fn i8_a_journal_of_another_process_is_refused() {
    let (_directory, spool) = spool();
    let whole = Whole::begin(&spool);
    let other = ProcessId::new();
    put(&spool, other, &whole.journal);
    let refused = spool.load(other).expect_err("it is another's");
    assert!(refused.to_string().contains("another process"), "{refused}");
    assert!(spool.load(whole.id).is_ok());
}

#[test]
fn i3_output_files_that_are_shorter_or_longer_than_was_told_give_what_there_is_in_its_place() {
    let (_directory, spool) = spool();
    let mut process = Process::begin(&spool);
    process.say_output(b"one\ntwo\n");
    process.say_output(b"three\n");
    let id = process.id();
    drop(process);
    let name = format!("{id}.stdout.{:016x}", 0);
    let place = spool.directory.path.join(name);
    let file = File::options().write(true).open(place).expect("a file of output");
    let all = b"one\ntwo\nthree\nmore!\n";
    for length in (0..=14).rev() {
        file.set_len(length as u64).expect("cut");
        let loaded = spool.load(id).expect("a journal");
        let there = out(&events(&loaded.log));
        assert_eq!(there.len(), 14, "what was told is not forgotten, at {length}");
        // Of an event that has lost some, all is said to be lost.
        let kept = [14, 8, 0].into_iter().find(|end| *end <= length).expect("0");
        let shown = String::from_utf8_lossy(&there);
        assert_eq!(there[..kept], all[..kept], "at {length}: {shown}");
        assert!(
            there[kept..].iter().all(|byte| *byte == b'?'),
            "at {length}: {shown}"
        );
        assert!(loaded.untold.is_empty(), "at {length}: {:?}", loaded.untold);
    }
    for length in 14..=all.len() {
        std::os::unix::fs::FileExt::write_all_at(&file, &all[..length], 0).expect("more");
        let loaded = spool.load(id).expect("a journal");
        assert_eq!(out(&events(&loaded.log)), all[..14]);
        let untold = loaded.untold.iter().map(|(_, fact)| fact.clone());
        let behind = (length > 14).then_some(Fact::Output {
            stream: OUT,
            offset: 14,
            length: length as u64 - 14,
        });
        assert!(untold.eq(behind), "at {length}: {:?}", loaded.untold);
    }
}

#[test]
fn i8_calls_under_way_that_are_cut_at_any_byte_are_those_that_are_whole() {
    let (_directory, spool) = spool();
    let process = Process::begin(&spool);
    let call = |id| Notification {
        id,
        pid: 42,
        number: 7,
        arch: 0xc000_003e,
        args: [u64::MAX; 6],
    };
    let calls = Calls::new(Arc::clone(&process.spool), &[]);
    calls.place().expect("room");
    for id in 1..=3 {
        calls.unplaced(&call(id));
    }
    let (id, path) = (process.id(), spool.directory.path.join(calls::name(process.id())));
    drop(process);
    let whole = std::fs::read(&path).expect("a file of calls");
    let mut longest = 0;
    // Behind the third slot all is empty.
    for end in (0..=4 * SLOT_BYTES).chain([whole.len()]) {
        std::fs::write(&path, &whole[..end]).expect("cut");
        let loaded = spool.load(id).expect("a journal");
        let unfinished = loaded.journal.take_unfinished();
        let read: Vec<_> = unfinished
            .calls
            .expect("there is a file")
            .into_iter()
            .flatten()
            .collect();
        let ids: Vec<_> = (1..).take(read.len()).map(call).collect();
        assert_eq!(read, ids, "at {end}");
        assert!(read.len() >= longest, "at {end}");
        longest = read.len();
    }
    assert_eq!(longest, 3);
}
