//! Provost runs other people's commands inside a Linux sandbox and tells the truth about them: one ordered
//! stream of events per process, ended by exactly one terminal record that already contains the exit, the fate
//! of every output byte and every sandbox denial.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use provost::{PresetContext, Policy, ProcessSpec, Supervisor};
//!
//! let supervisor = Supervisor::builder().start().await?;
//! let policy = Policy::preset("workspace-write", &PresetContext::here()?)?;
//! let mut spec = ProcessSpec::new(["sh", "-c", "echo hello"], std::env::current_dir()?, policy);
//! spec.env = vec![("PATH".into(), "/usr/bin:/bin".into())];
//! let process = supervisor.spawn(spec).await?;
//! let record = process.record().await?;
//! assert!(record.succeeded && !record.denied);
//! # Ok(())
//! # }
//! ```
//!
//! # Here or in a daemon
//!
//! [`Supervisor::builder`] supervises in this program, [`Supervisor::connect`] asks a daemon (`provost serve`), whose processes
//! outlive this program. The handles are the same, and so are the events, the records and the errors ([`Error`]):
//!
//! ```no_run
//! # use provost::{Error, ProcessSpec, Supervisor, TerminalRecord};
//! # use std::sync::Arc;
//! async fn work(supervisor: &Supervisor, spec: ProcessSpec) -> Result<Arc<TerminalRecord>, Error> {
//!     supervisor.spawn(spec).await?.record().await
//! }
//! # async fn example(one: ProcessSpec, other: ProcessSpec) -> Result<(), Error> {
//! work(&Supervisor::builder().start().await?, one).await?;
//! work(&Supervisor::connect("/run/user/1000/provost/provost.sock").await?, other).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # The spawner
//!
//! Processes are forked by a small process of Provost's own, never by the host. It is the `provost` binary, or the
//! host's own executable if its `main` begins with [`run_spawner_if_asked`].
//!
//! # Guarantees, and what is not guaranteed
//!
//! - Every accepted process gets exactly one [`TerminalRecord`]; it is the last event and has the highest `seq`.
//! - The record is visible only after every stream ended (or was given up at a stated deadline), the exit is
//!   known, the denial channel was drained and the process tree is empty.
//! - Dropping a [`ProcessHandle`] stops nothing. When an embedded [`Supervisor`] and every handle are dropped, everything it
//!   started is killed; what a daemon supervises goes on.
//! - Records live as long as an embedded supervisor. A daemon keeps them on disk, and what it supervises survives its death,
//!   unless it was started with `--no-state`.
//! - The end of a daemon's events without a record is an error ([`Error::Lost`]), never the end of the process.
//!
//! Linux 5.13 or later; newer features are detected ([`Supervisor::kernel`]).

#![forbid(unsafe_code)]

mod builder;
#[cfg(feature = "cli")]
pub mod cli;
pub mod client;
#[cfg(feature = "cli")]
pub mod daemon;
#[cfg(feature = "cli")]
mod decider;
mod error;
mod group;
mod handle;
#[cfg(feature = "cli")]
pub mod map;
pub mod policy_file;
pub mod protocol;
#[cfg(feature = "cli")]
pub mod store;
mod stream;
mod task;
mod units;

pub use builder::Builder;
pub use error::{Error, Reason};
pub use group::{
    Group, GroupCause, GroupEnd, GroupEvent, GroupEvents, GroupSpec, MemberSpec, Readiness,
};
pub use handle::{ApprovalRequest, ProcessHandle, Supervisor};
pub use protocol::ProcessInfo;
pub use provost_actors::approval::{ApprovalScope, ApprovalSummary, GrantRecord, Verdict};
pub use provost_actors::event::{Event, EventBody, ProcessId, StreamName};
pub use provost_actors::ledger::{OnDenial, StopCause, TreeRule};
pub use provost_actors::log::LogLimits;
pub use provost_actors::record::{
    Closed, DenialSummary, Outcome, OutputSummary, TerminalRecord, TreeSummary, Usage,
};
pub use provost_actors::reported::ReportedValue;
pub use provost_actors::restart::{Backoff, Intensity, Restart, Strategy};
pub use provost_actors::session::SessionId;
pub use provost_actors::spec::{ProcessSpec, Slot, StdinSpec, StopRule, TerminalSize};
pub use provost_actors::{ShutdownReport, StartError};
pub use provost_sandbox::compile::CompileError;
pub use provost_sandbox::denial::{
    AllowingRule, Certainty, Decision, Denial, DenialClass, DenialTarget,
};
pub use provost_sandbox::extras::ReadyBy;
pub use provost_sandbox::keeper::run_if_asked as run_spawner_if_asked;
pub use provost_sandbox::keeper::wire::SignalScope;
pub use provost_sandbox::kernel::{KernelSupport, Probe};
pub use provost_sandbox::policy::{
    AskPolicy, Degrade, Destination, FilePolicy, FixedName, Limits, NamePolicy, NameRule, NetMode,
    NetPolicy, NetRule, NetVerdict, PRESETS, PathRule, Policy, PolicyError, PresetContext, Protocol,
    SyscallRule,
};
pub use provost_sandbox::report::{
    Containment, Degradation, FileObservation, SandboxReport, UnsupportedError,
};
pub use provost_sandbox::spawn::LaunchError;
pub use stream::EventStream;
pub use task::{
    AbortReason, Task, TaskContext, TaskEnd, TaskEvent, TaskEvents, TaskId, TaskSpec, Tasks,
};

/// The example in README.md compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
