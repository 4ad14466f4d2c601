//! The smallest rule that would have allowed what was refused.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Denial, DenialClass};
use crate::compile::access::NOT_EXECUTABLE;
use crate::policy::NameRule;

/// A rule of a policy: a key of a policy file and a value for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowingRule {
    /// `files.read`, `files.write`, `files.execute`, `net.allow`, `net.listen`, `net.unix` (lists, to which the value is added), or `net.mode`.
    pub key: String,
    /// The value.
    pub value: String,
}

/// No rule opens these.
const FIXED: [&str; 3] = ["/proc", "/sys", "/dev"];

impl AllowingRule {
    /// The rule for a denial, where one alone would do. Wider ones may be wiser.
    pub fn of(denial: &Denial) -> Option<Self> {
        let target = &denial.target;
        let rule = |key: &str, value: String| {
            Some(Self {
                key: key.to_owned(),
                value,
            })
        };
        match denial.class {
            DenialClass::Network => {
                let protocol = target.protocol.as_deref().unwrap_or_default();
                match (denial.operation.as_str(), target.address, protocol) {
                    ("resolve", ..) => rule("net.allow", named(target.host.as_deref()?, 443)?),
                    // No one rule leads out of a private loopback.
                    ("connect", Some(_), "tcp") if denial.errno == "ENETUNREACH" => None,
                    ("connect", Some(address), "tcp") => {
                        let port = target.port?;
                        let by_name = target.host.as_deref().and_then(|host| named(host, port));
                        rule(
                            "net.allow",
                            by_name.unwrap_or_else(|| SocketAddr::new(address, port).to_string()),
                        )
                    }
                    ("connect", None, "tcp") => {
                        rule("net.allow", named(target.host.as_deref()?, target.port?)?)
                    }
                    ("connect", None, "unix") => {
                        let path = target.path.as_deref().filter(|path| path.starts_with('/'))?;
                        rule("net.unix", plain(path)?.to_owned())
                    }
                    ("bind" | "listen", Some(address), "tcp") => {
                        let port = target.port?;
                        let port = if port == 0 {
                            "*".to_owned()
                        } else {
                            port.to_string()
                        };
                        rule(
                            "net.listen",
                            match address {
                                IpAddr::V4(v4) => format!("{v4}:{port}"),
                                IpAddr::V6(v6) => format!("[{v6}]:{port}"),
                            },
                        )
                    }
                    ("listen", None, "tcp") => rule("net.mode", "isolated".to_owned()),
                    (operation, Some(address), "udp") if operation != "bind" => {
                        let to = SocketAddr::new(address, target.port?);
                        rule("net.allow", format!("{to}/udp"))
                    }
                    (_, _, "udp") => rule("net.mode", "open".to_owned()),
                    _ => None,
                }
            }
            DenialClass::Filesystem => {
                let path = plain(target.path.as_deref()?)?;
                if !path.starts_with('/') || FIXED.iter().any(|fixed| Path::new(path).starts_with(fixed))
                {
                    return None;
                }
                match denial.operation.as_str() {
                    "exec" if denial.rule == NOT_EXECUTABLE => rule("files.execute", path.to_owned()),
                    "open" | "read" | "exec" | "readdir" | "inotify_add_watch" => {
                        rule("files.read", path.to_owned())
                    }
                    _ => rule("files.write", path.to_owned()),
                }
            }
            DenialClass::Syscall | DenialClass::Resource => None,
        }
    }
}

/// A destination by name, if the name is one that a rule can have.
fn named(host: &str, port: u16) -> Option<String> {
    let destination = format!("{host}:{port}");
    destination.parse::<NameRule>().is_ok().then_some(destination)
}

/// A path that is what it looks like: not one in which bytes were replaced, and without characters that deceive.
fn plain(path: &str) -> Option<&str> {
    (!path
        .chars()
        .any(|c| c == char::REPLACEMENT_CHARACTER || is_deceptive(c)))
    .then_some(path)
}

/// Control characters, and those that are not seen but change how others are.
pub fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denial::{Certainty, Decision, DenialTarget};

    fn rule(
        class: DenialClass,
        operation: &str,
        errno: &str,
        target: DenialTarget,
    ) -> Option<(String, String)> {
        let denial = Denial {
            class,
            operation: operation.to_owned(),
            target,
            pid: None,
            comm: None,
            rule: String::new(),
            errno: errno.to_owned(),
            certainty: Certainty::Observed,
            decision: Decision::Deny,
            allow: None,
        };
        AllowingRule::of(&denial).map(|rule| (rule.key, rule.value))
    }

    #[test]
    fn each_kind_of_refusal_has_its_rule_or_none() {
        use DenialClass::{Filesystem, Network, Syscall};
        let some = |key: &str, value: &str| Some((key.to_owned(), value.to_owned()));
        let tcp = || DenialTarget::inet("192.0.2.1".parse().unwrap(), 80, "tcp");
        assert_eq!(
            rule(Network, "connect", "EACCES", tcp()),
            some("net.allow", "192.0.2.1:80")
        );
        assert_eq!(rule(Network, "connect", "ENETUNREACH", tcp()), None);
        assert_eq!(
            rule(Network, "listen", "EACCES", tcp()),
            some("net.listen", "192.0.2.1:80")
        );
        let udp = DenialTarget::inet("::1".parse().unwrap(), 80, "udp");
        assert_eq!(
            rule(Network, "sendto", "EACCES", udp),
            some("net.allow", "[::1]:80/udp")
        );
        let v6 = DenialTarget::inet("::1".parse().unwrap(), 80, "tcp");
        assert_eq!(
            rule(Network, "connect", "EACCES", v6),
            some("net.allow", "[::1]:80")
        );
        let host = |host: &str| rule(Network, "resolve", "NXDOMAIN", DenialTarget::host(host));
        assert_eq!(host("a.example"), some("net.allow", "a.example:443"));
        assert_eq!(host("a?.example"), None);
        let named = DenialTarget {
            host: Some("a.example".to_owned()),
            ..tcp()
        };
        assert_eq!(
            rule(Network, "connect", "EACCES", named),
            some("net.allow", "a.example:80")
        );
        let unix = |path: &str| DenialTarget {
            path: Some(path.to_owned()),
            protocol: Some("unix".to_owned()),
            ..DenialTarget::default()
        };
        assert_eq!(
            rule(Network, "connect", "EACCES", unix("/run/x")),
            some("net.unix", "/run/x")
        );
        assert_eq!(rule(Network, "connect", "EACCES", unix("@name")), None);
        assert_eq!(
            rule(Network, "socket", "EACCES", DenialTarget::protocol("raw")),
            None
        );
        let file = |operation: &str, path: &str| {
            rule(Filesystem, operation, "EACCES", DenialTarget::path(path))
        };
        assert_eq!(file("open", "/a"), some("files.read", "/a"));
        assert_eq!(file("write", "/a"), some("files.write", "/a"));
        assert_eq!(file("chmod", "/a"), some("files.write", "/a"));
        assert_eq!(file("write", "/proc/1/mem"), None);
        assert_eq!(file("write", "/a\u{202e}b"), None);
        assert_eq!(file("write", "/a\u{fffd}"), None);
        assert_eq!(
            rule(Syscall, "mount", "EPERM", DenialTarget::syscall("mount")),
            None
        );
    }
}
