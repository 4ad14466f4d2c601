//! The instances of other users that root's daemon hands connections on to, and what it gives them: audit records, configuration, an end.

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use provost::client::Client;
use provost_tests::asking::{block_on, call, connect};
use provost_tests::{DEADLINE, LineClient, Served, User, World, filesystem, needs, require};
use serde_json::{Value, json};

/// Root's daemon, and another user for it to serve; nothing where these tests cannot be root.
fn both() -> Option<(World, World)> {
    let roots = World::try_new(User::Root)?;
    let theirs = World::try_new(User::Ordinary)?;
    Some((roots, theirs))
}

/// Starts a shell script in the user's own directory; its id.
fn start(client: &mut LineClient, world: &World, script: &str) -> String {
    let params = json!({ "argv": ["sh", "-c", script], "cwd": world.work(), "stdin": true });
    let started = client.call("process/start", params).expect("it starts");
    started["process"].as_str().expect("an id").to_owned()
}

/// The record of a shell script.
fn record(client: &mut LineClient, world: &World, script: &str) -> Value {
    let process = start(client, world, script);
    client.wait(&process)
}

/// A script that is refused a file so often, which everything but the sandbox allows.
fn refused(world: &World, times: u32) -> String {
    let path = world.text("outside/refused");
    format!("i=0; while [ $i -lt {times} ]; do true 2>&- >{path}; i=$((i + 1)); done; true")
}

fn assert_observed(record: &Value, world: &World, times: u32) {
    let denials = &record["denials"];
    assert_eq!(denials["complete"], true, "{denials}");
    assert_eq!(denials["unobserved"], json!([]));
    assert_eq!(denials["total"], times, "{denials}");
    let wanted = filesystem()
        .path(world.text("outside/refused"))
        .certainty("observed");
    let first = denials["first"].as_array().expect("denials");
    assert!(
        !first.is_empty() && first.iter().all(|denial| wanted.fits(denial)),
        "{denials}"
    );
}

fn instance(client: &mut LineClient) -> Pid {
    let status = client.call("daemon/status", json!({})).expect("it is served");
    Pid::from_raw(status["pid"].as_i64().expect("a pid").try_into().expect("a pid"))
}

