//! Supervisor and ProcessHandle: what an embedder holds.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use provost_actors::approval::Verdict;
use provost_actors::event::EventBody;
use provost_actors::{ProcessCommand, ProcessLink, ShutdownReport, SpawnRefused, Tree};
use provost_sandbox::denial::Denial;
use provost_sandbox::keeper::wire::SignalScope;
use provost_sandbox::kernel::KernelSupport;

use tokio::task::JoinSet;

use crate::{Builder, EventStream, ProcessId, ProcessSpec, TerminalRecord, TerminalSize};

/// Supervises processes. Clones share one supervision tree; when the last one and every handle of its
/// processes are dropped, everything in it is killed.
///
/// A host may run several supervisors. None touches the host's signals, children or descriptors.
#[derive(Debug, Clone)]
pub struct Supervisor {
    pub(crate) tree: Arc<Tree>,
}

impl Supervisor {
    /// Starts with defaults: see [`Builder`].
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// What this machine offers, found out by trying.
    pub async fn kernel(&self) -> KernelSupport {
        self.tree.kernel().await.clone()
    }

    /// Starts a process. When this returns it is accepted: whatever happens then, a failure to start included, it
    /// gets its terminal record.
    ///
    /// # Errors
    /// The spec or its policy cannot be used, or this machine cannot hold the policy; nothing was started.
    pub async fn spawn(&self, spec: ProcessSpec) -> Result<ProcessHandle, SpawnRefused> {
        let link = self.tree.spawn(spec).await?;
        Ok(ProcessHandle {
            link,
            _tree: self.tree.clone(),
        })
    }

    /// Stops every process by its stop rule and kills what is left at the deadline. Nothing starts any more.
    pub async fn shutdown(&self, deadline: Duration) -> ShutdownReport {
        self.tree.shutdown(deadline).await
    }
}

/// A call of a process that waits for an answer.
#[derive(Debug, Clone)]
pub struct ApprovalRequest {
    /// Its number within the process.
    pub approval: u64,
    /// The denial that it will be if nobody allows it.
    pub attempt: Box<Denial>,
    /// When it is refused for want of an answer.
    pub deadline: jiff::Timestamp,
}

/// One supervised process. Clones are the same process; dropping one stops nothing.
#[derive(Debug, Clone)]
pub struct ProcessHandle {
    link: ProcessLink,
    /// Keeps the supervision tree alive as long as somebody may ask.
    _tree: Arc<Tree>,
}

impl ProcessHandle {
    /// The process's id, which is never reused.
    pub fn id(&self) -> ProcessId {
        self.link.id()
    }

    /// Its events from the first one on, ended by the terminal record. A reader that is slower than the process
    /// is told of what retention dropped meanwhile by a `gap` event.
    pub fn events(&self) -> EventStream {
        self.events_after(0)
    }

    /// Its events after `seq`.
    pub fn events_after(&self, seq: u64) -> EventStream {
        EventStream::new(self.link.log().follow(seq, false))
    }

    /// Its events from the first one on, at the reader's pace: nothing is dropped before it was read, and the process
    /// waits for a reader that stands still. One reader at a time can have the pace; further ones get an
    /// ordinary stream. Dropping it releases the process.
    pub fn events_paced(&self) -> EventStream {
        EventStream::new(self.link.log().follow(0, true))
    }

    /// The terminal record, when it is sealed.
    pub async fn record(&self) -> Arc<TerminalRecord> {
        self.link.log().sealed().await
    }

    /// The terminal record, if it is sealed already.
    pub fn try_record(&self) -> Option<Arc<TerminalRecord>> {
        self.link.log().record()
    }

    /// Asks it to end, by its stop rule: the signal, then KILL after the grace. False when it had ended already; its
    /// record says what won.
    pub fn stop(&self, reason: impl Into<String>) -> bool {
        self.link.tell(ProcessCommand::Stop {
            reason: reason.into(),
            grace: None,
        })
    }

    /// Kills its whole tree. False when it had ended already.
    pub fn kill(&self, reason: impl Into<String>) -> bool {
        self.link.tell(ProcessCommand::Kill {
            reason: reason.into(),
        })
    }

