//! What bytes for a terminal do to it, as far as it must be known where the end of them can be begun with, and what is to be
//! put back when somebody leaves in the middle.
//!
//! The states are those of the VT500's parser, without what makes no difference here.

use std::collections::BTreeSet;
use std::fmt::Write;

/// Private modes that a full-screen program sets and that outlast it on the user's terminal: application keys, mouse
/// reports, focus reports, another screen, bracketed paste.
const MODES: [u16; 12] = [1, 9, 47, 1000, 1002, 1003, 1004, 1006, 1015, 1047, 1049, 2004];
/// The cursor is shown; the one that is put back by setting it.
const CURSOR: u16 = 25;
/// Longer sequences are not looked at.
const SEQUENCE_BYTES_MAX: usize = 64;

/// What bytes have done to a terminal.
#[derive(Debug, Default)]
pub(super) struct Screen {
    state: State,
    /// What stands between `ESC [` and its end.
    sequence: Vec<u8>,
    modes: BTreeSet<u16>,
    cursor_hidden: bool,
    coloured: bool,
    /// Lines scroll in a part of the screen only.
    margins: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Ground,
    /// Behind ESC, and what may follow it before its end.
    Escape,
    /// Behind `ESC [`.
    Control,
    /// In a title, a picture or the like, which ends with BEL or `ESC \`.
    Text,
    /// Behind an ESC there.
    TextEscape,
    /// So many bytes of a character are to come.
    Character(u8),
}

impl Screen {
    /// Takes bytes as a terminal would.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.byte(*byte));
    }

    fn byte(&mut self, byte: u8) {
        self.state = match (self.state, byte) {
            (State::Text, 0x1b) => State::TextEscape,
            (State::Text, 0x07 | 0x18 | 0x1a) | (State::TextEscape, b'\\') => State::Ground,
            (State::Text, _) => State::Text,
            (_, 0x1b) => State::Escape,
            (_, 0x18 | 0x1a) => State::Ground,
            (State::Escape | State::TextEscape, b'[') => {
                self.sequence.clear();
                State::Control
            }
            (State::Escape | State::TextEscape, b']' | b'P' | b'X' | b'^' | b'_') => State::Text,
            (State::Escape | State::TextEscape, b'c') => {
                *self = Self::default();
                State::Ground
            }
            (State::Escape | State::TextEscape, ..0x30) => State::Escape,
            (State::Control, 0x40..=0x7e) => {
                self.control(byte);
                State::Ground
            }
            (State::Control, _) => {
                if self.sequence.len() < SEQUENCE_BYTES_MAX {
                    self.sequence.push(byte);
                }
                State::Control
            }
            (State::Character(left @ 2..), 0x80..=0xbf) => State::Character(left - 1),
            (State::Ground | State::Character(_), 0xc2..=0xdf) => State::Character(1),
            (State::Ground | State::Character(_), 0xe0..=0xef) => State::Character(2),
            (State::Ground | State::Character(_), 0xf0..=0xf4) => State::Character(3),
            _ => State::Ground,
        };
    }

    /// `ESC [ ? 1049 ; 25 h` and the like.
    fn control(&mut self, last: u8) {
        let usual = self.sequence.is_empty() || self.sequence == b"0";
        match last {
            b'm' if !self.sequence.starts_with(b">") => self.coloured = !usual,
            b'r' if !self.sequence.starts_with(b"?") => self.margins = !usual,
            _ => {}
        }
        let Some(modes) = self.sequence.strip_prefix(b"?") else {
            return;
        };
        let on = match last {
            b'h' => true,
            b'l' => false,
            _ => return,
        };
        for mode in modes.split(|byte| *byte == b';') {
            let Some(mode) = std::str::from_utf8(mode).ok().and_then(|mode| mode.parse().ok()) else {
                continue;
            };
            if mode == CURSOR {
                self.cursor_hidden = !on;
            } else if on && MODES.contains(&mode) {
                self.modes.insert(mode);
            } else {
                self.modes.remove(&mode);
            }
        }
    }

    /// Brings a terminal that is as usual to where this one is.
    pub(super) fn set_modes(&self) -> String {
        let mut text = String::new();
        for mode in &self.modes {
            let _ = write!(text, "\x1b[?{mode}h");
        }
        if self.cursor_hidden {
            let _ = write!(text, "\x1b[?{CURSOR}l");
        }
        text
    }

    /// Puts back what is not as usual, whatever sequence was cut off; nothing, where there is nothing to put back.
    pub(super) fn put_back(&self) -> String {
        let mut text = String::new();
        match self.state {
            State::Ground | State::Character(_) => {}
            // CAN ends every sequence.
            _ => text.push('\x18'),
        }
        for mode in &self.modes {
            let _ = write!(text, "\x1b[?{mode}l");
        }
        if self.cursor_hidden {
            let _ = write!(text, "\x1b[?{CURSOR}h");
        }
        if self.coloured {
            text.push_str("\x1b[m");
        }
        if self.margins {
            // It moves the cursor, which is to stay.
            text.push_str("\x1b7\x1b[r\x1b8");
        }
        text
    }
}

