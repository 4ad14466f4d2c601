//! A connection to a daemon: requests, and the events that it follows.
//!
//! One connection carries requests and followers side by side. The daemon sends each follower so many events and waits until
//! some were taken: one that takes none holds up nothing but itself.

mod followed;
mod lasting;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use provost_actors::session::SessionId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

pub use followed::{Followed, Pushed};
pub use lasting::{Lasting, RECONNECT};

use crate::protocol::{
    ErrorKind, EventNotification, FRAME_BYTES_MAX, FollowGap, Following, Initialize, Initialized,
    InputLost, JobEventNotification, JobFollow, JobFollowing, PROTOCOL_VERSION, ProcessStart, RpcError,
    SessionEvent, Started,
};
use crate::{Event, EventBody, ProcessId, StreamName};

/// Events that the daemon sends a follower before some were taken.
const WINDOW: u64 = 256;

/// Why a request to a daemon came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error(
        "no daemon answers at {path}: {error}; start one with `provost serve`, or say where it is with --socket or PROVOST_SOCKET"
    )]
    Connect {
        /// The socket.
        path: String,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// This user may not connect to it.
    #[error(
        "the daemon's socket {path} is not for this user: {error}; its owner can open it to a group (`provost serve --group`), or start one of your own"
    )]
    NotPermitted {
        /// The socket.
        path: String,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// The connection ended, and no other one could be made in time.
    #[error(
        "the connection to the daemon is lost, and within {} it did not come back at {path}: {why}; what it supervises goes on, if it kept anything, with the next `provost serve`: ask again then",
        humantime::format_duration(*.patience)
    )]
    NotBack {
        /// The socket.
        path: String,
        /// How long was tried.
        patience: Duration,
        /// Why not, at last.
        why: String,
    },
    /// The connection ended. What was asked for may have been done.
    #[error("the connection to the daemon is lost")]
    Lost,
    /// The daemon says no.
    #[error("{}", .0.message)]
    Refused(#[from] Box<RpcError>),
    /// It says something that this client does not understand.
    #[error("the daemon's answer is not understood: {0}")]
    Answer(String),
}

