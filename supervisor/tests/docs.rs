//! What the documentation says is held against what the program does.

#![allow(clippy::disallowed_methods, reason = "the binary is run as a user runs it")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Maps whose keys the caller or the program chooses.
const FREE_KEYS: [&str; 2] = ["labels", "probes"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What the binary prints on stdout.
fn provost(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_provost"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_event_and_field_of_a_real_run_is_documented() {
    const SCRIPT: &str = "echo out; echo x > /etc/provost-probe; exec sleep 100";
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let cwd = directory.path().to_str().unwrap();
    let flags = ["run", "--json", "-q", "--best-effort", "--timeout", "1s"];
    let command = ["--cwd", cwd, "--", "sh", "-c", SCRIPT];
    let lines = provost(&[&flags[..], &command].concat());
    let events: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let types: BTreeSet<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    for expected in [
        "started",
        "output",
        "denial",
        "signal_sent",
        "stream_closed",
        "exited",
        "terminal",
    ] {
        assert!(types.contains(expected), "the run made no `{expected}`: {lines}");
    }
    let documented = page("docs/events.md");
    for event in types {
        assert!(
            documented.contains(&format!("### `{event}`")),
            "there is no section on `{event}`"
        );
    }
    let mut fields = BTreeSet::new();
    events.iter().for_each(|event| names(event, &mut fields));
    for field in fields {
        assert!(
            documented.contains(&format!("`{field}`")),
            "the field `{field}` is not documented"
        );
    }
}

/// Collects the names of all fields.
fn names(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                into.insert(name.clone());
                if !FREE_KEYS.contains(&name.as_str()) {
                    names(field, into);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| names(item, into)),
        _ => {}
    }
}

#[test]
fn every_variant_of_the_published_enums_is_documented() {
    let documented = page("docs/events.md");
    for (file, name) in [
        ("actors/src/event.rs", "EventBody"),
        ("actors/src/event.rs", "StreamName"),
        ("actors/src/record.rs", "Outcome"),
        ("actors/src/record.rs", "Closed"),
        ("sandbox/src/denial.rs", "DenialClass"),
        ("sandbox/src/denial.rs", "Certainty"),
        ("sandbox/src/denial.rs", "Decision"),
        ("sandbox/src/report.rs", "Containment"),
        ("sandbox/src/report.rs", "FileObservation"),
    ] {
        let variants = variants(&page(file), name);
        assert!(variants.len() > 1, "{name} was not found in {file}");
        for variant in variants {
            assert!(
                documented.contains(&format!("`{variant}`")),
                "`{variant}` of {name} is not documented"
            );
        }
    }
}

/// The variants of an enum in formatted source, as they are written in JSON.
fn variants(source: &str, name: &str) -> Vec<String> {
    let head = format!("pub enum {name} {{");
    let body = source.lines().skip_while(|line| **line != head).skip(1);
    body.take_while(|line| *line != "}")
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
        .filter_map(|line| line.split(|c: char| !c.is_alphanumeric()).next())
        .map(snake_case)
        .collect()
}

fn snake_case(variant: &str) -> String {
    let mut snake = String::new();
    for c in variant.chars() {
        if c.is_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.extend(c.to_lowercase());
    }
    snake
}

#[test]
fn every_flag_is_documented() {
    let pages = page("README.md") + &page("docs/policy.md");
    let flags = flags_of("run");
    assert!(
        flags.len() > 20,
        "the help does not look as it used to: {flags:?}"
    );
    for flag in flags {
        assert!(pages.contains(&flag), "{flag} is not documented");
    }
    let database = page("docs/database.md");
    for flag in flags_of("records") {
        assert!(database.contains(&format!("`{flag}")), "{flag} is not documented");
    }
    let groups = page("docs/restart.md");
    for flag in flags_of("up") {
        assert!(groups.contains(&format!("`{flag}")), "{flag} is not documented");
    }
    // What `run` has, too, is documented with that.
    let (map, run) = (page("docs/map.md"), flags_of("run"));
    for flag in flags_of("map").difference(&run) {
        assert!(map.contains(flag), "{flag} is not documented");
    }
    let flags = flags_of("serve");
    assert!(flags.len() > 5, "the help does not look as it used to: {flags:?}");
    let daemon = page("docs/daemon.md");
    for flag in flags {
        assert!(daemon.contains(&format!("`{flag}")), "{flag} is not documented");
    }
}

