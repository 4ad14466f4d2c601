//! What the readers of a machine share: audit being on. Each of these tests keeps all others out meanwhile.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::super::switch::Alone;
use super::super::*;
use super::Seen;

/// Set for the process that a test starts: what it is to do.
const ROLE: &str = "PROVOST_AUDIT_TEST_ROLE";

/// Nobody else reads while this is held, and audit is off; or the reason why that cannot be had.
fn alone_and_off() -> Option<(Alone, Control, wire::Status)> {
    // Undoes what a killed reader may have left.
    drop(AuditReader::open().unwrap());
    let alone = Alone::wait(Path::new(LOCK_DIR)).unwrap();
    let mut control = Control::open().unwrap();
    let status = control.status().unwrap();
    let rules = control.rules().unwrap();
    if status.enabled != 0 || rules.ours || rules.foreign {
        eprintln!("skipped: audit is somebody else's on this machine: {status:?} {rules:?}");
        return None;
    }
    Some((alone, control, status))
}

/// All that a reader may change. (The kernel counts lost records meanwhile.)
fn setting(control: &mut Control) -> (u32, u32, bool, bool) {
    let status = control.status().unwrap();
    let rules = control.rules().unwrap();
    (status.enabled, status.backlog_limit, rules.ours, rules.foreign)
}

fn open_in(directory: &Path) -> AuditReader {
    AuditReader::open_with(directory, RECEIVE_BUFFER_BYTES, None).unwrap()
}

