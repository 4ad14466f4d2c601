//! What each method does.

use std::sync::Arc;
use std::time::Duration;

use base64_simd::STANDARD;
use nix::sys::signal::Signal;
use provost_actors::ProcessCommand;
use provost_sandbox::keeper::wire::SignalScope;
use serde::Serialize;
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::connection::{Client, FOLLOWERS_MAX, notification};
use super::follow::Way;
use super::follow::watch::{Scope, push_all};
use super::line::Line;
use super::processes::{Supervised, Turn};
use super::{follow, jobs, lock};
use crate::protocol::{
    Ack, ApprovalFollow, ApprovalList, ErrorKind, Following, Initialize, Initialized, PROTOCOL_VERSION,
    ProcessAttach, ProcessFollow, ProcessList, ProcessPrune, ProcessRead, ProcessRef, ProcessResize,
    ProcessSignal, ProcessStart, ProcessStop, ProcessWait, ProcessWrite, RpcError, SessionAttach,
    SessionClose, SessionFollow, SessionRef, Started, Told, Unfollow, Waited,
};

/// Written as JSON already: a tree of values would be made to be taken apart again.
pub(super) type Answer = Result<Box<RawValue>, RpcError>;

/// A request whose place in the order of its kind is taken.
pub(super) struct Prepared {
    request: Line,
    write: Option<Result<Write, RpcError>>,
}

/// A write, to which process, and its turn there.
type Write = (Arc<Supervised>, Turn, ProcessWrite);

/// What is let go when the answer is on its way.
#[derive(Default)]
pub(super) struct After {
    /// A follower begins behind its answer.
    answered: Option<oneshot::Sender<()>>,
    pub(super) large: Option<OwnedSemaphorePermit>,
}

impl Client {
    /// A client that is confined itself has the processes that such clients started, and nothing else: what is not
    /// under the policy set for them, and what others decide, is out of its reach.
    fn may_ask(&self, method: &str) -> Result<(), RpcError> {
        let harmless = matches!(
            method,
            "process/start"
                | "process/read"
                | "process/follow"
                | "process/attach"
                | "process/detach"
                | "process/write"
                | "process/resize"
                | "process/signal"
                | "process/stop"
                | "process/kill"
                | "process/wait"
                | "process/inspect"
        );
        if harmless || !self.confined {
            return Ok(());
        }
        let why = "the client is confined itself, and may only start processes and look after those";
        Err(RpcError::new(ErrorKind::Forbidden, method, why))
    }

    /// The process that is meant, if this client may know of it.
    fn find(&self, process: &str) -> Result<Arc<Supervised>, RpcError> {
        self.daemon.find(process, self.confined)
    }
}

/// Takes the place of what must happen in the order in which it was asked for: writes to the same process.
pub(super) fn prepare(client: &Client, request: Line) -> Prepared {
    let write = (request.method == "process/write").then(|| {
        let write: ProcessWrite = request.params()?;
        let process = client.find(&write.process)?;
        let turn = process.turn(write.data.len())?;
        Ok((process, turn, write))
    });
    Prepared { request, write }
}

/// The first request.
pub(super) fn initialize(client: &Client, request: &Line) -> Answer {
    let what = "initialize";
    if request.method != what {
        let why = format!("the first request is `{}`", request.method);
        return Err(RpcError::new(ErrorKind::InvalidRequest, what, why).hint("begin with `initialize`"));
    }
    let asked: Initialize = request.params()?;
    if asked.protocol != PROTOCOL_VERSION {
        let why = format!(
            "the client speaks version {}, and only {PROTOCOL_VERSION} is spoken here",
            asked.protocol
        );
        return Err(
            RpcError::new(ErrorKind::InvalidParams, what, why).hint("use a client of this version")
        );
    }
    if let Some(user) = asked.user.filter(|user| *user != client.daemon.0.account.name) {
        let why = format!(
            "processes run as {} here, not as {user}",
            client.daemon.0.account.name
        );
        return Err(RpcError::new(ErrorKind::Forbidden, what, why));
    }
    tracing::debug!(client = asked.client, holder = client.holder.0, "a client");
    value(&Initialized {
        server: "provost".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: PROTOCOL_VERSION,
        uid: client.daemon.0.account.uid,
        capabilities: Vec::new(),
        limits: client.daemon.limits(),
    })
}

