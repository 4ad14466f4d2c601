//! A journal that was made short tells the same as all its facts.

use std::sync::Arc;

use provost_sandbox::denial::{Decision, Denial, DenialClass, DenialTarget};
use provost_sandbox::observe::notify::{Grant, KeepsCalls, Notification, Response};
use serde_json::Value;

use super::full::{fill, make_room};
use super::*;
use crate::approval::{ApprovalScope, GrantRecord};
use crate::record::tests::{denial, report};

/// What happens to a process.
#[derive(Debug, Clone)]
enum Step {
    Output(usize),
    /// Output for which there was no room.
    Lost(u64),
    Fact(Box<Fact>),
    Stdin(StdinProgress),
    /// It made a call that waits for an answer.
    Call,
    /// One of its calls, chosen so, is answered: with facts, and more denials of a Landlock domain.
    Answered(usize, Vec<Fact>, Option<(u64, u64)>),
    /// The answer was given, and the call's place may be used again.
    Done(usize),
    /// The ledger takes one of the facts that were observed, chosen so.
    Take(usize),
    Granted(ApprovalScope, Grant),
    /// A call waits for somebody to allow it.
    Asked,
    Decided(u64, Decision),
    Compact,
    /// No journal can be written from now on.
    Full,
    /// It can be again.
    Room,
    /// All this comes while the journal is made short.
    CompactDuring(Vec<Step>),
}

fn any_step() -> impl Strategy<Value = Step> {
    let during = proptest::collection::vec(any_small_step(), 0..40).prop_map(Step::CompactDuring);
    prop_oneof![8 => any_small_step(), 1 => Just(Step::Compact), 1 => during]
}

fn any_small_step() -> impl Strategy<Value = Step> {
    let answered = (
        any::<usize>(),
        proptest::collection::vec(any_small_fact(), 0..3),
        proptest::option::of((0..4_u64, any::<u64>())),
    );
    let grant = prop_oneof![
        (any::<[u8; 4]>(), any::<u16>()).prop_map(|(address, port)| Grant::Connect {
            address: std::net::IpAddr::from(address),
            port
        }),
        "[a-z]{1,9}".prop_map(|name| Grant::Name { name }),
    ];
    let scope = prop_oneof![Just(ApprovalScope::Process), Just(ApprovalScope::Session)];
    let decision = prop_oneof![Just(Decision::Allow), Just(Decision::Deny)];
    prop_oneof![
        4 => (1..120_000_usize).prop_map(Step::Output),
        1 => (1..100_000_u64).prop_map(Step::Lost),
        4 => any_small_fact().prop_map(|fact| Step::Fact(Box::new(fact))),
        1 => (any::<u64>(), any::<u64>()).prop_map(|(written, intended)| Step::Stdin(StdinProgress { written, intended })),
        3 => Just(Step::Call),
        5 => answered.prop_map(|(call, facts, domain)| Step::Answered(call, facts, domain)),
        3 => any::<usize>().prop_map(Step::Done),
        5 => any::<usize>().prop_map(Step::Take),
        1 => (scope, grant).prop_map(|(scope, grant)| Step::Granted(scope, grant)),
        2 => Just(Step::Asked),
        1 => Just(Step::Full),
        1 => Just(Step::Room),
        1 => (0..6_u64, decision).prop_map(|(approval, decision)| Step::Decided(approval, decision)),
    ]
}

