//! The end of what was kept: whole lines of streams, and for a terminal bytes that begin where it can begin with them.

use crate::cli::screen::{self, Screen};
use crate::{Event, EventBody, StreamName};

/// How much is asked for, where so much is wanted: what comes before says where to begin.
pub(super) const fn lead(most: u64) -> u64 {
    most.saturating_mul(2)
}

/// Cuts events to about the last `most` bytes of their output, from the beginning of a line or, of a terminal, from a place
/// that is safe; and what a terminal must be told before them.
pub(super) fn cut(events: Vec<Event>, most: u64) -> (Screen, Vec<Event>) {
    let of_terminal = |event: &Event| matches!(stream(event), Some(StreamName::Pty));
    match events.iter().any(of_terminal) {
        true => terminal(events, most),
        false => (Screen::default(), lines(events, most)),
    }
}

fn stream(event: &Event) -> Option<StreamName> {
    match &event.body {
        EventBody::Output { stream, .. } => Some(*stream),
        _ => None,
    }
}

fn length(event: &Event) -> u64 {
    match &event.body {
        EventBody::Output { data, .. } => data.len() as u64,
        _ => 0,
    }
}

/// Takes so many bytes off the beginning.
fn shorten(event: &mut Event, bytes: usize) {
    if let EventBody::Output { offset, data, .. } = &mut event.body {
        *offset += bytes as u64;
        *data = data.slice(bytes..);
    }
}

fn lines(events: Vec<Event>, most: u64) -> Vec<Event> {
    let total: u64 = events.iter().map(length).sum();
    let mut excess = total.saturating_sub(most);
    // Of each stream, whether what comes next begins a line; unknown at first, unless nothing came before.
    let mut begins = [None; StreamName::ALL.len()];
    // What is left of it begins within a line.
    let mut within = [false; StreamName::ALL.len()];
    let mut kept = Vec::new();
    for mut event in events {
        let EventBody::Output { stream, offset, data } = &event.body else {
            kept.push(event);
            continue;
        };
        let (index, length) = (*stream as usize, data.len());
        let begun = &mut begins[index];
        let last = data.last().map(|last| *last == b'\n');
        let first = begun.unwrap_or(*offset == 0);
        let cut = usize::try_from(excess).unwrap_or(usize::MAX).min(length);
        excess -= cut as u64;
        if cut == length {
            *begun = last.or(*begun);
            continue;
        }
        let at_line = if cut == 0 { first } else { data[cut - 1] == b'\n' };
        let is_first = !kept.iter().any(|event| self::stream(event) == Some(*stream));
        within[index] |= is_first && !at_line;
        shorten(&mut event, cut);
        kept.push(event);
    }
    for stream in StreamName::ALL {
        if within[stream as usize] {
            begin_line(&mut kept, stream);
        }
    }
    kept
}

/// Takes off what comes before the first line of a stream that begins; where none does, what is left of a character.
fn begin_line(events: &mut Vec<Event>, of: StreamName) {
    let pieces = events.iter().filter_map(|event| match &event.body {
        EventBody::Output { stream, data, .. } if *stream == of => Some(&data[..]),
        _ => None,
    });
    let mut bytes = pieces.clone().flatten().copied();
    let feed = bytes.position(|byte| byte == b'\n');
    let mut excess = match (feed, bytes.next()) {
        (Some(feed), Some(_)) => feed + 1,
        _ => pieces
            .flatten()
            .take_while(|byte| (0x80..0xc0).contains(*byte))
            .count(),
    };
    events.retain_mut(|event| {
        if stream(event) != Some(of) {
            return true;
        }
        let cut = excess.min(usize::try_from(length(event)).unwrap_or(usize::MAX));
        excess -= cut;
        shorten(event, cut);
        length(event) > 0
    });
}

fn terminal(mut events: Vec<Event>, most: u64) -> (Screen, Vec<Event>) {
    // Behind what is not kept nothing is known of what came before.
    let gap = events
        .iter()
        .rposition(|event| matches!(event.body, EventBody::Gap { .. }));
    let behind = events.split_off(gap.map_or(0, |gap| gap + 1));
    let others = events.into_iter().filter(|event| length(event) == 0);
    let whole: Vec<u8> = behind
        .iter()
        .filter_map(|event| match &event.body {
            EventBody::Output { data, .. } => Some(&data[..]),
            _ => None,
        })
        .flatten()
        .copied()
        .collect();
    let all = behind
        .iter()
        .find_map(|event| match &event.body {
            EventBody::Output { offset, .. } => Some(*offset == 0),
            _ => None,
        })
        .unwrap_or(true);
    let (screen, end) = screen::tail(&whole, usize::try_from(most).unwrap_or(usize::MAX), all);
    let mut excess = whole.len() - end.len();
    let mut kept: Vec<Event> = others.collect();
    for mut event in behind {
        let cut = excess.min(usize::try_from(length(&event)).unwrap_or(usize::MAX));
        excess -= cut;
        shorten(&mut event, cut);
        if stream(&event).is_none() || length(&event) > 0 {
            kept.push(event);
        }
    }
    (screen, kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProcessId;

    fn events(stream: StreamName, mut offset: u64, pieces: &[&str]) -> Vec<Event> {
        let process = ProcessId::new();
        let mut events = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            let body = EventBody::Output {
                stream,
                offset,
                data: piece.as_bytes().to_vec().into(),
            };
            offset += piece.len() as u64;
            let (seq, time) = (index as u64 + 1, jiff::Timestamp::UNIX_EPOCH);
            events.push(Event {
                process,
                seq,
                time,
                body,
            });
        }
        events
    }

    fn shown(events: Vec<Event>, most: u64) -> String {
        let (_, events) = cut(events, most);
        let data = events.into_iter().filter_map(|event| match event.body {
            EventBody::Output { data, .. } => Some(String::from_utf8_lossy(&data).into_owned()),
            _ => None,
        });
        data.collect()
    }

    #[test]
    fn streams_are_cut_where_a_line_begins() {
        let out = |offset, pieces: &[&str]| events(StreamName::Stdout, offset, pieces);
        assert_eq!(
            shown(out(0, &["one\ntwo\n", "three\n"]), 100),
            "one\ntwo\nthree\n"
        );
        assert_eq!(
            shown(out(0, &["one\ntwo\n", "three\n"]), 12),
            "two\nthree\n".to_owned()
        );
        assert_eq!(shown(out(0, &["one\ntwo\n", "three\n"]), 6), "three\n");
        // It may have begun before.
        assert_eq!(shown(out(7, &["one\ntwo\n"]), 100), "two\n");
        // Wherever the pieces end.
        assert_eq!(shown(out(0, &["one\n", "two\n", "three\n"]), 8), "three\n");
        assert_eq!(shown(out(0, &["on", "e", "\nt", "wo\n"]), 6), "two\n");
        assert_eq!(shown(out(0, &["no line é at all"]), 8), " at all");
        assert_eq!(shown(out(0, &["one\n"]), 0), "");
    }

    #[test]
    fn a_terminals_bytes_are_cut_where_it_can_begin() {
        let pty = |offset, pieces: &[&str]| events(StreamName::Pty, offset, pieces);
        assert_eq!(shown(pty(0, &["\x1b[3", "1mred\x1b[", "mplain"]), 7), "plain");
        assert_eq!(shown(pty(5, &["1mred\x1b[", "mplain"]), 100), "\x1b[mplain");
    }
}