    /// Sends a signal (by its number) to the command, its process group or its whole tree. When this returns true
    /// the signal is on its way; false when the process had ended already.
    ///
    /// # Errors
    /// No such signal.
    pub async fn signal(&self, signal: i32, scope: SignalScope) -> io::Result<bool> {
        let signal = Signal::try_from(signal)?;
        let (sent, on_its_way) = tokio::sync::oneshot::channel();
        let told = self.link.tell(ProcessCommand::Signal { signal, scope, sent });
        Ok(told && on_its_way.await.is_ok())
    }

    /// Answers one of its approval requests. False when that does not wait for an answer any more: it was answered
    /// before, its deadline has passed, or whoever asked is gone. `by` says in the record who answered.
    pub async fn decide(&self, approval: u64, verdict: Verdict, by: impl Into<String>) -> bool {
        let (reply, decided) = tokio::sync::oneshot::channel();
        let told = self.link.tell(ProcessCommand::Decide {
            approval,
            verdict,
            by: by.into(),
            reply,
        });
        told && decided.await.unwrap_or(false)
    }

    /// Answers its approval requests by a callback, from the first one on; `by` says in the record who answered. To be
    /// awaited or spawned: it is done when the process has ended. Each request is answered on a task of its own, so
    /// one that takes long holds up no other.
    ///
    /// ```no_run
    /// # async fn example(process: provost::ProcessHandle) {
    /// use provost::{ApprovalScope, Verdict};
    /// tokio::spawn(process.answer_approvals("my rules", async |request| {
    ///     match request.attempt.target.address {
    ///         Some(address) if address.is_loopback() => Verdict::Allow(ApprovalScope::Process),
    ///         _ => Verdict::Deny,
    ///     }
    /// }));
    /// # }
    /// ```
    pub fn answer_approvals<By, F, Answer>(
        &self,
        by: By,
        callback: F,
    ) -> impl Future<Output = ()> + Send + use<By, F, Answer>
    where
        By: Into<String>,
        F: Fn(ApprovalRequest) -> Answer + Send,
        Answer: Future<Output = Verdict> + Send + 'static,
    {
        let (process, by) = (self.clone(), by.into());
        let mut events = self.events();
        async move {
            let mut answers = JoinSet::new();
            while let Some(event) = events.next().await {
                if let EventBody::ApprovalRequested {
                    approval,
                    attempt,
                    deadline,
                } = event.body
                {
                    let answer = callback(ApprovalRequest {
                        approval,
                        attempt,
                        deadline,
                    });
                    let (process, by) = (process.clone(), by.clone());
                    answers.spawn(async move {
                        let verdict = answer.await;
                        process.decide(approval, verdict, by).await;
                    });
                    while answers.try_join_next().is_some() {}
                }
            }
        }
    }

    /// Writes all of `bytes` to its standard input, waiting while it does not read. Only with
    /// [`crate::StdinSpec::Pipe`], or a terminal: there they are typed. (Of a line of more than 4,095 bytes the kernel
    /// keeps only those where a program reads lines.)
    ///
    /// # Errors
    /// `BrokenPipe` when its stdin is closed or the process ended. How much was taken is then unknown.
    pub async fn write_stdin(&self, bytes: &[u8]) -> io::Result<()> {
        self.link.write_stdin(bytes).await
    }

    /// Ends its standard input. At a terminal the end is typed (`VEOF`), which only a program that reads lines (canonical
    /// mode) takes for one; for another nothing is typed.
    pub fn close_stdin(&self) {
        self.link.close_stdin();
    }

    /// Changes the size of its terminal, of which the kernel tells the foreground process group (`SIGWINCH`). Waits until
    /// the terminal is there.
    ///
    /// # Errors
    /// `Unsupported` when it has no terminal ([`ProcessSpec::terminal`]), `BrokenPipe` when it has ended.
    pub async fn resize(&self, size: TerminalSize) -> io::Result<()> {
        self.link.resize(size).await
    }
}
