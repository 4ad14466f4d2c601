//! What a spec is to the spawner and to the ledger, and what the spawner's refusals mean.

use std::os::fd::OwnedFd;

use jiff::Timestamp;
use provost_sandbox::compile::PreparedSandbox;
use provost_sandbox::extras::Extras;
use provost_sandbox::keeper::wire::{Request, Stdin};
use provost_sandbox::report::SpawnError;
use provost_sandbox::spawn::Command;

use crate::event::ProcessId;
use crate::ledger::LedgerSpec;
use crate::spec::{ProcessSpec, StdinSpec};

/// What the ledger must know of a process that was accepted.
pub(crate) fn ledger_spec(
    process: ProcessId,
    session: Option<String>,
    spec: &ProcessSpec,
    queued_at: Timestamp,
) -> LedgerSpec {
    let argv = spec.argv.iter().map(|word| word.to_string_lossy().into_owned());
    LedgerSpec {
        process,
        session,
        argv: argv.collect(),
        cwd: spec.cwd.to_string_lossy().into_owned(),
        labels: spec.labels.clone(),
        streams: spec.streams().to_vec(),
        tree: spec.tree,
        on_denial: spec.on_denial,
        expects_denials: spec.policy.confined,
        report: spec.report,
        queued_at: Some(queued_at),
    }
}

/// What the spawner is asked for a process, and its standard input where that is given.
pub(crate) fn spawn_request(
    id: ProcessId,
    spec: &mut ProcessSpec,
    sandbox: &PreparedSandbox,
) -> (Request, Option<OwnedFd>) {
    let (stdin, given) = match (std::mem::take(&mut spec.stdin), spec.terminal) {
        (_, Some(size)) => (Stdin::Terminal(size), None),
        (StdinSpec::Null, None) => (Stdin::Null, None),
        (StdinSpec::Pipe, None) => (Stdin::Pipe, None),
        (StdinSpec::Given(fd), None) => (Stdin::Given, Some(fd)),
    };
    let argv = spec.argv.iter().map(|s| s.as_encoded_bytes().to_vec());
    let command = Command {
        process: *id.as_uuid(),
        argv: argv.collect(),
        env: spec.env.iter().map(|(key, value)| entry(key, value)).collect(),
        cwd: spec.cwd.clone(),
        stdin,
        extras: Extras {
            report: spec.report,
            ready: spec.ready,
        },
    };
    (Request::Spawn(Box::new(command.request(sandbox))), given)
}

fn entry(key: &std::ffi::OsStr, value: &std::ffi::OsStr) -> Vec<u8> {
    [key.as_encoded_bytes(), b"=", value.as_encoded_bytes()].concat()
}

/// A failed step in words, with what to do about it where that is known.
pub(super) fn spawn_error(
    spec: &ProcessSpec,
    step: provost_sandbox::keeper::Step,
    errno: i32,
    detail: u32,
) -> SpawnError {
    use provost_sandbox::keeper::Step;
    let program = spec
        .argv
        .first()
        .map(|program| program.to_string_lossy().into_owned())
        .unwrap_or_default();
    let error = std::io::Error::from_raw_os_error(errno);
    let hint = match (step, errno) {
        (Step::Exec, nix::libc::ENOENT) => {
            "; no such command in the PATH it was given, or its interpreter is missing".to_owned()
        }
        (Step::Exec, nix::libc::EACCES) => {
            "; not an executable file, or the policy does not let it be executed".to_owned()
        }
        (Step::WorkingDirectory, _) => format!("; the directory is {}", spec.cwd.display()),
        (Step::Seccomp, nix::libc::EBUSY) => {
            "; this machine is already inside a seccomp sandbox with a listener".to_owned()
        }
        _ if detail != 0 => format!(" (entry {detail})"),
        _ => String::new(),
    };
    SpawnError::Step {
        program,
        step,
        errno,
        reason: format!("{error}{hint}"),
    }
}
