//! Many tellers at once under one daemon, by one client that is cut off again and again and misses nothing.
//!
//! The client keeps what a careful one keeps: the word of each request to start, the last number that it has heard of each
//! process, and whether its input was acknowledged. With that it goes on after the daemon has died, and in the end holds
//! what it heard against what the log says and against the truth.

use std::collections::{HashMap, HashSet};
use std::fmt;

use base64_simd::STANDARD;
use serde_json::{Value, json};

use crate::random::Random;
use crate::truth::Teller;
use crate::{LineClient, Served, World, keeper, program};

/// What was seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Count {
    /// Processes that were followed to their end and found to be right.
    pub processes: u64,
    /// Bytes of their output, each of which was in its place.
    pub bytes: u64,
    /// Bytes that they had written, where that can be known.
    pub wanted: u64,
    /// Gaps that were told in the place of output.
    pub gaps: u64,
    /// Their terminal records.
    pub records: u64,
    /// Their events.
    pub events: u64,
    /// Calls that were refused, each of which is known once.
    pub denials: u64,
    /// Starts that were asked for again after a crash and answered with the process of before.
    pub repeated: u64,
    /// Processes that lived when their keeper was killed.
    pub shaken: u64,
    /// Starts that a crash caught before anything came of them.
    pub caught: u64,
    /// Inputs of which nobody knows whether they were written.
    pub uncertain: u64,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} processes, {} records, {} events, {} denials, {} bytes checked, {} gaps, {} bytes lost, {} duplicates; \
             {} starts repeated, {} caught before they began, {} inputs uncertain, {} of a keeper that was killed",
            self.processes,
            self.records,
            self.events,
            self.denials,
            self.bytes,
            self.gaps,
            self.wanted.saturating_sub(self.bytes),
            self.bytes.saturating_sub(self.wanted),
            self.repeated,
            self.caught,
            self.uncertain,
            self.shaken,
        )
    }
}

/// The load.
#[derive(Debug)]
pub struct Load<'w> {
    world: &'w World,
    random: Random,
    live_max: usize,
    next: u64,
    tellers: HashMap<u64, Followed>,
    /// Every process there should be.
    known: HashSet<String>,
    client: Option<LineClient>,
    asked: HashMap<u64, (u64, Asked)>,
    subscriptions: HashMap<u64, u64>,
    /// The keeper was killed before this teller was asked for, and none of those after it is known to run.
    without_keeper: Option<u64>,
    /// What was seen so far.
    pub count: Count,
}

#[derive(Debug)]
struct Followed {
    teller: Teller,
    process: Option<String>,
    heard: Vec<Value>,
    /// The same, read from the log at the end.
    logged: Vec<Value>,
    /// Its start was answered by the daemon that it was first asked of.
    acknowledged: bool,
    written: bool,
    uncertain: bool,
    /// Its keeper was killed: it may have died at any point.
    shaken: bool,
}

#[derive(Debug, Clone, Copy)]
enum Asked {
    Start,
    Follow,
    Write,
    Read,
}

impl<'w> Load<'w> {
    /// So many at a time.
    pub fn new(world: &'w World, random: Random, live_max: usize) -> Self {
        Self {
            world,
            random,
            live_max,
            next: 0,
            tellers: HashMap::new(),
            known: HashSet::new(),
            client: None,
            asked: HashMap::new(),
            subscriptions: HashMap::new(),
            without_keeper: None,
            count: Count::default(),
        }
    }

    /// Goes on with this daemon: asks for everything that was not answered, and follows from where it was.
    pub fn connect(&mut self, served: &Served) {
        self.client = Some(LineClient::connect(served.socket()));
        let mut numbers: Vec<u64> = self.tellers.keys().copied().collect();
        numbers.sort_unstable();
        for number in numbers {
            self.ask(number, Asked::Start);
        }
        self.fill();
    }

    /// Hears so many more events, while new tellers take the place of those that ended; less if the daemon dies.
    pub fn go_on(&mut self, events: u64) {
        let until = self.heard() + events;
        while self.heard() < until && self.hear() {
            self.fill();
        }
    }

