//! One set of handles: what is written against an embedded supervisor does the same with a daemon's.
//!
//! Each scenario is one function of a supervisor. It is run with both, and what it saw must be the same, ids and times aside.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use futures_util::future::{LocalBoxFuture, join_all};
use nix::libc::{SIGTERM, SIGUSR1};
use nix::sys::signal::Signal;
use provost::client::Client;
use provost::{
    ApprovalScope, Error, EventBody, EventStream, LogLimits, OnDenial, Outcome, ProcessHandle,
    ProcessId, ProcessSpec, SignalScope, StdinSpec, StopRule, Supervisor, TerminalSize, Verdict,
};
use provost_tests::host::TcpServer;
use provost_tests::{DEADLINE, Served, World, embedded, program, script};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

async fn remote(served: &Served) -> Supervisor {
    Supervisor::connect(served.socket()).await.expect("a daemon")
}

/// What one scenario does with a supervisor, and what it saw.
type Scenario = for<'a> fn(&'a Supervisor, &'a World) -> LocalBoxFuture<'a, Result<Value, Error>>;

macro_rules! scenario {
    (|$supervisor:ident, $world:ident| $work:expr) => {
        |$supervisor, $world| Box::pin(async move { $work })
    };
}

/// Reads a stream to its end. What may be cut into pieces in many ways is put together, and what comes in no fixed order
/// is sorted.
async fn read(events: &mut EventStream) -> Result<Value, Error> {
    let mut output: Map<String, Value> = Map::new();
    let mut others = Vec::new();
    let mut last = 0;
    let mut ended = false;
    while let Some(event) = events.next().await? {
        assert!(event.seq > last && !ended, "{event:?} behind {last}");
        last = event.seq;
        ended = matches!(event.body, EventBody::Terminal { .. });
        match &event.body {
            EventBody::Output { stream, data, .. } => {
                let text = String::from_utf8_lossy(data);
                let known = output.entry(stream.to_string()).or_insert_with(|| json!(""));
                *known = json!(format!("{}{text}", known.as_str().unwrap_or_default()));
            }
            _ => others.push(comparable(&event)),
        }
    }
    assert!(ended, "it ended without a record");
    others.sort_by_key(Value::to_string);
    Ok(json!({ "output": output, "others": others }))
}

/// Waits until it has written something.
async fn up(process: &ProcessHandle) -> Result<(), Error> {
    let mut events = process.events();
    while let Some(event) = events.next().await? {
        match event.body {
            EventBody::Output { .. } => return Ok(()),
            EventBody::Terminal { record } => panic!("it ended: {record:?}"),
            _ => {}
        }
    }
    panic!("it ended without a record")
}

/// Everything there is to know of a process: its events, and its record, which is the same however it is asked for.
async fn all(supervisor: &Supervisor, process: &ProcessHandle) -> Result<Value, Error> {
    let seen = read(&mut process.events()).await?;
    let record = process.record().await?;
    assert_eq!(*record, *process.record().await?, "asked twice");
    let other = supervisor.process(process.id()).await?;
    assert_eq!(*record, *other.record().await?, "of another handle");
    assert_eq!(*record, *process.clone().record().await?, "of a clone");
    let behind = process.events_after(record.last_seq).next().await?;
    assert!(behind.is_none(), "behind the record: {behind:?}");
    assert!(!process.kill("late").await?, "it had ended");
    let listed = supervisor.list().await?;
    let listed = listed.iter().find(|info| info.process == process.id());
    Ok(json!({ "seen": seen, "record": comparable(&*record), "listed": listed.map(comparable) }))
}

/// Without ids, times, and what depends on them.
fn comparable(value: &impl serde::Serialize) -> Value {
    const ASIDE: [&str; 10] = [
        "process",
        "session",
        "time",
        "seq",
        "last_seq",
        "deadline",
        "pid",
        "duration_ms",
        "usage",
        "observed_at",
    ];
    fn strip(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.retain(|key, _| !ASIDE.contains(&key.as_str()) && !key.ends_with("_at"));
                map.values_mut().for_each(strip);
            }
            Value::Array(values) => values.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(value).expect("JSON");
    strip(&mut value);
    value
}

