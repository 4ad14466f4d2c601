//! `provost map`: one command for each of many items, as jobs of the daemon.

mod fanout;
mod gather;
mod place;
mod tally;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use super::{Connection, Reconnect, start};
use crate::ProcessId;
use crate::cli::CliResult;
use crate::cli::args::SpecArgs;
use crate::daemon::config::Surroundings;
use crate::map::{CommandTemplate, Format, HaltRule, Items, Maps, Plan, Source};
use crate::protocol::{RetryOn, RetryRule};

/// What separates the command from items that are arguments.
const SEPARATOR: &str = ":::";

/// Run a command for each of many items, so many at a time, and know what became of each
///
/// Items are arguments behind `:::`, lines (of standard input, unless something else is said), JSON lines, or rows of CSV. In the
/// command, {name} is the item's column of that name, {} all of it, {n} its number; {{ and }} are braces. What an item has never
/// becomes more than (a part of) one argument, and no shell reads it. Without any of these the item is the last argument.
///
/// Each item is a job of the daemon's: it goes on when this client is killed, and also when the daemon is. The same command with
/// --resume goes on waiting, and runs nothing again that has ended.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Exit codes:
  0 all succeeded; 1 to 100: so many did not; 101 more; 125 Provost failed, or the daemon did not
  come back; 130 interrupted (the items go on)

Examples:
  provost map -j 8 -- convert {} {}.png ::: *.jpg
  provost map --csv cats.csv --out results.csv -j 64 --timeout 1m -- ./groom --name {name}
  provost map --csv cats.csv --out results.csv --resume -- ./groom --name {name}
  find . -name '*.c' -print0 | provost map -0 --keep-order -- wc -l
  provost map --jsonl tasks.jsonl --results out --halt soon,fail=10% --retries 2 -- ./task {id}
  provost map --lines names -- sh -c 'echo \"hello $1\"' sh {}")]
pub(crate) struct MapArgs {
    #[command(flatten)]
    spec: SpecArgs,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    again: Reconnect,
    /// Items are the rows of this CSV file, whose header names the columns; - for standard input
    #[arg(long, value_name = "FILE", group = "source", help_heading = "Items")]
    csv: Option<PathBuf>,
    /// Items are the lines of this file, each a JSON value; the members of an object are its columns
    #[arg(long, value_name = "FILE", group = "source", help_heading = "Items")]
    jsonl: Option<PathBuf>,
    /// Items are the lines of this file; empty ones are none
    #[arg(long, value_name = "FILE", group = "source", help_heading = "Items")]
    lines: Option<PathBuf>,
    /// Lines end with a NUL byte
    #[arg(long = "null", short = '0', conflicts_with_all = ["csv", "jsonl"], help_heading = "Items")]
    nul: bool,
    /// The CSV file has no header; its columns are called 1, 2 …
    #[arg(long, requires = "csv", help_heading = "Items")]
    no_header: bool,
    /// What stands between the fields of CSV: one character, or `tab`
    #[arg(long, value_name = "CHARACTER", value_parser = delimiter, default_value = ",", requires = "csv", help_heading = "Items")]
    delimiter: u8,
    /// So many at a time [default: as many as there are processors]
    #[arg(long, short, value_name = "N", help_heading = "Map")]
    jobs: Option<NonZeroUsize>,
    /// Try an item again so often at most, if it fails, is killed, or takes too long
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Map")]
    retries: u32,
    /// Give up after failures: now,fail=N stops what runs, soon,fail=N lets that end; N or N%
    #[arg(long, value_name = "RULE", help_heading = "Map")]
    halt: Option<HaltRule>,
    /// In this session
    #[arg(long, value_name = "SESSION", help_heading = "Map")]
    session: Option<String>,
    /// Go on with an earlier map: with this one, or the last one of the same command and items. Nothing that has ended runs again
    #[arg(long, value_name = "ID", num_args = 0..=1, help_heading = "Map")]
    resume: Option<Option<String>>,
    /// Write a row for each item, in their order, to this file: .csv or .jsonl. It is there when all is over, and not before
    #[arg(long, short, value_name = "FILE", help_heading = "Results")]
    out: Option<PathBuf>,
    /// Write stdout, stderr and the record of each item to files in this directory, in a directory called by the item's number
    #[arg(long, value_name = "DIR", help_heading = "Results")]
    results: Option<PathBuf>,
    /// Print outputs in the order of the items, and not of their ends
    #[arg(long, short, conflicts_with_all = ["out", "results"], help_heading = "Results")]
    keep_order: bool,
    /// No progress, and no summary on stderr
    #[arg(long, short, help_heading = "Results")]
    quiet: bool,
    /// The command, and behind `:::` the items
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

fn delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        [byte] if *byte != b'"' && *byte != b'\n' && *byte != b'\r' => Ok(*byte),
        _ if text == "tab" || text == "\\t" => Ok(b'\t'),
        _ => Err("want one ASCII character that is no quote and no line end, or `tab`".to_owned()),
    }
}

