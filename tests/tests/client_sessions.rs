//! `provost session`.

use std::time::Instant;

use nix::sys::signal::Signal;
use provost_tests::{DEADLINE, Service, World, both_users};
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

/// Waits until a session is held, and by nobody who may be asked.
fn wait_until_held(service: &Service<'_>, name: &str) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let all = lines(&service.say(&["session", "list", "--json"]));
        let found = all.iter().find(|session| session["name"] == name);
        if found.expect("it is listed")["attached"] == true {
            return;
        }
        assert!(Instant::now() < deadline, "nobody holds it: {all:?}");
    }
}

fn i8_a_session_is_held_over_the_death_of_daemons_and_ends_with_its_holder(world: &World) {
    let mut service = Service::start(world);
    service.say(&["session", "open", "--name", "dev", "--on-disconnect", "stop"]);
    let id = service.say(&["start", "--session", "dev", "--", "sleep", "1000"]);
    let open = ["session", "open", "--name", "own", "--hold"];
    let mut holders = [service.live(&["session", "attach", "dev"]), service.live(&open)];
    for holder in &mut holders {
        holder.wait_for("\n");
    }
    for happens in [Service::restart, Service::replace, Service::restart] {
        happens(&mut service);
        for name in ["dev", "own"] {
            wait_until_held(&service, name);
            let refused = service.ask(&["start", "--session", name, "--", "true"]);
            assert!(refused.stderr.contains("attached elsewhere"), "\n{refused}");
        }
        assert_eq!(service.say(&["ps", "-q"]), id, "nothing was stopped meanwhile");
    }
    for holder in holders {
        holder.signal(Signal::SIGKILL);
        let done = holder.finish();
        let said = done.stderr.matches("attached again").count();
        assert_eq!(said, 3, "once for each: {done}");
    }
    // What held it then is gone, and so is what it held.
    assert_eq!(service.ask(&["wait", &id]).code, Some(130));
}

fn i9_who_finds_a_session_gone_or_taken_when_the_daemon_is_back_is_told_which(world: &World) {
    let mut service = Service::start(world);
    for name in ["taken", "gone", "kept"] {
        service.say(&["session", "open", "--name", name]);
    }
    let attach = |service: &Service<'_>, words: &[&str]| {
        let mut holder = service.live(&[&["session", "attach"], words].concat());
        holder.wait_for("\n");
        holder
    };
    let taken = attach(&service, &["taken", "kept"]);
    let gone = attach(&service, &["gone"]);
    for holder in [&taken, &gone] {
        holder.signal(Signal::SIGSTOP);
    }
    service.restart();
    let thief = attach(&service, &["taken"]);
    service.say(&["session", "close", "gone"]);
    for holder in [&taken, &gone] {
        holder.signal(Signal::SIGCONT);
    }
    let done = gone.finish();
    assert_eq!(done.code, Some(125), "\n{done}");
    assert!(done.stderr.contains("is gone"), "\n{done}");
    // It holds the other one, and says what it does not.
    wait_until_held(&service, "kept");
    service.say(&["session", "detach", "--steal", "kept"]);
    let done = taken.finish();
    assert_eq!(done.code, Some(125), "\n{done}");
    assert!(done.stderr.contains("attached elsewhere"), "\n{done}");
    let refused = service.ask(&["start", "--session", "taken", "--", "true"]);
    assert!(refused.stderr.contains("attached elsewhere"), "\n{refused}");
    drop(thief);

    service.say(&["session", "open", "--name", "more"]);
    let impatient = [("0", "kept"), ("200ms", "more")];
    let impatient = impatient.map(|(time, name)| attach(&service, &["--reconnect", time, name]));
    service.die();
    for holder in impatient {
        let done = holder.finish();
        assert_eq!(done.code, Some(125), "\n{done}");
        assert!(done.stderr.contains("lost"), "\n{done}");
    }
}

both_users!(
    i8_a_session_is_held_over_the_death_of_daemons_and_ends_with_its_holder,
    i9_who_finds_a_session_gone_or_taken_when_the_daemon_is_back_is_told_which,
    sessions_are_opened_listed_and_closed,
    i9_a_session_has_one_holder_and_the_loser_is_told,
);
