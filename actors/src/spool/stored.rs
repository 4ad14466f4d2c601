//! A process spec as it is kept: everything but descriptors.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use nix::sys::signal::Signal;
use provost_sandbox::extras::ReadyBy;
use provost_sandbox::keeper::wire::TerminalSize;
use provost_sandbox::policy::Policy;
use serde::{Deserialize, Serialize};

use crate::event::ProcessId;
use crate::ledger::{OnDenial, TreeRule};
use crate::log::LogLimits;
use crate::proxy::ProxyPlace;
use crate::spec::{ProcessSpec, Slot, StdinSpec, StopRule};

/// What was accepted: the first entry of a journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Accepted {
    /// The process.
    pub process: ProcessId,
    /// Its session.
    pub session: Option<String>,
    /// When.
    pub queued_at: Timestamp,
    /// The boot of the machine (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
    /// When, by a clock of that boot that nobody sets ([`monotonic`]); absent in old journals.
    #[serde(default)]
    pub monotonic: Option<Duration>,
    /// What is to run.
    pub spec: StoredSpec,
    /// Where its proxy is, if it has one.
    pub proxy: Option<ProxyPlace>,
    /// What the daemon wants to know of it again.
    pub note: serde_json::Value,
}

/// The time since some moment of this boot, without the time in which the machine slept; nobody sets it.
pub fn monotonic() -> Option<Duration> {
    let clock = nix::time::ClockId::CLOCK_MONOTONIC;
    nix::time::clock_gettime(clock).ok().map(Duration::from)
}

/// A [`ProcessSpec`] as data. Its environment is not kept: nobody needs it again, and it may hold secrets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredSpec {
    argv: Vec<Text>,
    cwd: Text,
    has_stdin: bool,
    terminal: Option<TerminalSize>,
    policy: Arc<Policy>,
    timeout: Option<Duration>,
    idle_timeout: Option<Duration>,
    stop_signal: i32,
    grace: Duration,
    tree: TreeRule,
    drain: Duration,
    on_denial: OnDenial,
    ask_timeout: Duration,
    observe_reads: bool,
    head_bytes: u64,
    tail_bytes: u64,
    events_max: usize,
    #[serde(default)]
    slot: Option<Slot>,
    #[serde(default)]
    report: bool,
    #[serde(default)]
    ready: ReadyBy,
    labels: BTreeMap<String, String>,
}

/// Text of the system's: a string where it is UTF-8, else bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Text {
    String(String),
    Bytes(Vec<u8>),
}

impl From<&OsStr> for Text {
    fn from(text: &OsStr) -> Self {
        match text.to_str() {
            Some(text) => Self::String(text.to_owned()),
            None => Self::Bytes(text.as_bytes().to_vec()),
        }
    }
}

impl From<&Text> for OsString {
    fn from(text: &Text) -> Self {
        match text {
            Text::String(text) => text.into(),
            Text::Bytes(bytes) => Self::from_vec(bytes.clone()),
        }
    }
}

impl From<&ProcessSpec> for StoredSpec {
    fn from(spec: &ProcessSpec) -> Self {
        Self {
            argv: spec.argv.iter().map(|word| word.as_os_str().into()).collect(),
            cwd: spec.cwd.as_os_str().into(),
            has_stdin: matches!(spec.stdin, StdinSpec::Pipe),
            terminal: spec.terminal,
            policy: spec.policy.clone(),
            timeout: spec.timeout,
            idle_timeout: spec.idle_timeout,
            stop_signal: spec.stop.signal as i32,
            grace: spec.stop.grace,
            tree: spec.tree,
            drain: spec.drain,
            on_denial: spec.on_denial,
            ask_timeout: spec.ask_timeout,
            observe_reads: spec.observe_reads,
            head_bytes: spec.retention.head_bytes,
            tail_bytes: spec.retention.tail_bytes,
            events_max: spec.retention.events_max,
            slot: spec.slot.clone(),
            report: spec.report,
            ready: spec.ready,
            labels: spec.labels.clone(),
        }
    }
}

impl StoredSpec {
    /// The spec again, without its environment and without a pace.
    pub fn restore(&self) -> ProcessSpec {
        let mut spec = ProcessSpec::new(
            self.argv.iter().map(OsString::from),
            PathBuf::from(OsString::from(&self.cwd)),
            self.policy.clone(),
        );
        if self.has_stdin {
            spec.stdin = StdinSpec::Pipe;
        }
        spec.terminal = self.terminal;
        spec.timeout = self.timeout;
        spec.idle_timeout = self.idle_timeout;
        spec.stop = StopRule {
            signal: Signal::try_from(self.stop_signal).unwrap_or(Signal::SIGTERM),
            grace: self.grace,
        };
        spec.tree = self.tree;
        spec.drain = self.drain;
        spec.on_denial = self.on_denial;
        spec.ask_timeout = self.ask_timeout;
        spec.observe_reads = self.observe_reads;
        spec.retention = LogLimits {
            head_bytes: self.head_bytes,
            tail_bytes: self.tail_bytes,
            events_max: self.events_max,
        };
        spec.slot.clone_from(&self.slot);
        spec.report = self.report;
        spec.ready = self.ready;
        spec.labels.clone_from(&self.labels);
        spec
    }
}
