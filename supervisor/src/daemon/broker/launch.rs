//! Starting instances, and asking whether one is needed.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use provost_sandbox::handover;
use provost_sandbox::keeper::{DelegatedGroup, with_ordinary_score};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::super::instance::{COUNTS, Identity, NOT_NEEDED};
use super::super::metrics::Counts;
use super::users::UserDirectories;

/// How long a user may take to say whether an instance is needed.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How often an instance is started that ends by itself.
const PAUSE: Duration = Duration::from_secs(10);
/// Packets of an instance that are taken at a time: it sends one a second.
const WORDS_MAX: usize = 16;

/// What instances are, and where they keep what survives them.
#[derive(Debug)]
pub(super) struct Launcher {
    pub(super) executable: PathBuf,
    /// Absent where nothing is kept.
    pub(super) users: Option<UserDirectories>,
}

/// The instance of a user.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) control: OwnedFd,
    pub(super) child: Child,
    /// What it is in, with everything of its own.
    pub(super) group: Option<DelegatedGroup>,
    /// What it has counted, as far as it has said.
    pub(super) counts: Counts,
    /// It did not take how it is to behave, and is to be told again.
    pub(super) is_behind: bool,
    /// If it ends by itself, none takes its place before that, unless a client comes.
    pub(super) not_again_before: Instant,
}

impl Launcher {
    /// Starts the instance of a user. It waits to be told how to behave, and where audit records are. `log` is what it logs
    /// until then, `descendants_max` how many groups it may make.
    pub(super) fn start(&self, uid: u32, log: &str, descendants_max: usize) -> io::Result<Instance> {
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
        let mut words = self.state_words(uid)?;
        let former = self.users.as_ref().and_then(|users| users.group(uid));
        let group_flag = match former {
            Some(_) => "--instance-group-again",
            None => "--instance-group",
        };
        let group = former.or_else(|| self.delegate(uid, descendants_max));
        if let Some(group) = &group {
            words.extend([group_flag.into(), group.path().into()]);
        }
        let mut command = self.command(uid, words);
        command.stdin(Stdio::from(theirs)).env("PROVOST_LOG", log);
        // Their stderr is ours, and so where it leads.
        if let Some(journal) = std::env::var_os("JOURNAL_STREAM") {
            command.env("JOURNAL_STREAM", journal);
        }
        let child = with_ordinary_score(|| command.spawn())?;
        tracing::info!(uid, pid = child.id(), "started the instance of a user");
        Ok(Instance {
            control,
            child,
            group,
            counts: Counts::default(),
            is_behind: false,
            not_again_before: Instant::now(),
        })
    }

    /// Whether something of a user lives, or has no record yet, and needs an instance for that. The user is asked: nothing of
    /// what is that user's is looked at by root.
    pub(super) fn is_needed(&self, uid: u32) -> io::Result<bool> {
        let mut words = self.state_words(uid)?;
        words.push("--instance-needed".into());
        let mut command = self.command(uid, words);
        let mut child = with_ordinary_score(|| command.stdin(Stdio::null()).spawn())?;
        if !ends_within(&child, Instant::now(), || ANSWER_MAX) {
            let _ = child.kill();
        }
        let status = child.wait()?;
        match status.code() {
            Some(0) => Ok(true),
            Some(code) if code == i32::from(NOT_NEEDED) => Ok(false),
            _ => Err(io::Error::other(format!(
                "whether an instance is needed was not answered: {status}"
            ))),
        }
    }

    fn state_words(&self, uid: u32) -> io::Result<Vec<OsString>> {
        let Some(users) = &self.users else {
            return Ok(Vec::new());
        };
        let directory = users.of(uid, Identity::of(uid)?.gid)?;
        Ok(vec!["--state-dir".into(), directory.into()])
    }

    fn command(&self, uid: u32, words: Vec<OsString>) -> Command {
        #[expect(
            clippy::disallowed_methods,
            reason = "an instance is a daemon, no command: it has a keeper of its own"
        )]
        let mut command = Command::new(&self.executable);
        command
            .args(["serve", "--instance-of", &uid.to_string()])
            .args(words)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .current_dir("/")
            .stdout(Stdio::null());
        command
    }

    /// A group of the user's own, where this machine lets us make one.
    fn delegate(&self, uid: u32, descendants_max: usize) -> Option<DelegatedGroup> {
        let made = Identity::of(uid)
            .and_then(|user| DelegatedGroup::create(uid, user.gid.as_raw(), descendants_max));
        let made = made.and_then(|group| match (group, &self.users) {
            (Some(group), Some(users)) => match users.remember_group(uid, &group) {
                Ok(()) => Ok(Some(group)),
                Err(error) => {
                    group.end();
                    Err(error)
                }
            },
            (group, _) => Ok(group),
        });
        made.unwrap_or_else(|error| {
            tracing::warn!(uid, %error, "cannot give a user a cgroup of its own");
            None
        })
    }

    /// Ends the group of a user of whom nothing lives.
    pub(super) fn end_former_group(&self, uid: u32) {
        let users = self.users.as_ref();
        if let Some((users, group)) = users.and_then(|users| Some((users, users.group(uid)?))) {
            group.end();
            users.forget_group(uid);
        }
    }

    /// Ends everything in an instance's group.
    pub(super) fn end_group(&self, uid: u32, instance: &mut Instance) {
        if let Some(group) = instance.group.take() {
            group.end();
            if let Some(users) = &self.users {
                users.forget_group(uid);
            }
        }
    }
}

impl Instance {
    /// One that was started because the last one ended, and is not started over and over.
    pub(super) fn revived(mut self) -> Self {
        self.not_again_before += PAUSE;
        self
    }

    pub(super) fn configure(&mut self, configuration: &[u8]) {
        let told = handover::send(self.control.as_fd(), configuration, None);
        self.is_behind = told.is_err();
    }

    /// Takes what it has said since. What it says is its own word: see [`Counts`].
    pub(super) fn listen(&mut self) {
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

/// Waits for a child of ours that nobody else waits for, for so long from `begun`; it is asked again and again how long that
/// is.
pub(super) fn ends_within(child: &Child, begun: Instant, patience: impl Fn() -> Duration) -> bool {
    const LOOK: Duration = Duration::from_millis(500);
    let Ok(pidfd) = pidfd_open(Pid::from_child(child), PidfdFlags::empty()) else {
        return false;
    };
    loop {
        let left = patience().saturating_sub(begun.elapsed());
        let wait = PollTimeout::try_from(left.min(LOOK)).unwrap_or(PollTimeout::ZERO);
        let ended = poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], wait);
        if ended.is_ok_and(|ended| ended > 0) {
            return true;
        }
        if left.is_zero() {
            return false;
        }
    }
}
