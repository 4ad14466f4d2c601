//! What must be true of every terminal record.

use serde_json::Value;

/// All fields that a record always has.
const FIELDS: [&str; 18] = [
    "schema",
    "process",
    "argv",
    "outcome",
    "reason",
    "exit_code",
    "signal",
    "succeeded",
    "denied",
    "queued_at",
    "started_at",
    "ended_at",
    "duration_ms",
    "output",
    "denials",
    "usage",
    "tree",
    "last_seq",
];

/// What in the record contradicts the contract or itself.
pub(crate) fn contradictions(record: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut check = |holds: bool, what: &str| {
        if !holds {
            wrong.push(what.to_owned());
        }
    };
    for field in FIELDS {
        check(record.get(field).is_some(), &format!("{field} is missing"));
    }
    check(record["schema"] == 1, "schema is not 1");
    check(
        record["process"].as_str().is_some_and(|id| id.len() == 36),
        "process is no UUID",
    );
    let exited_zero = record["outcome"] == "exited" && record["exit_code"] == 0;
    check(
        record["succeeded"] == exited_zero,
        "succeeded is not `exited with 0`",
    );
    let both = !record["exit_code"].is_null() && !record["signal"].is_null();
    check(!both, "both an exit code and a signal");
    check(
        record["last_seq"].as_u64().is_some_and(|seq| seq > 0),
        "last_seq is not positive",
    );
    for (name, stream) in record["output"].as_object().into_iter().flatten() {
        let number = |field: &str| stream[field].as_u64();
        let sum = number("retained")
            .zip(number("dropped"))
            .map(|(kept, dropped)| kept + dropped);
        check(
            number("bytes") == sum,
            &format!("{name}: bytes is not retained plus dropped"),
        );
        let closed = stream["closed"].as_str();
        check(
            matches!(closed, Some("eof" | "abandoned")),
            &format!("{name}: closed is {closed:?}"),
        );
    }
    let denials = &record["denials"];
    let total = denials["total"].as_u64();
    let by_class: u64 = denials["by_class"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(_, n)| n.as_u64())
        .sum();
    check(
        total == Some(by_class),
        "denials: total is not the sum of by_class",
    );
    check(record["denied"] == (by_class > 0), "denied is not `total > 0`");
    let listed = denials["first"].as_array().map_or(0, Vec::len) as u64;
    check(listed <= by_class, "more denials are listed than were counted");
    check(
        by_class == 0 || listed > 0,
        "denials were counted but none is listed",
    );
    let unobserved = denials["unobserved"].as_array().map_or(0, Vec::len);
    let complete = denials["complete"].as_bool();
    check(complete.is_some(), "denials: complete is missing");
    check(
        complete != Some(true) || unobserved == 0,
        "denials: complete although something is unobserved",
    );
    wrong
}