/// Facts that do not end it.
fn any_small_fact() -> impl Strategy<Value = Fact> {
    let denied = (0..50_u32).prop_map(|n| Fact::Denied(attempt(n)));
    prop_oneof![
        denied,
        "\\PC{0,20}".prop_map(Fact::Probed),
        "[a-z]{0,40}".prop_map(|reason| Fact::StopRequested(StopCause::Cancelled { reason })),
        any::<i32>().prop_map(|code| Fact::Exited(Exit::Code(code))),
        "[a-z]{0,9}".prop_map(|session| Fact::Detached { session }),
        "[a-z]{0,9}".prop_map(|session| Fact::Attached { session }),
        "[a-z]{0,9}".prop_map(Fact::Unobserved),
        (1..9_u64).prop_map(|extra| Fact::DenialsCounted {
            class: DenialClass::Filesystem,
            extra
        }),
        Just(Fact::Started {
            pid: 7,
            report: Arc::new(report())
        }),
        Just(Fact::SignalSent {
            signal: "SIGTERM".into(),
            scope: "tree".into(),
            cause: "x".into()
        }),
        Just(Fact::DrainExpired),
        Just(Fact::DrainHeld),
        Just(Fact::OutOfMemory),
        Just(Fact::StreamClosed {
            stream: StreamName::Stderr,
            closed: Closed::Eof
        }),
    ]
}

fn attempt(n: u32) -> Denial {
    let target = DenialTarget::path(format!("/{n}"));
    denial(DenialClass::Filesystem, "open", target)
}

/// The ledger, but for how it remembers what it has seen.
fn told(ledger: &Ledger) -> Value {
    let mut value = serde_json::to_value(ledger).expect("JSON");
    let denials = &mut value["denials"];
    denials["key"] = Value::Null;
    let seen = denials["seen"].as_object().expect("a map").iter();
    let counts: Vec<_> = seen
        .map(|(class, seen)| (class.clone(), seen.as_array().expect("hashes").len()))
        .collect();
    denials["seen"] = serde_json::json!(counts);
    value
}

/// Events by number, and gaps.
type Told = (Vec<(u64, Value)>, Vec<(u64, u64)>);

/// What a reader gets: its events with their numbers, and what is a gap. (What retention dropped is told where its last event
/// was; when the facts are applied again, the same range may be told in several gaps.)
fn read(log: &Arc<Log>) -> Told {
    let (mut told, mut gaps) = (Vec::new(), Vec::<(u64, u64)>::new());
    for event in events(log) {
        let value = match &event.body {
            EventBody::Gap { from, to, .. } => {
                match gaps.last_mut() {
                    Some((_, end)) if end == from => *end = *to,
                    _ => gaps.push((*from, *to)),
                }
                continue;
            }
            // What differs is to be seen at a glance.
            EventBody::Output { offset, data, .. } => {
                serde_json::json!([offset, data.len(), crc32fast::hash(data)])
            }
            _ => serde_json::to_value(&event).expect("JSON"),
        };
        told.push((event.seq, value));
    }
    (told, gaps)
}

/// Whether a reader is told the same. Output that retention had dropped may be told again where all facts are applied again
/// and its bytes lie in a file that was kept for others; the short journal remembers that it is a gap.
fn is_like((short, gaps): &Told, (whole, whole_gaps): &Told) -> bool {
    let within = |from: u64, to: u64| gaps.iter().any(|gap| gap.0 <= from && to <= gap.1);
    let was_dropped = |value: &Value| {
        let place = value
            .as_array()
            .map(|output| (output[0].as_u64(), output[1].as_u64()));
        matches!(place, Some((Some(offset), Some(length))) if within(offset, offset + length))
    };
    short.iter().all(|told| whole.contains(told))
        && whole_gaps.iter().all(|gap| within(gap.0, gap.1))
        && whole
            .iter()
            .all(|told| short.contains(told) || was_dropped(&told.1))
}

/// A process whose journal is made short, and beside it the same journal as it would be otherwise.
struct Twins {
    process: Process,
    calls: Calls,
    directory: tempfile::TempDir,
    whole: Arc<ProcessSpool>,
    whole_spool: Arc<Spool>,
    whole_directory: tempfile::TempDir,
    /// Observed, and not taken.
    waiting: Vec<(u64, Fact)>,
    /// Calls that were received, and those of them that have their answer.
    received: Vec<u64>,
    answered: Vec<u64>,
    call: u64,
    asked: u64,
}

