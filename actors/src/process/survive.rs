//! Every interleaving of a daemon, its keeper and one process, with crashes of both at every step.
//!
//! ```text
//! daemon ──spawn, forget──► keeper ──► the command: starts, writes, exits, ends
//!   │  ▲                     │
//!   │  └─started, exited, ended            what survives whom: journal, exits file, output file: everybody
//!   └─► journal, ledger, record                                the keeper's account, pipes: the daemon
//! ```
//!
//! The world below is written anew, from what the pages say and not from the code; but what is taken to the ledger goes to
//! the real one, and what follows from a keeper that knows nothing is decided by [`Unkept`]. Each walk ends where nothing can
//! happen any more but a crash, and there the record must be there, once, and true.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use provost_sandbox::keeper::exits::ExitRecord;
use provost_sandbox::keeper::wire::TreeEnd;

use super::unkept::Unkept;
use crate::event::StreamName;
use crate::exit::{decode, usage_of};
use crate::ledger::{Effect, Exit, Fact, Ledger, LedgerSpec, OnDenial, TreeRule};
use crate::record::tests::report;
use crate::record::{Closed, Outcome, TerminalRecord};

const OUT: StreamName = StreamName::Stdout;
const STATUS: i32 = 7 << 8;
const BYTES: u64 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    Spawn,
    Forget,
}

/// What a keeper says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Started,
    Exited,
    Ended,
    /// Of a keeper that is gone.
    Lost,
}

/// What a keeper knows of the process, and what it has told of that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Keeper {
    asked: bool,
    forgotten: bool,
    started: bool,
    exited: bool,
    ended: bool,
    told: [bool; 3],
}

/// What dies with a daemon.
#[derive(Debug, Clone, Default)]
struct Daemon {
    /// It holds the pipe.
    has_pipe: bool,
    /// Facts of the journal that its ledger has taken.
    applied: usize,
    /// Facts that are to be written down next.
    todo: VecDeque<Fact>,
    /// What it was told and has not read.
    heard: VecDeque<Word>,
    /// Sealed by its ledger and not written down yet.
    sealing: Option<Box<TerminalRecord>>,
    /// What it has yet to ask for.
    asks: VecDeque<Request>,
}

#[derive(Debug, Clone)]
struct World {
    // What survives everybody.
    journal: Vec<Fact>,
    records: Vec<TerminalRecord>,
    exits: Option<ExitRecord>,
    filed: u64,
    // The command.
    runs: u32,
    lives: bool,
    exited: bool,
    written: u64,
    // The others.
    keeper: Option<Keeper>,
    daemon: Option<Daemon>,
    /// Requests in the keeper's socket; what is in there outlives who sent it.
    socket: VecDeque<Request>,
    /// The highest number that anybody has seen.
    seen: u64,
    /// A keeper had written down how the command exited.
    was_known: bool,
    /// A daemon has outlived a keeper, and asked the kernel.
    asked_kernel: bool,
    keeper_died: bool,
    daemon_crashes: u32,
    keeper_crashes: u32,
}

fn spec() -> LedgerSpec {
    LedgerSpec {
        process: "01890a5d-ac96-774b-bcce-b302099a8057".parse().expect("an id"),
        session: None,
        argv: vec![],
        cwd: String::new(),
        labels: Default::default(),
        streams: vec![OUT],
        tree: TreeRule::Kill,
        on_denial: OnDenial::Report,
        expects_denials: false,
        report: false,
        queued_at: None,
    }
}

/// The ledger that these facts make, and what the last of them had it do.
fn replay(facts: &[Fact]) -> (Ledger, Vec<Effect>) {
    let mut ledger = Ledger::new(spec());
    let mut effects = Vec::new();
    for fact in facts {
        effects = ledger.apply(fact.clone(), Timestamp::UNIX_EPOCH);
    }
    (ledger, effects)
}

fn started() -> Fact {
    Fact::Started {
        pid: 42,
        report: Arc::new(report()),
    }
}

fn lost(reason: &str) -> Fact {
    let reason = reason.to_owned();
    Fact::Lost { reason }
}

