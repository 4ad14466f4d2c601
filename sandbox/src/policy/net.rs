//! Destinations by address: which may be connected to, and which served.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{NamePolicy, PathRule, PolicyError};

/// Rules for sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetPolicy {
    /// The ground rule.
    pub mode: NetMode,
    /// The words that put it there, quoted by denials: `preset workspace-write`, `--net off`.
    #[serde(default)]
    pub source: String,
    /// Unix sockets of other programs that may be connected to, by their paths. All others stay closed, in every mode.
    #[serde(default)]
    pub unix: Vec<PathRule>,
    /// Destinations allowed on top of it.
    pub allow: Vec<NetRule>,
    /// Addresses of this machine on which TCP may be served, where it could not otherwise.
    #[serde(default)]
    pub listen: Vec<NetRule>,
    /// Destinations allowed by their names.
    #[serde(default)]
    pub names: NamePolicy,
    /// Names are reached through a proxy of ours only, which the program's environment names: it tells hosts apart that
    /// share an address.
    #[serde(default)]
    pub proxy: bool,
}

/// What a policy says about one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetVerdict {
    /// Whether a connection is allowed.
    pub allowed: bool,
    /// The deciding rule for people.
    pub rule: String,
}

impl NetPolicy {
    /// Whether this destination may be reached, and by which rule. A decision by asking counts as refused.
    pub fn decide(&self, protocol: Protocol, address: IpAddr, port: u16) -> NetVerdict {
        let (allowed, rule) = match self.mode {
            NetMode::Open => (true, self.ground_rule()),
            NetMode::Isolated => (address.to_canonical().is_loopback(), self.ground_rule()),
            NetMode::Off => match self
                .allow
                .iter()
                .find(|rule| rule.covers(protocol, address, port))
            {
                Some(rule) => (true, rule.source.clone()),
                None => (false, self.ground_rule()),
            },
        };
        NetVerdict { allowed, rule }
    }

    /// Whether TCP may be served at this address, and by which rule.
    pub fn decide_listen(&self, address: IpAddr, port: u16) -> NetVerdict {
        let rule = self
            .listen
            .iter()
            .find(|rule| rule.covers(Protocol::Tcp, address, port));
        match (self.mode, rule) {
            (NetMode::Off, Some(rule)) => NetVerdict {
                allowed: true,
                rule: rule.source.clone(),
            },
            (mode, _) => NetVerdict {
                allowed: mode != NetMode::Off,
                rule: self.ground_rule(),
            },
        }
    }

    /// Whether the addresses of this name may be reached, and by which rule. The name is in lower case and has no final
    /// dot.
    pub fn decide_name(&self, protocol: Protocol, name: &str, port: u16) -> NetVerdict {
        let rule = self
            .names
            .rules
            .iter()
            .find(|rule| rule.covers_name(name) && rule.covers_port(protocol, port));
        match (self.mode, rule) {
            (NetMode::Off, Some(rule)) => NetVerdict {
                allowed: true,
                rule: rule.source.clone(),
            },
            (mode, _) => NetVerdict {
                allowed: mode == NetMode::Open,
                rule: self.ground_rule(),
            },
        }
    }

    /// The ground rule in words.
    pub fn ground_rule(&self) -> String {
        format!("net = {} ({})", self.mode.as_str(), self.source)
    }
}

/// The ground rule for sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetMode {
    /// No network. Sockets among the process's own tree still work.
    Off,
    /// A private loopback (a network namespace): bind and connect there, nothing else.
    Isolated,
    /// The machine's own network, TCP and UDP. Unix sockets of other programs stay closed.
    Open,
}

impl FromStr for NetMode {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        match text {
            "off" => Ok(Self::Off),
            "isolated" => Ok(Self::Isolated),
            "open" => Ok(Self::Open),
            other => Err(PolicyError::new(
                "network mode",
                other,
                "not one of off, isolated, open",
            )),
        }
    }
}

impl NetPolicy {
    /// Whether questions about names are answered by the supervisor: where destinations are refused, so that a refused
    /// name is known.
    pub fn resolves_names(&self) -> bool {
        self.mode == NetMode::Off
    }
}

impl NetMode {
    /// As written on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Isolated => "isolated",
            Self::Open => "open",
        }
    }
}

