//! Starting a process: once for each request id, whatever the client repeats.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use provost_actors::event::ProcessId;
use provost_actors::session::Holder;
use provost_actors::{ProcessLink, SpawnRefused, log::LogLimits};
use provost_sandbox::compile::CompileError;
use provost_sandbox::policy::PresetContext;
use serde::Serialize;
use tokio::sync::OnceCell;

use super::peer::ConfinedPeers;
use super::processes::{Supervised, described_bytes};
use super::recover::Note;
use super::sessions::check_name;
use super::{Account, Daemon, State, lock};
use crate::policy_file::{self, EnvironmentPolicy, LoadedPolicy, PolicyFileContext, PolicyName};
use crate::protocol::{self, ErrorKind, OUTPUT_BYTES, ProcessStart, RpcError, Started};
use crate::store::Request;
use crate::{OnDenial, ProcessSpec, Slot, StdinSpec, StopRule, TreeRule};

/// Starts that are remembered by their request ids.
const REMEMBERED_MAX: usize = 10_000;
/// The longest request id.
pub(super) const REQUEST_ID_BYTES_MAX: usize = 256;

/// What is settled of a process before it is started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prescribed {
    /// Its id, which nobody had before.
    pub(super) id: ProcessId,
    /// When it is to be over, whatever its own time limit.
    pub(super) deadline: Option<Timestamp>,
}

impl Default for Prescribed {
    fn default() -> Self {
        Self {
            id: ProcessId::new(),
            deadline: None,
        }
    }
}

/// Starts by request id.
#[derive(Debug, Default)]
pub(super) struct Starts {
    known: HashMap<String, Known>,
    order: VecDeque<String>,
}

#[derive(Debug, Clone)]
struct Known {
    /// A hash of what was asked for, to tell a repeated request from another one.
    asked: String,
    started: Arc<OnceCell<ProcessId>>,
}

impl Starts {
    /// A start of an earlier daemon.
    pub(super) fn restore(&mut self, id: &str, asked: &str, process: ProcessId) {
        let known = self.remember(id, asked.to_owned());
        let _ = known.started.set(process);
    }

    fn remember(&mut self, id: &str, asked: String) -> Known {
        if let Some(known) = self.known.get(id) {
            return known.clone();
        }
        if self.order.len() >= REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        let known = Known {
            asked,
            started: Arc::default(),
        };
        self.order.push_back(id.to_owned());
        self.known.insert(id.to_owned(), known.clone());
        known
    }
}

impl Daemon {
    /// Starts a process; the answer to a repeated request is that of the first.
    pub(super) async fn start(
        &self,
        request: ProcessStart,
        holder: Holder,
        confined: bool,
    ) -> Result<Started, RpcError> {
        let Some(request_id) = request.request_id.clone() else {
            let own = Prescribed::default();
            let link = self
                .start_once(request, None, Some(holder), confined, own)
                .await?;
            return Ok(Started {
                process: link.id(),
                repeated: false,
                following: None,
            });
        };
        if request_id.len() > REQUEST_ID_BYTES_MAX {
            let why = format!("`request_id` is longer than {REQUEST_ID_BYTES_MAX} bytes");
            return Err(RpcError::new(ErrorKind::InvalidParams, "process/start", why));
        }
        // Who follows is not part of what is started.
        let what = ProcessStart {
            follow: false,
            window: None,
            ..request.clone()
        };
        let asked = digest(&(what, confined));
        let known = lock(&self.0.starts).remember(&request_id, asked.clone());
        if known.asked != asked {
            let what = format!("start with request_id `{request_id}`");
            let why = "another start had the same one";
            return Err(
                RpcError::new(ErrorKind::Conflict, what, why).hint("use a new one for a new process")
            );
        }
        let mut repeated = true;
        // A start that failed is not remembered: it may be tried again.
        let process = known
            .started
            .get_or_try_init(async || {
                repeated = false;
                let word = Some((request_id.clone(), asked.clone()));
                let own = Prescribed::default();
                let started = self.start_once(request, word, Some(holder), confined, own);
                Ok::<_, RpcError>(started.await?.id())
            })
            .await?;
        Ok(Started {
            process: *process,
            repeated,
            following: None,
        })
    }

