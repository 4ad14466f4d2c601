//! Supervisor and ProcessHandle: what a program holds. What is behind them is here or in a daemon.
//!
//! ```text
//! Supervisor, ProcessHandle, EventStream
//!    ├─ embedded   the supervision tree of this program
//!    └─ remote     a daemon, over its protocol
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use provost_actors::ShutdownReport;
#[cfg(feature = "cli")]
use provost_actors::Tree;
use provost_actors::approval::Verdict;
use provost_actors::event::EventBody;
use provost_actors::session::{OnDisconnect, SessionId};
use provost_sandbox::denial::Denial;
use provost_sandbox::keeper::wire::SignalScope;
use provost_sandbox::kernel::KernelSupport;
use tokio::task::JoinSet;

use crate::client::{Client, Lasting, RECONNECT};
use crate::error::Reason;
use crate::protocol::ProcessInfo;
use crate::{Builder, Error, EventStream, ProcessId, ProcessSpec, TerminalRecord, TerminalSize};

mod embedded;
mod remote;
mod request;

pub(crate) use embedded::Embedded;
use embedded::EmbeddedProcess;
pub(crate) use remote::RemoteEvents;
use remote::{Remote, RemoteProcess};
#[cfg(feature = "cli")]
pub(crate) use request::millis;
pub(crate) use request::request;

/// Supervises processes: in this program ([`Supervisor::builder`]), or in a daemon ([`Supervisor::connect`]). What is
/// written against one works with the other; where a daemon cannot do something, the error says so
/// ([`Error::EmbeddedOnly`]).
///
/// Clones are the same supervisor. What happens when the last one and every handle of its processes are dropped is the one
/// difference: embedded, everything in it is killed; in a daemon it goes on.
///
/// A host may run several supervisors. None touches the host's signals, children or descriptors.
#[derive(Debug, Clone)]
pub struct Supervisor(Where<Embedded, Remote>);

/// Where the processes are.
#[derive(Debug, Clone)]
enum Where<E, R> {
    Embedded(E),
    Remote(R),
}
use Where::{Embedded as Here, Remote as There};

impl Supervisor {
    /// An embedded one. Starts with defaults: see [`Builder`].
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// That of a daemon, by its socket. The daemon's processes are this user's, whoever started them.
    ///
    /// Who starts a process sends its policy as this library has it, so both must be of the same version.
    ///
    /// # Errors
    /// Nobody listens there ([`Error::NoDaemon`]), the daemon does not serve this user ([`Error::Forbidden`]) or so many
    /// connections ([`Error::Limit`]).
    pub async fn connect(socket: impl AsRef<Path>) -> Result<Self, Error> {
        Self::connect_lasting(socket, RECONNECT).await
    }

    /// The same, for a daemon that may take so long to come back after it has died or was replaced ([`RECONNECT`] by default;
    /// zero for a daemon whose end is an error at once). Meanwhile what was asked waits, events go on behind the last one
    /// that was told, and sessions that were opened here are attached again. What may not be done twice and was under way is
    /// [`Error::Lost`]: signals, sessions that were being opened.
    ///
    /// # Errors
    /// As of [`Supervisor::connect`].
    pub async fn connect_lasting(socket: impl AsRef<Path>, reconnect: Duration) -> Result<Self, Error> {
        let daemon = Lasting::connect(socket.as_ref(), reconnect, None).await?;
        Ok(Self(There(Remote::new(daemon))))
    }

    /// That of a daemon, over a connection that is there. When that is lost there is no other.
    pub fn over(client: Client) -> Self {
        Self(There(Remote::new(Lasting::once(client))))
    }

    pub(crate) fn embedded(embedded: Embedded) -> Self {
        Self(Here(embedded))
    }

    /// The tree of an embedded one.
    #[cfg(feature = "cli")]
    pub(crate) fn tree(&self) -> Option<Arc<Tree>> {
        match &self.0 {
            Here(embedded) => Some(embedded.tree()),
            There(_) => None,
        }
    }

    /// The connection to the daemon that there is now, for what only a daemon has; `None` if this is embedded.
    pub fn client(&self) -> Option<Client> {
        match &self.0 {
            Here(_) => None,
            There(remote) => Some(remote.client()),
        }
    }

    /// What this machine offers, found out by trying.
    ///
    /// # Errors
    /// [`Error::EmbeddedOnly`]: a daemon does not tell.
    pub async fn kernel(&self) -> Result<KernelSupport, Error> {
        match &self.0 {
            Here(embedded) => Ok(embedded.kernel().await),
            There(_) => Err(Error::embedded_only(
                "tell what the kernel offers",
                "a daemon does not say it",
                "`provost doctor` does",
            )),
        }
    }

