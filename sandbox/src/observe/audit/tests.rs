//! Against the real kernel, as root.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use landlock::{AccessNet, Scope, path_beneath_rules};

use super::switch::among_tests;
use super::*;

/// Far longer than anything here takes; only a failure waits that long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Ends the test, with the reason, where it cannot be run.
macro_rules! require_root {
    () => {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: reading audit records needs root");
            return;
        }
    };
}

pub(super) use require_root;

mod sharing;

/// What was read, sorted by domain.
#[derive(Debug, Default)]
struct Seen {
    allocated: Vec<(u64, i32, String)>,
    denied: BTreeMap<u64, Vec<LandlockDenial>>,
    gone: BTreeMap<u64, u64>,
    fences: Vec<FenceId>,
    overflows: usize,
}

impl Seen {
    fn read(&mut self, reader: &mut AuditReader) {
        let mut events = Vec::new();
        while reader.read(&mut events).unwrap() == Drain::More {}
        for event in events {
            match event {
                AuditEvent::DomainAllocated {
                    domain,
                    pid,
                    comm,
                    exe,
                    ..
                } => {
                    assert_ne!(exe, "");
                    self.allocated.push((domain, pid, comm));
                }
                AuditEvent::Denied(denial) => self.denied.entry(denial.domain).or_default().push(denial),
                AuditEvent::DomainGone { domain, denials } => {
                    assert_eq!(self.gone.insert(domain, denials), None);
                }
                AuditEvent::Fence(fence) => self.fences.push(fence),
                AuditEvent::Overflow => self.overflows += 1,
            }
        }
    }

    fn read_until(&mut self, reader: &mut AuditReader, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.read(reader);
            if done(self) {
                return;
            }
            let overflows = self.overflows;
            assert!(
                Instant::now() < deadline,
                "never saw {what}; {overflows} overflows"
            );
            let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
            control::poll_until(&mut fds, deadline).unwrap();
        }
    }

    fn read_to_fence(&mut self, reader: &mut AuditReader) {
        loop {
            let overflows = self.overflows;
            let fence = reader.send_fence().unwrap();
            let mut back = false;
            self.read_until(reader, "the fence", |seen| {
                back = seen.fences.contains(&fence);
                // It may be among what was lost then.
                back || seen.overflows > overflows
            });
            if back {
                return;
            }
        }
    }

    /// The domain that the thread of this name made.
    fn domain(&self, thread: &str) -> Option<u64> {
        let own = i32::try_from(std::process::id()).unwrap();
        let of_thread = |(_, pid, comm): &&(u64, i32, String)| *pid == own && comm == thread;
        self.allocated
            .iter()
            .find(of_thread)
            .map(|(domain, _, _)| *domain)
    }
}

/// A file that the confined threads of these tests may not read.
pub(super) fn secret() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a secret=\"1\"");
    std::fs::write(&path, "x").unwrap();
    (directory, path)
}

/// Runs `work` on a thread that may read programs and libraries only. Returns the thread's name, by which
/// its domain is known.
pub(super) fn confined(work: impl FnOnce() + Send + 'static) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("confined-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let body = move || {
        let programs = ["/usr", "/bin", "/lib", "/lib64", "/etc", "/dev"];
        Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::ReadFile)
            .and_then(|ruleset| ruleset.handle_access(AccessFs::MakeDir))
            .and_then(|ruleset| ruleset.handle_access(AccessFs::Execute))
            .and_then(|ruleset| ruleset.handle_access(AccessNet::ConnectTcp))
            .and_then(|ruleset| ruleset.handle_access(AccessNet::BindTcp))
            .and_then(|ruleset| ruleset.scope(Scope::Signal))
            .and_then(|ruleset| ruleset.scope(Scope::AbstractUnixSocket))
            .and_then(Ruleset::create)
            .and_then(|ruleset| {
                ruleset.add_rules(path_beneath_rules(
                    programs,
                    AccessFs::ReadFile | AccessFs::Execute,
                ))
            })
            .and_then(|ruleset| ruleset.log_new_exec(true))
            .and_then(landlock::RulesetCreated::restrict_self)
            .unwrap();
        work();
    };
    std::thread::Builder::new()
        .name(name.clone())
        .spawn(body)
        .unwrap()
        .join()
        .unwrap();
    name
}

/// A shell that tries to open `path` so often, and is reaped when this returns.
fn shell_opens(path: PathBuf, times: u32) -> String {
    confined(move || {
        let status = Command::new("/bin/sh")
            .args([
                "-c",
                "i=0; while [ $i -lt $1 ]; do true < \"$2\"; i=$((i + 1)); done; true",
                "sh",
            ])
            .arg(times.to_string())
            .arg(path)
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
    })
}

