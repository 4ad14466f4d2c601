//! Reading a process's events: what is there, then what comes.

use std::pin::pin;

use jiff::Timestamp;

use super::{Reader, reader_gone, said};
use crate::Event;
use crate::client::Lasting;
use crate::protocol::{Events, ProcessFollow, ProcessRead};
use crate::units;

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    /// Behind the event of this number.
    Seq(u64),
    /// At this time.
    Time(Timestamp),
    /// With the last whole events that have so many bytes of output.
    Tail(u64),
}

impl Since {
    /// `120`; `2026-01-02T03:04:05Z`; `5m` ago.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Ok(seq) = text.parse() {
            return Ok(Self::Seq(seq));
        }
        let time = units::moment(text).map(Self::Time);
        time.map_err(|why| format!("{why}; or the number of an event"))
    }
}

/// How a reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// With the terminal event.
    Terminal,
    /// Nothing more was there yet, behind this event.
    SoFar(u64),
    /// Nobody wants more.
    Enough,
}

/// Reads what is there now. A process that writes all the time is read up to this moment.
pub(super) async fn read(
    client: &Lasting,
    process: &str,
    since: Since,
    mut take: impl FnMut(Event) -> Result<Reader, String>,
) -> Result<Ended, String> {
    let now = Timestamp::now();
    let (mut after_seq, from, mut tail) = match since {
        Since::Seq(seq) => (seq, Timestamp::MIN, None),
        Since::Time(time) => (0, time, None),
        Since::Tail(bytes) => (0, Timestamp::MIN, Some(bytes)),
    };
    loop {
        let tail = tail.take();
        let request = ProcessRead {
            process: process.to_owned(),
            after_seq,
            tail,
            ..ProcessRead::default()
        };
        let there: Events = client.call("process/read", &request).await.map_err(said)?;
        if let (Some(_), Some(first)) = (tail, there.events.first()) {
            after_seq = first.seq - 1;
        }
        let empty = there.events.is_empty();
        for event in there.events {
            if event.time > now {
                return Ok(Ended::SoFar(after_seq));
            }
            after_seq = event.seq;
            if event.time >= from && take(event)? == Reader::Gone {
                return Ok(Ended::Enough);
            }
        }
        if there.ended {
            return Ok(Ended::Terminal);
        }
        if empty {
            return Ok(Ended::SoFar(there.next_seq));
        }
    }
}

/// Reads what comes behind an event until the terminal one. That it does not come is an error.
pub(super) async fn follow(
    client: &Lasting,
    process: &str,
    after_seq: u64,
    mut take: impl FnMut(Event) -> Result<Reader, String>,
) -> Result<(), String> {
    let mut asked = ProcessFollow {
        process: process.to_owned(),
        after_seq,
        ..ProcessFollow::default()
    };
    let mut gone = pin!(reader_gone());
    loop {
        let mut events = client.follow(&asked).await.map_err(said)?;
        loop {
            let event = tokio::select! {
                biased;
                event = events.next() => event,
                () = &mut gone => return Ok(()),
            };
            let Some(event) = event else { break };
            asked.after_seq = event.seq;
            let terminal = matches!(event.body, crate::EventBody::Terminal { .. });
            if take(event)? == Reader::Gone || terminal {
                return Ok(());
            }
        }
        // What was told is told no more.
        if !(events.is_lost() && client.lasts()) {
            return Err(format!(
                "the connection to the daemon is lost before {process} has ended; it may go on: ask again when the daemon is back"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_are_numbers_times_and_ages() {
        assert_eq!(Since::parse("12"), Ok(Since::Seq(12)));
        let time = "2026-01-02T03:04:05Z";
        assert_eq!(Since::parse(time), Ok(Since::Time(time.parse().unwrap())));
        assert!(matches!(Since::parse("5m"), Ok(Since::Time(then)) if then < Timestamp::now()));
        assert!(Since::parse("soon").is_err() && Since::parse("-1").is_err());
    }
}
