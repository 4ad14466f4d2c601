//! The same through a daemon's socket, against the library and the plain way.

use std::io::Read;
use std::process::{Child, Command, Stdio};

use provost::client::Client;
use provost::protocol::{Started, Waited};
use provost::{EventBody, Policy};
use serde_json::json;

use crate::Result;
use crate::measure::{Side, take_turns};
use crate::options::Options;
use crate::output::{WRITER, expect_all, read_plainly};
use crate::report::{Budget, Row};
use crate::setting::{PROVOST, Setting, expect_success, plain, run_plain};

const ROUNDS: usize = 1000;
const TRUE: [&str; 1] = ["/bin/true"];
/// At the same time, and in all.
const IN_FLIGHT: usize = 16;
const MANY: usize = 64;

/// A daemon of our own.
struct Served {
    child: Child,
    _directory: tempfile::TempDir,
    client: Client,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Served {
    fn start(setting: &Setting) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("socket");
        #[allow(clippy::disallowed_methods)] // it is no command under supervision
        let mut command = Command::new(PROVOST);
        command
            .args(["serve", "--socket"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        // The first thing that it says is that it listens.
        let mut first = [0];
        child.stderr.as_mut().ok_or("no pipe")?.read_exact(&mut first)?;
        let client = setting.runtime.block_on(Client::connect(&socket))?;
        Ok(Self {
            child,
            _directory: directory,
            client,
        })
    }

    async fn run(client: Client, setting: (&Setting, &[&str]), policy: &Policy) -> Result<()> {
        let (setting, argv) = setting;
        let start =
            json!({ "argv": argv, "cwd": setting.directory(), "env": {}, "prepared_policy": policy });
        let started: Started = client.call("process/start", &start).await?;
        let waited: Waited = client
            .call("process/wait", &json!({ "process": started.process }))
            .await?;
        expect_success(waited.record.as_deref().ok_or("no record")?)
    }
}

pub(crate) fn rows(setting: &Setting, options: &Options) -> Result<Vec<Row>> {
    let confined = setting.policy("workspace-write")?;
    let served = Served::start(setting)?;
    let client = || served.client.clone();
    let runtime = &setting.runtime;
    let mut bare = plain(&TRUE, setting.directory())?;
    let sides = vec![
        Side::timed("spawn → record, library", || {
            setting.run(setting.spec(&TRUE, confined.clone())).map(drop)
        }),
        Side::timed("start → record at a client, workspace-write", || {
            runtime.block_on(Served::run(client(), (setting, &TRUE), &confined))
        }),
    ];
    let samples = take_turns(options.rounds(ROUNDS), sides)?;
    let mut rows = vec![Row::new(&samples[1], &samples[0], Budget::TimeAtMost(2.5))];
    let sides = vec![
        Side::timed("a loop of spawns", || {
            (0..MANY).try_for_each(|_| run_plain(&mut bare))
        }),
        Side::timed("start → record, 16 in flight, unconfined", || {
            many(setting, &client(), &Policy::unconfined())
        }),
        Side::timed("start → record, 16 in flight, workspace-write", || {
            many(setting, &client(), &confined)
        }),
    ];
    let samples = take_turns(options.rounds(ROUNDS / 20), sides)?;
    let each = u32::try_from(MANY)?;
    rows.push(Row::new(&samples[1], &samples[0], Budget::SpeedAtLeast(0.7)).of(each));
    rows.push(Row::new(&samples[2], &samples[0], Budget::Speed).of(each));
    let sides = vec![
        Side::timed("plain reader of a pipe", || read_plainly(setting, &WRITER)),
        Side::timed("256 MiB to a client, workspace-write", || {
            runtime.block_on(consume(&client(), setting, &confined))
        }),
    ];
    let samples = take_turns(options.rounds(20), sides)?;
    rows.push(Row::new(&samples[1], &samples[0], Budget::SpeedAtLeast(0.4)));
    Ok(rows)
}

fn many(setting: &Setting, client: &Client, policy: &Policy) -> Result<()> {
    setting.runtime.block_on(async {
        let lanes = (0..IN_FLIGHT).map(|_| async {
            for _ in 0..MANY / IN_FLIGHT {
                Served::run(client.clone(), (setting, &TRUE), policy).await?;
            }
            Ok(())
        });
        futures_util::future::join_all(lanes).await.into_iter().collect()
    })
}

async fn consume(client: &Client, setting: &Setting, policy: &Policy) -> Result<()> {
    let start = json!({
        "argv": WRITER, "cwd": setting.directory(), "env": {}, "prepared_policy": policy, "max_output": 8 << 20,
    });
    let started: Started = client.call("process/start", &start).await?;
    let follow = json!({ "process": started.process, "paced": true });
    let mut followed = client.follow("process/follow", &follow).await?;
    let mut bytes = 0;
    while let Some(event) = followed.next().await {
        match event.body {
            EventBody::Output { data, .. } => bytes += data.len() as u64,
            EventBody::Gap { bytes: missing, .. } => {
                return Err(format!("{missing} bytes are missing").into());
            }
            _ => {}
        }
    }
    expect_all(bytes)
}