    /// Starts the process of a job, whose id was chosen before.
    pub(super) async fn start_job(
        &self,
        request: ProcessStart,
        prescribed: Prescribed,
    ) -> Result<ProcessLink, RpcError> {
        self.start_once(request, None, None, false, prescribed).await
    }

    /// For somebody who holds sessions, or for the queue, which asked whoever submitted.
    async fn start_once(
        &self,
        request: ProcessStart,
        word: Option<(String, String)>,
        holder: Option<Holder>,
        confined: bool,
        prescribed: Prescribed,
    ) -> Result<ProcessLink, RpcError> {
        let what = protocol::starting(&request.argv);
        let settings = self.settings();
        if self.0.stopping.is_cancelled() {
            return Err(RpcError::new(
                ErrorKind::ShuttingDown,
                what,
                "the daemon is stopping",
            ));
        }
        check_name(request.name.as_deref())?;
        let session = match &request.session {
            Some(session) => {
                let id = self.find_session(session)?;
                if let Some(holder) = holder {
                    self.may_touch(Some(id), holder, &what)?;
                }
                Some(id)
            }
            None => None,
        };
        let (link, within) = match session {
            Some(id) => {
                let state = self.state();
                let link = state.leases.get(id).map(|lease| lease.value.clone());
                (link, state.leases.ancestors(id))
            }
            None => (None, Vec::new()),
        };
        let place = self.place(request.name.clone(), settings.processes_max, &what)?;
        let confined_peers = confined.then_some(&settings.confined_peers);
        let mut spec = self.spec(&request, &what, settings.output_bytes, confined_peers)?;
        if let Some(deadline) = prescribed.deadline {
            let left = Duration::try_from(deadline.duration_since(self.steady_now()));
            let left = left.unwrap_or_default().max(Duration::from_millis(1));
            spec.timeout = Some(spec.timeout.map_or(left, |timeout| timeout.min(left)));
        }
        let decider = self.decider(request.ask_command.as_ref(), &spec, confined, &what)?;
        let policy = spec.policy.name.clone();
        let note = Note {
            name: request.name.clone(),
            policy: policy.clone(),
            confined,
            request: word.clone(),
        };
        let note = serde_json::to_value(note).unwrap_or_default();
        let link = link.as_ref().unwrap_or(self.0.tree.own_session());
        let started = self.0.tree.spawn_noted(link, prescribed.id, spec, note).await;
        let link = started.map_err(|error| {
            self.0.metrics.refused();
            match error {
                SpawnRefused::Gone(why) => RpcError::new(ErrorKind::ShuttingDown, what.as_str(), why),
                // Nothing is wrong with what was asked for.
                error @ SpawnRefused::Spool(_) => {
                    RpcError::new(ErrorKind::Limit, what.as_str(), error.to_string())
                        .hint("make room, or let the state directory be written; `provost status` says what is wrong")
                }
                SpawnRefused::Sandbox(CompileError::Unsupported(error)) => {
                    RpcError::new(ErrorKind::Unsupported, what.as_str(), error.to_string())
                }
                error => RpcError::new(ErrorKind::Refused, what.as_str(), error.to_string()),
            }
        })?;
        let mut process = Supervised::new(link, session, request.name);
        process.within = within;
        process.confined = confined;
        process.described_bytes = described_bytes(&request.argv, &request.labels, &request.cwd);
        process.argv = request.argv;
        process.cwd = request.cwd;
        process.policy = policy;
        process.labels = request.labels;
        process.request = word.map(|(id, asked)| Request { id, asked });
        let accepted = process.link.clone();
        self.0.metrics.watch(&process);
        if let Some(decider) = decider {
            self.answer_by(decider, &process.link);
        }
        let process = Arc::new(process);
        self.keep_record(&process);
        {
            let mut state = self.state();
            // From here on it counts as living, not as starting: what is yet to come may take long.
            state.starting.remove(&place.number);
            state.know(process.clone());
            state.tell_of_process(&process);
        }
        Ok(accepted)
    }

