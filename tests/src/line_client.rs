//! The plainest client: writes lines, reads lines.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::DEADLINE;

/// A connection to a daemon on which anything can be said.
#[derive(Debug)]
pub struct LineClient {
    reader: BufReader<UnixStream>,
    next: u64,
    notified: VecDeque<Value>,
    /// Answers that came before they were waited for.
    answered: HashMap<u64, Value>,
}

impl LineClient {
    /// Connects, and says nothing.
    pub fn silent(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("a daemon listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        Self {
            reader: BufReader::new(stream),
            next: 0,
            notified: VecDeque::new(),
            answered: HashMap::new(),
        }
    }

    /// Connects and introduces itself.
    pub fn connect(socket: &Path) -> Self {
        let mut client = Self::silent(socket);
        let answer = client.call("initialize", json!({ "protocol": 1, "client": "test" }));
        assert_eq!(answer.expect("it is served")["protocol"], 1);
        client
    }

    /// Connects as root to root's daemon, and is handed to this user's instance.
    pub fn connect_for(socket: &Path, uid: u32) -> Self {
        let mut client = Self::silent(socket);
        let params = json!({ "protocol": 1, "client": "test", "user": uid.to_string() });
        let answer = client.call("initialize", params).expect("it is served");
        assert_eq!(answer["uid"], uid);
        client
    }

    /// The socket.
    pub fn stream(&self) -> &UnixStream {
        self.reader.get_ref()
    }

    /// Writes bytes; false if the other side is gone, or takes nothing for so long.
    pub fn try_say(&mut self, bytes: &[u8], patience: Option<Duration>) -> bool {
        self.stream().set_write_timeout(patience).expect("a deadline");
        self.stream().write_all(bytes).is_ok()
    }

    /// Writes a line.
    pub fn say(&mut self, line: &str) {
        assert!(
            self.try_say(format!("{line}\n").as_bytes(), Some(DEADLINE)),
            "the daemon takes no more"
        );
    }

    /// The next line; nothing when the daemon has closed the connection.
    pub fn hear(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).expect("the daemon speaks JSON")),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
            Err(error) => panic!("the daemon says nothing: {error}"),
        }
    }

    /// Everything that it still says until the connection ends. A line that it could not finish is none.
    pub fn last_words(mut self) -> Vec<Value> {
        let mut lines = Vec::new();
        loop {
            let mut line = Vec::new();
            match self.reader.read_until(b'\n', &mut line) {
                Ok(_) if line.ends_with(b"\n") => {
                    lines.push(serde_json::from_slice(&line).expect("the daemon speaks JSON"));
                }
                Ok(_) => return lines,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return lines,
                Err(error) => panic!("the daemon says nothing: {error}"),
            }
        }
    }

    /// The next line as it is written.
    pub fn hear_text(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("a line");
        line
    }

    /// Asks; the id.
    pub fn ask(&mut self, method: &str, params: Value) -> u64 {
        self.next += 1;
        let id = self.next;
        self.say(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string());
        id
    }

    /// The answer to a request, whatever comes before it.
    pub fn answer(&mut self, id: u64) -> Result<Value, Value> {
        loop {
            if let Some(line) = self.answered.remove(&id) {
                return match line.get("result") {
                    Some(result) => Ok(result.clone()),
                    None => Err(line["error"].clone()),
                };
            }
            let line = self.hear().expect("an answer before the connection ends");
            if line["method"].is_string() {
                self.notified.push_back(line);
            } else if let Some(other) = line["id"].as_u64() {
                self.answered.insert(other, line);
            }
        }
    }

    /// Asks, and waits for the answer.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Value, Value> {
        let id = self.ask(method, params);
        self.answer(id)
    }

    /// The next notification.
    pub fn notified(&mut self) -> Option<Value> {
        match self.notified.pop_front() {
            Some(notification) => Some(notification),
            None => self.hear(),
        }
    }

    /// Starts a shell script with a standard input, under the policy `unconfined`; its id.
    pub fn start(&mut self, script: &str) -> String {
        let params = json!({
            "argv": ["sh", "-c", script], "cwd": "/", "policy": "unconfined", "stdin": true,
        });
        let started = self.call("process/start", params).expect("it starts");
        started["process"].as_str().expect("an id").to_owned()
    }

    /// Everything that a process has written to its standard output, and every event.
    pub fn read_all(&mut self, process: &str) -> (Vec<u8>, Vec<Value>) {
        let (mut bytes, mut all) = (Vec::new(), Vec::new());
        loop {
            let after = all.last().map_or(json!(0), |event: &Value| event["seq"].clone());
            let params = json!({ "process": process, "after_seq": after });
            let read = self.call("process/read", params).expect("it is known");
            let events = read["events"].as_array().expect("events");
            for event in events.iter().filter(|event| event["stream"] == "stdout") {
                let data = event["data"].as_str().unwrap_or_default();
                bytes.extend(base64_simd::STANDARD.decode_to_vec(data).expect("base64"));
            }
            all.extend(events.iter().cloned());
            if events.is_empty() {
                return (bytes, all);
            }
        }
    }

    /// Waits until so many bytes of a process's standard output are there; all its events so far.
    pub fn read_until(&mut self, process: &str, bytes: usize) -> Vec<Value> {
        loop {
            let (out, events) = self.read_all(process);
            if out.len() >= bytes {
                return events;
            }
            let last = events.last().map_or(json!(0), |event| event["seq"].clone());
            let params =
                json!({ "process": process, "after_seq": last, "wait_ms": 60_000, "max_bytes": 1 });
            let waited = self.call("process/read", params).expect("it is known");
            assert_ne!(waited["events"], json!([]), "it says nothing");
        }
    }

    /// Waits until a process has ended; its record.
    pub fn wait(&mut self, process: &str) -> Value {
        let waited = self.call("process/wait", json!({ "process": process }));
        waited.expect("it is known")["record"].clone()
    }
}
