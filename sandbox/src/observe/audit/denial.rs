//! One refusal of Landlock's, and what it means in the words of [`Denial`].

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::denial::{Certainty, Decision, Denial, DenialClass, DenialTarget};

/// Landlock refused something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LandlockDenial {
    /// The domain that refused, by its id. Where domains are nested, the youngest that refuses is named.
    pub domain: u64,
    /// The rights that were missing, as the kernel names them: `fs.read_file`, `net.connect_tcp`, …; never
    /// empty.
    pub blockers: Vec<String>,
    /// What it was attempted on.
    pub target: LandlockTarget,
}

/// What Landlock refused access to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LandlockTarget {
    /// A file. Where something in a directory was to be made, removed or renamed, the directory.
    File {
        /// The path as the kernel sees it. It ends in ` (deleted)` where it is gone.
        #[serde(with = "path_bytes")]
        path: PathBuf,
        /// The file system's id, mostly a device's name.
        device: Option<String>,
        /// The inode's number.
        inode: Option<u64>,
    },
    /// An address: the local one for binding, the remote one for connecting.
    Net {
        /// The address; none for the wildcard.
        address: Option<IpAddr>,
        /// The port; none for 0.
        port: Option<u16>,
    },
    /// Another process.
    Task {
        /// The process, as the initial PID namespace numbers it.
        pid: i32,
        /// Its name.
        comm: String,
    },
    /// A Unix socket; the names of abstract ones begin with `@`.
    Socket {
        /// Its name.
        name: String,
    },
    /// The record says it in a form that is not known here.
    Unknown,
}

/// A path need not be text.
mod path_bytes {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        path.as_os_str().as_bytes().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        Vec::<u8>::deserialize(deserializer).map(|bytes| OsString::from_vec(bytes).into())
    }
}

/// What a set of blockers means.
struct Meaning {
    class: DenialClass,
    operation: &'static str,
    /// What a policy would have to grant, for the search for the rule.
    access: &'static str,
    errno: &'static str,
}

const fn file(operation: &'static str, access: &'static str) -> Meaning {
    Meaning {
        class: DenialClass::Filesystem,
        operation,
        access,
        errno: "EACCES",
    }
}

const fn process(operation: &'static str, access: &'static str) -> Meaning {
    Meaning {
        class: DenialClass::Syscall,
        operation,
        access,
        errno: "EPERM",
    }
}

const fn net(operation: &'static str, errno: &'static str) -> Meaning {
    Meaning {
        class: DenialClass::Network,
        operation,
        access: operation,
        errno,
    }
}

/// What each blocker means. A record may name several: the first in this table tells the operation, since
/// it is the most particular one (executing also needs reading; renaming lists every right that the new
/// place would add).
const MEANINGS: &[(&str, Meaning)] = &[
    (
        "fs.change_topology",
        Meaning {
            errno: "EPERM",
            ..file("mount", "mount")
        },
    ),
    ("fs.refer", file("rename", "write")),
    ("fs.make_reg", file("create", "write")),
    ("fs.make_dir", file("mkdir", "write")),
    ("fs.make_sym", file("symlink", "write")),
    ("fs.make_sock", file("bind", "write")),
    ("fs.make_fifo", file("mknod", "write")),
    ("fs.make_char", file("mknod", "write")),
    ("fs.make_block", file("mknod", "write")),
    ("fs.remove_file", file("unlink", "write")),
    ("fs.remove_dir", file("rmdir", "write")),
    ("fs.execute", file("exec", "execute")),
    ("fs.write_file", file("write", "write")),
    ("fs.truncate", file("truncate", "write")),
    ("fs.read_file", file("open", "read")),
    ("fs.read_dir", file("open", "read")),
    ("fs.ioctl_dev", file("ioctl", "write")),
    ("net.bind_tcp", net("bind", "EACCES")),
    ("net.connect_tcp", net("connect", "EACCES")),
    ("scope.abstract_unix_socket", net("connect", "EPERM")),
    ("scope.signal", process("kill", "signal")),
    ("ptrace", process("ptrace", "ptrace")),
];

