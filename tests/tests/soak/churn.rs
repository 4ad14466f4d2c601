//! What comes and goes: each round is one small story of a client, told to its end or left in the middle.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use provost_tests::{DEADLINE, LineClient, Served, World, program, provost};
use serde_json::{Value, json};

use crate::Done;

/// One client of one user, whose connections come and go.
pub(crate) struct Lane {
    socket: PathBuf,
    uid: Option<u32>,
    work: PathBuf,
    outside: PathBuf,
    /// The same run each time.
    random: u64,
    rounds: u64,
    number: u64,
    done: Done,
}

/// A story's name, how often it is told relative to the others, and how it goes.
type Story = (&'static str, u64, fn(&mut Lane));

const STORIES: [Story; 14] = [
    ("output", 4, Lane::output),
    ("denials", 3, Lane::denials),
    ("terminal", 2, Lane::terminal),
    ("stdin", 2, Lane::stdin),
    ("kill", 2, Lane::kill),
    ("timeout", 1, Lane::timeout),
    ("followers", 2, Lane::followers),
    ("killed client", 1, Lane::killed_client),
    ("session", 2, Lane::session),
    ("session left", 2, Lane::session_left),
    ("half a line", 3, Lane::half_a_line),
    ("twice", 2, Lane::twice),
    ("failures", 2, Lane::failures),
    ("prune", 1, Lane::prune),
];

/// A connection for this user, through root's daemon if it is another one.
pub(crate) fn connect(socket: &Path, uid: Option<u32>) -> LineClient {
    match uid {
        Some(uid) => LineClient::connect_for(socket, uid),
        None => LineClient::connect(socket),
    }
}

impl Lane {
    pub(crate) fn new(served: &Served, world: &World, uid: Option<u32>) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self {
            socket: served.socket().to_owned(),
            uid,
            work: world.work(),
            outside: world.path("outside"),
            random: 0x9E37_79B9_7F4A_7C15 ^ (number << 32),
            rounds: 0,
            number,
            done: Done::new(),
        }
    }

    /// Tells stories until then.
    pub(crate) fn run(mut self, end: Instant, done: &Mutex<Done>) {
        let all: u64 = STORIES.iter().map(|(_, weight, _)| weight).sum();
        while Instant::now() < end {
            self.rounds += 1;
            let mut chosen = self.below(all);
            for (name, weight, story) in STORIES {
                if chosen < weight {
                    story(&mut self);
                    self.count(name);
                    break;
                }
                chosen -= weight;
            }
        }
        let mut done = done.lock().expect("no lane failed");
        for (name, count) in self.done {
            *done.entry(name).or_default() += count;
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    fn below(&mut self, end: u64) -> u64 {
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % end
    }

    fn connect(&mut self) -> LineClient {
        self.count("connection");
        connect(&self.socket, self.uid)
    }

    fn policy(&mut self) -> &'static str {
        ["workspace-write", "unconfined"][usize::from(self.below(4) == 0)]
    }

    /// A word that no other start or session has had.
    fn word(&self) -> String {
        format!("w{}.{}", self.number, self.rounds)
    }

    fn start(&mut self, client: &mut LineClient, argv: Value, more: &Value) -> String {
        self.count("start");
        let mut params = json!({ "argv": argv, "cwd": self.work, "policy": self.policy() });
        for (key, value) in more.as_object().into_iter().flatten() {
            params[key] = value.clone();
        }
        let started = client.call("process/start", params).expect("it is accepted");
        started["process"].as_str().expect("an id").to_owned()
    }

    fn shell(&mut self, client: &mut LineClient, script: &str, more: &Value) -> String {
        self.start(client, json!(["sh", "-c", script]), more)
    }

    fn output(&mut self) {
        let mut client = self.connect();
        let code = self.below(100);
        let lines = 1 + self.below(200);
        let script = format!("seq {lines}; echo err >&2; exit {code}");
        self.shell(
            &mut client,
            &script,
            &json!({ "follow": true, "labels": { "lane": self.word() } }),
        );
        let record = loop {
            let told = client.notified().expect("events until the record");
            let event = &told["params"]["event"];
            if event["type"] == "terminal" {
                break event["record"].clone();
            }
        };
        assert_eq!(record["exit_code"], code, "{record}");
        assert_eq!(record["output"]["stderr"]["bytes"], 4, "{record}");
    }

    fn denials(&mut self) {
        let mut client = self.connect();
        let path = self.outside.join("new");
        let argv = match self.below(2) {
            0 => json!([program("denials"), "connect", "3"]),
            _ => json!([program("denials"), "write", "3", path]),
        };
        let process = self.start(&mut client, argv, &json!({ "policy": "workspace-write" }));
        let record = client.wait(&process);
        // Beside a flood of others' audit records some are lost, and then the record says so.
        let complete = record["denials"]["complete"] == true;
        assert!(!complete || record["denials"]["total"] == 3, "{record}");
    }

    fn terminal(&mut self) {
        let mut client = self.connect();
        let more = json!({ "terminal": { "rows": 24, "cols": 80 } });
        let process = self.shell(&mut client, "read x; echo got $x; exit 4", &more);
        let size = json!({ "process": process, "rows": 30, "cols": 90 });
        client.call("process/resize", size).expect("it waits for a line");
        let line = json!({ "process": process, "data": "aGkK" });
        client.call("process/write", line).expect("it waits for a line");
        let record = client.wait(&process);
        assert_eq!(record["exit_code"], 4, "{record}");
    }

    fn stdin(&mut self) {
        let mut client = self.connect();
        let process = self.start(&mut client, json!(["cat"]), &json!({ "stdin": true }));
        let data = "QUFB".repeat(1 + usize::try_from(self.below(2000)).expect("small"));
        for close in [false, true] {
            let write = json!({ "process": process, "data": data, "close": close });
            client.call("process/write", write).expect("it reads");
        }
        let record = client.wait(&process);
        let bytes = 2 * data.len() / 4 * 3;
        assert_eq!(record["output"]["stdout"]["bytes"], bytes, "{record}");
    }

    fn kill(&mut self) {
        let mut client = self.connect();
        let process = self.shell(&mut client, "sleep 1000 & exec sleep 1000", &json!({}));
        let (method, outcome, more) = match self.below(3) {
            0 => ("process/kill", "cancelled", json!({})),
            1 => ("process/stop", "cancelled", json!({ "reason": "enough" })),
            _ => (
                "process/signal",
                "signaled",
                json!({ "signal": "KILL", "scope": "tree" }),
            ),
        };
        // A signal goes to a command that is there.
        let read = json!({ "process": process, "wait_ms": 10_000 });
        client.call("process/read", read).expect("it starts");
        let mut params = json!({ "process": process });
        for (key, value) in more.as_object().into_iter().flatten() {
            params[key] = value.clone();
        }
        assert_eq!(client.call(method, params).expect("it lives")["told"], true);
        let record = client.wait(&process);
        assert_eq!(record["outcome"], outcome, "{record}");
    }

    fn timeout(&mut self) {
        let mut client = self.connect();
        let (key, outcome) = [("timeout_ms", "timed_out"), ("idle_timeout_ms", "idle_timeout")]
            [usize::try_from(self.below(2)).expect("small")];
        let process = self.shell(&mut client, "exec sleep 1000", &json!({ key: 20 }));
        let record = client.wait(&process);
        assert_eq!(record["outcome"], outcome, "{record}");
    }

    /// One reads some, one reads nothing, one is paced and goes: none says goodbye.
    fn followers(&mut self) {
        let mut owner = self.connect();
        let script =
            "while :; do echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; done";
        // What is kept of it would be most of the memory, and hide what is lost.
        let process = self.shell(&mut owner, script, &json!({ "max_output": 16_384 }));
        let mut others = Vec::new();
        for follow in [json!({}), json!({ "window": 1 }), json!({ "paced": true })] {
            let mut params = follow;
            params["process"] = json!(process);
            let mut client = self.connect();
            client.call("process/follow", params).expect("it lives");
            others.push(client);
            self.count("follower");
        }
        for _ in 0..self.below(50) {
            assert!(others[0].notified().is_some(), "it writes for ever");
        }
        drop(others);
        let follow = json!({ "process": process, "window": 4 });
        let followed = owner.call("process/follow", follow).expect("it lives");
        let subscription = json!({ "subscription": followed["subscription"] });
        owner.call("unfollow", subscription).expect("it is served");
        owner
            .call("process/kill", json!({ "process": process }))
            .expect("it is served");
        owner.wait(&process);
    }

    #[allow(clippy::disallowed_methods, reason = "a client, which is an ordinary program")]
    fn killed_client(&mut self) {
        let mut client = self.connect();
        let process = self.shell(&mut client, "echo up; exec sleep 1000", &json!({}));
        let mut command = Command::new(provost());
        command
            .args(["logs", "--follow", &process])
            .env("PROVOST_SOCKET", &self.socket);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        let mut follower = command.spawn().expect("provost starts");
        let mut first = [0];
        let said = follower
            .stdout
            .as_mut()
            .map(|out| std::io::Read::read_exact(out, &mut first));
        assert!(matches!(said, Some(Ok(()))), "it has said `up`");
        follower.kill().expect("our own child");
        follower.wait().expect("our own child");
        client
            .call("process/kill", json!({ "process": process }))
            .expect("it is served");
        client.wait(&process);
    }

    fn session(&mut self) {
        let (mut one, mut other) = (self.connect(), self.connect());
        let opened = one
            .call("session/open", json!({ "name": self.word() }))
            .expect("a new name");
        let session = json!({ "session": opened["session"] });
        let part = one
            .call("session/open", json!({ "parent": opened["session"] }))
            .expect("a part");
        let process = self.shell(&mut one, "exec sleep 1000", &session);
        self.shell(
            &mut one,
            "exec sleep 1000",
            &json!({ "session": part["session"] }),
        );
        let follow = one.call("session/follow", session.clone());
        follow.expect("it is there");
        one.call("session/detach", session.clone()).expect("it is held");
        let attach = json!({ "sessions": [opened["session"]] });
        let moved = other.call("session/attach", attach).expect("it is free");
        assert_eq!(moved["moved"].as_array().map(Vec::len), Some(2), "{moved}");
        if self.below(2) == 0 {
            // Whoever held it last goes without a word.
            drop(one);
        }
        let close = json!({ "session": opened["session"], "kill": self.below(2) == 0 });
        other.call("session/close", close).expect("it is held");
        let record = other.wait(&process);
        assert_eq!(record["outcome"], "cancelled", "{record}");
    }

    fn session_left(&mut self) {
        let mut client = self.connect();
        let mut watcher = self.connect();
        let open = match self.below(2) {
            0 => json!({ "on_disconnect": "stop" }),
            _ => json!({ "ttl_ms": 1 }),
        };
        let opened = client.call("session/open", open).expect("a new one");
        let process = self.shell(
            &mut client,
            "exec sleep 1000",
            &json!({ "session": opened["session"] }),
        );
        drop(client);
        let record = watcher.wait(&process);
        assert_eq!(record["outcome"], "cancelled", "{record}");
    }

    fn half_a_line(&mut self) {
        match self.below(4) {
            // Before it has said who it is.
            0 => {
                let mut client = LineClient::silent(&self.socket);
                client.try_say(b"{\"jsonrpc\":", Some(DEADLINE));
            }
            // In the middle of a request, with others that wait.
            1 => {
                let mut client = self.connect();
                let process = self.shell(&mut client, "exec sleep 0.05", &json!({}));
                client.ask("process/wait", json!({ "process": process }));
                client.ask(
                    "process/read",
                    json!({ "process": process, "after_seq": 99, "wait_ms": 3_600_000 }),
                );
                client.try_say(
                    b"{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"process/st",
                    Some(DEADLINE),
                );
            }
            // With an answer on its way that nobody reads.
            2 => {
                let mut client = self.connect();
                client.ask("process/list", json!({}));
                let start = json!({ "argv": ["true"], "cwd": self.work, "policy": "unconfined" });
                client.ask("process/start", start);
                self.count("start");
            }
            _ => {
                let mut client = self.connect();
                for _ in 0..16 {
                    client.try_say(b"nonsense\n", Some(DEADLINE));
                }
                while client.hear().is_some() {}
            }
        }
    }

    fn twice(&mut self) {
        let mut client = self.connect();
        let mut params = json!({ "argv": ["true"], "cwd": self.work, "policy": "unconfined" });
        params["request_id"] = json!(self.word());
        self.count("start");
        let first = client
            .call("process/start", params.clone())
            .expect("it is accepted");
        let again = client
            .call("process/start", params.clone())
            .expect("it is the same");
        // A word of the warm-up's is not one of the churn's: there it was a repetition already.
        assert_eq!(
            (&first["process"], true),
            (&again["process"], again["repeated"] == true)
        );
        params["argv"] = json!(["false"]);
        let error = client.call("process/start", params).expect_err("another command");
        assert_eq!(error["data"]["kind"], "conflict", "{error}");
    }

    fn failures(&mut self) {
        let mut client = self.connect();
        let process = self.start(&mut client, json!(["/nonexistent/program"]), &json!({}));
        let record = client.wait(&process);
        assert_eq!(record["outcome"], "spawn_failed", "{record}");
        for (key, value) in [("policy", "none-such"), ("cwd", "/nonexistent"), ("name", "a b")] {
            let mut params = json!({ "argv": ["true"], "cwd": self.work });
            params[key] = json!(value);
            client
                .call("process/start", params)
                .expect_err("it cannot be used");
        }
        let unknown = json!({ "process": "00000000-0000-7000-8000-000000000000" });
        let error = client.call("process/wait", unknown).expect_err("there is none");
        assert_eq!(error["data"]["kind"], "not_found", "{error}");
    }

    fn prune(&mut self) {
        let mut client = self.connect();
        client
            .call("policy/check", json!({ "policy": "read-only", "cwd": self.work }))
            .expect("a preset");
        client
            .call("process/list", json!({ "live": true }))
            .expect("it is served");
        // Those of other lanes are asked for until then.
        client
            .call("process/prune", json!({ "older_than_ms": 1000 }))
            .expect("it is served");
    }
}