/// An error as its variant and its words.
fn shown(error: &Error) -> String {
    let variant = format!("{error:?}");
    let variant = variant.split_once('(').map_or("", |(name, _)| name);
    format!("{variant}: {error}")
}

/// Runs a scenario with both.
async fn compare(name: &str, scenario: Scenario) {
    let Some(world) = World::try_own() else { return };
    let served = Served::start(&world);
    let (embedded, remote) = (embedded().await, remote(&served).await);
    let mut seen = Vec::new();
    for (place, supervisor) in [("embedded", &embedded), ("remote", &remote)] {
        let work = timeout(DEADLINE, scenario(supervisor, &world));
        let value = work.await.unwrap_or_else(|_| panic!("{name}, {place}: in time"));
        seen.push(value.unwrap_or_else(|error| json!(shown(&error))));
        for file in std::fs::read_dir(world.work()).expect("our directory").flatten() {
            if file.path() != served.socket() && file.file_type().is_ok_and(|kind| kind.is_file()) {
                std::fs::remove_file(file.path()).expect("a file of the scenario's");
            }
        }
    }
    assert_eq!(
        seen[0], seen[1],
        "{name}: embedded on the left, the daemon on the right"
    );
    println!("{name}: {}", seen[0]);
}

macro_rules! scenarios {
    ($($name:ident: |$supervisor:ident, $world:ident| $work:expr;)+) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            compare(stringify!($name), scenario!(|$supervisor, $world| $work)).await;
        }
    )+};
}

