//! What must hold of a ledger, whatever it is told.
//!
//! Public behind a feature: the fuzz target tells it facts that a fuzzer chose, the property test what proptest chose.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Effect, Exit, Fact, Ledger, LedgerSpec};
use crate::event::{DraftBody, StreamName};
use crate::record::{Closed, TerminalRecord};

/// A ledger whose every effect is looked at.
#[derive(Debug)]
pub struct Watched {
    ledger: Ledger,
    streams: Vec<StreamName>,
    seq: u64,
    time: Timestamp,
    /// Up to where each stream was told, as output or as a gap.
    covered: BTreeMap<StreamName, u64>,
    record: Option<Box<TerminalRecord>>,
    stops: u32,
    kills: u32,
}

impl Watched {
    /// The ledger of a process that was accepted.
    pub fn new(spec: LedgerSpec) -> Self {
        Self {
            streams: spec.streams.clone(),
            ledger: Ledger::new(spec),
            seq: 0,
            time: Timestamp::MIN,
            covered: BTreeMap::new(),
            record: None,
            stops: 0,
            kills: 0,
        }
    }

    /// Tells it a fact, and panics where an invariant does not hold.
    pub fn tell(&mut self, fact: Fact, now: Timestamp) {
        for effect in self.ledger.apply(fact, now) {
            assert!(self.record.is_none(), "I1: {effect:?} after the record");
            match effect {
                Effect::Append(draft) => {
                    self.seq += 1;
                    assert_eq!(draft.seq, self.seq, "numbers have no gaps");
                    assert!(draft.time >= self.time, "times do not go back");
                    self.time = draft.time;
                    self.cover(&draft.body);
                }
                Effect::Seal { record, .. } => self.seal(record),
                Effect::StopTree { .. } => self.stops += 1,
                Effect::KillTree => self.kills += 1,
                Effect::ArmDrain | Effect::AbandonStreams => {}
            }
        }
        assert_eq!(self.ledger.is_sealed(), self.record.is_some());
        assert!(self.stops <= 1 && self.kills <= 1);
    }

    /// I3: each byte of a stream is told once, in order, as output or as a gap.
    fn cover(&mut self, body: &DraftBody) {
        let (stream, from, to) = match *body {
            DraftBody::Output {
                stream,
                offset,
                length,
            } => (stream, offset, offset + length),
            DraftBody::Gap { stream, from, to } => (stream, from, to),
            DraftBody::Whole(_) => return,
        };
        let end = self.covered.entry(stream).or_default();
        assert_eq!(from, *end, "I3: {stream}");
        assert!(to > from);
        *end = to;
    }

    fn seal(&mut self, record: Box<TerminalRecord>) {
        assert_eq!(record.last_seq, self.seq + 1);
        assert_eq!(record.denied, record.denials.total > 0);
        for (stream, summary) in &record.output {
            assert_eq!(summary.bytes, self.covered.get(stream).copied().unwrap_or(0));
            assert_eq!(summary.bytes, summary.retained + summary.dropped);
        }
        let json = serde_json::to_string(&*record).expect("a record is JSON");
        let read: TerminalRecord = serde_json::from_str(&json).expect("and is read from it");
        assert_eq!(read, *record);
        self.record = Some(record);
    }

    /// I1: when everybody has said the last fact, the record is there, once.
    pub fn finish(mut self, now: Timestamp) -> Box<TerminalRecord> {
        for stream in self.streams.clone() {
            let closed = Closed::Eof;
            self.tell(Fact::StreamClosed { stream, closed }, now);
        }
        let unobserved = vec![];
        let complete = true;
        self.tell(Fact::DenialsDrained { complete, unobserved }, now);
        self.tell(Fact::Exited(Exit::Code(0)), now);
        let last = Fact::TreeEmpty {
            killed: 0,
            usage: None,
            unkillable: vec![],
        };
        self.tell(last.clone(), now);
        self.tell(last, now);
        self.record.expect("I1: nothing is waited for any more")
    }
}
