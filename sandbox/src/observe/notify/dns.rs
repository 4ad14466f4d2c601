//! DNS messages, as far as a resolver needs them that answers for itself: one question in, one answer out.
//!
//! The bytes come from a hostile program. Nothing here is sent to anybody but that program.

use std::net::IpAddr;

const HEADER_BYTES: usize = 12;
const LABEL_BYTES_MAX: usize = 63;
const NAME_BYTES_MAX: usize = 255;
/// Addresses in one answer: with the longest name they fit into 512 bytes, which every client takes, so that no
/// answer is ever truncated and no client has a reason to come again over TCP.
const ANSWERS_MAX: usize = 8;
/// What the addresses may be kept for, in seconds. The pins stay as long as the process.
const TTL_S: u32 = 60;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;
/// A pointer to the name in the question.
const NAME_OF_QUESTION: u16 = 0xC000 | HEADER_BYTES as u16;

/// How a question is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// The name exists.
    NoError = 0,
    /// The message cannot be read.
    FormatError = 1,

    /// There is no such name. Also said of names that are not allowed: to "refused" clients answer by asking
    /// again and elsewhere.
    NoSuchName = 3,
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// The name in lower case, without a final dot.
    pub(super) name: String,
    type_: u16,
    class: u16,
    /// Identity and flags of the query.
    head: [u8; 4],
    /// The question as it was asked, with its upper and lower case.
    bytes: Vec<u8>,
}

impl Question {
    /// Reads a query with one question. What follows the question (EDNS) is not looked at.
    pub(super) fn parse(message: &[u8]) -> Option<Self> {
        let head: [u8; 4] = *message.first_chunk()?;
        let (is_response, opcode) = (head[2] & 0x80 != 0, head[2] >> 3 & 0xF);
        if is_response || opcode != 0 || message.get(4..8)? != [0, 1, 0, 0] {
            return None;
        }
        let (labels, name_end) = labels(message)?;
        let end = name_end + 4;
        let [t0, t1, c0, c1] = *message.get(name_end..end)?.first_chunk()?;
        Some(Self {
            name: labels,
            type_: u16::from_be_bytes([t0, t1]),
            class: u16::from_be_bytes([c0, c1]),
            head,
            bytes: message[HEADER_BYTES..end].to_vec(),
        })
    }

    /// Whether it asks for addresses at all.
    pub(super) fn wants_addresses(&self) -> bool {
        self.class == CLASS_IN && matches!(self.type_, TYPE_A | TYPE_AAAA)
    }

    /// The answer. Of the addresses, those that were asked for.
    pub(super) fn answer(&self, code: Code, addresses: &[IpAddr]) -> Vec<u8> {
        let records: Vec<Vec<u8>> = addresses
            .iter()
            .filter_map(|address| match (address, self.type_) {
                (IpAddr::V4(v4), TYPE_A) => Some(v4.octets().to_vec()),
                (IpAddr::V6(v6), TYPE_AAAA) => Some(v6.octets().to_vec()),
                _ => None,
            })
            .take(ANSWERS_MAX)
            .collect();
        let mut message = header(self.head, code, 1, records.len() as u8);
        message.extend(&self.bytes);
        for data in records {
            message.extend(NAME_OF_QUESTION.to_be_bytes());
            message.extend(self.type_.to_be_bytes());
            message.extend(CLASS_IN.to_be_bytes());
            message.extend(TTL_S.to_be_bytes());
            message.extend((data.len() as u16).to_be_bytes());
            message.extend(data);
        }
        message
    }
}

/// The answer to what is no question, if it is long enough to have an identity.
pub(super) fn unreadable(message: &[u8]) -> Option<Vec<u8>> {
    let head = *message.first_chunk::<4>()?;
    (head[2] & 0x80 == 0).then(|| header(head, Code::FormatError, 0, 0))
}

/// A response: recursion available, and desired if it was.
fn header(asked: [u8; 4], code: Code, questions: u8, answers: u8) -> Vec<u8> {
    let flags = [0x80 | asked[2] & 0x01, 0x80 | code as u8];
    let mut header = vec![asked[0], asked[1], flags[0], flags[1]];
    header.extend([0, questions, 0, answers, 0, 0, 0, 0]);
    header
}

/// The name of the question and where it ends. Names with other characters than those of host names come out
/// with `?` in their place: no rule covers them, and they can be shown.
fn labels(message: &[u8]) -> Option<(String, usize)> {
    let mut at = HEADER_BYTES;
    let mut name = String::new();
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        // Longer ones are pointers, which have nothing to point at in a first name.
        if length > LABEL_BYTES_MAX || at + length - HEADER_BYTES >= NAME_BYTES_MAX {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(message.get(at..at + length)?.iter().map(|&byte| match byte {
            b'-' | b'_' => char::from(byte),
            byte if byte.is_ascii_alphanumeric() => char::from(byte.to_ascii_lowercase()),
            _ => '?',
        }));
        at += length;
    }
    Some((name, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn query(name: &str, type_: u16) -> Vec<u8> {
        let mut message = vec![0xAB, 0xCD, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.').filter(|label| !label.is_empty()) {
            message.push(label.len() as u8);
            message.extend(label.bytes());
        }
        message.push(0);
        message.extend(type_.to_be_bytes());
        message.extend(CLASS_IN.to_be_bytes());
        message
    }

    #[test]
    fn an_answer_repeats_its_question_and_carries_the_addresses_of_the_type() {
        let asked = query("ExAmple.com", TYPE_A);
        let question = Question::parse(&asked).unwrap();
        assert_eq!(question.name, "example.com");
        let addresses = ["192.0.2.7".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let answer = question.answer(Code::NoError, &addresses);
        assert_eq!(answer[..8], [0xAB, 0xCD, 0x81, 0x80, 0, 1, 0, 1]);
        assert_eq!(answer[12..asked.len()], asked[12..]);
        assert_eq!(answer[answer.len() - 4..], [192, 0, 2, 7]);
        assert_eq!(answer.len(), asked.len() + 16);
    }

    #[test]
    fn the_longest_answer_fits_where_every_client_takes_it() {
        let label = "a".repeat(63);
        let name = [&label[..], &label, &label, &label[..61]].join(".");
        let question = Question::parse(&query(&name, TYPE_AAAA)).unwrap();
        let addresses: Vec<IpAddr> = (0..100).map(|n| IpAddr::from([n; 16])).collect();
        assert!(question.answer(Code::NoError, &addresses).len() <= 512);
    }

    #[test]
    fn what_is_no_question_is_none() {
        let good = query("a.b", TYPE_A);
        for end in 0..good.len() {
            assert_eq!(Question::parse(&good[..end]), None, "{end}");
        }
        let changed = |at: usize, byte: u8| {
            let mut message = good.clone();
            message[at] = byte;
            Question::parse(&message)
        };
        for (at, byte) in [(2, 0x81), (2, 0x29), (5, 2), (7, 1), (12, 0xC0), (12, 64)] {
            assert_eq!(changed(at, byte), None, "{at}");
        }
        assert_eq!(changed(13, b' ').unwrap().name, "?.b");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_question_or_none(message in proptest::collection::vec(any::<u8>(), 0..600)) {
            crate::fuzzing::dns(&message);
        }

        #[test]
        fn a_query_reads_as_the_name_in_it(name in "[a-z0-9_-]{1,63}(\\.[a-z0-9_-]{1,60}){0,2}") {
            prop_assert_eq!(Question::parse(&query(&name, TYPE_A)).unwrap().name, name);
        }
    }
}
