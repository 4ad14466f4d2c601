mod any;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use provost_sandbox::denial::{DenialClass, DenialTarget};

use super::*;
use crate::record::tests::{denial, report};
use crate::record::{Outcome, OutputSummary, TerminalRecord};

pub(super) fn spec() -> LedgerSpec {
    LedgerSpec {
        process: "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap(),
        session: None,
        argv: vec!["true".to_owned()],
        cwd: "/".to_owned(),
        labels: BTreeMap::new(),
        streams: vec![StreamName::Stdout, StreamName::Stderr],
        tree: TreeRule::Kill,
        on_denial: OnDenial::Report,
        expects_denials: true,
        report: false,
        queued_at: None,
    }
}

pub(super) fn started() -> Fact {
    Fact::Started {
        pid: 42,
        report: Arc::new(report()),
    }
}

fn output(stream: StreamName, offset: u64, length: u64) -> Fact {
    Fact::Output {
        stream,
        offset,
        length,
    }
}

fn closed(stream: StreamName) -> Fact {
    Fact::StreamClosed {
        stream,
        closed: Closed::Eof,
    }
}

fn tree_empty() -> Fact {
    Fact::TreeEmpty {
        killed: 0,
        usage: None,
        unkillable: vec![],
    }
}

fn drained() -> Fact {
    Fact::DenialsDrained {
        complete: true,
        unobserved: vec![],
    }
}

fn denied() -> Fact {
    Fact::Denied(denial(DenialClass::Filesystem, "open", DenialTarget::path("/x")))
}

fn cancelled() -> StopCause {
    StopCause::Cancelled {
        reason: "asked".to_owned(),
    }
}

/// A ledger and everything it said.
struct Run {
    ledger: Ledger,
    now: Timestamp,
}

impl Run {
    fn new(spec: LedgerSpec) -> Self {
        Self {
            ledger: Ledger::new(spec),
            now: "2026-01-02T03:04:05Z".parse().unwrap(),
        }
    }

    /// Applies a fact one millisecond later; the effects but for the events.
    fn say(&mut self, fact: Fact) -> Vec<Effect> {
        let mut effects = self.all(fact);
        effects.retain(|effect| !matches!(effect, Effect::Append(_)));
        effects
    }

    fn all(&mut self, fact: Fact) -> Vec<Effect> {
        self.now += jiff::SignedDuration::from_millis(1);
        self.ledger.apply(fact, self.now)
    }

    /// Says facts of which nothing but events must come.
    fn quiet(&mut self, facts: impl IntoIterator<Item = Fact>) -> &mut Self {
        for fact in facts {
            assert_eq!(self.say(fact), []);
        }
        self
    }

    /// Says the fact that must seal.
    fn seal(&mut self, fact: Fact) -> TerminalRecord {
        match <[Effect; 1]>::try_from(self.say(fact)) {
            Ok([Effect::Seal { record, .. }]) => *record,
            other => panic!("not sealed: {other:?}"),
        }
    }

    /// All that must come besides what the test is about.
    fn finish(&mut self) -> TerminalRecord {
        let mut record = None;
        for fact in [
            closed(StreamName::Stdout),
            closed(StreamName::Stderr),
            drained(),
            tree_empty(),
        ] {
            for effect in self.say(fact) {
                if let Effect::Seal { record: sealed, .. } = effect {
                    record = Some(*sealed);
                }
            }
        }
        record.expect("a record")
    }
}

#[test]
fn i1_the_first_report_is_the_result_and_the_record_says_if_it_was_lost() {
    use crate::reported::Reported;
    let asked = || {
        let report = true;
        Run::new(LedgerSpec { report, ..spec() })
    };
    let said = |json: &str| Fact::Reported(Reported::judge(json.as_bytes()));
    let end = |run: &mut Run| {
        run.say(Fact::Exited(Exit::Code(0)));
        run.finish()
    };
    let mut run = asked();
    run.quiet([started(), said("[1]"), said("2")]);
    let record = end(&mut run);
    assert_eq!(record.result.expect("the first").as_json(), "[1]");
    assert_eq!(record.result_error, None);

    let mut run = asked();
    run.quiet([started()]);
    let lost = end(&mut run);
    assert_eq!(
        lost.result_error.as_deref(),
        Some("what it reported, if anything, was lost")
    );

    let reason = "no such file".to_owned();
    let exit_code = 127;
    let never = asked().seal(Fact::SpawnFailed { reason, exit_code });
    assert_eq!((never.result, never.result_error), (None, None));

    let mut run = Run::new(spec());
    run.quiet([started()]);
    let record = end(&mut run);
    assert_eq!((record.result, record.result_error), (None, None));
}

