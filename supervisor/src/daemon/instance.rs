//! An instance: the daemon of one user, as root's broker starts and tells it.
//!
//! What the broker says comes in packets on stdin, a letter first. It says how to behave before anything else, then where audit
//! records are read for it, and then hands over connections. One that it tells to stop stops everything. One that loses it
//! leaves as if it were killed, where what it started survives that: the next broker starts another.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, User};
use provost_actors::spool::{Spool, WhenFull};
use provost_sandbox::handover;
use provost_sandbox::keeper::join_group;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use super::logging::LogLevel;
use super::metrics::Counts;
use super::{Daemon, HOUSEKEEPING, Settings};
use crate::store::Reader;

/// What the broker says to an instance, as the first byte of a packet.
pub(super) const CONNECTION: u8 = b'c';
pub(super) const CONFIGURATION: u8 = b's';
pub(super) const AUDIT: u8 = b'a';
pub(super) const STOP: u8 = b'q';
/// Leave everything to the instance of the broker that comes next.
pub(super) const LEAVE: u8 = b'l';

/// What an instance says to the broker: what it has counted.
pub(super) const COUNTS: u8 = b'm';

/// The exit code of one that was only asked whether it is needed.
pub const NOT_NEEDED: u8 = 1;

/// The soft limit of descriptors that programs expect to begin with.
const DESCRIPTORS_EXPECTED: u64 = 1024;

/// What a broker tells its instances whenever it changes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Configuration {
    /// How to behave.
    pub settings: Settings,
    /// What becomes of processes whose output finds no room. Takes effect with a new instance only.
    pub disk_full: WhenFull,
    /// What is logged.
    pub log: String,
}

/// What an instance is told before anything else.
#[derive(Debug)]
pub struct Introduction {
    /// How to behave.
    pub configuration: Configuration,
    /// Where audit records are read for it.
    pub audit: Option<OwnedFd>,
}

impl Configuration {
    /// As a packet.
    pub(super) fn packet(&self) -> Vec<u8> {
        packet(CONFIGURATION, self)
    }
}

fn packet(kind: u8, what: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(serde_json::to_vec(what).unwrap_or_default());
    bytes
}

/// A user's group, name and home.
pub(super) struct Identity {
    pub(super) gid: Gid,
    name: String,
    home: PathBuf,
    is_known: bool,
}

impl Identity {
    pub(super) fn of(uid: u32) -> io::Result<Self> {
        Ok(match User::from_uid(Uid::from_raw(uid))? {
            Some(user) => Self {
                gid: user.gid,
                name: user.name,
                home: user.dir,
                is_known: true,
            },
            // A uid without an entry has a group of the same number, and no others.
            None => Self {
                gid: Gid::from_raw(uid),
                name: uid.to_string(),
                home: PathBuf::from("/"),
                is_known: false,
            },
        })
    }
}

/// What an instance is to be part of, and where it keeps what survives it.
#[derive(Debug, Default)]
pub struct InstancePlace {
    /// A cgroup that was made for it.
    pub group: Option<PathBuf>,
    /// One that an earlier instance of that user was in. It is in that or nowhere: its user could make it impossible, to be rid
    /// of its bounds.
    pub group_again: Option<PathBuf>,
    /// Absent where nothing is kept.
    pub state_dir: Option<PathBuf>,
}

/// Becomes a user for good, with that user's groups, and this program anew: to be called first of all, while there is one
/// thread. What comes back is why not.
pub fn become_instance(uid: u32, place: &InstancePlace) -> io::Error {
    let prepare = || -> io::Result<Command> {
        // Without a group it is contained as where none can be made; its report says so.
        let _ = place.group.as_deref().map(join_group);
        place.group_again.as_deref().map_or(Ok(()), join_group)?;
        // The broker has raised its own; commands begin with what programs expect.
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, soft.min(DESCRIPTORS_EXPECTED), hard)?;
        let user = become_user(uid)?;
        #[expect(clippy::disallowed_methods, reason = "this program anew: nothing is forked")]
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["serve", "--instance"])
            .env("HOME", user.home)
            .env("USER", &user.name)
            .env("LOGNAME", &user.name)
            .env("XDG_RUNTIME_DIR", format!("/run/user/{uid}"));
        if let Some(state_dir) = &place.state_dir {
            command.arg("--state-dir").arg(state_dir);
        }
        Ok(command)
    };
    match prepare() {
        Ok(mut command) => command.exec(),
        Err(error) => error,
    }
}

