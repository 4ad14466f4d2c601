//! `provost db`, and where the database is.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, Subcommand};
use nix::unistd::geteuid;

use super::client::{print, print_line};
use super::{CliResult, output, records};
use crate::daemon::config::{Flags, ServeConfig, Surroundings};
use crate::store::{self, Checked, DATABASE_NAME, Reader, StoreError};

/// Look after the daemon's database
///
/// It is one SQLite file, which any tool for SQLite can read; what is in it says docs/database.md.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  provost db check
  provost db export backup.jsonl
  provost db export | jq -c 'select(.table == \"denials\")'")]
pub(crate) struct DbArgs {
    #[command(subcommand)]
    verb: DbVerb,
    #[command(flatten)]
    state_dir: StateDir,
}

#[derive(Debug, Subcommand)]
enum DbVerb {
    /// Look at every page, reference and record; exit code 1 if something is wrong
    Check {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give room back to the disk; a running daemon waits meanwhile
    Vacuum,
    /// Write every row as a line of JSON, all as of one moment
    Export {
        /// The file, which appears when it is whole [default: stdout]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// Which database.
#[derive(Debug, ClapArgs)]
pub(super) struct StateDir {
    /// The directory of the daemon's database [default: that of `provost serve`; PROVOST_STATE_DIR]
    #[arg(long, value_name = "DIR", global = true)]
    state_dir: Option<PathBuf>,
}

impl StateDir {
    /// Where it is looked for: where it was said, else where this user's own daemon has it, or root's for this user.
    fn resolve(&self) -> Result<PathBuf, String> {
        if let Some(directory) = &self.state_dir {
            return Ok(directory.clone());
        }
        let config = ServeConfig::resolve(&Flags::default(), &Surroundings::here());
        let own = config.map_err(|error| error.to_string())?.state_dir;
        let own =
            own.ok_or("neither HOME nor XDG_STATE_HOME is set; name the directory with --state-dir")?;
        let roots = Path::new("/var/lib/provost/users").join(geteuid().to_string());
        let is_there = |directory: &Path| directory.join(DATABASE_NAME).exists();
        Ok(if !is_there(&own) && is_there(&roots) {
            roots
        } else {
            own
        })
    }

    /// Opens it for reading; none if there is none, which people are told.
    pub(super) fn open(&self) -> Result<Option<Reader>, String> {
        let directory = self.resolve()?;
        let reader = Reader::open(&directory).map_err(|error| error.to_string())?;
        if reader.is_none() {
            records::hint(&directory);
        }
        Ok(reader)
    }
}

pub(super) fn run(args: DbArgs) -> CliResult {
    match args.verb {
        DbVerb::Check { json } => check(&args.state_dir, json),
        DbVerb::Vacuum => vacuum(&args.state_dir),
        DbVerb::Export { file } => export(&args.state_dir, file.as_deref()),
    }
}

fn check(state_dir: &StateDir, json: bool) -> CliResult {
    let directory = state_dir.resolve()?;
    let checked = Reader::open(&directory).and_then(|reader| match reader {
        Some(reader) => reader.check().map(Some),
        None => Ok(None),
    });
    let checked = match checked {
        Ok(Some(checked)) => checked,
        Ok(None) => {
            records::hint(&directory);
            return Ok(0);
        }
        Err(error @ StoreError::Damaged { .. }) => {
            output::error(&error.to_string());
            return Ok(1);
        }
        Err(error) => return Err(error.to_string()),
    };
    if json {
        print_line(&checked)?;
    } else {
        let Checked {
            schema,
            sessions,
            processes,
            records,
            denials,
            ..
        } = checked;
        print(&format!(
            "schema {schema}\nsessions {sessions}\nprocesses {processes}\nrecords {records}\ndenials {denials}\n"
        ))?;
        for problem in &checked.problems {
            output::error(problem);
        }
    }
    Ok(u8::from(!checked.problems.is_empty()))
}

fn vacuum(state_dir: &StateDir) -> CliResult {
    let directory = state_dir.resolve()?;
    let size = || fs::metadata(directory.join(DATABASE_NAME)).map_or(0, |found| found.len());
    let before = size();
    if !store::vacuum(&directory).map_err(|error| error.to_string())? {
        records::hint(&directory);
        return Ok(0);
    }
    print(&format!("{before} bytes before, {} after\n", size()))
}

fn export(state_dir: &StateDir, file: Option<&Path>) -> CliResult {
    let Some(reader) = state_dir.open()? else {
        return Ok(0);
    };
    match file {
        None => match reader.export(&mut BufWriter::new(std::io::stdout().lock())) {
            Err(error) => Err(error.to_string()),
            // A reader who has seen enough is no error.
            Ok(Err(error)) if error.kind() != ErrorKind::BrokenPipe => {
                Err(format!("cannot write: {error}"))
            }
            Ok(_) => Ok(0),
        },
        Some(path) => {
            // Beside it, so that the file is whole from the moment in which it is there.
            let mut partial = path.to_owned().into_os_string();
            partial.push(format!(".{}", std::process::id()));
            let partial = PathBuf::from(partial);
            let written = export_to(&reader, &partial, path);
            if written.is_err() {
                let _ = fs::remove_file(&partial);
            }
            written.map(|()| 0)
        }
    }
}

fn export_to(reader: &Reader, partial: &Path, path: &Path) -> Result<(), String> {
    let say = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(partial);
    let mut file = BufWriter::new(file.map_err(say)?);
    reader
        .export(&mut file)
        .map_err(|error| error.to_string())?
        .map_err(say)?;
    let file: File = file.into_inner().map_err(|error| say(error.into_error()))?;
    file.sync_all().map_err(say)?;
    fs::rename(partial, path).map_err(say)
}