#[test]
fn that_it_is_ready_is_told_once() {
    let mut run = Run::new(spec());
    run.quiet([started()]);
    let stated = run.all(Fact::Ready);
    assert!(matches!(&stated[..], [Effect::Append(_)]), "{stated:?}");
    assert_eq!(run.all(Fact::Ready), []);
}

#[test]
fn a_plain_process_has_its_events_and_its_record() {
    let mut run = Run::new(spec());
    let mut events = Vec::new();
    let facts = [
        started(),
        output(StreamName::Stdout, 0, 4),
        output(StreamName::Stdout, 4, 6),
        closed(StreamName::Stdout),
        closed(StreamName::Stderr),
        Fact::Probed("clone3".to_owned()),
        drained(),
        Fact::Exited(Exit::Code(0)),
    ];
    for fact in facts {
        for effect in run.all(fact) {
            match effect {
                Effect::Append(draft) => events.push(draft.body),
                // Everything is closed: what is left of the tree needs no drain.
                other => assert_eq!(other, Effect::KillTree),
            }
        }
    }
    let stream = StreamName::Stdout;
    assert_eq!(events.len(), 6);
    assert_eq!(
        events[2],
        DraftBody::Output {
            stream,
            offset: 4,
            length: 6
        }
    );
    assert_eq!(
        events[3],
        DraftBody::Whole(Box::new(EventBody::StreamClosed {
            stream,
            bytes: 10,
            closed: Closed::Eof
        }))
    );

    let usage = Usage {
        user_ms: 1,
        system_ms: 2,
        max_rss_bytes: 3,
    };
    let record = run.seal(Fact::TreeEmpty {
        killed: 2,
        usage: Some(usage),
        unkillable: vec![],
    });
    assert_eq!(record.last_seq, 7);
    assert_eq!(run.ledger.last_seq(), 7);
    assert_eq!(record.outcome, Outcome::Exited);
    assert!(record.succeeded && !record.denied);
    assert_eq!(record.usage, Some(usage));
    assert_eq!(record.tree.killed, 2);
    assert_eq!(record.duration_ms, 7, "until the exit, not the seal");
    assert_eq!(record.sandbox, Some(Arc::new(report())));
    assert_eq!(record.denials.probes["clone3"], 1);
    assert_eq!(
        record.output[&stream],
        OutputSummary {
            bytes: 10,
            retained: 10,
            dropped: 0,
            closed: Closed::Eof
        }
    );
}

#[test]
fn success_is_exit_code_zero_and_denial_is_said_beside_it() {
    for (exit, is_denied, outcome, succeeded) in [
        (Exit::Code(0), true, Outcome::Exited, true),
        (Exit::Code(0), false, Outcome::Exited, true),
        (Exit::Code(1), false, Outcome::Exited, false),
        (Exit::Signal("SIGKILL".into()), true, Outcome::Signaled, false),
    ] {
        let mut run = Run::new(spec());
        run.say(started());
        if is_denied {
            run.quiet([denied()]);
        }
        run.say(Fact::Exited(exit.clone()));
        let record = run.finish();
        assert_eq!(
            (record.outcome, record.succeeded, record.denied),
            (outcome, succeeded, is_denied)
        );
        assert_eq!((record.exit_code, record.signal), exit.parts());
    }
}

#[test]
fn i1_a_failure_to_start_seals_at_once() {
    let mut run = Run::new(spec());
    let record = run.seal(Fact::SpawnFailed {
        reason: "no such file: `nope`".to_owned(),
        exit_code: 127,
    });
    assert_eq!(record.outcome, Outcome::SpawnFailed);
    assert_eq!(record.exit_code, Some(127));
    assert_eq!(record.reason.as_deref(), Some("no such file: `nope`"));
    assert_eq!(
        (record.last_seq, record.started_at, record.duration_ms),
        (1, None, 0)
    );
    assert_eq!(record.sandbox, None);
    assert!(record.denials.complete && !record.succeeded);
    assert_eq!(run.all(started()), [], "nothing comes after the record");
}