pub(super) fn run(args: MapArgs) -> CliResult {
    let maps = Maps::open(&directory()?).map_err(|error| error.to_string())?;
    let (connection, again, quiet) = (args.connection.clone(), args.again.reconnect, args.quiet);
    let (plan, items) = planned(args, &maps)?;
    // What is wrong with the template or an item is told before anything starts.
    let template =
        CommandTemplate::parse(&plan.command, &items.columns).map_err(|error| error.to_string())?;
    for (number, item) in (1..).zip(&items.list) {
        template
            .expand(number, item, &items.columns)
            .map_err(|error| error.to_string())?;
    }
    let places = place::Places::open(&plan)?;
    // Whoever prints to a slow reader must still hear signals.
    let runtime = crate::cli::runtime(1)?;
    let result = runtime.block_on(async {
        let signals = fanout::signals()?;
        // Before anything is written down: without a daemon there is no map.
        let client = connection.open_lasting(again).await?;
        if !maps.journal(&plan).parent().is_some_and(Path::exists) {
            maps.create(&plan, &items).map_err(|error| error.to_string())?;
        }
        let map = fanout::Map {
            client,
            plan: &plan,
            items: &items,
            template: &template,
            journal: &maps.journal(&plan),
            places,
            quiet,
        };
        map.run(signals).await
    });
    runtime.shutdown_background();
    result
}

/// What is to be done: something new, or something to go on with.
fn planned(args: MapArgs, maps: &Maps) -> Result<(Plan, Items), String> {
    let (at_a_time, halt) = (args.jobs.map(NonZeroUsize::get), args.halt);
    let change = |plan: Plan| Plan {
        at_a_time: at_a_time.unwrap_or(plan.at_a_time),
        halt: halt.or(plan.halt),
        ..plan
    };
    if let Some(Some(id)) = &args.resume {
        if !args.command.is_empty() {
            return Err(format!(
                "--resume {id}: the map says what its command is; leave the command away, or the id"
            ));
        }
        let (plan, items) = maps.load(id).map_err(|error| error.to_string())?;
        return Ok((change(plan), items));
    }
    let resume = args.resume.is_some();
    let (plan, items) = new(args)?;
    if resume {
        match maps.find(&plan, &items).map_err(|error| error.to_string())? {
            Some(earlier) => return Ok((change(earlier), items)),
            None => crate::cli::output::note(
                "no earlier map has this command and these items; this one begins",
            ),
        }
    }
    Ok((plan, items))
}

fn new(args: MapArgs) -> Result<(Plan, Items), String> {
    let mut command = args.command.clone();
    let behind = command.iter().position(|word| word == SEPARATOR).map(|at| {
        let behind = command.split_off(at);
        behind.into_iter().skip(1).collect::<Vec<OsString>>()
    });
    if command.is_empty() {
        return Err("say the command; see `provost map --help`".to_owned());
    }
    let command = texts(command)?;
    let items = items(&args, behind)?;
    if let Some(out) = &args.out {
        Format::of(out).map_err(|why| format!("--out {why}"))?;
    }
    let mut spec = start::request(&args.spec, command.iter().map(OsString::from).collect())?;
    spec.session = args.session;
    spec.report = true;
    let usual = RetryRule::default();
    let retry = RetryRule {
        // What the daemon's death kept from starting has not run: that is made up for in any case.
        times: args.retries,
        on: match args.retries {
            0 => vec![RetryOn::Interrupted],
            _ => [&usual.on[..], &[RetryOn::Interrupted]].concat(),
        },
        ..usual
    };
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let plan = Plan {
        id: ProcessId::new().to_string(),
        command,
        columns: items.columns.clone(),
        spec,
        at_a_time: args.jobs.map_or(processors, NonZeroUsize::get),
        retry,
        halt: args.halt,
        out: args.out.map(|path| absolute(&path)).transpose()?,
        results: args.results.map(|path| absolute(&path)).transpose()?,
        keep_order: args.keep_order,
    };
    Ok((plan, items))
}

fn absolute(path: &Path) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn texts(words: Vec<OsString>) -> Result<Vec<String>, String> {
    let text = |word: OsString| {
        let say = |word: OsString| format!("{} is not UTF-8", word.display());
        word.into_string().map_err(say)
    };
    words.into_iter().map(text).collect()
}

fn items(args: &MapArgs, behind: Option<Vec<OsString>>) -> Result<Items, String> {
    let lines = if args.nul { Source::Nul } else { Source::Lines };
    let (path, source) = match (&args.csv, &args.jsonl, &args.lines) {
        (Some(path), ..) => {
            let (delimiter, header) = (args.delimiter, !args.no_header);
            (Some(path), Source::Csv { delimiter, header })
        }
        (_, Some(path), _) => (Some(path), Source::JsonLines),
        (_, _, path) => (path.as_ref(), lines),
    };
    if let Some(behind) = behind {
        if path.is_some() || args.nul {
            return Err("items are either behind `:::` or in a file".to_owned());
        }
        if behind.iter().any(|word| word == SEPARATOR) {
            return Err("one `:::` is understood, and behind it the items".to_owned());
        }
        return Items::of_arguments(texts(behind)?).map_err(|error| error.to_string());
    }
    let (name, from): (String, Box<dyn Read>) = match path {
        Some(path) if path.as_os_str() != "-" => {
            let name = path.display().to_string();
            let file = File::open(path).map_err(|error| format!("{name}: {error}"))?;
            (name, Box::new(file))
        }
        _ if path.is_none() && io::stdin().is_terminal() => {
            return Err(
                "there are no items: put them behind `:::`, into a file (--csv, --jsonl, --lines), or on standard input"
                    .to_owned(),
            );
        }
        _ => ("standard input".to_owned(), Box::new(io::stdin())),
    };
    Items::read(&name, source, from).map_err(|error| error.to_string())
}

/// Where maps are kept: in the state directory of this user's daemon, which is hidden from sandboxed programs.
fn directory() -> Result<PathBuf, String> {
    let state = Surroundings::here().state_dir();
    let none = "neither HOME nor XDG_STATE_HOME is set; say with PROVOST_STATE_DIR where maps are kept";
    Ok(state.ok_or(none)?.join("maps"))
}