scenarios! {
    output_and_exit_code_are_the_same: |supervisor, world| {
        let mut spec = script(world, "echo out; echo err >&2; echo $GIVEN; exit 3");
        spec.env.push(("GIVEN".into(), "a value".into()));
        spec.labels = [("job".to_owned(), "7".to_owned())].into();
        let process = supervisor.spawn(spec).await?;
        let all = all(supervisor, &process).await?;
        assert_eq!(all["record"]["exit_code"], 3, "{all}");
        assert_eq!(all["seen"]["output"]["stdout"], "out\na value\n", "{all}");
        assert_eq!(all["listed"]["labels"]["job"], "7", "{all}");
        Ok(all)
    };
    a_signal_is_the_same: |supervisor, world| {
        let process = supervisor.spawn(script(world, "trap 'exit 9' USR1; sleep 1000 >/dev/null 2>&1 & echo up; wait")).await?;
        up(&process).await?;
        assert!(process.signal(SIGUSR1, SignalScope::Leader).await?);
        let all = all(supervisor, &process).await?;
        assert_eq!(all["record"]["exit_code"], 9, "{all}");
        assert!(!process.signal(SIGUSR1, SignalScope::Tree).await?, "it had ended");
        Ok(json!([all["record"], shown(&process.signal(99, SignalScope::Leader).await.unwrap_err())]))
    };
    a_death_by_signal_is_the_same: |supervisor, world| {
        let process = supervisor.spawn(script(world, "echo up; kill -SEGV $$")).await?;
        all(supervisor, &process).await
    };
    a_timeout_is_the_same: |supervisor, world| {
        let mut spec = script(world, "echo up; exec sleep 1000");
        spec.timeout = Some(Duration::from_millis(300));
        let process = supervisor.spawn(spec).await?;
        let all = all(supervisor, &process).await?;
        assert_eq!(all["record"]["outcome"], "timed_out", "{all}");
        Ok(all)
    };
    a_denial_is_the_same: |supervisor, world| {
        let outside = world.text("outside");
        let process = supervisor.spawn(script(world, &format!("echo x > {outside}/refused; exit 0"))).await?;
        let all = all(supervisor, &process).await?;
        assert_eq!(all["record"]["denied"], true, "{all}");
        Ok(all)
    };
    a_denial_that_ends_it_is_the_same: |supervisor, world| {
        let outside = world.text("outside");
        let mut spec = script(world, &format!("exec 2>/dev/null; echo x > {outside}/refused; exec sleep 1000"));
        spec.on_denial = OnDenial::Stop;
        let process = supervisor.spawn(spec).await?;
        let all = all(supervisor, &process).await?;
        assert_eq!(all["record"]["outcome"], "denied", "{all}");
        Ok(all["record"].clone())
    };
    input_is_the_same: |supervisor, world| {
        let mut spec = script(world, "wc -c; exit 5");
        spec.stdin = StdinSpec::Pipe;
        let process = supervisor.spawn(spec).await?;
        process.write_stdin(&vec![b'x'; 300_000]).await?;
        process.write_stdin(b"").await?;
        process.write_stdin(b"the end").await?;
        process.close_stdin().await?;
        process.close_stdin().await?;
        let late = process.write_stdin(b"more").await.unwrap_err();
        assert!(matches!(late, Error::Ended(_)), "{late:?}");
        let all = all(supervisor, &process).await?;
        assert_eq!(all["seen"]["output"]["stdout"], "300007\n", "{all}");
        process.close_stdin().await?;
        let late = process.write_stdin(b"more").await.unwrap_err();
        assert!(matches!(late, Error::Ended(_)), "{late:?}");
        Ok(all)
    };
    closing_the_input_lets_a_write_under_way_finish: |supervisor, world| {
        let mut spec = script(world, "mkfifo gate; head -c 1 >/dev/null; echo up; read x <gate; cat | wc -c");
        spec.stdin = StdinSpec::Pipe;
        let process = supervisor.spawn(spec).await?;
        let writer = process.clone();
        let write = tokio::spawn(async move { writer.write_stdin(&vec![b'x'; 1 << 20]).await });
        up(&process).await?;
        process.close_stdin().await?;
        let late = process.write_stdin(b"more").await.unwrap_err();
        assert!(matches!(late, Error::Ended(_)), "{late:?}");
        let gate = world.path("work/gate");
        let opened = gate.clone();
        tokio::task::spawn_blocking(move || std::fs::write(opened, "go\n")).await.expect("no panic").expect("it opens");
        write.await.expect("no panic")?;
        let all = all(supervisor, &process).await?;
        std::fs::remove_file(gate).expect("it is there");
        assert_eq!(all["seen"]["output"]["stdout"], "up\n1048575\n", "{all}");
        Ok(all)
    };
    input_that_nobody_gave_is_the_same_error: |supervisor, world| {
        let process = supervisor.spawn(script(world, "cat; exit 4")).await?;
        let refused = process.write_stdin(b"x").await.unwrap_err();
        assert!(matches!(refused, Error::Ended(_)), "{refused:?}");
        all(supervisor, &process).await
    };
    a_kill_is_the_same: |supervisor, world| {
        let process = supervisor.spawn(script(world, "trap '' TERM; sleep 1000 & echo up; wait")).await?;
        up(&process).await?;
        let live = supervisor.list().await?.into_iter().find(|info| info.process == process.id());
        assert!(live.as_ref().is_some_and(|info| info.live), "{live:?}");
        assert!(process.kill("enough").await?);
        let all = all(supervisor, &process).await?;
        assert_eq!(all["record"]["outcome"], "cancelled", "{all}");
        Ok(json!([all, comparable(&live)]))
    };
    a_stop_and_its_grace_are_the_same: |supervisor, world| {
        let mut spec = script(world, "trap '' TERM; echo up; exec sleep 1000");
        spec.stop = StopRule { signal: Signal::try_from(SIGTERM).expect("a signal"), grace: Duration::from_millis(200) };
        let process = supervisor.spawn(spec).await?;
        up(&process).await?;
        assert!(process.stop("enough").await?);
        let all = all(supervisor, &process).await?;
        assert_eq!((&all["record"]["outcome"], &all["record"]["signal"]), (&json!("cancelled"), &json!("SIGKILL")), "{all}");
        Ok(all["record"].clone())
    };
    a_program_that_is_not_there_is_the_same: |supervisor, world| {
        let mut spec = script(world, "");
        spec.argv = vec!["no-such-program".into()];
        let process = supervisor.spawn(spec).await?;
        let all = all(supervisor, &process).await?;
        assert_eq!((&all["record"]["outcome"], &all["record"]["exit_code"]), (&json!("spawn_failed"), &json!(127)), "{all}");
        Ok(all)
    };
    i3_much_output_that_is_read_late_is_counted_the_same: |supervisor, world| {
        const BYTES: u64 = 8 << 20;
        let mut spec = script(world, &format!("head -c {BYTES} /dev/zero"));
        spec.retention = LogLimits::keeping(64 << 10);
        let process = supervisor.spawn(spec).await?;
        // It does not wait for this reader, and nothing is kept for it.
        let mut late = process.events();
        let record = process.record().await?;
        let (mut came, mut missed) = (0, 0);
        while let Some(event) = late.next().await? {
            match event.body {
                EventBody::Output { offset, data, .. } => {
                    assert_eq!(offset, came + missed, "not in order");
                    came += data.len() as u64;
                }
                EventBody::Gap { bytes, .. } => missed += bytes,
                _ => {}
            }
        }
        assert_eq!(came + missed, BYTES, "{came} and {missed}");
        assert!(missed > 0 && came >= 32 << 10, "{came} and {missed}");
        let stdout = &record.output[&provost::StreamName::Stdout];
        Ok(json!([stdout.bytes, stdout.dropped > 0, came < BYTES / 2]))
    };
    i3_a_paced_reader_misses_nothing: |supervisor, world| {
        const BYTES: usize = 4 << 20;
        let mut spec = script(world, &format!("head -c {BYTES} /dev/zero | tr '\\0' x"));
        spec.retention = LogLimits::keeping(64 << 10);
        spec.paced = true;
        let process = supervisor.spawn(spec).await?;
        let mut events = process.events_paced();
        let mut came = 0;
        while let Some(event) = events.next().await? {
            assert!(!matches!(event.body, EventBody::Gap { .. }), "{event:?}");
            assert!(events.is_paced(), "it waits for us");
            if let EventBody::Output { data, .. } = event.body {
                came += data.len();
            }
        }
        assert_eq!(came, BYTES);
        Ok(comparable(&*process.record().await?)["outcome"].clone())
    };
    two_followers_see_the_same: |supervisor, world| {
        let process = supervisor.spawn(script(world, "for i in 1 2 3 4 5; do echo $i; sleep 0.02; done")).await?;
        let (mut one, mut other) = (process.events(), supervisor.process(process.id()).await?.events());
        let (one, other) = tokio::join!(read(&mut one), read(&mut other));
        let (one, other) = (one?, other?);
        assert_eq!(one, other);
        Ok(one)
    };
    a_terminal_is_the_same: |supervisor, world| {
        let mut spec = script(world, "stty -echo; stty size; read line; stty size; cat");
        spec.terminal = Some(TerminalSize { rows: 11, cols: 12 });
        let process = supervisor.spawn(spec).await?;
        up(&process).await?;
        process.resize(TerminalSize { rows: 13, cols: 14 }).await?;
        process.write_stdin(b"\nx\n").await?;
        process.close_stdin().await?;
        let all = all(supervisor, &process).await?;
        assert_eq!(all["seen"]["output"]["pty"], "11 12\r\n13 14\r\nx\r\n", "{all}");
        let late = process.resize(TerminalSize::default()).await.unwrap_err();
        assert!(matches!(late, Error::Ended(_)), "{late:?}");
        let plain = supervisor.spawn(script(world, "exit 0")).await?;
        let none = plain.resize(TerminalSize::default()).await.unwrap_err();
        assert!(matches!(none, Error::Refused(_)), "{none:?}");
        Ok(all)
    };
    an_approval_by_a_callback_is_the_same: |supervisor, world| {
        let (wanted, unwanted) = (TcpServer::start(), TcpServer::start());
        let connect = |server: &TcpServer| format!("{} tcp-connect 127.0.0.1 {}", program("escape"), server.port_text());
        let mut spec = script(world, &format!("{} && ! {}", connect(&wanted), connect(&unwanted)));
        spec.policy_mut().ask.net = true;
        let process = supervisor.spawn(spec).await?;
        let port = wanted.address().port();
        process.answer_approvals("the test", move |request| async move {
            match request.attempt.target.port == Some(port) {
                true => Verdict::Allow(ApprovalScope::Process),
                false => Verdict::Deny,
            }
        }).await?;
        assert_eq!((wanted.connections(), unwanted.connections()), (1, 0));
        assert!(!process.decide(1, Verdict::Deny, "late").await?, "nothing waits");
        let record = process.record().await?;
        Ok(json!([record.outcome, record.exit_code, record.approvals.requested, record.approvals.allowed, record.approvals.refused]))
    };
    what_cannot_start_is_the_same_error: |supervisor, world| {
        let mut seen = Vec::new();
        let mut nothing = script(world, "");
        nothing.argv = Vec::new();
        let mut nul = script(world, "");
        nul.argv.push("a\0b".into());
        let mut relative = script(world, "");
        relative.cwd = "somewhere".into();
        let mut absent = script(world, "");
        absent.cwd = world.path("work/absent");
        let mut variable = script(world, "");
        variable.env.push(("A=B".into(), "".into()));
        for spec in [nothing, nul, relative, absent, variable] {
            let error = supervisor.spawn(spec).await.unwrap_err();
            assert!(matches!(error, Error::Refused(_)), "{error:?}");
            seen.push(shown(&error).split_once(':').map(|(variant, _)| variant.to_owned()));
        }
        let unknown = supervisor.process(ProcessId::new()).await.unwrap_err();
        assert!(matches!(unknown, Error::NotFound(_)), "{unknown:?}");
        Ok(json!(seen))
    };
    sessions_are_the_same: |supervisor, world| {
        let whole = supervisor.open_session().await?;
        let part = whole.open_session().await?;
        let other = supervisor.open_session().await?;
        let waiting = || script(world, "trap '' TERM; echo up; exec sleep 1000");
        let mut stubborn = waiting();
        stubborn.stop.grace = Duration::from_secs(1000);
        let inner = part.spawn(stubborn).await?;
        let kind = whole.spawn(script(world, "echo up; exec sleep 1000")).await?;
        let outer = other.spawn(waiting()).await?;
        for process in [&inner, &kind, &outer] {
            up(process).await?;
        }
        let ids = |listed: Vec<provost::ProcessInfo>| listed.iter().map(|info| info.process).collect::<Vec<_>>();
        assert_eq!(ids(whole.list().await?), [inner.id(), kind.id()]);
        assert_eq!(ids(part.list().await?), [inner.id()]);
        assert_eq!(ids(supervisor.list().await?), [inner.id(), kind.id(), outer.id()]);
        let report = whole.shutdown(Duration::from_millis(300)).await?;
        assert!(!report.graceful, "one did not want to end");
        let (inner, kind) = (inner.record().await?, kind.record().await?);
        assert_eq!(inner.session, part.session_id().map(|id| id.to_string()));
        assert_eq!(kind.session, whole.session_id().map(|id| id.to_string()));
        assert_eq!((inner.outcome, kind.outcome), (Outcome::Cancelled, Outcome::Cancelled));
        // What is not part of it goes on.
        assert!(outer.signal(SIGUSR1, SignalScope::Leader).await?);
        outer.record().await?;
        let mut refused = Vec::new();
        for session in [&whole, &part] {
            for error in [session.spawn(waiting()).await.map(drop), session.open_session().await.map(drop)] {
                let error = error.unwrap_err();
                assert!(matches!(error, Error::Closed(_)), "{error:?}");
                refused.push(shown(&error).split_once(':').map(|(variant, _)| variant.to_owned()));
            }
            assert!(session.list().await?.is_empty());
        }
        assert!(whole.shutdown(Duration::from_secs(10)).await?.graceful, "nothing is left to stop");
        assert!(other.shutdown(Duration::from_secs(10)).await?.graceful);
        let mut deep = vec![supervisor.open_session().await?];
        let error = loop {
            match deep[deep.len() - 1].open_session().await {
                Ok(session) => deep.push(session),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::Limit(_)), "{error:?}");
        Ok(json!([inner.reason, inner.signal, kind.signal, refused, deep.len()]))
    };
    a_hundred_at_once_are_the_same: |supervisor, world| {
        // More than a daemon takes requests of one connection.
        let runs = (0..100).map(|number| async move {
            let process = supervisor.spawn(script(world, &format!("exit {number}"))).await?;
            // Whoever stops waiting leaves nothing behind that others wait for.
            for _ in 0..3 {
                let _ = timeout(Duration::ZERO, process.record()).await;
            }
            Ok(process.record().await?.exit_code)
        });
        let codes: Result<Vec<_>, Error> = join_all(runs).await.into_iter().collect();
        Ok(json!(codes?))
    };
}

