//! Who answers when the policy asks: a command of the user's, or the user at the terminal.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use nix::sys::termios::{FlushArg, tcflush};
use nix::unistd::{getpgrp, tcgetpgrp};
use provost_actors::approval::{ApprovalScope, Verdict};
use provost_actors::event::{EventBody, ProcessId, StreamName};
use provost_actors::record::Outcome;
use provost_actors::spec::{ProcessSpec, StdinSpec, StopRule};
use provost_sandbox::policy::Policy;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Mutex, Semaphore, mpsc};

use super::policy::Seen;
use super::{output, summary};
use crate::{ApprovalRequest, ProcessHandle, Supervisor};

/// How many deciders run at the same time. A command may ask hundreds of times at once; the others wait for their turn.
const DECIDERS_MAX: usize = 16;
/// What is read of an answer.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Who answers.
#[derive(Debug)]
pub(super) enum Asked {
    /// A command: it reads the request as JSON on its stdin and writes the answer.
    Command {
        argv: Vec<String>,
        cwd: PathBuf,
        timeout: Duration,
    },
    /// The user.
    Terminal(Terminal),
    /// Nobody: everything is allowed, and noted.
    Observed(Seen),
}

/// Answers all requests of a process until it ends.
pub(super) async fn answer(asked: Asked, supervisor: Supervisor, process: ProcessHandle) {
    match asked {
        Asked::Command { argv, cwd, timeout } => {
            let id = process.id();
            let turns = Arc::new(Semaphore::new(DECIDERS_MAX));
            let ask = move |request: ApprovalRequest| {
                let spec = decider(&argv, &cwd, timeout);
                let (supervisor, shown) = (supervisor.clone(), argv.join(" "));
                let turns = turns.clone();
                async move {
                    let _turn = turns.acquire().await;
                    let answer = ask_command(&supervisor, spec, id, &request).await;
                    answer.unwrap_or_else(|why| {
                        output::note(&format!("--ask-command {shown}: {why}; denied"));
                        Verdict::Deny
                    })
                }
            };
            let _ = process.answer_approvals("ask-command", ask).await;
        }
        Asked::Observed(seen) => {
            let note = move |request: ApprovalRequest| {
                // A name that is allowed for longer takes its addresses with it, and their ports were not seen.
                let scope = match request.attempt.operation.as_str() {
                    "resolve" => ApprovalScope::Once,
                    _ => ApprovalScope::Process,
                };
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.push(*request.attempt);
                async move { Verdict::Allow(scope) }
            };
            let _ = process.answer_approvals("learn", note).await;
        }
        Asked::Terminal(terminal) => {
            let terminal = Arc::new(Mutex::new(terminal));
            let ask = move |request: ApprovalRequest| {
                let terminal = terminal.clone();
                async move { terminal.lock().await.ask(&request).await }
            };
            let _ = process.answer_approvals("terminal", ask).await;
        }
    }
}

fn decider(argv: &[String], cwd: &Path, timeout: Duration) -> ProcessSpec {
    let mut spec = ProcessSpec::new(argv, cwd, Policy::unconfined());
    spec.env = std::env::vars_os().collect();
    spec.stdin = StdinSpec::Pipe;
    spec.timeout = Some(timeout);
    spec.stop = StopRule {
        grace: Duration::from_secs(1),
        ..StopRule::default()
    };
    spec
}

async fn ask_command(
    supervisor: &Supervisor,
    spec: ProcessSpec,
    process: ProcessId,
    request: &ApprovalRequest,
) -> Result<Verdict, String> {
    let question = json!({
        "process": process,
        "approval": request.approval,
        "deadline": format!("{:.6}", request.deadline),
        "attempt": request.attempt,
    });
    let decider = supervisor.spawn(spec).await.map_err(|error| error.why())?;
    // One that decides without reading has the right to.
    let _ = decider.write_stdin(format!("{question}\n").as_bytes()).await;
    let _ = decider.close_stdin().await;
    let mut events = decider.events();
    let mut answer = Vec::new();
    while let Some(event) = events.next().await.map_err(|error| error.to_string())? {
        match event.body {
            EventBody::Output {
                stream: StreamName::Stdout,
                data,
                ..
            } => {
                let room = ANSWER_BYTES_MAX - answer.len();
                answer.extend_from_slice(data.get(..room).unwrap_or(&data));
            }
            EventBody::Output { data, .. } => {
                let _ = std::io::stderr().write_all(&data);
            }
            EventBody::Terminal { record } => {
                return match record.outcome {
                    Outcome::Exited if record.succeeded => parse(&String::from_utf8_lossy(&answer)),
                    Outcome::TimedOut => Err("no answer in time".to_owned()),
                    _ => Err(match (record.exit_code, &record.signal, &record.reason) {
                        (_, _, Some(reason)) => reason.clone(),
                        (Some(code), ..) => format!("it ended with {code}"),
                        (None, Some(signal), _) => format!("{signal} ended it"),
                        (None, None, None) => "it ended without an answer".to_owned(),
                    }),
                };
            }
            _ => {}
        }
    }
    Err("it has no record".to_owned())
}

