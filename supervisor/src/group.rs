//! Groups: processes that run for long, are started in order, restarted by rule, and stopped in reverse.
//!
//! ```text
//! Group ──► runner ── Fact ──► restart::Group (pure) ── Action ──► spawn, stop, kill
//!             ▲  one task per incarnation: started, ready, record │
//!             └──────────────────────────────────────────────────┘
//! ```
//!
//! What is decided and why is in [`provost_actors::restart`]; here it is done, over a [`Supervisor`], so that it works with
//! processes of this program and with those of a daemon. The rules are held by this program in both cases: when it goes away,
//! its group is stopped.
//!
//! Each incarnation is a process of its own, with its own id, events and record. Labels of the record say which it is:
//! `group`, `member`, `incarnation` (1, 2, 3 …) and `previous`, the id of the process before it.

mod readiness;
mod run;

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use provost_actors::restart::{Backoff, Ending, Intensity, Restart, Strategy};
use serde::Serialize;
use tokio::sync::{mpsc, watch};

use crate::error::Reason;
use crate::{Error, Outcome, ProcessHandle, ProcessId, ProcessSpec, Supervisor, TerminalRecord};

/// The labels that a group puts on its processes.
const LABELS: [&str; 4] = ["group", "member", "incarnation", "previous"];

/// What a group is made of.
#[derive(Debug)]
pub struct GroupSpec {
    /// Its name, for records.
    pub name: String,
    /// Who is restarted together.
    pub strategy: Strategy,
    /// How often, until the group is given up.
    pub intensity: Intensity,
    /// How soon.
    pub backoff: Backoff,
    /// The members, in the order in which they start.
    pub members: Vec<MemberSpec>,
}

impl GroupSpec {
    /// A group without members, and with OTP's defaults but for the intensity: 3 in 5 s.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            strategy: Strategy::default(),
            intensity: Intensity::default(),
            backoff: Backoff::default(),
            members: Vec::new(),
        }
    }
}

/// One member of a group.
pub struct MemberSpec {
    /// Its name, unique in the group.
    pub name: String,
    /// When it is started again.
    pub restart: Restart,
    /// When it is ready, which those behind it wait for.
    pub ready: Readiness,
    /// How long it has to get ready; with [`Readiness::Started`] it needs none.
    pub ready_within: Duration,
    spec: Arc<dyn Fn() -> ProcessSpec + Send + Sync>,
}

impl fmt::Debug for MemberSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("MemberSpec");
        shown.field("name", &self.name).field("restart", &self.restart);
        shown.field("ready", &self.ready).finish_non_exhaustive()
    }
}

impl MemberSpec {
    /// A permanent member that is ready when it has started. `spec` is called for each incarnation.
    pub fn new(name: impl Into<String>, spec: impl Fn() -> ProcessSpec + Send + Sync + 'static) -> Self {
        Self {
            name: name.into(),
            restart: Restart::default(),
            ready: Readiness::default(),
            ready_within: Duration::from_secs(30),
            spec: Arc::new(spec),
        }
    }
}

/// How a member's readiness is learned.
///
/// A socket that accepts is taken for the member's: that nobody else serves there is for the host to see to. Sockets are tried
/// 20 times a second, from this program: one that only exists in a network namespace of the member's own is never seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Readiness {
    /// It is ready when its command runs.
    #[default]
    Started,
    /// It is ready when it writes a line feed into the descriptor whose number is in `PROVOST_READY_FD`, as s6 has it. It need not
    /// read it back: when that has come, nobody reads there any more.
    Descriptor,
    /// It is ready when it sends `READY=1` to `NOTIFY_SOCKET`, as sd_notify(3) does, from anywhere in its tree. What else it sends is
    /// ignored. Not under the policy `unconfined`: there it is refused.
    Notify,
    /// It is ready when it accepts TCP connections at this address.
    Tcp(SocketAddr),
    /// It is ready when it accepts connections to this unix stream socket.
    Unix(PathBuf),
}

/// What happens in a group, in order.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum GroupEvent {
    /// An incarnation was accepted: it has an id, and will have a record.
    MemberStarting {
        /// The member's name.
        member: String,
        /// Which incarnation of it.
        incarnation: u64,
        /// Its process.
        process: ProcessId,
        /// The same, to be followed.
        #[serde(skip)]
        handle: ProcessHandle,
    },
    /// It is ready.
    MemberReady {
        /// The member's name.
        member: String,
        /// Which incarnation of it.
        incarnation: u64,
    },
    /// It is told to stop.
    MemberStopping {
        /// The member's name.
        member: String,
        /// Which incarnation of it.
        incarnation: u64,
        /// Why.
        reason: String,
    },
    /// It has ended.
    MemberEnded {
        /// The member's name.
        member: String,
        /// Which incarnation of it.
        incarnation: u64,
        /// Its process; `null` if it was not accepted.
        process: Option<ProcessId>,
        /// How; `null` if it was not accepted.
        outcome: Option<Outcome>,
        /// The same in words.
        reason: String,
    },
    /// It will be started again.
    MemberRestarting {
        /// The member's name.
        member: String,
        /// Which incarnation of it has ended.
        incarnation: u64,
        /// When, at the earliest, in milliseconds.
        delay_ms: u64,
        /// How many restarts of the group there were in the period, this one included.
        restarts: u32,
    },
    /// Nothing of it lives. The last event.
    GroupEnded {
        /// How.
        #[serde(flatten)]
        end: GroupEnd,
    },
}