/// Becomes a user for good, and looks whether something of that user's lives, has no record yet, or waits (jobs, and who is to
/// be told of an end), in this state directory.
///
/// # Errors
/// It cannot become that user, or that user cannot look.
pub fn is_needed(uid: u32, state_dir: &Path) -> io::Result<bool> {
    become_user(uid)?;
    // An older database has no jobs.
    let database = Reader::open(state_dir).ok().flatten();
    let waits = database.is_some_and(|database| database.has_waiting().unwrap_or(true));
    Ok(waits || Spool::has_live(&state_dir.join("spool"))?)
}

fn become_user(uid: u32) -> io::Result<Identity> {
    let user = Identity::of(uid)?;
    let gid = user.gid;
    match user.is_known {
        true => nix::unistd::initgroups(&std::ffi::CString::new(user.name.clone())?, gid)?,
        false => nix::unistd::setgroups(&[])?,
    }
    nix::unistd::setresgid(gid, gid, gid)?;
    let uid = Uid::from_raw(uid);
    nix::unistd::setresuid(uid, uid, uid)?;
    Ok(user)
}

/// Waits for what the broker says first. Nothing if it is gone.
///
/// # Errors
/// It says something else.
pub fn introduction(control: BorrowedFd<'_>) -> io::Result<Option<Introduction>> {
    let odd = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let Some((bytes, _)) = handover::receive(control)? else {
        return Ok(None);
    };
    let told = match bytes.split_first() {
        Some((&CONFIGURATION, told)) => told,
        _ => return Err(odd("the broker does not say first how to behave")),
    };
    let configuration = serde_json::from_slice(told)?;
    let Some((bytes, audit)) = handover::receive(control)? else {
        return Ok(None);
    };
    match bytes.first() {
        Some(&AUDIT) => Ok(Some(Introduction { configuration, audit })),
        _ => Err(odd("the broker does not say where audit records are")),
    }
}

impl Daemon {
    /// Where audit records are read for this instance. To be said before anything is started or taken up.
    pub fn use_audit(&self, socket: OwnedFd) {
        self.0.tree.use_audit_broker(socket);
    }

    /// Serves the connections that a broker hands over on this socket, until it says so, and then stops everything; or until
    /// it is gone. Does not come back from that if what runs survives this process.
    pub async fn serve_instance(&self, control: OwnedFd, level: &LogLevel) {
        let counts = control.try_clone();
        let mut told = Counts::default();
        let mut tell = |daemon: &Self| {
            let now = daemon.counts();
            if let (Ok(socket), true) = (&counts, now != told)
                && handover::try_send(socket.as_fd(), &packet(COUNTS, &now)).is_ok()
            {
                told = now;
            }
        };
        let (packets, mut received) = tokio::sync::mpsc::unbounded_channel();
        // It waits in the kernel; it ends with the socket.
        std::thread::spawn(move || {
            while let Ok(Some(packet)) = handover::receive(control.as_fd()) {
                if packets.send(packet).is_err() {
                    break;
                }
            }
        });
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        loop {
            let packet = tokio::select! {
                _ = housekeeping.tick() => {
                    self.keep_house();
                    tell(self);
                    continue;
                }
                packet = received.recv() => packet,
            };
            let Some((bytes, descriptor)) = packet else {
                if self.0.kept.is_some() {
                    tracing::info!("the broker is gone; what runs goes on");
                    // As if killed: whatever would be done on the way out is for an end of everything.
                    std::process::exit(0);
                }
                break;
            };
            match (bytes.split_first(), descriptor) {
                (Some((&CONNECTION, _)), Some(descriptor)) => {
                    let stream = std::os::unix::net::UnixStream::from(descriptor);
                    let taken = stream
                        .set_nonblocking(true)
                        .and_then(|()| UnixStream::from_std(stream));
                    match taken {
                        Ok(stream) => self.accept(stream),
                        Err(error) => tracing::warn!(%error, "a connection that cannot be served"),
                    }
                }
                (Some((&CONFIGURATION, told)), _) => match serde_json::from_slice::<Configuration>(told)
                {
                    Ok(configuration) => {
                        self.reconfigure(configuration.settings);
                        if let Err(error) = level.set(&configuration.log) {
                            tracing::error!(error, "what is logged stays as it is");
                        }
                    }
                    Err(error) => tracing::error!(%error, "a configuration that is not understood"),
                },
                (Some((&STOP, _)), _) => break,
                (Some((&LEAVE, _)), _) => {
                    // What is in memory alone ends with us, by its stop rules.
                    if self.is_durable() {
                        tell(self);
                        self.leave().await;
                        std::process::exit(0);
                    }
                    break;
                }
                _ => tracing::error!("a packet of the broker's that is not understood"),
            }
        }
        self.stop_now().await;
        tell(self);
    }
}
