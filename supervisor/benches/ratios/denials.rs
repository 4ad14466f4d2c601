//! What a refused connect costs the program that tries, and an allowed one.
//!
//! The program is this bench in another role; it times its own loop, so that its start does not count.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use provost::{EventBody, Policy};

use crate::Result;
use crate::measure::{Side, take_turns};
use crate::options::Options;
use crate::report::{Budget, Row};
use crate::setting::{Setting, expect_success, plain};

/// `ratios --connect ADDRESS COUNT ok|refused`: connects so often, and prints the nanoseconds it took.
pub(crate) const CONNECT_ROLE: &str = "--connect";

const ROUNDS: usize = 10;
const DENIED: u32 = 10_000;
const ALLOWED: u32 = 1_000;

pub(crate) fn rows(setting: &Setting, options: &Options) -> Result<Vec<Row>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let open = listener.local_addr()?;
    std::thread::spawn(move || {
        // Ends with the process; a connection is closed as soon as it came.
        for connection in listener.incoming() {
            drop(connection);
        }
    });
    let closed = closed_port()?;
    let off = setting.policy("workspace-write")?;
    let mut allowing = off.clone();
    allowing.net.allow.push(open.to_string().parse()?);
    let sides = vec![
        Side::new("bare connect to a closed port", || {
            bare(setting, closed, DENIED, "refused")
        }),
        Side::new("denied connect", || {
            supervised(setting, off.clone(), closed, DENIED, "refused")
        }),
        Side::new("bare connect", || bare(setting, open, ALLOWED, "ok")),
        Side::new("allowed connect, performed on behalf", || {
            supervised(setting, allowing.clone(), open, ALLOWED, "ok")
        }),
    ];
    let samples = take_turns(options.rounds(ROUNDS), sides)?;
    Ok(vec![
        Row::new(&samples[1], &samples[0], Budget::Time).of(DENIED),
        Row::new(&samples[3], &samples[2], Budget::Time).of(ALLOWED),
    ])
}

/// A loopback port that nobody listens on.
fn closed_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn words(address: SocketAddr, count: u32, wanted: &str) -> Result<Vec<String>> {
    let own = std::env::current_exe()?.to_string_lossy().into_owned();
    Ok(vec![
        own,
        CONNECT_ROLE.to_owned(),
        address.to_string(),
        count.to_string(),
        wanted.to_owned(),
    ])
}

fn bare(setting: &Setting, address: SocketAddr, count: u32, wanted: &str) -> Result<Duration> {
    let words = words(address, count, wanted)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let output = plain(&words, setting.directory())?
        .stdout(std::process::Stdio::piped())
        .output()?;
    nanoseconds(&output.stdout)
}

fn supervised(
    setting: &Setting,
    policy: Policy,
    address: SocketAddr,
    count: u32,
    wanted: &str,
) -> Result<Duration> {
    let words = words(address, count, wanted)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let process = setting.start(setting.spec(&words, policy))?;
    setting.runtime.block_on(async {
        let mut events = process.events();
        let mut said = Vec::new();
        while let Some(event) = events.next().await? {
            if let EventBody::Output { data, .. } = event.body {
                said.extend_from_slice(&data);
            }
        }
        let record = process.record().await?;
        expect_success(&record)
            .map_err(|error| format!("{error}: {}", String::from_utf8_lossy(&said)))?;
        let denials = if wanted == "refused" { u64::from(count) } else { 0 };
        if record.denials.total != denials {
            return Err(format!("{} of {denials} denials recorded", record.denials.total).into());
        }
        nanoseconds(&said)
    })
}

fn nanoseconds(said: &[u8]) -> Result<Duration> {
    let text = String::from_utf8_lossy(said);
    let number = text.trim().parse().map_err(|_| format!("it said {text:?}"))?;
    Ok(Duration::from_nanos(number))
}

/// The program's side.
pub(crate) fn connect_and_report(mut words: impl Iterator<Item = String>) -> Result<()> {
    let mut word = || words.next().ok_or("--connect wants ADDRESS COUNT ok|refused");
    let (address, count, wanted) = (word()?.parse::<SocketAddr>()?, word()?.parse::<u32>()?, word()?);
    let begin = Instant::now();
    for _ in 0..count {
        let connected = TcpStream::connect(address);
        if connected.is_ok() != (wanted == "ok") {
            return Err(format!("connect: {connected:?}, but {wanted} was wanted").into());
        }
    }
    println!("{}", begin.elapsed().as_nanos());
    Ok(())
}
