//! What a `teller` was asked to do, and so what must be known of it afterwards, whatever died meanwhile.
//!
//! Everything that it writes follows from its words: numbered lines, each with a checksum. So the truth about a process is
//! known without asking anybody who could have lost it.

use serde_json::{Value, json};

use crate::random::Random;

/// One line of a teller's: its word, a number, and a checksum of both.
pub fn line(word: &str, number: u64) -> String {
    let told = format!("{word} {number}");
    format!("{told} {:08x}\n", crc32fast::hash(told.as_bytes()))
}

/// What a teller that reads its standard input says of it.
pub fn read(word: &str, input: &[u8]) -> String {
    format!("{word} read {} {:08x}\n", input.len(), crc32fast::hash(input))
}

/// The word of the process that a teller leaves behind.
pub fn left_behind(word: &str) -> String {
    format!("{word}-left")
}

/// Refused calls of one confined teller, at most.
const DENIED_MAX: u64 = 5;

/// One teller.
#[derive(Debug, Clone)]
pub struct Teller {
    /// Its word, which is also that of the request to start it.
    pub word: String,
    /// Lines that it writes.
    pub lines: u64,
    /// How long it waits after each ten of them.
    pub pause_ms: u16,
    /// Its exit code.
    pub code: i32,
    /// It runs in a sandbox.
    pub confined: bool,
    /// How many connections it attempts that are refused there.
    pub denied: u64,
    /// It leaves a process in a session of its own behind, which writes as many lines to stderr and is waited for.
    pub leaves: bool,
    /// It reads its standard input to the end before it ends.
    pub input: Option<Vec<u8>>,
}

/// What was found to be right of one process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checked {
    /// Bytes of output.
    pub bytes: u64,
    /// Bytes that it had written, where that can be known.
    pub wanted: u64,
    /// Gaps that were told in the place of output.
    pub gaps: u64,
    /// Terminal records.
    pub records: u64,
    /// Events.
    pub events: u64,
    /// Denials.
    pub denials: u64,
    /// What a crash caught before anything came of it.
    pub caught: bool,
}

impl Teller {
    /// Any one.
    pub fn random(word: String, random: &mut Random) -> Self {
        let kind = random.below(5);
        // Whatever it does besides.
        let confined = random.below(3) == 0;
        Self {
            input: (kind == 1).then(|| random.bytes(200)),
            confined,
            denied: if confined { random.below(DENIED_MAX + 1) } else { 0 },
            leaves: kind == 3,
            lines: 10 + random.below(if kind == 4 { 4000 } else { 200 }),
            pause_ms: if kind == 4 { 1 } else { 1 + random.below(40) as u16 },
            code: random.below(120) as i32,
            word,
        }
    }

    /// What `process/start` is told.
    pub fn start(&self, program: &str, cwd: &std::path::Path) -> Value {
        let mut argv = vec![
            program.to_owned(),
            self.word.clone(),
            self.lines.to_string(),
            self.pause_ms.to_string(),
            self.code.to_string(),
            self.denied.to_string(),
        ];
        if self.leaves {
            argv.push("leave".to_owned());
        }
        if self.input.is_some() {
            argv.push("read".to_owned());
        }
        let policy = if self.confined {
            "workspace-write"
        } else {
            "unconfined"
        };
        json!({
            "request_id": self.word, "argv": argv, "cwd": cwd, "policy": policy, "stdin": self.input.is_some(),
            "tree": if self.leaves { "wait" } else { "kill" }, "max_output": 1 << 20, "drain_ms": 10_000,
        })
    }

    /// Its standard output, if its input came to it.
    fn stdout(&self, came: bool) -> String {
        let mut all: String = (0..self.lines).map(|number| line(&self.word, number)).collect();
        if let Some(input) = &self.input {
            all.push_str(&read(&self.word, if came { input } else { &[] }));
        }
        all
    }

    fn stderr(&self) -> String {
        let word = left_behind(&self.word);
        let lines = if self.leaves { self.lines } else { 0 };
        (0..lines).map(|number| line(&word, number)).collect()
    }

