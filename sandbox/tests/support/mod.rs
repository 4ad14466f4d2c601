//! What the tests that talk to a spawner share: the conversation, and a small runner, because a program that can be
//! a spawner has a `main` of its own.

#![allow(dead_code, unreachable_pub)]

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use provost_sandbox::compile::{CompileContext, PreparedSandbox, compile};
use provost_sandbox::extras::Extras;
use provost_sandbox::extras::ReadyBy;
use provost_sandbox::keeper::wire::{Notice, Request, SpawnRequest, Started, Stdin};
use provost_sandbox::keeper::{self, Step};
use provost_sandbox::kernel::KernelSupport;
use provost_sandbox::policy::{Policy, PresetContext};
use provost_sandbox::spawn::{Command, Spawner, SpawnerSource};
use uuid::Uuid;

/// After this long without the awaited event a test fails.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A test by name.
pub type Test = (&'static str, fn());

/// Runs the tests whose names contain an argument, or all. Understands what `cargo test` passes in passing.
pub fn run(tests: &[Test]) {
    keeper::run_if_asked();
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--list") {
        // None of them is ignored, and who asks for those alone gets none.
        if !words.iter().any(|word| word == "--ignored") {
            tests.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return;
    }
    let filters: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(*filter));
    let mut failed = 0;
    for (name, test) in tests.iter().filter(|(name, _)| wanted(name)) {
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    if failed > 0 {
        println!("{failed} failed");
        std::process::exit(101);
    }
}

/// A spawner and what is said with it.
pub struct Talk {
    pub spawner: Spawner,
    pub kernel: KernelSupport,
    pub pid: i32,
}

impl Talk {
    /// Starts this program as a spawner and says hello.
    pub fn start() -> Self {
        Self::greet(Spawner::launch(&SpawnerSource::Auto).expect("a spawner"))
    }

    /// Says hello, and takes the answer.
    pub fn greet(spawner: Spawner) -> Self {
        spawner
            .send(&Request::Hello { thorough: true }, &[])
            .expect("hello is taken");
        let (notice, _) = receive(&spawner).expect("an answer");
        let Notice::Hello { pid, support } = notice else {
            panic!("not hello but {notice:?}");
        };
        Self {
            spawner,
            kernel: *support,
            pid,
        }
    }

    /// Asks for a command; its notices are to be taken with [`Self::next`].
    pub fn ask(&self, request: SpawnRequest, sandbox: &PreparedSandbox) {
        let request = Request::Spawn(Box::new(request));
        loop {
            match self.spawner.send(&request, &sandbox.rulesets()) {
                Ok(()) => return,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    wait_for(self.spawner.as_fd(), PollFlags::POLLOUT);
                }
                Err(error) => panic!("the request is not taken: {error}"),
            }
        }
    }

    /// The next notice.
    pub fn next(&self) -> (Notice, Vec<OwnedFd>) {
        receive(&self.spawner).expect("a notice, not the end")
    }

    /// Asks, and waits until it runs.
    pub fn started(&self, request: SpawnRequest, sandbox: &PreparedSandbox) -> Running {
        self.ask(request, sandbox);
        let (notice, fds) = self.next();
        let Notice::Started(started) = notice else {
            panic!("not started but {notice:?}");
        };
        Running::new(started, fds)
    }

    /// Asks, and expects that it does not start.
    pub fn fails(&self, request: SpawnRequest, sandbox: &PreparedSandbox) -> (Step, i32) {
        self.ask(request, sandbox);
        match self.next().0 {
            Notice::Failed { step, errno, .. } => (step, errno),
            other => panic!("not failed but {other:?}"),
        }
    }

    /// Uses this sandbox until the spawner makes the next one ahead; says the pid of its init. Nothing else may run.
    pub fn made_ahead(&self, cwd: &Path, sandbox: &PreparedSandbox) -> i32 {
        for _ in 0..2 {
            let (status, _) = self.output(request(&["true"], cwd, sandbox), sandbox);
            assert_eq!(code(status), 0);
        }
        let deadline = Instant::now() + DEADLINE;
        loop {
            // An init that has just ended may still be there; one that waits has a child.
            for init in children(self.pid) {
                if children(init).len() == 1 {
                    return init;
                }
            }
            assert!(Instant::now() < deadline, "nothing is made ahead");
            std::thread::yield_now();
        }
    }

    /// Waits for a process's status and for the end of its tree.
    pub fn ended(&self, process: Uuid) -> i32 {
        let mut ended = None;
        loop {
            match self.next().0 {
                Notice::Exited { process: who, status } if who == process => ended = Some(status),
                Notice::Ended { process: who, .. } if who == process => {
                    return ended.expect("the status comes before the end of the tree");
                }
                other => panic!("unexpected: {other:?}"),
            }
        }
    }

    /// Runs a command to its end: its status and its output.
    pub fn output(&self, request: SpawnRequest, sandbox: &PreparedSandbox) -> (i32, String) {
        let process = request.process;
        let running = self.started(request, sandbox);
        let text = running.stdout_text();
        (self.ended(process), text)
    }

    /// A preset for this directory, changed by `change`, compiled for this kernel.
    pub fn sandbox(
        &self,
        preset: &str,
        cwd: &Path,
        change: impl FnOnce(&mut Policy),
    ) -> PreparedSandbox {
        let cwd = cwd.canonicalize().expect("the directory");
        let context = PresetContext {
            cwd: cwd.clone(),
            home: None,
            uid: nix::unistd::geteuid().as_raw(),
            runtime_dir: None,
        };
        let mut policy = Policy::preset(preset, &context).expect("a preset");
        change(&mut policy);
        let context = CompileContext {
            cwd,
            ..CompileContext::default()
        };
        compile(&policy, &self.kernel, &context).expect("the policy can be held here")
    }
}