#[test]
fn i9_a_stop_before_the_start_decides_and_is_carried_out_if_it_starts_after_all() {
    let mut run = Run::new(spec());
    run.quiet([Fact::StopRequested(cancelled())]);
    assert_eq!(run.ledger.stop_cause(), Some(&cancelled()));
    assert_eq!(run.say(started()), [Effect::StopTree { cause: cancelled() }]);

    let mut run = Run::new(spec());
    run.quiet([Fact::StopRequested(cancelled())]);
    let record = run.seal(Fact::SpawnFailed {
        reason: "not started".to_owned(),
        exit_code: 125,
    });
    assert_eq!(record.outcome, Outcome::Cancelled);
    assert_eq!(record.exit_code, None);
    assert_eq!(record.reason.as_deref(), Some("asked; not started"));
}

#[test]
fn i9_the_first_of_stop_and_exit_wins_and_the_loser_can_tell() {
    let mut run = Run::new(spec());
    run.quiet([started()]);
    assert_eq!(
        run.say(Fact::StopRequested(StopCause::TimedOut)),
        [Effect::StopTree {
            cause: StopCause::TimedOut
        }]
    );
    run.quiet([Fact::StopRequested(cancelled())]);
    assert_eq!(run.ledger.stop_cause(), Some(&StopCause::TimedOut));
    run.say(Fact::Exited(Exit::Signal("SIGTERM".to_owned())));
    let record = run.finish();
    assert_eq!(record.outcome, Outcome::TimedOut);
    assert_eq!(record.signal.as_deref(), Some("SIGTERM"));

    let mut run = Run::new(spec());
    run.quiet([started()]);
    run.say(Fact::Exited(Exit::Code(0)));
    run.quiet([Fact::StopRequested(StopCause::TimedOut)]);
    assert_eq!(run.ledger.stop_cause(), None);
    assert_eq!(run.ledger.exit(), Some(&Exit::Code(0)));
    assert!(run.finish().succeeded);
}

#[test]
fn a_tree_that_the_record_waits_for_can_still_be_stopped_after_the_exit() {
    let mut run = Run::new(LedgerSpec {
        tree: TreeRule::Wait,
        ..spec()
    });
    run.quiet([started(), Fact::Exited(Exit::Code(0))]);
    assert_eq!(
        run.say(Fact::StopRequested(StopCause::TimedOut)),
        [Effect::StopTree {
            cause: StopCause::TimedOut
        }]
    );
    run.quiet([Fact::StopRequested(StopCause::TimedOut)]);
    assert_eq!(run.finish().outcome, Outcome::Exited);
}

#[test]
fn i6_a_leftover_that_holds_the_output_is_given_the_drain_deadline_and_then_killed() {
    let mut run = Run::new(spec());
    run.quiet([started(), closed(StreamName::Stderr), drained()]);
    assert_eq!(run.say(Fact::Exited(Exit::Code(0))), [Effect::ArmDrain]);
    run.quiet([output(StreamName::Stdout, 0, 3)]);
    assert_eq!(run.say(Fact::DrainExpired), [Effect::KillTree]);
    run.quiet([Fact::DrainExpired, closed(StreamName::Stdout)]);
    let record = run.seal(tree_empty());
    assert_eq!(record.output[&StreamName::Stdout].closed, Closed::Abandoned);
    assert_eq!(record.output[&StreamName::Stdout].bytes, 3);
    assert_eq!(record.output[&StreamName::Stderr].closed, Closed::Eof);
}

#[test]
fn the_last_stream_to_close_ends_the_drain() {
    let mut run = Run::new(spec());
    run.quiet([started(), closed(StreamName::Stderr), drained()]);
    assert_eq!(run.say(Fact::Exited(Exit::Code(0))), [Effect::ArmDrain]);
    assert_eq!(run.say(closed(StreamName::Stdout)), [Effect::KillTree]);
    let record = run.seal(tree_empty());
    assert_eq!(record.output[&StreamName::Stdout].closed, Closed::Eof);
}

