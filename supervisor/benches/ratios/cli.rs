//! The whole command line, from its exec to its end, against bubblewrap with the same kind of policy.

use crate::Result;
use crate::measure::{Side, take_turns};
use crate::options::Options;
use crate::report::{Budget, Row};
use crate::setting::{PROVOST, Setting, bubblewrap, plain, run_plain};

const ROUNDS: usize = 200;
const TRUE: &str = "/bin/true";

pub(crate) fn rows(setting: &Setting, options: &Options) -> Result<Vec<Row>> {
    let directory = setting.directory();
    let Some(bubblewrap) = bubblewrap(directory, &[TRUE]) else {
        eprintln!("ratios: no bwrap here, nothing to compare the command line with");
        return Ok(Vec::new());
    };
    let mut bubblewrap = bubblewrap?;
    let mut confined = plain(&[PROVOST, "run", "--", TRUE], directory)?;
    let mut unconfined = plain(&[PROVOST, "run", "-p", "unconfined", "--", TRUE], directory)?;
    let sides = vec![
        Side::timed("bwrap", move || run_plain(&mut bubblewrap)),
        Side::timed("provost run -- true", move || run_plain(&mut confined)),
        Side::timed("provost run -p unconfined -- true", move || {
            run_plain(&mut unconfined)
        }),
    ];
    let samples = take_turns(options.rounds(ROUNDS), sides)?;
    Ok(vec![
        Row::new(&samples[1], &samples[0], Budget::TimeAtMost(1.0)),
        Row::new(&samples[2], &samples[0], Budget::Time),
    ])
}
