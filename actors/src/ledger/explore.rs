//! Every interleaving there is.
//!
//! Each actor around a process is a *chain*: facts that it says in its own order. The explorer walks all
//! merges of the chains, fires the drain timer at every moment at which it runs, and holds each step against
//! a model which is written independently of the ledger: counts, and nothing else. A fact can be *gated*: it
//! comes only after an effect was told, as a tree that never ends by itself. At the end of each walk,
//! when nothing can come any more, the record must be there; so a ledger that waits for what will not come
//! fails as well as one that does not wait.

use std::rc::Rc;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use provost_sandbox::denial::{Denial, DenialClass, DenialTarget};

use super::tests::spec;
use super::*;
use crate::record::tests::{denial, report};
use crate::record::{Outcome, TerminalRecord, Usage};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Free,
    /// Only when the tree is stopped or killed.
    AfterKill,
    /// Only when the stream actors were told to give up.
    AfterAbandon,
    Never,
}

type Chain = Vec<(Gate, Fact)>;

/// What the effects and facts so far amount to.
#[derive(Clone)]
struct World {
    ledger: Ledger,
    next: Vec<usize>,
    step: i64,
    seq: u64,
    armed: bool,
    stopping: bool,
    killed: bool,
    abandoned: bool,
    // The model of the facts.
    started: bool,
    bytes: [u64; 3],
    closed: [Option<Closed>; 3],
    given_up: [bool; 3],
    exit: bool,
    lost: bool,
    spawner_lost: bool,
    drained: bool,
    tree: bool,
    denials: u64,
    stop: Option<Outcome>,
    record: Option<Rc<TerminalRecord>>,
}

impl World {
    fn new(spec: LedgerSpec, chains: usize) -> Self {
        Self {
            next: vec![0; chains],
            drained: !spec.expects_denials,
            ledger: Ledger::new(spec),
            step: 0,
            seq: 0,
            armed: false,
            stopping: false,
            killed: false,
            abandoned: false,
            started: false,
            bytes: [0; 3],
            closed: [None; 3],
            given_up: [false; 3],
            exit: false,
            lost: false,
            spawner_lost: false,
            tree: false,
            denials: 0,
            stop: None,
            record: None,
        }
    }
}

struct Explorer {
    chains: Vec<Chain>,
    /// The first two chains are alike but for a stream's name, so walks that differ only in which of them
    /// begins count as one.
    twins: bool,
    on_denial: OnDenial,
    streams: Vec<StreamName>,
    walks: u64,
}

impl Explorer {
    /// Walks every merge of the chains, after the facts in `first`; says how many there were.
    fn run(spec: LedgerSpec, first: Vec<Fact>, chains: Vec<Chain>) -> u64 {
        let mut explorer = Self {
            on_denial: spec.on_denial,
            streams: spec.streams.clone(),
            walks: 0,
            twins: are_twins(&chains),
            chains,
        };
        let mut world = World::new(spec, explorer.chains.len());
        for fact in first {
            explorer.step(&mut world, fact);
        }
        explorer.walk(world);
        explorer.walks
    }

    fn walk(&mut self, mut world: World) {
        if world.record.is_some() {
            // The state is final (no fact changes it any more), so one order of the rest is as good as any.
            self.walks += 1;
            for (chain, next) in self.chains.iter().zip(&world.next) {
                for (_, fact) in &chain[*next..] {
                    let effects = world.ledger.apply(fact.clone(), Timestamp::UNIX_EPOCH);
                    assert_eq!(effects, [], "I1: nothing follows the record");
                }
            }
            return;
        }
        let mut stuck = true;
        for chain in 0..self.chains.len() {
            let Some((gate, fact)) = self.chains[chain].get(world.next[chain]).cloned() else {
                continue;
            };
            let open = match gate {
                Gate::Free => true,
                Gate::AfterKill => world.killed || world.stopping,
                Gate::AfterAbandon => world.abandoned,
                Gate::Never => false,
            };
            if self.twins && chain == 1 && world.next[0] == 0 {
                continue;
            }
            if open {
                stuck = false;
                let mut then = world.clone();
                then.next[chain] += 1;
                self.step(&mut then, fact);
                self.walk(then);
            }
        }
        if world.armed {
            stuck = false;
            let mut then = world.clone();
            then.armed = false;
            self.step(&mut then, Fact::DrainExpired);
            self.walk(then);
        }
        assert!(
            !stuck,
            "I1: nothing can come any more, and there is no record: {world:?}"
        );
    }

