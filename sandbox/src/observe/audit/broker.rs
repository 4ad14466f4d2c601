//! Reads the audit records for other users' supervisors, each of which gets those of its own user and no others.
//!
//! ```text
//! kernel ──► AuditReader ──► Owners ──► queue of uid 1000 ──► socket ──► BrokeredReader
//!    ▲                          └─────► queue of uid 1001 ──► …
//!    └── fence, one at a time, for all who have asked by then
//! ```
//!
//! Whoever is at the other end may be hostile. It can stand still: its queue is bounded, what does not fit is counted, and
//! nobody waits for it. It can ask for fences without end: that is one number, and one fence is under way at a time. What it
//! can learn is decided by the kernel's word on who made a domain ([`Owners`]).
//!
//! It all happens on a thread, since asking the kernel for a fence may block for as long as its queue is full.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use super::brokered::{HEAD_BYTES, PACKET_BYTES_MAX, UNAVAILABLE, head};
use super::owners::{Owners, Routed};
use super::{AuditEvent, AuditReader, Drain, FenceId};

/// Bytes of denials that wait for one supervisor, besides what its socket holds.
const QUEUE_BYTES_MAX: usize = 1 << 20;
/// The same with the kernel's counts, which make up for denials that are missing.
const QUEUE_WITH_COUNTS_BYTES_MAX: usize = 2 * QUEUE_BYTES_MAX;
/// Bytes after which a packet is closed; with the largest event it stays below [`PACKET_BYTES_MAX`].
const PACKET_BYTES: usize = 32 * 1024;
/// Packets of a supervisor that are read before others get their turn.
const REQUESTS_MAX: usize = 64;
/// How long nothing may come while a fence is under way, and how long is waited after one that could not be sent.
const FENCE_DEADLINE: Duration = Duration::from_secs(1);
/// How long a fence may take while something comes.
const FENCE_MAX: Duration = Duration::from_secs(30);
/// How often those who wait for a fence are told that the feed advances, where they are not told anything else.
const ADVANCE_EVERY: Duration = Duration::from_millis(500);
/// How long nothing is tried again where there are no records to be had.
const RETRY: Duration = Duration::from_secs(10);

/// Reads audit records for others, on a thread of its own. Dropping it ends that; whoever reads them is told.
#[derive(Debug)]
pub struct AuditBroker {
    newcomers: Arc<Mutex<Vec<Subscriber>>>,
    /// The thread ends when this does.
    wake: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl AuditBroker {
    /// Begins to serve. Nothing is opened or switched on before somebody asks; then `opened` is called, once.
    ///
    /// `executable` is the one file from which all those are run that it serves.
    ///
    /// # Errors
    /// There is no room for a thread or a socket.
    pub fn start(
        executable: &std::path::Path,
        opened: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let newcomers = Arc::<Mutex<Vec<Subscriber>>>::default();
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let server = Server {
            newcomers: newcomers.clone(),
            woken,
            opened: Some(Box::new(opened)),
            reader: None,
            failed_at: None,
            owners: Owners::new(executable.to_string_lossy().into_owned()),
            subscribers: Vec::new(),
            lost: 0,
            fence: None,
            fence_at: Instant::now(),
        };
        let thread = std::thread::Builder::new()
            .name("provost-audit".to_owned())
            .spawn(move || server.serve())?;
        Ok(Self {
            newcomers,
            wake: Some(wake),
            thread: Some(thread),
        })
    }

    /// The socket for a supervisor of this user's, for [`BrokeredReader`](super::BrokeredReader).
    ///
    /// # Errors
    /// There is no room for a socket, or the user is the superuser, who reads the records itself.
    pub fn subscribe(&self, uid: u32) -> io::Result<OwnedFd> {
        if uid == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let kind = SockType::SeqPacket;
        let (socket, theirs) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)?;
        let subscriber = Subscriber {
            uid,
            socket,
            asked: 0,
            covered: 0,
            answered: 0,
            lost: 0,
            queue: VecDeque::new(),
            queued_bytes: 0,
            sent_at: Instant::now(),
            gone: false,
        };
        self.newcomers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(subscriber);
        // Whether it is full or not: it will be awake.
        let _ = self.wake.as_ref().map(|wake| io::Write::write(&mut &*wake, &[0]));
        Ok(theirs)
    }
}

