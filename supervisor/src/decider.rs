//! A command that answers approval requests: the request as JSON on its stdin, the answer on its stdout.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use provost_actors::approval::{ApprovalScope, Verdict};
use provost_actors::event::{EventBody, ProcessId, StreamName};
use provost_actors::record::Outcome;
use provost_actors::spec::{ProcessSpec, StdinSpec, StopRule};
use provost_actors::{ProcessCommand, ProcessLink, Tree};
use provost_sandbox::denial::is_deceptive;
use provost_sandbox::policy::Policy;
use serde::Deserialize;
use serde_json::json;

use crate::ApprovalRequest;

/// How many deciders run at the same time. A command may ask hundreds of times at once; the others wait for their turn.
pub(crate) const DECIDERS_MAX: usize = 16;
/// What the record says of who answered.
pub(crate) const BY: &str = "ask-command";
/// What is read of an answer.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The command, run once for each request, outside of every sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Decider {
    pub(crate) argv: Vec<String>,
    pub(crate) cwd: PathBuf,
    pub(crate) env: Vec<(OsString, OsString)>,
    /// How long it may take.
    pub(crate) timeout: Duration,
}

/// One that runs. When nobody waits for its answer any more it is ended.
struct Running(ProcessLink);

impl Drop for Running {
    fn drop(&mut self) {
        let reason = "nobody waits for its answer any more".to_owned();
        self.0.tell(ProcessCommand::Kill { reason });
    }
}

impl Decider {
    /// As people know it.
    pub(crate) fn shown(&self) -> String {
        self.argv.join(" ")
    }

    fn spec(&self) -> ProcessSpec {
        let mut spec = ProcessSpec::new(&self.argv, &self.cwd, Policy::unconfined());
        spec.env.clone_from(&self.env);
        spec.stdin = StdinSpec::Pipe;
        spec.timeout = Some(self.timeout);
        spec.stop = StopRule {
            grace: Duration::from_secs(1),
            ..StopRule::default()
        };
        spec
    }

    /// Its answer to a request. What it writes to stderr is passed on as it comes.
    ///
    /// # Errors
    /// There is none that is understood, or not in time: why, in words.
    pub(crate) async fn ask(
        &self,
        tree: &Tree,
        process: ProcessId,
        request: &ApprovalRequest,
        mut stderr: impl FnMut(&[u8]),
    ) -> Result<Verdict, String> {
        let question = json!({
            "process": process,
            "approval": request.approval,
            "deadline": format!("{:.6}", request.deadline),
            "attempt": request.attempt,
        });
        let spawned = tree.spawn(self.spec()).await;
        let decider = Running(spawned.map_err(|error| error.to_string())?);
        // One that decides without reading has the right to.
        let _ = decider.0.write_stdin(format!("{question}\n").as_bytes()).await;
        decider.0.close_stdin();
        let mut events = decider.0.log_now().follow(0, false);
        let mut answer = Vec::new();
        while let Some(event) = events.next().await {
            match event.body {
                EventBody::Output {
                    stream: StreamName::Stdout,
                    data,
                    ..
                } => {
                    let room = ANSWER_BYTES_MAX - answer.len();
                    answer.extend_from_slice(data.get(..room).unwrap_or(&data));
                }
                EventBody::Output { data, .. } => stderr(&data),
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
            visible(other)
        )),
    }
}

/// What it wrote, without what would disturb a terminal.
fn visible(text: &str) -> String {
    let shown = |c| if is_deceptive(c) { '\u{fffd}' } else { c };
    text.chars().map(shown).take(100).collect()
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
