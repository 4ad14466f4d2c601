//! One connection: lines in, lines out. Requests are worked on side by side and never wait for each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use provost_actors::session::Holder;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use tokio_util::task::TaskTracker;

use super::follow::Way;
use super::outbox::Outbox;
use super::peer::ConfinedPeers;
use super::requests;
use super::{Daemon, Peer};
use crate::protocol::{ErrorKind, Reply, Request, RpcError};

/// How long a client may take to say who it is.
const INTRODUCTION: Duration = Duration::from_secs(10);
/// Lines that make no sense, before a client is sent away.
const NONSENSE_MAX: u32 = 16;
/// Followers of one connection.
pub(super) const FOLLOWERS_MAX: usize = 1024;

/// What the requests of one connection share.
pub(super) struct Client {
    pub(super) daemon: Daemon,
    pub(super) holder: Holder,
    pub(super) outbox: Outbox,
    /// It is confined itself, and gets what is set for such clients.
    pub(super) confined: bool,
    /// By subscription.
    pub(super) followers: Mutex<HashMap<u64, Arc<Way>>>,
    /// Followers and requests.
    pub(super) tasks: TaskTracker,
}

/// Serves a client that connected to the socket.
pub(super) async fn serve(daemon: Daemon, stream: UnixStream) {
    let peer = match Peer::of(&stream) {
        Ok(peer) => peer,
        Err(error) => return tracing::debug!(%error, "a client that cannot be looked at"),
    };
    let refusal = daemon.refusal(&peer);
    let (reader, writer) = stream.into_split();
    if let Some(error) = refusal {
        tracing::info!(
            pid = peer.pid,
            uid = peer.uid,
            why = error.data.why,
            "refused a client"
        );
        let (outbox, write) = Outbox::new(writer);
        outbox.push(&reply(Value::Null, Err(error)));
        drop(outbox);
        return write.await;
    }
    talk(daemon, reader, writer, peer.confined.is_some()).await;
}

/// Talks to a client until it or the daemon ends.
pub(super) async fn talk(
    daemon: Daemon,
    reader: impl AsyncRead + Unpin + Send + 'static,
    writer: impl AsyncWrite + Unpin + Send + 'static,
    confined: bool,
) {
    let (outbox, write) = Outbox::new(writer);
    let writing = tokio::spawn(write);
    let holder = Holder(daemon.next());
    daemon.state().holders.insert(holder, outbox.clone());
    let client = Arc::new(Client {
        daemon: daemon.clone(),
        holder,
        outbox,
        confined,
        followers: Mutex::default(),
        tasks: TaskTracker::new(),
    });
    let ended = daemon.0.ended.clone();
    tokio::select! {
        () = listen(&client, reader) => {}
        () = client.outbox.closed() => {}
        () = ended.cancelled() => {}
    }
    // What it held is given up first: whoever waits for that sees it at once.
    daemon.disconnect(holder);
    for (_, way) in super::lock(&client.followers).drain() {
        way.cancel();
    }
    client.tasks.close();
    drop(client);
    // The last replies are written, if the client still reads.
    let _ = tokio::time::timeout(super::GOODBYE, writing).await;
}

