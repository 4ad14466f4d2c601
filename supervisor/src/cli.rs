//! The command line: flags in, exit code out. One verb, one file.

mod args;
mod ask;
mod client;
mod completions;
mod config;
mod db;
mod doctor;
mod environment;
mod man;
mod output;
mod policy;
mod records;
mod replace;
mod report;
mod report_file;
mod run;
mod screen;
mod serve;
mod signals;
mod sink;
mod summary;
mod target;
mod tty;
mod up;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use policy::rendered;

use std::process::ExitCode;

use provost_sandbox::keeper::{fork_spawner, words};

/// Provost itself failed, or there is no record.
pub(crate) const EXIT_PROVOST: u8 = 125;
/// The time was up: the command's own, or that of whoever waits for it.
pub(crate) const EXIT_TIMED_OUT: u8 = 124;

/// The whole command line.
pub fn main() -> ExitCode {
    // As long as nothing has happened here.
    let spawner = words().is_some_and(run::is_simple).then(fork_spawner).flatten();
    let args = match args::Args::read() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            // Help and version are what was asked for; anything else is a misuse of Provost's, not the command's.
            return if error.use_stderr() {
                ExitCode::from(EXIT_PROVOST)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    // The daemon logs as it is configured.
    if !matches!(args.verb, args::Verb::Serve(_)) {
        set_up_tracing();
    }
    let result = match args.verb {
        args::Verb::Run(run) => match misspelt_option(&run.command, std::env::args_os(), "run") {
            Some(option) => Err(option),
            None => run::run(*run, spawner),
        },
        args::Verb::Up(up) => up::run(*up),
        args::Verb::Client(verb) => client::run(verb),
        args::Verb::Serve(serve) => serve::run(serve),
        args::Verb::Records(records) => records::run(*records),
        args::Verb::Db(db) => db::run(db),
        args::Verb::Policy(policy) => policy::run(policy),
        args::Verb::Report(asked) => report::run(&asked),
        args::Verb::Doctor(doctor) => doctor::run(&doctor),
        args::Verb::Completions(completions) => completions::run(&completions),
        args::Verb::Man(man) => man::run(&man),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::error(&error);
            ExitCode::from(EXIT_PROVOST)
        }
    }
}

/// A command that begins with a hyphen is a misspelt option of ours, unless it stands behind `--`.
fn misspelt_option(
    command: &[std::ffi::OsString],
    mut arguments: impl Iterator<Item = std::ffi::OsString>,
    verb: &str,
) -> Option<String> {
    let first = command.first()?;
    if !first.as_encoded_bytes().starts_with(b"-") {
        return None;
    }
    let before = arguments.find(|argument| argument == "--" || argument == first)?;
    (before != "--").then(|| {
        format!(
            "unknown option {}; see `provost {verb} --help`, or write `--` before a command of that name",
            first.display()
        )
    })
}

/// A runtime with so many worker threads; with none this thread does everything.
pub(crate) fn runtime(workers: usize) -> Result<tokio::runtime::Runtime, String> {
    use tokio::runtime::Builder;
    let mut builder = match workers {
        0 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    if workers > 0 {
        builder.worker_threads(workers);
    }
    // What is done each second would keep as many threads as a burst once needed: they take turns.
    builder.thread_keep_alive(std::time::Duration::from_millis(500));
    let built = builder.enable_all().build();
    built.map_err(|error| format!("cannot start the runtime: {error}"))
}

/// What went wrong before there was a process, in words.
pub(crate) type CliResult = Result<u8, String>;

/// `PROVOST_LOG=debug` shows what Provost does; by default only warnings.
fn set_up_tracing() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("PROVOST_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .try_init();
}
