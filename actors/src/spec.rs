//! What to run: the process spec.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use provost_sandbox::extras::ReadyBy;
pub use provost_sandbox::keeper::wire::TerminalSize;
use provost_sandbox::policy::Policy;

use crate::event::StreamName;
use crate::ledger::{OnDenial, TreeRule};
use crate::log::LogLimits;
pub use crate::slots::Slot;

/// What to run and how.
#[derive(Debug)]
pub struct ProcessSpec {
    /// The program and its arguments. A program without a slash is looked up in the PATH of `env`.
    pub argv: Vec<OsString>,
    /// Working directory, absolute.
    pub cwd: PathBuf,
    /// The whole environment: nothing is inherited.
    pub env: Vec<(OsString, OsString)>,
    /// Standard input, where there is no terminal.
    pub stdin: StdinSpec,
    /// A pseudo-terminal of this size: the command's controlling terminal, and its stdin, stdout and stderr. Its output
    /// is one stream, [`crate::event::StreamName::Pty`]; what is written to its standard input is typed there.
    pub terminal: Option<TerminalSize>,
    /// What it may touch. Equal ones are kept once.
    pub policy: Arc<Policy>,
    /// Ends it when it has run this long.
    pub timeout: Option<Duration>,
    /// Ends it when it has written nothing for this long.
    pub idle_timeout: Option<Duration>,
    /// How it is ended.
    pub stop: StopRule,
    /// What happens to descendants that outlive the command.
    pub tree: TreeRule,
    /// How long descendants may hold the output after the command ended (with [`TreeRule::Kill`]).
    pub drain: Duration,
    /// What happens at a denial.
    pub on_denial: OnDenial,
    /// How long a call waits for an answer where the policy asks before it refuses.
    pub ask_timeout: Duration,
    /// Watch opens for reading too, where the kernel does not report refusals of its own.
    pub observe_reads: bool,
    /// How much output is kept.
    pub retention: LogLimits,
    /// Keep the pace for the first reader that asks for it, so that it misses nothing however late it comes. The process
    /// waits for that reader: for callers that take one at once.
    pub paced: bool,
    /// The place in its session that it takes, where only one process is at a time: what is there is replaced.
    pub slot: Option<Slot>,
    /// It is asked for a result: one JSON value, through the descriptor that `PROVOST_REPORT_FD` names.
    pub report: bool,
    /// How it says that it is ready.
    pub ready: ReadyBy,
    /// Free words of the caller, repeated in the record.
    pub labels: BTreeMap<String, String>,
}

/// Standard input of a process.
#[derive(Debug, Default)]
pub enum StdinSpec {
    /// `/dev/null`.
    #[default]
    Null,
    /// A pipe, written through the handle.
    Pipe,
    /// This descriptor.
    Given(OwnedFd),
}

/// How a process is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopRule {
    /// The signal that asks; sent to every process of the tree.
    pub signal: Signal,
    /// How long the tree has to follow it before it is killed.
    pub grace: Duration,
}

impl Default for StopRule {
    fn default() -> Self {
        Self {
            signal: Signal::SIGTERM,
            grace: Duration::from_secs(5),
        }
    }
}

impl ProcessSpec {
    /// Its policy, to be changed: for this process alone.
    pub fn policy_mut(&mut self) -> &mut Policy {
        Arc::make_mut(&mut self.policy)
    }

    /// The streams that its output comes in.
    pub(crate) fn streams(&self) -> &'static [StreamName] {
        match self.terminal {
            Some(_) => &[StreamName::Pty],
            None => &[StreamName::Stdout, StreamName::Stderr],
        }
    }

    /// A spec with defaults for everything but what and where.
    pub fn new(
        argv: impl IntoIterator<Item = impl Into<OsString>>,
        cwd: impl Into<PathBuf>,
        policy: impl Into<Arc<Policy>>,
    ) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            cwd: cwd.into(),
            env: Vec::new(),
            stdin: StdinSpec::Null,
            terminal: None,
            policy: policy.into(),
            timeout: None,
            idle_timeout: None,
            stop: StopRule::default(),
            tree: TreeRule::Kill,
            drain: Duration::from_millis(500),
            on_denial: OnDenial::Report,
            ask_timeout: Duration::from_secs(60),
            observe_reads: false,
            retention: LogLimits::default(),
            paced: false,
            slot: None,
            report: false,
            ready: ReadyBy::Nothing,
            labels: BTreeMap::new(),
        }
    }
}