    fn step(&self, world: &mut World, fact: Fact) {
        self.note(world, &fact);
        world.step += 1;
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_millis(world.step);
        let effects = world.ledger.apply(fact, now);
        for (index, effect) in effects.iter().enumerate() {
            match effect {
                Effect::Append(draft) => {
                    world.seq += 1;
                    assert_eq!(draft.seq, world.seq, "numbers have no gaps");
                }
                Effect::Seal { record, .. } => {
                    assert_eq!(index, effects.len() - 1, "I1: the record is last");
                    assert_eq!(record.last_seq, world.seq + 1, "I1: its number is the highest");
                    world.record = Some(Rc::new((**record).clone()));
                }
                Effect::ArmDrain => {
                    assert!(!world.armed, "the timer runs already");
                    world.armed = true;
                }
                Effect::KillTree => {
                    assert!(!world.killed && !world.tree);
                    world.killed = true;
                }
                Effect::StopTree { .. } => {
                    assert!(!world.stopping && !world.tree);
                    world.stopping = true;
                }
                Effect::AbandonStreams => {
                    assert!(
                        world.tree || world.spawner_lost,
                        "only a stranger's hold is given up"
                    );
                    world.abandoned = true;
                }
            }
        }
        self.check(world);
    }

    /// What the fact means to the model.
    fn note(&self, world: &mut World, fact: &Fact) {
        let open = world.exit || world.lost;
        match fact {
            Fact::Started { .. } => world.started = true,
            Fact::Output { stream, length, .. } => world.bytes[stream.index()] += length,
            Fact::StreamClosed { stream, closed } => {
                let index = stream.index();
                let closed = if world.given_up[index] {
                    Closed::Abandoned
                } else {
                    *closed
                };
                world.closed[index] = Some(closed);
            }
            Fact::Exited(_) => world.exit = true,
            Fact::TreeEmpty { .. } => world.tree = true,
            Fact::Denied(_) => {
                world.denials += 1;
                if self.on_denial == OnDenial::Stop && !open {
                    world.stop.get_or_insert(Outcome::Denied);
                }
            }
            Fact::DenialsDrained { .. } => world.drained = true,
            Fact::StopRequested(cause) if !open => {
                world.stop.get_or_insert(cause.outcome());
            }
            Fact::DrainExpired => {
                let last_resort = world.abandoned;
                // Once the tree is gone a stream says itself whether it came to its end.
                let tree_holds = !world.tree && !world.spawner_lost;
                for stream in &self.streams {
                    let index = stream.index();
                    world.given_up[index] |=
                        (tree_holds || last_resort) && world.closed[index].is_none();
                    if last_resort {
                        world.closed[index].get_or_insert(Closed::Abandoned);
                    }
                }
            }
            Fact::SpawnerLost { .. } => (world.lost, world.spawner_lost) = (true, true),
            Fact::Lost { .. } => world.lost = true,
            _ => {}
        }
    }

