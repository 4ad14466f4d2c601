//! The messages between a supervisor and its spawner or keeper.
//!
//! One message per packet of a `SOCK_SEQPACKET` socket: two bytes of version, then the message as
//! postcard. Descriptors travel beside it (`SCM_RIGHTS`), all close-on-exec. A message that does not fit a
//! packet is put into a memory file, whose descriptor is then the last one, and the packet is empty after
//! the version.

use std::fs::File;
use std::io::{self, IoSlice, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use super::held::{Held, HeldState, HeldTree, Kept, TreeEnd};
use super::plan::SandboxPlan;
use super::{Step, packet};
use crate::extras::Extras;
use crate::kernel::KernelSupport;

/// The protocol's version; a spawner of another version is refused.
pub const VERSION: u16 = 7;

/// Longer messages go through a memory file.
const PACKET_BYTES_MAX: usize = 32 * 1024;
/// Longer messages than this are refused: argv and env together may not exceed the kernel's 2 MiB by much.
const MESSAGE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// From the supervisor to the spawner.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// The first message. Answered with [`Notice::Hello`]. The first on a connection to a keeper is also answered with
    /// everything that it holds: [`Notice::Held`] for each process, [`Notice::HeldNamed`] for each named descriptor, then
    /// [`Notice::HeldAll`]; before it a keeper says nothing of any process.
    Hello {
        /// Also try what is slow to try (network namespaces).
        thorough: bool,
    },
    /// Start a command. Descriptors: the rulesets, then stdin if it is [`Stdin::Given`]. Idempotent: an id that
    /// was used before starts nothing. A keeper that still knows it answers with [`Notice::Held`]; otherwise the answer
    /// is [`Notice::Duplicate`], as long as the id is among the last 4,096 that ended.
    Spawn(Box<SpawnRequest>),
    /// Send a signal.
    Signal {
        /// To which process.
        process: Uuid,
        /// Signal number.
        signal: i32,
        /// To which of its tasks.
        scope: SignalScope,
    },
    /// Hold a share in audit being on, and put it back at the end if nobody else needs it. A keeper gives it back when
    /// nobody is connected and nothing that it holds lives.
    ShareAudit,
    /// Kill the whole tree.
    Kill {
        /// Which.
        process: Uuid,
    },
    /// To a keeper: what it knows of this process is written down elsewhere, so it need not keep it. Of a process that
    /// still lives nothing is said any more, and nothing is kept once it has ended.
    Forget {
        /// Which.
        process: Uuid,
    },
    /// To a keeper: close its own copies of some of a process's descriptors.
    Release {
        /// Of which.
        process: Uuid,
        /// Which of them.
        what: Kept,
    },
    /// To a keeper: keep the descriptor that comes along, for whoever connects next, in place of what was kept under the
    /// same name. Without a descriptor nothing is kept under that name any more. Answered with [`Notice::NotHeld`] where
    /// it cannot be kept, and not at all otherwise.
    Hold {
        /// At most [`NAME_BYTES_MAX`] bytes.
        name: String,
    },
    /// To a keeper: append how processes end to the file that comes along, which is open for appending
    /// (`keeper::exits` reads it). What has ended and was not forgotten is appended at once, whether or not it is in
    /// there already. The keeper empties the file whenever it holds nothing that has ended: read it before it is given.
    ExitsFile,
    /// To a keeper: answer on the socket that comes along what the kernel may refuse to tell us (`keeper::errand`), in
    /// place of the one before, until this connection ends. A socket from another PID namespace is closed.
    Errands {
        /// The inode of ours (`/proc/self/ns/pid`): there numbers of threads mean the same.
        pid_namespace: u64,
    },
    /// End everything, and yourself. To a spawner that is what closing the socket says.
    Stop,
}

/// The longest name of a descriptor that a keeper keeps, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// How many named descriptors a keeper keeps.
pub const NAMES_MAX: usize = 32;

/// To whom a signal goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignalScope {
    /// The command alone.
    Leader,
    /// The command's process group.
    Group,
    /// Every process of the tree.
    Tree,
}

