//! Many small commands, eight at a time: fanned out by the library, and as durable jobs of a daemon, against `xargs -P`.

use std::io::Write;
use std::process::Stdio;

use futures_util::{StreamExt, TryStreamExt, stream};
use provost::Policy;
use provost::protocol::{JobsSubmitted, JobsWaited};
use serde_json::json;

use crate::Result;
use crate::daemon::Served;
use crate::measure::{Side, take_turns};
use crate::options::Options;
use crate::report::{Budget, Row};
use crate::setting::{Setting, expect_success, plain};

const ROUNDS: usize = 20;
const TRUE: &str = "/bin/true";
const MANY: usize = 1000;
const AT_A_TIME: usize = 8;

pub(crate) fn rows(setting: &Setting, options: &Options) -> Result<Vec<Row>> {
    let served = Served::start(setting, true)?;
    let runtime = &setting.runtime;
    let group = json!({ "group": "bench", "limit": AT_A_TIME });
    let _: serde_json::Value = runtime.block_on(served.client.call("job/group", &group))?;
    let sides = vec![
        Side::timed("xargs -P 8", || xargs(setting)),
        Side::timed("1,000 processes, 8 at a time, library", || fan_out(setting)),
        Side::timed("1,000 durable jobs, 8 at a time", || {
            runtime.block_on(jobs(setting, &served))
        }),
    ];
    let samples = take_turns(options.rounds(ROUNDS), sides)?;
    let row = |ours: usize, budget| Row::new(&samples[ours], &samples[0], budget).of(MANY as u32);
    Ok(vec![
        row(1, Budget::SpeedAtLeast(1.0)),
        row(2, Budget::SpeedAtLeast(0.7)),
    ])
}

fn xargs(setting: &Setting) -> Result<()> {
    let at_a_time = AT_A_TIME.to_string();
    let argv = ["/usr/bin/xargs", "-P", &at_a_time, "-n", "1", TRUE];
    let mut child = plain(&argv, setting.directory())?.stdin(Stdio::piped()).spawn()?;
    let mut items = child.stdin.take().ok_or("no pipe")?;
    items.write_all("x\n".repeat(MANY).as_bytes())?;
    drop(items);
    match child.wait()? {
        status if status.success() => Ok(()),
        status => Err(format!("xargs: {status}").into()),
    }
}

fn fan_out(setting: &Setting) -> Result<()> {
    let one = |_| async {
        let spec = setting.spec(&[TRUE, "x"], Policy::unconfined());
        let process = setting.supervisor.spawn(spec).await?;
        expect_success(process.record().await?.as_ref())
    };
    let all = stream::iter(0..MANY).map(one).buffer_unordered(AT_A_TIME);
    setting.runtime.block_on(all.try_collect())
}

async fn jobs(setting: &Setting, served: &Served) -> Result<()> {
    let asked = json!({
        "spec": {
            "argv": [TRUE, "x"], "cwd": setting.directory(), "env": {}, "prepared_policy": Policy::unconfined(),
        },
        "group": "bench",
        "jobs": vec![json!({}); MANY],
    });
    let submitted: JobsSubmitted = served.client.call("job/submit", &asked).await?;
    let jobs: Vec<_> = submitted.jobs.iter().map(|job| job.job).collect();
    let waited: JobsWaited = served.client.call("job/wait", &json!({ "jobs": jobs })).await?;
    let succeeded = |job: &provost::protocol::JobInfo| job.end.as_ref().is_some_and(|end| end.succeeded);
    match waited.jobs.iter().filter(|job| succeeded(job)).count() {
        MANY => Ok(()),
        fewer => Err(format!("{fewer} of {MANY} succeeded").into()),
    }
}
