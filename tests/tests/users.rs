//! What other users have running through root's daemon survives whoever dies, and is nobody else's.

use std::collections::HashSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use provost_tests::{DEADLINE, LineClient, Served, User, Witness, World, needs};
use serde_json::{Value, json};

/// Root's daemon, and another user for it to serve; nothing where these tests cannot be root.
fn both() -> Option<(World, World)> {
    let roots = World::try_new(User::Root)?;
    let theirs = World::try_new(User::Ordinary)?;
    Some((roots, theirs))
}

fn start(client: &mut LineClient, world: &World, script: &str, more: Value) -> String {
    let mut params = json!({ "argv": ["sh", "-c", script], "cwd": world.work(), "stdin": true });
    let more = more.as_object().expect("an object").clone();
    params.as_object_mut().expect("an object").extend(more);
    let started = client.call("process/start", params).expect("it starts");
    started["process"].as_str().expect("an id").to_owned()
}

/// Everything that it wrote to its stdout, which must be whole.
fn output(client: &mut LineClient, process: &str) -> String {
    let read = json!({ "process": process });
    let read = client.call("process/read", read).expect("it is known");
    let mut bytes = Vec::new();
    for event in read["events"].as_array().expect("events") {
        assert_ne!(event["type"], "gap", "{event}");
        if event["type"] == "output" {
            let data = event["data"].as_str().expect("base64").as_bytes();
            bytes.extend(base64_simd::STANDARD.decode_to_vec(data).expect("base64"));
        }
    }
    String::from_utf8(bytes).expect("text")
}

fn instance(client: &mut LineClient) -> Pid {
    let status = client.call("daemon/status", json!({})).expect("it is served");
    Pid::from_raw(status["pid"].as_i64().expect("a pid").try_into().expect("a pid"))
}

fn keeper(client: &mut LineClient) -> Pid {
    let status = client.call("daemon/status", json!({})).expect("it is served");
    Pid::from_raw(
        status["keeper"]
            .as_i64()
            .expect("a pid")
            .try_into()
            .expect("a pid"),
    )
}

/// A keeper that nobody finds any more: it ends with the test.
struct Ends(Pid);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

fn lives(pid: Pid) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// A command that says `up` to a witness and stays.
fn stays(witness: &Witness) -> String {
    format!("exec 9>{}; echo up >&9; exec sleep 1000", witness.path())
}

fn state(roots: &World, theirs: &World) -> PathBuf {
    roots.path(&format!("state/users/{}", theirs.uid()))
}

/// Runs something as a user, outside of any sandbox; its exit code and what it wrote.
fn as_user(uid: u32, words: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(words[0]);
    let output = command
        .args(&words[1..])
        .current_dir("/")
        .uid(uid)
        .gid(uid)
        .output();
    let output = output.expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), text)
}

/// Asks over and over until it is so: each time whoever is asked has done what was ready.
fn becomes(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < DEADLINE, "{what} never comes");
    }
}

#[test]
fn i8_i12_a_user_s_process_survives_kill_9_of_the_broker_as_that_user_with_every_byte() {
    let Some((roots, theirs)) = both() else { return };
    let mut served = Served::start(&roots);
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    let script = "id -u; id -g; id -G; touch made; seq 1 3000; read line; echo $line; seq 3001 6000; \
                  id -u; touch made-later; exit 7";
    let process = start(&mut client, &theirs, script, json!({ "name": "survivor" }));
    let mut killed = instance(&mut client);
    // Also in the middle of the first output.
    for _ in 0..3 {
        served.crash();
        becomes("the end of the instance", || !lives(killed));
        served = Served::start(&roots);
        client = LineClient::connect_for(served.socket(), theirs.uid());
        let now = instance(&mut client);
        assert_ne!(now, killed);
        killed = now;
    }
    let line = json!({ "process": process, "data": "d29yZAo=" });
    client.call("process/write", line).expect("it reads");
    let record = client.wait(&process);
    assert_eq!(record["exit_code"], 7, "{record}\n{}", served.said());
    assert_eq!(record["outcome"], "exited");
    let uid = theirs.uid();
    let numbers = |from: u32, to: u32| (from..=to).map(|n| format!("{n}\n")).collect::<String>();
    let wanted = format!(
        "{uid}\n{uid}\n{uid}\n{}word\n{}{uid}\n",
        numbers(1, 3000),
        numbers(3001, 6000)
    );
    assert_eq!(output(&mut client, &process), wanted);
    assert_eq!(record["output"]["stdout"]["bytes"], wanted.len());
    for file in ["work/made", "work/made-later"] {
        let made = theirs.path(file).metadata().expect("it was made");
        assert_eq!((made.uid(), made.gid()), (uid, uid), "{file}");
    }
    // Once more: the record is there, once, and nothing is left to see to.
    served.crash();
    served = Served::start(&roots);
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    assert_eq!(client.wait(&process), record);
    let listed = client.call("process/list", json!({})).expect("it is served");
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
}