impl Drop for AuditBroker {
    /// Waits for the thread: who reads records last switches audit off.
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A supervisor, as the broker sees it.
#[derive(Debug)]
struct Subscriber {
    uid: u32,
    socket: OwnedFd,
    /// Fences that it has asked for so far.
    asked: u64,
    /// Those for which the fence under way answers.
    covered: u64,
    answered: u64,
    /// Records of its that have gone missing here.
    lost: u64,
    /// Packets, the last of which is still being filled.
    queue: VecDeque<Vec<u8>>,
    queued_bytes: usize,
    /// When it was last told anything.
    sent_at: Instant,
    gone: bool,
}

impl Subscriber {
    /// Reads what it asks for.
    fn listen(&mut self) {
        let mut request = [0; 8];
        for _ in 0..REQUESTS_MAX {
            match recv(self.socket.as_raw_fd(), &mut request, MsgFlags::MSG_DONTWAIT) {
                Ok(8) => self.asked = self.asked.max(u64::from_le_bytes(request)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                // It is gone, or speaks of something else.
                _ => {
                    self.gone = true;
                    return;
                }
            }
        }
    }

    fn take(&mut self, event: &AuditEvent) {
        let bytes_max = match event {
            AuditEvent::Denied(_) => QUEUE_BYTES_MAX,
            _ => QUEUE_WITH_COUNTS_BYTES_MAX,
        };
        let Ok(bytes) = postcard::to_allocvec(event) else {
            self.lost += 1;
            return;
        };
        if self.queued_bytes + bytes.len() > bytes_max || HEAD_BYTES + bytes.len() > PACKET_BYTES {
            self.lost += 1;
            return;
        }
        self.queued_bytes += bytes.len();
        match self.queue.back_mut() {
            Some(last) if last.len() + bytes.len() <= PACKET_BYTES => last.extend(bytes),
            _ => {
                // What it says of fences is true behind it, and nothing new.
                let mut packet = Vec::with_capacity(HEAD_BYTES + bytes.len());
                packet.extend(head(0, self.answered));
                packet.extend(bytes);
                self.queue.push_back(packet);
            }
        }
    }

    /// The fence that was under way is back: what it was asked for holds behind everything that is queued.
    fn answer(&mut self, lost: u64) {
        if self.covered <= self.answered {
            return;
        }
        self.answered = self.covered;
        let head = head(lost + self.lost, self.answered);
        match self.queue.back_mut() {
            Some(last) => last[..HEAD_BYTES].copy_from_slice(&head),
            None => self.queue.push_back(head.to_vec()),
        }
    }

    /// What was read was not its own, and brings its fence nearer all the same.
    fn advance(&mut self) {
        let waits = self.asked > self.answered && self.queue.is_empty();
        if waits && self.sent_at.elapsed() >= ADVANCE_EVERY {
            self.queue.push_back(head(0, self.answered).to_vec());
        }
    }

    fn refuse(&mut self, why: &str) {
        let mut packet = head(0, UNAVAILABLE).to_vec();
        packet.extend(why.bytes().take(PACKET_BYTES_MAX - HEAD_BYTES));
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let _ = send(self.socket.as_raw_fd(), &packet, flags);
        self.gone = true;
    }

    /// Sends as much as it takes.
    fn flush(&mut self) {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while let Some(packet) = self.queue.front() {
            match send(self.socket.as_raw_fd(), packet, flags) {
                Ok(_) => {
                    self.sent_at = Instant::now();
                    self.queued_bytes -= packet.len() - HEAD_BYTES;
                    self.queue.pop_front();
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => return,
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
    }
}

/// A fence that was sent.
struct UnderWay {
    id: FenceId,
    sent: Instant,
    /// When anything came last.
    advanced: Instant,
}

impl UnderWay {
    /// When the kernel must have dropped it.
    fn deadline(&self) -> Instant {
        (self.advanced + FENCE_DEADLINE).min(self.sent + FENCE_MAX)
    }
}

struct Server {
    newcomers: Arc<Mutex<Vec<Subscriber>>>,
    woken: UnixStream,
    opened: Option<Box<dyn FnOnce() + Send>>,
    reader: Option<AuditReader>,
    failed_at: Option<(Instant, String)>,
    owners: Owners,
    subscribers: Vec<Subscriber>,
    /// Records that have gone missing, anybody's.
    lost: u64,
    fence: Option<UnderWay>,
    /// When the next may be sent.
    fence_at: Instant,
}

impl Server {
    fn serve(mut self) {
        let mut events = Vec::new();
        let mut drain = Drain::Empty;
        while self.wait(drain) {
            self.welcome();
            for subscriber in &mut self.subscribers {
                subscriber.listen();
            }
            self.open();
            drain = self.read(&mut events);
            self.send_fence();
            for subscriber in &mut self.subscribers {
                subscriber.flush();
            }
            self.bury();
        }
    }

    /// Waits for anything to do; false at the end.
    fn wait(&mut self, drain: Drain) -> bool {
        let mut fds = vec![PollFd::new(self.woken.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            self.reader
                .iter()
                .map(|reader| PollFd::new(reader.as_fd(), PollFlags::POLLIN)),
        );
        for subscriber in &self.subscribers {
            let mut wanted = PollFlags::POLLIN;
            wanted.set(PollFlags::POLLOUT, !subscriber.queue.is_empty());
            fds.push(PollFd::new(subscriber.socket.as_fd(), wanted));
        }
        let deadline = match &self.fence {
            Some(fence) => Some(fence.deadline()),
            None if self.is_fence_wanted() => Some(self.fence_at),
            None => None,
        };
        let patience = match (drain, deadline) {
            (Drain::More, _) => PollTimeout::ZERO,
            (Drain::Empty, None) => PollTimeout::NONE,
            (Drain::Empty, Some(deadline)) => {
                let left = deadline.saturating_duration_since(Instant::now());
                // Rounded up: a wait of less than a millisecond must not become a busy loop.
                PollTimeout::from(u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX))
            }
        };
        if let Err(error) = poll(&mut fds, patience)
            && error != Errno::EINTR
        {
            tracing::error!(%error, "the broker of audit records ends");
            return false;
        }
        let mut bytes = [0; 64];
        loop {
            match self.woken.read(&mut bytes) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(_) => return true,
            }
        }
    }

    fn welcome(&mut self) {
        let mut newcomers = self.newcomers.lock().unwrap_or_else(PoisonError::into_inner);
        self.subscribers.append(&mut newcomers);
    }

    fn is_fence_wanted(&self) -> bool {
        let mut subscribers = self.subscribers.iter();
        subscribers.any(|subscriber| subscriber.asked > subscriber.answered)
    }

    /// Opens the feed for the first who asks. Where it cannot be had, that is said.
    fn open(&mut self) {
        if self.reader.is_some() || !self.is_fence_wanted() {
            return;
        }
        let again = |(when, _): &(Instant, String)| when.elapsed() >= RETRY;
        if self.failed_at.as_ref().is_none_or(again) {
            match AuditReader::open() {
                Ok(reader) => {
                    self.reader = Some(reader);
                    if let Some(opened) = self.opened.take() {
                        opened();
                    }
                    return;
                }
                Err(error) => self.failed_at = Some((Instant::now(), error.reason)),
            }
        }
        let why = self.failed_at.as_ref().map_or("", |(_, why)| why);
        for subscriber in &mut self.subscribers {
            if subscriber.asked > 0 {
                subscriber.refuse(why);
            }
        }
    }

    fn read(&mut self, events: &mut Vec<AuditEvent>) -> Drain {
        let Some(reader) = &mut self.reader else {
            return Drain::Empty;
        };
        let drain = reader.read(events).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read the audit feed");
            self.lost += 1;
            Drain::Empty
        });
        if !events.is_empty() || drain == Drain::More {
            if let Some(fence) = &mut self.fence {
                fence.advanced = Instant::now();
            }
            self.subscribers.iter_mut().for_each(Subscriber::advance);
        }
        let served: BTreeSet<u32> = self.subscribers.iter().map(|subscriber| subscriber.uid).collect();
        for event in events.drain(..) {
            if let AuditEvent::Fence(id) = event {
                if self.fence.take_if(|under_way| under_way.id == id).is_some() {
                    self.fenced();
                }
                continue;
            }
            if event == AuditEvent::Overflow {
                // The fence may be among what was lost, and there is room again.
                self.fence = None;
            }
            let (subscribers, lost) = (&mut self.subscribers, &mut self.lost);
            let mut out = |routed: Routed| match routed {
                Routed::Lost => *lost += 1,
                Routed::LostOf(uid) => of(subscribers, uid).for_each(|to| to.lost += 1),
                Routed::To(uid, event) => of(subscribers, uid).for_each(|to| to.take(&event)),
            };
            self.owners.route(event, |uid| served.contains(&uid), &mut out);
        }
        drain
    }

    /// Everything has been routed that was queued before the fence; what the kernel has lost meanwhile it tells now.
    fn fenced(&mut self) {
        let lost = self.reader.as_mut().map(AuditReader::lost);
        self.lost += match lost {
            Some(Ok(lost)) => lost,
            _ => 1,
        };
        for subscriber in &mut self.subscribers {
            subscriber.answer(self.lost);
        }
    }

    /// Sends a fence for all who want one, unless one is under way.
    fn send_fence(&mut self) {
        let now = Instant::now();
        if self.fence.as_ref().is_some_and(|fence| now < fence.deadline()) {
            return;
        }
        if self.fence.take().is_some() {
            // The kernel has dropped it, and what else?
            self.lost += 1;
        }
        if !self.is_fence_wanted() || now < self.fence_at {
            return;
        }
        let Some(reader) = &mut self.reader else {
            return;
        };
        match reader.send_fence() {
            Ok(id) => {
                self.fence = Some(UnderWay {
                    id,
                    sent: now,
                    advanced: now,
                });
                for subscriber in &mut self.subscribers {
                    subscriber.covered = subscriber.asked;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot fence the audit feed");
                self.lost += 1;
                self.fence_at = now + FENCE_DEADLINE;
            }
        }
    }

    /// Forgets who is gone.
    fn bury(&mut self) {
        let gone = self.subscribers.extract_if(.., |subscriber| subscriber.gone);
        let gone: Vec<u32> = gone.map(|subscriber| subscriber.uid).collect();
        for uid in gone {
            if of(&mut self.subscribers, uid).next().is_none() {
                self.owners.forget(uid);
            }
        }
    }
}

fn of(subscribers: &mut [Subscriber], uid: u32) -> impl Iterator<Item = &mut Subscriber> {
    subscribers
        .iter_mut()
        .filter(move |subscriber| subscriber.uid == uid)
}

#[cfg(test)]
mod tests;
