//! One connection: lines in, lines out. Requests are worked on side by side and never wait for each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use provost_actors::session::Holder;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use tokio_util::task::TaskTracker;

use super::follow::Way;
use super::leave;
use super::line::{Id, Line};
use super::outbox::Outbox;
use super::peer::ConfinedPeers;
use super::requests::{self, After};
use super::{Connected, Daemon, Peer};
use crate::protocol::{ErrorKind, RpcError};

/// How long a client may take to say who it is.
const INTRODUCTION: Duration = Duration::from_secs(10);
/// Lines that make no sense, before a client is sent away.
const NONSENSE_MAX: u32 = 16;
/// Large answers that a client has made the daemon make and has not read.
const LARGE_ANSWERS_MAX: usize = 2;
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
    /// Large answers that are made and not on their way yet.
    pub(super) large: Arc<Semaphore>,
}

/// Serves a client that connected to the socket.
pub(super) async fn serve(daemon: Daemon, stream: UnixStream) {
    let peer = match Peer::of(&stream) {
        Ok(peer) => peer,
        Err(error) => return tracing::debug!(%error, "a client that cannot be looked at"),
    };
    let refusal = daemon.refusal(&peer);
    // Whoever is refused takes nobody's place.
    let count = match refusal {
        Some(error) => Err(error),
        None => daemon.count_client(),
    };
    let (reader, writer) = stream.into_split();
    let _count = match count {
        Ok(count) => count,
        Err(error) => {
            tracing::info!(
                pid = peer.pid,
                uid = peer.uid,
                why = error.data.why,
                "refused a client"
            );
            let (outbox, write) = Outbox::new(writer);
            outbox.push(&reply(Id::default(), Err(error)));
            drop(outbox);
            return write.await;
        }
    };
    let who = format!("pid {}", peer.pid);
    talk(daemon, reader, writer, who, peer.confined.is_some()).await;
}

/// Talks to a client until it or the daemon ends.
pub(super) async fn talk(
    daemon: Daemon,
    reader: impl AsyncRead + Unpin + Send + 'static,
    writer: impl AsyncWrite + Unpin + Send + 'static,
    who: String,
    confined: bool,
) {
    let (outbox, write) = Outbox::new(writer);
    let mut writing = tokio::spawn(write);
    let holder = Holder(daemon.next());
    let connected = Connected {
        outbox: outbox.clone(),
        who,
    };
    daemon.state().holders.insert(holder, connected);
    let client = Arc::new(Client {
        daemon: daemon.clone(),
        holder,
        outbox,
        confined,
        followers: Mutex::default(),
        tasks: TaskTracker::new(),
        large: Arc::new(Semaphore::new(LARGE_ANSWERS_MAX)),
    });
    let ended = daemon.0.ended.clone();
    let leaving = daemon.0.leaving.begun.clone();
    let answers = TaskTracker::new();
    let patience = tokio::select! {
        () = listen(&client, &answers, reader) => super::GOODBYE,
        () = client.outbox.closed() => super::GOODBYE,
        () = ended.cancelled() => super::GOODBYE,
        () = leaving.cancelled() => {
            leave::say_goodbye(&client, &answers).await;
            leave::last_words()
        }
    };
    // What it held is given up first: whoever waits for that sees it at once.
    daemon.disconnect(holder);
    for (_, way) in super::lock(&client.followers).drain() {
        way.cancel();
    }
    client.tasks.close();
    drop(client);
    // The last replies are written, if the client still reads. Requests that wait would keep the socket open for longer.
    if tokio::time::timeout(patience, &mut writing).await.is_err() {
        writing.abort();
    }
}

async fn listen(client: &Arc<Client>, answers: &TaskTracker, reader: impl AsyncRead + Unpin) {
    let settings = client.daemon.settings();
    let mut lines = FramedRead::new(reader, LinesCodec::new_with_max_length(settings.frame_bytes_max));
    let in_flight = Arc::new(Semaphore::new(settings.requests_max));
    let bytes_max = 2 * settings.frame_bytes_max;
    let bytes = Arc::new(Semaphore::new(bytes_max));
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
                client.outbox.push(&reply(Id::default(), Err(error)));
                return;
            }
            Some(Err(LinesCodecError::Io(error))) if error.kind() == std::io::ErrorKind::InvalidData => {
                let error = RpcError::new(ErrorKind::Parse, "read a line", "it is not UTF-8");
                client.outbox.push(&reply(Id::default(), Err(error)));
                return;
            }
            Some(Err(_)) | None => return,
        };
        let request = match Line::read(&line) {
            Ok(request) => request,
            Err(refused) => {
                let (id, error) = *refused;
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
        if let Some(answer) = requests::at_once(client, &request) {
            if let Some(id) = id
                && !client.outbox.send(&reply(id, answer)).await
            {
                return;
            }
            continue;
        }
        // Blocked writes keep what they hold: many of them are as bad as one that is too long.
        let size = u32::try_from(line.len()).unwrap_or(u32::MAX);
        drop(line);
        let place = in_flight.clone().try_acquire_owned();
        let room = bytes.clone().try_acquire_many_owned(size);
        let (Ok(place), Ok(room)) = (place, room) else {
            let why = format!(
                "{} requests or {bytes_max} bytes of them are in work already",
                settings.requests_max
            );
            let error =
                RpcError::new(ErrorKind::Limit, request.method, why).hint("wait for answers first");
            let answer = reply(id.unwrap_or_default(), Err(error));
            if !client.outbox.send(&answer).await {
                return;
            }
            continue;
        };
        let waits = leave::waits(&request.method);
        // What must be in the order of the lines is taken before the requests part.
        let prepared = requests::prepare(client, request);
        let working = client.clone();
        let finished = (!waits).then(|| answers.token());
        client.tasks.spawn(async move {
            let mut after = After::default();
            let leaving = working.daemon.0.leaving.begun.clone();
            let answer = tokio::select! {
                answer = requests::answer(&working, prepared, &mut after) => answer,
                // Whoever waits goes on waiting elsewhere.
                () = leaving.cancelled(), if waits => return,
            };
            working.daemon.settle(working.holder);
            if let Some(id) = id {
                working.outbox.answer(&reply(id, answer), (place, room)).await;
            }
            drop((after, finished));
        });
    }
}

/// What the daemon answers.
#[derive(Serialize)]
pub(super) struct Answered {
    jsonrpc: &'static str,
    id: Id,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<RpcError>,
}

pub(super) fn reply(id: Id, answer: Result<Box<RawValue>, RpcError>) -> Answered {
    let (result, error) = match answer {
        Ok(result) => (Some(result), None),
        Err(error) => (None, Some(error)),
    };
    Answered {
        jsonrpc: "2.0",
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
            let why = "this daemon serves another user";
            return Some(RpcError::new(ErrorKind::Forbidden, what, why));
        }
        if let (Some(why), ConfinedPeers::Refuse) = (&peer.confined, &settings.confined_peers) {
            let why = format!("the client is confined itself: {why}");
            return Some(RpcError::new(ErrorKind::Forbidden, what, why).hint(
                "set confined_peers in the daemon's configuration to the policy that such clients may use",
            ));
        }
        None
    }
}