impl World {
    /// The process was accepted: its journal is begun, and the keeper is about to be asked.
    fn new(daemon_crashes: u32, keeper_crashes: u32) -> Self {
        Self {
            journal: Vec::new(),
            records: Vec::new(),
            exits: None,
            filed: 0,
            runs: 0,
            lives: false,
            exited: false,
            written: 0,
            keeper: Some(Keeper::default()),
            daemon: Some(Daemon {
                asks: [Request::Spawn].into(),
                ..Daemon::default()
            }),
            socket: VecDeque::new(),
            seen: 0,
            was_known: false,
            asked_kernel: false,
            keeper_died: false,
            daemon_crashes,
            keeper_crashes,
        }
    }

    /// What may happen next, crashes aside.
    fn next(&self) -> Vec<Self> {
        let mut next = Vec::new();
        self.command_steps(&mut next);
        self.keeper_steps(&mut next);
        match &self.daemon {
            Some(daemon) => self.daemon_steps(daemon, &mut next),
            None => next.push(self.restarted()),
        }
        next
    }

    /// What may go wrong next.
    fn crashes(&self) -> Vec<Self> {
        let mut next = Vec::new();
        if self.daemon.is_some() && self.daemon_crashes > 0 {
            let mut then = self.clone();
            then.daemon_crashes -= 1;
            then.daemon = None;
            next.push(then);
        }
        if self.keeper.is_some() && self.keeper_crashes > 0 {
            let mut then = self.clone();
            then.keeper_crashes -= 1;
            then.keeper_died = true;
            then.keeper = None;
            then.socket.clear();
            // Nothing of what it held outlives it.
            then.lives = false;
            if let Some(daemon) = &mut then.daemon {
                daemon.heard.push_back(Word::Lost);
            }
            next.push(then);
        }
        next
    }

    fn command_steps(&self, next: &mut Vec<Self>) {
        if self.lives && !self.exited {
            if self.written == 0 {
                let mut then = self.clone();
                then.written = BYTES;
                next.push(then);
            }
            let mut then = self.clone();
            then.exited = true;
            then.lives = false;
            next.push(then);
        }
    }

    fn keeper_steps(&self, next: &mut Vec<Self>) {
        let Some(keeper) = self.keeper else { return };
        let mut step = |change: &dyn Fn(&mut Self, &mut Keeper)| {
            let (mut then, mut keeper) = (self.clone(), keeper);
            change(&mut then, &mut keeper);
            then.keeper = Some(keeper);
            next.push(then);
        };
        if !self.socket.is_empty() {
            step(&|then, keeper| match then.socket.pop_front() {
                Some(Request::Spawn) => keeper.asked = true,
                Some(Request::Forget) => {
                    keeper.forgotten = true;
                    // It holds nothing that has ended any more.
                    then.exits = None;
                }
                None => {}
            });
        }
        if keeper.asked && !keeper.started && !keeper.forgotten {
            step(&|then, keeper| {
                keeper.started = true;
                then.runs += 1;
                then.lives = true;
            });
        }
        // It writes down how things ended before it tells anybody.
        if keeper.started && self.exited && !keeper.exited && !keeper.forgotten {
            step(&|then, keeper| {
                keeper.exited = true;
                then.was_known = true;
                then.exits = Some(keeper.written());
            });
        }
        if keeper.exited && !keeper.ended && !keeper.forgotten {
            step(&|then, keeper| {
                keeper.ended = true;
                then.exits = Some(keeper.written());
            });
        }
        if self.daemon.is_some() && !keeper.forgotten {
            let known = [keeper.started, keeper.exited, keeper.ended];
            let words = [Word::Started, Word::Exited, Word::Ended];
            if let Some(index) = (0..3).find(|index| known[*index] && !keeper.told[*index]) {
                step(&|then, keeper| {
                    keeper.told[index] = true;
                    if let Some(daemon) = &mut then.daemon {
                        daemon.heard.push_back(words[index]);
                    }
                });
            }
        }
    }