/// How one broker follows another.
#[derive(Debug, Clone, Copy)]
enum Follows {
    /// One that was killed.
    Death,
    /// `--replace`.
    Replace,
    /// USR2: the same process.
    Signal,
}

impl Follows {
    fn happens(self, served: Served, roots: &World) -> Served {
        match self {
            Self::Death => {
                served.crash();
                Served::start(roots)
            }
            Self::Replace => served.replace(roots, &[]),
            Self::Signal => {
                let listening = |served: &Served| served.said().matches("listening on").count();
                let before = listening(&served);
                served.signal(Signal::SIGUSR2);
                becomes("the new program", || listening(&served) > before);
                served
            }
        }
    }
}

#[test]
fn i8_a_restart_of_the_broker_takes_every_user_s_processes_up_with_their_ids_and_every_byte() {
    each_goes_on(&[Follows::Death, Follows::Death]);
}

#[test]
fn i8_a_replaced_broker_leaves_every_user_s_processes_with_their_ids_and_every_byte() {
    each_goes_on(&[Follows::Replace, Follows::Signal, Follows::Replace]);
}

#[test]
fn i8_users_processes_go_on_however_brokers_follow_each_other() {
    each_goes_on(&[Follows::Replace, Follows::Death, Follows::Signal, Follows::Death]);
}

/// Two processes of each of three users, root among them, write numbers all the time.
fn each_goes_on(follow: &[Follows]) {
    let Some((roots, theirs)) = both() else { return };
    let mut served = Served::start(&roots);
    let users = [0, theirs.uid(), theirs.uid() + 1];
    let connect = |served: &Served, uid: u32| match uid {
        0 => LineClient::connect(served.socket()),
        uid => LineClient::connect_for(served.socket(), uid),
    };
    // They count until there is something to read. Python's select, for bash's `read -t` may lose what it has read half.
    let script = "import select, sys\nn = 0\n\
                  while not select.select([sys.stdin], [], [], 0.002)[0]:\n n += 1\n print(n, flush=True)\n\
                  print(sys.stdin.readline(), end='')\nsys.exit(7)";
    let mut started: Vec<(u32, Vec<String>)> = Vec::new();
    for uid in users {
        let mut client = connect(&served, uid);
        let ids = (0..2).map(|_| {
            let params = json!({
                "argv": ["python3", "-c", script], "cwd": "/", "policy": "read-only", "stdin": true,
            });
            let begun = client.call("process/start", params).expect("it starts");
            begun["process"].as_str().expect("an id").to_owned()
        });
        started.push((uid, ids.collect()));
    }
    let mut pids = HashSet::new();
    for step in follow {
        for (uid, ids) in &started {
            let mut client = connect(&served, *uid);
            // A number of a process that lives is nobody else's.
            let is_new = pids.insert(instance(&mut client));
            assert!(is_new || *uid == 0, "{uid} has the same instance");
            for id in ids {
                let seen = client.read_all(id).0.len();
                client.read_until(id, seen + 1);
            }
        }
        served = step.happens(served, &roots);
        // The instance of before has gone with its broker.
        let gone = |uid: &u32| *uid != 0;
        for uid in users.iter().filter(|uid| gone(uid)) {
            let now = instance(&mut connect(&served, *uid));
            assert!(!pids.contains(&now), "{step:?}");
        }
    }
    for (uid, ids) in &started {
        let mut client = connect(&served, *uid);
        let listed = client.call("process/list", json!({})).expect("it is served");
        let listed: HashSet<&str> = listed
            .as_array()
            .expect("processes")
            .iter()
            .map(|process| process["process"].as_str().expect("an id"))
            .collect();
        assert_eq!(listed, ids.iter().map(String::as_str).collect(), "of {uid}");
        for id in ids {
            let line = json!({ "process": id, "data": "d29yZAo=" });
            client.call("process/write", line).expect("it reads");
            let record = client.wait(id);
            assert_eq!(
                (&record["outcome"], &record["exit_code"]),
                (&json!("exited"), &json!(7)),
                "{record}\n{}",
                served.said()
            );
            let (bytes, events) = client.read_all(id);
            assert!(events.iter().all(|event| event["type"] != "gap"));
            let text = String::from_utf8(bytes).expect("text");
            let last = text.lines().count() - 1;
            let numbers: String = (1..=last).map(|n| format!("{n}\n")).collect();
            assert!(
                text == numbers + "word\n",
                "of {uid}: {last} lines, ends with {:?}",
                text.get(text.len() - 20..)
            );
            assert_eq!(record["output"]["stdout"]["bytes"], text.len());
        }
    }
}

