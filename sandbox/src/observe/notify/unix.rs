//! Connecting to unix sockets: only to those of the process's own tree.
//!
//! The connect is performed here and lends the target our credentials, so a server sees *us* as its peer
//! (`SO_PEERCRED`). Servers of the tree itself lose nothing by that; any other is refused. It is not enough
//! that a path looks right: the file is looked up once, in the target's own view, and held; the socket that is
//! bound to that very file must be open in a process of the tree; and the connect goes to the held file.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, getpeername, getsockname, socket};
use nix::sys::stat::fstat;

use super::address::{SocketAddress, UnixName};
use super::diag::{BoundSocket, Diag, Sought};
use super::socket::SocketKind;
use super::{Answer, BlockingConnect, Call, Decided, Decider, Grant, Tree, errands, listener};
use crate::denial::DenialTarget;

/// Descriptors that are looked at before a server counts as not found.
const DESCRIPTORS_MAX: usize = 65_536;

/// Services that the C library asks for names, in every program and harmlessly: absent as far as sandboxed
/// programs are concerned.
const LOOKUPS: &[(&str, &str)] = &[
    ("/run/nscd/socket", "connect(nscd)"),
    ("/var/run/nscd/socket", "connect(nscd)"),
    ("/run/systemd/userdb", "connect(userdb)"),
    ("/var/lib/sss/pipes", "connect(sssd)"),
];

impl Decider {
    pub(super) fn connect_unix(
        &mut self,
        call: Call<'_>,
        socket: OwnedFd,
        kind: SocketKind,
        address: SocketAddress,
    ) -> Decided {
        match address.unix() {
            Ok(UnixName::Path(path)) => self.connect_path(call, socket, kind, &path),
            Ok(UnixName::Abstract(name)) => self.connect_abstract(call, socket, kind, address, &name),
            Err(errno) => Decided::error(errno),
        }
    }

    fn connect_path(
        &mut self,
        call: Call<'_>,
        socket: OwnedFd,
        kind: SocketKind,
        path: &[u8],
    ) -> Decided {
        let refuse = |errno, path: &str| {
            let target = DenialTarget {
                path: Some(path.to_owned()),
                protocol: Some(kind.name()),
                ..DenialTarget::default()
            };
            let rule = format!("{}; sockets of other programs are closed", self.net_rule);
            call.deny_net(errno, target, rule)
        };
        let Ok(view) = self.view(call) else {
            return call.deny_unreadable();
        };
        let looked_up = view
            .absolute(libc::AT_FDCWD, path)
            .and_then(|path| view.lookup_thoroughly(&path));
        if !call.is_valid() {
            return Decided::error(Errno::ESRCH);
        }
        let found = match looked_up {
            Ok(found) => found,
            // By way of a link in /proc, which we cannot follow as the target would.
            Err(errno @ (Errno::ELOOP | Errno::EXDEV)) => {
                return refuse(errno, &String::from_utf8_lossy(path));
            }
            Err(errno) => return Decided::error(errno),
        };
        let Ok(stat) = fstat(found.file.as_fd()) else {
            return Decided::error(Errno::EIO);
        };
        if stat.st_mode & libc::S_IFMT != libc::S_IFSOCK {
            return Decided::error(Errno::ECONNREFUSED);
        }
        if let Some(lookup) = lookup_service(&found.path) {
            return Decided::probe(Errno::ECONNREFUSED, lookup.to_owned());
        }
        let shown = found.path.to_string_lossy();
        let by_descriptor = format!("/proc/self/fd/{}", found.file.as_raw_fd());
        let Some(held) = SocketAddress::unix_path(by_descriptor.as_bytes()) else {
            return refuse(Errno::EACCES, &shown);
        };
        if let Some(errno) = nobody_there(kind, &held) {
            return Decided::error(errno);
        }
        let sought = Sought::File {
            device: stat.st_dev,
            inode: stat.st_ino,
        };
        if self
            .own_sockets
            .find(&self.setup.tree, call.tid(), socket.as_fd(), kind, sought)
            != Owner::Tree
        {
            let is_allowed = self.setup.net.unix.iter().any(|rule| rule.path == found.path);
            let may_ask = self.setup.ask.net && !self.setup.metadata.denies(&found.path);
            if !is_allowed && !may_ask {
                return refuse(Errno::EACCES, &shown);
            }
            if let Err(errno) = mark(&socket) {
                return Decided::error(errno);
            }
            let grant = Grant::Socket {
                path: found.path.clone(),
            };
            if !is_allowed && !self.is_granted(&grant) {
                let target = DenialTarget {
                    path: Some(shown.into_owned()),
                    protocol: Some(kind.name()),
                    ..DenialTarget::default()
                };
                let connect = BlockingConnect::new(socket, held, Some(found.file));
                return self.ask_to_connect(call, connect, grant, Errno::EACCES, target);
            }
        }
        Decided {
            answer: Answer::Blocking(BlockingConnect::new(socket, held, Some(found.file))),
            observation: None,
        }
    }