/// A connection to a daemon. Clones share it; it ends with the last one and the last follower.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    lines: mpsc::UnboundedSender<Vec<u8>>,
    shared: Arc<Shared>,
    next: AtomicU64,
    server: Initialized,
    reading: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Dropped when nothing more comes: whoever waits for that is told.
    alive: watch::Receiver<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Set when the connection has ended.
    ended: bool,
    /// Sessions that it has to hold; after its end, those that it had.
    held: HashSet<SessionId>,
    replies: HashMap<u64, oneshot::Sender<Result<Box<RawValue>, RpcError>>>,
    followers: HashMap<u64, mpsc::UnboundedSender<Pushed>>,
    sessions: Option<mpsc::UnboundedSender<SessionEvent>>,
    inputs: Option<mpsc::UnboundedSender<InputLost>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Client {
    /// Connects to the socket of a daemon.
    ///
    /// # Errors
    /// Nobody listens there, or the daemon does not serve this client.
    pub async fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).await.map_err(|error| {
            let path = path.display().to_string();
            match error.kind() {
                io::ErrorKind::PermissionDenied => ClientError::NotPermitted { path, error },
                _ => ClientError::Connect { path, error },
            }
        })?;
        let (reader, writer) = stream.into_split();
        Self::over(reader, writer, None).await
    }

    /// The same over any pair of streams, such as those of `provost serve --stdio`. As another user: for root alone.
    ///
    /// # Errors
    /// The daemon does not serve this client.
    pub async fn over(
        reader: impl AsyncRead + Unpin + Send + 'static,
        writer: impl AsyncWrite + Unpin + Send + 'static,
        user: Option<String>,
    ) -> Result<Self, ClientError> {
        let (lines, mut waiting) = mpsc::unbounded_channel::<Vec<u8>>();
        tokio::spawn(async move {
            let mut writer = writer;
            while let Some(line) = waiting.recv().await {
                if writer.write_all(&line).await.is_err() || writer.flush().await.is_err() {
                    break;
                }
            }
        });
        let (living, alive) = watch::channel(());
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            alive,
        });
        let reading = tokio::spawn(read(reader, shared.clone(), living));
        let hello = Initialize {
            protocol: PROTOCOL_VERSION,
            client: format!("provost {}", env!("CARGO_PKG_VERSION")),
            user,
        };
        let answer = request(&lines, &shared, 0, "initialize", &hello).await;
        let server = match answer {
            Ok(server) => server,
            Err(error) => {
                reading.abort();
                return Err(error);
            }
        };
        Ok(Self(Arc::new(Inner {
            lines,
            shared,
            next: AtomicU64::new(1),
            server,
            reading,
        })))
    }

    /// What the daemon said of itself.
    pub fn server(&self) -> &Initialized {
        &self.0.server
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The daemon refuses, or the connection ends.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        params: &impl Serialize,
    ) -> Result<T, ClientError> {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        request(&self.0.lines, &self.0.shared, id, method, params).await
    }

    /// Says something that wants no answer.
    pub fn tell(&self, method: &str, params: &impl Serialize) {
        if let Some(line) = line(None, method, params) {
            let _ = self.0.lines.send(line);
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether the connection has ended.
    pub(crate) fn is_lost(&self) -> bool {
        self.0.shared.lock().ended
    }

    /// Waits until the connection has ended, and everything that came was handed on.
    pub(crate) async fn lost(&self) {
        let mut alive = self.0.shared.alive.clone();
        while alive.changed().await.is_ok() {}
    }

    /// Follows: `process/follow`, `session/follow`.
    ///
    /// # Errors
    /// As for [`Client::call`].
    pub async fn follow(&self, method: &str, params: &impl Serialize) -> Result<Followed, ClientError> {
        let (_, followed) = self
            .subscribe(method, params, |following: &Following| Some(*following))
            .await?;
        Ok(followed)
    }

    /// Follows changes of jobs; [`Followed::next_pushed`] gives them. The number behind which they begin comes with it.
    ///
    /// # Errors
    /// As for [`Client::call`].
    pub async fn follow_jobs(&self, asked: &JobFollow) -> Result<(u64, Followed), ClientError> {
        let following = |following: &JobFollowing| {
            Some(Following {
                subscription: following.subscription,
                paced: false,
            })
        };
        let (begun, followed) = self.subscribe("job/follow", asked, following).await?;
        Ok((begun.after_seq, followed))
    }

    /// Starts a process and follows it from its beginning, at this client's pace: nothing is missed.
    ///
    /// # Errors
    /// As for [`Client::call`].
    pub async fn start_following(
        &self,
        start: &ProcessStart,
    ) -> Result<(Started, Followed), ClientError> {
        let start = ProcessStart {
            follow: true,
            ..start.clone()
        };
        self.subscribe("process/start", &start, |started: &Started| started.following)
            .await
    }

    /// Asks for something whose answer says that events follow. Whoever stops waiting for the answer follows nothing.
    async fn subscribe<T: DeserializeOwned + Send + 'static>(
        &self,
        method: &str,
        params: &impl Serialize,
        following: fn(&T) -> Option<Following>,
    ) -> Result<(T, Followed), ClientError> {
        let (sender, events) = mpsc::unbounded_channel();
        let mut params =
            serde_json::to_value(params).map_err(|error| ClientError::Answer(error.to_string()))?;
        params["window"] = json!(WINDOW);
        let (client, method) = (self.clone(), method.to_owned());
        let (reply, answered) = oneshot::channel();
        tokio::spawn(async move {
            let id = client.0.next.fetch_add(1, Ordering::Relaxed);
            // Put there by whoever reads the answer, before it reads the first event.
            client.0.shared.lock().followers.insert(pending(id), sender);
            let answer = request(&client.0.lines, &client.0.shared, id, &method, &params).await;
            client.0.shared.lock().followers.remove(&pending(id));
            let answer = answer.and_then(|answer| match following(&answer) {
                Some(following) => {
                    let followed = Followed {
                        events,
                        taken: 0,
                        following,
                        client,
                    };
                    Ok((answer, followed))
                }
                None => Err(ClientError::Answer("it does not say what it follows".to_owned())),
            });
            let _ = reply.send(answer);
        });
        answered.await.unwrap_or(Err(ClientError::Lost))
    }

    /// What happens to the sessions that this connection has attached. One receiver at a time.
    pub fn session_events(&self) -> mpsc::UnboundedReceiver<SessionEvent> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.tell_session_events(sender);
        receiver
    }

    fn tell_session_events(&self, sender: mpsc::UnboundedSender<SessionEvent>) {
        let mut state = self.0.shared.lock();
        if !state.ended {
            state.sessions = Some(sender);
        }
    }

    /// Who takes over inputs that this connection has attached. One receiver at a time.
    pub fn lost_inputs(&self) -> mpsc::UnboundedReceiver<InputLost> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.tell_lost_inputs(sender);
        receiver
    }

    fn tell_lost_inputs(&self, sender: mpsc::UnboundedSender<InputLost>) {
        let mut state = self.0.shared.lock();
        if !state.ended {
            state.inputs = Some(sender);
        }
    }
}