/// An answer: `deny`, `allow`, `allow once|process|session`, or the same as a JSON object.
fn parse(answer: &str) -> Result<Verdict, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Answer {
        decision: String,
        #[serde(default)]
        scope: Option<ApprovalScope>,
    }
    let answer = answer.trim();
    let (decision, scope) = if answer.starts_with('{') {
        let answer: Answer = serde_json::from_str(answer)
            .map_err(|error| format!("its answer is not understood: {error}"))?;
        (answer.decision, answer.scope)
    } else {
        match answer.split_ascii_whitespace().collect::<Vec<_>>()[..] {
            [decision] => (decision.to_owned(), None),
            [decision, scope] => {
                let scope = serde_json::from_value(json!(scope))
                    .map_err(|_| format!("`{scope}` is not one of once, process, session"))?;
                (decision.to_owned(), Some(scope))
            }
            _ => {
                return Err("its answer is neither `deny` nor `allow [once|process|session]`".to_owned());
            }
        }
    };
    match (decision.as_str(), scope) {
        ("allow", scope) => Ok(Verdict::Allow(scope.unwrap_or(ApprovalScope::Once))),
        ("deny", None) => Ok(Verdict::Deny),
        ("deny", Some(_)) => Err("a denial has no scope".to_owned()),
        (other, _) => Err(format!(
            "its answer `{}` is neither allow nor deny",
            summary::visible(other)
        )),
    }
}

/// The user's terminal, whatever stdin and stdout are.
#[derive(Debug)]
pub(super) struct Terminal {
    tty: File,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Terminal {
    /// The controlling terminal, if there is one.
    pub(super) fn open() -> Option<Self> {
        let tty = File::options().read(true).write(true).open("/dev/tty").ok()?;
        let reader = BufReader::new(tty.try_clone().ok()?);
        let (sender, lines) = mpsc::unbounded_channel();
        // It sits in a read until the user types or the program ends.
        let thread = std::thread::Builder::new().name("provost-terminal".to_owned());
        let read = move || {
            for line in reader.lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        };
        thread.spawn(read).ok()?;
        Some(Self { tty, lines })
    }

    async fn ask(&mut self, request: &ApprovalRequest) -> Verdict {
        let left = request.deadline.duration_since(jiff::Timestamp::now());
        let Ok(left) = Duration::try_from(left) else {
            return Verdict::Deny;
        };
        if tcgetpgrp(self.tty.as_fd()) != Ok(getpgrp()) {
            output::note("not in the foreground, so nobody can be asked; denied");
            return Verdict::Deny;
        }
        let question = self.put(request);
        match tokio::time::timeout(left, question).await {
            Ok(verdict) => verdict,
            Err(_) => {
                self.say("\n  no answer in time; denied\n");
                Verdict::Deny
            }
        }
    }

    async fn put(&mut self, request: &ApprovalRequest) -> Verdict {
        // What was typed before the question is no answer to it.
        let _ = tcflush(self.tty.as_fd(), FlushArg::TCIFLUSH);
        while self.lines.try_recv().is_ok() {}
        self.say(&format!(
            "provost: allow {}?\n  y once, p always for this process, s always for this session, n no [n] ",
            summary::line(&request.attempt)
        ));
        loop {
            let Some(line) = self.lines.recv().await else {
                return Verdict::Deny;
            };
            match line.trim() {
                "y" | "yes" => return Verdict::Allow(ApprovalScope::Once),
                "p" => return Verdict::Allow(ApprovalScope::Process),
                "s" => return Verdict::Allow(ApprovalScope::Session),
                "" | "n" | "no" => return Verdict::Deny,
                _ => self.say("  y, p, s or n? "),
            }
        }
    }

    /// A terminal that cannot be written to will give no answer either.
    fn say(&mut self, text: &str) {
        let _ = self.tty.write_all(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_words_or_json_and_anything_else_is_an_error() {
        use ApprovalScope::{Once, Process, Session};
        for (text, verdict) in [
            ("allow\n", Verdict::Allow(Once)),
            (" allow  process ", Verdict::Allow(Process)),
            ("allow session", Verdict::Allow(Session)),
            ("deny", Verdict::Deny),
            ("{\"decision\":\"allow\"}", Verdict::Allow(Once)),
            (
                "{\"decision\":\"allow\",\"scope\":\"session\"}\n",
                Verdict::Allow(Session),
            ),
            ("{\"decision\":\"deny\"}", Verdict::Deny),
        ] {
            assert_eq!(parse(text), Ok(verdict), "{text}");
        }
        for text in [
            "",
            "yes",
            "allow everything",
            "allow once more",
            "deny process",
            "{}",
            "{\"decision\":\"allow\",\"scope\":\"all\"}",
            "{\"decision\":\"allow\",\"skope\":\"once\"}",
            "{\"decision\":\"maybe\"}",
            "allow\u{0}",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