impl Twins {
    fn begin() -> Self {
        let ((directory, spool), (whole_directory, whole_spool)) = (super::spool(), super::spool());
        let accepted = accepted(&spool);
        let whole = whole_spool.begin(accepted.clone()).expect("a journal");
        let process = Process::of(&spool, accepted);
        let calls = Calls::new(process.spool.clone(), &[]);
        calls.place().expect("room");
        Self {
            process,
            calls,
            directory,
            whole,
            whole_spool,
            whole_directory,
            waiting: Vec::new(),
            received: Vec::new(),
            answered: Vec::new(),
            // Ids begin anywhere.
            call: u64::MAX - 3,
            asked: 0,
        }
    }

    fn write(&self, entry: &Entry) {
        let now = Timestamp::now();
        let _ = self.process.spool.write(now, entry);
        self.whole.write(now, entry).expect("a disk");
    }

    fn take(&mut self, number: Option<u64>, fact: Fact) {
        let now = Timestamp::now();
        for spool in [&self.process.spool, &self.whole] {
            let _ = spool.write(now, &number.map_or(Entry::Fact(fact.clone()), Entry::Took));
        }
        for effect in self.process.ledger.apply(fact, now) {
            match effect {
                Effect::Append(draft) => self.process.log.append_event(draft),
                Effect::Seal { time, record } => {
                    let seal = |record: &Arc<TerminalRecord>| {
                        self.process.spool.seal(time, record);
                        self.whole.seal(time, record);
                    };
                    self.process.log.seal_after(time, *record, seal);
                }
                _ => {}
            }
        }
    }

    fn observe(&mut self, observed: Observed) {
        let facts = self.process.spool.observe(observed.clone());
        assert_eq!(facts, self.whole.observe(observed), "they are numbered alike");
        let facts = facts.into_iter();
        self.waiting
            .extend(facts.map(|(number, fact)| (number.expect("a disk"), fact)));
    }

    fn output(&mut self, length: usize) {
        let bytes: Vec<u8> = (0..length).map(|n| n as u8).collect();
        for piece in bytes.chunks(50_000) {
            for fact in self.process.move_output(piece) {
                self.take(None, fact);
            }
        }
    }

    fn compact(&mut self, meanwhile: Vec<Step>) {
        let (spool, cut) = (self.process.spool.clone(), self.process.spool.cut());
        let (ledger, log) = (self.process.ledger.clone(), self.process.log.kept());
        std::thread::scope(|scope| {
            scope.spawn(move || spool.compact(&cut, ledger, log));
            for step in meanwhile {
                self.step(step);
            }
        });
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Output(length) => self.output(length),
            Step::Lost(length) => {
                let (stream, offset) = (OUT, self.process.writer.end());
                self.process.writer.skip(length);
                self.take(
                    None,
                    Fact::Output {
                        stream,
                        offset,
                        length,
                    },
                );
            }
            Step::Fact(fact) => self.take(None, *fact),
            Step::Stdin(progress) => self.write(&Entry::Stdin(progress)),
            Step::Call => {
                self.call = self.call.wrapping_add(1);
                self.calls.unplaced(&Notification {
                    id: self.call,
                    pid: 7,
                    number: 42,
                    arch: 0xc000_003e,
                    args: [1, 2, 3, 4, 5, 6],
                });
                self.received.push(self.call);
            }
            Step::Answered(at, facts, domain) => {
                let call = choose(&mut self.received, at);
                self.answered.extend(call);
                self.observe(Observed {
                    facts,
                    answered: call.map(|call| (call, Response::Errno(at as i32 & 0xfff))),
                    domains: domain.into_iter().collect(),
                    ..Observed::default()
                });
            }
            Step::Done(at) => {
                if let Some(call) = choose(&mut self.answered, at) {
                    self.calls.release(call);
                }
            }
            Step::Take(at) => {
                if let Some((number, fact)) = choose(&mut self.waiting, at) {
                    self.take(Some(number), fact);
                }
            }
            Step::Granted(scope, grant) => self.write(&Entry::Granted(scope, grant)),
            Step::Asked => {
                self.asked += 1;
                let requested = Fact::ApprovalRequested {
                    approval: self.asked,
                    attempt: Box::new(attempt(7)),
                    deadline: Timestamp::UNIX_EPOCH,
                };
                let facts = vec![requested];
                self.observe(Observed {
                    facts,
                    ..Observed::default()
                });
            }
            Step::Decided(approval, decision) => {
                let attempt = attempt(7);
                let grant = GrantRecord {
                    approval,
                    scope: ApprovalScope::Once,
                    operation: attempt.operation,
                    target: attempt.target,
                    by: "somebody".to_owned(),
                };
                let grant = Box::new(grant);
                let facts = vec![Fact::ApprovalDecided { grant, decision }];
                self.observe(Observed {
                    facts,
                    ..Observed::default()
                });
            }
            Step::Compact => self.compact(Vec::new()),
            Step::Full => fill(&self.process.spool),
            Step::Room => make_room(&self.process.spool),
            Step::CompactDuring(steps) => self.compact(steps),
        }
    }

    /// Both die, and are loaded. What is not a journal is the same for both.
    fn load(self) -> [(tempfile::TempDir, Loaded); 2] {
        let id = self.process.id();
        let spool = self.process.spool.spool();
        make_room(&self.process.spool);
        assert!(
            !spool.owes(id) && spool.trouble().is_none(),
            "{:?}",
            spool.trouble()
        );
        drop((self.process, self.calls, self.whole));
        let (from, to) = (
            self.directory.path().join("spool"),
            self.whole_directory.path().join("spool"),
        );
        for file in std::fs::read_dir(&from).expect("it") {
            let name = file.expect("a file").file_name();
            let kind = name.to_str().and_then(|name| name.split_once('.'));
            if kind.is_some_and(|(_, kind)| ![LIVE, SEALED].contains(&kind)) {
                std::fs::copy(from.join(&name), to.join(&name)).expect("a disk");
            }
        }
        [(self.directory, spool), (self.whole_directory, self.whole_spool)]
            .map(|(directory, spool)| (directory, spool.load(id).expect("a journal")))
    }
}

