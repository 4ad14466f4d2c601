//! Names: which the program may ask for, what their addresses are, and which addresses it may therefore reach.
//!
//! The program has no way to a name server. Where names are allowed, each of its UDP sockets is in truth one end
//! of a local pair ([`super::stand_in`]); at the other end a thread of ours reads questions and answers them. It
//! looks up what a rule allows and nothing else, so no name that the program makes up leaves the machine, except
//! below a wildcard. What it finds is *pinned*: TCP connections to it are permitted from then on, on the ports of
//! the rules. Nothing that the program says adds a pin.
//!
//! Where the policy asks, somebody is asked about other names, once for all questions about one that come meanwhile.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use super::address::effective;
use super::ask::{Grant, Grants, Question};
use super::dns::{self, Code};
use super::relay::{DATAGRAM_BYTES_MAX, Relays};
use super::stand_in::StandIn;
use crate::denial::{Certainty, Decision, Denial, DenialClass, DenialTarget};
use crate::policy::{NetPolicy, Protocol};

/// Names that one process may have looked up. Labels below a wildcard reach that domain's name server: this
/// bounds what they can carry.
const NAMES_MAX: usize = 256;
/// Addresses of one name that are pinned.
const ADDRESSES_MAX: usize = 16;
/// Sockets that stand in for UDP at the same time, each with a thread, and with it lookups in flight: of one process,
const STAND_INS_MAX: usize = 64;
/// and of all.
const THREADS_MAX: usize = 1024;
/// Questions that wait while somebody is asked about their names.
const HELD_MAX: usize = 64;

/// Why a name is refused.
const NO_RULE: &str = "no rule allows this name";

/// Told of denials that no notification shows; called on threads of the resolver, before the program hears.
pub type Report = Box<dyn Fn(Denial) + Send + Sync>;

/// Told of names to be asked about, likewise. Gives the question back where nobody can be asked any more.
pub type AskName = Box<dyn Fn(Box<Question>) -> Result<(), Box<Question>> + Send + Sync>;

static THREADS: AtomicUsize = AtomicUsize::new(0);

/// What one process knows of names.
pub(super) struct Names {
    net: NetPolicy,
    net_rule: String,
    report: Report,
    /// Present where the policy asks.
    ask: Option<AskName>,
    /// What was allowed when it was asked about.
    grants: Vec<Grants>,
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
    /// What waits while somebody is asked, by name.
    held: HashMap<String, Vec<Held>>,
}

/// A question, and where to answer it.
struct Held {
    question: dns::Question,
    socket: Arc<OwnedFd>,
}

/// A name about which somebody is asked. Whatever becomes of it, those who asked for it are answered.
pub struct HeldName {
    names: Arc<Names>,
    name: String,
    permitted: bool,
}

impl fmt::Debug for HeldName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HeldName").field(&self.name).finish()
    }
}

impl HeldName {
    pub(super) fn grant(&self) -> Grant {
        let name = self.name.clone();
        Grant::Name { name }
    }

    pub(super) fn refused(mut self) -> Self {
        self.permitted = false;
        self
    }

    /// Looks the name up, if it is permitted, and answers. A lookup blocks as long as the machine's resolver does.
    pub fn run(self) {
        if !self.permitted {
            return;
        }
        let addresses = self.names.addresses(&self.name);
        if let Err(Some(why)) = &addresses {
            self.names.refuse(&self.name, (0, None), why);
        }
        self.answer(&addresses);
    }

    fn answer(&self, addresses: &Result<Vec<IpAddr>, Option<String>>) {
        let held = self.names.known().held.remove(&self.name);
        for Held { question, socket } in held.into_iter().flatten() {
            reply(&socket, &answer(&question, addresses));
        }
    }
}

