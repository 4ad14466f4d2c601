//! Spawn to record through the library, against a bare `posix_spawn` and `waitpid` from the same process.

use std::time::Instant;

use provost::Policy;

use crate::Result;
use crate::bare_spawner::BareSpawner;
use crate::measure::{Side, take_turns};
use crate::options::Options;
use crate::report::{Budget, Row};
use crate::setting::{Setting, bubblewrap, expect_success, run_plain};

const ROUNDS: usize = 1000;
const TRUE: [&str; 1] = ["/bin/true"];

pub(crate) fn rows(setting: &Setting, options: &Options) -> Result<Vec<Row>> {
    let kernel = setting.runtime.block_on(setting.supervisor.kernel())?;
    let confined = setting.policy("workspace-write")?;
    let held = if kernel.pid_namespace.is_yes() {
        "workspace-write"
    } else {
        "workspace-write, Landlock and seccomp alone"
    };
    let mut bare = posix_spawned();
    let mut spawner = BareSpawner::new(setting, confined.clone())?;
    let mut sides = vec![
        Side::timed("posix_spawn + waitpid", move || run_plain(&mut bare)),
        Side::timed(format!("spawn → record, {held}"), || {
            setting.run(setting.spec(&TRUE, confined.clone())).map(drop)
        }),
        Side::timed(format!("spawn → record, {held}, output followed"), || {
            followed(setting, confined.clone())
        }),
        Side::new(format!("spawn → record, {held}, at once after another"), || {
            // The second finds nothing made ahead.
            setting.run(setting.spec(&TRUE, confined.clone()))?;
            let begin = Instant::now();
            setting.run(setting.spec(&TRUE, confined.clone()))?;
            Ok(begin.elapsed())
        }),
        Side::timed("spawn → record, unconfined", || {
            setting.run(setting.spec(&TRUE, Policy::unconfined())).map(drop)
        }),
        Side::timed(format!("the spawner alone, {held}"), || spawner.run(&TRUE)),
    ];
    let bubblewrap = bubblewrap(setting.directory(), &TRUE).filter(|_| kernel.pid_namespace.is_yes());
    if let Some(bubblewrap) = bubblewrap {
        let mut bubblewrap = bubblewrap?;
        sides.push(Side::timed("bwrap", move || run_plain(&mut bubblewrap)));
    }
    let samples = take_turns(options.rounds(ROUNDS), sides)?;
    let budget = if kernel.pid_namespace.is_yes() { 2.0 } else { 1.5 };
    let bare = &samples[0];
    let mut rows = vec![
        Row::new(&samples[1], bare, Budget::TimeAtMost(budget)),
        Row::new(&samples[2], bare, Budget::TimeAtMost(budget)),
        Row::new(&samples[3], bare, Budget::Time),
        Row::new(&samples[4], bare, Budget::Time),
        Row::new(&samples[5], bare, Budget::Time),
    ];
    if let Some(bubblewrap) = samples.get(6) {
        rows.push(Row::new(&samples[1], bubblewrap, Budget::TimeAtMost(1.0)));
    }
    Ok(rows)
}

/// Nothing that would make std fork instead: no working directory, no user, no hooks.
fn posix_spawned() -> std::process::Command {
    #[allow(clippy::disallowed_methods)] // the other side of the comparison
    let mut command = std::process::Command::new(TRUE[0]);
    command.env_clear();
    command
}

/// Reads every event to the record, as a client would.
fn followed(setting: &Setting, policy: Policy) -> Result<()> {
    let process = setting.start(setting.spec(&TRUE, policy))?;
    setting.runtime.block_on(async {
        let mut events = process.events();
        while events.next().await?.is_some() {}
        expect_success(process.record().await?.as_ref())
    })
}