/// The flags that the help of a verb names.
fn flags_of(verb: &str) -> BTreeSet<String> {
    let help = provost(&[verb, "--help"]);
    help.lines()
        .filter(|line| line.trim_start().starts_with('-'))
        .filter_map(|line| line.split([' ', ',', '=']).find(|word| word.starts_with("--")))
        .filter(|flag| *flag != "--help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_key_of_the_daemons_configuration_is_documented() {
    let source = page("supervisor/src/daemon/config/file.rs");
    let body = source
        .lines()
        .skip_while(|line| *line != "struct ServeFile {")
        .skip(1);
    let keys: Vec<&str> = body
        .take_while(|line| *line != "}")
        .filter_map(|line| Some(line.trim().split_once(':')?.0))
        .collect();
    assert!(keys.len() > 10, "the keys were not found: {keys:?}");
    let documented = page("docs/daemon.md");
    for key in keys {
        assert!(
            documented.contains(&format!("\n| `{key}` |")),
            "`{key}` is not documented"
        );
    }
}

#[test]
fn every_key_and_event_of_a_group_is_documented() {
    let documented = page("docs/restart.md");
    let source = page("supervisor/src/cli/up/file.rs");
    let mut keys = 0;
    for name in ["UpFile", "BackoffTable", "ProcessTable", "ReadyTable"] {
        let head = format!("struct {name} {{");
        let body = source.lines().skip_while(|line| **line != head).skip(1);
        for key in body
            .take_while(|line| *line != "}")
            .filter_map(|line| Some(line.trim().split_once(':')?.0))
        {
            assert!(
                documented.contains(&format!("\n| `{key}` |")),
                "`{key}` is not documented"
            );
            keys += 1;
        }
    }
    assert!(keys > 15, "only {keys} keys were found");
    let source = page("supervisor/src/group.rs");
    for (name, found) in [("GroupEvent", 6), ("GroupCause", 5)] {
        let variants = variants(&source, name);
        assert_eq!(variants.len(), found, "{variants:?}");
        for variant in variants {
            assert!(
                documented.contains(&format!("`{variant}`")),
                "`{variant}` is not documented"
            );
        }
    }
}

#[test]
fn every_table_and_column_of_the_database_is_documented() {
    let documented = page("docs/database.md");
    let (mut tables, mut columns) = (0, 0);
    for migration in std::fs::read_dir(root().join("supervisor/src/store/schema")).unwrap() {
        let migration = std::fs::read_to_string(migration.unwrap().path()).unwrap();
        let mut section = "";
        for line in migration.lines() {
            if let Some(table) = line.strip_prefix("CREATE TABLE ") {
                let heading = format!("\n### `{}`\n", table.trim_end_matches(" ("));
                let found = documented.split_once(&heading);
                section = found
                    .unwrap_or_else(|| panic!("there is no section `{heading}`"))
                    .1;
                section = section.split("\n#").next().unwrap_or_default();
                tables += 1;
            }
            let column = line.strip_prefix("    ").and_then(|line| line.split(' ').next());
            if let Some(column) =
                column.filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase()))
            {
                assert!(
                    section.contains(&format!("\n| `{column}` |")),
                    "the column `{column}` is not documented"
                );
                columns += 1;
            }
        }
    }
    assert!(
        tables >= 4 && columns > 40,
        "{tables} tables and {columns} columns were found"
    );
}

#[test]
fn every_source_file_is_on_the_map() {
    let map = page("docs/architecture.md");
    for folder in [
        "sandbox/src",
        "actors/src",
        "supervisor/src",
        "fuzz/src",
        "fuzz/fuzz_targets",
        "fuzz/examples",
    ] {
        let mut files = Vec::new();
        walk(&root().join(folder), &mut files);
        assert!(!files.is_empty(), "{folder} is empty");
        for file in files {
            let stem = file.file_stem().unwrap().to_str().unwrap();
            // `name.rs`, or `{one,two}.rs`.
            let is_mentioned = map
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .any(|word| word == stem);
            let is_test =
                ["tests", "explore"].contains(&stem) || file.iter().any(|part| part == "tests");
            assert!(is_mentioned || is_test, "{} is not on the map", file.display());
        }
    }
}

fn walk(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn the_command_that_runs_all_tests_is_the_one_that_is_checked() {
    const COMMAND: &str = "cargo test --workspace\n";
    for name in ["README.md", "CONTRIBUTING.md", ".ci/run", "justfile"] {
        assert!(page(name).contains(COMMAND), "{name} has another test command");
    }
}