#[test]
fn i12_through_roots_daemon_each_user_is_served_by_an_instance_of_its_own() {
    let Some((world, ordinary)) = both() else { return };
    let served = Served::start(&world);
    provost_tests::open_socket(served.socket());
    let instance = block_on(async {
        let roots = connect(&served).await;
        let asked = json!({ "argv": ["sleep", "1000"], "cwd": world.work(), "name": "roots" });
        let secret = call(&roots, "process/start", asked).await;
        let secret = secret["process"].as_str().expect("an id").to_owned();
        // A process of the other user's, which speaks for itself.
        let script = "import json, socket, sys\n\
            s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); f = s.makefile('rwb')\n\
            def call(n, method, **params):\n\
            \x20   f.write((json.dumps(dict(jsonrpc='2.0', id=n, method=method, params=params)) + '\\n').encode()); f.flush()\n\
            \x20   while True:\n\
            \x20       reply = json.loads(f.readline())\n\
            \x20       if reply.get('id') == n: return reply\n\
            print(call(1, 'initialize', protocol=1)['result']['uid'])\n\
            p = call(2, 'process/start', argv=['sh', '-c', 'id -u; id -G'], cwd=sys.argv[2])['result']['process']\n\
            call(3, 'process/wait', process=p)\n\
            import base64\n\
            for event in call(4, 'process/read', process=p)['result']['events']:\n\
            \x20   if event['type'] == 'output': print(base64.b64decode(event['data']).decode(), end='')\n\
            for n, method in enumerate(('read', 'kill', 'wait', 'inspect', 'follow'), 10):\n\
            \x20   print(call(n, 'process/' + method, process=sys.argv[3])['error']['data']['kind'])\n\
            print(len(call(20, 'process/list')['result']), len(call(21, 'session/list')['result']))\n\
            print(call(22, 'initialize', protocol=1, user='root')['error']['data']['kind'])\n";
        let mut command = std::process::Command::new("python3");
        command
            .args(["-c", script])
            .arg(served.socket())
            .arg(ordinary.work())
            .arg(&secret);
        std::os::unix::process::CommandExt::uid(&mut command, ordinary.uid());
        std::os::unix::process::CommandExt::gid(&mut command, ordinary.uid());
        let output = tokio::task::spawn_blocking(move || command.output())
            .await
            .expect("no panic")
            .expect("python3 runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let uid = ordinary.uid();
        let wanted = format!(
            "{uid}\n{uid}\n{uid}\n{}1 0\ninvalid_request\n",
            "not_found\n".repeat(5)
        );
        assert_eq!(
            text,
            wanted,
            "{}\n{}",
            String::from_utf8_lossy(&output.stderr),
            served.said()
        );
        // Root reaches that instance by saying whose it wants.
        let stream = tokio::net::UnixStream::connect(served.socket())
            .await
            .expect("the socket");
        let (reader, writer) = stream.into_split();
        let theirs = Client::over(reader, writer, Some(uid.to_string()))
            .await
            .expect("their instance");
        assert_eq!(theirs.server().uid, uid);
        assert_eq!(
            call(&theirs, "process/list", json!({}))
                .await
                .as_array()
                .map(Vec::len),
            Some(1)
        );
        call(&theirs, "daemon/status", json!({})).await["pid"].clone()
    });
    assert!(served.stop().success());
    // Others' may live, of tests that run at the same time.
    let left = std::path::PathBuf::from(format!("/proc/{instance}"));
    assert!(!left.exists(), "instances stop with the broker");
}

#[test]
fn i4_denials_of_another_user_s_files_are_observed_and_complete_through_roots_daemon() {
    let Some((roots, theirs)) = both() else { return };
    let served = Served::start(&roots);
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    let mut own = LineClient::connect(served.socket());
    for times in [1, 25, 500] {
        // At the same time a process of root's, which is refused something else.
        let at_once = start(&mut own, &roots, &refused(&roots, times));
        assert_observed(
            &record(&mut client, &theirs, &refused(&theirs, times)),
            &theirs,
            times,
        );
        assert_observed(&own.wait(&at_once), &roots, times);
    }
    let nothing = record(&mut client, &theirs, "true");
    assert_eq!(
        nothing["denials"]["complete"],
        true,
        "{nothing}\n{}",
        served.said()
    );
    assert_eq!(nothing["denials"]["total"], 0);
    assert_eq!(nothing["sandbox"]["file_denials"], "audit", "{nothing}");
}

/// Starts a program that is refused 30,000 files, each of another name, as fast as it can; its id.
fn start_flood(client: &mut LineClient, world: &World) -> String {
    let script = format!(
        "import os, sys\nsys.stdin.readline()\nfor i in range(30000):\n \
         try: os.open('{}%d' % i, os.O_CREAT | os.O_WRONLY)\n except OSError: pass",
        world.text("outside/refused")
    );
    let params = json!({ "argv": ["python3", "-c", script], "cwd": world.work(), "stdin": true });
    let started = client.call("process/start", params).expect("it starts");
    started["process"].as_str().expect("an id").to_owned()
}

/// Lets it begin; its record.
fn flooded(client: &mut LineClient, process: &str) -> Value {
    let line = json!({ "process": process, "data": "Cg==" });
    client.call("process/write", line).expect("it reads");
    client.wait(process)
}

#[test]
fn i4_a_flood_of_denials_is_counted_exactly_through_roots_daemon() {
    let Some((roots, theirs)) = both() else { return };
    let served = Served::start(&roots);
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    let process = start_flood(&mut client, &theirs);
    let record = flooded(&mut client, &process);
    let of_files = &record["denials"]["by_class"]["filesystem"];
    assert_eq!(of_files, 30_000, "{}\n{}", record["denials"], served.said());
}

#[test]
fn i4_a_flood_of_denials_is_counted_exactly_however_slowly_it_is_read() {
    /// Less than what is taken for standing still.
    const PAUSE: Duration = Duration::from_millis(1400);
    let Some((roots, theirs)) = both() else { return };
    let served = Served::start(&roots);
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    let process = start_flood(&mut client, &theirs);
    let (ended, ends) = mpsc::channel();
    std::thread::spawn(move || ended.send(flooded(&mut client, &process)));
    let begun = Instant::now();
    let record = 'ended: loop {
        served.signal(Signal::SIGSTOP);
        let record = ends.recv_timeout(PAUSE);
        served.signal(Signal::SIGCONT);
        if let Ok(record) = record {
            break record;
        }
        // For a moment of its own time, whenever the machine gives it that.
        let until = ticks(served.pid()) + 15;
        while ticks(served.pid()) < until {
            if let Ok(record) = ends.recv_timeout(Duration::from_millis(1)) {
                break 'ended record;
            }
            assert!(begun.elapsed() < 2 * DEADLINE, "it never ends");
        }
    };
    let of_files = &record["denials"]["by_class"]["filesystem"];
    assert_eq!(of_files, 30_000, "{}\n{}", record["denials"], served.said());
}

