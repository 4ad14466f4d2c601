//! `provost session`.

use provost_tests::{Service, World, both_users};
use serde_json::Value;

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

fn sessions_are_opened_listed_and_closed(world: &World) {
    let service = Service::start(world);
    let session = service.say(&["session", "open", "--name", "dev", "--on-disconnect", "stop"]);
    let part = service.say(&["session", "open", "--parent", "dev"]);
    assert_eq!(
        service.say(&["session", "list", "-q"]),
        format!("{session}\n{part}")
    );
    let listed = lines(&service.say(&["session", "list", "--json"]));
    assert_eq!(
        listed[0]["attached"], false,
        "an open session that nobody holds is attached"
    );
    assert_eq!(listed[1]["parent"], session.as_str());
    let id = service.say(&["start", "--session", "dev", "--", "sleep", "1000"]);
    let elsewhere = service.say(&["start", "--", "sleep", "1000"]);
    assert_eq!(service.say(&["ps", "-q", "--session", "dev"]), id);
    let row = service.say(&["session", "list"]);
    assert!(
        row.contains(&format!("{session}\tdev\t-\tno\tstop\t1\t1")),
        "{row}"
    );
    service.say(&["session", "close", "dev"]);
    assert_eq!(service.ask(&["wait", &id]).code, Some(130));
    assert_eq!(service.say(&["session", "list", "-q"]), "");
    assert_eq!(service.say(&["ps", "-q"]), elsewhere);
    for verb in ["detach", "close", "attach"] {
        let unknown = service.ask(&["session", verb, "dev"]);
        assert_eq!(unknown.code, Some(125), "\n{unknown}");
    }
    let unknown = service.ask(&["start", "--session", "dev", "--", "true"]);
    assert_eq!(unknown.code, Some(125), "\n{unknown}");
    let session = service.say(&["session", "open"]);
    assert_eq!(service.say(&["session", "clean", "--kill"]), session);
}

fn i9_a_session_has_one_holder_and_the_loser_is_told(world: &World) {
    let service = Service::start(world);
    let mut holder = service.live(&["session", "open", "--name", "dev", "--hold"]);
    holder.wait_for("\n");
    let refused = service.ask(&["start", "--session", "dev", "--", "true"]);
    assert_eq!(refused.code, Some(125), "\n{refused}");
    assert!(refused.stderr.contains("attached elsewhere"), "\n{refused}");
    for verb in ["attach", "detach", "close"] {
        let refused = service.ask(&["session", verb, "dev"]);
        assert_eq!(refused.code, Some(125), "\n{refused}");
    }
    let mut thief = service.live(&["session", "attach", "--steal", "dev"]);
    thief.wait_for("\n");
    let robbed = holder.finish();
    assert_eq!(robbed.code, Some(125), "\n{robbed}");
    assert!(robbed.stderr.contains("lost"), "\n{robbed}");
    service.say(&["session", "detach", "--steal", "dev"]);
    assert_eq!(thief.finish().code, Some(125));
    let id = service.say(&["start", "--session", "dev", "--", "sleep", "1000"]);
    let mut holder = service.live(&["session", "attach"]);
    holder.wait_for("\n");
    service.say(&["session", "close", "--steal", "dev"]);
    assert_eq!(service.ask(&["wait", &id]).code, Some(130));
    drop(holder);
}

both_users!(
    sessions_are_opened_listed_and_closed,
    i9_a_session_has_one_holder_and_the_loser_is_told,
);
