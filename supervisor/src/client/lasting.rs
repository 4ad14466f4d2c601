//! A daemon over one connection after another: what is lost with one is taken up again on the next.
//!
//! A connection ends when the daemon dies or is replaced. What it supervises goes on, and so can its clients: events have
//! numbers behind which one can go on, sessions and inputs can be attached again, and most requests may be made twice.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64_simd::STANDARD;
use provost_actors::session::SessionId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Client, ClientError, Followed};
use crate::protocol::{
    ErrorKind, InputLost, JobFollow, ProcessAttach, ProcessAttached, ProcessFollow, ProcessStart,
    ProcessWrite, SessionAttach, SessionEvent, SessionsMoved, SkippedSession, Started, Written,
};

/// How long a client waits for its daemon to come back, unless it says otherwise.
pub const RECONNECT: Duration = Duration::from_secs(30);
/// Between the first two attempts; twice as long each time, up to the most. A daemon that is away tells nobody that it is back.
const PAUSE: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Bytes of one write.
const PIECE: usize = 64 << 10;

/// A daemon, and the connection to it that there is now. Clones share it.
#[derive(Debug, Clone)]
pub struct Lasting(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Where to connect again; absent where that cannot be done.
    path: Option<PathBuf>,
    patience: Duration,
    /// Told that it takes a while.
    note: Option<fn(&str)>,
    renewing: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// It knows which sessions it holds, and the next one is to hold.
    client: Client,
    /// Who is told what becomes of those.
    session_events: Option<mpsc::UnboundedSender<SessionEvent>>,
    /// Those of the connection before that this one could not attach.
    not_taken_back: Vec<SkippedSession>,
    /// Whose input the connection has, and the next one is to have.
    inputs: HashSet<String>,
    /// Who is told when an input is lost.
    lost_inputs: Option<mpsc::UnboundedSender<InputLost>>,
}

impl Lasting {
    /// Connects. From then on a lost connection is made again, for at most `patience`: not at all if that is zero. `note` is
    /// told when the daemon is not back at once.
    ///
    /// # Errors
    /// As of [`Client::connect`].
    pub async fn connect(
        path: &Path,
        patience: Duration,
        note: Option<fn(&str)>,
    ) -> Result<Self, ClientError> {
        let deadline = Instant::now() + patience;
        let (mut there, mut pause) = (false, PAUSE);
        let client = loop {
            match Client::connect(path).await {
                // It went in that moment, and so it may come back.
                Err(ClientError::Lost) if Instant::now() < deadline => there = true,
                Err(error) if there && passes(&error) && Instant::now() < deadline => {}
                connected => break connected?,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        };
        Ok(Self::new(client, Some(path.to_owned()), patience, note))
    }

    /// A connection that is not made again.
    pub fn once(client: Client) -> Self {
        Self::new(client, None, Duration::ZERO, None)
    }

    fn new(client: Client, path: Option<PathBuf>, patience: Duration, note: Option<fn(&str)>) -> Self {
        let state = State {
            client,
            session_events: None,
            not_taken_back: Vec::new(),
            inputs: HashSet::new(),
            lost_inputs: None,
        };
        Self(Arc::new(Inner {
            path,
            patience,
            note,
            renewing: tokio::sync::Mutex::default(),
            state: Mutex::new(state),
        }))
    }

    /// A lost connection is made again.
    pub fn lasts(&self) -> bool {
        self.0.path.is_some() && !self.0.patience.is_zero()
    }

    /// The connection that there is now, or was last.
    pub fn client(&self) -> Client {
        self.lock().client.clone()
    }

    /// Asks for what may be asked twice: again over the next connection after one was lost.
    ///
    /// # Errors
    /// The daemon refuses, or does not come back.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        params: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.call_with(method, || params).await
    }

    /// The same with parameters that are made anew each time, as where they say how much time is left.
    ///
    /// # Errors
    /// As of [`Lasting::call`].
    pub async fn call_with<T: DeserializeOwned, P: Serialize>(
        &self,
        method: &str,
        params: impl Fn() -> P,
    ) -> Result<T, ClientError> {
        let mut client = self.client();
        loop {
            match client.call(method, &params()).await {
                Err(error @ ClientError::Lost) => client = self.renew(&client, error).await?,
                answer => return answer,
            }
        }
    }