/// A command that runs.
pub struct Running {
    pub started: Started,
    pub pidfd: OwnedFd,
    pub stdout: File,
    pub stderr: File,
    pub stdin: Option<File>,
    pub listener: Option<OwnedFd>,
    pub report: Option<File>,
    pub ready: Option<File>,
    pub ready_sender: Option<File>,
}

impl Running {
    pub fn new(started: Started, fds: Vec<OwnedFd>) -> Self {
        let mut fds = fds.into_iter();
        let mut next = || fds.next().expect("enough descriptors");
        let running = Self {
            pidfd: next(),
            stdout: next().into(),
            stderr: next().into(),
            stdin: started.stdin_pipe.then(|| next().into()),
            listener: started.listener.then(&mut next),
            report: started.extras.report.then(|| next().into()),
            ready: (started.extras.ready != ReadyBy::Nothing).then(|| next().into()),
            ready_sender: (started.extras.ready == ReadyBy::Notify).then(|| next().into()),
            started,
        };
        assert!(fds.next().is_none(), "no descriptor too many");
        running
    }

    /// All that it writes to stdout, until everybody has closed that.
    pub fn stdout_text(&self) -> String {
        let mut text = String::new();
        let mut chunk = [0; 65536];
        loop {
            wait_for(self.stdout.as_fd(), PollFlags::POLLIN);
            match (&self.stdout).read(&mut chunk) {
                Ok(0) => return text,
                Ok(read) => text.push_str(&String::from_utf8_lossy(&chunk[..read])),
                Err(error) => panic!("stdout: {error}"),
            }
        }
    }

    /// Whether nobody of its tree lives by now who holds its stdout.
    pub fn is_gone(&self) -> bool {
        hung_up(self.stdout.as_fd(), PollTimeout::ZERO)
    }

    /// Waits until nobody of its tree lives who holds its stdout.
    pub fn wait_until_gone(&self) {
        let deadline = Instant::now() + DEADLINE;
        while !hung_up(self.stdout.as_fd(), PollTimeout::from(1000u16)) {
            assert!(Instant::now() < deadline, "something of the tree still lives");
        }
    }
}

fn hung_up(fd: BorrowedFd<'_>, timeout: PollTimeout) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::empty())];
    poll(&mut fds, timeout).expect("poll");
    fds[0]
        .revents()
        .is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

/// Waits for an event.
pub fn wait_for(fd: BorrowedFd<'_>, events: PollFlags) {
    let mut fds = [PollFd::new(fd, events)];
    let deadline = PollTimeout::try_from(DEADLINE).expect("a timeout");
    assert_ne!(
        poll(&mut fds, deadline).expect("poll"),
        0,
        "nothing came before the deadline"
    );
}

/// The next notice; `None` when the spawner is gone.
pub fn receive(spawner: &Spawner) -> Option<(Notice, Vec<OwnedFd>)> {
    wait_for(spawner.as_fd(), PollFlags::POLLIN);
    spawner.receive().expect("a notice that can be read")
}

/// A request to run these words in this directory in this sandbox.
pub fn request(words: &[&str], cwd: &Path, sandbox: &PreparedSandbox) -> SpawnRequest {
    let bytes = |word: &&str| word.as_bytes().to_vec();
    Command {
        process: Uuid::now_v7(),
        argv: words.iter().map(bytes).collect(),
        env: vec![b"PATH=/usr/local/bin:/usr/bin:/bin".to_vec()],
        cwd: cwd.to_owned(),
        stdin: Stdin::Null,
        extras: Extras::default(),
    }
    .request(sandbox)
}

/// The children of a single-threaded process.
pub fn children(pid: i32) -> Vec<i32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// A directory of the test's own, outside of `/tmp`, which a sandbox has its own copy of.
pub fn directory() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::Builder::new()
        .prefix("provost-spawner-")
        .tempdir_in("/var/tmp")
        .expect("a directory below /var/tmp");
    let path = directory.path().canonicalize().expect("its path");
    (directory, path)
}

/// The code of a raw wait status; fails the test if it was a signal.
pub fn code(status: i32) -> i32 {
    assert!(
        libc::WIFEXITED(status),
        "ended by signal {}",
        libc::WTERMSIG(status)
    );
    libc::WEXITSTATUS(status)
}

/// The signal of a raw wait status.
pub fn signal(status: i32) -> i32 {
    assert!(
        libc::WIFSIGNALED(status),
        "exited with {}",
        libc::WEXITSTATUS(status)
    );
    libc::WTERMSIG(status)
}
