//! What must hold of a client's line, whatever stands in it.
//!
//! Public behind a feature: the fuzz target gives it lines that a fuzzer chose, the tests what they think of.

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;

use super::connection::reply;
use super::line::Line;
use crate::protocol::{
    Ack, ApprovalDecide, ApprovalFollow, ApprovalList, ErrorKind, Initialize, ProcessFollow,
    ProcessList, ProcessPrune, ProcessRead, ProcessRef, ProcessResize, ProcessSignal, ProcessStart,
    ProcessStop, ProcessWait, ProcessWrite, RpcError, SessionAttach, SessionClose, SessionFollow,
    SessionOpen, SessionRef, Unfollow,
};

/// The longest answer to a line that comes to nothing: its parts are cut.
const ANSWER_BYTES_MAX: usize = 32 << 10;

/// Any line is a request, whose parameters each type takes or refuses, or it is answered; under its id, if that can be
/// read.
pub fn protocol_line(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    for line in text.lines() {
        match Line::read(line) {
            Ok(request) => {
                assert!(line.contains("jsonrpc") || line.contains('\\'), "{line}");
                if let Some(id) = &request.id {
                    answered(line, reply(id.clone(), Ok(RawValue::NULL.to_owned())));
                }
                each(&request);
            }
            Err(refused) => {
                let (id, error) = *refused;
                let kind = error.data.kind;
                assert!(matches!(kind, ErrorKind::Parse | ErrorKind::InvalidRequest));
                answered(line, reply(id, Err(error)));
            }
        }
    }
}

/// An answer is one line of JSON, and not a long one; a scalar id in the line is repeated to the letter.
fn answered(line: &str, answer: impl serde::Serialize) {
    let text = serde_json::to_string(&answer).expect("an answer can be written");
    assert!(!text.contains('\n') && text.len() < ANSWER_BYTES_MAX, "{text}");
    serde_json::from_str::<IgnoredAny>(&text).expect("an answer is JSON");
    let id = text
        .strip_prefix(r#"{"jsonrpc":"2.0","id":"#)
        .expect("the id comes second");
    let end = id
        .rfind(r#","result":null}"#)
        .or_else(|| id.find(r#","error":{"#));
    let id = &id[..end.expect("one of both")];
    assert!(id == "null" || line.contains(id), "{id} is not in {line}");
}

/// The parameters as every method would read them.
fn each(request: &Line) {
    one::<Initialize>(request);
    one::<SessionOpen>(request);
    one::<SessionRef>(request);
    one::<SessionAttach>(request);
    one::<SessionClose>(request);
    one::<SessionFollow>(request);
    one::<ProcessStart>(request);
    one::<ProcessRef>(request);
    one::<ProcessRead>(request);
    one::<ProcessFollow>(request);
    one::<Ack>(request);
    one::<Unfollow>(request);
    one::<ProcessWrite>(request);
    one::<ProcessResize>(request);
    one::<ProcessStop>(request);
    one::<ProcessWait>(request);
    one::<ProcessList>(request);
    one::<ProcessPrune>(request);
    one::<ApprovalDecide>(request);
    one::<ApprovalFollow>(request);
    one::<ApprovalList>(request);
    if let Ok(asked) = request.params::<ProcessSignal>() {
        short(super::requests::signal(&asked.signal).err());
    }
}

fn one<T: DeserializeOwned>(request: &Line) {
    short(request.params::<T>().err());
}

fn short(error: Option<RpcError>) {
    if let Some(error) = error {
        assert_eq!(error.data.kind, ErrorKind::InvalidParams);
        assert!(error.message.len() < ANSWER_BYTES_MAX);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::protocol_line;

    /// Parts of lines, so that some come near to requests.
    fn part() -> impl Strategy<Value = String> {
        let known = [
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"jsonrpc\":\"2.0\"",
            "\"id\":",
            "\"method\":",
            "\"params\":",
            "null",
            "1",
            "-0",
            "1e999",
            "\"x\"",
            "\"\\ud800\"",
            "\"process\":",
            "\"argv\":",
            "\"offset\":",
            "{}",
            "\n",
            " ",
            "\"process/write\"",
            "\"signal\":",
            "\"labels\":",
        ];
        prop_oneof![
            8 => proptest::sample::select(known.to_vec()).prop_map(str::to_owned),
            1 => ".{0,8}",
        ]
    }

    proptest! {
        #[test]
        fn any_line_is_a_request_or_is_answered(parts in prop::collection::vec(part(), 0..24)) {
            protocol_line(parts.concat().as_bytes());
        }

        #[test]
        fn a_request_is_read_whatever_its_parts_are(
            id in "-?[0-9]{1,30}|\"[a-z]{0,20}\"",
            method in "[a-z/]{0,20}",
            params in prop::collection::vec(part(), 0..8),
        ) {
            let params = params.concat();
            let line = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{{{params}}}}}"#);
            protocol_line(line.as_bytes());
        }
    }
}
