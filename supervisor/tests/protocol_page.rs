//! The reference of the protocol is held against the types and methods that the daemon has.

use std::collections::BTreeSet;
use std::path::Path;

fn page(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::fs::read_to_string(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The items of this kind in formatted source: name and body.
fn items<'a>(source: &'a str, head: &str) -> Vec<(&'a str, &'a str)> {
    let mut found = Vec::new();
    for part in source.split(head).skip(1) {
        let name = part.split(|c: char| !c.is_alphanumeric()).next().unwrap();
        let body = part.split("\n}\n").next().unwrap();
        found.push((name, body));
    }
    found
}

#[test]
fn every_method_has_a_section_with_an_example() {
    let page = page("docs/protocol.md");
    let parts = [
        "connection",
        "requests",
        "follow",
        "follow/watch",
        "sessions",
        "jobs/requests",
        "jobs/follow",
    ];
    let sources = parts
        .map(|name| self::page(&format!("supervisor/src/daemon/{name}.rs")))
        .concat();
    let is_method = |text: &&str| {
        let known = ["initialize", "ack", "unfollow"].contains(text);
        let mut halves = text.split('/');
        let half = |half: Option<&str>| {
            half.is_some_and(|half| !half.is_empty() && half.bytes().all(|b| b.is_ascii_lowercase()))
        };
        known || half(halves.next()) && half(halves.next()) && halves.next().is_none()
    };
    let methods: BTreeSet<&str> = sources.split('"').filter(is_method).collect();
    assert!(methods.len() > 25, "methods are not found any more: {methods:?}");
    for method in methods {
        assert!(
            page.contains(&format!("`{method}`")),
            "`{method}` is not documented"
        );
        let is_shown = page.contains(&format!(r#""method":"{method}""#));
        let beside_another = [
            "process/kill",
            "process/inspect",
            "session/attach",
            "session/clean",
        ];
        let described = ["session/follow", "session/event", "follow/gap", "job/event"];
        assert!(
            is_shown || beside_another.contains(&method) || described.contains(&method),
            "there is no example of `{method}`"
        );
    }
}

#[test]
fn every_parameter_and_every_member_of_a_result_is_documented() {
    let parts = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/protocol")).unwrap();
    let parts = parts.map(|part| std::fs::read_to_string(part.unwrap().path()).unwrap());
    let source = self::page("supervisor/src/protocol.rs") + &parts.collect::<String>();
    let page = page("docs/protocol.md");
    let structs = items(&source, "pub struct ");
    assert!(structs.len() > 25, "structs are not found any more");
    for (name, body) in structs {
        for line in body.lines() {
            let Some(field) = line.strip_prefix("    pub ") else {
                continue;
            };
            let field = field.split(':').next().unwrap();
            let is_there = page.contains(&format!("`{field}`"))
                || page.contains(&format!("\"{field}\":"))
                || page.contains(&format!("data.{field}`"));
            assert!(is_there, "`{field}` of {name} is not documented");
        }
    }
}

#[test]
fn every_kind_of_error_is_documented_with_its_code() {
    let (page, source) = (page("docs/protocol.md"), page("supervisor/src/protocol/error.rs"));
    let codes = source.split("pub const fn code").nth(1).unwrap();
    let codes = codes.split("\n    }\n").next().unwrap();
    let mut count = 0;
    for line in codes.lines() {
        let Some((kind, code)) = line
            .trim()
            .strip_prefix("Self::")
            .and_then(|line| line.split_once(" => "))
        else {
            continue;
        };
        let mut snake = String::new();
        for c in kind.chars() {
            if c.is_uppercase() && !snake.is_empty() {
                snake.push('_');
            }
            snake.extend(c.to_lowercase());
        }
        let row = format!("| `{snake}` | {} |", code.trim_end_matches(','));
        assert!(page.contains(&row), "there is no row `{row}`");
        count += 1;
    }
    let enums = items(&source, "pub enum ");
    let (_, kinds) = enums.iter().find(|(name, _)| *name == "ErrorKind").unwrap();
    let is_variant = |line: &&str| line.trim_start().starts_with(|c: char| c.is_ascii_uppercase());
    assert_eq!(count, kinds.lines().skip(1).filter(is_variant).count());
}