/// Answers what takes no time and frees something: it needs no place among the requests in work.
pub(super) fn at_once(client: &Client, request: &Line) -> Option<Answer> {
    match request.method.as_str() {
        "ack" => Some(ack(client, request)),
        "unfollow" => Some(unfollow(client, request)),
        _ => None,
    }
}

/// A client has taken events.
fn ack(client: &Client, request: &Line) -> Answer {
    let asked: Ack = request.params()?;
    let known = lock(&client.followers).get(&asked.subscription).cloned();
    if let Some(way) = &known {
        way.ack(asked.events);
    }
    value(&json!({ "following": known.is_some() }))
}

/// A client wants no more events.
fn unfollow(client: &Client, request: &Line) -> Answer {
    let asked: Unfollow = request.params()?;
    let known = lock(&client.followers).remove(&asked.subscription);
    if let Some(way) = &known {
        way.cancel();
    }
    value(&json!({ "was_following": known.is_some() }))
}

/// Answers a request. What is to begin only behind the answer waits until `after` is dropped.
pub(super) async fn answer(client: &Arc<Client>, prepared: Prepared, after: &mut After) -> Answer {
    let Prepared { request, write } = prepared;
    if let Some(write) = write {
        return self::write(client, write?).await;
    }
    let daemon = &client.daemon;
    client.may_ask(&request.method)?;
    daemon.0.house.stir();
    match request.method.as_str() {
        "session/open" => {
            let id = daemon.open_session(request.params()?, client.holder).await?;
            value(&json!({ "session": id }))
        }
        "session/detach" => {
            let asked: SessionRef = request.params()?;
            value(&daemon.detach_session(&asked.session, client.holder)?)
        }
        "session/attach" => {
            let asked: SessionAttach = request.params()?;
            value(&daemon.attach_sessions(&asked, client.holder)?)
        }
        "session/list" => value(&daemon.list_sessions(client.holder)),
        "session/close" => {
            let asked: SessionClose = request.params()?;
            value(&daemon.close_sessions(&asked, client.holder, false).await?)
        }
        "session/clean" => {
            let asked: SessionClose = request.params()?;
            value(&daemon.close_sessions(&asked, client.holder, true).await?)
        }
        "session/follow" => {
            let asked: SessionFollow = request.params()?;
            let scope = Scope {
                session: Some(daemon.find_session(&asked.session)?),
                approvals: false,
            };
            watch(client, scope, asked.window, after)
        }
        "process/start" => {
            let asked: ProcessStart = request.params()?;
            if client.confined && asked.session.is_some() {
                client.may_ask("session/open")?;
            }
            start(client, asked, after).await
        }
        "process/read" => {
            let asked: ProcessRead = request.params()?;
            let mut reading = client.find(&asked.process)?.reading(&asked).await;
            tokio::select! {
                () = reading.wait(&asked) => {}
                () = client.outbox.closed() => return Err(gone()),
            }
            after.large = client.large.clone().acquire_owned().await.ok();
            value(&reading.take(&asked))
        }
        "process/follow" => {
            let asked: ProcessFollow = request.params()?;
            let process = client.find(&asked.process)?;
            let way = subscribe(client, asked.window)?;
            // Its place is taken now: what is kept is kept for it, and the answer says whether it has the pace.
            let cursor = process.link.log().await.follow(asked.after_seq, asked.paced);
            let paced = cursor.is_paced();
            let (behind, following) = (behind(after), way.clone());
            client
                .tasks
                .spawn(ending(client.clone(), way.subscription, async move {
                    let _ = behind.await;
                    follow::process(process, cursor, following).await;
                }));
            value(&Following {
                subscription: way.subscription,
                paced,
            })
        }
        "process/attach" => {
            let asked: ProcessAttach = request.params()?;
            let process = match asked.read_only {
                true => client.find(&asked.process)?,
                false => touched(client, &asked.process, "attach")?,
            };
            value(&daemon.attach_input(&process, client.holder, &asked).await)
        }
        "process/detach" => {
            let asked: ProcessRef = request.params()?;
            let process = client.find(&asked.process)?;
            value(&json!({ "was_writer": daemon.detach_input(&process, client.holder) }))
        }
        "process/resize" => {
            let asked: ProcessResize = request.params()?;
            let process = client.find(&asked.process)?;
            daemon.resize(&process, client.holder, &asked).await?;
            value(&json!({}))
        }
        "process/signal" => {
            let asked: ProcessSignal = request.params()?;
            let process = touched(client, &asked.process, "signal")?;
            let (sent, on_its_way) = oneshot::channel();
            let command = ProcessCommand::Signal {
                signal: signal(&asked.signal)?,
                scope: asked.scope.unwrap_or(SignalScope::Leader),
                sent,
            };
            let told = process.link.tell(command) && on_its_way.await.is_ok();
            value(&Told { told })
        }
        "process/stop" => {
            let asked: ProcessStop = request.params()?;
            let process = touched(client, &asked.process, "stop")?;
            let reason = asked.reason.unwrap_or_else(|| "a client asked for it".to_owned());
            let grace = asked.grace_ms.map(Duration::from_millis);
            let told = process.link.tell(ProcessCommand::Stop { reason, grace });
            value(&Told { told })
        }
        "process/kill" => {
            let asked: ProcessStop = request.params()?;
            if asked.grace_ms.is_some() {
                let why = "`grace_ms` is for `process/stop`: what is killed has no time";
                return Err(RpcError::new(ErrorKind::InvalidParams, "process/kill", why));
            }
            let process = touched(client, &asked.process, "kill")?;
            let reason = asked.reason.unwrap_or_else(|| "a client asked for it".to_owned());
            let told = process.link.tell(ProcessCommand::Kill { reason });
            value(&Told { told })
        }
        "process/wait" => {
            let asked: ProcessWait = request.params()?;
            let process = client.find(&asked.process)?;
            let record = process.link.sealed();
            let patience = asked.timeout_ms.map_or(Duration::MAX, Duration::from_millis);
            let record = tokio::select! {
                record = tokio::time::timeout(patience, record) => record.ok(),
                () = client.outbox.closed() => return Err(gone()),
            };
            value(&Waited { record })
        }
        "process/list" => {
            let asked: ProcessList = request.params()?;
            after.large = client.large.clone().acquire_owned().await.ok();
            value(&daemon.list(&asked)?)
        }
        "process/inspect" => {
            let asked: ProcessRef = request.params()?;
            let process = client.find(&asked.process)?;
            after.large = client.large.clone().acquire_owned().await.ok();
            let mut info = json!(process.info());
            info["retained_bytes"] = json!(process.retained());
            info["record"] = json!(process.link.record().as_deref());
            value(&info)
        }
        "process/prune" => {
            let asked: ProcessPrune = request.params()?;
            value(&json!({ "forgotten": daemon.prune(&asked).await? }))
        }
        "approval/decide" => {
            daemon.decide(request.params()?, client.holder).await?;
            value(&Told { told: true })
        }
        "approval/list" => {
            let asked: ApprovalList = request.params()?;
            after.large = client.large.clone().acquire_owned().await.ok();
            value(&daemon.list_approvals(&asked)?)
        }
        "approval/follow" => {
            let asked: ApprovalFollow = request.params()?;
            let session = asked.session.as_deref();
            let scope = Scope {
                session: session.map(|session| daemon.find_session(session)).transpose()?,
                approvals: true,
            };
            watch(client, scope, asked.window, after)
        }
        "policy/check" => {
            #[derive(serde::Deserialize)]
            #[serde(deny_unknown_fields)]
            struct Check {
                policy: String,
                cwd: String,
            }
            let asked: Check = request.params()?;
            let mut loaded = daemon.policy(&asked.policy, std::path::Path::new(&asked.cwd))?;
            daemon
                .hide_own(&mut loaded.policy)
                .map_err(|error| RpcError::new(ErrorKind::Refused, "policy/check", error.to_string()))?;
            value(
                &json!({ "name": loaded.policy.name, "layers": loaded.layers, "warnings": loaded.warnings }),
            )
        }
        method if method.starts_with("job/") => jobs::answer(client, &request, after).await,
        "daemon/leave" => value(&daemon.ask_to_leave(request.params()?)?),
        "daemon/status" => value(&daemon.status()),
        "initialize" => Err(RpcError::new(
            ErrorKind::InvalidRequest,
            "initialize",
            "it was said already",
        )),
        other => Err(RpcError::new(
            ErrorKind::MethodNotFound,
            format!("`{}`", other.escape_default()),
            "there is no such method",
        )),
    }
}

