//! Killing a tree of 1,000 sleepers, to the record, against `cgroup.kill` until the group is empty.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use provost::{EventBody, Outcome, Policy};

use crate::Result;
use crate::measure::{Side, take_turns};
use crate::options::Options;
use crate::report::{Budget, Row};
use crate::setting::{Setting, plain};

const ROUNDS: usize = 10;
/// Says so when all of them run.
const SLEEPERS: &str =
    "i=0; while [ $i -lt 1000 ]; do sleep 1000 & i=$((i+1)); done; echo ready; exec sleep 1000";
const PATH: &str = "/usr/bin:/bin";

pub(crate) fn rows(setting: &Setting, options: &Options) -> Result<Vec<Row>> {
    let Some(group) = Group::new() else {
        eprintln!("ratios: no cgroup v2 to write to, nothing to compare a kill with");
        return Ok(Vec::new());
    };
    let confined = setting.policy("workspace-write")?;
    let sides = vec![
        Side::new("cgroup.kill until empty", || by_group(setting, &group)),
        Side::new("kill 1,000 → record, workspace-write", || {
            by_handle(setting, confined.clone())
        }),
        Side::new("kill 1,000 → record, unconfined", || {
            by_handle(setting, Policy::unconfined())
        }),
    ];
    let samples = take_turns(options.rounds(ROUNDS), sides)?;
    Ok(vec![
        Row::new(&samples[1], &samples[0], Budget::TimeAtMost(1.5)),
        Row::new(&samples[2], &samples[0], Budget::TimeAtMost(1.5)),
    ])
}

fn by_handle(setting: &Setting, policy: Policy) -> Result<Duration> {
    let mut spec = setting.spec(&["/bin/sh", "-c", SLEEPERS], policy);
    spec.env = vec![("PATH".into(), PATH.into())];
    let process = setting.start(spec)?;
    setting.runtime.block_on(async {
        let mut events = process.events();
        loop {
            match events.next().await?.ok_or("it ended too early")?.body {
                EventBody::Output { .. } => break,
                EventBody::Terminal { record } => return Err(format!("{record:?}").into()),
                _ => {}
            }
        }
        let begin = Instant::now();
        process.kill("measured").await?;
        let record = process.record().await?;
        let taken = begin.elapsed();
        if record.outcome != Outcome::Cancelled || record.tree.killed < 1000 {
            return Err(format!("{:?}, {} killed", record.outcome, record.tree.killed).into());
        }
        Ok(taken)
    })
}

fn by_group(setting: &Setting, group: &Group) -> Result<Duration> {
    let script = format!("echo $$ > {}; {SLEEPERS}", group.0.join("cgroup.procs").display());
    let mut child = plain(&["/bin/sh", "-c", &script], setting.directory())?
        .env("PATH", PATH)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut ready = [0; 6];
    child.stdout.take().ok_or("no pipe")?.read_exact(&mut ready)?;
    let begin = Instant::now();
    fs::write(group.0.join("cgroup.kill"), "1")?;
    child.wait()?;
    group.wait_until_empty()?;
    Ok(begin.elapsed())
}

/// A group of our own below the one we are in.
struct Group(PathBuf);

impl Group {
    fn new() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        let mount = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields.get(2) == Some(&"cgroup2"))?
            .get(1)
            .map(PathBuf::from)?;
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let path = mount
            .join(own)
            .join(format!("provost-ratios-{}", std::process::id()));
        fs::create_dir(&path).ok()?;
        Some(Self(path))
    }

    fn wait_until_empty(&self) -> Result<()> {
        let mut events = fs::File::open(self.0.join("cgroup.events"))?;
        loop {
            let mut text = String::new();
            std::io::Seek::rewind(&mut events)?;
            events.read_to_string(&mut text)?;
            if text.contains("populated 0") {
                return Ok(());
            }
            let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&events), PollFlags::POLLPRI)];
            poll(&mut fds, PollTimeout::NONE)?;
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let path: &Path = &self.0;
        let _ = fs::remove_dir(path);
    }
}