    /// I1, I2 and I9, at this step.
    fn check(&self, world: &World) {
        let all_closed = self
            .streams
            .iter()
            .all(|stream| world.closed[stream.index()].is_some());
        let never_ran = world.lost && !world.started && !world.exit;
        let complete = never_ran
            || ((world.exit || world.lost)
                && all_closed
                && world.drained
                && (world.tree || world.spawner_lost));
        assert_eq!(
            world.record.is_some(),
            complete,
            "I2: the record comes when all is known, not sooner and not later: {world:?}"
        );
        assert_eq!(world.ledger.is_sealed(), complete);
        let Some(record) = &world.record else {
            return;
        };
        let own = if world.exit {
            Outcome::Exited
        } else {
            Outcome::Lost
        };
        assert_eq!(record.outcome, world.stop.unwrap_or(own), "I9: {world:?}");
        assert_eq!(
            record.succeeded,
            record.outcome == Outcome::Exited && record.exit_code == Some(0)
        );
        assert_eq!(record.exit_code.is_some(), world.exit);
        assert_eq!(record.denials.total, world.denials);
        assert_eq!(record.denied, world.denials > 0);
        for stream in &self.streams {
            let summary = record.output[stream];
            assert_eq!(summary.bytes, world.bytes[stream.index()]);
            if !never_ran {
                assert_eq!(Some(summary.closed), world.closed[stream.index()], "{world:?}");
            }
            // All that was written was read, unless somebody said that it was not.
            let all = self.chains.iter().flatten().filter_map(|(_, fact)| match fact {
                Fact::Output {
                    stream: of, length, ..
                } if of == stream => Some(*length),
                _ => None,
            });
            assert!(
                summary.bytes == all.sum::<u64>() || summary.closed == Closed::Abandoned || never_ran
            );
        }
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World")
            .field("next", &self.next)
            .field("armed", &self.armed)
            .field("killed", &self.killed)
            .field("abandoned", &self.abandoned)
            .field("closed", &self.closed)
            .field("record", &self.record.as_ref().map(|record| record.outcome))
            .field("ledger", &self.ledger)
            .finish()
    }
}

/// Two streams with nothing but their names between them.
fn are_twins(chains: &[Chain]) -> bool {
    let gates = |chain: &Chain| chain.iter().map(|(gate, _)| *gate).collect::<Vec<_>>();
    let is_stream = |chain: &Chain| matches!(chain.first(), Some((_, Fact::Output { .. })));
    match chains {
        [first, second, ..] => is_stream(first) && is_stream(second) && gates(first) == gates(second),
        _ => false,
    }
}

/// The start, with a report that is cheap to clone: the walks clone it millions of times.
fn started() -> Fact {
    let report = SandboxReport {
        policy: String::new(),
        landlock: vec![],
        namespaces: vec![],
        net: String::new(),
        ..report()
    };
    Fact::Started {
        pid: 42,
        report: Arc::new(report),
    }
}

fn stream(name: StreamName, closing: Gate) -> Chain {
    vec![
        (
            Gate::Free,
            Fact::Output {
                stream: name,
                offset: 0,
                length: 5,
            },
        ),
        (
            closing,
            Fact::StreamClosed {
                stream: name,
                closed: Closed::Eof,
            },
        ),
    ]
}

fn exit() -> Chain {
    vec![(Gate::Free, Fact::Exited(Exit::Code(0)))]
}

fn denials() -> Chain {
    let denied = Denial {
        comm: None,
        rule: String::new(),
        errno: String::new(),
        ..denial(DenialClass::Resource, "", DenialTarget::default())
    };
    vec![
        (Gate::Free, Fact::Denied(denied)),
        (
            Gate::Free,
            Fact::DenialsDrained {
                complete: true,
                unobserved: vec![],
            },
        ),
    ]
}

fn tree(gate: Gate) -> Chain {
    vec![(
        gate,
        Fact::TreeEmpty {
            killed: 0,
            usage: Some(Usage::default()),
            unkillable: vec![],
        },
    )]
}

fn stop() -> Chain {
    vec![(Gate::Free, Fact::StopRequested(StopCause::TimedOut))]
}

/// All pairs of rules; the larger walks take the two that cover each rule once.
const RULES: [(TreeRule, OnDenial); 4] = [
    (TreeRule::Kill, OnDenial::Report),
    (TreeRule::Wait, OnDenial::Stop),
    (TreeRule::Kill, OnDenial::Stop),
    (TreeRule::Wait, OnDenial::Report),
];

fn with((tree, on_denial): (TreeRule, OnDenial)) -> LedgerSpec {
    LedgerSpec {
        argv: vec![],
        cwd: String::new(),
        tree,
        on_denial,
        ..spec()
    }
}

fn one_stream((tree, on_denial): (TreeRule, OnDenial)) -> LedgerSpec {
    LedgerSpec {
        streams: vec![StreamName::Stdout],
        ..with((tree, on_denial))
    }
}

