//! What a log says of approvals: which requests wait, and what was decided.

use std::collections::BTreeMap;
use std::sync::Arc;

use provost_sandbox::denial::Decision;

use super::{Log, Other, State};
use crate::event::{Event, EventBody};

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// Allowed or refused.
    pub decision: Decision,
    /// Who decided, as the event says it.
    pub by: String,
}

impl Log {
    /// The `approval_requested` events whose requests wait for an answer, oldest first: at most as many as a process may have
    /// waiting.
    pub fn approvals_waiting(&self) -> Vec<Event> {
        let state = self.lock();
        let mut waiting: BTreeMap<u64, &Other> = BTreeMap::new();
        for other in &state.others {
            match &*other.body {
                EventBody::ApprovalRequested { approval, .. } => drop(waiting.insert(*approval, other)),
                EventBody::ApprovalDecided { approval, .. } => drop(waiting.remove(approval)),
                _ => {}
            }
        }
        let event = |other: &Other| Event {
            process: self.process,
            seq: other.seq,
            time: other.time,
            body: EventBody::clone(&other.body),
        };
        waiting.into_values().map(event).collect()
    }

    /// What was decided about a request that does not wait any more; waits until the log says it. `None` if there was no
    /// such request.
    pub async fn decision(self: &Arc<Self>, approval: u64) -> Option<Decided> {
        let mut cursor = self.follow(self.last_seq(), false).without_output();
        loop {
            match fate(&self.lock(), approval) {
                Fate::Decided(decided) => return Some(decided),
                Fate::Unknown => return None,
                Fate::Waits => {}
            }
            cursor.next().await?;
        }
    }
}

enum Fate {
    Unknown,
    Waits,
    Decided(Decided),
}

fn fate(state: &State, number: u64) -> Fate {
    let mut fate = Fate::Unknown;
    for other in &state.others {
        match &*other.body {
            EventBody::ApprovalRequested { approval, .. } if *approval == number => fate = Fate::Waits,
            EventBody::ApprovalDecided {
                approval,
                decision,
                by,
                ..
            } if *approval == number => {
                let (decision, by) = (*decision, by.clone());
                return Fate::Decided(Decided { decision, by });
            }
            _ => {}
        }
    }
    fate
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use bytes::Bytes;
    use jiff::Timestamp;
    use provost_sandbox::denial::{Certainty, Denial, DenialClass, DenialTarget};

    use super::*;
    use crate::event::{DraftBody, EventDraft, StreamName};
    use crate::log::LogLimits;
    use crate::record::tests::record;

    fn say(log: &Log, body: DraftBody) {
        let (seq, time) = (log.last_seq() + 1, Timestamp::UNIX_EPOCH);
        log.append_event(EventDraft { seq, time, body });
    }

    fn requested(approval: u64) -> DraftBody {
        DraftBody::Whole(Box::new(EventBody::ApprovalRequested {
            approval,
            attempt: Box::new(Denial {
                class: DenialClass::Network,
                operation: "connect".to_owned(),
                target: DenialTarget::default(),
                pid: None,
                comm: None,
                rule: String::new(),
                errno: String::new(),
                certainty: Certainty::Observed,
                decision: Decision::Deny,
                allow: None,
            }),
            deadline: Timestamp::UNIX_EPOCH,
        }))
    }

    fn denied(approval: u64, by: &str) -> DraftBody {
        DraftBody::Whole(Box::new(EventBody::ApprovalDecided {
            approval,
            decision: Decision::Deny,
            scope: None,
            by: by.to_owned(),
        }))
    }

    fn log() -> Arc<Log> {
        Arc::new(Log::new(record().process, LogLimits::keeping(1000)))
    }

    #[test]
    fn what_was_asked_waits_until_it_is_decided() {
        let log = log();
        for number in 1..=3 {
            say(&log, requested(number));
        }
        say(&log, denied(2, "me"));
        let waiting: Vec<u64> = log.approvals_waiting().iter().map(|event| event.seq).collect();
        assert_eq!(waiting, [1, 3]);
    }

    #[test]
    fn a_decision_is_waited_for_and_what_was_never_asked_is_not() {
        let (log, mut cx) = (log(), Context::from_waker(Waker::noop()));
        let mut asked = |number: u64| {
            let mut decision = Box::pin({
                let log = Arc::clone(&log);
                async move { log.decision(number).await }
            });
            decision.as_mut().poll(&mut cx)
        };
        assert!(asked(1).is_ready(), "nobody asked");
        say(&log, requested(1));
        assert!(asked(1).is_pending());
        say(&log, denied(1, "me"));
        match asked(1) {
            std::task::Poll::Ready(Some(decided)) => assert_eq!(decided.by, "me"),
            other => panic!("it was decided: {other:?}"),
        }
    }

    #[test]
    fn a_cursor_without_output_passes_it_over_and_is_ready_for_the_rest_alone() {
        let (log, mut cx) = (log(), Context::from_waker(Waker::noop()));
        let mut cursor = log.follow(0, false).without_output();
        let offset = log.append_bytes(StreamName::Stdout, Bytes::from_static(b"abc"));
        let output = DraftBody::Output {
            stream: StreamName::Stdout,
            offset,
            length: 3,
        };
        say(&log, output);
        assert!(Box::pin(cursor.ready()).as_mut().poll(&mut cx).is_pending());
        say(&log, requested(1));
        assert!(Box::pin(cursor.ready()).as_mut().poll(&mut cx).is_ready());
        assert_eq!(cursor.try_next().map(|event| event.seq), Some(2));
        assert!(cursor.try_next().is_none());
    }
}
