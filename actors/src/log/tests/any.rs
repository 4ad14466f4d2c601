//! Any sequence of appends, numberings, readers and reads.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Op {
    Append(StreamName, usize),
    /// States the oldest so many unstated pieces of a stream, as one event or as a gap.
    State(StreamName, usize, bool),
    Other,
    Follow,
    Pace,
    Unpace,
    Read(usize, usize),
}

fn any_op() -> impl Strategy<Value = Op> {
    let stream = || prop::sample::select(&[OUT, OUT, OUT, ERR][..]);
    let length = prop_oneof![3 => 1_usize..60, 1 => 3000_usize..9000];
    prop_oneof![
        6 => (stream(), length).prop_map(|(stream, length)| Op::Append(stream, length)),
        6 => (stream(), 1_usize..3, prop::bool::weighted(0.05))
            .prop_map(|(stream, pieces, hole)| Op::State(stream, pieces, hole)),
        1 => Just(Op::Other),
        1 => Just(Op::Follow),
        1 => Just(Op::Pace),
        1 => Just(Op::Unpace),
        4 => (0_usize..4, 1_usize..8).prop_map(|(cursor, count)| Op::Read(cursor, count)),
    ]
}

fn any_limits() -> impl Strategy<Value = LogLimits> {
    let bytes = || prop_oneof![Just(0_u64), 1_u64..300, 300_u64..30_000];
    (bytes(), bytes(), 0_usize..30).prop_map(|(head_bytes, tail_bytes, events_max)| LogLimits {
        head_bytes,
        tail_bytes,
        events_max,
    })
}

struct World {
    writer: Writer,
    /// What was appended and not stated: offsets and lengths.
    pending: [VecDeque<(u64, u64)>; 3],
    /// Bytes that were stated as a gap.
    holes: [u64; 3],
    readers: Vec<(Cursor, Checked)>,
    paced: Option<(Cursor, Checked)>,
}

impl World {
    fn run(limits: LogLimits, ops: Vec<Op>) {
        let writer = Writer::new(limits);
        let mut world = Self {
            readers: vec![(writer.log.follow(0, false), Checked::default())],
            paced: Some((writer.log.follow(0, true), Checked::default())),
            writer,
            pending: Default::default(),
            holes: [0; 3],
        };
        for op in ops {
            world.step(op);
            world.check_bounds(limits);
        }
        world.end(limits);
    }

    fn step(&mut self, op: Op) {
        let log = Arc::clone(&self.writer.log);
        match op {
            Op::Append(stream, length) => {
                let from = log.lock().streams[stream.index()].appended();
                let offset = log.append_bytes(stream, pattern(stream, from, length));
                self.pending[stream.index()].push_back((offset, length as u64));
            }
            Op::State(stream, pieces, hole) => {
                let pending = &mut self.pending[stream.index()];
                let count = pieces.min(pending.len());
                let pieces: Vec<_> = pending.drain(..count).collect();
                let Some(&(offset, _)) = pieces.first() else {
                    return;
                };
                let length: u64 = pieces.iter().map(|(_, length)| length).sum();
                if hole {
                    self.holes[stream.index()] += length;
                    let to = offset + length;
                    self.writer.event(DraftBody::Gap {
                        stream,
                        from: offset,
                        to,
                    });
                } else {
                    self.writer.number(stream, offset, length);
                }
            }
            Op::Other => self.writer.other(),
            Op::Follow => self.readers.push((log.follow(0, false), Checked::default())),
            Op::Pace => {
                // A reader that takes the pace late may have lost something before, but not after.
                let (mut cursor, mut checked) = (log.follow(0, true), Checked::default());
                if cursor.is_paced() {
                    checked.read_all(&mut cursor);
                    self.paced = Some((cursor, checked));
                } else {
                    assert!(self.paced.is_some(), "nobody else has it");
                }
            }
            Op::Unpace => self.paced = None,
            Op::Read(which, count) => {
                let mut all = self.readers.iter_mut().chain(&mut self.paced);
                let Some((cursor, checked)) = all.nth(which) else {
                    return;
                };
                for _ in 0..count {
                    let gaps = checked.gaps;
                    if let Some(event) = cursor.try_next() {
                        checked.take(&event);
                    }
                    if cursor.is_paced() {
                        let lost: u64 = (0..3).map(|index| checked.gaps[index] - gaps[index]).sum();
                        assert!(
                            lost == 0 || self.holes.iter().sum::<u64>() > 0,
                            "the paced reader lost"
                        );
                    }
                }
            }
        }
    }

    fn check_bounds(&self, limits: LogLimits) {
        if self.paced.is_some() {
            return;
        }
        let state = self.writer.log.lock();
        for stream in StreamName::ALL {
            let log = &state.streams[stream.index()];
            let pending: u64 = self.pending[stream.index()]
                .iter()
                .map(|(_, length)| length)
                .sum();
            let (bytes, _, events) = log.held();
            // Chunks go whole: one may be held for its last byte, and the block with it. And what was appended
            // and then stated as a gap is not counted, for only a lost fact can bring that about.
            let whole = 9000 + (8 << 10) + self.holes[stream.index()];
            let bound = limits.head_bytes + limits.tail_bytes + pending + whole;
            assert!(bytes as u64 <= bound, "{bytes} bytes are held, {bound} may be");
            assert!(events <= limits.events_max);
        }
    }

    /// Everything is stated and sealed; every reader reads to the end.
    fn end(mut self, limits: LogLimits) {
        for stream in [OUT, ERR] {
            while !self.pending[stream.index()].is_empty() {
                self.step(Op::State(stream, 1, false));
            }
        }
        let record = self.writer.seal();
        let holes: u64 = self.holes.iter().sum();
        if let Some((mut cursor, mut checked)) = self.paced.take() {
            let before: u64 = checked.gaps.iter().sum();
            checked.read_all(&mut cursor);
            let lost = checked.gaps.iter().sum::<u64>() - before;
            assert!(
                lost <= holes,
                "the paced reader lost {lost} bytes, {holes} never came"
            );
            assert!(checked.terminal);
        }
        self.readers
            .push((self.writer.log.follow(0, false), Checked::default()));
        let mut fresh = None;
        for (mut cursor, mut checked) in self.readers {
            checked.read_all(&mut cursor);
            assert!(checked.terminal && cursor.is_finished());
            fresh = Some(checked);
        }
        // What the record says is what a reader finds who comes late.
        let fresh = fresh.expect("one was just added");
        for (stream, summary) in &record.output {
            let index = stream.index();
            assert_eq!(fresh.output[index], summary.retained);
            assert_eq!(fresh.gaps[index], summary.dropped);
            assert_eq!(summary.retained, self.writer.log.retained(*stream));
            assert!(summary.retained <= limits.head_bytes.saturating_add(limits.tail_bytes));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn i3_whatever_is_written_dropped_and_read_every_byte_is_told_of_once(
        limits in any_limits(),
        ops in prop::collection::vec(any_op(), 0..120),
    ) {
        World::run(limits, ops);
    }
}
