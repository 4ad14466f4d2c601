//! Root's daemon: it accepts, looks who is there, and hands the connection to the instance of that user.
//!
//! ```text
//! client (uid 1000) ──► socket ──► broker (root) ── descriptor ──► instance (uid 1000) ── its processes
//! client (root)     ──►            own instance
//! ```
//!
//! An instance is a daemon of its own that runs as its user, with that user's groups and nothing of root's: whatever a
//! client asks for, nothing is opened, signalled or connected with root's rights, and one user's flood is not another's. The
//! broker reads nothing from ordinary users. Root may say whose instance it wants (`user` in `initialize`).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};
use nix::unistd::{Uid, User};
use provost_sandbox::handover;
use provost_sandbox::keeper::DelegatedGroup;
use provost_sandbox::observe::audit::AuditBroker;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};

use super::instance::{AUDIT, CONNECTION, COUNTS, Configuration, Identity, LEAVE, STOP};
use super::metrics::Counts;
use super::{Daemon, Settings, lock};

/// How much longer an instance may take than its processes have.
const LATENESS: Duration = Duration::from_secs(10);
/// Users with an instance.
const INSTANCES_MAX: usize = 256;
/// Groups that a user may make at least, if its processes are few.
const GROUPS_MIN: usize = 1024;
/// Packets of an instance that are taken at a time: it sends one a second.
const WORDS_MAX: usize = 16;
/// What is read ahead of what root says first.
const INTRODUCTION_BYTES: usize = 64 * 1024;
/// How long root may take to say it.
const INTRODUCTION: Duration = Duration::from_secs(10);

/// The broker and root's own instance.
#[derive(Debug, Clone)]
pub struct Broker {
    own: Daemon,
    instances: Arc<Mutex<HashMap<u32, Instance>>>,
    executable: PathBuf,
    log: Arc<Mutex<String>>,
    /// Reads audit records for the instances.
    audit: Arc<Mutex<Option<AuditBroker>>>,
    /// What instances have counted that have ended.
    counted: Arc<Mutex<Counts>>,
}

#[derive(Debug)]
struct Instance {
    control: OwnedFd,
    child: Child,
    /// What it is in, with everything of its own. It is emptied and removed when this is dropped, which takes a moment.
    group: Option<DelegatedGroup>,
    /// What it has counted, as far as it has said.
    counts: Counts,
    /// It did not take how it is to behave, and is to be told again.
    is_behind: bool,
}

impl Instance {
    fn configure(&mut self, configuration: &[u8]) {
        let told = handover::send(self.control.as_fd(), configuration, None);
        self.is_behind = told.is_err();
    }

    /// Takes what it has said since. What it says is its own word: see [`Counts`].
    fn listen(&mut self) {
        for _ in 0..WORDS_MAX {
            let Ok(Some((bytes, _))) = handover::receive(self.control.as_fd()) else {
                return;
            };
            if let Some((&COUNTS, counts)) = bytes.split_first()
                && let Ok(counts) = serde_json::from_slice(counts)
            {
                self.counts.renew(&counts);
            }
        }
    }
}

impl Broker {
    /// A broker around root's own daemon. `executable` is the `provost` that instances are, `log` what they log.
    pub fn new(own: Daemon, executable: PathBuf, log: String) -> Self {
        let tree = own.0.tree.clone();
        let audit = AuditBroker::start(&executable, move || tree.share_audit());
        let audit = audit.inspect_err(|error| tracing::error!(%error, "no audit records for instances"));
        Self {
            own,
            instances: Arc::default(),
            executable,
            log: Arc::new(Mutex::new(log)),
            audit: Arc::new(Mutex::new(audit.ok())),
            counted: Arc::default(),
        }
    }