#[test]
fn i8_an_instance_that_its_user_has_stopped_holds_a_replacement_up_and_loses_nothing() {
    let Some((roots, theirs)) = both() else { return };
    let served = Served::start(&roots);
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    let script = "echo before; read line; echo $line";
    let process = start(&mut client, &theirs, script, json!({}));
    client.read_until(&process, "before\n".len());
    let stopped = instance(&mut client);
    kill(stopped, Signal::SIGSTOP).expect("it lives");
    let served = served.replace(&roots, &[]);
    assert!(!lives(stopped));
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    let line = json!({ "process": process, "data": "d29yZAo=" });
    client.call("process/write", line).expect("it reads");
    assert_eq!(client.wait(&process)["outcome"], "exited");
    assert_eq!(output(&mut client, &process), "before\nword\n");
}

#[test]
fn i8_a_new_broker_sees_to_what_users_have_running_before_any_of_them_comes() {
    let Some((roots, theirs)) = both() else { return };
    let mut served = Served::start(&roots);
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    let mut witness = theirs.witness();
    let process = start(
        &mut client,
        &theirs,
        &stays(&witness),
        json!({ "timeout_ms": 2000 }),
    );
    becomes("the command", || witness.was_alive());
    served.crash();
    served = Served::start(&roots);
    // Nobody but the new instance can end it.
    witness.wait_until_gone();
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    assert_eq!(client.wait(&process)["outcome"], "timed_out");
}

#[test]
fn i8_an_instance_that_its_user_kills_is_followed_by_another_which_sees_to_what_runs() {
    let Some((roots, theirs)) = both() else { return };
    let served = Served::start(&roots);
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    let mut witness = theirs.witness();
    let process = start(
        &mut client,
        &theirs,
        &stays(&witness),
        json!({ "timeout_ms": 3000 }),
    );
    becomes("the command", || witness.was_alive());
    let killed = instance(&mut client);
    let (code, _) = as_user(theirs.uid(), &["kill", "-KILL", &killed.to_string()]);
    assert_eq!(code, Some(0));
    witness.wait_until_gone();
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    assert_eq!(client.wait(&process)["outcome"], "timed_out");
    assert_ne!(instance(&mut client), killed);
}

#[test]
fn i8_an_instance_whose_group_an_earlier_one_was_in_is_in_it_again_and_its_end_is_theirs() {
    let Some((roots, theirs)) = both() else { return };
    let config = roots.file("work/provost.toml", "stop_timeout = \"100ms\"\n");
    let flags = ["--config", config.as_str()];
    let mut served = Served::start_with(&roots, &flags);
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    let first = instance(&mut client);
    let Some(leaf) = needs::group(first) else {
        return needs::missing("a cgroup v2 in which root may make groups");
    };
    let mut witness = theirs.witness();
    start(&mut client, &theirs, &stays(&witness), json!({}));
    becomes("the command", || witness.was_alive());
    served.crash();
    served = Served::start_with(&roots, &flags);
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    assert_eq!(needs::group(instance(&mut client)).as_ref(), Some(&leaf));
    assert!(!witness.is_gone());
    // Instance and keeper stand still, and end with their group.
    let members = std::fs::read_to_string(leaf.join("cgroup.procs")).expect("it is there");
    let members: Vec<Pid> = members
        .lines()
        .map(|pid| Pid::from_raw(pid.parse().expect("a pid")))
        .collect();
    assert!(members.len() >= 2, "{members:?}");
    for pid in &members {
        kill(*pid, Signal::SIGSTOP).expect("it lives");
    }
    assert!(served.stop().success());
    assert!(witness.is_gone(), "something of it still lives");
    assert!(!leaf.parent().expect("a group around the leaf").exists());
}

