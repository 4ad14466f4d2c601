//! `provost policy`: look at policies, check them, ask them, begin new ones.

mod explain;
mod learn;
mod render;
mod starter;

pub(super) use learn::Seen;

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::{PolicyArgs, PolicyVerb};
use super::config::policy_context;
use super::{CliResult, output};
use crate::PRESETS;
use crate::policy_file::{self, LoadedPolicy, PolicyFileContext, PolicyFileError, PolicyName};

pub(super) fn run(args: PolicyArgs) -> CliResult {
    match args.verb {
        PolicyVerb::List { json } => list(json),
        PolicyVerb::Show { policy, json } => show(&policy, json),
        PolicyVerb::Check { files, json } => check(&files, json),
        PolicyVerb::Explain(args) => explain::run(&args),
        PolicyVerb::Diff { one, other } => diff(&one, &other),
        PolicyVerb::New { name } => starter::run(name.as_deref()),
        PolicyVerb::Learn(args) => learn::run(args),
        PolicyVerb::Schema => print(&pretty(&policy_file::schema())?),
    }
}

/// A policy as it is shown, and its lines as they are compared.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn rendered(loaded: &LoadedPolicy) -> (String, Vec<String>) {
    (render::toml(loaded), render::lines(loaded))
}

/// Writes to stdout; a reader who has seen enough is no error.
fn print(text: &str) -> CliResult {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write: {error}"))
        }
        _ => Ok(0),
    }
}

fn pretty(value: &serde_json::Value) -> Result<String, String> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|error| error.to_string())
}

/// The policy of this name as it would be for a command that is started here.
fn load(name: &str, context: &PolicyFileContext) -> Result<LoadedPolicy, String> {
    let mut loaded =
        policy_file::load(&PolicyName::parse(name), context).map_err(|error| error.to_string())?;
    loaded.settle().map_err(|why| format!("{name}: {why}"))?;
    Ok(loaded)
}

fn list(as_json: bool) -> CliResult {
    let context = policy_context(None)?;
    let named = policy_file::names(&context);
    if as_json {
        let named: Vec<_> = named
            .iter()
            .map(|(name, path)| json!({"name": name, "file": path.display().to_string()}))
            .collect();
        return print(&pretty(&json!({"presets": PRESETS, "policies": named}))?);
    }
    let mut text = String::new();
    for preset in PRESETS {
        text += &format!("{preset}  (preset)\n");
    }
    for (name, path) in named {
        text += &format!("{name}  {}\n", path.display());
    }
    print(&text)
}

fn show(name: &str, as_json: bool) -> CliResult {
    let loaded = load(name, &policy_context(None)?)?;
    if as_json {
        let value = json!({
            "policy": loaded.policy,
            "environment": {
                "clean": loaded.environment.clean,
                "pass": loaded.environment.pass,
                "set": loaded.environment.set,
            },
            "timeout_ms": loaded.timeout.map(|time| time.as_millis()),
            "idle_timeout_ms": loaded.idle_timeout.map(|time| time.as_millis()),
            "layers": loaded.layers,
        });
        return print(&pretty(&value)?);
    }
    print(&render::toml(&loaded))
}

/// Says about each file whether it can be used; exit code 1 if one cannot.
fn check(files: &[PathBuf], as_json: bool) -> CliResult {
    let context = policy_context(None)?;
    let mut results = Vec::new();
    for file in files {
        results.push((file.display().to_string(), checked(file, &context)));
    }
    let bad = results.iter().filter(|(_, result)| result.is_err()).count();
    if as_json {
        let results: Vec<_> = results
            .iter()
            .map(|(file, result)| match result {
                Ok(loaded) => json!({"file": file, "ok": true, "warnings": loaded.warnings}),
                Err(error) => json!({
                    "file": file,
                    "ok": false,
                    "error": error.to_string(),
                    "line": error.place.map(|(line, _)| line),
                    "column": error.place.map(|(_, column)| column),
                    "key": error.key,
                }),
            })
            .collect();
        print(&pretty(&json!(results))?)?;
    } else {
        for (file, result) in &results {
            match result {
                Ok(loaded) => {
                    for warning in &loaded.warnings {
                        output::note(&format!("warning: {warning}"));
                    }
                    print(&format!("{file}: ok\n"))?;
                }
                Err(error) => output::error(&error.to_string()),
            }
        }
    }
    Ok(u8::from(bad > 0))
}

/// What is given to `check` is a file, however it is called.
fn checked(file: &Path, context: &PolicyFileContext) -> Result<LoadedPolicy, Box<PolicyFileError>> {
    let mut loaded = policy_file::load(&PolicyName::File(file.to_owned()), context)?;
    let settled = loaded.settle().and_then(|()| {
        let validated = loaded.policy.validate();
        validated.map_err(|error| error.to_string())
    });
    match settled {
        Ok(()) => Ok(loaded),
        Err(why) => Err(Box::new(PolicyFileError {
            file: file.display().to_string(),
            place: None,
            key: String::new(),
            why,
            help: None,
        })),
    }
}

/// The rules that only one of two policies has; exit code 1 if there are any.
fn diff(one: &str, other: &str) -> CliResult {
    let context = policy_context(None)?;
    let (one, other) = (load(one, &context)?, load(other, &context)?);
    let (one, other) = (render::lines(&one), render::lines(&other));
    let mut text = String::new();
    for line in one.iter().filter(|line| !other.contains(line)) {
        text += &format!("- {line}\n");
    }
    for line in other.iter().filter(|line| !one.contains(line)) {
        text += &format!("+ {line}\n");
    }
    print(&text)?;
    Ok(u8::from(!text.is_empty()))
}

/// Writes a new file and makes the directories above it; refuses to overwrite.
fn write_new(path: &Path, text: &str) -> Result<(), String> {
    let fail = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            format!(
                "{} exists already; choose another name or remove it",
                path.display()
            )
        }
        _ => format!("{}: {error}", path.display()),
    };
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(fail)?;
    }
    let mut file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(fail)?;
    file.write_all(text.as_bytes()).map_err(|error| {
        // Half a policy is another one.
        let _ = std::fs::remove_file(path);
        fail(error)
    })
}