#[test]
fn i4_a_fence_after_the_end_comes_behind_every_denial() {
    require_root!();
    let _others = among_tests(Path::new(LOCK_DIR), false);
    let mut reader = AuditReader::open().unwrap();
    let (_directory, path) = secret();
    let target = path.canonicalize().unwrap();
    let (mut rounds, mut disturbed) = (0, 0);
    while rounds < 50 {
        let times = [0, 5, 500][rounds % 3];
        let mut seen = Seen::default();
        let thread = shell_opens(path.clone(), times);
        seen.read_to_fence(&mut reader);
        let domain = seen.domain(&thread);
        let denied = domain
            .and_then(|domain| seen.denied.get(&domain))
            .map_or(&[][..], Vec::as_slice);
        let lost = reader.lost().unwrap();
        if denied.len() != times as usize && lost > 0 {
            // Somebody else on this machine floods the queue, and we were told.
            disturbed += 1;
            assert!(disturbed < 50);
            continue;
        }
        assert_eq!(denied.len(), times as usize, "round {rounds}");
        assert_eq!(
            domain.is_some(),
            times > 0,
            "a domain is announced with its first denial"
        );
        for denial in denied {
            assert_eq!(denial.blockers, ["fs.read_file"]);
            let LandlockTarget::File { path, device, inode } = &denial.target else {
                panic!("{denial:?}");
            };
            assert_eq!(*path, target);
            assert!(device.is_some() && inode.is_some());
        }
        rounds += 1;
    }
}

#[test]
fn i4_fifty_thousand_denials_are_counted_exactly() {
    require_root!();
    const DENIALS: usize = 50_000;
    let _alone = among_tests(Path::new(LOCK_DIR), true);
    let mut reader = AuditReader::open().unwrap();
    let (_directory, path) = secret();
    let thread = confined(move || {
        for _ in 0..DENIALS {
            File::open(&path).unwrap_err();
        }
    });
    let mut seen = Seen::default();
    seen.read_until(&mut reader, "the domain's end", |seen| {
        seen.domain(&thread)
            .is_some_and(|domain| seen.gone.contains_key(&domain))
    });
    let domain = seen.domain(&thread).unwrap();
    assert_eq!(seen.gone[&domain], DENIALS as u64);
    let details = seen.denied[&domain].len();
    let lost = reader.lost().unwrap();
    eprintln!(
        "{details} of {DENIALS} details, {lost} lost, {} overflows",
        seen.overflows
    );
    assert!(details <= DENIALS);
    assert!(
        details == DENIALS || lost > 0,
        "{details} of {DENIALS} and nothing said to be lost"
    );
}

#[test]
fn i4_an_overflow_is_said_and_the_count_stays_exact() {
    require_root!();
    let _alone = among_tests(Path::new(LOCK_DIR), true);
    let mut small = AuditReader::open_with(Path::new(LOCK_DIR), 4096, None).unwrap();
    let mut large = AuditReader::open().unwrap();
    let (_directory, path) = secret();
    let thread = confined(move || {
        for _ in 0..2000 {
            File::open(&path).unwrap_err();
        }
    });
    let mut all = Seen::default();
    let gone = |seen: &Seen, domain| seen.gone.get(&domain) == Some(&2000);
    all.read_until(&mut large, "the domain's end", |seen| {
        seen.domain(&thread).is_some_and(|domain| gone(seen, domain))
    });
    let domain = all.domain(&thread).unwrap();
    assert!(all.denied[&domain].len() == 2000 || large.lost().unwrap() > 0);

    let mut some = Seen::default();
    some.read(&mut small);
    assert!(some.overflows > 0, "{some:?}");
    assert!(some.denied.get(&domain).map_or(0, Vec::len) < 2000);
    assert!(small.lost().unwrap() >= some.overflows as u64);
    // It has caught up: from here on it sees everything again.
    some.read_to_fence(&mut small);
}

