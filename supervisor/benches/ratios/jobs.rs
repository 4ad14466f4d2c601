//! Many small commands, eight at a time: fanned out by the library, and as durable jobs of a daemon, against `xargs -P`, which pays
//! for the commands alone, and beside the [queues](crate::queues) that people use.

use futures_util::{StreamExt, TryStreamExt, stream};
use provost::Policy;
use provost::protocol::{JobsSubmitted, JobsWaited};
use serde_json::json;

use crate::bare_spawner::BareSpawner;
use crate::daemon::Served;
use crate::measure::{Side, take_turns};
use crate::options::Options;
use crate::report::{Budget, Row};
use crate::setting::{Setting, expect_success};
use crate::{Result, queues};

const ROUNDS: usize = 20;
const TRUE: &str = "/bin/true";
const MANY: usize = 1000;
pub(crate) const AT_A_TIME: usize = 8;
/// So many times [`MANY`], to see whether each costs more among many.
const TIMES: usize = 10;

pub(crate) fn rows(setting: &Setting, options: &Options) -> Result<Vec<Row>> {
    let served = Served::start(setting, true)?;
    let runtime = &setting.runtime;
    let group = json!({ "group": "bench", "limit": AT_A_TIME });
    let _: serde_json::Value = runtime.block_on(served.client.call("job/group", &group))?;
    let confined = setting.policy("workspace-write")?;
    let open = Policy::unconfined();
    let (served, confined, open) = (&served, &confined, &open);
    let library = |name: &str, policy| {
        let name = format!("1,000 processes, library, {name}");
        Side::timed(name, move || fan_out(setting, policy))
    };
    let durable = |name: &str, policy| {
        let name = format!("1,000 durable jobs, {name}");
        Side::timed(name, move || runtime.block_on(jobs(setting, served, policy, 1)))
    };
    let mut spawner = BareSpawner::new(setting, confined.clone())?;
    let mut sides = vec![
        queues::xargs(setting, &[TRUE], MANY)?,
        library("unconfined", open),
        library("workspace-write", confined),
        durable("unconfined", open),
        durable("workspace-write", confined),
        Side::timed("1,000 by the spawner alone, workspace-write", move || {
            spawner.run_many(&[TRUE, "x"], MANY, AT_A_TIME)
        }),
    ];
    let ours = sides.len();
    sides.extend(queues::xargs_of_bubblewrap(setting, &[TRUE], MANY));
    sides.extend(queues::parallel(setting, &[TRUE], MANY));
    let samples = take_turns(options.rounds(ROUNDS), sides)?;
    let row = |ours: usize, budget| Row::new(&samples[ours], &samples[0], budget).of(MANY as u32);
    let mut rows = vec![
        row(1, Budget::SpeedAtLeast(1.0)),
        row(2, Budget::Speed),
        row(3, Budget::Speed),
        row(4, Budget::SpeedAtLeast(0.7)),
        row(5, Budget::Speed),
    ];
    rows.extend((ours..samples.len()).map(|peer| row(peer, Budget::Speed)));
    if let Some(peer) = samples.iter().find(|side| side.name == queues::XARGS_BWRAP) {
        rows.push(Row::new(&samples[4], peer, Budget::Speed).of(MANY as u32));
    }
    let more = take_turns(
        3,
        vec![
            queues::xargs(setting, &[TRUE], MANY * TIMES)?,
            Side::timed("10,000 durable jobs, workspace-write", || {
                runtime.block_on(jobs(setting, served, confined, TIMES))
            }),
        ],
    )?;
    rows.push(Row::new(&more[1], &more[0], Budget::Speed).of((MANY * TIMES) as u32));
    if let Some(pueue) = queues::pueue(setting, &[TRUE])? {
        let few = take_turns(1, vec![queues::xargs(setting, &[TRUE], queues::FEW)?, pueue])?;
        rows.push(Row::new(&few[1], &few[0], Budget::Speed).of(queues::FEW as u32));
    }
    Ok(rows)
}

fn fan_out(setting: &Setting, policy: &Policy) -> Result<()> {
    let one = |_| async {
        let spec = setting.spec(&[TRUE, "x"], policy.clone());
        let process = setting.supervisor.spawn(spec).await?;
        expect_success(process.record().await?.as_ref())
    };
    let all = stream::iter(0..MANY).map(one).buffer_unordered(AT_A_TIME);
    setting.runtime.block_on(all.try_collect())
}

/// All are submitted before any is waited for.
async fn jobs(setting: &Setting, served: &Served, policy: &Policy, times: usize) -> Result<()> {
    let asked = json!({
        "spec": {
            "argv": [TRUE, "x"], "cwd": setting.directory(), "env": {}, "prepared_policy": policy,
        },
        "group": "bench",
        "jobs": vec![json!({}); MANY],
    });
    let mut submitted = Vec::new();
    for _ in 0..times {
        let batch: JobsSubmitted = served.client.call("job/submit", &asked).await?;
        submitted.push(batch.jobs.iter().map(|job| job.job).collect::<Vec<_>>());
    }
    for jobs in submitted {
        let waited: JobsWaited = served.client.call("job/wait", &json!({ "jobs": jobs })).await?;
        let succeeded =
            |job: &provost::protocol::JobInfo| job.end.as_ref().is_some_and(|end| end.succeeded);
        let count = waited.jobs.iter().filter(|job| succeeded(job)).count();
        if count != MANY {
            return Err(format!("{count} of {MANY} succeeded").into());
        }
    }
    Ok(())
}
