//! Calls that are refused as such.

use nix::errno::Errno;

use super::{Call, Decided, Decider, Listener, Notification};
use crate::denial::{DenialClass, DenialTarget};
use crate::syscalls::Entry;

/// The bit by which an x86_64 kernel tells x32 calls from its own; no other ABI has numbers that high.
const X32_BIT: u32 = 0x4000_0000;

/// The refused ioctl commands, by name.
const IOCTLS: &[(u32, &str)] = &[
    (0x5412, "TIOCSTI"),
    (0x541c, "TIOCLINUX"),
    (0x4008_6602, "FS_IOC_SETFLAGS"),
    (0x4004_6602, "FS_IOC32_SETFLAGS"),
    (0x401c_5820, "FS_IOC_FSSETXATTR"),
];

/// The refused socket options: level, option, name and the protocol under it.
const SOCKET_OPTIONS: &[(i32, i32, &str)] = &[
    (libc::SOL_TCP, libc::TCP_ULP, "TCP_ULP"),
    (libc::SOL_IP, libc::IP_OPTIONS, "IP_OPTIONS"),
    (libc::SOL_IPV6, 57, "IPV6_RTHDR"),
    (libc::SOL_IPV6, 5, "IPV6_2292RTHDR"),
    (libc::SOL_IPV6, 6, "IPV6_2292PKTOPTIONS"),
];

impl Decider {
    /// A call by way of another architecture's ABI: its number means nothing here.
    pub(super) fn foreign(&self, listener: &Listener, n: &Notification, abi: &'static str) -> Decided {
        let call = Call {
            listener,
            notification: n,
            name: "syscall",
        };
        let number = n.number & !X32_BIT;
        call.refuse_syscall(
            Errno::ENOSYS,
            &format!("{abi}:{number}"),
            "system calls of another architecture are refused",
        )
    }

    /// A call that acts on a process: only the tree's own.
    ///
    /// The call itself then runs in the target, where the number might by then be another process's, had
    /// the first one died within these microseconds *and* every other number been used up. A PID namespace
    /// rules that out; the filter asks only where there is none.
    pub(super) fn pid_argument(&self, call: Call<'_>, entry: &Entry) -> Decided {
        let permitted = entry
            .named_process(&call.notification.args)
            .is_some_and(|pid| pid == 0 || self.setup.tree.contains_as_seen_by(call.tid(), pid));
        if permitted && call.is_valid() {
            return Decided::CONTINUE;
        }
        call.refuse_syscall(Errno::EPERM, entry.name, entry.reason)
    }
}

impl Call<'_> {
    pub(super) fn refuse_syscall(&self, errno: Errno, target: &str, reason: &str) -> Decided {
        self.deny(DenialClass::Syscall, errno, DenialTarget::syscall(target), reason)
    }

    pub(super) fn refuse_ioctl(&self, entry: &Entry) -> Decided {
        let command = self.int(1).cast_unsigned();
        let name = match IOCTLS.iter().find(|(value, _)| *value == command) {
            Some((_, name)) => format!("ioctl({name})"),
            None => format!("ioctl({command:#x})"),
        };
        self.refuse_syscall(Errno::EPERM, &name, entry.reason)
    }

    pub(super) fn refuse_socket_option(&self, entry: &Entry) -> Decided {
        let (level, option) = (self.int(1), self.int(2));
        let name = match SOCKET_OPTIONS
            .iter()
            .find(|known| (known.0, known.1) == (level, option))
        {
            Some((_, _, name)) => format!("setsockopt({name})"),
            None => format!("setsockopt(level {level}, option {option})"),
        };
        let target = DenialTarget {
            syscall: Some(name),
            protocol: (level == libc::SOL_TCP).then(|| "tcp".to_owned()),
            ..DenialTarget::default()
        };
        self.deny_net(Errno::EPERM, target, entry.reason)
    }
}