    fn connect_abstract(
        &mut self,
        call: Call<'_>,
        socket: OwnedFd,
        kind: SocketKind,
        address: SocketAddress,
        name: &[u8],
    ) -> Decided {
        let owner = self.own_sockets.find(
            &self.setup.tree,
            call.tid(),
            socket.as_fd(),
            kind,
            Sought::Abstract(name),
        );
        if !call.is_valid() {
            return Decided::error(Errno::ESRCH);
        }
        match owner {
            // Between this and the connect the name may change hands only if its owner, which is in the
            // tree, lets go of it and a stranger takes it up at once.
            Owner::Tree => Decided {
                answer: Answer::Blocking(BlockingConnect::new(socket, address, None)),
                observation: None,
            },
            Owner::Nobody => Decided::error(Errno::ECONNREFUSED),
            Owner::Stranger => call.deny_net(
                Errno::EACCES,
                self.target(kind, &address),
                format!("{}; sockets of other programs are closed", self.net_rule),
            ),
        }
    }
}

/// Gives a socket that has no name one of the kernel's choice (unix(7), autobind). Whoever is connected sees our
/// credentials, not the target's: by the name Provost's own daemon knows that somebody confined is behind them.
fn mark(socket: &OwnedFd) -> Result<(), Errno> {
    const FAMILY_ALONE: [u8; 2] = (libc::AF_UNIX as u16).to_ne_bytes();
    match listener::bind(socket.as_fd(), &FAMILY_ALONE) {
        // It has a name already, or is connected already: what comes of the connect is the kernel's to say.
        Err(Errno::EINVAL) => Ok(()),
        marked => marked,
    }
}

fn lookup_service(path: &Path) -> Option<&'static str> {
    let known = LOOKUPS.iter().find(|(prefix, _)| path.starts_with(prefix));
    known.map(|&(_, name)| name)
}

/// The kernel's answer where no socket is bound to the file (any more), or one of another type.
///
/// A connect from a socket of the wrong type tells: it is refused in different ways, without the server
/// learning of it.
fn nobody_there(kind: SocketKind, held: &SocketAddress) -> Option<Errno> {
    if kind.type_ == libc::SOCK_DGRAM {
        return None;
    }
    let wrong = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    );
    match listener::connect(wrong.ok()?.as_fd(), held.as_bytes()) {
        Ok(()) => Some(Errno::EPROTOTYPE),
        Err(Errno::EPROTOTYPE) => None,
        Err(errno) => Some(errno),
    }
}

/// Whose socket it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// A process of the tree has it open.
    Tree,
    /// Somebody else's, or it cannot be proven whose.
    Stranger,
    /// There is no such socket.
    Nobody,
}

/// Finds sockets that the process's own tree has open.
#[derive(Debug, Default)]
pub(super) struct OwnSockets {
    diag: Option<Diag>,
}

impl OwnSockets {
    fn find(
        &mut self,
        tree: &Tree,
        target: i32,
        client: BorrowedFd<'_>,
        kind: SocketKind,
        sought: Sought<'_>,
    ) -> Owner {
        self.try_find(tree, target, client, kind, sought)
            .unwrap_or(Owner::Stranger)
    }

    fn try_find(
        &mut self,
        tree: &Tree,
        target: i32,
        client: BorrowedFd<'_>,
        kind: SocketKind,
        sought: Sought<'_>,
    ) -> Result<Owner, Errno> {
        let diag = match &mut self.diag {
            Some(diag) => diag,
            none => none.insert(Diag::open()?),
        };
        let namespace = listener::socket_u64(client, libc::SO_NETNS_COOKIE)?;
        if namespace != diag.namespace()? {
            return Ok(find_elsewhere(tree, target, namespace, kind, sought));
        }
        // The kernel's list sees this network namespace: at most one socket is the right one, and its
        // cookie identifies it for good.
        let BoundSocket { inode, cookie } = match *diag.find(kind.type_, sought)?.as_slice() {
            [] if matches!(sought, Sought::Abstract(_)) => return Ok(Owner::Nobody),
            [one] => one,
            _ => return Ok(Owner::Stranger),
        };
        let held = in_tree(
            tree,
            target,
            |candidate| candidate == inode,
            |socket| listener::socket_u64(socket, libc::SO_COOKIE) == Ok(cookie),
        );
        Ok(if held { Owner::Tree } else { Owner::Stranger })
    }
}

