//! What a program reported as its result, judged.

use std::fmt;

use provost_sandbox::extras::REPORT_BYTES_MAX;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// How deep a result may be nested: records with results in them must be readable by every reader of JSON.
const DEPTH_MAX: usize = 64;

/// A result: any JSON value but `null`, written without spaces. Kept as text, which is bounded; a tree of values made of
/// the same text may be thirty times as large.
#[derive(Clone, PartialEq, Eq)]
pub struct ReportedValue(Box<str>);

impl ReportedValue {
    /// The value as text.
    pub fn as_json(&self) -> &str {
        &self.0
    }

    /// The value.
    pub fn to_value(&self) -> Value {
        serde_json::from_str(&self.0).unwrap_or_default()
    }
}

impl From<&Value> for ReportedValue {
    fn from(value: &Value) -> Self {
        Self(value.to_string().into())
    }
}

impl fmt::Debug for ReportedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for ReportedValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_value().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ReportedValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(|value| Self::from(&value))
    }
}

/// What became of a report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reported {
    /// The result; none for `null`.
    pub result: Option<ReportedValue>,
    /// Why there is none.
    pub error: Option<String>,
}

impl Reported {
    /// What was found when nobody could write any more.
    pub fn judge(found: &[u8]) -> Self {
        match judge(found) {
            Ok(value) => Self {
                result: value.filter(|value| value.as_json() != "null"),
                error: None,
            },
            Err(why) => Self::unknown(why),
        }
    }

    /// None, for this reason.
    pub fn unknown(why: impl Into<String>) -> Self {
        Self {
            result: None,
            error: Some(why.into()),
        }
    }
}

/// The value that is meant; none, if nothing was reported.
///
/// # Errors
/// Why what was reported is no result.
pub fn judge(found: &[u8]) -> Result<Option<ReportedValue>, String> {
    let text = match std::str::from_utf8(found) {
        // One that fills the place may have been cut within a character.
        _ if found.trim_ascii().len() > REPORT_BYTES_MAX => {
            return Err(format!("it reported more than {} KiB", REPORT_BYTES_MAX >> 10));
        }
        Ok(text) => text,
        Err(error) => {
            let at = error.valid_up_to();
            return Err(format!("what it reported is not UTF-8 at byte {at}"));
        }
    };
    let mut values = serde_json::Deserializer::from_str(text).into_iter();
    let value: Value = match values.next() {
        Some(Ok(value)) => value,
        Some(Err(error)) => return Err(format!("what it reported is not JSON: {error}")),
        None => return Ok(None),
    };
    let rest = text.get(values.byte_offset()..).unwrap_or_default();
    if !rest.trim_ascii().is_empty() {
        return Err("it reported more than one value".to_owned());
    }
    if is_deeper(&value, DEPTH_MAX) {
        return Err(format!("what it reported is nested deeper than {DEPTH_MAX}"));
    }
    let value = ReportedValue::from(&value);
    // What was short may be long now: 1e15 is written as 1000000000000000.0.
    if value.as_json().len() > REPORT_BYTES_MAX {
        return Err(format!(
            "it reported more than {} KiB, with its numbers written out",
            REPORT_BYTES_MAX >> 10
        ));
    }
    Ok(Some(value))
}

fn is_deeper(value: &Value, levels: usize) -> bool {
    let below = |value: &Value| is_deeper(value, levels - 1);
    match value {
        Value::Array(_) | Value::Object(_) if levels == 0 => true,
        Value::Array(values) => values.iter().any(below),
        Value::Object(values) => values.values().any(below),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error_of(found: &[u8]) -> String {
        judge(found).expect_err("it is none")
    }

    #[test]
    fn one_value_is_a_result_whatever_spaces_are_around_it() {
        for (found, result) in [
            (
                "{\"b\": [1, 2.5, \"\u{e4}\"], \"a\": null}\n",
                "{\"a\":null,\"b\":[1,2.5,\"\u{e4}\"]}",
            ),
            ("  7\n\n", "7"),
            ("\"\\u0000\"", "\"\\u0000\""),
            ("false", "false"),
        ] {
            let reported = Reported::judge(found.as_bytes());
            assert_eq!(reported.error, None, "{found}");
            assert_eq!(reported.result.expect("it").as_json(), result);
        }
        assert_eq!(Reported::judge(b"null\n"), Reported::default());
        // Whoever says nothing has made no mistake.
        assert_eq!(Reported::judge(b" \n"), Reported::default());
        assert_eq!(judge(b""), Ok(None));
    }

    #[test]
    fn anything_else_says_what_is_wrong_with_it() {
        assert_eq!(error_of(b"1\n2\n"), "it reported more than one value");
        assert_eq!(error_of(b"{} x"), "it reported more than one value");
        assert_eq!(error_of(b"\"a\xff\""), "what it reported is not UTF-8 at byte 2");
        assert!(error_of(b"{\"a\":").starts_with("what it reported is not JSON: EOF"));
        assert!(error_of(b"\0\0{}").starts_with("what it reported is not JSON"));
        let long = vec![b'1'; REPORT_BYTES_MAX + 1];
        assert_eq!(error_of(&long), "it reported more than 64 KiB");
        let nested = |depth: usize| ["[".repeat(depth), "]".repeat(depth)].concat();
        assert!(judge(nested(DEPTH_MAX).as_bytes()).is_ok());
        assert_eq!(
            error_of(nested(DEPTH_MAX + 1).as_bytes()),
            "what it reported is nested deeper than 64"
        );
    }

    #[test]
    fn what_is_kept_is_no_longer_than_what_may_be_reported() {
        let found = ["[", &"1e15,".repeat(13_000), "0]"].concat();
        assert!(found.len() <= REPORT_BYTES_MAX);
        assert_eq!(
            error_of(found.as_bytes()),
            "it reported more than 64 KiB, with its numbers written out"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_result_that_reads_as_the_same_or_an_error(
            found in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                "[\\[\\]{}\":,0-9a-e.\\- ]{0,40}".prop_map(String::into_bytes),
                any::<f64>().prop_map(|number| number.to_string().into_bytes()),
            ]
        ) {
            let reported = Reported::judge(&found);
            prop_assert!(reported.result.is_none() || reported.error.is_none());
            let json = serde_json::to_string(&reported).expect("JSON");
            prop_assert_eq!(&serde_json::from_str::<Reported>(&json).expect("it"), &reported);
        }
    }
}
