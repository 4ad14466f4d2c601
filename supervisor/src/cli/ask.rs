//! Who answers when the policy asks: a command of the user's, or the user at the terminal.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use nix::sys::termios::{FlushArg, tcflush};
use nix::unistd::{getpgrp, tcgetpgrp};
use provost_actors::Tree;
use provost_actors::approval::{ApprovalScope, Verdict};
use provost_actors::event::ProcessId;
use provost_sandbox::denial::Decision;
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};

use super::policy::Seen;
use super::{output, summary};
use crate::client::{ClientError, Lasting};
use crate::decider::{BY, DECIDERS_MAX, Decider};
use crate::protocol::{ApprovalDecide, ErrorKind, Told};
use crate::{ApprovalRequest, EventBody, ProcessHandle};

/// Who answers.
#[derive(Debug)]
pub(super) enum Asked {
    /// A command.
    Command(Decider),
    /// The user.
    Terminal(Terminal),
    /// Nobody: everything is allowed, and noted.
    Observed(Seen),
}

/// The same, ready to answer.
pub(super) enum Answerer {
    Command {
        decider: Decider,
        tree: Arc<Tree>,
        turns: Semaphore,
    },
    Terminal(Mutex<Terminal>),
    Observed(Seen),
}

impl Asked {
    /// Ready to answer; commands are run in this tree.
    pub(super) fn by(self, tree: Arc<Tree>) -> Answerer {
        match self {
            Self::Command(decider) => Answerer::Command {
                decider,
                tree,
                turns: Semaphore::new(DECIDERS_MAX),
            },
            Self::Terminal(terminal) => Answerer::Terminal(Mutex::new(terminal)),
            Self::Observed(seen) => Answerer::Observed(seen),
        }
    }
}

impl Answerer {
    /// What the record says of who answered.
    fn word(&self) -> &'static str {
        match self {
            Self::Command { .. } => BY,
            Self::Terminal(_) => "terminal",
            Self::Observed(_) => "learn",
        }
    }

    /// `None` where nobody can be asked here.
    async fn verdict(&self, process: ProcessId, request: ApprovalRequest) -> Option<Verdict> {
        match self {
            Self::Command { decider, tree, turns } => {
                let _turn = turns.acquire().await;
                let passed_on = |bytes: &[u8]| drop(std::io::stderr().write_all(bytes));
                let answer = decider.ask(tree, process, &request, passed_on).await;
                Some(answer.unwrap_or_else(|why| {
                    output::note(&format!("--ask-command {}: {why}; denied", decider.shown()));
                    Verdict::Deny
                }))
            }
            Self::Terminal(terminal) => terminal.lock().await.ask(&request).await,
            Self::Observed(seen) => {
                // A name that is allowed for longer takes its addresses with it, and their ports were not seen.
                let scope = match request.attempt.operation.as_str() {
                    "resolve" => ApprovalScope::Once,
                    _ => ApprovalScope::Process,
                };
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.push(*request.attempt);
                Some(Verdict::Allow(scope))
            }
        }
    }
}

/// Answers all requests of a process until it ends.
pub(super) async fn answer(asked: Asked, tree: Arc<Tree>, process: ProcessHandle) {
    let (answerer, id) = (Arc::new(asked.by(tree)), process.id());
    let word = answerer.word();
    let ask = move |request: ApprovalRequest| {
        let answerer = answerer.clone();
        async move {
            let verdict = answerer.verdict(id, request).await;
            verdict.unwrap_or_else(|| {
                output::note("not in the foreground, so nobody can be asked; denied");
                Verdict::Deny
            })
        }
    };
    let _ = process.answer_approvals(word, ask).await;
}

/// Answers what a daemon's process asks, as long as nobody else does. Dropped, it asks no more.
pub(super) struct AnsweringThere {
    answerer: Arc<Answerer>,
    client: Lasting,
    process: ProcessId,
    answers: JoinSet<()>,
    /// Those who are being asked, by the number of the request.
    asking: HashMap<u64, AbortHandle>,
}

impl AnsweringThere {
    pub(super) fn new(answerer: Answerer, client: Lasting, process: ProcessId) -> Self {
        Self {
            answerer: Arc::new(answerer),
            client,
            process,
            answers: JoinSet::new(),
            asking: HashMap::new(),
        }
    }

    /// To be told each event of the process.
    pub(super) fn take(&mut self, event: &EventBody) {
        match event {
            EventBody::ApprovalRequested {
                approval,
                attempt,
                deadline,
            } => {
                while self.answers.try_join_next().is_some() {}
                let request = ApprovalRequest {
                    approval: *approval,
                    attempt: attempt.clone(),
                    deadline: *deadline,
                };
                let (answerer, client, process) =
                    (self.answerer.clone(), self.client.clone(), self.process);
                let answering = self.answers.spawn(async move {
                    let approval = request.approval;
                    match answerer.verdict(process, request).await {
                        Some(verdict) => {
                            decide(&client, process, approval, verdict, answerer.word()).await;
                        }
                        None => output::note(&format!(
                            "not in the foreground; answer with: provost approve {process}/{approval}"
                        )),
                    }
                });
                self.asking.insert(*approval, answering);
            }
            EventBody::ApprovalDecided {
                approval,
                decision,
                by,
                ..
            } => {
                let Some(asking) = self.asking.remove(approval) else {
                    return;
                };
                if *by != self.answerer.word() && !asking.is_finished() {
                    asking.abort();
                    let word = match decision {
                        Decision::Allow => "allowed",
                        Decision::Deny => "denied",
                    };
                    output::note(&format!(
                        "request {approval} was {word} ({})",
                        summary::visible(by)
                    ));
                }
            }
            _ => {}
        }
    }
}

async fn decide(client: &Lasting, process: ProcessId, approval: u64, verdict: Verdict, by: &str) {
    let (allow, scope) = match verdict {
        Verdict::Allow(scope) => (true, Some(scope)),
        Verdict::Deny => (false, None),
    };
    let asked = ApprovalDecide {
        process: process.to_string(),
        approval,
        allow,
        scope,
        by: Some(by.to_owned()),
        steal: false,
    };
    match client.call::<Told>("approval/decide", &asked).await {
        Ok(_) => {}
        // Somebody was quicker, or it is over: the event says so.
        Err(ClientError::Refused(error)) if error.data.kind == ErrorKind::Conflict => {}
        Err(error) => output::note(&format!(
            "the answer to request {approval} was not taken: {error}"
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

    /// `None` from the background, where nobody can be asked.
    async fn ask(&mut self, request: &ApprovalRequest) -> Option<Verdict> {
        let left = request.deadline.duration_since(jiff::Timestamp::now());
        let Ok(left) = Duration::try_from(left) else {
            return Some(Verdict::Deny);
        };
        if tcgetpgrp(self.tty.as_fd()) != Ok(getpgrp()) {
            return None;
        }
        let question = self.put(request);
        Some(match tokio::time::timeout(left, question).await {
            Ok(verdict) => verdict,
            Err(_) => {
                self.say("\n  no answer in time; denied\n");
                Verdict::Deny
            }
        })
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
