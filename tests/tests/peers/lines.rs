//! What clients say: lines that are no request, parameters that make no sense, halves of a conversation.

use provost_tests::{DEADLINE, LineClient, Served, World, both_users};
use serde_json::{Value, json};

use super::{MIB, is_served, kind, refused};

fn lines_that_are_no_request_are_answered_and_an_id_that_can_be_read_is_repeated(world: &World) {
    let daemon = Served::start(world);
    for (line, expected, id) in [
        ("", "parse", Value::Null),
        ("{", "parse", Value::Null),
        ("nonsense", "parse", Value::Null),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"daemon/status"} x"#,
            "parse",
            Value::Null,
        ),
        (
            r#"[{"jsonrpc":"2.0","id":1,"method":"daemon/status"}]"#,
            "invalid_request",
            Value::Null,
        ),
        (r#"["2.0",1,"daemon/status",{}]"#, "invalid_request", Value::Null),
        ("7", "invalid_request", Value::Null),
        (
            r#"{"id":1,"method":"daemon/status"}"#,
            "invalid_request",
            json!(1),
        ),
        (
            r#"{"jsonrpc":"1.0","id":"a","method":"daemon/status"}"#,
            "invalid_request",
            json!("a"),
        ),
        (
            r#"{"jsonrpc":2.0,"id":2,"method":"daemon/status"}"#,
            "invalid_request",
            json!(2),
        ),
        (r#"{"jsonrpc":"2.0","id":3}"#, "invalid_request", json!(3)),
        (
            r#"{"jsonrpc":"2.0","id":4,"method":{}}"#,
            "invalid_request",
            json!(4),
        ),
        (
            r#"{"jsonrpc":"2.0","id":null,"method":"daemon/status"}"#,
            "invalid_request",
            Value::Null,
        ),
        (
            r#"{"jsonrpc":"2.0","id":{},"method":"daemon/status"}"#,
            "invalid_request",
            Value::Null,
        ),
        (
            r#"{"jsonrpc":"2.0","id":true,"method":"daemon/status"}"#,
            "invalid_request",
            Value::Null,
        ),
        (
            r#"{"jsonrpc":"2.0","id":5,"id":6,"method":"daemon/status"}"#,
            "invalid_request",
            Value::Null,
        ),
    ] {
        let mut client = LineClient::connect(daemon.socket());
        client.say(line);
        let answer = client.hear().expect("an answer");
        assert_eq!(kind(&answer["error"]), expected, "{line}: {answer}");
        assert_eq!(answer["id"], id, "{line}");
        assert!(
            client.call("daemon/status", json!({})).is_ok(),
            "it is sent away for {line}"
        );
    }
    // One that says nothing else is sent away.
    let mut client = LineClient::connect(daemon.socket());
    let _ = client.try_say("nonsense\n".repeat(1000).as_bytes(), Some(DEADLINE));
    let mut answers = 0;
    while client.hear().is_some() {
        answers += 1;
    }
    assert_eq!(answers, 16);
    is_served(&daemon);
}

