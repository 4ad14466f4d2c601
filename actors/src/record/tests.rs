use std::sync::Arc;

use provost_sandbox::denial::{Certainty, Decision, DenialTarget};
use provost_sandbox::report::{Containment, FileObservation};

use super::*;

pub(crate) fn denial(class: DenialClass, operation: &str, target: DenialTarget) -> Denial {
    Denial {
        class,
        operation: operation.to_owned(),
        target,
        pid: Some(9),
        comm: Some("curl".to_owned()),
        rule: "net = off".to_owned(),
        errno: "EACCES".to_owned(),
        certainty: Certainty::Observed,
        decision: Decision::Deny,
        allow: None,
    }
}

pub(crate) fn report() -> SandboxReport {
    SandboxReport {
        policy: "workspace-write".to_owned(),
        confined: true,
        containment: Containment::PidNamespace,
        landlock_abi: Some(7),
        landlock: vec!["files".to_owned()],
        seccomp: true,
        namespaces: vec!["pid".to_owned()],
        private_proc: true,
        private_tmp: true,
        net: "off".to_owned(),
        limits: vec![],
        file_denials: FileObservation::Audit,
        degraded: vec![],
    }
}

pub(crate) fn record() -> TerminalRecord {
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let stdout = OutputSummary {
        bytes: 10,
        retained: 7,
        dropped: 3,
        closed: Closed::Eof,
    };
    let target = DenialTarget::path("/etc/shadow");
    TerminalRecord {
        schema: RECORD_SCHEMA,
        process: "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap(),
        session: None,
        labels: [("job".to_owned(), "7".to_owned())].into(),
        argv: vec!["cat".to_owned()],
        outcome: Outcome::Exited,
        reason: None,
        exit_code: Some(1),
        signal: None,
        succeeded: false,
        denied: true,
        queued_at: None,
        started_at: Some(at("2026-01-02T03:04:05Z")),
        ended_at: at("2026-01-02T03:04:06.5Z"),
        duration_ms: 1500,
        result: Some((&serde_json::json!({ "a": [1] })).into()),
        result_error: None,
        output: [(StreamName::Stdout, stdout)].into(),
        approvals: ApprovalSummary::default(),
        denials: DenialSummary {
            total: 1,
            by_class: [(DenialClass::Filesystem, 1)].into(),
            first: vec![denial(DenialClass::Filesystem, "open", target)],
            probes: [("io_uring_setup".to_owned(), 2)].into(),
            complete: false,
            unobserved: vec!["filesystem reads".to_owned()],
        },
        usage: Some(Usage {
            user_ms: 1,
            system_ms: 2,
            max_rss_bytes: 3,
        }),
        tree: TreeSummary::default(),
        sandbox: None,
        last_seq: 5,
    }
}

#[test]
fn a_record_is_written_so() {
    let expected = concat!(
        r#"{"schema":1,"process":"01890a5d-ac96-774b-bcce-b302099a8057","session":null,"#,
        r#""labels":{"job":"7"},"argv":["cat"],"outcome":"exited","reason":null,"exit_code":1,"#,
        r#""signal":null,"succeeded":false,"denied":true,"queued_at":null,"#,
        r#""started_at":"2026-01-02T03:04:05.000000Z","ended_at":"2026-01-02T03:04:06.500000Z","#,
        r#""duration_ms":1500,"result":{"a":[1]},"result_error":null,"#,
        r#""output":{"stdout":{"bytes":10,"retained":7,"dropped":3,"closed":"eof"}},"#,
        r#""denials":{"total":1,"by_class":{"filesystem":1},"first":[{"class":"filesystem","#,
        r#""operation":"open","target":{"path":"/etc/shadow"},"pid":9,"comm":"curl","#,
        r#""rule":"net = off","errno":"EACCES","certainty":"observed","decision":"deny"}],"#,
        r#""probes":{"io_uring_setup":2},"complete":false,"unobserved":["filesystem reads"]},"#,
        r#""approvals":{"requested":0,"allowed":0,"refused":0,"grants":[]},"#,
        r#""usage":{"user_ms":1,"system_ms":2,"max_rss_bytes":3},"tree":{"killed":0},"#,
        r#""sandbox":null,"last_seq":5}"#
    );
    assert_eq!(serde_json::to_string(&record()).unwrap(), expected);
    assert_eq!(
        serde_json::from_str::<TerminalRecord>(expected).unwrap(),
        record()
    );
}

#[test]
fn every_outcome_has_its_word() {
    for (outcome, word) in [
        (Outcome::Exited, "exited"),
        (Outcome::Signaled, "signaled"),
        (Outcome::TimedOut, "timed_out"),
        (Outcome::IdleTimeout, "idle_timeout"),
        (Outcome::Cancelled, "cancelled"),
        (Outcome::Replaced, "replaced"),
        (Outcome::Denied, "denied"),
        (Outcome::SpawnFailed, "spawn_failed"),
        (Outcome::OutOfMemory, "out_of_memory"),
        (Outcome::Lost, "lost"),
    ] {
        assert_eq!(serde_json::to_value(outcome).unwrap(), word);
    }
}

#[test]
fn unkillable_tasks_and_the_sandbox_stand_in_the_record_where_there_are_any() {
    let mut record = record();
    record.tree.killed = 3;
    record.tree.unkillable = vec!["pid 7 (dd)".to_owned()];
    record.sandbox = Some(Arc::new(report()));
    let json = serde_json::to_value(&record).unwrap();
    assert_eq!(
        json["tree"].to_string(),
        r#"{"killed":3,"unkillable":["pid 7 (dd)"]}"#
    );
    assert_eq!(json["sandbox"]["containment"], "pid_namespace");
    assert_eq!(serde_json::from_value::<TerminalRecord>(json).unwrap(), record);
}