/// Follows many processes at once.
fn watch(client: &Arc<Client>, scope: Scope, window: Option<u64>, after: &mut After) -> Answer {
    let way = subscribe(client, window)?;
    let subscription = way.subscription;
    let watching = client.daemon.watch(subscription, scope);
    let (daemon, behind) = (client.daemon.clone(), behind(after));
    let pushing = push_all(daemon, watching, way, behind);
    client.tasks.spawn(ending(client.clone(), subscription, pushing));
    value(&Following {
        subscription,
        paced: false,
    })
}

/// Starts a process, and follows it if that is asked for.
async fn start(client: &Arc<Client>, asked: ProcessStart, after: &mut After) -> Answer {
    let daemon = &client.daemon;
    if !asked.follow {
        return value(&daemon.start(asked, client.holder, client.confined).await?);
    }
    let way = subscribe(client, asked.window)?;
    let started = daemon.start(asked, client.holder, client.confined).await;
    let found = started.and_then(|started| Ok((client.find(&started.process.to_string())?, started)));
    let (process, started) = found.inspect_err(|_| {
        lock(&client.followers).remove(&way.subscription);
    })?;
    // Taken at once, for the process waits for it; gone with the client.
    let cursor = process.link.log().await.follow(0, true);
    let following = Following {
        subscription: way.subscription,
        paced: cursor.is_paced(),
    };
    let behind = behind(after);
    client
        .tasks
        .spawn(ending(client.clone(), way.subscription, async move {
            let _ = behind.await;
            follow::push(&process, cursor, &way).await;
        }));
    value(&Started {
        following: Some(following),
        ..started
    })
}

