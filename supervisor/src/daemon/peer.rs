//! Who is at the other end of a connection.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::{PeerCredentials, PeerPidfd};
use nix::sys::socket::{UnixAddr, getpeername, getsockopt};
use serde::{Deserialize, Serialize};

/// What clients get that are confined themselves (a seccomp filter and no new privileges, or namespaces of their own): with
/// a daemon that started anything for them they would not be confined.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfinedPeers {
    /// Nothing.
    #[default]
    Refuse,
    /// Processes under this policy alone: a preset, a policy's name, or a file.
    Policy(String),
}

/// The process that connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its uid when it connected.
    pub uid: u32,
    /// Its pid then. For logs.
    pub pid: i32,
    /// Why it counts as confined, if it does.
    pub confined: Option<String>,
}

impl Peer {
    /// Asks the kernel (`SO_PEERCRED`, unix(7)) and `/proc`. A peer that cannot be looked at counts as confined; one
    /// that is gone already is an error.
    ///
    /// # Errors
    /// The socket is none, or the peer is gone.
    pub fn of(socket: &impl AsFd) -> io::Result<Self> {
        let credentials = getsockopt(socket, PeerCredentials)?;
        // Held while its number is used: from 6.5 on the kernel says whether it still is that process (older ones leave
        // the moment in which a number could be reused).
        let pidfd = getsockopt(socket, PeerPidfd).ok();
        let pid = credentials.pid();
        // Root of this machine may do everything anyway, and may not be looked at.
        let trusted = credentials.uid() == 0 && !nix::unistd::geteuid().is_root();
        // Ordinary clients have no name; a supervisor that connects on behalf of what it confines gives it one.
        let name = getpeername::<UnixAddr>(socket.as_fd().as_raw_fd())?;
        let is_named = name.path().is_some() || name.as_abstract().is_some();
        let confined = match (is_named, trusted) {
            (true, _) => Some("its socket has a name, like that of a supervised command".to_owned()),
            (false, true) => None,
            (false, false) => confinement(pid),
        };
        if let Some(pidfd) = pidfd {
            let mut ended = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ended, PollTimeout::ZERO)? > 0 {
                return Err(io::Error::new(
                    io::ErrorKind::ConnectionAborted,
                    "the peer is gone",
                ));
            }
        }
        Ok(Self {
            uid: credentials.uid(),
            pid,
            confined,
        })
    }
}

/// Why this process counts as confined, compared with us.
fn confinement(pid: i32) -> Option<String> {
    if pid <= 0 {
        return Some("it is in a PID namespace that is not ours".to_owned());
    }
    let proc = Path::new("/proc").join(pid.to_string());
    let Ok(status) = fs::read_to_string(proc.join("status")) else {
        return Some("it cannot be looked at".to_owned());
    };
    let field = |status: &str, name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
    };
    let own = fs::read_to_string("/proc/self/status").unwrap_or_default();
    // A filter that we are under as well confines nobody more than us.
    let filters = |status: &str| {
        let bound = field(status, "Seccomp").as_deref() == Some("2")
            && field(status, "NoNewPrivs").as_deref() == Some("1");
        // Counted since Linux 5.9.
        let count = || field(status, "Seccomp_filters")?.parse::<u32>().ok();
        if bound { count().unwrap_or(1) } else { 0 }
    };
    if filters(&status) > filters(&own) {
        return Some("it is under a seccomp filter and gains no new privileges".to_owned());
    }
    for namespace in ["user", "mnt", "pid", "net"] {
        let of = |who: &Path| fs::read_link(who.join("ns").join(namespace)).ok();
        let (theirs, ours) = (of(&proc), of(Path::new("/proc/self")));
        // One that may not be read is that of a process which hides itself (PR_SET_DUMPABLE).
        let Some(theirs) = theirs else {
            return Some(format!("its {namespace} namespace cannot be looked at"));
        };
        if Some(theirs) != ours {
            return Some(format!("it is in another {namespace} namespace"));
        }
    }
    None
}