    /// Serves until the own daemon is told to stop; then every instance is stopped as well.
    pub async fn serve(&self, listener: UnixListener) {
        let stopping = self.own.0.stopping.clone();
        let mut housekeeping = tokio::time::interval(super::HOUSEKEEPING);
        loop {
            tokio::select! {
                () = stopping.cancelled() => break,
                _ = housekeeping.tick() => {
                    self.own.keep_house();
                    self.look_after_instances();
                }
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let broker = self.clone();
                        tokio::spawn(async move { broker.route(stream).await });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                },
            }
        }
        drop(listener);
        let broker = self.clone();
        let instances = tokio::task::spawn_blocking(move || broker.stop_instances(STOP));
        self.own.stop_everything().await;
        let _ = instances.await;
        let audit = lock(&self.audit).take();
        let _ = tokio::task::spawn_blocking(move || drop(audit)).await;
    }

    /// Leaves, with every instance; see [`Daemon::leave`].
    pub async fn leave(&self) {
        let broker = self.clone();
        let instances = tokio::task::spawn_blocking(move || broker.stop_instances(LEAVE));
        self.own.leave().await;
        let _ = instances.await;
        let audit = lock(&self.audit).take();
        let _ = tokio::task::spawn_blocking(move || drop(audit)).await;
    }

    /// Changes how all behave from now on, and what they log.
    pub fn reconfigure(&self, settings: &Settings, log: &str) {
        self.own.reconfigure(settings.clone());
        log.clone_into(&mut lock(&self.log));
        let configuration = self.configuration();
        for instance in lock(&self.instances).values_mut() {
            instance.configure(&configuration);
        }
    }

    fn configuration(&self) -> Vec<u8> {
        let (settings, log) = (self.own.settings(), lock(&self.log).clone());
        Configuration { settings, log }.packet()
    }

    async fn route(&self, stream: UnixStream) {
        let Ok(credentials) = stream.peer_cred() else {
            return;
        };
        let uid = match credentials.uid() {
            0 => match wanted_user(&stream).await {
                Ok(uid) => uid,
                Err(user) => {
                    tracing::info!(user, "root asked for a user that this machine does not have");
                    0
                }
            },
            uid => uid,
        };
        if uid == 0 {
            return self.own.accept(stream);
        }
        let (broker, stream) = (self.clone(), stream.into_std());
        let handed = tokio::task::spawn_blocking(move || broker.hand_over(uid, stream?)).await;
        if let Ok(Err(error)) = handed {
            tracing::error!(uid, %error, "cannot hand a connection to its user's instance");
        }
    }

    fn hand_over(&self, uid: u32, stream: std::os::unix::net::UnixStream) -> io::Result<()> {
        let mut instances = lock(&self.instances);
        if let Some(instance) = instances.get_mut(&uid) {
            if instance.is_behind {
                instance.configure(&self.configuration());
            }
            match handover::send(instance.control.as_fd(), &[CONNECTION], Some(stream.as_fd())) {
                // It does not take what it is given (its user may stop it): nobody else waits for that.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(_) => {}
                Ok(()) => return Ok(()),
            }
        }
        // There is none, or it is gone.
        if let Some(former) = instances.remove(&uid) {
            self.bury(former);
        }
        if instances.len() >= INSTANCES_MAX {
            return Err(io::Error::other(format!(
                "{INSTANCES_MAX} users have an instance already"
            )));
        }
        let mut instance = self.start(uid)?;
        instance.configure(&self.configuration());
        if let Some(Err(error)) = self.offer_audit(uid, &instance) {
            tracing::error!(uid, %error, "no audit records for an instance");
        }
        handover::send(instance.control.as_fd(), &[CONNECTION], Some(stream.as_fd()))?;
        instances.insert(uid, instance);
        Ok(())
    }

    fn offer_audit(&self, uid: u32, instance: &Instance) -> Option<io::Result<()>> {
        let socket = lock(&self.audit).as_ref()?.subscribe(uid);
        let control = instance.control.as_fd();
        Some(socket.and_then(|socket| handover::send(control, &[AUDIT], Some(socket.as_fd()))))
    }

    /// A group of the user's own, where this machine lets us make one.
    fn delegate(&self, uid: u32) -> Option<DelegatedGroup> {
        let descendants_max = self
            .own
            .settings()
            .processes_max
            .saturating_mul(2)
            .max(GROUPS_MIN);
        let made = Identity::of(uid)
            .and_then(|user| DelegatedGroup::create(uid, user.gid.as_raw(), descendants_max));
        made.unwrap_or_else(|error| {
            tracing::warn!(uid, %error, "cannot give a user a cgroup of its own");
            None
        })
    }

    fn start(&self, uid: u32) -> io::Result<Instance> {
        let (control, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        // Ours alone: the instance's end waits.
        let flags = fcntl(&control, FcntlArg::F_GETFL)?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(&control, FcntlArg::F_SETFL(flags))?;
        let group = self.delegate(uid);
        #[expect(
            clippy::disallowed_methods,
            reason = "an instance is a daemon, no command: it has a spawner of its own"
        )]
        let mut command = Command::new(&self.executable);
        command
            .args(["serve", "--instance-of", &uid.to_string()])
            .args(
                group
                    .iter()
                    .flat_map(|group| [OsStr::new("--instance-group"), group.path().as_os_str()]),
            )
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null());
        command.env("PROVOST_LOG", &*lock(&self.log));
        // Their stderr is ours, and so where it leads.
        if let Some(journal) = std::env::var_os("JOURNAL_STREAM") {
            command.env("JOURNAL_STREAM", journal);
        }
        let child = command.spawn()?;
        tracing::info!(uid, pid = child.id(), "started the instance of a user");
        Ok(Instance {
            control,
            child,
            group,
            counts: Counts::default(),
            is_behind: false,
        })
    }

    /// Takes notice of instances that have ended, and tells the others what they have not been told.
    fn look_after_instances(&self) {
        let mut instances = lock(&self.instances);
        if instances.values().any(|instance| instance.is_behind) {
            let configuration = self.configuration();
            let behind = instances.values_mut().filter(|instance| instance.is_behind);
            behind.for_each(|instance| instance.configure(&configuration));
        }
        let ended = instances.extract_if(|uid, instance| match instance.child.try_wait() {
            Ok(Some(status)) => {
                tracing::error!(uid, %status, "the instance of a user has ended");
                true
            }
            _ => false,
        });
        ended.for_each(|(_, instance)| self.bury(instance));
        instances.values_mut().for_each(Instance::listen);
    }

    /// Ends what is left of an instance, which takes a moment. What it has counted stays.
    fn bury(&self, mut instance: Instance) {
        instance.listen();
        lock(&self.counted).add(&std::mem::take(&mut instance.counts).ended());
        tokio::task::spawn_blocking(move || {
            drop(instance.group.take());
            let _ = instance.child.wait();
        });
    }

    /// The sums over all, also over those that have ended.
    pub(super) fn counts(&self) -> Counts {
        let mut sum = self.own.counts();
        let mut instances = lock(&self.instances);
        sum.now.instances = instances.len() as u64;
        for instance in instances.values_mut() {
            instance.listen();
            sum.add(&instance.counts);
        }
        sum.add(&lock(&self.counted));
        sum
    }

    /// Tells every instance how to end, and waits until it has.
    fn stop_instances(&self, how: u8) {
        let mut instances: Vec<Instance> = lock(&self.instances)
            .drain()
            .map(|(_, instance)| instance)
            .collect();
        for instance in &instances {
            let _ = handover::send(instance.control.as_fd(), &[how], None);
        }
        // Each has the same time to stop, and kills what is left. One that its user has stopped does neither.
        let deadline = Instant::now() + self.own.settings().stop_timeout + LATENESS;
        for instance in &mut instances {
            if !ends_by(&instance.child, deadline) {
                tracing::warn!(
                    pid = instance.child.id(),
                    "killing the instance of a user, which does not stop"
                );
                let _ = instance.child.kill();
            }
            let _ = instance.child.wait();
        }
    }
}