/// What to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnRequest {
    /// The process id.
    pub process: Uuid,
    /// The sandbox.
    pub plan: Arc<SandboxPlan>,
    /// How many of the descriptors are rulesets.
    pub rulesets: u32,
    /// Files to try to execute, in order (what PATH and `argv[0]` make).
    pub candidates: Vec<Vec<u8>>,
    /// Arguments, the program's name first.
    pub argv: Vec<Vec<u8>>,
    /// `KEY=VALUE` strings.
    pub env: Vec<Vec<u8>>,
    /// Working directory.
    pub cwd: Vec<u8>,
    /// Standard input.
    pub stdin: Stdin,
    /// What it gets besides.
    pub extras: Extras,
}

/// Standard input of a command. Its output goes to two pipes, unless this is a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdin {
    /// `/dev/null`.
    Null,
    /// A pipe whose writing end comes back.
    Pipe,
    /// The descriptor that came with the request.
    Given,
    /// A pseudo-terminal, the command's controlling one, which is its output too. The master comes back.
    Terminal(TerminalSize),
}

/// The size of a terminal's window, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

impl Default for TerminalSize {
    /// What a terminal has that says nothing else: 24×80.
    fn default() -> Self {
        Self { rows: 24, cols: 80 }
    }
}

/// From the spawner to the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub enum Notice {
    /// Who answers, and what can be had here.
    Hello {
        /// The spawner's pid.
        pid: i32,
        /// What was found by trying.
        support: Box<KernelSupport>,
    },
    /// The command runs: exec succeeded. Descriptors: see [`Started`].
    Started(Started),
    /// The command was not started.
    Failed {
        /// Which.
        process: Uuid,
        /// Where it failed.
        step: Step,
        /// Why.
        errno: i32,
        /// An index that tells which of several (mount step, ruleset).
        detail: u32,
    },
    /// The id was used before and nothing else is known of it; nothing was started.
    Duplicate {
        /// Which.
        process: Uuid,
    },
    /// The command ended.
    Exited {
        /// Which.
        process: Uuid,
        /// The raw wait status.
        status: i32,
    },
    /// The tree is empty: nothing of it lives.
    Ended {
        /// Which.
        process: Uuid,
        /// How many of it had to be killed.
        killed: u64,
        /// What the whole tree used; absent where its init was killed, who alone could count.
        usage: Option<Usage>,
        /// How often its groups held it back.
        hits: LimitHits,
    },
    /// From a keeper, as soon as it has accepted a connection: it serves this one, and no other any more.
    Welcome {
        /// The keeper's pid.
        pid: i32,
    },
    /// From a keeper: all that it knows of a process. Descriptors: see [`Held`].
    Held(Held),
    /// From a keeper: a descriptor that was kept under a name, which comes along.
    HeldNamed {
        /// The name.
        name: String,
    },
    /// From a keeper: that was all that it holds.
    HeldAll {
        /// How many processes were told with [`Notice::Held`].
        trees: u64,
        /// How many named descriptors.
        named: u64,
    },
    /// From a keeper: this name keeps nothing now.
    NotHeld {
        /// The name.
        name: String,
        /// Why: `EMFILE` or `ENFILE` for want of descriptors, `E2BIG` for a name or a number of them too large.
        errno: i32,
    },
}

/// How often the limits of a tree's groups held it back, as the kernel counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitHits {
    /// Tasks that the kernel killed because memory was at its limit.
    pub out_of_memory: u64,
    /// Forks that were refused because there were as many tasks as there may be.
    pub tasks: u64,
    /// A counter that should be there could not be read.
    pub unknown: bool,
}

/// A command that runs. Descriptors beside it, in order: the command's pidfd; the terminal's master if `terminal`, else
/// stdout and stderr; the reading and the writing end of a pipe if `relay`; then the writing end of stdin if `stdin_pipe`, then the seccomp listener if `listener`, then
/// what `extras` says: the place for its result, and where it is heard that it is ready; then what it says that with, if that is a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Which.
    pub process: Uuid,
    /// The command's pid as the spawner sees it.
    pub pid: i32,
    /// The init's pid as the spawner sees it.
    pub init_pid: i32,
    /// The inode of the tree's PID namespace; 0 without one.
    pub pid_namespace: u64,
    /// A terminal comes with it, and no pipe.
    pub terminal: bool,
    /// With the terminal comes an empty, non-blocking pipe, through which its bytes can be moved into files: a keeper keeps
    /// what is in it, too.
    pub relay: bool,
    /// A stdin pipe comes with it.
    pub stdin_pipe: bool,
    /// A seccomp listener comes with it.
    pub listener: bool,
    /// What else comes with it.
    pub extras: Extras,
}