    /// Starts a process. When this returns it is accepted: whatever happens then, a failure to start included, it
    /// gets its terminal record.
    ///
    /// To a daemon goes what JSON can carry: text that is UTF-8, no descriptor ([`crate::StdinSpec::Given`]), no variable
    /// twice, and a retention as [`LogLimits::keeping`](crate::LogLimits::keeping) makes it of 4 KiB to 8 MiB. Times are in whole milliseconds
    /// there, rounded up.
    ///
    /// # Errors
    /// The spec or its policy cannot be used ([`Error::Refused`]), this machine cannot hold the policy
    /// ([`Error::Unsupported`]), it cannot go through a daemon ([`Error::EmbeddedOnly`]), nothing starts here any more
    /// ([`Error::Closed`]): nothing was started. [`Error::Lost`]: it may have been.
    pub async fn spawn(&self, spec: ProcessSpec) -> Result<ProcessHandle, Error> {
        Ok(ProcessHandle(match &self.0 {
            Here(embedded) => Here(embedded.spawn(spec).await?),
            There(remote) => There(remote.spawn(spec).await?),
        }))
    }

    /// The process of this id: one that lives, or that ended and is known here. An embedded supervisor knows an ended one as
    /// long as somebody has a handle of it, a daemon until it forgets it.
    ///
    /// # Errors
    /// [`Error::NotFound`]: there is none.
    pub async fn process(&self, id: ProcessId) -> Result<ProcessHandle, Error> {
        Ok(ProcessHandle(match &self.0 {
            Here(embedded) => Here(embedded.process(id)?),
            There(remote) => There(remote.process(id).await?),
        }))
    }

