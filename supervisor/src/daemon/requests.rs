//! What each method does.

use std::sync::Arc;
use std::time::Duration;

use base64_simd::STANDARD;
use nix::sys::signal::Signal;
use provost_actors::ProcessCommand;
use provost_actors::approval::{ApprovalScope, Verdict};
use provost_sandbox::keeper::wire::SignalScope;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::connection::{Client, FOLLOWERS_MAX, notification};
use super::follow::Way;
use super::processes::{Supervised, Turn};
use super::{follow, lock};
use crate::protocol::{
    Ack, ApprovalDecide, ErrorKind, Following, Initialize, Initialized, PROTOCOL_VERSION, ProcessFollow,
    ProcessList, ProcessPrune, ProcessRead, ProcessRef, ProcessResize, ProcessSignal, ProcessStart,
    ProcessStop, ProcessWait, ProcessWrite, Request, RpcError, SessionAttach, SessionClose,
    SessionFollow, SessionRef, Started, Told, Unfollow, Waited,
};

type Answer = Result<Value, RpcError>;

/// A request whose place in the order of its kind is taken.
pub(super) struct Prepared {
    request: Request,
    write: Option<Result<(Arc<Supervised>, Turn, ProcessWrite), RpcError>>,
}

/// Takes the place of what must happen in the order in which it was asked for: writes to the same process.
pub(super) fn prepare(client: &Client, mut request: Request) -> Prepared {
    let write = (request.method == "process/write").then(|| {
        let write: ProcessWrite = params(&mut request)?;
        let process = client.daemon.find(&write.process)?;
        let turn = process.turn();
        Ok((process, turn, write))
    });
    Prepared { request, write }
}

