//! With the real kernel, and processes of two other users. They are this very program, which plays its part in a test that is
//! ignored otherwise: a domain is a user's only if the program that is served made it.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::super::tests::{confined, require_root, secret};
use super::super::{BrokeredReader, LOCK_DIR, switch};
use super::*;

/// A pair of users for each test: they run at the same time.
const ONE: [u32; 5] = [64_331, 64_332, 64_333, 64_334, 64_335];
const OTHER: [u32; 5] = [64_341, 64_342, 64_343, 64_344, 64_345];
const PATIENCE: Duration = Duration::from_secs(30);
const TARGET: &str = "PROVOST_TEST_TARGET";

fn own_executable() -> std::path::PathBuf {
    std::env::current_exe().unwrap()
}

/// A process of this user's, of this program, that is refused `path` so often and ends.
fn is_refused(uid: u32, path: &Path, times: u32) {
    let refused = Command::new(own_executable())
        .args([
            "--exact",
            "--ignored",
            "observe::audit::broker::tests::plays_a_part",
        ])
        .env(TARGET, format!("{times} {}", path.display()))
        .uid(uid)
        .gid(uid)
        .output()
        .unwrap();
    assert!(
        refused.status.success(),
        "{}",
        String::from_utf8_lossy(&refused.stdout)
    );
}

#[test]
#[ignore = "a part that other tests play"]
fn plays_a_part() {
    let Ok(target) = std::env::var(TARGET) else { return };
    let (times, path) = target.split_once(' ').unwrap();
    let (times, path) = (times.parse::<u32>().unwrap(), path.to_owned());
    confined(move || {
        for _ in 0..times {
            File::open(&path).unwrap_err();
        }
    });
}

/// What a user is told.
struct Told {
    reader: BrokeredReader,
    events: Vec<AuditEvent>,
}

impl Told {
    fn to(broker: &AuditBroker, uid: u32) -> Self {
        let mut told = Self {
            reader: BrokeredReader::new(broker.subscribe(uid).unwrap()),
            events: Vec::new(),
        };
        told.read_to_fence();
        told
    }

    fn read_to_fence(&mut self) {
        let events = self.reader.read_to_fence(Instant::now() + PATIENCE).unwrap();
        self.events.extend(events);
    }

    /// How often something was refused that is named so, and by the kernel's count of the domains that have ended.
    fn refused(&self, path: &Path) -> usize {
        let path = path.to_string_lossy();
        let mut count = 0;
        for event in &self.events {
            if let AuditEvent::Denied(denial) = event {
                count += usize::from(format!("{:?}", denial.target).contains(&*path));
            }
        }
        count
    }

    fn has_only_fences(&self) -> bool {
        let mut events = self.events.iter();
        events.all(|event| matches!(event, AuditEvent::Fence(_)))
    }

    fn counted(&self) -> Option<u64> {
        self.events.iter().find_map(|event| match event {
            AuditEvent::DomainGone { denials, .. } => Some(*denials),
            _ => None,
        })
    }
}

/// A directory that another user may see, and a file that nobody's confined threads may read.
fn secrets() -> (tempfile::TempDir, std::path::PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    let (directory, _) = secret();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let path = directory.path().canonicalize().unwrap().join("plain");
    std::fs::write(&path, "x").unwrap();
    (directory, path)
}

#[test]
fn i12_each_user_is_told_what_its_own_processes_were_refused_and_nothing_else() {
    require_root!();
    let _others = switch::among_tests(Path::new(LOCK_DIR), false);
    let broker = AuditBroker::start(&own_executable(), || {}).unwrap();
    let (mut one, mut other) = (Told::to(&broker, ONE[0]), Told::to(&broker, OTHER[0]));
    let (_directory, path) = secrets();
    let (_elsewhere, roots) = secrets();
    is_refused(ONE[0], &path, 5);
    // Of this process, which is root's.
    let open = roots.clone();
    confined(move || drop(File::open(open).unwrap_err()));
    one.read_to_fence();
    other.read_to_fence();
    assert_eq!(one.refused(&path), 5);
    assert!(other.has_only_fences(), "{:?}", other.events);
    assert_eq!(one.refused(&roots) + other.refused(&roots), 0);
    is_refused(OTHER[0], &path, 3);
    one.read_to_fence();
    other.read_to_fence();
    assert_eq!((one.refused(&path), other.refused(&path)), (5, 3));
    assert!(broker.subscribe(0).is_err(), "root's are root's");
}