fn choose<T>(from: &mut Vec<T>, at: usize) -> Option<T> {
    (!from.is_empty()).then(|| from.remove(at % from.len()))
}

fn ends() -> Vec<Fact> {
    let closed = Closed::Eof;
    let streams = [OUT, StreamName::Stderr].map(|stream| Fact::StreamClosed { stream, closed });
    let mut facts = vec![Fact::Exited(Exit::Code(7)), Fact::OutOfMemory];
    facts.extend(streams);
    facts.push(Fact::TreeEmpty {
        killed: 0,
        usage: None,
        unkillable: Vec::new(),
    });
    facts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is in it, and wherever it is made short.
    #[test]
    fn i8_a_short_journal_tells_what_all_its_entries_tell(
        steps in proptest::collection::vec(any_step(), 1..40),
        untold in 0..60_000_usize,
        ends_too in any::<bool>(),
    ) {
        let mut twins = Twins::begin();
        let times = steps.iter().filter(|step| matches!(step, Step::Compact | Step::CompactDuring(_))).count();
        for step in steps {
            twins.step(step);
        }
        if ends_too {
            for fact in ends() {
                twins.take(None, fact);
            }
        } else if untold > 0 {
            // Nobody has time to say it.
            twins.process.move_output(&vec![b'u'; untold]);
        }
        let before = (twins.process.ledger.clone(), twins.process.log.clone());
        let [(_one, mut short), (_other, mut whole)] = twins.load();
        prop_assert_eq!(told(&short.ledger), told(&whole.ledger), "after {} times", times);
        prop_assert_eq!(told(&short.ledger), told(&before.0));
        let (brief, full) = (read(&short.log), read(&whole.log));
        prop_assert!(is_like(&brief, &full), "after {} times: {:?}\n{:?}", times, brief, full);
        prop_assert_eq!(short.log.last_seq(), whole.log.last_seq());
        prop_assert_eq!(short.log.last_seq(), before.1.last_seq());
        prop_assert_eq!(short.stdin, whole.stdin);
        prop_assert_eq!(&short.untold, &whole.untold);
        prop_assert_eq!(&short.accepted, &whole.accepted);
        prop_assert_eq!(short.record.as_deref().map(json), whole.record.as_deref().map(json));
        prop_assert_eq!(short.record.is_some(), ends_too);
        prop_assert_eq!(short.journal.take_unfinished(), whole.journal.take_unfinished());
        let next = || Observed { facts: vec![Fact::OutOfMemory], ..Observed::default() };
        prop_assert_eq!(short.journal.observe(next()), whole.journal.observe(next()));
        // And what comes then comes to the same.
        let later = std::mem::take(&mut short.untold).into_iter().map(|(_, fact)| fact).chain(ends());
        for fact in later {
            let now = Timestamp::now();
            prop_assert_eq!(short.ledger.apply(fact.clone(), now), whole.ledger.apply(fact, now));
        }
    }
}

