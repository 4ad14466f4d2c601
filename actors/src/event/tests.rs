use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use proptest::prelude::*;
use provost_sandbox::denial::{DenialClass, DenialTarget};

use super::*;
use crate::record::tests::{denial, record, report};

const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

fn event(seq: u64, body: EventBody) -> Event {
    Event {
        process: ID.parse().unwrap(),
        seq,
        time: "2026-01-02T03:04:05.000006Z".parse().unwrap(),
        body,
    }
}

/// The event's JSON is exactly this (with the common fields put in front), and reads back as the event.
#[track_caller]
fn check(body: EventBody, rest: &str) {
    let event = event(7, body);
    let json = serde_json::to_string(&event).unwrap();
    let expected =
        format!(r#"{{"process":"{ID}","seq":7,"time":"2026-01-02T03:04:05.000006Z","type":{rest}}}"#);
    assert_eq!(json, expected);
    assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
}

#[test]
fn started_is_written_so() {
    check(
        EventBody::Started {
            argv: vec!["sh".into(), "-c".into(), "echo \"hi\"".into()],
            cwd: "/srv".into(),
            pid: 42,
            sandbox: Arc::new(report()),
        },
        &format!(
            r#""started","argv":["sh","-c","echo \"hi\""],"cwd":"/srv","pid":42,"sandbox":{}"#,
            serde_json::to_string(&report()).unwrap()
        ),
    );
}

#[test]
fn i10_output_is_written_in_base64_whatever_it_says() {
    check(
        EventBody::Output {
            stream: StreamName::Stdout,
            offset: 3,
            data: Bytes::from_static(b"{\"type\":\"terminal\"}\n\xff"),
        },
        r#""output","stream":"stdout","offset":3,"data":"eyJ0eXBlIjoidGVybWluYWwifQr/""#,
    );
    check(
        EventBody::Output {
            stream: StreamName::Pty,
            offset: u64::MAX,
            data: Bytes::new(),
        },
        r#""output","stream":"pty","offset":18446744073709551615,"data":"""#,
    );
}

#[test]
fn small_events_are_written_so() {
    check(
        EventBody::Gap {
            stream: StreamName::Stderr,
            from: 10,
            to: 25,
            bytes: 15,
        },
        r#""gap","stream":"stderr","from":10,"to":25,"bytes":15"#,
    );
    check(
        EventBody::SignalSent {
            signal: "SIGTERM".into(),
            scope: "tree".into(),
            cause: "timed_out".into(),
        },
        r#""signal_sent","signal":"SIGTERM","scope":"tree","cause":"timed_out""#,
    );
    check(
        EventBody::StreamClosed {
            stream: StreamName::Stdout,
            bytes: 5,
            closed: Closed::Abandoned,
        },
        r#""stream_closed","stream":"stdout","bytes":5,"closed":"abandoned""#,
    );
    check(
        EventBody::Exited {
            exit_code: Some(7),
            signal: None,
        },
        r#""exited","exit_code":7,"signal":null"#,
    );
    check(
        EventBody::Exited {
            exit_code: None,
            signal: Some("SIGKILL".into()),
        },
        r#""exited","exit_code":null,"signal":"SIGKILL""#,
    );
}

#[test]
fn a_denial_is_written_so() {
    let target = DenialTarget::inet("192.0.2.1".parse().unwrap(), 80, "tcp");
    check(
        EventBody::Denial(Box::new(denial(DenialClass::Network, "connect", target))),
        concat!(
            r#""denial","class":"network","operation":"connect","#,
            r#""target":{"address":"192.0.2.1","port":80,"protocol":"tcp"},"pid":9,"comm":"curl","#,
            r#""rule":"net = off","errno":"EACCES","certainty":"observed","decision":"deny""#
        ),
    );
}

#[test]
fn the_terminal_event_carries_the_record() {
    check(
        EventBody::Terminal {
            record: Arc::new(record()),
        },
        &format!(
            r#""terminal","record":{}"#,
            serde_json::to_string(&record()).unwrap()
        ),
    );
}

#[test]
fn times_have_six_digits_of_fraction_and_nothing_finer() {
    for (time, written) in [
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000000Z"),
        ("2026-01-02T03:04:05.5Z", "2026-01-02T03:04:05.500000Z"),
        ("2026-01-02T03:04:05.123456999Z", "2026-01-02T03:04:05.123456Z"),
        ("2026-01-02T05:04:05+02:00", "2026-01-02T03:04:05.000000Z"),
    ] {
        let mut event = event(
            1,
            EventBody::Exited {
                exit_code: Some(0),
                signal: None,
            },
        );
        event.time = time.parse().unwrap();
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(json["time"], written);
    }
}

#[test]
fn i7_a_process_id_has_one_text_and_is_a_uuid_v7() {
    let id = ProcessId::new();
    assert_eq!(id.to_string().parse(), Ok(id));
    assert!(ProcessId::new() != id);
    assert_eq!(ProcessId::try_from(*id.as_uuid()), Ok(id));
    for wrong in [
        "",
        "01890A5D-AC96-774B-BCCE-B302099A8057",
        "01890a5dac96774bbcceb302099a8057",
        "{01890a5d-ac96-774b-bcce-b302099a8057}",
        "01890a5d-ac96-474b-bcce-b302099a8057",
        "00000000-0000-0000-0000-000000000000",
    ] {
        wrong.parse::<ProcessId>().expect_err("only one form is accepted");
        serde_json::from_str::<ProcessId>(&format!("{wrong:?}")).expect_err("the same in JSON");
    }
}

fn any_stream() -> impl Strategy<Value = StreamName> {
    prop::sample::select(&StreamName::ALL[..])
}

fn any_body() -> impl Strategy<Value = EventBody> {
    let text = || any::<String>();
    prop_oneof![
        (prop::collection::vec(text(), 0..4), text(), any::<i32>()).prop_map(|(argv, cwd, pid)| {
            EventBody::Started {
                argv,
                cwd,
                pid,
                sandbox: Arc::new(report()),
            }
        }),
        (any_stream(), any::<u64>(), any::<Vec<u8>>()).prop_map(|(stream, offset, data)| {
            EventBody::Output {
                stream,
                offset,
                data: data.into(),
            }
        }),
        (any_stream(), any::<u64>(), any::<u64>(), any::<u64>()).prop_map(
            |(stream, from, to, bytes)| {
                EventBody::Gap {
                    stream,
                    from,
                    to,
                    bytes,
                }
            }
        ),
        (text(), text(), any::<u16>()).prop_map(|(operation, path, port)| {
            let mut denial = denial(DenialClass::Filesystem, &operation, DenialTarget::path(path));
            denial.target.port = Some(port);
            EventBody::Denial(Box::new(denial))
        }),
        (text(), text(), text()).prop_map(|(signal, scope, cause)| EventBody::SignalSent {
            signal,
            scope,
            cause
        }),
        (any_stream(), any::<u64>()).prop_map(|(stream, bytes)| EventBody::StreamClosed {
            stream,
            bytes,
            closed: Closed::Eof
        }),
        (any::<Option<i32>>(), any::<Option<String>>())
            .prop_map(|(exit_code, signal)| EventBody::Exited { exit_code, signal }),
        (text(), any::<u64>(), any::<Option<i32>>()).prop_map(|(reason, last_seq, exit_code)| {
            let mut record = record();
            record.reason = Some(reason);
            record.last_seq = last_seq;
            record.exit_code = exit_code;
            EventBody::Terminal {
                record: Arc::new(record),
            }
        }),
    ]
}

proptest! {
    #[test]
    fn every_event_reads_back_from_its_one_line(
        body in any_body(),
        seq: u64,
        micros in 0_i64..4_000_000_000_000_000,
    ) {
        let mut event = event(seq, body);
        event.time = Timestamp::from_microsecond(micros).unwrap();
        let json = serde_json::to_string(&event).unwrap();
        prop_assert!(!json.contains('\n'));
        prop_assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
    }
}