    /// The processes that [`Supervisor::process`] would find, oldest first; of a session, those in it and its parts.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub async fn list(&self) -> Result<Vec<ProcessInfo>, Error> {
        match &self.0 {
            Here(embedded) => Ok(embedded.list()),
            There(remote) => remote.list().await,
        }
    }

    /// Opens a session: a supervisor within this one, whose processes can be listed and shut down together. Their records
    /// name it. It is there until it or what it is part of is shut down, whether anybody has a handle of it or not; a
    /// daemon's goes on without this connection, too.
    ///
    /// # Errors
    /// [`Error::Closed`] if this one is shut down, [`Error::Limit`] for too many, or more than 16 deep.
    pub async fn open_session(&self) -> Result<Self, Error> {
        Ok(Self(match &self.0 {
            Here(embedded) => Here(embedded.open_session().await?),
            There(remote) => There(remote.open(OnDisconnect::default()).await?),
        }))
    }

    /// The same, but that a daemon stops it when this connection is gone and has not come back.
    pub(crate) async fn open_session_that_ends(&self) -> Result<Self, Error> {
        Ok(Self(match &self.0 {
            Here(embedded) => Here(embedded.open_session().await?),
            There(remote) => There(remote.open(OnDisconnect::Stop).await?),
        }))
    }

    /// The session that this supervisor is; `None` if it is the whole.
    pub fn session_id(&self) -> Option<SessionId> {
        match &self.0 {
            Here(embedded) => embedded.session_id(),
            There(remote) => remote.session_id(),
        }
    }

    /// Stops every process of it and of its sessions by its stop rule, and kills what is left at the deadline. Nothing starts
    /// in it any more.
    ///
    /// # Errors
    /// [`Error::EmbeddedOnly`] for the whole of a daemon, in which others' processes live: shut a session of it down.
    /// [`Error::NotHolder`] for a session that another client has taken.
    pub async fn shutdown(&self, deadline: Duration) -> Result<ShutdownReport, Error> {
        match &self.0 {
            Here(embedded) => Ok(embedded.shutdown(deadline).await),
            There(remote) => remote.shutdown(deadline).await,
        }
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

/// One supervised process, of this program or a daemon. Clones are the same process; dropping one stops nothing.
///
/// Of a daemon's process every method can fail for want of the daemon ([`Error::Lost`]) or because another client holds the
/// process's session ([`Error::NotHolder`]); reading and waiting need no session.
#[derive(Debug, Clone)]
pub struct ProcessHandle(Where<EmbeddedProcess, Arc<RemoteProcess>>);

impl ProcessHandle {
    /// The process's id, which is never reused.
    pub fn id(&self) -> ProcessId {
        match &self.0 {
            Here(process) => process.link.id(),
            There(process) => process.id(),
        }
    }

    /// Its events from the first one on, ended by the terminal record. A reader that is slower than the process
    /// is told of what retention dropped meanwhile by a `gap` event.
    pub fn events(&self) -> EventStream {
        self.events_after(0)
    }

    /// Its events after `seq`.
    pub fn events_after(&self, seq: u64) -> EventStream {
        self.follow(seq, false)
    }

    /// Its events from the first one on, at the reader's pace: nothing is dropped before it was read, and the process
    /// waits for a reader that stands still. One reader at a time can have the pace; further ones get an
    /// ordinary stream. Dropping it releases the process.
    pub fn events_paced(&self) -> EventStream {
        self.follow(0, true)
    }

    fn follow(&self, after_seq: u64, paced: bool) -> EventStream {
        match &self.0 {
            Here(process) => EventStream::embedded(process.link.log_now().follow(after_seq, paced)),
            There(process) => EventStream::remote(process.follow(after_seq, paced)),
        }
    }

    /// The terminal record, when it is sealed. It is the same whoever asks, and however often.
    ///
    /// # Errors
    /// Of a daemon's process: the connection is lost, which says nothing about the process; or the daemon has forgotten it.
    pub async fn record(&self) -> Result<Arc<TerminalRecord>, Error> {
        match &self.0 {
            Here(process) => Ok(process.link.sealed().await),
            There(process) => process.record().await,
        }
    }

    /// Asks it to end, by its stop rule: the signal, then KILL after the grace. False when it had ended already; its
    /// record says what won.
    ///
    /// # Errors
    /// Those of any request to a daemon.
    pub async fn stop(&self, reason: impl Into<String>) -> Result<bool, Error> {
        match &self.0 {
            Here(process) => Ok(process.stop(reason.into())),
            There(process) => process.end("process/stop", reason.into()).await,
        }
    }

    /// Kills its whole tree. False when it had ended already.
    ///
    /// # Errors
    /// Those of any request to a daemon.
    pub async fn kill(&self, reason: impl Into<String>) -> Result<bool, Error> {
        match &self.0 {
            Here(process) => Ok(process.kill(reason.into())),
            There(process) => process.end("process/kill", reason.into()).await,
        }
    }

    /// Sends a signal (by its number) to the command, its process group or its whole tree. When this returns true
    /// the signal is on its way; false when the process had ended already.
    ///
    /// # Errors
    /// [`Error::Refused`]: no such signal.
    pub async fn signal(&self, signal: i32, scope: SignalScope) -> Result<bool, Error> {
        let signal = Signal::try_from(signal).map_err(|_| {
            let what = format!("signal `{signal}`");
            Error::Refused(Reason::new(what, "there is no such signal", ""))
        })?;
        match &self.0 {
            Here(process) => Ok(process.signal(signal, scope).await),
            There(process) => process.signal(signal, scope).await,
        }
    }

    /// Answers one of its approval requests. False when that does not wait for an answer any more: it was answered
    /// before, its deadline has passed, or whoever asked is gone. `by` says in the record who answered.
    ///
    /// # Errors
    /// Those of any request to a daemon.
    pub async fn decide(
        &self,
        approval: u64,
        verdict: Verdict,
        by: impl Into<String>,
    ) -> Result<bool, Error> {
        match &self.0 {
            Here(process) => Ok(process.decide(approval, verdict, by.into()).await),
            There(process) => process.decide(approval, verdict, by.into()).await,
        }
    }

    /// Answers its approval requests by a callback, from the first one on; `by` says in the record who answered. To be
    /// awaited or spawned: it is done when the process has ended. Each request is answered on a task of its own, so
    /// one that takes long holds up no other. The callback runs in this program, also for a process of a daemon's.
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
    ///
    /// # Errors
    /// The daemon's events ended early, or it did not take an answer: what waits is refused at its deadline.
    pub fn answer_approvals<By, F, Answer>(
        &self,
        by: By,
        callback: F,
    ) -> impl Future<Output = Result<(), Error>> + Send + use<By, F, Answer>
    where
        By: Into<String>,
        F: Fn(ApprovalRequest) -> Answer + Send,
        Answer: Future<Output = Verdict> + Send + 'static,
    {
        let (process, by) = (self.clone(), by.into());
        let mut events = self.events();
        async move {
            let mut answers: JoinSet<Result<(), Error>> = JoinSet::new();
            while let Some(event) = events.next().await? {
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
                        process.decide(approval, verdict, by).await.map(drop)
                    });
                }
                while let Some(answered) = answers.try_join_next() {
                    answered.unwrap_or(Ok(()))?;
                }
            }
            Ok(())
        }
    }

    /// Writes all of `bytes` to its standard input, waiting while it does not read. Only with
    /// [`crate::StdinSpec::Pipe`], or a terminal: there they are typed. (Of a line of more than 4,095 bytes the kernel
    /// keeps only those where a program reads lines.)
    ///
    /// # Errors
    /// [`Error::Ended`] when its stdin is closed or the process ended. How much was taken is then unknown, as it is when
    /// this is cancelled. [`Error::Limit`] when too many writes through the same connection wait for their processes.
    pub async fn write_stdin(&self, bytes: &[u8]) -> Result<(), Error> {
        match &self.0 {
            Here(process) => process.write_stdin(bytes).await,
            There(process) => process.write_stdin(bytes).await,
        }
    }

    /// Ends its standard input, once writes under way through this handle are done; does not wait for those, but no others
    /// begin. At a terminal the end is typed (`VEOF`), which only a program that reads lines (canonical mode) takes for one;
    /// for another nothing is typed.
    ///
    /// # Errors
    /// Those of any request to a daemon.
    pub async fn close_stdin(&self) -> Result<(), Error> {
        match &self.0 {
            Here(process) => {
                process.link.close_stdin();
                Ok(())
            }
            There(process) => process.close_stdin().await,
        }
    }

    /// Changes the size of its terminal, of which the kernel tells the foreground process group (`SIGWINCH`). Waits until
    /// the terminal is there.
    ///
    /// # Errors
    /// [`Error::Refused`] when it has no terminal ([`ProcessSpec::terminal`]), [`Error::Ended`] when it has ended.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), Error> {
        match &self.0 {
            Here(process) => process.resize(size).await,
            There(process) => process.resize(size).await,
        }
    }
}
