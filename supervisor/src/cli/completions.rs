//! `provost completions`.

use clap::CommandFactory;

use super::CliResult;
use super::args::{Args, CompletionsArgs};

pub(super) fn run(args: &CompletionsArgs) -> CliResult {
    clap_complete::generate(
        args.shell,
        &mut Args::command(),
        "provost",
        &mut std::io::stdout(),
    );
    Ok(0)
}
