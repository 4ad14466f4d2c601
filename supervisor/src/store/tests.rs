use provost_actors::approval::ApprovalSummary;
use provost_actors::event::StreamName;
use provost_actors::record::{
    Closed, DenialSummary, Outcome, OutputSummary, RECORD_SCHEMA, TreeSummary,
};
use provost_actors::session::OnDisconnect;
use provost_sandbox::denial::{Certainty, Decision, Denial, DenialClass, DenialTarget};
use tempfile::TempDir;

use super::*;

mod cost;
mod crash;
mod faults;
mod full;
mod kept;
mod model;
mod questions;
mod schema;

pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_microsecond(1_790_000_000_000_000 + second * 1_000_000 + 7).unwrap()
}

pub(super) fn opened(directory: &TempDir) -> Opened {
    Store::open(directory.path(), 100).unwrap()
}

pub(super) fn process(request: Option<(&str, &str)>) -> ProcessRow {
    ProcessRow {
        id: ProcessId::new(),
        session: Some(SessionId::new()),
        name: Some("build".to_owned()),
        labels: [("job".to_owned(), "7'; DROP".to_owned())].into(),
        argv: vec![
            "sh".to_owned(),
            "-c".to_owned(),
            "echo \u{1b}[2J \"x\"\n".to_owned(),
        ],
        cwd: Some("/tmp".to_owned()),
        policy: Some("workspace-write".to_owned()),
        confined: true,
        request: request.map(|(id, asked)| Request {
            id: id.to_owned(),
            asked: asked.to_owned(),
        }),
        queued_at: Some(at(0)),
        boot_id: Some("0d2c".to_owned()),
        state: ProcessState::Accepted,
    }
}

pub(super) fn denial() -> Denial {
    Denial {
        class: DenialClass::Filesystem,
        operation: "open".to_owned(),
        target: DenialTarget::path("/etc/shadow"),
        pid: Some(9),
        comm: Some("cat".to_owned()),
        rule: "deny /etc/shadow".to_owned(),
        errno: "EACCES".to_owned(),
        certainty: Certainty::Observed,
        decision: Decision::Deny,
        allow: None,
    }
}

pub(super) fn record(process: &ProcessRow, ended: i64) -> TerminalRecord {
    let output = OutputSummary {
        bytes: 10,
        retained: 7,
        dropped: 3,
        closed: Closed::Eof,
    };
    TerminalRecord {
        schema: RECORD_SCHEMA,
        process: process.id,
        session: process.session.map(|session| session.to_string()),
        labels: process.labels.clone(),
        argv: process.argv.clone(),
        outcome: Outcome::Exited,
        reason: None,
        exit_code: Some(1),
        signal: None,
        succeeded: false,
        denied: true,
        queued_at: process.queued_at,
        started_at: Some(at(1)),
        ended_at: at(ended),
        duration_ms: 1500,
        result: None,
        result_error: None,
        output: [(StreamName::Stdout, output)].into(),
        denials: DenialSummary {
            total: 1,
            by_class: [(DenialClass::Filesystem, 1)].into(),
            first: vec![denial()],
            probes: [("io_uring_setup".to_owned(), u64::MAX)].into(),
            complete: true,
            unobserved: vec![],
        },
        approvals: ApprovalSummary::default(),
        usage: None,
        tree: TreeSummary::default(),
        sandbox: None,
        last_seq: 9,
    }
}

pub(super) fn denials() -> Vec<DenialRow> {
    let row = |seq| DenialRow {
        seq,
        time: at(1),
        denial: denial(),
    };
    vec![row(3), row(4)]
}

pub(super) fn session() -> SessionRow {
    SessionRow {
        id: SessionId::new(),
        name: Some("dev".to_owned()),
        parent: None,
        on_disconnect: OnDisconnect::Stop,
        ttl: Some(Duration::from_millis(1500)),
        kept_bytes_max: Some(1 << 20),
        state: SessionState::Attached,
        opened_at: at(0),
        changed_at: at(0),
    }
}
