//! The short summary for people: what was refused, by which rule, and the flag that would allow it.

use std::fmt::Write;
use std::path::Path;

use provost_actors::record::{Outcome, TerminalRecord};
use provost_sandbox::denial::{Denial, DenialClass};

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

/// Control characters, and those that are not seen but change how others are.
fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        )
}

/// The flag that would allow what was refused, quoted for a shell.
pub(super) fn allowing_flag(denial: &Denial) -> Option<String> {
    let target = &denial.target;
    match denial.class {
        DenialClass::Network => {
            let protocol = target.protocol.as_deref().unwrap_or_default();
            match (denial.operation.as_str(), target.address, protocol) {
                ("resolve", ..) => Some(format!("--allow-net {}:443", target.host.as_deref()?)),
                ("connect", Some(address), "tcp") => {
                    // A private loopback leads nowhere else.
                    let mode = if denial.errno == "ENETUNREACH" {
                        "--net off "
                    } else {
                        ""
                    };
                    let port = target.port?;
                    let destination = std::net::SocketAddr::new(address, port);
                    Some(format!("{mode}--allow-net {destination}"))
                }
                ("bind" | "listen", _, "tcp") => Some("--net isolated".to_owned()),
                (_, _, "udp") => Some("--net open".to_owned()),
                _ => None,
            }
        }
        DenialClass::Filesystem => {
            // What cannot be shown as it is cannot be copied from the terminal either.
            let path = target
                .path
                .as_deref()
                .filter(|path| !path.chars().any(is_deceptive))?;
            if ["/proc", "/sys", "/dev"]
                .iter()
                .any(|fixed| Path::new(path).starts_with(fixed))
            {
                return None; // no flag opens these
            }
            let reads = matches!(denial.operation.as_str(), "open" | "read" | "exec" | "readdir");
            let (flag, path) = if reads {
                ("--read", path.to_owned())
            } else {
                ("--write", existing(path))
            };
            Some(format!("{flag} {}", shell_words::quote(&path)))
        }
        DenialClass::Syscall | DenialClass::Resource => None,
    }
}

/// What `--write` can name: the path if it exists, else the directory that it was to be made in.
fn existing(path: &str) -> String {
    Path::new(path)
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .map_or_else(|| path.to_owned(), |found| found.display().to_string())
}