#[test]
fn i12_what_another_program_made_is_not_told_to_who_ran_it() {
    require_root!();
    let _others = switch::among_tests(Path::new(LOCK_DIR), false);
    let broker = AuditBroker::start(Path::new("/usr/bin/another"), || {}).unwrap();
    let mut one = Told::to(&broker, ONE[1]);
    let (_directory, path) = secrets();
    is_refused(ONE[1], &path, 5);
    one.read_to_fence();
    assert_eq!(one.refused(&path), 0);
    assert!(one.has_only_fences(), "{:?}", one.events);
}

#[test]
fn i3_who_does_not_read_loses_its_own_records_and_is_told_so_and_nobody_waits() {
    require_root!();
    let _others = switch::among_tests(Path::new(LOCK_DIR), false);
    let broker = AuditBroker::start(&own_executable(), || {}).unwrap();
    let (mut still, mut other) = (Told::to(&broker, ONE[2]), Told::to(&broker, OTHER[2]));
    let (_directory, path) = secrets();
    let times = 40_000;
    // Far more than is kept for it.
    is_refused(ONE[2], &path, times);
    is_refused(OTHER[2], &path, 3);
    other.read_to_fence();
    let lost = other.reader.lost();
    assert!(
        other.refused(&path) == 3 || lost > 0,
        "{} came and {lost} are said to be lost",
        other.refused(&path)
    );
    let deadline = Instant::now() + PATIENCE;
    while still.counted().is_none() {
        assert!(Instant::now() < deadline, "the kernel's count never comes");
        still.read_to_fence();
    }
    assert_eq!(still.counted(), Some(u64::from(times)));
    let (refused, lost) = (still.refused(&path) as u64, still.reader.lost());
    assert!(refused < u64::from(times), "everything was kept: {refused}");
    assert!(
        refused + lost >= u64::from(times),
        "{refused} came and {lost} are said to be lost"
    );
}

#[test]
fn fences_without_end_are_one_number_and_whoever_is_gone_is_forgotten() {
    require_root!();
    let _others = switch::among_tests(Path::new(LOCK_DIR), false);
    let broker = AuditBroker::start(&own_executable(), || {}).unwrap();
    let mut other = Told::to(&broker, OTHER[3]);
    let flood = broker.subscribe(ONE[3]).unwrap();
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    for number in 1..100_000u64 {
        let _ = send(flood.as_raw_fd(), &number.to_le_bytes(), flags);
    }
    other.read_to_fence();
    // One that says something else is sent away.
    assert!(send(flood.as_raw_fd(), b"x", MsgFlags::MSG_NOSIGNAL).is_ok());
    let mut last = [0; 64];
    while recv(flood.as_raw_fd(), &mut last, MsgFlags::empty()).is_ok_and(|length| length > 0) {}
    drop(broker);
    let gone = other.reader.read_to_fence(Instant::now() + PATIENCE).unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn i4_a_broker_that_cannot_read_says_why() {
    // Root's tests cannot lack the privilege: somebody else plays this one.
    if nix::unistd::geteuid().is_root() {
        let part = "observe::audit::broker::tests::i4_a_broker_that_cannot_read_says_why";
        let played = Command::new(own_executable())
            .args(["--exact", part])
            .uid(ONE[4])
            .gid(ONE[4])
            .output()
            .unwrap();
        assert!(
            played.status.success(),
            "{}",
            String::from_utf8_lossy(&played.stdout)
        );
        return;
    }
    let broker = AuditBroker::start(&own_executable(), || panic!("nothing was opened")).unwrap();
    let error = BrokeredReader::open(broker.subscribe(ONE[4]).unwrap()).unwrap_err();
    assert!(error.reason.contains("run Provost as root"), "{error}");
}
