//! A keeper of a test's own, and connections to it.

#![allow(unreachable_pub)]

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use provost_sandbox::compile::PreparedSandbox;
use provost_sandbox::keeper::wire::{Held, HeldState, HeldTree, Notice, Request};
use provost_sandbox::spawn::{Spawner, SpawnerSource};
use uuid::Uuid;

use crate::support::{Running, Talk, directory};

/// The directory of a keeper. Dropping it kills every keeper that was started in it.
pub struct Home {
    pub directory: tempfile::TempDir,
    pub idle: Duration,
    pids: std::cell::RefCell<Vec<i32>>,
}

/// A connection that was told everything.
pub struct Connected {
    pub talk: Talk,
    pub was_there: bool,
    pub held: Vec<(Held, Vec<OwnedFd>)>,
    pub named: Vec<(String, OwnedFd)>,
}

impl Home {
    pub fn new() -> Self {
        Self {
            directory: directory().0,
            idle: Duration::from_secs(600),
            pids: std::cell::RefCell::default(),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("keeper.sock")
    }

    /// Connects, and says nothing.
    pub fn link(&self) -> (Spawner, bool) {
        let connected = Spawner::connect_or_launch(&self.socket(), &SpawnerSource::Auto, self.idle)
            .expect("a keeper");
        self.pids.borrow_mut().push(connected.0.pid() as i32);
        connected
    }

    /// Connects, and hears everything that is held.
    pub fn connect(&self) -> Connected {
        let (spawner, was_there) = self.link();
        let talk = Talk::greet(spawner);
        let (mut held, mut named) = (Vec::new(), Vec::new());
        loop {
            match talk.next() {
                (Notice::Held(one), fds) => held.push((one, fds)),
                (Notice::HeldNamed { name }, mut fds) => {
                    named.push((name, fds.pop().expect("the descriptor")));
                }
                (Notice::HeldAll { trees, named: names }, _) => {
                    assert_eq!((trees, names), (held.len() as u64, named.len() as u64));
                    break;
                }
                (other, _) => panic!("before all was told: {other:?}"),
            }
        }
        Connected {
            talk,
            was_there,
            held,
            named,
        }
    }

    /// Connects and goes on with the only process that is held.
    pub fn find(&self, process: Uuid) -> (Talk, HeldTree, Running) {
        let mut connected = self.connect();
        assert!(connected.was_there, "another keeper");
        assert_eq!(connected.held.len(), 1);
        let (held, fds) = connected.held.remove(0);
        let (tree, running) = running(held, fds);
        assert_eq!(held.process, process);
        (connected.talk, tree, running)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for pid in self.pids.borrow().iter() {
            // Nobody reuses the number of a keeper that ended so soon; they are ours.
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if name.trim() == "provost-keeper" {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
        }
    }
}

/// A process that was started, with the descriptors that came along.
pub fn running(held: Held, fds: Vec<OwnedFd>) -> (HeldTree, Running) {
    let HeldState::Started(tree) = held.state else {
        panic!("not started: {held:?}");
    };
    assert!(tree.output, "its output is kept");
    (tree, Running::new(tree.started, fds))
}

impl Talk {
    pub fn tell(&self, request: &Request) {
        self.spawner.send(request, &[]).expect("the request is taken");
    }

    pub fn forget(&self, process: Uuid) {
        self.tell(&Request::Forget { process });
    }

    /// Waits until everything that was said so far has been obeyed.
    pub fn obeyed(&self) {
        self.tell(&Request::Hello { thorough: false });
        match self.next().0 {
            Notice::Hello { .. } => {}
            other => panic!("not hello but {other:?}"),
        }
    }

    /// A sandbox for a directory that can be had in every environment.
    pub fn unconfined(&self, cwd: &Path) -> PreparedSandbox {
        self.sandbox("unconfined", cwd, |_| {})
    }
}