    fn daemon_steps(&self, daemon: &Daemon, next: &mut Vec<Self>) {
        let mut step = |change: &dyn Fn(&mut Self, &mut Daemon)| {
            let (mut then, mut daemon) = (self.clone(), daemon.clone());
            change(&mut then, &mut daemon);
            then.daemon = Some(daemon);
            next.push(then);
        };
        if daemon.asks.front().is_some() && self.keeper.is_some() {
            step(&|then, daemon| then.socket.extend(daemon.asks.pop_front()));
        }
        if daemon.sealing.is_some() {
            // The record is written down, then seen, then the keeper may forget.
            return step(&|then, daemon| {
                then.records.extend(daemon.sealing.take().map(|record| *record));
                daemon.asks.push_back(Request::Forget);
            });
        }
        if !self.records.is_empty() {
            return;
        }
        if daemon.applied < self.journal.len() {
            // What is written down is taken by the ledger, and only then seen.
            return step(&|then, daemon| {
                daemon.applied += 1;
                let (ledger, effects) = replay(&then.journal[..daemon.applied]);
                then.seen = then.seen.max(ledger.last_seq());
                for effect in effects {
                    if let Effect::Seal { record, .. } = effect {
                        daemon.sealing = Some(record);
                        daemon.todo.clear();
                    }
                }
            });
        }
        if !daemon.todo.is_empty() {
            return step(&|then, daemon| then.journal.extend(daemon.todo.pop_front()));
        }
        if let Some(word) = daemon.heard.front().copied() {
            for facts in self.facts_of(word, daemon) {
                step(&|then, daemon| {
                    then.asked_kernel |= word == Word::Lost;
                    daemon.heard.pop_front();
                    daemon.has_pipe |= word == Word::Started;
                    daemon.todo.extend(facts.clone());
                });
            }
        }
        let (ledger, _) = replay(&self.journal);
        if daemon.has_pipe && !ledger.is_closed(OUT) {
            let stated = ledger.stated(OUT);
            if self.filed < self.written {
                // Between the two the bytes are in the file and no fact tells.
                step(&|then, _| then.filed = then.written);
            } else if stated < self.filed {
                let fact = Fact::Output {
                    stream: OUT,
                    offset: stated,
                    length: self.filed - stated,
                };
                step(&|_, daemon| daemon.todo.push_back(fact.clone()));
            } else if !self.lives && self.runs > 0 {
                let closed = Closed::Eof;
                step(&|_, daemon| {
                    daemon.todo.push_back(Fact::StreamClosed { stream: OUT, closed });
                });
            }
        }
    }

    /// What a daemon makes of a word: one of these, if it is not for us to say.
    fn facts_of(&self, word: Word, daemon: &Daemon) -> Vec<Vec<Fact>> {
        match word {
            Word::Started => vec![vec![started()]],
            Word::Exited => vec![vec![Fact::Exited(decode(STATUS))]],
            Word::Ended => vec![vec![tree_empty(TreeEnd::default())]],
            Word::Lost if daemon.has_pipe => {
                let reason = "the keeper ended".to_owned();
                let gone = Fact::SpawnerLost { reason };
                let killed = match self.exited {
                    true => decode(STATUS),
                    false => Exit::Signal("SIGKILL".to_owned()),
                };
                // The kernel still tells how it ended, or does not.
                vec![
                    vec![Fact::Exited(killed), gone.clone()],
                    vec![lost("nobody knows"), gone],
                ]
            }
            Word::Lost => vec![vec![lost("the keeper ended before it answered")]],
        }
    }

    /// Another daemon begins where the last one ended.
    fn restarted(&self) -> Self {
        let mut then = self.clone();
        let was_there = then.keeper.is_some();
        let mut keeper = then.keeper.unwrap_or_default();
        // What was asked of it is done before it serves somebody else.
        for request in then.socket.drain(..) {
            match request {
                Request::Spawn => keeper.asked = true,
                Request::Forget => {
                    keeper.forgotten = true;
                    then.exits = None;
                }
            }
        }
        let is_held = keeper.asked && !keeper.forgotten;
        let mut daemon = Daemon {
            applied: then.journal.len(),
            ..Daemon::default()
        };
        // All that is held is told at once, before anything is taken up.
        keeper.told = [keeper.started, keeper.exited, keeper.ended].map(|known| known && is_held);
        let words = [Word::Started, Word::Exited, Word::Ended]
            .into_iter()
            .zip(keeper.told);
        let heard = words.filter(|(_, told)| *told).map(|(word, _)| word);
        if then.records.is_empty() {
            daemon.heard.extend(heard);
        }
        then.keeper = Some(keeper);
        let (ledger, effects) = replay(&then.journal);
        assert!(
            ledger.last_seq() >= then.seen,
            "I8: what was seen is not undone: {then:?}"
        );
        if then.records.is_empty() {
            let seal = effects.into_iter().find_map(|effect| match effect {
                Effect::Seal { record, .. } => Some(record),
                _ => None,
            });
            let stated = ledger.stated(OUT);
            if seal.is_none() && stated < then.filed {
                daemon.todo.push_back(Fact::Output {
                    stream: OUT,
                    offset: stated,
                    length: then.filed - stated,
                });
            }
            daemon.sealing = seal;
            if daemon.sealing.is_none() && !is_held {
                let unkept = Unkept::why(true, was_there, then.exits);
                daemon.todo.extend(unkept.facts(&ledger, &[OUT], &[]));
            }
        } else if is_held {
            daemon.asks.push_back(Request::Forget);
        }
        then.daemon = Some(daemon);
        then
    }