/// Where a follower waits for its number: the upper half is never a subscription's.
fn pending(id: u64) -> u64 {
    id | 1 << 63
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn line(id: Option<u64>, method: &str, params: &impl Serialize) -> Option<Vec<u8>> {
    /// A [`Request`](crate::protocol::Request), without a tree of values in between.
    #[derive(Serialize)]
    struct Asked<'a, P> {
        jsonrpc: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        method: &'a str,
        params: &'a P,
    }
    let request = Asked {
        jsonrpc: "2.0",
        id,
        method,
        params,
    };
    let mut line = serde_json::to_vec(&request).ok()?;
    line.push(b'\n');
    Some(line)
}

async fn request<T: DeserializeOwned>(
    lines: &mpsc::UnboundedSender<Vec<u8>>,
    shared: &Shared,
    id: u64,
    method: &str,
    params: &impl Serialize,
) -> Result<T, ClientError> {
    let line = line(Some(id), method, params).ok_or_else(|| {
        ClientError::Answer(format!(
            "what was to be asked of {method} cannot be written as JSON"
        ))
    })?;
    if line.len() > FRAME_BYTES_MAX {
        let why = format!(
            "a request has at most {FRAME_BYTES_MAX} bytes, and this one {}",
            line.len()
        );
        let error = RpcError::new(ErrorKind::FrameTooLarge, method, why);
        return Err(ClientError::Refused(Box::new(error)));
    }
    let (reply, answered) = oneshot::channel();
    {
        let mut state = shared.lock();
        if state.ended {
            return Err(ClientError::Lost);
        }
        state.replies.insert(id, reply);
    }
    lines.send(line).map_err(|_| ClientError::Lost)?;
    let answer = answered.await.map_err(|_| ClientError::Lost)?;
    let result = answer.map_err(Box::new)?;
    serde_json::from_str(result.get()).map_err(|error| ClientError::Answer(error.to_string()))
}

/// A notification.
#[derive(Deserialize)]
struct Incoming {
    method: String,
    #[serde(default)]
    params: Value,
}

/// A [`Reply`](crate::protocol::Reply), of which only whoever asked knows what its result is.
#[derive(Deserialize)]
struct Replied {
    id: Option<u64>,
    #[serde(default)]
    result: Option<Box<RawValue>>,
    #[serde(default)]
    error: Option<RpcError>,
}

async fn read(reader: impl AsyncRead + Unpin, shared: Arc<Shared>, _living: watch::Sender<()>) {
    let mut reader = BufReader::with_capacity(256 << 10, reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        take(&line, &shared);
    }
    let mut state = shared.lock();
    state.ended = true;
    state.replies.clear();
    state.followers.clear();
    state.sessions = None;
    state.inputs = None;
}