#[test]
fn a_stream_that_outlives_the_tree_is_abandoned_with_what_it_had() {
    let mut run = Run::new(spec());
    run.quiet([started(), closed(StreamName::Stderr), drained()]);
    assert_eq!(run.say(tree_empty()), [Effect::ArmDrain]);
    run.quiet([Fact::Exited(Exit::Code(0))]);
    assert_eq!(
        run.say(Fact::DrainExpired),
        [Effect::AbandonStreams, Effect::ArmDrain]
    );
    run.quiet([output(StreamName::Stdout, 0, 9)]);
    let record = run.seal(Fact::StreamClosed {
        stream: StreamName::Stdout,
        closed: Closed::Abandoned,
    });
    assert_eq!(record.output[&StreamName::Stdout].closed, Closed::Abandoned);
    assert_eq!(record.output[&StreamName::Stdout].bytes, 9);
}

#[test]
fn i3_a_stream_that_waits_for_its_paced_reader_is_not_abandoned() {
    let mut run = Run::new(spec());
    run.quiet([started(), closed(StreamName::Stderr), drained(), Fact::DrainHeld]);
    assert_eq!(run.say(tree_empty()), [Effect::ArmDrain]);
    run.quiet([Fact::Exited(Exit::Code(0))]);
    for _ in 0..100 {
        assert_eq!(run.say(Fact::DrainHeld), [Effect::ArmDrain]);
    }
    run.quiet([output(StreamName::Stdout, 0, 9)]);
    let record = run.seal(closed(StreamName::Stdout));
    assert_eq!(record.output[&StreamName::Stdout].closed, Closed::Eof);
}

#[test]
fn i6_a_paced_reader_does_not_keep_leftovers_alive() {
    let mut run = Run::new(spec());
    run.quiet([started(), closed(StreamName::Stderr), drained()]);
    assert_eq!(run.say(Fact::Exited(Exit::Code(0))), [Effect::ArmDrain]);
    assert_eq!(run.say(Fact::DrainHeld), [Effect::KillTree]);
    assert_eq!(run.say(tree_empty()), [Effect::ArmDrain]);
    assert_eq!(run.say(Fact::DrainHeld), [Effect::ArmDrain]);
    let record = run.seal(closed(StreamName::Stdout));
    assert_eq!(record.output[&StreamName::Stdout].closed, Closed::Abandoned);
}

#[test]
fn the_first_denial_ends_a_process_that_says_so() {
    for fact in [
        denied(),
        Fact::DenialsCounted {
            class: DenialClass::Network,
            extra: 2,
        },
    ] {
        let mut run = Run::new(LedgerSpec {
            on_denial: OnDenial::Stop,
            ..spec()
        });
        run.quiet([started(), Fact::Probed("clone3".to_owned())]);
        let cause = StopCause::Denied;
        assert_eq!(run.say(fact.clone()), [Effect::StopTree { cause }]);
        run.quiet([fact]);
        run.say(Fact::Exited(Exit::Signal("SIGTERM".to_owned())));
        let record = run.finish();
        assert_eq!(record.outcome, Outcome::Denied);
        assert!(record.denied);
    }
}

#[test]
fn i2_without_a_denial_channel_there_is_none_to_wait_for() {
    let mut run = Run::new(LedgerSpec {
        expects_denials: false,
        report: false,
        streams: vec![],
        ..spec()
    });
    run.quiet([started(), tree_empty()]);
    let record = run.seal(Fact::Exited(Exit::Code(3)));
    assert!(record.denials.complete);
    assert!(record.output.is_empty());
}

#[test]
fn i2_a_channel_that_could_not_be_read_to_its_end_is_named_in_the_record() {
    let mut run = Run::new(spec());
    run.quiet([
        started(),
        closed(StreamName::Stdout),
        closed(StreamName::Stderr),
        tree_empty(),
    ]);
    run.quiet([Fact::Exited(Exit::Code(0))]);
    assert!(!run.ledger.is_sealed(), "the channel is still open");
    let record = run.seal(Fact::DenialsDrained {
        complete: false,
        unobserved: vec!["filesystem reads".to_owned()],
    });
    assert!(!record.denials.complete);
    assert_eq!(record.denials.unobserved, ["filesystem reads"]);
}

