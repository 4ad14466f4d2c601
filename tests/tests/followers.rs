//! Two hundred processes that flood, and a crowd that follows one of them at every pace.

use provost::EventBody;
use provost::client::Followed;
use provost_tests::asking::{block_on, call, connect, follow};
use provost_tests::{LineClient, Served, World, both_users};
use serde_json::{Value, json};
use tokio::task::JoinSet;

const PROCESSES: usize = 200;
/// What each writes: 200 × 256 KiB/s is 50 MiB/s, with a bit of everything to follow.
const PIECE: u64 = 26_214;
const PIECES: u64 = 20;
/// Of the crowd, those that read, those that stop acknowledging, and those that do not even read their socket.
const READING: usize = 40;
const STANDING: usize = 12;
const DEAF: usize = 12;
/// What the daemon may hold at most while all of that goes on.
const MEMORY_MAX: u64 = 256 << 20;

/// Follows to the end: every byte is there or counted as a gap, as the record has it.
async fn whole(mut followed: Followed) {
    let (mut seen, mut record) = (0, None);
    while let Some(event) = followed.next().await {
        match event.body {
            EventBody::Output { data, .. } => seen += data.len() as u64,
            EventBody::Gap { bytes, .. } => seen += bytes,
            EventBody::Terminal { record: sealed } => record = Some(sealed),
            _ => {}
        }
    }
    let record = record.expect("every process has its record");
    let bytes = record.output.values().map(|stream| stream.bytes).sum::<u64>();
    assert_eq!(seen, bytes, "every byte is there or counted");
    assert_eq!(bytes, PIECES * PIECE);
}

/// The same of a client that reads lines.
fn whole_by_line(mut client: LineClient) {
    let mut seen = 0;
    while let Some(line) = client.notified() {
        let event = &line["params"]["event"];
        match event["type"].as_str() {
            Some("output") => {
                let data = event["data"].as_str().expect("base64");
                let data = base64_simd::STANDARD.decode_to_vec(data).expect("base64");
                seen += data.len() as u64;
            }
            Some("gap") => seen += event["bytes"].as_u64().expect("a number"),
            Some("terminal") => break,
            _ => {}
        }
    }
    assert_eq!(seen, PIECES * PIECE, "every byte is there or counted");
}

fn i3_two_hundred_floods_and_a_crowd_of_followers_of_which_some_stand_still(world: &World) {
    let served = Served::start(world);
    block_on(async {
        let client = connect(&served).await;
        let script = format!(
            "import os, time\nfor i in range({PIECES}): os.write(1, b'x' * {PIECE}); time.sleep(0.1)"
        );
        let mut processes = Vec::new();
        for _ in 0..PROCESSES {
            let params = json!({ "argv": ["python3", "-SEc", script], "cwd": world.work() });
            let started: Value = call(&client, "process/start", params).await;
            processes.push(started["process"].as_str().expect("an id").to_owned());
        }
        let (mut standing, mut deaf, mut followers) = (Vec::new(), Vec::new(), JoinSet::new());
        for _ in 0..STANDING {
            standing.push(follow(&connect(&served).await, &processes[0], 0).await);
        }
        for _ in 0..DEAF {
            let mut client = LineClient::connect(served.socket());
            client.ask("process/follow", json!({ "process": processes[0] }));
            deaf.push(client);
        }
        for _ in 0..READING {
            followers.spawn(whole(follow(&connect(&served).await, &processes[0], 0).await));
        }
        for process in &processes {
            followers.spawn(whole(follow(&client, process, 0).await));
        }
        let mut peak = 0;
        while let Some(done) = followers.join_next().await {
            done.expect("no follower panics");
            peak = peak.max(served.memory());
        }
        assert!(peak < MEMORY_MAX, "the daemon had {} MiB", peak >> 20);
        println!("{} MiB at most", peak >> 20);
        // Those who stood still get their rest, or are told what they lack.
        for followed in standing {
            whole(followed).await;
        }
        deaf.into_iter().for_each(whole_by_line);
    });
}

both_users!(i3_two_hundred_floods_and_a_crowd_of_followers_of_which_some_stand_still);
