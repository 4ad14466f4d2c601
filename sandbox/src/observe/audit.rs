//! Landlock's own account of what it refused, read from the kernel's audit stream.
//!
//! ```text
//!  Landlock ──► audit queue ──► kauditd ──► multicast group READLOG ──► Feed ──► AuditReader::read
//!                   ▲                                                               │
//!  AUDIT_USER ──────┘  (fence: comes back behind all that was queued before it)     ▼
//!                                                                               AuditEvent
//! ```
//!
//! Reading is one thing, switching on is another. The audit system is one per machine and belongs to the
//! administrator: where it is on already, nothing is changed and the reader only listens. Where it is off
//! and nobody has put rules into it, the readers of all Provost processes switch it on together, under a
//! lock, and the last one out puts everything back.
//!
//! What may be relied on:
//! - A record is never missing in silence: [`AuditEvent::Overflow`] and [`AuditReader::lost`] say when some
//!   may be, and [`AuditEvent::DomainGone`] carries the kernel's own exact count of the domain's denials.
//! - A fence comes back behind every record that was queued before it was sent.
//! - A program cannot forge a field through a path or a name: the kernel quotes or hex-encodes them, and
//!   the parser accepts nothing but what the kernel writes, in its order.
//!
//! What may not: a denial names its domain and not the task that tried, and the announcement of a domain
//! follows the first denial in it.

mod broker;
mod brokered;
mod control;
mod denial;
mod feed;
mod fence;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod owners;
mod record;
mod source;
mod switch;
#[cfg(test)]
mod tests;
mod wire;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use landlock::{AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr};
use nix::poll::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};

pub use broker::AuditBroker;
pub use brokered::BrokeredReader;
pub use denial::{LandlockDenial, LandlockTarget};
pub use fence::FenceId;
pub use record::parse_record;
pub use source::AuditSource;

use control::Control;
use feed::{Feed, Received};
use fence::Fences;
use switch::Switch;

use crate::kernel::Probe;

/// What the reader asks for as its receive buffer: 50,000 denials in a quarter of a second fit.
const RECEIVE_BUFFER_BYTES: usize = 64 << 20;
/// How many records one call of [`AuditReader::read`] takes at most: so many are lost if whoever called dies before it has
/// written them down.
const READ_RECORDS_MAX: usize = 256;
/// How many bytes of record text one call of [`AuditReader::read`] takes at most.
const READ_BYTES_MAX: usize = 8 << 20;
/// How long opening waits for its own fence before it concludes that nothing arrives here.
const SELF_TEST_DEADLINE: Duration = Duration::from_secs(1);
/// Where the processes that read audit records agree on who switches it on and off.
const LOCK_DIR: &str = "/run/provost";

/// Something the audit stream said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuditEvent {
    /// The kernel announced a domain. It does so once, behind the first denial in it (two tasks refused
    /// at the same moment may make it say so twice).
    DomainAllocated {
        /// The domain's id; never reused while the machine runs.
        domain: u64,
        /// The process that restricted itself, as the initial PID namespace numbers it.
        pid: i32,
        /// Its real user, as the initial user namespace numbers them.
        uid: u32,
        /// The name of the thread that restricted itself, at that time.
        comm: String,
        /// The executable that restricted itself.
        exe: String,
    },
    /// Landlock refused something.
    Denied(LandlockDenial),
    /// The last task of an announced domain is gone.
    DomainGone {
        /// The domain's id.
        domain: u64,
        /// How often the kernel refused something in it: exact, also where records were lost.
        denials: u64,
    },
    /// A fence of this reader came back: every record queued before it was sent has been read.
    Fence(FenceId),
    /// Records were lost here, because they were not read fast enough.
    Overflow,
}

/// Whether [`AuditReader::read`] left something behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "more records may be waiting: a caller that waits for an edge must read until `Empty`"]
pub enum Drain {
    /// Everything that was there has been read.
    Empty,
    /// The bound on one call was reached; read again.
    More,
}

/// Why audit records cannot be had here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Landlock's audit records cannot be read: {reason}")]
pub struct AuditUnavailable {
    /// What is in the way, and what to do where that is known.
    pub reason: String,
}

impl AuditUnavailable {
    fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
        }
    }
}

/// Reads Landlock's audit records.
///
/// Dropping the last one on the machine undoes what was switched on. Removing the rule makes the kernel
/// wait (8 to 16 ms were measured), so who is in a hurry drops it on a thread of its own.
#[derive(Debug)]
pub struct AuditReader {
    feed: Feed,
    control: Control,
    fences: Fences,
    /// Read while opening, not yet handed out.
    stash: Vec<AuditEvent>,
    /// Overflows and unreadable records since the last call of `lost`.
    missed: u64,
    /// The kernel's lost counter when it was last looked at.
    lost_seen: u32,
    is_continued: bool,
    /// Held where audit is on because of us. Let go of in `drop`.
    switch: Option<Switch>,
}