/// What a tree used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Microseconds of CPU in user mode.
    pub user_us: u64,
    /// Microseconds of CPU in the kernel.
    pub system_us: u64,
    /// Largest resident set of one process, in bytes.
    pub max_rss_bytes: u64,
}

/// Sends one message with its descriptors.
///
/// # Errors
/// `WouldBlock` on a non-blocking socket that is full; `BrokenPipe` or `ConnectionReset` when the peer is gone.
pub fn send<M: Serialize>(socket: BorrowedFd<'_>, message: &M, fds: &[RawFd]) -> io::Result<()> {
    let mut packet = VERSION.to_le_bytes().to_vec();
    packet = postcard::to_extend(message, packet).map_err(io::Error::other)?;
    if packet.len() <= PACKET_BYTES_MAX {
        return send_packet(socket, &packet, fds);
    }
    let mut file = File::from(memfd_create(c"provost-message", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&packet)?;
    let mut all = fds.to_vec();
    all.push(file.as_raw_fd());
    send_packet(socket, &VERSION.to_le_bytes(), &all)
}

fn send_packet(socket: BorrowedFd<'_>, packet: &[u8], fds: &[RawFd]) -> io::Result<()> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    loop {
        match sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(packet)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Receives one message with its descriptors; `None` when the peer closed the socket.
///
/// # Errors
/// `WouldBlock` on a non-blocking socket with nothing to read; `InvalidData` for another version, a message that
/// cannot be read. A process that has no room for the descriptors gets those that fit: count them.
pub fn receive<M: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    // On the stack: a block of this size from the allocator is given back and faulted in again for each message.
    receive_into(socket, &mut [const { MaybeUninit::uninit() }; PACKET_BYTES_MAX])
}

/// A buffer for [`receive_into`].
pub(crate) fn buffer() -> Box<Buffer> {
    Box::new([const { MaybeUninit::uninit() }; PACKET_BYTES_MAX])
}

/// Room for any packet.
pub(crate) type Buffer = [MaybeUninit<u8>; PACKET_BYTES_MAX];

/// As [`receive`], for who forks: of a buffer on the stack every page is touched by the stack's probes, and after a fork
/// each page that is touched is copied. Of this one only those are that the message fills.
pub(crate) fn receive_into<M: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    buffer: &mut Buffer,
) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let received =
        packet::receive(socket.as_raw_fd(), buffer, 0).map_err(io::Error::from_raw_os_error)?;
    let mut fds: Vec<OwnedFd> = received.fds.into_iter().flatten().collect();
    if received.bytes.is_empty() {
        return Ok(None);
    }
    if received.is_cut {
        return Err(invalid("a message was cut off"));
    }
    let body;
    let mut packet = received.bytes;
    if packet.len() == 2 {
        let file = fds
            .pop()
            .ok_or_else(|| invalid("an empty message, or no room for its descriptors"))?;
        body = read_body(File::from(file))?;
        packet = &body;
    }
    let (version, body) = packet
        .split_at_checked(2)
        .ok_or_else(|| invalid("a short message"))?;
    if version != VERSION.to_le_bytes() {
        let theirs = u16::from_le_bytes([version[0], version[1]]);
        return Err(invalid(&format!(
            "the peer speaks version {theirs} of the spawner protocol, not {VERSION}: it is another release of provost"
        )));
    }
    let message = postcard::from_bytes(body).map_err(|e| invalid(&e.to_string()))?;
    Ok(Some((message, fds)))
}

fn read_body(mut file: File) -> io::Result<Vec<u8>> {
    if file.metadata()?.len() > MESSAGE_BYTES_MAX {
        return Err(invalid("a message is larger than 16 MiB"));
    }
    file.rewind()?;
    let mut body = Vec::new();
    file.take(MESSAGE_BYTES_MAX).read_to_end(&mut body)?;
    Ok(body)
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