#[test]
fn refusals_of_every_kind_are_understood() {
    require_root!();
    let _others = among_tests(Path::new(LOCK_DIR), false);
    let mut reader = AuditReader::open().unwrap();
    let (directory, path) = secret();
    let program = directory.path().join("program");
    std::fs::copy("/bin/true", &program).unwrap();
    let inside = directory.path().to_owned();
    let name = format!("provost test {}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    let thread = confined(move || {
        File::open(&path).unwrap_err();
        std::fs::create_dir(inside.join("new")).unwrap_err();
        Command::new(&program).status().unwrap_err();
        std::net::TcpStream::connect("127.0.0.1:9").unwrap_err();
        std::net::TcpStream::connect("[::1]:9").unwrap_err();
        std::net::TcpListener::bind("127.0.0.1:9").unwrap_err();
        std::os::unix::net::UnixStream::connect_addr(&address).unwrap_err();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(1), None).unwrap_err();
    });
    let mut seen = Seen::default();
    seen.read_to_fence(&mut reader);
    let domain = seen.domain(&thread).unwrap();
    let denials: Vec<_> = seen.denied[&domain]
        .iter()
        .map(|denial| denial.to_denial(|_, access| access.to_owned()))
        .map(|denial| {
            let target = denial.target;
            let target = target
                .path
                .or(target.address.map(|address| address.to_string()))
                .or(target.syscall);
            (
                denial.operation,
                denial.rule,
                denial.errno,
                target.unwrap_or_default(),
            )
        })
        .collect();
    let of = |name: &str| {
        directory
            .path()
            .join(name)
            .canonicalize()
            .unwrap()
            .to_string_lossy()
            .into_owned()
    };
    let init = std::fs::read_to_string("/proc/1/comm").unwrap();
    let expected = [
        ("open", "read", "EACCES", of("a secret=\"1\"")),
        ("mkdir", "write", "EACCES", of("")),
        ("exec", "execute", "EACCES", of("program")),
        ("connect", "connect", "EACCES", "127.0.0.1".to_owned()),
        ("connect", "connect", "EACCES", "::1".to_owned()),
        ("bind", "bind", "EACCES", "127.0.0.1".to_owned()),
        ("connect", "connect", "EPERM", format!("@{name}")),
        ("kill", "signal", "EPERM", format!("kill(1 {})", init.trim())),
    ]
    .map(|(operation, access, errno, target)| {
        (operation.to_owned(), access.to_owned(), errno.to_owned(), target)
    });
    assert_eq!(denials, expected);
}

#[test]
fn only_a_fence_of_one_s_own_comes_back_and_only_once() {
    require_root!();
    let mut reader = AuditReader::open().unwrap();
    let mut other = AuditReader::open().unwrap();
    let mut forger = Control::open().unwrap();
    let mut seen = Seen::default();

    let guessed = reader.fences.next();
    forger.send_user_message(&guessed.to_string()).unwrap();
    let stranger = FenceId {
        pid: guessed.pid + 1,
        ..guessed
    };
    reader.fences.expect(stranger);
    forger.send_user_message(&stranger.to_string()).unwrap();
    let fence = reader.send_fence().unwrap();
    forger.send_user_message(&fence.to_string()).unwrap();
    let last = reader.send_fence().unwrap();
    seen.read_until(&mut reader, "the last fence", |seen| seen.fences.contains(&last));
    assert_eq!(seen.fences, [fence, last]);

    let mut elsewhere = Seen::default();
    elsewhere.read_to_fence(&mut other);
    assert_eq!(elsewhere.fences.len(), 1);
}

#[test]
#[ignore = "prints what opening and fences cost"]
fn costs() {
    require_root!();
    let median = |mut times: Vec<Duration>| {
        times.sort();
        (times[times.len() / 2], times[times.len() * 99 / 100])
    };
    let measure = |rounds: usize, mut work: Box<dyn FnMut()>| {
        median(
            (0..rounds)
                .map(|_| {
                    let start = Instant::now();
                    work();
                    start.elapsed()
                })
                .collect(),
        )
    };
    eprintln!(
        "open and drop, alone: {:?}",
        measure(200, Box::new(|| drop(AuditReader::open().unwrap())))
    );
    let mut reader = AuditReader::open().unwrap();
    let opened = median(
        (0..200)
            .map(|_| {
                let start = Instant::now();
                let second = AuditReader::open().unwrap();
                let elapsed = start.elapsed();
                drop(second);
                elapsed
            })
            .collect(),
    );
    eprintln!("open beside another: {opened:?}");
    eprintln!(
        "probe: {:?}",
        measure(200, Box::new(|| assert_eq!(AuditReader::probe(), Probe::Yes)))
    );
    let mut other = AuditReader::open().unwrap();
    eprintln!(
        "lost: {:?}",
        measure(
            2000,
            Box::new(move || {
                let _ = other.lost().unwrap();
            })
        )
    );
    let mut seen = Seen::default();
    let fence = measure(
        2000,
        Box::new(move || {
            seen.read_to_fence(&mut reader);
            seen.fences.clear();
        }),
    );
    eprintln!("fence and back: {fence:?}");
}
