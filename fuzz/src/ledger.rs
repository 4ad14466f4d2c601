//! Any facts in any order, told to a ledger.

use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use jiff::{SignedDuration, Timestamp};
use provost_actors::approval::{ApprovalScope, GrantRecord};
use provost_actors::event::StreamName;
use provost_actors::ledger::fuzzing::Watched;
use provost_actors::ledger::{Exit, Fact, LedgerSpec, OnDenial, StopCause, TreeRule};
use provost_actors::record::{Closed, Usage};
use provost_sandbox::denial::{Certainty, Decision, Denial, DenialClass, DenialTarget};
use provost_sandbox::report::{Containment, FileObservation, SandboxReport};

#[derive(Debug, Arbitrary)]
struct Input {
    waits_for_tree: bool,
    stops_at_denial: bool,
    expects_denials: bool,
    streams: Vec<u8>,
    /// Each with the seconds since the one before, which may be less than none.
    facts: Vec<(Told, i8)>,
}

#[derive(Debug, Arbitrary)]
enum Told {
    Started {
        pid: i32,
    },
    SpawnFailed {
        reason: String,
        exit_code: i32,
    },
    Output {
        stream: u8,
        offset: u64,
        length: u64,
    },
    Near {
        stream: u8,
        offset: u8,
        length: u8,
    },
    Closed {
        stream: u8,
        eof: bool,
    },
    ExitCode(i32),
    ExitSignal(String),
    Unobserved(String),
    OutOfMemory,
    TreeEmpty {
        killed: u64,
        usage: Option<(u64, u64, u64)>,
        unkillable: Vec<String>,
    },
    Denied {
        attempt: Attempt,
        times: u16,
    },
    ApprovalRequested {
        approval: u64,
        attempt: Attempt,
    },
    ApprovalDecided {
        approval: u64,
        attempt: Attempt,
        scope: bool,
        allow: bool,
        by: String,
    },
    DenialsCounted {
        class: u8,
        extra: u64,
    },
    Probed(String),
    DenialsDrained {
        complete: bool,
        unobserved: Vec<String>,
    },
    StopRequested {
        cause: u8,
        reason: String,
    },
    SignalSent {
        text: String,
        times: u16,
    },
    DrainExpired,
    DrainHeld,
    SpawnerLost(String),
    Lost(String),
}

#[derive(Debug, Arbitrary)]
struct Attempt {
    class: u8,
    operation: String,
    path: Option<String>,
    address: Option<[u8; 4]>,
    port: Option<u16>,
    rule: String,
}

/// Any bytes as facts; what is too little for an input is none.
pub fn ledger(bytes: &[u8]) {
    if let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(bytes)) {
        tell(input);
    }
}

fn tell(input: Input) {
    let mut ledger = Watched::new(LedgerSpec {
        process: "01890a5d-ac96-774b-bcce-b302099a8057".parse().expect("an id"),
        session: None,
        argv: vec!["true".to_owned()],
        cwd: "/".to_owned(),
        labels: Default::default(),
        streams: input
            .streams
            .iter()
            .take(4)
            .map(|choice| stream(*choice))
            .collect(),
        tree: if input.waits_for_tree {
            TreeRule::Wait
        } else {
            TreeRule::Kill
        },
        on_denial: if input.stops_at_denial {
            OnDenial::Stop
        } else {
            OnDenial::Report
        },
        expects_denials: input.expects_denials,
        report: false,
        queued_at: None,
    });
    let mut clock = Timestamp::UNIX_EPOCH;
    for (told, seconds) in input.facts {
        clock += SignedDuration::from_secs(seconds.into());
        let (fact, times) = fact(told, clock);
        for _ in 1..times {
            ledger.tell(fact.clone(), clock);
        }
        ledger.tell(fact, clock);
    }
    ledger.finish(clock);
}