    /// The daemon has died: what it had said before is still heard.
    pub fn lost(&mut self) {
        for line in self.client.take().map(LineClient::last_words).unwrap_or_default() {
            // What it would be asked next nobody answers.
            self.take(&line);
        }
        self.asked.clear();
        self.subscriptions.clear();
    }

    /// The client dies instead: its connection ends at once.
    pub fn leave(&mut self) {
        self.client = None;
        self.asked.clear();
        self.subscriptions.clear();
    }

    /// Kills the keeper, if one of the commands still tells which it is. Of what lives now nobody can know how it would have
    /// ended, nor of what is asked of a daemon that may not have noticed.
    pub fn kill_keeper(&mut self) -> bool {
        let work = self.world.work();
        let mut live = self.tellers.values().filter_map(|followed| {
            let pid = followed.heard.first()?["pid"].as_u64()?;
            // It may have ended, and the number may be another's.
            let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
            (cwd == work).then_some(pid)
        });
        let killed = live.any(keeper::kill_keeper_of);
        if killed {
            self.without_keeper = Some(self.next);
            for followed in self.tellers.values_mut() {
                followed.shaken = true;
            }
        }
        killed
    }

    /// Starts no more, and waits until all have ended. Then the daemon must know these processes and no others.
    pub fn finish(&mut self) {
        self.live_max = 0;
        while !self.tellers.is_empty() {
            assert!(self.hear(), "the daemon ended");
        }
        let client = self.client.as_mut().expect("a daemon");
        let listed = client.call("process/list", json!({})).expect("a list");
        let listed = listed.as_array().expect("a list");
        for process in listed {
            assert_eq!(process["live"], false, "{process}");
            let id = process["process"].as_str().expect("an id");
            assert!(self.known.remove(id), "listed twice, or nobody's: {process}");
        }
        assert!(self.known.is_empty(), "not known any more: {:?}", self.known);
    }

    fn heard(&self) -> u64 {
        let live: usize = self.tellers.values().map(|followed| followed.heard.len()).sum();
        self.count.events + live as u64
    }

    fn fill(&mut self) {
        while self.tellers.len() < self.live_max {
            let number = self.next;
            self.next += 1;
            let teller = Teller::random(format!("t{number}"), &mut self.random);
            let followed = Followed {
                written: teller.input.is_none(),
                teller,
                process: None,
                heard: Vec::new(),
                logged: Vec::new(),
                acknowledged: false,
                uncertain: false,
                shaken: self.without_keeper.is_some(),
            };
            self.tellers.insert(number, followed);
            self.ask(number, Asked::Start);
        }
    }

    /// False when the daemon is gone.
    fn hear(&mut self) -> bool {
        let Some(line) = self.client.as_mut().and_then(LineClient::hear) else {
            return false;
        };
        self.take(&line);
        true
    }

    fn ask(&mut self, number: u64, what: Asked) {
        let Some(client) = &mut self.client else { return };
        let followed = &self.tellers[&number];
        let process = &followed.process;
        let (method, params) = match what {
            Asked::Start => {
                let cwd = self.world.work();
                ("process/start", followed.teller.start(&program("teller"), &cwd))
            }
            Asked::Follow => {
                let after = followed.heard.len();
                (
                    "process/follow",
                    json!({ "process": process, "after_seq": after }),
                )
            }
            Asked::Write => {
                let input = followed.teller.input.as_deref().unwrap_or_default();
                let (offset, data) = match followed.uncertain {
                    true => (input.len(), String::new()),
                    false => (0, STANDARD.encode_to_string(input)),
                };
                let params =
                    json!({ "process": process, "data": data, "offset": offset, "close": true });
                ("process/write", params)
            }
            Asked::Read => {
                let after = followed.logged.len();
                ("process/read", json!({ "process": process, "after_seq": after }))
            }
        };
        let id = client.ask(method, params);
        self.asked.insert(id, (number, what));
    }