/// Waits for a child of ours that nobody else waits for.
fn ends_by(child: &Child, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    let Ok(patience) = PollTimeout::try_from(left) else {
        return false;
    };
    let pidfd = Pid::from_child(child);
    let Ok(pidfd) = pidfd_open(pidfd, PidfdFlags::empty()) else {
        return false;
    };
    poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], patience).is_ok_and(|ended| ended > 0)
}

/// Whose instance root wants. What it said stays in the socket, to be read by whoever serves it.
async fn wanted_user(stream: &UnixStream) -> Result<u32, String> {
    let line = async {
        let mut ahead = vec![0; INTRODUCTION_BYTES];
        let mut known = 0;
        loop {
            stream.readable().await.ok()?;
            let peeked = stream.try_io(tokio::io::Interest::READABLE, || {
                use std::os::fd::AsRawFd;
                let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
                recv(stream.as_raw_fd(), &mut ahead, flags).map_err(io::Error::from)
            });
            match peeked {
                Ok(0) => return None,
                Ok(length) => {
                    if let Some(end) = ahead[..length].iter().position(|byte| *byte == b'\n') {
                        return serde_json::from_slice::<Value>(&ahead[..end]).ok();
                    }
                    if length == INTRODUCTION_BYTES {
                        return None;
                    }
                    // It is readable as long as nobody reads; the rest takes its time.
                    let pause = if length == known { 5 } else { 0 };
                    known = length;
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
        }
    };
    let first = tokio::time::timeout(INTRODUCTION, line).await.ok().flatten();
    let user = first.as_ref().and_then(|first| first["params"]["user"].as_str());
    let Some(user) = user else { return Ok(0) };
    let found = match user.parse::<u32>() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)),
        Err(_) => User::from_name(user),
    };
    let known = found.ok().flatten().map(|user| user.uid.as_raw());
    // A number needs no name.
    known
        .or_else(|| user.parse::<u32>().ok())
        .ok_or_else(|| user.to_owned())
}