/// Hundredths of a second that a process has had so far.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let fields: Vec<&str> = stat.rsplit(' ').collect();
    // From the end, for its name may hold anything: utime and stime are the 14th and 15th of 52.
    [52 - 14, 52 - 15]
        .iter()
        .map(|&at| fields[at].parse::<u64>().expect("a number"))
        .sum()
}

#[test]
fn i4_a_broker_that_stands_still_makes_denials_incomplete_and_holds_nothing_up() {
    let Some((roots, theirs)) = both() else { return };
    let served = Served::start(&roots);
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    let process = start(
        &mut client,
        &theirs,
        &format!("read line; {}", refused(&theirs, 3)),
    );
    served.signal(Signal::SIGSTOP);
    let begun = Instant::now();
    let line = json!({ "process": process, "data": "Cg==" });
    client.call("process/write", line).expect("it reads");
    let record = client.wait(&process);
    let took = begun.elapsed();
    served.signal(Signal::SIGCONT);
    let denials = &record["denials"];
    assert_eq!(denials["complete"], false, "{denials}");
    assert!(!denials["unobserved"].as_array().expect("a list").is_empty());
    assert!(took < DEADLINE / 4, "{took:?}");
    // And it goes on: what came too late, or was lost meanwhile, is not held against those that follow.
    becomes("a complete record", || {
        let after = self::record(&mut client, &theirs, &refused(&theirs, 3));
        assert_eq!(after["denials"]["total"], 3, "{}", after["denials"]);
        after["denials"]["complete"] == true
    });
}

#[test]
fn a_reload_reaches_instances_that_run_with_their_limits_and_what_they_log() {
    let Some((roots, theirs)) = both() else { return };
    let config = roots.file("work/provost.toml", "max_processes = 11\nlog = \"info\"\n");
    let served = Served::start_with(&roots, &["--config", &config]);
    let limit = || {
        let mut client = LineClient::silent(served.socket());
        let params = json!({ "protocol": 1, "client": "asks", "user": theirs.uid().to_string() });
        let answer = client.call("initialize", params).expect("it is served");
        answer["limits"]["processes"].clone()
    };
    assert_eq!(limit(), 11);
    let pid = instance(&mut LineClient::connect_for(served.socket(), theirs.uid()));
    // Root's own says the same of its clients, and none comes here.
    let logs_clients = || served.said().contains("client=\"asks\"");
    assert!(!logs_clients(), "{}", served.said());
    roots.file("work/provost.toml", "max_processes = 12\nlog = \"debug\"\n");
    served.signal(Signal::SIGHUP);
    becomes("the new limit", || limit() == 12);
    becomes("the new filter", || {
        let _ = limit();
        logs_clients()
    });
    let now = instance(&mut LineClient::connect_for(served.socket(), theirs.uid()));
    assert_eq!(now, pid, "it was not started again");
}

#[test]
fn i6_an_instance_that_its_user_has_stopped_does_not_hold_up_the_end() {
    let Some((roots, theirs)) = both() else { return };
    let config = roots.file("work/provost.toml", "stop_timeout = \"100ms\"\n");
    let served = Served::start_with(&roots, &["--config", &config]);
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    let witness = theirs.witness();
    let script = format!("exec 9>{}; exec sleep 1000", witness.path());
    let process = start(&mut client, &theirs, &script);
    let read = json!({ "process": process, "wait_ms": 1 });
    client.call("process/read", read).expect("it runs");
    let pid = instance(&mut client);
    kill(pid, Signal::SIGSTOP).expect("it lives");
    let begun = Instant::now();
    assert!(served.stop().success());
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(30), "{took:?}");
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "it is gone");
    witness.wait_until_gone();
}