    /// The same where its keeper was killed: it ended wherever it was, but what is said of it is true.
    ///
    /// # Panics
    /// It is not.
    pub fn check_shaken(&self, events: &[Value]) -> Checked {
        let about = || format!("{self:?}\n{}", shown(events));
        for (index, event) in events.iter().enumerate() {
            assert_eq!(event["seq"], index + 1, "a hole in the numbers of {}", about());
        }
        let count = |kind: &str| events.iter().filter(|event| event["type"] == kind).count() as u64;
        assert_eq!(count("terminal"), 1, "one record: {}", about());
        let record = &events.last().expect("the terminal event")["record"];
        match record["outcome"].as_str() {
            Some("exited") => assert_eq!(record["exit_code"], self.code, "{}", about()),
            Some("signaled") => assert_eq!(record["signal"], "SIGKILL", "{}", about()),
            Some("spawn_failed") => assert_eq!(count("started"), 0, "{}", about()),
            other => assert_eq!(other, Some("lost"), "{}", about()),
        }
        assert!(count("denial") <= self.denied, "{}", about());
        let (stdout, stderr) = (bytes(events, "stdout"), bytes(events, "stderr"));
        let told = [true, false].map(|came| self.stdout(came));
        assert!(told.iter().any(|told| told.starts_with(&stdout)), "{}", about());
        assert!(self.stderr().starts_with(&stderr), "{}", about());
        Checked {
            bytes: (stdout.len() + stderr.len()) as u64,
            wanted: (stdout.len() + stderr.len()) as u64,
            gaps: count("gap"),
            records: count("terminal"),
            events: events.len() as u64,
            denials: count("denial"),
            caught: false,
        }
    }

    /// Holds all events of it, the last of which is the terminal one, against the truth. `uncertain`: nobody knows whether
    /// its input came to it. `acknowledged`: its start was.
    ///
    /// # Panics
    /// Something was lost, or is there twice, or is not true.
    pub fn check(&self, events: &[Value], uncertain: bool, acknowledged: bool) -> Checked {
        if let ([only], false) = (events, acknowledged) {
            // A start that was caught before anything came of it: exactly that is said.
            assert_eq!(only["record"]["outcome"], "spawn_failed", "{only}");
            let reason = only["record"]["reason"].as_str().expect("a reason");
            assert!(reason.ends_with("nothing ran"), "{only}");
            return Checked {
                events: 1,
                records: 1,
                caught: true,
                ..Checked::default()
            };
        }
        let about = || format!("{self:?}\n{}", shown(events));
        for (index, event) in events.iter().enumerate() {
            assert_eq!(event["seq"], index + 1, "a hole in the numbers of {}", about());
        }
        let count = |kind: &str| events.iter().filter(|event| event["type"] == kind).count() as u64;
        assert_eq!(count("terminal"), 1, "one record: {}", about());
        assert_eq!(count("started"), 1, "one start: {}", about());
        assert_eq!(count("exited"), 1, "one exit: {}", about());
        assert_eq!(count("gap"), 0, "nothing is missing: {}", about());
        assert_eq!(count("denial"), self.denied, "every denial once: {}", about());
        let record = &events.last().expect("the terminal event")["record"];
        assert_eq!(record["outcome"], "exited", "{}", about());
        assert_eq!(record["exit_code"], self.code, "{}", about());
        assert_eq!(record["denials"]["total"], self.denied, "{}", about());
        assert_eq!(record["last_seq"], events.len(), "{}", about());
        let stdout = bytes(events, "stdout");
        let came = !uncertain || stdout == self.stdout(true);
        let (wanted_stdout, wanted_stderr) = (self.stdout(came), self.stderr());
        assert_eq!(stdout, wanted_stdout, "stdout of {}", about());
        let stderr = bytes(events, "stderr");
        assert_eq!(stderr, wanted_stderr, "stderr of {}", about());
        let told = |stream: &str| record["output"][stream]["bytes"].as_u64();
        assert_eq!(told("stdout"), Some(stdout.len() as u64), "{}", about());
        assert_eq!(told("stderr"), Some(stderr.len() as u64), "{}", about());
        Checked {
            bytes: (stdout.len() + stderr.len()) as u64,
            wanted: (wanted_stdout.len() + wanted_stderr.len()) as u64,
            gaps: count("gap"),
            records: count("terminal"),
            events: events.len() as u64,
            denials: count("denial"),
            caught: false,
        }
    }
}

/// The bytes of a stream; each must begin where the one before it ended.
fn bytes(events: &[Value], stream: &str) -> String {
    let mut all = Vec::new();
    for event in events
        .iter()
        .filter(|event| event["type"] == "output" && event["stream"] == stream)
    {
        assert_eq!(
            event["offset"],
            all.len(),
            "{stream} goes on where it was: {}",
            shown(events)
        );
        let data = event["data"].as_str().expect("base64");
        all.extend(base64_simd::STANDARD.decode_to_vec(data).expect("base64"));
    }
    String::from_utf8(all).expect("text")
}

/// Events without what they carry, for whoever reads a failure.
fn shown(events: &[Value]) -> String {
    let words = events.iter().map(|event| {
        let mut event = event.clone();
        if let Some(fields) = event.as_object_mut() {
            fields.remove("process");
            fields.remove("sandbox");
            if let Some(data) = fields.remove("data") {
                fields.insert("length".to_owned(), data.as_str().map_or(0, str::len).into());
            }
        }
        event.to_string()
    });
    words.collect::<Vec<_>>().join("\n")
}