    /// Room for a process that is being started, and its name.
    fn place(&self, name: Option<String>, processes_max: usize, what: &str) -> Result<Place, RpcError> {
        let mut state = self.state();
        let State {
            live,
            processes,
            starting,
            ..
        } = &mut *state;
        if live.ids().len() + starting.len() >= processes_max || name.is_some() {
            live.look(is_live(processes));
        }
        if live.ids().len() + starting.len() >= processes_max {
            let why = format!("{processes_max} processes live already");
            return Err(RpcError::new(ErrorKind::Limit, what, why).hint("wait until some have ended"));
        }
        let mut living = live.ids().iter().filter_map(|id| processes.get(id));
        let mut taken = || {
            living.any(|process| process.name == name) || starting.values().any(|other| *other == name)
        };
        if name.is_some() && taken() {
            let why = "a process of that name lives already";
            return Err(RpcError::new(ErrorKind::Conflict, what, why).hint("choose another name"));
        }
        let number = self.next();
        starting.insert(number, name);
        Ok(Place {
            daemon: self.clone(),
            number,
        })
    }

    pub(super) fn spec(
        &self,
        request: &ProcessStart,
        what: &str,
        output_bytes: u64,
        confined: Option<&ConfinedPeers>,
    ) -> Result<ProcessSpec, RpcError> {
        let invalid = |why: String| RpcError::new(ErrorKind::InvalidParams, what, why);
        if request.argv.is_empty() {
            return Err(invalid("`argv` is empty".to_owned()));
        }
        let cwd = PathBuf::from(&request.cwd);
        if !cwd.is_absolute() {
            return Err(invalid(format!(
                "`cwd` is `{}`, and must be absolute",
                request.cwd
            )));
        }
        if request.policy.is_some() && request.prepared_policy.is_some() {
            return Err(invalid(
                "`policy` and `prepared_policy` exclude each other".to_owned(),
            ));
        }
        let named = match confined {
            // Whatever it asks for.
            Some(ConfinedPeers::Policy(name)) => Some(name.as_str()),
            Some(ConfinedPeers::Refuse) => {
                return Err(RpcError::new(
                    ErrorKind::Forbidden,
                    what,
                    "the client is confined itself",
                ));
            }
            None => request.policy.as_deref(),
        };
        let prepared = request.prepared_policy.as_deref().filter(|_| confined.is_none());
        let LoadedPolicy {
            mut policy,
            environment,
            timeout,
            idle_timeout,
            ..
        } = match prepared {
            Some(policy) => LoadedPolicy::from(policy.clone()),
            None => self.policy(named.unwrap_or("workspace-write"), &cwd)?,
        };
        self.hide_own(&mut policy)
            .map_err(|error| RpcError::new(ErrorKind::Refused, what, error.to_string()))?;
        let mut spec = ProcessSpec::new(request.argv.iter().map(OsString::from), cwd, policy);
        spec.env = match &request.env {
            Some(env) => env
                .iter()
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
            None => self.0.account.environment(&environment),
        };
        if request.stdin {
            spec.stdin = StdinSpec::Pipe;
        }
        spec.terminal = request.terminal.map(|size| crate::TerminalSize {
            rows: size.rows,
            cols: size.cols,
        });
        let millis = |millis: Option<u64>| millis.map(Duration::from_millis);
        let limit = |own: Option<Duration>, policys: Option<Duration>| own.or(policys);
        spec.timeout = limit(millis(request.timeout_ms), timeout);
        spec.idle_timeout = limit(millis(request.idle_timeout_ms), idle_timeout);
        let stop = StopRule::default();
        spec.stop = StopRule {
            signal: match &request.stop_signal {
                Some(signal) => super::requests::signal(signal)?,
                None => stop.signal,
            },
            grace: millis(request.grace_ms).unwrap_or(stop.grace),
        };
        spec.tree = match request.tree.as_deref() {
            None | Some("kill") => TreeRule::Kill,
            Some("wait") => TreeRule::Wait,
            Some(other) => return Err(invalid(format!("`tree` is `{other}`, want kill or wait"))),
        };
        spec.on_denial = match request.on_denial.as_deref() {
            None | Some("report") => OnDenial::Report,
            Some("stop") => OnDenial::Stop,
            Some(other) => {
                return Err(invalid(format!("`on_denial` is `{other}`, want report or stop")));
            }
        };
        spec.drain = millis(request.drain_ms).unwrap_or(spec.drain);
        spec.ask_timeout = millis(request.ask_timeout_ms).unwrap_or(spec.ask_timeout);
        spec.observe_reads = request.observe_reads;
        let most = output_bytes.max(*OUTPUT_BYTES.end());
        let kept = request
            .max_output
            .unwrap_or(output_bytes)
            .clamp(*OUTPUT_BYTES.start(), most);
        spec.retention = LogLimits::keeping(kept);
        spec.paced = request.follow;
        spec.slot = match (&request.slot, request.slot_grace_ms) {
            (Some(name), grace) => Some(Slot {
                name: name.clone(),
                grace: millis(grace),
            }),
            (None, None) => None,
            (None, Some(_)) => return Err(invalid("`slot_grace_ms` without `slot`".to_owned())),
        };
        spec.report = request.report;
        spec.ready = request.ready;
        spec.labels.clone_from(&request.labels);
        Ok(spec)
    }