    fn take(&mut self, line: &Value) {
        if line["method"] == "process/event" {
            let subscription = line["params"]["subscription"].as_u64().expect("a number");
            let number = self.subscriptions[&subscription];
            self.event(number, &line["params"]["event"]);
        } else if let Some(id) = line["id"].as_u64() {
            let (number, what) = self.asked.remove(&id).expect("an answer to a question");
            self.answer(number, what, line);
        }
    }

    fn event(&mut self, number: u64, event: &Value) {
        let followed = self.tellers.get_mut(&number).expect("it is followed");
        followed.heard.push(event.clone());
        assert_eq!(
            event["seq"],
            followed.heard.len(),
            "followers miss and repeat nothing"
        );
        if event["type"] == "started" && self.without_keeper.is_some_and(|killed| number >= killed) {
            self.without_keeper = None;
        }
        if event["type"] == "terminal" {
            self.ask(number, Asked::Read);
        }
    }

    fn answer(&mut self, number: u64, what: Asked, line: &Value) {
        let (result, error) = (&line["result"], &line["error"]);
        let Some(followed) = self.tellers.get_mut(&number) else {
            // Answers come in any order, this one behind the end of its process.
            return assert!(matches!(what, Asked::Write), "{what:?}: {line}");
        };
        match what {
            Asked::Start => {
                let process = result["process"].as_str();
                let process = process.unwrap_or_else(|| panic!("it starts: {line}")).to_owned();
                if let Some(before) = followed.process.replace(process.clone()) {
                    assert_eq!(process, before, "one start for one word");
                    assert_eq!(result["repeated"], true, "{line}");
                }
                followed.acknowledged |= result["repeated"] == false;
                self.count.repeated += u64::from(result["repeated"] == true);
                self.known.insert(process);
                let is_over = followed
                    .heard
                    .last()
                    .is_some_and(|last| last["type"] == "terminal");
                followed.logged.clear();
                self.ask(number, if is_over { Asked::Read } else { Asked::Follow });
            }
            Asked::Follow => {
                let subscription = result["subscription"].as_u64();
                let subscription = subscription.unwrap_or_else(|| panic!("it is followed: {line}"));
                self.subscriptions.insert(subscription, number);
                if !followed.written {
                    self.ask(number, Asked::Write);
                }
            }
            Asked::Write if error["data"]["kind"] == "uncertain" => {
                assert!(!followed.uncertain, "what was uncertain is over: {line}");
                followed.uncertain = true;
                self.count.uncertain += 1;
                self.ask(number, Asked::Write);
            }
            Asked::Write => {
                // Its end of input came to it before, or nothing comes to it any more: the check will tell.
                let was_told = result.is_object() || error["data"]["kind"] == "ended" || followed.shaken;
                assert!(was_told, "it takes its input: {line}");
                followed.written = true;
            }
            Asked::Read => {
                let events = result["events"].as_array();
                let events = events.unwrap_or_else(|| panic!("it is read: {line}"));
                followed.logged.extend(events.iter().cloned());
                match result["ended"] == true {
                    true => self.check(number),
                    false => self.ask(number, Asked::Read),
                }
            }
        }
    }

    fn check(&mut self, number: u64) {
        let followed = self.tellers.remove(&number).expect("it was asked for");
        for (heard, logged) in followed.heard.iter().zip(&followed.logged) {
            assert_eq!(
                heard, logged,
                "what was heard before a crash is what is there after it"
            );
        }
        assert_eq!(followed.heard.len(), followed.logged.len());
        let (uncertain, acknowledged) = (followed.uncertain, followed.acknowledged);
        let teller = &followed.teller;
        let checked = match followed.shaken {
            true => teller.check_shaken(&followed.logged),
            false => teller.check(&followed.logged, uncertain, acknowledged),
        };
        self.count.shaken += u64::from(followed.shaken);
        self.count.processes += 1;
        self.count.caught += u64::from(checked.caught);
        self.count.denials += checked.denials;
        self.count.bytes += checked.bytes;
        self.count.wanted += checked.wanted;
        self.count.gaps += checked.gaps;
        self.count.records += checked.records;
        self.count.events += checked.events;
    }
}