#[test]
fn i6_what_an_instance_has_left_that_is_gone_is_stopped_with_the_broker() {
    let Some((roots, theirs)) = both() else { return };
    let mut served = Served::start(&roots);
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    let mut witness = theirs.witness();
    let process = start(&mut client, &theirs, &stays(&witness), json!({}));
    becomes("the command", || witness.was_alive());
    served.crash();
    served = Served::start(&roots);
    // At once: it may not have asked yet who needs an instance.
    served.signal(Signal::SIGTERM);
    witness.wait_until_gone();
    let (state, uid) = (state(&roots, &theirs), theirs.uid());
    let said = served.said();
    assert!(served.stop_signalled().success(), "{said}");
    assert!(std::os::unix::net::UnixStream::connect(state.join("keeper.sock")).is_err());
    // Each has its record.
    let served = Served::start(&roots);
    let mut client = LineClient::connect_for(served.socket(), uid);
    let record = client.wait(&process);
    assert_eq!(record["outcome"], "cancelled", "{record}");
}

#[test]
fn i4_of_what_was_refused_around_the_death_of_the_broker_nothing_is_taken_for_complete_that_is_not() {
    let Some((roots, theirs)) = both() else { return };
    let mut served = Served::start(&roots);
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    let refused = format!("true 2>&- >{}", theirs.text("outside/refused"));
    let mut witness = theirs.witness();
    let script = format!(
        "{refused}; exec 9>{}; echo up >&9; read line; {refused}; {refused}; true",
        witness.path()
    );
    let process = start(&mut client, &theirs, &script, json!({}));
    becomes("the command", || witness.was_alive());
    served.crash();
    served = Served::start(&roots);
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    let line = json!({ "process": process, "data": "Cg==" });
    client.call("process/write", line).expect("it reads");
    let record = client.wait(&process);
    let denials = &record["denials"];
    assert!(denials["complete"] == false || denials["total"] == 3, "{record}");
    // Of what starts from now on everything is known, and in the configuration's words.
    let script = format!("{refused}; {refused}; true");
    let process = start(&mut client, &theirs, &script, json!({}));
    let record = client.wait(&process);
    let denials = &record["denials"];
    assert_eq!(
        (&denials["total"], &denials["complete"]),
        (&json!(2), &json!(true)),
        "{record}"
    );
    assert_eq!(record["sandbox"]["file_denials"], "audit", "{record}");
}

#[test]
fn a_new_broker_s_configuration_and_reload_reach_what_an_earlier_one_left_and_its_numbers_count() {
    let Some((roots, theirs)) = both() else { return };
    let socket = roots.text("work/metrics.sock");
    let text = |processes: u32| format!("max_processes = {processes}\nmetrics = \"{socket}\"\n");
    let config = roots.file("work/provost.toml", &text(11));
    let flags = ["--config", config.as_str()];
    let mut served = Served::start_with(&roots, &flags);
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    let mut witness = theirs.witness();
    start(&mut client, &theirs, &stays(&witness), json!({}));
    becomes("the command", || witness.was_alive());
    served.crash();
    roots.file("work/provost.toml", &text(12));
    served = Served::start_with(&roots, &flags);
    let limit = || {
        let mut client = LineClient::silent(served.socket());
        let params = json!({ "protocol": 1, "client": "asks", "user": theirs.uid().to_string() });
        let answer = client.call("initialize", params).expect("it is served");
        answer["limits"]["processes"].clone()
    };
    assert_eq!(limit(), 12);
    roots.file("work/provost.toml", &text(13));
    served.signal(Signal::SIGHUP);
    becomes("the new limit", || limit() == 13);
    let live = || {
        let asked = Command::new("curl")
            .args(["-sS", "--unix-socket", &socket, "http://localhost/metrics"])
            .output()
            .expect("curl runs");
        let text = String::from_utf8_lossy(&asked.stdout).into_owned();
        let has = |wanted: &str| text.lines().any(|line| line == wanted);
        has("provost_instances 1") && has("provost_processes_live 1")
    };
    becomes("the numbers of what was taken up", live);
}