/// The search where the kernel's list does not reach: in a network namespace of the target's own. Its maker may
/// ask each of the tree's sockets for the file it is bound to.
fn find_elsewhere(
    tree: &Tree,
    target: i32,
    namespace: u64,
    kind: SocketKind,
    sought: Sought<'_>,
) -> Owner {
    let is_sought = |socket: BorrowedFd<'_>| {
        let alike = SocketKind::of(socket) == Ok(kind)
            && listener::socket_u64(socket, libc::SO_NETNS_COOKIE) == Ok(namespace);
        if !alike {
            return false;
        }
        match sought {
            Sought::Abstract(name) => {
                unconnected(socket, kind)
                    && getsockname::<UnixAddr>(socket.as_raw_fd())
                        .is_ok_and(|address| address.as_abstract() == Some(name))
            }
            Sought::File { device, inode } => {
                unconnected(socket, kind)
                    && listener::unix_file(socket)
                        .and_then(fstat)
                        .is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (device, inode))
            }
        }
    };
    if in_tree(tree, target, |_| true, is_sought) {
        return Owner::Tree;
    }
    match sought {
        Sought::Abstract(name) if !may_be_bound(target, name) => Owner::Nobody,
        _ => Owner::Stranger,
    }
}

/// A socket that accept(2) made carries its listener's name and file, and is not the one sought.
fn unconnected(socket: BorrowedFd<'_>, kind: SocketKind) -> bool {
    kind.type_ == libc::SOCK_DGRAM
        || getpeername::<UnixAddr>(socket.as_raw_fd()).is_err_and(|errno| errno == Errno::ENOTCONN)
}

/// Whether an abstract name may be in use in the target's network namespace.
fn may_be_bound(target: i32, name: &[u8]) -> bool {
    let Ok(list) = fs::read(format!("/proc/{target}/net/unix")) else {
        return true;
    };
    // The list shows NUL bytes as `@`, and nothing escaped.
    let shown: Vec<u8> = [b" @", name]
        .concat()
        .iter()
        .map(|&byte| if byte == 0 { b'@' } else { byte })
        .collect();
    shown.contains(&b'\n')
        || list
            .split(|&byte| byte == b'\n')
            .any(|line| line.ends_with(&shown))
}

/// Whether a process of the tree, the target's first of all, has a socket open that is the one sought: its
/// inode number is `plausible`, and a duplicate of it `is_sought`.
fn in_tree(
    tree: &Tree,
    target: i32,
    plausible: impl Fn(u32) -> bool,
    is_sought: impl Fn(BorrowedFd<'_>) -> bool,
) -> bool {
    let mut descriptors_left = DESCRIPTORS_MAX;
    let mut holds = |pid: i32, pidfd: Result<OwnedFd, Errno>| {
        // The pidfd first: if its process still lives after the search, then `pid` was its number
        // throughout, and everything found by that number was found in it.
        let Ok(pidfd) = pidfd else { return false };
        if !tree.contains(pid) {
            return false;
        }
        let found = sockets_of(pid)
            .take_while(|_| {
                descriptors_left = descriptors_left.saturating_sub(1);
                descriptors_left > 0
            })
            .any(|(fd, inode)| {
                inode.is_some_and(&plausible)
                    && errands::descriptor(pid, &pidfd, fd).is_ok_and(|socket| is_sought(socket.as_fd()))
            });
        found && lives(&pidfd)
    };
    if holds(target, listener::pidfd_of_thread(target)) {
        return true;
    }
    let Ok(processes) = fs::read_dir("/proc") else {
        return false;
    };
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .any(|pid| holds(pid, listener::pidfd_of_process(pid)))
}

/// A process's descriptors, with the inode numbers of those that are sockets.
fn sockets_of(pid: i32) -> impl Iterator<Item = (i32, Option<u32>)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let fd = entry.file_name().to_str()?.parse().ok()?;
        let link = fs::read_link(entry.path()).ok()?;
        let inode = link
            .to_str()
            .and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']'));
        Some((fd, inode.and_then(|inode| inode.parse().ok())))
    })
}

fn lives(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO) == Ok(0)
}