fn take(line: &[u8], shared: &Shared) {
    /// Read first of all, for there are many.
    #[derive(Deserialize)]
    struct Notified {
        method: String,
        params: EventNotification,
    }
    /// The one kind of which there may be gigabytes, read without a copy.
    #[derive(Deserialize)]
    struct Output<'a> {
        #[serde(borrow)]
        params: OutputParams<'a>,
    }
    #[derive(Deserialize)]
    struct OutputParams<'a> {
        subscription: u64,
        #[serde(default)]
        session: Option<SessionId>,
        #[serde(borrow)]
        event: OutputEvent<'a>,
    }
    #[derive(Deserialize)]
    struct OutputEvent<'a> {
        process: ProcessId,
        seq: u64,
        time: jiff::Timestamp,
        stream: StreamName,
        offset: u64,
        data: &'a str,
    }
    if let Ok(Output { params }) = serde_json::from_slice::<Output<'_>>(line)
        && let Ok(data) = base64_simd::STANDARD.decode_to_vec(params.event.data)
    {
        let event = Event {
            process: params.event.process,
            seq: params.event.seq,
            time: params.event.time,
            body: EventBody::Output {
                stream: params.event.stream,
                offset: params.event.offset,
                data: data.into(),
            },
        };
        let follower = shared.lock().followers.get(&params.subscription).cloned();
        if let Some(follower) = follower {
            let _ = follower.send(Pushed::Event(params.session, event));
        }
        return;
    }
    if let Ok(reply) = serde_json::from_slice::<Replied>(line)
        && (reply.id.is_some() || reply.error.is_some())
    {
        return answered(reply, shared);
    }
    if let Ok(Notified { method, params }) = serde_json::from_slice::<Notified>(line)
        && method == "process/event"
    {
        let follower = shared.lock().followers.get(&params.subscription).cloned();
        if let Some(follower) = follower {
            let _ = follower.send(Pushed::Event(params.session, params.event));
        }
        return;
    }
    let Ok(incoming) = serde_json::from_slice::<Incoming>(line) else {
        return;
    };
    match incoming.method.as_str() {
        "session/event" => {
            let Ok(event) = serde_json::from_value::<SessionEvent>(incoming.params) else {
                return;
            };
            let mut state = shared.lock();
            match event
                .subscription
                .map(|subscription| state.followers.get(&subscription))
            {
                None => {
                    // Somebody else's now, or nobody's: not to be taken back on another connection.
                    state.held.remove(&event.session);
                    drop(state.sessions.as_ref().map(|sessions| sessions.send(event)));
                }
                Some(Some(follower)) => {
                    let _ = follower.send(Pushed::Session(event));
                }
                Some(None) => {}
            }
        }
        "job/event" => {
            if let Ok(JobEventNotification { subscription, event }) =
                serde_json::from_value(incoming.params)
                && let Some(follower) = shared.lock().followers.get(&subscription)
            {
                let _ = follower.send(Pushed::Job(Box::new(event)));
            }
        }
        "follow/gap" => {
            if let Ok(gap) = serde_json::from_value::<FollowGap>(incoming.params)
                && let Some(follower) = shared.lock().followers.get(&gap.subscription)
            {
                let _ = follower.send(Pushed::Gap(gap));
            }
        }
        "input/lost" => {
            if let (Ok(lost), Some(inputs)) =
                (serde_json::from_value(incoming.params), &shared.lock().inputs)
            {
                let _ = inputs.send(lost);
            }
        }
        "follow/ended" => {
            if let Some(subscription) = incoming.params["subscription"].as_u64() {
                shared.lock().followers.remove(&subscription);
            }
        }
        _ => {}
    }
}

fn answered(reply: Replied, shared: &Shared) {
    /// What begins to be followed, by itself or with a start.
    #[derive(Deserialize)]
    struct Subscribed {
        subscription: Option<u64>,
    }
    // Where no id could be read, it was that of the first request.
    let id = reply.id.unwrap_or(0);
    let mut state = shared.lock();
    if let Some(events) = state.followers.remove(&pending(id))
        && let Some(result) = &reply.result
        && let Ok(Subscribed {
            subscription: Some(subscription),
        }) = serde_json::from_str(result.get())
    {
        state.followers.insert(subscription, events);
    }
    if let Some(waiting) = state.replies.remove(&id) {
        let _ = waiting.send(match (reply.error, reply.result) {
            (Some(error), _) => Err(error),
            (None, result) => Ok(result.unwrap_or_else(|| RawValue::NULL.to_owned())),
        });
    }
}