/// The first request.
pub(super) fn initialize(client: &Client, request: &Request) -> Answer {
    let what = "initialize";
    if request.method != what {
        let why = format!("the first request is `{}`", request.method);
        return Err(RpcError::new(ErrorKind::InvalidRequest, what, why).hint("begin with `initialize`"));
    }
    let asked: Initialize = params(&mut request.clone())?;
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

/// A client has taken events.
pub(super) fn ack(client: &Client, mut request: Request) -> Answer {
    let asked: Ack = params(&mut request)?;
    let known = lock(&client.followers).get(&asked.subscription).cloned();
    if let Some(way) = &known {
        way.ack(asked.events);
    }
    Ok(json!({ "following": known.is_some() }))
}

/// Answers a request. What is to begin only behind the answer waits until `after` is dropped.
pub(super) async fn answer(
    client: &Arc<Client>,
    prepared: Prepared,
    after: &mut Option<oneshot::Sender<()>>,
) -> Answer {
    let Prepared { mut request, write } = prepared;
    if let Some(write) = write {
        return self::write(client, write?).await;
    }
    let daemon = &client.daemon;
    let request = &mut request;
    match request.method.as_str() {
        "session/open" => {
            let id = daemon.open_session(params(request)?, client.holder).await?;
            Ok(json!({ "session": id }))
        }
        "session/detach" => {
            let asked: SessionRef = params(request)?;
            value(&daemon.detach_session(&asked.session, client.holder)?)
        }
        "session/attach" => {
            let asked: SessionAttach = params(request)?;
            value(&daemon.attach_sessions(&asked, client.holder)?)
        }
        "session/list" => value(&daemon.list_sessions(client.holder)),
        "session/close" => {
            let asked: SessionClose = params(request)?;
            value(&daemon.close_sessions(&asked, client.holder, false).await?)
        }
        "session/clean" => {
            let asked: SessionClose = params(request)?;
            value(&daemon.close_sessions(&asked, client.holder, true).await?)
        }
        "session/follow" => {
            let asked: SessionFollow = params(request)?;
            let id = daemon.find_session(&asked.session)?;
            let way = subscribe(client, asked.window)?;
            let (daemon, behind, following) = (daemon.clone(), behind(after), way.clone());
            client
                .tasks
                .spawn(ending(client.clone(), way.subscription, async move {
                    let _ = behind.await;
                    follow::session(daemon, id, following).await;
                }));
            value(&Following {
                subscription: way.subscription,
                paced: false,
            })
        }
        "process/start" => {
            let asked: ProcessStart = params(request)?;
            start(client, asked, after).await
        }
        "process/read" => {
            let asked: ProcessRead = params(request)?;
            value(&daemon.find(&asked.process)?.read(&asked).await)
        }
        "process/follow" => {
            let asked: ProcessFollow = params(request)?;
            let process = daemon.find(&asked.process)?;
            let way = subscribe(client, asked.window)?;
            let (behind, following) = (behind(after), way.clone());
            client
                .tasks
                .spawn(ending(client.clone(), way.subscription, async move {
                    let _ = behind.await;
                    follow::process(process, asked.after_seq, asked.paced, following).await;
                }));
            value(&Following {
                subscription: way.subscription,
                paced: asked.paced,
            })
        }
        "unfollow" => {
            let asked: Unfollow = params(request)?;
            let known = lock(&client.followers).remove(&asked.subscription);
            if let Some(way) = &known {
                way.cancel();
            }
            Ok(json!({ "was_following": known.is_some() }))
        }
        "process/resize" => {
            let asked: ProcessResize = params(request)?;
            let what = format!("resize {}", asked.process);
            let process = touched(client, &asked.process, &what)?;
            resize(&process, &asked, what).await
        }
        "process/signal" => {
            let asked: ProcessSignal = params(request)?;
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
            let asked: ProcessStop = params(request)?;
            let process = touched(client, &asked.process, "stop")?;
            let reason = asked.reason.unwrap_or_else(|| "a client asked for it".to_owned());
            let told = process.link.tell(ProcessCommand::Stop { reason });
            value(&Told { told })
        }
        "process/kill" => {
            let asked: ProcessStop = params(request)?;
            let process = touched(client, &asked.process, "kill")?;
            let reason = asked.reason.unwrap_or_else(|| "a client asked for it".to_owned());
            let told = process.link.tell(ProcessCommand::Kill { reason });
            value(&Told { told })
        }
        "process/wait" => {
            let asked: ProcessWait = params(request)?;
            let process = daemon.find(&asked.process)?;
            let record = process.link.log().sealed();
            let record = match asked.timeout_ms {
                Some(millis) => {
                    let patience = Duration::from_millis(millis);
                    tokio::time::timeout(patience, record).await.ok()
                }
                None => Some(record.await),
            };
            value(&Waited {
                record: record.map(|record| Box::new((*record).clone())),
            })
        }
        "process/list" => {
            let asked: ProcessList = params(request)?;
            value(&daemon.list(&asked)?)
        }
        "process/inspect" => {
            let asked: ProcessRef = params(request)?;
            let process = daemon.find(&asked.process)?;
            let mut info = value(&process.info())?;
            info["retained_bytes"] = json!(process.retained());
            info["record"] = value(&process.link.log().record().as_deref())?;
            Ok(info)
        }
        "process/prune" => {
            let asked: ProcessPrune = params(request)?;
            Ok(json!({ "forgotten": daemon.prune(&asked)? }))
        }
        "approval/decide" => {
            let asked: ApprovalDecide = params(request)?;
            let process = touched(client, &asked.process, "decide")?;
            let (reply, decided) = oneshot::channel();
            let verdict = match asked.allow {
                true => Verdict::Allow(asked.scope.unwrap_or(ApprovalScope::Once)),
                false => Verdict::Deny,
            };
            let told = process.link.tell(ProcessCommand::Decide {
                approval: asked.approval,
                verdict,
                by: asked.by.unwrap_or_else(|| "client".to_owned()),
                reply,
            });
            let told = told && decided.await.unwrap_or(false);
            value(&Told { told })
        }
        "policy/check" => {
            #[derive(serde::Deserialize)]
            #[serde(deny_unknown_fields)]
            struct Check {
                policy: String,
                cwd: String,
            }
            let asked: Check = params(request)?;
            let loaded = daemon.policy(&asked.policy, std::path::Path::new(&asked.cwd))?;
            Ok(
                json!({ "name": loaded.policy.name, "layers": loaded.layers, "warnings": loaded.warnings }),
            )
        }
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

/// Starts a process, and follows it if that is asked for.
async fn start(
    client: &Arc<Client>,
    asked: ProcessStart,
    after: &mut Option<oneshot::Sender<()>>,
) -> Answer {
    let daemon = &client.daemon;
    if !asked.follow {
        return value(&daemon.start(asked, client.holder, client.confined).await?);
    }
    let way = subscribe(client, asked.window)?;
    let started = daemon.start(asked, client.holder, client.confined).await;
    let found = started.and_then(|started| Ok((daemon.find(&started.process.to_string())?, started)));
    let (process, started) = found.inspect_err(|_| {
        lock(&client.followers).remove(&way.subscription);
    })?;
    // Taken at once, for the process waits for it; gone with the client.
    let cursor = process.link.log().follow(0, true);
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

async fn write(
    client: &Client,
    (process, turn, asked): (Arc<Supervised>, Turn, ProcessWrite),
) -> Answer {
    let what = format!("write to {}", process.id());
    client.daemon.may_touch(process.session, client.holder, &what)?;
    let bytes = STANDARD.decode_to_vec(asked.data.as_bytes());
    let bytes =
        bytes.map_err(|_| RpcError::new(ErrorKind::InvalidParams, what, "`data` is not base64"))?;
    value(&process.write(turn, asked.offset, &bytes, asked.close).await?)
}

async fn resize(process: &Supervised, asked: &ProcessResize, what: String) -> Answer {
    let size = crate::TerminalSize {
        rows: asked.rows,
        cols: asked.cols,
    };
    match process.link.resize(size).await {
        Ok(()) => Ok(json!({})),
        Err(error) => Err(RpcError::new(ErrorKind::Refused, what, error.to_string())),
    }
}

/// The process, if this client may change it.
fn touched(client: &Client, process: &str, what: &str) -> Result<Arc<Supervised>, RpcError> {
    let process = client.daemon.find(process)?;
    client.daemon.may_touch(
        process.session,
        client.holder,
        &format!("{what} {}", process.id()),
    )?;
    Ok(process)
}

fn subscribe(client: &Client, window: Option<u64>) -> Result<Arc<Way>, RpcError> {
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
async fn ending(client: Arc<Client>, subscription: u64, follow: impl Future<Output = ()>) {
    follow.await;
    // Who said `unfollow` has its answer.
    if lock(&client.followers).remove(&subscription).is_some() {
        let ended = Unfollow { subscription };
        client.outbox.send(&notification("follow/ended", &ended)).await;
    }
}

fn behind(after: &mut Option<oneshot::Sender<()>>) -> oneshot::Receiver<()> {
    let (answered, behind) = oneshot::channel();
    *after = Some(answered);
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

fn params<T: DeserializeOwned>(request: &mut Request) -> Result<T, RpcError> {
    let params = match request.params.take() {
        Value::Null => json!({}),
        params => params,
    };
    serde_json::from_value(params).map_err(|error| {
        RpcError::new(
            ErrorKind::InvalidParams,
            request.method.clone(),
            error.to_string(),
        )
    })
}

fn value(answer: &impl Serialize) -> Answer {
    serde_json::to_value(answer)
        .map_err(|error| RpcError::new(ErrorKind::Internal, "answer", error.to_string()))
}