impl LandlockDenial {
    /// The same as a denial. `rule` is asked for the line of the policy that refused, with the path (or
    /// address, or name) and what was wanted: `read`, `write`, `execute`, `connect`, `bind`, `signal`,
    /// `ptrace`, `mount`.
    ///
    /// Landlock does not name the task, so `pid` and `comm` are left open.
    pub fn to_denial(&self, rule: impl Fn(&str, &str) -> String) -> Denial {
        let has = |name: &str| self.blockers.iter().any(|blocker| blocker == name);
        let (class, operation, access, errno) = match self.meaning() {
            Some(meaning) => (
                meaning.class,
                meaning.operation.to_owned(),
                meaning.access,
                meaning.errno,
            ),
            None => self.unknown_meaning(),
        };
        // A rename within the rights of both directories, which would gain the file rights that it did not
        // have, is EXDEV: programs copy instead. If making or removing is refused as such, that comes first.
        let directory_refuses = || {
            self.blockers
                .iter()
                .any(|blocker| blocker.starts_with("fs.make_") || blocker.starts_with("fs.remove_"))
        };
        let errno = if has("fs.refer") && !directory_refuses() {
            "EXDEV"
        } else {
            errno
        };
        let (target, object) = self.describe_target(&operation);
        Denial {
            class,
            target,
            pid: None,
            comm: None,
            rule: rule(&object, access),
            errno: errno.to_owned(),
            certainty: Certainty::Observed,
            decision: Decision::Deny,
            allow: None,
            operation,
        }
    }

    /// Whether nothing was refused in truth. An open with `O_CREAT` asks for the right to make the name before it looks
    /// whether the name is there; in `/proc` no name is ever made, and those that are there are opened
    /// (`echo > /dev/stderr`).
    pub fn is_moot(&self) -> bool {
        let LandlockTarget::File { path, .. } = &self.target else {
            return false;
        };
        self.blockers == ["fs.make_reg"] && path.starts_with("/proc")
    }

    /// The class of the denial.
    pub fn class(&self) -> DenialClass {
        match self.meaning() {
            Some(meaning) => meaning.class,
            None => self.unknown_meaning().0,
        }
    }