fn files_in(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn the_last_reader_puts_everything_back() {
    require_root!();
    let Some((_alone, mut control, before)) = alone_and_off() else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let off = (0, before.backlog_limit, false, false);
    let on = (1, before.backlog_limit.max(8192), true, false);

    let first = open_in(directory.path());
    assert_eq!(setting(&mut control), on);
    let mut second = open_in(directory.path());
    drop(first);
    assert_eq!(setting(&mut control), on);
    Seen::default().read_to_fence(&mut second);
    drop(second);
    assert_eq!(setting(&mut control), off);
    assert_eq!(files_in(directory.path()), ["audit.lock", "audit.users"]);

    assert_eq!(AuditReader::probe(), Probe::Yes);
    assert_eq!(setting(&mut control), off, "a probe changes nothing");
}

#[test]
fn audit_that_was_on_before_stays_untouched() {
    require_root!();
    let Some((_alone, mut control, before)) = alone_and_off() else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let _off = SwitchedOnByTheAdministrator::new(&mut control);
    let on = (1, before.backlog_limit, false, false);
    let mut reader = open_in(directory.path());
    assert_eq!(setting(&mut control), on);
    Seen::default().read_to_fence(&mut reader);
    drop(reader);
    assert_eq!(setting(&mut control), on);
}

/// Puts audit off again even where an assertion fails.
struct SwitchedOnByTheAdministrator;

impl SwitchedOnByTheAdministrator {
    fn new(control: &mut Control) -> Self {
        control.set_enabled(1).unwrap();
        Self
    }
}

impl Drop for SwitchedOnByTheAdministrator {
    fn drop(&mut self) {
        let mut control = Control::open().unwrap();
        let _ = control.command(wire::DEL_RULE, &wire::rule::of_somebody_else(false));
        control.set_enabled(0).unwrap();
    }
}

#[test]
fn who_takes_audit_over_keeps_it() {
    require_root!();
    let Some((_alone, mut control, before)) = alone_and_off() else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let limit = before.backlog_limit;

    // Somebody adds rules while it is on because of us.
    let reader = open_in(directory.path());
    let off = SwitchedOnByTheAdministrator::new(&mut control);
    control
        .command(wire::ADD_RULE, &wire::rule::of_somebody_else(true))
        .unwrap();
    drop(reader);
    assert_eq!(setting(&mut control), (1, limit.max(8192), false, true));
    // They switch it off but leave their rules: then it is not ours to switch on.
    control.set_enabled(0).unwrap();
    let refused = AuditReader::open_with(directory.path(), RECEIVE_BUFFER_BYTES, None).unwrap_err();
    assert!(refused.reason.contains("somebody's rules"), "{refused}");
    drop(off);
    control.set_backlog_limit(limit).unwrap();

    // Somebody clears all rules.
    let reader = open_in(directory.path());
    let _off = SwitchedOnByTheAdministrator::new(&mut control);
    control.delete_rule().unwrap();
    drop(reader);
    assert_eq!(setting(&mut control), (1, limit.max(8192), false, false));
    control.set_backlog_limit(limit).unwrap();
}

#[test]
fn audit_switched_off_behind_our_back_counts_as_lost() {
    require_root!();
    let Some((_alone, mut control, _)) = alone_and_off() else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let mut reader = open_in(directory.path());
    assert_eq!(reader.lost().unwrap(), 0);
    control.set_enabled(0).unwrap();
    assert!(reader.lost().unwrap() > 0);
}

/// Starts this test binary as another process with a part to play.
fn role(role: &str, wrapper: &[&str]) -> Command {
    let exe = std::env::current_exe().unwrap();
    let mut command = match wrapper {
        [] => Command::new(&exe),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(&exe);
            command
        }
    };
    command
        .args([
            "--exact",
            "observe::audit::tests::sharing::plays_a_role",
            "--nocapture",
        ])
        .env(ROLE, role)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

/// No test: what the processes do that tests start.
#[test]
fn plays_a_role() {
    let Some(role) = std::env::var_os(ROLE) else {
        return;
    };
    let reader = match role.to_str() {
        Some("open") => AuditReader::open(),
        _ => AuditReader::open_with(Path::new(&role), RECEIVE_BUFFER_BYTES, None),
    };
    match &reader {
        Ok(_) => println!("\nRESULT open"),
        Err(unavailable) => println!("\nRESULT {unavailable} / {:?}", AuditReader::probe()),
    }
    // Until the test closes its end, or kills us.
    let _ = std::io::stdin().read_line(&mut String::new());
    drop(reader);
    // The test no longer reads what else would be printed.
    std::process::exit(0);
}

fn result_of(child: &mut std::process::Child) -> String {
    BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .find_map(|line| line.strip_prefix("RESULT ").map(str::to_owned))
        .unwrap()
}

#[test]
fn what_a_killed_reader_left_is_undone_by_the_next() {
    require_root!();
    let Some((_alone, mut control, before)) = alone_and_off() else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let mut child = role(directory.path().to_str().unwrap(), &[]).spawn().unwrap();
    assert_eq!(result_of(&mut child), "open");
    let on = (1, before.backlog_limit.max(8192), true, false);
    assert_eq!(setting(&mut control), on);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(setting(&mut control), on);

    let mut next = open_in(directory.path());
    Seen::default().read_to_fence(&mut next);
    drop(next);
    assert_eq!(setting(&mut control), (0, before.backlog_limit, false, false));
}

#[test]
fn readers_of_other_processes_are_not_switched_off() {
    require_root!();
    let Some((_alone, mut control, before)) = alone_and_off() else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let mut own = open_in(directory.path());
    let mut child = role(directory.path().to_str().unwrap(), &[]).spawn().unwrap();
    assert_eq!(result_of(&mut child), "open");
    drop(child.stdin.take());
    child.wait().unwrap();
    Seen::default().read_to_fence(&mut own);
    drop(own);
    assert_eq!(setting(&mut control), (0, before.backlog_limit, false, false));
}

#[test]
fn without_the_privilege_or_in_a_namespace_the_reason_is_given() {
    require_root!();
    for (wrapper, uid, expected) in [
        (&[][..], Some(65534), "run Provost as root"),
        (
            &["unshare", "--user", "--map-root-user"],
            None,
            "run Provost as root",
        ),
        (&["unshare", "--pid", "--fork"], None, "initial PID namespace"),
        (&["unshare", "--net"], None, "host's network namespace"),
    ] {
        let mut command = role("open", wrapper);
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        let mut child = match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                eprintln!("skipped for uid {uid:?}: it cannot reach the test program");
                continue;
            }
            child => child.unwrap(),
        };
        let result = result_of(&mut child);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(result.contains(expected), "{wrapper:?} {uid:?}: {result}");
        assert!(
            result.contains("/ No("),
            "the probe says so too: {wrapper:?} {result}"
        );
    }
}