    /// Follows a process. What was seen of it when the connection is lost is the caller's to know.
    ///
    /// # Errors
    /// As of [`Lasting::call`].
    pub async fn follow(&self, asked: &ProcessFollow) -> Result<Followed, ClientError> {
        let mut client = self.client();
        loop {
            match client.follow("process/follow", asked).await {
                Err(error @ ClientError::Lost) => client = self.renew(&client, error).await?,
                answer => return answer,
            }
        }
    }

    /// Follows changes of jobs, from a number on that the caller knows after the first time.
    ///
    /// # Errors
    /// As of [`Lasting::call`].
    pub async fn follow_jobs(&self, asked: &JobFollow) -> Result<(u64, Followed), ClientError> {
        let mut client = self.client();
        loop {
            match client.follow_jobs(asked).await {
                Err(error @ ClientError::Lost) => client = self.renew(&client, error).await?,
                answer => return answer,
            }
        }
    }

    /// Starts a process, once if the start has a request id, and follows it; see [`Client::start_following`].
    ///
    /// # Errors
    /// As of [`Lasting::call`].
    pub async fn start_following(
        &self,
        start: &ProcessStart,
    ) -> Result<(Started, Followed), ClientError> {
        let mut client = self.client();
        loop {
            match client.start_following(start).await {
                Err(error @ ClientError::Lost) if start.request_id.is_some() => {
                    client = self.renew(&client, error).await?;
                }
                answer => return answer,
            }
        }
    }

    /// Asks once, over a connection that is there. After [`ClientError::Lost`] it may have been done.
    ///
    /// # Errors
    /// The daemon refuses, or the connection is lost and does not come back.
    pub async fn call_once<T: DeserializeOwned>(
        &self,
        method: &str,
        params: &impl Serialize,
    ) -> Result<T, ClientError> {
        let mut client = self.client();
        if client.is_lost() {
            client = self.renew(&client, ClientError::Lost).await?;
        }
        client.call(method, params).await
    }

    /// Another connection instead of one that is lost, with what that held; `error` is why it is wanted.
    ///
    /// # Errors
    /// The daemon does not come back in time, or does not serve this client any more.
    pub async fn renew(&self, lost: &Client, error: ClientError) -> Result<Client, ClientError> {
        if !self.lasts() {
            return Err(error);
        }
        // A task of its own, for one at a time does this and others wait for it: a caller that is not polled for a while, as one
        // of several that a loop polls in turn, must not hold up those.
        let (lasting, lost) = (self.clone(), lost.clone());
        let renewed = tokio::spawn(async move { lasting.renew_in_turn(&lost, error).await });
        renewed.await.unwrap_or(Err(ClientError::Lost))
    }

