//! A thread under a hand-written filter, and the loop that answers it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::{Answer, Decider, DeciderSetup, Listener, Observation, Question, Received, Tree};
use crate::compile::access::AccessMap;
use crate::denial::Denial;
use crate::policy::{AskPolicy, FilePolicy, NetMode, NetPolicy};

/// What came of a run.
pub(super) struct Ran<T> {
    pub(super) result: T,
    pub(super) denials: Vec<Denial>,
    pub(super) probes: Vec<String>,
}

impl<T> Ran<T> {
    /// The only denial.
    #[track_caller]
    pub(super) fn denial(&self) -> &Denial {
        assert_eq!(self.denials.len(), 1, "{:?}", self.denials);
        &self.denials[0]
    }

    /// Nothing was recorded.
    #[track_caller]
    pub(super) fn unrecorded(self) -> T {
        assert_eq!((&*self.denials, &*self.probes), (&[][..], &[][..]));
        self.result
    }
}

/// A setup for a tree that this test process is the first process of.
pub(super) fn setup(mode: NetMode, allow: &[String]) -> DeciderSetup {
    DeciderSetup {
        net: NetPolicy {
            mode,
            source: "preset test".to_owned(),
            unix: Vec::new(),
            listen: Vec::new(),
            allow: allow.iter().map(|rule| rule.parse().unwrap()).collect(),
            names: crate::policy::NamePolicy::default(),
            proxy: false,
        },
        access: None,
        metadata: AccessMap::new(&FilePolicy::default(), &[]),
        refused: std::collections::BTreeMap::new(),
        masked: Vec::new(),
        observe_reads: false,
        tree: Tree {
            init: std::process::id().cast_signed(),
            pid_namespace: None,
        },
        tcp_confined_by_landlock: false,
        ask: AskPolicy::default(),
        ready: None,
        grants: Vec::new(),
    }
}

/// Runs `target` in a thread whose calls named in `notified` are decided by a decider.
pub(super) fn run<T: Send>(
    setup: DeciderSetup,
    notified: &[libc::c_long],
    target: impl FnOnce() -> T + Send,
) -> Ran<T> {
    run_asked(setup, notified, |_| false, target)
}

/// The same; whatever is asked about is answered by `allows`.
pub(super) fn run_asked<T: Send>(
    setup: DeciderSetup,
    notified: &[libc::c_long],
    mut allows: impl FnMut(&Question) -> bool,
    target: impl FnOnce() -> T + Send,
) -> Ran<T> {
    let mut decider = Decider::new(setup);
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        let target = scope.spawn(move || {
            sender.send(install(notified).unwrap()).unwrap();
            target()
        });
        // Dropped when this panics: the target's calls then end with ENOSYS.
        let listener = Arc::new(Listener::new(receiver.recv().unwrap()).unwrap());
        let (mut denials, mut probes) = (Vec::new(), Vec::new());
        loop {
            let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::NONE).unwrap();
            let notification = match listener.receive().unwrap() {
                Received::Notification(notification) => notification,
                Received::Empty => continue,
                Received::HungUp => break,
            };
            let decided = decider.decide(&listener, &notification);
            match decided.observation {
                Some(Observation::Denial(denial)) => denials.push(denial),
                Some(Observation::Probe(name)) => probes.push(name),
                None => {}
            }
            let id = notification.id;
            let answer = match decided.answer {
                Answer::Ask(question) if allows(&question) => question.permit(),
                Answer::Ask(question) => {
                    denials.push(question.denial().clone());
                    question.refuse().0
                }
                answer => answer,
            };
            let listener = Arc::clone(&listener);
            match answer {
                Answer::Now(response) => listener.respond(id, response).unwrap(),
                Answer::Blocking(connect) => {
                    scope.spawn(move || listener.respond(id, connect.run(&listener)).unwrap());
                }
                Answer::Name(name) => name.run(),
                Answer::Open(open) => {
                    scope.spawn(move || {
                        let close_on_exec = open.close_on_exec();
                        match open.run() {
                            Ok(file) => drop(listener.give(id, file.as_fd(), close_on_exec).unwrap()),
                            Err(errno) => listener
                                .respond(id, super::super::Response::Errno(errno as i32))
                                .unwrap(),
                        }
                    });
                }
                Answer::Ask(_) => unreachable!("answered above"),
            }
        }
        Ran {
            result: target.join().unwrap(),
            denials,
            probes,
        }
    })
}

/// Puts the calling thread under a filter.
pub(super) fn install(notified: &[libc::c_long]) -> io::Result<OwnedFd> {
    const NEW_LISTENER: libc::c_ulong = 1 << 3;
    const WAIT_KILLABLE_RECV: libc::c_ulong = 1 << 5;
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = vec![instruction(0x20, 0, 0, 0)]; // load the number
    for (index, number) in notified.iter().enumerate() {
        let to_notify = (notified.len() - index) as u8;
        program.push(instruction(0x15, to_notify, 0, *number as u32));
    }
    program.push(instruction(0x06, 0, 0, libc::SECCOMP_RET_ALLOW));
    program.push(instruction(0x06, 0, 0, libc::SECCOMP_RET_USER_NOTIF));
    let prog = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: prctl takes integers; `prog` points to `program`, which outlives both calls; the descriptor
    // that the kernel returns is ours.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            NEW_LISTENER | WAIT_KILLABLE_RECV,
            &raw const prog,
        );
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// A system call with whatever arguments; the result, or the error number.
pub(super) fn raw(number: libc::c_long, args: [u64; 6]) -> Result<i64, i32> {
    let [a, b, c, d, e, f] = args;
    // SAFETY: the callers pass either valid pointers or ones that the kernel must refuse, and only to calls
    // that read memory.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result < 0 {
        Err(io::Error::last_os_error().raw_os_error().unwrap())
    } else {
        Ok(result)
    }
}

/// connect(2) with an address as bytes.
pub(super) fn connect(socket: impl AsFd, address: &[u8]) -> Result<i64, i32> {
    let fd = socket.as_fd().as_raw_fd() as u64;
    raw(
        libc::SYS_connect,
        [fd, address.as_ptr() as u64, address.len() as u64, 0, 0, 0],
    )
}

/// A fresh socket.
pub(super) fn socket(family: i32, type_: i32) -> OwnedFd {
    let fd = raw(libc::SYS_socket, [family as u64, type_ as u64, 0, 0, 0, 0]).unwrap();
    // SAFETY: the kernel just made it for us.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// `struct sockaddr_in`.
pub(super) fn inet(ip: [u8; 4], port: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    bytes[2..4].copy_from_slice(&port.to_be_bytes());
    bytes[4..8].copy_from_slice(&ip);
    bytes
}

/// `struct sockaddr_un`, as long as its name.
pub(super) fn unix(name: &[u8]) -> Vec<u8> {
    [&(libc::AF_UNIX as u16).to_ne_bytes(), name].concat()
}