async fn write(client: &Client, (process, turn, asked): Write) -> Answer {
    let what = format!("write to {}", process.id());
    let may = || {
        client
            .daemon
            .may_write(&process, client.holder, asked.force, &what)
    };
    // Whoever may not need not wait to hear it.
    may()?;
    let bytes = STANDARD
        .decode_to_vec(asked.data.as_bytes())
        .map_err(|_| RpcError::new(ErrorKind::InvalidParams, what.as_str(), "`data` is not base64"))?;
    drop(asked.data);
    value(
        &process
            .write(turn, asked.offset, &bytes, asked.close, may)
            .await?,
    )
}

/// The process, if this client may change it.
fn touched(client: &Client, process: &str, what: &str) -> Result<Arc<Supervised>, RpcError> {
    let process = client.find(process)?;
    client.daemon.may_touch(
        process.session,
        client.holder,
        &format!("{what} {}", process.id()),
    )?;
    Ok(process)
}

/// Said to nobody: the connection that asked has ended.
pub(super) fn gone() -> RpcError {
    RpcError::new(ErrorKind::Ended, "wait", "the client is gone")
}

pub(super) fn subscribe(client: &Client, window: Option<u64>) -> Result<Arc<Way>, RpcError> {
    let mut followers = lock(&client.followers);
    if followers.len() >= FOLLOWERS_MAX {
        let why = format!("this connection follows {FOLLOWERS_MAX} already");
        return Err(RpcError::new(ErrorKind::Limit, "follow", why).hint("`unfollow` some"));
    }
    let way = Arc::new(Way::new(client.daemon.next(), client.outbox.clone(), window));
    followers.insert(way.subscription, way.clone());
    Ok(way)
}

/// Takes a subscription out when it has ended by itself.
pub(super) async fn ending(client: Arc<Client>, subscription: u64, follow: impl Future<Output = ()>) {
    follow.await;
    // Who said `unfollow` has its answer.
    if lock(&client.followers).remove(&subscription).is_some() {
        let ended = Unfollow { subscription };
        client.outbox.send(&notification("follow/ended", &ended)).await;
    }
}

pub(super) fn behind(after: &mut After) -> oneshot::Receiver<()> {
    let (answered, behind) = oneshot::channel();
    after.answered = Some(answered);
    behind
}

/// `SIGTERM`, `TERM`, `term` or `15`.
pub(super) fn signal(text: &str) -> Result<Signal, RpcError> {
    let upper = text.to_ascii_uppercase();
    let named = || {
        upper
            .parse::<Signal>()
            .or_else(|_| format!("SIG{upper}").parse::<Signal>())
            .ok()
    };
    let numbered = || Signal::try_from(text.parse::<i32>().ok()?).ok();
    numbered().or_else(named).ok_or_else(|| {
        let what = format!("signal `{}`", text.escape_default());
        RpcError::new(ErrorKind::InvalidParams, what, "there is no such signal")
            .hint("want a name like TERM or SIGTERM, or a number")
    })
}

pub(super) fn value(answer: &impl Serialize) -> Answer {
    to_raw_value(answer).map_err(|error| RpcError::new(ErrorKind::Internal, "answer", error.to_string()))
}