impl AuditReader {
    /// Begins to listen, and switches audit on where it is off and nobody else's.
    ///
    /// Ends only after a fence of its own has come back: what this returns really receives records. Takes
    /// well below a millisecond, and some seconds at the very worst, for which it blocks the thread.
    ///
    /// # Errors
    /// Without the privilege, in a PID, user or network namespace, on a kernel whose Landlock writes no
    /// records, or where someone else's configuration forbids it. Nothing is left changed then.
    pub fn open() -> Result<Self, AuditUnavailable> {
        Self::open_with(Path::new(LOCK_DIR), RECEIVE_BUFFER_BYTES, None)
    }

    /// The same, at the socket of an earlier reader that somebody kept open: what came meanwhile is read first. An overflow
    /// meanwhile is in [`Self::lost`].
    ///
    /// # Errors
    /// As of [`Self::open`].
    pub fn go_on(socket: OwnedFd) -> Result<Self, AuditUnavailable> {
        Self::open_with(Path::new(LOCK_DIR), RECEIVE_BUFFER_BYTES, Some(socket))
    }

    /// It goes on where an earlier one stopped.
    pub fn is_continued(&self) -> bool {
        self.is_continued
    }

    fn open_with(
        lock_dir: &Path,
        receive_buffer_bytes: usize,
        earlier: Option<OwnedFd>,
    ) -> Result<Self, AuditUnavailable> {
        landlock_writes_records()?;
        in_initial_network()?;
        let mut control = Control::open()?;
        let is_continued = earlier.is_some();
        // Bound before anything is switched on: from the first record on, none is missed.
        let feed = match earlier {
            Some(socket) => Feed::at(socket),
            None => Feed::open(receive_buffer_bytes)?,
        };
        let fences = Fences::new().map_err(|error| {
            AuditUnavailable::new(format!("no random bytes for the fences: {error}"))
        })?;
        let switch = Switch::enter(lock_dir, &mut control)?;
        // From here on dropping it undoes what `enter` did.
        let mut reader = Self {
            feed,
            control,
            fences,
            stash: Vec::new(),
            missed: 0,
            lost_seen: 0,
            is_continued,
            switch,
        };
        reader.lost_seen = reader
            .control
            .status()
            .map_err(|error| AuditUnavailable::new(format!("its state cannot be read: {error}")))?
            .lost;
        reader.prove_that_records_arrive()?;
        Ok(reader)
    }

    /// Whether [`AuditReader::open`] could work, found out without changing anything.
    pub fn probe() -> Probe {
        match Self::try_without_changing() {
            Ok(()) => Probe::Yes,
            Err(unavailable) => Probe::No(unavailable.reason),
        }
    }

    fn try_without_changing() -> Result<(), AuditUnavailable> {
        landlock_writes_records()?;
        in_initial_network()?;
        let mut control = Control::open()?;
        Feed::open(RECEIVE_BUFFER_BYTES)?;
        Switch::could_enter(Path::new(LOCK_DIR), &mut control)
    }

    /// Appends what has arrived to `out`; never blocks. One call takes a bounded number of records, so that
    /// a flood cannot grow `out` without end.
    ///
    /// # Errors
    /// Where the socket fails. An overflow of its buffer is no error but an [`AuditEvent::Overflow`].
    pub fn read(&mut self, out: &mut Vec<AuditEvent>) -> io::Result<Drain> {
        out.append(&mut self.stash);
        let mut bytes = 0;
        for _ in 0..READ_RECORDS_MAX {
            if bytes >= READ_BYTES_MAX {
                return Ok(Drain::More);
            }
            match self.feed.receive()? {
                Received::Nothing => return Ok(Drain::Empty),
                Received::Ignored => {}
                Received::Overflow => {
                    self.missed += 1;
                    out.push(AuditEvent::Overflow);
                }
                Received::Record { kind, text } => {
                    bytes += text.len();
                    match parse_record(kind, text) {
                        // Anybody with CAP_AUDIT_WRITE may send something that looks like a fence.
                        Some(AuditEvent::Fence(fence)) if !self.fences.take(fence) => {}
                        Some(event) => out.push(event),
                        None if wire::is_landlock(kind) => self.missed += 1,
                        None => {}
                    }
                }
            }
        }
        Ok(Drain::More)
    }

    /// Sends a fence. It comes back as [`AuditEvent::Fence`] behind every record queued until now. Where
    /// the kernel drops it, it never does: wait with a deadline.
    ///
    /// While the kernel's queue is over its limit, the kernel makes whoever sends wait for it to drain:
    /// milliseconds, unless an audit daemon holds it up.
    ///
    /// # Errors
    /// Where the kernel refuses it, or does not answer within a second.
    pub fn send_fence(&mut self) -> io::Result<FenceId> {
        let fence = self.fences.next();
        // Known before it is sent, since it may be back before the answer is.
        self.fences.expect(fence);
        match self.control.send_user_message(&fence.to_string()) {
            Ok(()) => Ok(fence),
            Err(error) => {
                self.fences.take(fence);
                Err(error)
            }
        }
    }