impl Drop for HeldName {
    fn drop(&mut self) {
        self.answer(&Err(None));
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

impl Names {
    pub(super) fn new(
        net: NetPolicy,
        net_rule: String,
        report: Report,
        ask: Option<AskName>,
        grants: Vec<Grants>,
    ) -> Arc<Self> {
        Arc::new(Self {
            net,
            net_rule,
            report,
            ask,
            grants,
            known: Mutex::default(),
            ended: Condvar::new(),
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a name that was handed out for this address may be reached at this port.
    pub(super) fn permits(&self, protocol: Protocol, address: IpAddr, port: u16) -> bool {
        let known = self.known();
        let Some(names) = known.pins.get(&address.to_canonical()) else {
            return false;
        };
        let mut rules = self
            .net
            .names
            .rules
            .iter()
            .filter(|rule| rule.covers_port(protocol, port));
        rules.any(|rule| names.iter().any(|name| rule.covers_name(name)))
            || protocol == Protocol::Tcp && names.iter().any(|name| self.is_granted(name))
    }

    /// Whether datagrams are passed on to there.
    pub(super) fn permits_datagrams(&self, address: IpAddr, port: u16) -> bool {
        self.net.decide(Protocol::Udp, address, port).allowed
            || self.permits(Protocol::Udp, address, port)
    }

    fn is_granted(&self, name: &str) -> bool {
        let name = name.to_owned();
        let grant = Grant::Name { name };
        self.ask.is_some() && self.grants.iter().any(|grants| grants.covers(&grant))
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
        let before = THREADS.fetch_add(1, Ordering::Relaxed);
        let end = Ended {
            names: self.clone(),
            cookie,
        };
        let thread = std::thread::Builder::new().name("provost-names".to_owned());
        before < THREADS_MAX
            && thread
                .spawn(move || end.names.answer_all(&stand_in, &Arc::new(socket)))
                .is_ok()
    }

    /// Whether no program holds a socket of ours and every question was answered.
    pub(super) fn is_over(&self) -> bool {
        self.known().stand_ins.is_empty()
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

    fn answer_all(self: &Arc<Self>, stand_in: &StandIn, socket: &Arc<OwnedFd>) {
        let mut message = vec![0; DATAGRAM_BYTES_MAX];
        let mut relays = Relays::default();
        loop {
            let length = match recv(socket.as_raw_fd(), &mut message, MsgFlags::empty()) {
                Ok(0) => return,
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            let query = &message[..length];
            let to = stand_in
                .destination()
                .map(|to| SocketAddr::new(effective(to.ip()), to.port()));
            if let Some(to) = to.filter(|to| self.permits_datagrams(to.ip(), to.port())) {
                // What cannot be sent is lost, as it would be on the wire.
                let _ = relays.send(to, query, socket);
                continue;
            }
            let answer = match dns::Question::parse(query) {
                Some(question) => self.answer(question, stand_in, socket),
                None => {
                    self.refuse_datagram(stand_in);
                    dns::unreadable(query)
                }
            };
            if let Some(answer) = answer {
                reply(socket, &answer);
            }
        }
    }

    /// The answer, unless it is held back until somebody who is asked about the name has answered.
    fn answer(
        self: &Arc<Self>,
        question: dns::Question,
        stand_in: &StandIn,
        socket: &Arc<OwnedFd>,
    ) -> Option<Vec<u8>> {
        let name = question.name.as_str();
        let mut rules = self.net.names.rules.iter();
        let allowed = rules.any(|rule| rule.covers_name(name))
            || self.is_granted(name)
            // It was permitted once, and its addresses are no secret any more.
            || self.ask.is_some() && self.known().names.contains_key(name);
        let addresses = if !allowed {
            if self.ask.is_some() {
                return self.hold(question, stand_in, socket);
            }
            Err(Some(NO_RULE.to_owned()))
        } else if question.wants_addresses() {
            self.addresses(name)
        } else {
            Ok(Vec::new())
        };
        if let Err(Some(why)) = &addresses {
            self.refuse(name, stand_in.last_user(), why);
        }
        Some(answer(&question, &addresses))
    }

    /// Keeps a question until somebody has answered about its name, and asks, unless it is being asked about already.
    fn hold(
        self: &Arc<Self>,
        question: dns::Question,
        stand_in: &StandIn,
        socket: &Arc<OwnedFd>,
    ) -> Option<Vec<u8>> {
        let name = question.name.clone();
        {
            let mut known = self.known();
            if known.held.values().map(Vec::len).sum::<usize>() >= HELD_MAX {
                drop(known);
                self.refuse(
                    &name,
                    stand_in.last_user(),
                    "too many questions wait for an answer",
                );
                return Some(question.answer(Code::NoSuchName, &[]));
            }
            let held = known.held.entry(name.clone()).or_default();
            held.push(Held {
                question,
                socket: socket.clone(),
            });
            if held.len() > 1 {
                return None;
            }
        }
        let denial = self.denial(&name, stand_in.last_user(), NO_RULE);
        let held = HeldName {
            names: self.clone(),
            name,
            permitted: true,
        };
        let asked = self
            .ask
            .as_ref()
            .map(|ask| ask(Box::new(Question::resolve(denial, held))));
        if let Some(Err(question)) = asked {
            let (answer, denial) = question.refuse();
            (self.report)(denial);
            drop(answer);
        }
        None
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
        let found = look_up(&self.net, name)?;
        let mut known = self.known();
        for &address in &found {
            known.pins.entry(address).or_default().insert(name.to_owned());
        }
        known.names.insert(name.to_owned(), found.clone());
        Ok(found)
    }

    fn refuse(&self, name: &str, user: (i32, Option<String>), why: &str) {
        (self.report)(self.denial(name, user, why));
    }

    fn denial(&self, name: &str, (pid, comm): (i32, Option<String>), why: &str) -> Denial {
        Denial {
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
        }
    }

    /// Something else than a question was sent.
    fn refuse_datagram(&self, stand_in: &StandIn) {
        let target = match stand_in.destination() {
            Some(to) => DenialTarget::inet(to.ip().to_canonical(), to.port(), "udp"),
            None => DenialTarget::protocol("udp"),
        };
        (self.report)(Denial {
            operation: "send".to_owned(),
            target,
            rule: format!("{}: not a question about a name", self.net_rule),
            errno: "FORMERR".to_owned(),
            ..self.denial("", stand_in.last_user(), "")
        });
    }
}

/// Where an allowed name leads: at most a few addresses, none of which is this machine or of its own network unless a rule
/// allows it, too. It blocks as long as the machine's resolver does.
///
/// # Errors
/// Why there is none that may be reached; nothing, where there is none at all.
pub fn look_up(net: &NetPolicy, name: &str) -> Result<Vec<IpAddr>, Option<String>> {
    if let Some(fixed) = net.names.fixed.iter().find(|fixed| fixed.name == name) {
        return Ok(fixed.addresses.iter().map(IpAddr::to_canonical).collect());
    }
    let found = (name, 0).to_socket_addrs().map_err(|_| None)?;
    let found: BTreeSet<IpAddr> = found.map(|address| address.ip().to_canonical()).collect();
    let (usable, inner): (Vec<IpAddr>, Vec<IpAddr>) = found
        .into_iter()
        .partition(|&address| may_lead_to(net, name, address));
    match (usable.is_empty(), inner.first()) {
        (true, Some(address)) => Err(Some(format!(
            "the name leads to {address}, which is not a public address: allow that address, too"
        ))),
        (true, None) => Err(None),
        (false, _) => Ok(usable.into_iter().take(ADDRESSES_MAX).collect()),
    }
}

/// Whoever owns a name decides where it leads. Into this machine and its own network it may lead only where a rule allows
/// the address, too.
fn may_lead_to(net: &NetPolicy, name: &str, address: IpAddr) -> bool {
    is_public(address)
        || net.allow.iter().any(|rule| rule.net.contains(&address))
        || address.is_loopback() && (name == "localhost" || name.ends_with(".localhost"))
}

/// The answer with these addresses, or that there are none.
fn answer(question: &dns::Question, addresses: &Result<Vec<IpAddr>, Option<String>>) -> Vec<u8> {
    match addresses {
        Ok(addresses) if question.wants_addresses() => question.answer(Code::NoError, addresses),
        Ok(_) => question.answer(Code::NoError, &[]),
        Err(_) => question.answer(Code::NoSuchName, &[]),
    }
}

/// An answer that nobody makes room for is dropped, as it would be on the wire.
fn reply(socket: &OwnedFd, answer: &[u8]) {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let _ = send(socket.as_raw_fd(), answer, flags);
}

/// A stand-in's place among the others, for as long as its thread runs.
struct Ended {
    names: Arc<Names>,
    cookie: u64,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.names.known().stand_ins.remove(&self.cookie);
        THREADS.fetch_sub(1, Ordering::Relaxed);
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
