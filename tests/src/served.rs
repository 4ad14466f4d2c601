//! A daemon of the test's own.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{World, provost};

/// `provost serve` as the world's user. Dropping it kills it.
#[derive(Debug)]
pub struct Served {
    child: Child,
    socket: PathBuf,
    state: PathBuf,
    said: Arc<Mutex<String>>,
}

impl Served {
    /// Starts one, on a socket in the world.
    pub fn start(world: &World) -> Self {
        Self::start_with(world, &[])
    }

    /// The same with more flags.
    pub fn start_with(world: &World, flags: &[&str]) -> Self {
        Self::start_by(world, &[], flags)
    }

    /// The same by way of another command, which becomes what its last words say.
    pub fn start_by(world: &World, wrapper: &[&str], flags: &[&str]) -> Self {
        let (served, listens) = Self::begin_by(world, wrapper, flags);
        if listens.recv_timeout(crate::DEADLINE).is_err() {
            panic!("the daemon does not listen:\n{}", served.said());
        }
        served
    }

    /// Starts one that waits for help with something, of which it says so: then it is helped, and serves.
    pub fn start_helped(world: &World, says: &str, help: impl FnOnce()) -> Self {
        let (served, listens) = Self::begin(world, &[]);
        let begun = Instant::now();
        while !served.said().contains(says) {
            assert!(
                begun.elapsed() < crate::DEADLINE,
                "it does not say {says:?}:\n{}",
                served.said()
            );
            let heard = listens.recv_timeout(Duration::from_millis(1));
            assert_eq!(heard, Err(RecvTimeoutError::Timeout), "\n{}", served.said());
        }
        help();
        if listens.recv_timeout(crate::DEADLINE).is_err() {
            panic!("the daemon does not listen:\n{}", served.said());
        }
        served
    }

    /// One that is killed after so long, wherever it is then: not yet listening, perhaps.
    pub fn start_to_die(world: &World, after: Duration) {
        let (served, listens) = Self::begin(world, &[]);
        let _ = listens.recv_timeout(after);
        served.crash();
    }

    /// One that dies by itself, because of that other command perhaps; what it supervises goes on.
    pub fn start_that_dies(world: &World, wrapper: &[&str]) {
        let (served, listens) = Self::begin_by(world, wrapper, &[]);
        loop {
            match listens.recv_timeout(crate::DEADLINE) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it lives on:\n{}", served.said()),
            }
        }
        served.crash();
    }

    /// One that cannot serve, and ends by itself: what it said. Everything else is as it was.
    pub fn start_to_fail(world: &World, flags: &[&str]) -> String {
        let (mut served, listens) = Self::begin(world, flags);
        // Until nothing more is said.
        let heard = listens.recv_timeout(crate::DEADLINE);
        let said = served.said();
        assert_eq!(heard, Err(RecvTimeoutError::Disconnected), "it serves:\n{said}");
        let status = served.child.wait().expect("our own child");
        assert!(!status.success(), "{status}:\n{said}");
        std::mem::forget(served);
        said
    }

    /// Starts another, to which this one leaves everything; this one has ended, and well.
    pub fn replace(mut self, world: &World, flags: &[&str]) -> Self {
        let next = Self::start_with(world, &[&["--replace"], flags].concat());
        let status = self.child.wait().expect("our own child");
        assert!(status.success(), "{status}:\n{}", self.said());
        std::mem::forget(self);
        next
    }

    /// Starts one, and does not wait until it listens, which the receiver tells.
    fn begin(world: &World, flags: &[&str]) -> (Self, Receiver<()>) {
        Self::begin_by(world, &[], flags)
    }

    fn begin_by(world: &World, wrapper: &[&str], flags: &[&str]) -> (Self, Receiver<()>) {
        let socket = world.path("work/provost.sock");
        let mut words = wrapper.iter().map(Into::into).chain([provost().into_os_string()]);
        let mut command = Command::new(words.next().expect("a program"));
        command
            .args(words)
            .args(["serve", "--socket"])
            .arg(&socket)
            .arg("--state-dir")
            .arg(world.path("state"))
            .args(flags)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", world.path("home"))
            .current_dir(world.work())
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        if world.changes_uid() {
            command.uid(world.uid()).gid(world.uid());
        }
        let mut child = command.spawn().expect("provost serve starts");
        let said = Arc::<Mutex<String>>::default();
        let (listening, listens) = mpsc::channel();
        let stderr = child.stderr.take().expect("a pipe");
        let heard = said.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if line.contains("listening on") {
                    let _ = listening.send(());
                }
                let mut said = heard.lock().expect("no panic");
                said.push_str(&line);
                said.push('\n');
            }
        });
        let served = Self {
            child,
            socket,
            state: world.path("state"),
            said,
        };
        (served, listens)
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it said on stderr so far.
    pub fn said(&self) -> String {
        self.said.lock().expect("no panic").clone()
    }

    /// Bytes of memory that it has now (`VmRSS`).
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let mut lines = status.lines();
        let kib = lines.find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .trim()
                .strip_suffix(" kB")?
                .parse::<u64>()
                .ok()
        });
        kib.unwrap_or(0) * 1024
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).expect("it lives");
    }

    /// Kills it at this instant (`SIGKILL`) and leaves everything else as it is: whoever is started next in this world takes
    /// over, and has to be.
    pub fn crash(mut self) {
        self.child.kill().expect("it lives");
        self.child.wait().expect("our own child");
        // Its keeper lives on.
        std::mem::forget(self);
    }

    /// Tells it to stop, and waits until it has.
    pub fn stop(self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.stop_signalled()
    }

    /// Waits until it has stopped, after it was told to.
    pub fn stop_signalled(mut self) -> ExitStatus {
        self.child.wait().expect("our own child")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        crate::end_keeper(&self.state);
        let users = std::fs::read_dir(self.state.join("users"));
        for user in users.into_iter().flatten().flatten() {
            crate::end_keeper(&user.path());
        }
    }
}

/// Lets everybody connect to a socket.
pub fn open_socket(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
        .expect("the test's own socket");
}
