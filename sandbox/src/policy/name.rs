//! Destinations by host name.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{NetRule, PolicyError, Protocol};

/// The longest host name in text form.
const NAME_BYTES_MAX: usize = 253;
/// The longest label of a host name.
const LABEL_BYTES_MAX: usize = 63;

/// Destinations that are allowed by name. The supervisor resolves them; see `docs/network.md`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamePolicy {
    /// The allowed names and ports.
    pub rules: Vec<NameRule>,
    /// Names whose addresses are given and not looked up.
    pub fixed: Vec<FixedName>,
}

/// One allowed destination by name: `example.com:443`, `*.example.com:443`, `localhost:*`, `ntp.example.com:123/udp`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRule {
    /// In lower case, without a final dot; without the `*.` of a wildcard.
    pub name: String,
    /// Any name *below* `name`, and not `name` itself.
    pub wildcard: bool,
    /// The port; absent for `*`.
    pub port: Option<u16>,
    /// How.
    #[serde(default)]
    pub protocol: Protocol,
    /// As it was written.
    pub source: String,
}

/// A name whose addresses are given: `db.test=127.0.0.1`, `db.test=192.0.2.1,192.0.2.2`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FixedName {
    /// In lower case, without a final dot.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// What `--allow-net` takes: an address or a name, with a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// An address or a block of them.
    Address(NetRule),
    /// A name or a wildcard.
    Name(NameRule),
}

impl NameRule {
    /// Whether the rule is about this name, which is in lower case and has no final dot.
    pub fn covers_name(&self, name: &str) -> bool {
        if !self.wildcard {
            return name == self.name;
        }
        name.strip_suffix(self.name.as_str())
            .is_some_and(|below| below.len() > 1 && below.ends_with('.'))
    }

    /// Whether the rule allows this port.
    pub fn covers_port(&self, protocol: Protocol, port: u16) -> bool {
        self.protocol == protocol && self.port.is_none_or(|own| own == port)
    }
}

impl fmt::Display for NameRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

/// A host name in the form that is compared, or why it is none.
fn host_name(text: &str) -> Result<String, &'static str> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err("a host name has 1 to 253 characters");
    }
    let sound = |label: &str| {
        !label.is_empty()
            && label.len() <= LABEL_BYTES_MAX
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !name.split('.').all(sound) {
        return Err("a host name has labels of 1 to 63 letters, digits, - and _, separated by dots");
    }
    // `1.2.3.4` failed to be an address before, and libc would take `1.2.3` or `0x7f.1` for one.
    let last = name.rsplit('.').next().unwrap_or_default();
    if last.starts_with("0x") || last.bytes().all(|b| b.is_ascii_digit()) {
        return Err("a host name does not end in a number");
    }
    Ok(name)
}

impl FromStr for Destination {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let not_an_address = match text.parse::<NetRule>() {
            Ok(rule) => return Ok(Self::Address(rule)),
            Err(error) => error,
        };
        // What looks like an address keeps the error about addresses.
        match Protocol::split(text).0.rsplit_once(':') {
            Some((host, _))
                if host.bytes().any(|b| b.is_ascii_alphabetic()) && !host.contains([':', '[', '/']) =>
            {
                text.parse().map(Self::Name)
            }
            _ => Err(not_an_address),
        }
    }
}

impl FromStr for NameRule {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        const HINT: &str = "want ADDRESS:PORT, CIDR:PORT, HOST:PORT or *.HOST:PORT (* for any port), like example.com:443";
        let bad = |why: &str| PolicyError::new("allowed destination", text, format!("{why}; {HINT}"));
        let (rest, protocol) = Protocol::split(text);
        let (host, port) = rest.rsplit_once(':').ok_or_else(|| bad("no port"))?;
        let port = match port {
            "*" => None,
            digits => match digits.parse::<u16>() {
                Ok(0) | Err(_) => return Err(bad("the port is not a number from 1 to 65535")),
                Ok(port) => Some(port),
            },
        };
        let (host, wildcard) = match host.strip_prefix("*.") {
            Some(below) => (below, true),
            None => (host, false),
        };
        let name = host_name(host).map_err(bad)?;
        if wildcard && !name.contains('.') {
            return Err(bad("a wildcard for a whole top-level domain"));
        }
        Ok(Self {
            name,
            wildcard,
            port,
            protocol,
            source: text.to_owned(),
        })
    }
}

impl FromStr for FixedName {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let bad = |why: &str| {
            PolicyError::new(
                "resolved name",
                text,
                format!("{why}; want HOST=ADDRESS[,ADDRESS…]"),
            )
        };
        let (host, addresses) = text.split_once('=').ok_or_else(|| bad("no ="))?;
        let addresses = addresses
            .split(',')
            .map(|address| address.parse::<IpAddr>().map_err(|_| bad("not an IP address")))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            name: host_name(host).map_err(bad)?,
            addresses,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_beside_addresses() {
        let name = |text: &str| match text.parse::<Destination>().unwrap() {
            Destination::Name(rule) => rule,
            Destination::Address(rule) => panic!("{rule:?}"),
        };
        assert!(matches!("127.0.0.1:80".parse(), Ok(Destination::Address(_))));
        assert!(matches!("[::1]:*".parse(), Ok(Destination::Address(_))));
        let exact = name("Example.COM.:443");
        assert!(exact.covers_name("example.com") && exact.covers_port(Protocol::Tcp, 443));
        assert!(!exact.covers_name("a.example.com") && !exact.covers_port(Protocol::Tcp, 80));
        let below = name("*.example.com:*");
        assert!(below.covers_name("a.example.com") && below.covers_name("a.b.example.com"));
        for other in [
            "example.com",
            ".example.com",
            "badexample.com",
            "example.com.evil",
        ] {
            assert!(!below.covers_name(other), "{other}");
        }
    }

    #[test]
    fn destinations_that_cannot_be_read_say_why() {
        for bad in [
            "",
            "example.com",
            "example.com:",
            "example.com:0",
            "example.com:http",
            "-a.com:80",
            "a..b:80",
            "*.com:443",
            "*:443",
            "a.*.com:443",
            "1.2.3:80",
            "a.0x7f:80",
            "a/b:80",
            "::1:80",
            "http://a.b:80",
            "exa mple.com:80",
            "a.b.:80.",
        ] {
            let error = bad.parse::<Destination>().unwrap_err();
            assert!(error.to_string().contains("ADDRESS:PORT"), "{bad}: {error}");
        }
        assert!("a.b=127.0.0.1,::1".parse::<FixedName>().is_ok());
        for bad in ["a.b", "a.b=", "=127.0.0.1", "a.b=c.d"] {
            assert!(bad.parse::<FixedName>().is_err(), "{bad}");
        }
    }
}
