//! 256 MiB of output through the library to its consumer, against a plain reader of a pipe.

use std::io::Read;
use std::process::Stdio;
use std::time::Instant;

use provost::{EventBody, Policy};

use crate::Result;
use crate::measure::{Side, take_turns};
use crate::options::Options;
use crate::report::{Budget, Row};
use crate::setting::{PROVOST, Setting, expect_success, plain};

const ROUNDS: usize = 20;
const BYTES: u64 = 256 << 20;
/// Writes BYTES in blocks of 64 KiB.
pub(crate) const WRITER: [&str; 5] = ["/bin/dd", "if=/dev/zero", "bs=64K", "count=4096", "status=none"];

pub(crate) fn rows(setting: &Setting, options: &Options) -> Result<Vec<Row>> {
    let confined = setting.policy("workspace-write")?;
    let command_line: Vec<&str> = [PROVOST, "run", "--"].into_iter().chain(WRITER).collect();
    let sides = vec![
        Side::timed("plain reader of a pipe", || read_plainly(setting, &WRITER)),
        Side::timed("256 MiB, library, workspace-write", || {
            consume(setting, confined.clone())
        }),
        Side::timed("256 MiB, library, unconfined", || {
            consume(setting, Policy::unconfined())
        }),
        Side::new("256 MiB, provost run, to a reader of a pipe", || {
            let begin = Instant::now();
            read_plainly(setting, &command_line)?;
            Ok(begin.elapsed())
        }),
    ];
    let samples = take_turns(options.rounds(ROUNDS), sides)?;
    let plain = &samples[0];
    Ok(vec![
        Row::new(&samples[1], plain, Budget::SpeedAtLeast(0.8)),
        Row::new(&samples[2], plain, Budget::SpeedAtLeast(0.8)),
        Row::new(&samples[3], plain, Budget::Speed),
    ])
}

pub(crate) fn read_plainly(setting: &Setting, argv: &[&str]) -> Result<()> {
    let mut child = plain(argv, setting.directory())?.stdout(Stdio::piped()).spawn()?;
    let mut pipe = child.stdout.take().ok_or("no pipe")?;
    let mut buffer = vec![0; 64 * 1024];
    let mut bytes = 0;
    loop {
        match pipe.read(&mut buffer)? {
            0 => break,
            read => bytes += read as u64,
        }
    }
    let status = child.wait()?;
    expect_all(bytes)?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("the writer ended with {status}").into())
    }
}

fn consume(setting: &Setting, policy: Policy) -> Result<()> {
    let process = setting.start(setting.spec(&WRITER, policy))?;
    setting.runtime.block_on(async {
        let mut events = process.events_paced();
        let mut bytes = 0;
        while let Some(event) = events.next().await? {
            if let EventBody::Output { data, .. } = event.body {
                bytes += data.len() as u64;
            }
        }
        expect_all(bytes)?;
        expect_success(process.record().await?.as_ref())
    })
}

pub(crate) fn expect_all(bytes: u64) -> Result<()> {
    if bytes == BYTES {
        Ok(())
    } else {
        Err(format!("{bytes} of {BYTES} bytes came").into())
    }
}