    async fn renew_in_turn(&self, lost: &Client, error: ClientError) -> Result<Client, ClientError> {
        let Some(path) = &self.0.path else {
            return Err(error);
        };
        let _one_at_a_time = self.0.renewing.lock().await;
        let current = self.client();
        if !current.is_lost() && !current.is_same(lost) {
            return Ok(current);
        }
        let deadline = Instant::now() + self.0.patience;
        let (mut pause, mut noted) = (PAUSE, false);
        loop {
            let attempt = async {
                let client = Client::connect(path).await?;
                let skipped = self.take_back(&client).await?;
                Ok::<_, ClientError>((client, skipped))
            };
            let why = match tokio::time::timeout_at(deadline, attempt).await {
                Ok(Ok((client, skipped))) => {
                    let mut state = self.lock();
                    state.client = client.clone();
                    state.not_taken_back = skipped;
                    return Ok(client);
                }
                Ok(Err(error)) if !passes(&error) => return Err(error),
                Ok(Err(ClientError::Connect { error, .. })) => error.to_string(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "it does not answer".to_owned(),
            };
            if Instant::now() + pause >= deadline {
                return Err(ClientError::NotBack {
                    path: path.display().to_string(),
                    patience: self.0.patience,
                    why,
                });
            }
            if let (Some(note), false, true) = (self.0.note, noted, pause >= PAUSE_MAX) {
                let time = humantime::format_duration(self.0.patience);
                note(&format!(
                    "the connection to the daemon is lost; for {time} it is tried to go on where it was"
                ));
                noted = true;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Attaches what the connection before held. What somebody else has meanwhile stays theirs, and is returned.
    async fn take_back(&self, client: &Client) -> Result<Vec<SkippedSession>, ClientError> {
        let (held, events, inputs, lost) = {
            let state = self.lock();
            let held = state.client.0.shared.lock().held.clone();
            let (events, lost) = (state.session_events.clone(), state.lost_inputs.clone());
            (held, events, state.inputs.clone(), lost)
        };
        if let Some(events) = events {
            client.tell_session_events(events);
        }
        let mut skipped = Vec::new();
        if !held.is_empty() {
            // Before they are attached: one that is lost the moment after that is taken off again.
            client.0.shared.lock().held.clone_from(&held);
            let asked = SessionAttach {
                sessions: Some(held.iter().map(ToString::to_string).collect()),
                steal: false,
            };
            let moved: SessionsMoved = client.call("session/attach", &asked).await?;
            let mut state = client.0.shared.lock();
            for session in moved.skipped.iter().filter_map(|one| one.session.parse().ok()) {
                state.held.remove(&session);
            }
            skipped = moved.skipped;
        }
        if let Some(lost) = &lost {
            client.tell_lost_inputs(lost.clone());
        }
        for process in inputs {
            let asked = ProcessAttach {
                process: process.clone(),
                ..ProcessAttach::default()
            };
            let there = client.call::<ProcessAttached>("process/attach", &asked).await;
            let by = match there {
                Ok(there) => there.held_by,
                // It has ended, which its events tell.
                Err(ClientError::Refused(_)) => None,
                Err(error) => return Err(error),
            };
            if let (Some(by), Some(lost), Ok(process)) = (by, &lost, process.parse()) {
                let _ = lost.send(InputLost { process, by });
            }
        }
        Ok(skipped)
    }

    /// The connection holds this session, and so shall the next, until somebody else attaches it or it is closed.
    pub fn holds(&self, session: SessionId) {
        self.client().0.shared.lock().held.insert(session);
    }

    /// It does not any more.
    pub fn gives_up(&self, session: SessionId) {
        self.client().0.shared.lock().held.remove(&session);
    }

    /// What happens to the sessions that are held here, over all connections. One receiver at a time.
    pub fn session_events(&self) -> mpsc::UnboundedReceiver<SessionEvent> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.lock();
        state.client.tell_session_events(sender.clone());
        state.session_events = Some(sender);
        receiver
    }

    /// Sessions that were held when the last connection was lost, and are not any more: they are gone, or somebody else has
    /// them.
    pub fn not_taken_back(&self) -> Vec<SkippedSession> {
        self.lock().not_taken_back.clone()
    }

    /// The connection has the input of this process (its id), and so shall the next.
    pub fn has_input(&self, process: &str) {
        self.lock().inputs.insert(process.to_owned());
    }

    /// Who takes over inputs that were attached here, over all connections. One receiver at a time.
    pub fn lost_inputs(&self) -> mpsc::UnboundedReceiver<InputLost> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.lock();
        state.client.tell_lost_inputs(sender.clone());
        state.lost_inputs = Some(sender);
        receiver
    }

    /// Writes to the standard input of a process, each byte once as long as nobody else writes to it meanwhile. `place` is
    /// where the next byte comes in all that is written, as far as that is known. Where it is not, a write whose answer is
    /// lost cannot be said again.
    ///
    /// # Errors
    /// The daemon refuses, or does not come back.
    pub async fn write(
        &self,
        process: &str,
        place: &mut Option<u64>,
        bytes: &[u8],
        force: bool,
    ) -> Result<(), ClientError> {
        for piece in bytes.chunks(PIECE) {
            let mut asked = ProcessWrite {
                process: process.to_owned(),
                data: STANDARD.encode_to_string(piece),
                force,
                ..ProcessWrite::default()
            };
            let written: Written = match self.call_once("process/write", &asked).await {
                Err(ClientError::Lost) if place.is_some() => {
                    // From the same place: what was taken is left out.
                    asked.offset = *place;
                    self.call("process/write", &asked).await?
                }
                answer => answer?,
            };
            *place = Some(written.offset);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A daemon that comes back refuses so for a while.
fn passes(error: &ClientError) -> bool {
    match error {
        ClientError::Connect { .. } | ClientError::Lost => true,
        ClientError::Refused(error) => {
            matches!(error.data.kind, ErrorKind::ShuttingDown | ErrorKind::Limit)
        }
        _ => false,
    }
}