/// The fact, and how often it is told.
fn fact(told: Told, now: Timestamp) -> (Fact, u16) {
    let mut often = 1;
    let fact = match told {
        Told::Started { pid } => Fact::Started {
            pid,
            report: Arc::new(report()),
        },
        Told::SpawnFailed { reason, exit_code } => Fact::SpawnFailed { reason, exit_code },
        Told::Output {
            stream: choice,
            offset,
            length,
        } => Fact::Output {
            stream: stream(choice),
            offset,
            length,
        },
        Told::Near {
            stream: choice,
            offset,
            length,
        } => Fact::Output {
            stream: stream(choice),
            offset: offset.into(),
            length: length.into(),
        },
        Told::Closed { stream: choice, eof } => Fact::StreamClosed {
            stream: stream(choice),
            closed: if eof { Closed::Eof } else { Closed::Abandoned },
        },
        Told::ExitCode(code) => Fact::Exited(Exit::Code(code)),
        Told::ExitSignal(name) => Fact::Exited(Exit::Signal(name)),
        Told::Unobserved(class) => Fact::Unobserved(class),
        Told::OutOfMemory => Fact::OutOfMemory,
        Told::TreeEmpty {
            killed,
            usage,
            unkillable,
        } => Fact::TreeEmpty {
            killed,
            usage: usage.map(|(user_ms, system_ms, max_rss_bytes)| Usage {
                user_ms,
                system_ms,
                max_rss_bytes,
            }),
            unkillable,
        },
        Told::Denied { attempt, times } => {
            often = repeated(times);
            Fact::Denied(denial(attempt))
        }
        Told::ApprovalRequested { approval, attempt } => Fact::ApprovalRequested {
            approval,
            attempt: Box::new(denial(attempt)),
            deadline: now,
        },
        Told::ApprovalDecided {
            approval,
            attempt,
            scope,
            allow,
            by,
        } => {
            let Denial {
                operation, target, ..
            } = denial(attempt);
            Fact::ApprovalDecided {
                grant: Box::new(GrantRecord {
                    approval,
                    scope: if scope {
                        ApprovalScope::Once
                    } else {
                        ApprovalScope::Process
                    },
                    operation,
                    target,
                    by,
                }),
                decision: if allow { Decision::Allow } else { Decision::Deny },
            }
        }
        Told::DenialsCounted { class: choice, extra } => Fact::DenialsCounted {
            class: class(choice),
            extra,
        },
        Told::Probed(name) => Fact::Probed(name),
        Told::DenialsDrained { complete, unobserved } => Fact::DenialsDrained { complete, unobserved },
        Told::StopRequested { cause, reason } => Fact::StopRequested(match cause % 6 {
            0 => StopCause::Cancelled { reason },
            1 => StopCause::TimedOut,
            2 => StopCause::IdleTimedOut,
            3 => StopCause::Denied,
            4 => StopCause::Replaced,
            _ => StopCause::OutOfMemory,
        }),
        Told::SignalSent { text, times } => {
            often = repeated(times);
            Fact::SignalSent {
                signal: text.clone(),
                scope: text.clone(),
                cause: text,
            }
        }
        Told::DrainExpired => Fact::DrainExpired,
        Told::DrainHeld => Fact::DrainHeld,
        Told::SpawnerLost(reason) => Fact::SpawnerLost { reason },
        Told::Lost(reason) => Fact::Lost { reason },
    };
    (fact, often)
}

/// Seldom more often than the ledger states one by one.
fn repeated(times: u16) -> u16 {
    if times > 0xFF00 { 5000 } else { times % 4 }
}

fn stream(choice: u8) -> StreamName {
    StreamName::ALL[usize::from(choice) % StreamName::ALL.len()]
}

fn class(choice: u8) -> DenialClass {
    match choice % 4 {
        0 => DenialClass::Network,
        1 => DenialClass::Filesystem,
        2 => DenialClass::Syscall,
        _ => DenialClass::Resource,
    }
}

fn denial(attempt: Attempt) -> Denial {
    Denial {
        class: class(attempt.class),
        operation: attempt.operation,
        target: DenialTarget {
            path: attempt.path,
            address: attempt.address.map(Into::into),
            port: attempt.port,
            ..DenialTarget::default()
        },
        pid: Some(1),
        comm: None,
        rule: attempt.rule,
        errno: "EACCES".to_owned(),
        certainty: Certainty::Observed,
        decision: Decision::Deny,
        allow: None,
    }
}

fn report() -> SandboxReport {
    SandboxReport {
        policy: "workspace-write".to_owned(),
        confined: true,
        containment: Containment::PidNamespace,
        landlock_abi: Some(7),
        landlock: vec![],
        seccomp: true,
        namespaces: vec![],
        private_proc: true,
        private_tmp: true,
        net: "off".to_owned(),
        limits: vec![],
        file_denials: FileObservation::Audit,
        degraded: vec![],
    }
}