#[tokio::test]
async fn i10_the_end_of_a_connection_is_an_error_and_never_the_end_of_a_process() {
    let Some(world) = World::try_own() else { return };
    let served = Served::start(&world);
    let supervisor = Supervisor::connect_lasting(served.socket(), Duration::ZERO)
        .await
        .expect("a daemon");
    let process = supervisor
        .spawn(script(&world, "echo up; exec sleep 1000"))
        .await
        .expect("accepted");
    up(&process).await.expect("it runs");
    let ended = supervisor
        .spawn(script(&world, "exit 7"))
        .await
        .expect("accepted");
    let record = ended.record().await.expect("a record");
    let mut events = process.events();
    let waiting = process.clone();
    let waiting = tokio::spawn(async move { waiting.record().await });
    served.signal(Signal::SIGKILL);
    let error = loop {
        match events.next().await {
            Ok(Some(event)) => assert!(!matches!(event.body, EventBody::Terminal { .. }), "{event:?}"),
            Ok(None) => panic!("the end, without a record"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Lost(_)), "{error:?}");
    let waited = waiting.await.expect("no panic");
    assert!(matches!(waited, Err(Error::Lost(_))), "{waited:?}");
    for lost in [
        process.events().next().await.map(drop),
        process.events_after(1).next().await.map(drop),
        process.kill("too late").await.map(drop),
        process.record().await.map(drop),
        supervisor.list().await.map(drop),
        supervisor.spawn(script(&world, "exit 0")).await.map(drop),
    ] {
        assert!(matches!(lost, Err(Error::Lost(_))), "{lost:?}");
    }
    assert_eq!(*ended.record().await.expect("what is known stays known"), *record);
}

#[tokio::test]
async fn who_is_not_served_is_told_why() {
    let Some(world) = World::try_own() else { return };
    let served = Served::start(&world);
    let none = Supervisor::connect(world.path("work/none")).await;
    assert!(matches!(none, Err(Error::NoDaemon(_))), "{none:?}");
    let stream = tokio::net::UnixStream::connect(served.socket())
        .await
        .expect("it listens");
    let (reader, writer) = stream.into_split();
    let other = Client::over(reader, writer, Some("somebody-else".to_owned())).await;
    let refused = Error::from(other.expect_err("another user"));
    assert!(matches!(refused, Error::Forbidden(_)), "{refused:?}");
}

#[tokio::test]
async fn i5_what_cannot_go_through_a_daemon_is_an_error_that_says_so() {
    let Some(world) = World::try_own() else { return };
    let served = Served::start(&world);
    let supervisor = remote(&served).await;
    let spec = |change: fn(&mut ProcessSpec)| {
        let mut spec = script(&world, "exit 0");
        change(&mut spec);
        spec
    };
    let given = |spec: &mut ProcessSpec| {
        let (reader, _) = std::io::pipe().expect("a pipe");
        spec.stdin = StdinSpec::Given(reader.into());
    };
    for (change, word) in [
        (given as fn(&mut ProcessSpec), "descriptor"),
        (
            |spec| spec.argv.push(OsString::from_vec(vec![0xff])),
            "an argument is not UTF-8",
        ),
        (
            |spec| spec.cwd = OsString::from_vec(b"/\xff".to_vec()).into(),
            "UTF-8",
        ),
        (
            |spec| spec.env.push(("V".into(), OsString::from_vec(vec![0xff]))),
            "the variable V",
        ),
        (|spec| spec.env.push(("PATH".into(), "/bin".into())), "twice"),
        (|spec| spec.retention = LogLimits::keeping(100), "LogLimits"),
        (|spec| spec.retention = LogLimits::keeping(9 << 20), "LogLimits"),
        (|spec| spec.retention.events_max = 7, "LogLimits"),
    ] {
        let error = supervisor
            .spawn(spec(change))
            .await
            .expect_err("it cannot be said");
        assert!(
            matches!(&error, Error::EmbeddedOnly(_)) && error.to_string().contains(word),
            "{word}: {error:?}"
        );
    }
    let kernel = supervisor.kernel().await;
    assert!(matches!(kernel, Err(Error::EmbeddedOnly(_))), "{kernel:?}");
    let shut = supervisor.shutdown(Duration::ZERO).await;
    assert!(matches!(shut, Err(Error::EmbeddedOnly(_))), "{shut:?}");
    assert!(
        supervisor.list().await.expect("a list").is_empty(),
        "nothing was started"
    );
}

#[tokio::test]
async fn what_another_client_holds_can_be_read_and_not_changed() {
    let Some(world) = World::try_own() else { return };
    let served = Served::start(&world);
    let (holder, other) = (remote(&served).await, remote(&served).await);
    let session = holder.open_session().await.expect("a session");
    let process = session
        .spawn(script(&world, "echo up; exec sleep 1000"))
        .await
        .expect("accepted");
    let seen = other.process(process.id()).await.expect("it is known");
    up(&seen).await.expect("it can be read");
    for refused in [
        seen.kill("not mine").await.map(drop),
        seen.signal(SIGUSR1, SignalScope::Leader).await.map(drop),
        seen.write_stdin(b"x").await,
    ] {
        assert!(matches!(refused, Err(Error::NotHolder(_))), "{refused:?}");
    }
    assert!(process.kill("mine").await.expect("told"));
    let record = seen.record().await.expect("a record");
    assert_eq!(
        *record,
        *process.record().await.expect("the same"),
        "whoever asks"
    );
}

#[tokio::test]
async fn an_embedded_supervisor_knows_ended_processes_as_long_as_somebody_does() {
    let Some(world) = World::try_own() else { return };
    let supervisor = embedded().await;
    let process = supervisor
        .spawn(script(&world, "exit 0"))
        .await
        .expect("accepted");
    let id = process.id();
    process.record().await.expect("a record");
    assert_eq!(supervisor.list().await.expect("a list").len(), 1);
    let live = supervisor
        .spawn(script(&world, "exec sleep 1000"))
        .await
        .expect("accepted");
    let live_id = live.id();
    drop((process, live));
    let found = supervisor.process(live_id).await.expect("it lives");
    assert_eq!(found.id(), live_id);
    assert!(found.kill("found").await.expect("told"));
    found.record().await.expect("a record");
    assert!(
        supervisor.shutdown(DEADLINE).await.expect("shut down").graceful,
        "its actors are gone"
    );
    let gone = supervisor.process(id).await;
    assert!(matches!(gone, Err(Error::NotFound(_))), "{gone:?}");
}