    /// The policy of this name, for a command that runs there.
    pub(super) fn policy(&self, name: &str, cwd: &Path) -> Result<LoadedPolicy, RpcError> {
        let what = format!("policy `{name}`");
        let refused = |why: String| RpcError::new(ErrorKind::Refused, what.as_str(), why);
        let preset = PresetContext {
            cwd: cwd
                .canonicalize()
                .map_err(|error| refused(format!("{}: {error}", cwd.display())))?,
            home: Some(self.0.account.home.clone()),
            uid: self.0.account.uid,
            runtime_dir: Some(PathBuf::from(format!("/run/user/{}", self.0.account.uid))),
        };
        let name = PolicyName::parse(name);
        if let PolicyName::File(file) = &name
            && !file.is_absolute()
        {
            return Err(refused(
                "the path of a policy file must be absolute here".to_owned(),
            ));
        }
        let context = PolicyFileContext::new(preset, None);
        let mut loaded =
            policy_file::load(&name, &context).map_err(|error| refused(error.to_string()))?;
        loaded.settle().map_err(refused)?;
        Ok(loaded)
    }
}

impl State {
    /// Has a process among those that it knows.
    pub(super) fn know(&mut self, process: Arc<Supervised>) {
        let id = process.id();
        self.processes.insert(id, process);
        self.live.add(id, is_live(&self.processes));
    }
}

/// Whether a process has not ended.
fn is_live(processes: &BTreeMap<ProcessId, Arc<Supervised>>) -> impl FnMut(&ProcessId) -> bool {
    |id| processes.get(id).is_some_and(|process| process.is_live())
}

/// A process that is being started.
struct Place {
    daemon: Daemon,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.daemon.state().starting.remove(&self.number);
    }
}

/// A word for what was asked, which stays the same over restarts and releases. Two different requests
/// of one client under one id are a mistake of its own; whoever makes their words collide harms nobody else.
pub(super) fn digest(of: &impl Serialize) -> String {
    let bytes = serde_json::to_vec(of).unwrap_or_default();
    crate::store::digest(&bytes)
}

impl Account {
    /// A clean environment, and what the policy sets.
    pub(super) fn environment(&self, policy: &EnvironmentPolicy) -> Vec<(OsString, OsString)> {
        let own: [(&str, OsString); 5] = [
            ("PATH", "/usr/local/bin:/usr/bin:/bin".into()),
            ("HOME", self.home.clone().into()),
            ("USER", self.name.clone().into()),
            ("LOGNAME", self.name.clone().into()),
            ("SHELL", self.shell.clone().into()),
        ];
        let mut all: BTreeMap<OsString, OsString> =
            own.into_iter().map(|(key, value)| (key.into(), value)).collect();
        let set = policy.set.iter();
        all.extend(set.map(|(key, value)| (key.into(), value.into())));
        all.into_iter().collect()
    }
}
