//! The socket with which a program says that it is ready, as sd_notify(3) does.
//!
//! There is no such socket in any name space: unix datagram sockets can address any other, and stay closed. A program that
//! asks for one gets a duplicate of one end of a pair of local sockets instead, whose other end is ours. It can send to us
//! with it, whatever address it gives or its threads put there meanwhile, and to nobody else; and nobody can who does not
//! have it from the program. So who sends needs no proof, and the calls with an address are looked at only to refuse
//! and to tell those that mean somebody else.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;

use super::address::{SocketAddress, UnixName};
use super::socket::SocketKind;
use super::transfer::destination;
use super::{Call, Decided, Decider, Response, listener};
use crate::denial::DenialTarget;
use crate::extras::NOTIFY_NAME;

impl Decider {
    /// socket(2) for a unix datagram socket. `None` where the program was not asked to say so.
    pub(super) fn make_ready_socket(&self, call: Call<'_>, kind: SocketKind) -> Option<Decided> {
        let is_meant = kind.is_unix() && kind.type_ == libc::SOCK_DGRAM && kind.protocol == 0;
        let sender = self.setup.ready.as_ref().filter(|_| is_meant)?;
        let close_on_exec = call.int(1) & libc::SOCK_CLOEXEC != 0;
        let given = call
            .listener
            .give(call.notification.id, sender.as_fd(), close_on_exec);
        Some(match given {
            // The kernel has answered already: this answer finds nobody who waits.
            Ok(fd) => Decided::now(Response::Value(fd)),
            Err(errno) => Decided::error(errno),
        })
    }

    /// Whether a duplicate is that socket.
    pub(super) fn is_ready_socket(&self, socket: &OwnedFd) -> bool {
        let cookie = |socket: &OwnedFd| listener::socket_u64(socket.as_fd(), libc::SO_COOKIE).ok();
        let sender = self.setup.ready.as_ref();
        sender.is_some_and(|sender| cookie(sender).is_some() && cookie(sender) == cookie(socket))
    }

    /// connect(2): it is connected already.
    pub(super) fn connect_ready_socket(&self, call: Call<'_>, address: &SocketAddress) -> Decided {
        if address.family() == Some(libc::AF_UNSPEC) || is_ours(address) {
            return Decided::now(Response::Value(0));
        }
        self.deny_datagram_to(call, address)
    }

    /// A send that may carry an address; it runs on in the target. `None` where it is none with that socket.
    pub(super) fn send_by_ready_socket(&self, call: Call<'_>) -> Option<Decided> {
        self.setup.ready.as_ref()?;
        let (socket, _) = self.duplicate(call).ok()?;
        if !self.is_ready_socket(&socket) {
            return None;
        }
        Some(match destination(call) {
            Ok(Some(address)) if !is_ours(&address) => self.deny_datagram_to(call, &address),
            Ok(_) => Decided::CONTINUE,
            Err(unavailable) => call.fail(unavailable),
        })
    }

    fn deny_datagram_to(&self, call: Call<'_>, address: &SocketAddress) -> Decided {
        let target = DenialTarget {
            path: address.unix().ok().map(|name| name.display()),
            protocol: Some("unix-dgram".to_owned()),
            ..DenialTarget::default()
        };
        let rule = format!("{}; sockets of other programs are closed", self.net_rule);
        call.deny_net(Errno::EACCES, target, rule)
    }
}

fn is_ours(address: &SocketAddress) -> bool {
    matches!(address.unix(), Ok(UnixName::Abstract(name)) if name == NOTIFY_NAME.as_bytes())
}
