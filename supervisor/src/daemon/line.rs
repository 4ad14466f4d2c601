//! A line of a client's, as a request. What a client chose stays text until a method's own type is read from it: a tree
//! of values would take many times the memory of the line.

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::protocol::{ErrorKind, RpcError};

/// The longest id, in bytes of JSON.
const ID_BYTES_MAX: usize = 256;

/// A request's id, exactly as it was written.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub(super) struct Id(Option<Box<RawValue>>);

/// A request.
#[derive(Debug)]
pub(super) struct Line {
    /// Absent if no answer is wanted.
    pub(super) id: Option<Id>,
    pub(super) method: String,
    params: Option<Box<RawValue>>,
}

/// Only cut into its parts.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    jsonrpc: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    method: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    params: Option<&'a RawValue>,
}

/// Null is not the same as absent.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

impl Line {
    /// Reads a line; what to answer to one that is no request, and under which id.
    pub(super) fn read(line: &str) -> Result<Self, Box<(Id, RpcError)>> {
        let no_json = |error: &serde_json::Error| {
            let why = format!("it is no JSON: {error}");
            let error = RpcError::new(ErrorKind::Parse, "read a line", why);
            Box::new((Id::default(), error))
        };
        // An array would be read as a struct's fields.
        if !line.trim_start().starts_with('{') {
            serde_json::from_str::<IgnoredAny>(line).map_err(|error| no_json(&error))?;
            let why = "it is no JSON object (batches are not read)";
            return Err(Box::new((Id::default(), invalid(why))));
        }
        let envelope: Envelope<'_> =
            serde_json::from_str(line).map_err(|error| match error.classify() {
                Category::Data => Box::new((Id::default(), invalid(plain(&error)))),
                _ => no_json(&error),
            })?;
        let id = match envelope.id.map(RawValue::get) {
            None => None,
            Some(id) if id.len() > ID_BYTES_MAX => {
                let why = format!("`id` is longer than {ID_BYTES_MAX} bytes");
                return Err(Box::new((Id::default(), invalid(why))));
            }
            Some(id) if id.starts_with(|c: char| c == '"' || c == '-' || c.is_ascii_digit()) => {
                Some(Id(envelope.id.map(ToOwned::to_owned)))
            }
            Some(_) => {
                let why = "`id` is neither a string nor a number";
                return Err(Box::new((Id::default(), invalid(why))));
            }
        };
        let invalid = |why: &str| Box::new((id.clone().unwrap_or_default(), invalid(why)));
        let text = |value: Option<&RawValue>| serde_json::from_str::<String>(value?.get()).ok();
        if text(envelope.jsonrpc).as_deref() != Some("2.0") {
            return Err(invalid("`jsonrpc` is not \"2.0\""));
        }
        let Some(method) = text(envelope.method) else {
            return Err(invalid("`method` is no string"));
        };
        Ok(Self {
            id,
            method,
            params: envelope.params.map(ToOwned::to_owned),
        })
    }

    /// What its method takes. Absent and null are the same as an empty object.
    pub(super) fn params<T: DeserializeOwned>(&self) -> Result<T, RpcError> {
        let text = self.params.as_ref().map_or("null", |params| params.get());
        let text = if text == "null" { "{}" } else { text };
        let invalid = |why: String| RpcError::new(ErrorKind::InvalidParams, self.method.as_str(), why);
        if !text.starts_with('{') {
            return Err(invalid("`params` is no object".to_owned()));
        }
        serde_json::from_str(text).map_err(|error| invalid(plain(&error)))
    }
}

fn invalid(why: impl Into<String>) -> RpcError {
    RpcError::new(ErrorKind::InvalidRequest, "read a request", why)
}

/// Without the place, which is one in a part of the line.
fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}