#[test]
fn i12_nobody_else_sees_anything_of_a_user_s_before_or_after() {
    let Some((roots, theirs)) = both() else { return };
    let mut served = Served::start(&roots);
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    let process = start(&mut client, &theirs, "echo secret; exec sleep 1000", json!({}));
    let state = state(&roots, &theirs);
    let stranger = theirs.uid() + 1;
    let see_nothing = |served: &Served| {
        let mut other = LineClient::connect_for(served.socket(), stranger);
        let mut own = LineClient::connect(served.socket());
        for client in [&mut other, &mut own] {
            for method in ["process/read", "process/kill", "process/inspect"] {
                let refused = client.call(method, json!({ "process": process })).unwrap_err();
                assert_eq!(refused["data"]["kind"], "not_found", "{refused}");
            }
            assert_eq!(client.call("process/list", json!({})), Ok(json!([])));
        }
        let there = state.symlink_metadata().expect("it is there");
        assert_eq!((there.mode() & 0o7777, there.uid()), (0o700, theirs.uid()));
        let above = state.parent().expect("users").metadata().expect("it is there");
        assert_eq!((above.mode() & 0o7777, above.uid()), (0o711, 0));
        let text = |name: &str| state.join(name).display().to_string();
        for words in [
            ["ls", &text("")],
            ["ls", &state.parent().expect("users").display().to_string()],
            ["cat", &text("provost.db")],
            ["cat", &text("lock")],
            ["rmdir", &state.display().to_string()],
            ["mkdir", &format!("{}x", state.display())],
        ] {
            assert_ne!(as_user(stranger, &words).0, Some(0), "{words:?}");
        }
        let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET)\n\
                      try: s.connect(sys.argv[1]); print('connected')\n\
                      except PermissionError: print('refused')";
        let keeper = text("keeper.sock");
        let (_, told) = as_user(stranger, &["python3", "-c", script, &keeper]);
        assert_eq!(told, "refused\n");
        let (_, told) = as_user(theirs.uid(), &["test", "-S", &keeper]);
        assert_eq!(told, "");
    };
    see_nothing(&served);
    served.crash();
    see_nothing_of_files(&state, stranger);
    served = Served::start(&roots);
    see_nothing(&served);
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    client
        .call("process/kill", json!({ "process": process }))
        .expect("it is theirs");
    assert_eq!(client.wait(&process)["outcome"], "cancelled");
}

fn see_nothing_of_files(state: &Path, stranger: u32) {
    let path = state.display().to_string();
    assert_ne!(as_user(stranger, &["ls", &path]).0, Some(0));
}

#[test]
fn whatever_a_user_puts_into_its_state_directory_harms_nobody_else() {
    let Some((roots, theirs)) = both() else { return };
    let mut served = Served::start(&roots);
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    start(&mut client, &theirs, "exec sleep 1000", json!({}));
    let _keeper = Ends(keeper(&mut client));
    let mut own = LineClient::connect(served.socket());
    let roots_process = own.start("exec sleep 1000");
    let killed = instance(&mut client);
    served.crash();
    becomes("the end of the instance", || !lives(killed));
    let state = state(&roots, &theirs);
    let victim = roots.path("outside/victim");
    std::fs::write(&victim, "as it was").expect("a file of root's");
    std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o600)).expect("ours");
    let root_spool = roots.path("state/spool");
    let script = format!(
        "cd {0} && mv spool aside && ln -s {1} spool && mv lock lock.old && mkfifo lock && \
         mv provost.db db.old && ln -s {2} provost.db && rm -f exits && ln -s {2} exits && \
         rm -f keeper.sock && ln -s {3} keeper.sock && chmod 777 .",
        state.display(),
        root_spool.display(),
        victim.display(),
        roots.path("state/keeper.sock").display(),
    );
    assert_eq!(as_user(theirs.uid(), &["sh", "-c", &script]).0, Some(0));
    // And things beside it that no user can have made, but a careless root.
    symlink(&victim, roots.path("state/users/12345")).expect("a link");
    served = Served::start(&roots);
    let mut own = LineClient::connect(served.socket());
    let inspected = own.call("process/inspect", json!({ "process": roots_process }));
    assert!(inspected.is_ok(), "{inspected:?}");
    own.call("process/kill", json!({ "process": roots_process }))
        .expect("it is root's");
    own.wait(&roots_process);
    // Its user harmed nobody else; others are served as ever.
    let mut other = LineClient::connect_for(served.socket(), theirs.uid() + 1);
    let status = other.call("daemon/status", json!({})).expect("it is served");
    assert_eq!(status["uid"], theirs.uid() + 1);
    assert_eq!(std::fs::read_to_string(&victim).expect("root's"), "as it was");
    assert_eq!(victim.metadata().expect("root's").uid(), 0);
    let spool = root_spool.metadata().expect("root's");
    assert_eq!((spool.uid(), spool.mode() & 0o7777), (0, 0o700));
    // What was put aside and is put back is taken up.
    let script = format!(
        "cd {} && chmod 700 . && rm -f spool lock provost.db exits keeper.sock && mv aside spool && mv db.old provost.db",
        state.display()
    );
    assert_eq!(as_user(theirs.uid(), &["sh", "-c", &script]).0, Some(0));
    let mut client = LineClient::connect_for(served.socket(), theirs.uid());
    let listed = client.call("process/list", json!({})).expect("it is served");
    assert_eq!(
        listed.as_array().map(Vec::len),
        Some(1),
        "{listed}\n{}",
        served.said()
    );
}