fn parameters_that_make_no_sense_are_refused_one_by_one(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    for params in [
        "[]".to_owned(),
        r#"["x"]"#.to_owned(),
        "7".to_owned(),
        r#"{"process":7}"#.to_owned(),
        r#"{"process":"x","process":"y"}"#.to_owned(),
        r#"{"process":"x","other":1}"#.to_owned(),
        deep.clone(),
        format!(r#"{{"process":{deep}}}"#),
        format!(r#"{{"{}":1}}"#, "x".repeat(1 << 20)),
    ] {
        client.say(&format!(
            r#"{{"jsonrpc":"2.0","id":"i","method":"process/wait","params":{params}}}"#
        ));
        let text = client.hear_text();
        assert!(text.len() < 8192, "an error of {} bytes", text.len());
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        let short = params.get(..80).unwrap_or(&params);
        assert_eq!(kind(&answer["error"]), "invalid_params", "{short}: {answer}");
        assert_eq!(answer["id"], "i");
    }
    let long = client
        .call("x".repeat(1 << 20).as_str(), json!({}))
        .expect_err("no method");
    assert_eq!(kind(&long), "method_not_found");
    assert!(long.to_string().len() < 8192);
    // As large as numbers get.
    let most = u64::MAX;
    let start = json!({
        "argv": ["sh", "-c", "echo x"], "cwd": "/", "policy": "unconfined", "timeout_ms": most, "idle_timeout_ms": most,
        "grace_ms": most, "drain_ms": most, "ask_timeout_ms": most, "max_output": most,
    });
    let started = client.call("process/start", start).expect("it starts");
    let process = started["process"].as_str().expect("an id").to_owned();
    assert_eq!(client.wait(&process)["exit_code"], 0);
    let read = json!({ "process": process, "max_bytes": most, "wait_ms": most });
    assert_eq!(
        client.call("process/read", read).expect("it is read")["ended"],
        true
    );
    let open = json!({ "ttl_ms": most });
    let session = client.call("session/open", open).expect("it opens")["session"].clone();
    client
        .call("session/detach", json!({ "session": session }))
        .expect("it is let go");
    assert!(
        client
            .call("process/prune", json!({ "older_than_ms": most }))
            .is_ok()
    );
    is_served(&daemon);
}

fn ids_are_repeated_as_they_were_written(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let long = format!(r#""{}""#, "x".repeat(254));
    for id in [
        "0",
        "-1",
        "1.50",
        "18446744073709551617",
        "1e400",
        r#""""#,
        r#""\u0000\ud83d\ude00é""#,
        &long,
    ] {
        client.say(&format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"daemon/status"}}"#
        ));
        let answer = client.hear_text();
        assert!(answer.contains(&format!(r#""id":{id},"#)), "{id}: {answer}");
    }
    let longer = format!(r#""{}""#, "x".repeat(255));
    client.say(&format!(
        r#"{{"jsonrpc":"2.0","id":{longer},"method":"daemon/status"}}"#
    ));
    assert_eq!(refused(&mut client), "invalid_request");
}

fn whoever_does_not_introduce_itself_is_sent_away(world: &World) {
    let daemon = Served::start(world);
    for (first, expected) in [
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"daemon/status"}"#,
            "invalid_request",
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocol":0}}"#,
            "invalid_params",
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocol":2}}"#,
            "invalid_params",
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize"}"#,
            "invalid_params",
        ),
    ] {
        let mut client = LineClient::silent(daemon.socket());
        client.say(first);
        assert_eq!(refused(&mut client), expected, "{first}");
        assert!(client.hear().is_none(), "{first}: it goes on");
    }
    let mut twice = LineClient::connect(daemon.socket());
    let again = twice.call("initialize", json!({ "protocol": 1 }));
    assert_eq!(kind(&again.expect_err("once is enough")), "invalid_request");
    // A line without an end, one that says nothing, and one that has closed its half.
    let mut slow = LineClient::silent(daemon.socket());
    assert!(slow.try_say(br#"{"jsonrpc""#, None));
    let mut silent = LineClient::silent(daemon.socket());
    let mut half = LineClient::silent(daemon.socket());
    half.stream()
        .shutdown(std::net::Shutdown::Write)
        .expect("a socket");
    assert!(half.hear().is_none());
    assert!(slow.hear().is_none());
    assert!(silent.hear().is_none());
}

fn a_half_closed_connection_is_answered_before_it_ends(world: &World) {
    let daemon = Served::start(world);
    let mut client = LineClient::connect(daemon.socket());
    let id = client.ask("daemon/status", json!({}));
    client
        .stream()
        .shutdown(std::net::Shutdown::Write)
        .expect("a socket");
    assert!(client.answer(id).is_ok());
    assert!(client.hear().is_none());
}

fn lines_that_are_too_long_or_no_text_end_the_connection(world: &World) {
    let daemon = Served::start(world);
    let before = daemon.memory();
    let mut clients: Vec<LineClient> = (0..4).map(|_| LineClient::connect(daemon.socket())).collect();
    for client in &mut clients {
        // It may be sent away before it has said it all.
        let _ = client.try_say(&vec![b'x'; 9 << 20], Some(DEADLINE));
        assert_eq!(refused(client), "frame_too_large");
        assert!(client.hear().is_none());
    }
    drop(clients);
    let mut client = LineClient::connect(daemon.socket());
    assert!(client.try_say(b"{\"jsonrpc\":\"\xff\"}\n", Some(DEADLINE)));
    assert_eq!(refused(&mut client), "parse");
    assert!(client.hear().is_none());
    // As long as a line may be, of what takes many times as much as values.
    let mut client = LineClient::connect(daemon.socket());
    let zeros = "0,".repeat(4_000_000) + "0";
    client.say(&format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"process/list","params":{{"labels":[{zeros}]}}}}"#
    ));
    assert_eq!(refused(&mut client), "invalid_params");
    let grown = daemon.memory().saturating_sub(before);
    assert!(grown < 96 * MIB, "{} MiB more", grown / MIB);
    is_served(&daemon);
}

both_users!(
    lines_that_are_no_request_are_answered_and_an_id_that_can_be_read_is_repeated,
    parameters_that_make_no_sense_are_refused_one_by_one,
    ids_are_repeated_as_they_were_written,
    whoever_does_not_introduce_itself_is_sent_away,
    a_half_closed_connection_is_answered_before_it_ends,
    lines_that_are_too_long_or_no_text_end_the_connection,
);