/// How a destination is reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// A destination without the protocol that is written after it: `/tcp`, `/udp`, or nothing for TCP.
    pub(super) fn split(text: &str) -> (&str, Self) {
        match (text.strip_suffix("/udp"), text.strip_suffix("/tcp")) {
            (Some(rest), _) => (rest, Self::Udp),
            (None, Some(rest)) => (rest, Self::Tcp),
            (None, None) => (text, Self::Tcp),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// One destination, or one address to serve at: `192.0.2.1:443`, `10.0.0.0/8:5432`, `[2001:db8::/32]:443`, `[::1]:*`,
/// `192.0.2.1:123/udp`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetRule {
    /// The addresses.
    pub net: IpNet,
    /// The port; absent for `*`.
    pub port: Option<u16>,
    /// How.
    #[serde(default)]
    pub protocol: Protocol,
    /// As it was written.
    pub source: String,
}

impl NetRule {
    /// Whether the rule covers this destination. IPv4-mapped IPv6 addresses count as IPv4.
    pub fn covers(&self, protocol: Protocol, address: IpAddr, port: u16) -> bool {
        self.protocol == protocol
            && self.net.contains(&address.to_canonical())
            && self.port.is_none_or(|p| p == port)
    }
}

impl FromStr for NetRule {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        const WHAT: &str = "allowed destination";
        const HINT: &str = "want ADDRESS:PORT or CIDR:PORT (IPv6 in brackets, * for any port, /udp after it for UDP), like 127.0.0.1:8080, 10.0.0.0/8:5432 or [::1]:443";
        let bad = |why: &str| PolicyError::new(WHAT, text, format!("{why}; {HINT}"));
        let (rest, protocol) = Protocol::split(text);
        let (host, port) = rest.rsplit_once(':').ok_or_else(|| bad("no port"))?;
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = match bracketed {
            Some(inner) => inner,
            None if host.contains(':') => return Err(bad("an IPv6 address needs brackets")),
            None => host,
        };
        let port = match port {
            "*" => None,
            digits => match digits.parse::<u16>() {
                Ok(0) | Err(_) => return Err(bad("the port is not a number from 1 to 65535")),
                Ok(port) => Some(port),
            },
        };
        let net = if host.contains('/') {
            host.parse::<IpNet>()
                .map_err(|_| bad("not an address block"))?
                .trunc()
        } else {
            IpNet::from(
                host.parse::<IpAddr>()
                    .map_err(|_| bad("not an IP address (host names are not resolved)"))?,
            )
        };
        let net = match net {
            IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.network().to_ipv4_mapped() {
                Some(v4) => ipnet::Ipv4Net::new(v4, v6.prefix_len() - 96)
                    .map(IpNet::V4)
                    .map_err(|_| bad("not an address block"))?,
                None => net,
            },
            _ => net,
        };
        Ok(Self {
            net,
            port,
            protocol,
            source: text.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn net_rules_parse_addresses_blocks_and_ports() {
        let rule: NetRule = "10.1.2.3/8:5432".parse().unwrap();
        let tcp = |rule: &NetRule, address: &str, port| {
            rule.covers(Protocol::Tcp, address.parse().unwrap(), port)
        };
        assert!(tcp(&rule, "10.200.0.1", 5432));
        assert!(!tcp(&rule, "11.0.0.1", 5432));
        assert!(!tcp(&rule, "10.200.0.1", 5433));
        assert!(!rule.covers(Protocol::Udp, "10.200.0.1".parse().unwrap(), 5432));
        let v6: NetRule = "[2001:db8::/32]:443".parse().unwrap();
        assert!(tcp(&v6, "2001:db8::7", 443));
        let any: NetRule = "127.0.0.1:*".parse().unwrap();
        assert!(tcp(&any, "::ffff:127.0.0.1", 1));
        let mapped: NetRule = "[::ffff:127.0.0.1]:80".parse().unwrap();
        assert!(tcp(&mapped, "127.0.0.1", 80));
        let time: NetRule = "192.0.2.0/24:123/udp".parse().unwrap();
        assert!(time.covers(Protocol::Udp, "192.0.2.7".parse().unwrap(), 123));
        assert!(!tcp(&time, "192.0.2.7", 123));
    }

    #[test]
    fn net_rules_that_cannot_be_read_say_why() {
        for bad in [
            "",
            "127.0.0.1",
            "127.0.0.1:",
            "127.0.0.1:0",
            "127.0.0.1:65536",
            "::1:80",
            "example.com:80",
            "10.0.0.0/33:80",
            "[::1]",
            ":80",
            "1.2.3:4",
            "1.2.3.4:5/sctp",
            "1.2.3.4/udp",
        ] {
            let error = bad.parse::<NetRule>().unwrap_err();
            assert!(error.to_string().contains("ADDRESS:PORT"), "{bad}: {error}");
        }
    }
}