    /// How many records may be missing since the last call (or since opening): the kernel's own counter,
    /// which counts for all kinds of records together, plus one for each overflow and each unreadable
    /// record here. Zero means that none of Landlock's records is missing. If somebody has switched audit
    /// off meanwhile, that counts too.
    ///
    /// # Errors
    /// Where the kernel does not tell; then nothing is known.
    pub fn lost(&mut self) -> io::Result<u64> {
        let status = self.control.status()?;
        let dropped = match status.lost.checked_sub(self.lost_seen) {
            Some(dropped) => u64::from(dropped),
            // Somebody set the counter back: at least as many as it shows now, perhaps more.
            None => u64::from(status.lost).max(1),
        };
        self.lost_seen = status.lost;
        let blind = u64::from(status.enabled == 0);
        Ok(dropped + blind + std::mem::take(&mut self.missed))
    }

    /// Sends a fence and waits for it: binding also works where nothing ever arrives, and somebody's rules
    /// may take messages out of the stream.
    fn prove_that_records_arrive(&mut self) -> Result<(), AuditUnavailable> {
        let failed = |error: io::Error| AuditUnavailable::new(format!("a test message failed: {error}"));
        let mut fences = vec![self.send_fence().map_err(failed)?];
        let deadline = Instant::now() + SELF_TEST_DEADLINE;
        let mut events = Vec::new();
        loop {
            let missed_before = self.missed;
            let drain = self.read(&mut events).map_err(failed)?;
            let is_ours =
                |event: &AuditEvent| matches!(event, AuditEvent::Fence(id) if fences.contains(id));
            if let Some(at) = events.iter().position(is_ours) {
                // Later ones may be on their way still: nobody waits for them.
                events.remove(at);
                self.fences.forget();
                if !self.is_continued {
                    events.retain(|event| *event != AuditEvent::Overflow);
                    self.missed = 0;
                }
                self.stash = events;
                return Ok(());
            }
            // Nobody can have been promised a record before this reader was open, or the earlier one.
            if !self.is_continued {
                events.truncate(READ_RECORDS_MAX);
            }
            if Instant::now() >= deadline {
                return Err(AuditUnavailable::new(NO_RECORD_ARRIVES));
            }
            if drain == Drain::Empty {
                if self.missed > missed_before {
                    // The fence may be among what was lost, and there is room again.
                    fences.push(self.send_fence().map_err(failed)?);
                }
                let mut fds = [PollFd::new(self.feed.as_fd(), PollFlags::POLLIN)];
                control::poll_until(&mut fds, deadline).map_err(failed)?;
            }
        }
    }
}

const NO_RECORD_ARRIVES: &str = "no record arrives here, which is so outside the initial network namespace \
    and where audit rules exclude messages of user space; run Provost in the host's network namespace";

impl AsFd for AuditReader {
    /// Readable when [`AuditReader::read`] has something to read. For waiting only.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.feed.as_fd()
    }
}

impl Drop for AuditReader {
    fn drop(&mut self) {
        if let Some(switch) = self.switch.take() {
            switch.leave(&mut self.control);
        }
    }
}

/// A share in audit being on, without reading it.
///
/// A spawner holds one for its host: who switched audit on has to put it back, which takes the kernel milliseconds,
/// and the spawner is the one that has time when its host has ended (also when its host was killed).
#[derive(Debug)]
pub struct AuditShare {
    control: Control,
    switch: Option<Switch>,
}

impl AuditShare {
    /// Takes a share where audit is on because of us; else nothing.
    ///
    /// # Errors
    /// Without the privilege, or where the state cannot be known.
    pub fn join() -> Result<Option<Self>, AuditUnavailable> {
        let mut control = Control::open()?;
        let switch = Switch::join(Path::new(LOCK_DIR), &mut control)?;
        Ok(switch.map(|switch| Self {
            control,
            switch: Some(switch),
        }))
    }
}

impl Drop for AuditShare {
    fn drop(&mut self) {
        if let Some(switch) = self.switch.take() {
            switch.leave(&mut self.control);
        }
    }
}

/// Records are sent to the initial network namespace only, although binding works in all of them.
///
/// The kernel's own threads live there, and the first of them is always number 2 (in the initial PID
/// namespace; elsewhere the audit system answers nothing anyway). PID 1 may be hidden from us. Where nothing
/// can be found out here, the fence will tell.
fn in_initial_network() -> Result<(), AuditUnavailable> {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net"));
    match (namespace("2"), namespace("self")) {
        (Ok(initial), Ok(own)) if initial != own => Err(AuditUnavailable::new(NO_RECORD_ARRIVES)),
        _ => Ok(()),
    }
}

/// Tries, on a ruleset that is never enforced, whether this kernel's Landlock knows the logging flags.
fn landlock_writes_records() -> Result<(), AuditUnavailable> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::Execute)
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.log_new_exec(true))
        .map(drop)
        .map_err(|error| {
            AuditUnavailable::new(format!(
                "this kernel's Landlock writes none; use kernel 6.15 or newer ({error})"
            ))
        })
}