async fn listen(client: &Arc<Client>, reader: impl AsyncRead + Unpin) {
    let settings = client.daemon.settings();
    let mut lines = FramedRead::new(reader, LinesCodec::new_with_max_length(settings.frame_bytes_max));
    let in_flight = Arc::new(Semaphore::new(settings.requests_max));
    let mut introduced = false;
    let mut nonsense = 0;
    loop {
        let next = async {
            match introduced {
                true => lines.next().await,
                // Whoever connects and says nothing holds a place that others want.
                false => tokio::time::timeout(INTRODUCTION, lines.next())
                    .await
                    .unwrap_or(None),
            }
        };
        let line = match next.await {
            Some(Ok(line)) => line,
            Some(Err(LinesCodecError::MaxLineLengthExceeded)) => {
                let why = format!("it is longer than {} bytes", settings.frame_bytes_max);
                let error = RpcError::new(ErrorKind::FrameTooLarge, "read a line", why);
                client.outbox.push(&reply(Value::Null, Err(error)));
                return;
            }
            Some(Err(LinesCodecError::Io(error))) if error.kind() == std::io::ErrorKind::InvalidData => {
                let error = RpcError::new(ErrorKind::Parse, "read a line", "it is not UTF-8");
                client.outbox.push(&reply(Value::Null, Err(error)));
                return;
            }
            Some(Err(_)) | None => return,
        };
        let request = match read(&line) {
            Ok(request) => request,
            Err((id, error)) => {
                nonsense += 1;
                client.outbox.push(&reply(id, Err(error)));
                if nonsense >= NONSENSE_MAX {
                    return;
                }
                continue;
            }
        };
        let id = request.id.clone();
        if !introduced {
            let answer = requests::initialize(client, &request);
            introduced = answer.is_ok();
            client.outbox.push(&reply(id.unwrap_or_default(), answer));
            if !introduced {
                return;
            }
            continue;
        }
        // Takes no time, and frees what others wait for.
        if request.method == "ack" {
            let answer = requests::ack(client, request);
            if let Some(id) = id {
                client.outbox.push(&reply(id, answer));
            }
            continue;
        }
        let Ok(place) = in_flight.clone().try_acquire_owned() else {
            let why = format!("{} are in work already", settings.requests_max);
            let error =
                RpcError::new(ErrorKind::Limit, request.method, why).hint("wait for answers first");
            if !client
                .outbox
                .send(&reply(id.unwrap_or_default(), Err(error)))
                .await
            {
                return;
            }
            continue;
        };
        // What must be in the order of the lines is taken before the requests part.
        let prepared = requests::prepare(client, request);
        let working = client.clone();
        client.tasks.spawn(async move {
            let mut after = None;
            let answer = requests::answer(&working, prepared, &mut after).await;
            if let Some(id) = id {
                working.outbox.send(&reply(id, answer)).await;
            }
            drop((after, place));
        });
    }
}

/// A request, or what to answer to a line that is none, and under which id.
fn read(line: &str) -> Result<Request, (Value, RpcError)> {
    let value: Value = serde_json::from_str(line).map_err(|error| {
        let error = RpcError::new(ErrorKind::Parse, "read a line", format!("it is no JSON: {error}"));
        (Value::Null, error)
    })?;
    let id = value
        .get("id")
        .filter(|id| id.is_string() || id.is_number())
        .cloned();
    let invalid = |why: String| {
        let error = RpcError::new(ErrorKind::InvalidRequest, "read a request", why);
        (id.clone().unwrap_or_default(), error)
    };
    if value.get("jsonrpc") != Some(&json!("2.0")) {
        return Err(invalid(
            "`jsonrpc` is not \"2.0\" (batches are not read)".to_owned(),
        ));
    }
    if value.get("id").is_some() && id.is_none() {
        return Err(invalid("`id` is neither a string nor a number".to_owned()));
    }
    serde_json::from_value(value.clone()).map_err(|error| invalid(error.to_string()))
}

pub(super) fn reply(id: Value, answer: Result<Value, RpcError>) -> Reply {
    let (result, error) = match answer {
        Ok(result) => (Some(result), None),
        Err(error) => (None, Some(error)),
    };
    Reply {
        jsonrpc: "2.0".to_owned(),
        id,
        result,
        error,
    }
}

/// A message that wants no answer.
#[derive(Serialize)]
pub(super) struct Notification<'a, T> {
    jsonrpc: &'static str,
    method: &'static str,
    params: &'a T,
}

pub(super) fn notification<'a, T: Serialize>(
    method: &'static str,
    params: &'a T,
) -> Notification<'a, T> {
    Notification {
        jsonrpc: "2.0",
        method,
        params,
    }
}

impl Daemon {
    /// Why a client is not served, if it is not.
    fn refusal(&self, peer: &Peer) -> Option<RpcError> {
        let settings = self.settings();
        let what = "connect";
        if peer.uid != self.0.account.uid && peer.uid != 0 {
            let why = format!("this daemon serves uid {}", self.0.account.uid);
            return Some(RpcError::new(ErrorKind::Forbidden, what, why));
        }
        if let (Some(why), ConfinedPeers::Refuse) = (&peer.confined, &settings.confined_peers) {
            let why = format!("the client is confined itself: {why}");
            return Some(RpcError::new(ErrorKind::Forbidden, what, why).hint(
                "set confined_peers in the daemon's configuration to the policy that such clients may use",
            ));
        }
        let clients = self.0.clients.load(std::sync::atomic::Ordering::Relaxed);
        if clients > settings.clients_max {
            let why = format!("{} clients are connected already", settings.clients_max);
            return Some(
                RpcError::new(ErrorKind::Limit, what, why).hint("try again when some have gone"),
            );
        }
        None
    }
}