    fn meaning(&self) -> Option<&'static Meaning> {
        let has = |name: &str| self.blockers.iter().any(|blocker| blocker == name);
        let known = MEANINGS.iter().find(|(blocker, _)| has(blocker));
        known.map(|(_, meaning)| meaning)
    }

    /// A right that a later kernel knows: its own name is the best that can be said.
    fn unknown_meaning(&self) -> (DenialClass, String, &'static str, &'static str) {
        let name = self.blockers.first().map_or("", String::as_str);
        match name.split_once('.') {
            Some(("fs", operation)) => {
                (DenialClass::Filesystem, operation.to_owned(), "write", "EACCES")
            }
            Some(("net", operation)) => {
                (DenialClass::Network, operation.to_owned(), "connect", "EACCES")
            }
            Some((_, operation)) => (DenialClass::Syscall, operation.to_owned(), "signal", "EPERM"),
            None => (DenialClass::Syscall, name.to_owned(), "signal", "EPERM"),
        }
    }

    /// The target, and the same in one word for the search for the rule.
    fn describe_target(&self, operation: &str) -> (DenialTarget, String) {
        match &self.target {
            LandlockTarget::File { path, .. } => {
                let path = path.to_string_lossy().into_owned();
                (DenialTarget::path(path.clone()), path)
            }
            LandlockTarget::Net { address, port } => {
                let target = DenialTarget {
                    address: *address,
                    port: *port,
                    ..DenialTarget::protocol("tcp")
                };
                let port = port.unwrap_or(0);
                let object = match address {
                    Some(IpAddr::V6(address)) => format!("[{address}]:{port}"),
                    Some(address) => format!("{address}:{port}"),
                    None => format!("*:{port}"),
                };
                (target, object)
            }
            LandlockTarget::Socket { name } => {
                let target = DenialTarget {
                    path: Some(name.clone()),
                    ..DenialTarget::protocol("unix")
                };
                (target, name.clone())
            }
            LandlockTarget::Task { pid, comm } => (
                DenialTarget::syscall(format!("{operation}({pid} {comm})")),
                format!("{pid}"),
            ),
            LandlockTarget::Unknown => (DenialTarget::default(), String::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(blockers: &[&str], target: LandlockTarget) -> Denial {
        LandlockDenial {
            domain: 1,
            blockers: blockers.iter().map(|blocker| (*blocker).to_owned()).collect(),
            target,
        }
        .to_denial(|object, access| format!("{access} {object}"))
    }

    fn on_file(blockers: &[&str]) -> (String, String, String) {
        let denial = denial(
            blockers,
            LandlockTarget::File {
                path: "/x".into(),
                device: None,
                inode: None,
            },
        );
        assert_eq!(denial.target, DenialTarget::path("/x"));
        assert_eq!(denial.certainty, Certainty::Observed);
        (denial.operation, denial.errno, denial.rule)
    }

    #[test]
    fn the_most_particular_blocker_tells_the_operation() {
        for (blockers, operation, errno, rule) in [
            (&["fs.read_file"][..], "open", "EACCES", "read /x"),
            (&["fs.write_file", "fs.read_file"], "write", "EACCES", "write /x"),
            (&["fs.write_file", "fs.truncate"], "write", "EACCES", "write /x"),
            (&["fs.truncate"], "truncate", "EACCES", "write /x"),
            (&["fs.execute", "fs.read_file"], "exec", "EACCES", "execute /x"),
            (&["fs.make_reg"], "create", "EACCES", "write /x"),
            (&["fs.make_dir"], "mkdir", "EACCES", "write /x"),
            (&["fs.remove_file"], "unlink", "EACCES", "write /x"),
            (&["fs.change_topology"], "mount", "EPERM", "mount /x"),
            (&["fs.refer"], "rename", "EXDEV", "write /x"),
            (&["fs.execute", "fs.refer"], "rename", "EXDEV", "write /x"),
            (
                &["fs.remove_file", "fs.make_reg", "fs.refer"],
                "rename",
                "EACCES",
                "write /x",
            ),
            (&["fs.later"], "later", "EACCES", "write /x"),
        ] {
            let expected = (operation.to_owned(), errno.to_owned(), rule.to_owned());
            assert_eq!(on_file(blockers), expected, "{blockers:?}");
        }
    }

    #[test]
    fn addresses_sockets_and_tasks_are_named() {
        let target = LandlockTarget::Net {
            address: Some("::1".parse().unwrap()),
            port: Some(80),
        };
        let connect = denial(&["net.connect_tcp"], target);
        assert_eq!(connect.class, DenialClass::Network);
        assert_eq!(
            connect.target,
            DenialTarget::inet("::1".parse().unwrap(), 80, "tcp")
        );
        assert_eq!(connect.rule, "connect [::1]:80");

        let target = LandlockTarget::Socket { name: "@x".into() };
        let abstract_socket = denial(&["scope.abstract_unix_socket"], target);
        assert_eq!(abstract_socket.target.path.as_deref(), Some("@x"));
        assert_eq!(abstract_socket.errno, "EPERM");

        let target = LandlockTarget::Task {
            pid: 1,
            comm: "init".into(),
        };
        let signal = denial(&["scope.signal"], target);
        assert_eq!(
            (signal.class, signal.operation.as_str()),
            (DenialClass::Syscall, "kill")
        );
        assert_eq!(signal.target, DenialTarget::syscall("kill(1 init)"));
    }

    #[test]
    fn a_record_without_a_known_target_or_blocker_is_still_a_denial() {
        assert_eq!(denial(&["what"], LandlockTarget::Unknown).operation, "what");
        assert_eq!(denial(&["scope.x"], LandlockTarget::Unknown).operation, "x");
    }
}