/// The end of what a terminal was sent: at most about so many bytes, from a place that is neither within a sequence nor within
/// a character, and the state before it. What came before `bytes` is not known, unless they are `all`.
pub(super) fn tail(bytes: &[u8], most: usize, all: bool) -> (Screen, &[u8]) {
    let mut screen = Screen::default();
    // An escape begins anew whatever came before; a line feed is within nothing but a picture.
    let known = if all {
        Some(0)
    } else {
        bytes.iter().enumerate().find_map(|(place, byte)| match byte {
            0x1b if bytes.get(place + 1).is_some_and(|next| *next != b'\\') => Some(place),
            b'\n' => Some(place + 1),
            _ => None,
        })
    };
    let Some(known) = known else {
        return (screen, &[]);
    };
    let wanted = bytes.len().saturating_sub(most).max(known);
    screen.take(&bytes[known..wanted]);
    let mut begin = wanted;
    while screen.state != State::Ground && begin < bytes.len() {
        screen.byte(bytes[begin]);
        begin += 1;
    }
    (screen, &bytes[begin..])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(bytes: &[u8], most: usize, all: bool) -> String {
        let (_, tail) = tail(bytes, most, all);
        String::from_utf8_lossy(tail).into_owned()
    }

    #[test]
    fn a_tail_begins_within_no_sequence_and_no_character() {
        assert_eq!(text(b"abc", 10, true), "abc");
        assert_eq!(text(b"abc", 2, true), "bc");
        // Nothing is known of where this begins.
        assert_eq!(text(b"2;31mred", 10, false), "");
        assert_eq!(text(b"2;31mred\x1b[mplain", 20, false), "\x1b[mplain");
        assert_eq!(text(b"2;31mred\nplain", 20, false), "plain");
        // The end of a title, not the beginning of anything.
        assert_eq!(text(b"title\x1b\\red\nplain", 20, false), "plain");
        assert_eq!(text(b"a\x1b[31mred", 5, true), "red");
        assert_eq!(text("aéb".as_bytes(), 2, true), "b");
        assert_eq!(text("a\u{1f600}b".as_bytes(), 3, true), "b");
        assert_eq!(text(b"\x1b]0;a long title\x07shown", 10, true), "shown");
        assert_eq!(text(b"\x1bPq pic\nture\x1b\\shown", 9, true), "shown");
        assert_eq!(text(b"\x1b(Bshown", 6, true), "shown");
        assert_eq!(text(b"\x1b[3", 1, true), "");
    }

    #[test]
    fn modes_that_were_set_are_set_again_and_put_back() {
        let mut screen = Screen::default();
        screen.take(b"\x1b[?1049h\x1b[?25l\x1b[?1000;1006h\x1b[?2004h\x1b[?7h\x1b[4h");
        screen.take(b"\x1b[?2004l");
        assert_eq!(screen.set_modes(), "\x1b[?1000h\x1b[?1006h\x1b[?1049h\x1b[?25l");
        screen.take(b"\x1b[1;31m\x1b[2;20r\x1b[3");
        assert_eq!(
            screen.put_back(),
            "\x18\x1b[?1000l\x1b[?1006l\x1b[?1049l\x1b[?25h\x1b[m\x1b7\x1b[r\x1b8"
        );
        screen.take(b"1m\x1bc");
        assert_eq!(screen.put_back(), "");
        screen.take(b"\x1b[31mred\x1b[0m\x1b[2;20r\x1b[r");
        assert_eq!(screen.put_back(), "");
    }

    proptest! {
        /// Whatever is cut off: a terminal that is sent the modes and the tail is where one is that was sent it all.
        #[test]
        fn a_tail_leads_where_the_whole_leads(
            pieces in proptest::collection::vec(prop_oneof![
                Just("plain\r\n".to_owned()), Just("\x1b[?1049h".to_owned()), Just("\x1b[?25l".to_owned()),
                Just("\x1b[?1049l\x1b[?25h".to_owned()), Just("\x1b]2;title\x1b\\".to_owned()), Just("é\u{1f600}".to_owned()),
                Just("\x1b[38;5;1m".to_owned()), Just("\x1b(B".to_owned()), "[a-z ]{0,9}",
            ], 0..60),
            most in 0usize..400,
        ) {
            let bytes = pieces.concat().into_bytes();
            let mut whole = Screen::default();
            whole.take(&bytes);
            let (mut screen, end) = tail(&bytes, most, true);
            prop_assert!(end.len() <= most);
            prop_assert_eq!(screen.state, State::Ground);
            prop_assert!(std::str::from_utf8(end).is_ok());
            let mut replayed = Screen::default();
            replayed.take(screen.set_modes().as_bytes());
            replayed.take(end);
            screen.take(end);
            prop_assert_eq!(&replayed.modes, &whole.modes);
            prop_assert_eq!(replayed.cursor_hidden, whole.cursor_hidden);
            prop_assert_eq!(screen.modes, whole.modes);
        }
    }
}
