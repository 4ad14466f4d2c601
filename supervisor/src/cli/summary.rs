//! The short summary for people: what was refused, by which rule, and the flag that would allow it.

use std::fmt::Write;
use std::path::Path;

use provost_actors::record::{Outcome, TerminalRecord};
use provost_sandbox::denial::{Denial, is_deceptive};

use super::output;

/// Denials shown; the record has more.
const SHOWN_MAX: usize = 10;

/// Says what a user should know about the end of a run; nothing if there is nothing.
pub(super) fn print(record: &TerminalRecord) {
    if let Some(line) = outcome(record) {
        output::note(&line);
    }
    denials(record);
    if let Some(sandbox) = &record.sandbox {
        for lacking in &sandbox.degraded {
            tracing::info!(
                what = lacking.what,
                why = lacking.why,
                "held less than the policy asks"
            );
        }
    }
}

fn outcome(record: &TerminalRecord) -> Option<String> {
    let reason = record.reason.as_deref().unwrap_or_default();
    match record.outcome {
        Outcome::Exited | Outcome::Signaled => None,
        Outcome::SpawnFailed | Outcome::Lost => Some(reason.to_owned()),
        Outcome::TimedOut | Outcome::IdleTimeout | Outcome::Denied | Outcome::Cancelled => {
            let seconds = record.duration_ms as f64 / 1000.0;
            Some(format!("{reason} (after {seconds:.1} s)"))
        }
        _ => Some(reason.to_owned()),
    }
}

fn denials(record: &TerminalRecord) {
    let denials = &record.denials;
    if denials.total > 0 {
        let plural = if denials.total == 1 { "denial" } else { "denials" };
        output::note(&format!("{} {plural}", denials.total));
    }
    for denial in denials.first.iter().take(SHOWN_MAX) {
        output::note(&format!("  {}", line(denial)));
        if let Some(flag) = allowing_flag(denial) {
            output::note(&format!("    allow it with: {flag}"));
        }
    }
    let shown = denials.first.len().min(SHOWN_MAX);
    if denials.first.len() > shown {
        let more = denials.first.len() - shown;
        output::note(&format!(
            "  and {more} other kinds; the record (--record FILE) has them"
        ));
    }
}

pub(super) fn line(denial: &Denial) -> String {
    let mut text = denial.operation.clone();
    let target = &denial.target;
    match (&target.address, &target.path, &target.syscall) {
        (Some(address), ..) => {
            let port = target.port.unwrap_or(0);
            let _ = write!(text, " {}", std::net::SocketAddr::new(*address, port));
        }
        (None, Some(path), _) => {
            let _ = write!(text, " {}", visible(path));
        }
        (None, None, Some(syscall)) if *syscall != denial.operation => {
            let _ = write!(text, " {syscall}");
        }
        _ => {}
    }
    if let Some(host) = &target.host {
        let (open, close) = if target.address.is_some() {
            (" (", ")")
        } else {
            (" ", "")
        };
        let _ = write!(text, "{open}{}{close}", visible(host));
    }
    if let (Some(protocol), None) = (&target.protocol, &target.path) {
        let mark = if target.address.is_some() { "/" } else { " " };
        let _ = write!(text, "{mark}{protocol}");
    }
    if let Some(comm) = &denial.comm {
        let _ = write!(text, " by {}", visible(comm));
    }
    let _ = write!(text, ": {} ({})", denial.rule, denial.errno);
    text
}

/// A program chooses its paths and its name: nothing of them may reach the terminal as a control sequence, nor change
/// the order in which the rest of the line is read.
pub(super) fn visible(text: &str) -> String {
    text.chars()
        .map(|c| if is_deceptive(c) { '\u{fffd}' } else { c })
        .collect()
}

/// The flag that would allow what was refused, quoted for a shell.
pub(super) fn allowing_flag(denial: &Denial) -> Option<String> {
    let target = &denial.target;
    if let ("connect", "ENETUNREACH", Some(address), Some(port)) = (
        denial.operation.as_str(),
        denial.errno.as_str(),
        target.address,
        target.port,
    ) {
        // A private loopback leads nowhere else.
        let destination = std::net::SocketAddr::new(address, port);
        return Some(format!("--net off --allow-net {destination}"));
    }
    let rule = denial.allow.as_ref()?;
    let (flag, value) = match rule.key.as_str() {
        "files.read" => ("--read", rule.value.clone()),
        "files.write" => ("--write", existing(&rule.value)),
        "net.allow" => ("--allow-net", rule.value.clone()),
        "net.unix" => ("--allow-unix", rule.value.clone()),
        "net.mode" => ("--net", rule.value.clone()),
        _ => return None,
    };
    Some(format!("{flag} {}", shell_words::quote(&value)))
}

/// What `--write` can name: the path if it exists, else the directory that it was to be made in.
fn existing(path: &str) -> String {
    Path::new(path)
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .map_or_else(|| path.to_owned(), |found| found.display().to_string())
}
