//! `provost policy learn`: a policy from what a command did.
//!
//! The command runs in the sandbox of the base policy, and whatever no rule speaks about is allowed and noted. What rules
//! deny stays denied, and is told in comments.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use clap::Parser;
use provost_sandbox::denial::{AllowingRule, Denial, DenialClass};

use super::render::{path, quoted};
use super::{print, write_new};
use crate::TerminalRecord;
use crate::cli::args::{Args, LearnArgs, Verb};
use crate::cli::ask::Asked;
use crate::cli::{CliResult, config, output, run, summary};

/// What was seen.
pub(in crate::cli) type Seen = Arc<Mutex<Vec<Denial>>>;

pub(super) fn run(args: LearnArgs) -> CliResult {
    if let Some(path) = args.output.as_deref().filter(|path| path.exists()) {
        return Err(format!(
            "{} exists already; choose another file or remove it",
            path.display()
        ));
    }
    // As `provost run` would be asked for it.
    let words = [
        "provost",
        "run",
        "--ask",
        "net,files",
        "--ask-command",
        "true",
        "--quiet",
        "--policy",
    ];
    let words = words
        .into_iter()
        .map(Into::into)
        .chain([args.policy.clone().into()]);
    let words = words.chain(["--".into()]).chain(args.command.iter().cloned());
    let Verb::Run(run_args) = Args::try_parse_from(words)
        .map_err(|error| error.to_string())?
        .verb
    else {
        return Err("the command cannot be run".to_owned());
    };
    let mut config = config::resolve(*run_args)?;
    let seen = Seen::default();
    config.asked = Some(Asked::Observed(seen.clone()));
    let (record, code) = run::supervise(config)?;
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let text = policy(&args, &seen, &record);
    match &args.output {
        Some(path) => {
            write_new(path, &text)?;
            output::note(&format!("wrote {}; review it before you use it", path.display()));
        }
        None => drop(print(&text)?),
    }
    if record.approvals.refused > 0 {
        output::note(&format!(
            "{} acts were more than are noted in one run, and were refused",
            record.approvals.refused
        ));
    }
    Ok(code)
}

/// The smallest policy that would have allowed what was seen, by the rules that there are.
fn policy(args: &LearnArgs, seen: &[Denial], record: &TerminalRecord) -> String {
    let mut reads: BTreeMap<PathBuf, BTreeSet<&str>> = BTreeMap::new();
    let mut writes: BTreeMap<PathBuf, BTreeSet<&str>> = BTreeMap::new();
    let mut nets: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    let mut others = BTreeSet::new();
    for denial in seen {
        let operation = denial.operation.as_str();
        let target = &denial.target;
        match (denial.class, &target.path, target.address, target.port) {
            (DenialClass::Filesystem, Some(file), ..) if operation == "open" => {
                reads.entry(file.into()).or_default().insert(operation);
            }
            (DenialClass::Filesystem, Some(file), ..) => {
                // A name can only be made where its directory may be written.
                let file = Path::new(file);
                let kept = if operation == "create" {
                    file.parent().unwrap_or(file)
                } else {
                    file
                };
                writes.entry(kept.to_owned()).or_default().insert(operation);
            }
            (DenialClass::Network, None, Some(_), Some(_))
                if let Some(rule) = AllowingRule::of(denial).filter(|rule| rule.key == "net.allow") =>
            {
                nets.entry(rule.value).or_default().insert(operation);
            }
            _ => drop(others.insert(summary::line(denial))),
        }
    }
    let command = record
        .argv
        .iter()
        .map(|word| summary::visible(word))
        .collect::<Vec<_>>();
    let mut text = format!(
        "# REVIEW THIS. Written by `provost policy learn` from one run of: {}\n\
         # It allows what the command did, which need not be what it should do, and knows nothing of what it did not do\n\
         # this time. Make paths and addresses wider or narrower as you mean them.\n\
         version = 1\nextends = {}\n",
        command.join(" "),
        quoted(&args.policy),
    );
    let list = |text: &mut String, key: &str, entries: Vec<(String, String)>| {
        if !entries.is_empty() {
            *text += &format!("{key} = [\n");
            for (entry, why) in entries {
                *text += &format!("  {},  # {why}\n", quoted(&entry));
            }
            *text += "]\n";
        }
    };
    let why = |operations: &BTreeSet<&str>| operations.iter().copied().collect::<Vec<_>>().join(", ");
    let entries = |paths: &BTreeMap<PathBuf, BTreeSet<&str>>| {
        paths
            .iter()
            .map(|(file, operations)| (path(file), why(operations)))
            .collect()
    };
    if !reads.is_empty() || !writes.is_empty() {
        text += "\n[files]\n";
        list(&mut text, "read", entries(&reads));
        list(&mut text, "write", entries(&writes));
    }
    if !nets.is_empty() {
        text += "\n[net]\n";
        let nets = nets.iter().map(|(to, operations)| (to.clone(), why(operations)));
        list(&mut text, "allow", nets.collect());
    }
    if !others.is_empty() {
        text += "\n# Allowed in this run, and no rule can say it:\n";
        for other in others {
            text += &format!("#   {other}\n");
        }
    }
    if !record.denials.first.is_empty() {
        text += "\n# Refused in this run, because a rule denies it or because no rule could allow it:\n";
        for denial in &record.denials.first {
            text += &format!("#   {}\n", summary::line(denial));
        }
    }
    text
}
