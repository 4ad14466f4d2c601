//! The same through a daemon's socket, against the library and the plain way.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
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

/// A daemon of our own. With a state directory, everything that it acknowledges is written down first.
pub(crate) struct Served {
    child: Child,
    _directory: tempfile::TempDir,
    pub(crate) client: Client,
}

impl Drop for Served {
    fn drop(&mut self) {
        // Asked to, it ends its keeper, too.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

impl Served {
    pub(crate) fn start(setting: &Setting, durable: bool) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("socket");
        #[allow(clippy::disallowed_methods)] // it is no command under supervision
        let mut command = Command::new(PROVOST);
        command.arg("serve").arg("--socket").arg(&socket);
        match durable {
            true => command.arg("--state-dir").arg(directory.path().join("state")),
            false => command.arg("--no-state"),
        };
        command.stdin(Stdio::null()).stderr(Stdio::piped());
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

    async fn start_process(&self, setting: &Setting, argv: &[&str], policy: &Policy) -> Result<Started> {
        let start =
            json!({ "argv": argv, "cwd": setting.directory(), "env": {}, "prepared_policy": policy });
        Ok(self.client.call("process/start", &start).await?)
    }

    async fn wait(&self, process: &Started) -> Result<()> {
        let asked = json!({ "process": process.process });
        let waited: Waited = self.client.call("process/wait", &asked).await?;
        expect_success(waited.record.as_deref().ok_or("no record")?)
    }

    async fn run(&self, setting: &Setting, policy: &Policy) -> Result<()> {
        let started = self.start_process(setting, &TRUE, policy).await?;
        self.wait(&started).await
    }
}

pub(crate) fn latency(setting: &Setting, options: &Options) -> Result<Vec<Row>> {
    let confined = setting.policy("workspace-write")?;
    let (durable, forgetful) = (Served::start(setting, true)?, Served::start(setting, false)?);
    let runtime = &setting.runtime;
    let sides = vec![
        Side::timed("spawn → record, library", || {
            setting.run(setting.spec(&TRUE, confined.clone())).map(drop)
        }),
        Side::timed("start → record at a client, workspace-write", || {
            runtime.block_on(durable.run(setting, &confined))
        }),
        Side::timed("the same, --no-state", || {
            runtime.block_on(forgetful.run(setting, &confined))
        }),
    ];
    let samples = take_turns(options.rounds(ROUNDS), sides)?;
    Ok(vec![
        Row::new(&samples[1], &samples[0], Budget::TimeAtMost(2.5)),
        Row::new(&samples[2], &samples[0], Budget::TimeAtMost(2.5)),
    ])
}

pub(crate) fn output(setting: &Setting, options: &Options) -> Result<Vec<Row>> {
    let confined = setting.policy("workspace-write")?;
    let (durable, forgetful) = (Served::start(setting, true)?, Served::start(setting, false)?);
    let runtime = &setting.runtime;
    let sides = vec![
        Side::timed("plain reader of a pipe", || read_plainly(setting, &WRITER)),
        Side::timed("256 MiB to a client, workspace-write", || {
            runtime.block_on(consume(&durable.client, setting, &confined))
        }),
        Side::timed("256 MiB to a client, --no-state", || {
            runtime.block_on(consume(&forgetful.client, setting, &confined))
        }),
    ];
    let samples = take_turns(options.rounds(20), sides)?;
    Ok(vec![
        Row::new(&samples[1], &samples[0], Budget::SpeedAtLeast(0.4)),
        Row::new(&samples[2], &samples[0], Budget::SpeedAtLeast(0.4)),
    ])
}

/// From the exit of a command to its record at the client: the command has the only writing end of a pipe with a name, whose
/// reader is told when the kernel closes it, on the way to the exit.
pub(crate) fn exits(setting: &Setting, options: &Options) -> Result<Vec<Row>> {
    let (durable, forgetful) = (Served::start(setting, true)?, Served::start(setting, false)?);
    let path = setting.directory().join("exits");
    mkfifo(&path, Mode::from_bits_truncate(0o600))?;
    let words = path.to_string_lossy();
    let script = format!("exec 9>{words}; read -r _; exit 0");
    let plainly = || -> Result<Duration> {
        let mut command = plain(&["/bin/sh", "-c", &script], setting.directory())?;
        let mut child = command.stdin(Stdio::piped()).spawn()?;
        let exit = closed(&path)?;
        drop(child.stdin.take());
        child.wait()?;
        let told = Instant::now();
        Ok(told.saturating_duration_since(exit.join().map_err(|_| "the reader died")??))
    };
    let supervised = |served: &Served| -> Result<Duration> {
        setting.runtime.block_on(async {
            let start = json!({
                "argv": ["/bin/sh", "-c", script], "cwd": setting.directory(), "env": {},
                "prepared_policy": Policy::unconfined(), "stdin": true,
            });
            let started: Started = served.client.call("process/start", &start).await?;
            let exit = closed(&path)?;
            let waiting = served.wait(&started);
            let ending = async {
                let asked = json!({ "process": started.process, "data": "", "close": true });
                let _: serde_json::Value = served.client.call("process/write", &asked).await?;
                Ok::<_, Box<dyn std::error::Error>>(())
            };
            let (waited, ended) = futures_util::future::join(waiting, ending).await;
            let told = Instant::now();
            waited?;
            ended?;
            Ok(told.saturating_duration_since(exit.join().map_err(|_| "the reader died")??))
        })
    };
    let sides = vec![
        Side::new("exit → waitpid", plainly),
        Side::new("exit → record at a client", || supervised(&durable)),
        Side::new("exit → record at a client, --no-state", || {
            supervised(&forgetful)
        }),
    ];
    let samples = take_turns(options.rounds(ROUNDS / 2), sides)?;
    Ok(vec![
        Row::new(&samples[1], &samples[0], Budget::MicrosAtMost(300)),
        Row::new(&samples[2], &samples[0], Budget::MicrosAtMost(300)),
    ])
}

/// Tells when all who write to this pipe have closed it. The pipe has a writer when this returns.
fn closed(path: &Path) -> Result<JoinHandle<std::io::Result<Instant>>> {
    let mut pipe = std::fs::File::open(path)?;
    Ok(std::thread::spawn(move || {
        while pipe.read(&mut [0; 64])? > 0 {}
        Ok(Instant::now())
    }))
}

pub(crate) fn in_flight(setting: &Setting, options: &Options) -> Result<Vec<Row>> {
    let (durable, forgetful) = (Served::start(setting, true)?, Served::start(setting, false)?);
    let confined = setting.policy("workspace-write")?;
    let mut bare = plain(&TRUE, setting.directory())?;
    let unconfined = Policy::unconfined();
    let of = |name: &str, served, policy| Side::timed(name, move || many(setting, served, policy));
    let sides = vec![
        Side::timed("a loop of spawns", || {
            (0..MANY).try_for_each(|_| run_plain(&mut bare))
        }),
        of("16 in flight, unconfined, --no-state", &forgetful, &unconfined),
        of("16 in flight, unconfined", &durable, &unconfined),
        of("16 in flight, workspace-write, --no-state", &forgetful, &confined),
        of("16 in flight, workspace-write", &durable, &confined),
    ];
    let samples = take_turns(options.rounds(ROUNDS / 20), sides)?;
    let row = |ours: usize, other: usize, budget| {
        Row::new(&samples[ours], &samples[other], budget).of(MANY as u32)
    };
    Ok(vec![
        row(1, 0, Budget::SpeedAtLeast(0.7)),
        row(2, 1, Budget::TimeAtMost(1.5)),
        row(3, 0, Budget::Speed),
        row(4, 3, Budget::TimeAtMost(1.5)),
    ])
}

fn many(setting: &Setting, served: &Served, policy: &Policy) -> Result<()> {
    setting.runtime.block_on(async {
        let lanes = (0..IN_FLIGHT).map(|_| async {
            for _ in 0..MANY / IN_FLIGHT {
                served.run(setting, policy).await?;
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