/// How a group ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GroupEnd {
    /// What ended it.
    pub cause: GroupCause,
    /// The same in words.
    pub reason: String,
    /// The members whose last incarnation ended by itself, and not well.
    pub failed: Vec<String>,
}

/// What ended a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GroupCause {
    /// Every member has ended, and none was to be started again.
    Complete,
    /// It was told to stop.
    Stopped,
    /// More restarts in the period than the intensity has.
    TooOften,
    /// A member ended before it was ready, and was not to be started again.
    NeverReady,
    /// The daemon is gone, or takes nothing any more: what became of the members is not known here. Nothing was restarted,
    /// since they may live.
    Lost,
}

/// A group that runs. Clones are the same group; when the last one is dropped, the group is stopped.
#[derive(Debug, Clone)]
pub struct Group {
    told: mpsc::UnboundedSender<run::End>,
    end: watch::Receiver<Option<GroupEnd>>,
}

/// What happens in a group. It is for one reader; what that does not take waits, which is little: restarts are bounded.
#[derive(Debug)]
pub struct GroupEvents(mpsc::UnboundedReceiver<GroupEvent>);

impl GroupEvents {
    /// The next event; `None` after the last one.
    pub async fn next(&mut self) -> Option<GroupEvent> {
        self.0.recv().await
    }
}

impl Group {
    /// Stops every member by its stop rule, in the reverse of the order in which they start, each when the one behind it has
    /// ended.
    pub fn stop(&self, reason: impl Into<String>) {
        let _ = self.told.send(run::End::Stop(reason.into()));
    }

    /// Kills every member at once.
    pub fn kill(&self, reason: impl Into<String>) {
        let _ = self.told.send(run::End::Kill(reason.into()));
    }

    /// Waits for its end, when nothing of it lives.
    pub async fn end(&self) -> GroupEnd {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(end) => end.clone(),
            Err(_) => None,
        }
        .unwrap_or_else(|| GroupEnd {
            cause: GroupCause::Lost,
            reason: "the runtime was shut down".to_owned(),
            failed: Vec::new(),
        })
    }
}

impl Supervisor {
    /// Starts a group, in a session of its own within this one.
    ///
    /// # Errors
    /// The group cannot be ([`Error::Refused`]): two members of one name, a label that a group uses itself. Those of
    /// [`Supervisor::open_session`].
    pub async fn start_group(&self, spec: GroupSpec) -> Result<(Group, GroupEvents), Error> {
        let mut names = BTreeSet::new();
        for member in &spec.members {
            let what = || format!("group `{}`: member `{}`", spec.name, member.name);
            if !names.insert(member.name.as_str()) {
                return Err(Error::Refused(Reason::new(
                    what(),
                    "the name is taken",
                    "choose another",
                )));
            }
            let labels = (member.spec)().labels;
            if let Some(label) = LABELS.iter().find(|label| labels.contains_key(**label)) {
                let why = format!("the label `{label}` is the group's own");
                return Err(Error::Refused(Reason::new(what(), why, "choose another")));
            }
        }
        let session = self.open_session_that_ends().await?;
        let (told, asked) = mpsc::unbounded_channel();
        let (events, heard) = mpsc::unbounded_channel();
        let (ended, end) = watch::channel(None);
        run::Runner::start(session, spec, asked, events, ended);
        Ok((Group { told, end }, GroupEvents(heard)))
    }
}

/// How an end counts: what somebody wanted is OTP's `shutdown`.
fn ending(record: &TerminalRecord) -> Ending {
    match record.outcome {
        _ if record.succeeded => Ending::Normal,
        Outcome::Cancelled | Outcome::Replaced => Ending::Normal,
        _ => Ending::Abnormal,
    }
}

/// How it ended, in words.
fn words(record: &TerminalRecord) -> String {
    match (&record.reason, record.exit_code, &record.signal) {
        (Some(reason), ..) => reason.clone(),
        (None, Some(code), _) => format!("exit code {code}"),
        (None, None, Some(signal)) => signal.clone(),
        (None, None, None) => "it has ended".to_owned(),
    }
}
