//! Names: which the program may ask for, what their addresses are, and which addresses it may therefore reach.
//!
//! The program has no way to a name server. Where names are allowed, each of its UDP sockets is in truth one end
//! of a local pair ([`super::stand_in`]); at the other end a thread of ours reads questions and answers them. It
//! looks up what a rule allows and nothing else, so no name that the program makes up leaves the machine, except
//! below a wildcard. What it finds is *pinned*: TCP connections to it are permitted from then on, on the ports of
//! the rules. Nothing that the program says adds a pin.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv, send};

use super::dns::{self, Code, Question};
use super::stand_in::StandIn;
use crate::denial::{Certainty, Decision, Denial, DenialClass, DenialTarget};
use crate::policy::NetPolicy;

/// Names that one process may have looked up. Labels below a wildcard reach that domain's name server: this
/// bounds what they can carry.
const NAMES_MAX: usize = 256;
/// Addresses of one name that are pinned.
const ADDRESSES_MAX: usize = 16;
/// Sockets that stand in for UDP at the same time, each with a thread, and with it lookups in flight.
const STAND_INS_MAX: usize = 64;
/// The longest query that is read.
const QUERY_BYTES_MAX: usize = 2048;

/// Told of denials that no notification shows; called on threads of the resolver, before the program hears.
pub type Report = Box<dyn Fn(Denial) + Send + Sync>;

/// What one process knows of names.
pub(super) struct Names {
    net: NetPolicy,
    net_rule: String,
    report: Report,
    known: Mutex<Known>,
    ended: Condvar,
}

