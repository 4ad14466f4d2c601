//! Standard input across crashes: what was acknowledged was written once, and what may have been is said.

use std::fs::File;

use base64_simd::STANDARD;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use provost_tests::random::Random;
use provost_tests::{LineClient, Served, World, both_users};
use serde_json::{Value, json};

const LINES: u64 = 1500;
/// Each goes into the pipe whole or not at all.
const LINE_BYTES: u64 = 1024;
/// So many of them has a pipe room for.
const PIPE_LINES: u64 = 64;
/// Writes on their way at a time.
const WRITES_MAX: usize = 20;
const KILLS: u64 = 8;

fn line(number: u64) -> String {
    format!(
        "{number} {:.<1$}\n",
        "",
        LINE_BYTES as usize - 2 - number.to_string().len()
    )
}

fn write(client: &mut LineClient, process: &str, number: u64) -> u64 {
    let data = STANDARD.encode_to_string(line(number));
    let params = json!({ "process": process, "data": data, "offset": number * LINE_BYTES });
    client.ask("process/write", params)
}

/// Where the input is, by a write of nothing.
fn place(client: &mut LineClient, process: &str) -> u64 {
    let params = json!({ "process": process, "data": "" });
    let written = client.call("process/write", params).expect("it lives");
    written["offset"].as_u64().expect("an offset")
}

fn i8_each_acknowledged_line_comes_once_and_each_other_at_most_once_and_is_called_uncertain(
    world: &World,
) {
    let mut random = Random::new(u64::from(std::process::id()));
    let mut served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let gate = world.path("work/gate");
    mkfifo(&gate, Mode::S_IRWXU).expect("a new name");
    world.give_away(&gate, 0o600);
    // A shell reads byte by byte, and forks: most of the time the pipe is full, and a write is under way. At the first kill
    // that is certain, for nothing is read before.
    let gated = gate.display();
    let process = client.start(&format!(
        ": <{gated}; while read number rest; do echo $number; (:); done"
    ));
    // Of each line: whether nobody knows that it was written.
    let mut uncertain = vec![false; LINES as usize];
    let mut acknowledged = 0;
    for kill in 0..=KILLS {
        let until = match kill {
            0 => PIPE_LINES,
            KILLS => LINES,
            _ => LINES * kill / KILLS + random.below(LINES / KILLS),
        };
        // Sent and not answered, in order.
        let mut asked: Vec<u64> = Vec::new();
        let mut next = acknowledged;
        while acknowledged < until {
            while asked.len() < WRITES_MAX && next < LINES {
                asked.push(write(&mut client, &process, next));
                next += 1;
            }
            let written = client.answer(asked.remove(0)).expect("it is written");
            acknowledged += 1;
            assert_eq!(written["offset"], acknowledged * LINE_BYTES);
        }
        if kill == KILLS {
            break;
        }
        client.call("daemon/status", json!({})).expect("it is served");
        served.crash();
        for said in client.last_words() {
            if asked.contains(&said["id"].as_u64().unwrap_or(0)) {
                let offset = said["result"]["offset"].as_u64().expect("it is written");
                acknowledged = acknowledged.max(offset / LINE_BYTES);
            }
        }
        served = Served::start(world);
        client = LineClient::connect(served.socket());
        if kill == 0 {
            File::options().write(true).open(&gate).expect("it is waited for");
        }
        if acknowledged == LINES {
            continue;
        }
        let again = write(&mut client, &process, acknowledged);
        match client.answer(again) {
            Ok(written) => acknowledged = written["offset"].as_u64().expect("an offset") / LINE_BYTES,
            Err(refused) => {
                assert_eq!(refused["data"]["kind"], "uncertain", "{refused}");
                assert_eq!(refused["code"], -32013);
                let there = place(&mut client, &process) / LINE_BYTES;
                // One line is written at a time.
                assert_eq!(there, acknowledged_or_done(&refused) / LINE_BYTES + 1);
                for number in acknowledged..there {
                    uncertain[number as usize] = true;
                }
                acknowledged = there;
            }
        }
    }
    let end = json!({ "process": process, "data": "", "close": true });
    client.call("process/write", end).expect("it lives");
    let record = client.wait(&process);
    assert_eq!(record["outcome"], "exited", "{record}");
    let (out, _) = client.read_all(&process);
    let out = String::from_utf8(out).expect("text");
    let mut came = out.lines();
    let mut missing = 0;
    let mut held = came.next();
    for number in 0..LINES {
        if held == Some(number.to_string().as_str()) {
            held = came.next();
        } else {
            assert!(
                uncertain[number as usize],
                "line {number} was lost; {held:?} is there"
            );
            missing += 1;
        }
    }
    assert_eq!(held, None, "what was never written, or twice");
    let doubtful = uncertain.iter().filter(|doubtful| **doubtful).count();
    assert!(doubtful > 0, "no write was under way at any kill");
    println!("{LINES} lines, {KILLS} kills, {doubtful} called uncertain, {missing} of them not written");
}

/// What is certain, as the refusal says: `bytes FROM to TO may or may not …`.
fn acknowledged_or_done(refused: &Value) -> u64 {
    let why = refused["data"]["why"].as_str().expect("a reason");
    let from = why.split(' ').nth(1).expect("a number");
    from.parse().expect("a number")
}

fn i8_the_end_of_the_input_that_was_acknowledged_comes_though_the_daemon_dies(world: &World) {
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let processes: Vec<String> = (0..10).map(|_| client.start("exec cat")).collect();
    for process in &processes {
        let params = json!({ "process": process, "data": "aGVsbG8K", "offset": 0, "close": true });
        client.call("process/write", params).expect("it reads");
    }
    served.crash();
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    for process in &processes {
        let record = client.wait(process);
        assert_eq!(record["exit_code"], 0, "{record}");
        assert_eq!(client.read_all(process).0, b"hello\n");
    }
}

both_users!(
    i8_each_acknowledged_line_comes_once_and_each_other_at_most_once_and_is_called_uncertain,
    i8_the_end_of_the_input_that_was_acknowledged_comes_though_the_daemon_dies,
);
