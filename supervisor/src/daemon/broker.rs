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

mod launch;
mod users;

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, recv};
use nix::unistd::{Uid, User};
use provost_actors::spool::WhenFull;
use provost_sandbox::handover;
use provost_sandbox::observe::audit::AuditBroker;
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use self::launch::{Instance, Launcher, ends_within};
pub use self::users::{UserDirectories, UsersError};
use super::house::Rounds;
use super::instance::{AUDIT, CONNECTION, Configuration, LEAVE, STOP};
use super::metrics::Counts;
use super::{Daemon, Settings, lock};

/// How much longer an instance may take than its processes have.
const LATENESS: Duration = Duration::from_secs(10);
/// Users with an instance.
const INSTANCES_MAX: usize = 256;
/// Groups that a user may make at least, if its processes are few.
const GROUPS_MIN: usize = 1024;
/// Users who are asked at the same time whether they need an instance.
const ASKED_MAX: usize = 8;
/// When one is asked again who did not answer.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// What is read ahead of what root says first.
const INTRODUCTION_BYTES: usize = 64 * 1024;
/// Between two looks whether root has said more: a socket in which something lies unread is readable all the time.
const PEEK_AGAIN: Duration = Duration::from_millis(5);
/// How long root may take to say it.
const INTRODUCTION: Duration = Duration::from_secs(10);

/// The broker and root's own instance.
#[derive(Debug, Clone)]
pub struct Broker {
    own: Daemon,
    served: Arc<Mutex<Served>>,
    launcher: Arc<Launcher>,
    /// Turns in asking who needs an instance.
    asking: Arc<Semaphore>,
    disk_full: WhenFull,
    log: Arc<Mutex<String>>,
    /// Reads audit records for the instances.
    audit: Arc<Mutex<Option<AuditBroker>>>,
    /// What instances have counted that have ended.
    counted: Arc<Mutex<Counts>>,
}

/// The users there are.
#[derive(Debug, Default)]
struct Served {
    instances: HashMap<u32, Instance>,
    /// Those without an instance who may need one, and when they are asked; being asked now, if absent.
    unserved: HashMap<u32, Option<Instant>>,
}

impl Broker {
    /// A broker around root's own daemon. `executable` is the `provost` that instances are, `log` what they log. With
    /// `users`, what they start survives them and us.
    pub fn new(
        own: Daemon,
        executable: PathBuf,
        log: String,
        users: Option<UserDirectories>,
        disk_full: WhenFull,
    ) -> Self {
        let tree = own.0.tree.clone();
        let audit = AuditBroker::start(&executable, move || tree.share_audit());
        let audit = audit.inspect_err(|error| tracing::error!(%error, "no audit records for instances"));
        let mut served = Served::default();
        let known = users.as_ref().map(UserDirectories::known).transpose();
        let known = known.unwrap_or_else(|error| {
            tracing::error!(%error, "cannot look who was served before");
            None
        });
        let now = Some(Instant::now());
        served.unserved = known.into_iter().flatten().map(|uid| (uid, now)).collect();
        Self {
            own,
            served: Arc::new(Mutex::new(served)),
            launcher: Arc::new(Launcher { executable, users }),
            asking: Arc::new(Semaphore::new(ASKED_MAX)),
            disk_full,
            log: Arc::new(Mutex::new(log)),
            audit: Arc::new(Mutex::new(audit.ok())),
            counted: Arc::default(),
        }
    }

