//! Whatever happens, in whatever order.

use proptest::prelude::*;

use super::*;
use crate::ledger::fuzzing::Watched;

fn any_fact() -> impl Strategy<Value = Fact> {
    let stream = || prop::sample::select(&StreamName::ALL[..]);
    let size = || prop_oneof![0_u64..40, Just(u64::MAX), any::<u64>()];
    let cause = prop_oneof![
        Just(cancelled()),
        Just(StopCause::TimedOut),
        Just(StopCause::IdleTimedOut),
        Just(StopCause::Denied),
        Just(StopCause::Replaced),
        Just(StopCause::OutOfMemory),
    ];
    let reason = || "gone".to_owned();
    prop_oneof![
        Just(started()),
        Just(Fact::SpawnFailed {
            reason: reason(),
            exit_code: 126
        }),
        (stream(), size(), size()).prop_map(|(stream, offset, length)| output(stream, offset, length)),
        (stream(), any::<bool>()).prop_map(|(stream, eof)| Fact::StreamClosed {
            stream,
            closed: if eof { Closed::Eof } else { Closed::Abandoned },
        }),
        any::<i32>().prop_map(|code| Fact::Exited(Exit::Code(code))),
        Just(Fact::Exited(Exit::Signal("SIGSEGV".to_owned()))),
        size().prop_map(|killed| Fact::TreeEmpty {
            killed,
            usage: None,
            unkillable: vec![]
        }),
        Just(denied()),
        size().prop_map(|extra| Fact::DenialsCounted {
            class: DenialClass::Network,
            extra
        }),
        any::<String>().prop_map(Fact::Probed),
        any::<bool>().prop_map(|complete| Fact::DenialsDrained {
            complete,
            unobserved: vec![]
        }),
        cause.prop_map(Fact::StopRequested),
        Just(Fact::SignalSent {
            signal: "SIGINT".to_owned(),
            scope: "tree".to_owned(),
            cause: "client".to_owned()
        }),
        Just(Fact::DrainExpired),
        Just(Fact::DrainHeld),
        Just(Fact::SpawnerLost { reason: reason() }),
        Just(Fact::Lost { reason: reason() }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn i1_i3_any_facts_in_any_order_give_one_record_and_nothing_after_it(
        facts in prop::collection::vec((any_fact(), -10_i64..10), 0..60),
        wait: bool,
        stop_at_denial: bool,
        expects_denials: bool,
    ) {
        let spec = LedgerSpec {
            tree: if wait { TreeRule::Wait } else { TreeRule::Kill },
            on_denial: if stop_at_denial { OnDenial::Stop } else { OnDenial::Report },
            expects_denials,
            report: false,
            ..spec()
        };
        let mut ledger = Watched::new(spec);
        let mut clock = Timestamp::UNIX_EPOCH;
        for (fact, tick) in facts {
            clock += jiff::SignedDuration::from_secs(tick);
            ledger.tell(fact, clock);
        }
        ledger.finish(clock);
    }
}
