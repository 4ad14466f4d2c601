//! Ratios: Provost against the plain way of doing the same, both measured within one run.
//!
//! A machine has good and bad moments, so absolute times of different runs say little about each other. Here both
//! sides take turns, sample by sample, and what counts is the ratio of their medians. Beside it stands the
//! budget.
//!
//! ```text
//! cargo bench --bench ratios                          everything, as the user who runs it
//! cargo bench --bench ratios -- --quick               a tenth of the samples
//! cargo bench --bench ratios -- --only spawn          one family: spawn, cli, output, denials, kill, daemon, exits,
//!                                                     in-flight, daemon-output, jobs
//! cargo bench --bench ratios -- --as-user NAME        everything again as another user (as root)
//! cargo bench --bench ratios -- --workers 2           the library in a runtime of two worker threads, not one
//! cargo bench --bench ratios -- --json                one object per line instead of the table
//! ```

mod bare_spawner;
mod cli;
mod daemon;
mod denials;
mod jobs;
mod kill;
mod measure;
mod options;
mod output;
mod queues;
mod report;
mod setting;
mod spawn;

use std::process::ExitCode;

use options::Options;
use report::Row;
use setting::Setting;

/// What goes wrong here goes wrong for the person who reads the terminal.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A family of measurements.
type Family = fn(&Setting, &Options) -> Result<Vec<Row>>;

const FAMILIES: [(&str, Family); 10] = [
    ("spawn", spawn::rows),
    ("cli", cli::rows),
    ("output", output::rows),
    ("denials", denials::rows),
    ("kill", kill::rows),
    ("daemon", daemon::latency),
    ("exits", daemon::exits),
    ("in-flight", daemon::in_flight),
    ("daemon-output", daemon::output),
    ("jobs", jobs::rows),
];

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let result = match words.next().as_deref() {
        // The program that is supervised when connects are measured is this one, too.
        Some(denials::CONNECT_ROLE) => denials::connect_and_report(words),
        _ => Options::parse(std::env::args().skip(1)).and_then(|options| run(&options)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ratios: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let setting = Setting::new(options)?;
    if !options.json {
        println!("{}", setting.describe());
    }
    let mut rows = Vec::new();
    for (name, family) in FAMILIES {
        if options.wants(name) {
            eprintln!("measuring: {name}");
            rows.extend(family(&setting, options)?);
        }
    }
    report::print(&rows, options.json);
    setting::again_as_other_users(options)
}