#[test]
fn i2_i9_every_interleaving_of_two_streams_exit_denials_tree_and_stop() {
    for rules in RULES.into_iter().take(2) {
        let chains = vec![
            stream(StreamName::Stdout, Gate::Free),
            stream(StreamName::Stderr, Gate::Free),
            exit(),
            denials(),
            tree(Gate::Free),
            stop(),
        ];
        assert!(Explorer::run(with(rules), vec![started()], chains) > 10_000);
    }
}

#[test]
fn i1_every_interleaving_with_the_start_among_the_others() {
    for rules in RULES.into_iter().take(2) {
        let chains = vec![
            vec![(Gate::Free, started())],
            stream(StreamName::Stdout, Gate::Free),
            exit(),
            denials(),
            tree(Gate::Free),
            stop(),
        ];
        assert!(Explorer::run(one_stream(rules), vec![], chains) > 1_000);
    }
}

#[test]
fn i9_every_interleaving_of_two_stop_requests_and_the_exit() {
    for rules in RULES.into_iter().take(2) {
        let cancel = StopCause::Cancelled {
            reason: "client asked".to_owned(),
        };
        let chains = vec![
            stream(StreamName::Stdout, Gate::Free),
            exit(),
            denials(),
            tree(Gate::Free),
            stop(),
            vec![(Gate::Free, Fact::StopRequested(cancel))],
        ];
        assert!(Explorer::run(one_stream(rules), vec![started()], chains) > 1_000);
    }
}

#[test]
fn i6_a_tree_that_lives_on_and_holds_the_output_is_ended_and_recorded() {
    for on_denial in [OnDenial::Report, OnDenial::Stop] {
        let chains = vec![
            stream(StreamName::Stdout, Gate::AfterKill),
            stream(StreamName::Stderr, Gate::Free),
            exit(),
            denials(),
            tree(Gate::AfterKill),
        ];
        Explorer::run(with((TreeRule::Kill, on_denial)), vec![started()], chains);
    }
}

#[test]
fn i1_a_stream_that_a_stranger_holds_open_is_abandoned() {
    for rules in RULES {
        let chains = vec![
            stream(StreamName::Stdout, Gate::AfterAbandon),
            stream(StreamName::Stderr, Gate::AfterAbandon),
            exit(),
            denials(),
            tree(Gate::Free),
        ];
        Explorer::run(with(rules), vec![started()], chains);
    }
}

#[test]
fn i1_a_stream_actor_that_never_answers_does_not_keep_the_record_back() {
    for rules in RULES {
        let chains = vec![
            stream(StreamName::Stdout, Gate::Never),
            stream(StreamName::Stderr, Gate::AfterKill),
            exit(),
            denials(),
            tree(Gate::Free),
        ];
        Explorer::run(with(rules), vec![started()], chains);
    }
}

#[test]
fn i1_the_loss_of_the_spawner_at_any_moment_ends_in_a_record() {
    for rules in RULES.into_iter().take(2) {
        let reason = "it was killed".to_owned();
        // Whatever only the spawner can tell may be missing then.
        for (exit_gate, tree_gate) in [
            (Gate::Free, Gate::Free),
            (Gate::Free, Gate::Never),
            (Gate::Never, Gate::Never),
        ] {
            let chains = vec![
                stream(StreamName::Stdout, Gate::Free),
                vec![(exit_gate, Fact::Exited(Exit::Code(0)))],
                denials(),
                tree(tree_gate),
                stop(),
                vec![(
                    Gate::Free,
                    Fact::SpawnerLost {
                        reason: reason.clone(),
                    },
                )],
            ];
            Explorer::run(one_stream(rules), vec![started()], chains);
        }
        let unstarted = vec![stop(), vec![(Gate::Free, Fact::SpawnerLost { reason })]];
        Explorer::run(one_stream(rules), vec![], unstarted);
    }
}

#[test]
fn i1_a_lost_exit_status_ends_in_a_record_when_the_tree_is_empty() {
    for rules in RULES {
        let reason = "the pidfd was lost".to_owned();
        let chains = vec![
            stream(StreamName::Stdout, Gate::AfterKill),
            denials(),
            tree(Gate::AfterKill),
            vec![(Gate::Free, Fact::Lost { reason })],
        ];
        Explorer::run(one_stream(rules), vec![started()], chains);
    }
}