    /// Serves until the own daemon is told to stop; then every instance is stopped as well.
    pub async fn serve(&self, listener: UnixListener) {
        let stopping = self.own.0.stopping.clone();
        let mut rounds = Rounds::default();
        loop {
            let busy = self.serves_others();
            tokio::select! {
                () = stopping.cancelled() => break,
                () = rounds.next(&self.own.0.house, busy) => {
                    self.own.keep_house();
                    self.look_after_instances();
                    self.look_after_unserved();
                }
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let broker = self.clone();
                        tokio::spawn(async move { broker.route(stream).await });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(super::ACCEPT_AGAIN).await;
                    }
                },
            }
        }
        drop(listener);
        let broker = self.clone();
        let instances = tokio::task::spawn_blocking(move || broker.stop_instances());
        self.own.stop_everything().await;
        let _ = instances.await;
        let audit = lock(&self.audit).take();
        let _ = tokio::task::spawn_blocking(move || drop(audit)).await;
    }

    /// Leaves, with every instance; see [`Daemon::leave`].
    pub async fn leave(&self) {
        self.own.0.leaving.begun.cancel();
        let broker = self.clone();
        let instances = tokio::task::spawn_blocking(move || broker.leave_instances());
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
        for instance in lock(&self.served).instances.values_mut() {
            instance.configure(&configuration);
        }
    }

    fn configuration(&self) -> Vec<u8> {
        let (settings, log) = (self.own.settings(), lock(&self.log).clone());
        let disk_full = self.disk_full;
        let configuration = Configuration {
            settings,
            disk_full,
            log,
        };
        configuration.packet()
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
        let mut served = lock(&self.served);
        if self.is_ending() {
            return Err(io::Error::other("the daemon ends"));
        }
        if let Some(instance) = served.instances.get_mut(&uid) {
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
        if let Some(former) = served.instances.remove(&uid) {
            self.bury(uid, former);
        }
        let instance = self.start(&served, uid)?;
        handover::send(instance.control.as_fd(), &[CONNECTION], Some(stream.as_fd()))?;
        served.unserved.remove(&uid);
        served.instances.insert(uid, instance);
        self.own.0.house.stir();
        Ok(())
    }

    /// Whether it stops or leaves. Asked with `served` locked: who ends it empties that afterwards.
    fn is_ending(&self) -> bool {
        self.own.0.stopping.is_cancelled() || self.own.0.leaving.begun.is_cancelled()
    }

    /// Starts the instance of a user who has none.
    fn start(&self, served: &Served, uid: u32) -> io::Result<Instance> {
        if served.instances.len() >= INSTANCES_MAX {
            return Err(io::Error::other(format!(
                "{INSTANCES_MAX} users have an instance already"
            )));
        }
        let groups_max = self.own.settings().processes_max.saturating_mul(2);
        let log = lock(&self.log).clone();
        let mut instance = self.launcher.start(uid, &log, groups_max.max(GROUPS_MIN))?;
        instance.configure(&self.configuration());
        let audit = lock(&self.audit).as_ref().map(|audit| audit.subscribe(uid));
        let audit = audit.transpose().unwrap_or_else(|error| {
            tracing::error!(uid, %error, "no audit records for an instance");
            None
        });
        let audit = audit.as_ref().map(AsFd::as_fd);
        handover::send(instance.control.as_fd(), &[AUDIT], audit)?;
        Ok(instance)
    }

    /// Whether there are other users to look after.
    fn serves_others(&self) -> bool {
        let served = lock(&self.served);
        !served.instances.is_empty() || !served.unserved.is_empty()
    }

    /// Takes notice of instances that have ended, and tells the others what they have not been told.
    fn look_after_instances(&self) {
        let mut served = lock(&self.served);
        let Served { instances, unserved } = &mut *served;
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
        for (uid, instance) in ended {
            if self.launcher.users.is_some() {
                unserved.insert(uid, Some(instance.not_again_before));
            }
            self.bury(uid, instance);
        }
        instances.values_mut().for_each(Instance::listen);
    }

    /// Asks those without an instance whether they need one, and starts it then.
    fn look_after_unserved(&self) {
        let now = Instant::now();
        for (uid, due) in &mut lock(&self.served).unserved {
            if due.is_none_or(|due| due > now) {
                continue;
            }
            *due = None;
            let (broker, uid) = (self.clone(), *uid);
            tokio::spawn(async move {
                let _turn = broker.asking.clone().acquire_owned().await;
                let _ = tokio::task::spawn_blocking(move || broker.serve_if_needed(uid)).await;
            });
        }
    }

    fn serve_if_needed(&self, uid: u32) {
        let needed = self.launcher.is_needed(uid);
        let mut served = lock(&self.served);
        // Whoever stops everything starts it, to be stopped; whoever comes next starts it; or a client came meanwhile.
        if self.is_ending() || !served.unserved.contains_key(&uid) {
            return;
        }
        let started = needed.and_then(|needed| match needed {
            true => self.start(&served, uid).map(Some),
            false => {
                self.launcher.end_former_group(uid);
                Ok(None)
            }
        });
        match started {
            Ok(instance) => {
                served.unserved.remove(&uid);
                let revived = instance.map(|instance| (uid, instance.revived()));
                served.instances.extend(revived);
            }
            Err(error) => {
                tracing::error!(uid, %error, "cannot see to what a user has left running");
                served.unserved.insert(uid, Some(Instant::now() + ASK_AGAIN));
            }
        }
    }

    /// Ends an instance that is of no use any more, which takes a moment. What it has counted stays; what it started, too, if
    /// it survives it.
    fn bury(&self, uid: u32, mut instance: Instance) {
        instance.listen();
        lock(&self.counted).add(&std::mem::take(&mut instance.counts).ended());
        let launcher = self.launcher.clone();
        tokio::task::spawn_blocking(move || {
            let _ = instance.child.kill();
            if launcher.users.is_none() {
                launcher.end_group(uid, &mut instance);
            }
            let _ = instance.child.wait();
        });
    }

    /// The sums over all, also over those that have ended.
    pub(super) fn counts(&self) -> Counts {
        let mut sum = self.own.counts();
        let mut served = lock(&self.served);
        sum.now.instances = served.instances.len() as u64;
        for instance in served.instances.values_mut() {
            instance.listen();
            sum.add(&instance.counts);
        }
        sum.add(&lock(&self.counted));
        sum
    }

    /// Has every instance leave what it started to that of the next broker.
    fn leave_instances(&self) {
        let mut leaving: Vec<(u32, Instance)> = lock(&self.served).instances.drain().collect();
        for (_, instance) in &leaving {
            let _ = handover::send(instance.control.as_fd(), &[LEAVE], None);
        }
        // One that does not is killed, which ends nothing but itself.
        let begun = Instant::now();
        for (uid, instance) in &mut leaving {
            if !ends_within(&instance.child, begun, || LATENESS) {
                tracing::warn!(uid, "killing the instance of a user, which does not leave");
                let _ = instance.child.kill();
            }
            let _ = instance.child.wait();
        }
    }

    /// Stops every instance with everything that it started, also what an instance has left that is gone.
    fn stop_instances(&self) {
        let mut stopping: Vec<(u32, Instance)> = Vec::new();
        let unserved = {
            let mut served = lock(&self.served);
            stopping.extend(served.instances.drain());
            std::mem::take(&mut served.unserved)
        };
        stopping.extend(self.start_to_stop(unserved.into_keys()));
        let killed = self.stop(&mut stopping);
        // Where there is no group, what a killed one has left is stopped by another.
        let left = killed.into_iter().filter(|_| self.launcher.users.is_some());
        let mut again = self.start_to_stop(left);
        for uid in self.stop(&mut again) {
            tracing::error!(
                uid,
                "what this user has left running goes on: nothing stops it, and there is no cgroup"
            );
        }
    }

    fn start_to_stop(&self, users: impl Iterator<Item = u32>) -> Vec<(u32, Instance)> {
        let nobody = Served::default();
        let start = |uid| match self.start(&nobody, uid) {
            Ok(instance) => Some((uid, instance)),
            Err(error) => {
                tracing::error!(uid, %error, "cannot stop what a user has left running");
                None
            }
        };
        users.filter_map(start).collect()
    }

    /// Those who had to be killed, and were in no group.
    fn stop(&self, instances: &mut [(u32, Instance)]) -> Vec<u32> {
        for (_, instance) in &mut *instances {
            let _ = handover::send(instance.control.as_fd(), &[STOP], None);
        }
        // Each has the same time to stop, and kills what is left. One that its user has stopped does neither.
        let begun = Instant::now();
        let mut killed = Vec::new();
        for (uid, instance) in instances {
            let patience = || self.own.settings().stop_timeout + LATENESS;
            if !ends_within(&instance.child, begun, patience) {
                let pid = instance.child.id();
                tracing::warn!(pid, "killing the instance of a user, which does not stop");
                let _ = instance.child.kill();
                killed.extend(instance.group.is_none().then_some(*uid));
            }
            let _ = instance.child.wait();
            self.launcher.end_group(*uid, instance);
        }
        killed
    }
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
                    if length == known {
                        tokio::time::sleep(PEEK_AGAIN).await;
                    }
                    known = length;
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