#[test]
fn i3_output_that_no_fact_told_of_becomes_a_gap_and_doubled_output_counts_once() {
    let mut run = Run::new(spec());
    run.quiet([started()]);
    let stream = StreamName::Stdout;
    let mut bodies = Vec::new();
    for fact in [
        output(stream, 0, 10),
        output(stream, 0, 10),
        output(stream, 5, 10),
        output(stream, 20, 5),
        output(stream, 25, 0),
        output(StreamName::Pty, 0, 10),
    ] {
        for effect in run.all(fact) {
            if let Effect::Append(draft) = effect {
                bodies.push(draft.body);
            }
        }
    }
    let output = |offset, length| DraftBody::Output {
        stream,
        offset,
        length,
    };
    let gap = DraftBody::Gap {
        stream,
        from: 15,
        to: 20,
    };
    assert_eq!(bodies, [output(0, 10), output(10, 5), gap, output(20, 5)]);
    run.say(Fact::Exited(Exit::Code(0)));
    let summary = run.finish().output[&stream];
    assert_eq!((summary.bytes, summary.retained, summary.dropped), (25, 20, 5));
}

#[test]
fn i1_the_loss_of_the_spawner_is_an_outcome_with_a_reason() {
    let mut run = Run::new(spec());
    run.quiet([started()]);
    let lost = || Fact::SpawnerLost {
        reason: "killed by SIGKILL".to_owned(),
    };
    assert_eq!(run.say(lost()), [Effect::KillTree, Effect::ArmDrain]);
    run.quiet([lost(), closed(StreamName::Stdout), closed(StreamName::Stderr)]);
    let record = run.seal(drained());
    assert_eq!(record.outcome, Outcome::Lost);
    assert_eq!(record.reason.as_deref(), Some("killed by SIGKILL"));
    assert_eq!((record.exit_code, record.usage), (None, None));
}

#[test]
fn an_exit_that_is_known_stays_known_when_the_spawner_is_lost() {
    let mut run = Run::new(spec());
    run.quiet([started(), drained(), closed(StreamName::Stderr)]);
    run.say(Fact::Exited(Exit::Code(0)));
    let reason = "killed".to_owned();
    assert_eq!(run.say(Fact::SpawnerLost { reason }), [Effect::KillTree]);
    let record = run.seal(closed(StreamName::Stdout));
    assert_eq!(record.outcome, Outcome::Exited);
    let reason = "whether its descendants are gone could not be learned: killed";
    assert_eq!(record.reason.as_deref(), Some(reason));
}

#[test]
fn times_never_go_back() {
    let mut run = Run::new(spec());
    run.quiet([started()]);
    let before = run.now;
    run.now = Timestamp::UNIX_EPOCH;
    let effects = run.all(output(StreamName::Stdout, 0, 1));
    assert!(matches!(&effects[..], [Effect::Append(draft)] if draft.time == before));
    run.say(Fact::Exited(Exit::Code(0)));
    assert_eq!(run.finish().duration_ms, 0);
}

#[test]
fn what_can_be_named_without_end_is_bounded() {
    let mut run = Run::new(spec());
    run.quiet([started()]);
    let signal = Fact::SignalSent {
        signal: "SIGUSR1".to_owned(),
        scope: "command".to_owned(),
        cause: "client".to_owned(),
    };
    let stated: usize = (0..10_000).map(|_| run.all(signal.clone()).len()).sum();
    assert_eq!(stated, SIGNAL_EVENTS_MAX as usize);
    run.say(Fact::Exited(Exit::Code(0)));
    run.say(Fact::TreeEmpty {
        killed: 0,
        usage: None,
        unkillable: vec!["pid 7 (dd)".to_owned(); 1000],
    });
    let record = run.finish();
    assert_eq!(record.tree.unkillable.len(), UNKILLABLE_MAX + 1);
    assert_eq!(record.tree.unkillable[UNKILLABLE_MAX], "and 936 more");
}