    /// What must hold always.
    fn check(&self) {
        assert!(self.runs <= 1, "it runs once: {self:?}");
        assert!(self.records.len() <= 1, "I1: one record: {self:?}");
    }

    /// What must hold when nothing can happen any more.
    fn check_end(&self) {
        let [record] = self.records.as_slice() else {
            panic!("I1: nothing can come any more, and there is no record: {self:?}");
        };
        if record.outcome == Outcome::SpawnFailed {
            assert_eq!(self.runs, 0, "that nothing ran is true: {self:?}");
        }
        if record.outcome == Outcome::Exited {
            assert_eq!(record.exit_code, Some(7), "{self:?}");
            assert!(self.exited, "{self:?}");
        }
        assert!(!self.lives, "I6: nothing lives: {self:?}");
        let keeper = self.keeper.unwrap_or_default();
        assert!(
            !keeper.asked || keeper.forgotten,
            "nothing is kept for ever: {self:?}"
        );
        if self.was_known && !self.asked_kernel {
            assert_eq!(
                record.outcome,
                Outcome::Exited,
                "an exit that was known stays known: {self:?}"
            );
        }
        if !self.keeper_died {
            assert_eq!(self.runs > 0, record.outcome == Outcome::Exited, "{self:?}");
            let bytes = record.output[&OUT].bytes;
            assert_eq!(bytes, self.written, "I3: every byte is told: {self:?}");
        }
    }

    /// Two worlds with the same key have the same future.
    fn key(&self) -> String {
        let mut short = self.clone();
        for fact in &mut short.journal {
            if let Fact::Started { .. } = fact {
                *fact = Fact::DrainHeld;
            }
        }
        if let Some(daemon) = &mut short.daemon {
            daemon.sealing = daemon.sealing.take().map(|mut record| {
                record.sandbox = None;
                record
            });
        }
        format!("{short:?}")
    }
}

impl Keeper {
    fn written(&self) -> ExitRecord {
        ExitRecord {
            process: "01890a5d-ac96-774b-bcce-b302099a8057".parse().expect("an id"),
            status: self.exited.then_some(STATUS),
            end: self.ended.then(TreeEnd::default),
        }
    }
}

fn tree_empty(end: TreeEnd) -> Fact {
    Fact::TreeEmpty {
        killed: end.killed,
        usage: end.usage.map(usage_of),
        unkillable: Vec::new(),
    }
}

/// Walks everything that can happen; how many worlds there are, and how many ends.
fn explore(daemon_crashes: u32, keeper_crashes: u32) -> (usize, usize) {
    let mut known = HashSet::new();
    let mut ends = 0;
    let mut open = vec![World::new(daemon_crashes, keeper_crashes)];
    while let Some(world) = open.pop() {
        if !known.insert(world.key()) {
            continue;
        }
        world.check();
        let next = world.next();
        if next.is_empty() {
            world.check_end();
            ends += 1;
        }
        open.extend(next);
        open.extend(world.crashes());
    }
    (known.len(), ends)
}

#[test]
fn i1_i8_whenever_the_daemon_dies_the_record_comes_once_and_tells_the_exit_and_every_byte() {
    let (worlds, ends) = explore(2, 0);
    println!("{worlds} worlds, {ends} ends");
    assert!(worlds > 1_000 && ends > 1, "{worlds} worlds, {ends} ends");
}

#[test]
fn i1_whenever_daemon_and_keeper_die_the_record_comes_once_and_an_exit_that_was_known_stays_known() {
    let (worlds, ends) = explore(1, 1);
    println!("{worlds} worlds, {ends} ends");
    assert!(worlds > 1_000 && ends > 1, "{worlds} worlds, {ends} ends");
}
