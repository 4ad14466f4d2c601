//! `provost man`.

use clap::CommandFactory;

use super::CliResult;
use super::args::{Args, ManArgs};

pub(super) fn run(args: &ManArgs) -> CliResult {
    let directory = &args.directory;
    clap_mangen::generate_to(Args::command(), directory)
        .map_err(|error| format!("cannot write to {}: {error}", directory.display()))?;
    Ok(0)
}