#[test]
fn i2_a_refusal_that_was_taken_and_of_which_there_was_no_room_to_say_so_counts_once() {
    let mut twins = Twins::begin();
    let observed = |n| Observed {
        facts: vec![Fact::Denied(attempt(n))],
        ..Observed::default()
    };
    twins.observe(observed(1));
    twins.observe(observed(2));
    fill(&twins.process.spool);
    let (number, fact) = twins.waiting.remove(0);
    twins.take(Some(number), fact);
    twins.compact(Vec::new());
    let numbers = |twins: Twins| {
        let [(_directory, short), _] = twins.load();
        short
            .untold
            .into_iter()
            .map(|(number, _)| number)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        numbers(twins),
        [Some(1)],
        "the checkpoint has the first, and not the second"
    );
}

#[test]
fn a_journal_is_made_short_when_it_is_long_and_when_it_has_become_twice_as_long() {
    let (directory, spool) = spool();
    let mut process = Process::begin(&spool);
    let path = directory.path().join(format!("spool/{}.journal", process.id()));
    let length = || std::fs::metadata(&path).expect("a journal").len();
    let mut most = 0;
    let mut times = 0;
    for n in 0..20_000_u32 {
        process.take(Fact::Probed(format!("probe-{}", n % 10)));
        if let Some(cut) = process.spool.is_long() {
            assert!(process.spool.is_long().is_none(), "it is said once");
            let (ledger, log) = (process.ledger.clone(), process.log.kept());
            process.spool.compact(&cut, ledger, log);
            times += 1;
        }
        most = most.max(length());
    }
    assert!(times > 10 && most < 64 << 10, "{times} times, {most} bytes");
    let loaded = spool.load(process.id()).expect("a journal");
    assert_eq!(told(&loaded.ledger), told(&process.ledger));
}

#[test]
fn i8_a_journal_that_was_being_made_short_when_we_died_is_whole() {
    let (directory, spool) = spool();
    let mut process = Process::begin(&spool);
    process.say_output(&counting(0, 1000));
    let half = directory.path().join(format!("spool/{}.compacted", process.id()));
    std::fs::write(&half, "half of it").expect("a disk");
    let found = spool.find().expect("a directory");
    assert_eq!(found.live, [process.id()]);
    let loaded = spool.load(process.id()).expect("a journal");
    assert_eq!(read(&loaded.log), read(&process.log));
    assert!(!half.exists());
}

#[test]
fn what_a_newer_program_wrote_is_left_as_it_is() {
    let (directory, spool) = spool();
    let process = Process::begin(&spool);
    let path = directory.path().join(format!("spool/{}.journal", process.id()));
    let mut bytes = std::fs::read(&path).expect("a journal");
    let body = [200_u8; 20];
    bytes.extend(20_u32.to_le_bytes());
    bytes.extend(crc32fast::hash(&body).to_le_bytes());
    bytes.extend(body);
    std::fs::write(&path, &bytes).expect("a disk");
    let refused = spool.load(process.id()).expect_err("it is not understood");
    assert!(refused.to_string().contains("newer"), "{refused}");
    assert!(matches!(refused, LoadError::Unread(_)), "it may be read yet");
    assert_eq!(std::fs::read(&path).expect("a journal"), bytes);
}