#[test]
fn i6_with_a_group_of_its_own_nothing_of_a_user_s_outlives_the_end_whatever_its_user_has_stopped() {
    let Some((roots, theirs)) = both() else { return };
    let config = roots.file("work/provost.toml", "stop_timeout = \"100ms\"\n");
    let served = Served::start_with(&roots, &["--config", &config]);
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    let instance = instance(&mut client);
    let Some(leaf) = needs::group(instance) else {
        return needs::missing("a cgroup v2 in which root may make groups");
    };
    let group = leaf.parent().expect("a group around the leaf").to_owned();
    let mut witness = theirs.witness();
    let script = format!(
        "exec 9>{}; echo up >&9; (setsid sleep 1000 &) ; exec sleep 1000",
        witness.path()
    );
    let params = json!({ "argv": ["sh", "-c", script], "cwd": theirs.work(), "policy": "unconfined" });
    let started = client.call("process/start", params).expect("it starts");
    becomes("the command", || witness.was_alive());
    // It may run before it is known to.
    let read = json!({ "process": started["process"], "wait_ms": 60_000 });
    let text = client
        .call("process/read", read)
        .expect("it is known")
        .to_string();
    assert!(text.contains("\"containment\":\"cgroup\""), "{text}");
    let groups = std::fs::read_dir(&group).expect("it is there").flatten();
    let processes = groups.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    assert_eq!(processes.count(), 2, "the supervisor's, and the command's");

    // What is its maker's stays so, nothing gets out, and nothing of the user's own gets in.
    let above = group.parent().expect("not the root").to_owned();
    for (path, word) in [
        (group.join("cgroup.max.descendants"), "max"),
        (group.join("cgroup.kill"), "1"),
        (above.join("cgroup.procs"), "$$"),
        (group.join("cgroup.procs"), "$$"),
    ] {
        let script = format!("echo {word} > {}", path.display());
        assert!(!needs::succeeds(&theirs, "sh", &["-c", &script]), "{script}");
    }

    // Everything of the user's own, by the user.
    for pid in std::fs::read_to_string(leaf.join("cgroup.procs"))
        .expect("it is there")
        .lines()
    {
        let stopped = needs::succeeds(&theirs, "kill", &["-STOP", pid]);
        assert!(stopped, "{pid}");
    }
    assert!(served.stop().success());
    assert!(witness.is_gone(), "something of it still lives");
    assert!(!group.exists());
}

#[test]
fn metrics_are_the_sums_over_instances_also_over_those_that_have_ended() {
    let Some((roots, theirs)) = both() else { return };
    require!(needs::command("curl"), "curl");
    let socket = roots.text("work/metrics.sock");
    let config = roots.file("work/provost.toml", &format!("metrics = \"{socket}\"\n"));
    let served = Served::start_with(&roots, &["--config", &config]);
    let tells = |lines: &[&str]| {
        let asked = std::process::Command::new("curl")
            .args(["-sS", "--unix-socket", &socket, "http://localhost/metrics"])
            .output()
            .expect("curl runs");
        let text = String::from_utf8_lossy(&asked.stdout).into_owned();
        lines
            .iter()
            .all(|wanted| text.lines().any(|line| line == *wanted))
    };
    let mut own = LineClient::connect(served.socket());
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    record(&mut own, &roots, &refused(&roots, 2));
    record(&mut client, &theirs, &refused(&theirs, 3));
    let counted = [
        "provost_processes_started_total 2",
        "provost_processes_ended_total{kind=\"exited\"} 2",
        "provost_denials_total{kind=\"filesystem\"} 5",
        "provost_process_duration_seconds_count 2",
    ];
    becomes("the sum", || {
        tells(&counted) && tells(&["provost_clients 2", "provost_instances 1"])
    });
    kill(instance(&mut client), Signal::SIGKILL).expect("it lives");
    becomes("the sum without it", || {
        tells(&counted) && tells(&["provost_clients 1", "provost_instances 0"])
    });
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    record(&mut client, &theirs, "true");
    becomes("the sum with another", || {
        tells(&["provost_processes_started_total 3"])
    });
}

/// Asks over and over until it is so: each time whoever is asked has done what was ready.
fn becomes(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < DEADLINE, "{what} never comes");
    }
}