#[derive(Default)]
struct Known {
    /// The usable addresses of every name that was looked up.
    names: HashMap<String, Vec<IpAddr>>,
    /// The names by which an address was handed out.
    pins: HashMap<IpAddr, BTreeSet<String>>,
    /// By socket cookie.
    stand_ins: HashMap<u64, Arc<StandIn>>,
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

impl Names {
    pub(super) fn new(net: NetPolicy, net_rule: String, report: Report) -> Arc<Self> {
        Arc::new(Self {
            net,
            net_rule,
            report,
            known: Mutex::default(),
            ended: Condvar::new(),
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a name that was handed out for this address may be reached at this port.
    pub(super) fn permits(&self, address: IpAddr, port: u16) -> bool {
        let known = self.known();
        let Some(names) = known.pins.get(&address.to_canonical()) else {
            return false;
        };
        let mut rules = self.net.names.rules.iter().filter(|rule| rule.covers_port(port));
        rules.any(|rule| names.iter().any(|name| rule.covers_name(name)))
    }

    /// Whether the address was handed out, for whatever port: a name of it.
    pub(super) fn name_of(&self, address: IpAddr) -> Option<String> {
        let known = self.known();
        known.pins.get(&address.to_canonical())?.first().cloned()
    }

    /// The socket of ours with this cookie.
    pub(super) fn stand_in(&self, cookie: u64) -> Option<Arc<StandIn>> {
        self.known().stand_ins.get(&cookie).cloned()
    }

    /// Begins to answer at one end of a pair, on a thread that ends when nobody holds the other end. False where
    /// there are too many.
    pub(super) fn serve(self: &Arc<Self>, cookie: u64, stand_in: Arc<StandIn>, socket: OwnedFd) -> bool {
        {
            let mut known = self.known();
            if known.stand_ins.len() >= STAND_INS_MAX {
                return false;
            }
            known.stand_ins.insert(cookie, stand_in.clone());
        }
        let end = Ended {
            names: self.clone(),
            cookie,
        };
        let thread = std::thread::Builder::new().name("provost-names".to_owned());
        thread
            .spawn(move || end.names.answer_all(&stand_in, &socket))
            .is_ok()
    }

    /// Waits until no program holds a socket of ours and every question was answered, or until `patience` is
    /// over. True if all is over.
    pub(super) fn finish(&self, patience: Duration) -> bool {
        let known = self.known();
        let waited = self
            .ended
            .wait_timeout_while(known, patience, |known| !known.stand_ins.is_empty());
        let (_known, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        !timeout.timed_out()
    }

    fn answer_all(&self, stand_in: &StandIn, socket: &OwnedFd) {
        let mut message = [0; QUERY_BYTES_MAX];
        loop {
            let length = match recv(socket.as_raw_fd(), &mut message, MsgFlags::empty()) {
                Ok(0) => return,
                Ok(length) => length,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => return,
            };
            let query = &message[..length];
            let answer = match Question::parse(query) {
                Some(question) => Some(self.answer(&question, stand_in)),
                None => dns::unreadable(query),
            };
            // An answer that nobody makes room for is dropped, as it would be on the wire.
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let _ = answer.map(|answer| send(socket.as_raw_fd(), &answer, flags));
        }
    }

    fn answer(&self, question: &Question, stand_in: &StandIn) -> Vec<u8> {
        let name = question.name.as_str();
        if !self.net.names.rules.iter().any(|rule| rule.covers_name(name)) {
            self.refuse(name, stand_in, "no rule allows this name".to_owned());
            return question.answer(Code::NoSuchName, &[]);
        }
        if !question.wants_addresses() {
            return question.answer(Code::NoError, &[]);
        }
        match self.addresses(name) {
            Ok(addresses) => question.answer(Code::NoError, &addresses),
            Err(None) => question.answer(Code::NoSuchName, &[]),
            Err(Some(why)) => {
                self.refuse(name, stand_in, why);
                question.answer(Code::NoSuchName, &[])
            }
        }
    }

    /// The addresses of an allowed name, which are pinned by then. Without a reason: there are none.
    fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, Option<String>> {
        {
            let known = self.known();
            if let Some(addresses) = known.names.get(name) {
                return Ok(addresses.clone());
            }
            if known.names.len() >= NAMES_MAX {
                return Err(Some(format!("more than {NAMES_MAX} names were asked for")));
            }
        }
        // May take long; no lock is held.
        let found = self.look_up(name)?;
        let mut known = self.known();
        for &address in &found {
            known.pins.entry(address).or_default().insert(name.to_owned());
        }
        known.names.insert(name.to_owned(), found.clone());
        Ok(found)
    }

    fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, Option<String>> {
        if let Some(fixed) = self.net.names.fixed.iter().find(|fixed| fixed.name == name) {
            return Ok(fixed.addresses.iter().map(IpAddr::to_canonical).collect());
        }
        let found = (name, 0).to_socket_addrs().map_err(|_| None)?;
        let found: BTreeSet<IpAddr> = found.map(|address| address.ip().to_canonical()).collect();
        let (usable, inner): (Vec<IpAddr>, Vec<IpAddr>) = found
            .into_iter()
            .partition(|&address| self.may_be_pinned(name, address));
        match (usable.is_empty(), inner.first()) {
            (true, Some(address)) => Err(Some(format!(
                "the name leads to {address}, which is not a public address: allow that address, too"
            ))),
            (true, None) => Err(None),
            (false, _) => Ok(usable.into_iter().take(ADDRESSES_MAX).collect()),
        }
    }

    /// Whoever owns a name decides where it leads. Into this machine and its own network it may lead only where
    /// a rule allows the address, too.
    fn may_be_pinned(&self, name: &str, address: IpAddr) -> bool {
        is_public(address)
            || self.net.allow.iter().any(|rule| rule.net.contains(&address))
            || address.is_loopback() && (name == "localhost" || name.ends_with(".localhost"))
    }

    fn refuse(&self, name: &str, stand_in: &StandIn, why: String) {
        let (pid, comm) = stand_in.last_user();
        (self.report)(Denial {
            class: DenialClass::Network,
            operation: "resolve".to_owned(),
            target: DenialTarget::host(name),
            pid: (pid > 0).then_some(pid),
            comm,
            rule: format!("{}: {why}", self.net_rule),
            errno: "NXDOMAIN".to_owned(),
            certainty: Certainty::Observed,
            decision: Decision::Deny,
            allow: None,
        });
    }
}

/// A stand-in's place among the others, for as long as its thread runs.
struct Ended {
    names: Arc<Names>,
    cookie: u64,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.names.known().stand_ins.remove(&self.cookie);
        self.names.ended.notify_all();
    }
}

/// Whether an address is anybody's on the internet: not this machine, its network, or a group.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    let shared = a == 100 && b & 0xC0 == 64;
    let protocol_assignments = (a, b, c) == (192, 0, 0);
    let benchmarks = a == 198 && b & 0xFE == 18;
    !(v4.is_private()
        || v4.is_loopback()
        || v4.is_link_local()
        || shared
        || protocol_assignments
        || benchmarks
        || a == 0
        || a >= 224)
}

fn is_public_v6(v6: Ipv6Addr) -> bool {
    let [s0, s1, .., s6, s7] = v6.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match (s0, s1) {
        (0x64, 0xff9b) => v6.segments()[2..6] == [0; 4] && embedded(s6, s7), // NAT64
        (0x2002, _) => embedded(s1, v6.segments()[2]),                       // 6to4
        (0x2001, 0) => false,                                                // Teredo
        // Global unicast; all else is loopback, local, compatible, a group, or nobody's.
        _ => s0 & 0xE000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_internet_are_public() {
        for public in [
            "8.8.8.8",
            "2606:4700::1111",
            "64:ff9b::808:808",
            "100.128.0.1",
            "172.32.0.1",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for inner in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "192.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "2001::1",
            "64:ff9b:1::1",
        ] {
            assert!(!is_public(inner.parse().unwrap()), "{inner}");
        }
    }
}
